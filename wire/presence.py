"""Which members of a message are written when they hold nothing (protocol section 1.5, "null vs absent").

The rule needs no mark: a field whose default is None is left out while it is None, every other field is written. Two
marks, given as `metadata`, name the exceptions.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import attrs

_WRITTEN: Final = "nixfleet.written"

OMIT_DEFAULT: Final[Mapping[str, str]] = MappingProxyType({_WRITTEN: "unless default"})
"""Leave the member out while it equals its default, whatever that is."""

WRITE_NULL: Final[Mapping[str, str]] = MappingProxyType({_WRITTEN: "always"})
"""Write `null` rather than leave the member out."""


def is_left_out(field: "attrs.Attribute[Any]") -> bool:
    """True when the member is left out while it equals its default."""
    match field.metadata.get(_WRITTEN):
        case "always":
            return False
        case "unless default":
            return True
        case _:
            return field.default is None
