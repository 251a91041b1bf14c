"""Askers and a builder together: `nixfleet build` and `nixfleet update --builder nats`, with real NATS, git and Nix."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.integration.test_builder_service import BuilderLab, publish
from tests.natslab import nats_server, needs_nats
from tests.updatelab import Ran, UpdateLab

pytestmark = needs_nats

PATIENCE_S: Final = 60.0
HOSTS: Final = ("db1", "mac1", "web1")
_BUILD: Final = """echo "building $host with $word" >&2
echo x >> %(root)s/ran-$host
while [ ! -e %(root)s/go-$host ]; do /bin/sleep 0.1; done
[ "$word-$host" != bad-web1 ] || { echo "the end of $host" >&2; exit 1; }
echo "$word $host" > "$out"
"""


def _lab(root: Path, *, jetstream: bool) -> Iterator[BuilderLab]:
    fleet = UpdateLab.at(root)
    (fleet.fleet / "build.sh").write_text(_BUILD % {"root": fleet.root})
    flake = fleet.fleet / "flake.nix"
    # A system's version is the word, where that is a number.
    flake.write_text(flake.read_text().replace('-25.11"', '-${words.word}"'))
    move(fleet, "1.0")
    with nats_server(root / "nats", jetstream=jetstream) as nats:
        lab = BuilderLab(fleet=fleet, nats=nats)
        try:
            lab.start()
            yield lab
        finally:
            lab.stop()


def move(fleet: UpdateLab, word: str) -> None:
    """Push a commit of the fleet whose input says another word."""
    fleet.say("words", word)
    fleet.run("nix", "flake", "update", where=fleet.fleet)
    publish(fleet)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[BuilderLab]:
    """A builder and a server with JetStream."""
    yield from _lab(tmp_path, jetstream=True)


@pytest.fixture(params=[True, False], ids=["with-jetstream", "without-jetstream"])
def any_lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BuilderLab]:
    yield from _lab(tmp_path, jetstream=request.param)


class Asker:
    """A `nixfleet build`."""

    def __init__(self, lab: BuilderLab, *more: str) -> None:
        words = [sys.executable, "-m", "nixfleet", "build", "--nats-url", lab.nats.url, "--json", *more]
        self.process = subprocess.Popen(
            words, env=lab.fleet.environment(), cwd=lab.fleet.root, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> Ran:
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return Ran(status=self.process.returncode, out=out, err=err)


Begin = Callable[..., Asker]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Begin a `nixfleet build`; none is left in the end."""
    begun: list[Asker] = []

    def one(lab: BuilderLab, *more: str) -> Asker:
        begun.append(Asker(lab, *more))
        return begun[-1]

    yield one
    for asker in begun:
        asker.process.kill()
        asker.process.communicate()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_every_host_is_built_and_what_changes_on_it_is_told(lab: BuilderLab, begin: Begin) -> None:
    for host in HOSTS:
        lab.go(host)
    before = lab.fleet.main()
    assert begin(lab, "--all").end().status == 0
    move(lab.fleet, "2.0")
    ran = begin(lab, "--all", "--rev", "main", "--compare", before).end()
    assert ran.status == 0, ran.err
    assert [(job["host"], job["outcome"], job["commit"]) for job in ran.json["jobs"]] == [
        (host, "done", lab.fleet.main()) for host in HOSTS
    ]
    for job in ran.json["jobs"]:
        assert Path(job["path"]).read_text() == f"2.0 {job['host']}\n"
        assert job["changes"] == [f"nixos-system-{job['host']}: 1.0 → 2.0"]


def test_one_that_does_not_build_keeps_no_other_from_it(lab: BuilderLab, begin: Begin) -> None:
    for host in HOSTS:
        lab.go(host)
    move(lab.fleet, "bad")
    ran = begin(lab, "web1", "db1", "nobody").end()
    assert ran.status == 1, ran.err
    web1, db1, nobody = ran.json["jobs"]
    assert (web1["outcome"], db1["outcome"], nobody["outcome"]) == ("failed", "done", "failed")
    assert "the end of web1" in web1["tail"]
    assert "no host nobody" in nobody["why"]


def test_of_two_who_ask_for_a_host_one_goes_and_the_other_gets_it(any_lab: BuilderLab, begin: Begin) -> None:
    one, other = begin(any_lab, "web1"), begin(any_lab, "web1")
    until(lambda: "one more asks" in any_lab.said("one") and any_lab.ran("web1") == 1)
    one.interrupt()
    assert one.end().status == 130
    until(lambda: "taken back" in any_lab.said("one"))
    any_lab.go("web1")
    ran = other.end()
    assert (ran.status, ran.json["jobs"][0]["outcome"]) == (0, "done"), ran.err
    assert any_lab.ran("web1") == 1


def test_a_build_ends_when_everybody_who_asked_has_gone(any_lab: BuilderLab, begin: Begin) -> None:
    askers = [begin(any_lab, "web1"), begin(any_lab, "web1")]
    until(lambda: "one more asks" in any_lab.said("one") and any_lab.ran("web1") == 1)
    for asker in askers:
        asker.interrupt()
    for asker in askers:
        ran = asker.end()
        assert (ran.status, ran.json["jobs"][0]["outcome"]) == (130, "cancelled")
    until(lambda: not any_lab.nix_runs())


def test_a_builder_names_its_only_repository_and_says_what_it_does_not_have(lab: BuilderLab, begin: Begin) -> None:
    ran = begin(lab, "web1", "--repo", "theirs").end()
    assert (ran.status, ran.json["jobs"][0]["outcome"]) == (1, "refused")
    ran = begin(lab, "--all", "--repo", "theirs").end()
    assert ran.status == 3
    assert "it has no repository theirs; the builder has own" in ran.err


def test_an_asker_is_answered_by_another_builder_when_the_first_one_is_killed(lab: BuilderLab, begin: Begin) -> None:
    asker = begin(lab, "web1")
    until(lambda: lab.ran("web1") == 1)
    lab.end("one")
    lab.go("web1")
    lab.start("two")
    ran = asker.end()
    assert (ran.status, ran.json["jobs"][0]["builder"]) == (0, "two"), ran.err


def test_an_asker_is_answered_although_the_server_was_killed_meanwhile(lab: BuilderLab, begin: Begin) -> None:
    asker = begin(lab, "web1")
    until(lambda: lab.ran("web1") == 1)
    lab.nats.kill()
    lab.nats.start()
    lab.go("web1")
    ran = asker.end()
    assert (ran.status, ran.json["jobs"][0]["outcome"]) == (0, "done"), ran.err


# The updater


def update(lab: BuilderLab, *more: str) -> Ran:
    return lab.fleet.update("--builder", "nats", "--nats-url", lab.nats.url, "--auto-merge", "--json", *more)


def offered(lab: BuilderLab) -> list[str]:
    """What is left of what was given to builders."""
    return lab.fleet.git("for-each-ref", "--format=%(refname)", "refs/nixfleet", where=lab.fleet.hub).splitlines()


def test_an_update_is_built_by_builders_and_what_is_merged_is_what_was_built(lab: BuilderLab, begin: Begin) -> None:
    for host in HOSTS:
        lab.go(host)
    assert begin(lab, "--all").end().status == 0
    lab.fleet.say("words", "2.0")
    before = lab.fleet.checkout()
    ran = update(lab)
    assert (ran.status, ran.json["outcome"]) == (0, "merged"), ran.err
    for system in ran.json["systems"]:
        assert Path(system["path"]).read_text() == f"2.0 {system['host']}\n"
        assert system["changes"] == [f"nixos-system-{system['host']}: 1.0 → 2.0"]
    assert "Built: db1, mac1, web1" in lab.fleet.message("main")
    assert "nixos-system-web1: 1.0 → 2.0" in lab.fleet.message("main")
    assert offered(lab) == []
    assert lab.fleet.checkout() == before
    merged = begin(lab, "--all").end()  # from the main branch, by its commit
    assert [job["path"] for job in merged.json["jobs"]] == [system["path"] for system in ran.json["systems"]]
    assert [lab.ran(host) for host in HOSTS] == [2, 2, 2]


def test_what_a_builder_cannot_build_is_not_merged_and_its_log_is_there(lab: BuilderLab) -> None:
    for host in HOSTS:
        lab.go(host)
    lab.fleet.say("words", "bad")
    main = lab.fleet.main()
    ran = update(lab)
    assert (ran.status, ran.json["outcome"], lab.fleet.main()) == (1, "broken", main), ran.err
    [web1] = [system for system in ran.json["systems"] if not system["ok"]]
    assert web1["host"] == "web1"
    assert "the end of web1" in Path(web1["log"]).read_text()
    assert offered(lab) == []


def test_what_mends_is_built_by_builders_too(lab: BuilderLab) -> None:
    for host in HOSTS:
        lab.go(host)
    mend = lab.fleet.root / "mend"
    mend.write_text("#!/bin/sh\nsed -i s/bad-web1/nothing/ build.sh\necho more > new-file\n")
    mend.chmod(0o755)
    lab.fleet.say("words", "bad")
    file = lab.fleet.root / "update.toml"
    file.write_text(
        f'[nightly]\nrepo-path = "{lab.fleet.fleet}"\nbuilder = "nats"\n'
        f'[nightly.nats]\nurl = "{lab.nats.url}"\nrepository = "own"\n[nightly.auto-fix]\ncommand = "{mend}"\n'
    )
    ran = lab.fleet.update("--instances", str(file), "--json")
    assert (ran.status, ran.json["outcome"]) == (0, "pushed"), ran.err
    assert [attempt["why"] for attempt in ran.json["attempts"]] == ["it builds now"]
    assert lab.fleet.changed(ran.json["branch"]) == ["build.sh", "new-file"]
    assert offered(lab) == []


def test_a_host_that_builders_refuse_is_an_error_and_nothing_is_merged(lab: BuilderLab) -> None:
    lab.fleet.say("words", "two")
    main = lab.fleet.main()
    ran = update(lab, "--repo", "theirs")
    assert (ran.status, lab.fleet.main(), offered(lab)) == (3, main, [])
    assert "this builder has no repository theirs" in ran.err


def test_without_a_nats_server_nothing_is_merged_and_nothing_is_left(lab: BuilderLab) -> None:
    lab.fleet.say("words", "two")
    main = lab.fleet.main()
    lab.nats.kill()
    ran = update(lab)
    assert (ran.status, lab.fleet.main(), offered(lab)) == (3, main, [])
    assert "connection refused" in ran.err


def test_what_a_killed_run_gave_to_builders_is_removed_after_a_day(lab: BuilderLab) -> None:
    """Git is told when the two were made: one more than a day ago, as if the run had been killed then."""
    for host in HOSTS:
        lab.go(host)
    kept = []
    for age_s in (25 * 3600, 3600):
        date = f"{int(time.time()) - age_s} +0000"
        made = subprocess.run(
            ["git", "-C", str(lab.fleet.hub), "-c", "user.name=x", "-c", "user.email=x@y", "commit-tree",
             "-p", "main", "-m", "left", "main^{tree}"],
            env={**os.environ, **lab.fleet.environment(), "GIT_COMMITTER_DATE": date}, check=True, text=True,
            capture_output=True,
        ).stdout.strip()  # fmt: skip
        kept.append(f"refs/nixfleet/builds/{made}")
        lab.fleet.git("update-ref", kept[-1], made, where=lab.fleet.hub)
    lab.fleet.say("words", "two")
    assert update(lab).status == 0
    assert offered(lab) == kept[1:]


def test_ctrl_c_ends_the_builds_of_an_update_and_removes_what_was_offered(lab: BuilderLab) -> None:
    lab.fleet.say("words", "two")
    main = lab.fleet.main()
    process = lab.fleet.begin("--builder", "nats", "--nats-url", lab.nats.url, "--auto-merge")
    try:
        until(lambda: any(lab.ran(host) for host in HOSTS))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, lab.fleet.main(), offered(lab)) == (130, main, [])
    until(lambda: not lab.nix_runs())


# The release


def test_a_release_is_built_by_builders_from_the_commit_it_is_named_after(lab: BuilderLab) -> None:
    for host in HOSTS:
        lab.go(host)
    lab.fleet.describe()
    lab.fleet.git("push", "--quiet", "origin", "main")
    words = ("release", "--flake", ".", "--builder", "nats", "--nats-url", lab.nats.url, "--dry-run", "--json")
    ran = lab.fleet.nixfleet(*words)
    assert ran.status == 0, ran.err
    assert ran.json["commit"] == lab.fleet.main()
    assert [lab.ran(host) for host in HOSTS] == [1, 1, 1]
    (lab.fleet.fleet / "build.sh").write_text("changed\n")
    dirty = lab.fleet.nixfleet(*words)
    assert dirty.status == 2
    assert ". has changes that no commit has: commit and push them" in dirty.err
