"""What outlives the agent: a simulated host whose switches go on without it, and the time. All of it can be copied.

Switches keep the promises of `interface.Platform`: at most once for an order, however often and by whomever it is
given. How the real ones keep them is for `tests/integration/test_activation_switch.py`.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Final

import attrs
import trio

from nixfleet_agent.activation.interface import RealiseOutcome, SwitchReport
from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import Closure, Moment, SwitchMethod, WallMs
from tests.crash.office import Office
from tests.crash.points import Kind

SECOND: Final = 1_000
EPOCH: Final = 1_780_000_000_000
REALISE_S: Final = 2.0
SWITCH_MS: Final = 8 * SECOND
OLD: Final = Closure("0" * 32 + "-nixos-old")
NEW: Final = Closure("1" * 32 + "-nixos-new")


@attrs.frozen(kw_only=True)
class Target:
    """What the released system is like. `sick`: its probe fails. `component`: what cannot be swapped live."""

    exit_code: int = 0
    sick: bool = False
    component: str | None = None


@attrs.define(kw_only=True)
class Job:
    """A switch in a unit of its own, over at `ends_ms`."""

    closure: Closure
    ends_ms: int
    applied: bool = False


@attrs.define(kw_only=True)
class World:
    """A host and its control plane. `now_ms` counts from the beginning; `switches` is every switch that ever began."""

    target: Target
    office: Office
    now_ms: int = 100 * SECOND
    booted_ms: int = 0
    boots: int = 1
    running: Closure = OLD
    booted: Closure = OLD
    profile: Closure = OLD
    store: set[Closure] = attrs.field(factory=lambda: {OLD})
    jobs: dict[str, Job] = attrs.field(factory=dict)
    switches: list[Closure] = attrs.field(factory=list)

    def copy(self) -> "World":
        """The world at this instant."""
        return copy.deepcopy(self)

    def moment(self) -> Moment:
        """Both clocks of the host."""
        return Moment(wall_ms=WallMs(EPOCH + self.now_ms), mono_ms=self.now_ms - self.booted_ms)

    def observe(self) -> SystemView:
        """A look at the links; a switch that is over by now has moved them."""
        for job in self.jobs.values():
            if not job.applied and job.ends_ms <= self.now_ms:
                self._apply(job)
        return SystemView(boot_id=f"boot-{self.boots}", running=self.running, booted=self.booted, profile=self.profile)

    def _apply(self, job: Job) -> None:
        job.applied = True
        self.profile = job.closure
        if self.component_of(job.closure) is None:
            self.running = job.closure

    def component_of(self, closure: Closure) -> str | None:
        """What keeps a switch from `booted` to the closure from being live."""
        return self.target.component if closure == NEW and self.booted != NEW else None

    def healthy(self) -> bool:
        """What a probe of the running system finds."""
        return not (self.target.sick and self.observe().running == NEW)

    def reboot(self) -> None:
        """The host goes down and comes up with what its profile says, half a minute later. No switch survives that."""
        self.observe()
        self.jobs.clear()
        self.now_ms += 30 * SECOND
        self.booted_ms, self.boots = self.now_ms - 10 * SECOND, self.boots + 1
        self.running = self.booted = self.profile


@attrs.frozen(kw_only=True)
class SimulatedPlatform:
    """The host as one agent commands it. `passed` is told of every instant at which dying would make a difference."""

    world: World
    now_ms: Callable[[], int]
    passed: Callable[[Kind, str], None]

    def observe(self) -> SystemView:
        self.world.now_ms = self.now_ms()
        return self.world.observe()

    def method(self) -> SwitchMethod:
        return SwitchMethod.SYSTEMD_RUN

    async def realise(
        self, closure: Closure, *, caches: Sequence[str] = (), timeout_s: float = 3600.0
    ) -> RealiseOutcome:
        if closure not in self.world.store:
            await trio.sleep(REALISE_S / 2)
            self.passed(Kind.IN_OPERATION, "half fetched")
            await trio.sleep(REALISE_S / 2)
            self.world.store.add(closure)
        self.passed(Kind.IN_OPERATION, "fetched, unreported")
        await trio.lowlevel.checkpoint()
        return RealiseOutcome(ok=True)

    async def switch(
        self,
        op: str,
        closure: Closure,
        *,
        started: Callable[[], None] | None = None,
        timeout_s: float = 300.0,
        lock_wait_s: float = 60.0,
        only_if_begun: bool = False,
    ) -> SwitchReport:
        assert closure in self.world.store, f"{closure} was never fetched"
        job = self.world.jobs.get(op)
        if job is None and only_if_begun:
            return self._report(SwitchOutcome.INTERRUPTED, closure)
        if job is None:
            job = self._begin(op, closure)
            self.passed(Kind.IN_OPERATION, "switch begun")
        await self._sleep_until((self.now_ms() + job.ends_ms) // 2)
        self.passed(Kind.IN_OPERATION, "switch half done")
        await self._sleep_until(job.ends_ms)
        self.observe()
        self.passed(Kind.IN_OPERATION, "switch done, unreported")
        return self._report(self._outcome(closure), closure)

    async def rollback(
        self,
        op: str,
        closure: Closure,
        *,
        started: Callable[[], None] | None = None,
        timeout_s: float = 300.0,
        lock_wait_s: float = 60.0,
    ) -> SwitchReport:
        return await self.switch(op, closure, timeout_s=timeout_s)

    async def _sleep_until(self, instant_ms: int) -> None:
        # Whole milliseconds and trio's floats may differ by a fraction of one.
        while (left_ms := instant_ms - self.now_ms()) > 0:
            await trio.sleep(left_ms / SECOND)

    def _begin(self, op: str, closure: Closure) -> Job:
        job = self.world.jobs[op] = Job(closure=closure, ends_ms=self.now_ms() + SWITCH_MS)
        self.world.switches.append(closure)
        return job

    def _outcome(self, closure: Closure) -> SwitchOutcome:
        if self.world.component_of(closure) is not None:
            return SwitchOutcome.DEFERRED
        return SwitchOutcome.FAILED if self._exit_code(closure) else SwitchOutcome.SWITCHED

    def _exit_code(self, closure: Closure) -> int:
        return self.world.target.exit_code if closure == NEW else 0

    def _report(self, outcome: SwitchOutcome, closure: Closure) -> SwitchReport:
        return SwitchReport(
            outcome=outcome,
            method=self.method(),
            exit_code=self._exit_code(closure),
            observed=self.observe().running,
            component=self.world.component_of(closure) if outcome is SwitchOutcome.DEFERRED else None,
            detail="the units failed" if outcome is SwitchOutcome.FAILED else "",
        )
