"""The clock of a world at full depth: it stands still while anybody can do something, and then jumps.

Trio asks a clock how long to wait only when no task can run. This one never waits: it goes to the next instant that
somebody sleeps until, and says that no time is left. Trio's own mock clock does the same with one more turn of the
loop for each jump and a reading of the real clock for each look, which was a sixth of a run (measured).

`sleep` is for what the world itself waits for. It holds no cancel scope, so it costs a third of `trio.sleep`; it can
be cancelled all the same.
"""

import heapq
import itertools
import math

import attrs
import trio
from trio._core._run import GLOBAL_RUN_CONTEXT


class StuckError(Exception):
    """Everybody waits, and nobody for an instant that will come."""


@attrs.define(eq=False)
class _Sleeper:
    task: trio.lowlevel.Task | None

    def wake(self) -> None:
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)

    def give_up(self, _: object) -> trio.lowlevel.Abort:
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


class JumpingClock(trio.abc.Clock):
    """Seconds from the beginning of the run."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._sleepers: list[tuple[float, int, _Sleeper]] = []
        self._numbers = itertools.count()

    def start_clock(self) -> None:
        """The beginning."""

    def current_time(self) -> float:
        """Now."""
        return self.now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Go to `deadline`, or to where somebody sleeps until before it. Raises `StuckError` when there is neither."""
        if GLOBAL_RUN_CONTEXT.runner.entry_queue.size():
            return 0.0  # something was handed in from outside of all tasks, and comes first
        sleepers = self._sleepers
        instant = min(deadline, sleepers[0][0]) if sleepers else deadline
        if instant == math.inf:
            raise StuckError
        self.now_s = max(self.now_s, instant)
        while sleepers and sleepers[0][0] <= self.now_s:
            heapq.heappop(sleepers)[2].wake()
        return 0.0

    async def sleep_until(self, instant_s: float) -> None:
        """Wait until that instant; not at all, but for a checkpoint, if it has been."""
        if instant_s <= self.now_s:
            await trio.lowlevel.checkpoint()
            return
        sleeper = _Sleeper(trio.lowlevel.current_task())
        heapq.heappush(self._sleepers, (instant_s, next(self._numbers), sleeper))
        await trio.lowlevel.wait_task_rescheduled(sleeper.give_up)

    async def sleep(self, seconds: float) -> None:
        """Wait so long."""
        await self.sleep_until(self.now_s + seconds)
