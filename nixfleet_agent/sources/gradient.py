"""The newest build of this host's system in a Gradient project: a source whose targets rest on the cache's key alone.

A poll asks for the entry points of the project's last evaluation and looks at the finished builds among them that it
has not seen before. Each way in which that brings no target is an outcome of its own, and leaves the host as it is.
A build that has succeeded stays as it is, so that an idle poll is one request.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import attrs
import httpx
import trio

from nixfleet_agent.config import Config
from nixfleet_agent.desk import AnswerError, Desk, NotJsonAnswerError
from nixfleet_agent.sources.gradient_server import GradientServer, ServerSaysError
from nixfleet_agent.sources.interface import Exchange
from nixfleet_agent.transport import Connection
from state_machine.actions import DeliverFacts
from state_machine.events import Duty, IntentRefused, SystemObserved, TargetOffered
from state_machine.system import SystemView
from state_machine.values import Basis, Closure, Reason, RolloutId, is_closure
from wire.gradient import ENTRY_POINTS, OUT, SUCCEEDED, UNFINISHED, Build, EntryPoint

BUILDS_A_POLL: Final = 200
"""New builds looked at in one poll; the rest waits for the next."""
PATIENCE_S: Final = 200.0
"""A poll that has taken so long looks at no further build: past five minutes it would count as lost."""
STORE: Final = "/nix/store/"
SHOWN: Final = 3
"""How many of several things a message names."""

_BUILD_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}", re.ASCII)
_VERSION: Final = r"[0-9]{2}\.[0-9]{2}(?:pre-git|[0-9A-Za-z.+_]*)"
"""`25.05`, `25.05.20250601.abcdef0`: without a hyphen, or the name of another host could end in what looks like one."""
_MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64", "ppc64le": "powerpc64le"}
"""What kernels call some machines that Nix calls otherwise."""

Connect = Callable[[Config, Path | None], httpx.AsyncBaseTransport]


@attrs.frozen(kw_only=True)
class MoreBuildsError(AnswerError):
    """The poll ended before all builds had been looked at; the next goes on from there."""

    left: int

    def __str__(self) -> str:
        return f"{self.left} more builds are to be looked at; the next poll goes on with them"


@attrs.frozen(kw_only=True)
class Offer:
    """The one build to run."""

    closure: Closure
    build_id: str


@attrs.frozen(kw_only=True)
class Nothing:
    """There is no target, and why."""

    reason: Reason
    detail: str


@attrs.frozen(kw_only=True)
class Built:
    """What is remembered of a build that succeeded. `closure` None: it is no system of this host's."""

    closure: Closure | None = None
    architecture: str = ""


@attrs.define
class Findings:
    """What one poll has found out about an evaluation."""

    entries: int = 0
    built: dict[str, Built] = attrs.field(factory=dict)
    unusable: dict[str, str] = attrs.field(factory=dict)
    """Builds that are said to have succeeded and cannot be had, with what the server says of them."""
    unfinished: int = 0
    failed: int = 0

    def count(self, status: str) -> None:
        """One more that has not succeeded."""
        if status in UNFINISHED:
            self.unfinished += 1
        else:
            self.failed += 1


def host_architecture() -> str:
    """This host's, as Nix writes it, such as `x86_64-linux`."""
    machine = os.uname().machine.lower()
    return f"{_MACHINES.get(machine, machine)}-{'darwin' if sys.platform == 'darwin' else 'linux'}"


def system_name(host: str) -> re.Pattern[str]:
    """Matches the base names of the store paths of this host's systems."""
    return re.compile(rf"[0-9a-z]{{32}}-nixos-system-{re.escape(host)}-{_VERSION}", re.ASCII)


def chosen(found: Findings, host: str, architecture: str) -> Offer | Nothing:
    """The target that an evaluation amounts to for this host, or why there is none."""
    mine = {built.closure: build_id for build_id, built in found.built.items() if built.closure is not None}
    fitting = {
        built.closure: build_id
        for build_id, built in found.built.items()
        if built.closure is not None and _same(built.architecture, architecture)
    }
    if len(fitting) == 1:
        [(closure, build_id)] = fitting.items()
        return Offer(closure=closure, build_id=build_id)
    if fitting:
        return Nothing(reason=Reason.AMBIGUOUS, detail=f"several systems are built for {host}: {_some(fitting)}")
    if mine:
        theirs = _some({built.architecture for built in found.built.values() if built.closure is not None})
        detail = f"{_some(mine)} is built for {theirs}, and this host is {architecture}"
        return Nothing(reason=Reason.WRONG_ARCHITECTURE, detail=detail)
    return _why_none(found, f"nixos-system-{host}-VERSION")


def _why_none(found: Findings, name: str) -> Nothing:
    if not found.entries:
        return Nothing(reason=Reason.NOT_BUILT, detail="the project's last evaluation has no entry points")
    if found.unfinished:
        detail = f"the evaluation is still being built: {found.unfinished} to go, and none that is done is {name}"
        return Nothing(reason=Reason.NOT_BUILT, detail=detail)
    if found.unusable:
        build_id, said = next(iter(found.unusable.items()))
        return Nothing(reason=Reason.MISSING, detail=f"the server no longer has build {build_id}: {said}")
    if found.failed:
        detail = f"{found.failed} builds of the evaluation failed, and none that succeeded is {name}"
        return Nothing(reason=Reason.NOT_BUILT, detail=detail)
    detail = f"none of the {found.entries} entry points is {name}; see --gradient-host-name"
    return Nothing(reason=Reason.MISSING, detail=detail)


def _same(one: str, other: str) -> bool:
    """The same architecture, however it is punctuated."""
    return _bare(one) == _bare(other)


def _bare(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def _some(names: Mapping[Closure, str] | set[str]) -> str:
    """The first few of them."""
    listed = sorted(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


class GradientSource:
    """An `IntentSource`."""

    def __init__(self, desk: Desk, connect: Connect, observe: Callable[[], SystemView]) -> None:
        self._desk, self._connect, self._observe = desk, connect, observe
        self._server = GradientServer(desk)
        self._own = system_name(desk.config.gradient_host_name)
        self._built: dict[str, Built] = {}
        self._turn = trio.Lock()

    async def load(self) -> None:
        """Get ready to connect. The key is read with each request: it may come late, or be replaced.

        Raises:
            ConfigurationError: the CA file cannot be used.
        """
        config = self._desk.config
        await self._desk.uplink.use(Connection(config.gradient_server, self._connect(config, None)))

    def exchanges(self) -> Mapping[Duty, Exchange]:
        """What there is to run."""
        return {Duty.INTENT: self.poll}

    async def fetch(self, rollout_id: RolloutId) -> None:
        """There is nothing to be had by name here: what waits for a manifest came from another source."""
        await self._refuse(Reason.SUPERSEDED, "this host follows a Gradient project now", rollout_id)

    async def deliver(self, order: DeliverFacts) -> bool:
        """Nobody is told what became of a build."""
        return False

    def keep(self, rollout_id: RolloutId) -> None:
        """Nothing: there is no proof but the journal."""

    def caches(self) -> tuple[str, ...]:
        """None: the answers do not name the cache, so the host's own Nix settings list it."""
        return ()

    async def close(self) -> None:
        """Close the connection."""
        await self._desk.uplink.close()

    async def poll(self) -> None:
        """Look at the host, look for the newest build of its system, and offer that.

        Raises:
            TransportError, AnswerError, ConfigurationError, OSError: what there is could not be found out.
        """
        async with self._turn:
            await self._desk.tell(SystemObserved(at=self._desk.clock(), system=self._observe()))
            found = await self._find()
        match chosen(found, self._desk.config.gradient_host_name, host_architecture()):
            case Nothing(reason=reason, detail=detail):
                await self._refuse(reason, detail, None)
            case Offer(closure=closure, build_id=build_id):
                at = self._desk.clock()
                await self._desk.tell(TargetOffered(at=at, basis=Basis.CACHE_KEY, closure=closure, offered_as=build_id))

    async def _refuse(self, reason: Reason, detail: str, rollout_id: RolloutId | None) -> None:
        at = self._desk.clock()
        await self._desk.tell(IntentRefused(at=at, rollout_id=rollout_id, reason=reason, detail=detail, final=True))

    async def _find(self) -> Findings:
        entries = await self._server.entry_points()
        found, done = Findings(entries=len(entries)), []
        for entry in entries:
            if entry.build_id is None or entry.build_status not in SUCCEEDED:
                found.count(entry.build_status)
            else:
                done.append(self._checked(entry, entry.build_id))
        # Builds of earlier evaluations are forgotten, so that what is remembered is bounded by one answer.
        self._built = {build_id: self._built[build_id] for build_id in done if build_id in self._built}
        await self._look_at([build_id for build_id in dict.fromkeys(done) if build_id not in self._built], found)
        found.built = self._built
        return found

    def _checked(self, entry: EntryPoint, build_id: str) -> str:
        """An id that may become part of a path."""
        if _BUILD_ID.fullmatch(build_id) is None:
            path = ENTRY_POINTS.format(project=self._desk.config.gradient_project)
            raise NotJsonAnswerError(path=path, problem=f"{build_id[:64]!r} is no build's id")
        return build_id

    async def _look_at(self, unseen: list[str], found: Findings) -> None:
        until = trio.current_time() + PATIENCE_S
        for number, build_id in enumerate(unseen):
            if number >= BUILDS_A_POLL or trio.current_time() > until:
                raise MoreBuildsError(left=len(unseen) - number)
            try:
                build = await self._server.build(build_id)
            except ServerSaysError as error:
                found.unusable[build_id] = error.said
                continue
            if build is None:
                found.unusable[build_id] = "there is no such build"
            elif build.status in SUCCEEDED:
                self._built[build_id] = self._remembered(build)
            else:
                found.count(build.status)

    def _remembered(self, build: Build) -> Built:
        name = build.output.get(OUT, "").removeprefix(STORE)
        if self._own.fullmatch(name) is None or not is_closure(name):
            return Built()
        return Built(closure=Closure(name), architecture=build.architecture)
