"""The parts of a builder's jobs that decide by themselves: when to speak, what to keep, and what limits there are."""

import errno
import itertools
import os
from pathlib import Path
from typing import BinaryIO, Final, cast

import pytest
import trio
import trio.testing

from nixfleet.builder.errors import BuildError, NixError
from nixfleet.builder.limits import Limits, own_unit
from nixfleet.builder.logs import FILE_MAX, JobLog, job_log
from nixfleet.builder.messages import Phase, Progress, Request
from nixfleet.builder.roots import Roots
from nixfleet.builder.telling import EVERY_S, LINE_MAX, Voice

REQUEST: Final = Request(repository="own", host="web1", asked_by="me", asked_at=1)


# When to speak


async def test_a_job_speaks_twice_a_second_at_most_and_its_last_line_is_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    told: list[tuple[float, Progress]] = []
    began = trio.current_time()
    voice = Voice(request=REQUEST, builder="b", tell=lambda said: told.append((trio.current_time() - began, said)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(voice.tell_what_is_held_back)
        voice.say(Phase.BUILDING)
        for number in range(100):
            voice.say(Phase.BUILDING, line=f"line {number}", done=number)
            await trio.sleep(0.03)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    times = [at for at, _ in told]
    assert all(later - sooner >= EVERY_S - 1e-6 for sooner, later in itertools.pairwise(times))
    assert len(told) == 7
    assert (told[-1][1].line, told[-1][1].done) == ("line 99", 99)


async def test_a_new_phase_and_the_end_are_told_at_once(autojump_clock: trio.testing.MockClock) -> None:
    told: list[Progress] = []
    voice = Voice(request=REQUEST, builder="b", tell=told.append)
    voice.say(Phase.EVALUATING)
    voice.say(Phase.EVALUATING, commit="c")
    voice.say(Phase.BUILDING, line="x" * 10_000)
    await trio.sleep(0.1)
    last = voice.say(Phase.DONE, path="/nix/store/x")
    assert [said.phase for said in told] == [Phase.EVALUATING, Phase.BUILDING, Phase.DONE]
    assert (last.commit, last.path, len(last.line), last.seconds) == ("c", "/nix/store/x", LINE_MAX, 0.1)
    assert last.job == REQUEST.job


# What to keep


def put(roots: Roots, host: str, name: str, target: str) -> Path:
    link = roots.of("own", host) / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    return link


def asked(host: str) -> Request:
    return Request(repository="own", host=host, asked_by="me", asked_at=1)


def test_the_newest_links_to_different_systems_stay(tmp_path: Path) -> None:
    roots = Roots(home=tmp_path, keep=2)
    for name, target in (("2001-a", "/a"), ("2002-b", "/b"), ("2003-c", "/c"), ("2004-c", "/c")):
        put(roots, "web1", name, target)
    other = put(roots, "db1", "1999-x", "/x")
    with roots.root(asked("web1"), "c" * 40) as link:
        link.symlink_to("/d")
    assert {path.name for path in roots.of("own", "web1").iterdir()} == {link.name, "2004-c"}
    assert other.is_symlink()


def test_a_job_that_still_runs_keeps_its_root_whatever_others_built_since(tmp_path: Path) -> None:
    roots = Roots(home=tmp_path, keep=1)
    with roots.root(asked("web1"), "a" * 40) as mine:
        mine.symlink_to("/a")
        for number in range(3):
            with roots.root(asked("web1"), f"{number}" * 40) as link:
                link.symlink_to(f"/{number}")
        assert mine.is_symlink()
    assert mine.is_symlink()


def broken_off(roots: Roots, error: BaseException) -> None:
    """A job that ends after its link was made."""
    with roots.root(asked("web1"), "c" * 40) as link:
        link.symlink_to("/b")
        raise error


@pytest.mark.parametrize("error", [trio.TooSlowError(), KeyboardInterrupt(), OSError()])
def test_a_job_that_is_broken_off_leaves_no_root(tmp_path: Path, error: BaseException) -> None:
    roots = Roots(home=tmp_path, keep=1)
    kept = put(roots, "web1", "2001-a", "/a")
    with pytest.raises(type(error)):
        broken_off(roots, error)
    assert list(roots.of("own", "web1").iterdir()) == [kept]


def test_what_was_built_and_not_copied_stays_and_what_was_not_built_leaves_nothing(tmp_path: Path) -> None:
    roots = Roots(home=tmp_path, keep=1)
    with pytest.raises(BuildError), roots.root(asked("web1"), "c" * 40):
        raise NixError(what="building", said="no")
    assert not roots.of("own", "web1").exists()
    with pytest.raises(BuildError):
        broken_off(roots, NixError(what="copying", said="no"))
    assert [link.readlink() for link in roots.of("own", "web1").iterdir()] == [Path("/b")]


def test_a_host_of_a_strange_name_has_its_roots_below_the_others(tmp_path: Path) -> None:
    roots = Roots(home=tmp_path, keep=1)
    assert roots.of("own", "../../etc").parent == tmp_path / "own"


def test_the_newest_logs_are_kept(tmp_path: Path) -> None:
    for number in range(9):
        (tmp_path / f"2001-{number}.log").touch()
    (tmp_path / "notes").touch()
    with job_log(tmp_path, REQUEST, keep=3) as written:
        written.write(["one", "two\ud800"])
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "2001-7.log", "2001-8.log", written.path.name}
    assert written.path.read_text() == "one\ntwo?\n"


def test_a_log_for_a_host_with_the_longest_of_names_can_be_made(tmp_path: Path) -> None:
    with job_log(tmp_path, Request(repository="r" * 64, host="w" * 253, asked_by="me", asked_at=1)) as written:
        assert written.path.exists()


def test_a_log_has_an_end(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb", buffering=0) as file:
        written = JobLog(path=tmp_path / "x", file=file, room=10)
        for _ in range(5):
            written.write(["1234567"])
    assert (tmp_path / "x").read_text() == "1234567\n12"
    assert FILE_MAX > 10**6


def test_a_full_disk_costs_the_log_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        written = JobLog(path=Path("/dev/full"), file=cast(BinaryIO, file))
        written.write(["one"])
        written.write(["two"])
    assert caplog.text.count(f"the rest of the log is lost: {os.strerror(errno.ENOSPC)}") == 1


# What limits there are


@pytest.mark.parametrize(
    ("groups", "unit"),
    [
        ("0::/system.slice/nixfleet-builder.service\n", "nixfleet-builder.service"),
        ("0::/system.slice/a.service/b\n", "a.service"),
        ("12:pids:/user.slice\n0::/user.slice/user-0.slice/session-1.scope\n", ""),
        ("1:name=systemd:/system.slice/a.service\n", ""),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_the_unit_of_a_builder_is_read_of_its_control_group(groups: str, unit: str) -> None:
    assert own_unit(groups) == unit


def test_a_limit_that_cannot_be_had_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here, so that limits can be had")
    assert not Limits.here(runtime_s=60, memory_max="").scopes
    assert caplog.text == ""
    assert not Limits.here(runtime_s=60, memory_max="8G").scopes
    assert caplog.text.count("memory-max 8G is not enforced") == 1
