"""Stories of one rollout on one host: how it goes well, and every way in which activating can go wrong."""

import attrs

from state_machine.events import TargetPolicy
from state_machine.system import SwitchOutcome
from state_machine.values import FailurePolicy, Phase, SwitchMethod
from tests.unit.step_story import (
    BY_HAND,
    NEW,
    NEWER,
    OLD,
    R1,
    R2,
    SETTINGS,
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
    to_soaking,
    to_switching,
    view,
    wished_back,
)

HALT = TargetPolicy(on_failure=FailurePolicy.HALT, soak_ms=120_000)


def test_a_clean_rollout() -> None:
    end = tell(
        (booted(0), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (shown(2), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(7), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(15), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
        (probed(16), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (probed(46), []),
        (tick(134.999), []),
        (tick(135), ["> observe"]),
        (observed(135.1), ["7 Converged"]),
        (probed(165), []),
    )
    assert end.known.rollouts[R1].record.phase is Phase.CONVERGED
    assert end.known.operation is None


def test_the_manifest_may_be_there_before_the_dispatch() -> None:
    tell(
        (booted(0), ["> probes"]),
        (shown(1), []),
        (dispatched(2), ["1 DispatchAck from old", "> realise 1 new"]),
    )


def test_nothing_is_proved_by_silence() -> None:
    """An enforce probe that has said nothing since the activation keeps the rollout soaking (S4)."""
    to_soaking().then(
        (tick(130), []),
        (observed(131), []),
        (probed(132, began=9), []),  # a run that began before the switch ended says nothing about the new system
        (observed(133), []),
        (probed(140, began=139), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass", "> observe"]),
        (observed(141), ["7 Converged"]),
    )


def test_a_host_without_probes_still_soaks_and_is_looked_at() -> None:
    to_soaking(probes=()).then((tick(129), []), (tick(130), ["> observe"]), (observed(130.1), ["5 Converged"]))


def test_already_on_the_target_nothing_is_switched_but_it_soaks() -> None:
    tell(
        (booted(0, view(NEW)), ["> probes"]),
        (shown(1), []),
        (
            dispatched(2, running=NEW),
            ["1 DispatchAck from new", "2 ActivationCompleted", "3 ProbeTopologyDeclared ssh", "> probes"],
        ),
        (probed(3), ["4 ProbeObservedFirst ssh", "5 ProbeResult ssh pass"]),
        (tick(122), ["> observe"]),
        (observed(122), ["6 Converged"]),
    )


def test_a_target_that_only_runs_until_the_next_boot_is_switched_to() -> None:
    tell(
        (booted(0, view(NEW, profile=OLD)), ["> probes"]),
        (shown(1), []),
        (dispatched(2, running=NEW), ["1 DispatchAck from new", "> realise 1 new"]),
    )


def test_a_target_that_a_failed_switch_left_running_is_switched_to_again() -> None:
    """Its links are in place; whether its units run nobody knows."""
    to_switching(policy=HALT).then(
        (
            switched(70, 2, view(NEW), SwitchOutcome.TIMEOUT, code=None),
            ["3 ActivationFailed (-1) switch-timeout:", "! switch-timeout"],
        ),
        (shown(80, R2, NEW, signed=80, policy=HALT), []),
        (dispatched(81, R2, NEW, running=NEW), ["1 DispatchAck from new", "> realise 3 new"]),
        (realised(82, 3), ["2 ActivationStarted", "> switch 4 new"]),
    )


def test_an_exit_code_of_4_is_a_failure_although_the_target_runs() -> None:
    end = to_switching().then(
        (
            switched(10, 2, view(NEW), SwitchOutcome.FAILED, code=4, detail="nginx.service failed"),
            ["3 ActivationFailed (4) switch-failed: nginx.service failed", "! switch-failed", "> roll back 3 old"],
        ),
        (switched(20, 3, view(OLD)), ["4 RollbackComplete to old", "> probes"]),
    )
    assert "nginx" in end.known.quarantine[NEW].why


def test_exit_0_with_another_system_running_is_a_mismatch() -> None:
    for outcome in (SwitchOutcome.SWITCHED, SwitchOutcome.VERIFY_MISMATCH):
        to_switching().then(
            (
                switched(10, 2, view(BY_HAND), outcome),
                ["3 ActivationFailed (-3) verify-mismatch:", "! verify-mismatch", "> roll back 3 old"],
            ),
        )


def test_a_switch_killed_at_its_deadline_is_rolled_back() -> None:
    to_switching().then(
        (
            switched(310, 2, view(OLD, profile=NEW), SwitchOutcome.TIMEOUT, code=None),
            ["3 ActivationFailed (-1) switch-timeout:", "! switch-timeout", "> roll back 3 old"],
        ),
        (switched(320, 3, view(OLD)), ["4 RollbackComplete to old", "> probes"]),
    )


def test_a_switch_that_is_never_answered_counts_as_lost() -> None:
    """300 s for the switch and 600 s for whoever should have said that it was over."""
    to_switching().then(
        (tick(904), []),
        (
            tick(905),
            [
                "3 ActivationFailed (-1) switch-timeout: the switch was never answered",
                "! switch-timeout",
                "> roll back 3 old",
            ],
        ),
        (switched(906, 2), ["? no switch 2 is under way"]),
        (tick(1804), []),
        (tick(1805), ["4 RollbackFailed the rollback was never answered", "! rollback-failed"]),
    )


def test_under_halt_a_failed_switch_stays_as_it_is() -> None:
    end = to_switching(policy=HALT).then(
        (
            switched(10, 2, view(NEW), SwitchOutcome.FAILED, code=4),
            ["3 ActivationFailed (4) switch-failed:", "! switch-failed"],
        ),
        (tick(5000), []),
    )
    assert end.known.operation is None
    assert not end.known.quarantine


def test_a_held_lock_is_waited_for_and_then_given_up() -> None:
    """Nothing was touched, so nothing is taken back, and the closure is not blamed."""
    held = SwitchOutcome.LOCK_HELD
    end = to_switching().then(
        (switched(100, 2, view(OLD), held, code=None), ["! busy"]),
        (tick(103), []),
        (tick(104), ["> realise 4 new"]),
        (realised(105, 4), ["3 ActivationStarted", "> switch 5 new"]),
        (switched(200, 5, view(OLD), held, code=None), ["! busy"]),
        (tick(204), ["> realise 7 new"]),
        (realised(205, 7), ["4 ActivationStarted", "> switch 8 new"]),
        (switched(300, 8, view(OLD), held, code=None), ["5 ActivationFailed (-1) busy:"]),
    )
    assert not end.known.quarantine


def test_what_cannot_be_fetched_is_tried_again_with_growing_pauses() -> None:
    to_activating().then(
        (realised(5, ok=False, detail="no route"), ["! realise-failed"]),
        (tick(8), []),
        (tick(8.75), ["> realise 2 new"]),
        (realised(9, 2, ok=False), ["! realise-failed"]),
        (tick(16), []),
        (tick(16.5), ["> realise 3 new"]),
        (realised(20, 3), ["2 ActivationStarted", "> switch 4 new"]),
    )


def test_a_path_that_nobody_trusted_signed_is_not_tried_again() -> None:
    end = to_activating().then(
        (
            realised(5, ok=False, untrusted=True, detail="unknown key"),
            ["2 ActivationFailed (-2) realise-failed: signature: unknown key", "! realise-failed"],
        ),
        (tick(4000), []),
    )
    assert end.known.system == view(OLD)


def test_a_realisation_that_is_never_answered_is_ordered_again_by_the_same_number() -> None:
    to_activating().then(
        (tick(4200), []),
        (tick(4201), ["> realise 1 new"]),
        (realised(4202), ["2 TargetRefused stale", "! stale"]),
    )


# --- a reboot is needed ---------------------------------------------------------------------------------------------


def test_a_deferred_target_completes_when_the_reboot_brings_it_up() -> None:
    to_switching().then(
        (switched(10, 2, view(OLD, profile=NEW), SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel"]),
        (observed(70, view(OLD, profile=NEW)), []),
        (
            booted(5, view(NEW, boot=2)),
            ["4 ActivationCompleted", "5 ProbeTopologyDeclared ssh", "> probes", "> probes"],
        ),
    )


def test_a_deferred_target_that_did_not_come_up_fails_and_the_old_one_is_made_permanent() -> None:
    to_switching().then(
        (switched(10, 2, view(OLD, profile=NEW), SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel"]),
        (
            booted(5, view(OLD, profile=NEW, boot=2)),
            [
                f"4 ActivationFailed (-3) verify-mismatch: after the reboot {OLD} runs",
                "> roll back 3 old",
                "> probes",
            ],
        ),
        (switched(9, 3, view(OLD, boot=2)), ["5 RollbackComplete to old", "> probes"]),
    )


def test_a_third_system_after_the_reboot_is_not_fought_over() -> None:
    to_switching().then(
        (switched(10, 2, view(OLD, profile=NEW), SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel"]),
        (
            booted(5, view(BY_HAND, boot=2)),
            [f"4 ActivationFailed (-3) verify-mismatch: after the reboot {BY_HAND} runs", "> probes"],
        ),
    )


def test_an_agent_that_restarts_without_a_reboot_goes_on_waiting_for_one() -> None:
    waiting = to_switching().then(
        (switched(10, 2, view(OLD, profile=NEW), SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel"]),
    )
    waiting.killed().then((booted(20, view(OLD, profile=NEW)), ["> probes"]))


# --- a newer one comes ----------------------------------------------------------------------------------------------


def test_a_newer_rollout_takes_the_place_of_one_that_is_still_being_fetched() -> None:
    to_activating().then(
        (shown(3, R2, NEWER, signed=2), []),
        (
            dispatched(4, R2, NEWER),
            [
                "2 ActivationFailed (-1) superseded by edge@2 before the switch",
                "1 DispatchAck from old",
                "> abandon 1",
                "> realise 2 newer",
            ],
        ),
        (realised(5, 1), ["? no realisation 1 is under way"]),
        (realised(6, 2), ["2 ActivationStarted", "> switch 3 newer"]),
    )


def test_a_dispatch_during_the_switch_is_held_and_then_taken() -> None:
    to_switching().then(
        (shown(6, R2, NEWER, signed=5), []),
        (dispatched(7, R2, NEWER), []),
        (
            switched(10),
            [
                "3 ActivationCompleted",
                "4 ProbeTopologyDeclared ssh",
                "1 DispatchAck from new",
                "> probes",
                "> realise 3 newer",
            ],
        ),
    )


def test_a_dispatch_held_during_a_switch_that_is_lost_is_taken_all_the_same() -> None:
    to_switching(policy=HALT).then(
        (shown(6, R2, NEWER, signed=5), []),
        (dispatched(7, R2, NEWER), []),
        (
            tick(905),
            [
                "3 ActivationFailed (-1) switch-timeout: the switch was never answered",
                "1 DispatchAck from old",
                "! switch-timeout",
                "> realise 3 newer",
            ],
        ),
    )


def test_a_dispatch_that_comes_twice_is_taken_once() -> None:
    to_activating().then(
        (dispatched(2), ["? edge@1 is Activating here already"]),
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (dispatched(6), ["? edge@1 is Activating here already"]),
    )


# --- dry run --------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_would_do_and_takes_nothing_back() -> None:
    dry = attrs.evolve(SETTINGS, switch_method=SwitchMethod.DRY_RUN)
    end = tell(
        (booted(0, settings=dry), ["> probes"]),
        (shown(1), []),
        (dispatched(2), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (
            switched(6, 2, view(OLD), SwitchOutcome.SWITCHED, detail="12 units"),
            ["3 ActivationFailed (0) dry run: would switch. 12 units"],
        ),
        (wished_back(7), ["! rollback-failed"]),
    )
    assert not end.known.quarantine


def test_while_the_agent_is_held_nothing_new_begins() -> None:
    held = attrs.evolve(SETTINGS, holds="the disk is full")
    tell(
        (booted(0, settings=held), ["> probes"]),
        (shown(1), []),
        (dispatched(2), ["! busy"]),
        (probed(3), []),
    )
    activating = to_activating()
    activating.killed().then(
        (booted(5, settings=held), ["> realise 1 new", "> probes"]),
        (realised(6), ["! busy"]),
    )
