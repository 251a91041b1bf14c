"""Keep what the daemon does not run on out of its memory. Imported before anything else that is large.

httpx imports its own command line when click, rich and pygments can be imported (measured: 49 ms and 6 MB more), and
its transport imports HTTP/2 when h2 can be (20 ms and 1 MB), and AnyIO, of which Trio has no need. They are installed
here for other programs, so the daemon tells the import system that these modules are not there; httpx and its
transport have paths of their own for that.

attrs keeps the source of every method it makes, for debuggers. `load` imports the daemon part by part and lets go of
it in between, so that the next part takes that place (measured: 1.1 MB less).

glibc gives every thread a heap of its own and keeps what each has freed. The daemon's threads wait for the disk rather
than for the heap, so they share one (measured: 0.7 MB less).
"""

import ctypes
import importlib
import linecache
import sys
from typing import Final

_ABSENT: Final = (("httpx", "httpx._main"), ("httpcore", "h2"), ("httpcore", "anyio"))
_PARTS: Final = (
    "trio",
    "state_machine.step",
    "wire.records",
    "wire.messages",
    "evidence.artifacts",
    "nixfleet_agent.journal.store",
    "nixfleet_agent.probes.worker",
    "nixfleet_agent.activation.platforms",
    "nixfleet_agent.daemon",
)
"""In an order in which each brings a part of what the next one needs."""

_M_ARENA_MAX: Final = -8
"""From glibc's `malloc.h`; see mallopt(3)."""

for _user, _module in _ABSENT:
    if _user not in sys.modules:
        sys.modules[_module] = None  # type: ignore[assignment]  # the documented way to block an import


def load() -> None:
    """Import the daemon. Call it before the first thread starts."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have no such function
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
    for part in _PARTS:
        importlib.import_module(part)
        linecache.clearcache()
