"""`nixfleet update` releases what it merged: what becomes of the release changes nothing about the merge."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.updatelab import UpdateLab, instances

pytestmark = pytest.mark.nix

NOT_RELEASED = 5


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[UpdateLab]:
    lab = UpdateLab.at(tmp_path)
    lab.describe()
    lab.git("push", "--quiet", "origin", "main")
    made = lab.nixfleet("keygen", "--out", str(tmp_path / "keys"))
    assert made.status == 0, made.err
    yield lab
    lab.stop_orphans()


def releasing(lab: UpdateLab, key: str = "ci-release.pem", more: str = "", first: str = "auto-merge = true") -> str:
    releases = f'"--releases-dir", "{lab.root}/releases"'
    return f'{first}\n[nightly.release]\nargs = ["--ci-key", "{lab.root}/keys/{key}", {releases}{more}]\n'


def published(lab: UpdateLab) -> list[str]:
    return sorted(path.name for path in (lab.root / "releases").glob("rollouts/*.json"))


def test_what_is_merged_is_released_under_its_commit(lab: UpdateLab) -> None:
    lab.say("words", "two")
    ran = lab.update(*instances(lab, releasing(lab)), "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "merged"), ran.err
    assert ran.json["released"] == {"rollouts": [f"stable@{lab.main()}"], "unchanged": False, "why": None}
    assert published(lab) == [f"stable@{lab.main()}.json"]


def test_what_could_not_be_released_is_released_by_the_next_run_that_finds_nothing_to_merge(lab: UpdateLab) -> None:
    lab.say("words", "two")
    failed = lab.update(*instances(lab, releasing(lab, key="lost.pem")), "--json")
    assert (failed.status, failed.json["outcome"]) == (NOT_RELEASED, "merged"), failed.err
    assert "lost.pem" in failed.json["released"]["why"]
    assert published(lab) == []
    merged = lab.main()
    again = lab.update(*instances(lab, releasing(lab)), "--json")
    assert (again.status, again.json["outcome"]) == (0, "unchanged"), again.err
    assert again.json["released"]["rollouts"] == [f"stable@{merged}"]
    once_more = lab.update(*instances(lab, releasing(lab)), "--json").json
    assert (once_more["released"]["unchanged"], published(lab)) == (True, [f"stable@{merged}.json"])


@pytest.mark.parametrize("phase", ["building", "merging", "releasing"])
def test_kill_9_on_the_way_and_the_next_run_merges_and_releases_what_is_left(lab: UpdateLab, phase: str) -> None:
    lab.say("words", "two")
    first = lab.main()
    flags = instances(lab, releasing(lab))
    with lab.begin(*flags) as process:
        assert process.stderr is not None
        assert any(line.startswith(phase) for line in process.stderr)
        os.kill(process.pid, signal.SIGKILL)
    lab.stop_orphans()
    ran = lab.update(*flags, "--json")
    assert ran.status == 0, ran.err
    assert lab.main() != first
    assert published(lab) == [f"stable@{lab.main()}.json"]
    assert lab.checkout()[3].count("worktree ") == 1


def test_a_release_that_fails_is_told_as_something_to_do(lab: UpdateLab) -> None:
    lab.say("words", "two")
    inbox = lab.root / "inbox.org"
    text = f'{releasing(lab, key="lost.pem")}[nightly.notify]\ninbox-org = "{inbox}"\n'
    ran = lab.update(*instances(lab, text))
    assert ran.status == NOT_RELEASED
    assert "not released" in ran.out
    assert "* TODO nightly: not released" in inbox.read_text()


@pytest.mark.parametrize("first", ["", "auto-merge = true\ndry-run = true", "auto-merge = true\npush = true"])
def test_what_is_on_a_branch_broken_or_tried_dry_is_not_released(lab: UpdateLab, first: str) -> None:
    lab.say("words", "bad" if "push" in first else "two")
    ran = lab.update(*instances(lab, releasing(lab, first=first)), "--json")
    assert ran.json["outcome"] in ("pushed", "prepared", "broken"), ran.err
    assert ran.json["released"] is None
    assert not (lab.root / "releases").exists()


def test_the_updater_itself_says_what_is_released(lab: UpdateLab) -> None:
    ran = lab.update(*instances(lab, releasing(lab, more=', "--flake", "elsewhere"')))
    assert ran.status == 2
    assert "`release.args` --flake: the updater itself says what is released" in ran.err


def test_arguments_that_the_release_would_not_understand_are_told_before_anything_is_built(lab: UpdateLab) -> None:
    lab.say("words", "two")
    main = lab.main()
    ran = lab.update(*instances(lab, releasing(lab, more=', "--relases-dir", "x"')))
    assert (ran.status, lab.main()) == (2, main)
    assert "`release.args`: No such option '--relases-dir'" in ran.err


def test_a_table_of_releases_that_is_turned_off_is_none(lab: UpdateLab) -> None:
    lab.say("words", "two")
    ran = lab.update(*instances(lab, releasing(lab) + "enable = false\n"), "--json")
    assert (ran.status, ran.json["released"]) == (0, None), ran.err
