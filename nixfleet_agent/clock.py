"""The one place where the agent reads a clock."""

import time

from state_machine.values import Moment, WallMs


def now() -> Moment:
    """Both clocks, read together. `time.monotonic` stands still during suspend and is common to all processes."""
    return Moment(wall_ms=WallMs(time.time_ns() // 1_000_000), mono_ms=time.monotonic_ns() // 1_000_000)
