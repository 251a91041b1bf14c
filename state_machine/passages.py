"""One step as it was taken, and what can be read off it without asking how it was decided.

The promises are checked against passages: the state before, the event, and the step that followed.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import attrs

from state_machine.actions import Action, Rollback, Switch
from state_machine.events import Booted, Event
from state_machine.facts import Fact
from state_machine.state import Known, RollingBack, State, Switching
from state_machine.turn import Step
from state_machine.values import RolloutId

Kind = TypeVar("Kind", bound=Fact)
Order = Switch | Rollback


@attrs.frozen(kw_only=True)
class Passage:
    """`step(before, event)` was `step`."""

    before: State
    event: Event
    step: Step

    @property
    def known(self) -> Known:
        """The durable state before."""
        return self.before.known

    @property
    def after(self) -> Known:
        """The durable state after."""
        return self.step.state.known


def orders(actions: Sequence[Action]) -> list[Order]:
    """The orders that change the running system."""
    return [action for action in actions if isinstance(action, Switch | Rollback)]


def new_orders(passage: Passage) -> Iterator[Order]:
    """Orders decided in this passage. One that a restart gives again, by the same number, was decided earlier."""
    operation = passage.known.operation
    for order in orders(passage.step.actions):
        under_way = Switching if isinstance(order, Switch) else RollingBack
        again = isinstance(passage.event, Booted) and isinstance(operation, under_way) and operation.op == order.op
        if not again or operation is None or operation.closure != order.closure:
            yield order


def new_switches(passage: Passage) -> list[Switch]:
    """Switches decided in this passage."""
    return [order for order in new_orders(passage) if isinstance(order, Switch)]


def new_rollbacks(passage: Passage) -> list[Rollback]:
    """Rollbacks decided in this passage."""
    return [order for order in new_orders(passage) if isinstance(order, Rollback)]


def is_repeat(passage: Passage) -> bool:
    """The rollback ordered here is one more try; an operator's word since the first (a cleared quarantine) stands."""
    return isinstance(passage.known.operation, RollingBack)


def rollout_of(passage: Passage, order: Order) -> RolloutId | None:
    """The rollout for whose sake `order` was given."""
    operation = passage.after.operation
    return operation.rollout_id if operation is not None and operation.op == order.op else None


def facts_of(passage: Passage, kind: type[Kind]) -> Iterator[tuple[RolloutId, Kind]]:
    """The facts of one kind born in this passage, with their rollouts."""
    for born in passage.step.facts:
        if isinstance(born.fact, kind):
            yield born.rollout_id, born.fact
