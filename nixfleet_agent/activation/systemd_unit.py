"""Run a switch in the transient unit `nixfleet-switch`.

systemd allows one unit of a name, so two switches never run at once, whoever started them. The unit's description
carries the order's name, which is how an agent that was restarted knows its own switch from another's.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from nixfleet_agent.activation.errors import LaunchError
from nixfleet_agent.activation.jobs import Job
from nixfleet_agent.activation.polling import comes_true
from nixfleet_agent.commands import CommandError, Completed, run
from state_machine.values import SwitchMethod

UNIT: Final = "nixfleet-switch.service"

_CALL_S: Final = 30.0
"""For one call of systemctl, in seconds; systemd answers late while it reloads."""

_STOP_S: Final = 10
"""systemd's pause between SIGTERM and SIGKILL for the unit, in seconds."""

_ORPHANED_S: Final = 60.0
"""How long past its deadline a switch lives that no agent ends: one whose agent lost its state directory meanwhile
would keep every later switch waiting for ever."""

_LIVE: Final = frozenset({"activating", "active", "deactivating", "reloading", "refreshing", "maintenance"})

_SHOWN: Final = "ActiveState,SubState,Result,ExecMainCode,ExecMainStatus,Description"


@attrs.frozen(kw_only=True)
class SystemdRunner:
    """A `Runner` (see `runners`) for root under systemd."""

    method: SwitchMethod = SwitchMethod.SYSTEMD_RUN
    look_every_s: float = 2.0

    async def launch(self, job: Job, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """`systemd-run`. Raises `LaunchError` when the unit did not come to be."""
        # A unit of this name that failed and was kept (by an older agent) would refuse the new one its name.
        await _systemctl("reset-failed", UNIT)
        done = await _call(
            "systemd-run",
            f"--unit={UNIT}",
            f"--description={_description(job)}",
            "--collect",
            "--quiet",
            "--no-ask-password",
            "--service-type=exec",
            f"--property=TimeoutStopSec={_STOP_S}s",
            *_limit(job),
            *(f"--setenv={name}={value}" for name, value in environment.items()),
            "--",
            "/bin/sh",
            f"{job.directory}/wrapper",
            job.directory,
            *command,
        )
        # systemd-run may lose its connection after the unit was made; the unit itself tells.
        if not done.ok and not job.has_started() and not (await _shown()).get("Description") == _description(job):
            raise LaunchError(how="systemd-run", cause=done.stderr_tail or "no answer")

    async def runs(self, job: Job) -> bool:
        """The unit lives and its description is this job's."""
        shown = await _shown()
        if not shown:
            return True
        return shown.get("ActiveState") in _LIVE and shown.get("Description") == _description(job)

    async def end(self, job: Job) -> str:
        """Stop the unit: SIGTERM, and SIGKILL after ten seconds, to everything in its control group."""
        shown = await _shown()
        if shown and shown.get("Description") != _description(job):
            return ""
        # Without waiting, so that systemd goes on with it should this process be told to stop meanwhile.
        await _systemctl("stop", "--no-block", UNIT)
        await self._is_over(job, within_s=_STOP_S + 5.0)
        return " ".join(f"{name}={value}" for name, value in shown.items())

    async def settle(self, job: Job) -> None:
        """Stop what the switch left running in its unit, after a moment to end by itself."""
        if not await self._is_over(job, within_s=2.0):
            await _systemctl("stop", "--no-block", UNIT)
            await self._is_over(job, within_s=_STOP_S + 5.0)

    async def busy_with(self) -> str | None:
        """A unit of this name lives, started for another order or by another program."""
        shown = await _shown()
        if shown.get("ActiveState") in _LIVE:
            return f"{UNIT} ({shown.get('Description', '')})"
        return None

    async def _is_over(self, job: Job, *, within_s: float) -> bool:
        async def over() -> bool:
            return not await self.runs(job)

        return await comes_true(over, within_s=within_s, first_pause_s=0.1)


def _limit(job: Job) -> list[str]:
    order = job.order()
    if order is None or not order.timeout_s:
        return []
    return [f"--property=RuntimeMaxSec={order.timeout_s + _ORPHANED_S:g}s"]


def _description(job: Job) -> str:
    return f"nixfleet-agent switch {job.op}"


async def _shown() -> dict[str, str]:
    """The unit's properties; empty when systemd did not answer (it does not while it executes itself anew)."""
    done = await _systemctl("show", f"--property={_SHOWN}", UNIT)
    if not done.ok:
        return {}
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


async def _systemctl(*words: str) -> Completed:
    return await _call("systemctl", "--no-ask-password", *words)


async def _call(*words: str) -> Completed:
    failed = Completed(exit_code=None, stdout=b"", stderr=b"", timed_out=False)
    with contextlib.suppress(CommandError):
        return await run(words, timeout_s=_CALL_S)
    return failed
