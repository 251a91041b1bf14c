"""The promises of `step` that one step can show, each said again as a function that looks at what came out.

A function returns what is wrong, one sentence each; nothing means that the promise held. They are written from the
promises and not from the handlers, so that a mistake in a handler does not repeat itself here.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from state_machine.actions import Reboot
from state_machine.events import (
    Booted,
    DispatchKind,
    DispatchReceived,
    DutyFinished,
    FactRefused,
    FactsDelivered,
    HooksFinished,
    IntentRefused,
    ProbeObserved,
    QuarantineCleared,
    ReplayRequested,
    SnapshotsReceived,
    Span,
    SwitchFinished,
    SystemObserved,
    TargetOffered,
    Tick,
)
from state_machine.facts import (
    Converged,
    DispatchAck,
    Failed,
    ProbeResult,
    RollbackComplete,
    RollbackFailed,
    RollbackRequested,
)
from state_machine.hooks import OWED_MAX
from state_machine.intake import INTENTS_KEPT
from state_machine.passages import (
    Passage,
    acted_on,
    facts_of,
    is_repeat,
    new_rollbacks,
    new_switches,
    orders,
    rollout_of,
)
from state_machine.state import Consulting, Known, Realising, Rebooting, RollingBack, SeenIntent, Switching, Tracked
from state_machine.system import SystemView
from state_machine.tracking import FORGOTTEN_KEPT, TRACKED_KEPT
from state_machine.turn import REFUSALS_KEPT
from state_machine.values import (
    CLOCK_SLACK_MS,
    Basis,
    FailurePolicy,
    Phase,
    ProbeMode,
    ProbeStatus,
    RebootPolicy,
)

StepPromise = Callable[[Passage], Iterator[str]]

FROM_THE_CONTROL_PLANE: Final = (
    DispatchReceived,
    TargetOffered,
    IntentRefused,
    FactsDelivered,
    FactRefused,
    ReplayRequested,
    SnapshotsReceived,
    DutyFinished,
)
"""Events whose content the control plane chooses, and of which nothing is proved."""


def s1_only_proved_targets(passage: Passage) -> Iterator[str]:
    """S1: a switch is ordered only to what a verified manifest gives this host, fresh at that moment by both clocks.

    Of a source without signatures as much as can be said of it: offered, not withdrawn, and not too long ago.
    """
    for order in new_switches(passage):
        rollout_id = rollout_of(passage, order)
        seen = None if rollout_id is None else passage.after.intents.get(rollout_id)
        if seen is None or seen.intent.target != order.closure:
            yield f"{order.closure} is switched to, and no manifest in hand gives it to this host"
        else:
            if seen.withdrawn:
                yield f"{order.closure} is switched to, and its manifest was refused when it was last looked at"
            yield from _untimely(passage, seen)


def _untimely(passage: Passage, seen: SeenIntent) -> Iterator[str]:
    intent, wall = seen.intent, passage.event.at.wall_ms
    running = passage.after.clock.read(passage.event.at) - seen.seen_steady
    if intent.basis is not Basis.SIGNED_MANIFEST:
        if running > intent.freshness_window_s * 1000:
            yield f"{intent.rollout_id} is acted on, and was last offered {running} ms ago"
        return
    cap_s = passage.after.settings.freshness_cap_s
    window_s = intent.freshness_window_s if cap_s is None else min(cap_s, intent.freshness_window_s)
    limit = window_s * 1000 + CLOCK_SLACK_MS
    if wall - intent.signed_at > limit or seen.seen_wall + running - intent.signed_at > limit:
        yield f"{intent.rollout_id} is acted on, and its manifest is stale"
    if intent.signed_at - wall > CLOCK_SLACK_MS:
        yield f"{intent.rollout_id} is acted on, and its manifest is from the future"


def s2_never_an_older_manifest(passage: Passage) -> Iterator[str]:
    """S2: what is acted on is not older than the newest accepted of its channel; the marks never go back."""
    before, after = passage.known, passage.after
    for channel, mark in before.newest_signed.items():
        if after.newest_signed.get(channel, -1) < mark:
            yield f"the newest accepted signature of {channel} went back from {mark}"
    for rollout_id in acted_on(passage):
        seen = after.intents.get(rollout_id)
        if seen is None or seen.intent.basis is not Basis.SIGNED_MANIFEST:
            continue
        if seen.intent.signed_at < after.newest_signed.get(seen.intent.channel, -1):
            yield f"{rollout_id} is acted on, and a newer manifest of {seen.intent.channel} has been accepted"
    for rollout_id, _ in facts_of(passage, DispatchAck):
        if (taken := after.intents.get(rollout_id)) is not None and taken.withdrawn:
            yield f"{rollout_id} is taken, and its manifest was refused when it was last looked at"


def s3_quarantine_holds(passage: Passage) -> Iterator[str]:
    """S3: no order leads to a quarantined closure, and only an operator makes the quarantine smaller."""
    before, after = passage.known.quarantine, passage.after.quarantine
    for order in passage.new_orders:
        if order.closure in before or order.closure in after:
            yield f"{order.closure} is quarantined and is switched to"
    if not isinstance(passage.event, QuarantineCleared):
        yield from (f"{closure} left the quarantine by itself" for closure in before.keys() - after.keys())


def s4_converged_means_proved(passage: Passage) -> Iterator[str]:
    """S4: at `Converged` the target was seen running, its soak is over and every enforce probe passed last."""
    for rollout_id, fact in facts_of(passage, Converged):
        tracked, known = passage.after.rollouts[rollout_id], passage.after
        observed = _observed(passage)
        if observed is None or not fact.current_closure == observed.running == tracked.record.target_closure:
            yield f"{rollout_id} converged, and its target was not seen running in that moment"
        soaked = -1 if tracked.soak_from is None else known.clock.read(passage.event.at) - tracked.soak_from
        due = tracked.record.soak_due_at
        if soaked < tracked.soak_ms or (due is not None and passage.event.at.wall_ms < due):
            yield f"{rollout_id} converged before its soak was over"
        for spec in known.judges:
            health = known.probes.get(spec.name)
            if spec.mode is ProbeMode.ENFORCE and (health is None or health.status is not ProbeStatus.PASS):
                yield f"{rollout_id} converged, and {spec.name} has not passed last"

    yield from _said_before(passage)


def _said_before(passage: Passage) -> Iterator[str]:
    """What a probe said of something that ran before the target, or before the boot, and counts all the same."""
    event, after = passage.event, passage.after
    if isinstance(event, Booted) and event.system.boot_id != passage.known.clock.boot_id and after.probes:
        yield f"{', '.join(after.probes)} spoke before the reboot, and it counts"
    if not isinstance(event, ProbeObserved):
        return
    for rollout_id, _ in facts_of(passage, ProbeResult):
        activated = after.rollouts[rollout_id].soak_from
        if activated is not None and event.began_mono_ms + after.clock.offset_ms < activated:
            yield f"{event.name} began before {rollout_id} was activated, and speaks for it"


def _observed(passage: Passage) -> SystemView | None:
    match passage.event:
        case SystemObserved(system=system) | SwitchFinished(system=system) | Booted(system=system):
            return system
        case _:
            return None


def s5_back_to_what_ran(passage: Passage) -> Iterator[str]:
    """S5: a rollback goes to the system recorded at the dispatch, never to the target; without one, that is said."""
    for order in new_rollbacks(passage):
        rollout_id = rollout_of(passage, order)
        tracked = None if rollout_id is None else passage.known.rollouts.get(rollout_id)
        if tracked is None or tracked.prior != order.closure:
            yield f"a rollback goes to {order.closure}, which was not recorded before it"
        elif order.closure == tracked.record.target_closure:
            yield f"a rollback goes to {order.closure}, the failing target"
        elif tracked.record.target_closure not in passage.after.quarantine and not is_repeat(passage):
            yield f"{tracked.record.target_closure} is rolled back and not quarantined"
    for rollout_id, reverted in facts_of(passage, RollbackComplete):
        if reverted.reverted_to_closure != passage.known.rollouts[rollout_id].prior:
            yield f"{rollout_id} was reverted to {reverted.reverted_to_closure}, which is not what ran before"
    for rollout_id, failed in facts_of(passage, Failed):
        taken_back = bool(new_rollbacks(passage))
        said = any(rollout == rollout_id for rollout, _ in facts_of(passage, RollbackFailed))
        if failed.policy_applied is FailurePolicy.ROLLBACK_AND_HALT and not taken_back and not said:
            yield f"{rollout_id} failed, and nothing says why it is not rolled back"


def s6_one_at_a_time(passage: Passage) -> Iterator[str]:
    """S6: a switch or rollback begins only when none is in flight, or in the step that sees the last one's end."""
    given = orders(passage.step.actions)
    if len(given) > 1:
        yield f"{len(given)} switches ordered in one step"
    if passage.new_orders and passage.known.busy and not _ends_the_one_in_flight(passage):
        yield f"a switch is ordered while {passage.known.operation} is in flight"


def _ends_the_one_in_flight(passage: Passage) -> bool:
    operation = passage.known.operation
    if not isinstance(operation, Switching | RollingBack):
        return True
    match passage.event:
        case SwitchFinished(op=op):
            return op == operation.op
        case Booted(system=system):
            return system.boot_id != operation.boot_id
        case Tick(at=at):  # far beyond the worker's own deadline, its answer counts as lost
            return passage.after.clock.read(at) >= operation.due
        case _:
            return False


def s7_numbers_without_gaps(passage: Passage) -> Iterator[str]:
    """S7: facts are numbered one after the other per rollout, and what was numbered stays."""
    if passage.after.rollouts is passage.known.rollouts and not passage.step.facts:
        return
    last = {rollout_id: tracked.record.last_seq for rollout_id, tracked in passage.known.rollouts.items()}
    last |= {rollout_id: entry.last_seq for rollout_id, entry in passage.known.forgotten.items()}
    for born in passage.step.facts:
        adopted = passage.after.rollouts[born.rollout_id].oldest_seq
        expected = last.get(born.rollout_id, adopted - 1) + 1
        if born.fact.seq != expected:
            yield f"{type(born.fact).__name__} of {born.rollout_id} is number {born.fact.seq}, not {expected}"
        last[born.rollout_id] = born.fact.seq
    for rollout_id, tracked in passage.after.rollouts.items():
        if tracked.record.last_seq != last.get(rollout_id, tracked.oldest_seq - 1):
            yield f"{rollout_id} counts {tracked.record.last_seq} facts, and {last.get(rollout_id)} were born"
    if passage.step.facts and not passage.step.durable:
        yield "facts were born in a step that is not journaled"
    if isinstance(passage.event, FactsDelivered):
        rollout_id, through = passage.event.rollout_id, passage.event.through_seq
        then, now = passage.known.rollouts.get(rollout_id), passage.after.rollouts.get(rollout_id)
        if then is not None and now is not None and now.delivered_seq > max(then.delivered_seq, through):
            yield f"{rollout_id} counts as delivered through {now.delivered_seq}, and {through} were"


def s8_stale_stays_stale(passage: Passage) -> Iterator[str]:
    """S8: marks of staleness never go back, and nothing is begun by a clock that trusted signatures contradict."""
    for channel, mark in passage.known.stale_through.items():
        if passage.after.stale_through.get(channel, -1) < mark:
            yield f"manifests of {channel} signed through {mark} are no longer marked stale"
    wall, newest = passage.event.at.wall_ms, passage.after.newest_signature
    for rollout_id in acted_on(passage):
        seen = passage.after.intents.get(rollout_id)
        if seen is not None and seen.intent.basis is not Basis.SIGNED_MANIFEST:
            continue
        if newest is not None and wall < newest - CLOCK_SLACK_MS:
            yield f"{rollout_id} is acted on, and the clock is behind the newest signature"
        if seen is not None and seen.intent.signed_at <= passage.after.stale_through.get(seen.intent.channel, -1):
            yield f"{rollout_id} is acted on, and its manifest was found stale once"


def s9_the_control_plane_cannot_move_us(passage: Passage) -> Iterator[str]:
    """S9: what the control plane says orders no switch by itself, stops no probe, and asks back only what is active."""
    if not isinstance(passage.event, FROM_THE_CONTROL_PLANE):
        return
    if new_switches(passage):
        yield f"{type(passage.event).__name__} alone ordered a switch"
    if new_rollbacks(passage) and not _is_wish_for_the_active(passage):
        yield f"{type(passage.event).__name__} alone ordered a rollback"
    if facts_of(passage, RollbackRequested) and not _is_wish_for_the_active(passage):
        yield f"{type(passage.event).__name__} is on record as a wish to roll back"
    if passage.after.topology != passage.known.topology:
        yield f"{type(passage.event).__name__} changed what is probed"
    if passage.after.settings != passage.known.settings:
        yield f"{type(passage.event).__name__} changed the settings"


def _is_wish_for_the_active(passage: Passage) -> bool:
    event, current = passage.event, passage.known.current
    return (
        isinstance(event, DispatchReceived)
        and event.kind is DispatchKind.ROLLBACK
        and current is not None
        and event.rollout_id == current.record.rollout_id
        and current.record.phase not in (Phase.PENDING, Phase.FAILED, Phase.REVERTED)
    )


def s10_only_the_journal_moves_us(passage: Passage) -> Iterator[str]:
    """S10: an event that is not journaled leaves the durable state as it is."""
    if not passage.step.durable and passage.after is not passage.known:
        yield f"{type(passage.event).__name__} changed the durable state and is not journaled"
    if isinstance(passage.event, Booted) and not passage.step.durable:
        yield "a boot is not journaled"


def the_operator_has_a_say(passage: Passage) -> Iterator[str]:
    """What the operator restricts is not begun otherwise: windows, hooks that were asked, reboots.

    Not so rollbacks, nor a switch that was cut off in the middle and is finished.
    """
    known, wall, calendar = passage.after, passage.event.at.wall_ms, passage.after.calendar
    for order in () if _goes_on(passage) else new_switches(passage):
        if calendar is not None and not _is_open(calendar.activation, wall):
            yield f"{order.closure} is switched to outside of every window"
        if known.settings.hooks and not _hooks_agree(passage):
            yield f"{order.closure} is switched to, and the hooks have not agreed"
    for reboot in (action for action in passage.step.actions if isinstance(action, Reboot)):
        current = known.current
        if known.settings.reboot is RebootPolicy.NEVER or known.settings.holds:
            yield "a reboot is ordered that nobody has allowed"
        if current is None or current.record.phase is not Phase.DEFERRED or known.system.profile != reboot.closure:
            yield f"a reboot is ordered that would not bring {reboot.closure}"
        if calendar is not None and not _is_open(calendar.reboot, wall):
            yield "a reboot is ordered outside of every window"


def _goes_on(passage: Passage) -> bool:
    return isinstance(passage.known.operation, Realising) and passage.known.operation.begun


def _hooks_agree(passage: Passage) -> bool:
    match passage.event, passage.known.operation:
        case HooksFinished(op=op, veto=""), Consulting(op=asked):
            return op == asked
        case _:
            return False


def _is_open(spans: tuple[Span, ...] | None, wall: int) -> bool:
    return spans is None or any(span.begins <= wall < span.ends for span in spans)


def hangs_together(passage: Passage) -> Iterator[str]:
    """The durable state after contradicts itself nowhere, and is bounded."""
    yield from contradictions(passage.after)


def contradictions(known: Known) -> Iterator[str]:
    """What in `known` cannot be true together. A state without any is one that `step` can be given."""
    current = known.current
    if known.active is not None and current is None:
        yield f"{known.active} is active and not tracked"
    if current is not None:
        yield from _contradictions_of_the_active(known, current)
    elif known.operation is not None:
        yield "an operation is under way for no rollout"
    if known.waiting is not None and known.waiting.rollout_id in known.rollouts:
        phase = known.rollouts[known.waiting.rollout_id].record.phase
        if phase is not Phase.PENDING:
            yield f"a dispatch is held for {known.waiting.rollout_id}, which is {phase}"
    for rollout_id, tracked in known.rollouts.items():
        if tracked.record.rollout_id != rollout_id or rollout_id in known.forgotten:
            yield f"{rollout_id} is filed wrongly"
        if not tracked.oldest_seq - 1 <= tracked.delivered_seq <= tracked.record.last_seq:
            yield f"{rollout_id} has delivered through {tracked.delivered_seq}, which it does not have"
    yield from _oversized(known)


def _contradictions_of_the_active(known: Known, current: Tracked) -> Iterator[str]:
    operation, phase = known.operation, current.record.phase
    match operation:
        case Realising() | Consulting():
            fits, leads_to = phase is Phase.ACTIVATING, current.record.target_closure
        case Switching():
            # Failed: the control plane asked for a rollback in the middle of it.
            fits, leads_to = phase in (Phase.ACTIVATING, Phase.FAILED), current.record.target_closure
        case RollingBack():
            fits, leads_to = phase is Phase.FAILED, current.prior or current.record.target_closure
        case Rebooting():
            fits, leads_to = phase is Phase.DEFERRED, current.record.target_closure
        case None:
            fits, leads_to = phase is not Phase.ACTIVATING, current.record.target_closure
    if not fits:
        yield f"{current.record.rollout_id} is {phase}, and the operation is {operation}"
    if operation is not None and operation.closure != leads_to:
        yield f"{operation} is under way, and the active rollout wants {leads_to}"
    if operation is not None and operation.rollout_id != known.active:
        yield f"{operation} is under way, and {known.active} is active"
    if operation is not None and operation.op >= known.next_op:
        yield f"{operation} has a number that was not given out"
    if isinstance(operation, RollingBack) and operation.closure in known.quarantine:
        yield f"{operation} is under way, and leads to a quarantined closure"
    if phase is Phase.SOAKING and current.soak_from is None:
        yield f"{current.record.rollout_id} soaks since never"


def _oversized(known: Known) -> Iterator[str]:
    for name, kept, limit in (
        ("rollouts", known.rollouts, TRACKED_KEPT),
        ("forgotten", known.forgotten, FORGOTTEN_KEPT),
        ("intents", known.intents, INTENTS_KEPT),
        ("refusals", known.refusals, REFUSALS_KEPT),
        ("hook runs", known.hook_runs, OWED_MAX),
    ):
        if len(kept) > limit:
            yield f"{len(kept)} {name} are kept, {limit} at most"


STEP_PROMISES: Final[Mapping[str, StepPromise]] = {
    "S1": s1_only_proved_targets,
    "S2": s2_never_an_older_manifest,
    "S3": s3_quarantine_holds,
    "S4": s4_converged_means_proved,
    "S5": s5_back_to_what_ran,
    "S6": s6_one_at_a_time,
    "S7": s7_numbers_without_gaps,
    "S8": s8_stale_stays_stale,
    "S9": s9_the_control_plane_cannot_move_us,
    "S10": s10_only_the_journal_moves_us,
    "operator": the_operator_has_a_say,
    "whole": hangs_together,
}
"""By the name architecture.md gives it. `whole` is what they all rest on, `operator` what was asked for beyond them."""
