"""`nixfleet builder` with a real NATS server, real git and real Nix: asked, killed, restarted, told to stop."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs
import nkeys
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from trio_asyncio import aio_as_trio

from messaging.errors import LinkError, UnwelcomeError
from messaging.link import Link, connected
from messaging.news import Kind, News, tell
from messaging.server import Server
from nixfleet.builder.messages import (
    Cancel,
    HostsQuestion,
    Phase,
    Progress,
    Request,
    Subjects,
    decode_hosts_answer,
    decode_progress,
    encode,
)
from nixfleet.clock import wall_now
from tests.natslab import NatsServer, nats_server, needs_nats
from tests.updatelab import Ran, UpdateLab

pytestmark = needs_nats

ROOT: Final = Path(__file__).parents[2]
PATIENCE_S: Final = 60.0
S: Final = Subjects()
HOSTS: Final = ("db1", "mac1", "web1")


@attrs.define(kw_only=True)
class BuilderLab:
    """A fleet, a NATS server and any number of builders."""

    fleet: UpdateLab
    nats: NatsServer
    builders: "dict[str, subprocess.Popen[bytes]]" = attrs.field(factory=dict)

    def configured(
        self,
        name: str = "one",
        more: str = "",
        of_repository: str = "",
        of_nats: str = "",
        name_of_repository: str = "own",
    ) -> Path:
        path = self.fleet.root / f"{name}.toml"
        patience = "" if "patience" in more else "patience = 3"
        path.write_text(
            f'name = "{name}"\nstate-dir = "{self.fleet.root}/{name}"\n{patience}\n{more}\n'
            f'[nats]\nurl = "{self.nats.url}"\n{of_nats}\n'
            f'[repositories.{name_of_repository}]\nurl = "file://{self.fleet.hub}"\n{of_repository}\n'
        )
        return path

    def check(self, config: Path, *more: str) -> Ran:
        return self.fleet.run(*self.words(config, "--check", *more), where=self.fleet.root)

    def words(self, config: Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "nixfleet", "builder", "--config", str(config), *more]

    def start(
        self,
        name: str = "one",
        *,
        wait: bool = True,
        environment: Mapping[str, str] = MappingProxyType({}),
        **keys: str,
    ) -> None:
        config = self.configured(name, **keys)
        with self.log_of(name).open("ab") as log:
            self.builders[name] = subprocess.Popen(
                self.words(config, "--log-format", "json"), cwd=self.fleet.root, stdout=log, stderr=log,
                env={**self.fleet.environment(), **environment},
            )  # fmt: skip
        if wait:
            self.until(lambda: "listening" in self.said(name)[-3:], name)

    def go(self, host: str) -> None:
        """Let its build end."""
        (self.fleet.root / f"go-{host}").touch()

    def ran(self, host: str) -> int:
        """How often Nix ran its build."""
        path = self.fleet.root / f"ran-{host}"
        return len(path.read_text().split()) if path.exists() else 0

    def begun(self) -> int:
        """How many jobs all builders have begun."""
        return sum(self.said(path.stem).count("begun") for path in self.fleet.root.glob("*.log"))

    def log_of(self, name: str) -> Path:
        return self.fleet.root / f"{name}.log"

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_of(name).read_text().splitlines() if line.startswith("{")]

    def said(self, name: str) -> list[str]:
        return [str(line["message"]) for line in self.lines(name)]

    def until(self, true: Callable[[], bool], name: str = "one") -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, self.log_of(name).read_text()
            assert self.builders[name].poll() is None, self.log_of(name).read_text()
            time.sleep(0.05)

    def end(self, name: str, number: int = signal.SIGKILL) -> int:
        process = self.builders.pop(name)
        process.send_signal(number)
        return process.wait(timeout=PATIENCE_S)

    def nix_runs(self) -> bool:
        """Some Nix or build of this fleet goes on."""
        return any(process for process in self.processes() if process[1] not in (b"python", b"python3"))

    def processes(self) -> Iterator[tuple[int, bytes]]:
        """Those of this fleet: their environment names its store."""
        ours = f"NIX_STORE_DIR={self.fleet.root}/store".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone by now
                if ours in (process / "environ").read_bytes().split(b"\0"):
                    yield int(process.name), (process / "comm").read_bytes().strip()

    def stop_orphans_but(self, builder: int) -> None:
        """End what a builder left that was killed, as its control group would."""
        for number, _ in self.processes():
            if number != builder:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGTERM)

    def stop(self) -> None:
        for name in tuple(self.builders):
            self.end(name)
        self.fleet.stop_orphans()


_BUILD: Final = """echo "building $host with $word" >&2
echo x >> %(root)s/ran-$host
case $host in *1) while [ ! -e %(root)s/go-$host ]; do /bin/sleep 0.1; done ;; esac
[ "$word" != bad ] || { echo "the end of $host" >&2; exit 1; }
echo "$word $host" > "$out"
"""


@pytest.fixture
def fleet(tmp_path: Path) -> UpdateLab:
    """Of its hosts web1, db1 and mac1 each is built when a file says so."""
    fleet = UpdateLab.at(tmp_path)
    (fleet.fleet / "build.sh").write_text(_BUILD % {"root": fleet.root})
    publish(fleet)
    return fleet


def publish(fleet: UpdateLab) -> None:
    fleet.git("commit", "--quiet", "--all", "--message", "next")
    fleet.git("push", "--quiet", "origin", "main")


@pytest.fixture
def lab(fleet: UpdateLab) -> Iterator[BuilderLab]:
    with nats_server(fleet.root / "nats") as server:
        lab = BuilderLab(fleet=fleet, nats=server)
        yield lab
        lab.stop()


@pytest.fixture
def plain(fleet: UpdateLab) -> Iterator[BuilderLab]:
    """The same on a server without JetStream."""
    with nats_server(fleet.root / "nats", jetstream=False) as server:
        lab = BuilderLab(fleet=fleet, nats=server)
        yield lab
        lab.stop()


def wanted(host: str, asked_by: str, **more: Any) -> Request:
    return Request(**{"repository": "own", "host": host, "asked_by": asked_by, "asked_at": wall_now(), **more})


@attrs.define(kw_only=True)
class Asker:
    """Asks by the bare protocol."""

    link: Link
    heard: list[Progress] = attrs.field(factory=list)

    async def put(self, asked: Request) -> None:
        await (await self.link.work_queue(S.stream, S.all_jobs)).put(S.job(asked), encode(asked))

    async def ask(self, asked: Request) -> Progress:
        """As on a server without JetStream."""
        return decode_progress(await self.link.request(S.job(asked), encode(asked)))

    async def cancel(self, asked: Request) -> None:
        if await self.link.has_jetstream():
            bucket = await self.link.bucket(S.bucket, ttl_s=7 * 86_400)
            await bucket.put(f"cancelled.{asked.asked_by}", b"")
        await self.link.publish(S.cancel(asked.job), encode(Cancel(job=asked.job, asked_by=asked.asked_by)))

    async def until(self, true: Callable[[Progress], bool], job: str = "") -> Progress:
        """The first word, of those heard already too, that is like this."""
        with trio.fail_after(PATIENCE_S):
            while True:
                for progress in self.heard:
                    if true(progress) and job in ("", progress.job):
                        return progress
                await trio.sleep(0.05)

    async def last(self, job: str = "") -> Progress:
        return await self.until(lambda progress: progress.phase.is_last, job)

    async def answer(self, asked: Request) -> Progress:
        """What came of it, heard or missed: a server that is away says nothing."""
        with trio.fail_after(PATIENCE_S):
            while True:
                with contextlib.suppress(LinkError):
                    bucket = await self.link.bucket(S.bucket, ttl_s=7 * 86_400)
                    found = await bucket.get(asked.job)
                    if found is not None and (said := decode_progress(found[0])).phase.is_last:
                        return said
                await trio.sleep(0.2)


async def until_empty(link: Link) -> None:
    """Every job of the queue is settled."""
    with trio.fail_after(PATIENCE_S):
        while (await aio_as_trio(link.jetstream.stream_info)(S.stream)).state.messages:
            await trio.sleep(0.1)


@asynccontextmanager
async def asker(server: NatsServer) -> AsyncIterator[Asker]:
    async with (
        connected(Server(url=server.url), "asker") as link,
        link.subscribed("build.progress.*") as messages,
        trio.open_nursery() as nursery,
    ):
        asking = Asker(link=link)

        async def listen() -> None:
            async for message in messages:
                asking.heard.append(decode_progress(message.data))

        nursery.start_soon(listen)
        yield asking
        nursery.cancel_scope.cancel()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def fetched(lab: BuilderLab, what: str) -> str:
    port = tomllib.loads((lab.fleet.root / "one.toml").read_text())["metrics-port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{what}", timeout=PATIENCE_S) as answer:
        return str(answer.read().decode())


def samples(lab: BuilderLab) -> dict[tuple[str, tuple[str, ...]], float]:
    """By name, and values of labels but the role."""
    labels = ("repository", "host", "outcome", "le")
    return {
        (sample.name, tuple(sample.labels[label] for label in labels if label in sample.labels)): sample.value
        for family in text_string_to_metric_families(fetched(lab, "metrics"))
        for sample in family.samples
    }


def is_building(progress: Progress) -> bool:
    return progress.phase is Phase.BUILDING


async def test_a_host_that_is_asked_for_is_built_and_the_answer_has_its_store_path(lab: BuilderLab) -> None:
    lab.start()
    lab.go("web1")
    async with asker(lab.nats) as asking:
        await asking.put(wanted("web1", "me"))
        done = await asking.last()
        assert (done.phase, done.host, done.builder, done.commit) == (Phase.DONE, "web1", "one", lab.fleet.main()), done
        assert Path(done.path).read_text() == "one web1\n"
        phases = list(dict.fromkeys(progress.phase for progress in asking.heard))
        assert phases[-2:] == [Phase.BUILDING, Phase.DONE], phases


async def test_what_does_not_build_is_told_with_the_end_of_its_log(lab: BuilderLab) -> None:
    lab.start()
    (lab.fleet.fleet / "build.sh").write_text('echo "the end of $host" >&2\nexit 1\n')
    publish(lab.fleet)
    async with asker(lab.nats) as asking:
        await asking.put(wanted("web1", "me"))
        failed = await asking.last()
        assert failed.phase is Phase.FAILED
        assert "the end of web1" in failed.tail


@pytest.mark.parametrize("builders", [("one",), ("one", "two")], ids=["one builder", "two builders"])
async def test_a_host_that_two_ask_for_at_once_is_built_once_and_both_are_answered(
    lab: BuilderLab, builders: tuple[str, ...]
) -> None:
    for name in builders:
        lab.start(name)
    async with asker(lab.nats) as asking:
        first, second = wanted("web1", "first"), wanted("web1", "second")
        await asking.put(first)
        await asking.put(second)
        await asking.until(is_building)
        # More than a beat and a turn of the queue: whoever would begin it a second time has had the time to.
        heard = len(asking.heard)
        with trio.fail_after(PATIENCE_S):
            while sum(is_building(progress) for progress in asking.heard[heard:]) < 8:
                await trio.sleep(0.1)
        lab.go("web1")
        await asking.last()
        assert (lab.begun(), lab.ran("web1")) == (1, 1)
        await until_empty(asking.link)


async def test_who_asks_later_for_a_commit_is_answered_without_a_build(lab: BuilderLab) -> None:
    lab.start()
    lab.go("web1")
    commit = lab.fleet.main()
    async with asker(lab.nats) as asking:
        await asking.put(wanted("web1", "first", revision=commit))
        first = await asking.last()
        asking.heard.clear()
        await asking.put(wanted("web1", "second", revision=commit))
        assert await asking.last() == first
        asking.heard.clear()
        await asking.put(wanted("web1", "third"))  # a branch may have moved
        await asking.last()
    assert lab.begun() == 2


async def test_a_job_of_a_builder_that_was_killed_is_done_once_more_by_another(lab: BuilderLab) -> None:
    lab.start("one")
    async with asker(lab.nats) as asking:
        await asking.put(wanted("web1", "me"))
        await asking.until(is_building)
        lab.start("two")
        lab.end("one", signal.SIGKILL)
        lab.stop_orphans_but(lab.builders["two"].pid)
        await asking.until(lambda progress: is_building(progress) and progress.builder == "two")
        lab.go("web1")
        done = await asking.last()
        assert (done.phase, done.builder, lab.begun()) == (Phase.DONE, "two", 2)


async def test_a_job_that_no_builder_survives_is_given_up(lab: BuilderLab) -> None:
    async with asker(lab.nats) as asking:
        asked = wanted("web1", "me")
        bucket = await asking.link.bucket(S.bucket, ttl_s=7 * 86_400)
        word = Progress(
            job=asked.job, repository="own", host="web1", phase=Phase.BUILDING, builder="gone",
            at=wall_now() - 60_000, ended=4,
        )  # fmt: skip
        await bucket.put(asked.job, encode(word))
        await asking.put(asked)
        lab.start()
        failed = await asking.last()
        assert (failed.phase, failed.why) == (Phase.FAILED, "given up: 5 builders ended while building it")
        assert lab.begun() == 0
        lab.go("web1")
        asking.heard.clear()
        await asking.put(wanted("web1", "me-again"))
        assert (await asking.last()).phase is Phase.DONE


async def test_a_server_that_is_killed_and_comes_back_loses_nothing(lab: BuilderLab) -> None:
    lab.start("one", more="parallel = 1")
    async with asker(lab.nats) as asking:
        web, db = wanted("web1", "first"), wanted("db1", "second")
        await asking.put(web)
        await asking.put(db)
        await asking.until(is_building)
        lab.nats.kill()
        lab.go("web1")
        lab.go("db1")
        lab.nats.start()
        assert (await asking.answer(web)).phase is Phase.DONE
        assert (await asking.answer(db)).phase is Phase.DONE
        assert (lab.begun(), lab.ran("web1"), lab.ran("db1")) == (2, 1, 1)


async def test_a_server_that_lost_its_disk_gets_a_new_queue(lab: BuilderLab) -> None:
    lab.start()
    lab.go("web1")
    lab.nats.kill()
    shutil.rmtree(lab.nats.directory / "jetstream")
    lab.nats.start()
    async with asker(lab.nats) as asking:
        asked = wanted("web1", "me")
        await asking.put(asked)
        assert (await asking.answer(asked)).phase is Phase.DONE


async def test_a_build_that_ends_while_the_server_is_away_is_told_when_it_is_back(lab: BuilderLab) -> None:
    lab.start()
    async with asker(lab.nats) as asking:
        asked = wanted("web1", "me")
        await asking.put(asked)
        await asking.until(is_building)
        lab.nats.kill()
        lab.go("web1")
        await trio.to_thread.run_sync(lab.until, lambda: "done" in lab.said("one"))
        lab.nats.start()
        assert (await asking.answer(asked)).phase is Phase.DONE
        assert lab.begun() == 1


async def test_a_build_ends_when_the_last_who_asked_takes_it_back(lab: BuilderLab) -> None:
    lab.start()
    async with asker(lab.nats) as asking:
        first, second = wanted("web1", "first"), wanted("web1", "second")
        for each in (first, second):
            await asking.put(each)
        await trio.to_thread.run_sync(lab.until, lambda: "one more asks" in lab.said("one"))
        await asking.until(is_building)
        await asking.cancel(first)
        asking.heard.clear()
        await asking.until(is_building)  # the other still waits
        await asking.cancel(second)
        assert (await asking.last()).phase is Phase.CANCELLED
        assert not lab.nix_runs()
        asking.heard.clear()
        lab.go("web1")
        await asking.put(wanted("web1", "third"))
        assert (await asking.last()).phase is Phase.DONE


async def test_a_request_that_was_taken_back_while_it_waited_is_not_done(lab: BuilderLab) -> None:
    async with asker(lab.nats) as asking:
        gone, there = wanted("web1", "gone"), wanted("db1", "there")
        await asking.put(gone)
        await asking.cancel(gone)
        await asking.put(there)
        lab.go("db1")
        lab.start("one", more="parallel = 1")
        assert (await asking.last()).host == "db1"
        assert (lab.begun(), lab.ran("web1")) == (1, 0)


async def test_a_builder_that_is_told_to_stop_hands_its_job_to_another_at_once(lab: BuilderLab) -> None:
    lab.start("one", more="patience = 3000")
    async with asker(lab.nats) as asking:
        await asking.put(wanted("web1", "me"))
        await asking.until(is_building)
        lab.start("two", more="patience = 3000")
        assert await trio.to_thread.run_sync(lab.end, "one", signal.SIGTERM) == 0
        await asking.until(lambda progress: is_building(progress) and progress.builder == "two")
        lab.go("web1")
        assert (await asking.last()).builder == "two"


async def test_what_is_built_for_nobody_is_refused_and_what_is_no_request_is_passed_over(lab: BuilderLab) -> None:
    lab.start("one", of_repository='hosts = ["db*"]')
    lab.go("db1")
    async with asker(lab.nats) as asking:
        queue = await asking.link.work_queue(S.stream, S.all_jobs)
        await queue.put("build.jobs.own.web1", b"\xff no request")
        await asking.put(wanted("web1", "me"))
        assert "its `hosts` do not name it" in (await asking.last()).why
        await asking.put(wanted("db1", "me", repository="theirs"))
        assert (
            "no repository theirs; it has own" in (await asking.last(wanted("db1", "x", repository="theirs").job)).why
        )
        await asking.put(wanted("db1", "me-too"))
        assert (await asking.until(lambda progress: progress.phase is Phase.DONE)).host == "db1"
    assert "not a request" in lab.said("one")


# Without JetStream


async def test_without_jetstream_two_who_ask_at_once_are_answered_by_one_build(plain: BuilderLab) -> None:
    plain.start("one")
    plain.start("two")
    async with asker(plain.nats) as asking:
        first, second = wanted("web1", "first"), wanted("web1", "second")
        assert (await asking.ask(first)).phase is Phase.QUEUED
        building = await asking.until(is_building)
        answer = decode_progress(await asking.link.request(S.whose(second.job), encode(second)))
        assert (answer.phase, answer.builder) == (Phase.BUILDING, building.builder)
        await asking.cancel(first)
        asking.heard.clear()
        await asking.until(is_building)
        plain.go("web1")
        assert (await asking.last()).phase is Phase.DONE
    assert (plain.begun(), plain.ran("web1")) == (1, 1)


async def test_without_jetstream_who_waits_in_line_hears_that_they_do_and_may_leave(plain: BuilderLab) -> None:
    plain.start("one", more="parallel = 1")
    async with asker(plain.nats) as asking:
        web, db, mac = (wanted(host, f"for-{host}") for host in ("web1", "db1", "mac1"))
        await asking.ask(web)
        await asking.until(is_building, web.job)
        for each in (db, mac):
            assert (await asking.ask(each)).phase is Phase.QUEUED
        asking.heard.clear()
        await asking.until(lambda progress: progress.phase is Phase.QUEUED, mac.job)
        await asking.cancel(db)
        assert (await asking.last(db.job)).phase is Phase.CANCELLED
        for host in ("web1", "mac1"):
            plain.go(host)
        assert (await asking.last(mac.job)).phase is Phase.DONE
        assert (plain.begun(), plain.ran("db1")) == (2, 0)
        asking.heard.clear()
        plain.go("db1")
        assert (await asking.ask(attrs.evolve(db, asked_by="again"))).phase is Phase.QUEUED
        assert (await asking.last(db.job)).phase is Phase.DONE


async def test_without_jetstream_a_refusal_is_the_answer_and_a_stop_leaves_nothing(plain: BuilderLab) -> None:
    plain.start("one", more='hosts = ["web1"]')
    async with asker(plain.nats) as asking:
        assert (await asking.ask(wanted("db1", "me"))).phase is Phase.REFUSED
        await asking.ask(wanted("web1", "me"))
        await asking.until(is_building)
        assert await trio.to_thread.run_sync(plain.end, "one", signal.SIGTERM) == 0
        assert not plain.nix_runs()


def test_a_server_that_is_not_there_yet_is_waited_for_and_told_once(lab: BuilderLab) -> None:
    lab.nats.kill()
    lab.start(wait=False)
    lab.until(lambda: "no NATS server, trying again" in lab.said("one"))
    lab.nats.start()
    lab.until(lambda: "listening" in lab.said("one"))
    assert lab.said("one").count("no NATS server, trying again") == 1
    [told] = [line for line in lab.lines("one") if line["message"] == "no NATS server, trying again"]
    assert "refused" in told["why"]


async def test_the_hosts_of_a_repository_are_told_to_who_asks(lab: BuilderLab) -> None:
    lab.start("one", of_repository='hosts = ["db*", "web*"]')
    async with asker(lab.nats) as asking:
        answer = decode_hosts_answer(await asking.link.request(S.hosts, encode(HostsQuestion())))
    assert (answer.hosts, answer.commit) == (("db1", "web1"), lab.fleet.main())


@pytest.mark.parametrize("server", ["lab", "plain"])
async def test_every_host_is_built_ahead_when_its_branch_has_moved(server: str, request: pytest.FixtureRequest) -> None:
    lab: BuilderLab = request.getfixturevalue(server)
    for host in HOSTS:
        lab.go(host)
    lab.start("one", of_repository="prebuild = true", more='news-prefix = "our.news"')
    async with asker(lab.nats) as asking:
        lab.fleet.say("words", "two")
        lab.fleet.run("nix", "flake", "update", where=lab.fleet.fleet)
        publish(lab.fleet)
        news = News(kind=Kind.MERGED, name="own", at=wall_now())
        await tell(Server(url=lab.nats.url), news, prefix="our.news")
        for host in HOSTS:
            asked = wanted(host, "me", revision=lab.fleet.main())
            done = await asking.last(asked.job)
            assert Path(done.path).read_text() == f"two {host}\n"


async def test_as_many_are_built_at_once_as_may_be(lab: BuilderLab) -> None:
    lab.start("one", more="parallel = 2")
    async with asker(lab.nats) as asking:
        asked = {host: wanted(host, "me") for host in HOSTS}
        for each in asked.values():
            await asking.put(each)
        await trio.to_thread.run_sync(lab.until, lambda: sum(lab.ran(host) for host in HOSTS) == 2)
        assert lab.begun() == 2
        for host in HOSTS:
            lab.go(host)
        for each in asked.values():
            assert (await asking.answer(each)).phase is Phase.DONE
    assert lab.begun() == 3


async def test_a_builder_that_lost_its_job_to_another_leaves_it_to_that_one(lab: BuilderLab) -> None:
    lab.start()
    async with asker(lab.nats) as asking:
        asked = wanted("web1", "me")
        await asking.put(asked)
        mine = await asking.until(is_building)
        bucket = await asking.link.bucket(S.bucket, ttl_s=7 * 86_400)
        await bucket.put(asked.job, encode(attrs.evolve(mine, builder="other", at=wall_now())))
        await trio.to_thread.run_sync(lab.until, lambda: "another builder took it over" in lab.said("one"))
        assert not lab.nix_runs()
        done = attrs.evolve(mine, builder="other", at=wall_now(), phase=Phase.DONE, path="/nix/store/x")
        await bucket.put(asked.job, encode(done))
        assert await asking.last() == done
        await until_empty(asking.link)
        assert lab.begun() == 1


async def test_builders_share_what_is_built_ahead(lab: BuilderLab) -> None:
    for host in HOSTS:
        lab.go(host)
    for name in ("one", "two"):
        lab.start(name, of_repository="prebuild = true")
    async with asker(lab.nats) as asking:
        await tell(Server(url=lab.nats.url), News(kind=Kind.MERGED, name="own", at=wall_now()))
        for name in ("one", "two"):
            await trio.to_thread.run_sync(lab.until, lambda name=name: "moved" in lab.said(name))
        for host in HOSTS:
            assert (await asking.last(wanted(host, "x", revision=lab.fleet.main()).job)).phase is Phase.DONE
        await until_empty(asking.link)
    assert lab.begun() == len(HOSTS)


async def test_nonsense_on_every_subject_ends_nothing(plain: BuilderLab) -> None:
    plain.start()
    plain.go("db1")
    async with asker(plain.nats) as asking:
        good = wanted("db1", "me")
        for nonsense in (b"", b"\xff", b"[]", b"{}", b"null", b'{"job": 7}', b"[" * 3000, b"x" * 100_000):
            for subject in (S.job(good), S.whose(good.job), S.cancel(good.job), S.hosts):
                await asking.link.publish(subject, nonsense)
        assert (await asking.ask(good)).phase is Phase.QUEUED
        assert (await asking.last()).phase is Phase.DONE


# Who may do what


def documented(directory: Path) -> str:
    """The server's settings that the documentation has, with keys of `builder.nk` and `asker.nk`, and without TLS."""
    page = (ROOT / "docs" / "building.md").read_text()
    [block] = [block for block in page.split("```")[1::2] if "UBUILDER" in block]
    lines = [line for line in block.splitlines() if not line.startswith(("listen:", "tls ", "jetstream "))]
    text = "\n".join(lines)
    for name in ("builder", "asker"):
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        (directory / f"{name}.nk").write_bytes(seed)
        text = text.replace(f"U{name.upper()}", nkeys.from_seed(bytearray(seed)).public_key.decode())
    return text


@pytest.mark.parametrize("jetstream", [True, False], ids=["JetStream", "without JetStream"])
async def test_the_documented_permissions_are_enough_and_an_asker_may_not_answer(
    fleet: UpdateLab, jetstream: bool
) -> None:
    with nats_server(fleet.root / "nats", jetstream=jetstream, more=documented(fleet.root)) as server:
        lab = BuilderLab(fleet=fleet, nats=server)
        try:
            for host in HOSTS:
                lab.go(host)
            lab.start("one", of_nats=f'nkey-file = "{fleet.root}/builder.nk"', name_of_repository="fleet",
                      of_repository="prebuild = true")  # fmt: skip
            key = ("--nats-url", server.url, "--nats-nkey-file", f"{fleet.root}/asker.nk", "--json")
            words = [sys.executable, "-m", "nixfleet", "build", "--all", *key]
            said = await trio.to_thread.run_sync(lambda: fleet.run(*words, where=fleet.root))
            assert said.status == 0, (said.err, lab.log_of("one").read_text(), server.log())
            assert [line for line in lab.lines("one") if line["level"] != "info"] == []
            assert "Permissions Violation" not in server.log()
            async with connected(Server(url=server.url, nkey_file=fleet.root / "asker.nk"), "asker") as link:
                await link.publish(S.progress("0" * 32), b"x")
                with pytest.raises(UnwelcomeError, match=r"(?i)permissions violation"):
                    link.raise_complaint()
        finally:
            lab.stop()


# The service


def test_check_says_what_would_work_and_what_would_not(lab: BuilderLab) -> None:
    config = lab.configured()
    said = lab.check(config, "--json")
    assert (said.status, said.json) == (
        0,
        {
            "ok": True,
            "server": {"url": lab.nats.url, "connected": True, "jetstream": True},
            "repositories": {"own": {"fetches": True}},
        },
    )
    assert "own can be fetched" in lab.check(config).out
    other = lab.configured(of_repository='branch = "trunk"\n[repositories.theirs]\nurl = "file:///nowhere"')
    lab.nats.kill()
    said = lab.check(other)
    assert said.status == 1
    assert "not connected" in said.out
    assert "own cannot be fetched it has no branch trunk" in said.out
    assert "theirs cannot be fetched" in said.out
    assert list(lab.fleet.root.glob("one/*")) == []


def test_check_on_a_server_without_jetstream_says_so(plain: BuilderLab) -> None:
    assert "without JetStream: jobs wait in the memory of builders" in plain.check(plain.configured()).out


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("[nats]\nurl = 'http://x'\n", "nats: 'http://x' is no address"),
        ("[nats]\nurl = 'nats://127.0.0.1:1'\nnkey-file = '/nowhere/key'\n", "/nowhere/key: No such file"),
        ("metrics-port = 1\n[nats]\nurl = 'nats://127.0.0.1:1'\n", ""),
        ("", "nats: `url` is missing"),
    ],
    ids=["address", "key file", "port", "nothing"],
)
def test_a_mistake_in_the_configuration_ends_it_at_once(fleet: UpdateLab, more: str, problem: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    path = fleet.root / "builder.toml"
    path.write_text(
        f'state-dir = "{fleet.root}/one"\n{more.replace("metrics-port = 1", f"metrics-port = {port}")}'
        '[repositories.own]\nurl = "https://git.example.org/own"\n'
    )
    with listener:
        said = fleet.run(sys.executable, "-m", "nixfleet", "builder", "--config", str(path), where=fleet.root)
    assert said.status == 2, said.err
    assert (problem or f"`metrics-port` {port}: cannot listen") in said.err
    assert said.err.splitlines()[-1].startswith(f"nixfleet: {path}: ")


def test_json_without_check_is_refused(fleet: UpdateLab) -> None:
    said = fleet.run(sys.executable, "-m", "nixfleet", "builder", "--json", where=fleet.root)
    assert (said.status, "--json goes with --check" in said.err) == (2, True)


async def test_metrics_tell_how_builds_went_and_the_role_of_the_host(lab: BuilderLab) -> None:
    lab.start("one", more=f'metrics-port = {free_port()}\nrole = "big builder"')
    lab.go("db1")
    async with asker(lab.nats) as asking:
        await asking.put(wanted("web1", "me"))
        await asking.until(is_building)
        assert samples(lab)["nixfleet_builder_builds_running", ()] == 1
        await asking.put(wanted("db1", "me"))
        await asking.until(lambda progress: progress.phase is Phase.DONE)
        await asking.put(wanted("web1", "me", repository="theirs"))
        await asking.until(lambda progress: progress.phase is Phase.REFUSED)
        (lab.fleet.fleet / "build.sh").write_text("exit 1\n")
        publish(lab.fleet)
        await asking.put(wanted("mac1", "me"))
        await asking.until(lambda progress: progress.phase is Phase.FAILED)
    # It is counted before it is told.
    seen = samples(lab)
    assert {key: value for key, value in seen.items() if key[0] == "nixfleet_builder_builds_total"} == {
        ("nixfleet_builder_builds_total", ("own", "db1", "done")): 1,
        ("nixfleet_builder_builds_total", ("own", "mac1", "failed")): 1,
    }
    assert seen["nixfleet_builder_build_duration_seconds_count", ("own", "done")] == 1
    assert seen["nixfleet_builder_last_success_timestamp_seconds", ("own", "db1")] > 0
    assert seen["nixfleet_builder_refused_requests_total", ()] == 1
    assert seen["nixfleet_builder_queue_depth", ()] == 0
    assert seen["nixfleet_builder_connected", ()] == 1
    assert json.loads(fetched(lab, "healthz")) == {"ok": True}
    assert all('role="big builder"' in line for line in fetched(lab, "metrics").splitlines() if line[0] != "#")


def test_the_service_manager_is_told_that_it_is_ready_alive_and_stopping(lab: BuilderLab) -> None:
    path = lab.fleet.root / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE_S)
        lab.start("one", environment={"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"})
        said: list[str] = []
        while {"READY=1", "WATCHDOG=1", f"STATUS=connected to {lab.nats.url}"} - set(said):
            said.append(manager.recv(4096).decode())
        assert lab.end("one", signal.SIGTERM) == 0
        while said[-1] != "STOPPING=1":
            said.append(manager.recv(4096).decode())


async def test_a_token_that_is_replaced_is_read_anew(fleet: UpdateLab) -> None:
    token = fleet.root / "token"
    token.write_text("first")
    with nats_server(fleet.root / "nats", more='authorization { token: "first" }') as server:
        lab = BuilderLab(fleet=fleet, nats=server)
        try:
            lab.start("one", of_nats=f'token-file = "{token}"')
            server.kill()
            server.more = 'authorization { token: "second" }'
            server.start()
            lab.until(lambda: "it does not know who this is" in lab.log_of("one").read_text())
            token.write_text("second")
            lab.until(lambda: lab.said("one").count("listening") == 2)
            assert lab.end("one", signal.SIGTERM) == 0
        finally:
            lab.stop()


def test_health_and_the_log_say_when_the_server_is_away_and_when_it_is_back(lab: BuilderLab) -> None:
    lab.start("one", more=f"metrics-port = {free_port()}")
    lab.nats.kill()
    lab.until(lambda: "no NATS server, trying again" in lab.said("one"))
    with pytest.raises(urllib.error.HTTPError, match="503") as caught:
        fetched(lab, "healthz")
    with caught.value as answer:
        assert json.loads(answer.read())["reason"] == f"{lab.nats.url}: the connection was lost"
    lab.nats.start()
    lab.until(lambda: lab.said("one").count("connected") == 2)
    assert json.loads(fetched(lab, "healthz")) == {"ok": True}


def test_told_to_stop_while_no_server_is_there_it_stops(lab: BuilderLab) -> None:
    lab.nats.kill()
    lab.start(wait=False)
    lab.until(lambda: "no NATS server, trying again" in lab.said("one"))
    assert lab.end("one", signal.SIGINT) == 0


async def test_a_second_signal_ends_it_at_once(lab: BuilderLab) -> None:
    """The first waits for Nix, which here does not end when it is asked to."""
    lab.start("one")
    async with asker(lab.nats) as asking:
        await asking.put(wanted("web1", "me"))
        await trio.to_thread.run_sync(lab.until, lambda: lab.ran("web1") == 1)
        [nix] = [number for number, name in lab.processes() if name == b"nix"]
        os.kill(nix, signal.SIGSTOP)
        lab.builders["one"].send_signal(signal.SIGTERM)
        await trio.to_thread.run_sync(lab.until, lambda: "stopping" in lab.said("one"))
        assert lab.end("one", signal.SIGTERM) == -signal.SIGTERM
        os.kill(nix, signal.SIGCONT)
