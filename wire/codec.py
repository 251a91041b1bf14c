"""Messages and facts as the wire writes them (protocol sections 1.4, 1.5 and 4): one codec, used by both sides.

`encode` gives JSON values, `decode` takes values that are already parsed (parse with `evidence.canonical`, which
refuses what must not be read at all). `decode(type(m), encode(m)) == m` for every message, down to the millisecond,
and `decode` raises nothing but `WireError`.
"""

import sys
from typing import Final, TypeVar, cast

from state_machine.facts import Fact
from state_machine.values import ProbeSpec, WallMs
from wire.errors import expected
from wire.json_value import JsonObject
from wire.presence import is_left_out
from wire.strict import Spelling, read, strict_converter
from wire.timestamps import format_rfc3339, parse_rfc3339

Message = TypeVar("Message")

_RENAMED: Final[dict[tuple[type, str], str]] = {(ProbeSpec, "name"): "probeName"}


def _member(owner: type, field: str) -> str:
    # Its module says so: the codec need not import them all, and an agent never sees `wire.listings` (0.5 MB, 6 ms).
    if owner in getattr(sys.modules[owner.__module__], "SNAKE_CASE", ()):
        return field
    return _RENAMED.get((owner, field)) or _camel(field)


def _camel(field: str) -> str:
    head, *rest = field.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _read_timestamp(value: object, _: object) -> WallMs:
    if type(value) is not str:
        raise expected("a timestamp", value)
    return parse_rfc3339(value)


_SPELLING: Final = Spelling(member=_member, omits=is_left_out)
_CONVERTER: Final = strict_converter(_SPELLING)
_CONVERTER.register_structure_hook(WallMs, _read_timestamp)
_CONVERTER.register_unstructure_hook(WallMs, format_rfc3339)


def encode(message: object) -> JsonObject:
    """A message of `wire.messages` or `wire.listings` as JSON. For a bare fact use `encode_fact`."""
    return cast(JsonObject, _CONVERTER.unstructure(message))


def decode(target: type[Message], value: object) -> Message:
    """A parsed JSON value as a message.

    Raises:
        WireError: the value does not have the shape of `target`.
    """
    return cast(Message, read(_CONVERTER, _SPELLING, value, target))


def encode_fact(fact: Fact) -> JsonObject:
    """A fact as the `event` member of an envelope: `{"kind", ..., "seq"}`, what `signature` covers."""
    return cast(JsonObject, _CONVERTER.unstructure(fact, unstructure_as=Fact))


def decode_fact(value: object) -> Fact:
    """The `event` member of an envelope as a fact.

    Raises:
        WireError: its kind is unknown or its members do not fit.
    """
    return cast(Fact, read(_CONVERTER, _SPELLING, value, Fact))
