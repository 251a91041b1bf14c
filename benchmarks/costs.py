"""What a running process costs, as Linux accounts for it."""

import os
import time
from pathlib import Path
from typing import Final

MISSING: Final = "this needs Linux: /proc/PID/smaps_rollup is not there"


def available() -> bool:
    """This system says what a process costs."""
    return Path("/proc/self/smaps_rollup").exists()


def pss_mb(pid: int) -> float:
    """Proportional set size in MB (10^6 bytes): its own pages, and its share of those it shares with others."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"/proc/{pid}/smaps_rollup names no Pss")


def cpu_s(pid: int) -> float:
    """CPU seconds so far: all threads to the nanosecond, and children that were waited for in hundredths."""
    # The kernel's number for "CPU time of that process" (clock_getcpuclockid(3)); /proc/PID/stat has hundredths only.
    own = time.clock_gettime(~pid << 3 | 2)
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return own + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")
