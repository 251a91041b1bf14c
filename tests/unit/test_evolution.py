"""`evolve` is `attrs.evolve`, whichever way a class keeps its members; only what no member is called is refused."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from state_machine.evolution import evolve
from state_machine.lifecycle import HostRollout, opened
from state_machine.state import Known, Session
from state_machine.values import Closure, HostName, RolloutId, SteadyMs

RECORD = opened(RolloutId("edge@1"), HostName("a"), Closure("b"))
WITH_SLOTS_AND_WITHOUT = pytest.mark.parametrize(
    ("value", "changes"),
    [
        (RECORD, {"last_seq": 3, "failure": "it fell over"}),
        (Known(), {"next_op": 7, "drift": Closure("c")}),
        (Session(), {"seen": SteadyMs(5)}),
    ],
    ids=lambda given: type(given).__name__,
)


@WITH_SLOTS_AND_WITHOUT
def test_it_makes_what_attrs_would_make_and_leaves_the_original(
    value: HostRollout | Known | Session, changes: dict[str, Any]
) -> None:
    before = attrs.asdict(value)
    assert evolve(value, **changes) == attrs.evolve(value, **changes) != value
    assert evolve(evolve(value, **changes)) == attrs.evolve(value, **changes)
    assert attrs.asdict(value) == before


@WITH_SLOTS_AND_WITHOUT
def test_what_it_makes_cannot_be_changed(value: HostRollout | Known | Session, changes: dict[str, Any]) -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(evolve(value, **changes), next(iter(changes)), None)


@WITH_SLOTS_AND_WITHOUT
def test_a_change_that_names_no_member_is_refused(
    value: HostRollout | Known | Session, changes: dict[str, Any]
) -> None:
    replace: Callable[..., object] = evolve
    with pytest.raises(TypeError, match=f"^{type(value).__name__} has no colour$"):
        replace(value, **changes, colour="red")
