"""The agent's real workers and certificate tool, fed answers that a control plane might give.

Whatever a worker tells the reducer is also decided on, sealed into a journal entry and read back, since that is what
would happen to it next.
"""

import atexit
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import trio

from evidence.chain import GENESIS as NO_ENTRY
from evidence.host_key import HostKey
from nixfleet_agent import certificates
from nixfleet_agent.config import Config, read_config
from nixfleet_agent.desk import Desk, NotJsonAnswerError, Uplink, read_json
from nixfleet_agent.journal.entries import Author, sealed
from nixfleet_agent.journal.outbox import StoredFact
from nixfleet_agent.options import Raw
from nixfleet_agent.telemetry import Telemetry
from nixfleet_agent.transport import Answer, Connection
from nixfleet_agent.workers.dispatch import DispatchWorker
from nixfleet_agent.workers.heartbeat import HeartbeatWorker
from nixfleet_agent.workers.outbound import OutboundWorker
from state_machine.actions import DeliverFacts
from state_machine.events import Booted, Event
from state_machine.state import GENESIS, State
from state_machine.step import step
from state_machine.values import RolloutId
from tests.fuzz.certificate_samples import armor_body, certificate_pem, in_armor
from tests.unit import wire_examples as examples
from wire.codec import decode
from wire.endpoints import ENROLL
from wire.errors import WireError
from wire.messages import EnrollResponse
from wire.records import decode_event

KEY: Final = HostKey(seed=b"the ed25519 host key of node7 --")
CERTIFICATE: Final = certificate_pem(KEY, "agent-node7.fleet.example").encode()
CERTIFICATE_BODY: Final = armor_body(CERTIFICATE)
DISPATCHES: Final[tuple[Any, ...]] = (
    {
        "hostname": "node7",
        "rollout_id": "edge@4be0c1",
        "target_closure": examples.NEW,
        "soak_due_at": "2026-06-01T10:30:00Z",
        "enqueued_at": None,
        "soak_secs": 60,
        "kind": "dispatch",
        "reason": "x",
    },
    {"hostname": "node7", "rollout_id": "edge@4be0c1", "target_closure": examples.OLD, "kind": "rollback"},
)
HEARTBEAT_REPLIES: Final[tuple[Any, ...]] = (
    {
        "received_at": "2026-06-01T10:30:00Z",
        "bootstrap_rollouts": [
            {
                "rolloutId": "edge@4be0c1",
                "hostname": "node7",
                "channel": "edge",
                "state": "Soaking",
                "targetClosure": examples.NEW,
                "dispatchedAt": "2026-06-01T10:30:00Z",
                "lastEventSeq": 3,
            }
        ],
        "replay": [{"rollout_id": "edge@4be0c1", "from_seq": 2}],
    },
)
REFUSALS: Final[tuple[Any, ...]] = (
    {"error": "a gap", "reason": "gap", "want_seq": 2},
    {"error": "it does not fit", "reason": "illegal"},
)
ENROL_ANSWERS: Final[tuple[Any, ...]] = ({"certPem": CERTIFICATE.decode(), "notAfter": "2026-06-01T10:30:00Z"},)
CERTIFICATE_REFUSALS: Final = (ValueError, TypeError)
"""What the certificate tool turns into its one line."""


def dispatch_answer(data: bytes) -> object:
    """The long-poll's answer."""
    return _exchange(
        data, 200, lambda desk: DispatchWorker(desk, lambda: examples.SYSTEM, trio.lowlevel.checkpoint).poll()
    )


def heartbeat_answer(data: bytes) -> object:
    """The answer to a heartbeat."""
    return _exchange(
        data, 200, lambda desk: HeartbeatWorker(desk, lambda: examples.SYSTEM, trio.lowlevel.checkpoint).beat()
    )


def fact_answer(data: bytes) -> object:
    """What a control plane says that will not take a fact."""
    order = DeliverFacts(rollout_id=examples.ROLLOUT, from_seq=1, through_seq=1)
    return _exchange(data, 409, lambda desk: OutboundWorker(desk, _OneFact()).deliver(order))


def enrol_answer(data: bytes) -> object:
    """The answer to an enrolment, as far as the certificate tool, which runs in this process here."""
    value = read_json(ENROLL, Answer(status=200, headers={}, body=data))
    try:
        pem = decode(EnrollResponse, value).cert_pem
    except WireError as error:
        raise NotJsonAnswerError(path=ENROLL, problem=str(error)) from error
    return certificate(pem.encode())


def certificate(data: bytes) -> object:
    """A client certificate from the disk."""
    facts = certificates.inspect(data.decode("utf-8", "replace"), str(_KEY_FILE))
    assert type(facts["not_after_ms"]) is int
    return facts


def certificate_body(data: bytes) -> object:
    """The same without its armor, where mutations get further."""
    return certificate(in_armor("CERTIFICATE", data))


@attrs.frozen
class _OneFact:
    """A journal with one fact in it."""

    async def facts_from(self, rollout_id: RolloutId, from_seq: int, limit: int) -> Sequence[StoredFact]:
        return [StoredFact(fact=examples.FACTS[0], prev=None, n=1)] if from_seq <= 1 else []


def _exchange(body: bytes, status: int, work: Callable[[Desk], Awaitable[object]]) -> list[Event]:
    told: list[Event] = []

    async def tell(event: Event) -> None:
        told.append(event)

    async def run() -> None:
        uplink = Uplink(lambda: examples.MOMENT)
        answers = httpx.MockTransport(lambda request: httpx.Response(status, stream=httpx.ByteStream(body)))
        await uplink.use(Connection("https://cp.example", answers))
        await work(
            Desk(
                config=_config(),
                host_key=KEY,
                clock=lambda: examples.MOMENT,
                tell=tell,
                state=_booted,
                uplink=uplink,
                telemetry=Telemetry(),
                jitter=lambda: 0.5,
            )
        )

    trio.run(run)
    state = _booted()
    for event in told:
        follows = step(state, event)
        entry = sealed(_AUTHOR, NO_ENTRY, event, follows.facts)
        assert decode_event(json.loads(entry.body)["event"]) == event
        state = follows.state
    return told


_OPTIONS: Final[Raw] = {
    "control_plane_url": ("https://cp.example",),
    "machine_id": ("node7",),
    "client_cert": ("/nowhere/cert.pem",),
}
_AUTHOR: Final = Author(host_key=KEY, hostname=examples.NODE7, journal_id="0" * 32)


@cache
def _config() -> Config:
    return read_config(_OPTIONS)


@cache
def _booted() -> State:
    [booted] = [event for event in examples.EVENTS if isinstance(event, Booted)]
    return step(GENESIS, booted).state


def _key_file() -> Path:
    directory = tempfile.mkdtemp(prefix="nixfleet-fuzz-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = Path(directory) / "key"
    path.write_bytes(KEY.pkcs8_pem())
    return path


_KEY_FILE: Final = _key_file()
