"""The control plane's readers of what agents send, from the bytes of a body to the entry that would be logged.

The body goes through the real `read_document` and `read_message`. What an agent says then goes into a log entry, is
written as the log writes it, read back, and applied to a book, as after a restart.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import trio
from starlette.requests import Request

from control_plane.book import Book
from control_plane.enrolment import read_bootstrap_token
from control_plane.entries import BootstrapReported, Entry, FactAccepted, FactRefused, HostChanged
from control_plane.errors import BadRequestError, RequestRefusedError
from control_plane.guards import read_document, read_message
from control_plane.identity import CanonicalNames
from control_plane.ingest import read_envelope
from control_plane.issuance import Issuer, parse_request
from control_plane.records import decode_entry, encode_entry, kind_of
from evidence.host_key import HostKey
from evidence.tokens import check_request
from state_machine.values import HostName
from tests.fuzz.certificate_samples import CA_KEY, armor_body, certificate, csr_pem, in_armor
from tests.unit import wire_examples as examples
from wire.codec import decode_fact, encode_fact
from wire.errors import WireError
from wire.messages import BootstrapReport, EnrollRequest, HeartbeatRequest

KEY: Final = HostKey(seed=b"the ed25519 host key of node7 --")
CSR: Final = csr_pem(KEY, "node7")
CSR_BODY: Final = armor_body(CSR.encode())
ENVELOPES: Final[tuple[Any, ...]] = tuple(
    {
        "hostname": "node7",
        "rolloutId": examples.ROLLOUT,
        "event": encode_fact(fact),
        "signature": "00" * 64,
        "prev": "11" * 32,
    }
    for fact in examples.FACTS
)
HEARTBEATS: Final[tuple[Any, ...]] = (
    {
        "hostname": "node7",
        "at": "2026-06-01T10:30:00Z",
        "rollout_id": "edge@4be0c1",
        "current_closure": examples.NEW,
        "agent_version": "0.1.0",
        "uptime_secs": 5,
        "last_event_seq_by_rollout": {"edge@4be0c1": 3},
        "health": {"pass": 2},
        "boot_id": "b",
        "waiting_on": "a dispatch",
        "tags": ["web"],
    },
)
Answer = TypeVar("Answer")


def enrol_requests(token: Any) -> tuple[Any, ...]:
    """A request for a certificate."""
    return ({"token": token, "csrPem": CSR},)


def reports(token: Any) -> tuple[Any, ...]:
    """A report of a host that cannot enrol."""
    return (
        {
            "token": token,
            "agentVersion": "0.1.0",
            "occurredAt": "2026-06-01T10:30:00Z",
            "event": {"event": "trust-error", "details": {"reason": "x", "n": [1, None]}},
        },
    )


def fact(data: bytes) -> object:
    """An envelope, as far as the book."""
    received = read_envelope(_run(lambda request: read_document(request, malformed=422), data))
    told: dict[str, Any] = {
        "hostname": received.hostname,
        "rollout_id": received.rollout_id,
        "seq": received.seq,
        "event": received.text,
    }
    try:
        decode_fact(received.event)
    except WireError as error:
        return _logged(FactRefused(**told, status=422, reason="parse", detail=error.detail))
    return _logged(FactAccepted(**told, signature=received.signature, prev=received.prev))


def heartbeat(data: bytes) -> object:
    """A heartbeat, as far as the book."""
    said = _run(lambda request: read_message(request, HeartbeatRequest), data)
    return _logged(
        HostChanged(
            hostname=said.hostname,
            boot_id=said.boot_id,
            current_closure=said.current_closure,
            agent_version=said.agent_version,
            health=dict(said.health),
            waiting_on=said.waiting_on,
            uptime_secs=said.uptime_secs,
            tags=said.tags,
        )
    )


def enrol(data: bytes) -> object:
    """A request for a certificate, with its token and its CSR."""
    said = _run(lambda request: read_message(request, EnrollRequest), data)
    token = read_bootstrap_token(dict(said.token))
    try:
        request = parse_request(said.csr_pem)
    except BadRequestError as error:
        raise RequestRefusedError(status=400, reason="bad-csr", error=str(error)) from error
    if request.cn == token.claims.hostname and request.ed25519_public == KEY.public:
        check_request(token.claims, hostname=request.cn, public=KEY.public)
    return _issued(said.csr_pem)


def report(data: bytes) -> object:
    """A report of a host that cannot enrol, as far as the book."""
    said = _run(lambda request: read_message(request, BootstrapReport), data)
    token = read_bootstrap_token(dict(said.token))
    return _logged(
        BootstrapReported(
            hostname=token.claims.hostname,
            agent_version=said.agent_version,
            event=said.event.event,
            details=said.event.details,
        )
    )


def csr(data: bytes) -> object:
    """A signing request and the certificate for it."""
    return _issued(data.decode("utf-8", "replace"))


def csr_body(data: bytes) -> object:
    """The same without its armor, where mutations get further."""
    return csr(in_armor("CERTIFICATE REQUEST", data))


def _issued(pem: str) -> object:
    issuer = Issuer(certificate=_CA, key=CA_KEY, names=CanonicalNames(suffix="fleet.example"), validity_s=3600)
    return issuer.issue(parse_request(pem), HostName("node7"), examples.AT)


def _logged(entry: Entry) -> Entry:
    assert decode_entry(kind_of(entry), encode_entry(entry)) == entry
    encode_entry(entry).encode()
    Book().apply(entry, examples.AT)
    return entry


def _run(read: Callable[[Request], Coroutine[Any, Any, Answer]], body: bytes) -> Answer:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def reading() -> Answer:
        return await read(Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive))

    return trio.run(reading)


_CA: Final = certificate(CA_KEY, "fleet CA")
