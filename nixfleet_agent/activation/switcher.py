"""One switch from order to report, the same on every platform.

Promises: nothing is switched twice for one order; "switched" means exit status 0 and the asked-for system running;
a switch outlives the agent and is picked up by the next one; a report that was given is given again. What differs
between platforms (what to run, what cannot be swapped live) is behind `SystemCommands`, how it runs behind `Runner`.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import attrs
import trio

from nixfleet_agent.activation.errors import ActivationError
from nixfleet_agent.activation.interface import Store, SwitchReport
from nixfleet_agent.activation.jobs import Job, Order, forget_old_jobs, job_of, last_was_cut_off
from nixfleet_agent.activation.locks import unheld
from nixfleet_agent.activation.paths import Paths
from nixfleet_agent.activation.polling import comes_true
from nixfleet_agent.activation.runners import Runner
from nixfleet_agent.commands import tail
from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import Closure, is_closure

SWITCH: Final = "switch"
BOOT: Final = "boot"

_LOST_THE_LOCK: Final = "Could not acquire lock"
"""What NixOS's switch says, in both its implementations, when another one took the lock since it was seen free."""

Started = Callable[[], None] | None


class SystemCommands(Protocol):
    """What a platform's systems are made of."""

    @property
    def holds_lock(self) -> bool:
        """The agent must hold the switch lock itself, because what it runs does not."""
        ...

    def command(self, closure: Closure, action: str) -> Sequence[str]:
        """What to run."""
        ...

    def problem_with(self, closure: Closure) -> str | None:
        """Why the closure's files cannot be switched to; None when they can."""
        ...

    def component(self, closure: Closure) -> str | None:
        """What differs from the running system and cannot be swapped live."""
        ...


@attrs.frozen(kw_only=True)
class Switcher:
    """Carries out orders to switch. Holds no state: all of it is in the jobs' directories."""

    paths: Paths
    store: Store
    runner: Runner
    system: SystemCommands
    observe: Callable[[], SystemView]
    environment: Mapping[str, str]
    mono_s: Callable[[], float]
    """The kernel's monotonic clock: common to all processes of a boot."""

    async def switch(
        self,
        op: str,
        closure: Closure,
        *,
        started: Started,
        timeout_s: float,
        lock_wait_s: float,
        only_if_begun: bool = False,
    ) -> SwitchReport:
        """Obey one order; see `interface.Platform.switch`. Raises `ValueError` when `op` cannot name a file."""
        job = job_of(op, self.paths.work)
        if (given := job.report()) is not None:
            return given
        if only_if_begun and not await self._was_begun(job):
            return self._report(SwitchOutcome.INTERRUPTED, detail="it had not begun, and is no longer wanted")
        lock_deadline = trio.current_time() + lock_wait_s
        try:
            while True:
                report = await self._attempt(job, closure, started, timeout_s, lock_deadline)
                if report is not None:
                    return report
        except (ActivationError, OSError) as error:
            # Raised on the way to a launch only: what happens after it ends in a report.
            return self._report(SwitchOutcome.FAILED, detail=str(error))

    async def _attempt(
        self, job: Job, closure: Closure, started: Started, timeout_s: float, lock_deadline: float
    ) -> SwitchReport | None:
        """One try; None when the switch lost a race for the lock, without effect, and may be tried again."""
        order = job.order()
        if order is not None and order.closure != closure:
            return self._report(SwitchOutcome.FAILED, detail=f"{job.op} was an order to switch to {order.closure}")
        if order is not None and await self._has_begun(job, order):
            return await self._finish(job, order, started, timeout_s, lock_deadline)
        if (early := self._without_switching(closure)) is not None:
            return early
        wait_s = max(0.0, lock_deadline - trio.current_time())
        async with unheld(self.paths.switch_lock, wait_s=wait_s, hold=self.system.holds_lock) as free:
            if not free:
                return self._report(SwitchOutcome.LOCK_HELD, detail=f"{self.paths.switch_lock} is held")
            if (other := await self._other_switch(lock_deadline)) is not None:
                return self._report(SwitchOutcome.LOCK_HELD, detail=f"another switch is running: {other}")
            order = await self._launch(job, closure, timeout_s)
            return await self._finish(job, order, started, timeout_s, lock_deadline)

    def _without_switching(self, closure: Closure) -> SwitchReport | None:
        """The report when there is nothing to do or nothing can be done."""
        view = self.observe()
        if view.running == view.profile == closure and not last_was_cut_off(self.paths.work, view.boot_id):
            return self._report(SwitchOutcome.SWITCHED, exit_code=0)
        if not is_closure(closure):
            return self._report(SwitchOutcome.FAILED, detail="not the name of a store path")
        if (problem := self.system.problem_with(closure)) is not None:
            return self._report(SwitchOutcome.FAILED, detail=problem)
        return None

    async def _other_switch(self, deadline: float) -> str | None:
        """The switch that still occupies the runner at `deadline`."""
        name: str | None = None

        async def free() -> bool:
            nonlocal name
            name = await self.runner.busy_with()
            return name is None

        await comes_true(free, within_s=max(0.0, deadline - trio.current_time()), first_pause_s=0.1)
        return name

    async def _was_begun(self, job: Job) -> bool:
        order = job.order()
        return order is not None and await self._has_begun(job, order)

    async def _has_begun(self, job: Job, order: Order) -> bool:
        """The order was launched. After a reboot one cannot know, so it counts as launched."""
        if job.exit_code() is not None or job.has_started() or order.boot_id != self.observe().boot_id:
            return True
        return await self.runner.runs(job)

    async def _launch(self, job: Job, closure: Closure, timeout_s: float) -> Order:
        before = self.observe()
        component = self.system.component(closure)
        if before.running is not None:
            self._keep("previous", before.running)
        # Refuses a path that is in the store's directory without being whole or known to the store.
        await self.store.set_profile(closure)
        order = Order(
            closure=closure,
            action=SWITCH if component is None else BOOT,
            component=component,
            profile_before=before.profile,
            boot_id=before.boot_id,
            launched_mono_s=self.mono_s(),
            timeout_s=timeout_s,
        )
        job.place(order)
        forget_old_jobs(self.paths.work)
        await self.runner.launch(job, self.system.command(closure, order.action), self.environment)
        return order

    async def _finish(
        self, job: Job, order: Order, started: Started, timeout_s: float, lock_deadline: float
    ) -> SwitchReport | None:
        if started is not None and order.action == SWITCH:
            started()
        report = await self._watch(job, order, timeout_s)
        if not self._lost_the_lock(job, order, report):
            return self._record(job, report)
        await self._take_back(job, order)
        if trio.current_time() >= lock_deadline:
            return self._report(SwitchOutcome.LOCK_HELD, detail="another switch took the lock first")
        await trio.sleep(min(1.0, max(0.0, lock_deadline - trio.current_time())))
        return None

    async def _watch(self, job: Job, order: Order, timeout_s: float) -> SwitchReport:
        """Wait for the job's end, or make one at its deadline."""
        remaining_s = self._remaining_s(order, timeout_s)
        ended = await comes_true(_End(job, self.runner).reached, within_s=remaining_s)
        if ended and (code := job.exit_code()) is not None:
            await self.runner.settle(job)
            return await self._verdict(job, order, code)
        if not ended or remaining_s == 0:
            said = await self.runner.end(job)
            parts = (f"gave up {timeout_s:g} s after the switch began", said, job.output_tail())
            return self._report(SwitchOutcome.TIMEOUT, detail=_lines(*parts))
        if not job.has_started() and order.boot_id == self.observe().boot_id:
            return self._report(SwitchOutcome.FAILED, detail="the switch ended before it began")
        said = "it began and is neither running nor finished"
        return self._report(SwitchOutcome.INTERRUPTED, detail=_lines(said, job.output_tail()))

    async def _verdict(self, job: Job, order: Order, code: int) -> SwitchReport:
        """What an exit status means, given what runs now."""
        running = self.observe().running
        if code != 0:
            return self._report(SwitchOutcome.FAILED, exit_code=code, detail=job.output_tail())
        if order.action == SWITCH and running != order.closure:
            said = f"exit status 0, but {self.paths.current_system} is {running or 'absent'}"
            return self._report(SwitchOutcome.VERIFY_MISMATCH, exit_code=code, detail=_lines(said, job.output_tail()))
        warning = await self._correct_profile(order.closure)
        if order.action == BOOT:
            said = f"{order.component} differs and cannot be swapped live"
            return self._report(
                SwitchOutcome.DEFERRED, exit_code=code, component=order.component, detail=_lines(said, warning)
            )
        return self._report(SwitchOutcome.SWITCHED, exit_code=code, detail=warning)

    async def _correct_profile(self, closure: Closure) -> str:
        """Some switches set the profile themselves, to something else; what could not be mended is said."""
        if self.observe().profile == closure:
            return ""
        try:
            await self.store.set_profile(closure)
        except ActivationError as error:
            return str(error)
        return ""

    def _lost_the_lock(self, job: Job, order: Order, report: SwitchReport) -> bool:
        if report.outcome is not SwitchOutcome.FAILED or report.exit_code is None:
            return False
        return report.observed != order.closure and _LOST_THE_LOCK in job.output_tail()

    async def _take_back(self, job: Job, order: Order) -> None:
        """Undo what came before the switch that never was."""
        before = order.profile_before
        if before is not None and before != order.closure and self.observe().profile == order.closure:
            await self.store.set_profile(before)
        job.clear()

    def _remaining_s(self, order: Order, timeout_s: float) -> float:
        """Of the time that the switch was given, what is left of it now, also for a later process in the same boot."""
        if order.boot_id != self.observe().boot_id:
            return timeout_s
        return min(timeout_s, max(0.0, order.launched_mono_s + timeout_s - self.mono_s()))

    def _keep(self, name: str, closure: Closure) -> None:
        # An unprotected system is no reason not to switch: Nix keeps it as long as a generation refers to it.
        with contextlib.suppress(OSError):
            self.store.keep(name, closure)

    def _record(self, job: Job, report: SwitchReport) -> SwitchReport:
        try:
            return job.record(report)
        except OSError as error:
            # The exit status is on the disk; the next process comes to the same report by itself.
            return attrs.evolve(report, detail=_lines(report.detail, f"not recorded: {error}"))

    def _report(
        self, outcome: SwitchOutcome, *, exit_code: int | None = None, component: str | None = None, detail: str = ""
    ) -> SwitchReport:
        return SwitchReport(
            outcome=outcome,
            method=self.runner.method,
            exit_code=exit_code,
            observed=self.observe().running,
            component=component,
            detail=_lines(detail),
        )


@attrs.define
class _End:
    """Whether a job is over: by its exit status at every look, by its runner as often as that may be asked."""

    job: Job
    runner: Runner
    _next_look: float = 0.0

    async def reached(self) -> bool:
        await trio.lowlevel.checkpoint()
        if self.job.exit_code() is not None:
            return True
        if trio.current_time() < self._next_look:
            return False
        self._next_look = trio.current_time() + self.runner.look_every_s
        return not await self.runner.runs(self.job)


def _lines(*parts: str) -> str:
    return tail("\n".join(part for part in parts if part).encode("utf-8", "replace"))
