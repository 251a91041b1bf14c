"""What askers and builders say to each other: every message survives the wire, and nothing that is none gets in."""

import json
import re
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixfleet.builder.messages import (
    REQUEST_MAX,
    Cancel,
    MessageError,
    Phase,
    Progress,
    Request,
    Subjects,
    decode_cancel,
    decode_progress,
    decode_request,
    encode,
    token,
)

REQUEST: Final[dict[str, Any]] = {"repository": "own", "host": "web1", "asked_by": "me", "asked_at": 1}
PROGRESS: Final[dict[str, Any]] = {
    "job": "1", "repository": "own", "host": "web1", "phase": "done", "builder": "bench", "at": 1,
}  # fmt: skip

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
requests = st.builds(
    Request,
    repository=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", fullmatch=True),
    host=st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,60}", fullmatch=True),
    revision=st.sampled_from(["", "main", "v1.0", "feature/x", "refs/nixfleet/try-1", "0" * 40]),
    compare=st.sampled_from(["", "a" * 40, "b" * 64]),
    asked_by=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True),
    asked_at=st.integers(0, 2**53),
)
progress = st.builds(
    Progress,
    job=texts,
    repository=texts,
    host=texts,
    phase=st.sampled_from(Phase),
    builder=texts,
    at=st.integers(0, 2**53),
    done=st.integers(0, 2**31),
    expected=st.integers(0, 2**31),
    line=texts,
    commit=texts,
    path=texts,
    cache=texts,
    seconds=st.floats(0, 1e9),
    changes=st.lists(texts, max_size=4).map(tuple),
    tail=texts,
    why=texts,
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(requests)
def test_a_request_arrives_as_it_was_sent(request: Request) -> None:
    assert decode_request(encode(request)) == request


@given(progress)
def test_progress_arrives_as_it_was_told(told: Progress) -> None:
    assert decode_progress(encode(told)) == told


@given(texts, texts)
def test_a_cancellation_arrives_as_it_was_sent(job: str, asked_by: str) -> None:
    assert decode_cancel(encode(Cancel(job=job, asked_by=asked_by))) == Cancel(job=job, asked_by=asked_by)


@given(st.binary() | anything.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_message_is_refused_and_nothing_else_happens(data: bytes) -> None:
    for decode in (decode_request, decode_progress, decode_cancel):
        with pytest.raises(MessageError):
            decode(data)


@given(st.sampled_from([*REQUEST, "revision", "compare"]), anything)
def test_a_request_with_anything_in_it_is_refused_or_whole(name: str, value: Any) -> None:
    try:
        request = decode_request(json.dumps({**REQUEST, name: value}).encode())
    except MessageError:
        return
    assert getattr(request, name) == value
    assert decode_request(encode(request)) == request


@given(st.sampled_from([*PROGRESS, "done", "expected", "line", "path", "seconds", "changes", "tail"]), anything)
def test_progress_with_anything_in_it_is_refused_or_can_be_told_on(name: str, value: Any) -> None:
    try:
        told = decode_progress(json.dumps({**PROGRESS, name: value}).encode())
    except MessageError:
        return
    kept = getattr(told, name)
    assert (list(kept) if name == "changes" else kept) == value
    assert decode_progress(encode(told)) == told


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repository", "../own"), ("repository", ""), ("repository", "-own"), ("repository", "own\n"),
        ("host", "-x"), ("host", "web1 web2"), ("host", "../etc"), ("host", "w" * 254), ("host", '"${x}"'),
        ("revision", "--upload-pack=x"), ("revision", "main..x"), ("revision", "main@{1}"), ("revision", "main^"),
        ("revision", "main~1"), ("revision", "a//b"), ("revision", "x."), ("revision", ":/text"), ("revision", None),
        ("compare", "main"), ("compare", "A" * 40), ("compare", None), ("compare", "0" * 41),
        ("asked_by", ""), ("asked_by", "a.b"), ("asked_by", ">"), ("asked_by", "x" * 65),
        ("asked_at", None), ("asked_at", True), ("asked_at", 1.5), ("asked_at", "1"),
    ],
)  # fmt: skip
def test_a_request_that_could_be_more_than_names_is_refused(name: str, value: object) -> None:
    assert decode_request(json.dumps(REQUEST).encode()) == Request(**REQUEST)
    with pytest.raises(MessageError):
        decode_request(json.dumps({**REQUEST, name: value}).encode())


@pytest.mark.parametrize("name", list(REQUEST))
def test_what_a_request_lacks_is_named(name: str) -> None:
    with pytest.raises(MessageError, match=f"`{name}` is missing"):
        decode_request(json.dumps({key: value for key, value in REQUEST.items() if key != name}).encode())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("phase", "asleep"), ("phase", None), ("changes", "one"), ("changes", [1]), ("changes", {"a": 1}),
        ("seconds", float("nan")), ("seconds", float("inf")), ("line", None), ("line", "\ud800"), ("line", 1),
        ("changes", ["\udfff"]), ("done", "1"), ("path", []),
    ],
)  # fmt: skip
def test_progress_that_nobody_could_show_is_refused(name: str, value: object) -> None:
    with pytest.raises(MessageError):
        decode_progress(json.dumps({**PROGRESS, name: value}).encode())


def test_half_a_character_is_sent_as_a_question_mark() -> None:
    told = Progress(**{**PROGRESS, "phase": Phase.DONE, "line": "a\ud800b"})
    assert decode_progress(encode(told)).line == "a?b"


def test_members_that_nobody_knows_yet_are_passed_over() -> None:
    assert decode_request(json.dumps({**REQUEST, "later": {"more": 1}}).encode()) == Request(**REQUEST)


def test_what_is_too_long_or_too_deep_is_not_read() -> None:
    for data in (b" " * (REQUEST_MAX + 1), b"[" * REQUEST_MAX, b'{"a":' * 800, b"9" * REQUEST_MAX):
        with pytest.raises(MessageError):
            decode_request(data)
        with pytest.raises(MessageError):
            decode_cancel(data)


@given(requests, requests)
def test_a_job_is_what_is_to_be_built_and_not_who_wants_it(one: Request, other: Request) -> None:
    def wanted(request: Request) -> tuple[str, ...]:
        return request.repository, request.host, request.revision, request.compare

    assert (one.job == other.job) is (wanted(one) == wanted(other))
    assert re.fullmatch(r"[0-9a-f]{32}", one.job)


@given(texts, texts)
def test_a_token_is_one_and_stands_for_one_text_only(one: str, other: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_=-]*", token(one))
    assert (token(one) == token(other)) is (one == other)


@given(requests)
def test_a_host_with_dots_is_one_word_of_the_subject(request: Request) -> None:
    subject = Subjects(prefix="a.b").job(request)
    assert subject.startswith("a.b.jobs.")
    assert subject.count(".") == 4


def test_names_of_streams_and_buckets_have_no_dots() -> None:
    subjects = Subjects(prefix="a.b-c")
    assert re.fullmatch(r"[A-Za-z0-9_-]+", subjects.stream)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", subjects.bucket)
