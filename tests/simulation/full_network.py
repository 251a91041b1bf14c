"""The network between agents and control plane: HTTP from httpx's side to an ASGI application, in memory.

Everything a network may do to a request happens here: it is late, lost, doubled, overtaken; it arrives and its answer
does not. The certificate a host shows is in the request's scope where the server puts it after a TLS handshake.
"""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final, Protocol

import attrs
import httpx
import trio

from nixfleet_agent.transport import CONNECT_TIMEOUT_S
from tests.simulation.faults import Fault, FaultKind
from tests.simulation.full_world import World
from tests.simulation.trace import Weight

LATENCY_S: Final = (0.002, 0.04)
OVERTAKEN_S: Final = (1.0, 12.0)
Application = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]


@attrs.frozen(kw_only=True)
class Answer:
    """What the server said."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


@attrs.define(kw_only=True, eq=False)
class Call:
    """One request as it arrives, and what becomes of it. Answered without an `answer`: the connection was reset."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    peer: str | None
    """The client certificate, PEM."""
    answered: trio.Event = attrs.field(factory=trio.Event)
    gone: trio.Event = attrs.field(factory=trio.Event)
    """The client has hung up, as far as the server can see."""
    answer: Answer | None = None

    @property
    def path(self) -> str:
        """Without the query."""
        return self.target.partition(b"?")[0].decode()

    async def serve(self, app: Application) -> None:
        """Have the application answer."""
        start: MutableMapping[str, Any] = {}
        body = bytearray()
        waiting = [{"type": "http.request", "body": self.body, "more_body": False}]

        async def receive() -> MutableMapping[str, Any]:
            if waiting:
                return waiting.pop()
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body.extend(message.get("body", b""))

        try:
            await app(self._scope(), receive, send)
        finally:
            if start:
                self.answer = Answer(status=start["status"], headers=tuple(start["headers"]), body=bytes(body))

    def _scope(self) -> MutableMapping[str, Any]:
        path, _, query = self.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "https",
            "path": path.decode(),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in self.headers],
            "client": ("10.0.0.1", 40_000),
            "server": ("cp.test", 443),
            "extensions": {"tls": {"client_cert_chain": [] if self.peer is None else [self.peer]}},
        }


class Server(Protocol):
    """The control plane's process."""

    @property
    def up(self) -> bool:
        """It listens."""
        ...

    def take(self, call: Call) -> None:
        """Begin to answer."""
        ...

    def instead(self, call: Call) -> Answer | None:
        """What a confused or busy server says without looking further."""
        ...


class Client(Protocol):
    """The host's side."""

    @property
    def host(self) -> int:
        """Its number."""
        ...

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def die(self, fault: Fault) -> None:
        """The agent's process ends at once."""
        ...


class Network:
    """Carries calls. What it does to them is drawn from a stream for each host."""

    def __init__(self, world: World, server: Server) -> None:
        self._world, self._server = world, server
        self._dice = [world.scenario.stream("network", host) for host in range(world.scenario.hosts)]

    def transport(self, client: Client, peer: str | None) -> "MemoryTransport":
        """A connection of `client`, showing that certificate."""
        return MemoryTransport(self, client, peer)

    async def exchange(self, client: Client, call: Call) -> Answer:
        """Carry a request there and its answer back, or raise what httpx would raise."""
        self.note(client, f"-> {call.method} {call.target.decode()}")
        await self._way_out(client.host)
        if (fault := self._world.strikes(FaultKind.KILL_UNANSWERED, client.host)) is not None:
            self._world.nursery.start_soon(self._arrive, call)
            client.die(fault)
            await trio.sleep_forever()
        if not self._server.up:
            raise httpx.ConnectError("connection refused")
        call.answer = self._server.instead(call)
        if call.answer is None:
            await self._served(client, call)
        if call.answer is None:
            raise httpx.ReadError("connection reset by peer")
        await self._way_back(client)
        self.note(client, f"<- {call.answer.status} {call.target.decode()}")
        return call.answer

    async def _served(self, client: Client, call: Call) -> None:
        self._server.take(call)
        if self._one_in(FaultKind.DUPLICATE, client.host):
            self._world.nursery.start_soon(self._arrive, _again(call), self._dice[client.host].uniform(0, 3))
        try:
            await call.answered.wait()
        finally:
            # A server learns that its client has gone, unless the network has.
            if not self._cut(client.host):
                call.gone.set()

    async def _arrive(self, call: Call, after_s: float = 0.0) -> None:
        await self._world.sleep(after_s)
        if self._server.up:
            self._server.take(call)

    async def _way_out(self, host: int) -> None:
        if self._world.active(FaultKind.PARTITION, host) is not None:
            await self._world.sleep(CONNECT_TIMEOUT_S)
            raise httpx.ConnectTimeout("timed out")
        if self._world.active(FaultKind.REFUSED, host) is not None:
            await self._world.sleep(self._latency_s(host))
            raise httpx.ConnectError("connection refused")
        await self._world.sleep(self._latency_s(host))
        if self._one_in(FaultKind.LOSS_UP, host):
            await trio.sleep_forever()

    async def _way_back(self, client: Client) -> None:
        host = client.host
        if (fault := self._world.strikes(FaultKind.KILL_UNREAD, host)) is not None:
            client.die(fault)
            await trio.sleep_forever()
        if self._cut(host) or self._one_in(FaultKind.LOSS_DOWN, host):
            await trio.sleep_forever()
        await self._world.sleep(self._latency_s(host))

    def _cut(self, host: int) -> bool:
        """Nothing comes back."""
        partition, half = (self._world.active(kind, host) for kind in (FaultKind.PARTITION, FaultKind.HALF_OPEN))
        return partition is not None or half is not None

    def _latency_s(self, host: int) -> float:
        dice = self._dice[host]
        seconds = dice.uniform(*LATENCY_S)
        if (delay := self._world.active(FaultKind.DELAY, host)) is not None:
            seconds += dice.uniform(0, delay.amount / 1000)
        if self._one_in(FaultKind.REORDER, host):
            seconds += dice.uniform(*OVERTAKEN_S)
        return seconds

    def _one_in(self, kind: FaultKind, host: int) -> bool:
        fault = self._world.active(kind, host)
        return fault is not None and self._dice[host].randrange(max(1, fault.amount)) == 0

    def note(self, client: Client, text: str) -> None:
        """Put something into the trace."""
        self._world.note(client.name, text, Weight.NOISE)


def _again(call: Call) -> Call:
    return Call(method=call.method, target=call.target, headers=call.headers, body=call.body, peer=call.peer)


class MemoryTransport(httpx.AsyncBaseTransport):
    """An httpx transport into the network."""

    def __init__(self, network: Network, client: Client, peer: str | None) -> None:
        self._network, self._client, self._peer = network, client, peer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and return the whole answer."""
        call = Call(
            method=request.method,
            target=request.url.raw_path,
            headers=tuple(request.headers.raw),
            body=await request.aread(),
            peer=self._peer,
        )
        try:
            answer = await self._network.exchange(self._client, call)
        except httpx.TransportError as error:
            self._network.note(self._client, f"x- {error} {call.target.decode()}")
            raise
        return httpx.Response(answer.status, headers=list(answer.headers), stream=httpx.ByteStream(answer.body))


def header(headers: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
    """Headers as ASGI wants them."""
    return tuple((name.lower().encode(), value.encode()) for name, value in headers.items())
