"""The canonical form against RFC 8785, and every kind of document that has none."""

import json
import math
import struct
from typing import Any

import jcs
import pytest

from evidence.canonical import (
    ARTIFACT_LIMIT,
    MAX_DEPTH,
    MAX_INTEGER,
    CanonicalError,
    DuplicateMemberError,
    LoneSurrogateError,
    NotJsonError,
    NumberError,
    SyntaxProblemError,
    TooDeepError,
    TooLargeError,
    canonicalize,
    digest,
    parse,
)
from state_machine.values import FailurePolicy, Reason

# RFC 8785 section 3.2.2, and its canonical form from section 3.2.3.
RFC_SAMPLE = rb"""{
  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}"""
RFC_SAMPLE_CANONICAL = (
    '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
    '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
).encode()

# RFC 8785 section 3.2.3: names sort by UTF-16 code units, so the emoji comes before U+FB33.
RFC_SORTING = rb"""{"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh",
  "1": "One", "\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control",
  "\u00f6": "Latin Small Letter O With Diaeresis"}"""
RFC_SORTED_VALUES = [
    "Carriage Return",
    "One",
    "Control",
    "Latin Small Letter O With Diaeresis",
    "Euro Sign",
    "Emoji: Grinning Face",
    "Hebrew Letter Dalet With Dagesh",
]

# RFC 8785 appendix B: an IEEE 754 double and how it is written.
RFC_NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]

# The rest of appendix B: these are written as integers that no reader could be sure of, so there is no form of them.
RFC_NUMBERS_BEYOND_EXACT_INTEGERS = [
    "4340000000000000",
    "c340000000000000",
    "4430000000000000",
    "444b1ae4d6e2ef4e",
    "444b1ae4d6e2ef4f",
    "7fffffffffffffff",
    "7ff0000000000000",
]

REFUSED_BYTES: list[tuple[str, bytes, type[CanonicalError]]] = [
    ("nothing", b"", SyntaxProblemError),
    ("only space", b" \n", SyntaxProblemError),
    ("a byte order mark", b"\xef\xbb\xbf{}", SyntaxProblemError),
    ("UTF-16", "{}".encode("utf-16"), SyntaxProblemError),
    ("a byte that is not UTF-8", b'{"a":"\xff"}', SyntaxProblemError),
    ("an overlong form", b'"\xc0\xaf"', SyntaxProblemError),
    ("a surrogate in UTF-8", b'"\xed\xa0\x80"', SyntaxProblemError),
    ("two documents", b"{}{}", SyntaxProblemError),
    ("something after the document", b"{} x", SyntaxProblemError),
    ("a document cut short", b'{"a":[1,2', SyntaxProblemError),
    ("a trailing comma", b"[1,]", SyntaxProblemError),
    ("single quotes", b"{'a':1}", SyntaxProblemError),
    ("a comment", b"{} // x", SyntaxProblemError),
    ("a bare control character", b'"\x01"', SyntaxProblemError),
    ("a leading zero", b"[01]", SyntaxProblemError),
    ("a plus sign", b"[+1]", SyntaxProblemError),
    ("a bare backslash", b"\\", SyntaxProblemError),
    ("a member twice", b'{"a":1,"b":2,"a":1}', DuplicateMemberError),
    ("a member twice, once escaped", b'{"a":1,"\\u0061":1}', DuplicateMemberError),
    ("a member twice, deep inside", b'[{"x":{"a":{},"a":{}}}]', DuplicateMemberError),
    ("NaN", b"[NaN]", NumberError),
    ("Infinity", b"[Infinity]", NumberError),
    ("-Infinity", b"[-Infinity]", NumberError),
    ("1e400", b"[1e400]", NumberError),
    ("-1e400", b"[-1e400]", NumberError),
    ("2^53", b"[9007199254740992]", NumberError),
    ("-2^53", b"[-9007199254740992]", NumberError),
    ("2^53+1", b"[9007199254740993]", NumberError),
    ("2^53 with a fraction", b"[9007199254740992.0]", NumberError),
    ("1e20", b"[1e20]", NumberError),
    ("a million digits", b"[" + b"9" * 1_000_000 + b"]", NumberError),
    ("half a surrogate pair", b'"\\ud800"', LoneSurrogateError),
    ("the other half", b'"\\udc00x"', LoneSurrogateError),
    ("halves in the wrong order", b'"\\udc00\\ud800"', LoneSurrogateError),
    ("half a pair as a name", b'{"\\ud83d":1}', LoneSurrogateError),
    ("65 arrays", b"[" * 65 + b"]" * 65, TooDeepError),
    ("65 objects", b'{"a":' * 65 + b"1" + b"}" * 65, TooDeepError),
    ("10,000 arrays", b"[" * 10_000 + b"]" * 10_000, TooDeepError),
    ("10,000 open arrays", b"[" * 10_000, TooDeepError),
    ("10,000 open objects", b'{"a":' * 10_000, TooDeepError),
    ("deep after a string of brackets", b'["]]]]\\"]]",' + b"[" * 100, TooDeepError),
    ("more than the limit", b" " * (ARTIFACT_LIMIT + 1), TooLargeError),
]


def test_the_sample_of_rfc_8785_has_its_canonical_form() -> None:
    assert canonicalize(parse(RFC_SAMPLE)) == RFC_SAMPLE_CANONICAL


def test_names_sort_by_utf_16_code_units() -> None:
    assert list(json.loads(canonicalize(parse(RFC_SORTING))).values()) == RFC_SORTED_VALUES


@pytest.mark.parametrize(("bits", "text"), RFC_NUMBERS)
def test_a_double_is_written_as_rfc_8785_writes_it(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonicalize(number) == text.encode()
    assert parse(text.encode()) == number


@pytest.mark.parametrize("bits", RFC_NUMBERS_BEYOND_EXACT_INTEGERS)
def test_a_double_that_would_read_as_an_inexact_integer_is_refused(bits: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    with pytest.raises(NumberError):
        canonicalize(number)


@pytest.mark.parametrize(("data", "error"), [pytest.param(d, e, id=name) for name, d, e in REFUSED_BYTES])
def test_a_document_that_two_readers_may_see_differently_is_refused(data: bytes, error: type[CanonicalError]) -> None:
    with pytest.raises(error) as caught:
        parse(data)
    assert caught.value.reason is (Reason.TOO_LARGE if error is TooLargeError else Reason.PARSE)
    assert 0 < len(caught.value.detail) < 200


def test_the_limit_is_what_the_caller_says() -> None:
    assert parse(b"[1,2]", limit=5) == [1, 2]
    with pytest.raises(TooLargeError) as caught:
        parse(b"[1,2]", limit=4)
    assert (caught.value.size, caught.value.limit) == (5, 4)


def test_a_document_may_be_as_deep_as_the_limit() -> None:
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert canonicalize(parse(deep)) == deep


def test_brackets_inside_strings_are_not_depth() -> None:
    document = b'["' + b"[" * 1000 + b'\\"[[\\\\","' + b"{" * 1000 + b'"]'
    assert canonicalize(parse(document)) == document


def test_many_shallow_containers_are_not_depth() -> None:
    wide = b"[" + b",".join([b'[{"a":[]}]'] * 1000) + b"]"
    assert canonicalize(parse(wide)) == wide


@pytest.mark.parametrize("text", ["1.0", "1e0", "10e-1", "1"])
def test_a_number_without_a_fraction_is_an_integer_however_it_is_spelled(text: str) -> None:
    value = parse(text.encode())
    assert value == 1
    assert type(value) is int


@pytest.mark.parametrize("number", [MAX_INTEGER, -MAX_INTEGER])
def test_the_largest_exact_integers_are_kept(number: int) -> None:
    assert parse(canonicalize([number])) == [number]


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def _cycle(width: int) -> list[Any]:
    value: list[Any] = []
    value.extend([value] * width)
    return value


@pytest.mark.parametrize(
    ("value", "error"),
    [
        pytest.param(_nested(65), TooDeepError, id="65 lists"),
        pytest.param(_nested(100_000), TooDeepError, id="100,000 lists"),
        pytest.param(_cycle(1), TooDeepError, id="a list that contains itself"),
        pytest.param({"a": math.nan}, NumberError, id="nan"),
        pytest.param({"a": math.inf}, NumberError, id="inf"),
        pytest.param({"a": 2**53}, NumberError, id="2^53"),
        pytest.param({"a": -(10**5000)}, NumberError, id="5,000 digits"),
        pytest.param({"a": 1e20}, NumberError, id="1e20"),
        pytest.param("\ud800", LoneSurrogateError, id="lone surrogate"),
        pytest.param({"\udfff": 1}, LoneSurrogateError, id="lone surrogate as a name"),
        pytest.param({1: 2}, NotJsonError, id="a name that is a number"),
        pytest.param({None: 2}, NotJsonError, id="a name that is null"),
        pytest.param(b"x", NotJsonError, id="bytes"),
        pytest.param({"a": {1, 2}}, NotJsonError, id="a set"),
        pytest.param(object(), NotJsonError, id="an object"),
    ],
)
def test_a_value_without_a_canonical_form_is_refused(value: Any, error: type[CanonicalError]) -> None:
    with pytest.raises(error) as caught:
        canonicalize(value)
    assert caught.value.reason is Reason.PARSE
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"kind": "Converged", "n": 12, "ok": True, "none": None}, id="plain"),
        pytest.param({"text": '\x00\x1f\x7f\u2028\u20ac\U0001f600"\\/\b\f\n\r\t'}, id="every escape"),
        pytest.param({"ö": 1, "\ufb33": 2, "\U0001f600": 3}, id="names beyond ASCII"),
        pytest.param({"x": 1.5, "y": -0.0, "z": 1e-7}, id="fractions"),
        pytest.param([(), [], {}, ""], id="empty containers"),
        pytest.param({"policy": FailurePolicy.HALT}, id="an enumeration"),
    ],
)
def test_the_fast_encoder_gives_the_same_bytes_as_jcs(value: Any) -> None:
    assert canonicalize(value) == jcs.canonicalize(value)


def test_a_digest_is_lowercase_hex_of_sha_256() -> None:
    # FIPS 180-4, the one-block example.
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
