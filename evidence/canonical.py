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
from collections.abc import Mapping, Sequence
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

MAX_INTEGER: Final = 2**53 - 1
"""The largest integer that every JSON reader holds exactly (RFC 7493 section 2.2)."""

_PLAIN_ENCODER: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False
)
_ESCAPE: Final = re.compile(rb"\\.", re.DOTALL)
_STRING: Final = re.compile(rb'"[^"]*"?')
_BRACKETS: Final = b"[]{}"
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in _BRACKETS)
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
    if _deeper_than_allowed(data):
        raise TooDeepError()
    try:
        text = data.decode("utf-8")
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
    # jcs is five times slower; where no number is a float and all names are ASCII, both encoders give the same bytes.
    if _survey(value):
        return _PLAIN_ENCODER.encode(value).encode("utf-8")
    return cast(bytes, jcs.canonicalize(value))


def digest(data: bytes) -> str:
    """SHA-256 as lowercase hex: how documents refer to one another."""
    return hashlib.sha256(data).hexdigest()


def _deeper_than_allowed(data: bytes) -> bool:
    """Count brackets outside strings, so that no recursive reader ever meets deep input.

    A backslash outside a string misleads the count only from there on, and there the reader stops anyway.
    """
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return False
    outside = _STRING.sub(b"", _ESCAPE.sub(b"", data))
    steps = memoryview(outside.translate(_STEPS, _NOT_BRACKETS)).cast("b")
    return max(itertools.accumulate(steps), default=0) > MAX_DEPTH


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
    plain = True
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
                    below.extend(item.values())
                case list() | tuple():
                    below.extend(item)
                case _:
                    raise NotJsonError(found=type(item).__name__)
        # A value that contains itself twice doubles at every level.
        if len(below) > ARTIFACT_LIMIT:
            raise TooLargeError(size=len(below), limit=ARTIFACT_LIMIT)
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
