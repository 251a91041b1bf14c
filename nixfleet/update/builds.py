"""Build every system, several at once, and show how it goes.

A line for each host on a terminal, with what its build said last; plain lines elsewhere; all of it in a log file for
each host. A build that fails stops none of the others: the pull request is to tell the whole truth.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

import trio

from nixfleet.update.errors import DiskError, FlakeError, UpdateError
from nixfleet.update.flake import Built, Flake, System, differences

TAIL_LINES: Final = 200
log = logging.getLogger(__name__)
_COLOUR: Final = re.compile(rb"\x1b\[[0-9;]*[A-Za-z]")


class Display(Protocol):
    """Somebody who watches builds."""

    def begun(self, system: System) -> None:
        """Its build has begun."""
        ...

    def said(self, system: System, line: str) -> None:
        """Its build said something."""
        ...

    def ended(self, built: Built) -> None:
        """Its build is over."""
        ...


class Builder(Protocol):
    """Whoever builds systems: this machine, or others that are asked to."""

    async def build(self, systems: Sequence[System], display: Display) -> list[Built]:
        """Build them all; the results in the order of `systems`.

        Raises:
            UpdateError: nothing can be built here at all, which is no fault of a system.
        """
        ...


class Comparer(Builder, Protocol):
    """One that can say as well what its builds change."""

    async def changes(self, base: str, built: Sequence[Built]) -> dict[str, tuple[str, ...]]:
        """What changes on each host against the system of the commit `base`, as far as that one can be had."""
        ...


class Buildable(Protocol):
    """A flake whose systems can be built."""

    async def build(
        self, system: System, *, within_s: float, heard: Callable[[bytes], None] | None = None
    ) -> tuple[str | None, str]:
        """The store path of the system's toplevel, or None and what nix said in the end."""
        ...


class LocalBuilder:
    """Builds on this machine, or wherever its Nix is configured to build."""

    def __init__(self, flake: Buildable, *, jobs: int, within_s: float, logs: Path) -> None:
        self._flake, self._within_s, self._logs = flake, within_s, logs
        self._jobs = jobs

    async def build(self, systems: Sequence[System], display: Display) -> list[Built]:
        """Build them all, some at a time, in their order."""
        results: dict[System, Built] = {}
        troubles: list[UpdateError] = []
        waiting = iter(systems)

        async def in_turn() -> None:
            for system in waiting:
                display.begun(system)
                try:
                    results[system] = await self._one(system, display)
                except (UpdateError, OSError) as error:
                    troubles.append(error if isinstance(error, UpdateError) else DiskError.of(error))
                    nursery.cancel_scope.cancel()
                else:
                    display.ended(results[system])

        async with trio.open_nursery() as nursery:
            for _ in range(self._jobs):
                nursery.start_soon(in_turn)
        if troubles:
            raise troubles[0]
        return [results[system] for system in systems]

    async def _one(self, system: System, display: Display) -> Built:
        path, began = self._logs / f"{quote(system.host, safe='')}.log", time.monotonic()
        self._logs.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as file:
            pieces = Lines(lambda line: display.said(system, line))
            cut: list[OSError] = []

            def heard(chunk: bytes) -> None:
                try:
                    file.write(b"" if cut else chunk)
                except OSError as error:  # a build of hours is not lost to a log that the disk is too full for
                    cut.append(error)
                    log.warning("%s: the rest of the log is lost: %s", path, error.strerror)
                pieces.feed(chunk)

            store_path, said = await self._flake.build(system, within_s=self._within_s, heard=heard)
        seconds = time.monotonic() - began
        if store_path is not None:
            return Built(system=system, path=store_path, seconds=seconds, log=path)
        return Built(system=system, path=None, seconds=seconds, tail=pieces.last(TAIL_LINES) or said, log=path)


class FlakeBuilder(LocalBuilder):
    """The same, of a worktree whose earlier commits can be built too."""

    def __init__(self, flake: Flake, *, jobs: int, within_s: float, logs: Path) -> None:
        super().__init__(flake, jobs=jobs, within_s=within_s, logs=logs)
        self._worktree = flake

    async def changes(self, base: str, built: Sequence[Built]) -> dict[str, tuple[str, ...]]:
        """What changes on each host: the system of before was built when it was merged, and is most likely here."""
        changes: dict[str, tuple[str, ...]] = {}
        for each in built:
            if each.path is None:
                continue
            old, _ = await self._worktree.build(each.system, commit=base, within_s=self._within_s)
            if old is not None:
                changes[each.system.host] = await _differences(old, each.path)
        return changes


async def _differences(before: str, after: str) -> tuple[str, ...]:
    try:
        return await differences(before, after)
    except FlakeError as error:  # a comparison is not worth an update
        return (f"not compared: {error}",)


class Lines:
    """Makes whole lines of pieces, and remembers the last ones."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._part = tell, b""
        self._kept: list[str] = []

    def feed(self, chunk: bytes) -> None:
        """Take a piece."""
        *whole, self._part = (self._part + chunk).split(b"\n")
        for raw in whole:
            line = _COLOUR.sub(b"", raw).decode("utf-8", "replace").rsplit("\r", 1)[-1].rstrip()
            if line:
                self._kept.append(line)
                self._tell(line)
        del self._kept[: -2 * TAIL_LINES]
        self._part = self._part[-65_536:]

    def last(self, count: int) -> str:
        """The last lines."""
        return "\n".join(self._kept[-count:])
