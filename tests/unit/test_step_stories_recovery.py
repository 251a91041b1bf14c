"""Stories of agents that die, of hosts that lose their power, and of state directories that are gone."""

from state_machine.events import (
    Duty,
    DutyFinished,
    FactsDelivered,
    ReplayRequested,
    Snapshot,
    SnapshotsReceived,
)
from state_machine.system import SwitchOutcome
from state_machine.values import Phase
from tests.unit.step_story import (
    BY_HAND,
    NEW,
    OLD,
    R1,
    R2,
    SSH,
    at,
    booted,
    dispatched,
    observed,
    probed,
    realised,
    shown,
    switched,
    tell,
    tick,
    to_activating,
    to_converged,
    to_soaking,
    to_switching,
    view,
    wished_back,
)


def test_an_agent_killed_while_fetching_fetches_on() -> None:
    to_activating().killed().then(
        (booted(3), ["> realise 1 new", "> probes"]),
        (realised(8), ["2 ActivationStarted", "> switch 2 new"]),
    )


def test_an_agent_killed_in_the_middle_of_a_switch_asks_for_the_same_one_again() -> None:
    """The transient unit outlives the agent; the worker finds it by the number of the order."""
    to_switching().killed().then(
        (booted(7, view(NEW)), ["> switch 2 new", "> probes"]),
        (switched(10), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
    )


def test_an_agent_killed_while_soaking_keeps_the_stamp_of_the_first_failure() -> None:
    failing = to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
    )
    failing.killed().then(
        (booted(40, view(NEW)), ["> probes"]),
        (probed(41, "fail"), []),
        (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
    )


def test_an_old_failure_is_seen_again_before_it_counts_after_a_long_absence() -> None:
    failing = to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
    )
    away = failing.killed()
    away.then(
        (booted(600, view(NEW)), ["> probes"]), (tick(601), []), (probed(602), ["8 ProbeResult ssh pass", "> observe"])
    )
    away.then(
        (booted(600, view(NEW)), ["> probes"]),
        (probed(602, "fail"), ["8 Failed ssh for 591 s: rollback-and-halt", "> roll back 3 old"]),
    )


def test_a_wiped_agent_goes_on_counting_after_a_dispatch_it_had_rejected() -> None:
    """Numbers that the control plane has seen are never used for other facts."""
    tell(
        (booted(0, view(OLD)), ["> probes"]),
        (seen_by_the_control_plane(1, Phase.PENDING, 2), []),
        (shown(2), []),
        (dispatched(3), ["3 DispatchAck from old", "> realise 1 new"]),
    )


def test_a_switch_that_was_asked_back_is_not_begun_by_a_restarted_agent() -> None:
    asked = to_switching().then((wished_back(6), ["3 RollbackRequested"]))
    asked.killed().then(
        (booted(7, view(OLD)), ["> switch 2 new if begun", "> probes"]),
        (switched(8, 2, view(OLD), SwitchOutcome.INTERRUPTED), ["> roll back 3 old"]),
        (switched(9, 3, view(OLD)), ["4 RollbackComplete to old", "> probes"]),
    )


def test_an_agent_killed_during_a_rollback_asks_for_it_again() -> None:
    going_back = to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
    )
    going_back.killed().then(
        (booted(73, view(NEW)), ["> roll back 3 old", "> probes"]),
        (switched(80, 3, view(OLD)), ["9 RollbackComplete to old", "> probes"]),
    )


def test_an_agent_killed_after_convergence_has_nothing_to_do() -> None:
    to_converged().killed().then((booted(200, view(NEW)), ["> probes"]), (observed(260), []))


def test_a_dispatch_that_waited_for_its_manifest_is_remembered() -> None:
    waiting = tell((booted(0), ["> probes"]), (dispatched(1), ["> fetch edge@1"]))
    waiting.killed().then(
        (booted(2), ["> probes", "> fetch edge@1"]),
        (shown(3), ["1 DispatchAck from old", "> realise 1 new"]),
    )


# --- the power fails ------------------------------------------------------------------------------------------------


def test_power_fails_before_the_switch() -> None:
    to_activating().then(
        (booted(4, view(OLD, boot=2)), ["> realise 1 new", "> probes"]),
        (realised(9), ["2 ActivationStarted", "> switch 2 new"]),
    )


def test_power_fails_during_the_switch_and_the_target_comes_up() -> None:
    to_switching().then(
        (
            booted(4, view(NEW, boot=2)),
            ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes", "> probes"],
        ),
    )


def test_power_fails_during_the_switch_and_the_old_system_comes_up() -> None:
    """It is begun again, and its intent is judged again."""
    to_switching().then(
        (booted(4, view(OLD, boot=2)), ["> realise 3 new", "> probes"]),
        (realised(5, 3), ["3 ActivationStarted", "> switch 4 new"]),
        (switched(9, 4, view(NEW, boot=2)), ["4 ActivationCompleted", "5 ProbeTopologyDeclared ssh", "> probes"]),
    )


def test_power_fails_during_the_switch_and_somebody_picks_the_target_for_one_boot() -> None:
    to_switching().then((booted(4, view(NEW, profile=OLD, boot=2)), ["> realise 3 new", "> probes"]))


def test_power_that_fails_in_every_switch_ends_in_failure() -> None:
    to_switching().then(
        (booted(4, view(OLD, boot=2)), ["> realise 3 new", "> probes"]),
        (realised(5, 3), ["3 ActivationStarted", "> switch 4 new"]),
        (booted(4, view(OLD, boot=3)), ["> realise 5 new", "> probes"]),
        (realised(5, 5), ["4 ActivationStarted", "> switch 6 new"]),
        (
            booted(4, view(OLD, profile=NEW, boot=4)),
            [
                "5 ActivationFailed (-1) switch-failed: cut off 3 times. the host went down during the switch",
                "! switch-failed",
                "> roll back 7 old",
                "> probes",
            ],
        ),
    )


def test_power_fails_while_soaking_and_the_soak_goes_on_where_it_was() -> None:
    """Time powered off does not count, and what probes said before the reboot proves nothing."""
    to_soaking().then(
        (probed(60), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (booted(20, view(NEW, boot=2)), ["7 ProbeTopologyDeclared ssh", "> probes"]),
        (probed(21), ["8 ProbeObservedFirst ssh", "9 ProbeResult ssh pass"]),
        (tick(89), []),
        (tick(90), ["> observe"]),
        (observed(90, view(NEW, boot=2)), ["10 Converged"]),
    )


def test_power_fails_during_the_rollback() -> None:
    going_back = to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
    )
    going_back.then(
        (booted(4, view(OLD, boot=2)), ["9 RollbackComplete to old", "> probes", "> probes"]),
    )
    going_back.then((booted(4, view(NEW, boot=2)), ["> roll back 4 old", "> probes"]))
    # Somebody picked the old system for one boot: the next would bring the sick one up again.
    going_back.then((booted(4, view(OLD, profile=NEW, boot=2)), ["> roll back 4 old", "> probes"]))


def test_power_fails_after_a_wish_to_roll_back_in_the_middle_of_a_switch() -> None:
    asked = to_switching().then((wished_back(6), ["3 RollbackRequested"]))
    for runs in (NEW, OLD, BY_HAND):
        asked.then((booted(4, view(runs, boot=2)), ["> roll back 3 old", "> probes"]))


def test_the_switch_of_a_rollout_that_is_wished_back_is_lost() -> None:
    to_switching().then(
        (wished_back(6), ["3 RollbackRequested"]),
        (tick(905), ["> roll back 3 old"]),
        (switched(910, 3, view(OLD)), ["4 RollbackComplete to old", "> probes"]),
    )


def test_an_interrupted_switch_is_begun_again() -> None:
    to_switching().then(
        (switched(10, 2, view(OLD), SwitchOutcome.INTERRUPTED, code=None), ["> realise 3 new"]),
        (realised(11, 3), ["3 ActivationStarted", "> switch 4 new"]),
    )


def test_running_time_never_goes_back_even_if_the_monotonic_clock_does_within_one_boot() -> None:
    """A container has the boot id of its host, and a clock that it may be given anew."""
    to_soaking(probes=()).killed().then(
        (booted(3, view(NEW), probes=()), ["> probes"]),
        (tick(122.9), []),
        (tick(123), ["> observe"]),
        (observed(123), ["5 Converged"]),
    )


def test_probes_that_changed_with_the_restart_are_declared_anew() -> None:
    to_soaking().killed().then(
        (booted(40, view(NEW), probes=()), ["5 ProbeTopologyDeclared", "> probes"]),
        (tick(130), ["> observe"]),
        (observed(130), ["6 Converged"]),
    )


# --- the state directory is gone ------------------------------------------------------------------------------------


def seen_by_the_control_plane(seconds: float, phase: Phase, last_seq: int) -> SnapshotsReceived:
    snapshot = Snapshot(rollout_id=R1, phase=phase, target_closure=NEW, last_seq=last_seq)
    return SnapshotsReceived(at=at(seconds), snapshots=(snapshot,))


def test_a_wiped_agent_goes_on_with_the_rollout_that_the_control_plane_remembers() -> None:
    """It must prove itself like any other, and its facts go on from the number the control plane has."""
    end = tell(
        (booted(0, view(NEW)), ["> probes"]),
        (seen_by_the_control_plane(1, Phase.SOAKING, 4), ["> fetch edge@1"]),
        (shown(2), ["5 ProbeTopologyDeclared ssh", "> probes"]),
        (probed(3), ["6 ProbeObservedFirst ssh", "7 ProbeResult ssh pass"]),
        (tick(122), ["> observe"]),
        (observed(122), ["8 Converged"]),
    )
    assert end.known.rollouts[R1].oldest_seq == 5
    # Facts 1 to 4 went with the journal that held them: to promise them again would be for ever.
    again = end.then((ReplayRequested(at=at(123), rollout_id=R1, from_seq=1), []))
    assert again.known.rollouts[R1].delivered_seq == 4
    again = again.then((FactsDelivered(at=at(124), rollout_id=R1, through_seq=8), []))
    again = again.then((ReplayRequested(at=at(125), rollout_id=R1, from_seq=1), []))
    assert again.known.rollouts[R1].delivered_seq == 4


def test_a_wiped_agent_that_was_activating_begins_that_anew() -> None:
    tell(
        (booted(0), ["> probes"]),
        (seen_by_the_control_plane(1, Phase.ACTIVATING, 2), ["> fetch edge@1"]),
        (shown(2), ["> realise 1 new"]),
        (realised(3), ["3 ActivationStarted", "> switch 2 new"]),
    )


def test_a_wiped_agent_that_has_rebooted_into_its_deferred_target_completes_it() -> None:
    tell(
        (booted(0, view(NEW)), ["> probes"]),
        (seen_by_the_control_plane(1, Phase.DEFERRED, 3), ["> fetch edge@1"]),
        (shown(2), ["4 ActivationCompleted", "5 ProbeTopologyDeclared ssh", "> probes"]),
    )


def test_what_cannot_be_proved_is_not_adopted_and_costs_the_journal_little() -> None:
    story = tell((booted(0), ["> probes"]))
    story = story.then(
        (seen_by_the_control_plane(1, Phase.SOAKING, 4), ["> fetch edge@1"]),
        (shown(2, signed=-9000), ["! stale"]),
    )
    for minute in range(1, 30):
        story = story.then((seen_by_the_control_plane(60 * minute, Phase.SOAKING, 4), []))
    assert len([passage for passage in story.run if passage.step.durable]) == 3


def test_a_number_that_no_journal_could_write_is_not_adopted() -> None:
    for last_seq in (0, -1, 2**53 - 1, 10**7):
        tell((booted(0), ["> probes"]), (seen_by_the_control_plane(1, Phase.SOAKING, last_seq), []))


def test_an_agent_with_a_history_of_its_own_adopts_nothing() -> None:
    end = to_converged().then((seen_by_the_control_plane(200, Phase.ACTIVATING, 7), ["? " + DIFFERENT]))
    assert end.known.rollouts[R1].record.phase is Phase.CONVERGED
    other = Snapshot(rollout_id=R2, phase=Phase.SOAKING, target_closure=NEW, last_seq=9)
    end.then((SnapshotsReceived(at=at(201), snapshots=(other,)), []))


DIFFERENT = "the control plane has edge@1 as Activating, not Converged"


def test_a_restart_makes_every_exchange_due_and_waits_for_none() -> None:
    tell(
        (
            booted(0, probes=(SSH,)),
            ["> probes", "> heartbeat", "> dispatch", "> intent"],
        ),
        (DutyFinished(at=at(1), duty=Duty.HEARTBEAT, ok=False), []),
        (tick(2), []),
        (tick(2.5), ["> heartbeat"]),
        (DutyFinished(at=at(3), duty=Duty.RENEWAL, ok=True), ["? no renewal exchange is under way"]),
    )


def test_where_the_host_boots_after_the_deferral_decides() -> None:
    deferred = to_switching().then(
        (switched(10, 2, view(OLD, profile=NEW), SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel"]),
    )
    assert deferred.known.system.profile == NEW
    deferred.then((observed(20, view(NEW)), ["4 ActivationCompleted", "5 ProbeTopologyDeclared ssh", "> probes"]))
