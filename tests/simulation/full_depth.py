"""Play a scenario with the real programs: every agent with its journal on disk, and the whole control plane.

All of it runs in one process on a clock that jumps, in an order that the seed decides: files on a memory disk, HTTP in
memory, no threads. The product has no code for this beyond what any platform needs (`nixfleet_agent.surroundings`,
`control_plane.surroundings`). A scenario plays the same byte for byte, whatever the machine or the hash seed.
"""

import contextlib
import gc
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import trio
from trio._core import _run as trio_run

from nixfleet_agent.status import reboot_required
from state_machine.facts import ActivationDeferred, RollbackFailed, RolloutFact
from state_machine.values import Closure, Phase
from tests.simulation.core_depth import CHECK_EVERY_MS, SHADOW_MS, Outcome
from tests.simulation.coverage import Coverage
from tests.simulation.faults import FAULTS, MINUTE, SECOND, Depth, Fault, FaultKind
from tests.simulation.full_agent import EDITED, PROBES, Agent, host_key
from tests.simulation.full_clock import JumpingClock
from tests.simulation.full_control_plane import Peer, Publisher
from tests.simulation.full_evidence import check_evidence
from tests.simulation.full_machine import Machine, make_templates
from tests.simulation.full_network import Network
from tests.simulation.full_world import ONCE, World
from tests.simulation.judge import L1_MS, Ending, Finding, judge_l1, judge_l2, l1
from tests.simulation.scenario import Scenario
from tests.simulation.trace import Trace, Weight

K = FaultKind
MEMORY_DISK: Final = "/dev/shm"
LOOKS_IN_S: Final = 300.0
"""How often somebody looks after a host that is to enrol."""


class Play:
    """One run."""

    def __init__(self, world: World, coverage: Coverage | None) -> None:
        self.world, self.scenario = world, world.scenario
        make_templates(world.root / "templates")
        keys = [host_key(self.scenario.seed, host) for host in range(self.scenario.hosts)]
        self.publisher = Publisher(world, keys)
        self.peer = Peer(world, self.publisher)
        network = Network(world, self.peer)
        self.agents = []
        self._dice = self.scenario.stream("people")
        self._shadows: list[Fault] = []
        self._downs = 0
        self._backups: dict[Fault, dict[str, bytes]] = {}
        for host in range(self.scenario.hosts):
            agent = Agent(Machine(world, host), network, self.peer, self.publisher, coverage)
            agent.on_fact = self._noticing(agent)
            agent.faults = self._suffering(agent)
            self.agents.append(agent)

    async def run(self) -> int:
        """Play it to the end; when that was."""
        nursery = self.world.nursery
        nursery.start_soon(self.publisher.run)
        nursery.start_soon(self.peer.run)
        for agent in self.agents:
            nursery.start_soon(agent.run)
            if agent.enrols:
                nursery.start_soon(self._enrol, agent)
        for fault in self.scenario.faults:
            nursery.start_soon(self._mount, fault)
        nursery.start_soon(self._become_honest)
        await self._judge_trial()
        await self._settle()
        ended_ms = self.world.now
        for agent in self.agents:
            agent.judge.ended(ended_ms)
            for judge in agent.judges:
                for finding in judge.findings:
                    self._find(finding)
        await check_evidence(self.world, self.peer, self.publisher, self.agents)
        return ended_ms

    def _find(self, finding: Finding) -> None:
        self.world.findings.append(finding)
        self.world.note(finding.who, f"{finding.promise}: {finding.text}", Weight.FIND)

    # --- judgement --------------------------------------------------------------------------------------------------

    async def _judge_trial(self) -> None:
        """A release that is ill everywhere, after the window, must be taken back before the last one comes."""
        releases = self.scenario.releases
        await self.world.until(releases[-1].at_ms)
        if len(releases) > 1 and releases[-2].at_ms >= self.scenario.window_ms:
            for agent in self.agents:
                for finding in judge_l2(self.world.now, self.scenario, self._ending(agent)):
                    self._find(finding)

    async def _settle(self) -> None:
        """Wait until everybody is where they should be."""
        patience_ms = self.world.now + L1_MS
        while self.world.now < patience_ms:
            if all(self._is_settled(agent) for agent in self.agents):
                return
            await self.world.sleep(CHECK_EVERY_MS / 1000)
        for agent in self.agents:
            for finding in judge_l1(self.world.now, self.scenario, self._ending(agent)):
                self._find(finding)

    def _is_settled(self, agent: Agent) -> bool:
        if agent.life is None or not agent.life.alive:
            return False
        current = agent.life.known.current
        converged = current is not None and current.record.phase is Phase.CONVERGED
        return converged and not l1(self.scenario, self._ending(agent))

    def _ending(self, agent: Agent) -> Ending:
        known = agent.known if agent.life is None else agent.life.known
        return Ending(
            host=agent.host,
            known=known,
            running=agent.machine.running,
            mirrors=self.peer.mirrors(agent.name),
            last_rollout_only=agent.lost_state,
        )

    # --- people -----------------------------------------------------------------------------------------------------

    def _noticing(self, agent: Agent) -> Callable[[RolloutFact], None]:
        def on_fact(born: RolloutFact) -> None:
            if isinstance(born.fact, ActivationDeferred | RollbackFailed):
                if self.world.now >= self.scenario.window_ms or self._dice.random() < 0.5:
                    self.world.nursery.start_soon(self._reboot_if_required, agent, 60 + self._dice.random() * 120)

        return on_fact

    def _suffering(self, agent: Agent) -> Callable[[], tuple[FaultKind, ...]]:
        def faults() -> tuple[FaultKind, ...]:
            lasting = (
                kind for kind in FAULTS
                if self.world.active(kind, agent.host) is not None or self.world.active(kind, None) is not None
            )  # fmt: skip
            return (*lasting, *(fault.kind for fault in self._shadows if fault.host in (None, agent.host)))

        return faults

    async def _reboot_if_required(self, agent: Agent, after_s: float) -> None:
        """An operator sees `reboot_required` and reboots."""
        await self.world.sleep(after_s)
        if reboot_required(agent.known if agent.life is None else agent.life.known):
            agent.machine.lose_power(10)

    async def _enrol(self, agent: Agent) -> None:
        """Somebody brings the host a token, and another if that one was spent in vain: its answer may be lost."""
        dice = self.scenario.stream("enrolment", "people", agent.host)
        await self.world.sleep(dice.uniform(0, 90))
        await agent.give_token(dice.uniform(0, 120))
        while not agent.enrolled:
            await self.world.sleep(LOOKS_IN_S)
            spent = not agent.enrolled and await agent.spent_its_token()
            if spent:
                await agent.give_token(dice.uniform(0, 120))
            if spent or self.world.now > self.scenario.window_ms:
                agent.ask({"do": "poke"})

    # --- faults -----------------------------------------------------------------------------------------------------

    async def _mount(self, fault: Fault) -> None:
        if fault.kind is K.CP_RESTORE:
            await self.world.until(max(0, fault.at_ms - fault.amount * SECOND))
            self._backups[fault] = self.peer.on_disk()
        await self.world.until(fault.at_ms)
        self.world.note("fault", str(fault), Weight.FAULT)
        lasts = fault.length_ms > 0 or fault.kind in ONCE
        self.world.begin(fault) if lasts else self._shadow(fault)
        await self._begin(fault)
        if fault.length_ms:
            await self.world.until(fault.until_ms)
            self.world.end(fault)
            self.world.note("fault", f"{fault.kind} is over", Weight.FAULT)
            await self._end(fault)

    def _shadow(self, fault: Fault) -> None:
        """For coverage, it counts as active for a while."""
        self._shadows.append(fault)

        async def fade() -> None:
            await self.world.sleep(SHADOW_MS / 1000)
            self._shadows.remove(fault)

        self.world.nursery.start_soon(fade)

    async def _begin(self, fault: Fault) -> None:
        if fault.host is not None:
            await self._begin_at_host(fault, self.agents[fault.host])
            return
        match fault.kind:
            case K.CP_CRASH | K.CP_WIPE | K.CP_RESTORE:
                self._downs += 1
                await self.peer.crash()
                if fault.kind is not K.CP_CRASH:
                    self.peer.lost = True
                    self.peer.put_back(self._backups.get(fault, {}))
            case K.ROLLBACK_WISH:
                await self.peer.ask_back()
            case K.KEY_ROTATION:
                await self._rotate(fault)
            case _:
                pass

    async def _begin_at_host(self, fault: Fault, agent: Agent) -> None:
        machine = agent.machine
        match fault.kind:
            case K.KILL:
                agent.die(fault)
            case K.POWER_CUT:
                machine.lose_power(fault.amount)
            case K.LOST_STATE:
                await agent.lose_state()
            case K.SWITCH_LOCKED:
                await machine.lock_switches(fault.until_ms)
            case K.PROBES_EDITED:
                agent.write_probes(EDITED)
                agent.reload()
            case K.OPERATOR_SWITCH:
                machine.switch_by_hand(self._by_hand(fault, agent))
            case K.OPERATOR_OLD_BOOT:
                machine.lose_power(fault.amount, self._dice.choice(machine.generations))
            case K.OPERATOR_CLEAR:
                agent.ask({"do": "clear-quarantine", "by": "simulated"})
            case K.OPERATOR_POKE:
                agent.ask({"do": "poke"})
            case K.HOST_REVOKED:
                await self.publisher.revoke(agent.name)
            case _:
                pass

    def _by_hand(self, fault: Fault, agent: Agent) -> Closure:
        if fault.amount == 0 or not self.publisher.archive:
            return self.scenario.by_hand(agent.host)
        if fault.amount == 1:
            return self._dice.choice(agent.machine.generations)
        return self.scenario.closure(max(self.publisher.archive), agent.host)

    async def _end(self, fault: Fault) -> None:
        if fault.host is None:
            if fault.kind in (K.CP_CRASH, K.CP_WIPE, K.CP_RESTORE):
                self._downs -= 1
                if self._downs == 0:
                    self.world.nursery.start_soon(self.peer.run)
            return
        agent = self.agents[fault.host]
        match fault.kind:
            case K.PROBES_EDITED:
                agent.write_probes(PROBES)
                agent.reload()
            case K.HOST_REVOKED:
                # Somebody who lets the host in again gives it a certificate, and starts the agent with it.
                agent.give_certificate(self.publisher.revoked_at(agent.name))
                agent.stop()
            case _:
                pass

    async def _rotate(self, fault: Fault) -> None:
        await self.publisher.rotate()
        self.peer.learn_trust()
        generation, dice = len(self.publisher.keys) - 1, self.scenario.stream("rotation", fault.at_ms)
        for agent in self.agents:
            at_ms = min(self.world.now + int(dice.random() * fault.amount * SECOND), self.scenario.window_ms)
            self.world.nursery.start_soon(self._deploy_trust, agent, generation, at_ms)

    async def _deploy_trust(self, agent: Agent, generation: int, at_ms: int) -> None:
        await self.world.until(at_ms)
        agent.learn_trust(max(generation, agent.trusts))

    async def _become_honest(self) -> None:
        await self.world.until(self.scenario.window_ms)
        self.world.note("world", "is honest from here on")
        self.world.calm()
        for agent in self.agents:
            after_s = (MINUTE + self._dice.random() * MINUTE) / 1000
            self.world.nursery.start_soon(self._reboot_if_required, agent, after_s)


def play(scenario: Scenario, *, trace: bool = False, coverage: Coverage | None = None) -> Outcome:
    """Play the scenario. `trace`: keep every line of it."""
    kept = Trace(on=trace)
    memory = MEMORY_DISK if os.path.isdir(MEMORY_DISK) else None
    with (
        tempfile.TemporaryDirectory(dir=memory, prefix="simulation-") as root,
        _quiet(),
        _few_collections(),
        _repeatable(scenario),
    ):
        clock = JumpingClock()
        return trio.run(_played, scenario, kept, Path(root), coverage, clock, clock=clock)


async def _played(
    scenario: Scenario, trace: Trace, root: Path, coverage: Coverage | None, clock: JumpingClock
) -> Outcome:
    async with trio.open_nursery() as nursery:
        world = World(scenario, trace, root, nursery, clock)
        game = Play(world, coverage)
        ended_ms = await game.run()
        nursery.cancel_scope.cancel()
    events = sum(len(judge.run) for agent in game.agents for judge in agent.judges)
    return Outcome(scenario=scenario, findings=tuple(world.findings), trace=trace, ended_ms=ended_ms, events=events)


@contextlib.contextmanager
def _repeatable(scenario: Scenario) -> Iterator[None]:
    """Have Trio's scheduler draw from the seed, as it does under Hypothesis."""
    before, state = trio_run._ALLOW_DETERMINISTIC_SCHEDULING, trio_run._r.getstate()
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(f"{scenario.seed}/scheduler")
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
        trio_run._r.setstate(state)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """A run keeps nearly everything to its end: looking for garbage all the time takes a tenth of it (measured)."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Programs that live through faults complain all the time."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def struck(outcome: Outcome) -> frozenset[FaultKind]:
    """The kinds that happened in a run with a trace. Those that lie in wait count when their occasion came."""
    noted = {line.text for line in outcome.trace.lines if line.weight is Weight.FAULT and line.who != "fault"}
    begun = {kind for kind in FaultKind if any(fault.kind is kind for fault in outcome.scenario.faults)}
    return frozenset(kind for kind in begun if kind not in ONCE or kind in noted)


def mounted() -> frozenset[FaultKind]:
    """The kinds that this depth mounts: all that its table claims."""
    return frozenset(kind for kind, row in FAULTS.items() if Depth.FULL in row.depths)
