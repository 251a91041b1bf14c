"""Strategies for anything the codecs carry, made from the classes themselves, and for JSON that is nearly right."""

import enum
import typing
from collections.abc import Callable, Mapping
from types import NoneType, UnionType
from typing import Any, Final

import attrs
from hypothesis import strategies as st

from state_machine.values import Closure, RolloutId, WallMs
from wire.errors import WireError
from wire.json_value import JsonValue

MAX_INTEGER: Final = 2**53 - 1
_YEAR_1_MS: Final = -62_135_596_800_000
_YEAR_9999_END_MS: Final = 253_402_300_799_999
_STORE_HASH: Final = "0123456789abcdfghijklmnpqrsvwxyz"

closures = st.builds(
    lambda digest, name: Closure(f"{digest}-{name}"),
    st.text(_STORE_HASH, min_size=32, max_size=32),
    st.from_regex(r"[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{0,20}", fullmatch=True),
)
rollout_ids = st.from_regex(r"[a-z0-9_-]{1,12}@[0-9a-f]{1,40}", fullmatch=True).map(RolloutId)

_NAMED: Final[dict[Any, st.SearchStrategy[Any]]] = {
    Closure: closures | st.just(Closure("")),
    RolloutId: rollout_ids,
    WallMs: st.integers(_YEAR_1_MS, _YEAR_9999_END_MS),
    str: st.text(max_size=12),
    int: st.integers(-MAX_INTEGER, MAX_INTEGER),
    bool: st.booleans(),
    float: st.floats(-1e6, 1e6),
    NoneType: st.none(),
}


def values_of(target: Any) -> st.SearchStrategy[Any]:
    """Any instance of `target`, which is whatever a field annotation may be."""
    if target in _NAMED:
        return _NAMED[target]
    if target == JsonValue:
        return signable_json
    if hasattr(target, "__supertype__"):
        return values_of(target.__supertype__)
    origin, args = typing.get_origin(target), typing.get_args(target)
    if origin in (UnionType, typing.Union):
        return st.one_of([values_of(arg) for arg in args])
    if origin is tuple and args[-1] is not Ellipsis:
        return st.tuples(*[values_of(arg) for arg in args])
    if origin is tuple:
        return st.lists(values_of(args[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(values_of(args[0]), values_of(args[1]), max_size=3)
    if issubclass(target, enum.Enum):
        return st.sampled_from(list(target))
    fields = {field.name: values_of(field.type) for field in attrs.fields(target)}
    return st.builds(target, **fields)


def _json(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[JsonValue]:
    def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)

    return st.recursive(st.none() | st.booleans() | st.text(max_size=8) | leaves, around, max_leaves=12)


signable_json: Final = _json(st.integers(-MAX_INTEGER, MAX_INTEGER) | st.floats(-1e6, 1e6))
"""What has a canonical form."""

_TEMPTING: Final = ("", "Failed", "enforce", "edge@4b", "2026-06-01T10:00:00Z", "../x", "\ud800")
json_values: Final = _json(st.integers() | st.floats() | st.sampled_from(_TEMPTING))
"""Whatever `json.loads` could return."""


@st.composite
def spoiled(draw: st.DrawFn, good: st.SearchStrategy[JsonValue]) -> JsonValue:
    """A good document with one value somewhere replaced, or one member taken away."""
    document = draw(good)
    spoilt: JsonValue = _spoil(draw, document)
    return spoilt


def _spoil(draw: Any, value: JsonValue) -> Any:
    match value:
        case dict() if value and draw(st.integers(0, 3)):
            name = draw(st.sampled_from(sorted(value)))
            if draw(st.integers(0, 4)) == 0:
                return {key: entry for key, entry in value.items() if key != name}
            return {**value, name: _spoil(draw, value[name])}
        case list() if value and draw(st.booleans()):
            index = draw(st.integers(0, len(value) - 1))
            return [*value[:index], _spoil(draw, value[index]), *value[index + 1 :]]
        case _:
            return draw(json_values)


def reads_or_refuses(read_again: Callable[[Any], Any], document: Any) -> None:
    """`read_again` decodes and encodes: it must either raise a `WireError` or reach a form that reads as itself."""
    try:
        again = read_again(document)
    except WireError:
        return
    assert read_again(again) == again
