"""Nix, as far as the updater goes: move inputs, list the systems, build one, compare two closures.

The flake is always named as the worktree's git repository, so that what git does not know does not exist. Nothing is
evaluated impurely but the list of systems, which asks the flake for names and nothing else.
"""

import contextlib
import json
import re
import shutil
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import attrs

from nixfleet.update.errors import FlakeError
from nixfleet.update.worktree import environment_here
from nixfleet_agent.commands import CommandError, Completed, run, tail

UPDATE_S: Final = 1800.0
LIST_S: Final = 1800.0
COMPARE_S: Final = 600.0
LISTING: Final = "listing the systems of the flake"
FEATURES: Final = (
    *("--extra-experimental-features", "nix-command flakes"),
    # A flake's own `nixConfig` decides nothing here, whatever the machine's nix.conf says of flakes in general.
    *("--option", "accept-flake-config", "false"),
)
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")

LIST_SYSTEMS: Final = """flake: {
  nixos = builtins.attrNames (flake.nixosConfigurations or { });
  darwin = builtins.attrNames (flake.darwinConfigurations or { });
}"""


@attrs.frozen(kw_only=True, order=True)
class System:
    """One host's system in the flake. `attribute` is its toplevel derivation."""

    host: str
    attribute: str


@attrs.frozen(kw_only=True)
class Built:
    """How the build of one system ended. `path` None: it failed, and `tail` is the end of what was said."""

    system: System
    path: str | None
    seconds: float
    tail: str = ""
    log: Path | None = None

    @property
    def ok(self) -> bool:
        """It is in the store."""
        return self.path is not None


@attrs.frozen(kw_only=True)
class Flake:
    """A flake below `root`, a git worktree."""

    root: Path
    directory: str = ""
    """Where `flake.nix` is below the root; empty: at the top."""

    @property
    def lock_file(self) -> Path:
        """Where the lock is."""
        return self.root / self.directory / "flake.lock"

    @property
    def lock_name(self) -> str:
        """The same as git names it."""
        return str(Path(self.directory) / "flake.lock")

    def at(self, commit: str | None = None) -> str:
        """The flake as Nix is told it: as it lies there, or as it was in a commit."""
        query = [f"rev={commit}"] if commit else []
        query += [f"dir={urllib.parse.quote(self.directory)}"] if self.directory else []
        return f"git+file://{urllib.parse.quote(str(self.root))}" + (f"?{'&'.join(query)}" if query else "")

    def lock(self) -> bytes | None:
        """The lock as it is now; None: there is none."""
        with contextlib.suppress(FileNotFoundError):
            return self.lock_file.read_bytes()
        return None

    async def update(self, inputs: Sequence[str]) -> None:
        """Move the named inputs, or all.

        Raises:
            FlakeError: an input cannot be fetched, or there is none of that name.
        """
        for name in inputs:
            if self._known() and name not in self._known():
                known = ", ".join(sorted(self._known()))
                raise FlakeError(what=f"updating {name}", said=f"the flake has no such input; it has {known}")
        words = await _update_words(inputs)
        done = await nix(*words, within_s=UPDATE_S, where=self.lock_file.parent)
        if not done.ok:
            raise FlakeError(what="nix flake update", said=last_words(done))

    def _known(self) -> frozenset[str]:
        lock = self.lock()
        if lock is None:
            return frozenset()
        document = json.loads(lock)
        return frozenset(document["nodes"][document["root"]].get("inputs", {}))

    async def systems(self, wanted: Sequence[str], *, commit: str | None = None) -> tuple[System, ...]:
        """The wanted systems, or every nixosConfiguration and darwinConfiguration there is, or was in a commit.

        Raises:
            FlakeError: the flake cannot be evaluated, or has no system of a wanted name.
        """
        expression = f"({LIST_SYSTEMS}) (builtins.getFlake {_text(self.at(commit))})"
        done = await nix("eval", "--impure", "--json", "--expr", expression, within_s=LIST_S, where=self.root)
        if not done.ok:
            raise FlakeError(what=LISTING, said=last_words(done))
        return chosen(listed(done.stdout), wanted)

    async def build(
        self,
        system: System,
        *,
        commit: str | None = None,
        within_s: float,
        heard: Callable[[bytes], None] | None = None,
    ) -> tuple[str | None, str]:
        """Build one system's toplevel: its store path, or None and what nix said in the end."""
        return await build_of(self.at(commit), system, within_s=within_s, where=self.root, heard=heard)


def chosen(found: Sequence[System], wanted: Sequence[str]) -> tuple[System, ...]:
    """The systems of these hosts, or all of them, sorted by host.

    Raises:
        FlakeError: there is none of a wanted name.
    """
    missing = set(wanted) - {system.host for system in found}
    if missing:
        known = ", ".join(sorted(system.host for system in found)) or "none"
        raise FlakeError(what=LISTING, said=f"no {', '.join(sorted(missing))}; there are: {known}")
    return tuple(sorted(system for system in found if not wanted or system.host in wanted))


def listed(answer: bytes) -> tuple[System, ...]:
    """The systems of a flake, of what nix makes of `LIST_SYSTEMS` with it, as JSON."""
    names = json.loads(answer)
    nixos = "nixosConfigurations.{}.config.system.build.toplevel"
    systems = [System(host=name, attribute=nixos.format(_quoted(name))) for name in names["nixos"]]
    darwin = [System(host=name, attribute=f"darwinConfigurations.{_quoted(name)}.system") for name in names["darwin"]]
    return (*systems, *darwin)


async def build_of(
    url: str,
    system: System,
    *,
    within_s: float,
    where: Path | None = None,
    heard: Callable[[bytes], None] | None = None,
) -> tuple[str | None, str]:
    """Build a flake's system: the store path of its toplevel, or None and what nix said in the end."""
    words = ("build", "--no-link", "--json", "--print-build-logs", "--no-write-lock-file", f"{url}#{system.attribute}")
    done = await nix(*words, within_s=within_s, where=where, heard=heard)
    if not done.ok:
        return None, last_words(done)
    [result] = json.loads(done.stdout)
    return str(result["outputs"]["out"]), ""


def _text(value: str) -> str:
    """As a string literal of the Nix language."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${") + '"'


def _quoted(name: str) -> str:
    return f'"{name}"' if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name) else name


async def _update_words(inputs: Sequence[str]) -> tuple[str, ...]:
    """From 2.19 on `nix flake update` takes inputs; before, `nix flake lock --update-input` did it."""
    if not inputs:
        return ("flake", "update")
    if await _version() >= (2, 19):
        return ("flake", "update", *inputs)
    return ("flake", "lock", *(word for name in inputs for word in ("--update-input", name)))


async def _version() -> tuple[int, ...]:
    done = await nix("--version", within_s=60)
    found = re.search(rb"(\d+)\.(\d+)", done.stdout)
    return tuple(int(number) for number in found.groups()) if found else (0, 0)


async def differences(before: str, after: str) -> tuple[str, ...]:
    """What changed between two closures in the store, a line for each package; empty when nothing did.

    Raises:
        FlakeError: one of them is not in the store.
    """
    done = await nix("store", "diff-closures", before, after, within_s=COMPARE_S)
    if not done.ok:
        raise FlakeError(what="comparing closures", said=last_words(done))
    text = _COLOUR.sub("", done.stdout.decode("utf-8", "replace"))
    return tuple(line.strip() for line in text.splitlines() if line.strip())


async def nix(
    *words: str, within_s: float, where: Path | None = None, heard: Callable[[bytes], None] | None = None
) -> Completed:
    """Run nix. One that cannot be started is a failed one whose error output says why.

    Raises:
        FlakeError: there is no nix.
    """
    if shutil.which("nix") is None:
        raise FlakeError(what="nix", said="it is not on PATH; install it, or name its directory in PATH")
    argv = ["nix", *FEATURES, *words]
    try:
        return await run(
            argv,
            timeout_s=within_s,
            env={**environment_here(), "NO_COLOR": "1"},
            cwd=None if where is None else str(where),
            keep=8 * 1024 * 1024,
            heard=heard,
        )
    except CommandError as error:
        raise FlakeError(what="nix", said=str(error)) from error


def last_words(done: Completed) -> str:
    """What nix said in the end, without colours."""
    return "no answer in time" if done.timed_out else _COLOUR.sub("", tail(done.stderr))
