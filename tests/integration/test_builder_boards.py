"""Where builders write down how far a job is: on a real server, among others that write, when answers get lost."""

import contextlib
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from messaging.errors import LinkError
from messaging.link import connected
from messaging.server import Server
from nixfleet.builder.boards import REMEMBERED_MAX, OwnBoard, SharedBoard, open_bucket
from nixfleet.builder.messages import Phase, Progress, Subjects
from tests.natslab import NatsServer, nats_server, needs_nats


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


def word(**more: Any) -> Progress:
    facts = {"job": "j", "repository": "own", "host": "web1", "phase": Phase.BUILDING, "builder": "one", "at": 1}
    return Progress(**{**facts, **more})


@needs_nats
async def test_of_two_that_begin_a_job_one_has_it_until_somebody_looks_again(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "test") as link:
        bucket = await link.bucket("jobs", ttl_s=60)
        one, other = SharedBoard(bucket), SharedBoard(bucket)
        assert (await one.look("j"), await other.look("j")) == (None, None)
        assert await one.write(word())
        assert not await other.write(word(builder="other"))
        assert await one.write(word(at=2))
        assert await other.look("j") == word(at=2)
        assert await other.write(word(builder="other", at=3))
        assert not await one.write(word(at=4))


@needs_nats
async def test_a_word_that_is_none_is_written_over(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "test") as link:
        bucket = await link.bucket("jobs", ttl_s=60)
        await bucket.put("j", b"\xff{")
        board = SharedBoard(bucket)
        assert await board.look("j") is None
        assert await board.write(word())
        assert await SharedBoard(bucket).look("j") == word()


@needs_nats
async def test_a_word_whose_answer_was_lost_is_known_again(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "test") as link:
        board = SharedBoard(await link.bucket("jobs", ttl_s=60))
        assert await board.look("j") is None
        assert await board.write(word())
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{server.process.pid}/task")
        while any(" T " not in (thread / "stat").read_text() for thread in threads.iterdir()):
            await trio.sleep(0.01)
        with pytest.raises(LinkError):
            await board.write(word(at=2))  # which the server reads when it goes on
        server.process.send_signal(signal.SIGCONT)
        assert await board.write(word(at=3))
        board.forget("j")
        assert await board.look("j") == word(at=3)


@needs_nats
async def test_a_bucket_that_the_server_lost_is_made_anew_and_written_to(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "test") as link:
        board = SharedBoard(await open_bucket(link, Subjects()))
        assert await board.look("j") is None
        assert await board.write(word())
        server.kill()
        shutil.rmtree(server.directory / "jetstream")
        server.start()
        with trio.fail_after(60):
            while True:
                with contextlib.suppress(LinkError):
                    await open_bucket(link, Subjects())
                    assert await board.write(word(at=2))
                    break
                await trio.sleep(0.2)
        assert await board.look("j") == word(at=2)


@needs_nats
async def test_a_request_that_was_taken_back_is_known_as_one(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "test") as link:
        bucket = await link.bucket("jobs", ttl_s=60)
        await bucket.put("cancelled.me", b"1")
        board = SharedBoard(bucket)
        assert (await board.is_gone("me"), await board.is_gone("you")) == (True, False)


async def test_without_a_server_that_keeps_anything_answers_are_remembered_for_a_while() -> None:
    board = OwnBoard()
    assert await board.look("j") is None
    assert await board.write(word())
    board.forget("j")
    assert await board.look("j") is None  # nobody has it any more
    assert await board.write(word(phase=Phase.DONE))
    board.forget("j")
    assert await board.look("j") == word(phase=Phase.DONE)
    for number in range(REMEMBERED_MAX):
        await board.write(word(job=str(number)))
    assert await board.look("j") is None
    assert await board.look("0") is not None
