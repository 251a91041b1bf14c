"""Make a failing scenario small: fewer faults, shorter ones, healthier releases, and the same promise still broken.

Whole halves of the faults go first, then quarters, down to single ones; then what is left is made shorter. Each attempt
is a run, so a shrink costs as many runs as `attempts` allows and ends with the smallest scenario that was found.
"""

from collections.abc import Callable, Iterator
from typing import Final

import attrs

from tests.simulation.core_depth import Outcome
from tests.simulation.faults import SECOND, Fault
from tests.simulation.scenario import Health, Scenario

ATTEMPTS: Final = 400

Play = Callable[[Scenario], Outcome]


def promises(outcome: Outcome) -> frozenset[str]:
    """The names of what was broken."""
    return frozenset(finding.promise for finding in outcome.findings)


@attrs.define(eq=False)
class _Shrinker:
    play: Play
    wanted: frozenset[str]
    best: Scenario
    left: int

    def try_out(self, scenario: Scenario) -> bool:
        """Keep the scenario if it still breaks one of the promises."""
        if self.left <= 0 or scenario == self.best:
            return False
        self.left -= 1
        if not promises(self.play(scenario)) & self.wanted:
            return False
        self.best = scenario
        return True


def shrink(scenario: Scenario, play: Play, *, attempts: int = ATTEMPTS) -> Scenario:
    """The smallest scenario found that breaks one of the promises that `scenario` breaks; itself, if it breaks none."""
    wanted = promises(play(scenario))
    if not wanted:
        return scenario
    shrinker = _Shrinker(play=play, wanted=wanted, best=scenario, left=attempts)
    before = None
    while before != shrinker.best and shrinker.left > 0:
        before = shrinker.best
        _drop_faults(shrinker)
        _drop_releases(shrinker)
        for smaller in (_shorter_faults, _healthier_releases):
            for candidate in smaller(shrinker.best):
                shrinker.try_out(candidate)
    return shrinker.best


def _drop_faults(shrinker: _Shrinker) -> None:
    size = max(1, len(shrinker.best.faults) // 2)
    while size:
        start = 0
        while start < len(shrinker.best.faults):
            faults = shrinker.best.faults
            fewer = attrs.evolve(shrinker.best, faults=faults[:start] + faults[start + size :])
            if not shrinker.try_out(fewer):
                start += size
        size //= 2


def _drop_releases(shrinker: _Shrinker) -> None:
    """All but the last may go."""
    for number in reversed(range(shrinker.best.last)):
        if number < shrinker.best.last:
            releases = shrinker.best.releases
            shrinker.try_out(attrs.evolve(shrinker.best, releases=releases[:number] + releases[number + 1 :]))


def _shorter_faults(scenario: Scenario) -> Iterator[Scenario]:
    for index, fault in enumerate(scenario.faults):
        for shorter in _shorter(fault):
            yield attrs.evolve(scenario, faults=(*scenario.faults[:index], shorter, *scenario.faults[index + 1 :]))


def _shorter(fault: Fault) -> Iterator[Fault]:
    length_ms = SECOND
    while length_ms < fault.length_ms:
        yield attrs.evolve(fault, length_ms=length_ms)
        length_ms *= 4


def _healthier_releases(scenario: Scenario) -> Iterator[Scenario]:
    for number, release in enumerate(scenario.releases):
        for host, health in enumerate(release.health):
            if health is not Health.SOUND:
                healthier = (*release.health[:host], Health.SOUND, *release.health[host + 1 :])
                changed = attrs.evolve(release, health=healthier)
                releases = (*scenario.releases[:number], changed, *scenario.releases[number + 1 :])
                yield attrs.evolve(scenario, releases=releases)
