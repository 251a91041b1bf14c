"""A NATS server, or somebody who may speak on it, that answers what no server would: an error of ours, and no end."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from messaging.errors import LinkError
from messaging.link import Link, connected
from messaging.server import Server
from tests.natslab import nats_server, needs_nats

pytestmark = needs_nats

ANSWERS = [
    b"", b"\xff\xfe", b"[]", b"7", b'"x"', b"null", b"{", b'{"error": 7}', b'{"error": []}',
    b'{"error": {"code": "x"}}',
    b'{"error": {"code": 404, "err_code": [], "description": {}}}', b"{}", b'{"config": 3}', b'{"config": {}}',
    b'{"config": {"retention": "nothing", "storage": 4, "discard": 1}, "state": 0}', b'{"num_pending": "many"}',
    b'{"stream": {}, "seq": []}', b'{"cluster": 1, "config": {"name": 3, "subjects": 4}}', b"[" * 5000,
]  # fmt: skip


@asynccontextmanager
async def liar(tmp_path: Path, answer: bytes) -> AsyncIterator[Link]:
    """A link to a server without JetStream, on which somebody answers as if they were it."""
    with nats_server(tmp_path / "nats", jetstream=False) as server:
        async with (
            connected(Server(url=server.url), "liar") as mouth,
            mouth.subscribed("$JS.>") as asked,
            trio.open_nursery() as nursery,
        ):

            async def lie() -> None:
                async for message in asked:
                    if message.reply:
                        await mouth.publish(message.reply, answer)

            nursery.start_soon(lie)
            async with connected(Server(url=server.url), "victim") as link:
                yield link
            nursery.cancel_scope.cancel()


async def queue(link: Link) -> None:
    made = await link.work_queue("JOBS", "jobs.>", taking="builders")
    await made.take(0.2)


async def put(link: Link) -> None:
    made = await link.work_queue("JOBS", "jobs.>")
    await made.put("jobs.x", b"x")


async def depth(link: Link) -> None:
    made = await link.work_queue("JOBS", "jobs.>")
    await made.depth()


async def bucket(link: Link) -> None:
    made = await link.bucket("things", 60)
    await made.get("x")
    await made.replace("x", b"y", 0)


async def jetstream(link: Link) -> None:
    await link.has_jetstream()


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: repr(answer[:40]))
async def test_answers_of_the_wrong_kind_are_an_error_of_ours(tmp_path: Path, answer: bytes) -> None:
    async with liar(tmp_path, answer) as link:
        for doing in (jetstream, queue, put, depth, bucket):
            # Some may pass for answers; what is raised, if anything is, says so.
            with trio.fail_after(30), contextlib.suppress(LinkError):
                await doing(link)
        with pytest.raises(LinkError):
            await queue(link)
