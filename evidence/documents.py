"""Signed documents between JSON and `state_machine.intent`: names, defaults and grammars (protocol sections 1.5, 2).

`decode` is strict about types and about everything that may later become a path, a URL or a command argument, ignores
unknown members, and reads null as absent. `encode` writes what the format's other readers expect: unset fields as
null, except the few the format leaves out and the members this project adds. `decode(type(d), encode(d)) == d`.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

import attrs

from evidence.errors import EvidenceError
from state_machine.intent import (
    Budget,
    ChannelEdge,
    FleetHost,
    HealthGate,
    HostEdge,
    Meta,
    Pin,
    PolicyWave,
    RolloutPolicy,
    Wave,
)
from state_machine.values import Channel, Closure, HostName, Reason, WallMs, is_closure, is_rollout_id
from wire.errors import MismatchError, WireError, expected, quoted
from wire.json_value import JsonObject
from wire.strict import Spelling, read, strict_converter
from wire.timestamps import format_rfc3339, parse_rfc3339

Document = TypeVar("Document")

U32_MAX: Final = 2**32 - 1
HOST_NAME_MAX: Final = 253
"""The longest DNS name: host names become certificate names."""

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)
_LEFT_OUT: Final = (
    attrs.fields(FleetHost).pin,
    attrs.fields(Pin).expires_at,
    attrs.fields(Meta).signature_algorithm,
    attrs.fields(HealthGate).systemd_failed_units,
    attrs.fields(Budget).hosts,
    attrs.fields(PolicyWave).soak_secs,
    attrs.fields(Wave).soak_secs,
    attrs.fields(RolloutPolicy).sustained_failure_secs,
)


@attrs.frozen(kw_only=True)
class ShapeError(EvidenceError):
    """A JSON document without the shape of what it should be; `path` is the place, `$.hosts['node7'].channel`."""

    reason = Reason.PARSE
    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def decode(target: type[Document], value: object) -> Document:
    """A parsed JSON value as a `target`.

    Raises:
        ShapeError: a member is missing, has the wrong type or breaks its grammar.
    """
    try:
        return cast(Document, read(_CONVERTER, _SPELLING, cast(Any, value), target))
    except WireError as error:
        raise ShapeError(path=error.path, problem=error.problem) from error


def encode(document: object) -> JsonObject:
    """A document as JSON values, ready to be canonicalised and signed."""
    return cast(JsonObject, _CONVERTER.unstructure(document))


def is_host_name(text: str) -> bool:
    """True for what may name a host in a file, a certificate or a URL: no separators, no leading dash or dot."""
    return len(text) <= HOST_NAME_MAX and _HOST_NAME.fullmatch(text) is not None


def is_channel(text: str) -> bool:
    """True for a name that can be the first half of a rollout id."""
    return is_rollout_id(f"{text}@0")


def accept_aliases(target: type, aliases: Mapping[str, str]) -> None:
    """Let `decode` read members of `target` under other names too; one member under two names is refused."""
    read_plain = _CONVERTER.get_structure_hook(target)

    def structure(value: object, _: object) -> Any:
        return read_plain(_renamed(value, aliases) if type(value) is dict else value, target)

    _CONVERTER.register_structure_hook(target, structure)


def _renamed(value: dict[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, entry in value.items():
        if entry is None:
            continue
        name = aliases.get(name, name)
        if name in members:
            raise MismatchError(problem=f"member {name} is given under two names")
        members[name] = entry
    return members


def _camel(_: type, field: str) -> str:
    head, *rest = field.split("_")
    return head + "".join(word.capitalize() for word in rest)


def _is_left_out(field: "attrs.Attribute[Any]") -> bool:
    # By identity: equal attributes of two classes are equal.
    return any(field is left_out for left_out in _LEFT_OUT)


def _u32(value: object, _: object) -> int:
    if type(value) is not int:
        raise expected("an integer", value)
    if not 0 <= value <= U32_MAX:
        raise MismatchError(problem="the integer is not between 0 and 2^32-1")
    return value


def _timestamp(value: object, _: object) -> WallMs:
    if type(value) is not str:
        raise expected("a timestamp", value)
    return parse_rfc3339(value)


def _closure(value: object, _: object) -> Closure:
    if type(value) is not str:
        raise expected("a closure", value)
    if not is_closure(value):
        raise MismatchError(problem=f"{quoted(value)} is not the base name of a store path")
    return Closure(value)


def _channel(value: object, _: object) -> Channel:
    if type(value) is not str:
        raise expected("a channel name", value)
    if not is_channel(value):
        raise MismatchError(problem=f"{quoted(value)} is not a channel name (a-z, 0-9, _ and -)")
    return Channel(value)


def _host_name(value: object, _: object) -> HostName:
    if type(value) is not str:
        raise expected("a host name", value)
    if not is_host_name(value):
        raise MismatchError(problem=f"{quoted(value)} is not a host name")
    return HostName(value)


_SPELLING: Final = Spelling(member=_camel, omits=_is_left_out)
_CONVERTER: Final = strict_converter(_SPELLING)
_CONVERTER.register_structure_hook(int, _u32)
_CONVERTER.register_structure_hook(WallMs, _timestamp)
_CONVERTER.register_unstructure_hook(WallMs, format_rfc3339)
_CONVERTER.register_structure_hook(Closure, _closure)
_CONVERTER.register_structure_hook(Channel, _channel)
_CONVERTER.register_structure_hook(HostName, _host_name)
# Both spellings of an edge are in use: what comes `before` gates what comes `after`.
for _edge in (HostEdge, ChannelEdge):
    accept_aliases(_edge, {"before": "gates", "after": "gated"})
