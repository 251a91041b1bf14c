"""Guarded JSON: what may be parsed, and the one form in which it is hashed and signed (RFC 8785, JCS).

The promise: `parse` and `canonicalize` either succeed or raise a `CanonicalError`, whatever they are given, and
`parse(canonicalize(value)) == value` for every value they accept. So a signature over canonical bytes covers exactly
what a reader of the document sees. The text of I-JSON (RFC 7493) that RFC 8785 builds on is enforced before the
encoder runs, because the encoder rounds large integers without a word.
"""

import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final, TypeAlias, cast

import attrs
import jcs

from evidence.errors import EvidenceError
from state_machine.values import Reason
from wire.json_value import JsonValue

JsonLike: TypeAlias = "bool | int | float | str | Sequence[JsonLike] | Mapping[str, JsonLike] | None"
"""What may be canonicalised, as far as types can say it: the containers must be `dict`, `list` or `tuple`."""

ARTIFACT_LIMIT: Final = 8 * 1024 * 1024
"""The most bytes an artifact may have."""

MAX_DEPTH: Final = 64
"""How many arrays and objects may lie within one another."""

MAX_PARTS: Final = 150_000
"""How many opening brackets and commas there may be. A reader pays a hundred bytes and more for each, whatever little
it holds: eight megabytes of `[],` would cost 220. A signed file of ten thousand hosts has some 90,000."""

MAX_TEXT: Final = 16 * 1024 * 1024
"""How many bytes a document may have once it is text: one, two or four a character, as its widest character asks."""

MAX_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON reader holds exactly (RFC 7493 section 2.2)."""

_PLAIN_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False
)
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_STRING: Final = re.compile(rb'"[^"]*"?')
_BRACKETS: Final = b"[]{}"
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in _BRACKETS)
_BIT: Final = 64 * 1024
_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


class CanonicalError(EvidenceError):
    """A document that is not JSON as this project signs it."""

    reason = Reason.PARSE


@attrs.frozen(kw_only=True)
class TooLargeError(CanonicalError):
    """More bytes than the limit for this kind of document."""

    reason: ClassVar[Reason] = Reason.TOO_LARGE
    size: int
    limit: int

    def __str__(self) -> str:
        return f"the document has {self.size} bytes, the limit is {self.limit}"


@attrs.frozen(kw_only=True)
class TooManyPartsError(CanonicalError):
    """More arrays, objects, items and members than `MAX_PARTS`."""

    reason: ClassVar[Reason] = Reason.TOO_LARGE

    def __str__(self) -> str:
        return f"the document has more than {MAX_PARTS} opening brackets and commas"


@attrs.frozen(kw_only=True)
class TooWideError(CanonicalError):
    """A long document with a character beyond U+FFFF, such as an emoji: every character of it then takes four bytes."""

    reason: ClassVar[Reason] = Reason.TOO_LARGE
    characters: int

    def __str__(self) -> str:
        return f"a document of {self.characters} characters is too long to have one beyond U+FFFF, such as an emoji"


@attrs.frozen(kw_only=True)
class SyntaxProblemError(CanonicalError):
    """Bytes that are not one JSON text in UTF-8 without a byte order mark."""

    problem: str

    def __str__(self) -> str:
        return f"not a JSON document: {self.problem}"


@attrs.frozen(kw_only=True)
class TooDeepError(CanonicalError):
    """Arrays and objects nested beyond `MAX_DEPTH`."""

    def __str__(self) -> str:
        return f"arrays and objects are nested more than {MAX_DEPTH} deep"


@attrs.frozen(kw_only=True)
class DuplicateMemberError(CanonicalError):
    """An object that names a member twice, so that two readers may see two documents."""

    member: str

    def __str__(self) -> str:
        return f"an object has two members named {self.member!r}"


@attrs.frozen(kw_only=True)
class NumberError(CanonicalError):
    """A number that readers would round, or that is not a number."""

    found: str

    def __str__(self) -> str:
        return f"the number {self.found} cannot be held exactly; integers go up to 2^53-1, others must be finite"


@attrs.frozen(kw_only=True)
class LoneSurrogateError(CanonicalError):
    """A string with half a surrogate pair: it has no UTF-8 form."""

    def __str__(self) -> str:
        return "a string contains a lone surrogate and cannot be written as UTF-8"


@attrs.frozen(kw_only=True)
class NotJsonError(CanonicalError):
    """A Python value that JSON has no form for."""

    found: str

    def __str__(self) -> str:
        return f"a {self.found} has no JSON form"


def is_text(text: str) -> bool:
    """True for what can be written as UTF-8; arguments and variables that were other bytes cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse(data: bytes, *, limit: int = ARTIFACT_LIMIT) -> JsonValue:
    """Read one JSON text of at most `limit` bytes into `dict`, `list`, `str`, `int`, `float`, `bool` and None.

    A number without a fraction is an `int` however it is spelled (`1.0`, `1e2`), as its canonical form is.

    Raises:
        CanonicalError: a subclass that names the cause; `reason` is `too-large` or `parse`.
    """
    if len(data) > limit:
        raise TooLargeError(size=len(data), limit=limit)
    _check_brackets(data)
    try:
        text = data.decode("utf-8")
        if sys.getsizeof(text) > MAX_TEXT:
            raise TooWideError(characters=len(text))
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except UnicodeDecodeError as error:
        raise SyntaxProblemError(problem=f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise SyntaxProblemError(problem=f"{error.msg} at character {error.pos}") from error
    if _SURROGATE_ESCAPE.search(text):
        _survey(value)
    return cast(JsonValue, value)


def canonicalize(value: JsonLike) -> bytes:
    """The canonical bytes of a document (RFC 8785): what is hashed and what is signed.

    Raises:
        CanonicalError: a subclass that names why the value has no canonical form.
    """
    # Five times as fast; where no number is a float and all names are ASCII, both give the same bytes.
    if _survey(value):
        return _PLAIN_ENCODER.encode(value).encode("utf-8")
    canonical = bytearray()
    _write(canonical, value)
    return bytes(canonical)


def digest(data: bytes) -> str:
    """SHA-256 as lowercase hex: how documents refer to one another."""
    return hashlib.sha256(data).hexdigest()


def _write(out: bytearray, value: JsonLike) -> None:
    """Append the canonical form of what `_survey` has found good. By hand, as jcs holds every piece of it in a list."""
    mark = b""
    match value:
        case dict():
            out += b"{"
            for name in sorted(value, key=_utf16):
                out += mark + _PLAIN_ENCODER.encode(name).encode("utf-8") + b":"
                _write(out, value[name])
                mark = b","
            out += b"}"
        case list() | tuple():
            out += b"["
            for item in value:
                out += mark
                _write(out, item)
                mark = b","
            out += b"]"
        case float():
            text = repr(value)
            # Shortest digits both; Python and RFC 8785 section 3.2.2.3 differ in when an exponent is written, and how.
            out += jcs.canonicalize(value) if "e" in text or text.endswith(".0") else text.encode("ascii")
        case _:
            out += _PLAIN_ENCODER.encode(value).encode("utf-8")


def _utf16(name: str) -> bytes:
    """How RFC 8785 section 3.2.3 sorts names: by UTF-16 code units."""
    return name.encode("utf-16-be")


def _check_brackets(data: bytes) -> None:
    """Count brackets and commas outside strings, so that no recursive reader ever meets deep input.

    A backslash outside a string misleads the count only from there on, and there the reader stops anyway.

    Raises:
        TooManyPartsError, TooDeepError: there are too many, or too many within one another.
    """
    opening = data.count(b"[") + data.count(b"{")
    if opening <= MAX_DEPTH and opening + data.count(b",") <= MAX_PARTS:
        return
    parts = depth = 0
    for outside in _outside_strings(data):
        parts += outside.count(b"[") + outside.count(b"{") + outside.count(b",")
        if parts > MAX_PARTS:
            raise TooManyPartsError()
        steps = memoryview(outside.translate(_STEPS, _NOT_BRACKETS)).cast("b")
        if depth + max(itertools.accumulate(steps), default=0) > MAX_DEPTH:
            raise TooDeepError()
        depth += sum(steps)


def _outside_strings(data: bytes) -> Iterator[bytes]:
    """The document without its strings, bit by bit: taking millions of them out at once costs a hundred times as much
    memory as they have bytes."""
    held, inside = b"", False
    for at in range(0, len(data), _BIT):
        bit = held + data[at : at + _BIT]
        held = bit[-1:] if (len(bit) - len(bit.rstrip(b"\\"))) % 2 else b""
        bit = _ESCAPE.sub(b"", bit.removesuffix(held))
        yield _STRING.sub(b"", b'"' + bit if inside else bit)
        inside ^= bit.count(b'"') % 2 == 1


def _object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise DuplicateMemberError(member=name)
            seen.add(name)
    return members


def _integer(text: str) -> int:
    # int() is quadratic in the number of digits: never hand it a long text.
    if len(text) > 17 or abs(value := int(text)) > MAX_INTEGER:
        raise NumberError(found=text[:32])
    return value


def _float(text: str) -> int | float:
    value = float(text)
    _check_float(value, text)
    return int(value) if value.is_integer() and abs(value) <= MAX_INTEGER else value


def _check_float(value: float, text: str) -> None:
    # From 1e21 on the canonical form has an exponent; below, it is the text of an integer that `parse` refuses.
    if not math.isfinite(value) or (value.is_integer() and MAX_INTEGER < abs(value) < 1e21):
        raise NumberError(found=text[:32])


def _constant(text: str) -> float:
    raise NumberError(found=text)


def _survey(value: JsonLike) -> bool:
    """Refuse what has no canonical form; True when the plain encoder yields it.

    Goes level by level instead of recursing: depth and cycles are then one count.
    """
    plain, parts = True, 0
    depth, level = 0, [cast(object, value)]
    while level:
        below: list[object] = []
        for item in level:
            match item:
                case str():
                    _check_text(item)
                case None | bool():
                    pass
                case int():
                    if abs(item) > MAX_INTEGER:
                        raise NumberError(found=_shown(item))
                case float():
                    _check_float(item, repr(item))
                    plain = False
                case dict() | list() | tuple() if depth == MAX_DEPTH:
                    raise TooDeepError()
                case dict():
                    plain = _survey_names(item) and plain
                    parts += len(item) or 1
                    below.extend(item.values())
                case list() | tuple():
                    parts += len(item) or 1
                    below.extend(item)
                case _:
                    raise NotJsonError(found=type(item).__name__)
            # Here and not after the level: a value that contains itself twice doubles at every level.
            if parts > MAX_PARTS:
                raise TooManyPartsError()
        depth, level = depth + 1, below
    return plain


def _survey_names(members: dict[object, object]) -> bool:
    """Refuse member names that are no text; True when all are ASCII, where code points sort as UTF-16 units do."""
    plain = True
    for name in members:
        if not isinstance(name, str):
            raise NotJsonError(found=f"member name of type {type(name).__name__}")
        if not name.isascii():
            _check_text(name)
            plain = False
    return plain


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise LoneSurrogateError() from error


def _shown(number: int) -> str:
    return str(number) if number.bit_length() < 128 else f"of {number.bit_length()} bits"
