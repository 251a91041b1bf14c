"""Fleets at core depth: many seeds keep every promise, the same seed is the same run everywhere, old finds stay found.

A failing seed is shrunk and told with its timeline; `make simulate SEED=N DEPTH=core` shows it again.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import attrs
import pytest

from state_machine.values import FailurePolicy
from tests.simulation.core_depth import mounted, play
from tests.simulation.coverage import Coverage
from tests.simulation.faults import FAULTS, MINUTE, Depth, Fault, FaultKind, mountable
from tests.simulation.report import describe
from tests.simulation.scenario import Health, Release, Scenario, draw
from tests.simulation.seeds import regressions

SEEDS: Final = 5_000
CHUNK: Final = 100
HERE: Final = Path(__file__).parent


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_whatever_goes_wrong_every_promise_is_kept(first: int) -> None:
    failed = [seed for seed in range(first, first + CHUNK) if play(draw(seed, Depth.CORE)).findings]
    assert not failed, f"{failed}\n{describe(failed[0], Depth.CORE)}"


@pytest.mark.parametrize("seed", regressions(Depth.CORE))
def test_a_seed_that_once_found_something_finds_nothing(seed: int) -> None:
    outcome = play(draw(seed, Depth.CORE))
    assert not outcome.findings, describe(seed, Depth.CORE)


def test_a_seed_is_the_same_run_byte_for_byte_whatever_the_hash_seed() -> None:
    code = (
        "from tests.simulation.core_depth import play; from tests.simulation.scenario import *;"
        "print([play(draw(seed, Depth.CORE), trace=True).trace.digest() for seed in (3, 9, 15, 24)])"
    )

    def digests(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=HERE.parents[1],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    one, other = digests("1"), digests("4711")
    assert one == other
    assert len(set(one.strip("[]\n").split(", "))) == 4, "different seeds are different runs"


def test_looking_at_a_run_does_not_change_it() -> None:
    scenario = draw(8, Depth.CORE)
    plain, watched = play(scenario), play(scenario, trace=True, coverage=Coverage())
    assert (plain.ended_ms, plain.events, plain.findings) == (watched.ended_ms, watched.events, watched.findings)
    assert not plain.trace.lines
    assert watched.trace.lines


def calm() -> Scenario:
    """Two hosts to which nothing happens but two sound releases."""
    sound = (Health.SOUND,) * 2
    return attrs.evolve(
        draw(1, Depth.CORE),
        hosts=2,
        waves=((0,), (1,)),
        soak_s=(30, 60),
        max_in_flight=None,
        edge=None,
        on_failure=FailurePolicy.ROLLBACK_AND_HALT,
        releases=(Release(at_ms=2 * MINUTE, health=sound), Release(at_ms=45 * MINUTE, health=sound)),
        faults=(),
    )


def test_a_fleet_to_which_nothing_happens_switches_once_for_each_release() -> None:
    scenario = calm()
    outcome = play(scenario, trace=True)
    assert not outcome.findings
    begun = [line for line in outcome.trace.lines if "begins: switch" in line.text]
    assert len(begun) == 2 * scenario.hosts


@pytest.mark.parametrize("kind", mountable(Depth.CORE))
def test_every_fault_makes_a_difference(kind: FaultKind) -> None:
    """One that changes nothing in a run was not mounted."""
    row = FAULTS[kind]
    calm_scenario = calm()
    sick = Release(at_ms=20 * MINUTE, health=(Health.SICK,) * calm_scenario.hosts)
    releases = (calm_scenario.releases[0], sick, calm_scenario.releases[1])
    base = attrs.evolve(calm_scenario, releases=releases)
    host = 0 if row.scope == "host" else None
    without = play(base, trace=True).trace
    for at_min in (3, 18, 21, 22, 24, 27):
        fault = Fault(
            kind=kind,
            at_ms=at_min * MINUTE,
            host=host,
            length_ms=min(row.lasts_ms[1], 10 * MINUTE),
            amount=max(1, row.amount[1] // 4),
        )
        trace = play(attrs.evolve(base, faults=(fault,)), trace=True).trace
        if _less_the_faults(trace.text()) != _less_the_faults(without.text()):
            return
    pytest.fail(f"{kind} changed nothing at any of the times tried")


def _less_the_faults(text: str) -> list[str]:
    return [line for line in text.splitlines() if " ! fault" not in line]


def test_every_kind_of_fault_has_its_row_and_is_mounted() -> None:
    assert set(FAULTS) == set(FaultKind)
    assert mounted() == set(mountable(Depth.CORE))


FLOOR: Final = 1_700
"""Triples that 150 runs went through when this was written, less a tenth. Fewer mean that the world has become tame."""


def test_the_runs_go_through_many_states_events_and_faults() -> None:
    coverage = Coverage()
    for seed in range(150):
        play(draw(seed, Depth.CORE), coverage=coverage)
    triples = coverage.triples()
    assert len(triples) >= FLOOR
    unseen = set(map(str, mountable(Depth.CORE))) - {fault for _, _, fault in triples}
    assert not unseen
