"""The parts of `nixfleet update` that decide something: what moved, what is said of it, what an instance may say."""

import io
import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import yaml
from rich.console import Console

from nixfleet.errors import UnreadableFileError
from nixfleet.update import gauges
from nixfleet.update.builds import Lines
from nixfleet.update.display import LiveDisplay
from nixfleet.update.errors import DiskError
from nixfleet.update.flake import Built, Flake, System
from nixfleet.update.forge import read_token
from nixfleet.update.instance import AutoFix, Forge, Instance, InstanceError, Notify, read_instance, read_instances
from nixfleet.update.locks import Move, Pin, moves
from nixfleet.update.message import Attempt, Findings, commit_message, duration, in_words, pull_request, subject
from nixfleet.update.notices import Notice, notice_of, org_entry
from nixfleet.update.outcome import EXIT_STATUS, Kind, Outcome, document
from nixfleet.update.repair import read_environment

ROOT: Final = Path(__file__).parents[2]
OLD: Final = Pin(url="github:us/words", rev="0123456789abcdef", modified=1_700_000_000)
NEW: Final = Pin(url="github:us/words", rev="fedcba9876543210", modified=1_700_100_000)
MOVE: Final = Move(name="words", before=OLD, after=NEW)
WEB: Final = System(host="web1", attribute="nixosConfigurations.web1.config.system.build.toplevel")
DB: Final = System(host="db1", attribute="nixosConfigurations.db1.config.system.build.toplevel")
GOOD: Final = Built(system=DB, path="/nix/store/x", seconds=12)
BAD: Final = Built(system=WEB, path=None, seconds=3, tail="one\n````\nundefined variable")


def lock(**nodes: Any) -> bytes:
    return json.dumps({"nodes": nodes, "root": "root", "version": 7}).encode()


def pinned(rev: str, **inputs: Any) -> dict[str, Any]:
    locked = {"type": "github", "owner": "us", "repo": "words", "rev": rev, "lastModified": 1_700_000_000}
    return {"locked": locked, "inputs": inputs}


# What moved


def test_an_input_that_moved_is_told_with_where_it_was() -> None:
    before = lock(root={"inputs": {"words": "words"}}, words=pinned("aaaa"))
    after = lock(root={"inputs": {"words": "words"}}, words=pinned("bbbb"))
    [move] = moves(before, after)
    assert move.before is not None
    assert move.after is not None
    assert (move.name, move.before.rev, move.after.rev) == ("words", "aaaa", "bbbb")
    assert moves(after, after) == ()


def test_inputs_that_came_or_went_are_told_and_what_follows_another_is_not_told_twice() -> None:
    before = lock(root={"inputs": {"gone": "gone"}}, gone=pinned("aaaa"))
    after = lock(
        root={"inputs": {"home": "home", "words": "words"}},
        home=pinned("cccc", words=["words"], deep="deep"),
        deep=pinned("dddd"),
        words=pinned("bbbb"),
    )
    assert [(m.name, m.before is None, m.after is None) for m in moves(before, after)] == [
        ("gone", False, True),
        ("home", True, False),
        ("home/deep", True, False),
        ("words", True, False),
    ]
    assert [move.name for move in moves(None, before)] == ["gone"]


def test_inputs_in_a_circle_come_to_an_end() -> None:
    circle = lock(root={"inputs": {"a": "a"}}, a=pinned("aaaa", b="b"), b=pinned("bbbb", a="a"))
    assert moves(None, circle)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"nodes": [], "root": "root"}', b'{"nodes": {}, "root": "root"}']
)
def test_what_is_no_lock_file_is_an_error_and_no_traceback_of_another_kind(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        moves(None, text)


# What is said of it


def test_a_move_is_told_with_revisions_dates_and_a_new_address() -> None:
    assert in_words(MOVE) == "words: 01234567 (2023-11-14) -> fedcba98 (2023-11-16)"
    assert in_words(Move(name="words", before=OLD, after=None)) == "words: removed"
    assert in_words(Move(name="words", before=None, after=NEW)).startswith("words: new, github:us/words fedcba98")
    away = Pin(url="path:/srv/words", rev="", modified=None)
    assert in_words(Move(name="words", before=OLD, after=away)).endswith("-> no revision, now path:/srv/words")


def test_the_subject_has_the_inputs_of_the_flake_itself_as_far_as_they_fit() -> None:
    below = Move(name="home/words", before=OLD, after=NEW)
    assert subject([MOVE, below]) == "flake.lock: update words"
    assert subject([below]) == "flake.lock: update home/words"
    many = [Move(name=f"input-number-{n}", before=OLD, after=NEW) for n in range(9)]
    assert subject(many) == "flake.lock: update 9 inputs"


def test_the_commit_says_what_was_built_and_what_changes_on_each_host() -> None:
    lines = tuple(f"package-{n}: 1 -> 2, +3 KiB" for n in range(50))
    findings = Findings(moves=(MOVE,), built=(GOOD, BAD), closures={"db1": lines, "mac1": ()})
    text = commit_message(findings)
    assert "Built: db1\nDo not build: web1" in text
    assert "db1:\n  package-0: 1 -> 2, +3 KiB\n" in text
    assert "  and 10 more\n" in text
    assert "package-40" not in text
    assert "mac1: no package changes" in text


def test_a_log_cannot_end_its_own_fence_in_the_pull_request() -> None:
    attempt = Attempt(system=WEB, number=1, ok=False, why="it changed nothing")
    title, text = pull_request(Findings(moves=(MOVE,), built=(GOOD, BAD), attempts=(attempt,)))
    assert title == "flake.lock: update words: 1 of 2 systems do not build"
    assert text.count("````") == 2
    assert "undefined variable" in text
    assert "| web1 | **fails** | 3 s |" in text
    assert "- try 1 to mend web1: changed nothing; it changed nothing" in text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "1 min 30 s"), (7200, "2.0 h")])
def test_a_duration_is_told_in_its_own_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_an_org_entry_has_one_heading_whatever_its_text_has() -> None:
    notice = Notice(title="t", text="* no heading\n#+x", urgency=4, tags=(), todo=True, link="https://x/1")
    entry = org_entry(notice, datetime(2026, 11, 21, 18, 0, tzinfo=UTC))
    assert entry == "* TODO t\n  [2026-11-21 Sat 18:00]\n  [[https://x/1]]\n  * no heading\n  #+x\n"


@pytest.mark.parametrize("kind", Kind)
def test_every_outcome_has_a_notice_an_exit_status_and_a_metric_of_its_own(kind: Kind) -> None:
    findings = Findings(moves=(MOVE,), built=(GOOD, BAD) if kind is Kind.BROKEN else (GOOD,))
    outcome = Outcome(instance="nightly", kind=kind, findings=findings, notes=("no route",))
    notice = notice_of(outcome)
    assert notice.title.startswith("nightly: ")
    assert notice.todo == (kind in (Kind.BROKEN, Kind.STOPPED)) == (EXIT_STATUS[kind] != 0) == (notice.urgency > 3)
    text = gauges.exposition(outcome, 1_700_000_000, 12).decode()
    assert f'nixfleet_update_outcome{{instance_name="nightly",outcome="{kind.value}"}} 1.0' in text
    assert sum(line.startswith("nixfleet_update_outcome{") and line.endswith(" 1.0") for line in text.splitlines()) == 1
    assert json.loads(json.dumps(document(outcome)))["outcome"] == kind.value


def test_lines_are_made_of_pieces_without_colours_and_what_was_overwritten() -> None:
    told: list[str] = []
    lines = Lines(told.append)
    for piece in (b"a\x1b[31mb", b"c\x1b[0m\n\n", b"10%\r20%\nlast \xff\n", b"not yet"):
        lines.feed(piece)
    assert told == ["abc", "20%", "last \ufffd"]
    assert lines.last(2) == "20%\nlast \ufffd"


def test_the_live_table_has_a_line_for_each_host_with_what_it_said_last() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    display = LiveDisplay(console)
    for system in (WEB, DB):
        display.begun(system)
    display.said(WEB, "compiling [bold]x")
    display.ended(GOOD)
    console.print(display.table())
    web, db = out.getvalue().splitlines()
    assert web.split()[:2] == ["web1", "building"]
    assert web.rstrip().endswith("compiling [bold]x")
    assert db.split()[:2] == ["db1", "built"]


# What an instance may say


def read(table: Mapping[str, Any], name: str = "nightly") -> Instance:
    return read_instance(name, {"repo-path": "/srv/fleet", **table}, "update.toml")


def test_an_instance_of_a_path_alone_has_every_default() -> None:
    assert read({}) == Instance(name="nightly", repo_path=Path("/srv/fleet"))
    assert read({"auto-fix": True}).auto_fix == AutoFix()
    assert read({"auto-fix": {"enable": False, "command": "x"}}).auto_fix is None
    assert read({"flake-inputs": "nixpkgs"}).flake_inputs == ("nixpkgs",)


def test_durations_are_words_or_seconds() -> None:
    assert read({"close-stale-after": "14d", "build-timeout": 60}).close_stale_after == 14 * 86_400
    assert read({"auto-fix": {"timeout": "5m"}}).auto_fix == AutoFix(timeout=300)


def test_tables_become_what_they_describe() -> None:
    forge = {"kind": "gitea", "url": "https://git.example.org/api/v1", "repository": "us/fleet", "token-file": "/t"}
    seen = read({"forge": forge, "notify": {"ntfy-topic": "fleet", "inbox-org": "~/inbox.org"}})
    assert seen.forge == Forge(
        kind="gitea", url="https://git.example.org/api/v1", repository="us/fleet", token_file=Path("/t")
    )
    assert seen.notify == Notify(ntfy_topic="fleet", inbox_org=Path("~/inbox.org").expanduser())


WRONG: Final = {
    "auto-murge": (True, "`auto-murge` is no option; did you mean `auto-merge`?"),
    "auto-merge": ("yes", "`auto-merge` must be true or false"),
    "repo-path": (7, "`repo-path` must be a path"),
    "jobs": (0, "`jobs` must be a whole number above 0"),
    "build-timeout": ("soon", "`build-timeout`: 'soon' is not a duration"),
    "flake-inputs": (["a b"], "`flake-inputs` 'a b' is no name of an input"),
    "build-systems": ([1], "`build-systems` must be a list of texts"),
    "flake-path": ("../x", "`flake-path` '../x' must be below the repository"),
    "git-remote": ("--upload-pack=x", "is no name of a remote"),
    "main-branch": ("a..b", "`main-branch` 'a..b' makes no name of a branch"),
    "branch-prefix": ("", "would take 'main' for an update"),
    "push": (False, ""),
    "pushgateway": ("nowhere", "`pushgateway` 'nowhere' is no address"),
    "auto-fix": ({"command": "", "paths": ["/etc"]}, "`auto-fix.paths` '/etc' must be below the repository"),
    "forge": ({"kind": "gitlab"}, "`forge.kind` 'gitlab' is neither gitea nor github"),
    "notify": ({"ntfy-server": "ntfy.sh"}, "`notify.ntfy-server` 'ntfy.sh' is no address"),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_mistake_in_an_instance_is_told_with_its_key(key: str) -> None:
    value, why = WRONG[key]
    more = {"auto-merge": True} if key == "push" else {}
    with pytest.raises(InstanceError) as raised:
        read({key: value, **more})
    assert (why or "`auto-merge` needs `push`") in str(raised.value)
    assert str(raised.value).startswith("update.toml [nightly]: ")


def test_a_forge_needs_where_it_is_and_a_token() -> None:
    with pytest.raises(InstanceError) as raised:
        read({"forge": {"kind": "gitea", "repository": "fleet"}})
    assert "OWNER/NAME" in str(raised.value)
    assert "`forge.url` is missing" in str(raised.value)


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a\nb", "x" * 200])
def test_the_name_of_an_instance_is_one_that_a_directory_and_a_unit_may_have(name: str) -> None:
    with pytest.raises(InstanceError) as raised:
        read({}, name)
    assert "the name of an instance" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InstanceError) as raised:
        read_instance("nightly", {"jobs": "many", "colour": 1}, "update.toml")
    assert len(raised.value.problems) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it has no instance"),
        ("auto-merge = true\n", "`auto-merge` stands outside a table"),
        ("[a\n", "not TOML"),
        ("\xff", "not TOML"),
    ],
)
def test_a_file_of_instances_that_is_none_is_told(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "update.toml"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InstanceError, match=why):
        read_instances(path)
    with pytest.raises(UnreadableFileError):
        read_instances(tmp_path / "absent")


def test_every_key_of_an_instance_is_explained() -> None:
    page = (ROOT / "docs/updating.md").read_text()
    rows = set(re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE))
    names = {field.name.replace("_", "-") for field in attrs.fields(Instance)} - {"name"}
    assert rows >= names
    for table in (AutoFix, Forge, Notify):
        keys = {field.name.replace("_", "-") for field in attrs.fields(table)}
        assert {key for key in keys if not re.search(rf"^{key} = ", page, re.MULTILINE)} == set()


def test_every_metric_of_a_run_is_explained() -> None:
    text = gauges.exposition(Outcome(instance="x", kind=Kind.BROKEN, findings=Findings(moves=(), built=(BAD,))), 0, 0)
    names = set(re.findall(r"^(nixfleet_update_[a-z_]+)", text.decode(), re.MULTILINE))
    page = (ROOT / "docs/updating.md").read_text()
    assert {name for name in names if f"`{name}" not in page} == set()


@pytest.mark.parametrize("token", ["s3cret", ""])
def test_the_workflow_for_gitea_writes_instances_that_can_be_read(tmp_path: Path, token: str) -> None:
    workflow = yaml.safe_load((ROOT / "templates/gitea-actions/flake-update.yaml").read_text())
    steps = workflow["jobs"]["update"]["steps"]
    environment = {
        "PATH": os.environ["PATH"], "RUNNER_TEMP": str(tmp_path), "GITHUB_WORKSPACE": "/srv/fleet",
        "GITHUB_REF_NAME": "main", "GITHUB_SERVER_URL": "https://git.example.org", "GITHUB_REPOSITORY": "us/fleet",
        "UPDATE_TOKEN": token,
    }  # fmt: skip
    subprocess.run(["bash", "-euc", steps[1]["run"]], env=environment, check=True)
    path = tmp_path / "update.toml"
    instance = read_instance("ci", read_instances(path)["ci"], str(path))
    assert instance.close_stale_after == 28 * 86_400
    assert instance.forge.kind == ("gitea" if token else "")
    if token:
        assert instance.forge.url == "https://git.example.org/api/v1"
        assert read_token(instance.forge.token_file) == token
        assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    assert shlex.split(steps[2]["run"])[:2] == ["nixfleet", "update"]


# Small things


def test_the_flake_is_named_so_that_nix_reads_the_path_that_is_meant() -> None:
    assert Flake(root=Path("/srv/a b")).at() == "git+file:///srv/a%20b"
    flake = Flake(root=Path('/srv/"${x}'), directory="hosts/a&b")
    assert flake.at("c0ffee") == "git+file:///srv/%22%24%7Bx%7D?rev=c0ffee&dir=hosts/a%26b"
    assert flake.lock_name == "hosts/a&b/flake.lock"


def test_a_token_is_one_line_of_plain_letters(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"s3cret\n")
    assert read_token(path) == "s3cret"
    assert read_token(None) == ""
    for wrong in (b"", b"two\nlines", "schl\u00fcssel".encode()):
        path.write_bytes(wrong)
        with pytest.raises(UnreadableFileError):
            read_token(path)


def test_an_environment_file_is_read_as_systemd_reads_one(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# x\n; y=1\nA=1\n B = 'two words' \nC=\"a=b\"\nnot a line\n1X=2\n")
    assert read_environment(path) == {"A": "1", "B": "two words", "C": "a=b"}


def test_a_disk_that_will_not_is_told_with_the_file_and_a_way_out() -> None:
    told = str(DiskError.of(OSError(28, "No space left on device", "/srv/x")))
    assert told == "/srv/x: No space left on device: make room, or let this user write there"
