"""Draw what a run will be from one integer: fleet, releases, faults, timings.

A run has few kinds of faults and many of each, half of them at any time and half of them about when a release comes,
which is when most can go wrong. In every other run a story is woven in (`stories`): things that come together in life
and that dice bring together too rarely.
"""

import random
from collections.abc import Iterator
from typing import Final

import attrs

from state_machine.values import FailurePolicy
from tests.simulation.faults import FAULTS, MINUTE, SECOND, Depth, Fault, FaultKind, Scope, mountable
from tests.simulation.shape import (
    CHANNEL,
    EPOCH,
    TRIAL_MS,
    WELL,
    WINDOW_MS,
    Health,
    Release,
    Scenario,
    commit,
    from_json,
)
from tests.simulation.stories import woven

__all__ = (
    "CHANNEL",
    "EPOCH",
    "TRIAL_MS",
    "WELL",
    "WINDOW_MS",
    "Depth",
    "Health",
    "Release",
    "Scenario",
    "commit",
    "draw",
    "from_json",
)

_HOSTS: Final = (2, 3, 4, 5, 5, 5, 5, 5, 5, 6, 7, 8)
_ILL: Final = (Health.SICK, Health.SICK, Health.BREAKS, Health.REFUSES, Health.DEFERS, Health.HANGS, Health.UNTRUSTED)


def draw(seed: int, depth: Depth) -> Scenario:
    """The scenario of a seed. The same for ever, until the way of drawing changes."""
    dice = random.Random(f"{seed}/scenario")
    hosts = dice.choice(_HOSTS)
    waves = _waves(dice, hosts)
    releases = _releases(dice, hosts)
    drawn = Scenario(
        seed=seed,
        depth=depth,
        hosts=hosts,
        waves=waves,
        soak_s=tuple(dice.choice((0, 30, 60, 120, 240)) for _ in waves),
        sustained_s=dice.choice((20, 60, 90)),
        on_failure=dice.choice((*(FailurePolicy.ROLLBACK_AND_HALT,) * 7, FailurePolicy.HALT)),
        freshness_min=dice.choice((20, 60, 180)),
        resign_s=dice.choice((240, 600)),
        releases=releases,
        faults=tuple(_faults(dice, hosts, depth, releases)),
        max_in_flight=dice.choice((None, None, 1 if hosts <= 3 else 2, 3)),
        edge=_edge(dice, waves) if dice.random() < 0.3 else None,
        switch_attempts=dice.choice((1, 2, 3)),
        rollback_attempts=dice.choice((2, 3, 5)),
        poll_s=dice.choice((120, 600, 600, 600)),
    )
    told = woven(random.Random(f"{seed}/story"), drawn)
    return attrs.evolve(told, faults=tuple(sorted(_one_clock_ahead(told.faults), key=_in_order)))


def _one_clock_ahead(faults: tuple[Fault, ...]) -> Iterator[Fault]:
    """Where CI's clock is ahead, no host's is: two that agree on a time to come leave nobody to tell otherwise.

    A host that has believed them acts on nothing signed before that time, as S8 wants it, until the time has come.
    """
    ahead = any(fault.kind is FaultKind.CI_CLOCK for fault in faults)
    for fault in faults:
        back = ahead and fault.kind is FaultKind.CLOCK_STEP
        yield attrs.evolve(fault, amount=-abs(fault.amount)) if back else fault


def _waves(dice: random.Random, hosts: int) -> tuple[tuple[int, ...], ...]:
    """Everybody in one to three waves, the first the smallest."""
    names = dice.sample(range(hosts), hosts)
    cuts = sorted(dice.sample(range(1, hosts), min(hosts - 1, dice.choice((0, 1, 1, 2)))))
    return tuple(tuple(sorted(names[a:b])) for a, b in zip((0, *cuts), (*cuts, hosts), strict=True))


def _edge(dice: random.Random, waves: tuple[tuple[int, ...], ...]) -> tuple[int, int]:
    """Somebody, and whom they wait for: nobody of a later wave, which would contradict the waves."""
    order = [host for wave in waves for host in dice.sample(wave, len(wave))]
    first, second = sorted(dice.sample(range(len(order)), 2))
    return order[second], order[first]


def _releases(dice: random.Random, hosts: int) -> tuple[Release, ...]:
    """Two or more within the window, sometimes a sick one for the honest world to take back, and a sound one."""
    drawn = [_release(dice, hosts, at_ms) for at_ms in _instants(dice)]
    for number in range(1, len(drawn)):
        if dice.random() < 0.2:
            drawn[number] = attrs.evolve(drawn[number - 1], at_ms=drawn[number].at_ms, again=True)
    end_ms = WINDOW_MS
    if dice.random() < 0.25:
        trial = attrs.evolve(_release(dice, hosts, end_ms), health=_all_ill(dice, hosts))
        drawn.append(trial)
        end_ms += TRIAL_MS
    return (*drawn, Release(at_ms=end_ms, health=(Health.SOUND,) * hosts))


def _instants(dice: random.Random) -> list[int]:
    count = dice.choice((2, 2, 2, 3, 4))
    at_ms = [dice.randrange(10 * SECOND, WINDOW_MS - MINUTE) for _ in range(count)]
    if count > 2:  # in quick succession
        at_ms[1] = min(at_ms[0] + dice.randrange(SECOND, 90 * SECOND), WINDOW_MS - MINUTE)
    at_ms[0] = min(at_ms[0], dice.randrange(10 * SECOND, 5 * MINUTE))
    return sorted(at_ms)


def _release(dice: random.Random, hosts: int, at_ms: int) -> Release:
    if dice.random() < 0.4:
        return Release(at_ms=at_ms, health=(Health.SOUND,) * hosts)
    ill, share = dice.choice(_ILL), dice.choice((0.3, 0.6, 1.0))
    return Release(at_ms=at_ms, health=tuple(ill if dice.random() < share else Health.SOUND for _ in range(hosts)))


def _all_ill(dice: random.Random, hosts: int) -> tuple[Health, ...]:
    return (dice.choice((Health.SICK, Health.SICK, Health.BREAKS, Health.REFUSES)),) * hosts


def _faults(dice: random.Random, hosts: int, depth: Depth, releases: tuple[Release, ...]) -> list[Fault]:
    """Many faults of a few kinds, so that each kind gets runs in which it dominates."""
    kinds = dice.sample(mountable(depth), dice.choice((1, 2, 3, 4, 6)))
    count = dice.choice((2, 6, 10, 14, 20))
    return [_fault(dice, dice.choice(kinds), hosts, _when(dice, releases)) for _ in range(count)]


def _when(dice: random.Random, releases: tuple[Release, ...]) -> int:
    """Any time, or about when a release comes and is rolled out."""
    if dice.random() < 0.5:
        return dice.randrange(SECOND, WINDOW_MS - SECOND)
    release = dice.choice([release for release in releases if release.at_ms < WINDOW_MS])
    at_ms = release.at_ms + dice.randrange(-20 * SECOND, 6 * MINUTE)
    return max(SECOND, min(at_ms, WINDOW_MS - 2 * SECOND))


def _fault(dice: random.Random, kind: FaultKind, hosts: int, at_ms: int) -> Fault:
    row = FAULTS[kind]
    return Fault(
        kind=kind,
        at_ms=at_ms,
        host=dice.randrange(hosts) if row.scope is Scope.HOST else None,
        length_ms=min(_between(dice, row.lasts_ms), WINDOW_MS - at_ms),
        amount=_by_size(dice, row.amount) if row.by_size else _between(dice, row.amount),
    )


def _between(dice: random.Random, ends: tuple[int, int]) -> int:
    return ends[0] if ends[0] == ends[1] else dice.randrange(ends[0], ends[1] + 1)


def _by_size(dice: random.Random, ends: tuple[int, int]) -> int:
    """A number of any length in digits, on either side of zero."""
    end = dice.choice(ends)
    bits = dice.randrange(4, abs(end).bit_length() + 1)
    size = min(abs(end), dice.randrange(2 ** (bits - 1), 2**bits))
    return size if end > 0 else -size


def _in_order(fault: Fault) -> tuple[int, str, int]:
    return fault.at_ms, fault.kind, -1 if fault.host is None else fault.host
