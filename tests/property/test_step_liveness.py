"""L1 and L2: once the world is honest the host converges on what is healthy and leaves what is sick.

Bounds are numbers of events, of which a host that only polls and probes sees eleven a minute.
"""

from collections.abc import Callable

import pytest
from hypothesis import given

from state_machine.actions import Rollback, Switch
from state_machine.invariants import l1_converged, l2_taken_back
from state_machine.values import Closure, Phase, RolloutId
from tests.property.agent_world import FRESH, HOUR, MINUTE, NEW, NEWER, OLD, R1, R2, SICK, Release, World
from tests.property.strategies import worlds

LAST = RolloutId("edge@1a57")
AFTER_LAST = RolloutId("edge@af7e")
ENOUGH = 200


def converges(world: World, rollout_id: RolloutId, release: Release, *, limit: int = ENOUGH) -> None:
    world.publish(rollout_id, release)
    world.settle(lambda: not l1_converged(world.state.known, rollout_id), limit=limit)


@given(world=worlds)
def test_l1_a_healthy_release_converges_whatever_went_on_before(world: World) -> None:
    world.reform()
    converges(world, LAST, Release(target=FRESH))
    assert not world.broken_promises()


@given(world=worlds)
def test_l1_what_was_under_way_goes_on_once_the_world_is_honest(world: World) -> None:
    world.reform()
    current = world.state.known.current
    if current is None or current.intent is None or current.soak_ms > HOUR:
        return
    target = current.record.target_closure
    activating = current.record.phase is Phase.ACTIVATING
    soaking = current.record.phase is Phase.SOAKING and world.system.running == target
    if (activating or soaking) and target not in world.state.known.quarantine:
        release = Release(target=target, channel=current.intent.channel, policy=current.policy)
        converges(world, current.record.rollout_id, release, limit=1500)
    assert not world.broken_promises()


@given(world=worlds)
def test_l2_a_sick_release_is_taken_back_whatever_went_on_before(world: World) -> None:
    world.reform()
    world.sick.add(SICK)
    world.publish(LAST, Release(target=SICK))
    world.settle(lambda: not l2_taken_back(world.state.known, LAST), limit=ENOUGH)
    world.publish(AFTER_LAST, Release(target=SICK))  # the same closure under another name
    world.live(10 * MINUTE)
    assert world.phase_of(AFTER_LAST) is Phase.PENDING
    converges(world, RolloutId("edge@cafe"), Release(target=FRESH))
    assert not world.broken_promises()


# --- a crash at every point of a rollout ----------------------------------------------------------------------------


def rollout(*, sick: bool, defers: bool = False) -> World:
    """A host about to be given `NEW`."""
    world = World()
    world.start()
    if sick:
        world.sick.add(NEW)
    if defers:
        world.defers.add(NEW)
    world.publish(R1, Release(target=NEW))
    return world


def ended(world: World, *, sick: bool) -> bool:
    problems = l2_taken_back if sick else l1_converged
    return not problems(world.state.known, R1)


def interrupted_everywhere(interrupt: Callable[[World], None], *, sick: bool, defers: bool = False) -> list[World]:
    """One world for every event of the rollout, with the interruption right after that event."""
    undisturbed = rollout(sick=sick, defers=defers)
    reboots_when_deferred(undisturbed, sick=sick)
    worlds = []
    for after in range(1, len(undisturbed.run)):
        world = rollout(sick=sick, defers=defers)
        while len(world.run) <= after and not ended(world, sick=sick):
            world.next_thing()
        interrupt(world)
        reboots_when_deferred(world, sick=sick)
        worlds.append(world)
    return worlds


def reboots_when_deferred(world: World, *, sick: bool) -> None:
    """Go on to the end; a host that waits for its reboot gets it."""
    world.settle(lambda: ended(world, sick=sick) or world.phase_of(R1) is Phase.DEFERRED, limit=ENOUGH)
    if world.phase_of(R1) is Phase.DEFERRED:
        world.defers.clear()
        world.power_cut()
        world.settle(lambda: ended(world, sick=sick), limit=ENOUGH)


def switched_to(world: World, target: Closure) -> int:
    """How often the host really was switched to `target`."""
    orders = (action for passage in world.run for action in passage.step.actions)
    return len({order.op for order in orders if isinstance(order, Switch | Rollback) and order.closure == target})


@pytest.mark.parametrize("defers", [False, True], ids=["live", "deferred"])
@pytest.mark.parametrize("sick", [False, True], ids=["healthy", "sick"])
def test_a_kill_after_any_event_changes_nothing_in_the_end_and_switches_nothing_twice(sick: bool, defers: bool) -> None:
    straight = rollout(sick=sick, defers=defers)
    reboots_when_deferred(straight, sick=sick)
    kinds = [type(fact) for fact in straight.facts[R1]]
    for world in interrupted_everywhere(World.kill, sick=sick, defers=defers):
        assert switched_to(world, NEW) == 1
        assert switched_to(world, OLD) == switched_to(straight, OLD)
        assert [type(fact) for fact in world.facts[R1]] == kinds
        assert not world.broken_promises()


@pytest.mark.parametrize("into", [None, OLD, NEW], ids=["profile", "old", "new"])
@pytest.mark.parametrize("sick", [False, True], ids=["healthy", "sick"])
def test_a_power_cut_after_any_event_ends_where_it_should_whatever_boots(sick: bool, into: Closure | None) -> None:
    def cut(world: World) -> None:
        boots = into if into != NEW or world.system.profile == NEW else None
        world.power_cut(into=boots)
        if world.system.running != world.system.profile:
            world.power_cut()  # somebody chose the old generation at boot once; the next boot is an ordinary one

    for world in interrupted_everywhere(cut, sick=sick):
        assert not world.broken_promises()


@pytest.mark.parametrize("sick", [False, True], ids=["healthy", "sick"])
def test_a_state_directory_lost_after_any_event_costs_no_more_than_the_way_back(sick: bool) -> None:
    """The control plane remembers how far the host was; what ran before the lost switch nobody remembers (S5)."""
    undisturbed = rollout(sick=sick)
    undisturbed.settle(lambda: ended(undisturbed, sick=sick), limit=ENOUGH)
    for after in range(1, len(undisturbed.run)):
        world = rollout(sick=sick)
        while len(world.run) <= after and not ended(world, sick=sick):
            world.next_thing()
        world.lose_state()
        world.live(10 * MINUTE)
        assert not world.broken_promises()
        assert world.mirror[R1].phase in {Phase.CONVERGED, Phase.FAILED, Phase.REVERTED}
        world.sick.clear()
        converges(world, R2, Release(target=NEWER))


def test_an_unreachable_control_plane_moves_nothing_and_stops_no_probe() -> None:
    world = World()
    world.start()
    world.publish(R1, Release(target=NEW))
    world.settle(lambda: world.phase is Phase.CONVERGED, limit=ENOUGH)
    world.reachable = False
    world.publish(R2, Release(target=NEWER))
    before, probed = world.state.known.system, len(world.run)
    world.live(48 * HOUR)
    assert world.state.known.system == before
    assert len([p for p in world.run[probed:] if type(p.event).__name__ == "ProbeObserved"]) > 2 * 48 * 100
    world.reachable = True
    world.settle(lambda: not l1_converged(world.state.known, R2), limit=ENOUGH)
    assert not world.broken_promises()
