"""Stories of hosts whose source does not sign: what it offers, how it changes its mind, and what is left of that."""

import attrs

from state_machine.events import Duty, DutyFinished, TargetPolicy
from state_machine.schedule import next_wakeup
from state_machine.state import fact_backlog
from state_machine.step import step
from state_machine.system import SwitchOutcome
from state_machine.values import Basis, FailurePolicy, Phase, RolloutId, SwitchMethod
from tests.unit.step_story import (
    BY_HAND,
    NEW,
    NEWER,
    OLD,
    R1,
    Row,
    Told,
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
    to_switching,
    view,
    wished_back,
)
from tests.unit.step_story_sources import (
    DAY,
    G1,
    GRADIENT,
    HOOKED,
    HOUR,
    L1,
    L2,
    LEGACY,
    cleared,
    hooks_said,
    no_answer,
    offered,
    starts,
    to_offered,
    to_soaking,
)

HALTS = attrs.evolve(LEGACY, offer_policy=TargetPolicy(on_failure=FailurePolicy.HALT, soak_ms=120_000))
FAILS: list[Row] = [
    (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"])
]
TAKEN_BACK: list[Row] = [
    *FAILS,
    (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
    (switched(80, 3, view(OLD)), ["9 RollbackComplete to old", "> probes"]),
]
PAUSED = "it rests on signed-manifest, and this host follows gradient now"


# --- it goes well ---------------------------------------------------------------------------------------------------


def test_an_offered_target_becomes_a_rollout_like_any_other() -> None:
    end = to_offered().then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(10), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (tick(130), ["> observe"]),
        (observed(130), ["7 Converged"]),
    )
    tracked = end.known.rollouts[L1]
    assert tracked.record.phase is Phase.CONVERGED
    assert tracked.intent is not None
    assert (tracked.intent.basis, tracked.intent.offered_as) == (Basis.MUTUAL_TLS, "build-1")


def test_what_is_said_every_minute_is_written_down_four_times_a_day() -> None:
    story = to_soaking().then(*[(offered(600 * times), []) for times in range(1, 6 * 24)])
    assert sum(passage.step.durable for passage in story.run[-143:]) == 3


def test_what_runs_already_is_judged_and_not_switched_to() -> None:
    tell(
        (starts(0), ["> probes"]),
        (
            offered(1, OLD),
            ["1 DispatchAck from old", "2 ActivationCompleted", "3 ProbeTopologyDeclared ssh", "> probes"],
        ),
    )


def test_what_only_this_boot_runs_is_switched_to_for_the_next_one() -> None:
    tell(
        (starts(0, system=view(OLD, profile=NEW)), ["> probes"]),
        (offered(1, OLD), ["1 DispatchAck from old", "> realise 1 old"]),
    )


def test_a_source_that_wants_nothing_of_a_host_gets_nothing() -> None:
    end = tell((starts(0), ["> probes"]), (offered(1, None), []), (offered(61, None), []))
    assert end.known.active is None


def test_a_source_without_an_answer_takes_nothing_back() -> None:
    to_offered().then(
        (no_answer(2), ["! not-built"]),
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
    )


def test_what_is_no_store_path_is_refused_and_changes_nothing() -> None:
    to_offered().then(
        (offered(2, "../../etc"), ["! parse"]),
        (offered(3, ""), ["! parse"]),
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
    )


# --- the source changes its mind ------------------------------------------------------------------------------------


def test_another_target_while_the_first_is_fetched_takes_its_place() -> None:
    end = to_offered().then(
        (
            offered(3, NEWER),
            [
                "2 ActivationFailed (-1) superseded by legacy@00000002 before the switch",
                "1 DispatchAck from old",
                "> abandon 1",
                "> realise 2 newer",
            ],
        ),
        (realised(4, 1), ["? no realisation 1 is under way"]),
        (realised(5, 2), ["2 ActivationStarted", "> switch 3 newer"]),
    )
    assert end.known.rollouts[L2].prior == OLD


def test_another_target_during_the_switch_waits_for_its_end() -> None:
    end = to_offered().then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (offered(6, NEWER), []),
        (offered(7, NEWER), []),
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
    assert end.known.rollouts[L2].prior == OLD, "what never proved itself is not gone back to"


def test_a_mind_changed_and_changed_back_during_the_switch_leaves_nothing_behind() -> None:
    end = to_offered().then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (offered(6, NEWER), []),
        (offered(7, NEW), []),
        (switched(10), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
    )
    assert end.known.waiting is None


def test_a_third_target_during_the_switch_replaces_the_second() -> None:
    to_offered().then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (offered(6, NEWER), []),
        (offered(7, BY_HAND), []),
        (
            switched(10),
            [
                "3 ActivationCompleted",
                "4 ProbeTopologyDeclared ssh",
                "1 DispatchAck from new",
                "> probes",
                "> realise 3 by-hand",
            ],
        ),
    )


def test_another_target_while_the_hooks_are_asked_takes_its_place() -> None:
    to_offered(HOOKED).then(
        (realised(5), ["> hooks 2 before-switch new"]),
        (
            offered(6, NEWER),
            [
                "2 ActivationFailed (-1) superseded by legacy@00000002 before the switch",
                "1 DispatchAck from old",
                "> abandon 2",
                "> realise 3 newer",
            ],
        ),
        (hooks_said(7, 2), ["? no hooks 2 are running"]),
    )


def test_an_offer_taken_back_while_it_is_fetched_ends_there_and_may_come_again() -> None:
    to_offered().then(
        (offered(3, None), ["2 ActivationFailed (-1) no longer offered", "> abandon 1"]),
        (offered(4, None), []),
        (realised(5), ["? no realisation 1 is under way"]),
        (offered(6), ["1 DispatchAck from old", "> realise 2 new"]),
    )


def test_an_offer_taken_back_while_the_hooks_are_asked_ends_there() -> None:
    to_offered(HOOKED).then(
        (realised(5), ["> hooks 2 before-switch new"]),
        (offered(6, None), ["2 ActivationFailed (-1) no longer offered", "> abandon 2"]),
        (hooks_said(7, 2), ["? no hooks 2 are running"]),
    )


def test_an_offer_taken_back_during_the_switch_is_switched_to_and_judged() -> None:
    to_offered().then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (offered(6, None), []),
        (switched(10), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (offered(60, None), []),
        (tick(130), ["> observe"]),
        (observed(130), ["7 Converged"]),
    )


def test_an_offer_taken_back_during_a_switch_that_never_began_is_not_begun_again() -> None:
    to_offered().then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (offered(6, None), []),
        (switched(10, 2, view(OLD), SwitchOutcome.LOCK_HELD, detail="held"), ["! busy"]),
        (tick(14), ["> realise 4 new"]),
        (realised(15, 4), []),
        (offered(66, None), ["3 ActivationFailed (-1) no longer offered", "> abandon 4"]),
    )


def test_an_offer_taken_back_after_its_switch_was_cut_off_is_finished_only_once_it_is_said_again() -> None:
    half = to_offered().then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(10, 2, view(OLD, profile=NEW), SwitchOutcome.INTERRUPTED, detail="killed"), ["> realise 3 new"]),
        (offered(11, None), []),
        (realised(12, 3), []),
    )
    half.then(
        (offered(20), []),
        (tick(21), ["> realise 4 new"]),
        (realised(22, 4), ["3 ActivationStarted", "> switch 5 new"]),
    )
    half.then(
        (
            offered(20, NEWER),
            [
                "3 ActivationFailed (-1) superseded by legacy@00000002 before the switch",
                "1 DispatchAck from old",
                "> abandon 3",
                "> realise 4 newer",
            ],
        ),
    )


def test_something_quarantined_is_offered_instead_and_what_was_fetched_is_no_longer_wanted() -> None:
    to_soaking().then(
        *TAKEN_BACK,
        (offered(90, NEWER), ["1 DispatchAck from old", "> realise 4 newer"]),
        (offered(95, NEW), ["2 ActivationFailed (-1) no longer offered", "> abandon 4", "! quarantined"]),
    )


# --- it goes badly --------------------------------------------------------------------------------------------------


def test_a_sick_target_is_taken_back_and_left_alone_however_often_it_is_offered() -> None:
    again = [(offered(60 * times), ["! quarantined"]) for times in range(2, 120)]
    story = to_soaking().then(*TAKEN_BACK, *again)
    assert story.known.operation is None
    assert sum(passage.step.durable for passage in story.run[-118:]) == 2


def test_a_target_whose_quarantine_an_operator_lifts_is_tried_again() -> None:
    end = to_soaking().then(
        *TAKEN_BACK,
        (offered(90), ["! quarantined"]),
        (cleared(100), []),
        (offered(150), ["1 DispatchAck from old", "> realise 4 new"]),
        (realised(155, 4), ["2 ActivationStarted", "> switch 5 new"]),
    )
    assert end.known.rollouts[L2].prior == OLD


def test_a_quarantine_lifted_during_the_rollback_counts_when_it_is_over() -> None:
    to_soaking().then(
        *TAKEN_BACK[:2],
        (cleared(75), []),
        (offered(76), []),
        (
            switched(80, 3, view(OLD)),
            ["9 RollbackComplete to old", "1 DispatchAck from old", "> probes", "> realise 4 new"],
        ),
    )


def test_a_quarantine_lifted_after_a_rollback_that_was_given_up_has_the_target_tried_again() -> None:
    once = attrs.evolve(LEGACY, rollback_attempts=1)
    end = to_soaking(once).then(
        *TAKEN_BACK[:2],
        (
            switched(80, 3, view(NEW), SwitchOutcome.FAILED, code=4, detail="no"),
            ["9 RollbackFailed failed: no", "! rollback-failed"],
        ),
        (offered(90), ["! quarantined"]),
        (cleared(100), []),
        (offered(150), ["1 DispatchAck from new", "2 ActivationCompleted", "3 ProbeTopologyDeclared ssh", "> probes"]),
    )
    assert end.known.rollouts[L2].prior == OLD


def test_a_failed_target_whose_policy_takes_nothing_back_stays_until_something_else_is_offered() -> None:
    to_soaking(HALTS).then(
        *FAILS,
        (tick(71), ["8 Failed ssh for 60 s: halt"]),
        (offered(80), []),
        (offered(80 + 2 * HOUR), []),
        (offered(81 + 2 * HOUR, None), []),
        (offered(82 + 2 * HOUR), []),
        (offered(90 + 2 * HOUR, NEWER), ["1 DispatchAck from new", "> realise 3 newer"]),
    )


def test_what_nix_would_not_trust_is_tried_again_in_a_quarter_of_an_hour() -> None:
    untrusted = to_offered().then(
        (
            realised(5, ok=False, untrusted=True, detail="no key"),
            ["2 ActivationFailed (-2) realise-failed: signature: no key", "! realise-failed"],
        ),
        (offered(60), []),
        (offered(904), []),
    )
    untrusted.then((offered(905), ["1 DispatchAck from old", "> realise 2 new"]))
    untrusted.then((offered(904.5, clock_off_s=-DAY), ["1 DispatchAck from old", "> realise 2 new"]))


def test_a_dry_run_of_an_offer_happens_once() -> None:
    dry = attrs.evolve(LEGACY, switch_method=SwitchMethod.DRY_RUN)
    to_offered(dry).then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(6, 2, view(OLD), detail="12 units"), ["3 ActivationFailed (0) dry run: would switch. 12 units"]),
        (offered(60), []),
        (offered(2 * HOUR), []),
    )


def test_what_was_only_tried_dry_is_switched_to_once_that_is_meant() -> None:
    dry = attrs.evolve(LEGACY, switch_method=SwitchMethod.DRY_RUN)
    to_offered(dry).then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(6, 2, view(OLD), detail="12 units"), ["3 ActivationFailed (0) dry run: would switch. 12 units"]),
    ).killed().then(
        (starts(20), ["> probes"]),
        (offered(21), ["1 DispatchAck from old", "> realise 3 new"]),
    )


def test_another_target_while_a_rollback_runs_is_taken_when_it_has_ended() -> None:
    to_soaking().then(
        *TAKEN_BACK[:2],
        (offered(75, NEWER), []),
        (
            switched(80, 3, view(OLD)),
            ["9 RollbackComplete to old", "1 DispatchAck from old", "> probes", "> realise 4 newer"],
        ),
    )


def test_another_target_ends_a_rollback_that_waits_for_its_next_try() -> None:
    end = to_soaking().then(
        *TAKEN_BACK[:2],
        (
            switched(80, 3, view(NEW), SwitchOutcome.FAILED, code=4, detail="no"),
            ["9 RollbackFailed failed: no", "! rollback-failed"],
        ),
        (offered(85, NEWER), ["1 DispatchAck from new", "> realise 4 newer"]),
    )
    assert end.known.rollouts[L2].prior == OLD


def test_a_host_that_may_begin_nothing_takes_up_no_offer() -> None:
    held = attrs.evolve(LEGACY, holds="the disk is full")
    end = tell((starts(0, held), ["> probes"]), (offered(1), ["! busy"]))
    assert end.known.waiting is None


# --- restarts -------------------------------------------------------------------------------------------------------


def test_after_a_restart_an_offer_is_said_again_before_it_is_begun() -> None:
    to_offered().killed().then(
        (starts(3), ["> realise 1 new", "> probes"]),
        (realised(4), []),
        (offered(6), []),
        (tick(8), ["> realise 2 new"]),
        (realised(9, 2), ["2 ActivationStarted", "> switch 3 new"]),
    )


def test_after_a_restart_the_source_may_want_something_else() -> None:
    to_offered().killed().then(
        (starts(3), ["> realise 1 new", "> probes"]),
        (
            offered(4, NEWER),
            [
                "2 ActivationFailed (-1) superseded by legacy@00000002 before the switch",
                "1 DispatchAck from old",
                "> abandon 1",
                "> realise 2 newer",
            ],
        ),
    )


def test_a_restart_with_two_targets_in_mind_keeps_the_one_that_is_under_way() -> None:
    end = to_offered().then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (offered(6, NEWER), []),
    )
    end.killed().then(
        (starts(7), ["> switch 2 new", "> probes"]),
        (switched(10), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
        (offered(11, NEWER), ["1 DispatchAck from new", "> realise 3 newer"]),
    )


def test_a_restart_while_it_soaks_needs_no_word_of_the_source() -> None:
    to_soaking().killed().then(
        (starts(20, system=view(NEW)), ["> probes"]),
        (probed(21), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (tick(130), ["> observe"]),
        (observed(130), ["7 Converged"]),
    )


def test_a_power_cut_during_the_switch_begins_it_again_once_the_source_still_wants_it() -> None:
    cut = to_offered().then((realised(5), ["2 ActivationStarted", "> switch 2 new"])).killed()
    cut.then(
        (starts(30, system=view(OLD, boot=2)), ["> realise 3 new", "> probes"]),
        (offered(31), []),
        (realised(32, 3), ["3 ActivationStarted", "> switch 4 new"]),
    )
    cut.then(
        (starts(30, system=view(OLD, boot=2)), ["> realise 3 new", "> probes"]),
        (offered(31, None), ["3 ActivationFailed (-1) no longer offered", "> abandon 3"]),
    )


# --- time -----------------------------------------------------------------------------------------------------------


def test_an_offer_that_was_not_said_for_a_day_is_not_begun_until_it_is() -> None:
    to_offered().then(
        (realised(5, ok=False, detail="no network"), ["! realise-failed"]),
        (tick(10), ["> realise 2 new"]),
        (realised(DAY + 10, 2), ["2 TargetRefused stale", "! stale"]),
        (offered(DAY + 11), []),
        (tick(DAY + 20), ["> realise 3 new"]),
        (realised(DAY + 21, 3), ["3 ActivationStarted", "> switch 4 new"]),
    )


def test_the_clock_of_the_wall_says_nothing_about_an_offer() -> None:
    for years in (-10, 10):
        off = years * 365 * DAY
        to_offered().then(
            (tick(2, clock_off_s=off), []),
            (attrs.evolve(realised(5), at=tick(5, clock_off_s=off).at), ["2 ActivationStarted", "> switch 2 new"]),
        )


def test_the_cap_on_the_age_of_manifests_is_not_for_offers() -> None:
    to_offered(attrs.evolve(LEGACY, freshness_cap_s=60)).then(
        (offered(60), []),
        (realised(HOUR), ["2 ActivationStarted", "> switch 2 new"]),
    )


# --- another source -------------------------------------------------------------------------------------------------


def test_what_is_not_of_this_source_makes_no_sense_to_it() -> None:
    manifests = "? this host does not follow a fleet's signed manifests"
    offers = "? this host follows signed manifests, and an offer is none"
    tell(
        (starts(0), ["> probes"]),
        (dispatched(1), [manifests]),
        (shown(2), [manifests]),
        (wished_back(3), [manifests]),
        (offered(4, basis=Basis.SIGNED_MANIFEST), [offers]),
    )
    tell((booted(0), ["> probes"]), (offered(1), [offers]))


def test_a_fleets_rollout_that_is_over_leaves_the_host_to_the_next_source_and_is_told_of_when_it_comes_back() -> None:
    away = to_converged().killed()
    on = away.then(
        (starts(200, GRADIENT, view(NEW)), ["> probes"]),
        (
            offered(201, NEW, basis=Basis.CACHE_KEY),
            ["1 DispatchAck from new", "2 ActivationCompleted", "3 ProbeTopologyDeclared ssh", "> probes"],
        ),
    )
    assert fact_backlog(on.known) == ()
    back = on.killed().then((booted(300, view(NEW)), ["> probes"]))
    assert [tracked.record.rollout_id for tracked in fact_backlog(back.known)] == [R1]


def test_a_fleets_rollout_that_is_fetched_waits_while_the_host_follows_something_else() -> None:
    away = to_activating().killed()
    paused = away.then(
        (starts(3, GRADIENT), ["> realise 1 new", "> probes"]),
        (realised(4), ["2 TargetRefused superseded", "! superseded"]),
        (no_answer(5), ["! not-built"]),
        (offered(6, None), []),
    )
    assert paused.known.refusals["superseded edge@1"].detail == PAUSED
    paused.killed().then(
        (booted(20), ["> probes"]),
        (tick(21), ["> realise 2 new"]),
        (realised(22, 2), ["3 ActivationStarted", "> switch 3 new"]),
    )
    paused.then(
        (
            offered(7, NEW, basis=Basis.CACHE_KEY),
            [
                "3 ActivationFailed (-1) superseded by gradient@00000002 before the switch",
                "1 DispatchAck from old",
                "> abandon 1",
                "> realise 2 new",
            ],
        ),
    )


def test_a_dispatch_that_waited_for_its_manifest_is_let_go_of_by_a_host_that_follows_something_else() -> None:
    waits = tell((booted(0), ["> probes"]), (dispatched(1), ["> fetch edge@1"])).killed()
    end = waits.then(
        (starts(2, GRADIENT), ["! superseded", "> probes"]),
        (offered(3, basis=Basis.CACHE_KEY), ["1 DispatchAck from old", "> realise 1 new"]),
    )
    assert end.known.waiting is None
    assert end.known.active == G1


def test_a_switch_begun_for_a_fleet_ends_in_order_under_another_source() -> None:
    to_switching().killed().then(
        (starts(7, GRADIENT), ["> switch 2 new", "> probes"]),
        (offered(8, NEWER, basis=Basis.CACHE_KEY), []),
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


def test_what_a_fleets_rollout_proved_sick_is_not_taken_up_from_another_source_either() -> None:
    sick = to_switching().then(
        (switched(10), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
        *TAKEN_BACK,
    )
    sick.killed().then((starts(90, GRADIENT), ["> probes"]), (offered(91, basis=Basis.CACHE_KEY), ["! quarantined"]))


def test_an_offer_that_is_fetched_waits_while_the_host_follows_a_fleet() -> None:
    to_offered().killed().then(
        (booted(3), ["> realise 1 new", "> probes"]),
        (realised(4), []),
        (dispatched(5, R1, NEWER), ["> fetch edge@1"]),
        (
            shown(6, R1, NEWER),
            [
                "2 ActivationFailed (-1) superseded by edge@1 before the switch",
                "1 DispatchAck from old",
                "> abandon 1",
                "> realise 2 newer",
            ],
        ),
    )


def test_the_same_target_from_another_source_or_on_another_basis_is_another_rollout() -> None:
    insecure = tell(
        (starts(0), ["> probes"]), (offered(1, basis=Basis.CACHE_KEY), ["1 DispatchAck from old", "> realise 1 new"])
    )
    soaks = insecure.then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(10), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
    )
    judged_anew = ["1 DispatchAck from new", "2 ActivationCompleted", "3 ProbeTopologyDeclared ssh", "> probes"]
    soaks.then((offered(20, basis=Basis.MUTUAL_TLS), judged_anew))
    end = soaks.killed().then(
        (starts(20, GRADIENT, view(NEW)), ["> probes"]),
        (offered(21, basis=Basis.CACHE_KEY), judged_anew),
    )
    assert end.known.active == "gradient@00000002"
    assert end.known.rollouts[end.known.active].prior == OLD


def test_a_name_that_a_fleet_has_used_is_not_used_again() -> None:
    channels = tell(
        (booted(0), ["> probes"]),
        (dispatched(1, "gradient@00000002", OLD), ["> fetch gradient@00000002"]),
        (
            shown(2, RolloutId("gradient@00000002"), OLD),
            ["1 DispatchAck from old", "2 ActivationCompleted", "3 ProbeTopologyDeclared ssh", "> probes"],
        ),
    )
    end = channels.killed().then(
        (starts(10, GRADIENT), ["> probes"]),
        (offered(11, basis=Basis.CACHE_KEY), ["1 DispatchAck from old", "> realise 1 new"]),
    )
    assert end.known.active == "gradient@00000003"


def test_facts_go_to_the_source_that_they_came_from_and_to_no_other() -> None:
    insecure = tell((starts(0, GRADIENT), ["> probes"]), (offered(1), ["1 DispatchAck from old", "> realise 1 new"]))
    assert fact_backlog(insecure.known) == ()
    legacy = insecure.killed().then((starts(10, LEGACY), ["> realise 1 new", "> probes"]))
    assert fact_backlog(legacy.known) == ()
    here = legacy.then(
        (
            offered(11, NEWER),
            [
                "2 ActivationFailed (-1) superseded by legacy@00000002 before the switch",
                "1 DispatchAck from old",
                "> abandon 1",
                "> realise 2 newer",
            ],
        )
    )
    assert [tracked.record.rollout_id for tracked in fact_backlog(here.known)] == [L2]


def test_offers_push_no_manifest_out_of_a_hosts_memory() -> None:
    def next_one(number: int) -> Row:
        came = (f"{number:x}" * 32)[:32] + "-nixos-next"
        taken = ["1 DispatchAck from old", f"> realise {number} next"]
        superseded = f"2 ActivationFailed (-1) superseded by gradient@{number:08x} before the switch"
        if number > 1:
            taken = [superseded, taken[0], f"> abandon {number - 1}", taken[1]]
        return offered(10 * number, came, basis=Basis.CACHE_KEY), taken

    many = 13
    story = tell((booted(0), ["> probes"]), (shown(1), [])).killed()
    story = story.then((starts(2, GRADIENT), ["> probes"]), *[next_one(number) for number in range(1, many)])
    assert R1 in story.known.intents
    assert story.known.stale_through == {}
    story.killed().then(
        (booted(200), [f"> realise {many - 1} next", "> probes"]),
        (
            dispatched(201),
            [
                "2 ActivationFailed (-1) superseded by edge@1 before the switch",
                "1 DispatchAck from old",
                f"> abandon {many - 1}",
                f"> realise {many} new",
            ],
        ),
    )


# --- the pace -------------------------------------------------------------------------------------------------------


def asked(told: Told, *, ok: bool = True, again_s: float | None = None, retry_s: float | None = None) -> float:
    """The source was asked at 10 s and answered: how long until it is asked again."""
    again_ms, retry_ms = (None if s is None else int(s * 1000) for s in (again_s, retry_s))
    answer = DutyFinished(
        at=at(10), duty=Duty.INTENT, ok=ok, jitter=0.5, again_after_ms=again_ms, retry_after_ms=retry_ms
    )
    session = step(told.state, answer).state.session
    return (session.due[Duty.INTENT] - 10_000) / 1000


def test_each_source_is_asked_what_it_can_answer() -> None:
    begun = [set(tell((starts(0, settings), ["> probes"])).state.session.started) for settings in (LEGACY, GRADIENT)]
    assert begun == [{Duty.HEARTBEAT, Duty.INTENT}, {Duty.INTENT}]


def test_a_source_is_asked_again_in_its_time_or_when_its_server_says() -> None:
    story = tell((starts(0), ["> probes"]))
    assert asked(story) == 60
    assert asked(story, again_s=5) == 5
    assert asked(story, again_s=3600) == 60, "a server may not silence a host"
    assert asked(story, again_s=0) == asked(story, again_s=-1) == 1, "nor keep it busy"


def test_a_source_that_fails_is_tried_again_in_the_time_for_that() -> None:
    story = tell((starts(0), ["> probes"]))
    assert asked(story, ok=False) == 22.5
    assert asked(story, ok=False, retry_s=300) == 300
    hasty = tell((starts(0, attrs.evolve(LEGACY, retry_interval_s=0)), ["> probes"]))
    assert asked(hasty, ok=False) >= 0.5
    fails = tell((starts(0), ["> probes"]))
    failing = attrs.evolve(
        fails, state=attrs.evolve(fails.state, session=attrs.evolve(fails.state.session, failures={Duty.INTENT: 60}))
    )
    assert asked(failing, ok=False) == 45


def test_an_idle_host_wakes_to_ask_its_source_and_for_nothing_else() -> None:
    converged = to_soaking(GRADIENT).then(
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (tick(130), ["> observe"]),
        (observed(130), ["7 Converged"]),
    )
    waits = DutyFinished(at=at(130), duty=Duty.INTENT, ok=True)
    state = step(converged.state, waits).state
    assert next_wakeup(state, at(130)) == 60_000
    late = step(state, tick(3 * DAY)).state  # nobody has said the offer for days
    assert next_wakeup(late, at(3 * DAY)) != 0
