"""Events, facts and the durable state as the agent's own journal writes them.

Members have the names of the fields, instants stay whole milliseconds, fractions are allowed. Reading gives back
exactly what was written. A field added later with a default leaves old records readable; a field must never be
renamed, removed or given another default, because a journal must replay for ever as it ran.
"""

from typing import Any, Final, cast

import attrs

from state_machine.events import DispatchReceived, Event
from state_machine.facts import RolloutFact
from state_machine.state import Known
from state_machine.values import RolloutId
from wire.codec import decode_fact, encode_fact
from wire.json_value import JsonObject
from wire.strict import Spelling, read, strict_converter

_ROLLOUT: Final = "rollout_id"
_RENAMED: Final[dict[tuple[type, str], str]] = {(DispatchReceived, "kind"): "dispatch_kind"}
"""`kind` tells events apart, so no event may have a member of that name."""


def _member(owner: type, field: str) -> str:
    return _RENAMED.get((owner, field), field)


def _is_left_out(field: "attrs.Attribute[Any]") -> bool:
    return field.default is None or field.default == ()


_SPELLING: Final = Spelling(member=_member, omits=_is_left_out)
_CONVERTER: Final = strict_converter(_SPELLING)


def encode_event(event: Event) -> JsonObject:
    """An event as the journal's `event` member, told apart by `kind`."""
    return cast(JsonObject, _CONVERTER.unstructure(event, unstructure_as=Event))


def decode_event(value: object) -> Event:
    """The journal's `event` member as an event.

    Raises:
        WireError: its kind is unknown or its members do not fit.
    """
    return cast(Event, read(_CONVERTER, _SPELLING, value, Event))


def encode_rollout_fact(fact: RolloutFact) -> JsonObject:
    """A fact with its rollout as an item of the journal's `facts`: `{"rollout_id", ...}` around the wire's own form."""
    return {_ROLLOUT: fact.rollout_id, **encode_fact(fact.fact)}


def decode_rollout_fact(value: object) -> RolloutFact:
    """An item of the journal's `facts`.

    Raises:
        WireError: the rollout is missing or malformed, or the rest is not a fact.
    """
    fact = decode_fact(value)
    return RolloutFact(rollout_id=_rollout_of(value), fact=fact)


def encode_known(known: Known) -> JsonObject:
    """The durable state as a checkpoint's body."""
    return cast(JsonObject, _CONVERTER.unstructure(known))


def decode_known(value: object) -> Known:
    """A checkpoint's body as the durable state.

    Raises:
        WireError: it is not one, or not one that this version can read.
    """
    return cast(Known, read(_CONVERTER, _SPELLING, value, Known))


def _rollout_of(value: object) -> RolloutId:
    rollout_id = value.get(_ROLLOUT) if isinstance(value, dict) else None
    return cast(RolloutId, read(_CONVERTER, _SPELLING, rollout_id, RolloutId))
