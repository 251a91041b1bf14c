"""`services.nixfleet-builder` on NixOS: what is set in Nix arrives at `nixfleet builder`, by a service of few rights.

The rendered file is read back by the program's own reader.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import pytest

from messaging.server import Server
from nixfleet.builder.service import server_in
from nixfleet.builder.settings import Settings, Source, read_settings
from tests.modules import unit_file
from tests.modules.evaluation import NIXOS, ROOT, NixosEvaluated, evaluate, evaluate_nixos, lib_path, needs_nix

pytestmark = needs_nix
FILE: Final = "nixfleet/builder.toml"
UNIT: Final = "nixfleet-builder.service"

PLAIN: Final = """
{
  services.nixfleet-builder = {
    enable = true;
    repositories.own.url = "https://git.example.org/us/fleet.git";
    nats.url = "tls://nats.example.org:4222";
  };
}
"""
EVERYTHING: Final = """
{ pkgs, ... }:
{
  networking.proxy.envVars.https_proxy = "http://proxy.example.org:3128";
  services.nixfleet-builder = {
    enable = true;
    path = [ pkgs.jq ];
    user = "root";
    name = "the \\"big\\" one";
    role = "ci";
    metricsPort = 9105;
    hosts = [ "web*" "db1" ];
    parallel = 7;
    buildTimeout = "90m";
    memoryMax = "8G";
    patience = 60;
    keep = 9;
    cache = "s3://cache?region=eu&profile=${"$"}{x}";
    signingKeyFile = "/run/secrets/cache key";
    prefix = "us.build";
    newsPrefix = "us.news";
    repositories.own = {
      url = "git@git.example.org:us/fleet.git";
      branch = "trunk";
      flakePath = "systems";
      hosts = [ "web*" ];
      prebuild = true;
    };
    repositories.theirs.url = "https://git.example.org/them/fleet.git";
    nats = {
      url = "tls://nats.example.org:4222";
      nkeyFile = "/run/secrets/nkey";
      caCert = "/etc/ssl/nats-ca.pem";
      clientCert = "/etc/ssl/builder.pem";
      clientKeyFile = "/run/secrets/builder-key";
    };
  };
}
"""


@pytest.fixture(scope="module")
def plain() -> NixosEvaluated:
    """A builder of one repository."""
    return evaluate_nixos(PLAIN, modules=NIXOS)


@pytest.fixture(scope="module")
def full() -> NixosEvaluated:
    """One with every option set."""
    return evaluate_nixos(EVERYTHING, modules=NIXOS)


def settings(seen: NixosEvaluated, directory: Path) -> Settings:
    """What the program's own reader makes of the file."""
    text = seen.etc[FILE].text
    assert text is not None
    path = directory / "builder.toml"
    path.write_text(text)
    return read_settings(path)


def service(seen: NixosEvaluated) -> Mapping[str, Sequence[str]]:
    return unit_file.settings(seen.units[UNIT], "Service")


def test_the_defaults_are_those_of_the_program(plain: NixosEvaluated, tmp_path: Path) -> None:
    assert (plain.assertions, plain.warnings) == ([], [])
    assert settings(plain, tmp_path) == Settings(
        state_dir=Path("/var/lib/nixfleet-builder"),
        repositories={"own": Source(name="own", url="https://git.example.org/us/fleet.git")},
        nats={"url": "tls://nats.example.org:4222"},
    )


def test_every_option_arrives_at_the_program(full: NixosEvaluated, tmp_path: Path) -> None:
    """Set in Nix, rendered as TOML, read by the program: the same values."""
    assert not full.assertions
    seen = settings(full, tmp_path)
    assert attrs.evolve(seen, nats={}) == Settings(
        state_dir=Path("/var/lib/nixfleet-builder"),
        repositories={
            "own": Source(
                name="own",
                url="git@git.example.org:us/fleet.git",
                branch="trunk",
                flake_path="systems",
                hosts=("web*",),
                prebuild=True,
            ),
            "theirs": Source(name="theirs", url="https://git.example.org/them/fleet.git"),
        },
        parallel=7,
        memory_max="8G",
        build_timeout=5400,
        patience=60,
        keep=9,
        cache="s3://cache?region=eu&profile=${x}",
        signing_key_file=Path("/run/secrets/cache key"),
        hosts=("web*", "db1"),
        name='the "big" one',
        prefix="us.build",
        news_prefix="us.news",
        role="ci",
        metrics_port=9105,
    )
    assert server_in(seen, FILE) == Server(
        url="tls://nats.example.org:4222",
        nkey_file=Path("/run/secrets/nkey"),
        ca_cert=Path("/etc/ssl/nats-ca.pem"),
        client_cert=Path("/etc/ssl/builder.pem"),
        client_key=Path("/run/secrets/builder-key"),
    )


def test_no_key_of_the_program_was_forgotten(full: NixosEvaluated, tmp_path: Path) -> None:
    """A new key needs an option: here every one of them is something else than without it."""
    seen = settings(full, tmp_path)
    unset = Settings(state_dir=Path(), repositories={})
    same = {field.name for field in attrs.fields(Settings) if getattr(seen, field.name) == getattr(unset, field.name)}
    assert not same
    source, bare = seen.repositories["own"], Source(name="", url="")
    assert not {
        field.name for field in attrs.fields(Source) if getattr(source, field.name) == getattr(bare, field.name)
    }


@pytest.mark.parametrize("name", ["credentials", "token"])
def test_each_way_to_prove_who_asks_arrives(name: str, tmp_path: Path) -> None:
    more = f'{{ services.nixfleet-builder.nats.{name}File = "/run/secrets/it"; }}'
    seen = evaluate_nixos(f"{{ imports = [ ({PLAIN}) ({more}) ]; }}", modules=NIXOS)
    assert not seen.assertions
    server = server_in(settings(seen, tmp_path), FILE)
    assert getattr(server, f"{name}_file") == Path("/run/secrets/it")


def test_the_service_runs_the_builder_and_waits_for_its_word(plain: NixosEvaluated) -> None:
    program, *words = unit_file.command(plain.units[UNIT])
    assert program.endswith("/bin/nixfleet")
    assert words == ["builder", f"--config=/etc/{FILE}"]
    assert service(plain)["Type"] == ["notify"]
    assert plain.wanted_by[UNIT] == ["multi-user.target"]


def test_a_change_of_the_settings_restarts_it(plain: NixosEvaluated) -> None:
    more = "{ services.nixfleet-builder.parallel = 3; }"
    other = evaluate_nixos(f"{{ imports = [ ({PLAIN}) ({more}) ]; }}", modules=NIXOS)
    assert other.units[UNIT] != plain.units[UNIT]


def test_the_default_user_is_made_and_may_write_to_its_own_directory_alone(
    plain: NixosEvaluated, full: NixosEvaluated
) -> None:
    seen = service(plain)
    assert (seen["User"], seen["ProtectSystem"]) == (["nixfleet-builder"], ["strict"])
    assert seen["StateDirectory"] == ["nixfleet-builder"]
    assert plain.users["nixfleet-builder"]["home"] == "/var/lib/nixfleet-builder"
    assert service(full)["User"] == ["root"]
    assert not full.users


WRONG: Final[Mapping[str, str]] = {
    "repositories = lib.mkForce { };": "repositories is empty: name what is to be built from",
    'repositories."a b".url = "https://x.example";': "repositories.a b: the name of a repository has letters, digits",
    'nats.url = lib.mkForce "http://x";': 'nats.url is "http://x": it must be tls:// or nats:// with a host',
    'nats.url = lib.mkForce "tls://user:x@y";': "it must be tls:// or nats:// with a host",
    'nats.nkeyFile = "/a"; nats.tokenFile = "/b";': "nats.tokenFile are set: one is enough",
    'nats.nkeyFile = "/nix/store/key";': "nats.nkeyFile is in the Nix store, which everybody on the host can read",
    'nats.credentialsFile = "creds";': 'nats.credentialsFile is "creds": it must be an absolute path',
    'nats.tokenFile = "/nix/store/token";': "nats.tokenFile is in the Nix store",
    'nats.clientKeyFile = "/nix/store/key"; nats.clientCert = "/a";': "nats.clientKeyFile is in the Nix store",
    'nats.clientCert = "/a";': "nats.clientKeyFile go together: set both, or neither",
    'nats.url = lib.mkForce "nats://x"; nats.caCert = "/a";': "nats.url is nats://x, which has no certificates",
    'signingKeyFile = "/nix/store/key";': "signingKeyFile is in the Nix store",
    'memoryMax = "8G";': 'memoryMax needs services.nixfleet-builder.user = "root"',
    'prefix = "a b";': 'prefix is "a b": it must be words of letters, digits',
    'newsPrefix = "a.*";': 'newsPrefix is "a.*": it must be words of letters, digits',
}


@pytest.fixture(scope="module")
def complaints() -> Mapping[str, Sequence[str]]:
    """For each wrong set of options the assertions that failed, all evaluated at once."""
    modules = " ".join(f"({{ lib, ... }}: {{ services.nixfleet-builder = {{ {each} }}; }})" for each in WRONG)
    world = f"import {ROOT}/tests/modules/nixos_world.nix {{ libPath = (/. + {json.dumps(str(lib_path()))});"
    found = evaluate(f"map (one: ({world} modules = [ {NIXOS[0]} ({PLAIN}) one ]; }}).assertions) [ {modules} ]")
    return dict(zip(WRONG, found, strict=True))


@pytest.mark.parametrize("options", WRONG)
def test_what_cannot_work_is_told_before_it_is_built(options: str, complaints: Mapping[str, Sequence[str]]) -> None:
    """One sentence that names the option and the way out, and no other."""
    (sentence,) = complaints[options]
    assert WRONG[options] in sentence
    assert sentence.startswith("services.nixfleet-builder.")
    assert sentence.endswith(".")


def test_without_it_there_is_nothing() -> None:
    seen = evaluate_nixos("{ }", modules=NIXOS)
    assert (seen.units, dict(seen.etc), seen.users) == ({}, {}, {})


def test_the_units_are_the_ones_that_were_reviewed(plain: NixosEvaluated, full: NixosEvaluated) -> None:
    """A change of a module shows in a review as what it does to the unit."""
    unit_file.assert_checked_in(UNIT, plain.units[UNIT])
    unit_file.assert_checked_in("nixfleet-builder-everything.service", full.units[UNIT])
