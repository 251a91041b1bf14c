"""The promises of `step` that only a whole run can show, said again over everything that happened.

A run is a list of passages from an agent's first start, restarts and reboots included. What was shown to the agent and
what it did are taken from the events, facts and orders; its memory is consulted only for what it had accepted when, so
that something it should have remembered and did not comes to light.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import attrs

from state_machine.actions import Perform, Switch
from state_machine.endurance_promises import (
    l2_a_wish_is_followed,
    l2_tried_again_and_not_for_ever,
    rebooted,
    s4_half_done_is_not_done,
    s7_numbers_go_on_after_those_of_a_lost_journal,
)
from state_machine.events import (
    Booted,
    CertificateLoaded,
    Duty,
    IntentVerified,
    Poked,
    ProbeObserved,
    QuarantineCleared,
    SwitchFinished,
    TargetOffered,
    Tick,
    VerifiedIntent,
)
from state_machine.facts import ActivationCompleted, Converged, DispatchAck, RollbackComplete, RollbackRequested
from state_machine.passages import (
    Order,
    Passage,
    acted_on,
    facts_of,
    is_repeat,
    new_rollbacks,
    new_switches,
    orders,
    rollout_of,
)
from state_machine.state import GENESIS, SeenIntent, State
from state_machine.step import step
from state_machine.values import (
    CLOCK_SLACK_MS,
    Basis,
    Channel,
    Closure,
    Phase,
    ProbeMode,
    ProbeStatus,
    RolloutId,
    WallMs,
    is_closure,
)

PACE_MS: Final = 500
"""No exchange of one kind begins sooner than this after the one before it."""

_AT_ONCE: Final = (Booted, Poked, CertificateLoaded)
"""Events after which exchanges may begin anew, whenever they began last."""

Run = Sequence[Passage]
RunPromise = Callable[[Run], Iterator[str]]


def s1_something_verified_was_shown(run: Run) -> Iterator[str]:
    """S1: before every switch a verified manifest was shown that gives this host exactly that closure, and is fresh.

    Where nobody signs, the source has named exactly that closure in this run, not too long ago, and nothing else since.
    """
    shown: list[IntentVerified] = []
    said: _Said | None = None
    for passage in run:
        said = _said_last(passage, said)
        if isinstance(passage.event, IntentVerified):
            shown.append(passage.event)
        for order in new_switches(passage):
            wall, rollout_id = passage.event.at.wall_ms, rollout_of(passage, order)
            if (offer := _offer_behind(passage, rollout_id)) is not None:
                yield from _not_what_was_said(passage, order, offer, said)
                continue
            fitting = [e for e in shown if e.intent.target == order.closure and e.intent.rollout_id == rollout_id]
            if not any(_fresh_by_the_wall(event.intent, wall) for event in fitting):
                yield f"{order.closure} was switched to, and no fresh manifest for it had been shown"


@attrs.frozen(kw_only=True)
class _Said:
    closure: str | None
    at: int


def _said_last(passage: Passage, before: _Said | None) -> _Said | None:
    """What a source without signatures has said last in this run of the agent."""
    match passage.event:
        case Booted():
            return None
        case TargetOffered(basis=Basis.SIGNED_MANIFEST):
            return before
        case TargetOffered(closure=closure) if closure is None or is_closure(closure):
            return _Said(closure=closure, at=passage.after.clock.read(passage.event.at))
        case _:
            return before


def _offer_behind(passage: Passage, rollout_id: RolloutId | None) -> VerifiedIntent | None:
    """The offer that a rollout stands for; None: its target is signed, or says to be."""
    seen = None if rollout_id is None else passage.after.intents.get(rollout_id)
    return None if seen is None or seen.intent.basis is Basis.SIGNED_MANIFEST else seen.intent


def _not_what_was_said(passage: Passage, order: Switch, offer: VerifiedIntent, said: _Said | None) -> Iterator[str]:
    if said is None or said.closure != order.closure:
        yield f"{order.closure} was switched to on {offer.basis}, and its source said {said} last"
    elif passage.after.clock.read(passage.event.at) - said.at > offer.freshness_window_s * 1000:
        yield f"{order.closure} was switched to on {offer.basis}, and was offered too long ago"


def _fresh_by_the_wall(intent: VerifiedIntent, wall: WallMs) -> bool:
    age = wall - intent.signed_at
    return -CLOCK_SLACK_MS <= age <= intent.freshness_window_s * 1000 + CLOCK_SLACK_MS


def s2_nothing_older_than_the_newest_accepted(run: Run) -> Iterator[str]:
    """S2: once a manifest of a channel was accepted, nothing signed earlier for that channel is acted on."""
    newest: dict[Channel, WallMs] = {}
    for passage in run:
        for channel, signed_at in passage.after.newest_signed.items():
            newest[channel] = max(signed_at, newest.get(channel, signed_at))
        for rollout_id, intent in _signed(_acted_on(passage)):
            if intent.signed_at < newest.get(intent.channel, intent.signed_at):
                yield f"{rollout_id} was acted on after a newer manifest of {intent.channel}"


def _signed(intents: Iterator[tuple[RolloutId, VerifiedIntent]]) -> Iterator[tuple[RolloutId, VerifiedIntent]]:
    """Those that a key has signed: the date of an offer is this host's own, and its age counts from the last word."""
    yield from (item for item in intents if item[1].basis is Basis.SIGNED_MANIFEST)


def _acted_on(passage: Passage) -> Iterator[tuple[RolloutId, VerifiedIntent]]:
    for rollout_id in acted_on(passage):
        seen = passage.after.intents.get(rollout_id)
        if seen is not None:
            yield rollout_id, seen.intent


def s3_never_again_until_cleared(run: Run) -> Iterator[str]:
    """S3: what was taken back is not switched to again until an operator clears it."""
    taken_back: set[Closure] = set()
    for passage in run:
        match passage.event:
            case QuarantineCleared(closure=None):
                taken_back.clear()
            case QuarantineCleared(closure=str(closure)):
                taken_back.discard(Closure(closure))
            case _:
                pass
        yield from (
            f"{order.closure} was switched to after it had been rolled back"
            for order in passage.new_orders
            if order.closure in taken_back
        )
        for order in new_rollbacks(passage):
            rollout_id = rollout_of(passage, order)
            if rollout_id is not None and not is_repeat(passage):
                taken_back.add(passage.after.rollouts[rollout_id].record.target_closure)


def s4_every_enforce_probe_spoke_last_for_it(run: Run) -> Iterator[str]:
    """S4: at `Converged`, running time covers the soak, and every enforce probe's last result since then is a pass."""
    began: dict[RolloutId, int] = {}
    booted = 0
    for index, passage in enumerate(run):
        now = passage.after.clock.read(passage.event.at)
        booted = now if rebooted(passage) else booted
        for rollout_id, _ in facts_of(passage, ActivationCompleted):
            began[rollout_id] = now
        for rollout_id, _ in facts_of(passage, Converged):
            tracked = passage.after.rollouts[rollout_id]
            if rollout_id in began and now - began[rollout_id] < tracked.policy.soak_ms:
                yield f"{rollout_id} converged {now - began[rollout_id]} ms after its activation"
            last = _last_results(run[: index + 1], max(booted, began.get(rollout_id, 0)))
            for spec in passage.after.judges:
                if spec.mode is ProbeMode.ENFORCE and last.get(spec.name) is not ProbeStatus.PASS:
                    yield f"{rollout_id} converged, and {spec.name} said {last.get(spec.name)} last"


def _last_results(run: Run, since: int) -> dict[str, ProbeStatus]:
    """What each probe said last, of runs that began after `since` and after whatever made the agent begin anew."""
    since = max(since, run[-1].after.probes_since)
    last: dict[str, ProbeStatus] = {}
    for passage in run:
        event = passage.event
        if isinstance(event, ProbeObserved) and event.status is not ProbeStatus.UNKNOWN:
            if event.began_mono_ms + passage.after.clock.offset_ms >= since:
                last[event.name] = event.status
    return last


def s5_what_ran_at_the_dispatch(run: Run) -> Iterator[str]:
    """S5: a rollback goes to what `DispatchAck` said was running, and that was said before the switch began.

    Where what ran was itself a target that had not converged, it goes to what that one had replaced. A rollout that
    was acknowledged in a journal that is lost goes back to what ran when it was taken up.
    """
    ran: dict[RolloutId, Closure] = {}
    switched: set[RolloutId] = set()
    latest: RolloutId | None = None
    for passage in run:
        for rollout_id, ack in facts_of(passage, DispatchAck):
            running = ack.current_closure_at_dispatch
            before = None if latest is None else passage.known.rollouts.get(latest)
            unproven = (
                before is not None
                and before.record.target_closure == running
                and before.record.phase is not Phase.CONVERGED
            )
            older = ran.get(latest) if unproven and latest is not None else None
            ran[rollout_id] = older if older and older not in passage.known.quarantine else running
            latest = rollout_id
            back_to = passage.after.rollouts[rollout_id].prior or ""
            if back_to != ran[rollout_id]:
                yield f"{rollout_id} would be rolled back to {back_to}, and {ran[rollout_id]} ran at its dispatch"
            if rollout_id in switched:
                yield f"{rollout_id} was acknowledged after its switch had begun"
        adopted = passage.after.active
        if adopted is not None and adopted not in ran and passage.known.system.running is not None:
            # Acknowledged in a journal that is lost: what runs when it is taken up is all there is to go back to.
            ran[adopted], latest = passage.known.system.running, adopted
        for order in passage.new_orders:
            order_for = rollout_of(passage, order)
            if order_for is not None and isinstance(order, Switch):
                switched.add(order_for)
            elif order_for in ran and order.closure != ran[order_for]:
                yield f"{order_for} is rolled back to {order.closure}, and {ran[order_for]} ran at its dispatch"
        for rollout_id, fact in facts_of(passage, RollbackComplete):
            if fact.reverted_to_closure != ran.get(rollout_id, fact.reverted_to_closure):
                yield f"{rollout_id} was reverted to {fact.reverted_to_closure}, and {ran[rollout_id]} ran before"


@attrs.frozen(kw_only=True)
class _InFlight:
    order: Order
    boot_id: str
    since: int


def s6_never_two_in_flight(run: Run) -> Iterator[str]:
    """S6: a switch or rollback begins after the one before it was answered, lost to a reboot, or long overdue."""
    flight: _InFlight | None = None
    for passage in run:
        event, now, boot_id = passage.event, passage.after.clock.read(passage.event.at), passage.after.clock.boot_id
        if flight is not None:
            answered = isinstance(event, SwitchFinished) and event.op == flight.order.op
            overdue = isinstance(event, Tick) and now - flight.since > flight.order.timeout_s * 1000
            if answered or overdue or boot_id != flight.boot_id:
                flight = None
        for order in orders(passage.step.actions):
            if flight is not None and flight.order.op != order.op:
                yield f"{order} was given while {flight.order} was in flight"
            flight = _InFlight(order=order, boot_id=boot_id, since=now)


def s7_each_number_once(run: Run) -> Iterator[str]:
    """S7: per rollout, facts are numbered one after the other from the first to the last of the whole run."""
    last: dict[RolloutId, int] = {}
    for passage in run:
        for born in passage.step.facts:
            adopted = passage.after.rollouts[born.rollout_id].oldest_seq - 1
            if born.fact.seq != last.get(born.rollout_id, adopted) + 1:
                yield f"{born.rollout_id} has fact {born.fact.seq} after {last.get(born.rollout_id, adopted)}"
            last[born.rollout_id] = born.fact.seq


def s8_no_clock_revives_it(run: Run) -> Iterator[str]:
    """S8: what a deadline once found stale is not acted on later, nor what has run out since it was first accepted."""
    accepted: dict[VerifiedIntent, tuple[WallMs, int]] = {}
    expired: set[VerifiedIntent] = set()
    intents: Mapping[RolloutId, SeenIntent] = {}
    for passage in run:
        after, event = passage.after, passage.event
        wall, now = event.at.wall_ms, after.clock.read(event.at)
        if after.intents is not intents:
            intents = after.intents
            for seen in intents.values():
                accepted.setdefault(seen.intent, (wall, now))
        if isinstance(event, Tick):
            for seen in intents.values():
                if wall - seen.intent.signed_at > _limit(passage, seen.intent):
                    expired.add(seen.intent)
        for rollout_id, intent in _signed(_acted_on(passage)):
            then_wall, then = accepted[intent]
            if intent in expired:
                yield f"{rollout_id} was acted on, and its manifest had been stale before"
            if then_wall - intent.signed_at + now - then > _limit(passage, intent):
                yield f"{rollout_id} was acted on, and its manifest has run out since it came"


def _limit(passage: Passage, intent: VerifiedIntent) -> int:
    cap_s = passage.after.settings.freshness_cap_s
    window_s = intent.freshness_window_s if cap_s is None else min(intent.freshness_window_s, cap_s)
    return window_s * 1000 + CLOCK_SLACK_MS


def s9_asked_back_once_and_at_its_pace(run: Run) -> Iterator[str]:
    """S9: one rollback wish per rollout; no exchange begins at once after the one before, whatever is answered."""
    asked: set[RolloutId] = set()
    begun: dict[Duty, int] = {}
    for passage in run:
        for rollout_id, _ in facts_of(passage, RollbackRequested):
            if rollout_id in asked:
                yield f"{rollout_id} was asked back twice"
            asked.add(rollout_id)
        now = passage.after.clock.read(passage.event.at)
        if isinstance(passage.event, _AT_ONCE):
            begun.clear()
        for action in passage.step.actions:
            if isinstance(action, Perform):
                if abs(now - begun.get(action.duty, now - PACE_MS)) < PACE_MS:
                    yield f"{action.duty} began {now - begun[action.duty]} ms after the one before it"
                begun[action.duty] = now


def s10_the_journal_replays(run: Run) -> Iterator[str]:
    """S10: the journaled events alone, from nothing, give the same durable state and the same facts."""
    if not run:
        return
    known = run[0].before.known
    if known != GENESIS.known:
        yield "the run does not begin at the beginning"
    for index, passage in enumerate(run):
        if not passage.step.durable:
            continue
        again = step(State(known=known), passage.event)
        known = again.state.known
        if again.facts != passage.step.facts:
            yield f"entry {index} gave birth to {passage.step.facts}, and on replay to {again.facts}"
    if known != run[-1].after:
        yield "the replayed journal ends in another state"


def _all(*promises: RunPromise) -> RunPromise:
    return lambda run: (problem for promise in promises for problem in promise(run))


RUN_PROMISES: Final[Mapping[str, RunPromise]] = {
    "S1": s1_something_verified_was_shown,
    "S2": s2_nothing_older_than_the_newest_accepted,
    "S3": s3_never_again_until_cleared,
    "S4": _all(s4_every_enforce_probe_spoke_last_for_it, s4_half_done_is_not_done),
    "S5": s5_what_ran_at_the_dispatch,
    "S6": s6_never_two_in_flight,
    "S7": _all(s7_each_number_once, s7_numbers_go_on_after_those_of_a_lost_journal),
    "S8": s8_no_clock_revives_it,
    "S9": s9_asked_back_once_and_at_its_pace,
    "S10": s10_the_journal_replays,
    "L2": _all(l2_tried_again_and_not_for_ever, l2_a_wish_is_followed),
}
"""By the name architecture.md gives it."""
