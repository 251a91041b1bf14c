"""What a request may cost: a deadline for the whole of it, a limit for its answer, and nothing that is kept."""

import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import attrs
import httpx
import pytest
import trio
from trio.testing import MockClock

from nixfleet_agent.transport import Answer, BodyTooLargeError, Connection, UnreachableError
from state_machine.values import WallMs

NOW: Final = WallMs(1_780_308_002_000)
"""2026-06-01T10:00:02Z"""


class Body(httpx.AsyncByteStream, AsyncIterator[bytes]):
    """Chunks, one every `pause_s`; counts what was taken."""

    def __init__(self, chunk: bytes, *, pause_s: float = 0.0, chunks: int | None = None) -> None:
        self.chunk, self.pause_s, self.chunks = chunk, pause_s, chunks
        self.taken = 0
        self.closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.taken == self.chunks:
            raise StopAsyncIteration
        await trio.sleep(self.pause_s)
        self.taken += 1
        return self.chunk

    async def aclose(self) -> None:
        self.closed = True


@attrs.define(kw_only=True)
class Wire(httpx.AsyncBaseTransport):
    """In place of a network. `answers` makes the answer to a request, or raises."""

    answers: Callable[[httpx.Request], httpx.Response]
    requests: list[httpx.Request] = attrs.field(factory=list)
    closed: bool = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        return self.answers(request)

    async def aclose(self) -> None:
        self.closed = True


def connection(answers: Callable[[httpx.Request], httpx.Response]) -> tuple[Connection, Wire]:
    wire = Wire(answers=answers)
    return Connection("https://cp.example", wire), wire


def reply(status: int, body: bytes = b"", **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: httpx.Response(status, headers=named, stream=Body(body, chunks=1))


async def get(line: Connection, **options: Any) -> Answer:
    return await line.request("GET", "/v1/agent/dispatch", now=NOW, **options)


async def test_an_answer_as_it_came() -> None:
    line, _ = connection(reply(200, b"{}", ETag='"x"'))
    answer = await get(line)
    assert (answer.status, answer.ok, answer.body, answer.headers["etag"]) == (200, True, b"{}", '"x"')


async def test_every_request_names_protocol_and_version() -> None:
    line, wire = connection(reply(204))
    await get(line)
    assert wire.requests[0].headers["X-Nixfleet-Protocol"] == "1"
    assert "X-Nixfleet-Agent-Version" in wire.requests[0].headers
    assert wire.requests[0].headers["Accept-Encoding"] == "identity"


# httpx leaves its own generators to the collector when a body is not read to its end.
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
async def test_a_body_without_end_is_cut_at_the_limit() -> None:
    body = Body(b"x" * 1024)
    line, _ = connection(lambda request: httpx.Response(200, stream=body))
    with pytest.raises(BodyTooLargeError) as caught:
        await get(line, limit=10_000)
    assert body.taken <= 10
    assert body.closed
    assert "10000 bytes" in str(caught.value)


async def test_a_body_of_just_the_limit_is_read() -> None:
    line, _ = connection(reply(200, b"x" * 10_000))
    assert len((await get(line, limit=10_000)).body) == 10_000


async def test_an_answer_that_dribbles_is_given_up_at_the_deadline(autojump_clock: MockClock) -> None:
    body = Body(b" ", pause_s=1.0)
    line, _ = connection(lambda request: httpx.Response(200, stream=body))
    began = trio.current_time()
    with pytest.raises(UnreachableError) as caught:
        await get(line, timeout_s=30)
    assert trio.current_time() - began == pytest.approx(30)
    assert "30 s" in str(caught.value)
    assert body.closed


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("not HTTP"),
        httpx.UnsupportedProtocol("ftp"),
        httpx.InvalidURL("bad"),
    ],
)
async def test_whatever_goes_wrong_on_the_way_is_one_kind_of_error(error: Exception) -> None:
    def answers(request: httpx.Request) -> httpx.Response:
        raise error

    line, _ = connection(answers)
    with pytest.raises(UnreachableError) as caught:
        await get(line)
    assert str(error) in str(caught.value)


async def test_the_cause_is_found_under_layers_that_say_nothing() -> None:
    """As it is with TLS: the reason is three exceptions down, and those above it are empty."""

    def answers(request: httpx.Request) -> httpx.Response:
        try:
            try:
                raise ssl.SSLError("certificate verify failed")
            except ssl.SSLError as error:
                raise trio.BrokenResourceError from error
        except trio.BrokenResourceError as error:
            raise httpx.ConnectError("") from error

    line, _ = connection(answers)
    with pytest.raises(UnreachableError, match="certificate verify failed"):
        await get(line)


async def test_the_cause_is_found_in_a_group_of_attempts() -> None:
    def answers(request: httpx.Request) -> httpx.Response:
        group = ExceptionGroup("2 attempts", [ConnectionRefusedError(111, "Connection refused"), TimeoutError()])
        raise httpx.ConnectError("all attempts failed") from group

    line, _ = connection(answers)
    with pytest.raises(UnreachableError, match=r"all attempts failed \(\[Errno 111\] Connection refused\)"):
        await get(line)


async def test_a_connection_that_took_too_long_is_not_put_down_to_the_workings_of_a_deadline() -> None:
    """The exception that ends a wait says what was waited for inside, which is nothing to look for."""

    async def answers(request: httpx.Request) -> httpx.Response:
        try:
            with trio.fail_after(0):
                await trio.sleep_forever()
        except trio.TooSlowError as error:
            raise httpx.ConnectTimeout("") from error
        raise AssertionError("it waited for ever")

    line = Connection("https://cp", httpx.MockTransport(answers))
    with pytest.raises(UnreachableError) as caught:
        await get(line)
    assert caught.value.cause == "ConnectTimeout"


async def test_cookies_are_neither_kept_nor_sent() -> None:
    """Kept, they would let a control plane fill an agent's memory a name at a time."""
    line, wire = connection(reply(204, Set_Cookie="a=1; Path=/"))
    for _ in range(3):
        await get(line)
    assert all("Cookie" not in request.headers for request in wire.requests)


async def test_a_redirect_is_an_answer_and_not_followed() -> None:
    line, wire = connection(reply(302, Location="https://elsewhere.example/"))
    assert (await get(line)).status == 302
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("30", 30_000),
        ("0", 0),
        ("999999999999999999999999", 999_999_999_000),
        ("Mon, 01 Jun 2026 10:00:12 GMT", 10_000),
        ("Mon, 01 Jun 2026 09:00:00 GMT", 0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
        ("Mon, 01 Jun 99999 10:00:12 GMT", None),
    ],
)
async def test_retry_after_is_seconds_or_a_date_and_nonsense_counts_as_not_said(text: str, wanted: int | None) -> None:
    headers = [(b"Retry-After", text.encode("utf-8"))]
    line, _ = connection(lambda request: httpx.Response(503, headers=headers, stream=Body(b"", chunks=1)))
    assert (await get(line)).retry_after_ms == wanted


async def test_a_retired_connection_serves_its_last_request_to_the_end_and_closes(autojump_clock: MockClock) -> None:
    line, wire = connection(lambda request: httpx.Response(200, stream=Body(b"x", pause_s=1.0, chunks=5)))
    answers: list[Answer] = []

    async def ask() -> None:
        answers.append(await get(line))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(2)
        await line.retire()
        assert not wire.closed
    assert answers[0].body == b"xxxxx"
    assert wire.closed


async def test_a_retired_connection_that_is_idle_closes_at_once() -> None:
    line, wire = connection(reply(204))
    await get(line)
    await line.retire()
    assert wire.closed
