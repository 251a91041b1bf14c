"""The record of one switch on disk: what was ordered, that it began, what it said, how it ended.

It is what makes an order idempotent across processes. The parts are written in this order, each whole or absent:

`order`    by the agent, on the disk before anything is started
`started`  by the wrapper, created exclusively: of any number of wrappers one runs the switch, once, for ever
`log`      by the wrapper: the first MiB of output; `tail`: the last 16 KiB of what came after that
`exit`     by the wrapper: the switch's exit status
`report`   by the agent: the answer it gave, and will give again

The wrapper needs a POSIX shell. Without `dd`, `tail` or `tee` on its PATH the output is lost and nothing else.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Final, TypeVar

import attrs
import cattrs

from nixfleet_agent.activation.interface import SwitchReport
from nixfleet_agent.commands import tail
from nixfleet_agent.files import write_atomically
from state_machine.values import Closure

LOG_BYTES: Final = 1024 * 1024
TAIL_BYTES: Final = 16 * 1024

_KEPT_JOBS: Final = 16
"""Orders are answered one at a time; older records serve people who look for a log."""

_KILLED: Final = 128
"""A shell's exit status for a command that was killed is the signal's number and this."""

_OP: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)

WRAPPER: Final = f"""\
# Runs one switch for the agent, exactly once. Arguments: the order's directory, then the command.
umask 022
cd / || exit 125
dir=$1
shift
set -C
echo "$$" > "$dir/started" || exit 125
set +C
{{ "$@"; echo "$?" > "$dir/exit"; }} 2>&1 | {{
  # Unlike head, dd passes on at once what it reads; at most as many reads, of at most 256 bytes, as make a MiB.
  dd bs=256 count={LOG_BYTES // 256} 2>/dev/null | tee "$dir/log"
  tail -c {TAIL_BYTES} | tee "$dir/tail"
  # Whatever failed above, the switch must never meet a closed pipe.
  while read -r _; do :; done
}}
read -r code < "$dir/exit" && exit "$code"
"""


@attrs.frozen(kw_only=True)
class Order:
    """What a job is to do, as it was when it was launched.

    `action` is the argument of `switch-to-configuration`. `component` says why it is `boot` and not `switch`.
    `launched_mono_s` is the kernel's monotonic clock in the boot `boot_id`; `timeout_s` is how long it may take.
    """

    closure: Closure
    action: str
    component: str | None
    profile_before: Closure | None
    boot_id: str
    launched_mono_s: float
    timeout_s: float = 0.0
    """0: a version wrote it that did not say."""


_RECORDS: Final = cattrs.Converter(detailed_validation=False)
_Record = TypeVar("_Record", Order, SwitchReport)


@attrs.frozen(kw_only=True)
class Job:
    """One order's directory. Reading what another version or a power cut left unreadable gives "absent"."""

    op: str
    directory: str

    def order(self) -> Order | None:
        """What was ordered; None when nothing was launched."""
        return self._read("order", Order)

    def place(self, order: Order) -> None:
        """Record the order, durably, before it is launched. Raises `OSError`."""
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        # Renamed into place, since another process may be running the one that is there; it need not survive a crash.
        fresh = Path(self.directory, f"wrapper.{os.getpid()}")
        fresh.write_text(WRAPPER)
        fresh.replace(f"{self.directory}/wrapper")
        self._write("order", order)

    def has_started(self) -> bool:
        """A wrapper took the order; no other ever will."""
        return os.path.exists(f"{self.directory}/started")

    def wrapper_pid(self) -> int | None:
        """The process that took the order, which also leads its process group when detached."""
        text = self._bytes("started", 32).decode("ascii", "replace")
        return int(text) if text.endswith("\n") and text.strip().isdigit() else None

    def exit_code(self) -> int | None:
        """The switch's exit status; None while it runs, or when it never came to one."""
        text = self._bytes("exit", 32).decode("ascii", "replace")
        return int(text) if text.endswith("\n") and text.strip().isdigit() else None

    def output_tail(self) -> str:
        """The end of what the switch printed, at most 2 KiB."""
        return tail(self._bytes("tail", TAIL_BYTES) or self._bytes("log", LOG_BYTES))

    def report(self) -> SwitchReport | None:
        """The answer that was given."""
        return self._read("report", SwitchReport)

    def record(self, report: SwitchReport) -> SwitchReport:
        """Make `report` the answer to this order for ever. Raises `OSError`."""
        self._write("report", report)
        return report

    def clear(self) -> None:
        """Forget the order, which must not have changed anything, so that it may be launched anew."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _read(self, name: str, kind: type[_Record]) -> _Record | None:
        try:
            fields = json.loads(self._bytes(name, 64 * 1024) or b"null")
            return None if fields is None else _RECORDS.structure(fields, kind)
        except (TypeError, ValueError, KeyError):
            return None

    def _bytes(self, name: str, limit: int) -> bytes:
        try:
            with open(f"{self.directory}/{name}", "rb") as file:
                return file.read(limit)
        except OSError:
            return b""

    def _write(self, name: str, record: Order | SwitchReport) -> None:
        write_atomically(Path(self.directory, name), json.dumps(_RECORDS.unstructure(record)).encode())


def job_of(op: str, work: str) -> Job:
    """The record of `op` below `work`. Raises `ValueError` when `op` cannot be a file name."""
    if _OP.fullmatch(op) is None:
        raise ValueError(f"{op!r} is not a name for an order: letters, digits, '.', '_' and '-', at most 100")
    return Job(op=op, directory=f"{work}/{op}")


def last_was_cut_off(work: str, boot_id: str) -> bool:
    """The switch that began last in this boot did not end by itself: the links may say that a system runs of which not
    all units do. Also true while it still runs. A boot makes good what a switch left undone.
    """
    begun: list[tuple[float, Job]] = []
    for job in _jobs(work):
        order = job.order()
        if order is not None and order.boot_id == boot_id and job.has_started():
            begun.append((order.launched_mono_s, job))
    if not begun:
        return False
    _, last = max(begun, key=lambda one: one[0])
    code = last.exit_code()
    return code is None or code > _KILLED


def _jobs(work: str) -> list[Job]:
    try:
        return [Job(op=name, directory=f"{work}/{name}") for name in os.listdir(work)]
    except OSError:
        return []


def forget_old_jobs(work: str) -> None:
    """Remove all but the newest records."""
    try:
        with os.scandir(work) as entries:
            jobs = [(entry.stat(follow_symlinks=False).st_mtime, entry.path) for entry in entries if entry.is_dir()]
    except OSError:
        return
    for _, path in sorted(jobs)[:-_KEPT_JOBS]:
        shutil.rmtree(path, ignore_errors=True)
