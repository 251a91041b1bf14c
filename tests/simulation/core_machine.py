"""A host without its agent: clocks, boots, a store, the three links, one switch unit that outlives whoever began it.

Switches keep the promises of `nixfleet_agent.activation.switcher`: at most once for an order, a report that was given
is given again, a switch is picked up by the next agent, and a reboot takes it away. The order of what a switch changes
(profile, boot loader, running system) is NixOS's.
"""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import attrs

from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import Closure, Moment, WallMs
from tests.simulation.faults import SECOND, Fault, FaultKind
from tests.simulation.scenario import EPOCH, Health, Scenario
from tests.simulation.trace import Trace, Weight

LOCK_WAIT_MS: Final = 60 * SECOND
ORPHANED_MS: Final = 60 * SECOND
BOOT_MS: Final = 20 * SECOND
"""From power to a running agent."""


class Scheduler(Protocol):
    """What everything in the world needs of it."""

    now: int
    scenario: Scenario
    trace: Trace

    def after(self, ms: int, call: Callable[..., None], *args: object) -> None:
        """Do it later."""
        ...

    def settle(self, call: Callable[[], None]) -> None:
        """Do it when nothing else happens at this instant."""
        ...

    def active(self, kind: FaultKind, host: int) -> Fault | None:
        """A fault that the host suffers from now."""
        ...

    def faults(self, host: int) -> Mapping[FaultKind, Fault]:
        """All that the host suffers from: one mapping, which keeps up with the run."""
        ...

    def fleet_active(self, kind: FaultKind) -> Fault | None:
        """A fault that the control plane suffers from now."""
        ...

    def spend(self, fault: Fault) -> None:
        """The fault waited for its occasion, and has had it."""
        ...

    def trusted(self, host: int) -> frozenset[int]:
        """The keys of CI that the host's trust file lists now."""
        ...


@attrs.frozen(kw_only=True)
class Report:
    """How an order ended; the members are those of `SwitchFinished`."""

    outcome: SwitchOutcome
    exit_code: int | None = None
    component: str = ""
    detail: str = ""


Answer = Callable[[Report], None]


@attrs.define(kw_only=True, eq=False)
class Job:
    """The record of one order on disk."""

    closure: Closure
    boot: int
    launched_ms: int
    component: str
    exit_code: int | None = None
    report: Report | None = None


@attrs.define(kw_only=True, eq=False)
class _Unit:
    job: Job
    alive: bool = True


class Machine:
    """One host. `agent_died` is called when the agent's process goes with the host, `started` when the host is up."""

    def __init__(
        self, world: Scheduler, host: int, *, power_lost: Callable[[], None], started: Callable[[], None]
    ) -> None:
        self.world, self.host, self.name = world, host, world.scenario.name(host)
        self.dice = world.scenario.stream("machine", host)
        self._power_lost, self._started = power_lost, started
        factory = world.scenario.factory(host)
        self.store = {factory}
        self.generations = [factory]
        self.running: Closure | None = factory
        self.booted: Closure | None = factory
        self.profile: Closure | None = factory
        self.loader: Closure = factory
        self.boots = 1
        self.booted_ms = -BOOT_MS
        self.up = True
        self._off_ms = 0
        self._drift_from: tuple[int, int] | None = None
        self._moment: Moment | None = None
        self._read_ms = 0
        self.jobs: dict[str, Job] = {}
        self.unit: _Unit | None = None
        self.on_restart_by_switch: Callable[[], None] = lambda: None
        self.on_wish: Callable[[], None] = lambda: None
        self._restarts: dict[Closure, bool] = {}

    # --- what is seen -----------------------------------------------------------------------------------------------

    def moment(self) -> Moment:
        """Both clocks now."""
        now = self.world.now
        if self._moment is None or now != self._read_ms:
            self._moment = Moment(wall_ms=WallMs(EPOCH + now + self.wall_off_ms()), mono_ms=now - self.booted_ms)
            self._read_ms = now
        return self._moment

    def wall_off_ms(self) -> int:
        """How far the wall clock is ahead of the truth."""
        if self._drift_from is None:
            return self._off_ms
        since, rate = self._drift_from
        return int(self._off_ms + (self.world.now - since) * rate / 1000)

    def step_clock(self, off_ms: int) -> None:
        """From now on the wall clock is so far ahead of the truth, drift aside."""
        self._off_ms, self._moment = off_ms, None

    def let_clock_drift(self, rate: int) -> None:
        """From now on the wall clock gains so many milliseconds a second. 0: it is right again, steps aside."""
        self._drift_from, self._moment = (self.world.now, rate) if rate else None, None

    def view(self) -> SystemView:
        """The three links and the boot id."""
        return SystemView(boot_id=f"boot{self.boots}", running=self.running, booted=self.booted, profile=self.profile)

    def note(self, text: str, weight: Weight = Weight.STORY) -> None:
        """Put something into the trace."""
        if self.world.trace.on:
            self.world.trace.note(self.world.now, self.name, text, weight)

    # --- power and people -------------------------------------------------------------------------------------------

    def lose_power(self, off_ms: int, into: Closure | None = None) -> None:
        """The host goes down at once and comes up with `into`, by default what the boot loader says."""
        if not self.up:
            return
        self.up = False
        if self.unit is not None:
            self.unit.alive, self.unit = False, None
        self.note(f"power lost; the boot loader says {self.loader}")
        self._power_lost()
        self.world.after(off_ms + BOOT_MS, self._boot, into)

    def _boot(self, into: Closure | None) -> None:
        self.up = True
        self.boots += 1
        self.booted_ms, self._moment = self.world.now - BOOT_MS, None
        self.running = self.booted = into or self.loader
        self.note(f"booted {self.running}")
        self._started()

    def switch_by_hand(self, closure: Closure) -> None:
        """Somebody runs `nixos-rebuild switch`, unless a switch is running."""
        if not self.up or self.unit is not None:
            return
        self.note(f"switched by hand to {closure}")
        self.store.add(closure)
        self.running = self.profile = self.loader = closure
        self._remember(closure)

    def end_orphan(self) -> None:
        """Somebody stops a switch that hangs and that no agent knows of, its record being lost."""
        if self.unit is not None and self.unit.job not in self.jobs.values():
            self._kill_unit(self.unit)

    def _remember(self, closure: Closure) -> None:
        if self.generations[-1] != closure:
            self.generations.append(closure)

    # --- switches ---------------------------------------------------------------------------------------------------

    def carry_out(
        self,
        op: str,
        closure: Closure,
        *,
        timeout_ms: int,
        only_if_begun: bool,
        alive: Callable[[], bool],
        tell: Answer,
    ) -> None:
        """Obey one order, as long as the agent that asked is `alive`."""
        job = self.jobs.get(op)
        if job is not None and job.report is not None:
            return tell(job.report)
        if only_if_begun and job is None:
            return tell(Report(outcome=SwitchOutcome.INTERRUPTED, detail="it had not begun, and is no longer wanted"))
        self._attempt(op, closure, timeout_ms, alive, tell, self.world.now + LOCK_WAIT_MS)
        return None

    def _attempt(
        self, op: str, closure: Closure, timeout_ms: int, alive: Callable[[], bool], tell: Answer, lock_until: int
    ) -> None:
        if not alive():
            return None
        job = self.jobs.get(op)
        if job is not None:
            return self._watch(job, timeout_ms, alive, tell)
        if self.running == self.profile == closure:
            return tell(Report(outcome=SwitchOutcome.SWITCHED, exit_code=0))
        if closure not in self.store:
            return tell(Report(outcome=SwitchOutcome.FAILED, detail="it is not in the store"))
        if self.unit is not None or self.world.active(FaultKind.SWITCH_LOCKED, self.host) is not None:
            if self.world.now >= lock_until:
                return tell(Report(outcome=SwitchOutcome.LOCK_HELD, detail="another switch is running"))
            return self.world.after(2 * SECOND, self._attempt, op, closure, timeout_ms, alive, tell, lock_until)
        return self._watch(self._launch(op, closure, timeout_ms), timeout_ms, alive, tell)

    def _launch(self, op: str, closure: Closure, timeout_ms: int) -> Job:
        component = "kernel" if self._kernel(closure) != self._kernel(self.running) else ""
        self.profile = closure
        self._remember(closure)
        job = Job(closure=closure, boot=self.boots, launched_ms=self.world.now, component=component)
        self.jobs[op] = job
        self.unit = unit = _Unit(job=job)
        self.note(f"switch unit {op} begins: {'boot' if component else 'switch'} {closure}")
        if (fault := self.world.active(FaultKind.POWER_CUT_IN_SWITCH, self.host)) is not None:
            self.world.spend(fault)
            self.world.after(fault.amount * SECOND, self._cut, unit)
        if (fault := self.world.active(FaultKind.WISH_IN_SWITCH, self.host)) is not None:
            self.world.spend(fault)
            self.world.after(fault.amount * SECOND, self.on_wish)
        if component:
            self.world.after(SECOND, self._boot_set, unit)
        else:
            takes = 2 * SECOND + int(self.dice.random() * 10 * SECOND)
            self.world.after(takes // 3, self._loader_set, unit)
            self.world.after(takes, self._unit_ends, unit)
        # systemd ends a unit that no agent has ended by then: `activation.systemd_unit`.
        self.world.after(timeout_ms + ORPHANED_MS, self._kill_unit, unit)
        return job

    def _kernel(self, closure: Closure | None) -> str:
        return str(closure) if self.world.scenario.health(closure, self.host) is Health.DEFERS else "stock"

    def _cut(self, unit: _Unit) -> None:
        if unit.alive:
            self.lose_power(30 * SECOND)

    def _boot_set(self, unit: _Unit) -> None:
        if unit.alive:
            self.loader = unit.job.closure
            self._end(unit, 0)

    def _loader_set(self, unit: _Unit) -> None:
        if not unit.alive or self._hangs(unit):
            return
        self.loader = unit.job.closure
        closure = unit.job.closure
        if closure not in self._restarts:
            self._restarts[closure] = self.dice.random() < 0.5
        if self._restarts[closure]:
            self.note("the switch restarts the agent")
            self.on_restart_by_switch()

    def _hangs(self, unit: _Unit) -> bool:
        health = self.world.scenario.health(unit.job.closure, self.host)
        return health is Health.HANGS or self.world.active(FaultKind.SWITCH_HANGS, self.host) is not None

    def _unit_ends(self, unit: _Unit) -> None:
        if not unit.alive or self._hangs(unit):
            return
        closure, active = unit.job.closure, self.world.active
        health = self.world.scenario.health(closure, self.host)
        if health is Health.REFUSES or active(FaultKind.SWITCH_FAILS, self.host) is not None:
            self._end(unit, 1)
        elif active(FaultKind.SWITCH_LIES, self.host) is not None:
            self._end(unit, 0)
        else:
            self.running = closure
            half = active(FaultKind.SWITCH_HALF_APPLIES, self.host) is not None
            self._end(unit, 4 if health is Health.BREAKS or half else 0)

    def _end(self, unit: _Unit, code: int) -> None:
        unit.alive, self.unit = False, None
        unit.job.exit_code = code
        self.note(f"switch unit ends with {code}; {self.running} runs")

    def _kill_unit(self, unit: _Unit) -> None:
        """Stop it, wherever it was."""
        if unit.alive:
            if self.dice.random() < 0.5:
                self.running = unit.job.closure
            unit.alive, self.unit = False, None
            self.note(f"switch unit killed; {self.running} runs")

    def _watch(self, job: Job, timeout_ms: int, alive: Callable[[], bool], tell: Answer) -> None:
        if not alive():
            return None
        unit = self.unit if self.unit is not None and self.unit.job is job else None
        if job.exit_code is not None:
            return self._tell(job, self._verdict(job), tell)
        if unit is None:
            return self._tell(job, Report(outcome=SwitchOutcome.INTERRUPTED, detail="it is gone"), tell)
        if job.boot == self.boots and self.world.now >= job.launched_ms + timeout_ms:
            self._kill_unit(unit)
            return self._tell(job, Report(outcome=SwitchOutcome.TIMEOUT, detail="it did not end"), tell)
        # Polled, as the agent does, but as seldom as can be told apart from the outside.
        return self.world.after(2 * SECOND, self._watch, job, timeout_ms, alive, tell)

    def _verdict(self, job: Job) -> Report:
        code = job.exit_code
        if code != 0:
            return Report(outcome=SwitchOutcome.FAILED, exit_code=code, detail="it failed")
        if not job.component and self.running != job.closure:
            return Report(outcome=SwitchOutcome.VERIFY_MISMATCH, exit_code=0, detail=f"{self.running} runs")
        self.profile = job.closure
        if job.component:
            return Report(outcome=SwitchOutcome.DEFERRED, exit_code=0, component=job.component)
        return Report(outcome=SwitchOutcome.SWITCHED, exit_code=0)

    def _tell(self, job: Job, report: Report, tell: Answer) -> None:
        job.report = report
        undone = self.world.active(FaultKind.SWITCH_UNDONE, self.host)
        if undone is not None and report.outcome is SwitchOutcome.SWITCHED and len(self.generations) > 1:
            self.world.spend(undone)
            self.on_restart_by_switch()
            self.switch_by_hand(self.generations[-2])
        tell(report)
