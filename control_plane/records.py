"""Log entries and derived rows as JSON text in the database, and back.

Reading gives back exactly what was written: members have the names of the fields, instants stay whole milliseconds.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

import attrs

from control_plane.entries import ENTRY_KINDS, Entry
from control_plane.rows import Row
from wire.strict import Spelling, read, strict_converter

AnyRow = TypeVar("AnyRow", bound=Row)


def _is_left_out(field: "attrs.Attribute[Any]") -> bool:
    return field.default is None or field.default == ()


_SPELLING: Final = Spelling(member=lambda _, field: field, omits=_is_left_out)
_CONVERTER: Final = strict_converter(_SPELLING)
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True)
_KINDS: Final[Mapping[str, type[Entry]]] = {kind.__name__: kind for kind in ENTRY_KINDS}


def kind_of(entry: Entry) -> str:
    """The name under which the log keeps this kind of entry."""
    return type(entry).__name__


def encode_entry(entry: Entry) -> str:
    """The body of an entry. Its kind is kept beside it."""
    return _text(entry)


def decode_entry(kind: str, body: str) -> Entry:
    """An entry from its kind and body.

    Raises:
        WireError: the log was written by a version that knew other entries.
        KeyError: so was this kind.
    """
    return cast(Entry, read(_CONVERTER, _SPELLING, json.loads(body), _KINDS[kind]))


def encode_row(row: Row) -> str:
    """The document of a derived row."""
    return _text(row)


def decode_row(row_type: type[AnyRow], document: str) -> AnyRow:
    """A derived row from its document.

    Raises:
        WireError: another version derived it; `rebuild` makes it anew.
    """
    return cast(AnyRow, read(_CONVERTER, _SPELLING, json.loads(document), row_type))


def _text(value: object) -> str:
    return _ENCODER.encode(_CONVERTER.unstructure(value))
