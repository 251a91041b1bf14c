"""kill -9 at instants that are held still: the next run ends where one that was never killed would have ended.

A cache that does not answer, a control plane that is stopped in its tracks, the middle of a start. Whatever it is, the
target is switched to exactly once, and the control plane gets every fact exactly as it was born, in order. Entries of
the journal, switches that wait and reboots are in `test_agent_crash_points`.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from state_machine.lifecycle import HostRollout
from state_machine.values import Closure
from tests.agentlab import Agent, AgentFleet, told
from tests.cplab import Running
from wire.codec import encode_fact

CLEAN: Final = [
    "DispatchAck",
    "ActivationStarted",
    "ActivationCompleted",
    "ProbeTopologyDeclared",
    "ProbeObservedFirst",
    "ProbeResult",
    "Converged",
]


@attrs.define(kw_only=True)
class Lab:
    """A host that takes one rollout after another, and its control plane."""

    fleet: AgentFleet
    cp: Running
    agent: Agent
    unkilled: HostRollout | None = None
    target: Closure = Closure("")
    rollout: str = ""
    begun: int = 0

    def release(self, behaviour: str = "waits", **options: Any) -> None:
        """A new target is on its way to the host."""
        self.target = self.fleet.system(behaviour)
        self.begun = len(self.agent.kinds())
        self.rollout = self.fleet.release(self.cp, {self.agent.name: self.target}, **options)

    def until_journaled(self, kind: str) -> None:
        """An entry of this kind has appeared since the release."""
        self.agent.until(kind, lambda: kind in self.agent.kinds()[self.begun :])

    @property
    def go(self) -> Path:
        """While it exists, switches go through; without it they wait."""
        return self.agent.host.note(".go")

    @property
    def waiting(self) -> Path:
        """Made by a switch that waits, or has waited."""
        return self.agent.host.note(".waiting")

    def hold_switches(self) -> None:
        self.go.unlink(missing_ok=True)
        self.waiting.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    fleet = AgentFleet(tmp_path_factory.mktemp("crashes"))
    with fleet.start(require_evidence=True) as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system("waits"))
        lab = Lab(fleet=fleet, cp=cp, agent=agent)
        lab.go.touch()
        agent.start()
        lab.release()
        agent.until_settled(lab.rollout, "Converged")
        lab.unkilled = agent.record(lab.rollout)
        yield lab
        agent.kill()


def essence(record: HostRollout) -> dict[str, Any]:
    """What a record says, up to names and times."""
    said = attrs.asdict(record)
    for name in ("rollout_id", "target_closure", "current_closure", "closure_at_dispatch"):
        said[name] = said[name] is not None
    return {name: _timeless(value) for name, value in said.items()}


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items()}
    return "a time" if type(value) is int and value > 10**12 else value


def assert_as_if_unkilled(lab: Lab) -> None:
    agent, rollout = lab.agent, lab.rollout
    agent.until_settled(rollout, "Converged")
    assert agent.fact_kinds(rollout) == CLEAN
    assert lab.unkilled is not None
    assert essence(agent.record(rollout)) == essence(lab.unkilled)
    assert agent.switches().count(lab.target) == 1
    assert agent.current() == lab.target
    facts = [encode_fact(fact.fact) for fact in agent.facts(rollout)]
    assert [fact["seq"] for fact in facts] == list(range(1, len(facts) + 1))
    assert told(lab.cp, rollout, agent.name) == facts


def while_the_closure_is_fetched(lab: Lab) -> None:
    """The signature in the cache is a pipe that nobody writes to."""
    agent = lab.agent
    lab.target = lab.fleet.system("waits")
    signature = lab.fleet.systems.cache / f"{lab.target}.sig"
    data = signature.read_bytes()
    signature.unlink()
    os.mkfifo(signature)
    lab.rollout = lab.fleet.release(lab.cp, {agent.name: lab.target})
    agent.until("the copy", lambda: list((agent.directory / "store").glob(".new-*/tree/health")))
    agent.kill()
    signature.unlink()
    signature.write_bytes(data)


def with_facts_on_their_way(lab: Lab) -> None:
    """The control plane is stopped in its tracks: facts lie in its socket, and nobody knows whether it has them."""
    lab.hold_switches()
    lab.release()
    lab.agent.until("the switch", lab.waiting.exists)
    lab.cp.process.send_signal(signal.SIGSTOP)
    lab.go.touch()
    lab.agent.until("convergence", lambda: "Converged" in lab.agent.fact_kinds(lab.rollout))
    lab.agent.kill()
    lab.cp.process.send_signal(signal.SIGCONT)


def while_the_control_plane_is_gone_for_good(lab: Lab) -> None:
    """Nothing that is under way needs it. It comes back in the end, to be told."""
    lab.hold_switches()
    lab.release()
    lab.agent.until("the switch", lab.waiting.exists)
    lab.cp.process.send_signal(signal.SIGSTOP)
    lab.agent.restart()
    lab.go.touch()
    lab.agent.until_phase(lab.rollout, "Converged")
    lab.agent.kill()
    lab.cp.process.send_signal(signal.SIGCONT)


def before_it_says_a_word(lab: Lab) -> None:
    lab.agent.kill()
    lab.release()
    for pause_s in (0.1, 0.2, 0.3, 0.4):
        lab.agent.start()
        time.sleep(pause_s)  # not waiting for anything: these are just instants of a start
        lab.agent.kill()


INSTANTS: Final[tuple[Callable[[Lab], None], ...]] = (
    while_the_closure_is_fetched,
    with_facts_on_their_way,
    while_the_control_plane_is_gone_for_good,
    before_it_says_a_word,
)


@pytest.mark.parametrize("instant", INSTANTS, ids=[instant.__name__.replace(" ", "-") for instant in INSTANTS])
def test_killed_it_ends_as_if_it_had_not_been(lab: Lab, instant: Callable[[Lab], None]) -> None:
    instant(lab)
    if lab.agent.process is None:
        lab.agent.start()
    assert_as_if_unkilled(lab)


def test_the_journal_of_all_these_runs_is_whole_and_folds_to_the_same_state(lab: Lab) -> None:
    verified, replayed = lab.agent.command("journal", "verify"), lab.agent.command("journal", "replay")
    assert verified.returncode == 0, verified.stdout
    assert "chain intact" in verified.stdout
    assert replayed.returncode == 0, replayed.stdout
