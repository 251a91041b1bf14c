"""L1 and L2 where nobody signs: what a source offers ends Converged or taken back, wherever a run is cut off.

Windows, hooks and reboots are part of the runs: they hold a target up, and never for good.
"""

from collections.abc import Callable, Iterator

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state_machine.actions import Reboot, Rollback, Switch
from state_machine.events import Settings, Tick
from state_machine.invariants import l1_converged, l2_taken_back
from state_machine.values import Closure, HookMoment, Phase, RebootPolicy, RolloutId, Source
from tests.property.agent_world import (
    DAY,
    FRESH,
    HOST,
    HOUR,
    MINUTE,
    NEW,
    NEWER,
    OLD,
    R1,
    SICK,
    T0,
    Hours,
    Release,
    World,
)
from tests.property.strategies import FOLLOWERS, POLICIES, worlds_of_any_source

ENOUGH = 300
FULL = Settings(
    machine_id=HOST,
    source=Source.LEGACY,
    hooks=True,
    reboot=RebootPolicy.WHEN_REQUIRED,
    offer_policy=POLICIES[0],
)
"""A host with everything that an operator can ask for."""
NONE = attrs.evolve(FULL, source=Source.GRADIENT, hooks=False, reboot=RebootPolicy.NEVER)
SOON = Hours(begins=T0 % DAY + 10 * MINUTE, ends=T0 % DAY + HOUR)
LATER = Hours(begins=T0 % DAY + 15 * MINUTE, ends=T0 % DAY + HOUR)


def active(world: World) -> RolloutId:
    return world.state.known.active or R1


def ended(world: World, target: Closure, *, sick: bool) -> bool:
    phase, problems = (Phase.REVERTED, l2_taken_back) if sick else (Phase.CONVERGED, l1_converged)
    return world.phase_on(target) is phase and not problems(world.state.known, active(world))


def settles_on(world: World, target: Closure, *, sick: bool = False) -> None:
    world.settle(lambda: ended(world, target, sick=sick), limit=ENOUGH)


# --- whatever went on before ----------------------------------------------------------------------------------------


@given(world=worlds_of_any_source, calm=st.sampled_from(FOLLOWERS))
def test_l1_an_offered_healthy_target_converges_whatever_went_on_before(world: World, calm: Settings) -> None:
    world.calm = calm
    world.reform()
    world.offered = FRESH
    settles_on(world, FRESH)
    assert not world.broken_promises()


@given(world=worlds_of_any_source, calm=st.sampled_from(FOLLOWERS))
def test_l2_an_offered_sick_target_is_taken_back_and_left_alone_whatever_went_on_before(
    world: World, calm: Settings
) -> None:
    world.calm = calm
    world.reform()
    world.sick.add(SICK)
    world.offered = SICK
    settles_on(world, SICK, sick=True)
    world.live(10 * MINUTE)
    assert ended(world, SICK, sick=True)
    world.offered = FRESH
    settles_on(world, FRESH)
    assert not world.broken_promises()


@given(world=worlds_of_any_source)
def test_a_host_that_goes_back_to_its_fleet_takes_what_the_fleet_releases(world: World) -> None:
    world.calm = FOLLOWERS[0]
    world.reform()
    world.offered = FRESH
    world.live(10 * MINUTE)
    world.settings = Settings(machine_id=HOST)
    world.kill()
    world.publish(RolloutId("edge@1a57"), Release(target=NEWER))
    if NEWER in world.state.known.quarantine:
        return
    world.settle(lambda: not l1_converged(world.state.known, RolloutId("edge@1a57")), limit=ENOUGH)
    assert not world.broken_promises()


# --- cut off after every event --------------------------------------------------------------------------------------


def follower(settings: Settings, *, sick: bool, defers: bool) -> World:
    """A host that is about to be offered `NEW`. It may switch in ten minutes at the earliest, and reboot after that."""
    world = World(settings=settings)
    world.activation_hours, world.reboot_hours = SOON, LATER
    world.calm = settings
    world.start()
    if sick:
        world.sick.add(NEW)
    if defers:
        world.defers.add(NEW)
    world.offered = NEW
    return world


def reboots_by_hand(world: World, *, sick: bool) -> None:
    """Go on to the end. Where the agent may not reboot, somebody else does."""

    def over() -> bool:
        by_hand = world.settings.reboot is RebootPolicy.NEVER and world.phase is Phase.DEFERRED
        return by_hand or ended(world, NEW, sick=sick)

    world.settle(over, limit=3 * ENOUGH)
    if not ended(world, NEW, sick=sick):
        world.power_cut()
        settles_on(world, NEW, sick=sick)


def interrupted_everywhere(
    interrupt: Callable[[World], None], settings: Settings, *, sick: bool, defers: bool
) -> Iterator[World]:
    """One world for every event of the rollout that is more than a look at the clock, cut off right after it."""
    undisturbed = follower(settings, sick=sick, defers=defers)
    reboots_by_hand(undisturbed, sick=sick)
    telling = [
        number
        for number, passage in enumerate(undisturbed.run, 1)
        if passage.step.durable or not isinstance(passage.event, Tick)
    ]
    steps = [number for number in telling if undisturbed.run[number - 1].step.durable]
    for after in sorted({*steps, *telling[::8]}):
        world = follower(settings, sick=sick, defers=defers)
        while len(world.run) < after and not ended(world, NEW, sick=sick):
            world.next_thing()
        interrupt(world)
        yield world


def switched_to(world: World, target: Closure) -> int:
    orders = (action for passage in world.run for action in passage.step.actions)
    return len({order.op for order in orders if isinstance(order, Switch | Rollback) and order.closure == target})


@pytest.mark.parametrize("settings", [FULL, NONE], ids=["everything", "nothing"])
@pytest.mark.parametrize("defers", [False, True], ids=["live", "deferred"])
@pytest.mark.parametrize("sick", [False, True], ids=["healthy", "sick"])
def test_a_kill_after_any_event_changes_nothing_in_the_end(settings: Settings, sick: bool, defers: bool) -> None:
    for world in interrupted_everywhere(World.kill, settings, sick=sick, defers=defers):
        reboots_by_hand(world, sick=sick)
        world.live(MINUTE)
        assert switched_to(world, NEW) == 1
        assert not world.broken_promises()
        told = {(run.op, run.moment) for run in world.hooks_told if run.moment is not HookMoment.BEFORE_SWITCH}
        assert len(told) == settings.hooks, "of one thing, and by one number"


def kill_while_nobody_can_be_reached(world: World) -> None:
    world.reachable = False
    world.kill()
    world.live(5 * MINUTE)
    world.reachable = True


@pytest.mark.parametrize("defers", [False, True], ids=["live", "deferred"])
def test_a_start_without_word_of_the_source_begins_nothing_and_loses_nothing(defers: bool) -> None:
    for world in interrupted_everywhere(kill_while_nobody_can_be_reached, FULL, sick=False, defers=defers):
        reboots_by_hand(world, sick=False)
        assert switched_to(world, NEW) == 1
        assert not world.broken_promises()


@pytest.mark.parametrize("settings", [FULL, NONE], ids=["everything", "nothing"])
@pytest.mark.parametrize("sick", [False, True], ids=["healthy", "sick"])
def test_a_power_cut_after_any_event_ends_where_it_should(settings: Settings, sick: bool) -> None:
    for defers in (False, True):
        for world in interrupted_everywhere(World.power_cut, settings, sick=sick, defers=defers):
            reboots_by_hand(world, sick=sick)
            assert not world.broken_promises()


@pytest.mark.parametrize("sick", [False, True], ids=["healthy", "sick"])
def test_a_state_directory_lost_after_any_event_costs_no_more_than_the_way_back(sick: bool) -> None:
    for world in interrupted_everywhere(World.lose_state, FULL, sick=sick, defers=False):
        world.live(HOUR)
        assert not world.broken_promises()
        assert world.phase in {Phase.CONVERGED, Phase.FAILED, Phase.REVERTED}
        world.sick.clear()
        world.activation_hours = world.reboot_hours = None
        world.kill()
        world.offered = NEWER
        settles_on(world, NEWER)


# --- held up --------------------------------------------------------------------------------------------------------


def test_a_reboot_that_is_held_up_for_a_while_comes_when_nothing_is_in_the_way() -> None:
    world = follower(FULL, sick=False, defers=True)
    world.locked = True
    world.settle(lambda: world.phase is Phase.DEFERRED, limit=3 * ENOUGH)
    world.live(33 * MINUTE)
    asked = sum(isinstance(action, Reboot) for passage in world.run for action in passage.step.actions)
    assert 4 <= asked <= 7
    world.locked = False
    settles_on(world, NEW)
    assert not world.broken_promises()


def test_a_veto_that_is_lifted_within_the_window_lets_the_switch_begin() -> None:
    world = follower(FULL, sick=False, defers=False)
    world.veto = "a backup runs"
    world.live(30 * MINUTE)
    assert world.system.running == OLD
    world.veto = ""
    settles_on(world, NEW)
    assert not world.broken_promises()


def test_a_source_that_is_away_for_two_days_finds_its_target_running_or_begun_when_it_says_it_again() -> None:
    world = follower(NONE, sick=False, defers=False)
    world.live(5 * MINUTE)
    world.reachable = False
    world.kill()
    world.live(2 * DAY)
    assert world.system.running == OLD, "what was not said again in this run is not begun"
    world.reachable = True
    world.activation_hours = world.reboot_hours = None
    world.kill()
    settles_on(world, NEW)
    assert not world.broken_promises()
