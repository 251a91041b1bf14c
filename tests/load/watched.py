"""The control plane, noting where its CPU time goes: `python -m tests.load.watched` with its usual arguments.

A timer of the process's CPU time interrupts it a hundred times a second, and whatever the event loop's thread is at is
counted for the part it belongs to: the innermost function of a known part. SIGUSR1 writes down what was counted since
the last time, beside the CPU time of each thread. SIGPROF is handled between two bytecodes, so what a C function takes
counts for the Python function that called it.
"""

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Final

from control_plane.__main__ import run

EVERY_S: Final = 0.01
RESULT: Final = "NIXFLEET_LOAD_WATCHED"
"""The variable that says where to write."""

PARTS: Final = {
    "TLS": ("/ssl.py",),
    "HTTP/1.1 (h11)": ("/h11/",),
    "signatures": ("/nacl/", "/evidence/signature.py", "/evidence/ssh_format.py"),
    "SQLite": ("/control_plane/store.py", "/control_plane/schema.py"),
    "planner": (
        "/state_machine/planner.py",
        "/state_machine/world.py",
        "/state_machine/gates.py",
        "/state_machine/waves.py",
        "/state_machine/selector.py",
        "/state_machine/freshness.py",
        "/control_plane/planner_loop.py",
        "/control_plane/presence.py",
    ),
    "JSON and codec": ("/json/", "/evidence/canonical.py", "/wire/", "/cattrs/", "/control_plane/records.py"),
    "fold and book": (
        "/control_plane/book.py",
        "/control_plane/mirrors.py",
        "/control_plane/rows.py",
        "/control_plane/ledger.py",
        "/state_machine/lifecycle.py",
    ),
    "metrics": ("/prometheus_client/", "/control_plane/metrics.py"),
    "routing (Starlette)": ("/starlette/",),
    "server": (
        "/control_plane/streams.py",
        "/control_plane/conversation.py",
        "/control_plane/serving.py",
        "/anycorn/",
        "/anyio/",
    ),
    "handlers": ("/control_plane/",),
    "event loop (Trio)": ("/trio/",),
}
OTHER: Final = "other"
WAITING: Final = "/trio/_core/_io_epoll.py"

_seen: Counter[str] = Counter()
_part_of: dict[str, str | None] = {}


def _part(file: str) -> str | None:
    if file not in _part_of:
        _part_of[file] = next((name for name, marks in PARTS.items() if any(mark in file for mark in marks)), None)
    return _part_of[file]


def _sample(_: int, frame: FrameType | None) -> None:
    if frame is not None and frame.f_code.co_filename.endswith(WAITING) and frame.f_code.co_name == "get_events":
        return  # the event loop waits: it was another thread's time
    while frame is not None:
        if (part := _part(frame.f_code.co_filename)) is not None:
            _seen[part] += 1
            return
        frame = frame.f_back
    _seen[OTHER] += 1


def _write_down(_: int, __: FrameType | None) -> None:
    threads: Counter[str] = Counter()
    for thread in threading.enumerate():
        if thread.ident is not None:
            name = "event loop" if thread is threading.main_thread() else thread.name.partition("-")[0]
            threads[name] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))  # type: ignore[assignment]
    place = Path(os.environ[RESULT])
    place.with_suffix(".new").write_text(json.dumps({"parts": _seen, "threads": threads}))
    place.with_suffix(".new").replace(place)
    _seen.clear()


def main() -> None:
    signal.signal(signal.SIGUSR1, _write_down)
    signal.signal(signal.SIGPROF, _sample)
    signal.setitimer(signal.ITIMER_PROF, EVERY_S, EVERY_S)
    sys.exit(run())


if __name__ == "__main__":
    main()
