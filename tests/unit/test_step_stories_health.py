"""Stories of probes, of failing for too long, of going back, and of hosts that somebody else switched."""

from state_machine.activation import way_back_waits_for_reboot
from state_machine.events import Poked, ProbesDeclared, QuarantineCleared, SystemObserved, TargetPolicy
from state_machine.schedule import next_wakeup
from state_machine.system import SwitchOutcome
from state_machine.values import FailurePolicy, Phase, ProbeMode, ProbeSpec
from tests.unit.step_story import (
    BY_HAND,
    DISK,
    NEW,
    NEWER,
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
    to_converged,
    to_soaking,
    view,
)

FAILED = SwitchOutcome.FAILED


def test_a_probe_that_fails_for_a_minute_takes_the_target_back() -> None:
    end = to_soaking().then(
        (
            probed(11, "fail"),
            ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"],
        ),
        (probed(41, "fail"), []),
        (tick(70.999), []),
        (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
        (switched(80, 3, view(OLD)), ["9 RollbackComplete to old", "> probes"]),
        (probed(81), []),
    )
    assert end.known.quarantine[NEW].rollout_id == R1
    assert end.known.system == view(OLD)


def test_a_pass_in_between_clears_the_stamp() -> None:
    """An old blip and a new failure are two failures, not a long one."""
    to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (probed(41), ["8 ProbeResult ssh pass"]),
        (probed(100, "fail"), ["9 ProbeFailureFirst ssh", "10 ProbeResult ssh fail"]),
        (tick(159.999), []),
        (probed(159.999), ["11 ProbeResult ssh pass", "> observe"]),
        (observed(160), ["12 Converged"]),
    )


def test_what_only_observes_never_fails_a_rollout() -> None:
    to_soaking(probes=(SSH, DISK)).then(
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (
            probed(11, "fail", "disk"),
            ["7 ProbeObservedFirst disk", "8 ProbeFailureFirst disk", "9 ProbeResult disk fail"],
        ),
        (tick(130), ["> observe"]),
        (observed(130), ["10 Converged"]),
    )


def test_the_end_of_a_soak_is_not_forgotten_when_something_else_comes_just_before_the_alarm() -> None:
    late = to_soaking(probes=()).then((Poked(at=at(130.5)), []))
    assert next_wakeup(late.state, at(130.6)) == 0
    late.then((tick(130.6), ["> observe"]), (observed(131), ["5 Converged"]))


def test_failure_comes_before_convergence_in_the_same_instant() -> None:
    to_soaking(policy=TargetPolicy(soak_ms=60_000)).then(
        (probed(10, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(70), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
    )


def test_the_policy_says_how_long_a_failure_must_last() -> None:
    to_soaking(policy=TargetPolicy(soak_ms=600_000, sustained_failure_ms=300_000)).then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(310), []),
        (tick(311), ["8 Failed ssh for 300 s: rollback-and-halt", "> roll back 3 old"]),
    )


def test_the_policys_gate_is_a_probe_that_no_own_probe_can_stand_in_for() -> None:
    lookalike = ProbeSpec(name="systemd-failed-units", kind="tcp", mode=ProbeMode.OBSERVE)
    end = to_soaking(policy=TargetPolicy(soak_ms=60_000, max_failed_units=0)).then(
        (ProbesDeclared(at=at(11), probes=(lookalike,)), ["5 ProbeTopologyDeclared systemd-failed-units", "> probes"]),
        (
            probed(12, "fail", "systemd-failed-units"),
            [
                "6 ProbeObservedFirst systemd-failed-units",
                "7 ProbeFailureFirst systemd-failed-units",
                "8 ProbeResult systemd-failed-units fail",
            ],
        ),
        (tick(72), ["9 Failed systemd-failed-units for 60 s: rollback-and-halt", "> roll back 3 old"]),
    )
    assert end.known.judges[0].mode is ProbeMode.ENFORCE


def test_under_halt_a_sick_target_stays_and_is_watched() -> None:
    end = to_soaking(policy=TargetPolicy(on_failure=FailurePolicy.HALT, soak_ms=120_000)).then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(71), ["8 Failed ssh for 60 s: halt"]),
        (probed(100), []),
    )
    assert end.known.rollouts[R1].record.phase is Phase.FAILED
    assert end.known.probes["ssh"].since == 100_000


def test_probes_declared_anew_while_soaking_start_afresh() -> None:
    to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (ProbesDeclared(at=at(40), probes=(SSH, DISK)), ["8 ProbeTopologyDeclared ssh, disk", "> probes"]),
        (ProbesDeclared(at=at(41), probes=(SSH, DISK)), ["> probes"]),
        (tick(71), []),
        (probed(72, "fail", began=39), []),
        (probed(73), ["9 ProbeObservedFirst ssh", "10 ProbeResult ssh pass"]),
        (tick(130), ["> observe"]),
        (observed(131), ["11 Converged"]),
    )


def test_a_disabled_or_unknown_probe_and_a_result_of_nothing_are_not_heard() -> None:
    off = ProbeSpec(name="off", kind="tcp", mode=ProbeMode.DISABLED)
    to_soaking(probes=(SSH, off)).then(
        (probed(11, "fail", "off"), ["? no probe 'off' is declared"]),
        (probed(11, "fail", "other"), ["? no probe 'other' is declared"]),
        (probed(12, "unknown"), ["? ssh observed nothing"]),
    )


def test_a_clock_step_ends_no_soak() -> None:
    to_soaking().then(
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (tick(20, clock_off_s=86_400), []),
        (tick(21, clock_off_s=-86_400), []),
        (tick(129), []),
        (tick(130), ["> observe"]),
    )


# --- going back -----------------------------------------------------------------------------------------------------


def test_a_rollback_that_fails_is_tried_again_with_growing_pauses() -> None:
    end = to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
        (
            switched(80, 3, view(NEW), FAILED, code=1, detail="no space"),
            ["9 RollbackFailed failed: no space", "! rollback-failed"],
        ),
        (probed(90, "fail"), []),
        (tick(102), []),
        (tick(102.5), ["> roll back 4 old"]),
        (
            switched(110, 4, view(OLD), FAILED, code=4),
            ["10 RollbackFailed failed:", "! rollback-failed"],
        ),
        (tick(200), ["> roll back 5 old"]),
        (switched(210, 5, view(OLD)), ["11 RollbackComplete to old", "> probes"]),
    )
    assert end.known.operation is None


def test_a_rollback_is_tried_five_times_and_then_left_to_people() -> None:
    story = to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
    )
    now = 80.0
    for attempt in range(5):
        story = story.then(
            (
                switched(now, 3 + attempt, view(NEW), FAILED),
                [f"{9 + attempt} RollbackFailed failed:", "! rollback-failed"],
            ),
        )
        now += 7200
        if attempt < 4:
            story = story.then((tick(now), [f"> roll back {4 + attempt} old"]))
            now += 10
    end = story.then((tick(now), []), (tick(now + 86_400), []))
    assert end.known.rollouts[R1].record.phase is Phase.FAILED
    assert end.known.operation is None


def test_a_rollback_that_a_reboot_must_complete_is_complete_then_even_if_it_was_given_up() -> None:
    story = to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
    )
    now, waits = 80.0, view(NEW, profile=OLD)
    for attempt in range(5):
        sentence = f"{9 + attempt} RollbackFailed deferred (waits for a reboot: kernel):"
        story = story.then(
            (switched(now, 3 + attempt, waits, SwitchOutcome.DEFERRED), [sentence, "! rollback-failed"]),
        )
        assert way_back_waits_for_reboot(story.known)
        story = story.then(
            (tick(now + 7200), [f"> roll back {4 + attempt} old"] if attempt < 4 else []),
        )
        now += 7210
    story.then((booted(5, view(NEW, profile=OLD, boot=2)), ["> probes"]))
    story.then((booted(5, view(OLD, profile=NEW, boot=2)), ["> probes"]))
    end = story.then((booted(5, view(OLD, boot=2)), ["14 RollbackComplete to old", "> probes", "> probes"]))
    assert not way_back_waits_for_reboot(end.known)
    story.then((observed(now, view(OLD)), ["14 RollbackComplete to old", "> probes"]))


def test_a_new_rollout_is_taken_while_a_failed_rollback_waits_for_its_next_try() -> None:
    """What the host is stuck on never proved itself: the way back is still the system before it."""
    end = to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
        (switched(80, 3, view(NEW), FAILED), ["9 RollbackFailed failed:", "! rollback-failed"]),
        (shown(81, R2, NEWER, signed=81), []),
        (dispatched(82, R2, NEWER, running=NEW), ["1 DispatchAck from new", "> realise 4 newer"]),
        (tick(200), []),
        (realised(201, 4), ["2 ActivationStarted", "> switch 5 newer"]),
        (
            switched(210, 5, view(NEWER), FAILED, code=4),
            [
                "3 ActivationFailed (4) switch-failed:",
                "! switch-failed",
                "> roll back 6 old",
            ],
        ),
        (switched(220, 6, view(OLD)), ["4 RollbackComplete to old", "> probes"]),
    )
    assert end.known.rollouts[R2].record.phase is Phase.REVERTED


def test_a_release_of_the_closure_that_is_still_soaking_keeps_the_way_back() -> None:
    """Another host changed, so a new rollout names for this one what it is still trying out."""
    end = to_soaking().then(
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (shown(20, R2, NEW, signed=20), []),
        (
            dispatched(21, R2, NEW, running=NEW),
            ["1 DispatchAck from new", "2 ActivationCompleted", "3 ProbeTopologyDeclared ssh", "> probes"],
        ),
        (probed(22, "fail"), ["4 ProbeObservedFirst ssh", "5 ProbeFailureFirst ssh", "6 ProbeResult ssh fail"]),
        (tick(82), ["7 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
        (switched(90, 3, view(OLD)), ["8 RollbackComplete to old", "> probes"]),
    )
    assert set(end.known.quarantine) == {NEW}


def test_without_an_earlier_system_the_host_stays_and_says_so() -> None:
    end = tell(
        (booted(0, view(None)), ["> probes"]),
        (shown(1), []),
        (dispatched(2, running=None), ["1 DispatchAck from nothing", "> realise 1 new"]),
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (
            switched(10, 2, view(NEW), FAILED, code=1),
            [
                "3 ActivationFailed (1) switch-failed:",
                "4 RollbackFailed no earlier system is on record to go back to, or it is the failing one or "
                "quarantined itself",
                "! switch-failed",
                "! rollback-failed",
            ],
        ),
        (tick(9000), []),
    )
    assert not end.known.quarantine


def test_a_quarantined_closure_is_refused_under_any_name_until_it_is_cleared() -> None:
    back = to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
        (switched(80, 3, view(OLD)), ["9 RollbackComplete to old", "> probes"]),
        (shown(100, R2, NEW, signed=99), []),
        (dispatched(101, R2), ["1 DispatchReject quarantined", "! quarantined"]),
        (QuarantineCleared(at=at(110), closure=NEWER, by="root"), [f"? {NEWER} is not quarantined"]),
        (QuarantineCleared(at=at(111), closure=NEW, by="root"), []),
        (QuarantineCleared(at=at(112), closure=None, by="root"), ["? nothing is not quarantined"]),
    )
    back.then((dispatched(162, R2), ["2 DispatchAck from old", "> realise 4 new"]))


# --- somebody else switched the host --------------------------------------------------------------------------------


def test_drift_is_noticed_once_and_not_fought_over() -> None:
    to_converged().then(
        (observed(200, view(BY_HAND)), ["8 DriftObserved by-hand, not new"]),
        (observed(260, view(BY_HAND)), []),
        (observed(320, view(NEW)), []),
        (observed(380, view(BY_HAND)), ["9 DriftObserved by-hand, not new"]),
    )


def test_a_target_that_was_switched_away_does_not_converge_and_proves_itself_anew_when_it_is_back() -> None:
    to_soaking().then(
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (observed(60, view(BY_HAND)), ["7 DriftObserved by-hand, not new", "> probes"]),
        (probed(61), []),
        (tick(130), []),
        (observed(180, view(BY_HAND)), []),
        (observed(240), ["> probes"]),
        (tick(359), []),
        (probed(359.5), ["8 ProbeObservedFirst ssh", "9 ProbeResult ssh pass"]),
        (tick(360), ["> observe"]),
        (observed(360), ["10 Converged"]),
    )


def test_a_system_that_was_chosen_by_hand_is_not_fought_over_however_sick_it_is() -> None:
    story = to_soaking().then(
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (observed(60, view(BY_HAND)), ["7 DriftObserved by-hand, not new", "> probes"]),
        (probed(61, "fail"), []),
        (tick(130), []),
        (probed(300, "fail"), []),
        (tick(400), []),
    )
    assert not story.known.quarantine


def test_what_is_seen_in_the_middle_of_a_switch_is_not_drift() -> None:
    waits = to_soaking().then(
        (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
        (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
        (SystemObserved(at=at(75), system=view(BY_HAND)), []),
        (SystemObserved(at=at(76), system=view(OLD)), []),
    )
    assert waits.known.system == view(NEW)
