"""Play a scenario with the real decisions: `step` on every host, the planner and the lifecycle in the control plane.

Everything else is a model that knows no time but its own: a heap of instants. A scenario plays the same byte for byte,
whatever the machine, the process or its hash seed; nothing here reads a clock, iterates over a set or draws from dice
that the scenario does not name.
"""

import gc
import heapq
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from state_machine.facts import ActivationDeferred, RollbackFailed, RolloutFact
from state_machine.values import Phase
from tests.simulation.core_agent import TRAPS, Agent
from tests.simulation.core_ci import Ci
from tests.simulation.core_control_plane import ControlPlane, Database
from tests.simulation.core_machine import BOOT_MS, Machine
from tests.simulation.core_network import Network
from tests.simulation.coverage import Coverage
from tests.simulation.faults import FAULTS, MINUTE, SECOND, Depth, Fault, FaultKind, Scope
from tests.simulation.judge import L1_MS, Ending, Finding, judge_l1, judge_l2, l1
from tests.simulation.scenario import Scenario
from tests.simulation.trace import Trace, Weight

CHECK_EVERY_MS: Final = 5 * SECOND
AT_ONCE_MAX: Final = 5_000
"""So many things in one millisecond are a busy loop."""
SHADOW_MS: Final = 30 * SECOND
"""For coverage, a fault without length counts as active for so long."""
LINGERING: Final = TRAPS | {
    FaultKind.POWER_CUT_IN_SWITCH,
    FaultKind.SWITCH_UNANSWERED,
    FaultKind.SWITCH_UNDONE,
    FaultKind.WISH_IN_SWITCH,
}
"""Faults that wait for their occasion until the window closes."""

K = FaultKind


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of a run. `ended_ms` is when the last host was where it should be, or the patience was over."""

    scenario: Scenario
    findings: tuple[Finding, ...]
    trace: Trace
    ended_ms: int
    events: int


class World:
    """One run."""

    def __init__(self, scenario: Scenario, trace: Trace, coverage: Coverage | None = None) -> None:
        self.scenario, self.trace = scenario, trace
        self.now = 0
        self.findings: list[Finding] = []
        self.events = 0
        self._coverage = coverage
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._settling: list[Callable[[], None]] = []
        self._count = 0
        self._over = False
        self._dice = scenario.stream("people")
        self._active: list[dict[FaultKind, Fault]] = [{} for _ in range(scenario.hosts)]
        self._fleet_active: dict[FaultKind, Fault] = {}
        self._shadows: list[list[FaultKind]] = [[] for _ in range(scenario.hosts)]
        self._downs = 0
        self._trust = [frozenset({0}) for _ in range(scenario.hosts)]
        self.ci = Ci(scenario)
        self.control_plane = ControlPlane(self, self.ci)
        network = Network(self, self.control_plane)
        self.agents = [self._host(host, network) for host in range(scenario.hosts)]

    def _host(self, host: int, network: Network) -> Agent:
        machine = Machine(self, host, power_lost=lambda: agent.kill("no power", None), started=lambda: agent.start())
        agent = Agent(machine, network.ask)
        machine.on_restart_by_switch = lambda: agent.kill("restarted by the switch")
        machine.on_wish = self.control_plane.ask_back
        agent.on_fact = lambda fact: self._on_fact(agent, fact)
        if self._coverage is not None:
            coverage = self._coverage
            agent.on_event = lambda known, event: coverage.saw(known, event, self._faults_at(host))
        return agent

    # --- Scheduler --------------------------------------------------------------------------------------------------

    def after(self, ms: int, call: Callable[..., None], *args: object) -> None:
        """Do it later."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + ms, self._count, call, args))

    def at(self, at_ms: int, call: Callable[..., None], *args: object) -> None:
        """Do it then."""
        self.after(at_ms - self.now, call, *args)

    def settle(self, call: Callable[[], None]) -> None:
        """Do it before the next thing happens."""
        self._settling.append(call)

    def active(self, kind: FaultKind, host: int) -> Fault | None:
        """A fault that the host suffers from now."""
        return self._active[host].get(kind)

    def faults(self, host: int) -> Mapping[FaultKind, Fault]:
        """All that the host suffers from: one mapping, which keeps up with the run."""
        return self._active[host]

    def fleet_active(self, kind: FaultKind) -> Fault | None:
        """A fault that the control plane suffers from now."""
        return self._fleet_active.get(kind)

    def spend(self, fault: Fault) -> None:
        """The fault waited for its occasion, and has had it."""
        if fault.host is not None:
            self._active[fault.host].pop(fault.kind, None)

    def trusted(self, host: int) -> frozenset[int]:
        """The keys of CI that the host's trust file lists now."""
        return self._trust[host]

    def _faults_at(self, host: int) -> tuple[FaultKind, ...]:
        return (*self._active[host], *self._fleet_active, *self._shadows[host])

    # --- the run ----------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Play it to the end."""
        self._set_up()
        heap, at_once = self._heap, 0
        while heap and not self._over:
            at_ms, _, call, args = heapq.heappop(heap)
            at_once = at_once + 1 if at_ms == self.now else 0
            self.now = at_ms
            if at_once > AT_ONCE_MAX:
                self._find(Finding(at_ms=at_ms, who="world", promise="S9", text="a busy loop"))
                break
            self.events += 1
            call(*args)
            if self._settling:
                settling, self._settling = self._settling, []
                for settle in settling:
                    settle()
        return self._judged()

    def _set_up(self) -> None:
        self.control_plane.start()
        for host, agent in enumerate(self.agents):
            self.after(self.scenario.stream("start", host).randrange(5 * SECOND), agent.start)
        for number, release in enumerate(self.scenario.releases):
            self.at(release.at_ms, self._publish, number)
        self.at(self.scenario.resign_s * SECOND, self._sign_again)
        for fault in self.scenario.faults:
            self._mount(fault)
        self.at(self.scenario.window_ms, self._world_becomes_honest)

    def _publish(self, number: int) -> None:
        scenario = self.scenario
        if number == scenario.last and number > 0 and scenario.releases[number - 1].at_ms >= scenario.window_ms:
            for agent in self.agents:
                for finding in judge_l2(self.now, scenario, self._ending(agent)):
                    self._find(finding)
        self.note("ci", f"publishes release{number}, {scenario.rollout_id(number)}", Weight.STORY)
        self.ci.sign(number, self.now)
        if number == scenario.last:
            self.at(self.now + L1_MS, self._patience_is_over)
            self._check()

    def _sign_again(self) -> None:
        if self.ci.published is not None and self.fleet_active(K.CI_SILENT) is None:
            self.ci.sign(self.ci.published.release, self.now)
        self.after(self.scenario.resign_s * SECOND, self._sign_again)

    def _check(self) -> None:
        """Over as soon as everybody is where they should be."""
        if all(self._is_settled(agent) for agent in self.agents):
            self._over = True
        else:
            self.after(CHECK_EVERY_MS, self._check)

    def _is_settled(self, agent: Agent) -> bool:
        current = agent.state.known.current
        return (
            agent.alive
            and current is not None
            and current.record.phase is Phase.CONVERGED
            and not l1(self.scenario, self._ending(agent))
        )

    def _patience_is_over(self) -> None:
        self._over = True
        for agent in self.agents:
            for finding in judge_l1(self.now, self.scenario, self._ending(agent)):
                self._find(finding)

    def _ending(self, agent: Agent) -> Ending:
        return Ending(
            host=agent.host,
            known=agent.state.known,
            running=agent.machine.running,
            mirrors=self.control_plane.mirrors_of(agent.name),
            last_rollout_only=agent.journal.number > 1,
        )

    def _judged(self) -> Outcome:
        for agent in self.agents:
            for judge in agent.judges:
                judge.ended(self.now, replay=agent.host == self.scenario.seed % self.scenario.hosts)
                for finding in judge.findings:
                    self._find(finding)
        for finding in self.control_plane.plans.findings:
            self._find(finding)
        return Outcome(
            scenario=self.scenario,
            findings=tuple(self.findings),
            trace=self.trace,
            ended_ms=self.now,
            events=self.events,
        )

    def _find(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.note(finding.who, f"{finding.promise}: {finding.text}", Weight.FIND)

    def note(self, who: str, text: str, weight: Weight = Weight.NOISE) -> None:
        """Put something into the trace."""
        if self.trace.on:
            self.trace.note(self.now, who, text, weight)

    # --- people -----------------------------------------------------------------------------------------------------

    def _on_fact(self, agent: Agent, born: RolloutFact) -> None:
        if isinstance(born.fact, ActivationDeferred | RollbackFailed):
            soon = self.now >= self.scenario.window_ms or self._dice.random() < 0.5
            if soon:
                self.after(MINUTE + int(self._dice.random() * 2 * MINUTE), self._reboot_if_deferred, agent)

    def _reboot_if_deferred(self, agent: Agent) -> None:
        """An operator sees that the rollout, or the way back, waits for a reboot."""
        current = agent.journal.known.current
        waits = current is not None and current.record.phase in (Phase.DEFERRED, Phase.FAILED)
        if waits and agent.machine.loader != agent.machine.running:
            agent.machine.lose_power(10 * SECOND)

    # --- faults -----------------------------------------------------------------------------------------------------

    def _mount(self, fault: Fault) -> None:
        if fault.kind is K.CP_RESTORE:
            backups: list[Database] = []
            self.at(max(0, fault.at_ms - fault.amount * SECOND), self._back_up, backups)
            self.at(fault.at_ms, self._begin, fault, backups)
        else:
            self.at(fault.at_ms, self._begin, fault, [])
        if fault.length_ms:
            self.at(fault.until_ms, self._end, fault)

    def _back_up(self, backups: list[Database]) -> None:
        backups.append(self.control_plane.db.copy())

    def _begin(self, fault: Fault, backups: list[Database]) -> None:
        self.note("fault", str(fault), Weight.FAULT)
        host = fault.host
        if host is None:
            if fault.length_ms:
                self._fleet_active[fault.kind] = fault
            else:
                for shadows in self._shadows:
                    self._cast(shadows, fault)
            return self._begin_at_fleet(fault, backups)
        if fault.length_ms or fault.kind in LINGERING:
            self._active[host][fault.kind] = fault
        else:
            self._cast(self._shadows[host], fault)
        return self._begin_at_host(fault, self.agents[host])

    def _cast(self, shadows: list[FaultKind], fault: Fault) -> None:
        """A fault without length counts as active for a while; one that takes the host down, until it is back."""
        down_ms = fault.amount * SECOND + BOOT_MS if fault.kind in (K.POWER_CUT, K.OPERATOR_OLD_BOOT) else 0
        shadows.append(fault.kind)
        self.after(SHADOW_MS + down_ms, shadows.remove, fault.kind)

    def _begin_at_fleet(self, fault: Fault, backups: list[Database]) -> None:
        match fault.kind:
            case K.CP_CRASH | K.CP_WIPE | K.CP_RESTORE:
                self.control_plane.crash()
                self._downs += 1
                if fault.kind is K.CP_WIPE:
                    self.control_plane.db = Database()
                elif fault.kind is K.CP_RESTORE:
                    self.control_plane.db = backups[0].copy()
            case K.ROLLBACK_WISH:
                self.control_plane.ask_back()
            case K.KEY_ROTATION:
                self._rotate(fault)
            case _:
                pass

    def _begin_at_host(self, fault: Fault, agent: Agent) -> None:
        machine = agent.machine
        match fault.kind:
            case K.KILL:
                agent.kill("killed", fault.amount * SECOND)
            case kind if kind in TRAPS:
                agent.traps[kind] = fault
            case K.POWER_CUT:
                machine.lose_power(fault.amount * SECOND)
            case K.LOST_STATE:
                agent.lose_state()
            case K.CLOCK_STEP:
                machine.step_clock(fault.amount * SECOND)
            case K.CLOCK_DRIFT:
                machine.let_clock_drift(fault.amount)
            case K.PROBES_EDITED:
                agent.reload_health_checks()
            case K.HOST_REVOKED:
                self.control_plane.poke()
            case K.OPERATOR_SWITCH:
                machine.switch_by_hand(self._by_hand(fault, agent))
            case K.OPERATOR_OLD_BOOT:
                machine.lose_power(fault.amount * SECOND, self._dice.choice(machine.generations))
            case K.OPERATOR_CLEAR:
                agent.clear_quarantine()
            case K.OPERATOR_POKE:
                agent.poke()
            case _:
                pass

    def _by_hand(self, fault: Fault, agent: Agent) -> Any:
        if fault.amount == 0 or self.ci.published is None:
            return self.scenario.by_hand(agent.host)
        if fault.amount == 1:
            return self._dice.choice(agent.machine.generations)
        return self.scenario.closure(self.ci.published.release, agent.host)

    def _end(self, fault: Fault) -> None:
        active = self._fleet_active if fault.host is None else self._active[fault.host]
        if active.get(fault.kind) is fault:
            del active[fault.kind]
        self.note("fault", f"{fault.kind} is over", Weight.FAULT)
        if fault.host is None:
            if fault.kind in (K.CP_CRASH, K.CP_WIPE, K.CP_RESTORE):
                self._downs -= 1
                if self._downs == 0:
                    self.control_plane.start()
            return
        agent = self.agents[fault.host]
        match fault.kind:
            case K.CLOCK_STEP:
                agent.machine.step_clock(0)
            case K.CLOCK_DRIFT:
                agent.machine.let_clock_drift(0)
            case K.PROBES_EDITED:
                agent.reload_health_checks()
            case K.HOST_REVOKED:
                self.control_plane.poke()
            case _:
                pass

    def _rotate(self, fault: Fault) -> None:
        before, self.ci.key = self.ci.key, self.ci.key + 1
        if self.ci.published is not None:
            self.ci.sign(self.ci.published.release, self.now)
        dice = self.scenario.stream("rotation", fault.at_ms)
        for host in range(self.scenario.hosts):
            learns_ms = int(dice.random() * fault.amount * SECOND)
            self.at(min(self.now + learns_ms, self.scenario.window_ms), self._trust_now, host, {before, self.ci.key})
            self.at(self.now + learns_ms + 10 * MINUTE, self._forget_key, host, before)

    def _trust_now(self, host: int, keys: set[int]) -> None:
        self._trust[host] |= keys

    def _forget_key(self, host: int, key: int) -> None:
        self._trust[host] -= {key}

    def _world_becomes_honest(self) -> None:
        self.note("world", "is honest from here on", Weight.STORY)
        for host, agent in enumerate(self.agents):
            agent.traps.clear()
            self._active[host].clear()
            agent.machine.step_clock(0)
            agent.machine.let_clock_drift(0)
            agent.machine.end_orphan()
            self.after(MINUTE + int(self._dice.random() * MINUTE), self._reboot_if_deferred, agent)


def play(scenario: Scenario, *, trace: bool = False, coverage: Coverage | None = None) -> Outcome:
    """Play the scenario. `trace`: keep every line of it."""
    # A run makes hundreds of thousands of values and few cycles: looking for those again and again is a fifth of it.
    collects = gc.isenabled()
    gc.disable()
    try:
        return World(scenario, Trace(on=trace), coverage).run()
    finally:
        if collects:
            gc.enable()


def mounted() -> frozenset[FaultKind]:
    """The kinds that this depth mounts: all that its table claims."""
    return frozenset(kind for kind, row in FAULTS.items() if Depth.CORE in row.depths and row.scope in Scope)
