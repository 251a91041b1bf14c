"""http and tcp probes against real sockets: honest services, broken ones and hostile ones."""

import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nixfleet_agent.probes.kinds import HttpProbe, TcpProbe
from nixfleet_agent.probes.network import BODY_BYTES
from nixfleet_agent.probes.reading import REASON_BYTES, TRUNCATED, ProbeReading
from nixfleet_agent.probes.runners import ProbeContext, run_probe
from state_machine.values import HostName, Moment, ProbeStatus, WallMs

Handler = Callable[[trio.abc.Stream], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def now() -> Moment:
    return Moment(wall_ms=WallMs(1_700_000_000_000), mono_ms=int(trio.current_time() * 1000))


def context() -> ProbeContext:
    return ProbeContext(clock=now, hostname=HostName("node7"), activated=Moment(wall_ms=WallMs(0), mono_ms=0))


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on a free loopback port; each connection is the handler's."""

    async def handle(stream: trio.SocketStream) -> None:
        served = stream if tls is None else trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        try:
            await handler(served)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(trio.serve_tcp, handle, 0)
        yield int(listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


def answering(answer: bytes) -> Handler:
    async def handle(stream: trio.abc.Stream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(answer)

    return handle


async def silent(stream: trio.abc.Stream) -> None:
    await trio.sleep_forever()


async def get(port: int, path: str = "/", *, timeout_s: float = 5, **more: Any) -> ProbeReading:
    url = more.pop("url", f"http://127.0.0.1:{port}{path}")
    return await run_probe(HttpProbe(name="web", url=url, timeout_s=timeout_s, **more), context())


async def test_the_expected_status_passes() -> None:
    async with serving(answering(OK)) as port:
        reading = await get(port)
    assert (reading.name, reading.status, reading.reason) == ("web", ProbeStatus.PASS, None)


async def test_any_other_status_fails_and_both_are_named() -> None:
    async with serving(answering(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")) as port:
        reading = await get(port)
    assert (reading.status, reading.reason) == (ProbeStatus.FAIL, "status 503, expected 200")


async def test_a_redirect_is_an_answer_and_not_followed() -> None:
    async with serving(answering(b"HTTP/1.1 301 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")) as port:
        followed = await get(port)
        wanted = await get(port, expect_status=301)
    assert followed.reason == "status 301, expected 200"
    assert wanted.status is ProbeStatus.PASS


async def test_the_path_the_query_and_the_credentials_arrive_and_cookies_are_never_sent() -> None:
    asked: list[bytes] = []

    async def handle(stream: trio.abc.Stream) -> None:
        asked.append(bytes(await stream.receive_some(65536)))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")

    async with serving(handle) as port:
        shared = context()
        probe = HttpProbe(name="web", url=f"http://user:pass@127.0.0.1:{port}/health?deep=1")
        for _ in range(2):
            assert (await run_probe(probe, shared)).status is ProbeStatus.PASS
    assert len(asked) == 2
    assert all(request.startswith(b"GET /health?deep=1 HTTP/1.1\r\n") for request in asked)
    assert all(b"Authorization: Basic dXNlcjpwYXNz\r\n" in request for request in asked)
    assert not any(b"ookie" in request for request in asked)


async def test_every_run_is_a_connection_of_its_own() -> None:
    connections = 0

    async def handle(stream: trio.abc.Stream) -> None:
        nonlocal connections
        connections += 1
        while await stream.receive_some(65536):
            await stream.send_all(OK)

    async with serving(handle) as port:
        shared = context()
        for _ in range(3):
            reading = await run_probe(HttpProbe(name="web", url=f"http://127.0.0.1:{port}/"), shared)
            assert reading.status is ProbeStatus.PASS
    assert connections == 3


async def test_an_endless_body_is_cut_and_the_status_decides() -> None:
    sent = 0

    async def handle(stream: trio.abc.Stream) -> None:
        nonlocal sent
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 65536)
            sent += 65536

    async with serving(handle) as port:
        reading = await get(port, timeout_s=30)
    assert reading.status is ProbeStatus.PASS
    # What the kernel's own buffers swallow comes on top of what was read.
    assert sent < 200 * BODY_BYTES


async def test_an_endless_chunked_body_is_cut_too() -> None:
    async def handle(stream: trio.abc.Stream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await stream.send_all(b"1\r\nx\r\n" * 4096)

    async with serving(handle) as port:
        assert (await get(port, timeout_s=30)).status is ProbeStatus.PASS


async def test_a_body_that_ends_too_early_fails() -> None:
    async with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok")) as port:
        reading = await get(port)
    assert reading.status is ProbeStatus.FAIL
    assert reading.reason is not None
    assert "incomplete" in reading.reason or "without sending complete" in reading.reason


def dribbling(beginning: bytes) -> Handler:
    async def handle(stream: trio.abc.Stream) -> None:
        await stream.receive_some(65536)
        await stream.send_all(beginning)
        while True:
            await stream.send_all(b"a")
            await trio.sleep(0.01)

    return handle


@pytest.mark.parametrize(
    "beginning",
    [
        pytest.param(b"", id="status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: ", id="header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", id="body"),
    ],
)
async def test_a_byte_at_a_time_is_given_up_at_the_deadline(beginning: bytes) -> None:
    async with serving(dribbling(beginning)) as port:
        reading = await get(port, timeout_s=0.2)
    assert (reading.status, reading.reason) == (ProbeStatus.FAIL, "no full answer within 0.2 s")


async def test_a_server_that_accepts_and_says_nothing_is_given_up_at_the_deadline() -> None:
    async with serving(silent) as port:
        reading = await get(port, timeout_s=0.1)
    assert reading.reason == "no full answer within 0.1 s"


async def test_provisional_answers_without_end_are_given_up_at_the_deadline() -> None:
    async def handle(stream: trio.abc.Stream) -> None:
        await stream.receive_some(65536)
        while True:
            await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
            await trio.sleep(0.005)

    async with serving(handle) as port:
        assert (await get(port, timeout_s=0.2)).reason == "no full answer within 0.2 s"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="not http"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00\xff" * 100 + b"\r\n\r\n", id="binary"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000, id="header without end"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", id="negative length"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="bad chunk"),
        pytest.param(b"HTTP/1.1 999999 OK\r\n\r\n", id="long status"),
    ],
)
async def test_what_is_not_http_fails_with_a_reason(answer: bytes) -> None:
    async with serving(answering(answer)) as port:
        reading = await get(port)
    assert reading.status is ProbeStatus.FAIL
    assert reading.reason
    assert len(reading.reason.encode()) <= REASON_BYTES + len(TRUNCATED)


async def test_a_closed_port_fails_and_says_where() -> None:
    port = await free_port()
    web = await get(port, path="/secret?token=abc", url=f"http://me:secret@127.0.0.1:{port}/up?token=abc")
    assert web.reason == f"cannot get http://127.0.0.1:{port}/up: Connection refused"
    tcp = await run_probe(TcpProbe(name="db", port=port), context())
    assert (tcp.status, tcp.reason) == (
        ProbeStatus.FAIL,
        f"cannot connect to 127.0.0.1 port {port}: Connection refused",
    )


async def free_port() -> int:
    """A port nobody listens on: bound for a moment, then given back."""
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".invalid", "xn--\u00e4", ".example.invalid", "no-such.invalid"])
async def test_a_name_that_does_not_resolve_fails_with_a_reason(host: str) -> None:
    readings = [
        await run_probe(TcpProbe(name="t", host=host, port=1, timeout_s=5), context()),
        await run_probe(HttpProbe(name="h", url=f"http://{host}:1/", timeout_s=5), context()),
        await run_probe(HttpProbe(name="s", url=f"https://{host}:1/", timeout_s=5), context()),
    ]
    assert [reading.status for reading in readings] == [ProbeStatus.FAIL] * 3
    assert all(reading.reason for reading in readings)


@pytest.mark.parametrize("url", ["", "http://", "nothing", "gopher://127.0.0.1/", "http://[::1", "http://h:99999/"])
async def test_a_url_that_is_none_fails_instead_of_raising(url: str) -> None:
    assert (await get(0, url=url)).status is ProbeStatus.FAIL


async def test_a_tcp_probe_passes_when_the_connection_is_accepted() -> None:
    async with serving(silent) as port:
        by_number = await run_probe(TcpProbe(name="db", port=port), context())
        by_name = await run_probe(TcpProbe(name="db", host="localhost", port=port), context())
    assert [by_number.status, by_name.status] == [ProbeStatus.PASS, ProbeStatus.PASS]


async def test_cancellation_passes_through_a_probe() -> None:
    async with serving(silent) as port:
        with trio.move_on_after(0.05) as scope:
            await get(port, timeout_s=60)
    assert scope.cancelled_caught


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that is its own authority, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "probe test")])
    today = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=3650))
        .not_valid_after(today + datetime.timedelta(days=36500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    roots = tmp_path / "roots.pem"
    roots.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    secret = tmp_path / "key.pem"
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(roots, secret)
    return roots, server


async def test_https_trusts_the_systems_roots_and_nothing_else(
    authority: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, server = authority
    async with serving(answering(OK), server) as port:
        unknown = await get(port, url=f"https://127.0.0.1:{port}/")
        monkeypatch.setenv("SSL_CERT_FILE", str(roots))
        known = await get(port, url=f"https://127.0.0.1:{port}/")
        other_name = await get(port, url=f"https://localhost:{port}/")
    assert unknown.status is ProbeStatus.FAIL
    assert "self-signed certificate" in (unknown.reason or "") or "self signed certificate" in (unknown.reason or "")
    assert known.status is ProbeStatus.PASS
    assert "Hostname mismatch" in (other_name.reason or "")


async def test_https_to_a_service_without_tls_fails_with_a_reason() -> None:
    async with serving(answering(OK)) as port:
        reading = await get(port, url=f"https://127.0.0.1:{port}/")
    assert reading.status is ProbeStatus.FAIL
    assert "SSL" in (reading.reason or "").upper()


async def test_roots_are_loaded_once_for_all_https_probes_and_never_for_http(
    authority: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, server = authority
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    loads: list[str] = []
    load = ssl.create_default_context

    def counting(*arguments: Any, **more: Any) -> ssl.SSLContext:
        loads.append("roots")
        return load(*arguments, **more)

    monkeypatch.setattr(ssl, "create_default_context", counting)
    shared = context()
    async with serving(answering(OK)) as plain, serving(answering(OK), server) as secure:
        assert (
            await run_probe(HttpProbe(name="h", url=f"http://127.0.0.1:{plain}/"), shared)
        ).status is ProbeStatus.PASS
        assert loads == []
        for _ in range(3):
            probe = HttpProbe(name="s", url=f"https://127.0.0.1:{secure}/")
            assert (await run_probe(probe, shared)).status is ProbeStatus.PASS
    assert loads == ["roots"]


async def test_a_proxy_in_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answering(OK)) as port:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        assert (await get(port)).status is ProbeStatus.PASS
