"""One step as it was taken, and what can be read off it without asking how it was decided.

The promises are checked against passages: the state before, the event, and the step that followed.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

import attrs

from state_machine.actions import Action, Rollback, Switch
from state_machine.events import Booted, Event
from state_machine.facts import DispatchAck, Fact
from state_machine.state import Known, RollingBack, State, Switching
from state_machine.turn import Step
from state_machine.values import RolloutId

Kind = TypeVar("Kind", bound=Fact)
Order = Switch | Rollback
ORDERS: Final = (Switch, Rollback)


def orders(actions: Sequence[Action]) -> list[Order]:
    """The orders that change the running system."""
    return [action for action in actions if isinstance(action, ORDERS)] if actions else []


@attrs.frozen(kw_only=True)
class Passage:
    """`step(before, event)` was `step`."""

    before: State
    event: Event
    step: Step
    known: Known = attrs.field(init=False, eq=False, repr=False)
    """The durable state before."""
    after: Known = attrs.field(init=False, eq=False, repr=False)
    """The durable state after."""
    new_orders: Sequence[Order] = attrs.field(init=False, eq=False, repr=False)
    """Orders decided in this passage. One that a restart gives again, by the same number, was decided earlier."""

    @known.default
    def _known(self) -> Known:
        return self.before.known

    @after.default
    def _after(self) -> Known:
        return self.step.state.known

    @new_orders.default
    def _new_orders(self) -> Sequence[Order]:
        given = orders(self.step.actions)
        return [order for order in given if not _is_given_again(self, order)] if given else given


def _is_given_again(passage: Passage, order: Order) -> bool:
    operation = passage.known.operation
    under_way = Switching if isinstance(order, Switch) else RollingBack
    return (
        isinstance(passage.event, Booted)
        and isinstance(operation, under_way)
        and (operation.op, operation.closure) == (order.op, order.closure)
    )


def new_switches(passage: Passage) -> list[Switch]:
    """Switches decided in this passage."""
    return [order for order in passage.new_orders if isinstance(order, Switch)]


def new_rollbacks(passage: Passage) -> list[Rollback]:
    """Rollbacks decided in this passage."""
    return [order for order in passage.new_orders if isinstance(order, Rollback)]


def is_repeat(passage: Passage) -> bool:
    """The rollback ordered here is one more try; an operator's word since the first (a cleared quarantine) stands."""
    return isinstance(passage.known.operation, RollingBack)


def rollout_of(passage: Passage, order: Order) -> RolloutId | None:
    """The rollout for whose sake `order` was given."""
    operation = passage.after.operation
    return operation.rollout_id if operation is not None and operation.op == order.op else None


def acted_on(passage: Passage) -> list[RolloutId]:
    """The rollouts that are taken in this passage, or switched to."""
    if not passage.step.facts and not passage.new_orders:
        return []
    taken = [rollout_id for rollout_id, _ in facts_of(passage, DispatchAck)]
    switched = [rollout_of(passage, order) for order in new_switches(passage)]
    return taken + [rollout_id for rollout_id in switched if rollout_id is not None]


def facts_of(passage: Passage, kind: type[Kind]) -> list[tuple[RolloutId, Kind]]:
    """The facts of one kind born in this passage, with their rollouts."""
    if not passage.step.facts:
        return []
    return [(born.rollout_id, born.fact) for born in passage.step.facts if isinstance(born.fact, kind)]
