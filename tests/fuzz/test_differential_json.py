"""Canonical JSON against an independent implementation of RFC 8785, on random documents and random texts of numbers."""

import json
import math
from typing import Any

import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from evidence.canonical import MAX_INTEGER, CanonicalError, canonicalize, parse
from tests.property.evidence_values import documents

number_texts = st.from_regex(r"-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)
texts = st.text(st.characters(), max_size=6)
any_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@given(documents)
def test_two_implementations_make_the_same_bytes_of_a_document(document: Any) -> None:
    assert canonicalize(document) == rfc8785.dumps(document)


@given(any_json)
def test_what_the_other_implementation_refuses_is_refused_here_too(document: Any) -> None:
    try:
        theirs = rfc8785.dumps(document)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        theirs = None
    try:
        ours = canonicalize(document)
    except CanonicalError:
        ours = None
    assert ours == theirs or (ours is None and _has_a_number_that_readers_would_round(document))


@given(number_texts)
def test_two_implementations_agree_on_every_text_of_a_number_that_is_accepted(text: str) -> None:
    number = float(text)
    whole = json.loads(text)
    try:
        ours = canonicalize([parse(text.encode())])
    except CanonicalError:
        # As a double it would be one that others may have rounded, or none at all.
        assert not math.isfinite(number) or abs(whole) > MAX_INTEGER
        return
    assert ours == rfc8785.dumps([number])
    assert float(ours[1:-1]) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_two_implementations_write_every_double_alike(number: float) -> None:
    if not (number.is_integer() and MAX_INTEGER < abs(number) < 1e21):
        assert canonicalize(number) == rfc8785.dumps(number)


def _has_a_number_that_readers_would_round(value: Any) -> bool:
    """A double that is whole and beyond 2^53: its canonical text is an integer that I-JSON does not allow."""
    match value:
        case float():
            return value.is_integer() and MAX_INTEGER < abs(value) < 1e21
        case dict():
            return any(map(_has_a_number_that_readers_would_round, value.values()))
        case list():
            return any(map(_has_a_number_that_readers_would_round, value))
        case _:
            return False
