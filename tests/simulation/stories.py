"""Stories: what comes together in life, and what dice bring together too rarely.

A story is told about a fleet that was drawn: it may replace the releases within the window, set a policy, and add
faults that belong together. Its sentence says what it is about; what comes of it is judged like everything else. A new
story is one function and one row of `STORIES`.
"""

import random
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from state_machine.values import FailurePolicy
from tests.simulation.faults import FAULTS, MINUTE, SECOND, Fault, FaultKind, Scope
from tests.simulation.shape import WINDOW_MS, Health, Release, Scenario

K = FaultKind
Story = Callable[[random.Random, Scenario], Scenario]


def woven(dice: random.Random, scenario: Scenario) -> Scenario:
    """The scenario, every other one with a story in it; in most of those nothing else goes wrong."""
    if dice.random() < 0.5:
        return scenario
    story = dice.choice(STORIES)
    told = story(dice, attrs.evolve(scenario, faults=()))
    beside = scenario.faults if dice.random() < 0.4 else ()
    known = [fault for fault in (*beside, *told.faults) if scenario.depth in FAULTS[fault.kind].depths]
    return attrs.evolve(told, faults=tuple(known))


# --- what stories are made of ---------------------------------------------------------------------------------------


def _strikes(kind: K, at_ms: int, host: int = 0, *, length_ms: int = 0, amount: int = 0) -> Fault:
    """A fault at that time, or as near to it as the window allows. `host` is of no account where all are struck."""
    at_ms = max(SECOND, min(at_ms, WINDOW_MS - SECOND))
    struck = None if FAULTS[kind].scope is Scope.FLEET else host
    return Fault(kind=kind, at_ms=at_ms, host=struck, length_ms=min(length_ms, WINDOW_MS - at_ms), amount=amount)


def _within(scenario: Scenario, *releases: Release) -> Scenario:
    """These releases, in place of those within the window."""
    later = tuple(release for release in scenario.releases if release.at_ms >= WINDOW_MS)
    return attrs.evolve(scenario, releases=(*releases, *later))


def _all(scenario: Scenario, at_ms: int, health: Health) -> Release:
    return Release(at_ms=at_ms, health=(health,) * scenario.hosts)


def _again(release: Release, at_ms: int) -> Release:
    return attrs.evolve(release, at_ms=at_ms, again=True)


def _some(dice: random.Random, scenario: Scenario) -> Iterator[int]:
    """Some of the hosts, one of the first wave among them."""
    first = dice.choice(scenario.waves[0])
    return (host for host in range(scenario.hosts) if host == first or dice.random() < 0.5)


def _soak(scenario: Scenario, least_s: int) -> Scenario:
    return attrs.evolve(scenario, soak_s=tuple(max(least_s, soak_s) for soak_s in scenario.soak_s))


def _with(scenario: Scenario, *faults: Fault) -> Scenario:
    return attrs.evolve(scenario, faults=(*scenario.faults, *faults))


def _early(dice: random.Random) -> int:
    return dice.randrange(20 * SECOND, 3 * MINUTE)


# --- releases that come again ---------------------------------------------------------------------------------------


def _only_the_host_remembers(dice: random.Random, scenario: Scenario) -> Scenario:
    """What hosts took back is released again, and the control plane has lost or forgotten that they did."""
    ill = _all(scenario, _early(dice), dice.choice((Health.SICK, Health.BREAKS)))
    again = _again(ill, ill.at_ms + dice.randrange(8 * MINUTE, 14 * MINUTE))
    told = _within(attrs.evolve(scenario, on_failure=FailurePolicy.ROLLBACK_AND_HALT), ill, again)
    if dice.random() < 0.5:
        return _with(told, _strikes(K.CP_WIPE, again.at_ms - dice.randrange(10 * SECOND, MINUTE), length_ms=8 * SECOND))
    return _with(told, _strikes(K.CP_CONFUSED, again.at_ms - SECOND, length_ms=10 * MINUTE, amount=2))


def _left_half_done(dice: random.Random, scenario: Scenario) -> Scenario:
    """A switch fails when all is changed, the policy leaves it at that, and the same closures are released again."""
    half = _all(scenario, _early(dice), Health.BREAKS)
    again = _again(half, half.at_ms + dice.randrange(3 * MINUTE, 12 * MINUTE))
    return _within(attrs.evolve(scenario, on_failure=FailurePolicy.HALT), half, again)


def _upon_the_unproven(dice: random.Random, scenario: Scenario) -> Scenario:
    """A release comes while hosts still soak the one before, and is ill: they must go back to what came before both."""
    first = _all(scenario, _early(dice), Health.SOUND)
    ill = _all(
        scenario, first.at_ms + dice.randrange(45 * SECOND, 3 * MINUTE), dice.choice((Health.SICK, Health.BREAKS))
    )
    told = attrs.evolve(scenario, on_failure=FailurePolicy.ROLLBACK_AND_HALT)
    return _within(_soak(told, 120), first, ill)


# --- intent ---------------------------------------------------------------------------------------------------------


def _the_one_before(dice: random.Random, scenario: Scenario) -> Scenario:
    """A release takes another's place before that was rolled out, and then the control plane serves the older one."""
    first = _all(scenario, _early(dice), Health.SOUND)
    second = _all(scenario, first.at_ms + dice.randrange(SECOND, 40 * SECOND), Health.SOUND)
    told = _within(attrs.evolve(scenario, poll_s=120), first, second)
    at_ms = second.at_ms + dice.randrange(0, 3 * MINUTE)
    return _with(told, _strikes(K.CP_CONFUSED, at_ms, length_ms=dice.randrange(2 * MINUTE, 8 * MINUTE), amount=1))


def _old_and_new_in_turn(dice: random.Random, scenario: Scenario) -> Scenario:
    """What is served is now the newest signature, now an older one, while a release is rolled out."""
    release = _all(scenario, _early(dice), Health.SOUND)
    told = _within(attrs.evolve(_soak(scenario, 120), poll_s=120, resign_s=240), release)
    return _with(told, _strikes(K.CP_STALE, release.at_ms, length_ms=30 * MINUTE, amount=1))


def _too_old_by_running_time(dice: random.Random, scenario: Scenario) -> Scenario:
    """A host cut off fetches a closure until its manifest has run out, and its clock has been set back meanwhile."""
    release = _all(scenario, _early(dice), Health.SOUND)
    told = _within(attrs.evolve(scenario, freshness_min=20), release)
    faults = []
    for host in scenario.waves[0]:
        cut_off_ms = release.at_ms + dice.randrange(50 * SECOND, 2 * MINUTE)
        fetches_ms = dice.randrange(18 * MINUTE, 24 * MINUTE)
        back_s = -dice.randrange(300, 900)
        faults += [
            _strikes(K.CACHE_OUTAGE, SECOND, host, length_ms=release.at_ms + fetches_ms),
            _strikes(K.PARTITION, cut_off_ms, host, length_ms=30 * MINUTE),
            _strikes(K.CLOCK_STEP, cut_off_ms + 20 * SECOND, host, length_ms=32 * MINUTE, amount=back_s),
        ]
    return _with(told, *faults)


def _wrong_about_the_time(dice: random.Random, scenario: Scenario) -> Scenario:
    """Some hosts' clocks are wrong, by little or by much, when a release comes."""
    release = _all(scenario, dice.randrange(3 * MINUTE, 30 * MINUTE), Health.SOUND)
    faults = []
    for host in _some(dice, scenario):
        off_s = dice.choice((-1, -1, 1)) * dice.choice((90, 600, 3600, 86400))
        faults.append(_strikes(K.CLOCK_STEP, release.at_ms - 20 * SECOND, host, length_ms=8 * MINUTE, amount=off_s))
    return _with(_within(scenario, release), *faults)


def _nobody_signs(dice: random.Random, scenario: Scenario) -> Scenario:
    """CI signs nothing for longer than manifests are good for, with waves yet to come."""
    release = _all(scenario, _early(dice), Health.SOUND)
    told = _within(attrs.evolve(_soak(scenario, 120), freshness_min=20), release)
    waits_ms = dice.randrange(8 * MINUTE, 20 * MINUTE)
    late = [
        _strikes(K.HOST_REVOKED, SECOND, host, length_ms=release.at_ms + waits_ms)
        if dice.random() < 0.5
        else _strikes(K.CACHE_OUTAGE, SECOND, host, length_ms=release.at_ms + waits_ms)
        for host in scenario.waves[0]
    ]
    return _with(told, _strikes(K.CI_SILENT, SECOND, length_ms=dice.randrange(25 * MINUTE, 43 * MINUTE)), *late)


def _signed_tomorrow(dice: random.Random, scenario: Scenario) -> Scenario:
    """CI's clock is ahead for a while, just when a release comes."""
    release = _all(scenario, dice.randrange(3 * MINUTE, 35 * MINUTE), Health.SOUND)
    amount = dice.choice((90, 600, 3600, 86400))
    fault = _strikes(K.CI_CLOCK, release.at_ms - 20 * SECOND, length_ms=5 * MINUTE, amount=amount)
    return _with(_within(attrs.evolve(scenario, poll_s=120), release), fault)


def _another_hosts_target(dice: random.Random, scenario: Scenario) -> Scenario:
    """The control plane mixes its hosts up just when a release comes."""
    release = _all(scenario, _early(dice), Health.SOUND)
    told = _within(scenario, release)
    return _with(told, _strikes(K.CP_MIXED_UP, release.at_ms - SECOND, length_ms=2 * MINUTE))


def _a_key_is_struck_off(dice: random.Random, scenario: Scenario) -> Scenario:
    """CI changes its key while closures are being fetched, and hosts learn of it late."""
    release = _all(scenario, _early(dice), Health.SOUND)
    told = _within(attrs.evolve(scenario, poll_s=120), release)
    fetches_ms = dice.randrange(3 * MINUTE, 12 * MINUTE)
    outages = [
        _strikes(K.CACHE_OUTAGE, SECOND, host, length_ms=release.at_ms + fetches_ms) for host in range(told.hosts)
    ]
    at_ms = release.at_ms + dice.randrange(30 * SECOND, 3 * MINUTE)
    return _with(told, *outages, _strikes(K.KEY_ROTATION, at_ms, amount=dice.randrange(60, 600)))


# --- switches and rollbacks -----------------------------------------------------------------------------------------


def _no_way_back_works(dice: random.Random, scenario: Scenario) -> Scenario:
    """A release is ill, and when it is to be taken back switches fail."""
    ill = _all(scenario, _early(dice), dice.choice((Health.SICK, Health.SICK, Health.BREAKS)))
    told = _within(attrs.evolve(scenario, on_failure=FailurePolicy.ROLLBACK_AND_HALT), ill)
    faults = []
    for host in _some(dice, scenario):
        at_ms, length_ms = ill.at_ms + dice.randrange(15 * SECOND, 2 * MINUTE), dice.randrange(2 * MINUTE, 30 * MINUTE)
        faults.append(_strikes(K.SWITCH_FAILS, at_ms, host, length_ms=length_ms))
    return _with(told, *faults)


def _never_through(dice: random.Random, scenario: Scenario) -> Scenario:
    """Every switch to a release is cut off, or never gets the lock."""
    release = _all(scenario, _early(dice), Health.SOUND)
    cut = [
        _strikes(K.POWER_CUT_IN_SWITCH, release.at_ms + number * MINUTE, host, amount=dice.randrange(0, 3))
        for host in _some(dice, scenario)
        for number in range(4)
    ]
    locked = [_strikes(K.SWITCH_LOCKED, release.at_ms, host, length_ms=12 * MINUTE) for host in _some(dice, scenario)]
    return _with(_within(scenario, release), *(cut if dice.random() < 0.5 else locked))


def _never_answered(dice: random.Random, scenario: Scenario) -> Scenario:
    """Nobody says how a switch or a rollback ended."""
    release = _all(scenario, dice.randrange(20 * SECOND, 25 * MINUTE), dice.choice((Health.SOUND, Health.SICK)))
    at_ms = release.at_ms + (0 if dice.random() < 0.7 else 40 * SECOND)
    faults = [_strikes(K.SWITCH_UNANSWERED, at_ms, host) for host in _some(dice, scenario)]
    return _with(_within(scenario, release), *faults)


def _undone_unseen(dice: random.Random, scenario: Scenario) -> Scenario:
    """Somebody undoes a switch before the agent has seen its end."""
    release = _all(scenario, dice.randrange(20 * SECOND, 30 * MINUTE), Health.SOUND)
    faults = [_strikes(K.SWITCH_UNDONE, release.at_ms, host) for host in _some(dice, scenario)]
    return _with(_within(scenario, release), *faults)


def _asked_back_in_the_switch(dice: random.Random, scenario: Scenario) -> Scenario:
    """An operator asks a rollout back just as a host switches to it; sometimes the host goes down with it."""
    release = _all(scenario, dice.randrange(20 * SECOND, 30 * MINUTE), dice.choice((Health.SOUND, Health.HANGS)))
    host = dice.choice(scenario.waves[0])
    faults = [_strikes(K.WISH_IN_SWITCH, release.at_ms, host, amount=dice.randrange(0, 2))]
    if dice.random() < 0.3:
        faults.append(_strikes(K.POWER_CUT_IN_SWITCH, release.at_ms, host, amount=dice.randrange(1, 5)))
    return _with(_within(scenario, release), *faults)


# --- the soak -------------------------------------------------------------------------------------------------------


def _a_hand_in_the_soak(dice: random.Random, scenario: Scenario) -> Scenario:
    """Somebody switches hosts by hand while they soak, and sometimes back again."""
    release = _all(scenario, dice.randrange(20 * SECOND, 30 * MINUTE), Health.SOUND)
    faults = []
    for host in _some(dice, scenario):
        at_ms = release.at_ms + dice.randrange(40 * SECOND, 3 * MINUTE)
        faults.append(_strikes(K.OPERATOR_SWITCH, at_ms, host, amount=dice.randrange(0, 2)))
        if dice.random() < 0.4:
            back_ms = at_ms + dice.randrange(SECOND, 3 * MINUTE)
            faults.append(_strikes(K.OPERATOR_SWITCH, back_ms, host, amount=2))
    return _with(_within(_soak(scenario, 120), release), *faults)


def _a_reboot_in_the_soak(dice: random.Random, scenario: Scenario) -> Scenario:
    """The power goes while hosts soak."""
    release = _all(scenario, dice.randrange(20 * SECOND, 30 * MINUTE), Health.SOUND)
    faults = []
    for host in _some(dice, scenario):
        at_ms = release.at_ms + dice.randrange(40 * SECOND, 4 * MINUTE)
        faults.append(_strikes(K.POWER_CUT, at_ms, host, amount=dice.randrange(10, 60)))
    return _with(_within(_soak(scenario, 60), release), *faults)


def _a_slow_disk_at_the_switch(dice: random.Random, scenario: Scenario) -> Scenario:
    """Commits take seconds, so that what was seen before a switch is told after it."""
    release = _all(scenario, dice.randrange(3 * MINUTE, 30 * MINUTE), dice.choice((Health.SOUND, Health.SICK)))
    slow = [
        _strikes(
            K.DISK_SLOW, release.at_ms - 10 * SECOND, host, length_ms=8 * MINUTE, amount=dice.randrange(1000, 8000)
        )
        for host in range(scenario.hosts)
    ]
    flap = [
        _strikes(K.PROBES_FLAP, release.at_ms, host, length_ms=8 * MINUTE, amount=2) for host in range(scenario.hosts)
    ]
    return _with(_within(scenario, release), *slow, *flap)


# --- lost journals --------------------------------------------------------------------------------------------------


def _lost_under_way(dice: random.Random, scenario: Scenario) -> Scenario:
    """State directories go while a release is rolled out."""
    release = _all(scenario, dice.randrange(20 * SECOND, 30 * MINUTE), dice.choice((Health.SOUND, Health.SICK)))
    lost = [
        _strikes(K.LOST_STATE, release.at_ms + dice.randrange(5 * SECOND, 4 * MINUTE), host)
        for host in _some(dice, scenario)
    ]
    return _with(_within(_soak(scenario, 60), release), *lost)


def _lost_after_a_refusal(dice: random.Random, scenario: Scenario) -> Scenario:
    """Hosts whose clocks are wrong refuse a release, lose their state directories, and are asked again."""
    release = _all(scenario, dice.randrange(3 * MINUTE, 25 * MINUTE), Health.SOUND)
    faults = []
    for host in _some(dice, scenario):
        off_s = dice.choice((-86400, -3600, 5 * 86400))
        lost_ms = release.at_ms + dice.randrange(MINUTE, 4 * MINUTE)
        faults += [
            _strikes(K.CLOCK_STEP, release.at_ms - 20 * SECOND, host, length_ms=5 * MINUTE, amount=off_s),
            _strikes(K.LOST_STATE, lost_ms, host),
        ]
    return _with(_within(scenario, release), *faults)


STORIES: Final[tuple[Story, ...]] = (
    _only_the_host_remembers,
    _left_half_done,
    _upon_the_unproven,
    _the_one_before,
    _old_and_new_in_turn,
    _too_old_by_running_time,
    _wrong_about_the_time,
    _nobody_signs,
    _signed_tomorrow,
    _another_hosts_target,
    _a_key_is_struck_off,
    _no_way_back_works,
    _never_through,
    _never_answered,
    _undone_unseen,
    _asked_back_in_the_switch,
    _a_hand_in_the_soak,
    _a_reboot_in_the_soak,
    _a_slow_disk_at_the_switch,
    _lost_under_way,
    _lost_after_a_refusal,
)
"""Each as likely as any other."""
