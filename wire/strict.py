"""A cattrs converter that reads JSON as it is written and guesses nothing.

cattrs by default turns "1" into 1 and iterates a string where a list was meant. Here every JSON type must be the one
the field names: a `bool` is no `int`, a fraction is no `int`, a string is no list. Unknown members are ignored, a null
where a field is optional counts as absent, and a union of classes is told apart by its member `kind`. What names the
members have, and which are left out, is the business of the two codecs built on this: `wire.codec` and `wire.records`.
"""

import enum
import operator
import typing
from collections.abc import Callable
from functools import partial
from types import NoneType, UnionType
from typing import Any, Final, cast

import attrs
from cattrs import AttributeValidationNote, BaseValidationError, ClassValidationError, Converter
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from state_machine.values import Closure, RolloutId
from wire import containers, scalars
from wire.errors import ItemMismatchError, MismatchError, WireError, expected, quoted
from wire.json_value import JsonValue
from wire.presence import is_short
from wire.scalars import Structure, Unstructure

TAG: Final = "kind"
"""The member that tells the classes of a union apart; its value is the name of the class."""


@attrs.frozen(kw_only=True)
class Spelling:
    """How a codec writes the fields of a class: `member` names one, `omits` says that its default is left out."""

    member: Callable[[type, str], str]
    omits: Callable[["attrs.Attribute[Any]"], bool]


def strict_converter(spelling: Spelling) -> Converter:
    """A converter for attrs classes, their unions, enums, tuples and mappings over parsed JSON.

    Code for a class is made when the class is first met.
    """
    converter = Converter(detailed_validation=True)
    for exact, read_exact in _EXACT:
        # As a class: cattrs asks its own lenient hooks for these, registered likewise, before any predicate.
        converter.register_structure_hook(exact, read_exact)
    converter.register_structure_hook(Closure, scalars.read_closure)
    converter.register_structure_hook(RolloutId, scalars.read_rollout_id)
    converter.register_structure_hook(enum.StrEnum, scalars.read_enum_member)
    converter.register_unstructure_hook(enum.StrEnum, operator.attrgetter("value"))
    for is_kind, reader, writer in _FACTORIES:
        converter.register_structure_hook_factory(is_kind, partial(_with, reader, converter))
        converter.register_unstructure_hook_factory(is_kind, partial(_with, writer, converter))
    converter.register_structure_hook_factory(attrs.has, lambda cl: _class_reader(cl, converter, spelling))
    converter.register_unstructure_hook_factory(attrs.has, lambda cl: _class_writer(cl, converter, spelling))
    return converter


def read(converter: Converter, spelling: Spelling, value: object, target: Any) -> Any:
    """`value` as a `target`.

    Raises:
        WireError: `value` does not have that shape; it says where and what was expected.
    """
    try:
        return converter.structure(value, target)
    except (ValueError, BaseValidationError) as error:
        raise _located(error, spelling) from error


def _located(error: BaseException, spelling: Spelling) -> WireError:
    path = "$"
    while True:
        match error:
            case ClassValidationError():
                owner, error = error.cl, error.exceptions[0]
                path += "".join(f".{spelling.member(owner, name)}" for name in _attribute(error))
            case ItemMismatchError(index=index):
                path += f"[{quoted(index) if isinstance(index, str) else index}]"
                error = cast(BaseException, error.__cause__)
            case KeyError():
                return WireError(path=path, problem="is missing")
            case ValueError():
                return WireError(path=path, problem=str(error))
            case _:
                raise error  # a fault of ours, not of the document


def _attribute(error: Exception) -> list[str]:
    """The field the error is about; none when it is about the whole object."""
    return [note.name for note in getattr(error, "__notes__", ()) if isinstance(note, AttributeValidationNote)][:1]


def _with(factory: Callable[[Any, Converter], Any], converter: Converter, target: Any) -> Any:
    return factory(target, converter)


def _class_reader(cl: Any, converter: Converter, spelling: Spelling) -> Structure:
    fields = attrs.fields(cl)
    members: Any = {
        field.name: override(
            rename=spelling.member(cl, field.name), struct_hook=scalars.read_short_text if is_short(field) else None
        )
        for field in fields
    }
    fill = make_dict_structure_fn(cl, converter, _cattrs_use_linecache=False, **members)
    nullable = {
        spelling.member(cl, field.name)
        for field in fields
        if field.default is attrs.NOTHING and NoneType in typing.get_args(field.type)
    }

    def structure(value: object, _: object) -> Any:
        if type(value) is not dict:
            raise expected("an object", value)
        if None in value.values():
            value = {name: entry for name, entry in value.items() if entry is not None or name in nullable}
        return fill(value, cl)

    return structure


def _class_writer(cl: Any, converter: Converter, spelling: Spelling) -> Unstructure:
    members: Any = {
        field.name: override(rename=spelling.member(cl, field.name), omit_if_default=spelling.omits(field))
        for field in attrs.fields(cl)
    }
    return make_dict_unstructure_fn(cl, converter, _cattrs_use_linecache=False, **members)


def _is_tagged(target: Any) -> bool:
    if typing.get_origin(target) not in (UnionType, typing.Union):
        return False
    classes = [arg for arg in typing.get_args(target) if arg is not NoneType]
    return len(classes) > 1 and all(attrs.has(arg) for arg in classes)


def _tagged_reader(target: Any, converter: Converter) -> Structure:
    classes = {cl.__name__: cl for cl in typing.get_args(target) if cl is not NoneType}
    optional = NoneType in typing.get_args(target)

    def structure(value: object, _: object) -> Any:
        if optional and value is None:
            return None
        if type(value) is not dict:
            raise expected("an object", value)
        kind = value.get(TAG)
        if type(kind) is not str:
            raise expected(f"a member {TAG!r} with a string", kind)
        if kind not in classes:
            raise MismatchError(problem=f"{TAG} {quoted(kind)} is unknown")
        return converter.structure(value, classes[kind])

    return structure


def _tagged_writer(_: Any, converter: Converter) -> Unstructure:
    def unstructure(value: Any) -> dict[str, Any] | None:
        return None if value is None else {TAG: type(value).__name__, **converter.unstructure(value)}

    return unstructure


def _is_json(target: Any) -> bool:
    return bool(target == JsonValue)


def _json_reader(_: Any, __: Converter) -> Structure:
    return lambda value, _: value


def _json_writer(_: Any, __: Converter) -> Unstructure:
    return lambda value: value


_EXACT: Final = (
    (str, scalars.read_text),
    (bool, scalars.read_boolean),
    (int, scalars.read_integer),
    (float, scalars.read_number),
)
_FACTORIES: Final = (
    (containers.is_tuple, containers.tuple_reader, containers.tuple_writer),
    (containers.is_mapping, containers.mapping_reader, containers.mapping_writer),
    (_is_json, _json_reader, _json_writer),
    (_is_tagged, _tagged_reader, _tagged_writer),
)
