"""Builders that are asked over NATS, for those who would build on this machine otherwise.

What they cannot build has failed like here, with the end of its log; that nobody can be asked, or that they refuse a
host, is an error: it is no fault of what was to be built.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import attrs
import trio

from nixfleet.builder.asking import AskError, ask, hosts, reached, request_for
from nixfleet.builder.builders import Builders
from nixfleet.builder.messages import HostsQuestion, Phase, Progress
from nixfleet.builder.offering import CommitOf, Commits
from nixfleet.clock import in_words
from nixfleet.errors import ConfigurationError
from nixfleet.update.builds import TAIL_LINES, Display
from nixfleet.update.errors import DiskError, UpdateError
from nixfleet.update.flake import Built, System

log = logging.getLogger(__name__)
_NAME: Final = "nixfleet"
"""As the operator of the NATS server sees it."""


@attrs.frozen(kw_only=True)
class NotAskedError(UpdateError):
    """The builders did not come to an answer."""

    why: str

    def __str__(self) -> str:
        return self.why


@attrs.frozen(kw_only=True)
class RefusedHostError(UpdateError):
    """A builder does not build a host for anybody."""

    host: str
    builder: str
    why: str

    def __str__(self) -> str:
        return f"{self.builder} refuses {self.host}: {self.why}; look at its configuration"


@attrs.frozen(kw_only=True)
class NoEndError(UpdateError):
    """For long no build got on."""

    hosts: tuple[str, ...]
    within_s: float

    def __str__(self) -> str:
        names, time = ", ".join(self.hosts), in_words(round(self.within_s * 1000))
        return f"no builder got on with {names} for {time}: is there one, and has it work for longer than that?"


@attrs.frozen(kw_only=True)
class NoCommitError(ConfigurationError):
    """What is to be built is in no commit."""

    flake: str

    def __str__(self) -> str:
        return f"{self.flake} has changes that no commit has: commit and push them, or build with --builder local"


class RemoteBuilder:
    """Builds by asking. `compare` is the commit that changes are told against; empty: none are."""

    def __init__(self, builders: Builders, commits: Commits, *, within_s: float, logs: Path, compare: str = "") -> None:
        self._builders, self._commits, self._compare = builders, commits, compare
        self._within_s, self._logs = within_s, logs
        self._changes: dict[str, tuple[str, ...]] = {}

    async def build(self, systems: Sequence[System], display: Display) -> list[Built]:
        """Have them all built, in their order; as many at a time as the builders do.

        Raises:
            NotAskedError, RefusedHostError, NoEndError: they were not; what is not built is taken back.
            UpdateError: git would not give them the commit.
        """
        async with self._commits.offered() as commit_of:
            answers = await self._answers(systems, commit_of, display)
        self._changes |= {host: each.changes for host, each in answers.items() if each.phase is Phase.DONE}
        return [_built(system, answers[system.host], self._logs) for system in systems]

    async def changes(self, base: str, built: Sequence[Built]) -> dict[str, tuple[str, ...]]:
        """What the builders said of it."""
        assert base == self._compare, "builders are asked before what they are to compare with"
        names = [each.system.host for each in built if each.ok]
        return {name: self._changes[name] for name in names if name in self._changes}

    async def _answers(
        self, systems: Sequence[System], commit_of: CommitOf, display: Display
    ) -> Mapping[str, Progress]:
        """The answer for each host."""
        by_host = {system.host: system for system in systems}
        listener = _Listener(systems=by_host, display=display, logs=self._logs, patience_s=self._within_s)
        try:
            with listener.scope:
                listener.scope.deadline = trio.current_time() + self._within_s
                await self._ask(systems, commit_of, listener)
        except AskError as error:
            raise NotAskedError(why=str(error)) from error
        except OSError as error:
            raise DiskError.of(error) from error
        for each in listener.latest.values():
            if each.phase is Phase.REFUSED:
                raise RefusedHostError(host=each.host, builder=each.builder, why=each.why)
        if listener.scope.cancelled_caught:
            raise NoEndError(hosts=listener.open(), within_s=self._within_s)
        return listener.latest

    async def _ask(self, systems: Sequence[System], commit_of: CommitOf, listener: "_Listener") -> None:
        async with reached(self._builders.server, _NAME) as link:
            subjects, repository = self._builders.subjects, self._builders.repository
            if not repository:
                repository = (await hosts(link, subjects, HostsQuestion(names_only=True))).repository
            requests = {
                system.host: request_for(repository, system.host, revision=commit_of(system), compare=self._compare)
                for system in systems
            }
            await ask(link, subjects, tuple(requests.values()), listener.heard)


def _built(system: System, answer: Progress, logs: Path) -> Built:
    """What an answer means."""
    if answer.phase is Phase.DONE:
        return Built(system=system, path=answer.path, seconds=answer.seconds)
    lines = [line for line in (*answer.tail.splitlines(), answer.why) if line]
    tail, path = "\n".join(lines[-TAIL_LINES:]), logs / f"{quote(system.host, safe='')}.log"
    return Built(system=system, path=None, seconds=answer.seconds, tail=tail, log=path)


@attrs.define(kw_only=True, eq=False)
class _Listener:
    """Hears how jobs go and shows it as builds on this machine are shown."""

    systems: Mapping[str, System]
    display: Display
    logs: Path
    patience_s: float
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    latest: dict[str, Progress] = attrs.field(factory=dict)

    def heard(self, progress: Progress) -> None:
        """Something was said of a job. That one gets on is reason to wait on; one that is refused ends them all."""
        system, before = self.systems[progress.host], self.latest.get(progress.host)
        self.latest[progress.host] = progress
        if before is None or before.phase is not progress.phase:
            self.scope.deadline = trio.current_time() + self.patience_s
        if (before is None or before.phase is Phase.QUEUED) and progress.phase is not Phase.QUEUED:
            self.display.begun(system)
        if progress.phase is Phase.REFUSED:
            self.scope.cancel()
        elif progress.phase.is_last:
            self._end(system, progress)
        elif progress.phase is not Phase.QUEUED:
            self.display.said(system, _line(progress))

    def open(self) -> tuple[str, ...]:
        """The hosts without an answer."""
        return tuple(host for host in self.systems if host not in self.latest or not self.latest[host].phase.is_last)

    def _end(self, system: System, answer: Progress) -> None:
        """What failed has a log like what fails here, though it is only the end of it."""
        built = _built(system, answer, self.logs)
        if built.log is not None:
            try:
                self.logs.mkdir(parents=True, exist_ok=True)
                built.log.write_text(f"{built.tail}\n", "utf-8")
            except OSError as error:  # other builds are not lost to a disk that is full
                log.warning("%s: not written: %s", built.log, error.strerror)
        self.display.ended(built)


def _line(progress: Progress) -> str:
    count = f"{progress.done}/{progress.expected} " if progress.expected else ""
    return f"{progress.builder}: {progress.phase.value} {count}{progress.line}".rstrip()
