"""One turn of the reducer: the scratch pad on which handlers work out what follows an event.

A `Turn` lives inside one call of `step` and is thrown away; what leaves are frozen values. Facts are born here and
nowhere else: `record` numbers them and folds them into the rollout, so the record can never disagree with the facts.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from state_machine.actions import Action, Refuse, Unexpected
from state_machine.events import Event
from state_machine.evolution import evolve
from state_machine.facts import Fact, RolloutFact
from state_machine.lifecycle import HostRollout, fold
from state_machine.state import Known, RefusalNote, Session, State, Tracked
from state_machine.values import OpId, Reason, RolloutId, SteadyMs, WallMs

REFUSAL_REPEAT_MS: Final = 3_600_000
"""The same refusal goes into the journal once in this time; in between it is counted and logged."""
REFUSALS_KEPT: Final = 32
"""Bounds what a hostile control plane can make a host remember; with the repeat time it bounds the journal too."""


@attrs.frozen(kw_only=True)
class Step:
    """What follows an event: the state, the facts born, and the orders, in the order to carry them out.

    `durable` says that the journal must hold the event before any order is carried out.
    """

    state: State
    actions: tuple[Action, ...] = ()
    facts: tuple[RolloutFact, ...] = ()
    durable: bool = False


class Turn:
    """The working state of one step."""

    __slots__ = ("_before", "_facts", "actions", "event", "known", "now", "session", "wall")

    def __init__(self, state: State, event: Event, known: Known) -> None:
        self._before = state
        self.event = event
        self.known = known
        self.session: Session = state.session
        self.wall: WallMs = event.at.wall_ms
        self.now: SteadyMs = known.clock.read(event.at)
        self.actions: list[Action] = []
        self._facts: list[RolloutFact] = []

    def set(self, **changes: Any) -> None:
        """Replace members of `Known`."""
        self.known = evolve(self.known, **changes)

    def set_session(self, **changes: Any) -> None:
        """Replace members of `Session`."""
        self.session = evolve(self.session, **changes)

    def order(self, action: Action) -> None:
        """Order `action`, to be carried out after the commit."""
        self.actions.append(action)

    def unexpected(self, detail: str) -> None:
        """Record that the event makes no sense now; nothing else follows from it."""
        self.order(Unexpected(event=type(self.event).__name__, detail=detail))

    def new_op(self) -> OpId:
        """The number of the next order."""
        op = OpId(self.known.next_op)
        self.set(next_op=op + 1)
        return op

    def put(self, tracked: Tracked) -> None:
        """Replace one tracked rollout."""
        self.set(rollouts={**self.known.rollouts, tracked.record.rollout_id: tracked})

    def record(self, rollout_id: RolloutId, make: Callable[[int], Fact]) -> HostRollout:
        """Give birth to a fact: `make` gets its number. The rollout's record moves with it.

        Raises:
            AssertionError: the lifecycle does not allow the fact, which is a bug in the handler and not in the world;
                property tests drive every event into every state to show that it cannot happen.
        """
        tracked = self.known.rollouts[rollout_id]
        fact = make(tracked.record.last_seq + 1)
        folded = fold(tracked.record, fact)
        assert isinstance(folded, HostRollout), folded
        self._facts.append(RolloutFact(rollout_id=rollout_id, fact=fact))
        self.put(evolve(tracked, record=folded))
        return folded

    def refuse(self, reason: Reason, detail: str, rollout_id: str = "") -> None:
        """Count and log a refusal, and put it on record unless the same one was put there lately."""
        self.order(Refuse(reason=reason, detail=detail, rollout_id=rollout_id))
        key = f"{reason} {rollout_id}".strip()
        lately = self._recent_refusals()
        if key in lately or len(lately) >= REFUSALS_KEPT:
            return
        self.set(refusals={**lately, key: RefusalNote(at=self.now, detail=detail)})

    def refused_lately(self, rollout_id: str) -> bool:
        """Some refusal of this rollout is on record already."""
        return any(key.endswith(f" {rollout_id}") for key in self._recent_refusals())

    def refusals_full(self) -> bool:
        """No further refusal would go on record now."""
        return len(self._recent_refusals()) >= REFUSALS_KEPT

    def _recent_refusals(self) -> dict[str, RefusalNote]:
        notes = self.known.refusals
        return {key: note for key, note in notes.items() if self.now - note.at < REFUSAL_REPEAT_MS}

    def finish(self) -> Step:
        """The step this turn amounts to."""
        before = self._before
        durable = self.known is not before.known and self.known != before.known
        known = self._stamped() if durable else before.known
        moved = durable or self.session is not before.session
        return Step(
            state=State(known=known, session=self.session) if moved else before,
            actions=tuple(self.actions),
            facts=tuple(self._facts),
            durable=durable,
        )

    def _stamped(self) -> Known:
        clock = self.known.clock
        if self.now <= clock.last_ms:
            return self.known
        return evolve(self.known, clock=evolve(clock, last_ms=self.now))


def without(mapping: Mapping[Any, Any], *keys: Any) -> dict[Any, Any]:
    """`mapping` less `keys`."""
    return {key: value for key, value in mapping.items() if key not in keys}
