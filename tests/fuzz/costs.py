"""What one input costs: processor time of this thread, and how far the memory in use rose at its highest.

Linux keeps the highest mark of a process and forgets it on request (`man 5 proc`, `clear_refs`), which costs nothing
while the parser runs. Memory that an earlier input used and left free is used again unseen, so what matters is
measured in a process that has done nothing else yet.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

MEMORY_PROMISE_MIB: Final = 64
TIME_PROMISE_S: Final = 1.0
TIME_BOUND_S: Final = 4.0
"""The promise is for a core of its own; a busy machine may take this long before it counts as broken."""

_CLEAR: Final = Path("/proc/self/clear_refs")
_STATUS: Final = Path("/proc/self/status")


@attrs.frozen(kw_only=True)
class Costs:
    """Seconds and MiB."""

    cpu_s: float
    memory_mib: float

    @property
    def broken(self) -> str:
        """Which promise was broken; empty when none was."""
        if self.memory_mib > MEMORY_PROMISE_MIB:
            return f"took {self.memory_mib:.0f} MiB of memory, {MEMORY_PROMISE_MIB} are allowed"
        if self.cpu_s > TIME_BOUND_S:
            return f"took {self.cpu_s:.1f} s, {TIME_PROMISE_S:g} are promised"
        return ""


def costs_of(work: Callable[[], object]) -> Costs:
    """Do the work and say what it cost."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")
    before, began = _kib("VmRSS"), time.thread_time()
    work()
    return Costs(cpu_s=time.thread_time() - began, memory_mib=(_kib("VmHWM") - before) / 1024)


def _kib(field: str) -> int:
    if not _STATUS.exists():
        return 0
    return next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
