"""How single JSON values are read: exactly the type the field names, or a `MismatchError`.

Readers have the signature cattrs calls: the value and the type asked for.
"""

import enum
from collections.abc import Callable
from typing import Any, Final, cast

from state_machine.values import Closure, RolloutId, is_closure, is_rollout_id
from wire.errors import MismatchError, expected, quoted

Structure = Callable[[Any, Any], Any]
"""How cattrs calls a reader: with the JSON value and the type to make of it."""

Unstructure = Callable[[Any], Any]
"""How cattrs calls a writer."""

MAX_INTEGER: Final = 2**53 - 1
"""RFC 8785 section 3.2.2.3: JSON numbers are doubles, so larger integers would change under canonicalisation."""

SHORT_TEXT_MAX: Final = 1024
"""Characters. Several times what any name, id or closure may have, and little enough to write down."""


def read_text(value: object, _: object) -> str:
    """A JSON string as it is."""
    if type(value) is not str:
        raise expected("a string", value)
    return value


def read_short_text(value: object, _: object) -> str:
    """A string that somebody not trusted sent and that will be written down."""
    if type(value) is not str:
        raise expected("a string", value)
    if len(value) > SHORT_TEXT_MAX:
        raise MismatchError(problem=f"the text has {len(value)} characters, the limit is {SHORT_TEXT_MAX}")
    return value


def read_boolean(value: object, _: object) -> bool:
    """`true` or `false`, never 0 or 1."""
    if type(value) is not bool:
        raise expected("a boolean", value)
    return value


def read_integer(value: object, _: object) -> int:
    """A whole number that JSON carries exactly; not a boolean, not a fraction."""
    if type(value) is not int:
        raise expected("an integer", value)
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise MismatchError(problem="the integer is beyond what JSON carries exactly (2^53 - 1)")
    return value


def read_number(value: object, _: object) -> float:
    """Any finite JSON number; canonical JSON writes 1.0 as 1, so integers count."""
    if type(value) is not float and type(value) is not int:
        raise expected("a number", value)
    if not -MAX_INTEGER <= value <= MAX_INTEGER:
        raise MismatchError(problem="the number is not finite or beyond 2^53 - 1")
    return float(value)


def read_closure(value: object, _: object) -> Closure:
    """The base name of a store path; empty means none."""
    if type(value) is not str:
        raise expected("a closure", value)
    if value and not is_closure(value):
        raise MismatchError(problem=f"{quoted(value)} is not the base name of a store path")
    return Closure(value)


def read_rollout_id(value: object, _: object) -> RolloutId:
    """`<channel>@<hex ref>`, nothing else: it becomes a path and part of a URL."""
    if type(value) is not str:
        raise expected("a rollout id", value)
    if not is_rollout_id(value):
        raise MismatchError(problem=f"{quoted(value)} is not a rollout id such as edge@4be0c1")
    return RolloutId(value)


def read_enum_member(value: object, target: type[enum.StrEnum]) -> enum.StrEnum:
    """A member of `target` by its value."""
    if type(value) is not str:
        raise expected(f"one of {', '.join(target)}", value)
    if value not in target._value2member_map_:
        raise MismatchError(problem=f"{quoted(value)} is none of {', '.join(target)}")
    return cast(enum.StrEnum, target._value2member_map_[value])
