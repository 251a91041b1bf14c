"""Stories of hosts whose operator allows switches at certain times only: waiting, opening, closing, clocks that lie."""

import attrs

from state_machine.schedule import next_wakeup
from state_machine.state import Realising
from state_machine.system import SwitchOutcome
from state_machine.values import Phase
from tests.unit.step_story import (
    NEW,
    NEWER,
    OLD,
    SETTINGS,
    T0,
    Told,
    at,
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
    HOOKED,
    HOUR,
    L1,
    calendar,
    calendar_read,
    hooks_said,
    offered,
    starts,
    to_offered,
)

NIGHT = calendar(activation=((4 * HOUR, 5 * HOUR), (DAY + 4 * HOUR, DAY + 5 * HOUR)))
"""From four to five o'clock after the boot, and the next day again."""


def waits_until(told: Told) -> float | None:
    operation = told.known.operation
    assert isinstance(operation, Realising)
    return None if operation.opens_at is None else (operation.opens_at - T0) / 1000


def sleeps_for(told: Told, seconds: float) -> float | None:
    """How long the agent would sleep from then on, if it exchanged nothing with anybody."""
    session = attrs.evolve(told.state.session, due={}, started={})
    delay = next_wakeup(attrs.evolve(told.state, session=session), at(seconds))
    return None if delay is None else delay / 1000


def fetched_by_day() -> Told:
    """A host that has what it is to switch to, and waits for the night."""
    return to_offered(known=NIGHT).then((realised(5), []))


def test_a_target_that_arrives_outside_of_the_window_waits_for_it_in_the_store() -> None:
    story = fetched_by_day()
    assert waits_until(story) == 4 * HOUR
    assert story.known.rollouts[L1].record.phase is Phase.ACTIVATING
    story.then(
        (offered(HOUR), []),
        (tick(4 * HOUR - 0.001), []),
        (tick(4 * HOUR), ["> realise 2 new"]),
        (realised(4 * HOUR + 1, 2), ["2 ActivationStarted", "> switch 3 new"]),
    )


def test_a_target_that_arrives_inside_of_the_window_goes_at_once() -> None:
    tell(
        (starts(0, calendar=NIGHT), ["> probes"]),
        (offered(4 * HOUR), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(4 * HOUR + 5), ["2 ActivationStarted", "> switch 2 new"]),
    )


def test_the_host_sleeps_until_the_window_opens() -> None:
    story = fetched_by_day()
    assert sleeps_for(story, 6) == 4 * HOUR - 6


def test_a_window_that_closes_during_the_fetch_is_waited_for_the_next_day() -> None:
    story = tell(
        (starts(0, calendar=NIGHT), ["> probes"]),
        (offered(5 * HOUR - 10), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5 * HOUR), []),
    )
    assert waits_until(story) == DAY + 4 * HOUR


def test_a_fetch_begun_when_the_window_opened_may_be_too_slow_for_it() -> None:
    story = fetched_by_day().then((tick(4 * HOUR), ["> realise 2 new"]), (realised(6 * HOUR, 2), []))
    assert waits_until(story) == DAY + 4 * HOUR


def test_a_window_that_closes_while_the_hooks_are_asked_is_waited_for_and_they_are_asked_again() -> None:
    tell(
        (starts(0, HOOKED, calendar=NIGHT), ["> probes"]),
        (offered(5 * HOUR - 10), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5 * HOUR - 5), ["> hooks 2 before-switch new"]),
        (hooks_said(5 * HOUR, 2), []),
        (offered(12 * HOUR), []),
        (tick(DAY + 4 * HOUR), ["> realise 4 new"]),
        (realised(DAY + 4 * HOUR + 1, 4), ["> hooks 5 before-switch new"]),
        (hooks_said(DAY + 4 * HOUR + 2, 5), ["2 ActivationStarted", "> switch 7 new"]),
    )


def test_an_answer_to_a_fetch_that_was_answered_makes_no_sense_while_it_waits() -> None:
    fetched_by_day().then((realised(6), ["? realisation 1 has been answered"]))


def test_a_rollback_never_waits_for_a_window() -> None:
    tell(
        (starts(0, calendar=calendar(activation=((0, HOUR),))), ["> probes"]),
        (offered(HOUR - 100), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(HOUR - 50), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(HOUR - 20), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
        (
            probed(HOUR - 10, "fail"),
            ["5 ProbeObservedFirst ssh", "6 ProbeFailureFirst ssh", "7 ProbeResult ssh fail"],
        ),
        (tick(HOUR + 50), ["8 Failed ssh for 60 s: rollback-and-halt", "> roll back 3 old"]),
        (
            switched(HOUR + 60, 3, view(NEW), SwitchOutcome.FAILED, code=4, detail="no"),
            ["9 RollbackFailed failed: no", "! rollback-failed"],
        ),
        (tick(HOUR + 100), ["> roll back 4 old"]),
        (switched(HOUR + 110, 4, view(OLD)), ["10 RollbackComplete to old", "> probes"]),
    )


def test_a_rollback_that_the_control_plane_wishes_for_waits_for_no_window_either() -> None:
    fleet = tell(
        (starts(0, SETTINGS, calendar=NIGHT), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (shown(2), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5), []),
    )
    fleet.then(
        (wished_back(10), ["2 RollbackRequested", "> abandon 1", "> roll back 2 old"]),
        (switched(12, 2, view(OLD)), ["3 RollbackComplete to old", "> probes"]),
    )


def test_a_manifest_that_is_stale_when_the_window_opens_is_not_acted_on() -> None:
    fleet = tell(
        (starts(0, SETTINGS, calendar=NIGHT), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (shown(2), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5), []),
    )
    fleet.then(
        (tick(4 * HOUR), ["> realise 2 new"]),
        (realised(4 * HOUR + 1, 2), ["2 TargetRefused stale", "! stale"]),
        (shown(4 * HOUR + 2, signed=4 * HOUR), []),
        (tick(4 * HOUR + 10), ["> realise 3 new"]),
        (realised(4 * HOUR + 11, 3), ["3 ActivationStarted", "> switch 4 new"]),
    )


def test_another_target_while_the_first_waits_for_the_window_waits_in_its_place() -> None:
    story = fetched_by_day().then(
        (
            offered(HOUR, NEWER),
            [
                "2 ActivationFailed (-1) superseded by legacy@00000002 before the switch",
                "1 DispatchAck from old",
                "> abandon 1",
                "> realise 2 newer",
            ],
        ),
        (realised(HOUR + 5, 2), []),
    )
    assert waits_until(story) == 4 * HOUR


def test_an_offer_taken_back_while_it_waits_for_the_window_ends_there() -> None:
    fetched_by_day().then(
        (offered(HOUR, None), ["2 ActivationFailed (-1) no longer offered", "> abandon 1"]),
        (tick(4 * HOUR), []),
    )


def test_a_restart_while_it_waits_waits_on() -> None:
    story = (
        fetched_by_day()
        .killed()
        .then(
            (starts(HOUR, calendar=NIGHT), ["> realise 1 new", "> probes"]),
            (offered(HOUR + 1), []),
            (realised(HOUR + 2), []),
        )
    )
    assert waits_until(story) == 4 * HOUR


def test_a_restart_without_windows_waits_no_longer() -> None:
    fetched_by_day().killed().then(
        (starts(HOUR), ["> realise 1 new", "> probes"]),
        (offered(HOUR + 1), []),
        (realised(HOUR + 2), ["2 ActivationStarted", "> switch 2 new"]),
    )


def test_a_power_cut_while_it_waits_waits_on() -> None:
    story = (
        fetched_by_day()
        .killed()
        .then(
            (starts(HOUR, system=view(OLD, boot=2), calendar=NIGHT), ["> realise 1 new", "> probes"]),
            (offered(HOUR + 1), []),
            (realised(HOUR + 2), []),
        )
    )
    assert waits_until(story) == 4 * HOUR


def cut_off() -> Told:
    """A host whose switch was cut off in the middle just when the window closed."""
    return to_offered(HOOKED, calendar(activation=((0, 5), (DAY, DAY + HOUR)))).then(
        (realised(3), ["> hooks 2 before-switch new"]),
        (hooks_said(4, 2), ["2 ActivationStarted", "> switch 4 new"]),
        (switched(10, 4, view(OLD, profile=NEW), SwitchOutcome.INTERRUPTED, detail="killed"), ["> realise 5 new"]),
    )


def test_a_switch_that_was_cut_off_is_finished_without_waiting_for_the_next_window() -> None:
    cut_off().then((realised(12, 5), ["3 ActivationStarted", "> switch 6 new"]))
    cut_off().killed().then(
        (starts(11, HOOKED, view(OLD, profile=NEW), calendar=NIGHT), ["> realise 5 new", "> probes"]),
        (offered(12), []),
        (realised(13, 5), ["3 ActivationStarted", "> switch 6 new"]),
    )


def test_a_switch_that_a_power_cut_has_cut_off_waits_like_any_other_as_what_booted_is_whole() -> None:
    cut_off().killed().then(
        (starts(60, HOOKED, view(OLD, boot=2), calendar=NIGHT), ["> realise 5 new", "> probes"]),
        (offered(61), []),
        (realised(62, 5), []),
        (tick(4 * HOUR), ["> realise 6 new"]),
        (realised(4 * HOUR + 1, 6), ["> hooks 7 before-switch new"]),
    )


def test_a_switch_that_never_got_the_lock_had_not_begun() -> None:
    to_offered(known=calendar(activation=((0, 6), (DAY, DAY + HOUR)))).then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(10, 2, view(OLD), SwitchOutcome.LOCK_HELD, detail="held"), ["! busy"]),
        (tick(14), ["> realise 4 new"]),
        (realised(15, 4), []),
        (tick(600), []),
    )


# --- the calendar ---------------------------------------------------------------------------------------------------


def test_windows_are_asked_for_before_those_that_are_known_run_out() -> None:
    short = calendar(activation=((4 * HOUR, 5 * HOUR),), days=11)
    quiet = tell((starts(0, calendar=short), ["> probes"]), (tick(DAY), []))
    assert sleeps_for(quiet, DAY) == 0.001, "an instant later, and not at once for ever"
    story = quiet.then(
        (tick(DAY + 1), ["> calendar"]),
        (tick(DAY + 300), []),
        (tick(DAY + 301), ["> calendar"]),
        (calendar_read(DAY + 302, calendar(since=DAY + 302, activation=((2 * DAY, 3 * DAY),))), []),
        (tick(DAY + 700), []),
    )
    assert story.known.calendar is not None


def test_a_calendar_that_ends_too_soon_is_asked_for_again_only_after_a_while() -> None:
    short = calendar(activation=((4 * HOUR, 5 * HOUR),), days=2)
    story = tell(
        (starts(0, calendar=short), ["> probes", "> calendar"]),
        (calendar_read(1, calendar(since=1, activation=(), days=2)), []),
        (tick(300), ["> calendar"]),
        (calendar_read(301, short), []),
        (tick(302), []),
    )
    assert sleeps_for(story, 302) == 298


def test_where_no_window_is_known_it_waits_and_looks_again_without_haste() -> None:
    ended = calendar(activation=(), days=0.01)
    story = tell(
        (starts(0, calendar=ended), ["> probes", "> calendar"]),
        (offered(1), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5), []),
    )
    assert waits_until(story) == 0.01 * DAY
    late = story.then((tick(2000), ["> calendar"]), (tick(2060), []))
    assert waits_until(late) == 2000 + 300


def test_windows_that_are_read_anew_may_open_sooner_or_be_open_now() -> None:
    story = fetched_by_day().then(
        (calendar_read(HOUR, calendar(activation=((2 * HOUR, 3 * HOUR),))), []),
    )
    assert waits_until(story) == 2 * HOUR
    story.then((calendar_read(HOUR + 1, calendar(activation=((HOUR, 3 * HOUR),))), ["> realise 2 new"]))
    story.then((tick(2 * HOUR), ["> realise 2 new"]))


# --- the clock ------------------------------------------------------------------------------------------------------


def test_a_clock_set_back_into_the_window_opens_it() -> None:
    story = tell(
        (starts(0, calendar=NIGHT, clock_off_s=10 * HOUR), ["> probes"]),
        (offered(1, clock_off_s=10 * HOUR), ["1 DispatchAck from old", "> realise 1 new"]),
        (attrs.evolve(realised(5), at=at(5, clock_off_s=10 * HOUR)), []),
    )
    assert waits_until(story) == DAY + 4 * HOUR
    story.then((tick(60, clock_off_s=4 * HOUR), ["> realise 2 new"]))


def test_a_clock_that_was_years_ahead_has_the_windows_worked_out_anew() -> None:
    ahead = 4 * 365 * DAY
    then = calendar(since=ahead, activation=((ahead + 4 * HOUR, ahead + 5 * HOUR),))
    story = tell(
        (starts(0, calendar=then, clock_off_s=ahead), ["> probes"]),
        (offered(1, clock_off_s=ahead), ["1 DispatchAck from old", "> realise 1 new"]),
        (attrs.evolve(realised(5), at=at(5, clock_off_s=ahead)), []),
        (tick(60), ["> calendar"]),
        (calendar_read(61, NIGHT), []),
    )
    assert waits_until(story) == 4 * HOUR


def test_a_clock_that_was_years_behind_closes_what_it_had_opened() -> None:
    behind = -4 * 365 * DAY
    then = calendar(since=behind, activation=((behind, behind + HOUR), (behind + DAY, behind + DAY + HOUR)))
    tell(
        (starts(0, calendar=then, clock_off_s=behind), ["> probes"]),
        (offered(1, clock_off_s=behind), ["1 DispatchAck from old", "> realise 1 new"]),
        (realised(5), ["> calendar"]),
        (calendar_read(6, NIGHT), []),
        (tick(4 * HOUR), ["> realise 2 new"]),
        (realised(4 * HOUR + 1, 2), ["2 ActivationStarted", "> switch 3 new"]),
    )


def test_a_clock_that_is_set_by_a_second_has_nothing_worked_out_anew() -> None:
    tell((starts(0, calendar=NIGHT), ["> probes"]), (tick(60, clock_off_s=-61), []), (tick(61, clock_off_s=30), []))


def test_it_converges_outside_of_the_window_as_well() -> None:
    end = fetched_by_day().then(
        (offered(3 * HOUR), []),
        (tick(4 * HOUR), ["> realise 2 new"]),
        (realised(5 * HOUR - 1, 2), ["2 ActivationStarted", "> switch 3 new"]),
        (switched(5 * HOUR + 10, 3), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
        (probed(5 * HOUR + 11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (tick(6 * HOUR), ["> observe"]),
        (observed(6 * HOUR), ["7 Converged"]),
    )
    assert end.known.operation is None
