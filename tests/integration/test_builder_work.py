"""A builder's jobs, with real git, real Nix and a cache of files."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from nixfleet.builder.errors import RevisionError
from nixfleet.builder.messages import TAIL_MAX, Phase, Progress, Request
from nixfleet.builder.settings import settings_of
from nixfleet.builder.work import Works
from tests.updatelab import UpdateLab

pytestmark = pytest.mark.nix


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UpdateLab]:
    lab = UpdateLab.at(tmp_path)
    given = lab.environment()
    for name in os.environ.keys() - given.keys():
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    yield lab
    lab.stop_orphans()


def works(lab: UpdateLab, own: dict[str, Any] | None = None, **keys: Any) -> Works:
    document = {
        "state-dir": str(lab.root / "state"),
        "name": "bench",
        "repositories": {"own": {"url": str(lab.hub), **(own or {})}},
        **{key.replace("_", "-"): value for key, value in keys.items()},
    }
    return Works(settings_of(document, "test"))


def asked(host: str = "web1", revision: str = "", repository: str = "own", compare: str = "") -> Request:
    return Request(repository=repository, host=host, revision=revision, compare=compare, asked_by="me", asked_at=1)


@attrs.define
class Heard:
    """Everything that was told of a job."""

    progress: list[Progress] = attrs.field(factory=list)

    @property
    def phases(self) -> list[Phase]:
        """Without repetitions."""
        phases = [progress.phase for progress in self.progress]
        return [phase for at, phase in enumerate(phases) if at == 0 or phases[at - 1] is not phase]


async def build(bench: Works, request: Request) -> Progress:
    last, _ = await follow(bench, request)
    return last


async def follow(bench: Works, request: Request) -> tuple[Progress, Heard]:
    heard = Heard()
    last = await bench.build(request, heard.progress.append)
    assert heard.progress[-1] == last
    assert [progress.phase.is_last for progress in heard.progress].index(True) == len(heard.progress) - 1
    return last, heard


def say(lab: UpdateLab, word: str, *, reference: str = "refs/heads/main") -> str:
    """Move the word of the flake's input, and push; the commit."""
    lab.say("words", word)
    assert lab.run("nix", "flake", "update", where=lab.fleet).status == 0
    lab.git("commit", "--quiet", "--all", "--message", word)
    lab.git("push", "--quiet", "origin", f"HEAD:{reference}")
    return lab.git("rev-parse", "HEAD")


def links(lab: UpdateLab) -> list[Path]:
    return sorted(path for path in (lab.root / "state" / "roots").rglob("*") if path.is_symlink())


def processes(lab: UpdateLab) -> list[str]:
    """Whatever runs with the lab's store, but for this process."""
    ours, found = f"NIX_STORE_DIR={lab.root}/store".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone by now
            if process.name != str(os.getpid()) and ours in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text())
    return found


async def test_the_default_branch_is_built_rooted_and_told_in_order(lab: UpdateLab) -> None:
    last, heard = await follow(works(lab), asked())
    assert heard.phases == [Phase.EVALUATING, Phase.BUILDING, Phase.DONE], last
    assert Path(last.path).read_text() == "one one web1\n"
    assert (last.commit, last.builder, last.cache, last.why) == (lab.main(), "bench", "", "")
    assert (last.done, last.expected) == (1, 1)
    [link] = links(lab)
    assert (str(link.readlink()), link.parent) == (last.path, lab.root / "state/roots/own/web1")
    [log] = (lab.root / "state/logs").iterdir()
    assert "nixos-system-web1-25.11> building web1 with one and one" in log.read_text()
    assert "evaluating file" not in log.read_text()


async def test_a_darwin_host_is_found_where_darwin_hosts_are(lab: UpdateLab) -> None:
    last = await build(works(lab), asked("mac1"))
    assert (last.phase, Path(last.path).read_text()) == (Phase.DONE, "one one mac1\n"), last


async def test_every_kind_of_revision_means_its_commit(lab: UpdateLab) -> None:
    bench, main = works(lab), lab.main()
    lab.git("tag", "--annotate", "--message", "a release", "v1")
    lab.git("push", "--quiet", "origin", "v1")
    branch = say(lab, "two", reference="refs/heads/feature/x")
    tried = say(lab, "three", reference="refs/nixfleet/try-1")
    for revision, commit in (
        ("", main), ("v1", main), ("feature/x", branch), ("refs/nixfleet/try-1", tried), ("try-1", tried),
        (tried, tried), (branch[:9], branch), ("refs/tags/v1", main),
    ):  # fmt: skip
        last = await build(bench, asked(revision=revision))
        assert (last.phase, last.commit) == (Phase.DONE, commit), (revision, last)
    assert Path((await build(bench, asked(revision="try-1"))).path).read_text() == "three one web1\n"


async def test_a_revision_that_is_not_there_is_named(lab: UpdateLab) -> None:
    bench = works(lab)
    for revision in ("nowhere", "0" * 40, "HEAD", "refs/remotes/origin/main", "refs/heads", "abcdef0"):
        last = await build(bench, asked(revision=revision))
        assert (last.phase, last.path) == (Phase.FAILED, "")
        assert f"own has no branch, tag or commit '{revision}'" in last.why
    assert links(lab) == []


async def test_a_host_that_the_flake_has_not_is_told_which_there_are(lab: UpdateLab) -> None:
    last = await build(works(lab), asked("web9"))
    assert last.phase is Phase.FAILED
    assert last.why == f"the flake has no host web9 at {lab.main()[:12]}; there are: db1, mac1, web1"


async def test_what_does_not_build_has_the_end_of_its_log_and_leaves_no_root(lab: UpdateLab) -> None:
    bench = works(lab)
    say(lab, "bad")
    last = await build(bench, asked())
    assert (last.phase, last.path) == (Phase.FAILED, "")
    assert "undefined variable: the end of web1" in last.tail
    assert len(last.tail) <= TAIL_MAX
    assert last.why.startswith("building web1: builder for ")
    assert last.why.endswith("failed with exit code 1")
    assert "\x1b" not in last.tail + last.why
    assert links(lab) == []
    assert (await build(bench, asked("db1"))).phase is Phase.DONE


async def test_a_flake_that_is_none_fails_with_what_nix_says(lab: UpdateLab) -> None:
    (lab.fleet / "flake.nix").write_text("{ outputs = _: {\n")
    lab.git("commit", "--quiet", "--all", "--message", "broken")
    lab.git("push", "--quiet", "origin", "HEAD:main")
    last = await build(works(lab), asked())
    assert last.phase is Phase.FAILED
    assert last.why.startswith("listing the hosts of the flake: syntax error")


async def test_a_lock_that_is_behind_its_flake_is_not_moved_by_a_build(lab: UpdateLab) -> None:
    lab.say("words", "two")
    text = (lab.fleet / "flake.nix").read_text()
    (lab.fleet / "flake.nix").write_text(text.replace("inputs.words", 'inputs.more.follows = "other";\n  inputs.words'))
    lab.git("rm", "--quiet", "--cached", "flake.lock")
    lab.git("commit", "--quiet", "--all", "--message", "no lock")
    lab.git("push", "--quiet", "origin", "HEAD:main")
    last = await build(works(lab), asked())
    assert (last.phase, last.path) == (Phase.FAILED, ""), last


async def cancelled_while_building(bench: Works, request: Request) -> None:
    builds = trio.Event()

    def tell(progress: Progress) -> None:
        if "building" in progress.line:
            builds.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.build, request, tell)
        with trio.fail_after(60):
            await builds.wait()
        nursery.cancel_scope.cancel()


async def test_a_job_cancelled_while_it_builds_leaves_no_process_and_no_root(lab: UpdateLab) -> None:
    bench = works(lab)
    say(lab, "slow")
    await cancelled_while_building(bench, asked())
    with trio.fail_after(30):
        while processes(lab):  # the kernel takes a moment to bury them
            await trio.sleep(0.05)
    assert links(lab) == []
    assert not list((lab.root / "state/roots").rglob("web1"))
    say(lab, "two")
    assert (await build(bench, asked())).phase is Phase.DONE


async def test_a_job_cancelled_while_a_cache_does_not_answer_leaves_nothing_either(lab: UpdateLab) -> None:
    copies = trio.Event()

    async def hold(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        copies.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, hold, [listener])
        bench = works(lab, cache=f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
        heard = Heard()
        nursery.start_soon(bench.build, asked(), heard.progress.append)
        with trio.fail_after(60):
            await copies.wait()
        assert len(links(lab)) == 1
        nursery.cancel_scope.cancel()
    assert heard.progress[-1].phase is Phase.COPYING
    with trio.fail_after(30):
        while processes(lab):
            await trio.sleep(0.05)
    assert links(lab) == []


async def test_a_job_that_never_ends_is_ended_at_its_deadline(lab: UpdateLab) -> None:
    say(lab, "slow")
    last = await build(works(lab, build_timeout=1), asked())
    assert (last.phase, last.why) == (Phase.FAILED, "no end within 1 s")
    assert links(lab) == []


async def test_jobs_at_once_share_a_fetch_that_began_after_each_was_asked(
    lab: UpdateLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, trace = works(lab), lab.root / "trace"
    mirror = bench.mirrors["own"]
    await mirror.fetch()
    monkeypatch.setenv("GIT_TRACE", str(trace))
    ended: list[Progress] = []

    async def job(host: str) -> None:
        ended.append(await build(bench, asked(host)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(job, "web1")
        while mirror.fetches < 2:
            await trio.lowlevel.checkpoint()
        # The others may not trust that this one sees what was pushed before they asked.
        nursery.start_soon(job, "db1")
        nursery.start_soon(job, "mac1")
    assert [last.phase for last in ended] == [Phase.DONE] * 3
    assert trace.read_text().count("built-in: git fetch") == 2


async def test_the_failure_of_a_fetch_is_shared_too(lab: UpdateLab) -> None:
    bench, ended = works(lab, {"url": str(lab.root / "nowhere")}), []

    async def job(host: str) -> None:
        ended.append((await build(bench, asked(host))).why.partition(":")[0])

    async with trio.open_nursery() as nursery:
        for host in ("web1", "db1", "mac1"):
            nursery.start_soon(job, host)
    assert ended == ["own cannot be fetched"] * 3
    assert bench.mirrors["own"].fetches == 1


async def test_a_fetch_of_somebody_who_gave_up_is_nobodys_answer(lab: UpdateLab) -> None:
    mirror = works(lab).mirrors["own"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mirror.fetch)
        while not mirror.fetches:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(mirror.fetch)
        nursery.cancel_scope.cancel()
    with pytest.raises(RevisionError):
        await mirror.resolve("")
    await mirror.fetch()
    assert (mirror.fetches, await mirror.resolve("")) == (2, lab.main())


async def test_the_closure_is_signed_and_copied_to_the_cache(lab: UpdateLab) -> None:
    keys = (str(lab.root / "secret"), str(lab.root / "public"))
    made = lab.run("nix-store", "--generate-binary-cache-key", "cache.example.org-1", *keys, where=lab.root)
    assert made.status == 0, made.err
    cache = lab.root / "cache"
    bench = works(lab, cache=f"file://{cache}", signing_key_file=keys[0])
    last, heard = await follow(bench, asked())
    assert heard.phases == [Phase.EVALUATING, Phase.BUILDING, Phase.COPYING, Phase.DONE], last
    assert last.cache == f"file://{cache}"
    narinfo = (cache / f"{Path(last.path).name[:32]}.narinfo").read_text()
    assert f"StorePath: {last.path}" in narinfo
    assert "\nSig: cache.example.org-1:" in narinfo


async def test_a_copy_that_fails_says_so_and_what_was_built_stays(lab: UpdateLab) -> None:
    (lab.root / "cache").write_text("in the way")
    last = await build(works(lab, cache=f"file://{lab.root}/cache"), asked())
    assert last.phase is Phase.FAILED
    assert last.why.startswith("copying to the cache: ")
    assert len(links(lab)) == 1


async def test_the_password_of_a_cache_is_told_to_nobody(lab: UpdateLab) -> None:
    last, heard = await follow(works(lab, cache="carrier-pigeon://us:s3cret@127.0.0.1:9/cache"), asked())
    assert last.phase is Phase.FAILED
    assert "carrier-pigeon://us@127.0.0.1:9/cache" in last.why
    assert "s3cret" not in str(heard.progress)


async def test_a_missing_signing_key_copies_nothing(lab: UpdateLab) -> None:
    bench = works(lab, cache=f"file://{lab.root}/cache", signing_key_file=str(lab.root / "nowhere"))
    last = await build(bench, asked())
    assert (last.phase, last.why.split(":")[0]) == (Phase.FAILED, "signing")
    assert not (lab.root / "cache").exists()


async def test_the_newest_systems_are_kept_from_the_collector_and_no_others(lab: UpdateLab) -> None:
    bench = works(lab, keep=2)
    paths = [(await build(bench, asked())).path]
    other = (await build(bench, asked("db1"))).path
    for word in ("two", "three"):
        say(lab, word)
        paths.append((await build(bench, asked())).path)
        assert (await build(bench, asked())).path == paths[-1]
    assert {str(link.readlink()) for link in links(lab)} == {other, *paths[1:]}
    assert len(links(lab)) == 3
    assert lab.run("nix-store", "--gc", where=lab.root).status == 0
    assert [Path(path).exists() for path in (*paths, other)] == [False, True, True, True]


async def test_what_changes_is_told_against_a_system_that_was_built(lab: UpdateLab) -> None:
    bench, first = works(lab), lab.main()
    await build(bench, asked())
    text = (lab.fleet / "flake.nix").read_text()
    (lab.fleet / "flake.nix").write_text(text.replace("25.11", "26.05"))
    second = say(lab, "two")
    last = await build(bench, asked(compare=first))
    assert [line for line in last.changes if "25.11 → 26.05" in line], last
    unbuilt = say(lab, "three")
    last = await build(bench, asked(revision=second, compare=unbuilt))
    assert (last.phase, last.changes) == (Phase.DONE, ())
    last = await build(bench, asked(revision=second, compare="1" * 40))
    assert (last.phase, last.changes) == (Phase.DONE, ())
    assert "not compared with 111" in sorted((lab.root / "state/logs").iterdir())[-1].read_text()


async def test_what_is_not_allowed_is_refused_before_anything_is_fetched(lab: UpdateLab) -> None:
    bench = works(lab, {"hosts": ["web*", "mac1"]}, hosts=["*1"])
    for request, why in (
        (asked(repository="other"), "this builder has no repository other; it has own"),
        (asked("db1"), "this builder does not build db1 of own: its `hosts` do not name it"),
        (asked("web2"), "this builder does not build web2 of own: its `hosts` do not name it"),
    ):
        last, heard = await follow(bench, request)
        assert (heard.phases, last.why) == ([Phase.REFUSED], why)
    assert not (lab.root / "state").exists()
    assert (await build(bench, asked("web1"))).phase is Phase.DONE


def no_head(mirror: Path) -> None:
    (mirror / "HEAD").unlink()


def empty_reference(mirror: Path) -> None:
    (mirror / "refs/heads/main").write_bytes(b"")


def short_pack(mirror: Path) -> None:
    for pack in (mirror / "objects/pack").glob("*.pack"):
        pack.chmod(0o644)
        pack.write_bytes(pack.read_bytes()[:40])


def no_objects(mirror: Path) -> None:
    for path in (mirror / "objects/pack").iterdir():
        path.unlink()


def left_lock(mirror: Path) -> None:
    (mirror / "refs/heads/main.lock").write_bytes(b"")


def nothing_left(mirror: Path) -> None:
    for path in mirror.iterdir():
        path.rename(mirror.parent / f"was-{path.name}")


@pytest.mark.parametrize("damage", [no_head, empty_reference, short_pack, no_objects, left_lock, nothing_left])
@pytest.mark.parametrize("what", ["moved", "the same", "by its commit"])
async def test_a_damaged_mirror_is_made_anew(lab: UpdateLab, damage: Callable[[Path], None], what: str) -> None:
    await works(lab).mirrors["own"].fetch()
    damage(lab.root / "state/mirrors/own/.git")
    commit = say(lab, "two") if what == "moved" else lab.main()
    last = await build(works(lab), asked(revision=commit if what == "by its commit" else ""))
    assert (last.phase, last.commit) == (Phase.DONE, commit), last
    assert sorted(path.name for path in (lab.root / "state/mirrors").iterdir()) == ["own"]


async def test_a_mirror_without_one_of_its_files_is_noticed_when_that_is_needed(
    lab: UpdateLab, caplog: pytest.LogCaptureFixture
) -> None:
    bench = works(lab)
    await bench.mirrors["own"].fetch()
    mirror = lab.root / "state/mirrors/own"
    name = lab.git("rev-parse", "HEAD:build.sh")
    loose = "mv .git/objects/pack . && for pack in pack/*.pack; do git unpack-objects -q < $pack; done"
    assert lab.run("sh", "-c", loose, where=mirror).status == 0
    (mirror / ".git/objects" / name[:2] / name[2:]).unlink()
    last = await build(bench, asked(revision=lab.main()))
    assert last.phase is Phase.DONE, last
    assert "cannot be read; it is made anew" in caplog.text


async def test_a_remote_that_is_gone_fails_a_job_and_is_used_again_when_back(lab: UpdateLab) -> None:
    bench, commit = works(lab), lab.main()
    lab.hub.rename(lab.root / "away")
    last = await build(bench, asked())
    assert last.phase is Phase.FAILED
    assert last.why.startswith("own cannot be fetched: fatal: ")
    (lab.root / "away").rename(lab.hub)
    assert (await build(bench, asked())).phase is Phase.DONE
    lab.hub.rename(lab.root / "away")
    assert (await build(bench, asked())).phase is Phase.FAILED
    assert (await build(bench, asked(revision=commit))).phase is Phase.DONE


async def test_a_branch_that_was_deleted_and_one_in_its_place_are_followed(lab: UpdateLab) -> None:
    bench = works(lab)
    lab.git("push", "--quiet", "origin", "HEAD:refs/heads/next")
    assert (await build(bench, asked(revision="next"))).phase is Phase.DONE
    lab.git("push", "--quiet", "origin", ":next")
    lab.git("push", "--quiet", "origin", "HEAD:refs/heads/next/one")
    assert (await build(bench, asked(revision="next"))).phase is Phase.FAILED
    assert (await build(bench, asked(revision="next/one"))).phase is Phase.DONE


@pytest.mark.parametrize("place", ["state", "state/mirrors", "state/roots", "state/logs", "state/roots/own"])
async def test_a_file_in_the_way_is_named_and_nothing_raises(lab: UpdateLab, place: str) -> None:
    path = lab.root / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    last = await build(works(lab), asked())
    assert last.phase is Phase.FAILED
    assert str(path) in last.why
    assert path.read_text() == "in the way"


async def test_a_machine_without_nix_says_so(lab: UpdateLab, monkeypatch: pytest.MonkeyPatch) -> None:
    (lab.root / "bin").mkdir()
    (lab.root / "bin/git").symlink_to(lab.run("sh", "-c", "command -v git", where=lab.root).out.strip())
    monkeypatch.setenv("PATH", str(lab.root / "bin"))
    last = await build(works(lab), asked())
    assert last.phase is Phase.FAILED
    assert "cannot run nix" in last.why


async def test_the_hosts_of_a_revision_are_those_that_are_built_here(lab: UpdateLab) -> None:
    commit = lab.main()
    assert await works(lab, hosts=["*1"]).hosts("own", "") == (commit, ("db1", "mac1", "web1"))
    assert await works(lab, {"hosts": ["web*"]}).hosts("own", "main") == (commit, ("web1",))
    with pytest.raises(RevisionError):
        await works(lab).hosts("own", "nowhere")
