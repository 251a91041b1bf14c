"""The real agents and the real control plane keep every promise in a simulated world, and play the same each time.

Three hundred seeds in portions, each fault kind by itself, and the same bytes from processes that hash differently.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import attrs
import pytest

from tests.simulation import full_agent, full_depth
from tests.simulation.faults import FAULTS, MINUTE, SECOND, Depth, Fault, FaultKind, Scope
from tests.simulation.report import command
from tests.simulation.scenario import TRIAL_MS, Health, Release, Scenario, draw
from tests.simulation.seeds import regressions

ROOT: Final = Path(__file__).parents[2]
SEEDS: Final = 300
PORTION: Final = 10
WINDOW_MS: Final = 12 * MINUTE


@pytest.mark.parametrize("first", range(0, SEEDS, PORTION))
def test_every_promise_is_kept_by_the_real_programs_whatever_goes_wrong(first: int) -> None:
    found = {}
    for seed in range(first, first + PORTION):
        outcome = full_depth.play(draw(seed, Depth.FULL))
        if outcome.findings:
            found[command(seed, Depth.FULL)] = [str(finding) for finding in outcome.findings]
    assert found == {}


@pytest.mark.parametrize("seed", regressions(Depth.FULL))
def test_a_seed_that_once_found_something_finds_nothing_any_more(seed: int) -> None:
    assert [str(finding) for finding in full_depth.play(draw(seed, Depth.FULL)).findings] == []


def small(*faults: Fault) -> Scenario:
    """Two hosts, a sound release, a sick one, and a sound one in a world that is honest by then."""
    sound, sick = (Health.SOUND, Health.SOUND), (Health.SICK, Health.SICK)
    releases = (
        Release(at_ms=20 * SECOND, health=sound),
        Release(at_ms=6 * MINUTE, health=sick),
        Release(at_ms=WINDOW_MS, health=sound),
    )
    drawn = draw(1, Depth.FULL)
    return attrs.evolve(
        drawn,
        hosts=2,
        waves=((0, 1),),
        soak_s=(30,),
        max_in_flight=None,
        edge=None,
        sustained_s=20,
        releases=releases,
        faults=faults,
        window_ms=WINDOW_MS,
    )


def often(kind: FaultKind) -> tuple[Fault, ...]:
    """The fault at several times of the run, at the first host or at the fleet."""
    row = FAULTS[kind]
    host, length_ms = (0 if row.scope is Scope.HOST else None), min(row.lasts_ms[1], 90 * SECOND)
    return tuple(
        Fault(kind=kind, at_ms=at_s * SECOND, host=host, length_ms=length_ms, amount=row.amount[1])
        for at_s in (22, 70, 200, 365, 480, 600)
    )


@pytest.mark.parametrize("kind", sorted(full_depth.mounted()))
def test_each_fault_strikes_and_is_survived(kind: FaultKind) -> None:
    outcome = full_depth.play(small(*often(kind)), trace=True)
    assert outcome.findings == ()
    assert kind in full_depth.struck(outcome), outcome.trace.timeline()


def test_without_faults_the_sick_release_is_taken_back_and_the_sound_ones_converge() -> None:
    outcome = full_depth.play(small(), trace=True)
    assert outcome.findings == ()
    told = outcome.trace.timeline()
    assert told.count("Converged") == 4
    assert told.count("RollbackComplete") == 2


def test_a_rollback_that_only_a_reboot_can_complete_says_that_it_waits_for_one() -> None:
    """The earlier system has another kernel; whoever looks for `reboot_required` must see it (seed 20000)."""
    releases = tuple(
        Release(at_ms=at_ms, health=(health, health))
        for at_ms, health in (
            (20 * SECOND, Health.DEFERS),
            (WINDOW_MS + 5 * MINUTE, Health.SICK),
            (WINDOW_MS + 5 * MINUTE + TRIAL_MS, Health.SOUND),
        )
    )
    outcome = full_depth.play(attrs.evolve(small(), releases=releases), trace=True)
    assert outcome.findings == ()
    told = outcome.trace.timeline()
    assert told.count("RollbackComplete") == 2
    assert told.count("RollbackFailed") >= 2


def test_a_host_enrols_although_the_answer_to_its_token_is_lost() -> None:
    """The token is spent then: somebody who looks at the host sees so, and brings another."""
    drawn = small(Fault(kind=FaultKind.LOSS_DOWN, at_ms=SECOND, host=0, length_ms=8 * MINUTE, amount=1))
    seed = next(seed for seed in itertools.count() if full_agent.enrols(attrs.evolve(drawn, seed=seed), 0))
    outcome = full_depth.play(attrs.evolve(drawn, seed=seed), trace=True)
    assert outcome.findings == ()
    told = [line.text for line in outcome.trace.lines if line.who == "node0"]
    assert told.count("is given a token") == 2
    assert "edge@00000003 9: Converged" in told


@pytest.mark.parametrize("seeds", [(2, 7), (11, 19)])
def test_a_seed_plays_the_same_bytes_in_every_process(seeds: tuple[int, ...]) -> None:
    program = (
        "import sys; from tests.simulation import full_depth; from tests.simulation.faults import Depth;"
        "from tests.simulation.scenario import draw;"
        "[print(full_depth.play(draw(int(seed), Depth.FULL), trace=True).trace.digest()) for seed in sys.argv[1:]]"
    )
    said = []
    for hash_seed in ("1", "4711"):
        command_line = [sys.executable, "-c", program, *map(str, seeds)]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        said.append(subprocess.run(command_line, cwd=ROOT, env=environment, capture_output=True, text=True, check=True))
    assert said[0].stdout == said[1].stdout
    assert len(said[0].stdout.split()) == len(seeds)
