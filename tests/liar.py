"""A control plane that does as a test tells it: honest by default, and on any endpoint able to answer anything.

    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url)
        liar.says["heartbeat"] = html()          # from now on; `del` brings honesty back
        liar.dispatch("web1", rollout, closure)
        liar.until("a heartbeat", lambda: liar.count("heartbeat"))

It speaks TLS 1.3 on loopback in a thread of its own, over h11, and shares no code with the control plane. A behaviour
is an async function of one `Exchange`; those below are what a broken or hostile network does.
"""

import contextlib
import json
import os
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qs, urlsplit

import attrs
import h11
import trio

from control_plane.clock import wall_now
from control_plane.issuance import parse_request
from state_machine.values import HostName
from tests.cplab import Lab
from wire.endpoints import BOOTSTRAP_REPORT, DISPATCH, ENROLL, EVENTS, FLEET, HEARTBEAT, RENEW
from wire.timestamps import format_rfc3339

T = TypeVar("T")

PATIENCE_S: Final = float(os.environ.get("TEST_PATIENCE_S", "40"))

NAMES: Final = {
    ENROLL: "enroll",
    BOOTSTRAP_REPORT: "report",
    RENEW: "renew",
    DISPATCH: "dispatch",
    EVENTS: "events",
    HEARTBEAT: "heartbeat",
    FLEET: "fleet",
    FLEET + "/sig": "fleet-sig",
}
ENDPOINTS: Final = (*NAMES.values(), "rollout", "rollout-sig")
"""Every endpoint an agent asks, by the name that `Liar.says` knows it under."""

PORTAL: Final = b"<!DOCTYPE html><html><head><title>Free WiFi</title></head><body>Please log in.</body></html>"


@attrs.frozen(kw_only=True)
class Seen:
    """A request as it arrived. `client` is the common name of the certificate shown, `serial` its number."""

    at: float
    name: str
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    client: str | None
    serial: str | None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """One request, and the connection to answer it on."""

    def __init__(self, liar: "Liar", seen: Seen, stream: trio.abc.Stream, connection: h11.Connection) -> None:
        self.liar, self.seen, self.stream, self._connection = liar, seen, stream, connection

    async def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """A whole answer."""
        lines = {"Content-Length": str(len(body)), "Content-Type": "application/json", **(headers or {})}
        if status in (204, 304):
            del lines["Content-Length"]
        await self.begin(status, lines)
        if status not in (204, 304):
            await self.send(body)
        await self._transmit(h11.EndOfMessage())

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Status line and headers, of an answer that need never end."""
        await self._transmit(h11.Response(status_code=status, headers=list(headers.items())))

    async def send(self, data: bytes) -> None:
        """Some of the body."""
        await self._transmit(h11.Data(data=data))

    async def _transmit(self, event: Any) -> None:
        await self.stream.send_all(self._connection.send(event) or b"")

    async def honestly(self) -> None:
        """What an honest control plane would have said."""
        await self.liar.honest(self)


Behaviour = Callable[[Exchange], Awaitable[None]]


# What a network or a control plane may do


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    """This answer. Header names with underscores for hyphens."""

    async def behave(exchange: Exchange) -> None:
        await exchange.answer(code, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return behave


def says(document: Any, code: int = 200) -> Behaviour:
    """This JSON document."""
    return status(code, json.dumps(document).encode())


def html() -> Behaviour:
    """A captive portal: 200 and a page."""
    return status(200, PORTAL, Content_Type="text/html")


def silence() -> Behaviour:
    """The request is taken and never answered."""

    async def behave(exchange: Exchange) -> None:
        await trio.sleep_forever()

    return behave


def hang_up() -> Behaviour:
    """The connection is closed in place of an answer."""

    async def behave(exchange: Exchange) -> None:
        await trio.aclose_forcefully(exchange.stream)

    return behave


def dribble() -> Behaviour:
    """A body of one byte at a time, for ever."""

    async def behave(exchange: Exchange) -> None:
        await exchange.begin(200, {"Content-Type": "application/json"})
        while True:
            await exchange.send(b" ")
            await trio.sleep(0.2)

    return behave


def dribble_head() -> Behaviour:
    """A header of one byte at a time, for ever."""

    async def behave(exchange: Exchange) -> None:
        await exchange.stream.send_all(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            await exchange.stream.send_all(b"a")
            await trio.sleep(0.2)

    return behave


def flood(head: bytes = b"") -> Behaviour:
    """A body without end, as fast as it will be taken."""

    async def behave(exchange: Exchange) -> None:
        await exchange.begin(200, {"Content-Type": "application/json"})
        await exchange.send(head)
        while True:
            await exchange.send(b" " * 65536)

    return behave


def times(count: int, behaviour: Behaviour) -> Behaviour:
    """So many times `behaviour`, honest after that."""
    left = [count]

    async def behave(exchange: Exchange) -> None:
        left[0] -= 1
        await (behaviour(exchange) if left[0] >= 0 else exchange.honestly())

    return behave


class Gate:
    """A behaviour that waits for the test: `arrived` once a request is there, answered by `then` once `open` is."""

    def __init__(self, then: Behaviour | None = None) -> None:
        self.arrived, self._open, self._then = threading.Event(), threading.Event(), then

    async def __call__(self, exchange: Exchange) -> None:
        self.arrived.set()
        while not self._open.is_set():
            await trio.sleep(0.01)
        await (self._then(exchange) if self._then is not None else exchange.honestly())

    def wait(self) -> None:
        """Until a request is there."""
        assert self.arrived.wait(PATIENCE_S), "no request came"

    def open(self) -> None:
        """Let it, and every later one, go on."""
        self._open.set()


class Liar:
    """The server. Everything public may be used from the test's thread."""

    def __init__(
        self,
        lab: Lab,
        *,
        identity: str = "server",
        https: bool = True,
        newest_tls: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        validity_s: int = 86_400,
        port: int = 0,
    ) -> None:
        self.lab, self.says, self.validity_s = lab, dict[str, Behaviour](), validity_s
        self.seen: list[Seen] = []
        self.handshakes: Counter[str] = Counter()
        self.facts: dict[str, list[dict[str, Any]]] = {}
        """What honest answers to `events` have taken, by rollout."""
        self.replies: dict[str, Any] = {}
        """Members that honest heartbeat replies carry besides."""
        self._queue: dict[str, deque[dict[str, Any]]] = {}
        self._port, self._https, self._identity, self._newest_tls = port, https, identity, newest_tls
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._token.run_sync_soon(self._scope.cancel)
        self._thread.join(PATIENCE_S)

    # For the test

    @property
    def url(self) -> str:
        return f"{'https' if self._https else 'http'}://127.0.0.1:{self._port}"

    def requests(self, name: str) -> list[Seen]:
        """What was asked of this endpoint."""
        return [seen for seen in list(self.seen) if seen.name == name]

    def count(self, name: str) -> int:
        return len(self.requests(name))

    @property
    def port(self) -> int:
        """Where it listens, for another to take its place."""
        return self._port

    def until(self, what: str, seen: Callable[[], T], timeout_s: float = PATIENCE_S) -> T:
        """The first true value of `seen`."""
        deadline = time.monotonic() + timeout_s
        while not (value := seen()):
            assert time.monotonic() < deadline, f"{what} was not seen; asked: {Counter(s.name for s in self.seen)}"
            time.sleep(0.01)
        return value

    def until_asked(self, name: str, times: int = 1) -> Seen:
        """So many more requests of this endpoint than there were; the last of them."""
        wanted = self.count(name) + times
        self.until(f"{times} x {name}", lambda: self.count(name) >= wanted)
        return self.requests(name)[-1]

    def dispatch(self, host: str, rollout_id: str, closure: str, **members: Any) -> None:
        """Route something to a host."""
        self.route(host, {"hostname": host, "rollout_id": rollout_id, "target_closure": closure, **members})

    def route(self, host: str, document: dict[str, Any]) -> None:
        """Have a host's long-poll answered by this, whatever it is."""
        self._queue.setdefault(host, deque()).append(document)

    def told(self, rollout_id: str) -> list[str]:
        """The kinds of a rollout's facts, in the order they were taken."""
        return [fact["kind"] for fact in self.facts.get(rollout_id, [])]

    def forget(self) -> None:
        """As if the database had been wiped."""
        self.facts.clear()

    # The server

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        context = self._tls()
        listeners = await trio.open_tcp_listeners(self._port, host="127.0.0.1")
        self._port = listeners[0].socket.getsockname()[1]
        with trio.CancelScope() as self._scope:
            self._ready.set()
            await trio.serve_listeners(partial(self._connection, context), listeners)

    def _tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.lab.path("ca.pem"))
        context.verify_mode = ssl.CERT_OPTIONAL
        context.maximum_version = self._newest_tls
        context.load_cert_chain(self.lab.path(f"{self._identity}.pem"), self.lab.path(f"{self._identity}-key.pem"))
        return context

    async def _connection(self, context: ssl.SSLContext, raw: trio.SocketStream) -> None:
        stream: trio.abc.Stream = raw
        client: dict[str, Any] = {}
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError):
            if self._https:
                secure = trio.SSLStream(raw, context, server_side=True, https_compatible=True)
                try:
                    await secure.do_handshake()
                except trio.BrokenResourceError:
                    self.handshakes["refused"] += 1
                    raise
                self.handshakes["done"] += 1
                stream, client = secure, secure.getpeercert() or {}
            await self._requests(stream, client)
        await trio.aclose_forcefully(stream)

    async def _requests(self, stream: trio.abc.Stream, client: Mapping[str, Any]) -> None:
        connection = h11.Connection(h11.SERVER)
        while (seen := await self._next(stream, connection, client)) is not None:
            self.seen.append(seen)
            exchange = Exchange(self, seen, stream, connection)
            await self.says.get(seen.name, self.honest)(exchange)
            if connection.our_state is not h11.DONE:
                return
            connection.start_next_cycle()

    async def _next(
        self, stream: trio.abc.Stream, connection: h11.Connection, client: Mapping[str, Any]
    ) -> Seen | None:
        head, body = None, bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(65536)))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return _seen(head, bytes(body), client)
            else:
                return None

    # What an honest one says

    async def honest(self, exchange: Exchange) -> None:
        """Answer as protocol 1 asks for."""
        seen = exchange.seen
        match seen.name:
            case "enroll" | "renew":
                await self._issue(exchange)
            case "report":
                await exchange.answer(204)
            case "dispatch":
                await self._wait_for_dispatch(exchange)
            case "events":
                await self._take_fact(exchange)
            case "heartbeat":
                reply = {"received_at": format_rfc3339(wall_now()), **self.replies}
                await exchange.answer(200, json.dumps(reply).encode())
            case _:
                await self._file(exchange)

    async def _issue(self, exchange: Exchange) -> None:
        request = parse_request(exchange.seen.json["csrPem"])
        host = HostName(request.cn)
        issued = self.lab.issuer(validity_s=self.validity_s).issue(request, host, wall_now())
        body = {"certPem": issued.pem, "notAfter": format_rfc3339(issued.not_after)}
        await exchange.answer(200, json.dumps(body).encode())

    async def _wait_for_dispatch(self, exchange: Exchange) -> None:
        wait = parse_qs(urlsplit(exchange.seen.target).query).get("wait", ["60"])[0]
        queue = self._queue.setdefault(machine(exchange.seen.client), deque())
        gone = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set_when_gone, exchange.stream, gone)
            with trio.move_on_after(float(wait)):
                # A lie about dispatches begins with the poll that is waiting.
                while not queue and not gone.is_set() and "dispatch" not in self.says:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        if gone.is_set():
            raise trio.BrokenResourceError  # nobody is there to take it: it stays in the queue
        if not queue:
            return await exchange.answer(204)
        return await exchange.answer(200, json.dumps(queue.popleft()).encode())

    async def _take_fact(self, exchange: Exchange) -> None:
        envelope = exchange.seen.json
        facts, event = self.facts.setdefault(envelope["rolloutId"], []), envelope["event"]
        want = facts[-1]["seq"] + 1 if facts else 1
        if event["seq"] > want:
            body = {"error": "a gap", "reason": "gap", "want_seq": want}
            return await exchange.answer(409, json.dumps(body).encode())
        if event["seq"] == want:
            facts.append(event)
        return await exchange.answer(204)

    async def _file(self, exchange: Exchange) -> None:
        path = urlsplit(exchange.seen.target).path
        name = path.removeprefix("/v1/").removesuffix("/sig")
        place = self.lab.artifacts / (f"{name}.json" + (".sig" if path.endswith("/sig") else ""))
        if not place.is_file():
            return await exchange.answer(404, b'{"error":"there is no such thing","reason":"missing"}')
        return await exchange.answer(200, place.read_bytes())


async def _set_when_gone(stream: trio.abc.Stream, gone: trio.Event) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.receive_some(1)
    gone.set()


def machine(common_name: str | None) -> str:
    """The host that a certificate is for."""
    return (common_name or "").removeprefix("agent-").partition(".")[0]


def _seen(head: h11.Request, body: bytes, client: Mapping[str, Any]) -> Seen:
    target = head.target.decode()
    path = urlsplit(target).path
    name = NAMES.get(path)
    if name is None and path.startswith("/v1/rollouts/"):
        name = "rollout-sig" if path.endswith("/sig") else "rollout"
    subject = {key: value for part in client.get("subject", ()) for key, value in part}
    return Seen(
        at=time.monotonic(),
        name=name or path,
        method=head.method.decode(),
        target=target,
        headers={key.decode(): value.decode() for key, value in head.headers},
        body=body,
        client=subject.get("commonName"),
        serial=client.get("serialNumber"),
    )
