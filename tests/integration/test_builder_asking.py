"""`nixfleet build` against a real NATS server: requests, answers, silence, Ctrl-C; builders are played by hand here.

What a real builder does with all this is in the tests of builders.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trio

from messaging.jetstream import Delivery, WorkQueue
from messaging.link import Link, Message, connected
from messaging.server import Server
from nixfleet.builder.messages import (
    Cancel,
    HostsAnswer,
    Phase,
    Progress,
    Request,
    Subjects,
    decode_cancel,
    decode_hosts_question,
    decode_request,
    encode,
)
from nixfleet.clock import wall_now
from tests.natslab import NatsServer, nats_server, needs_nats

pytestmark = needs_nats

SUBJECTS: Final = Subjects()
COMMIT: Final = "c0ffee" * 6 + "abcd"
PATIENCE_S: Final = 40.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[NatsServer]:
    """Without JetStream."""
    with nats_server(tmp_path / "nats", jetstream=False) as server:
        yield server


@attrs.frozen(kw_only=True)
class Ran:
    """How `nixfleet build` ended."""

    status: int
    out: str
    err: str

    @property
    def jobs(self) -> list[dict[str, Any]]:
        jobs: list[dict[str, Any]] = json.loads(self.out)["jobs"]
        return jobs


def words(server: NatsServer, *more: str) -> list[str]:
    return [sys.executable, "-m", "nixfleet", "build", "--nats-url", server.url, *more]


def environment(directory: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIXFLEET_", "XDG_"))}
    return {**kept, "HOME": str(directory)}


async def build(server: NatsServer, *more: str) -> Ran:
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            words(server, *more),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(server.directory),
        )
    return Ran(status=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())


class Asker:
    """A `nixfleet build` that goes on."""

    def __init__(self, server: NatsServer, *more: str) -> None:
        self.process = subprocess.Popen(
            words(server, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment(server.directory),
        )  # fmt: skip

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    async def end(self) -> Ran:
        with trio.fail_after(PATIENCE_S):
            out, err = await trio.to_thread.run_sync(partial(self.process.communicate, timeout=PATIENCE_S))
        return Ran(status=self.process.returncode, out=out, err=err)


Begin = Callable[..., Asker]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Begin a `nixfleet build`; none is left in the end."""
    begun: list[Asker] = []

    def one(server: NatsServer, *more: str) -> Asker:
        begun.append(Asker(server, *more))
        return begun[-1]

    yield one
    for asker in begun:
        asker.process.kill()
        asker.process.communicate()


def said(request: Request, phase: Phase, **facts: Any) -> bytes:
    given = {"builder": "big1", "at": wall_now(), **facts}
    return encode(Progress(job=request.job, repository=request.repository, host=request.host, phase=phase, **given))


async def tell(link: Link, request: Request, phase: Phase, **facts: Any) -> None:
    await link.publish(SUBJECTS.progress(request.job), said(request, phase, **facts))


async def taking(link: Link) -> WorkQueue:
    return await link.work_queue(SUBJECTS.stream, SUBJECTS.all_jobs, taking="builders")


async def take(queue: WorkQueue) -> tuple[Request, Delivery]:
    with trio.fail_after(PATIENCE_S):
        while True:
            if (delivery := await queue.take(5)) is not None:
                return decode_request(delivery.data), delivery


async def next_of(messages: "trio.MemoryReceiveChannel[Message]") -> Message:
    with trio.fail_after(PATIENCE_S):
        return await messages.receive()


async def test_what_is_built_is_told_with_its_path_and_what_fails_with_the_end_of_its_log(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "builder") as link, trio.open_nursery() as nursery:

        async def builder() -> None:
            queue = await taking(link)
            for _ in range(3):
                request, delivery = await take(queue)
                await tell(link, request, Phase.BUILDING, done=1, expected=3, line="compiling")
                match request.host:
                    case "web1":
                        facts = {"path": "/nix/store/x-web1", "seconds": 2.5, "commit": COMMIT, "cache": "s3://c"}
                        await tell(link, request, Phase.DONE, changes=("curl: 8.0 -> 8.1",), **facts)
                    case "web2":
                        await tell(link, request, Phase.FAILED, why="it does not build", tail="one\nthe end of web2")
                    case _:
                        await tell(link, request, Phase.REFUSED, why="this builder does not build web3 of own")
                await delivery.done()

        nursery.start_soon(builder)
        ran = await build(server, "--repo", "own", "--rev", "main", "web1", "web2", "web3", "--json")
    assert ran.status == 1, ran.err
    assert [(job["host"], job["outcome"]) for job in ran.jobs] == [
        ("web1", "done"), ("web2", "failed"), ("web3", "refused"),
    ]  # fmt: skip
    assert ran.jobs[0]["path"] == "/nix/store/x-web1"
    assert (ran.jobs[0]["changes"], ran.jobs[0]["cache"]) == (["curl: 8.0 -> 8.1"], "s3://c")
    assert ran.jobs[1]["tail"] == "one\nthe end of web2"
    assert ran.jobs[2]["why"] == "this builder does not build web3 of own"
    assert "web1: queued\nweb" in ran.err
    assert "web1: building on big1\n" in ran.err
    assert "web1: done on big1 after" in ran.err


async def test_a_person_reads_a_table_and_the_logs_of_what_failed(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "builder") as link, trio.open_nursery() as nursery:

        async def builder() -> None:
            request, delivery = await take(await taking(link))
            await tell(link, request, Phase.FAILED, why="it does not\nbuild", tail="one\nthe end", seconds=3.0)
            await delivery.done()

        nursery.start_soon(builder)
        ran = await build(server, "--repo", "own", "web1")
    assert ran.status == 1
    assert ran.out.splitlines() == [
        "web1: the end of its log:",
        "  one",
        "  the end",
        "HOST  OUTCOME  BUILDER  AFTER  SYSTEM",
        "web1  failed   big1     3 s    it does not build",
    ]


async def test_ctrl_c_takes_back_what_is_queued_and_what_is_being_built(server: NatsServer, begin: Begin) -> None:
    async with connected(Server(url=server.url), "builder") as link, link.subscribed(SUBJECTS.all_cancels) as cancels:
        asker = begin(server, "--repo", "own", "web1", "web2")
        queue = await taking(link)
        first, _ = await take(queue)
        second, _ = await take(queue)
        await tell(link, first, Phase.BUILDING)
        asker.interrupt()
        taken_back = [decode_cancel((await next_of(cancels)).data) for _ in range(2)]
        ran = await asker.end()
        expected = [Cancel(job=each.job, asked_by=each.asked_by) for each in (first, second)]
        assert sorted(taken_back, key=lambda each: each.job) == sorted(expected, key=lambda each: each.job)
        states = await link.bucket(SUBJECTS.bucket, 60)
        for each in (first, second):
            assert await states.get(f"cancelled.{each.asked_by}") is not None
    assert ran.status == 130
    assert "interrupted; taken back: web1, web2" in ran.err
    assert "cancelled" in ran.out


async def test_a_deadline_takes_back_what_has_no_end_and_keeps_what_has(server: NatsServer, begin: Begin) -> None:
    async with connected(Server(url=server.url), "builder") as link, link.subscribed(SUBJECTS.all_cancels) as cancels:
        asker = begin(server, "--repo", "own", "web1", "web2", "--timeout", "5s", "--json")
        queue = await taking(link)
        requests = [(await take(queue))[0] for _ in range(2)]
        [web1] = [each for each in requests if each.host == "web1"]
        await tell(link, web1, Phase.DONE, path="/nix/store/x-web1")
        [web2] = [each for each in requests if each.host == "web2"]
        assert decode_cancel((await next_of(cancels)).data).asked_by == web2.asked_by
        ran = await asker.end()
    assert ran.status == 1
    assert [job["outcome"] for job in ran.jobs] == ["done", "cancelled"]
    assert ran.jobs[1]["why"] == "no end within 5 s; taken back"


async def test_an_answer_that_nobody_heard_is_looked_up(server: NatsServer, begin: Begin) -> None:
    """As when this connection was being made anew at that moment."""
    async with connected(Server(url=server.url), "builder") as link:
        asker = begin(server, "--repo", "own", "web1", "--json")
        request, delivery = await take(await taking(link))
        states = await link.bucket(SUBJECTS.bucket, 60)
        await states.put(request.job, said(request, Phase.DONE, path="/nix/store/x-web1", at=wall_now() + 1))
        await delivery.done()
        ran = await asker.end()
    assert (ran.status, ran.jobs[0]["path"]) == (0, "/nix/store/x-web1")


async def test_what_came_of_an_older_request_or_what_others_took_back_is_no_answer(
    server: NatsServer, begin: Begin
) -> None:
    async with connected(Server(url=server.url), "builder") as link:
        states = await link.bucket(SUBJECTS.bucket, 60)
        asker = begin(server, "--repo", "own", "web1", "--json")
        request, delivery = await take(await taking(link))
        await states.put(request.job, said(request, Phase.DONE, path="/nix/store/old", at=request.asked_at - 1))
        await tell(link, request, Phase.CANCELLED)
        await link.publish(SUBJECTS.progress(request.job), b"nonsense")
        other = attrs.evolve(request, host="other")
        await link.publish(SUBJECTS.progress(request.job), said(other, Phase.DONE, path="/nix/store/other"))
        await tell(link, request, Phase.DONE, path="/nix/store/new")
        await delivery.done()
        ran = await asker.end()
    assert (ran.status, ran.jobs[0]["path"]) == (0, "/nix/store/new")


async def test_no_wait_leaves_the_request_with_the_server_and_names_the_jobs(server: NatsServer) -> None:
    ran = await build(server, "--repo", "own", "web1", "web2", "--no-wait", "--json")
    assert ran.status == 0, ran.err
    async with connected(Server(url=server.url), "builder") as link:
        queue = await taking(link)
        requests = [(await take(queue))[0] for _ in range(2)]
    assert sorted(job["job"] for job in ran.jobs) == sorted(each.job for each in requests)


async def test_all_hosts_of_the_only_repository_are_built_at_one_commit(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "builder") as link, trio.open_nursery() as nursery:
        questions = []

        async def tells_hosts() -> None:
            async with link.subscribed(SUBJECTS.hosts) as messages:
                async for message in messages:
                    questions.append(decode_hosts_question(message.data))
                    answer = HostsAnswer(repository="own", commit=COMMIT, hosts=("db1", "web1"))
                    await link.publish(message.reply, encode(answer))

        async def builder() -> None:
            queue = await taking(link)
            for _ in range(2):
                request, delivery = await take(queue)
                assert (request.repository, request.revision) == ("own", COMMIT)
                await tell(link, request, Phase.DONE, path=f"/nix/store/x-{request.host}")
                await delivery.done()

        nursery.start_soon(tells_hosts)
        await trio.sleep(0.2)
        nursery.start_soon(builder)
        ran = await build(server, "--all", "--rev", "main", "--json")
        nursery.cancel_scope.cancel()
    assert ran.status == 0, ran.err
    assert [job["host"] for job in ran.jobs] == ["db1", "web1"]
    assert [(each.repository, each.revision, each.names_only) for each in questions] == [("", "main", False)]


# Without JetStream


async def test_without_a_builder_it_says_so_at_once(forgetful: NatsServer) -> None:
    for more in (("--repo", "own", "web1"), ("web1",), ("--all",)):
        ran = await build(forgetful, *more)
        assert ran.status == 3
        assert ran.err.splitlines()[-1] == (
            "nixfleet: no builder listens on build.>: start one with `nixfleet builder`, or build here with "
            "--builder local"
        )


async def test_nothing_is_left_with_a_server_that_keeps_nothing(forgetful: NatsServer) -> None:
    ran = await build(forgetful, "--repo", "own", "web1", "--no-wait")
    assert ran.status == 3
    assert "has no JetStream" in ran.err


async def test_a_builder_that_has_the_job_is_joined_and_no_other_is_asked(forgetful: NatsServer, begin: Begin) -> None:
    async with (
        connected(Server(url=forgetful.url), "builder") as link,
        link.subscribed(SUBJECTS.all_whose) as whose,
        link.subscribed(SUBJECTS.all_jobs, queue="builders") as jobs,
    ):
        asker = begin(forgetful, "--repo", "own", "web1", "--json")
        question = await next_of(whose)
        request = decode_request(question.data)
        await link.publish(question.reply, said(request, Phase.BUILDING))
        await tell(link, request, Phase.DONE, path="/nix/store/x-web1")
        ran = await asker.end()
        assert (ran.status, ran.jobs[0]["path"]) == (0, "/nix/store/x-web1")
        with pytest.raises(trio.WouldBlock):
            jobs.receive_nowait()


async def test_a_job_that_its_builder_gave_up_is_handed_to_another(forgetful: NatsServer, begin: Begin) -> None:
    async with (
        connected(Server(url=forgetful.url), "builder") as link,
        link.subscribed(SUBJECTS.all_whose),
        link.subscribed(SUBJECTS.all_jobs, queue="builders") as jobs,
    ):
        asker = begin(forgetful, "--repo", "own", "web1", "--json")
        first = await next_of(jobs)
        request = decode_request(first.data)
        await link.publish(first.reply, said(request, Phase.QUEUED))
        await tell(link, request, Phase.CANCELLED)
        second = await next_of(jobs)
        assert decode_request(second.data) == request
        await link.publish(second.reply, said(request, Phase.QUEUED, builder="big2"))
        await tell(link, request, Phase.DONE, builder="big2", path="/nix/store/x-web1")
        ran = await asker.end()
    assert (ran.status, ran.jobs[0]["builder"]) == (0, "big2")


async def test_ctrl_c_tells_the_builder_without_jetstream_too(forgetful: NatsServer, begin: Begin) -> None:
    async with (
        connected(Server(url=forgetful.url), "builder") as link,
        link.subscribed(SUBJECTS.all_cancels) as cancels,
        link.subscribed(SUBJECTS.all_whose),
        link.subscribed(SUBJECTS.all_jobs, queue="builders") as jobs,
    ):
        asker = begin(forgetful, "--repo", "own", "web1")
        message = await next_of(jobs)
        request = decode_request(message.data)
        await link.publish(message.reply, said(request, Phase.QUEUED))
        asker.interrupt()
        assert decode_cancel((await next_of(cancels)).data) == Cancel(job=request.job, asked_by=request.asked_by)
        assert (await asker.end()).status == 130


# What is asked wrongly


async def test_a_builder_that_has_no_such_repository_is_quoted(server: NatsServer, begin: Begin) -> None:
    async with connected(Server(url=server.url), "builder") as link, link.subscribed(SUBJECTS.hosts) as questions:
        asker = begin(server, "web1")
        question = await next_of(questions)
        assert decode_hosts_question(question.data).names_only
        await link.publish(question.reply, encode(HostsAnswer(why="the builder has own, theirs: name one of them")))
        ran = await asker.end()
    assert ran.status == 3
    assert "the builder has own, theirs: name one of them" in ran.err


async def test_a_server_that_is_not_there_is_told(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        pass
    ran = await build(server, "--repo", "own", "web1")
    assert ran.status == 3
    assert ran.err.startswith(f"nixfleet: NATS: {server.url}: connection refused")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ((), "name hosts, or give --all"),
        (("--all", "web1"), "not both"),
        (("../web1",), "is no name of a host"),
        (("web1", "--rev", "a..b"), "is no revision"),
        (("web1", "--compare", "c0ffee"), "is no commit to compare with"),
        (("web1", "--repo", "a/b"), "is not the name of a repository"),
        (("web1", "--nats-prefix", "build.>"), "prefix"),
        (("web1", "--no-wait", "--timeout", "5m"), "does not go with --no-wait"),
        (("web1", "--nats-token-file", "/nowhere"), "/nowhere: No such file or directory"),
    ],
)
async def test_what_is_asked_wrongly_is_told_before_anybody_is_asked(
    server: NatsServer, given: tuple[str, ...], problem: str
) -> None:
    ran = await build(server, *given)
    assert (ran.status, problem in ran.err) == (2, True), ran.err
