"""Table A from the other side: hosts and strangers that attack one real control plane, which nobody else notices.

After every attack the process has not grown by more than the limit, has answered each attempt with the 4xx and the
reason that fits, has recorded nothing of it, and has gone on serving another host meanwhile.
"""

import contextlib
import json
import random
import resource
import socket
import sqlite3
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Final

import attrs
import httpx
import pytest

from control_plane.clock import wall_now
from evidence.signature import Algorithm
from nixfleet.keys import certificates
from state_machine.facts import ActivationStarted, DispatchAck
from state_machine.values import SwitchMethod, WallMs
from tests.cplab import OLD, Lab, Puppet, Running, eventually
from tests.hostile.siege import MIB, SPOILED, within_memory
from wire.codec import encode_fact
from wire.json_value import JsonObject

AT: Final = WallMs(1_790_000_000_000)
ROLLOUT: Final = "stable@c0ffee"
HOSTS: Final = ("bystander", "victim", *(f"mallory{number}" for number in range(12)))
DAY_MS: Final = 86_400_000
_fresh = iter(HOSTS[2:])


@attrs.frozen(kw_only=True)
class Fort:
    """The control plane, and a host that has nothing to do with any of it."""

    lab: Lab
    cp: Running
    bystander: Puppet

    @contextmanager
    def withstands(self, limit: int = 32 * MIB) -> Iterator[None]:
        """Up, no larger, nothing on record, and others are served: throughout the block and after it."""
        self._serves()
        recorded = self._recorded()
        with within_memory(self.cp.process.pid, limit):
            yield
            self._serves()
        assert self._recorded() == recorded
        assert self.cp.process.poll() is None
        assert "Traceback" not in self.cp.log()

    def _serves(self) -> None:
        assert self.bystander.heartbeat().status_code == 200
        assert self.bystander.http.get("/v1/whoami").status_code == 200

    def _recorded(self) -> list[tuple[str, int]]:
        with closing(sqlite3.connect(f"{self.lab.database.as_uri()}?mode=ro", uri=True)) as db:
            names = [
                name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            ]
            return [(name, db.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]) for name in names]

    def takes(self, agent: Puppet) -> None:
        """What the host says honestly is taken, from number 1 on."""
        assert agent.send(ROLLOUT, ack()).status_code == 204
        assert agent.send(ROLLOUT, started(2)).status_code == 204

    def connect(self, identity: str | None = None) -> socket.socket:
        """A connection; without an identity there is not even a handshake."""
        host, port = self.cp.url.removeprefix("https://").split(":")
        plain = socket.create_connection((host, int(port)))
        return plain if identity is None else self.lab.tls(identity).wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    lab = Lab(tmp_path_factory.mktemp("fort"), hosts=HOSTS)
    lab.publish("c0ffee")
    lab.publish_nonces()
    with lab.start(require_evidence=True) as cp:
        # Once over everything that is recorded for a host that is merely there, and what first requests cost.
        bystander = cp.agent("bystander")
        eventually(lambda: bystander.heartbeat().status_code == 200, what="a heartbeat")
        for host in HOSTS:
            assert cp.client(host).get("/v1/whoami").status_code == 200
        yield Fort(lab=lab, cp=cp, bystander=bystander)


@pytest.fixture
def mallory(fort: Fort) -> Puppet:
    return fort.cp.agent(next(_fresh))


def ack(seq: int = 1) -> DispatchAck:
    return DispatchAck(seq=seq, current_closure_at_dispatch=OLD, received_at=AT)


def started(seq: int) -> ActivationStarted:
    return ActivationStarted(seq=seq, started_at=AT, switch_method=SwitchMethod.DETACHED)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) <= {"error", "reason", "want_seq"}
    assert body["error"]
    return answer.status_code, body["reason"]


# Facts


def test_facts_replayed(fort: Fort, mallory: Puppet) -> None:
    fort.takes(mallory)
    with fort.withstands():
        for _ in range(100):
            assert mallory.send(ROLLOUT, ack()).status_code == 204
            assert refusal(mallory.send(ROLLOUT, started(1))) == (409, "conflict")


def test_facts_reordered_and_with_gaps(fort: Fort, mallory: Puppet) -> None:
    with fort.withstands():
        for seq in random.Random(4).sample([*range(2, 40), 2**31, 2**53 - 1], 40):
            answer = mallory.send(ROLLOUT, started(seq))
            assert refusal(answer) == (409, "gap")
            assert answer.json()["want_seq"] == 1
    fort.takes(mallory)


def test_facts_of_another_host_and_of_its_chain(fort: Fort, mallory: Puppet) -> None:
    victim = fort.cp.agent("victim")
    theirs = victim.envelope(ROLLOUT, encode_fact(ack()))
    with fort.withstands():
        for body, answer in (
            (theirs, (403, "hostname")),
            ({**theirs, "hostname": mallory.host}, (403, "bad-signature")),
            ({**mallory.envelope(ROLLOUT, encode_fact(ack())), "hostname": "victim"}, (403, "hostname")),
            ({**mallory.envelope(ROLLOUT, encode_fact(ack())), "hostname": None}, (403, "hostname")),
            (mallory.envelope(ROLLOUT, encode_fact(ack()), signed=False), (403, "not-signed")),
        ):
            assert refusal(mallory.http.post("/v1/agent/events", json=body)) == answer
        heartbeat = {"hostname": "victim", "at": "2026-06-01T10:03:00Z"}
        assert refusal(mallory.http.post("/v1/agent/heartbeat", json=heartbeat)) == (403, "hostname")
        renewal = {"csrPem": fort.lab.csr("victim")}
        assert refusal(mallory.http.post("/v1/agent/renew", json=renewal)) == (403, "wrong-name")
    fort.takes(mallory)
    fort.takes(victim)


# Size and shape


def test_oversized_bodies(fort: Fort, mallory: Puppet) -> None:
    paths = ("/v1/agent/events", "/v1/agent/heartbeat", "/v1/agent/renew", "/v1/enroll", "/v1/agent/bootstrap-report")
    with fort.withstands():
        for path in paths:
            body = json.dumps({"hostname": mallory.host, "padding": "x" * 2 * MIB})
            assert refusal(mallory.http.post(path, content=body)) == (413, "too-large")
        for _ in range(3):
            assert refusal(mallory.http.post(paths[0], content=(b"x" * MIB for _ in range(6)))) == (413, "too-large")
    fort.takes(mallory)


def test_bodies_without_an_end(fort: Fort) -> None:
    with fort.withstands(), closing(fort.connect("mallory0")) as tls:
        tls.settimeout(60)
        tls.sendall(b"POST /v1/agent/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = _pour(tls)
    assert sent < 64 * MIB


def _pour(tls: socket.socket) -> int:
    """Send chunks until it will not have any more; how much went away."""
    sent, chunk = 0, b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with contextlib.suppress(OSError):
        while sent < 256 * MIB:
            tls.sendall(chunk)
            sent += len(chunk)
    return sent


def test_prototype_abuse(fort: Fort, mallory: Puppet) -> None:
    bodies = [start + b'"hostname":"x"}' for start in SPOILED.values()] + [b"", b"{", b"[]", b"null", b"7", b"\xff"]
    expected = {
        "/v1/agent/events": {(422, "parse")},
        "/v1/agent/heartbeat": {(400, "parse")},
        "/v1/agent/renew": {(400, "parse")},
        "/v1/enroll": {(400, "parse")},
    }
    with fort.withstands():
        for path, answers in expected.items():
            assert {refusal(mallory.http.post(path, content=body)) for body in bodies} == answers
    fort.takes(mallory)


def test_texts_without_measure_in_a_heartbeat(fort: Fort, mallory: Puppet) -> None:
    long: dict[str, object] = {
        "waiting_on": "w" * 900_000,
        "boot_id": "b" * 900_000,
        "agent_version": "v" * 900_000,
        "tags": ("t" * 90_000,) * 9,
        "health": {f"h{number}": number for number in range(50_000)},
    }
    with fort.withstands():
        for round in range(4):
            for name, value in long.items():
                changed = f"{round}{value}" if isinstance(value, str) else value
                answer = mallory.heartbeat(**{name: changed})
                assert refusal(answer) == (413, "too-large"), name
    assert mallory.heartbeat(waiting_on="w").status_code == 200


# Time and numbers


def test_slow_writers(fort: Fort) -> None:
    begun = b"POST /v1/agent/events HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"
    with fort.withstands(), ExitStack() as stack:
        writers = [stack.enter_context(closing(fort.connect("mallory0"))) for _ in range(30)]
        for tls in writers:
            tls.sendall(begun)
        for tls in writers:
            tls.settimeout(60)
            answer = tls.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408 ")
            while b"}" not in answer:
                answer += tls.recv(65536)
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "slow"


def test_thousands_of_connections(fort: Fort) -> None:
    """Without a handshake they are let go of after ten seconds, and cost at most 64 KiB each until then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2_000
    assert hard >= wanted + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 200), hard))
    try:
        with fort.withstands(limit=wanted * 65536), ExitStack() as stack:
            crowd = [stack.enter_context(closing(fort.connect())) for _ in range(wanted)]
            for connection in crowd:
                connection.settimeout(60)
            assert fort.cp.client("victim").get("/v1/whoami").status_code == 200
            for connection in crowd:
                assert connection.recv(1) == b""
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_connections_than_there_are_descriptors(fort: Fort) -> None:
    pid = fort.cp.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        with fort.withstands(), ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(closing(fort.connect()))
            assert fort.bystander.heartbeat().status_code == 200  # who is connected stays connected
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert fort.cp.client("victim").get("/v1/whoami").status_code == 200


# Identity


def test_enrolment_replay(fort: Fort, mallory: Puppet) -> None:
    token = fort.lab.token(mallory.host)
    assert "bootstrap-nonces.json" not in fort.cp.refresh()
    body: JsonObject = {"token": token, "csrPem": fort.lab.csr(mallory.host)}
    stranger = fort.cp.client()
    assert stranger.post("/v1/enroll", json=body).status_code == 200
    with fort.withstands():
        for _ in range(20):
            assert refusal(stranger.post("/v1/enroll", json=body)) == (409, "nonce-used")
            stolen = {**body, "csrPem": fort.lab.csr("victim")}
            assert refusal(stranger.post("/v1/enroll", json=stolen)) == (409, "nonce-used")
        assert refusal(mallory.http.post("/v1/enroll", json=body)) == (409, "nonce-used")


def test_impersonation_by_certificate(fort: Fort, mallory: Puppet) -> None:
    """Expired, or of another CA: no handshake, no request. Another host's own name: 403, which is told above."""
    fort.lab.write_certificate(mallory.host, now=WallMs(wall_now() - 60 * DAY_MS))
    other = certificates.make_authority(certificates.generate(Algorithm.ED25519), "other CA", wall_now(), 30)
    forged = certificates.make_operator(other, certificates.generate(Algorithm.ED25519), "mallory", wall_now(), 30)
    fort.lab.path("forged.pem").write_bytes(forged.certificate_pem)
    fort.lab.path("forged-key.pem").write_bytes(forged.key_pem)
    with fort.withstands():
        for identity in (mallory.host, "forged", "server"):
            for _ in range(10):
                with pytest.raises((httpx.TransportError, ssl.SSLError)):
                    fort.cp.client(identity).get("/v1/whoami")
        assert refusal(fort.cp.client().get("/v1/whoami")) == (401, "no-certificate")
    fort.lab.write_certificate(mallory.host)
    assert fort.cp.client(mallory.host).get("/v1/whoami").status_code == 200
