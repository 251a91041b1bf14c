"""Canonical JSON: one form per document, and a document per form."""

import datetime
import json
from typing import Any

import jcs
from hypothesis import example, given
from hypothesis import strategies as st

from evidence.canonical import CanonicalError, canonicalize, parse
from state_machine.values import WallMs
from tests.property.evidence_values import attempt, documents, plain_documents
from wire.timestamps import TimestampError, format_rfc3339, parse_rfc3339


@given(documents)
def test_the_canonical_form_is_what_jcs_makes_of_it(document: Any) -> None:
    assert canonicalize(document) == jcs.canonicalize(document)


@given(plain_documents)
@example({"\x7f": "\x7f\x00\u2028\U0001f600", "A": -0, "a": [{}, []]})
def test_journal_entries_have_the_same_bytes_on_the_fast_path(document: Any) -> None:
    assert canonicalize(document) == jcs.canonicalize(document)


@given(documents)
def test_a_document_comes_back_from_its_canonical_form_as_it_was(document: Any) -> None:
    assert parse(canonicalize(document)) == document
    assert canonicalize(parse(canonicalize(document))) == canonicalize(document)


@given(documents, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_white_space_escapes_and_the_order_of_members_do_not_matter(
    document: Any, indent: int | str | None, ascii_only: bool
) -> None:
    written = json.dumps(_reversed(document), indent=indent, ensure_ascii=ascii_only).encode()
    assert canonicalize(parse(written)) == canonicalize(document)


def _reversed(value: Any) -> Any:
    match value:
        case dict():
            return {name: _reversed(member) for name, member in reversed(value.items())}
        case list():
            return [_reversed(item) for item in value]
        case _:
            return value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_kept_exactly_or_refused(number: float) -> None:
    written = attempt(lambda: canonicalize(number), CanonicalError)
    if number.is_integer() and 2**53 <= abs(number) < 1e21:
        assert isinstance(written, CanonicalError)
    else:
        assert parse(written) == number


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b'{"a":1,"a":1}')
@example(b"[" * 100_000)
@example(b'"\\ud800"')
@example(b"1" * 5000)
@example(b"1e999999999")
def test_any_bytes_are_a_document_or_refused(data: bytes) -> None:
    value = attempt(lambda: parse(data), CanonicalError)
    if not isinstance(value, CanonicalError):
        assert parse(canonicalize(value)) == value


JSON_PIECES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b"\\u",
    b"d83d",
    b"1",
    b"-",
    b".",
    b"e9",
    b"null",
    b"a",
    b" ",
]


@given(st.lists(st.sampled_from(JSON_PIECES), max_size=30).map(b"".join))
def test_what_is_nearly_json_is_a_document_or_refused(data: bytes) -> None:
    value = attempt(lambda: parse(data), CanonicalError)
    if not isinstance(value, CanonicalError):
        assert value == json.loads(data)


python_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner)
        | st.sets(st.integers())
        | st.dictionaries(st.none() | st.integers() | st.text(), inner)
    ),
    max_leaves=8,
)


@given(python_values, st.integers(0, 80))
def test_any_value_has_a_canonical_form_or_is_refused(value: Any, depth: int) -> None:
    for _ in range(depth):
        value = [value]
    written = attempt(lambda: canonicalize(value), CanonicalError)
    if not isinstance(written, CanonicalError):
        assert canonicalize(parse(written)) == written
        assert depth <= 64


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_an_instant_comes_back_from_its_timestamp(ms: int) -> None:
    assert parse_rfc3339(format_rfc3339(WallMs(ms))) == ms


@given(
    st.datetimes(),
    st.sampled_from(["", ".{us:06}", ".{ms:03}"]),
    st.sampled_from(["Z", "+00:00", "-00:00", "z"]),
)
def test_a_timestamp_means_what_the_standard_library_says(moment: datetime.datetime, fraction: str, zone: str) -> None:
    text = moment.isoformat(timespec="seconds")
    text += fraction.format(us=moment.microsecond, ms=moment.microsecond // 1000) + zone
    whole = moment.replace(microsecond=moment.microsecond if fraction else 0)
    since = whole.replace(tzinfo=datetime.UTC) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert parse_rfc3339(text) == since // datetime.timedelta(milliseconds=1)


@given(
    st.text(max_size=40)
    | st.from_regex(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,12})?(Z|[+-]\d\d:\d\d)", fullmatch=True)
)
def test_any_text_is_a_timestamp_or_refused(text: str) -> None:
    ms = attempt(lambda: parse_rfc3339(text), TimestampError)
    if not isinstance(ms, TimestampError):
        assert parse_rfc3339(format_rfc3339(ms)) == ms
