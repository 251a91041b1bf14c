"""The flake's outputs, by calling its function with a small nixpkgs, and by the flake commands of the real nix.

No network: what stands for nixpkgs is in `flake_fixture`, with the lib of these tests (or that of NIXPKGS_LIB) in it.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from evidence.trust import load_trust
from nixfleet_agent.probes.declaration import read_health_checks
from tests.modules.evaluation import ROOT, evaluate_nixos, lib_path, needs_nix
from tests.modules.nix_runner import ask

pytestmark = needs_nix

HERE = Path(__file__).parent
FIXTURE = HERE / "flake_fixture"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SYSTEMS = {"x86_64-linux", "aarch64-linux", "x86_64-darwin", "aarch64-darwin"}
PARTS = ("flake.nix", "nix", "nixos", "darwin", "templates", "pyproject.toml", "README.md", "LICENSE", "docs/man")


def value(expression: str) -> Any:
    """The value of an expression over `flake`, the flake's outputs, and `pkgs`, of x86_64-linux with its overlay."""
    setting = f"""
      let
        lib = import {lib_path()};
        nixpkgs = import {FIXTURE}/nixpkgs.nix {{
          inherit lib;
          libPath = {lib_path()};
          world = {HERE}/nixos_world.nix;
        }};
        flake = (import {ROOT}/flake.nix).outputs {{ inherit nixpkgs; self = flake // {{ outPath = {ROOT}; }}; }};
        pkgs = nixpkgs.legacyPackages.x86_64-linux.extend flake.overlays.default;
        package = flake.packages.x86_64-linux.default;
      in {expression}
    """
    return json.loads(ask(setting, readable=[ROOT, lib_path()]).json)


@functools.cache
def names(path: str) -> frozenset[str]:
    return frozenset(value(f"builtins.attrNames {path}"))


def requirement_name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return found[0]


# --- outputs --------------------------------------------------------------------------------------------------------


def test_the_flake_has_these_outputs_and_one_input() -> None:
    outputs = {"packages", "overlays", "nixosModules", "darwinModules", "checks", "devShells", "formatter", "templates"}
    assert names("flake") == outputs | {"lib"}
    assert names("flake.lib") == {"mkFleet", "fleetModules"}
    assert value(f"builtins.attrNames (import {ROOT}/flake.nix).inputs") == ["nixpkgs"]
    assert not (ROOT / "flake.lock").exists(), "which nixpkgs it is, is up to the fleet"


@pytest.mark.parametrize("output", ["packages", "checks", "devShells", "formatter"])
def test_it_is_for_linux_and_for_macs(output: str) -> None:
    assert names(f"flake.{output}") == SYSTEMS


def test_the_package_goes_by_both_names_everywhere() -> None:
    for system in SYSTEMS:
        assert names(f"flake.packages.{system}") == {"default", "nixfleet-agent"}
    assert value("package.drvPath == pkgs.nixfleet-agent.drvPath") is True


def test_checks_are_what_each_system_can_run() -> None:
    assert names("flake.checks.x86_64-linux") == {"package", "demo", "modules", "fleet"}
    assert names("flake.checks.aarch64-darwin") == {"package", "demo"}


def test_every_output_can_be_named_by_its_derivation() -> None:
    paths = value("""
      map (system: map (output: lib.mapAttrsToList (_: one: one.drvPath) flake.${output}.${system})
        [ "packages" "checks" "devShells" ] ++ [ flake.formatter.${system}.drvPath ]) (lib.attrNames flake.packages)
    """)
    assert len(paths) == len(SYSTEMS)
    assert all(path.endswith(".drv") for each in paths for path in flat(each))


def flat(tree: Any) -> Sequence[str]:
    return [tree] if isinstance(tree, str) else [leaf for branch in tree for leaf in flat(branch)]


# --- modules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (
            "nixosModules",
            {
                "default",
                "gradient-deploy",
                "nix-flake-updater",
                "nixfleet-agent",
                "nixfleet-builder",
                "nixfleet-control-plane",
                "nixfleet-release",
            },
        ),
        ("darwinModules", {"default", "nixfleet-agent"}),
    ],
)
def test_each_module_is_a_path_that_is_there(output: str, expected: set[str]) -> None:
    paths = value(f"lib.mapAttrs (_: module: map toString module.imports) flake.{output}")
    assert set(paths) == expected
    for [path] in paths.values():
        assert Path(path).resolve().exists()


def test_the_modules_need_no_flake() -> None:
    for path in [*(ROOT / "nixos").rglob("*.nix"), *(ROOT / "darwin").rglob("*.nix")]:
        assert not re.search(r"\b(self|inputs|nixpkgs)\.", path.read_text()), path


def test_one_module_imported_twice_is_one_module() -> None:
    seen = evaluate_nixos(
        '{ services.nixfleet-agent = { enable = true; machineId = "web1"; controlPlaneUrl = "https://cp"; }; }',
        modules=[ROOT / "nixos", ROOT / "nixos/nixfleet-agent.nix"],
    )
    assert "nixfleet-agent.service" in seen.units


# --- the package ----------------------------------------------------------------------------------------------------


def test_the_package_has_exactly_the_dependencies_of_the_project() -> None:
    found = value("map (one: one.pname) package.dependencies")
    assert sorted(found) == sorted(map(requirement_name, PROJECT["dependencies"]))


def test_the_package_says_what_the_project_says() -> None:
    asked = value("{ inherit (package.asked) pname version pyproject meta; programs = package.programs; }")
    assert (asked["pname"], asked["version"], asked["pyproject"]) == (PROJECT["name"], PROJECT["version"], True)
    assert asked["meta"]["description"] == PROJECT["description"]
    assert asked["meta"]["mainProgram"] in PROJECT["scripts"]
    assert asked["meta"]["license"]["spdxId"] == PROJECT["license"]
    assert set(asked["programs"]) == set(PROJECT["scripts"])


@pytest.mark.parametrize("name", ["jcs", "nkeys"])
def test_what_nixpkgs_lacks_is_the_version_that_is_tested_here(name: str) -> None:
    source = value(f"(lib.head (lib.filter (one: one.pname == {json.dumps(name)}) package.dependencies)).asked.src")
    assert f"{name}=={source['version']}\n" in (ROOT / "requirements.lock").read_text()
    assert re.fullmatch(r"sha256-[A-Za-z0-9+/]{43}=", source["hash"])


def test_a_nixpkgs_that_has_them_is_preferred() -> None:
    found = value("""
      map (one: one.theirs or false) (pkgs.nixfleet-agent.override {
        python3Packages = pkgs.python3Packages // { jcs.theirs = true; nkeys.theirs = true; };
      }).dependencies
    """)
    assert found.count(True) == 2


def test_the_source_is_what_the_build_reads_and_nothing_else() -> None:
    # Copied into a store of the test's own by asking for it.
    answer = ask(
        f'builtins.readDir "${{import {ROOT}/nix/source.nix {{ lib = import {lib_path()}; }}}}"',
        readable=[ROOT, lib_path(), Path("/nix/store")],
    )
    packages = {"state_machine", "wire", "evidence", "messaging", "nixfleet_agent", "control_plane", "nixfleet"}
    assert set(json.loads(answer.json)) == packages | {"pyproject.toml", "README.md", "LICENSE", "docs"}


def test_completions_and_manuals_are_installed() -> None:
    text = value("package.asked.postInstall")
    assert "installManPage docs/man/*.[1-8]" in text
    assert "installShellCompletion" in text
    assert list((ROOT / "docs/man").glob("*.[1-8]"))


# --- with the flake commands ----------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Flakes:
    """A copy of what the flake needs, a nixpkgs beside it, and nix with a store of its own."""

    root: Path

    def nix(self, *words: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            ["nix", "--extra-experimental-features", "nix-command flakes", *words],
            env=self.environment(),
            cwd=cwd or self.root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def environment(self) -> dict[str, str]:
        places = {name: str(self.root / name.lower()) for name in ("NIX_STORE_DIR", "NIX_STATE_DIR", "NIX_LOG_DIR")}
        settings = "build-users-group =\nsubstituters =\nflake-registry =\nsandbox = false\n"
        return {"PATH": os.environ["PATH"], "HOME": str(self.root / "home"), "NIX_CONFIG": settings, **places}

    @property
    def here(self) -> Sequence[str]:
        return (f"path:{self.root}/project", *self.instead)

    @property
    def instead(self) -> Sequence[str]:
        return ("--override-input", "nixpkgs", f"path:{self.root}/nixpkgs", "--no-write-lock-file")


@pytest.fixture(scope="module")
def flakes(tmp_path_factory: pytest.TempPathFactory) -> Flakes:
    root = tmp_path_factory.mktemp("flakes").resolve()
    (root / "home").mkdir()
    shutil.copytree(FIXTURE, root / "nixpkgs")
    shutil.copytree(lib_path(), root / "nixpkgs/lib")
    shutil.copytree(HERE / "world", root / "nixpkgs/world")
    shutil.copy(HERE / "nixos_world.nix", root / "nixpkgs")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        (root / "project" / part).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / part, root / "project" / part)
    return Flakes(root=root)


def test_nix_sees_a_flake_with_one_input(flakes: Flakes) -> None:
    said = json.loads(flakes.nix("flake", "metadata", "--json", *flakes.here))
    assert said["description"].startswith("The deployment agent")
    assert set(said["locks"]["nodes"]["root"]["inputs"]) == {"nixpkgs"}


def test_nix_shows_every_output(flakes: Flakes) -> None:
    shown = json.loads(flakes.nix("flake", "show", "--json", *flakes.here))
    assert shown["packages"]["x86_64-linux"]["default"]["name"] == f"nixfleet-agent-{PROJECT['version']}"
    assert shown["checks"]["aarch64-linux"]["fleet"]["type"] == "derivation"
    assert shown["nixosModules"]["default"]["type"] == "nixos-module"
    assert shown["templates"]["default"]["type"] == "template"


def test_nix_finds_nothing_wrong_with_the_flake(flakes: Flakes) -> None:
    flakes.nix("flake", "check", "--no-build", *flakes.here)


def test_evaluation_writes_no_lock_file_and_needs_none(flakes: Flakes) -> None:
    assert not (flakes.root / "project/flake.lock").exists()


# --- the template ---------------------------------------------------------------------------------------------------

TEMPLATE = ROOT / "templates/fleet"


@pytest.fixture(scope="module")
def fleet(flakes: Flakes) -> Path:
    """A new fleet after the first command of its README."""
    where = flakes.root / "fleet"
    # `nix flake init` copies that path, but cannot be told to leave our only input alone, which is on the network.
    template = flakes.nix("eval", "--raw", f"{flakes.here[0]}#templates.default.path", *flakes.instead)
    shutil.copytree(template, where)
    for path in [where, *where.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    nixfleet("keygen", "--out", "keys", "--san", "cp.example.org", cwd=where)
    for name in ("trust.json", "ca.pem", "cache.pub"):
        shutil.copy(where / "keys" / name, where / "public")
    return where


def nixfleet(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nixfleet", *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_fleet_has_every_file_of_the_template(fleet: Path) -> None:
    for path in TEMPLATE.rglob("*"):
        assert (fleet / path.relative_to(TEMPLATE)).exists()


def inputs_of(flakes: Flakes) -> Sequence[str]:
    """This project and the nixpkgs of these tests, for what a new fleet has from the network."""
    project, nixpkgs = f"path:{flakes.root}/project", f"path:{flakes.root}/nixpkgs"
    return [
        *("--override-input", "nixfleet", project),
        *flakes.instead,
        *("--override-input", "nixfleet/nixpkgs", nixpkgs),
    ]


@pytest.mark.parametrize("host", ["cp", "web1", "web2"])
def test_each_host_of_a_new_fleet_evaluates_without_a_complaint(flakes: Flakes, fleet: Path, host: str) -> None:
    inputs = inputs_of(flakes)
    attribute = f"path:{fleet}#nixosConfigurations.{host}"
    toplevel = flakes.nix("eval", "--raw", *inputs, f"{attribute}.config.system.build.toplevel.drvPath")
    assert toplevel.endswith("-nixos-system.drv")
    units = json.loads(flakes.nix("eval", "--json", *inputs, f"{attribute}.seen.units"))
    service = "nixfleet-control-plane.service" if host == "cp" else "nixfleet-agent.service"
    assert {unit for unit in units if unit.startswith("nixfleet")} == {service}


def test_the_agents_of_a_new_fleet_can_read_what_they_are_given(flakes: Flakes, fleet: Path) -> None:
    inputs = inputs_of(flakes)
    seen = json.loads(flakes.nix("eval", "--json", *inputs, f"path:{fleet}#nixosConfigurations.web1.seen.etc"))
    probes = read_health_checks(seen["nixfleet/agent/health-checks.json"]["text"].encode(), platform="linux")
    assert {probe.name for probe in probes} == {"sshd", "units"}
    assert load_trust(fleet / "public/trust.json").ci_release_key is not None


@pytest.fixture(scope="module")
def described(flakes: Flakes, fleet: Path) -> Any:
    """What `nixfleet release --flake` reads of a new fleet."""
    return json.loads(flakes.nix("eval", "--json", *inputs_of(flakes), f"path:{fleet}#fleet"))


def test_the_hosts_described_are_those_configured(flakes: Flakes, fleet: Path, described: Any) -> None:
    assert set(described["hosts"]) == {"web1", "web2"}
    for name, host in described["hosts"].items():
        seen = flakes.nix("eval", "--json", *inputs_of(flakes), f"path:{fleet}#nixosConfigurations.{name}.seen.units")
        [service] = [text for unit, text in json.loads(seen).items() if unit == "nixfleet-agent.service"]
        assert all(f"--tag={tag}" in service for tag in host["tags"])


def test_the_description_of_a_new_fleet_passes_every_check_and_is_released(fleet: Path, described: Any) -> None:
    (fleet / "described.json").write_text(json.dumps(described))
    store = "/nix/store/11111111111111111111111111111111-nixos-system-web1-25.11"
    keys = ["--ci-key", "keys/ci-release.pem", "--trust-file", "keys/trust.json"]
    wanted = ["described.json", "--commit", "4be0c1", "--closure", f"web1={store}"]
    planned = nixfleet("release", *wanted, "--dry-run", cwd=fleet)
    assert [line.split()[0] for line in planned.splitlines()[1:3]] == ["web1", "web2"]
    nixfleet("release", *wanted, *keys, cwd=fleet)
    published = json.loads((fleet / "releases/fleet.resolved.json").read_text())
    assert set(published["hosts"]) == {"web1", "web2"}


def test_the_tokens_of_the_readme_can_be_minted(fleet: Path, described: Any) -> None:
    keys = ["--org-root-key", "keys/org-root.pem", "--ci-key", "keys/ci-release.pem", "--trust-file", "keys/trust.json"]
    (fleet / "web1.pub").write_text(described["hosts"]["web1"]["pubkey"] + "\n")
    nixfleet("mint-token", "--hostname", "web1", "--pubkey", "web1.pub", *keys, "--out", "token.json", cwd=fleet)
    assert (fleet / "token.json").stat().st_mode & 0o077 == 0


def readme_commands() -> Sequence[str]:
    return re.findall(r"```console\n\$ (.*)\n```", (TEMPLATE / "README.md").read_text())


def test_the_readme_has_five_commands_whose_flags_exist() -> None:
    assert len(readme_commands()) == 5
    for command in readme_commands():
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        for program, rest in re.findall(r"nixfleet (keygen|mint-token|release) ([^;&]*)", command):
            known = nixfleet(program, "--help", cwd=ROOT)
            flags = set(re.findall(r"--[a-z-]+", rest)) | {"--help"}
            assert all(re.search(rf"{flag}\b", known) for flag in flags), command


@pytest.mark.parametrize("status", [0, 1])
def test_the_last_command_of_the_readme_publishes_what_was_released_and_nothing_else(
    tmp_path: Path, status: int
) -> None:
    for program, ends in (("nixfleet", status), ("rsync", 0)):
        script = tmp_path / program
        script.write_text(f'#!/bin/sh\necho "{program} $*" >> {tmp_path}/calls\nexit {ends}\n')
        script.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", readme_commands()[-1]], env=environment, capture_output=True, check=False)
    release, *publish = calls(tmp_path)
    assert release.startswith("nixfleet release --flake . --copy-to ")
    assert (done.returncode, len(publish)) == (status, 1 - status)
    assert all(line.startswith("rsync -a --chmod=a+rX releases/ ") for line in publish)


def calls(where: Path) -> Sequence[str]:
    return (where / "calls").read_text().splitlines()


def test_no_private_key_of_a_new_fleet_would_be_committed() -> None:
    ignored = (TEMPLATE / ".gitignore").read_text().splitlines()
    assert {"/keys/", "/tokens/", "/releases/"} <= set(ignored)
