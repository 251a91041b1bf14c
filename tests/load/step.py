"""One step: a control plane with so many agents, put through two rollouts and a flood, and what that cost.

1. Everybody connects, each with its own certificate, and waits. Memory is read.
2. A rollout in waves of a tenth each, as an operator would have it. Every host answers its dispatch with its story,
   so that the facts of those who were first compete with the dispatches of the others.
3. A rollout to everybody at once, in which everybody stays soaking.
4. Results of probes: so many a second for some time, then as fast as they are taken.
5. What hosts were told is kept is compared with the log.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from benchmarks import costs
from benchmarks.running import percentile
from state_machine.values import HostName, RolloutId
from tests.cplab import Running, closure
from tests.load import books
from tests.load.orders import Account, Flood, Prepare
from tests.load.stage import Company, Stage, TooSlowError, company, watched

WAVES, BURST = "000002", "000003"
WAVES_IN_A_ROLLOUT: Final = 10
ABREAST: Final = 200
"""Facts under way at a time in the flood that goes as fast as it can."""
PATIENCE_S: Final = 600.0

Say = Callable[[str], None]


@attrs.frozen(kw_only=True)
class Plan:
    """What a step is to do."""

    agents: int
    seconds: float
    per_second: float
    crowds: int
    period_s: float
    fetches: bool
    watched: bool


@attrs.frozen(kw_only=True)
class Latency:
    """Dispatches of one rollout, in milliseconds from the planner's word to the answer in the host's hands."""

    p50_ms: float
    p99_ms: float
    all_after_s: float
    """From the release until the last host had told its whole story."""

    @classmethod
    def of(cls, times_s: Sequence[float], all_after_s: float) -> "Latency":
        """The usual figures."""
        times_ms = [each * 1000 for each in times_s]
        return cls(p50_ms=percentile(times_ms, 50), p99_ms=percentile(times_ms, 99), all_after_s=all_after_s)


@attrs.frozen(kw_only=True)
class Figures:
    """What a step found. CPU figures are those of the control plane's process, unless they say otherwise."""

    agents: int
    connected_per_s: float
    handshake_cpu_ms: float
    """For each of the two connections of a host, with its first requests."""
    pss_mb: float
    rss_mb: float
    pss_kb_each: float
    idle_cpu: float
    """Part of one core while everybody waits, beats and looks at signed intent, with nothing to do."""
    burst: Latency
    waves: Latency
    asked_per_s: float
    paced_per_s: float
    paced_p99_ms: float
    paced_cpu: float
    most_per_s: float
    fact_cpu_ms: float
    clients_cpu: float
    """Part of one core that the clients took while facts came as fast as they could."""
    facts: int
    lost: tuple[str, ...]
    breaches: tuple[str, ...]
    reconnected: int
    put_off: int
    """Requests that were told to come again later: too slow, or too many."""
    parts: Mapping[str, Mapping[str, float]]
    """Where the CPU time went, for each phase of the step: milliseconds by part. Empty unless it was watched."""

    @property
    def sound(self) -> bool:
        """Nothing was lost, and no answer was one that no agent expects."""
        return not self.lost and not self.breaches


class Step:
    """One step under way."""

    def __init__(self, stage: Stage, plan: Plan, running: Running, crowds: Company, say: Say) -> None:
        self._stage, self._plan, self._cp, self._crowds, self._say = stage, plan, running, crowds, say
        self._pid = running.process.pid
        self._hosts = stage.hosts[: plan.agents]
        self._what = ""
        self._parts: dict[str, dict[str, float]] = {}
        self._threads: Mapping[str, float] = {}
        self._began = time.monotonic()

    def run(self) -> Figures:
        """Do it all."""
        bare_mb = costs.pss_mb(self._pid)
        self._note_parts("start")
        seconds, handshake_ms = self.connect()
        self._note_parts("connecting")
        idle = self._idle()
        self._note_parts("waiting")
        pss_mb, rss_mb = costs.pss_mb(self._pid), _rss_mb(self._pid)
        waves = self.roll_out(WAVES, _tenths(self._hosts))
        self._note_parts("in waves")
        burst = self.roll_out(BURST, [list(self._hosts)], converges=False)
        self._note_parts("all at once")
        paced_per_s, paced_cpu, paced = self.flood(per_second=self._plan.per_second)
        self._note_parts("paced facts")
        clients = self._crowds.cpu_s
        taken = self._crowds.taken
        most_per_s, cpu, account = self.flood(abreast=ABREAST)
        self._note_parts("facts")
        clients, taken = self._crowds.cpu_s - clients, self._crowds.taken - taken
        self._tell("comparing with the log")
        lost = tuple(books.differences(account.tallies, self._stage.lab.database))
        return Figures(
            agents=self._plan.agents,
            connected_per_s=2 * self._plan.agents / seconds,
            handshake_cpu_ms=handshake_ms,
            pss_mb=pss_mb,
            rss_mb=rss_mb,
            pss_kb_each=(pss_mb - bare_mb) * 1000 / self._plan.agents,
            idle_cpu=idle,
            burst=self._latency(BURST, account, burst),
            waves=self._latency(WAVES, account, waves),
            asked_per_s=self._plan.per_second,
            paced_per_s=paced_per_s,
            paced_p99_ms=percentile([each * 1000 for each in paced.taken_after_s], 99),
            paced_cpu=paced_cpu,
            most_per_s=most_per_s,
            fact_cpu_ms=cpu * self._plan.seconds * 1000 / max(taken, 1),
            clients_cpu=clients / self._plan.seconds,
            facts=sum(tally.facts for tally in account.tallies.values()),
            lost=lost,
            breaches=self._crowds.breaches,
            reconnected=self._crowds.reconnected,
            put_off=self._crowds.put_off,
            parts=self._parts,
        )

    def _tell(self, what: str) -> None:
        self._what = what
        self._tick()

    def _tick(self) -> None:
        self._say(f"{self._plan.agents} agents, {time.monotonic() - self._began:.0f} s: {self._what}")

    def _note_parts(self, phase: str) -> None:
        """Where the time since the last note went."""
        if not self._plan.watched:
            return
        noted = watched(self._stage.lab, self._cp)
        spent = {name: (cpu_s - self._threads.get(name, 0.0)) * 1000 for name, cpu_s in noted.threads.items()}
        self._threads = noted.threads
        loop, samples = spent.pop("event loop"), sum(noted.parts.values())
        parts = {name: loop * count / samples for name, count in noted.parts.items()}
        self._parts[phase] = {**parts, **{f"thread {name}": ms for name, ms in spent.items() if ms > 1}}

    def connect(self) -> tuple[float, float]:
        """Have everybody connect and wait: how long that took, and CPU milliseconds for each connection."""
        cpu = costs.cpu_s(self._pid)
        self._crowds.join(self._stage.roles(self._plan.agents))

        def all_wait() -> bool:
            self._what = f"{self._crowds.waiting} have connected"
            return self._crowds.waiting == self._plan.agents

        seconds = self._crowds.until(all_wait, "everybody's long-poll", PATIENCE_S, self._tick)
        return seconds, (costs.cpu_s(self._pid) - cpu) * 1000 / self._plan.agents / 2

    def _idle(self) -> float:
        self._tell("everybody waits")
        cpu, seconds = costs.cpu_s(self._pid), max(1.0, self._plan.seconds / 2)
        self._crowds.look(seconds)
        return (costs.cpu_s(self._pid) - cpu) / seconds

    def roll_out(self, commit: str, waves: Sequence[Sequence[HostName]], *, converges: bool = True) -> float:
        """Release, and wait until every host has told its story; how long that took."""
        self._tell(f"rollout {commit} in {len(waves)} wave(s): signing")
        rollout_id = RolloutId(f"stable@{commit}")
        targets = {host: closure(f"{host}-{commit}") for host in self._hosts}
        self._crowds.order(Prepare(rollout_id=rollout_id, targets=targets, converges=converges))
        self._stage.lab.publish(commit, targets=targets, waves=waves)
        self._crowds.until(lambda: self._crowds.prepared(rollout_id), "signatures", PATIENCE_S, self._tick)
        self._crowds.look(0.5)
        began = time.monotonic()
        problems = self._cp.refresh()
        if problems:
            raise TooSlowError(f"the release is not in force: {problems}")

        def all_told() -> bool:
            told = self._crowds.told(rollout_id)
            self._what = f"rollout {commit} in {len(waves)} wave(s): {told} hosts are through"
            return told == self._plan.agents

        self._crowds.until(all_told, f"the end of rollout {commit}", PATIENCE_S, self._tick)
        return time.monotonic() - began

    def times_s(self, commit: str, account: Account) -> dict[HostName, float]:
        """From the planner's word to the dispatch in each host's hands."""
        rollout_id = RolloutId(f"stable@{commit}")
        queued = books.queued_at(self._stage.lab.database, rollout_id)
        return {host: account.dispatched_at[host, rollout_id] - queued[host] for host in self._hosts}

    def _latency(self, commit: str, account: Account, all_after_s: float) -> Latency:
        return Latency.of(list(self.times_s(commit, account).values()), all_after_s)

    def flood(self, *, abreast: int = 0, per_second: float = 0.0) -> tuple[float, float, Account]:
        """Results of probes for the time given: facts taken a second, part of a core, and all that was seen."""
        self._tell(f"{per_second:.0f} facts a second" if per_second else "facts as fast as they are taken")
        taken, cpu, began = self._crowds.taken, costs.cpu_s(self._pid), time.monotonic()
        self._crowds.flood(Flood(rollout_id=RolloutId(f"stable@{BURST}"), abreast=abreast, per_second=per_second))
        self._crowds.look(self._plan.seconds)
        cpu = (costs.cpu_s(self._pid) - cpu) / self._plan.seconds
        account = self._crowds.account(self._tick)
        seconds = time.monotonic() - began
        self._crowds.look(0.5)
        return (self._crowds.taken - taken) / seconds, cpu, account


def run(stage: Stage, plan: Plan, say: Say) -> Figures:
    """Put a new control plane and its agents through a step.

    Raises:
        TooSlowError: it did not get to the end.
    """
    with (
        stage.control_plane(plan.agents, watched=plan.watched) as running,
        company(stage.lab, running, plan.crowds, period_s=plan.period_s, fetches=plan.fetches) as crowds,
    ):
        return Step(stage, plan, running, crowds, say).run()


def _tenths(hosts: Sequence[HostName]) -> list[list[HostName]]:
    size = -(-len(hosts) // WAVES_IN_A_ROLLOUT)
    return [list(hosts[at : at + size]) for at in range(0, len(hosts), size)]


def _rss_mb(pid: int) -> float:
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return resident * os.sysconf("SC_PAGE_SIZE") / 1e6
