"""Which rollouts this host remembers, and how much of each.

The record of a rollout begins here, when a dispatch of it is taken or rejected. What is remembered is bounded, and the
numbers of facts are never used twice for it (S7): a rollout that had to make room leaves behind how far it had counted.
"""

from typing import Final

from state_machine.events import VerifiedIntent
from state_machine.evolution import evolve
from state_machine.lifecycle import HostRollout, opened
from state_machine.state import Forgotten, HeldDispatch, Known, Tracked
from state_machine.turn import Turn, without
from state_machine.values import Closure, Phase, RolloutId

TRACKED_KEPT: Final = 32
FORGOTTEN_KEPT: Final = 256


def track(turn: Turn, held: HeldDispatch, intent: VerifiedIntent | None) -> Tracked:
    """Begin (or, for one that was rejected before, renew) the rollout of `held`."""
    known = turn.known
    old = known.rollouts.get(held.rollout_id)
    if old is None:
        _forget_oldest(turn)
    record = _record_for(turn.known, held, old)
    tracked = Tracked(
        number=known.next_number,
        record=record,
        intent=intent,
        prior=_way_back(known),
        soak_ms=_soak_ms(held, intent),
        oldest_seq=_oldest_seq(known, held, old),
        delivered_seq=old.delivered_seq if old else record.last_seq,
        rejected_at=old.rejected_at if old else None,
    )
    turn.set(next_number=known.next_number + 1, forgotten=without(turn.known.forgotten, held.rollout_id))
    turn.put(tracked)
    return tracked


def _oldest_seq(known: Known, held: HeldDispatch, old: Tracked | None) -> int:
    if old is not None:
        return old.oldest_seq
    earlier = known.forgotten.get(held.rollout_id)
    return held.adopted_seq + 1 if earlier is None else earlier.oldest_seq


def remember_numbers(turn: Turn, rollout_id: RolloutId, last_seq: int) -> None:
    """The control plane holds facts of a rollout that this host has lost: go on counting after them (S7)."""
    number = turn.known.next_number
    entry = Forgotten(number=number, phase=Phase.PENDING, last_seq=last_seq, oldest_seq=last_seq + 1)
    turn.set(next_number=number + 1, forgotten=_bounded({**turn.known.forgotten, rollout_id: entry}))


def _record_for(known: Known, held: HeldDispatch, old: Tracked | None) -> HostRollout:
    if old is not None:
        return evolve(old.record, target_closure=held.target, soak_due_at=held.soak_due_at)
    fresh = opened(held.rollout_id, known.settings.machine_id, held.target, soak_due_at=held.soak_due_at)
    earlier = known.forgotten.get(held.rollout_id)
    last_seq = held.adopted_seq if earlier is None else earlier.last_seq
    return evolve(fresh, phase=held.adopted or Phase.PENDING, last_seq=last_seq)


def _way_back(known: Known) -> Closure | None:
    """What a rollback goes back to: what runs now, unless that is itself a target that never proved itself here.

    A release that names the closure a host is still soaking, or that comes while a rollback waits for another try,
    must not make the unproven system the one to return to.
    """
    current, running = known.current, known.system.running
    if current is None or current.record.phase is Phase.CONVERGED or running != current.record.target_closure:
        return running
    return running if current.prior is None or current.prior in known.quarantine else current.prior


def _soak_ms(held: HeldDispatch, intent: VerifiedIntent | None) -> int:
    """The signed soak is the least; the control plane may ask for a longer one, never for a shorter."""
    signed = 0 if intent is None else intent.policy.soak_ms
    return max(signed, held.soak_ms or 0)


def _forget_oldest(turn: Turn) -> None:
    """Room for one more: what is delivered goes before what is not, what was only rejected before what was taken."""
    known = turn.known
    if len(known.rollouts) < TRACKED_KEPT:
        return
    spare = [tracked for tracked in known.rollouts.values() if tracked.record.rollout_id != known.active]
    oldest = min(
        spare, key=lambda t: (t.record.last_seq > t.delivered_seq, t.record.phase is not Phase.PENDING, t.number)
    )
    record = oldest.record
    entry = Forgotten(number=oldest.number, phase=record.phase, last_seq=record.last_seq, oldest_seq=oldest.oldest_seq)
    turn.set(
        rollouts=without(known.rollouts, record.rollout_id),
        forgotten=_bounded({**known.forgotten, record.rollout_id: entry}),
    )


def _bounded(forgotten: dict[RolloutId, Forgotten]) -> dict[RolloutId, Forgotten]:
    """Names that anybody can make up, and that were only ever rejected, push each other out first."""
    if len(forgotten) <= FORGOTTEN_KEPT:
        return forgotten
    least = min(forgotten.items(), key=lambda item: (item[1].phase is not Phase.PENDING, item[1].number))
    return without(forgotten, least[0])
