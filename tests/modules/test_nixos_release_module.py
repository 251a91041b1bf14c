"""`services.nixfleet-release` on NixOS: what is set in Nix arrives at `nixfleet release`, by services and timers.

The rendered command lines are read back by the program's own parser.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import pytest

from nixfleet.commands.release import release
from nixfleet.release.pruning import KEEP_DAYS
from tests.modules import unit_file
from tests.modules.evaluation import NIXOS, ROOT, NixosEvaluated, evaluate, evaluate_nixos, lib_path, needs_nix
from tests.modules.sample_hosts import RELEASE, RELEASE_WITH_EVERYTHING

pytestmark = needs_nix
CREDENTIALS: Final = "/run/credentials/x"
NO_SYSTEMD: Final = "systemd-analyze is not installed"


@pytest.fixture(scope="module")
def plain() -> NixosEvaluated:
    """A directory and a key."""
    return evaluate_nixos(RELEASE, modules=NIXOS)


@pytest.fixture(scope="module")
def full() -> NixosEvaluated:
    """A flake, and every option set."""
    return evaluate_nixos(RELEASE_WITH_EVERYTHING, modules=NIXOS)


def given(seen: NixosEvaluated, name: str) -> dict[str, Any]:
    """What the program's own parser makes of the command line of a service: the options that are not their defaults."""
    program, first, *words = unit_file.command(seen.units[f"{name}.service"], credentials=CREDENTIALS)
    assert program.endswith("/bin/nixfleet")
    assert first == "release"
    context = release.make_context("release", list(words), resilient_parsing=False)
    unset = release.make_context("release", [])
    # A path is as good as its text here.
    return {
        key: str(value) if isinstance(value, Path) else value
        for key, value in context.params.items()
        if value != unset.params[key]
    }


def service(seen: NixosEvaluated, name: str) -> Mapping[str, Sequence[str]]:
    return unit_file.settings(seen.units[f"{name}.service"], "Service")


def test_a_directory_and_a_key_will_do(plain: NixosEvaluated) -> None:
    assert not plain.assertions
    assert not plain.warnings
    assert set(plain.units) >= {"nixfleet-release-refresh.service", "nixfleet-release-refresh.timer"}
    assert "nixfleet-release.service" not in plain.units
    assert given(plain, "nixfleet-release-refresh") == {
        "refresh": True, "if_due": True, "to": "/srv/releases", "ci_key": f"{CREDENTIALS}/ci-key"
    }  # fmt: skip
    assert plain.tmpfiles == ["d /srv/releases 0755 nixfleet-release - -"]
    assert service(plain, "nixfleet-release-refresh")["ReadWritePaths"] == ["-/srv/releases"]


def test_every_option_arrives_at_the_program(full: NixosEvaluated) -> None:
    assert not full.assertions
    both = {
        "to": "https://files.example.org/a%b/releases",
        "to_token_file": f"{CREDENTIALS}/token",
        "ci_key": f"{CREDENTIALS}/ci-key",
        "trust_file": "/etc/nixfleet/trust.json",
        "keep": 20,
        "keep_days": 90,
        "new_rollout": True,
    }
    assert given(full, "nixfleet-release-refresh") == {**both, "refresh": True, "if_due": True}
    seen = given(full, "nixfleet-release")
    assert tuple(seen.pop("cache")) == ("https://cache.example.org", "https://$second.example.org")
    assert seen == {
        **both,
        "flake": 'git+ssh://git@git.example.org/us/fleet#fleets."all"',
        "jobs": 4,
        "build_timeout": 5400,
        "cache_netrc": f"{CREDENTIALS}/netrc",
        "copy_to": "s3://cache?region=eu-1",
        "cache_key_file": f"{CREDENTIALS}/cache-key",
    }


def test_the_defaults_are_those_of_the_program() -> None:
    shown = evaluate_nixos(
        RELEASE,
        modules=NIXOS,
        show=["services.nixfleet-release.keepDays", "services.nixfleet-release.jobs"],
    ).values
    jobs = next(each for each in release.params if each.name == "jobs")
    assert isinstance(jobs, click.Option)
    assert dict(shown) == {
        "services.nixfleet-release.keepDays": KEEP_DAYS,
        "services.nixfleet-release.jobs": jobs.default,
    }


def test_secrets_are_handed_over_by_systemd(full: NixosEvaluated) -> None:
    few = ["ci-key:/run/secrets/ci-release.pem", "token:/run/secrets/token 100%%"]
    assert service(full, "nixfleet-release-refresh")["LoadCredential"] == few
    more = ["netrc:/run/secrets/netrc", "cache-key:/run/secrets/cache-key"]
    assert service(full, "nixfleet-release")["LoadCredential"] == [*few, *more]


def test_a_key_in_no_file_is_named_and_its_device_can_be_reached() -> None:
    seen = evaluate_nixos(
        """{ services.nixfleet-release = {
          enable = true; target = "s3://fleet/x"; credentialsFile = "/run/secrets/aws";
          ciKey = "command:sign 'a b' $x %i";
        }; }""",
        modules=NIXOS,
    )
    assert not seen.assertions
    assert given(seen, "nixfleet-release-refresh")["ci_key"] == "command:sign 'a b' $x %i"
    assert service(seen, "nixfleet-release-refresh")["LoadCredential"] == ["credentials:/run/secrets/aws"]
    assert "PrivateDevices" not in service(seen, "nixfleet-release-refresh")
    assert not seen.tmpfiles


def test_the_default_user_is_made_and_another_is_taken_as_it_is(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    assert service(plain, "nixfleet-release-refresh")["User"] == ["nixfleet-release"]
    assert plain.users["nixfleet-release"]["home"] == "/var/lib/nixfleet-release"
    assert service(plain, "nixfleet-release-refresh")["StateDirectory"] == ["nixfleet-release"]
    assert service(full, "nixfleet-release")["User"] == ["ci"]
    assert "StateDirectory" not in service(full, "nixfleet-release")
    assert not full.users


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason=NO_SYSTEMD)
def test_the_timers_run_when_it_was_said(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    refresh = unit_file.settings(full.units["nixfleet-release-refresh.timer"], "Timer")
    assert refresh == {"OnCalendar": ["hourly", "Sun 04:10"], "Persistent": ["true"], "RandomizedDelaySec": ["5min"]}
    whole = unit_file.settings(full.units["nixfleet-release.timer"], "Timer")
    assert whole == {"OnCalendar": ["Mon..Thu 10:00"], "Persistent": ["true"], "RandomizedDelaySec": ["1h"]}
    usual = unit_file.settings(plain.units["nixfleet-release-refresh.timer"], "Timer")
    for name in ("nixfleet-release.timer", "nixfleet-release-refresh.timer"):
        assert full.wanted_by[name] == ["timers.target"]
    for when in (*refresh["OnCalendar"], *whole["OnCalendar"], *usual["OnCalendar"]):
        subprocess.run(["systemd-analyze", "calendar", when], check=True, capture_output=True)


def test_a_flake_without_a_schedule_is_released_by_hand() -> None:
    seen = evaluate_nixos(
        """{ services.nixfleet-release = {
          enable = true; target = "/srv/releases"; ciKeyFile = "/k"; flake = "/srv/fleet"; refreshSchedule = null;
        }; }""",
        modules=NIXOS,
    )
    assert set(seen.units) == {"nixfleet-release.service", "nixfleet-release-refresh.service"}
    assert seen.wanted_by["nixfleet-release.service"] == []


WRONG: Final[Mapping[str, str]] = {
    "ciKeyFile = lib.mkForce null;": "ciKeyFile or services.nixfleet-release.ciKey must be set, one of the two",
    'ciKey = "agent:x";': "ciKeyFile or services.nixfleet-release.ciKey must be set, one of the two",
    'ciKeyFile = lib.mkForce null; ciKey = "/run/key";': "ciKey must begin with agent: or command:",
    'ciKeyFile = lib.mkForce "keys/ci.pem";': 'ciKeyFile is "keys/ci.pem": it must be an absolute path',
    'ciKeyFile = lib.mkForce "/nix/store/key";': "ciKeyFile is in the Nix store, which everybody on the host can read",
    'cacheKeyFile = "/nix/store/key";': "cacheKeyFile is in the Nix store",
    'trustFile = "trust.json";': "trustFile is \"trust.json\": it must be an absolute path",
    'target = lib.mkForce "releases";': "a directory must be an absolute path of plain letters",
    'target = lib.mkForce "/srv/a b";': "a directory must be an absolute path of plain letters",
    'tokenFile = "/t";': "tokenFile is for a target that is https:// or git+https://",
    'credentialsFile = "/t";': "credentialsFile is for a target that is s3://",
    'schedule = "daily";': "schedule needs services.nixfleet-release.flake",
    'copyTo = "s3://cache";': "copyTo needs services.nixfleet-release.flake",
    'caches = [ "https://c" ];': "caches needs services.nixfleet-release.trustFile",
}  # fmt: skip


@pytest.fixture(scope="module")
def complaints() -> Mapping[str, Sequence[str]]:
    """For each wrong set of options the assertions that failed, all evaluated at once."""
    modules = " ".join(f"({{ lib, ... }}: {{ services.nixfleet-release = {{ {each} }}; }})" for each in WRONG)
    world = f"import {ROOT}/tests/modules/nixos_world.nix {{ libPath = (/. + {json.dumps(str(lib_path()))});"
    found = evaluate(f"map (one: ({world} modules = [ {NIXOS[0]} ({RELEASE}) one ]; }}).assertions) [ {modules} ]")
    return dict(zip(WRONG, found, strict=True))


@pytest.mark.parametrize("options", WRONG)
def test_what_cannot_work_is_told_before_it_is_built(options: str, complaints: Mapping[str, Sequence[str]]) -> None:
    """One sentence that names the option and the way out, and no other."""
    (sentence,) = complaints[options]
    assert WRONG[options] in sentence
    assert sentence.startswith("services.nixfleet-release.")
    assert sentence.endswith(".")


def test_where_it_is_not_enabled_there_is_nothing() -> None:
    seen = evaluate_nixos("{ }", modules=NIXOS)
    assert (seen.units, seen.users, list(seen.tmpfiles)) == ({}, {}, [])


def test_the_units_are_the_ones_that_were_reviewed(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """A change of a module shows in a review as what it does to the unit."""
    for kind in ("service", "timer"):
        unit_file.assert_checked_in(f"nixfleet-release-refresh.{kind}", plain.units[f"nixfleet-release-refresh.{kind}"])
        name = f"nixfleet-release-everything.{kind}"
        unit_file.assert_checked_in(name, full.units[f"nixfleet-release.{kind}"])
