"""`services.nix-flake-updater` on NixOS: what is set in Nix arrives at `nixfleet update`, by a service and a timer.

The rendered file of instances is read back by the program's own reader.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import pytest

from messaging.server import Server
from nixfleet.builder.builders import Builders
from nixfleet.update.instance import AutoFix, Forge, Instance, Notify, Release, read_instance, read_instances
from tests.modules import unit_file
from tests.modules.evaluation import NIXOS, ROOT, NixosEvaluated, evaluate, evaluate_nixos, lib_path, needs_nix
from tests.modules.sample_hosts import FLAKE_UPDATER, FLAKE_UPDATER_WITH_EVERYTHING

pytestmark = needs_nix
FILE: Final = "nixfleet/update.toml"
NO_SYSTEMD: Final = "systemd-analyze is not installed"


@pytest.fixture(scope="module")
def plain() -> NixosEvaluated:
    """An instance of a path alone."""
    return evaluate_nixos(FLAKE_UPDATER, modules=NIXOS)


@pytest.fixture(scope="module")
def full() -> NixosEvaluated:
    """An instance with every option set, one by hand, one that is off."""
    return evaluate_nixos(FLAKE_UPDATER_WITH_EVERYTHING, modules=NIXOS)


def instances(seen: NixosEvaluated, directory: Path) -> Mapping[str, Instance]:
    """What the program's own reader makes of the file."""
    text = seen.etc[FILE].text
    assert text is not None
    path = directory / "update.toml"
    path.write_text(text)
    return {name: read_instance(name, table, FILE) for name, table in read_instances(path).items()}


def service(seen: NixosEvaluated, name: str) -> Mapping[str, Sequence[str]]:
    return unit_file.settings(seen.units[f"nix-flake-updater-{name}.service"], "Service")


def test_the_defaults_are_those_of_the_program(plain: NixosEvaluated, tmp_path: Path) -> None:
    assert instances(plain, tmp_path) == {"nightly": Instance(name="nightly", repo_path=Path("/srv/fleet"))}
    assert not plain.assertions
    assert not plain.warnings
    switched_on = evaluate_nixos(
        '{ services.nix-flake-updater.nightly = { repoPath = "/srv/fleet"; autoFix.enable = true; }; }', modules=NIXOS
    )
    assert instances(switched_on, tmp_path)["nightly"].auto_fix == AutoFix()


def test_every_option_arrives_at_the_program(full: NixosEvaluated, tmp_path: Path) -> None:
    """Set in Nix, rendered as TOML, read by the program: the same values."""
    assert not full.assertions
    seen = instances(full, tmp_path)
    assert set(seen) == {"biweekly", "by-hand"}
    assert seen["biweekly"] == Instance(
        name="biweekly",
        repo_path=Path('/srv/a "fleet" with ${blanks}'),
        flake_path="systems",
        flake_inputs=("nixpkgs", "home-manager"),
        build_systems=("web1", "mac1"),
        git_remote="upstream",
        main_branch="trunk",
        branch_prefix="updates/",
        auto_merge=True,
        push=True,
        dry_run=True,
        jobs=4,
        build_timeout=5400,
        close_stale_after=14 * 86_400,
        auto_fix=AutoFix(
            command="/opt/mend",
            extra_args=("--model", "large one"),
            max_attempts=2,
            env_file=Path("/run/secrets/mend.env"),
            paths=("hosts", "modules/own"),
            timeout=600,
        ),
        forge=Forge(
            kind="gitea",
            url="https://git.example.org/api/v1",
            repository="us/fleet",
            token_file=Path("/run/secrets/gitea"),
        ),
        notify=Notify(
            ntfy_server="https://ntfy.example.org",
            ntfy_topic="fleet",
            ntfy_token_file=Path("/run/secrets/ntfy"),
            urls_file=Path("/run/secrets/apprise"),
            inbox_org=Path("/home/ci/org/inbox.org"),
        ),
        metrics_file=Path("/var/lib/node-exporter/flake-update.prom"),
        pushgateway="http://pushgateway.example.org:9091",
        release=Release(args=("--ci-key", "/run/secrets/ci key.pem"), timeout=7200),
        builder="nats",
        nats=Builders(
            server=Server(
                url="tls://nats.example.org:4222",
                nkey_file=Path("/run/secrets/nkey"),
                ca_cert=Path("/etc/nixfleet/nats-ca.pem"),
                client_cert=Path("/etc/nixfleet/client.pem"),
                client_key=Path("/run/secrets/client-key.pem"),
            ),
            prefix="ci.build",
            repository="fleet",
        ),
    )


@pytest.mark.parametrize(
    ("group", "kind"),
    [("", Instance), ("auto_fix", AutoFix), ("forge", Forge), ("notify", Notify), ("release", Release)],
)
def test_no_key_of_the_program_was_forgotten(
    full: NixosEvaluated, plain: NixosEvaluated, tmp_path: Path, group: str, kind: type
) -> None:
    """A new key needs an option: here every one of them is something else than without it."""
    seen, unset = instances(full, tmp_path)["biweekly"], Instance(name="", repo_path=Path())
    value = getattr(seen, group) if group else seen
    other = (getattr(unset, group) or kind()) if group else unset
    same = {field.name for field in attrs.fields(kind) if getattr(value, field.name) == getattr(other, field.name)}
    assert same == ({"push"} if kind is Instance else set())  # which auto-merge needs


def test_the_service_runs_its_own_instance(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    program, *words = unit_file.command(plain.units["nix-flake-updater-nightly.service"])
    assert program.endswith("/bin/nixfleet")
    assert words == ["update", f"--instances=/etc/{FILE}", "nightly"]
    assert unit_file.command(full.units["nix-flake-updater-biweekly.service"])[-1] == "biweekly"
    assert set(full.units) == {
        "nix-flake-updater-biweekly.service",
        "nix-flake-updater-biweekly.timer",
        "nix-flake-updater-by-hand.service",
    }


def test_the_default_user_is_made_and_another_is_taken_as_it_is(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    assert service(plain, "nightly")["User"] == ["nix-flake-updater"]
    assert plain.users["nix-flake-updater"]["home"] == "/var/lib/nix-flake-updater"
    assert service(plain, "nightly")["StateDirectory"] == ["nix-flake-updater"]
    assert service(full, "biweekly")["User"] == ["ci"]
    assert "StateDirectory" not in service(full, "biweekly")
    assert not full.users


def test_a_repository_below_etc_can_be_written_to(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    assert service(full, "by-hand")["ReadWritePaths"] == ["-/etc/nixos"]
    assert "ReadWritePaths" not in service(plain, "nightly")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason=NO_SYSTEMD)
def test_the_timer_runs_when_it_was_said(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    timer = unit_file.settings(full.units["nix-flake-updater-biweekly.timer"], "Timer")
    assert timer == {
        "OnCalendar": ["*-*-1,15 03:00", "Sun 04:00"],
        "Persistent": ["true"],
        "RandomizedDelaySec": ["1h"],
    }
    assert full.wanted_by["nix-flake-updater-biweekly.timer"] == ["timers.target"]
    assert plain.wanted_by["nix-flake-updater-nightly.service"] == []
    plain_timer = unit_file.settings(plain.units["nix-flake-updater-nightly.timer"], "Timer")
    for when in (*timer["OnCalendar"], *plain_timer["OnCalendar"]):
        subprocess.run(["systemd-analyze", "calendar", when], check=True, capture_output=True)


WRONG: Final[Mapping[str, str]] = {
    'repoPath = lib.mkForce "fleet";': 'repoPath is "fleet": it must be an absolute path',
    'inboxOrg = "inbox.org";': "it must be an absolute path",
    'metricsFile = "x.prom";': "it must be an absolute path",
    'ntfyTokenFile = "/nix/store/token";': "ntfyTokenFile is in the Nix store, which everybody on the host can read",
    'appriseUrlsFile = "/nix/store/urls";': "appriseUrlsFile is in the Nix store",
    'autoFix.envFile = "/nix/store/env";': "autoFix.envFile is in the Nix store",
    'nats.tokenFile = "/nix/store/token"; nats.url = "tls://x";': "nats.tokenFile is in the Nix store",
    'builder = "nats";': "nats.url must be set too",
    'nats.tokenFile = "/t";': "is set without services.nix-flake-updater.nightly.nats.url",
    'nats = { url = "tls://x"; tokenFile = "/t"; nkeyFile = "/n"; };': "are set: one is enough",
    'nats = { url = "tls://x"; clientCert = "/c"; };': "go together",
    'nats = { url = "tls://x"; prefix = "build.>"; };': "must be words of letters",
    'nats = { url = "tls://x"; repository = "a/b"; };': "must be a name of letters",
    "autoMerge = true; push = false;": "what is merged is the remote's main branch",
    'forge.kind = "github";': "forge.repository and services.nix-flake-updater.nightly.forge.tokenFile must be set too",
    'forge = { kind = "gitea"; repository = "us/fleet"; tokenFile = "/t"; };': "forge.url is missing",
}


@pytest.fixture(scope="module")
def complaints() -> Mapping[str, Sequence[str]]:
    """For each wrong set of options the assertions that failed, all evaluated at once."""
    modules = " ".join(f"({{ lib, ... }}: {{ services.nix-flake-updater.nightly = {{ {each} }}; }})" for each in WRONG)
    world = f"import {ROOT}/tests/modules/nixos_world.nix {{ libPath = (/. + {json.dumps(str(lib_path()))});"
    found = evaluate(
        f"map (one: ({world} modules = [ {NIXOS[0]} ({FLAKE_UPDATER}) one ]; }}).assertions) [ {modules} ]"
    )
    return dict(zip(WRONG, found, strict=True))


@pytest.mark.parametrize("options", WRONG)
def test_what_cannot_work_is_told_before_it_is_built(options: str, complaints: Mapping[str, Sequence[str]]) -> None:
    """One sentence that names the option and the way out, and no other."""
    (sentence,) = complaints[options]
    assert WRONG[options] in sentence
    assert sentence.startswith("services.nix-flake-updater.nightly")
    assert sentence.endswith(".")


def test_a_name_that_no_unit_may_have_is_refused() -> None:
    seen = evaluate_nixos('{ services.nix-flake-updater."a b".repoPath = "/srv/fleet"; }', modules=NIXOS)
    [sentence] = seen.assertions
    assert sentence.startswith("services.nix-flake-updater.a b: the name of an instance has letters, digits, dots")


def test_without_an_instance_there_is_nothing() -> None:
    seen = evaluate_nixos("{ }", modules=NIXOS)
    assert (seen.units, dict(seen.etc), seen.users) == ({}, {}, {})


def test_the_units_are_the_ones_that_were_reviewed(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """A change of a module shows in a review as what it does to the unit."""
    for kind in ("service", "timer"):
        unit_file.assert_checked_in(f"nix-flake-updater.{kind}", plain.units[f"nix-flake-updater-nightly.{kind}"])
        name = f"nix-flake-updater-everything.{kind}"
        unit_file.assert_checked_in(name, full.units[f"nix-flake-updater-biweekly.{kind}"])
