"""The promises about tries, wishes, half-done work and lost numbers find what breaks them, and nothing in true runs."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from state_machine.endurance_promises import (
    l2_a_wish_is_followed,
    l2_tried_again_and_not_for_ever,
    s4_half_done_is_not_done,
    s7_numbers_go_on_after_those_of_a_lost_journal,
)
from state_machine.events import DispatchKind, DispatchReceived, Snapshot, SnapshotsReceived
from state_machine.facts import ActivationCompleted, ProbeResult, RollbackRequested
from state_machine.passages import Passage, facts_of
from state_machine.state import Known
from state_machine.step_promises import s4_converged_means_proved, s7_numbers_without_gaps
from state_machine.system import SwitchOutcome
from state_machine.turn import Step
from state_machine.values import Phase
from tests.property.agent_world import HOST, R1, Release, World, closure

NEW = closure("1", "new")


def lived(until: str = "Converged", prepare: Callable[[World], None] = lambda world: None) -> World:
    """A run in which a release comes, to the phase in which its rollout is to be."""
    world = World()
    prepare(world)
    world.start()
    world.publish(R1, Release(target=NEW))
    world.settle(lambda: world.phase == until, limit=4_000)
    return world


@pytest.fixture
def converged() -> World:
    return lived()


def after(passage: Passage, **changes: Any) -> Passage:
    """The passage with another durable state after it."""
    state = passage.step.state
    known: Known = attrs.evolve(state.known, **changes)
    return attrs.evolve(passage, step=attrs.evolve(passage.step, state=attrs.evolve(state, known=known)))


def by_settings(run: list[Passage], **changes: Any) -> list[Passage]:
    """The run as if the operator had set that."""
    return [after(p, settings=attrs.evolve(p.after.settings, **changes)) for p in run]


def said(passage: Passage, **changes: Any) -> Passage:
    """The passage with another event: what came of it stays."""
    event: Any = passage.event
    return attrs.evolve(passage, event=attrs.evolve(event, **changes))


def asked_back(world: World) -> None:
    wish = DispatchReceived(
        at=world.moment(),
        hostname=HOST,
        rollout_id=R1,
        target_closure=NEW,
        running=None,
        kind=DispatchKind.ROLLBACK,
        reason="ill",
    )
    world.tell(wish)


# --- tries ----------------------------------------------------------------------------------------------------------


def never_back(world: World) -> None:
    world.sick, world.stuck_rollbacks = {NEW}, 99


def test_a_rollback_that_is_given_up_too_soon_or_tried_for_ever_is_found() -> None:
    world = lived("Failed", never_back)
    world.settle(lambda: world.state.known.operation is None, limit=4_000)
    limit = world.settings.rollback_attempts
    assert list(l2_tried_again_and_not_for_ever(world.run)) == []
    [early] = l2_tried_again_and_not_for_ever(by_settings(world.run, rollback_attempts=limit + 1))
    assert early == f"the rollback of {R1} is given up after {limit} failures"
    [late] = l2_tried_again_and_not_for_ever(by_settings(world.run, rollback_attempts=limit - 1))
    assert late == f"the rollback of {R1} goes on after {limit - 1} failures"


def test_a_switch_that_is_begun_once_too_often_is_found() -> None:
    world = World()
    world.start()
    world.publish(R1, Release(target=NEW))
    world.settle(lambda: world.state.known.busy)
    world.power_cut()
    world.settle(lambda: world.phase == "Converged")
    assert list(l2_tried_again_and_not_for_ever(world.run)) == []
    [found] = l2_tried_again_and_not_for_ever(by_settings(world.run, switch_attempts=1))
    assert found == f"{R1} is switched to for the 2th time"


# --- wishes ---------------------------------------------------------------------------------------------------------


def test_a_wish_that_is_forgotten_is_found(converged: World) -> None:
    asked_back(converged)
    assert list(l2_a_wish_is_followed(converged.run)) == []
    granted = converged.run[-1]
    assert list(facts_of(granted, RollbackRequested))
    without_order = attrs.evolve(granted, step=attrs.evolve(granted.step, actions=()))
    forgotten = after(without_order, operation=None)
    [found] = l2_a_wish_is_followed([*converged.run[:-1], forgotten])
    assert found == f"{R1} was asked back, and nothing came of it"


# --- half done ------------------------------------------------------------------------------------------------------


def test_a_target_that_counts_as_activated_after_its_switch_failed_is_found(converged: World) -> None:
    assert list(s4_half_done_is_not_done(converged.run)) == []
    lied = [
        said(p, outcome=SwitchOutcome.FAILED) if list(facts_of(p, ActivationCompleted)) else p for p in converged.run
    ]
    [found] = s4_half_done_is_not_done(lied)
    assert "the last switch to its target failed" in found


# --- probes and facts -----------------------------------------------------------------------------------------------


def test_a_result_of_before_the_activation_that_counts_is_found(converged: World) -> None:
    spoke = next(p for p in converged.run if list(facts_of(p, ProbeResult)))
    assert list(s4_converged_means_proved(spoke)) == []
    early = said(spoke, began_mono_ms=-(10**9))
    assert any("began before" in problem for problem in s4_converged_means_proved(early))


def test_a_result_that_outlives_a_reboot_is_found(converged: World) -> None:
    probes = converged.state.known.probes
    assert probes
    converged.power_cut()
    boot = converged.run[-1]
    assert list(s4_converged_means_proved(boot)) == []
    assert list(s4_converged_means_proved(after(boot, probes=probes)))


def test_facts_that_count_as_delivered_and_never_were_are_found(converged: World) -> None:
    told = next(p for p in converged.run if type(p.event).__name__ == "FactsDelivered")
    assert list(s7_numbers_without_gaps(told)) == []
    less = said(told, through_seq=0)
    assert any("counts as delivered" in problem for problem in s7_numbers_without_gaps(less))


# --- lost journals --------------------------------------------------------------------------------------------------


def shown(converged: World, phase: Phase, last_seq: int) -> Passage:
    """The control plane shows what it holds of the rollout, and the agent makes nothing of it."""
    first = converged.run[0]
    snapshot = Snapshot(rollout_id=R1, phase=phase, target_closure=NEW, last_seq=last_seq)
    event = SnapshotsReceived(at=first.event.at, snapshots=(snapshot,))
    return Passage(before=first.step.state, event=event, step=Step(state=first.step.state))


def test_numbers_of_a_lost_journal_that_are_used_again_are_found(converged: World) -> None:
    assert list(s7_numbers_go_on_after_those_of_a_lost_journal(converged.run)) == []
    told = [converged.run[0], shown(converged, Phase.PENDING, 2), *converged.run[1:]]
    [found] = s7_numbers_go_on_after_those_of_a_lost_journal(told)
    assert found == f"{R1} has a fact 1, which the control plane was seen to hold already"


def test_a_rollout_that_is_gone_on_with_and_nobody_showed_under_way_is_found() -> None:
    world = World()
    world.start()
    world.publish(R1, Release(target=NEW))
    world.settle(lambda: world.phase == "Soaking")
    world.settle(lambda: world.mirror[R1].phase is Phase.SOAKING)
    world.lose_state()
    world.settle(lambda: world.phase == "Soaking")
    assert list(s7_numbers_go_on_after_those_of_a_lost_journal(world.run)) == []
    silent = [p for p in world.run if not isinstance(p.event, SnapshotsReceived)]
    assert any("nobody showed it" in problem for problem in s7_numbers_go_on_after_those_of_a_lost_journal(silent))
