"""Runs of the simulator a second on one core: five hosts, one simulated hour, two releases, faults throughout."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Final

from benchmarks.running import Run, per_second
from benchmarks.table import Row, at_least
from tests.simulation.faults import Depth
from tests.simulation.report import player
from tests.simulation.scenario import Scenario, draw

AIMS: Final[Mapping[Depth, float]] = {Depth.CORE: 30, Depth.FULL: 3}
RUNS: Final[Mapping[Depth, int]] = {Depth.CORE: 20, Depth.FULL: 6}
"""How many one measured part is made of, the same ones every time."""
FAULTS_MIN: Final = 6


def standard(depth: Depth) -> Iterator[Scenario]:
    """The standard runs, in the order of their seeds."""
    for seed in itertools.count():
        scenario = draw(seed, depth)
        within = [release for release in scenario.releases if release.at_ms < scenario.window_ms]
        if (
            scenario.hosts == 5
            and len(within) == len(scenario.releases) - 1 == 2
            and len(scenario.faults) >= FAULTS_MIN
        ):
            yield scenario


def measure(run: Run) -> Iterator[Row]:
    """Runs a second, at both depths."""
    for depth, aim in AIMS.items():
        run.say(f"at depth {depth}")
        play, scenarios = player(depth), list(itertools.islice(standard(depth), RUNS[depth]))
        simulated_min = 0.0

        def once() -> int:
            nonlocal simulated_min
            simulated_min = sum(play(scenario).ended_ms for scenario in scenarios) / len(scenarios) / 60_000  # noqa: B023
            return len(scenarios)  # noqa: B023

        rate = per_second(once, run.of(20, 5))
        yield Row(
            name=f"simulated fleets, depth {depth}",
            measured=rate,
            unit="runs/s",
            aims=(at_least(aim),),
            note=f"{RUNS[depth]} seeds, {simulated_min:.0f} simulated minutes each on average, one core",
        )
