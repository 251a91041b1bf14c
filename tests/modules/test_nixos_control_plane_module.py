"""`services.nixfleet-control-plane` on NixOS: every flag has its option, the service what it needs and no more.

Its command line is read back by the control plane's own parser.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import pytest

from control_plane.cli import cli
from control_plane.config import Configuration
from evidence.trust import parse_trust, unusable_keys
from tests.modules import unit_file
from tests.modules.evaluation import NIXOS, ROOT, NixosEvaluated, evaluate, evaluate_nixos, lib_path, needs_nix
from tests.modules.sample_hosts import CONTROL_PLANE, CONTROL_PLANE_OF_A_MOVE, CONTROL_PLANE_WITH_EVERYTHING

pytestmark = needs_nix
UNIT: Final = "nixfleet-control-plane.service"
CREDENTIALS: Final = Path("/run/credentials/x")


@pytest.fixture(scope="module")
def plain() -> NixosEvaluated:
    """A control plane with what is required and nothing more."""
    return evaluate_nixos(CONTROL_PLANE, modules=NIXOS)


@pytest.fixture(scope="module")
def full() -> NixosEvaluated:
    """A control plane with every option set."""
    return evaluate_nixos(CONTROL_PLANE_WITH_EVERYTHING, modules=NIXOS)


def settings_of(seen: NixosEvaluated) -> dict[str, Any]:
    """What the control plane's own parser makes of the command line that systemd makes of the unit."""
    words = list(unit_file.command(seen.units[UNIT])[1:])
    with cli.make_context("nixfleet-control-plane", words) as context:
        return dict(context.params)


def service(seen: NixosEvaluated) -> Mapping[str, Sequence[str]]:
    return unit_file.settings(seen.units[UNIT], "Service")


def test_the_defaults_are_those_of_the_program(plain: NixosEvaluated) -> None:
    """A flag that the module always passes never changes what the program would do without it."""
    required = {"tls_cert": CREDENTIALS / "tls-cert", "tls_key": CREDENTIALS / "tls-key"}
    with cli.make_context("nixfleet-control-plane", ["--artifacts=/srv/nixfleet/releases"]) as context:
        unset = dict(context.params)
    assert settings_of(plain) == {**unset, **required}
    assert not plain.assertions
    assert not plain.warnings


def test_every_option_arrives_at_the_program(full: NixosEvaluated) -> None:
    """Set in Nix, rendered, split by systemd's rules, read by the program's own parser: the same values."""
    assert not full.assertions
    said = settings_of(full)
    assert {name: said.pop(name) for name in ("log_format", "log_level")} == {
        "log_format": "json",
        "log_level": "debug",
    }
    assert {name: said.pop(name) for name in said.copy() if name.startswith("nats_")} == {
        "nats_url": "tls://nats.example.org:4222",
        "nats_nkey_file": None,
        "nats_credentials_file": CREDENTIALS / "nats-credentials-file",
        "nats_token_file": None,
        "nats_ca_cert": Path("/etc/nixfleet/nats-ca.pem"),
    }
    assert Configuration(**said) == Configuration(
        listen="[::]:443",
        tls_cert=CREDENTIALS / "tls-cert",
        tls_key=CREDENTIALS / "tls-key",
        client_ca=CREDENTIALS / "client-ca",
        artifacts="https://artifacts.example.org/fleet",
        artifacts_token_file=CREDENTIALS / "artifacts-token-file",
        artifacts_ca_cert=CREDENTIALS / "artifacts-ca-cert",
        artifact_poll_secs=2.5,
        freshness_window_secs=86400,
        fleet_ca_cert=CREDENTIALS / "fleet-ca-cert",
        fleet_ca_key=CREDENTIALS / "fleet-ca-key",
        agent_cn_suffix="hosts.example.org",
        agent_cert_validity_secs=604800,
        audit_log=Path("/var/lib/fleet-audit/issuance.log"),
        db_path=Path("/var/lib/fleet-cp/state.db"),
        closure_upstream="https://cache.example.org",
        metrics_listen="0.0.0.0:9465",
        news_prefix="fleet.news",
        retention_days=30,
        strict=True,
        require_evidence=True,
    )


def test_a_fleet_that_moves_is_served_in_both_generations_of_the_protocol() -> None:
    said = settings_of(evaluate_nixos(CONTROL_PLANE_OF_A_MOVE, modules=NIXOS))
    assert (said["legacy_api"], said["legacy_cache_url"]) == (True, "https://cache.example.org")


def test_no_flag_of_the_program_was_forgotten(full: NixosEvaluated) -> None:
    """A new flag needs an option, or a place in this list."""
    of_no_use_in_a_unit = {"--ready-file"}
    moving = evaluate_nixos(CONTROL_PLANE_OF_A_MOVE, modules=NIXOS)
    known_otherwise = [
        evaluate_nixos(
            CONTROL_PLANE.replace("enable = true;", f'enable = true; nats = {{ url = "tls://n"; {name} = "/s"; }};'),
            modules=NIXOS,
        )
        for name in ("nkeyFile", "tokenFile")
    ]
    seen = (full, moving, *known_otherwise)
    assert not any(each.assertions for each in seen)
    words = [word for each in seen for word in unit_file.command(each.units[UNIT])[1:]]
    passed = {word.partition("=")[0] for word in words}
    flags = {param.opts[0] for param in cli.params if isinstance(param, click.Option) and not param.is_eager}
    assert flags - passed == of_no_use_in_a_unit


def test_keys_are_handed_over_as_credentials(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """So they may belong to root alone, while the service runs as its own user."""
    assert service(plain)["LoadCredential"] == [
        "tls-cert:/var/lib/acme/cp/cert.pem",
        "tls-key:/var/lib/acme/cp/key.pem",
    ]
    assert "fleet-ca-key:/run/secrets/fleet-ca-key.pem" in service(full)["LoadCredential"]
    assert service(plain)["User"] == ["nixfleet-cp"]
    assert plain.users["nixfleet-cp"]["isSystemUser"]
    assert "nixfleet-cp" in plain.groups


def test_it_may_write_in_its_own_directories_only(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """Where the database and the issuance log are."""
    assert service(plain)["StateDirectory"] == ["nixfleet-cp"]
    assert service(full)["StateDirectory"] == ["fleet-cp fleet-audit"]
    assert service(plain)["ProtectSystem"] == ["strict"]
    assert "ReadWritePaths" not in service(plain)


def test_only_a_privileged_port_brings_a_capability(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """And that one alone."""
    assert service(plain)["CapabilityBoundingSet"] == [""]
    assert service(plain)["AmbientCapabilities"] == [""]
    assert service(full)["CapabilityBoundingSet"] == ["CAP_NET_BIND_SERVICE"]
    assert service(full)["AmbientCapabilities"] == ["CAP_NET_BIND_SERVICE"]
    assert service(full)["PrivateUsers"] == ["false"]


def test_the_firewall_is_opened_only_when_asked(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """For the port of `listen`, and for the metrics'."""
    assert list(plain.tcp_ports) == []
    assert sorted(full.tcp_ports) == [443, 9465]


def test_the_trust_options_become_the_file_that_it_reads(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """In the format of the agent's."""
    assert "nixfleet/cp/trust.json" not in plain.etc
    text = full.etc["nixfleet/cp/trust.json"].text
    assert text is not None
    assert not unusable_keys(parse_trust(text.encode()))


WRONG: Final[Mapping[str, str]] = {
    "legacyApi = true;": "legacyApi knows hosts by their certificates alone: set",
    'legacyApi = true; clientCa = "/ca.pem"; requireEvidence = true;': "signs nothing, so nothing it reports could be",
    'legacyCacheUrl = "https://cache.example.org";': "legacyCacheUrl is set without services.nixfleet-control",
    'legacyApi = true; clientCa = "/ca.pem"; legacyCacheUrl = "cache";': "it is no http(s), s3 or ssh URL",
    "tlsCert = lib.mkForce null;": "tlsCert is missing: the server cannot show who it is",
    "tlsKey = lib.mkForce null;": "tlsKey is missing",
    "artifacts = lib.mkForce null;": "artifacts is missing: without signed artifacts there is nothing to route",
    'tlsKey = lib.mkForce "/nix/store/key.pem";': "tlsKey is in the Nix store, which everybody on the host can read",
    'clientCa = "ca.pem";': 'clientCa is "ca.pem": it must be an absolute path',
    'artifacts = lib.mkForce "releases";': "it must be the absolute path of a directory or begin with https://",
    'artifacts = lib.mkForce "http://x/y";': "it must be the absolute path of a directory or begin with https://",
    'artifacts = lib.mkForce "/home/ci/releases";': "the service cannot see /home. Publish below /srv or /var/lib",
    'artifactsTokenFile = "/t";': "artifacts is a directory: remove it",
    "artifactPollSecs = 0;": "artifactPollSecs is 0: the least is 0.1 seconds",
    "freshnessWindowSecs = 0;": "freshnessWindowSecs is 0: the least is 1 second",
    "agentCertValiditySecs = 59;": "agentCertValiditySecs is 59: the least is 60 seconds",
    'fleetCaCert = "/ca.pem";': "a CA cannot issue without its key",
    'fleetCaKey = "/ca-key.pem";': "the key needs its certificate",
    "strict = true;": "strict lets nobody in without a certificate: set services.nixfleet-control-plane.clientCa",
    'listen = "8080";': 'listen is "8080": it must be an address and a port',
    'listen = "0.0.0.0:99999";': "it must be an address and a port",
    'metricsListen = "nowhere";': 'metricsListen is "nowhere": it must be a port',
    "metricsOpenFirewall = true;": "metricsOpenFirewall is set without services.nixfleet-control-plane.metricsListen",
    'metricsOpenFirewall = true; metricsListen = "9465";': "on loopback, where nobody else can reach it",
    'nats.nkeyFile = "/k";': "nats.nkeyFile is set without services.nixfleet-control-plane",
    'nats = { url = "tls://n"; nkeyFile = "/k"; tokenFile = "/t"; };': "tokenFile are set: one is enough",
    'nats.url = "https://n";': 'nats.url is "https://n": it must be tls:// or nats://',
    'nats = { url = "nats://n"; caCert = "/ca.pem"; };': "which has no TLS: write tls://",
    'nats = { url = "tls://n"; newsPrefix = "a.>"; };': 'newsPrefix is "a.>": it must be words',
    'nats = { url = "tls://n"; tokenFile = "token"; };': 'tokenFile is "token": it must be an absolute path',
    'nats = { url = "tls://n"; tokenFile = "/nix/store/t"; };': "tokenFile is in the Nix store",
    'dbPath = "/srv/state.db";': "dbPath is /srv/state.db: the service may only write in a directory below /var/lib",
    'auditLog = "/var/log/issuance.log";': "auditLog is /var/log/issuance.log: the service may only write",
}


@pytest.fixture(scope="module")
def complaints() -> Mapping[str, Sequence[str]]:
    """For each wrong set of options the assertions that failed, all evaluated at once."""
    modules = " ".join(f"({{ lib, ... }}: {{ services.nixfleet-control-plane = {{ {each} }}; }})" for each in WRONG)
    world = f"import {ROOT}/tests/modules/nixos_world.nix {{ libPath = (/. + {json.dumps(str(lib_path()))});"
    found = evaluate(
        f"map (one: ({world} modules = [ {NIXOS[0]} ({CONTROL_PLANE}) one ]; }}).assertions) [ {modules} ]"
    )
    return dict(zip(WRONG, found, strict=True))


@pytest.mark.parametrize("options", WRONG)
def test_what_cannot_work_is_told_before_it_is_built(options: str, complaints: Mapping[str, Sequence[str]]) -> None:
    """One sentence that names the option and the way out, and no other."""
    (sentence,) = complaints[options]
    assert WRONG[options] in sentence
    assert sentence.startswith("services.nixfleet-control-plane.")
    assert sentence.endswith(".")


def test_the_units_are_the_ones_that_were_reviewed(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """A change of a module shows in a review as what it does to the unit."""
    unit_file.assert_checked_in("nixfleet-control-plane.service", plain.units[UNIT])
    unit_file.assert_checked_in("nixfleet-control-plane-everything.service", full.units[UNIT])
