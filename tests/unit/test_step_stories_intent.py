"""Stories of signed intent: what is too old, too new, another's, or no longer what it was when it was fetched."""

import attrs
import pytest

from state_machine.events import Event, IntentRefused
from state_machine.values import Channel, Reason, RolloutId, WallMs
from tests.property.agent_world import make_intent
from tests.unit.step_story import (
    EDGE,
    NEW,
    NEWER,
    OLD,
    R1,
    R2,
    SETTINGS,
    T0,
    at,
    booted,
    dispatched,
    realised,
    shown,
    switched,
    tell,
    tick,
    to_activating,
    to_converged,
    view,
)

CORE = Channel("core")


def refused(seconds: float, reason: Reason, *, final: bool = True, rollout_id: RolloutId | None = R1) -> IntentRefused:
    return IntentRefused(at=at(seconds), rollout_id=rollout_id, reason=reason, detail="no", final=final)


@pytest.mark.parametrize(
    "reason",
    [Reason.BAD_SIGNATURE, Reason.MANIFEST_MISMATCH, Reason.REJECTED_BEFORE, Reason.SCHEMA_VERSION, Reason.PARSE],
)
def test_what_does_not_prove_is_rejected_with_its_reason(reason: Reason) -> None:
    end = tell(
        (booted(0), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (refused(2, reason), [f"1 TargetRefused {reason}", f"2 DispatchReject {reason}", f"! {reason}"]),
        (dispatched(3), ["! busy"]),
    )
    assert end.known.system == view(OLD)
    assert end.known.waiting is None


def test_what_was_refused_since_it_was_accepted_proves_itself_again_before_it_is_acted_on() -> None:
    tell(
        (booted(0), ["> probes"]),
        (shown(1), []),
        (refused(2, Reason.REJECTED_BEFORE), ["! rejected-before"]),
        (dispatched(3), ["> fetch edge@1"]),
        (shown(4), ["1 DispatchAck from old", "> realise 1 new"]),
    )


def test_what_is_refused_while_its_closure_is_fetched_is_not_switched_to_until_it_proves_again() -> None:
    tell(
        (booted(0), ["> probes"]),
        (shown(1), []),
        (dispatched(2), ["1 DispatchAck from old", "> realise 1 new"]),
        (refused(3, Reason.BAD_SIGNATURE), ["! bad-signature"]),
        (realised(4), []),
        (tick(7.75), ["> realise 2 new"]),
        (realised(8, 2), []),
        (shown(9), []),
        (tick(20), ["> realise 3 new"]),
        (realised(21, 3), ["2 ActivationStarted", "> switch 4 new"]),
    )


def test_a_manifest_that_cannot_be_fetched_is_asked_for_again() -> None:
    tell(
        (booted(0), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (refused(2, Reason.MISSING, final=False), []),
        (tick(3.4), []),
        (tick(3.5), ["> fetch edge@1"]),
        (refused(4, Reason.MISSING, final=False), []),
        (tick(7), ["> fetch edge@1"]),
        (shown(8), ["1 DispatchAck from old", "> realise 1 new"]),
    )


def test_a_fetch_that_nobody_answers_is_ordered_again() -> None:
    tell(
        (booted(0), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (tick(300), []),
        (tick(301), ["> fetch edge@1"]),
    )


@pytest.mark.parametrize("target", [None, NEWER], ids=["nothing", "another"])
def test_a_manifest_that_gives_this_host_something_else_is_a_mismatch(target: str | None) -> None:
    tell(
        (booted(0), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (
            shown(2, target=None if target is None else NEWER),
            ["1 TargetRefused manifest-mismatch", "2 DispatchReject manifest-mismatch", "! manifest-mismatch"],
        ),
    )


def test_a_manifest_is_stale_a_minute_after_its_window_and_not_before() -> None:
    for signed, stale in ((-3658, False), (-3659, True)):
        verdict = ["1 TargetRefused stale", "2 DispatchReject stale", "! stale"]
        tell(
            (booted(0), ["> probes"]),
            (dispatched(1), ["> fetch edge@1"]),
            (shown(2, signed=signed), verdict if stale else ["1 DispatchAck from old", "> realise 1 new"]),
        )


def test_a_manifest_from_the_future_is_refused_and_poisons_nothing() -> None:
    tell(
        (booted(0), ["> probes"]),
        (shown(1, signed=62), ["! future-dated"]),
        (shown(2, signed=-60), []),
        (dispatched(3), ["1 DispatchAck from old", "> realise 1 new"]),
    )


def test_an_older_manifest_after_a_newer_one_is_superseded_though_it_is_fresh() -> None:
    tell(
        (booted(0), ["> probes"]),
        (shown(1, R2, NEWER, signed=0, fleet=-100), []),
        (shown(2, R1, NEW, signed=-60, fleet=-100), ["! superseded"]),
        (dispatched(3, R1), ["> fetch edge@1"]),
        (
            shown(4, R1, NEW, signed=-60, fleet=-100),
            ["1 TargetRefused superseded", "2 DispatchReject superseded", "! superseded"],
        ),
        (dispatched(5, R2, NEWER), ["1 DispatchAck from old", "> realise 1 newer"]),
    )


def test_a_manifest_with_an_older_fleet_does_not_come_back_through_another_channel() -> None:
    """Mix and match: the newer fleet may have moved this host to the other channel."""
    moved = RolloutId("core@9")
    tell(
        (booted(0), ["> probes"]),
        (shown(1, R1, NEW, signed=-60), []),
        (shown(2, moved, NEWER, signed=0, channel=CORE), []),
        (dispatched(3, R1), ["1 TargetRefused superseded", "2 DispatchReject superseded", "! superseded"]),
        (dispatched(4, moved, NEWER), ["1 DispatchAck from old", "> realise 1 newer"]),
    )


def test_fetching_may_take_longer_than_the_manifest_stays_fresh() -> None:
    """The decision to switch is taken again when there is something to switch to, and waits for a new signature."""
    to_activating().then(
        (realised(3700), ["2 TargetRefused stale", "! stale"]),
        (tick(3703), []),
        (tick(3704), ["> realise 2 new"]),
        (realised(3705, 2), ["! stale"]),
        (shown(3706, signed=3700), []),
        (tick(3713), ["> realise 3 new"]),
        (realised(3714, 3), ["3 ActivationStarted", "> switch 4 new"]),
        (switched(3720, 4), ["4 ActivationCompleted", "5 ProbeTopologyDeclared ssh", "> probes"]),
    )


def test_a_newer_release_that_is_not_for_now_stops_the_older_one() -> None:
    to_activating().then(
        (shown(3, R2, NEWER, signed=2), []),
        (realised(5), ["2 TargetRefused superseded", "! superseded"]),
        (tick(9), ["> realise 2 new"]),
        (
            dispatched(10, R2, NEWER),
            [
                "3 ActivationFailed (-1) superseded by edge@2 before the switch",
                "1 DispatchAck from old",
                "> abandon 2",
                "> realise 3 newer",
            ],
        ),
    )


# --- clocks that lie ------------------------------------------------------------------------------------------------


def test_a_clock_behind_the_newest_signature_begins_nothing_and_says_so() -> None:
    def late(event: Event) -> Event:
        moment = attrs.evolve(event.at, wall_ms=WallMs(event.at.wall_ms - 7_200_000))
        return attrs.evolve(event, at=moment)

    end = to_converged().then(
        (shown(200, R2, NEWER, signed=199), []),
        (late(dispatched(201, R2, NEWER, running=NEW)), ["1 DispatchReject clock-behind", "! clock-behind"]),
        (late(tick(250)), []),
        (dispatched(262, R2, NEWER, running=NEW), ["2 DispatchAck from new", "> realise 3 newer"]),
    )
    assert end.known.waiting is None


def test_a_clock_that_steps_back_does_not_make_a_stale_manifest_fresh() -> None:

    def again(seconds: float) -> Event:
        """The same manifest, with the wall clock back where it was when it first came."""
        return shown(seconds, signed=-60, clock_off_s=60 - seconds)

    stale = ["1 TargetRefused stale", "2 DispatchReject stale", "! stale"]
    story = tell((booted(0), ["> probes"]), (shown(1, signed=-60), []))
    # An hour later by the wall, seen by a deadline; then the wall goes back.
    story.then((tick(3700), []), (dispatched(3701), ["> fetch edge@1"]), (again(3702), stale))
    # Nobody looked in time: the running time since it came is enough.
    story.then((attrs.evolve(dispatched(9000), at=again(9000).at), ["> fetch edge@1"]), (again(9001), stale))
    # And through a reboot, which takes the monotonic clock back to nothing.
    story.then(
        (tick(3700), []),
        (attrs.evolve(booted(5, view(boot=2)), at=at(5)), ["> probes"]),
        (dispatched(6), ["> fetch edge@1"]),
        (shown(7, signed=-60), stale),
    )


def test_a_clock_a_year_ahead_blocks_until_the_next_signature_and_not_for_ever() -> None:
    ahead = 365 * 86_400
    tell(
        (booted(0), ["> probes"]),
        (shown(1, clock_off_s=ahead), ["! stale"]),
        (shown(60, signed=-60), ["! stale"]),
        (shown(3600, signed=3590), []),
        (dispatched(3601), ["1 DispatchAck from old", "> realise 1 new"]),
    )


def test_two_clocks_that_were_ahead_together_block_until_their_time_has_come_and_say_so() -> None:
    """CI signed with a date an hour ahead, and a host whose clock was a day ahead found that stale."""
    story = tell(
        (booted(0), ["> probes"]),
        (shown(1, R2, signed=3600, clock_off_s=86_400), ["! stale"]),
        (shown(60, signed=50), ["! stale"]),
    )
    said = story.known.refusals[f"stale {R1}"].detail
    assert said == "signed 10 s ago by a clock that has found it, or a newer one, stale before"
    story.then(
        (shown(3700, signed=3690), []),
        (dispatched(3701), ["1 DispatchAck from old", "> realise 1 new"]),
    )


def test_the_operator_can_narrow_the_window_and_not_widen_it() -> None:
    stale = ["1 TargetRefused stale", "2 DispatchReject stale", "! stale"]
    for cap_s, signed, verdict in (
        (120, -200, stale),
        (120, -100, ["1 DispatchAck from old", "> realise 1 new"]),
        (86_400, -3700, stale),
    ):
        capped = attrs.evolve(SETTINGS, freshness_cap_s=cap_s)
        tell(
            (booted(0, settings=capped), ["> probes"]),
            (dispatched(1), ["> fetch edge@1"]),
            (shown(2, signed=signed), verdict),
        )


def test_an_intent_that_had_to_make_room_does_not_come_back_younger() -> None:
    """Nine other channels push ours out; shown again with the clock turned back, its age must not begin anew."""
    story = tell((booted(0), ["> probes"]), (shown(1, signed=-60), []))
    for number in range(9):
        channel = Channel(f"channel{number}")
        rollout_id = RolloutId(f"channel{number}@{number}")
        story = story.then((shown(2 + number, rollout_id, NEWER, signed=-50, fleet=-60, channel=channel), []))
    assert R1 not in story.known.intents
    assert story.known.stale_through[EDGE] == make_intent(R1, NEW, signed_at=T0 - 60_000).signed_at
    story.then(
        (attrs.evolve(dispatched(7200), at=at(7200, clock_off_s=-7200)), ["> fetch edge@1"]),
        (shown(7201, clock_off_s=-7200), ["1 TargetRefused stale", "2 DispatchReject stale", "! stale"]),
    )


def test_a_manifest_that_cannot_be_had_is_asked_for_again_when_the_control_plane_said_and_not_before() -> None:
    away = attrs.evolve(refused(2, Reason.MISSING, final=False), retry_after_ms=30_000)
    tell(
        (booted(0), ["> probes"]),
        (dispatched(1), ["> fetch edge@1"]),
        (away, []),
        (tick(31), []),
        (tick(32), ["> fetch edge@1"]),
    )
