"""Run the probes that ask a program: exec, command and launchd.

A program that outlives its deadline is killed with its whole process group, and what it printed beyond 64 KiB was
never kept; both are `nixfleet_agent.commands`' promises.
"""

import re
from collections.abc import Sequence
from typing import Final

from nixfleet_agent import commands
from nixfleet_agent.commands import CommandError, Completed
from nixfleet_agent.probes.kinds import CommandProbe, ExecProbe, LaunchdProbe
from nixfleet_agent.probes.reading import PASSED, Outcome, failed

SHELL: Final = "/bin/sh"
LAUNCHCTL: Final = ("launchctl",)

_REASON_LINES: Final = 3
_PID_LINE = re.compile(rb'^\s*"?PID"?\s*=\s*[1-9][0-9]*;?\s*$', re.MULTILINE)


async def run_exec(probe: ExecProbe) -> Outcome:
    """Passes on exit status 0; the reason of a failure is the last three lines of standard error."""
    return await _run(probe.argv, timeout_s=probe.timeout_s)


async def run_command(probe: CommandProbe, shell: str = SHELL) -> Outcome:
    """As `run_exec`, for a shell's command line."""
    return await _run((shell, "-c", probe.command), timeout_s=probe.timeout_s)


async def run_launchd(probe: LaunchdProbe, launchctl: Sequence[str] = LAUNCHCTL) -> Outcome:
    """Ask launchd for each label: loaded means exit status 0, running means that a process number is listed."""
    sick = []
    for label in probe.labels:
        try:
            completed = await commands.run((*launchctl, "list", label), timeout_s=probe.timeout_s)
        except CommandError as error:
            return failed(str(error))
        if not completed.ok:
            sick.append(f"{label} is not loaded ({_ending(completed, probe.timeout_s)})")
        elif not _PID_LINE.search(completed.stdout):
            sick.append(f"{label} is loaded but not running")
    return failed("; ".join(sick)) if sick else PASSED


async def _run(argv: Sequence[str], *, timeout_s: float) -> Outcome:
    try:
        completed = await commands.run(argv, timeout_s=timeout_s)
    except CommandError as error:
        return failed(str(error))
    if completed.ok:
        return PASSED
    lines = [line for line in completed.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    said = "\n".join(lines[-_REASON_LINES:])
    if completed.timed_out:
        return failed(f"{_ending(completed, timeout_s)}\n{said}".rstrip())
    return failed(said or _ending(completed, timeout_s))


def _ending(completed: Completed, timeout_s: float) -> str:
    if completed.exit_code is None:
        return f"killed: it did not end within {timeout_s:g} s"
    if completed.exit_code < 0:
        return f"killed by signal {-completed.exit_code}"
    return f"exit status {completed.exit_code}"
