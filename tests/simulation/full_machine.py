"""A host without its agent: a directory with the three links, a boot id, a store and a runner of switches.

The agent's own platform code looks at it and switches it: real links, real records of orders, real locks. Simulated
are only what a machine adds: how long a switch takes and what it does, what is in the caches, power.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import trio

from nixfleet_agent.activation.errors import LaunchError, ProfileError
from nixfleet_agent.activation.inhibitors import chosen
from nixfleet_agent.activation.interface import RealiseOutcome
from nixfleet_agent.activation.jobs import Job
from nixfleet_agent.activation.linux import LinuxPlatform
from nixfleet_agent.activation.paths import Paths, closure_behind
from state_machine.values import Closure, Moment, Reason, SwitchMethod, WallMs, is_closure
from tests.simulation.faults import SECOND, FaultKind
from tests.simulation.full_world import World
from tests.simulation.scenario import EPOCH, Health
from tests.simulation.trace import Weight

BOOT_S: Final = 20.0
"""From power to a running agent."""
ORPHAN_GRACE_S: Final = 60.0
SWITCH_TIMEOUT_S: Final = 300.0
STOCK: Final = "stock"
OTHER_KERNEL: Final = "other-kernel"


def make_templates(root: Path) -> None:
    """What systems are made of: one for all that have the stock kernel, one for those that have another."""
    for name in (STOCK, OTHER_KERNEL):
        program = root / name / "bin/switch-to-configuration"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        (root / name / "kernel").write_text(name)


@attrs.define(eq=False)
class Unit:
    """A switch that runs."""

    job: Job
    closure: Closure
    scope: trio.CancelScope


class Machine:
    """One host. `on_power_lost`, `on_booted` and `on_restart` (which a switch asks for) are the agent's business."""

    def __init__(self, world: World, host: int) -> None:
        self.world, self.host, self.name = world, host, world.scenario.name(host)
        self.dice = world.scenario.stream("machine", host)
        self.root = world.root / self.name
        self.paths = Paths.below(str(self.root), store=str(self.root / "store"))
        for place in ("store", "profiles", "run", "activation"):
            (self.root / place).mkdir(parents=True)
        self.up = True
        self.boots = 0
        self.booted_ms = 0
        self.unit: Unit | None = None
        self.on_power_lost: Callable[[], None] = lambda: None
        self.on_booted: Callable[[], None] = lambda: None
        self.on_restart: Callable[[], None] = lambda: None
        factory = world.scenario.factory(host)
        self.install(factory)
        self.generations = [factory]
        self.loader = factory
        self._launches: dict[str, int] = {}
        self._lock: int | None = None
        self._lock_until_ms = 0
        self._restarts: dict[Closure, bool] = {}
        self._link(self.paths.profile, factory)
        self._start(factory)

    # --- what is seen -----------------------------------------------------------------------------------------------

    def moment(self) -> Moment:
        """Both clocks now."""
        now, off = self.world.now, 0.0
        if (step := self.world.active(FaultKind.CLOCK_STEP, self.host)) is not None:
            off += step.amount * SECOND
        if (drift := self.world.active(FaultKind.CLOCK_DRIFT, self.host)) is not None:
            off += (now - drift.at_ms) * drift.amount / 1000
        return Moment(wall_ms=WallMs(EPOCH + now + int(off)), mono_ms=now - self.booted_ms)

    @property
    def running(self) -> Closure | None:
        """What really runs."""
        return closure_behind(self.paths.current_system, self.paths.store)

    @property
    def profile(self) -> Closure | None:
        """What the profile points at."""
        return closure_behind(self.paths.profile, self.paths.store)

    def platform(self) -> LinuxPlatform:
        """The host as an agent commands it."""
        return LinuxPlatform(
            paths=self.paths,
            store=SimulatedStore(machine=self),
            runner=SimulatedRunner(machine=self),
            components=chosen(("kernel",)),
            mono_s=lambda: self.moment().mono_ms / 1000,
        )

    def note(self, text: str, weight: Weight = Weight.STORY) -> None:
        """Put something into the trace."""
        self.world.note(self.name, text, weight)

    # --- power, boots, people ---------------------------------------------------------------------------------------

    def lose_power(self, off_s: float, into: Closure | None = None) -> None:
        """The host goes down at once, and later comes up with `into`, by default what the boot loader says."""
        if not self.up:
            return
        self.up = False
        self._end_unit()
        self.note(f"power lost; the boot loader says {self.loader}", Weight.FAULT)
        self.on_power_lost()
        self.world.nursery.start_soon(self._come_up, off_s, into)

    async def _come_up(self, off_s: float, into: Closure | None) -> None:
        await self.world.sleep(off_s + BOOT_S)
        self._start(into or self.loader)
        self.up = True
        self.note(f"booted {self.running}")
        self.on_booted()

    def _start(self, closure: Closure) -> None:
        self.boots += 1
        self.booted_ms = self.world.now - int(BOOT_S * SECOND)
        self._link(self.paths.current_system, closure)
        self._link(self.paths.booted_system, closure)
        Path(self.paths.boot_id).write_text(f"boot{self.boots}\n")

    def switch_by_hand(self, closure: Closure) -> None:
        """Somebody runs `nixos-rebuild switch`, unless a switch is running."""
        if not self.up or self.unit is not None:
            return
        self.note(f"switched by hand to {closure}", Weight.FAULT)
        self.install(closure)
        self.loader = closure
        self.remember(closure)
        self._link(self.paths.profile, closure)
        self._link(self.paths.current_system, closure)

    def remember(self, closure: Closure) -> None:
        """There is a generation of it."""
        if self.generations[-1] != closure:
            self.generations.append(closure)

    def install(self, closure: Closure) -> None:
        """Have the closure in the store."""
        other = self.world.scenario.health(closure, self.host) is Health.DEFERS
        place = f"{self.paths.store}/{closure}"
        if not os.path.lexists(place):
            os.symlink(self.world.root / "templates" / (OTHER_KERNEL if other else STOCK), place)

    def _link(self, link: str, closure: Closure) -> None:
        os.symlink(f"{self.paths.store}/{closure}", f"{link}.new")
        os.replace(f"{link}.new", link)

    def set_profile(self, closure: Closure) -> None:
        """Point the profile at it."""
        self.remember(closure)
        self._link(self.paths.profile, closure)

    async def lock_switches(self, until_ms: int) -> None:
        """Somebody holds the switch lock until then. Several people take it together."""
        if self._lock is None:
            self._lock = os.open(self.paths.switch_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._lock_until_ms = max(self._lock_until_ms, until_ms)
        await self.world.until(until_ms)
        if self._lock is not None and self.world.now >= self._lock_until_ms:
            os.close(self._lock)
            self._lock = None

    def lose_records(self) -> None:
        """The records of orders go, with the rest of the state directory."""
        shutil.rmtree(self.paths.work)
        os.mkdir(self.paths.work)

    # --- switches ---------------------------------------------------------------------------------------------------

    def launch(self, job: Job, closure: Closure, action: str) -> None:
        """Begin a switch that outlives whoever began it."""
        times = self._launches[job.op] = self._launches.get(job.op, 0) + 1
        if times > 1:
            self.world.find(self.name, "S6", f"order {job.op} was carried out {times} times")
        self.unit = unit = Unit(job, closure, trio.CancelScope())
        self.note(f"switch {_short(job.op)} begins: {action} {closure}")
        Path(job.directory, "started").write_text("1\n")
        if (fault := self.world.strikes(FaultKind.POWER_CUT_IN_SWITCH, self.host)) is not None:
            self.world.nursery.start_soon(self._cut, unit, fault.amount)
        self.world.nursery.start_soon(self._carry_out, unit, action)

    async def _cut(self, unit: Unit, after_s: float) -> None:
        await self.world.sleep(after_s)
        if self.unit is unit:
            self.lose_power(30)

    async def _carry_out(self, unit: Unit, action: str) -> None:
        with unit.scope:
            # systemd ends the unit by itself a while after the agent should have: nobody may be left to do so.
            with trio.move_on_after(SWITCH_TIMEOUT_S + ORPHAN_GRACE_S):
                code = await (self._set_loader(unit) if action == "boot" else self._switch(unit))
                if (directory := Path(unit.job.directory)).is_dir():  # it may have gone with the state directory
                    (directory / "exit").write_text(f"{code}\n")
                self.note(f"switch {_short(unit.job.op)} exits with {code}; {self.running} runs")
            if self.unit is unit:
                self.unit = None

    async def _set_loader(self, unit: Unit) -> int:
        await self.world.sleep(1)
        self.loader = unit.closure
        return 0

    async def _switch(self, unit: Unit) -> int:
        takes_s, closure = self.dice.uniform(2, 12), unit.closure
        await self.world.sleep(takes_s / 3)
        await self._may_hang(closure)
        self.loader = closure
        if closure not in self._restarts:
            self._restarts[closure] = self.dice.random() < 0.5
        if self._restarts[closure]:
            self.note("the switch restarts the agent")
            self.on_restart()
        await self.world.sleep(takes_s * 2 / 3)
        await self._may_hang(closure)
        return self._effect(closure)

    async def _may_hang(self, closure: Closure) -> None:
        hangs = self.world.active(FaultKind.SWITCH_HANGS, self.host) is not None
        if hangs or self.world.scenario.health(closure, self.host) is Health.HANGS:
            await trio.sleep_forever()

    def _effect(self, closure: Closure) -> int:
        health, active = self.world.scenario.health(closure, self.host), self.world.active
        if health is Health.REFUSES or active(FaultKind.SWITCH_FAILS, self.host) is not None:
            return 1
        if active(FaultKind.SWITCH_LIES, self.host) is not None:
            return 0
        self._link(self.paths.current_system, closure)
        return 4 if health is Health.BREAKS or active(FaultKind.SWITCH_HALF_APPLIES, self.host) is not None else 0

    def kill_unit(self) -> None:
        """Stop the switch, wherever it is."""
        if self.unit is not None:
            if self.dice.random() < 0.5:
                self._link(self.paths.current_system, self.unit.closure)
            self.note(f"switch {_short(self.unit.job.op)} killed; {self.running} runs")
            self._end_unit()

    def _end_unit(self) -> None:
        if self.unit is not None:
            self.unit.scope.cancel()
            self.unit = None


def _short(op: str) -> str:
    """The order without the journal's long name."""
    journal, _, number = op.rpartition("-")
    return f"{journal[:4]}-{number}"


@attrs.frozen(kw_only=True)
class SimulatedRunner:
    """An `activation.runners.Runner`: one unit at a time, as with systemd."""

    machine: Machine
    method: SwitchMethod = SwitchMethod.SYSTEMD_RUN
    look_every_s: float = 2.0

    async def launch(self, job: Job, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Begin. Raises `LaunchError` when another switch runs."""
        await trio.lowlevel.checkpoint()
        if self.machine.unit is not None:
            raise LaunchError(how="the simulator", cause="another switch runs")
        program, action = command
        self.machine.launch(job, Closure(Path(program).parent.parent.name), action)

    async def runs(self, job: Job) -> bool:
        """It is this one that runs."""
        await trio.lowlevel.checkpoint()
        return self.machine.unit is not None and self.machine.unit.job.directory == job.directory

    async def end(self, job: Job) -> str:
        """Kill it, if it runs."""
        if await self.runs(job):
            self.machine.kill_unit()
        return "killed"

    async def settle(self, job: Job) -> None:
        """Nothing is left over."""
        await trio.lowlevel.checkpoint()

    async def busy_with(self) -> str | None:
        """The order that runs."""
        await trio.lowlevel.checkpoint()
        return None if self.machine.unit is None else self.machine.unit.job.op


@attrs.frozen(kw_only=True)
class SimulatedStore:
    """An `activation.interface.Store`."""

    machine: Machine

    def path(self, closure: Closure) -> str:
        """Where its files are."""
        return self.machine.paths.files(closure)

    async def has(self, closure: Closure) -> bool:
        """It is there."""
        await trio.lowlevel.checkpoint()
        return is_closure(closure) and os.path.isdir(self.path(closure))

    async def realise(self, closure: Closure, *, caches: Sequence[str], timeout_s: float) -> RealiseOutcome:
        """Fetch it, which takes a while, or does not work at all."""
        machine = self.machine
        if await self.has(closure):
            return RealiseOutcome(ok=True)
        await machine.world.sleep(machine.dice.uniform(0.5, 15))
        if machine.world.active(FaultKind.CACHE_OUTAGE, machine.host) is not None:
            return RealiseOutcome(ok=False, reason=Reason.REALISE_FAILED, detail="no cache answers")
        if machine.world.scenario.health(closure, machine.host) is Health.UNTRUSTED:
            return RealiseOutcome(ok=False, reason=Reason.REALISE_FAILED, signature=True, detail="not trusted")
        machine.install(closure)
        machine.note(f"fetched {closure}")
        return RealiseOutcome(ok=True)

    async def set_profile(self, closure: Closure) -> None:
        """Point the profile at it. Raises `ProfileError` when it is not there."""
        if not await self.has(closure):
            raise ProfileError(profile=self.machine.paths.profile, closure=closure, cause="it is not in the store")
        if self.machine.profile != closure:
            self.machine.set_profile(closure)

    def keep(self, name: str, closure: Closure) -> None:
        """Nothing is ever collected here."""
