"""What everything in a world at full depth shares: the time, what goes wrong just now, the trace, what was found.

Time is Trio's, under a clock that jumps whenever nobody can do anything: milliseconds from the beginning of the run.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from tests.simulation.faults import Fault, FaultKind
from tests.simulation.full_clock import JumpingClock
from tests.simulation.judge import Finding
from tests.simulation.scenario import Scenario
from tests.simulation.trace import Trace, Weight

CI: Final = "ci"
CONTROL_PLANE: Final = "cp"
ONCE: Final = frozenset(
    {
        FaultKind.KILL_BEFORE_COMMIT,
        FaultKind.KILL_AFTER_COMMIT,
        FaultKind.KILL_BEFORE_ACTION,
        FaultKind.KILL_AFTER_ACTION,
        FaultKind.KILL_UNANSWERED,
        FaultKind.KILL_UNREAD,
        FaultKind.POWER_CUT_IN_SWITCH,
    }
)
"""Faults that lie in wait until the host comes to their place, and strike once."""


@attrs.define(eq=False)
class World:
    """Handed to every part. `root` is a directory for all files of the run, `nursery` outlives every process in it."""

    scenario: Scenario
    trace: Trace
    root: Path
    nursery: trio.Nursery
    clock: JumpingClock
    findings: list[Finding] = attrs.field(factory=list)
    _active: dict[tuple[FaultKind, int | None], list[Fault]] = attrs.field(factory=dict)

    @property
    def now(self) -> int:
        """Milliseconds from the beginning of the run."""
        return round(self.clock.now_s * 1000)

    async def until(self, at_ms: int) -> None:
        """Sleep until that time of the run."""
        await self.clock.sleep_until(at_ms / 1000)

    async def sleep(self, seconds: float) -> None:
        """Sleep so long."""
        await self.clock.sleep(seconds)

    def begin(self, fault: Fault) -> None:
        """From now on, until `end`, `active` finds the fault."""
        self._active.setdefault((fault.kind, fault.host), []).append(fault)

    def end(self, fault: Fault) -> None:
        """The fault is over, if it was not already."""
        faults = self._active.get((fault.kind, fault.host), [])
        if fault in faults:
            faults.remove(fault)
        if not faults:
            self._active.pop((fault.kind, fault.host), None)

    def calm(self) -> None:
        """Nothing goes wrong any more."""
        self._active.clear()

    def active(self, kind: FaultKind, host: int | None) -> Fault | None:
        """The latest of the faults of this kind that last now."""
        if not self._active:
            return None
        faults = self._active.get((kind, host))
        return faults[-1] if faults else None

    def strikes(self, kind: FaultKind, host: int) -> Fault | None:
        """The fault that lies in wait here, which is over with that."""
        fault = self.active(kind, host)
        if fault is not None:
            self.end(fault)
            self.note(self.scenario.name(host), str(kind), Weight.FAULT)
        return fault

    def note(self, who: str, text: str, weight: Weight = Weight.STORY) -> None:
        """Put something into the trace."""
        if self.trace.on:
            self.trace.note(self.now, who, text, weight)

    def find(self, who: str, promise: str, text: str) -> None:
        """A promise was not kept."""
        self.findings.append(Finding(at_ms=self.now, who=who, promise=promise, text=text))
        self.note(who, f"{promise}: {text}", Weight.FIND)


async def inline(work: Callable[..., Any], *args: Any) -> Any:
    """Stands in for a thread: a mock clock would go on while a real one works."""
    await trio.lowlevel.checkpoint()
    return work(*args)


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


Task = Callable[[], Awaitable[object]]
