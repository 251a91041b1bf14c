"""A flake that a release is made of, as Nix sees it: named once, then looked at only as it was at that moment.

The reference that was given is locked before anything else happens. The description, the list of systems and every
build come from that one revision, or, where there is none because files were changed and not committed, from the copy
that Nix made of them: a branch that moves meanwhile, or an editor, changes nothing.
"""

import json
import re
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from evidence.canonical import CanonicalError, parse
from nixfleet.errors import ConfigurationError, StoppedError
from nixfleet.release.description import Description
from nixfleet.release.problems import DescriptionError, Problem
from nixfleet.release.read import parse_description
from nixfleet.update.errors import FlakeError
from nixfleet.update.flake import LISTING, System, build_of, chosen, last_words, listed, nix
from nixfleet_agent.commands import Completed

DEFAULT_ATTRIBUTE: Final = "fleet"
LOCK_S: Final = 1800.0
EVALUATE_S: Final = 1800.0

_WARNING: Final = re.compile(r"^(?:trace: )?evaluation warning: (.+)$", re.MULTILINE)
_COMPLAINT: Final = re.compile(r"^ *error: ", re.MULTILINE)
_GIT: Final = re.compile(r"^fatal: (.+)$", re.MULTILINE)
_PLACE: Final = re.compile(r"\s*\n\s*(?:at (?P<place>.+:\d+:\d+):|…|\(use '--show-trace')")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_WHOLE_REVISION: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_NO_ATTRIBUTE: Final = "does not provide attribute"
_FORGES: Final = ("github", "gitlab", "sourcehut")


@attrs.frozen(kw_only=True)
class NixRefusedError(StoppedError):
    """Nix could not do what was asked. `complaint` is its innermost error, without the trace that led to it."""

    what: str
    complaint: str
    place: str = ""

    def __str__(self) -> str:
        where = f"\n  at {self.place}" if self.place else ""
        return f"error: {self.complaint}{where}\n  while {self.what}"


@attrs.frozen(kw_only=True)
class PinError(ConfigurationError):
    """A host is pinned to something that no system can be built from."""

    host: str
    commit: str
    why: str

    def __str__(self) -> str:
        return f"hosts.{self.host}.pin.commit {self.commit}: {self.why}"


@attrs.frozen(kw_only=True)
class Reference:
    """What `--flake` names: a flake, and the attribute of it that is the fleet."""

    flake: str
    attribute: str = DEFAULT_ATTRIBUTE

    @classmethod
    def of(cls, text: str) -> "Reference":
        """`REF` or `REF#attribute`, as every command of Nix has it; an empty `REF` is the flake in this directory."""
        flake, _, attribute = text.partition("#")
        return cls(flake=flake or ".", attribute=urllib.parse.unquote(attribute) or DEFAULT_ATTRIBUTE)

    def __str__(self) -> str:
        return f"{self.flake}#{self.attribute}"


@attrs.frozen(kw_only=True)
class Described:
    """What the flake says of the fleet. `warnings` are those that its evaluation gave."""

    description: Description
    warnings: tuple[str, ...]


@attrs.frozen(kw_only=True)
class LockedFlake:
    """A flake that does not change any more. `revision` None: it has changes that no commit has."""

    reference: Reference
    url: str
    revision: str | None
    locked: Mapping[str, Any]
    """The reference's attributes, as `flake.lock` writes them."""
    pins: Mapping[str, str] = attrs.field(factory=dict)
    """For hosts that are built from another commit that commit."""
    has_lock_file: bool = True

    async def describe(self) -> Described:
        """Evaluate the description of the fleet.

        Raises:
            NixRefusedError: it does not evaluate, or there is no such attribute.
            DescriptionError: it is no description, or one with problems; every problem is listed.
        """
        what = f"{self.url}#{self.reference.attribute}"
        done = await nix("eval", "--json", "--no-write-lock-file", what, within_s=EVALUATE_S)
        if not done.ok:
            raise refusal(f"evaluating {self.reference}", done, self._advice(done))
        warnings = tuple(dict.fromkeys(_WARNING.findall(_plain(done.stderr))))
        try:
            return Described(description=parse_description(parse(done.stdout)), warnings=warnings)
        except CanonicalError as error:
            problem = Problem(where=self.reference.attribute, what=str(error))
            raise DescriptionError(problems=(problem,), flake=str(self.reference)) from error
        except DescriptionError as error:
            raise attrs.evolve(error, flake=str(self.reference)) from error

    async def systems(self, hosts: tuple[str, ...]) -> tuple[System, ...]:
        """The toplevels of these hosts.

        Raises:
            NixRefusedError: one of them has no configuration, or the flake does not evaluate.
        """
        if not hosts:
            return ()
        names = {"nixos": await self._names("nixosConfigurations"), "darwin": await self._names("darwinConfigurations")}
        try:
            return chosen(listed(json.dumps(names).encode()), hosts)
        except FlakeError as error:
            raise NixRefusedError(what=f"{error.what} {self.reference.flake}", complaint=error.said) from error

    async def _names(self, output: str) -> list[str]:
        words = ("--no-write-lock-file", f"{self.url}#{output}", "--apply", "builtins.attrNames")
        done = await nix("eval", "--json", *words, within_s=EVALUATE_S)
        if not done.ok and _NO_ATTRIBUTE in _plain(done.stderr):
            return []
        if not done.ok:
            raise refusal(f"{LISTING} {self.reference.flake}", done)
        names: list[str] = json.loads(done.stdout)
        return names

    def pinned(self, pins: Mapping[str, str]) -> "LockedFlake":
        """The same, where these hosts' systems are those of these commits.

        Raises:
            PinError: nothing can be built from one of them.
        """
        for host, commit in pins.items():
            if not _WHOLE_REVISION.fullmatch(commit):
                raise PinError(host=host, commit=commit, why="write the whole revision, which is all that Nix fetches")
            if self.at(commit) is None:
                raise PinError(host=host, commit=commit, why=f"{self.reference.flake} has no commits to build from")
        return attrs.evolve(self, pins=dict(pins))

    def at(self, commit: str) -> str | None:
        """The flake as it was in a commit; None: it comes from nowhere that has commits."""
        kind, locked = self.locked.get("type"), self.locked
        query = {"rev": commit} if kind == "git" else {}
        query |= {name: locked[name] for name in ("dir", "host") if isinstance(locked.get(name), str)}
        if kind == "git":
            query |= {"submodules": "1"} if locked.get("submodules") else {}
            query |= {"ref": locked["ref"]} if "ref" in locked else {}
            base = str(locked["url"])
            base = base if base.startswith("git:") else f"git+{base}"
        elif kind in _FORGES:
            base = f"{kind}:{locked['owner']}/{locked['repo']}/{commit}"
        else:
            return None
        joined = urllib.parse.urlencode(query, quote_via=urllib.parse.quote)
        return f"{base}{'&' if '?' in base else '?'}{joined}" if joined else base

    def url_for(self, system: System) -> str:
        """Where this system comes from: the flake, or for a pinned host an earlier one."""
        commit = self.pins.get(system.host)
        return (self.at(commit) or self.url) if commit else self.url

    async def build(
        self, system: System, *, within_s: float, heard: Callable[[bytes], None] | None = None
    ) -> tuple[str | None, str]:
        """Build one system's toplevel: its store path, or None and what nix said in the end."""
        return await build_of(self.url_for(system), system, within_s=within_s, heard=heard)

    def _advice(self, done: Completed) -> str:
        missing = _NO_ATTRIBUTE in _plain(done.stderr)
        return "; add `fleet = nixfleet.lib.mkFleet { ... };` to its outputs, or name another with #" if missing else ""


@attrs.frozen(kw_only=True)
class Unbuilt:
    """The same flake, asked only where its systems would be: evaluated, and not built."""

    flake: LockedFlake

    async def build(
        self, system: System, *, within_s: float, heard: Callable[[bytes], None] | None = None
    ) -> tuple[str | None, str]:
        """The store path that the system's toplevel has once somebody builds it."""
        what = f"{self.flake.url_for(system)}#{system.attribute}.outPath"
        done = await nix("eval", "--raw", "--no-write-lock-file", what, within_s=within_s, heard=heard)
        return (done.stdout.decode(), "") if done.ok else (None, last_words(done))


async def lock(reference: Reference) -> LockedFlake:
    """Find out what exactly a reference names now.

    Raises:
        NixRefusedError: there is no such flake, or it cannot be fetched.
    """
    words = ("flake", "metadata", "--json", "--no-write-lock-file", reference.flake)
    done = await nix(*words, within_s=LOCK_S)
    if not done.ok:
        raise refusal(f"reading the flake {reference.flake}", done, _about_directory(reference.flake))
    said = json.loads(done.stdout)
    locked = said["locked"]
    revision = locked.get("rev")
    # A Nix that makes copies late has none to name; then what is there is what the reference says.
    copy = said.get("path")
    folder = f"?dir={urllib.parse.quote(locked['dir'])}" if isinstance(locked.get("dir"), str) else ""
    return LockedFlake(
        reference=reference,
        url=said["url"] if revision or copy is None else f"path:{urllib.parse.quote(copy)}{folder}",
        revision=revision,
        locked=locked,
        has_lock_file=copy is None or _has_lock_file(said, Path(copy) / locked.get("dir", "")),
    )


def _about_directory(flake: str) -> str:
    # What has no dot or slash in front is looked up in Nix's registry.
    bare = flake[:1] not in (".", "/", "~") and ":" not in flake
    return f"; for the directory write ./{flake}" if bare and Path(flake).is_dir() else ""


def _has_lock_file(said: Mapping[str, Any], directory: Path) -> bool:
    # A flake without inputs needs none; a copy that is not there (a newer Nix makes it late) cannot be asked.
    return len(said["locks"]["nodes"]) == 1 or not directory.is_dir() or (directory / "flake.lock").exists()


def refusal(what: str, done: Completed, advice: str = "") -> NixRefusedError:
    """What Nix complained about in the end. Newer ones tell the way there first, older ones after it."""
    if done.timed_out:
        return NixRefusedError(what=what, complaint="no answer in time")
    said = _plain(done.stderr)
    *_, last = _COMPLAINT.split(said)
    message, *_ = _PLACE.split(last)
    place = _PLACE.search(last)
    # Nix says only that git failed; why, git has said itself.
    if "program 'git' failed" in message and (why := _GIT.findall(said)):
        message = f"git: {why[-1]}"
    return NixRefusedError(
        what=what,
        complaint=(message.replace("\n       ", "\n").strip() or "nix failed and said nothing") + advice,
        place=(place["place"] or "") if place else "",
    )


def _plain(output: bytes) -> str:
    return _COLOUR.sub("", output.decode("utf-8", "replace"))
