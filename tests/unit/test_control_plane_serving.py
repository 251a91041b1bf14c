"""The server under the control plane, byte by byte: real sockets, a small application, and clients of every kind."""

from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio

from control_plane.conversation import HEADER_LIMIT, Conversation, Message
from control_plane.listening import Listening
from control_plane.serving import serve
from control_plane.streams import Stream

Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

GET = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"


@attrs.define
class Handlers:
    """An application: `/echo` gives the body back, `/deaf` never looks at it, `/wait` waits until it is let go."""

    go_on: trio.Event = attrs.field(factory=trio.Event)
    waiting: trio.Event = attrs.field(factory=trio.Event)
    gone: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        body = b""
        status = 200
        match scope["path"]:
            case "/echo":
                more = True
                while more:
                    message = await receive()
                    body, more = body + message["body"], message["more_body"]
            case "/deaf":
                body = b"deaf"
            case "/nothing":
                status = 204
            case "/wait":
                self.waiting.set()
                await self.go_on.wait()
                body = b"at last"
            case "/watch":
                self.waiting.set()
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.gone.set()
                return
            case "/broken":
                raise RuntimeError("a defect")
            case other:
                body = repr(other).encode()
        headers = [(b"content-length", str(len(body)).encode())] if status != 204 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@attrs.frozen
class House:
    handlers: Handlers
    port: int
    stop: trio.Event

    async def call(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def says(self, request: bytes) -> bytes:
        """Everything that is answered to a client that says no more."""
        async with await self.call() as client:
            await client.send_all(request)
            await client.send_eof()
            return await everything(client)


async def everything(client: trio.SocketStream) -> bytes:
    with trio.fail_after(20):
        return b"".join([chunk async for chunk in client])


async def answer(client: trio.SocketStream, ends_with: bytes) -> bytes:
    received = b""
    with trio.fail_after(20):
        while not received.endswith(ends_with):
            chunk = await client.receive_some()
            assert chunk, received
            received += chunk
    return received


@pytest.fixture
async def house(nursery: trio.Nursery) -> House:
    handlers, stop = Handlers(), trio.Event()
    listening = Listening("--listen", "127.0.0.1:0")
    await nursery.start(serve, handlers, listening, stop)
    return House(handlers, int(listening.address.rpartition(":")[2]), stop)


async def test_requests_that_were_sent_together_are_answered_in_turn(house: House) -> None:
    async with await house.call() as client:
        await client.send_all(GET % b"/one" + GET % b"/two" + GET % b"/three")
        said = await answer(client, b"'/three'")
        await client.send_all(GET % b"/four")
        said += await answer(client, b"'/four'")
    assert said.count(b"HTTP/1.1 200 ") == 4
    assert said.index(b"'/one'") < said.index(b"'/two'") < said.index(b"'/three'")


async def test_an_answer_leaves_in_one_piece(house: House) -> None:
    async with await house.call() as client:
        await client.send_all(GET % b"/one")
        said = await client.receive_some()
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.endswith(b"'/one'")
    assert b"\r\ndate: " in said.lower()


@pytest.mark.parametrize(
    "framed",
    [
        b"Content-Length: 11\r\n\r\nhello world",
        b"Transfer-Encoding: chunked\r\n\r\n6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n",
    ],
)
async def test_a_body_arrives_whole_however_it_comes(house: House, framed: bytes) -> None:
    request = b"POST /echo HTTP/1.1\r\nHost: x\r\n" + framed
    async with await house.call() as client:
        for byte in request:
            await client.send_all(bytes([byte]))
        assert (await answer(client, b"hello world")).startswith(b"HTTP/1.1 200 ")


async def test_a_head_request_and_a_204_have_no_body(house: House) -> None:
    async with await house.call() as client:
        await client.send_all(b"HEAD /one HTTP/1.1\r\nHost: x\r\n\r\n" + GET % b"/nothing" + GET % b"/two")
        said = await answer(client, b"'/two'")
    assert b"'/one'" not in said
    assert b"content-length: 6" in said.lower()
    assert said.count(b"HTTP/1.1 ") == 3


async def test_who_asks_whether_to_send_is_told_to(house: House) -> None:
    async with await house.call() as client:
        await client.send_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert (await answer(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        await client.send_all(b"ok")
        assert (await answer(client, b"ok")).startswith(b"HTTP/1.1 200 ")


async def test_a_body_that_nobody_wanted_is_dropped_and_the_connection_lives(house: House) -> None:
    async with await house.call() as client:
        await client.send_all(b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n" + bytes(20_000))
        await answer(client, b"deaf")
        await client.send_all(bytes(30_000) + GET % b"/next")
        assert b"'/next'" in await answer(client, b"'/next'")


async def test_an_endless_body_that_nobody_wanted_ends_the_connection_after_the_answer(house: House) -> None:
    async with await house.call() as client:
        await client.send_all(b"POST /deaf HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert (await answer(client, b"deaf")).startswith(b"HTTP/1.1 200 ")
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(20):  # noqa: PT012  # it may take a few
            while True:
                await client.send_all(bytes(65_536))


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (GET % b"/%ff", b"400"),
        (GET % b"no-path", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2 * HEADER_LIMIT, b"431"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_request_is_refused_and_hung_up_on(house: House, request_bytes: bytes, status: bytes) -> None:
    said = await house.says(request_bytes)
    assert said.startswith(b"HTTP/1.1 " + status)
    assert said.count(b"HTTP/1.1 ") == 1


async def test_a_body_that_breaks_off_or_is_nonsense_is_the_end_of_its_client_alone(house: House) -> None:
    assert await house.says(b"POST /watch HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nshort") == b""
    assert house.handlers.gone.is_set()
    assert b"'/still-there'" in await house.says(GET % b"/still-there")


async def test_a_defect_costs_one_client_its_connection_and_is_told_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    assert await house.says(GET % b"/broken" + GET % b"/next") == b""
    assert "GET /broken failed" in caplog.text
    assert "a defect" in caplog.text
    assert b"'/next'" in await house.says(GET % b"/next")


async def test_a_handler_that_waits_learns_that_its_client_has_gone(house: House) -> None:
    client = await house.call()
    await client.send_all(GET % b"/watch")
    await house.handlers.waiting.wait()
    await client.aclose()
    with trio.fail_after(20):
        await house.handlers.gone.wait()


async def test_an_old_client_gets_its_answer_and_the_end(house: House) -> None:
    async with await house.call() as client:
        await client.send_all(b"GET /old HTTP/1.0\r\n\r\n")
        assert (await everything(client)).endswith(b"'/old'")


async def test_told_to_stop_idle_connections_end_at_once_and_others_after_their_answer(house: House) -> None:
    async with await house.call() as idle, await house.call() as busy:
        await _stop_with_two_clients(house, idle, busy)
    with pytest.raises(OSError, match="all attempts to connect"):
        await house.call()


async def _stop_with_two_clients(house: House, idle: trio.SocketStream, busy: trio.SocketStream) -> None:
    await idle.send_all(GET % b"/one")
    await answer(idle, b"'/one'")
    await busy.send_all(GET % b"/wait")
    await house.handlers.waiting.wait()
    house.stop.set()
    assert await everything(idle) == b""
    house.handlers.go_on.set()
    said = await everything(busy)
    assert said.endswith(b"at last")
    assert b"connection: close" in said.lower()


@pytest.mark.parametrize("so_far", [b"", b"GET / HT", GET % b"/one" + b"GET / HTTP/1.1\r\nHost"])
async def test_a_client_that_does_not_come_to_the_point_is_let_go(so_far: bytes) -> None:
    listening = Listening("--listen", "127.0.0.1:0")
    with listening.open() as door:
        async with await trio.open_tcp_stream("127.0.0.1", door.getsockname()[1]) as client:
            await client.send_all(so_far)
            door.setblocking(True)
            accepted, _ = door.accept()
            accepted.setblocking(False)
            await Conversation(Handlers(), Stream(accepted), kept_alive_s=0.05).run()
            assert (await everything(client)).count(b"HTTP/1.1 200 ") == so_far.count(b"/one")
