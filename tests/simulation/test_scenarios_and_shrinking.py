"""Scenarios come from their seed alone, survive being written down, and shrink to what matters."""

import attrs
import pytest

from tests.simulation.core_depth import Outcome
from tests.simulation.faults import FAULTS, Depth, FaultKind, Scope
from tests.simulation.judge import Finding
from tests.simulation.report import command
from tests.simulation.scenario import WELL, WINDOW_MS, Health, Scenario, draw, from_json
from tests.simulation.shrink import promises, shrink
from tests.simulation.trace import Trace, Weight


@pytest.mark.parametrize("depth", Depth)
def test_a_seed_is_one_scenario_and_another_seed_another(depth: Depth) -> None:
    assert draw(5, depth) == draw(5, depth)
    assert draw(5, depth) != draw(6, depth)


@pytest.mark.parametrize("seed", range(50))
def test_a_scenario_survives_being_written_down(seed: int) -> None:
    scenario = draw(seed, Depth.CORE)
    assert from_json(scenario.as_json()) == scenario


@pytest.mark.parametrize("seed", range(200))
def test_what_is_drawn_fits_together(seed: int) -> None:
    scenario = draw(seed, Depth.CORE)
    assert 2 <= scenario.hosts <= 8
    assert sorted(host for wave in scenario.waves for host in wave) == list(range(scenario.hosts))
    assert len(scenario.soak_s) == len(scenario.waves)
    assert [release.at_ms for release in scenario.releases] == sorted(r.at_ms for r in scenario.releases)
    assert set(scenario.releases[-1].health) == {Health.SOUND}
    for fault in scenario.faults:
        assert fault.until_ms <= WINDOW_MS
        assert (fault.host is None) is (FAULTS[fault.kind].scope is Scope.FLEET)


def test_closures_of_a_release_are_told_apart_by_host_and_known_by_their_health() -> None:
    scenario = draw(7, Depth.CORE)
    own = [number for number, release in enumerate(scenario.releases) if not release.again]
    closures = {scenario.closure(number, host) for number in own for host in range(scenario.hosts)}
    assert len(closures) == len(own) * scenario.hosts
    assert scenario.health(scenario.factory(0), 0) in WELL
    assert scenario.health(scenario.closure(scenario.last, 1), 1) is Health.SOUND


def test_a_release_that_comes_again_has_the_closures_and_the_health_of_the_one_before() -> None:
    first = draw(7, Depth.CORE).releases[0]
    again = attrs.evolve(first, at_ms=first.at_ms + 1, again=True)
    scenario = attrs.evolve(draw(7, Depth.CORE), releases=(first, again))
    assert scenario.closure(1, 0) == scenario.closure(0, 0)
    assert scenario.rollout_id(1) != scenario.rollout_id(0)


def broken_by(*kinds: FaultKind) -> "object":
    """A world in which a promise breaks when faults of all these kinds happen."""

    def play(scenario: Scenario) -> Outcome:
        present = {fault.kind for fault in scenario.faults}
        finding = Finding(at_ms=0, who="node0", promise="S6", text="two at once")
        findings = (finding,) if present.issuperset(kinds) else ()
        return Outcome(scenario=scenario, findings=findings, trace=Trace(), ended_ms=0, events=0)

    return play


def failing_scenario() -> tuple[Scenario, FaultKind, FaultKind]:
    for seed in range(1000):
        scenario = draw(seed, Depth.CORE)
        kinds = sorted({fault.kind for fault in scenario.faults})
        if len(scenario.faults) > 10 and len(kinds) > 2:
            return scenario, kinds[0], kinds[-1]
    raise AssertionError("no seed has many faults")


def test_a_failing_scenario_shrinks_to_the_faults_that_matter() -> None:
    scenario, one, other = failing_scenario()
    play = broken_by(one, other)
    assert callable(play)
    smallest = shrink(scenario, play)
    assert sorted(fault.kind for fault in smallest.faults) == sorted((one, other))
    assert len(smallest.releases) == 1
    assert promises(play(smallest)) == {"S6"}
    assert attrs.evolve(smallest, faults=scenario.faults, releases=scenario.releases) == scenario


def test_what_breaks_nothing_is_not_shrunk() -> None:
    scenario = draw(3, Depth.CORE)
    play = broken_by(FaultKind.LOST_STATE, FaultKind.CP_WIPE, FaultKind.POWER_CUT, FaultKind.KILL, FaultKind.DELAY)
    assert callable(play)
    assert shrink(scenario, play) == scenario


def test_shrinking_ends_after_the_attempts_it_is_given() -> None:
    scenario, one, _ = failing_scenario()
    played = 0
    inner = broken_by(one)

    def play(candidate: Scenario) -> Outcome:
        nonlocal played
        played += 1
        assert callable(inner)
        outcome = inner(candidate)
        assert isinstance(outcome, Outcome)
        return outcome

    shrink(scenario, play, attempts=7)
    assert played <= 8


def test_a_timeline_leaves_out_what_tells_nothing_and_marks_what_went_wrong() -> None:
    trace = Trace()
    trace.note(1_000, "node0", "a message")
    trace.note(61_500, "fault", "the power goes", Weight.FAULT)
    trace.note(61_500, "node0", "S6: two at once", Weight.FIND)
    assert trace.timeline() == ("   1:01.500 ! fault    the power goes\n   1:01.500 # node0    S6: two at once\n")
    assert "a message" in trace.text()


def test_a_trace_that_is_off_keeps_nothing() -> None:
    trace = Trace(on=False)
    trace.note(0, "node0", "a message")
    assert trace.text() == ""


def test_the_command_for_a_seed_names_seed_and_depth() -> None:
    assert command(17, Depth.CORE) == "make simulate SEED=17 DEPTH=core"
