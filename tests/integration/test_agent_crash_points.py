"""The agent is killed with -9 at every named point of a rollout and at random ones: the outcome is that of a quiet run.

The same facts in the same order under the same numbers, no switch more than the orders ask for, a journal that proves
and replays, and a control plane that knows what the agent knows. Random runs print their seed; repeat one with
`NIXFLEET_CRASH_SEED=<seed>`.
"""

import contextlib
import json
import os
import random
import secrets
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
import psutil
import pytest

from nixfleet_agent import inspection
from nixfleet_agent.journal.reader import verify
from state_machine.facts import ActivationFailed
from state_machine.intent import RolloutPolicy
from state_machine.values import Closure, HostName, RolloutId
from tests.agentlab import PATIENCE_S, Agent, AgentFleet, mirror, told
from tests.cplab import Running
from wire.codec import encode_fact

SEED: Final = int(os.environ.get("NIXFLEET_CRASH_SEED") or secrets.randbelow(10**9))
RANDOM_RUNS: Final = 10
HOSTS: Final = tuple(f"h{number}" for number in range(64))

Program = tuple[str, dict[str, Any]]
"""A system: how its switch behaves, and its files."""

IMPATIENT: Final = {"careful": RolloutPolicy(strategy="staged", sustained_failure_secs=1)}
"""What the agents' own flag says (a minute) would be noticed."""

BEGUN: Final = ("DispatchAck", "ActivationStarted")
ACTIVATED: Final = (*BEGUN, "ActivationCompleted", "ProbeTopologyDeclared", "ProbeObservedFirst")
CONVERGED: Final = (*ACTIVATED, "ProbeResult", "Converged")
BROKEN: Final = (*BEGUN, "ActivationFailed", "RollbackComplete")
SICK: Final = (*ACTIVATED, "ProbeFailureFirst", "ProbeResult", "Failed", "RollbackComplete")


@attrs.frozen(kw_only=True)
class Story:
    """A rollout and what comes of it when nobody interferes. `points` are entries and facts to kill the agent at."""

    name: str
    behaviour: str
    healthy: bool
    phase: str
    facts: tuple[str, ...]
    points: tuple[str, ...]

    def switches(self, first: Closure, target: Closure) -> list[str]:
        """One for each order."""
        return [target] if self.phase == "Converged" else [target, first]


STORIES: Final = (
    Story(
        name="converges",
        behaviour="good",
        healthy=True,
        phase="Converged",
        facts=CONVERGED,
        points=(
            "Booted",
            "DispatchReceived",
            "DispatchAck",
            "ActivationStarted",
            "FactsDelivered",
            "ActivationCompleted",
            "ProbeObservedFirst",
            "Converged",
        ),
    ),
    Story(
        name="breaks",
        behaviour="units-fail",
        healthy=True,
        phase="Reverted",
        facts=BROKEN,
        points=("DispatchAck", "ActivationStarted", "ActivationFailed", "RollbackComplete"),
    ),
    Story(
        name="sick",
        behaviour="good",
        healthy=False,
        phase="Reverted",
        facts=SICK,
        points=("ActivationStarted", "ActivationCompleted", "ProbeFailureFirst", "Failed", "RollbackComplete"),
    ),
)
STORY_BY_NAME: Final = {story.name: story for story in STORIES}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> AgentFleet:
    return AgentFleet(tmp_path_factory.mktemp("crashes"), hosts=HOSTS)


@pytest.fixture(scope="module")
def cp(fleet: AgentFleet) -> Iterator[Running]:
    with fleet.start(require_evidence=True) as running:
        yield running


_fresh = iter(HOSTS)


@pytest.fixture
def name(fleet: AgentFleet) -> Iterator[str]:
    name = next(_fresh)
    yield name
    end_switches(fleet.root / "hosts" / name)


def end_switches(directory: Path) -> None:
    """Nothing that a host's switches started lives on, nor what that started while it was being ended."""
    while left := [process for process in psutil.process_iter(["environ"]) if _of_a_switch(process, directory)]:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left)


def _of_a_switch(process: psutil.Process, directory: Path) -> bool:
    environment: dict[str, str] | None = process.info["environ"]  # none of a dead one that nobody has waited for
    return (environment or {}).get("NIXFLEET_CURRENT_SYSTEM", "").startswith(f"{directory}/")


@attrs.frozen(kw_only=True)
class Scene:
    """A host that has been told to run `target`, and ran `first` until then."""

    fleet: AgentFleet
    cp: Running
    agent: Agent
    rollout: RolloutId
    first: Closure
    target: Closure

    def note(self, suffix: str) -> Path:
        """A file by which systems and tests speak."""
        return self.agent.host.note(suffix)

    def until_switch_waits(self, closure: Closure) -> None:
        """A switch to `closure` has begun and will not end by itself."""
        self.agent.until(f"the switch to {closure}", lambda: self.note(".waiting").exists())
        assert self.agent.switches()[-1] == closure

    def reboot(self, into: Closure) -> None:
        """Power is cut in the middle of everything, and the boot loader brings `into` up."""
        self.agent.kill()
        end_switches(self.agent.directory)
        paths = self.agent.host.paths
        boot_id = Path(paths.boot_id)
        boot_id.write_text(f"after {boot_id.read_text()}")
        for link in map(Path, (paths.current_system, paths.booted_system)):
            link.unlink()
            link.symlink_to(paths.named(into))

    def assert_as_told(self, phase: str, facts: tuple[str, ...], switches: list[str]) -> None:
        """What the agent did and what everybody knows of it."""
        agent, rollout = self.agent, self.rollout
        agent.until_settled(rollout, phase)
        assert agent.fact_kinds(rollout) == list(facts), agent.log_tail()
        assert [fact.fact.seq for fact in agent.facts(rollout)] == list(range(1, len(facts) + 1))
        assert agent.switches() == switches, agent.log_tail()
        assert agent.current() == switches[-1]
        self.assert_known_to_the_control_plane()
        self.assert_journal_is_whole()

    def assert_known_to_the_control_plane(self) -> None:
        agent, rollout = self.agent, self.rollout
        assert told(self.cp, rollout, agent.name) == [encode_fact(fact.fact) for fact in agent.facts(rollout)]
        theirs = mirror(self.fleet.database, rollout, agent.name).record
        assert theirs == attrs.evolve(agent.record(rollout), soak_due_at=None)

    def assert_journal_is_whole(self) -> None:
        report = verify(self.agent.journal, self.fleet.keys[HostName(self.agent.name)].public, host=self.agent.name)
        assert report.fault is None
        assert inspection.replay(self.agent.state_dir, print) == 0


def scene(
    fleet: AgentFleet,
    cp: Running,
    name: str,
    *,
    first: Program = ("good", {}),
    target: Program = ("good", {}),
    healthy: bool = True,
) -> Scene:
    """The agent is not running yet."""
    before, after = fleet.system(first[0], **first[1]), fleet.system(target[0], healthy=healthy, **target[1])
    agent = fleet.agent(name, cp.url, running=before, sustained_failure=60)
    rollout = fleet.release(cp, {name: after}, soak_secs=1, rollout_policies=IMPATIENT)
    return Scene(fleet=fleet, cp=cp, agent=agent, rollout=rollout, first=before, target=after)


def staged(fleet: AgentFleet, cp: Running, name: str, story: Story) -> Scene:
    return scene(fleet, cp, name, target=(story.behaviour, {}), healthy=story.healthy)


def assert_undisturbed(host: Scene, story: Story) -> None:
    host.assert_as_told(story.phase, story.facts, story.switches(host.first, host.target))


def in_journal(agent: Agent) -> set[str]:
    """The kinds of all entries and facts so far."""
    if not agent.journal.exists():
        return set()
    try:
        with contextlib.closing(sqlite3.connect(f"{agent.journal.as_uri()}?mode=ro", uri=True)) as db:
            bodies: list[dict[str, Any]] = [json.loads(body) for (body,) in db.execute("SELECT body FROM entries")]
    except sqlite3.OperationalError:
        return set()  # being made
    return {body["event"]["kind"] for body in bodies} | {fact["kind"] for body in bodies for fact in body["facts"]}


def kill_at(agent: Agent, point: str) -> None:
    """Kill the agent at the first sight of this entry or fact, looked for as often as the machine allows."""
    deadline = time.monotonic() + PATIENCE_S
    while point not in (seen := in_journal(agent)):
        assert time.monotonic() < deadline, f"{point} was not seen, only {sorted(seen)}:\n{agent.log_tail()}"
        time.sleep(0.0005)
    agent.kill()


# At every point


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_a_run_that_nobody_disturbs(fleet: AgentFleet, cp: Running, name: str, story: Story) -> None:
    host = staged(fleet, cp, name, story)
    with host.agent.running():
        assert_undisturbed(host, story)


@pytest.mark.parametrize(
    ("story", "point"), [(story.name, point) for story in STORIES for point in story.points], ids=str
)
def test_killed_at_a_point_it_goes_on_as_if_nothing_had_happened(
    fleet: AgentFleet, cp: Running, name: str, story: str, point: str
) -> None:
    host = staged(fleet, cp, name, STORY_BY_NAME[story])
    with host.agent.running():
        kill_at(host.agent, point)
        host.agent.start()
        assert_undisturbed(host, STORY_BY_NAME[story])


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_killed_at_every_point_of_one_rollout(fleet: AgentFleet, cp: Running, name: str, story: Story) -> None:
    host = staged(fleet, cp, name, story)
    with host.agent.running():
        for point in story.points:
            kill_at(host.agent, point)
            host.agent.start()
        assert_undisturbed(host, story)


@pytest.mark.parametrize("number", range(RANDOM_RUNS))
def test_killed_at_random_instants(fleet: AgentFleet, cp: Running, name: str, number: int) -> None:
    print(f"repeat with NIXFLEET_CRASH_SEED={SEED}")
    chance = random.Random(f"{SEED}/{number}")
    story = chance.choice(STORIES)
    pauses = [chance.uniform(0, 1.5) for _ in range(chance.randint(1, 3))]
    print(f"{story.name}, killed after {pauses} s")
    host = staged(fleet, cp, name, story)
    with host.agent.running():
        for pause in pauses:
            time.sleep(pause)
            host.agent.restart()
        assert_undisturbed(host, story)


# In the middle of a switch

WAITS: Final[Program] = ("waits", {})
UNITS_FAIL: Final[Program] = ("units-fail", {})


@pytest.mark.parametrize("rolling_back", [False, True], ids=["switch", "rollback"])
def test_a_switch_outlives_its_agent_and_the_next_one_finishes_it(
    fleet: AgentFleet, cp: Running, name: str, rolling_back: bool
) -> None:
    host = in_the_middle(fleet, cp, name, rolling_back=rolling_back)
    with host.agent.running():
        host.until_switch_waits(host.first if rolling_back else host.target)
        for _ in range(3):
            host.agent.restart()
            host.agent.until_status("the switch", lambda said: said["waiting_on"] == waits_for(rolling_back))
        host.note(".go").touch()
        assert_finished(host, rolling_back=rolling_back)


@pytest.mark.parametrize("rolling_back", [False, True], ids=["switch", "rollback"])
def test_a_switch_that_ends_while_there_is_no_agent_is_not_run_again(
    fleet: AgentFleet, cp: Running, name: str, rolling_back: bool
) -> None:
    host = in_the_middle(fleet, cp, name, rolling_back=rolling_back)
    wanted = host.first if rolling_back else host.target
    with host.agent.running():
        host.until_switch_waits(wanted)
        host.agent.kill()
        host.note(".go").touch()
        host.agent.until("the end of the switch", lambda: host.agent.current() == wanted)
        host.agent.start()
        assert_finished(host, rolling_back=rolling_back)


def in_the_middle(fleet: AgentFleet, cp: Running, name: str, *, rolling_back: bool) -> Scene:
    """A host whose switch, or whose rollback, will wait until it is let go on."""
    if rolling_back:
        return scene(fleet, cp, name, first=WAITS, target=UNITS_FAIL)
    return scene(fleet, cp, name, target=WAITS)


def waits_for(rolling_back: bool) -> str:
    return "the rollback to end" if rolling_back else "the switch to end"


def assert_finished(host: Scene, *, rolling_back: bool) -> None:
    assert_undisturbed(host, STORY_BY_NAME["breaks" if rolling_back else "converges"])


# Reboots


def test_a_reboot_into_the_target_completes_the_switch_that_it_cut_off(
    fleet: AgentFleet, cp: Running, name: str
) -> None:
    host = scene(fleet, cp, name, target=WAITS)
    with host.agent.running():
        host.until_switch_waits(host.target)
        host.reboot(into=host.target)
        host.agent.start()
        host.assert_as_told("Converged", CONVERGED, [host.target])


def test_after_a_reboot_into_the_old_system_the_switch_is_tried_again(
    fleet: AgentFleet, cp: Running, name: str
) -> None:
    host = scene(fleet, cp, name, target=WAITS)
    with host.agent.running():
        host.until_switch_waits(host.target)
        host.note(".go").touch()
        host.reboot(into=host.first)
        host.agent.start()
        facts = (*BEGUN, *CONVERGED[1:])
        host.assert_as_told("Converged", facts, [host.target, host.target])


def test_a_host_that_goes_down_in_every_switch_to_a_target_gives_it_up_and_goes_back(
    fleet: AgentFleet, cp: Running, name: str
) -> None:
    host = scene(fleet, cp, name, target=WAITS)
    with host.agent.running():
        for _ in range(3):
            host.until_switch_waits(host.target)
            host.note(".waiting").unlink()
            host.reboot(into=host.first)
            host.agent.start()
        facts = ("DispatchAck", *["ActivationStarted"] * 3, *BROKEN[2:])
        host.assert_as_told("Reverted", facts, [*[host.target] * 3, host.first])
        said = host.agent.until_ready()
        assert "cut off 3 times" in said["rollout"]["failure"]
        assert [entry["closure"] for entry in said["quarantine"]] == [host.target]


@pytest.mark.parametrize("back", [True, False], ids=["old system", "failing target"])
def test_a_reboot_during_the_rollback_ends_on_the_old_system(
    fleet: AgentFleet, cp: Running, name: str, back: bool
) -> None:
    host = scene(fleet, cp, name, first=WAITS, target=UNITS_FAIL)
    with host.agent.running():
        host.until_switch_waits(host.first)
        host.note(".go").touch()
        host.reboot(into=host.first if back else host.target)
        host.agent.start()
        again = [] if back else [host.first]
        host.assert_as_told("Reverted", BROKEN, [host.target, host.first, *again])


NEW_KERNEL: Final[Program] = ("good", {"kernel": "-> /new/kernel"})
OLD_KERNEL: Final[Program] = ("good", {"kernel": "-> /old/kernel"})
DEFERRED: Final = (*BEGUN, "ActivationDeferred")


def deferred(fleet: AgentFleet, cp: Running, name: str) -> Scene:
    """A host whose target has another kernel than the system it runs."""
    return scene(fleet, cp, name, first=OLD_KERNEL, target=NEW_KERNEL)


def test_a_deferred_target_waits_for_a_reboot_through_restarts_of_the_agent(
    fleet: AgentFleet, cp: Running, name: str
) -> None:
    host = deferred(fleet, cp, name)
    with host.agent.running():
        for _ in range(2):
            said = host.agent.until_settled(host.rollout, "Deferred")
            assert (said["waiting_on"], said["system"]["profile"]) == ("a reboot", host.target)
            host.agent.restart()
        host.agent.until_settled(host.rollout, "Deferred")
        assert host.agent.fact_kinds(host.rollout) == list(DEFERRED)
        assert host.agent.host.runs() == [f"boot {host.target}"]
        host.assert_known_to_the_control_plane()


def test_a_reboot_into_a_deferred_target_is_soaked_and_probed(fleet: AgentFleet, cp: Running, name: str) -> None:
    host = deferred(fleet, cp, name)
    with host.agent.running():
        host.agent.until_phase(host.rollout, "Deferred")
        host.reboot(into=host.target)
        host.agent.start()
        host.agent.until_settled(host.rollout, "Converged")
        assert host.agent.fact_kinds(host.rollout) == [*DEFERRED, *CONVERGED[2:]]
        assert host.agent.host.runs() == [f"boot {host.target}"]
        host.assert_known_to_the_control_plane()
        host.assert_journal_is_whole()


def test_a_reboot_past_a_deferred_target_fails_it_and_makes_the_old_system_stay(
    fleet: AgentFleet, cp: Running, name: str
) -> None:
    host = deferred(fleet, cp, name)
    with host.agent.running():
        host.agent.until_phase(host.rollout, "Deferred")
        host.reboot(into=host.first)
        host.agent.start()
        said = host.agent.until_settled(host.rollout, "Reverted")
        assert host.agent.fact_kinds(host.rollout) == [*DEFERRED, "ActivationFailed", "RollbackComplete"]
        failed = host.agent.facts(host.rollout)[-2].fact
        assert isinstance(failed, ActivationFailed)
        assert failed.exit_code == -3
        assert said["system"]["profile"] == host.agent.current() == host.first
        host.assert_known_to_the_control_plane()
        host.assert_journal_is_whole()
