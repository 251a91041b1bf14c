"""Simulated agents: each its own TLS client with its own certificate, speaking the protocol and keeping nothing.

Two connections each, as an agent has them: one waits for a dispatch, one brings facts. They are as light as can be,
so that what is measured is the control plane.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import h11
import trio

from evidence.canonical import canonicalize
from evidence.host_key import HostKey
from state_machine.facts import Fact
from state_machine.values import Closure, HostName, ProbeStatus, WallMs
from tests.cplab import Lab, acknowledged, activated, converged, probed
from wire.codec import encode_fact
from wire.endpoints import DISPATCH, EVENTS, PROTOCOL_HEADER, PROTOCOL_VERSION
from wire.json_value import JsonObject

WAIT_S: Final = 60
CHUNK: Final = 65_536


class ProtocolBreachError(Exception):
    """The control plane answered something that no agent expects."""


class Wire:
    """One kept-alive connection."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], authority: str) -> None:
        self._stream, self._http = stream, h11.Connection(h11.CLIENT)
        self._headers = [("Host", authority), (PROTOCOL_HEADER, PROTOCOL_VERSION)]

    @classmethod
    async def to(cls, lab: Lab, host: HostName, port: int) -> "Wire":
        """Connect with the host's certificate."""
        plain = await trio.open_tcp_stream("127.0.0.1", port)
        stream = trio.SSLStream(plain, lab.tls(host), server_hostname="127.0.0.1")
        await stream.do_handshake()
        return cls(stream, f"127.0.0.1:{port}")

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """A request and its whole answer: status and body."""
        headers = [*self._headers, ("Content-Length", str(len(body))), ("Content-Type", "application/json")]
        request = self._http.send(h11.Request(method=method, target=path, headers=headers)) or b""
        request += self._http.send(h11.Data(data=body)) or b""
        await self._stream.send_all(request + (self._http.send(h11.EndOfMessage()) or b""))
        status, received = 0, bytearray()
        while True:
            event = self._http.next_event()
            match event:
                case h11.NEED_DATA:
                    self._http.receive_data(bytes(await self._stream.receive_some(CHUNK)))
                case h11.Response():
                    status = event.status_code
                case h11.Data():
                    received += event.data
                case h11.EndOfMessage():
                    self._http.start_next_cycle()
                    return status, bytes(received)
                case _:
                    raise ProtocolBreachError(f"{path}: {event!r}")


@attrs.define(kw_only=True)
class SimulatedAgent:
    """A host that takes every dispatch at once and says that all went well."""

    host: HostName
    key: HostKey
    polling: Wire
    telling: Wire
    dispatched: dict[str, float] = attrs.field(factory=dict)
    """When (seconds since 1970) each rollout's dispatch arrived here."""
    converges: bool = True
    """False: it soaks for ever, and its probes may be reported again and again."""
    told: set[str] = attrs.field(factory=set)
    """Rollouts whose whole story was taken."""
    seqs: dict[str, int] = attrs.field(factory=dict)

    @classmethod
    async def join(cls, lab: Lab, host: HostName, port: int) -> "SimulatedAgent":
        """Connect."""
        polling, telling = await Wire.to(lab, host, port), await Wire.to(lab, host, port)
        return cls(host=host, key=lab.keys[host], polling=polling, telling=telling)

    async def live(self, running: Closure) -> None:
        """Wait for dispatches for ever, and carry out each."""
        while True:
            status, body = await self.polling.ask("GET", f"{DISPATCH}?wait={WAIT_S}")
            if status == 204:
                continue
            if status != 200:
                raise ProtocolBreachError(f"{DISPATCH}: HTTP {status}")
            dispatch = json.loads(body)
            if dispatch["rollout_id"] not in self.dispatched:
                self.dispatched[dispatch["rollout_id"]] = time.time()
                await self.tell(dispatch["rollout_id"], self._story(dispatch, running))
                self.told.add(dispatch["rollout_id"])

    def _story(self, dispatch: Mapping[str, Any], running: Closure) -> list[Fact]:
        target, at = Closure(dispatch["target_closure"]), WallMs(int(time.time() * 1000))
        end = converged(target, at) if self.converges else probed(ProbeStatus.PASS, at)
        return [acknowledged(running, at), *activated(target, at), *end]

    async def tell(self, rollout_id: str, facts: Sequence[Fact]) -> None:
        """Send facts under the next numbers; all must be taken."""
        for body in self.written(rollout_id, facts):
            await self.bring(body)

    async def bring(self, body: bytes) -> None:
        """Send one written fact, which must be taken."""
        status, said = await self.telling.ask("POST", EVENTS, body)
        if status != 204:
            raise ProtocolBreachError(f"{EVENTS}: HTTP {status} {said[:200]!r}")

    def written(self, rollout_id: str, facts: Sequence[Fact]) -> list[bytes]:
        """The facts as signed bodies under the next numbers."""
        bodies = []
        for fact in facts:
            self.seqs[rollout_id] = self.seqs.get(rollout_id, 0) + 1
            bodies.append(self._envelope(rollout_id, encode_fact(attrs.evolve(fact, seq=self.seqs[rollout_id]))))
        return bodies

    def _envelope(self, rollout_id: str, event: JsonObject) -> bytes:
        signature = self.key.sign(canonicalize(event)).hex()
        document = {"hostname": self.host, "rolloutId": rollout_id, "event": event, "signature": signature}
        return json.dumps(document).encode()


async def join_all(lab: Lab, port: int, at_once: int = 20) -> dict[HostName, SimulatedAgent]:
    """Connect every host of the lab, so many at a time."""
    joined: dict[HostName, SimulatedAgent] = {}
    limit = trio.CapacityLimiter(at_once)

    async def join(host: HostName) -> None:
        async with limit:
            joined[host] = await SimulatedAgent.join(lab, host, port)

    async with trio.open_nursery() as nursery:
        for host in lab.hosts:
            nursery.start_soon(join, host)
    return joined
