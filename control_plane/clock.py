"""The wall clock of the control plane, read in one place. Durations come from `trio.current_time()`."""

import time

from state_machine.values import WallMs


def wall_now() -> WallMs:
    """UTC milliseconds since 1970, as this machine's clock tells it."""
    return WallMs(time.time_ns() // 1_000_000)
