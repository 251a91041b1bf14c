"""The outbox is the journal: delivery is one watermark per rollout (promise S7).

Facts go out in order, at least once. The watermark moves forward when the control plane answers, and back when it
says that it lacks something; no fact is ever changed or renumbered for it.
"""

from state_machine.events import FactRefused, FactsDelivered, ReplayRequested
from state_machine.evolution import evolve
from state_machine.state import Tracked
from state_machine.turn import Turn


def on_facts_delivered(turn: Turn, event: FactsDelivered) -> None:
    """The control plane has everything through `through_seq`."""
    tracked = turn.known.rollouts.get(event.rollout_id)
    if tracked is None:
        return turn.unexpected(f"facts of {event.rollout_id} delivered, which is not known here")
    through = min(event.through_seq, tracked.record.last_seq)
    if through > tracked.delivered_seq:
        turn.put(evolve(tracked, delivered_seq=through))
    return None


def on_fact_refused(turn: Turn, event: FactRefused) -> None:
    """The control plane will never take this fact; those behind it must not wait for it."""
    tracked = turn.known.rollouts.get(event.rollout_id)
    if tracked is None or not tracked.delivered_seq < event.seq <= tracked.record.last_seq:
        return turn.unexpected(f"fact {event.seq} of {event.rollout_id} refused, which is not on its way")
    turn.put(evolve(tracked, delivered_seq=event.seq, refused_facts=tracked.refused_facts + 1))
    return None


def on_replay_requested(turn: Turn, event: ReplayRequested) -> None:
    """The control plane lacks facts from `from_seq` on: it shall have them again, unchanged."""
    tracked = turn.known.rollouts.get(event.rollout_id)
    if tracked is None or event.from_seq < 1:
        return turn.unexpected(f"a replay of {event.rollout_id} from {event.from_seq}")
    go_back(turn, tracked, event.from_seq)
    return None


def go_back(turn: Turn, tracked: Tracked, from_seq: int) -> None:
    """Deliver from `from_seq` on once more, as far back as this host's journal goes."""
    through = max(from_seq, tracked.oldest_seq) - 1
    if through < tracked.delivered_seq:
        turn.put(evolve(tracked, delivered_seq=through))
