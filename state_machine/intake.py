"""What the control plane says, weighed: intent, dispatches, rollback wishes, snapshots (promises S1, S2, S3, S8, S9).

Nothing here trusts the sender. A dispatch is a hint to look at signed intent; it is held until that intent is in
hand, then passes the checks of `REQUIREMENTS` in order. A new requirement is one function and one row.
"""

from collections.abc import Callable
from typing import Final

import attrs

from state_machine import activation, delivery, health, schedule, tracking
from state_machine.actions import Abandon
from state_machine.events import (
    DispatchKind,
    DispatchReceived,
    IntentRefused,
    IntentVerified,
    Snapshot,
    SnapshotsReceived,
    VerifiedIntent,
)
from state_machine.evolution import evolve
from state_machine.facts import ActivationFailed, DispatchAck, DispatchReject, RollbackRequested, TargetRefused
from state_machine.freshness import (
    freshness_left_ms,
    is_marked_stale,
    is_signed,
    is_superseded,
    time_verdict,
    window_left_ms,
)
from state_machine.state import Consulting, HeldDispatch, Known, Realising, SeenIntent, Tracked, is_of_source
from state_machine.turn import Turn, without
from state_machine.values import (
    Closure,
    Phase,
    Reason,
    RolloutId,
    Source,
    SteadyMs,
    WallMs,
    is_closure,
    is_rollout_id,
)

INTENTS_KEPT: Final = 8
ADOPTED_SEQ_MAX: Final = 1_000_000
"""A number no rollout reaches: one near the end of what JSON can count would make the facts after it unwritable."""
SOAK_ASKED_MAX_S: Final = 30 * 86_400
"""The control plane may ask for a longer soak than was signed, within reason."""
REJECT_REPEAT_MS: Final = 60_000
"""A dispatch that keeps coming back is rejected on the record once in this time; in between it is only counted."""

NOT_OF_A_FLEET: Final = "this host does not follow a fleet's signed manifests"

Refusal = tuple[Reason, str]
Requirement = Callable[[Known, HeldDispatch, SeenIntent, WallMs, SteadyMs], Refusal | None]


def _names_this_target(
    known: Known, held: HeldDispatch, seen: SeenIntent, wall: WallMs, now: SteadyMs
) -> Refusal | None:
    if seen.intent.target is None:
        return Reason.MANIFEST_MISMATCH, f"the manifest does not name {known.settings.machine_id}"
    if seen.intent.target != held.target:
        return Reason.MANIFEST_MISMATCH, f"the manifest gives this host {seen.intent.target}, not {held.target}"
    return None


def _in_time(known: Known, held: HeldDispatch, seen: SeenIntent, wall: WallMs, now: SteadyMs) -> Refusal | None:
    reason = time_verdict(known, seen, wall, now)
    return None if reason is None else (reason, time_detail(reason, known, seen, wall))


def _from_the_source(known: Known, held: HeldDispatch, seen: SeenIntent, wall: WallMs, now: SteadyMs) -> Refusal | None:
    if is_of_source(known.settings.source, seen.intent):
        return None
    rests_on, follows = seen.intent.basis, known.settings.source
    return Reason.SUPERSEDED, f"it rests on {rests_on}, and this host follows {follows} now"


def _not_quarantined(known: Known, held: HeldDispatch, seen: SeenIntent, wall: WallMs, now: SteadyMs) -> Refusal | None:
    entry = known.quarantine.get(held.target)
    return None if entry is None else (Reason.QUARANTINED, f"rolled back in {entry.rollout_id}: {entry.why}")


REQUIREMENTS: Final[tuple[Requirement, ...]] = (_names_this_target, _from_the_source, _in_time, _not_quarantined)
"""What must hold at the moment of a decision to switch (S1, S2, S3, S8), in this order."""


def time_detail(reason: Reason, known: Known, seen: SeenIntent, wall: WallMs) -> str:
    """A sentence for a person: what the clocks say about the signature."""
    age_s = (wall - seen.intent.signed_at) // 1000
    match reason:
        case Reason.CLOCK_BEHIND:
            behind_s = ((known.newest_signature or wall) - wall) // 1000
            return f"the host's clock is {behind_s} s behind the newest trusted signature"
        case Reason.FUTURE_DATED:
            return f"signed {-age_s} s in the future"
        case Reason.SUPERSEDED:
            return f"a newer manifest of {seen.intent.channel}, or a newer fleet, has been accepted"
        case _ if not is_signed(seen.intent):
            return f"last offered more than {seen.intent.freshness_window_s} s ago"
        case _ if is_marked_stale(known, seen) and age_s <= seen.intent.freshness_window_s:
            return f"signed {age_s} s ago by a clock that has found it, or a newer one, stale before"
        case _:
            return f"signed {age_s} s ago, the window is {seen.intent.freshness_window_s} s"


def unmet(known: Known, held: HeldDispatch, seen: SeenIntent, wall: WallMs, now: SteadyMs) -> Refusal | None:
    """The first requirement that does not hold, with the reason, or None: the target may be switched to now."""
    for requirement in REQUIREMENTS:
        if (refusal := requirement(known, held, seen, wall, now)) is not None:
            return refusal
    return None


# --- intent ---------------------------------------------------------------------------------------------------------


def on_intent_verified(turn: Turn, event: IntentVerified) -> None:
    """Accept proved intent if it is acceptable in time, then look again at a dispatch that waited for it."""
    if turn.known.settings.source is not Source.FLEET or not is_signed(event.intent):
        return turn.unexpected(NOT_OF_A_FLEET)
    intent = event.intent
    stored = turn.known.intents.get(intent.rollout_id)
    if stored is not None and stored.intent == intent:
        seen = attrs.evolve(stored, withdrawn=False)
    else:
        seen = SeenIntent(intent=intent, seen_wall=turn.wall, seen_steady=turn.now)
    if (refusal := _untimely(turn, seen)) is not None:
        turn.refuse(*refusal, intent.rollout_id)
        if _is_held(turn, intent.rollout_id):
            _reject_held(turn, *refusal)
        return None
    if seen != stored:
        _accept_intent(turn, seen)
    if _is_held(turn, intent.rollout_id):
        turn.set_session(refetch_at=None, refetch_failures=0)
        consider(turn)
    return None


def _untimely(turn: Turn, seen: SeenIntent) -> Refusal | None:
    known = turn.known
    reason = time_verdict(known, seen, turn.wall, turn.now)
    if reason is None:
        return None
    if reason is Reason.STALE:
        mark_stale(turn, seen)
    return reason, time_detail(reason, known, seen, turn.wall)


def _accept_intent(turn: Turn, seen: SeenIntent) -> None:
    known, intent = turn.known, seen.intent
    newest = max(known.newest_signed.get(intent.channel, intent.signed_at), intent.signed_at)
    fleet = max(known.newest_fleet or intent.fleet_signed_at, intent.fleet_signed_at)
    turn.set(
        intents={**known.intents, intent.rollout_id: seen},
        newest_signed={**known.newest_signed, intent.channel: newest},
        newest_fleet=fleet,
    )
    forget_intents(turn, intent.rollout_id)


def forget_intents(turn: Turn, newest: RolloutId) -> None:
    """Keep a bounded number of intents. One that goes is marked: shown again, its age would start afresh (S8).

    What was only offered goes first: a fleet that the host comes back to must not find its manifests marked for it.
    """
    known = turn.known
    needed = {known.active, newest, known.waiting.rollout_id if known.waiting else None}
    spare = [seen for rollout_id, seen in known.intents.items() if rollout_id not in needed]
    spare.sort(key=lambda seen: (is_signed(seen.intent), not is_superseded(known, seen.intent), seen.intent.signed_at,
                                 seen.intent.rollout_id))  # fmt: skip
    for seen in spare[: max(0, len(known.intents) - INTENTS_KEPT)]:
        if not is_superseded(known, seen.intent):
            mark_stale(turn, seen)
        turn.set(intents=without(turn.known.intents, seen.intent.rollout_id))


def mark_stale(turn: Turn, seen: SeenIntent) -> None:
    """Remember that intent signed at this instant is stale, whatever the clock will say later (S8)."""
    if not is_signed(seen.intent):
        return
    channel, signed_at = seen.intent.channel, seen.intent.signed_at
    if turn.known.stale_through.get(channel, WallMs(-1)) < signed_at:
        turn.set(stale_through={**turn.known.stale_through, channel: signed_at})


def mark_all_stale(turn: Turn) -> None:
    """Mark every intent whose window has ended by now."""
    for seen in turn.known.intents.values():
        if window_left_ms(turn.known, seen, turn.wall, turn.now) < 0:
            mark_stale(turn, seen)


def on_intent_refused(turn: Turn, event: IntentRefused) -> None:
    """Intent did not prove, or could not be fetched. A dispatch that waits for it is rejected or waits on."""
    rollout_id = event.rollout_id or RolloutId("")
    if event.final or event.reason is Reason.TOO_LARGE:
        turn.refuse(event.reason, event.detail, rollout_id)
    if event.final:
        _withdraw(turn, rollout_id)
    if not _is_held(turn, rollout_id):
        return
    if event.final:
        _reject_held(turn, event.reason, event.detail)
    else:
        schedule.plan_refetch(turn, event.jitter, event.retry_after_ms)


def _withdraw(turn: Turn, rollout_id: RolloutId) -> None:
    """Begin nothing more on account of what was proved before: the key may have been struck off since."""
    seen = turn.known.intents.get(rollout_id)
    if seen is not None and not seen.withdrawn:
        turn.set(intents={**turn.known.intents, rollout_id: attrs.evolve(seen, withdrawn=True)})


# --- dispatch -------------------------------------------------------------------------------------------------------


def on_dispatch_received(turn: Turn, event: DispatchReceived) -> None:
    """Hold a dispatch that could be for this host and is news; answer a rollback wish."""
    if turn.known.settings.source is not Source.FLEET:
        return turn.unexpected(NOT_OF_A_FLEET)
    machine_id = turn.known.settings.machine_id
    if event.hostname != machine_id:
        return turn.refuse(Reason.MANIFEST_MISMATCH, f"a dispatch for {event.hostname[:64]!r}, this is {machine_id}")
    if not is_rollout_id(event.rollout_id):
        return turn.refuse(Reason.PARSE, f"no rollout id: {event.rollout_id[:64]!r}")
    rollout_id = RolloutId(event.rollout_id)
    if event.kind is DispatchKind.ROLLBACK:
        return _on_rollback_wish(turn, rollout_id, event.reason)
    if not is_closure(event.target_closure):
        return turn.refuse(Reason.PARSE, f"no closure name: {event.target_closure[:64]!r}", rollout_id)
    _hold(turn, rollout_id, event)
    return None


def _hold(turn: Turn, rollout_id: RolloutId, event: DispatchReceived) -> None:
    known, tracked = turn.known, turn.known.rollouts.get(rollout_id)
    before = known.forgotten.get(rollout_id) if tracked is None else tracked.record
    if before is not None and before.phase is not Phase.PENDING:
        return turn.unexpected(f"{rollout_id} is {before.phase} here already")
    if known.waiting is not None and known.waiting.rollout_id == rollout_id and known.waiting.adopted is None:
        return turn.unexpected(f"{rollout_id} is being considered already")
    if turn.known.settings.holds:
        return turn.refuse(Reason.BUSY, turn.known.settings.holds, rollout_id)
    if _is_noise(turn, tracked, rollout_id):
        return turn.refuse(Reason.BUSY, "too many refused dispatches lately", rollout_id)
    if event.running is not None and not turn.known.busy and event.running != turn.known.system.running:
        ran = turn.known.system.running
        turn.set(system=attrs.evolve(turn.known.system, running=event.running))
        health.note_change(turn, ran)
    held = HeldDispatch(
        rollout_id=rollout_id,
        target=Closure(event.target_closure),
        soak_due_at=_within_reason(event.soak_due_at, turn.wall),
        soak_ms=None if event.soak_s is None else min(event.soak_s, SOAK_ASKED_MAX_S) * 1000,
    )
    if known.waiting is not None and known.waiting.rollout_id != rollout_id:
        detail = f"{rollout_id} took its place before it could be decided on"
        turn.refuse(Reason.BUSY, detail, known.waiting.rollout_id)
    turn.set(waiting=held)
    turn.set_session(refetch_at=None, refetch_failures=0)
    consider(turn, may_fetch=True)
    return None


def _within_reason(soak_due_at: WallMs | None, wall: WallMs) -> WallMs | None:
    return None if soak_due_at is None else min(soak_due_at, WallMs(wall + SOAK_ASKED_MAX_S * 1000))


def _is_noise(turn: Turn, tracked: Tracked | None, rollout_id: RolloutId) -> bool:
    """A dispatch that would only cost the journal an entry to be refused once more."""
    if tracked is not None and tracked.rejected_at is not None:
        return turn.now - tracked.rejected_at < REJECT_REPEAT_MS
    return tracked is None and rollout_id not in turn.known.intents and turn.refusals_full()


def _is_held(turn: Turn, rollout_id: RolloutId) -> bool:
    held = turn.known.waiting
    return held is not None and held.rollout_id == rollout_id


def consider(turn: Turn, *, may_fetch: bool = False) -> None:
    """Decide about the held dispatch, if nothing is in flight: take it, reject it, or get its manifest first."""
    known, held = turn.known, turn.known.waiting
    if held is None or known.busy or known.settings.holds:
        return
    seen = known.intents.get(held.rollout_id)
    if seen is not None and not is_signed(seen.intent):
        may_fetch = False
        if seen.withdrawn:
            return  # its source is asked in any case
    if seen is None or seen.withdrawn or (may_fetch and freshness_left_ms(known, seen, turn.wall, turn.now) < 0):
        schedule.fetch(turn, held.rollout_id)
        return
    if (refusal := unmet(known, held, seen, turn.wall, turn.now)) is not None:
        turn.refuse(*refusal, held.rollout_id)
        _reject_held(turn, *refusal)
        return
    _take(turn, held, seen.intent)


S1_S2_REASONS: Final = frozenset(set(Reason) - {Reason.QUARANTINED, Reason.BUSY, Reason.CLOCK_BEHIND})
"""Reasons that say something about the intent itself, so that `TargetRefused` goes on the record beside the answer."""


def _reject_held(turn: Turn, reason: Reason, detail: str) -> None:
    held = turn.known.waiting
    assert held is not None
    turn.set(waiting=None)
    turn.set_session(refetch_at=None, refetch_failures=0)
    if held.adopted is not None:
        return  # it is not ours to answer for; the next heartbeat brings it up again
    tracked = turn.known.rollouts.get(held.rollout_id) or tracking.track(turn, held, _offer_of(turn, held))
    if tracked.record.phase is not Phase.PENDING:
        return
    turn.put(evolve(tracked, rejected_at=turn.now))
    if reason in S1_S2_REASONS:
        turn.record(
            held.rollout_id,
            lambda seq: TargetRefused(seq=seq, reason=reason, detail=detail[:512], refused_at=turn.wall),
        )
    turn.record(held.rollout_id, lambda seq: DispatchReject(seq=seq, reason=reason, rejected_at=turn.wall))


def _offer_of(turn: Turn, held: HeldDispatch) -> VerifiedIntent | None:
    """What a held target that nobody signed stands for, so that its record says where it came from."""
    seen = turn.known.intents.get(held.rollout_id)
    return None if seen is None or is_signed(seen.intent) else seen.intent


def _take(turn: Turn, held: HeldDispatch, intent: VerifiedIntent) -> None:
    """Acknowledge the dispatch and begin (S5: what runs now is what a rollback will go back to)."""
    _supersede(turn, held.rollout_id)
    tracked = tracking.track(turn, held, intent)
    turn.set(waiting=None, active=held.rollout_id, drift=None)
    if tracked.record.phase is Phase.PENDING:
        turn.record(
            held.rollout_id,
            lambda seq: DispatchAck(
                seq=seq, current_closure_at_dispatch=turn.known.system.running or Closure(""), received_at=turn.wall
            ),
        )
    activation.begin(turn, held.rollout_id)


def _supersede(turn: Turn, successor: RolloutId) -> None:
    """Let go of the rollout that was active: its switch has not begun, or is over."""
    current, operation = turn.known.current, turn.known.operation
    if current is None or current.record.rollout_id == successor:
        return
    turn.put(evolve(current, superseded_by=successor, untouched=isinstance(operation, Realising | Consulting)))
    turn.set(operation=None)
    if isinstance(operation, Realising | Consulting):
        turn.order(Abandon(op=operation.op))
        turn.record(
            operation.rollout_id,
            lambda seq: ActivationFailed(
                seq=seq, exit_code=-1, stderr_tail=f"superseded by {successor} before the switch", failed_at=turn.wall
            ),
        )


# --- rollback wishes and snapshots ----------------------------------------------------------------------------------


def _on_rollback_wish(turn: Turn, rollout_id: RolloutId, reason: str) -> None:
    """Honour a rollback once, for the rollout that is active here, to the recorded system; refuse any other (S9)."""
    current = turn.known.current
    if current is None or current.record.rollout_id != rollout_id:
        return turn.refuse(Reason.ROLLBACK_FAILED, "rollback asked for a rollout that is not active here", rollout_id)
    if current.record.phase not in (Phase.ACTIVATING, Phase.DEFERRED, Phase.SOAKING, Phase.CONVERGED):
        return turn.refuse(Reason.ROLLBACK_FAILED, f"rollback asked while {current.record.phase}", rollout_id)
    if not activation.has_way_back(turn.known, current):
        return _answer_wish(turn, current, activation.NO_WAY_BACK)
    turn.record(rollout_id, lambda seq: RollbackRequested(seq=seq, reason=reason[:512], requested_at=turn.wall))
    if not turn.known.busy:
        activation.roll_back(turn, rollout_id, f"the control plane asked: {reason[:200]}")
    return None


def _answer_wish(turn: Turn, current: Tracked, detail: str) -> None:
    """Say on the record that the wish cannot be granted, so that it need not be repeated."""
    rollout_id = current.record.rollout_id
    turn.refuse(Reason.ROLLBACK_FAILED, detail, rollout_id)
    if current.rejected_at is not None and turn.now - current.rejected_at < REJECT_REPEAT_MS:
        return
    turn.put(evolve(current, rejected_at=turn.now))
    turn.record(rollout_id, lambda seq: DispatchReject(seq=seq, reason=Reason.ROLLBACK_FAILED, rejected_at=turn.wall))


def on_snapshots_received(turn: Turn, event: SnapshotsReceived) -> None:
    """Compare the control plane's view with ours; go on with a rollout that only it knows (a lost state directory)."""
    if turn.known.settings.source is not Source.FLEET:
        return turn.unexpected(NOT_OF_A_FLEET)
    for snapshot in event.snapshots:
        if not is_rollout_id(snapshot.rollout_id) or not is_closure(snapshot.target_closure):
            turn.refuse(Reason.PARSE, f"a snapshot of {snapshot.rollout_id[:64]!r}")
            continue
        tracked = turn.known.rollouts.get(RolloutId(snapshot.rollout_id))
        if tracked is None:
            _adopt(turn, snapshot)
        elif tracked.delivered_seq > snapshot.last_seq:
            # It held these facts once and lost them; delivery is at least once.
            delivery.go_back(turn, tracked, snapshot.last_seq + 1)
        elif snapshot.last_seq == tracked.record.last_seq and snapshot.phase is not tracked.record.phase:
            turn.unexpected(
                f"the control plane has {snapshot.rollout_id} as {snapshot.phase}, not {tracked.record.phase}"
            )
    return None


def _adopt(turn: Turn, snapshot: Snapshot) -> None:
    known, rollout_id = turn.known, RolloutId(snapshot.rollout_id)
    if not 1 <= snapshot.last_seq <= ADOPTED_SEQ_MAX or rollout_id in known.forgotten:
        return
    if snapshot.phase is Phase.PENDING:
        return tracking.remember_numbers(turn, rollout_id, snapshot.last_seq)
    if snapshot.phase not in (Phase.ACTIVATING, Phase.DEFERRED, Phase.SOAKING):
        return
    if known.active is not None or known.waiting is not None or known.settings.holds:
        return
    if turn.refused_lately(rollout_id) and rollout_id not in known.intents:
        return  # it comes up with every heartbeat, and would cost the journal entries each time
    held = HeldDispatch(
        rollout_id=rollout_id,
        target=Closure(snapshot.target_closure),
        soak_due_at=snapshot.soak_due_at,
        adopted=snapshot.phase,
        adopted_seq=snapshot.last_seq,
    )
    turn.set(waiting=held)
    consider(turn, may_fetch=True)
