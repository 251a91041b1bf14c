"""Releases to a git branch, a web server and S3: whole for readers at every instant, whoever is killed, whatever fails.

Git is real, so are the servers' sockets; readers are the control plane's own.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import attrs
import httpx
import pytest

from control_plane.artifact_source import DirectorySource
from evidence.artifacts import verify_revocations
from evidence.trust import load_trust
from nixfleet.clock import wall_now
from nixfleet.release.pruning import Pruning
from nixfleet.release.publish import publish_release, refresh_release
from nixfleet.release.target import ConflictError, TargetError
from nixfleet.release.targets.objects import PAUSES_S, ObjectTarget, RefusedError, UnreachableError
from state_machine.values import WallMs
from tests.releaselab import TOKEN, Desk, Fault, PutServer, Ran, put_server, reader, reader_of
from tests.unit.nixfleet_samples import CI_KEY, HOUR_MS, NOW, closure, description, later

FLEET: Final = "fleet.resolved.json"


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk.at(tmp_path / "desk")


def names(*commits: str) -> list[str]:
    """The files of these releases."""
    plain = [FLEET, *(f"rollouts/{channel}@{commit}.json" for channel in ("edge", "stable") for commit in commits)]
    return sorted(f"{name}{suffix}" for name in plain for suffix in ("", ".sig"))


def told(ran: Ran) -> str:
    """The one line, after notes, that a command ended in with status 1."""
    assert ran.status == 1, ran
    [said] = [line for line in ran.err.splitlines() if not line.startswith("note: ")]
    return said


# A git branch


@attrs.frozen(kw_only=True)
class Hub:
    """A remote, and ways to see and change it that have nothing to do with the program."""

    root: Path

    @property
    def path(self) -> Path:
        return self.root / "hub.git"

    @property
    def to(self) -> str:
        return f"git+{self.path}#releases"

    def git(self, *words: str, where: Path | None = None) -> str:
        named = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
        done = subprocess.run(
            ["git", "-C", str(where or self.path), *named, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def clone(self) -> Path:
        path = self.root / f"clone-{len(list(self.root.glob('clone-*')))}"
        self.git("clone", "--quiet", str(self.path), str(path), where=self.root)
        if self.git("branch", "--list", "--remotes", "origin/releases", where=path):
            self.git("checkout", "--quiet", "releases", where=path)
        return path

    def commits(self) -> list[str]:
        return self.git("log", "--format=%s", "releases").splitlines()

    def files(self) -> list[str]:
        return self.git("ls-tree", "-r", "--name-only", "releases").splitlines()

    def add(self, name: str) -> None:
        """Somebody commits a file to the branch."""
        path = self.clone()
        (path / name).write_text("x\n")
        self.git("add", ".", where=path)
        self.git("commit", "--quiet", "--message", f"add {name}", where=path)
        self.git("push", "--quiet", "origin", "HEAD:releases", where=path)


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    hub = Hub(root=tmp_path)
    hub.git("init", "--quiet", "--bare", "--initial-branch=main", str(hub.path), where=tmp_path)
    return hub


def in_front_of_git(root: Path, script: str) -> str:
    """A PATH on which git runs a piece of shell first; `$verb` is what git is asked to do."""
    there = root / "bin"
    there.mkdir(exist_ok=True)
    path = os.environ["PATH"]
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    # The verb is the first word that is neither an option nor the value of a -c.
    verb = (
        'verb=; skip=; for word in "$@"; do [ "$skip" ] && { skip=; continue; }; '
        'case "$word" in -c) skip=1 ;; -*) ;; *) verb=$word; break ;; esac; done'
    )
    (there / "git").write_text(f'#!/bin/sh\n{verb}\n{script}\nexec {real} "$@"\n')
    (there / "git").chmod(0o755)
    return f"{there}:{path}"


def test_a_fresh_branch_begins_with_a_release_and_nothing_else(desk: Desk, hub: Hub) -> None:
    hub.add("README")  # on this very branch, which is then taken away
    hub.git("branch", "--move", "releases", "main")
    assert desk.release(hub.to, "abcd").status == 0
    assert hub.files() == names("abcd")
    assert hub.git("rev-list", "--count", "releases") == "1"
    message = hub.git("show", "--no-patch", "--format=%B", "releases")
    assert message.startswith("nixfleet release abcd\n\nCommit: abcd\nRollout: edge@abcd\nRollout: stable@abcd\nKey: ")
    assert "Signed-at: 20" in message


async def test_each_release_is_one_commit_on_top_and_readers_take_it(desk: Desk, hub: Hub, tmp_path: Path) -> None:
    assert desk.release(hub.to, "abcd").status == 0
    hub.add("README")
    assert desk.release(hub.to, "ef01").status == 0
    assert desk.refresh(hub.to).status == 0
    assert hub.commits() == ["nixfleet release ef01", "nixfleet release ef01", "add README", "nixfleet release abcd"]
    assert hub.files() == sorted([*names("abcd", "ef01"), "README"])
    changed = hub.git("show", "--name-only", "--format=", "releases").splitlines()
    assert changed == names("ef01")
    async with reader(DirectorySource(root=hub.clone()), desk, tmp_path / "reader.db") as seen:
        assert await seen.look() == "ef01"
        assert not seen.shelf.problems


def test_a_revocation_goes_where_the_releases_go(desk: Desk, hub: Hub) -> None:
    assert desk.release(hub.to, "abcd").status == 0
    assert desk.run("revoke", "node1", "--to", hub.to).status == 0
    assert desk.run("revoke", "node2", "--to", hub.to).status == 0
    clone = hub.clone()
    signature = (clone / "revocations.json.sig").read_bytes()
    trust = load_trust(desk.root / "trust.json").ci_release_key
    listed = verify_revocations((clone / "revocations.json").read_bytes(), signature, trust, wall_now())
    assert [entry.hostname for entry in listed.value.revocations] == ["node1", "node2"]
    assert hub.commits()[0] == "nixfleet revocations.json"


def test_a_release_goes_on_top_of_what_came_in_between(desk: Desk, hub: Hub, tmp_path: Path) -> None:
    assert desk.release(hub.to, "abcd").status == 0
    other = hub.clone()
    script = (
        f'if [ "$verb" = push ] && mkdir {tmp_path}/once 2>/dev/null; then cd {other}; touch README; '
        '/usr/bin/env -i PATH="${PATH#*:}" sh -c "git add . && '
        'git -c user.name=x -c user.email=x commit -qm between && git push -q origin HEAD:releases"; '
        "cd - >/dev/null; fi"
    )
    ran = desk.release(hub.to, "ef01", PATH=in_front_of_git(tmp_path, script))
    assert ran.status == 0, ran.err
    assert hub.commits() == ["nixfleet release ef01", "between", "nixfleet release abcd"]


def test_a_release_is_not_put_on_top_of_another_that_it_does_not_know(desk: Desk, hub: Hub, tmp_path: Path) -> None:
    assert desk.release(hub.to, "abcd").status == 0
    other = Desk.at(tmp_path / "other")
    words = " ".join(other.releasing(hub.to, "007"))
    variables = " ".join(
        f"{name}='{value}'" for name, value in other.environment().items() if name.startswith("NIXFLEET")
    )
    script = (
        f'if [ "$verb" = push ] && mkdir {tmp_path}/once 2>/dev/null; then (cd {other.root}; '
        f'export PATH="${{PATH#*:}}" '
        f"HOME={other.root} {variables}; {sys.executable} -m nixfleet {words} >/dev/null); fi"
    )
    said = told(desk.release(hub.to, "ef01", PATH=in_front_of_git(tmp_path, script)))
    assert "another release was published there meanwhile; look at it" in said
    assert hub.commits() == ["nixfleet release 007", "nixfleet release abcd"]


def test_a_branch_that_always_moves_is_given_up(desk: Desk, hub: Hub, tmp_path: Path) -> None:
    assert desk.release(hub.to, "abcd").status == 0
    other = hub.clone()
    script = (
        f'if [ "$verb" = push ]; then cd {other}; /usr/bin/env -i PATH="${{PATH#*:}}" sh -c '
        '"git -c user.name=x -c user.email=x commit -q --allow-empty -m between && git push -q origin HEAD:releases"; '
        "cd - >/dev/null; fi"
    )
    said = told(desk.release(hub.to, "ef01", PATH=in_front_of_git(tmp_path, script)))
    assert "moved on at each of 4 attempts" in said
    assert hub.commits() == ["between"] * 4 + ["nixfleet release abcd"]


def test_what_the_remote_says_when_it_refuses_is_told(desk: Desk, hub: Hub) -> None:
    hook = hub.path / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho this branch is protected >&2\nexit 1\n")
    hook.chmod(0o755)
    assert "remote: this branch is protected" in told(desk.release(hub.to, "abcd"))
    assert hub.git("for-each-ref") == ""


def test_neither_the_user_s_hooks_nor_their_repository_have_a_part_in_it(desk: Desk, hub: Hub, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("pre-push", "pre-commit", "post-commit", "commit-msg", "post-index-change"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
        (hooks / name).chmod(0o755)
    (desk.root / ".gitconfig").write_text(f"[core]\nhooksPath = {hooks}\n[commit]\ngpgSign = true\n")
    mine = tmp_path / "mine"
    hub.git("init", "--quiet", str(mine), where=tmp_path)
    elsewhere = {"GIT_DIR": str(mine / ".git"), "GIT_WORK_TREE": str(mine), "GIT_INDEX_FILE": str(mine / "index")}
    ran = desk.release(hub.to, "abcd", **elsewhere)
    assert ran.status == 0, ran.err
    assert not (tmp_path / "ran").exists()
    assert hub.git("for-each-ref", where=mine) == ""
    assert not (mine / "index").exists()


def test_two_of_one_machine_do_not_publish_at_once(desk: Desk, hub: Hub, tmp_path: Path) -> None:
    """The first waits in its push until the second has ended."""
    os.mkfifo(tmp_path / "go")
    script = f'if [ "$verb" = push ]; then touch {tmp_path}/pushing; read -r _ < {tmp_path}/go; fi'
    with desk.begin(*desk.releasing(hub.to, "abcd"), PATH=in_front_of_git(tmp_path, script)) as first:
        try:
            while not (tmp_path / "pushing").exists():
                assert first.poll() is None
            assert "another release is being published into" in told(desk.release(hub.to, "ef01"))
            (tmp_path / "go").write_text("on\n")
            _, err = first.communicate(timeout=60)
        finally:
            first.kill()
    assert first.returncode == 0, err
    assert hub.files() == names("abcd")


@pytest.mark.parametrize("verb", ["init", "ls-remote", "fetch", "hash-object", "write-tree", "commit-tree", "push"])
def test_git_killed_with_its_publisher_leaves_nothing_behind_that_matters(
    desk: Desk, hub: Hub, tmp_path: Path, verb: str
) -> None:
    if verb != "init":
        assert desk.release(hub.to, "abcd").status == 0
    before = hub.git("for-each-ref")
    killed = desk.release(hub.to, "ef01", PATH=in_front_of_git(tmp_path, f'[ "$verb" != {verb} ] || kill -9 $PPID $$'))
    assert killed.status == -signal.SIGKILL
    assert hub.git("for-each-ref") == before
    for copy in (desk.root / ".cache/nixfleet/releases").glob("*.git"):
        (copy / "index.lock").touch()
        (copy / "refs").mkdir(exist_ok=True)
        (copy / "refs/nixfleet").mkdir(exist_ok=True)
        (copy / "refs/nixfleet/published.lock").touch()
    ran = desk.release(hub.to, "ef01")
    assert ran.status == 0, ran.err
    assert hub.files() == (names("ef01") if verb == "init" else names("abcd", "ef01"))


def test_a_push_whose_answer_was_lost_is_seen_to_have_gone_through(desk: Desk, hub: Hub, tmp_path: Path) -> None:
    real = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    ran = desk.release(
        hub.to, "abcd", PATH=in_front_of_git(tmp_path, f'[ "$verb" != push ] || {{ {real} "$@"; exit 1; }}')
    )
    assert ran.status == 0, ran.err
    assert hub.commits() == ["nixfleet release abcd"]


def test_a_remote_that_is_not_there_is_told_in_a_line(desk: Desk, tmp_path: Path) -> None:
    said = told(desk.release(f"git+{tmp_path}/nowhere.git#main", "abcd"))
    assert f"{tmp_path}/nowhere.git#main: git ls-remote: fatal: '{tmp_path}/nowhere.git' does not appear to be" in said


def test_old_manifests_go_in_the_same_commit(desk: Desk, hub: Hub) -> None:
    for commit in ("a0", "a1"):
        assert desk.release(hub.to, commit).status == 0
    # Signed today: however few are to be kept, they are too young.
    assert desk.release(hub.to, "a2", "--keep=1").status == 0
    assert hub.files() == names("a0", "a1", "a2")


# A web server


@pytest.fixture
def server() -> Iterator[PutServer]:
    with put_server() as server:
        yield server


@attrs.frozen(kw_only=True)
class Waited:
    """A pause that takes no time."""

    pauses: list[float] = attrs.field(factory=list)


@pytest.fixture
def waited() -> Waited:
    return Waited()


@pytest.fixture
def target(server: PutServer, waited: Waited) -> Iterator[ObjectTarget]:
    with httpx.Client(trust_env=False) as client:
        yield ObjectTarget(url=server.prefix, where=server.prefix, client=client, pause=waited.pauses.append)


def test_manifests_are_put_before_the_fleet_and_signatures_before_their_files(
    server: PutServer, target: ObjectTarget
) -> None:
    publish_release(description(), CI_KEY, target, "abcd", NOW)
    puts = [path.removeprefix("/dav/releases/") for verb, path in server.asked if verb == "PUT"]
    assert puts == [
        "publishing.json", "rollouts/edge@abcd.json.sig", "rollouts/edge@abcd.json", "rollouts/index.json",
        "rollouts/stable@abcd.json.sig", "rollouts/stable@abcd.json", f"{FLEET}.sig", FLEET, "publishing.json",
    ]  # fmt: skip
    assert server.names() == names("abcd")
    assert server.published()["publishing.json"] == b"{}\n"


async def test_readers_take_what_is_put_there(server: PutServer, desk: Desk, tmp_path: Path) -> None:
    assert desk.release(server.prefix, "abcd").status == 0
    async with reader_of(server, desk, tmp_path / "reader.db") as seen:
        assert await seen.look() == "abcd"
        assert desk.release(server.prefix, "ef01").status == 0
        assert await seen.look() == "ef01"
        assert desk.refresh(server.prefix).status == 0
        assert await seen.look() == "ef01"
        assert not seen.shelf.problems


def test_a_server_that_fails_for_a_while_is_asked_again(
    server: PutServer, target: ObjectTarget, waited: Waited
) -> None:
    server.faults += [
        Fault(verb="PUT", path="stable@abcd.json", status=500, times=2),
        Fault(verb="GET", path=FLEET, status=503),
    ]
    publish_release(description(), CI_KEY, target, "abcd", NOW)
    assert server.names() == names("abcd")
    assert waited.pauses == [PAUSES_S[0], *PAUSES_S[:2]]


def test_a_server_that_goes_on_failing_is_told_and_the_next_run_finishes(
    server: PutServer, target: ObjectTarget, waited: Waited
) -> None:
    publish_release(description(), CI_KEY, target, "abcd", NOW)
    server.faults.append(Fault(verb="PUT", path=f"/{FLEET}", status=503, times=4))
    with pytest.raises(RefusedError, match=r"answered with 503 \(no\).*what was begun is finished then"):
        publish_release(description(), CI_KEY, target, "ef01", later(1))
    assert waited.pauses == [*PAUSES_S]
    assert refresh_release(CI_KEY, target, later(2)).commit == "ef01"
    assert server.published()["publishing.json"] == b"{}\n"


def test_what_the_server_refuses_is_not_tried_again(server: PutServer, target: ObjectTarget, waited: Waited) -> None:
    server.faults.append(Fault(verb="PUT", path="publishing.json", status=403))
    with pytest.raises(RefusedError, match=r"PUT publishing\.json was answered with 403.*see to the token"):
        publish_release(description(), CI_KEY, target, "abcd", NOW)
    assert not waited.pauses
    assert server.published() == {}


def test_an_answer_that_is_lost_is_no_conflict(server: PutServer, target: ObjectTarget) -> None:
    """The first attempt was carried out, so the condition of the second fails: what is there is what was wanted."""
    for name in ("publishing.json", "edge@abcd.json", FLEET):
        server.faults.append(Fault(verb="PUT", path=f"/{name}" if name == FLEET else name, status=502, keeps=True))
    publish_release(description(), CI_KEY, target, "abcd", NOW)
    assert server.names() == names("abcd")


def test_a_server_that_is_not_there_is_told_after_some_attempts(waited: Waited) -> None:
    with httpx.Client(trust_env=False) as client:
        gone = ObjectTarget(url="http://127.0.0.1:9/x", where="x", client=client, pause=waited.pauses.append)
        with pytest.raises(UnreachableError, match=r"x: GET .*Connection refused; see that the server is up"):
            refresh_release(CI_KEY, gone, NOW)
    assert waited.pauses == [*PAUSES_S]


@pytest.mark.parametrize("lacks", ["tags", "minds", "knows"])
def test_a_server_without_tags_or_conditions_will_do(server: PutServer, target: ObjectTarget, lacks: str) -> None:
    setattr(server, lacks, False)
    publish_release(description(), CI_KEY, target, "abcd", NOW)
    publish_release(description(), CI_KEY, target, "ef01", later(1))
    assert refresh_release(CI_KEY, target, later(2)).commit == "ef01"
    assert server.names() == names("abcd", "ef01")


def test_a_file_that_somebody_else_changed_is_not_overwritten(server: PutServer, target: ObjectTarget) -> None:
    publish_release(description(), CI_KEY, target, "abcd", NOW)
    path = f"/dav/releases/{FLEET}.sig"

    def change(verb: str, asked: str) -> None:
        if verb == "PUT" and asked == path:
            server.files[path] = b"somebody else's"

    server.before = change
    with pytest.raises(ConflictError, match=r"fleet.resolved.json.sig was changed by somebody else meanwhile"):
        refresh_release(CI_KEY, target, later(1))
    assert server.files[path] == b"somebody else's"


def test_a_server_that_hands_out_something_else_is_told(server: PutServer, target: ObjectTarget) -> None:
    """As a cache in front of it does, or a releaser who does not mind conditions."""

    def stale(verb: str, path: str) -> None:
        if verb == "GET" and path.endswith(f"/{FLEET}") and server.puts > 2:
            server.files[path] = b"older"

    server.before = stale
    with pytest.raises(TargetError, match=r"fleet.resolved.json reads otherwise than it was published"):
        publish_release(description(), CI_KEY, target, "abcd", NOW)


def test_a_promise_that_nobody_made_is_not_kept(server: PutServer, target: ObjectTarget) -> None:
    server.files["/dav/releases/publishing.json"] = b'{"../../etc/passwd": "eA==", "rollouts/../x.json": "eA=="}'
    publish_release(description(), CI_KEY, target, "abcd", NOW)
    assert server.names() == names("abcd")
    for damaged in (b"[", b"[]", b'{"fleet.resolved.json": 7}', b'{"fleet.resolved.json": "?"}'):
        server.files["/dav/releases/publishing.json"] = damaged
        with pytest.raises(TargetError, match=r"publishing\.json is not what a publication leaves: remove it"):
            refresh_release(CI_KEY, target, later(1))


def test_old_manifests_are_removed_with_their_signatures(server: PutServer, target: ObjectTarget) -> None:
    day = 24 * HOUR_MS
    for number, commit in enumerate(("a0", "a1", "a2")):
        wanted = description().with_closures({"node1": closure("node1", number + 1)})
        publish_release(wanted, CI_KEY, target, commit, WallMs(NOW + number * day))
    assert server.names() == names("a0", "a1", "a2")
    gone = refresh_release(CI_KEY, target, WallMs(NOW + 40 * day), pruning=Pruning(keep=2)).pruned
    assert gone == ("rollouts/edge@a0.json", "rollouts/stable@a0.json")
    assert server.names() == names("a1", "a2")
    assert target.names() == tuple(
        name for name in names("a1", "a2") if name.startswith("rollouts") and "sig" not in name
    )
    server.faults.append(Fault(verb="DELETE", path="edge@a1.json", status=405))
    with pytest.raises(RefusedError, match="the server must allow DELETE there"):
        refresh_release(CI_KEY, target, WallMs(NOW + 80 * day), pruning=Pruning(keep=1))
    # Published it is all the same, and the next run removes what this one could not.
    refresh_release(CI_KEY, target, WallMs(NOW + 81 * day), pruning=Pruning(keep=1))
    assert server.names() == names("a2")


def test_a_token_is_sent_and_needed(desk: Desk) -> None:
    with put_server(token=TOKEN) as server:
        said = told(desk.release(server.prefix, "abcd"))
        assert "was answered with 401" in said
        ran = desk.release(server.prefix, "abcd", "--to-token-file=token")
        assert ran.status == 0, ran.err
        assert TOKEN not in ran.out + ran.err + said
        assert server.names() == names("abcd")


def test_of_an_answer_that_is_a_page_for_a_browser_only_the_status_is_told(desk: Desk) -> None:
    files = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    thread = threading.Thread(target=files.serve_forever, daemon=True)
    thread.start()
    try:
        said = told(desk.release(f"http://127.0.0.1:{files.server_port}/releases", "abcd"))
    finally:
        files.shutdown()
        files.server_close()
        thread.join()
    assert "was answered with 501; the server must allow PUT there" in said


class _Files(SimpleHTTPRequestHandler):
    """A server that only gives files away."""

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


def test_it_is_signed_again_only_when_it_is_due(server: PutServer, desk: Desk) -> None:
    assert desk.release(server.prefix, "abcd").status == 0
    before = server.published()
    ran = desk.refresh(server.prefix, "--if-due")
    assert (ran.status, "not due until 20" in ran.out) == (0, True)
    assert list(desk.refresh(server.prefix, "--if-due", "--json").json) == ["dueAt"]
    assert server.published() == before
    publish_release(description(), CI_KEY, desk.root / "old", "abcd", WallMs(wall_now() - 61 * 60_000))
    ran = desk.run("release", "--refresh", "--if-due", "--releases-dir", "old")
    assert (ran.status, "published old: commit abcd" in ran.out) == (0, True), ran


def test_of_two_that_publish_at_once_one_is_told(server: PutServer, desk: Desk, tmp_path: Path) -> None:
    assert desk.release(server.prefix, "abcd").status == 0
    together = threading.Barrier(2)

    def meet(verb: str, path: str) -> None:
        """Both have read what is there before either writes."""
        if verb == "PUT" and path.endswith("publishing.json") and not together.broken and together.n_waiting < 2:
            try:
                together.wait(timeout=30)
            except threading.BrokenBarrierError:
                return
            together.abort()

    server.before = meet
    with (
        desk.begin(*desk.releasing(server.prefix, "ef01")) as one,
        desk.begin(*desk.releasing(server.prefix, "ef02")) as two,
    ):
        try:
            ended = [(process, process.communicate(timeout=60)[1]) for process in (one, two)]
        finally:
            one.kill()
            two.kill()
    [(_, said)] = [(process, err) for process, err in ended if process.returncode == 1]
    assert "publishing.json was changed by somebody else meanwhile" in said
    assert [process.returncode for process, _ in ended].count(0) == 1
    won = "ef01" if one.returncode == 0 else "ef02"
    assert server.names() == names("abcd", won)


def released_before(server: PutServer) -> None:
    """A release, of a second ago."""
    with httpx.Client(trust_env=False) as client:
        target = ObjectTarget(url=server.prefix, where="", client=client)
        publish_release(description(), CI_KEY, target, "abcd", WallMs(wall_now() - 1000))


async def killed_at(server: PutServer, desk: Desk, put: int, words: tuple[str, ...], database: Path) -> bool:
    """Kill a publisher when its PUT of this number has been carried out, and look; False: it made fewer.

    A reader that was there before sees the old release, whole, at every look, or the new one; after another run it
    sees the new one.
    """
    async with reader_of(server, desk, database) as seen:
        released_before(server)
        assert await seen.look() == "abcd"
        signed_at = seen.shelf.fleet and seen.shelf.fleet.proven.signed_at
        server.puts, server.dies_at = 0, put
        with desk.begin(*words) as process:
            server.victim = lambda: process.pid
            process.communicate(timeout=60)
        server.dies_at = None
        if process.returncode == 0:
            return False
        assert process.returncode == -signal.SIGKILL
        for _ in range(2):
            assert await seen.look() in ("abcd", "ef01")
        with httpx.Client(trust_env=False) as client:
            refresh_release(CI_KEY, ObjectTarget(url=server.prefix, where="", client=client), wall_now())
        assert await seen.look() == ("ef01" if "ef01" in words else "abcd")
        assert not seen.shelf.problems
        assert signed_at != (seen.shelf.fleet and seen.shelf.fleet.proven.signed_at)
        return True


PUTS: Final = {"release": 9, "refresh": 8}
"""A promise, an index if it grows, two pairs of manifests, the fleet's pair, the promise emptied."""


@pytest.mark.parametrize("put", range(1, PUTS["release"] + 2))
async def test_a_kill_between_two_puts_of_a_release_leaves_readers_a_whole_one(
    server: PutServer, desk: Desk, tmp_path: Path, put: int
) -> None:
    words = desk.releasing(server.prefix, "ef01")
    assert await killed_at(server, desk, put, words, tmp_path / "reader.db") is (put <= PUTS["release"])


@pytest.mark.parametrize("put", range(1, PUTS["refresh"] + 2))
async def test_a_kill_between_two_puts_of_a_refresh_leaves_readers_a_whole_one(
    server: PutServer, desk: Desk, tmp_path: Path, put: int
) -> None:
    """The manifests keep their names, so they are over the old ones before the fleet is: readers keep what they had."""
    words = ("release", "--refresh", "--to", server.prefix)
    assert await killed_at(server, desk, put, words, tmp_path / "reader.db") is (put <= PUTS["refresh"])


# S3


def test_s3_takes_what_is_signed_as_it_asks(desk: Desk) -> None:
    with put_server(s3=True) as server:
        assert desk.release(server.bucket, "abcd").status == 0
        assert desk.release(server.bucket, "ef01", AWS_SESSION_TOKEN="lent").status == 0
        ran = desk.refresh(server.bucket)
        assert (ran.status, "published s3://fleet/releases: commit ef01" in ran.out) == (0, True), ran
        assert server.names() == names("abcd", "ef01")
        assert desk.run("revoke", "node1", "--to", server.bucket).status == 0
        assert "revocations.json" in server.names()


def test_s3_is_asked_with_the_keys_of_a_file(desk: Desk) -> None:
    environment = desk.environment()
    keys = "".join(f"{name.lower()} = {environment[name]}\n" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    (desk.root / "keys").write_text(f"[default]\n{keys}")
    with put_server(s3=True) as server:
        ran = desk.release(
            server.bucket, "abcd", "--to-credentials-file=keys", AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY=""
        )
        assert ran.status == 0, ran.err
        wrong = told(desk.release(server.bucket, "ef01", AWS_SECRET_ACCESS_KEY="another"))
        assert (
            "was answered with 403 (<Error><Code>SignatureDoesNotMatch</Code></Error>); see to the token or the"
            in wrong
        )
        assert "another" not in wrong
        assert server.names() == names("abcd")
