"""`nixfleet release --flake`: from a flake to what hosts would act on, with real git and real Nix."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.updatelab import SMALL_FLEET, Ran, UpdateLab

KEYS = ("--ci-key", "../keys/ci-release.pem", "--trust-file", "../keys/trust.json", "--releases-dir", "../releases")
CHANNEL = 'channels.stable = { rolloutPolicy = "at-once"; freshnessWindow = 1440; };'


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[UpdateLab]:
    lab = UpdateLab.at(tmp_path)
    lab.describe()
    made = lab.nixfleet("keygen", "--out", "../keys", "--san", "cp.example.org")
    assert made.status == 0, made.err
    yield lab
    lab.stop_orphans()


def released(lab: UpdateLab, *more: str, flake: str = ".") -> Ran:
    return lab.nixfleet("release", "--flake", flake, *KEYS, *more)


def good(ran: Ran) -> Any:
    assert ran.status == 0, ran.err
    return ran.json


def fleet(lab: UpdateLab) -> Any:
    return json.loads((lab.root / "releases/fleet.resolved.json").read_text())


def closure(lab: UpdateLab, host: str, *, url: str = ".", build: bool = True) -> str:
    """The base name of what the flake makes of a host, by Nix alone."""
    words = ("nix", "build", "--no-link", "--json") if build else ("nix", "eval", "--json")
    suffix = "" if build else ".outPath"
    ran = lab.run(*words, f"{url}#nixosConfigurations.{host}.config.system.build.toplevel{suffix}", where=lab.fleet)
    answer = ran.json[0]["outputs"]["out"] if build else ran.json
    return Path(answer).name


def nothing_published(lab: UpdateLab) -> bool:
    return not (lab.root / "releases").exists()


# --- what is released -----------------------------------------------------------------------------------------------


def test_every_host_is_built_and_released_under_the_flakes_revision(lab: UpdateLab) -> None:
    head = lab.git("rev-parse", "HEAD")
    document = good(released(lab, "--json"))
    assert document["rollouts"] == [f"stable@{head}"]
    hosts = fleet(lab)["hosts"]
    assert set(hosts) == {"db1", "mac1", "web1"}
    assert hosts["web1"]["closureHash"] == closure(lab, "web1")
    assert all((lab.root / "store" / host["closureHash"]).exists() for host in hosts.values())
    assert fleet(lab)["meta"]["ciCommit"] == head


def test_what_is_released_verifies_as_hosts_verify_it(lab: UpdateLab) -> None:
    document = good(released(lab, "--json"))
    for kind, name in (("fleet", "fleet.resolved.json"), ("rollout", f"rollouts/{document['rollouts'][0]}.json")):
        words = ("--artifact", f"../releases/{name}", "--kind", kind, "--trust-file", "../keys/trust.json")
        ran = lab.nixfleet("verify-artifact", *words)
        assert (ran.status, ran.out) == (0, "ok\n"), ran.err


def test_people_see_who_gets_what_before_it_is_published(lab: UpdateLab) -> None:
    ran = released(lab)
    assert ran.status == 0, ran.err
    table, published = ran.out.split("signed", 1)
    assert re.search(rf"^web1 +new +stable +0 +- +{re.escape(closure(lab, 'web1'))}$", table, re.MULTILINE)
    assert "published" in published
    assert {"evaluating .#fleet", "web1: building"} <= set(ran.err.splitlines())


def test_what_was_built_is_copied_to_a_cache_and_people_are_told_while_it_is(lab: UpdateLab) -> None:
    cache = f"file://{lab.root}/cache"
    ran = released(lab, "--copy-to", cache)
    assert ran.status == 0, ran.err
    assert f"copying 3 closures to {cache}" in ran.err.splitlines()
    assert f"copied 3 closures to {cache}" in ran.out.splitlines()
    copied = {path.stem for path in (lab.root / "cache").glob("*.narinfo")}
    assert copied >= {host["closureHash"][:32] for host in fleet(lab)["hosts"].values()}


def test_another_attribute_and_another_directory_can_be_named(lab: UpdateLab) -> None:
    flake = lab.fleet / "flake.nix"
    flake.write_text(flake.read_text().replace("      fleet =", "      nested.intent ="))
    head = lab.commit("called otherwise")
    ran = lab.run(
        sys.executable, "-m", "nixfleet", "release", "--flake", f"{lab.fleet}#nested.intent", "--dry-run", "--json",
        where=lab.root,
    )  # fmt: skip
    assert good(ran)["commit"] == head


def test_a_revision_can_be_named_and_is_what_is_released(lab: UpdateLab) -> None:
    first = lab.git("rev-parse", "HEAD")
    before = closure(lab, "web1", build=False)
    lab.move("two")
    assert closure(lab, "web1", build=False) != before
    document = good(released(lab, "--json", flake=f"git+file://{lab.fleet}?rev={first}"))
    assert document["commit"] == first
    assert fleet(lab)["hosts"]["web1"]["closureHash"] == before


def test_changes_that_no_commit_has_are_released_as_they_are_and_named_after_what_hosts_run(lab: UpdateLab) -> None:
    head = lab.git("rev-parse", "HEAD")
    (lab.fleet / "build.sh").write_text((lab.fleet / "build.sh").read_text() + "# another build\n")
    document = good(released(lab, "--json"))
    assert document["commit"] != head
    assert any("the flake is at no commit" in text for text in document["notices"])
    assert fleet(lab)["hosts"]["web1"]["closureHash"] == closure(lab, "web1")


def test_a_flake_without_a_lock_file_is_warned_about_and_gets_none(lab: UpdateLab) -> None:
    (lab.fleet / "flake.lock").unlink()
    lab.commit("unlocked")
    document = good(released(lab, "--json"))
    assert any("no flake.lock" in text for text in document["notices"])
    assert not (lab.fleet / "flake.lock").exists()


def test_without_a_build_the_same_is_released_and_nothing_is_in_the_store(lab: UpdateLab) -> None:
    good(released(lab, "--no-build", "--json"))
    hosts = fleet(lab)["hosts"]
    assert not any((lab.root / "store" / host["closureHash"]).exists() for host in hosts.values())
    assert hosts["web1"]["closureHash"] == closure(lab, "web1")


def test_a_closure_that_is_given_is_taken_and_its_host_not_built(lab: UpdateLab) -> None:
    lab.move("bad")
    name = "0" * 32 + "-nixos-system-web1-by-hand"
    good(released(lab, "--closure", f"web1=/nix/store/{name}", "--json"))
    assert fleet(lab)["hosts"]["web1"]["closureHash"] == name


def test_a_closure_in_the_description_is_taken_as_well(lab: UpdateLab) -> None:
    name = "0" * 32 + "-nixos-system-web1-elsewhere"
    lab.describe(SMALL_FLEET.replace('tags = [ "web" ];', f'closure = "/nix/store/{name}";'))
    lab.move("bad")
    good(released(lab, "--json"))
    assert fleet(lab)["hosts"]["web1"]["closureHash"] == name


# --- what would change ----------------------------------------------------------------------------------------------


def test_a_dry_run_needs_no_key_and_writes_nothing(lab: UpdateLab) -> None:
    ran = lab.nixfleet("release", "--flake", ".", "--releases-dir", "../releases", "--dry-run", "--json")
    document = good(ran)
    assert (document["published"], [change["kind"] for change in document["changes"]]) == (None, ["new"] * 3)
    assert nothing_published(lab)


def test_a_commit_that_changes_no_host_keeps_the_rollouts_that_are_out(lab: UpdateLab) -> None:
    first = good(released(lab, "--json"))
    (lab.fleet / "README.md").write_text("About us.\n")
    lab.commit("words")
    again = good(released(lab, "--json"))
    assert (again["unchanged"], again["commit"], again["rollouts"]) == (True, first["commit"], first["rollouts"])
    anew = good(released(lab, "--json", "--new-rollout"))
    assert anew["commit"] == lab.git("rev-parse", "HEAD") != first["commit"]


def test_the_packages_that_change_are_shown_when_both_closures_are_here(lab: UpdateLab) -> None:
    good(released(lab, "--json"))
    flake = lab.fleet / "flake.nix"
    flake.write_text(flake.read_text().replace("-25.11", "-26.05"))
    lab.commit("a new version")
    document = good(released(lab, "--json", "--dry-run"))
    packages = {change["host"]: change["packages"] for change in document["changes"]}
    assert packages["web1"] == ["nixos-system-web1: 25.11 → 26.05"]
    assert "nixos-system-db1: 25.11 → 26.05" in released(lab, "--dry-run", "--changes").out
    assert "nixos-system-db1: 25.11" not in released(lab, "--dry-run").out
    without = good(released(lab, "--json", "--dry-run", "--no-changes"))
    assert not any("packages" in change for change in without["changes"])


def test_what_was_never_built_here_is_not_compared(lab: UpdateLab) -> None:
    good(released(lab, "--no-build", "--json"))
    lab.move("two")
    document = good(released(lab, "--json", "--dry-run"))
    assert [change["kind"] for change in document["changes"]] == ["changed"] * 3
    assert not any("packages" in change for change in document["changes"])


# --- hosts that are held back ---------------------------------------------------------------------------------------


def pinned(commit: str, more: str = "") -> str:
    pin = f'tags = [ "web" ]; pin = {{ commit = "{commit}"; reason = "waits for a disk"; {more} }};'
    return SMALL_FLEET.replace('tags = [ "web" ];', pin)


def test_a_pinned_host_is_built_from_its_commit_and_the_others_from_now(lab: UpdateLab) -> None:
    old, web, db = lab.git("rev-parse", "HEAD"), closure(lab, "web1"), closure(lab, "db1")
    lab.move("two")
    lab.describe(pinned(old))
    good(released(lab, "--json"))
    hosts = fleet(lab)["hosts"]
    assert hosts["web1"]["closureHash"] == web
    assert hosts["db1"]["closureHash"] != db
    assert hosts["web1"]["pin"]["commit"] == old


def test_a_pin_that_has_expired_holds_nothing_back(lab: UpdateLab) -> None:
    old, web = lab.git("rev-parse", "HEAD"), closure(lab, "web1")
    lab.move("two")
    lab.describe(pinned(old, 'expiresAt = "2020-01-01T00:00:00Z";'))
    good(released(lab, "--json"))
    assert fleet(lab)["hosts"]["web1"]["closureHash"] == closure(lab, "web1") != web


def test_a_pin_must_be_a_whole_revision(lab: UpdateLab) -> None:
    lab.describe(pinned("4be0c1"))
    ran = released(lab)
    assert (ran.status, nothing_published(lab)) == (2, True)
    assert "hosts.web1.pin.commit 4be0c1: write the whole revision" in ran.err


# --- what is not released -------------------------------------------------------------------------------------------


def test_one_host_that_does_not_build_and_nothing_is_released(lab: UpdateLab) -> None:
    lab.move("bad")
    ran = released(lab)
    assert (ran.status, nothing_published(lab)) == (1, True)
    assert "1 of 3 hosts does not build (web1): nothing is released" in ran.err
    assert "undefined variable: the end of web1" in ran.err
    [log] = re.findall(r"its whole log is (.+):$", ran.err, re.MULTILINE)
    assert "building web1 with bad and one" in Path(log).read_text()
    assert "db1: built" in ran.err, "a build that fails stops none of the others"


def test_what_is_out_stays_out_when_the_next_release_does_not_build(lab: UpdateLab) -> None:
    good(released(lab, "--json"))
    before = fleet(lab)
    lab.move("worse")
    ran = released(lab, "--json")
    assert (ran.status, ran.out) == (1, "")
    assert "3 of 3 hosts do not build (db1, mac1, web1)" in ran.err
    assert fleet(lab) == before


@pytest.mark.parametrize(
    ("fleet", "status", "said"),
    [
        ("throw 'no", 1, "error: syntax error"),
        ('{ hosts.web1.channel = 5; }', 1, "A definition for option `hosts.web1.channel' is not of type `string'"),
        (SMALL_FLEET.replace("1440", "90"), 1, "less than twice the signing interval"),
        (SMALL_FLEET.replace("web1 =", "web9 ="), 1, "no web9; there are: db1, mac1, web1"),
        ('{ hosts = throw "gone fishing"; }', 1, "error: gone fishing"),
    ],
)  # fmt: skip
def test_a_wrong_fleet_is_answered_by_its_mistake_and_where_it_was_found(
    lab: UpdateLab, fleet: str, status: int, said: str
) -> None:
    lab.describe(fleet)
    ran = released(lab)
    assert (ran.status, nothing_published(lab)) == (status, True)
    [complaint] = [line for line in ran.err.splitlines() if line.startswith("nixfleet: ")]
    assert complaint.startswith("nixfleet: error: ")
    assert said in ran.err
    assert "of ." in ran.err or "evaluating .#fleet" in ran.err


def test_a_directory_that_nix_would_look_up_in_its_registry_is_told_how_to_write(lab: UpdateLab) -> None:
    words = ("release", "--flake", "fleet", "--dry-run")
    ran = lab.run(sys.executable, "-m", "nixfleet", *words, where=lab.root)
    assert ran.status == 1
    assert "for the directory write ./fleet" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "the CI release key is not set: give --ci-key"),
        (("--ci-key", "lost.pem"), "cannot read the CI release key lost.pem"),
        (("--ci-key", "../keys/org-root.pem", "--trust-file", "../keys/trust.json"), "hosts would refuse what"),
        (("--ci-key", "../keys/ci-release.pem", "--cache", "https://cache.example.org"), "give --trust-file"),
    ],
)  # fmt: skip
def test_a_key_that_is_missing_or_not_trusted_is_told_before_anything_is_built(
    lab: UpdateLab, words: tuple[str, ...], said: str
) -> None:
    ran = lab.nixfleet("release", "--flake", ".", *words)
    assert (ran.status, ran.out) == (2, "")
    assert said in ran.err
    assert "evaluating" not in ran.err


def test_every_problem_of_a_fleet_is_told_in_one_go(lab: UpdateLab) -> None:
    lab.describe(f'{{ {CHANNEL} hosts.web1.channel = "stabel"; hosts.web1.system = "x"; }}')
    said = released(lab).err
    assert "error: the fleet description has 2 problems:" in said
    assert 'hosts.web1.channel: no channel is called "stabel" (there are: stable)' in said
    assert 'channels.stable.rolloutPolicy: no policy is called "at-once"' in said


@pytest.mark.parametrize(
    ("output", "status", "said"),
    [
        ('nothing = { };', 1, "lib.mkFleet"),
        ('fleet = { hosts = { }; };', 2, "the fleet description .#fleet has 1 problem:\n  channels: is missing"),
        ('fleet = "text";', 2, 'must be a table, not "text"'),
        ("fleet = _: { };", 1, "cannot convert a function to JSON"),
    ],
)  # fmt: skip
def test_an_output_that_is_no_fleet_is_told_apart(lab: UpdateLab, output: str, status: int, said: str) -> None:
    flake = lab.fleet / "flake.nix"
    flake.write_text(re.sub(r"fleet = \(import.*", output, flake.read_text()))
    ran = released(lab)
    assert (ran.status, nothing_published(lab)) == (status, True)
    assert said in ran.err


@pytest.mark.parametrize("reference", ["/nowhere", "../keys", "git+file:///nowhere", "github:", "..."])
def test_a_reference_that_names_no_flake_is_named(lab: UpdateLab, reference: str) -> None:
    ran = released(lab, flake=reference)
    assert (ran.status, nothing_published(lab)) == (1, True)
    assert f"while reading the flake {reference}" in ran.err
    assert "nixfleet: error: " in ran.err


def test_without_nix_it_says_so(lab: UpdateLab) -> None:
    command = (sys.executable, "-m", "nixfleet", "release", "--flake", ".", "--dry-run")
    ran = lab.run("/usr/bin/env", "PATH=/nowhere", *command, where=lab.fleet)
    assert ran.status != 0
    assert "nix: it is not on PATH" in ran.err


@pytest.mark.parametrize("words", [("fleet.toml", "--flake", "."), ("--refresh", "--flake", "."), ()])
def test_a_flake_and_a_file_are_not_given_together(lab: UpdateLab, words: tuple[str, ...]) -> None:
    ran = lab.nixfleet("release", *words, *KEYS)
    assert (ran.status, nothing_published(lab)) == (2, True)
    assert "name the fleet description, or" in ran.err or "--refresh goes without" in ran.err


@pytest.mark.parametrize("flag", ["--no-build", "--jobs=3", "--builder=local", "--build-timeout=1h"])
def test_flags_about_a_flakes_hosts_are_refused_where_there_is_no_flake(lab: UpdateLab, flag: str) -> None:
    ran = lab.nixfleet("release", "fleet.toml", flag, *KEYS)
    assert ran.status == 2
    assert "is about the hosts of a flake: name it with --flake" in ran.err


def test_no_flag_of_nix_is_taken_for_a_flake(lab: UpdateLab) -> None:
    ran = lab.nixfleet("release", "--flake=--help", *KEYS)
    assert (ran.status, "write a flake as Nix names one" in ran.err) == (2, True)


def test_ctrl_c_ends_the_builds_and_releases_nothing(lab: UpdateLab) -> None:
    lab.move("slow")
    command = [sys.executable, "-m", "nixfleet", "release", "--flake", ".", *KEYS]
    with subprocess.Popen(command, cwd=lab.fleet, env=lab.environment(), stderr=subprocess.PIPE, text=True) as running:
        log = lab.root / "home/.cache/nixfleet/builds/db1.log"
        while running.poll() is None and not (log.exists() and "with slow" in log.read_text()):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(timeout=60) == 130
    assert nothing_published(lab)
    assert not builders_left(lab)


def builders_left(lab: UpdateLab) -> list[str]:
    ours = f"{lab.root}/store".encode()
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:  # gone by now
            continue
        if ours in command and int(process.name) != os.getpid():
            left.append(command.decode())
    return left


def test_what_the_evaluation_warns_about_is_told_once(lab: UpdateLab) -> None:
    lab.describe(SMALL_FLEET.replace("hosts.web1", f"{CHANNEL.replace('stable', 'edge')}\n  hosts.web1", 1))
    document = good(released(lab, "--json", "--dry-run"))
    assert document["notices"].count("channel edge has no hosts: no rollout is made for it") == 1
