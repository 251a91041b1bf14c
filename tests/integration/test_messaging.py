"""The link to NATS against a real server: messages, queues that outlive their readers, keys, TLS, and every trouble."""

import os
from collections.abc import Iterator
from pathlib import Path

import nkeys
import pytest
import trio

from messaging.errors import (
    BadServerError,
    LostError,
    NoAnswerError,
    NobodyListensError,
    UnreachableError,
    UnwelcomeError,
)
from messaging.link import connected
from messaging.server import Server, server_of
from tests.cplab import Lab
from tests.natslab import NatsServer, nats_server, needs_nats

pytestmark = needs_nats


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


async def test_a_request_is_answered_and_one_that_nobody_hears_is_told_so(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "test") as link:
        with pytest.raises(NobodyListensError, match=r"nobody listens on build\.jobs"):
            await link.request("build.jobs", b"x")
        async with link.subscribed("build.jobs") as messages, trio.open_nursery() as nursery:

            async def answer() -> None:
                async for message in messages:
                    if message.data != b"silence":
                        await link.publish(message.reply, message.data * 2)

            nursery.start_soon(answer)
            assert await link.request("build.jobs", b"ab") == b"abab"
            with pytest.raises(NoAnswerError):
                await link.request("build.jobs", b"silence", within_s=0.2)
            nursery.cancel_scope.cancel()


async def test_of_a_queue_group_one_gets_each_message(server: NatsServer) -> None:
    async with (
        connected(Server(url=server.url), "one") as one,
        connected(Server(url=server.url), "other") as other,
        one.subscribed("jobs.>", queue="builders") as first,
        other.subscribed("jobs.>", queue="builders") as second,
    ):
        for number in range(20):
            await one.publish(f"jobs.{number}", str(number).encode())
        got: list[bytes] = []
        with trio.fail_after(10):
            while len(got) < 20:
                for channel in (first, second):
                    with trio.move_on_after(0.05):
                        got.append((await channel.receive()).data)
        assert sorted(got, key=int) == [str(number).encode() for number in range(20)]


async def test_a_job_outlives_whoever_took_it_and_is_done_once(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "asker") as asker:
        assert await asker.has_jetstream()
        queue = await asker.work_queue("JOBS", "jobs.>")
        await queue.put("jobs.web1", b"build it")
    async with connected(Server(url=server.url), "dies") as dies:
        taken = await (await dies.work_queue("JOBS", "jobs.>", taking="builders", patience_s=1)).take(5)
        assert taken is not None
        assert (taken.data, taken.tries) == (b"build it", 1)
    server.kill()
    server.start()
    async with connected(Server(url=server.url), "lives") as lives:
        queue = await lives.work_queue("JOBS", "jobs.>", taking="builders", patience_s=1)
        again = await queue.take(10)
        assert again is not None
        assert (again.data, again.tries) == (b"build it", 2)
        await again.working()
        await again.done()
        assert await queue.take(1.5) is None
        await queue.put("jobs.web2", b"later")
        assert await queue.depth() == 1


async def test_a_job_that_is_given_back_comes_again(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "test") as link:
        queue = await link.work_queue("JOBS", "jobs.>", taking="builders")
        await queue.put("jobs.web1", b"x")
        first = await queue.take(5)
        assert first is not None
        await first.again(after_s=0.1)
        second = await queue.take(5)
        assert second is not None
        assert (second.data, second.tries) == (b"x", 2)
        await second.done()


async def test_of_two_that_write_a_value_one_is_told_that_it_lost(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "test") as link:
        bucket = await link.bucket("state", ttl_s=60)
        assert await bucket.get("job") is None
        revision = await bucket.replace("job", b"mine", 0)
        assert revision
        assert await bucket.replace("job", b"no, mine", 0) is None
        assert await bucket.get("job") == (b"mine", revision)
        newer = await bucket.replace("job", b"still mine", revision)
        assert newer
        assert await bucket.replace("job", b"stale", revision) is None
        await bucket.put("job", b"over")
        found = await bucket.get("job")
        assert found is not None
        assert found[0] == b"over"


async def test_a_server_without_jetstream_is_known_as_one(tmp_path: Path) -> None:
    with nats_server(tmp_path, jetstream=False) as server:
        async with connected(Server(url=server.url), "test") as link:
            assert not await link.has_jetstream()


async def test_a_server_that_is_not_there_or_no_nats_server_is_told_at_once(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        url = server.url
    with pytest.raises(UnreachableError, match="refused"):
        async with connected(Server(url=url), "test"):
            pass
    listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener[0].socket.getsockname()[1]

    async def talk(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mail.example.org\r\n")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, talk, listener)
        with pytest.raises(UnreachableError):
            async with connected(Server(url=f"nats://127.0.0.1:{port}"), "test"):
                pass
        nursery.cancel_scope.cancel()


async def test_a_link_comes_back_after_its_server_did_and_hears_again(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "test") as link, link.subscribed("news") as news:
        server.kill()
        server.start()
        with trio.fail_after(30):
            while True:
                try:
                    await link.publish("news", b"again")
                except (LostError, NoAnswerError):
                    await trio.sleep(0.2)
                    continue
                with trio.move_on_after(1):
                    assert (await news.receive()).data == b"again"
                    break


def identity(directory: Path) -> tuple[Path, str]:
    """A new NKey: the file with its seed, and its public half."""
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    path = directory / "nkey"
    path.write_bytes(seed + b"\n")
    return path, nkeys.from_seed(bytearray(seed)).public_key.decode()


async def test_an_nkey_or_a_token_opens_and_another_one_is_told(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (key, public), (other, _) = identity(tmp_path), identity(tmp_path / "other")
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    token.write_text("s3cret\n")
    wrong.write_text("wr0ng\n")
    for more, good, bad in (
        (f"authorization {{ users: [ {{ nkey: {public} }} ] }}", {"nkey_file": key}, {"nkey_file": other}),
        ('authorization { token: "s3cret" }', {"token_file": token}, {"token_file": wrong}),
    ):
        with nats_server(tmp_path / "nats", more=more) as server:
            async with connected(Server(url=server.url, **good), "test") as link:
                await link.publish("x", b"y")
            for given in (bad, {}):
                with pytest.raises(UnwelcomeError) as caught:
                    async with connected(Server(url=server.url, **given), "test"):
                        pass
                assert "s3cret" not in str(caught.value)
                assert "wr0ng" not in str(caught.value)


async def test_what_the_server_does_not_permit_is_told_as_that(tmp_path: Path) -> None:
    key, public = identity(tmp_path)
    may = 'permissions: { publish: "build.>", subscribe: "_INBOX.>" }'
    more = f"authorization {{ users: [ {{ nkey: {public}, {may} }} ] }}"
    with nats_server(tmp_path / "nats", more=more) as server:
        async with connected(Server(url=server.url, nkey_file=key), "test") as link:
            with pytest.raises(UnwelcomeError, match=r"(?i)permissions violation"):
                await link.request("other.subject", b"x", within_s=1)


async def test_tls_is_spoken_with_who_the_authority_names(tmp_path: Path) -> None:
    authority = Lab(tmp_path / "lab", ()).root
    more = f'tls {{ cert_file: "{authority}/server.pem", key_file: "{authority}/server-key.pem" }}'
    with nats_server(tmp_path / "nats", more=more) as server:
        url = f"tls://localhost:{server.port}"
        known = Server(url=url, ca_cert=authority / "ca.pem")
        async with connected(known, "test") as link, link.subscribed("x") as messages:
            await link.publish("x", b"y")
            assert (await messages.receive()).data == b"y"
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            async with connected(Server(url=url), "test"):
                pass


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "`url` is missing"),
        ({"url": "http://x"}, "is no address"),
        ({"url": "tls://user:secret@x"}, "is no address"),
        ({"url": "tls://x", "token-file": "/a", "nkey-file": "/b"}, "give one of them"),
        ({"url": "tls://x", "client-cert": "/a"}, "go together"),
        ({"url": "nats://x", "ca-cert": "/a"}, "certificates are for tls"),
        ({"url": "tls://x", "tokenfile": "/a"}, "is no key of a server"),
        ({"url": 3}, "`url` must be a text"),
    ],
)
def test_a_server_described_wrongly_is_told_what_is_wrong(given: dict[str, object], problem: str) -> None:
    with pytest.raises(BadServerError, match=problem):
        server_of(given)


def test_a_secret_that_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(BadServerError, match=str(path)):
            Server(url="nats://127.0.0.1", token_file=path).options()
