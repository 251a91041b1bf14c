"""How JSON lists and objects become tuples and mappings, item by item, and back.

A list where an object is meant, or a string where a list is meant, is refused, never iterated. An item that does not
fit raises `ItemMismatchError` with its place, caused by what was wrong with it.
"""

import itertools
import typing
from collections.abc import Mapping
from typing import Any

from cattrs import BaseValidationError, Converter

from wire.errors import ItemMismatchError, MismatchError, expected
from wire.scalars import Structure, Unstructure


def is_tuple(target: Any) -> bool:
    """True for `tuple[X, ...]` and for a tuple of fixed length, the only sequences in messages and events."""
    return typing.get_origin(target) is tuple


def tuple_reader(target: Any, converter: Converter) -> Structure:
    """Reads a list into a tuple."""
    args = typing.get_args(target)
    length = None if args[-1] is Ellipsis else len(args)
    types = itertools.repeat(args[0]) if length is None else args
    hooks = {arg: converter.get_structure_hook(arg) for arg in args if arg is not Ellipsis}

    def structure(value: object, _: object) -> tuple[Any, ...]:
        if type(value) is not list:
            raise expected("a list", value)
        if length is not None and len(value) != length:
            raise MismatchError(problem=f"expected {length} items, found {len(value)}")
        items: list[Any] = []
        try:
            for entry, item in zip(value, types, strict=False):
                items.append(hooks[item](entry, item))
        except (ValueError, BaseValidationError) as error:
            raise ItemMismatchError(index=len(items)) from error
        return tuple(items)

    return structure


def tuple_writer(target: Any, converter: Converter) -> Unstructure:
    """Writes a tuple as a list."""
    args = typing.get_args(target)
    hooks = [converter.get_unstructure_hook(arg) for arg in args if arg is not Ellipsis]
    each = itertools.repeat(hooks[0]) if args[-1] is Ellipsis else hooks
    return lambda items: [hook(entry) for entry, hook in zip(items, each, strict=False)]


def is_mapping(target: Any) -> bool:
    """True for `Mapping[K, V]` with keys that are some kind of string."""
    return typing.get_origin(target) is Mapping


def mapping_reader(target: Any, converter: Converter) -> Structure:
    """Reads an object into a dict, its member names checked as keys."""
    key_type, value_type = typing.get_args(target)
    read_key, read_value = converter.get_structure_hook(key_type), converter.get_structure_hook(value_type)

    def structure(value: object, _: object) -> dict[Any, Any]:
        if type(value) is not dict:
            raise expected("an object", value)
        result: dict[Any, Any] = {}
        for name, entry in value.items():
            try:
                result[read_key(name, key_type)] = read_value(entry, value_type)
            except (ValueError, BaseValidationError) as error:
                raise ItemMismatchError(index=str(name)) from error
        return result

    return structure


def mapping_writer(target: Any, converter: Converter) -> Unstructure:
    """Writes a mapping as an object."""
    key_type, value_type = typing.get_args(target)
    write_key, write_value = converter.get_unstructure_hook(key_type), converter.get_unstructure_hook(value_type)
    return lambda mapping: {write_key(name): write_value(entry) for name, entry in mapping.items()}
