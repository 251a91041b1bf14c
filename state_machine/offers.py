"""Targets that nobody signed: what a source without manifests says this host should run (promises S3 to S10).

An offer becomes a rollout like any other, under a name that this host gives it; from there on nothing tells the two
apart but the basis of their trust. An offer counts for as long as its source goes on saying the same: it is good for
`OFFER_GOOD_S`, renewed by being said again, and after a start of the agent it has to be said anew before anything is
begun on its account. A source that cannot say anything takes nothing back; one that says something else does.
"""

from typing import Final

import attrs

from state_machine import activation, intake
from state_machine.events import TargetOffered, VerifiedIntent
from state_machine.freshness import is_signed
from state_machine.state import Consulting, HeldDispatch, Known, Realising, SeenIntent, Tracked, is_of_source
from state_machine.turn import Turn
from state_machine.values import (
    Basis,
    Channel,
    Closure,
    Phase,
    Reason,
    RolloutId,
    Source,
    SwitchMethod,
    is_closure,
)

OFFER_GOOD_S: Final = 86_400
RENEW_AFTER_MS: Final = OFFER_GOOD_S * 1000 // 4
"""An offer that is said again is put on record only so often."""
TRY_AGAIN_MS: Final = 900_000
"""How long after a failure that says nothing about the target (a lock that was held) it is tried again."""
NO_LONGER_OFFERED: Final = "no longer offered"


def on_target_offered(turn: Turn, event: TargetOffered) -> None:
    """Take up a target that is new, renew one that is said again, leave one alone that was rolled back (S3)."""
    known = turn.known
    if known.settings.source is Source.FLEET or event.basis is Basis.SIGNED_MANIFEST:
        return turn.unexpected("this host follows signed manifests, and an offer is none")
    if event.closure is None:
        return _no_longer_wanted(turn)
    if not is_closure(event.closure):
        return turn.refuse(Reason.PARSE, f"no closure name: {event.closure[:64]!r}")
    closure = Closure(event.closure)
    if (entry := known.quarantine.get(closure)) is not None:
        _no_longer_wanted(turn)
        return turn.refuse(Reason.QUARANTINED, f"rolled back in {entry.rollout_id}: {entry.why}", closure)
    if (same := _offered_before(known, closure, event)) is not None:
        return _say_again(turn, same)
    withdraw_all(turn)
    if known.settings.holds:
        return turn.refuse(Reason.BUSY, known.settings.holds, closure)
    return _take_up(turn, closure, event)


def _offered_before(known: Known, closure: Closure, event: TargetOffered) -> RolloutId | None:
    """The rollout that this very offer is already, if it waits or is active and needs no other try."""
    held, current = known.waiting, known.current
    if held is not None and held.target == closure and _is_of(known, held.rollout_id, event):
        return held.rollout_id
    if current is None or current.record.target_closure != closure or _may_try_again(known, current, event):
        return None
    return current.record.rollout_id if _is_of(known, current.record.rollout_id, event) else None


def _is_of(known: Known, rollout_id: RolloutId, event: TargetOffered) -> bool:
    seen, tracked = known.intents.get(rollout_id), known.rollouts.get(rollout_id)
    intent = seen.intent if seen is not None else None if tracked is None else tracked.intent
    return intent is not None and intent.basis is event.basis and is_of_source(known.settings.source, intent)


def _may_try_again(known: Known, current: Tracked, event: TargetOffered) -> bool:
    """It is not quarantined any more, or it failed for reasons that are not its own.

    Of those, one that its source has stood by since is tried again after a while, by a clock that may have been set;
    a dry run is no failure that time could mend.
    """
    record = current.record
    if record.phase is Phase.REVERTED:
        return True
    if record.phase is not Phase.FAILED:
        return False
    seen = known.intents.get(record.rollout_id)
    said_anew = seen is None or seen.withdrawn
    dry = known.settings.switch_method is SwitchMethod.DRY_RUN
    a_while_ago = abs(event.at.wall_ms - (record.failed_at or 0)) >= TRY_AGAIN_MS and not dry
    return current.cleared or (current.untouched and (said_anew or a_while_ago))


def _say_again(turn: Turn, rollout_id: RolloutId) -> None:
    held = turn.known.waiting
    if held is not None and held.rollout_id != rollout_id:
        turn.set(waiting=None)  # the source has changed its mind, and changed it back
    seen = turn.known.intents.get(rollout_id)
    if seen is None or not (seen.withdrawn or turn.now - seen.seen_steady >= RENEW_AFTER_MS):
        return None
    fresh = attrs.evolve(seen, withdrawn=False, seen_wall=turn.wall, seen_steady=turn.now)
    turn.set(intents={**turn.known.intents, rollout_id: fresh})
    return intake.consider(turn)


def _take_up(turn: Turn, closure: Closure, event: TargetOffered) -> None:
    settings = turn.known.settings
    channel = Channel(settings.source.value)
    rollout_id = _free_name(turn.known, channel)
    intent = VerifiedIntent(
        rollout_id=rollout_id,
        channel=channel,
        signed_at=turn.wall,
        manifest_digest="",
        manifest_key_id="",
        fleet_digest="",
        fleet_signed_at=turn.wall,
        fleet_key_id="",
        freshness_window_s=OFFER_GOOD_S,
        target=closure,
        policy=settings.offer_policy,
        basis=event.basis,
        offered_as=event.offered_as[:256],
    )
    seen = SeenIntent(intent=intent, seen_wall=turn.wall, seen_steady=turn.now)
    turn.set(
        intents={**turn.known.intents, rollout_id: seen}, waiting=HeldDispatch(rollout_id=rollout_id, target=closure)
    )
    intake.forget_intents(turn, rollout_id)
    intake.consider(turn)


def _free_name(known: Known, channel: Channel) -> RolloutId:
    """A fleet may have a channel of the same name, and may have had any rollout in it."""
    number = known.next_number
    while (name := RolloutId(f"{channel}@{number:08x}")) in known.rollouts or name in known.forgotten:
        number += 1
    return name


def _no_longer_wanted(turn: Turn) -> None:
    """The source has nothing for this host: what is only being prepared for its sake ends here.

    A switch that was cut off in the middle is no longer only prepared: it stays on the record as under way.
    """
    withdraw_all(turn)
    known, current, operation = turn.known, turn.known.current, turn.known.operation
    if current is None or current.intent is None or known.settings.holds:
        return
    if isinstance(operation, Consulting) or (isinstance(operation, Realising) and not operation.begun):
        if is_of_source(known.settings.source, current.intent):
            activation.let_go(turn, NO_LONGER_OFFERED)


def begin_run(turn: Turn) -> None:
    """What was offered before counts for nothing until it is said again; what another source wanted is let go of."""
    withdraw_all(turn)
    held, source = turn.known.waiting, turn.known.settings.source
    if held is not None and source is not Source.FLEET:
        turn.refuse(Reason.SUPERSEDED, f"this host follows {source} now", held.rollout_id)
        turn.set(waiting=None)


def withdraw_all(turn: Turn) -> None:
    """No offer made so far is to be begun any more; what waits for its turn is let go of."""
    offers = {rollout_id: seen for rollout_id, seen in turn.known.intents.items() if not is_signed(seen.intent)}
    held = turn.known.waiting
    if held is not None and held.rollout_id in offers:
        turn.set(waiting=None)
    ended = {id_: attrs.evolve(seen, withdrawn=True) for id_, seen in offers.items() if not seen.withdrawn}
    if ended:
        turn.set(intents={**turn.known.intents, **ended})
