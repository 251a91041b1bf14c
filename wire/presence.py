"""Marks that a message gives its fields as `metadata`: what is written when nothing is there, and how long texts are.

The rule of protocol section 1.5 ("null vs absent") needs no mark: a field whose default is None is left out while it
is None, every other field is written. Two marks name the exceptions.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

_WRITTEN: Final = "nixfleet.written"
_TEXT: Final = "nixfleet.text"

OMIT_DEFAULT: Final[Mapping[str, str]] = MappingProxyType({_WRITTEN: "unless default"})
"""Leave the member out while it equals its default, whatever that is."""

WRITE_NULL: Final[Mapping[str, str]] = MappingProxyType({_WRITTEN: "always"})
"""Write `null` rather than leave the member out."""

SHORT_TEXT: Final[Mapping[str, str]] = MappingProxyType({_TEXT: "short"})
"""The text is refused when it has more than `wire.scalars.SHORT_TEXT_MAX` characters."""


def is_short(field: "attrs.Attribute[Any]") -> bool:
    """True for a text that must be short."""
    return _TEXT in field.metadata


def is_left_out(field: "attrs.Attribute[Any]") -> bool:
    """True when the member is left out while it equals its default."""
    match field.metadata.get(_WRITTEN):
        case "always":
            return False
        case "unless default":
            return True
        case _:
            return field.default is None
