"""Real agents killed with -9 at random instants: several lanes side by side, each a host and its own control plane.

A lane takes one standard run after another with the same host. What it is going to do (which runs, how often and when
the agent is killed) follows from the seed and the lane's number alone; what the machine makes of it is its own affair.
Every run must come to what the same run came to when nobody disturbed it. Half of the kills fall at any time, the other
half shortly after the agent has written something: that is when most of it happens.
"""

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

import attrs

from nixfleet_agent import inspection
from nixfleet_agent.journal.reader import verify
from nixfleet_agent.journal.schema import wal_path
from state_machine.intent import RolloutPolicy
from state_machine.values import Closure, HostName
from tests.agentlab import Agent, AgentFleet, told
from tests.cplab import Running
from tests.crash.everywhere import timeless
from wire.codec import encode_fact

HOST: Final = "web1"
POLICIES: Final = {"careful": RolloutPolicy(strategy="staged", sustained_failure_secs=1)}
KILLS_MAX: Final = 6
"""How often one run is disturbed at most."""


@attrs.frozen(kw_only=True)
class Tale:
    """A standard run for real hosts. `then` happens to the world when half of the kills are over."""

    name: str
    behaviour: str = "good"
    healthy: bool = True
    new_kernel: bool = False
    ends: str = "Converged"
    then: Callable[["Lane"], None] = lambda lane: None


@attrs.frozen(kw_only=True)
class Instant:
    """When to kill the agent: after so many seconds, or so long after it has written to its journal next."""

    pause_s: float
    after_write: bool


@attrs.frozen(kw_only=True)
class Errand:
    """One run and its kills, before and after what happens to the world in the middle."""

    tale: Tale
    first: Sequence[Instant] = ()
    second: Sequence[Instant] = ()

    def __str__(self) -> str:
        kills = [f"{i.pause_s:.3f} s{' after a write' if i.after_write else ''}" for i in (*self.first, *self.second)]
        return f"{self.tale.name}, killed after {', '.join(kills) or 'nothing'}"


Outcome = Mapping[str, Any]
"""What a run came to, up to timestamps and names."""


def errands(seed: int, lane: int) -> Iterator[Errand]:
    """What the lane does, for ever."""
    chance = random.Random(f"{seed}/{lane}")
    while True:
        kills = [_instant(chance) for _ in range(chance.randint(2, KILLS_MAX))]
        middle = chance.randint(0, len(kills))
        yield Errand(tale=chance.choice(TALES), first=kills[:middle], second=kills[middle:])


def _instant(chance: random.Random) -> Instant:
    after_write = chance.random() < 0.5
    return Instant(pause_s=chance.uniform(0, 0.03) if after_write else chance.uniform(0, 1.5), after_write=after_write)


class Lane:
    """A host and its control plane below `root`. `may_kill` is asked before each kill."""

    def __init__(self, root: Path, number: int, may_kill: Callable[[], bool]) -> None:
        self._may_kill = may_kill
        self.fleet = AgentFleet(root / f"lane-{number}", hosts=(HOST,))
        self._planes = contextlib.ExitStack()
        self._kernel = 0

    def __enter__(self) -> "Lane":
        self.cp: Running = self._planes.enter_context(self.fleet.start(require_evidence=True))
        first = self._system("good", healthy=True)
        self.agent: Agent = self.fleet.agent(HOST, self.cp.url, running=first)
        # A control plane without a fleet asks its hosts to come again in half a minute.
        rollout = self.fleet.release(self.cp, {HOST: first})
        self.agent.start()
        self.agent.until_settled(rollout, "Converged")
        return self

    def __exit__(self, *_: object) -> None:
        if self.agent.process is not None:
            self.agent.kill()
        self._planes.close()

    def _system(self, behaviour: str, *, healthy: bool) -> Closure:
        return self.fleet.system(behaviour, healthy=healthy, kernel=f"-> /kernel/{self._kernel}")

    def run(self, errand: Errand) -> Outcome:
        """Go through one run, and say what it came to."""
        tale, before = errand.tale, self.agent.current()
        begun = len(self.agent.host.runs())
        self._kernel += tale.new_kernel
        target = self._system(tale.behaviour, healthy=tale.healthy)
        self.rollout = self.fleet.release(self.cp, {HOST: target}, soak_secs=1, rollout_policies=POLICIES)
        self.target = target
        self._kill(errand.first)
        tale.then(self)
        self._kill(errand.second)
        self.agent.until_settled(self.rollout, tale.ends)
        self._until_told()
        self._assert_journal_is_whole()
        outcome = self._outcome(begun)
        return _nameless(outcome, {target: "the target", before: "the system before", self.rollout: "the rollout"})

    def _kill(self, instants: Sequence[Instant]) -> None:
        for instant in instants:
            if instant.after_write:
                self._await_write()
            time.sleep(instant.pause_s)
            if self._may_kill():
                self.agent.restart()

    def _await_write(self, at_most_s: float = 1.0) -> None:
        """An agent with nothing to do writes nothing; it is killed all the same."""
        log, deadline = wal_path(self.agent.journal), time.monotonic() + at_most_s
        before = _stamp(log)
        while _stamp(log) == before and time.monotonic() < deadline:
            time.sleep(0.001)

    def reboot(self) -> None:
        """Power is cut once the target waits for that, and the boot loader brings it up."""
        self.agent.until_phase(self.rollout, "Deferred")
        self.agent.kill()
        paths = self.agent.host.paths
        Path(paths.boot_id).write_text(f"boot for {self.rollout}")
        for link in map(Path, (paths.current_system, paths.booted_system)):
            link.unlink()
            link.symlink_to(paths.named(self.target))
        self.agent.start()

    def wipe(self) -> None:
        """The control plane is killed, loses its database, and comes back in the same place."""
        self.cp.kill()
        for path in self.fleet.root.glob("state.db*"):
            path.unlink()
        listen = self.cp.url.removeprefix("https://")
        self._planes.pop_all().close()
        self.cp = self._planes.enter_context(self.fleet.start(require_evidence=True, listen=listen))
        assert self.cp.refresh() == {}
        self.agent.poke()  # it would come by itself, but after as long again as the control plane was away

    def _facts(self) -> list[dict[str, Any]]:
        return [dict(encode_fact(each.fact)) for each in self.agent.facts(self.rollout)]

    def _until_told(self) -> None:
        """Each fact once, in order, exactly as it was born."""
        self.agent.until("every fact", lambda: told(self.cp, self.rollout, HOST) == self._facts())

    def _assert_journal_is_whole(self) -> None:
        report = verify(self.agent.journal, self.fleet.keys[HostName(HOST)].public, host=HOST)
        assert report.fault is None, report
        assert inspection.replay(self.agent.state_dir, lambda said: None) == 0

    def _outcome(self, begun: int) -> Outcome:
        record = self.agent.record(self.rollout)
        facts = self._facts()
        assert [fact["seq"] for fact in facts] == list(range(1, len(facts) + 1))
        return {
            "record": timeless(attrs.asdict(record)),
            "facts": timeless(facts),
            "runs": self.agent.host.runs()[begun:],
            "current": self.agent.current(),
        }


TALES: Final = (
    Tale(name="clean rollout"),
    Tale(name="failing switch", behaviour="units-fail", ends="Reverted"),
    Tale(name="sustained failure with rollback", healthy=False, ends="Reverted"),
    Tale(name="deferral with reboot", new_kernel=True, then=Lane.reboot),
    Tale(name="replay after a wipe", then=Lane.wipe),
)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = os.stat(path)
    except OSError:
        return (0, 0)
    return (stat.st_size, stat.st_mtime_ns)


def _nameless(outcome: Outcome, names: Mapping[str, str]) -> Outcome:
    text = json.dumps(outcome, sort_keys=True, default=str)
    for name, role in names.items():
        text = text.replace(name, role)
    said: Outcome = json.loads(text)
    return said


@attrs.define(eq=False)
class Campaign:
    """So many kills, in lanes side by side, from one seed. `report` is called after each kill and each run."""

    root: Path
    seed: int
    kills: int
    lanes: int = len(TALES)
    report: Callable[["Campaign"], None] = lambda campaign: None
    killed: int = 0
    runs: int = 0
    wrong: list[str] = attrs.field(factory=list)
    _quiet: dict[str, Outcome] = attrs.field(factory=dict)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _stopped: bool = False

    def run(self) -> None:
        """Until enough have been killed, or something is wrong. First each run without any kill, to compare with."""
        all_told = threading.Barrier(self.lanes)
        with ThreadPoolExecutor(self.lanes) as pool, self._ends_all(all_told):
            lanes = {pool.submit(self._lane, number, all_told): number for number in range(self.lanes)}
            for lane in as_completed(lanes):
                error = lane.exception()
                if error is not None and not isinstance(error, threading.BrokenBarrierError):
                    self.wrong.append(f"lane {lanes[lane]}: {error}")
                    all_told.abort()

    @contextlib.contextmanager
    def _ends_all(self, all_told: threading.Barrier) -> Iterator[None]:
        """Whoever is interrupted in here leaves no host behind: every lane ends with the run it is in."""
        try:
            yield
        finally:
            self._stopped = True
            all_told.abort()

    def _lane(self, number: int, all_told: threading.Barrier) -> None:
        with Lane(self.root, number, self._may_kill) as lane:
            for tale in TALES[number :: self.lanes]:
                self._quiet[tale.name] = lane.run(Errand(tale=tale))
            all_told.wait()
            for errand in errands(self.seed, number):
                if self._is_over():
                    return
                self._compare(errand, lane.run(errand))

    def _is_over(self) -> bool:
        return self._stopped or self.killed >= self.kills or bool(self.wrong)

    def _may_kill(self) -> bool:
        with self._lock:
            if self._is_over():
                return False
            self.killed += 1
            self.report(self)
            return True

    def _compare(self, errand: Errand, found: Outcome) -> None:
        expected = self._quiet[errand.tale.name]
        with self._lock:
            self.runs += 1
            self.report(self)
            if found != expected:
                said = [f"{key}: {expected[key]} became {found[key]}" for key in found if found[key] != expected[key]]
                self.wrong.append(f"{errand}: {'; '.join(said)}")
