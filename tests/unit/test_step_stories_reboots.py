"""Stories of targets that wait for a reboot: who orders it, when, and what becomes of it."""

from typing import Final

import attrs

from state_machine.actions import Reboot
from state_machine.state import Rebooting
from state_machine.system import SwitchOutcome
from state_machine.values import Basis, Phase
from tests.unit.step_story import (
    BY_HAND,
    NEW,
    NEWER,
    OLD,
    R2,
    SETTINGS,
    Told,
    booted,
    dispatched,
    observed,
    probed,
    realised,
    shown,
    switched,
    tell,
    tick,
    view,
    wished_back,
)
from tests.unit.step_story_sources import (
    DAY,
    GRADIENT,
    HOUR,
    L1,
    L2,
    LEGACY,
    REBOOTS,
    WAITS,
    calendar,
    calendar_read,
    offered,
    starts,
    stays_up,
    to_deferred,
)

NIGHT: Final = calendar(reboot=((4 * HOUR, 5 * HOUR), (DAY + 4 * HOUR, DAY + 5 * HOUR)))
FLEET: Final = attrs.evolve(REBOOTS, source=SETTINGS.source)
COMES_UP: Final = ["4 ActivationCompleted", "5 ProbeTopologyDeclared ssh", "> probes", "> probes"]
"""What is said of a deferred target that a reboot has brought up."""


def ordered() -> Told:
    """A host that was told to reboot, as order 3, at 10 s."""
    return to_deferred(then=["> reboot 3 new"])


def of_a_fleet() -> Told:
    """The same, of a host that follows signed manifests."""
    return tell(
        (starts(0, FLEET), ["> probes"]),
        (dispatched(0), ["> fetch edge@1"]),
        (shown(1), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(10, 2, WAITS, SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel", "> reboot 3 new"]),
    )


def reboots_in(told: Told) -> int:
    return sum(isinstance(order, Reboot) for passage in told.run for order in passage.step.actions)


# --- it goes well ---------------------------------------------------------------------------------------------------


def test_a_reboot_is_ordered_where_the_operator_allows_it_and_brings_the_target_up() -> None:
    end = (
        ordered()
        .killed()
        .then(
            (starts(60, REBOOTS, view(NEW, boot=2)), COMES_UP),
            (probed(70), ["6 ProbeObservedFirst ssh", "7 ProbeResult ssh pass"]),
            (tick(200), ["> observe"]),
            (observed(200, view(NEW, boot=2)), ["8 Converged"]),
        )
    )
    assert reboots_in(end) == 1


def test_a_reboot_is_ordered_for_a_fleets_target_just_so() -> None:
    of_a_fleet().killed().then((starts(60, FLEET, view(NEW, boot=2)), COMES_UP))


def test_without_leave_of_the_operator_nobody_reboots() -> None:
    to_deferred(LEGACY).then((offered(60), []), (tick(10 * DAY), []))


def test_leave_that_is_given_later_counts_from_the_next_start_once_the_source_still_wants_it() -> None:
    to_deferred(LEGACY).killed().then(
        (starts(20, REBOOTS, WAITS), ["> probes"]),
        (offered(21), ["> reboot 3 new"]),
    )


def test_leave_that_is_taken_back_takes_back_a_reboot_that_waits() -> None:
    end = (
        ordered()
        .then((stays_up(11, 3, locked=True), ["! busy"]))
        .killed()
        .then((starts(20, LEGACY, WAITS), ["> probes"]), (offered(21), []), (tick(DAY), []))
    )
    assert end.known.operation is None


# --- the window -----------------------------------------------------------------------------------------------------


def test_a_reboot_waits_for_its_window() -> None:
    to_deferred(known=NIGHT).then(
        (offered(60), []),
        (tick(4 * HOUR - 1), []),
        (tick(4 * HOUR), ["> reboot 3 new"]),
    )


def test_the_window_for_switches_is_none_for_reboots() -> None:
    both = calendar(activation=((0, HOUR),), reboot=((4 * HOUR, 5 * HOUR),))
    to_deferred(known=both).then((tick(2 * HOUR), []), (tick(4 * HOUR), ["> reboot 3 new"]))


def test_a_host_that_stays_up_until_the_window_closes_is_left_alone_until_the_next() -> None:
    story = to_deferred(known=NIGHT).then(
        (tick(5 * HOUR - 100), ["> reboot 3 new"]),
        (stays_up(5 * HOUR - 99, 3), ["! busy"]),
        (tick(5 * HOUR + 300), []),
    )
    assert story.known.operation is None
    story.then((tick(DAY), []), (tick(DAY + 4 * HOUR), ["> reboot 4 new"]))


def test_windows_that_are_read_anew_may_be_open_now() -> None:
    to_deferred(known=NIGHT).then((calendar_read(HOUR, calendar(reboot=((0, DAY),))), ["> reboot 3 new"]))


def test_a_clock_that_is_set_into_the_window_opens_it() -> None:
    to_deferred(known=NIGHT).then((tick(60, clock_off_s=4 * HOUR), ["> reboot 3 new"]))


# --- the host stays up ----------------------------------------------------------------------------------------------


def test_a_session_lock_is_looked_at_again_after_a_minute_and_every_ten_in_the_end() -> None:
    story, now = ordered(), 11
    for op, pause in enumerate((60, 120, 240, 480, 600, 600, 600), 3):
        story = story.then((stays_up(now, op, locked=True), ["! busy"]))
        operation = story.known.operation
        assert isinstance(operation, Rebooting)
        assert (operation.attempt, operation.why) == (0, "/run/backup is there")
        story = story.then((tick(now + pause - 1), []), (tick(now + pause), [f"> reboot {op + 1} new"]))
        now += pause + 1


def test_a_host_that_will_not_go_down_after_its_people_have_left_is_asked_again_as_if_they_had_not_been_there() -> None:
    ordered().then(
        (stays_up(11, 3, locked=True), ["! busy"]),
        (tick(71), ["> reboot 4 new"]),
        (stays_up(72, 4), ["! busy"]),
        (tick(72 + 225), ["> reboot 5 new"]),
        (stays_up(300, 5, locked=True), ["! busy"]),
        (tick(360), ["> reboot 6 new"]),
    )


def test_a_host_that_will_not_go_down_is_asked_again_with_growing_pauses() -> None:
    ordered().then(
        (stays_up(11, 3), ["! busy"]),
        (tick(235), []),
        (tick(236), ["> reboot 4 new"]),
        (stays_up(237, 4), ["! busy"]),
        (tick(237 + 449), []),
        (tick(237 + 450), ["> reboot 5 new"]),
    )


def test_a_reboot_that_was_ordered_and_never_comes_is_ordered_again() -> None:
    ordered().then(
        (offered(600), []),
        (tick(909), []),
        (tick(910), ["! busy"]),
        (stays_up(911, 3), ["? no reboot 3 is under way"]),
        (tick(910 + 225), ["> reboot 4 new"]),
    )


def test_a_reboot_that_may_never_have_been_asked_for_is_ordered_again_after_a_restart() -> None:
    of_a_fleet().killed().then((starts(20, FLEET, WAITS), ["> probes", "> reboot 4 new"]))
    ordered().killed().then(
        (starts(20, REBOOTS, WAITS), ["> probes"]),
        (offered(21), ["> reboot 4 new"]),
    )


def test_a_reboot_that_waits_for_its_next_try_goes_on_waiting_after_a_restart() -> None:
    story = of_a_fleet().then((stays_up(11, 3), ["! busy"])).killed()
    story.then((starts(20, FLEET, WAITS), ["> probes"]), (tick(235), []), (tick(236), ["> reboot 4 new"]))


# --- what becomes of it ---------------------------------------------------------------------------------------------


def test_a_reboot_that_does_not_come_up_with_the_target_is_not_tried_again() -> None:
    end = (
        ordered()
        .killed()
        .then(
            (
                starts(60, REBOOTS, view(OLD, profile=NEW, boot=2)),
                [
                    f"4 ActivationFailed (-3) verify-mismatch: after the reboot {OLD} runs",
                    "> roll back 4 old",
                    "> probes",
                ],
            ),
            (switched(70, 4, view(OLD, boot=2)), ["5 RollbackComplete to old", "> probes"]),
            (offered(80), ["! quarantined"]),
            (tick(DAY), []),
        )
    )
    assert reboots_in(end) == 1


def test_a_system_that_somebody_chose_at_boot_is_not_rebooted_away() -> None:
    end = (
        ordered()
        .killed()
        .then(
            (
                starts(60, REBOOTS, view(BY_HAND, profile=NEW, boot=2)),
                [f"4 ActivationFailed (-3) verify-mismatch: after the reboot {BY_HAND} runs", "> probes"],
            ),
            (offered(80), []),
            (tick(DAY), []),
        )
    )
    assert reboots_in(end) == 1


def test_a_power_cut_before_the_window_is_a_reboot_too() -> None:
    end = to_deferred(known=NIGHT).killed().then((starts(60, REBOOTS, view(NEW, boot=2), calendar=NIGHT), COMES_UP))
    assert reboots_in(end) == 0


def test_a_target_that_is_sick_after_the_reboot_is_taken_back() -> None:
    ordered().killed().then(
        (starts(60, REBOOTS, view(NEW, boot=2)), COMES_UP),
        (probed(61, "fail"), ["6 ProbeObservedFirst ssh", "7 ProbeFailureFirst ssh", "8 ProbeResult ssh fail"]),
        (tick(121), ["9 Failed ssh for 60 s: rollback-and-halt", "> roll back 4 old"]),
    )


def test_a_rollback_that_takes_a_reboot_itself_gets_none_from_the_agent() -> None:
    end = (
        ordered()
        .killed()
        .then(
            (starts(60, REBOOTS, view(NEW, boot=2)), COMES_UP),
            (probed(61, "fail"), ["6 ProbeObservedFirst ssh", "7 ProbeFailureFirst ssh", "8 ProbeResult ssh fail"]),
            (tick(121), ["9 Failed ssh for 60 s: rollback-and-halt", "> roll back 4 old"]),
            (
                switched(130, 4, view(NEW, profile=OLD, boot=2), SwitchOutcome.DEFERRED),
                ["10 RollbackFailed deferred (waits for a reboot: kernel):", "! rollback-failed"],
            ),
            (tick(140), []),
        )
    )
    assert reboots_in(end) == 1


# --- something comes in between -------------------------------------------------------------------------------------


def test_a_new_target_takes_the_place_of_the_one_that_waits() -> None:
    end = to_deferred(known=NIGHT).then((offered(HOUR, NEWER), ["1 DispatchAck from old", "> realise 3 newer"]))
    assert end.known.rollouts[L2].prior == OLD
    end.then((tick(4 * HOUR), ["> realise 3 newer"]))


def test_a_new_target_takes_the_place_of_one_whose_reboot_is_ordered_and_goes_on_after_it() -> None:
    ordered().then(
        (offered(11, NEWER), ["1 DispatchAck from old", "> realise 4 newer"]),
        (stays_up(12, 3), ["? no reboot 3 is under way"]),
    ).killed().then(
        (starts(60, REBOOTS, view(NEW, boot=2)), ["> realise 4 newer", "> probes"]),
        (offered(61, NEWER), []),
        (realised(62, 4), ["2 ActivationStarted", "> switch 5 newer"]),
    )


def test_a_release_that_waits_for_its_manifest_holds_the_reboot_up() -> None:
    waits = tell(
        (starts(0, FLEET, calendar=NIGHT), ["> probes"]),
        (dispatched(0), ["> fetch edge@1"]),
        (shown(1), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(10, 2, WAITS, SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel"]),
        (dispatched(4 * HOUR - 1, R2, NEWER), ["> fetch edge@2"]),
        (tick(4 * HOUR), []),
    )
    waits.then((shown(4 * HOUR + 1, R2, NEWER, signed=4 * HOUR), ["1 DispatchAck from old", "> realise 3 newer"]))
    refused = shown(4 * HOUR + 1, R2, BY_HAND, signed=4 * HOUR)
    waits.then(
        (
            refused,
            [
                "1 TargetRefused manifest-mismatch",
                "2 DispatchReject manifest-mismatch",
                "! manifest-mismatch",
                "> reboot 3 new",
            ],
        )
    )


def test_a_release_that_waits_for_its_manifest_holds_up_the_next_try_too() -> None:
    waits = of_a_fleet().then(
        (stays_up(11, 3, locked=True), ["! busy"]),
        (dispatched(60, R2, NEWER), ["> fetch edge@2"]),
        (tick(71), []),
        (tick(72), []),
    )
    assert waits.known.operation is None
    waits.then((shown(80, R2, NEWER, signed=70), ["1 DispatchAck from old", "> realise 4 newer"]))


def test_an_offer_taken_back_is_not_rebooted_for() -> None:
    to_deferred(known=NIGHT).then(
        (offered(HOUR, None), []), (tick(4 * HOUR), []), (offered(4 * HOUR + 1), ["> reboot 3 new"])
    )


def test_an_offer_taken_back_while_the_reboot_waits_for_its_next_try_takes_it_back() -> None:
    end = ordered().then(
        (stays_up(11, 3, locked=True), ["! busy"]),
        (offered(20, None), []),
        (tick(80), []),
    )
    assert end.known.operation is None


def test_what_somebody_else_has_put_into_the_profile_is_not_rebooted_into() -> None:
    end = to_deferred(known=NIGHT).then(
        (observed(HOUR, view(OLD, profile=BY_HAND)), []),
        (tick(4 * HOUR), []),
    )
    end.then((observed(4 * HOUR + 60, WAITS), ["> reboot 3 new"]))


def test_somebody_who_switches_to_the_target_by_hand_spares_the_host_the_reboot() -> None:
    ordered().then(
        (stays_up(11, 3, locked=True), ["! busy"]),
        (observed(30, view(NEW)), ["4 ActivationCompleted", "5 ProbeTopologyDeclared ssh", "> probes"]),
        (tick(100), []),
    )


def test_a_rollback_that_is_wished_for_while_the_reboot_is_ordered_does_not_wait() -> None:
    wished = of_a_fleet().then(
        (wished_back(11), ["4 RollbackRequested", "> roll back 4 old"]),
        (stays_up(12, 3), ["? no reboot 3 is under way"]),
    )
    wished.then((switched(20, 4, view(OLD)), ["5 RollbackComplete to old", "> probes"]), (tick(DAY), []))
    wished.killed().then(
        (starts(60, FLEET, view(NEW, boot=2)), ["> roll back 5 old", "> probes"]),
        (switched(70, 5, view(OLD, boot=2)), ["5 RollbackComplete to old", "> probes"]),
    )


def test_what_another_source_deferred_is_left_to_the_operator() -> None:
    end = (
        of_a_fleet()
        .killed()
        .then(
            (starts(20, attrs.evolve(REBOOTS, source=GRADIENT.source), WAITS), ["> probes"]),
            (tick(HOUR), []),
        )
    )
    assert end.known.operation is None
    end.then((offered(HOUR + 1, basis=Basis.CACHE_KEY), ["1 DispatchAck from old", "> realise 4 new"]))
    back = to_deferred(then=["> reboot 3 new"]).killed().then((booted(20, WAITS, settings=FLEET), ["> probes"]))
    assert back.known.rollouts[L1].record.phase is Phase.DEFERRED


def test_a_host_that_may_begin_nothing_does_not_reboot() -> None:
    held = attrs.evolve(FLEET, holds="the disk is full")
    of_a_fleet().killed().then((starts(20, held, WAITS), ["> probes"]), (tick(DAY), []))
