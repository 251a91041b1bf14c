"""Stories of hooks: asked before a switch, told afterwards; they agree, veto, hang, and get lost."""

from typing import Final

import attrs

from state_machine.actions import RunHooks
from state_machine.hooks import OWED_MAX
from state_machine.state import Consulting
from state_machine.system import SwitchOutcome
from state_machine.values import Basis, Closure, HookMoment, Phase
from tests.unit.step_story import (
    NEW,
    NEWER,
    OLD,
    SETTINGS,
    Row,
    Told,
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
from tests.unit.step_story_sources import HOOKED, L1, LEGACY, hooks_said, offered, starts, to_offered

FLEET: Final = attrs.evolve(SETTINGS, hooks=True)
SWITCH: Final[list[Row]] = [
    (realised(5), ["> hooks 2 before-switch new"]),
    (hooks_said(6, 2), ["2 ActivationStarted", "> switch 4 new"]),
    (switched(10, 4), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
]
CONVERGE: Final[list[Row]] = [
    *SWITCH,
    (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
    (tick(130), ["> observe"]),
    (observed(130), ["7 Converged", "> hooks 5 after-success new"]),
]
TAKE_BACK: Final[list[Row]] = [
    *SWITCH,
    (probed(11, "fail"), ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"]),
    (tick(71), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 5 old"]),
    (switched(80, 5, view(OLD)), ["9 RollbackComplete to old", "> probes", "> hooks 6 after-rollback old"]),
]


def asked() -> Told:
    """A host whose hooks are being asked, as order 2, since 5 s."""
    return to_offered(HOOKED).then(SWITCH[0])


def hooks_of(told: Told) -> list[RunHooks]:
    return [order for passage in told.run for order in passage.step.actions if isinstance(order, RunHooks)]


def test_hooks_agree_and_are_told_how_it_went() -> None:
    end = to_offered(HOOKED).then(*CONVERGE, (hooks_said(131, 5), []))
    before, after = hooks_of(end)
    assert (before.closure, before.before, before.basis) == (NEW, OLD, Basis.MUTUAL_TLS)
    assert (after.closure, after.before, after.moment) == (NEW, OLD, HookMoment.AFTER_SUCCESS)
    assert end.known.hook_runs == ()


def test_hooks_are_told_of_a_rollback_by_what_runs_now_and_what_was_left() -> None:
    end = to_offered(HOOKED).then(*TAKE_BACK, (hooks_said(81, 6), []))
    after = hooks_of(end)[-1]
    assert (after.closure, after.before, after.moment) == (OLD, NEW, HookMoment.AFTER_ROLLBACK)


def test_a_host_without_hooks_asks_nobody() -> None:
    end = to_offered(LEGACY).then((realised(5), ["2 ActivationStarted", "> switch 2 new"]))
    assert hooks_of(end) == []


def test_hooks_are_asked_for_a_fleets_targets_too() -> None:
    end = tell(
        (starts(0, FLEET), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (shown(2), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5), ["> hooks 2 before-switch new"]),
        (hooks_said(6, 2), ["2 ActivationStarted", "> switch 4 new"]),
    )
    assert hooks_of(end)[0].basis is Basis.SIGNED_MANIFEST


def test_what_runs_already_asks_no_hook_before_and_tells_it_after() -> None:
    tell(
        (starts(0, attrs.evolve(HOOKED, offer_policy=attrs.evolve(HOOKED.offer_policy, soak_ms=0))), ["> probes"]),
        (
            offered(1, OLD),
            ["1 DispatchAck from old", "2 ActivationCompleted", "3 ProbeTopologyDeclared ssh", "> probes"],
        ),
        (probed(2), ["4 ProbeObservedFirst ssh", "5 ProbeResult ssh pass", "> observe"]),
        (observed(3, view(OLD)), ["6 Converged", "> hooks 1 after-success old"]),
    )


# --- they say no ----------------------------------------------------------------------------------------------------


def test_a_veto_is_on_the_record_once_and_asked_about_again() -> None:
    asked().then(
        (hooks_said(6, 2, "a backup runs"), ["2 TargetRefused vetoed", "! vetoed"]),
        (offered(7), []),
        (tick(9), []),
        (tick(10), ["> realise 4 new"]),
        (realised(11, 4), ["> hooks 5 before-switch new"]),
        (hooks_said(12, 5, "a backup runs"), ["! vetoed"]),
        (tick(20), ["> realise 7 new"]),
        (realised(21, 7), ["> hooks 8 before-switch new"]),
        (hooks_said(22, 8), ["3 ActivationStarted", "> switch 10 new"]),
    )


def test_a_veto_for_days_is_asked_about_every_few_minutes_and_no_more_often() -> None:
    story, now = asked(), 6.0
    for _ in range(30):
        operation = story.known.operation
        assert isinstance(operation, Consulting)
        story = story.then((hooks_said(now, operation.op, "no"), ["2 TargetRefused vetoed", "! vetoed"][now > 6 :]))
        op = story.known.next_op
        now += 300
        story = story.then((tick(now), [f"> realise {op} new"]))
        story = story.then((realised(now, op), [f"> hooks {op + 1} before-switch new"]))
    assert story.known.rollouts[L1].record.phase is Phase.ACTIVATING


def test_after_a_veto_something_else_may_be_offered() -> None:
    asked().then(
        (hooks_said(6, 2, "a backup runs"), ["2 TargetRefused vetoed", "! vetoed"]),
        (
            offered(7, NEWER),
            [
                "3 ActivationFailed (-1) superseded by legacy@00000002 before the switch",
                "1 DispatchAck from old",
                "> abandon 3",
                "> realise 4 newer",
            ],
        ),
    )


def test_a_rollback_asks_no_hook() -> None:
    asked().then(
        (hooks_said(6, 2), ["2 ActivationStarted", "> switch 4 new"]),
        (
            switched(10, 4, view(NEW), SwitchOutcome.FAILED, code=4, detail="nginx"),
            ["3 ActivationFailed (4) switch-failed: nginx", "! switch-failed", "> roll back 5 old"],
        ),
    )


def test_a_rollback_that_is_wished_for_while_they_are_asked_does_not_wait_for_their_answer() -> None:
    fleet = tell(
        (starts(0, FLEET), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (shown(2), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5), ["> hooks 2 before-switch new"]),
    )
    fleet.then(
        (wished_back(6), ["2 RollbackRequested", "> abandon 2", "> roll back 3 old"]),
        (hooks_said(7, 2), ["? no hooks 2 are running"]),
        (switched(12, 3, view(OLD)), ["3 RollbackComplete to old", "> probes", "> hooks 4 after-rollback old"]),
    )


def test_what_the_manifest_allowed_is_asked_again_when_they_have_agreed() -> None:
    fleet = tell(
        (starts(0, FLEET), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (shown(2), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5), ["> hooks 2 before-switch new"]),
    )
    fleet.then((hooks_said(3 * 3600, 2), ["2 TargetRefused stale", "! stale"]))


# --- they hang, and get lost ----------------------------------------------------------------------------------------


def test_hooks_that_never_answer_are_asked_again_long_after_their_deadline() -> None:
    asked().then(
        (offered(600), []),
        (tick(664), []),
        (tick(665), ["> realise 3 new"]),
        (hooks_said(666, 2), ["? no hooks 2 are running"]),
        (realised(667, 3), ["> hooks 4 before-switch new"]),
        (hooks_said(668, 4), ["2 ActivationStarted", "> switch 6 new"]),
    )


def test_a_restart_while_they_are_asked_asks_them_again() -> None:
    asked().killed().then(
        (starts(7, HOOKED), ["> realise 3 new", "> probes"]),
        (hooks_said(8, 2), ["? no hooks 2 are running"]),
        (offered(9), []),
        (realised(10, 3), ["> hooks 4 before-switch new"]),
    )


def test_a_restart_without_hooks_asks_nobody_any_more() -> None:
    asked().killed().then(
        (starts(7, LEGACY), ["> realise 3 new", "> probes"]),
        (offered(9), []),
        (realised(10, 3), ["2 ActivationStarted", "> switch 4 new"]),
    )


def test_a_power_cut_while_they_are_asked_asks_them_again() -> None:
    asked().killed().then(
        (starts(30, HOOKED, view(OLD, boot=2)), ["> realise 3 new", "> probes"]),
        (offered(31), []),
        (realised(32, 3), ["> hooks 4 before-switch new"]),
    )


def test_what_they_were_not_told_they_are_told_after_a_restart_by_the_same_number() -> None:
    end = (
        to_offered(HOOKED)
        .then(*CONVERGE)
        .killed()
        .then(
            (starts(140, HOOKED, view(NEW)), ["> hooks 5 after-success new", "> probes"]),
        )
    )
    assert hooks_of(end)[-1].basis is Basis.MUTUAL_TLS
    told = end.then((hooks_said(141, 5), []), (hooks_said(142, 5), ["? no hooks 5 are running"]))
    told.killed().then((starts(150, HOOKED, view(NEW)), ["> probes"]))


def test_what_was_owed_to_hooks_that_are_gone_is_owed_no_longer() -> None:
    end = to_offered(HOOKED).then(*CONVERGE).killed().then((starts(140, LEGACY, view(NEW)), ["> probes"]))
    assert end.known.hook_runs == ()


def test_hooks_that_hang_for_good_are_owed_the_last_things_only() -> None:
    quick = attrs.evolve(HOOKED, offer_policy=attrs.evolve(HOOKED.offer_policy, soak_ms=0))
    story, now, running = tell((starts(0, quick), ["> probes"])), 1.0, OLD
    for number in range(1, OWED_MAX + 3):
        target = NEWER if running == NEW else NEW
        story = _converge_at(story, now, target, running)
        now, running = now + 10, target
        assert len(story.known.hook_runs) == min(number, OWED_MAX)
    assert story.known.hook_runs[-1].closure == running


def _converge_at(story: Told, now: float, target: Closure, running: Closure) -> Told:
    name, before = (closure.rpartition("nixos-")[2] for closure in (target, running))
    op = story.known.next_op
    return story.then(
        (offered(now, target), [f"1 DispatchAck from {before}", f"> realise {op} {name}"]),
        (realised(now + 1, op), [f"> hooks {op + 1} before-switch {name}"]),
        (hooks_said(now + 2, op + 1), ["2 ActivationStarted", f"> switch {op + 3} {name}"]),
        (
            switched(now + 3, op + 3, view(target)),
            ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"],
        ),
        (probed(now + 4), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass", "> observe"]),
        (observed(now + 5, view(target)), ["7 Converged", f"> hooks {op + 4} after-success {name}"]),
    )
