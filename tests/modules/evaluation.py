"""Evaluate the modules for NixOS and nix-darwin with the real nix, and see what they make of a configuration.

Nothing is built, no network and no nixpkgs is needed: `tests/modules/lib` stands for nixpkgs' lib (or, when the
environment names its directory as NIXPKGS_LIB, the real one is used), and `nixos_world.nix` and `darwin_world.nix`
declare the options that our modules set.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from tests.modules.nix_runner import EvaluationError as EvaluationError
from tests.modules.nix_runner import ask

ROOT: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
NIXOS: Final = (ROOT / "nixos/default.nix",)
"""All that `nixosModules.default` has."""
GRADIENT_DEPLOY: Final = (*NIXOS, ROOT / "nixos/gradient-deploy.nix")
"""The same with what goes in the place of the stock Gradient client's module."""
DARWIN: Final = (ROOT / "darwin/default.nix",)
FIXTURE_LIB: Final = HERE / "lib"
IMPERMANENCE: Final = HERE / "world/impermanence.nix"
"""A module that declares `environment.persistence`, as hosts have it that forget everything else."""

NO_NIX: Final = "nix-instantiate is not installed"
needs_nix: Final = pytest.mark.skipif(shutil.which("nix-instantiate") is None, reason=NO_NIX)


@attrs.frozen(kw_only=True)
class EtcFile:
    """A file below /etc: `source` is where it links to or is copied from, `text` what it says, if that is known."""

    source: str
    text: str | None
    mode: str
    user: str
    group: str


@attrs.frozen(kw_only=True)
class Value:
    """A default or an example: a Nix expression, or words where no expression would help."""

    text: str
    is_markdown: bool


@attrs.frozen(kw_only=True)
class Option:
    """An option as its documentation has it."""

    name: str
    type: str
    description: str
    default: Value | None
    example: Value | None
    read_only: bool


@attrs.frozen(kw_only=True)
class Evaluated:
    """What both kinds of system make of a configuration."""

    host_name: str | None
    etc: Mapping[str, EtcFile]
    """By name below /etc."""
    assertions: Sequence[str]
    """The messages of the assertions that failed; a real system refuses to build with any."""
    warnings: Sequence[str]
    system_packages: Sequence[str]
    values: Mapping[str, Any]
    """The values of the options that the caller asked to `show`, with paths and packages as strings."""
    files: Mapping[str, str]
    """The text of every store file that the evaluation generated, by store path."""
    messages: str
    """What nix printed beside the result, such as traces."""


@attrs.frozen(kw_only=True)
class NixosEvaluated(Evaluated):
    """What NixOS makes of it."""

    units: Mapping[str, str]
    """The text of every unit file, by its name with suffix."""
    wanted_by: Mapping[str, Sequence[str]]
    """For each unit those that link to it from their `.wants`."""
    required_by: Mapping[str, Sequence[str]]
    tcp_ports: Sequence[int]
    interface_tcp_ports: Mapping[str, Sequence[int]]
    tmpfiles: Sequence[str]
    users: Mapping[str, Any]
    groups: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class DarwinEvaluated(Evaluated):
    """What nix-darwin makes of it."""

    daemons: Mapping[str, Mapping[str, Any]]
    """The property list of every daemon, by its label."""
    activation: Mapping[str, str]
    """The shell text of `preActivation`, `extraActivation` and `postActivation`."""


def evaluate_nixos(
    config: str,
    *,
    modules: Sequence[Path] = (),
    extra: str = "",
    show: Sequence[str] = (),
    packages: Mapping[str, str] | None = None,
) -> NixosEvaluated:
    """Evaluate `config`, a module as Nix source, together with `modules`, most often `NIXOS`.

    `extra` is the source of one more module, from a file of its own as far as messages go. `show` names options whose
    values are wanted. `packages` gives packages of `pkgs`, by name, another output path; a test that installs what is
    rendered names what is really there.

    Raises `EvaluationError` when nix refuses, which failed assertions alone do not make it do.
    """
    seen, common = _evaluate("nixos", config, modules=modules, extra=extra, show=show, packages=packages or {})
    firewall = seen["firewall"]
    return NixosEvaluated(
        **common,
        units=seen["units"],
        wanted_by=seen["wantedBy"],
        required_by=seen["requiredBy"],
        tcp_ports=firewall["allowedTCPPorts"],
        interface_tcp_ports={name: one["allowedTCPPorts"] for name, one in firewall["interfaces"].items()},
        tmpfiles=seen["tmpfiles"],
        users=seen["users"],
        groups=seen["groups"],
    )


def evaluate_darwin(
    config: str,
    *,
    modules: Sequence[Path] = (),
    extra: str = "",
    show: Sequence[str] = (),
    packages: Mapping[str, str] | None = None,
) -> DarwinEvaluated:
    """The same for nix-darwin; see `evaluate_nixos`."""
    seen, common = _evaluate("darwin", config, modules=modules, extra=extra, show=show, packages=packages or {})
    return DarwinEvaluated(**common, daemons=seen["daemons"], activation=seen["activation"])


OURS: Final = ("services.nix", "system.gradient-deploy")
"""How the names of our options begin."""


def option_docs(world: str, modules: Sequence[Path], *, prefixes: Sequence[str] = OURS) -> Sequence[Option]:
    """Every visible option of `modules` whose name begins like that, in the world `nixos` or `darwin`, by name.

    Always by our own lib, as nixpkgs puts the same types into other words from one release to the next.

    Raises `EvaluationError` when nix refuses the modules.
    """
    call = _call(world, [_path(module) for module in modules], lib=FIXTURE_LIB)
    begins = " || ".join(f"builtins.substring 0 {len(prefix)} one.name == {_quoted(prefix)}" for prefix in prefixes)
    shown = f"one: one.visible && !one.internal && ({begins})"
    answer = ask(f"builtins.filter ({shown}) ({call}).documentation", readable=_readable(modules))
    return sorted(map(_option, json.loads(answer.json)), key=lambda option: option.name)


def evaluate(expression: str) -> Any:
    """The value of an expression in which `lib` is the lib under test.

    Raises `EvaluationError`.
    """
    return json.loads(ask(f"let lib = import {_path(lib_path())}; in {expression}", readable=_readable(())).json)


def lib_path() -> Path:
    """The directory of the lib in use."""
    named = os.environ.get("NIXPKGS_LIB")
    return Path(named).resolve() if named else FIXTURE_LIB


def _evaluate(
    world: str,
    config: str,
    *,
    modules: Sequence[Path],
    extra: str,
    show: Sequence[str],
    packages: Mapping[str, str],
) -> tuple[Any, dict[str, Any]]:
    """What the world reports, and of that what all worlds report, as fields of `Evaluated`."""
    sources = [_located("configuration.nix", config), *([_located("extra.nix", extra)] if extra else [])]
    call = _call(world, [*map(_path, modules), *sources], show=show, packages=packages)
    answer = ask(f'removeAttrs ({call}) [ "documentation" ]', readable=_readable(modules))
    seen = json.loads(answer.json)
    return seen, {
        "host_name": seen["hostName"],
        "etc": {name: _etc_file(one, answer.files) for name, one in seen["etc"].items()},
        "assertions": seen["assertions"],
        "warnings": seen["warnings"],
        "system_packages": seen["systemPackages"],
        "values": seen["values"],
        "files": answer.files,
        "messages": answer.messages,
    }


def _call(
    world: str,
    modules: Sequence[str],
    *,
    show: Sequence[str] = (),
    packages: Mapping[str, str] | None = None,
    lib: Path | None = None,
) -> str:
    replaced = " ".join(f"{_quoted(name)} = {_quoted(path)};" for name, path in (packages or {}).items())
    return (
        f"import {_path(HERE / f'{world}_world.nix')} {{ libPath = {_path(lib or lib_path())};"
        f" modules = [ {' '.join(modules)} ];"
        f" show = [ {' '.join(map(_quoted, show))} ]; packages = {{ {replaced} }}; }}"
    )


def _readable(modules: Sequence[Path]) -> Sequence[Path]:
    return [ROOT, lib_path(), *(module.parent for module in modules)]


def _located(file: str, source: str) -> str:
    """A module that messages name as `file`."""
    return f"{{ _file = {_quoted(file)}; imports = [ ({source}\n) ]; }}"


def _path(path: Path) -> str:
    """A Nix expression for a path, whatever characters it has."""
    return f"(/. + {_quoted(str(path))})"


def _quoted(text: str) -> str:
    """A Nix string; JSON has the same escapes but does not know `${`."""
    return json.dumps(text, ensure_ascii=False).replace("${", "\\${")


def _etc_file(one: Mapping[str, Any], files: Mapping[str, str]) -> EtcFile:
    text = one["text"] if one["text"] is not None else files.get(one["source"])
    return EtcFile(source=one["source"], text=text, mode=one["mode"], user=one["user"], group=one["group"])


def _option(item: Mapping[str, Any]) -> Option:
    return Option(
        name=item["name"],
        type=item["type"],
        description=(item["description"] or "").strip(),
        default=_value(item.get("default")),
        example=_value(item.get("example")),
        read_only=item["readOnly"],
    )


def _value(shown: Mapping[str, str] | None) -> Value | None:
    return None if shown is None else Value(text=shown["text"].strip(), is_markdown=shown["_type"] == "literalMD")
