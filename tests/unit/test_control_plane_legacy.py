"""What the reports of a first-generation agent amount to, story by story."""

import attrs
import pytest

from control_plane import legacy
from control_plane.legacy import SWITCH_MS, Rules, standing_target, subject, way_back
from control_plane.legacy_checks import REPORTED
from state_machine.facts import Converged, DriftObserved, Failed, ProbeResult
from state_machine.values import Closure, FailurePolicy, Phase, ProbeMode, ProbeStatus, RolloutId, WallMs
from tests.unit.control_plane_legacy_world import NEW, OLD, OTHER, SOAK_MS, Host, mirror, report
from tests.unit.control_plane_worlds import AT
from wire.legacy import Report

APPLYING = report("applying", OLD)
DEPLOYED = report("deployed", NEW, health={"web": True})
SOUND = report("health-check", NEW, health={"web": True})
SICK = report("health-check", NEW, success=True, health={"web": False})
BACK = report("rolled back: web is down", OLD)
IDLE = report("up-to-date", OLD, health={"web": True})

PROBED = ["ProbeTopologyDeclared", "ProbeObservedFirst", "ProbeResult"]


def host(*said: Report, soak_ms: int = SOAK_MS) -> Host:
    it = Host(mirror=mirror(soak_ms))
    it.tells(*said)
    return it


# The way to the target


def test_applying_is_the_acknowledgement_and_the_start_of_the_switch() -> None:
    it = host()
    assert it.hears(APPLYING) == ["DispatchAck", "ActivationStarted"]
    assert (it.acknowledged_from, it.record.phase) == (OLD, Phase.ACTIVATING)


def test_deployed_completes_the_activation_and_declares_the_checks_as_enforced_probes() -> None:
    it = host(APPLYING)
    assert it.hears(DEPLOYED) == ["ActivationCompleted", *PROBED]
    assert it.record.phase is Phase.SOAKING
    assert {name: (probe.mode, probe.status) for name, probe in it.record.probes.items()} == {
        "web": (ProbeMode.ENFORCE, ProbeStatus.PASS)
    }


def test_without_a_soak_deployed_converges_at_once() -> None:
    assert host(APPLYING, soak_ms=0).hears(DEPLOYED)[-1] == "Converged"


def test_the_soak_ends_by_the_clock_of_this_control_plane() -> None:
    it = host(APPLYING, DEPLOYED)
    assert it.hears(SOUND, after_ms=SOAK_MS - 1) == []
    assert it.hears(SOUND, after_ms=1) == ["Converged"]
    converged = it.last(Converged)
    assert isinstance(converged, Converged)
    assert converged.converged_at == it.at


def test_a_soak_is_not_held_up_by_the_clock_of_a_host_that_moved_here_from_the_newer_protocol() -> None:
    it = host(APPLYING, DEPLOYED)
    ahead = attrs.evolve(it.record, activation_completed_at=WallMs(it.at + 10**9))
    it.mirror = attrs.evolve(it.mirror, record=ahead)
    assert it.hears(SOUND, after_ms=SOAK_MS) == ["Converged"]


def test_a_lost_applying_is_made_up_for_with_what_ran_by_the_report_before() -> None:
    it = host()
    assert it.hears(DEPLOYED) == ["DispatchAck", "ActivationCompleted", *PROBED]
    assert it.acknowledged_from == OLD


def test_a_host_that_runs_the_target_already_only_says_so() -> None:
    it = Host(ran=NEW, mirror=mirror(0))
    assert it.hears(report("up-to-date", NEW))[-1] == "Converged"
    assert way_back(it.record) is None


@pytest.mark.parametrize("said", [IDLE, report("health-check", OLD), report("dry-run: would apply", OLD)])
def test_a_host_that_has_not_begun_amounts_to_nothing(said: Report) -> None:
    assert host().hears(said) == []


@pytest.mark.parametrize("said", [APPLYING, IDLE, report("dry-run: would apply", NEW)])
def test_a_host_that_is_on_its_way_amounts_to_nothing_until_it_is_there(said: Report) -> None:
    assert host(APPLYING).hears(said) == []


def test_a_generation_that_is_no_store_path_is_no_running_system() -> None:
    strange = attrs.evolve(DEPLOYED, current_generation="/nix/store/../etc")
    assert host(APPLYING).hears(strange) == []
    assert host(APPLYING, DEPLOYED).hears(strange) == []


def test_everything_said_twice_counts_once() -> None:
    it = host()
    assert it.tells(APPLYING, APPLYING)[2:] == []
    assert it.hears(DEPLOYED) != []
    assert it.tells(DEPLOYED, APPLYING, DEPLOYED) == []
    it.hears(SOUND, after_ms=SOAK_MS)
    assert it.tells(APPLYING, DEPLOYED, SOUND) == []


@pytest.mark.parametrize("before", [(), (APPLYING,)])
def test_a_target_that_waits_for_a_reboot_is_completed_by_it(before: tuple[Report, ...]) -> None:
    it = host(*before, soak_ms=0)
    waits = report("waits for a reboot: kernel", OLD)
    assert it.tells(waits, waits)[-1] == "ActivationDeferred"
    assert (it.record.phase, it.record.deferred_component) == (Phase.DEFERRED, "kernel")
    assert standing_target(it.record) == NEW
    assert it.tells(IDLE, report("failed: no cache has it", OLD)) == []
    assert it.hears(SOUND)[-1] == "Converged"


def test_a_reboot_into_the_old_system_fails_the_rollout() -> None:
    it = host(APPLYING, report("waits for a reboot: kernel", OLD))
    assert it.hears(BACK) == ["ActivationFailed", "RollbackComplete"]


# Checks


def test_a_check_is_told_when_it_changes_and_only_then() -> None:
    it = host(APPLYING, DEPLOYED)
    assert it.hears(SICK) == ["ProbeResult", "ProbeFailureFirst"]
    assert it.hears(SICK) == []
    assert it.hears(SOUND) == ["ProbeResult"]
    result = it.last(ProbeResult)
    assert isinstance(result, ProbeResult)
    assert result.status is ProbeStatus.PASS


def test_a_failing_check_keeps_the_host_from_converging_after_its_soak() -> None:
    it = host(APPLYING, DEPLOYED)
    it.rules = Rules(sustained_ms=10 * SOAK_MS)
    it.hears(SICK)
    assert it.hears(SICK, after_ms=2 * SOAK_MS) == []
    assert it.hears(SOUND) == ["ProbeResult", "Converged"]


def test_a_check_that_fails_for_as_long_as_the_policy_allows_fails_the_rollout() -> None:
    it = host(APPLYING, DEPLOYED)
    it.rules = Rules(policy=FailurePolicy.HALT, sustained_ms=5000)
    it.hears(SICK)
    assert it.hears(SICK, after_ms=4999) == []
    assert it.hears(SICK, after_ms=1) == ["Failed"]
    failed = it.last(Failed)
    assert isinstance(failed, Failed)
    assert (failed.failing_probes, failed.sustained_duration_secs, failed.policy_applied) == (
        ("web",),
        5,
        FailurePolicy.HALT,
    )


def test_other_checks_than_before_are_declared_anew() -> None:
    it = host(APPLYING, DEPLOYED)
    assert it.hears(report("health-check", NEW, health={"web": True, "db": True}))[0] == "ProbeTopologyDeclared"
    assert set(it.record.probes) == {"web", "db"}


def test_reports_without_checks_are_judged_by_what_they_say() -> None:
    it = host(APPLYING, report("deployed", NEW))
    assert set(it.record.probes) == {REPORTED}
    assert it.hears(report("up-to-date", NEW), after_ms=SOAK_MS) == ["Converged"]


def test_a_sign_of_life_without_checks_proves_nothing() -> None:
    it = host(APPLYING, report("health-check", NEW), soak_ms=0)
    assert (it.record.phase, it.record.probes) == (Phase.SOAKING, {})
    assert it.hears(report("health-check", NEW)) == []
    assert it.hears(SOUND)[-1] == "Converged"


def test_a_good_word_without_checks_does_not_make_up_for_a_failing_check() -> None:
    it = host(APPLYING, DEPLOYED, SICK)
    assert it.hears(report("up-to-date", NEW), after_ms=10 * SOAK_MS) == []
    it = host(APPLYING, DEPLOYED)
    assert it.hears(report("up-to-date", NEW), after_ms=SOAK_MS) == ["Converged"]


def test_a_check_that_the_agent_itself_does_not_count_is_no_probe() -> None:
    observed = attrs.evolve(SICK, health=attrs.evolve(SICK.health, all_passed=True)) if SICK.health else SICK
    assert host(APPLYING, soak_ms=0).hears(observed)[-1] == "Converged"


def test_of_two_checks_with_one_name_the_worse_counts() -> None:
    assert DEPLOYED.health is not None
    assert SICK.health is not None
    both = attrs.evolve(SICK.health, results=(*SICK.health.results, *DEPLOYED.health.results))
    it = host(APPLYING, attrs.evolve(SICK, health=both))
    assert it.record.probes["web"].status is ProbeStatus.FAIL


# Failures


@pytest.mark.parametrize(
    ("before", "kinds"),
    [
        ((), ["DispatchAck", "ActivationFailed", "RollbackComplete"]),
        ((APPLYING,), ["ActivationFailed", "RollbackComplete"]),
        ((APPLYING, DEPLOYED), ["Failed", "RollbackComplete"]),
    ],
)
def test_rolled_back_ends_the_rollout_on_the_system_it_went_back_to(
    before: tuple[Report, ...], kinds: list[str]
) -> None:
    it = host(*before)
    assert it.hears(BACK) == kinds
    assert (it.record.phase, it.reverted_to) == (Phase.REVERTED, OLD)
    assert it.tells(BACK, IDLE, APPLYING, DEPLOYED) == []


def test_a_host_goes_back_to_whatever_it_says_it_went_back_to() -> None:
    it = host(APPLYING)
    it.hears(report("rolled back: no boot", OTHER))
    assert it.reverted_to == OTHER


def test_a_host_that_says_it_rolled_back_and_still_runs_the_target_has_failed_and_not_reverted() -> None:
    it = host(APPLYING)
    assert it.hears(report("rolled back: web is down", NEW)) == ["ActivationFailed"]
    assert it.hears(IDLE) == ["RollbackComplete"]


def test_a_failure_before_anything_was_switched_says_nothing_about_the_target() -> None:
    failure = report("failed: the cache does not answer", OLD)
    assert host().hears(failure) == []
    assert legacy.waits_for(failure) == "its next try: failed: the cache does not answer"


def test_a_failure_in_the_middle_of_a_switch_counts_once_no_switch_takes_that_long() -> None:
    failure = report("failed: the lock is held", OLD)
    it = host(APPLYING)
    assert it.hears(failure, after_ms=SWITCH_MS - 1) == []
    assert it.hears(failure, after_ms=1) == ["ActivationFailed", "RollbackComplete"]


def test_a_converged_host_that_runs_something_else_has_drifted_once() -> None:
    it = host(APPLYING, soak_ms=0)
    it.hears(DEPLOYED)
    assert it.hears(report("health-check", OTHER)) == ["DriftObserved"]
    assert it.hears(report("health-check", OTHER)) == []
    drift = it.last(DriftObserved)
    assert isinstance(drift, DriftObserved)
    assert (drift.expected_closure, drift.observed_closure) == (NEW, OTHER)


# Rollback wishes


@pytest.mark.parametrize("before", [(APPLYING,), (APPLYING, DEPLOYED)])
def test_a_host_that_runs_the_way_back_has_honoured_the_wish(before: tuple[Report, ...]) -> None:
    it = host(*before)
    it.wish = "too hot"
    assert it.hears(report("applying", OLD)) == []
    assert it.hears(report("deployed", OLD)) == ["RollbackRequested", "RollbackComplete"]
    assert it.record.failure == "rollback requested by the control plane: too hot"


def test_a_host_that_could_not_go_back_has_refused_the_wish_and_stays() -> None:
    it = host(APPLYING, DEPLOYED)
    it.wish = "too hot"
    assert it.hears(report("rolled back: web is down", NEW)) == ["DispatchReject"]
    assert (it.record.phase, it.record.refusal) == (Phase.SOAKING, "rollback-failed")


def test_a_wish_for_a_way_back_that_nobody_knows_is_refused() -> None:
    it = Host(ran=None, wish="too hot")
    it.wish = None
    it.tells(DEPLOYED)
    it.wish = "too hot"
    assert it.hears(SOUND) == ["DispatchReject"]


def test_nothing_converges_while_a_wish_is_open() -> None:
    it = host(APPLYING, DEPLOYED)
    it.wish = "too hot"
    assert it.hears(SOUND, after_ms=2 * SOAK_MS) == []


# What a host is to run


def test_a_host_is_to_run_its_target_until_that_has_failed() -> None:
    it = host()
    assert standing_target(it.record) == NEW
    for said in (APPLYING, DEPLOYED):
        it.hears(said)
        assert standing_target(it.record) == NEW
    it.hears(BACK)
    assert standing_target(it.record) is None


def failed(policy: FailurePolicy) -> Host:
    it = host(APPLYING, DEPLOYED)
    it.rules = Rules(policy=policy, sustained_ms=1000)
    it.tells(SICK, SICK)
    assert it.record.phase is Phase.FAILED
    return it


def test_a_policy_that_halts_leaves_a_sick_host_where_it_is() -> None:
    assert standing_target(failed(FailurePolicy.HALT).record) is None


def test_a_policy_that_rolls_back_sends_a_sick_host_back() -> None:
    it = failed(FailurePolicy.ROLLBACK_AND_HALT)
    assert standing_target(it.record) == OLD
    assert it.hears(report("applying", NEW)) == []
    assert it.hears(report("deployed", OLD)) == ["RollbackComplete"]


def test_a_sick_host_that_cannot_go_back_is_sent_there_once() -> None:
    it = failed(FailurePolicy.ROLLBACK_AND_HALT)
    assert it.hears(report("rolled back: no boot", NEW)) == ["RollbackFailed"]
    assert standing_target(it.record) is None
    assert it.hears(report("rolled back: no boot", NEW)) == []


def test_a_mirror_without_a_known_target_is_left_alone() -> None:
    it = Host(mirror=mirror(target=Closure("")))
    assert it.tells(APPLYING, DEPLOYED, BACK) == []
    assert standing_target(it.record) is None


# Which rollout a report is about


def test_a_report_is_about_the_dispatch_in_hand_once_the_host_has_begun_with_it() -> None:
    taken = host(APPLYING, DEPLOYED, soak_ms=0).mirror
    later = mirror(target=OTHER)
    newer = attrs.evolve(
        later, record=attrs.evolve(later.record, rollout_id=RolloutId("stable@2")), dispatched_at=WallMs(AT + 1)
    )
    assert subject(None, newer, IDLE) is newer
    assert subject(taken, None, SOUND) is taken
    assert subject(taken, newer, SOUND) is taken
    assert subject(taken, newer, report("applying", NEW)) is newer
    assert subject(taken, newer, report("deployed", OTHER)) is newer
    assert subject(taken, newer, report("rolled back: x", NEW)) is newer
    earlier = attrs.evolve(newer, dispatched_at=WallMs(AT - 1))
    assert subject(taken, earlier, report("deployed", OTHER)) is taken


# What is shown of it


def test_a_report_is_shown_by_its_checks_and_by_what_it_waits_for() -> None:
    assert legacy.counted(report("health-check", NEW, health={"a": True, "b": True, "c": False})) == {
        "fail": 1,
        "pass": 2,
    }
    assert legacy.counted(APPLYING) == {}
    assert legacy.waits_for(DEPLOYED) is None
    assert legacy.waits_for(BACK) is None
    assert "--dry-run" in (legacy.waits_for(report("dry-run: would apply", OLD)) or "")
