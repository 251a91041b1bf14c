"""Whatever does not fit is refused with the place and the expectation, and nothing is guessed."""

from typing import Any

import pytest

from state_machine.values import Reason
from tests.unit.wire_examples import EVENTS, FACTS, NEW
from wire.codec import decode, decode_fact, encode_fact
from wire.errors import WireError
from wire.messages import Dispatch, EventEnvelope, HeartbeatRequest, TokenClaims
from wire.records import decode_event, encode_event

FAILED: dict[str, Any] = {
    "kind": "Failed",
    "seq": 8,
    "failedAt": "2026-06-01T10:02:40Z",
    "sustainedDurationSecs": 61,
    "failingProbes": ["sshd"],
    "policyApplied": "halt",
}


def refusal(**changes: Any) -> str:
    with pytest.raises(WireError) as caught:
        decode_fact(FAILED | changes)
    assert caught.value.reason is Reason.PARSE
    return caught.value.detail


@pytest.mark.parametrize(
    ("member", "value", "detail"),
    [
        ("seq", "8", "$.seq: expected an integer, found a string"),
        ("seq", True, "$.seq: expected an integer, found a boolean"),
        ("seq", 8.5, "$.seq: expected an integer, found a number"),
        ("seq", 2**53, "$.seq: the integer is beyond what JSON carries exactly (2^53 - 1)"),
        ("seq", None, "$.seq: is missing"),
        ("failedAt", 1780308160000, "$.failedAt: expected a timestamp, found an integer"),
        ("failedAt", "yesterday", "$.failedAt: 'yesterday' is not an RFC 3339 timestamp such as 2026-06-01T10:30:00Z"),
        ("failingProbes", "sshd", "$.failingProbes: expected a list, found a string"),
        ("failingProbes", ["sshd", 7], "$.failingProbes[1]: expected a string, found an integer"),
        ("failingProbes", {"0": "sshd"}, "$.failingProbes: expected a list, found an object"),
        ("policyApplied", "halt-only", "$.policyApplied: 'halt-only' is none of halt, rollback-and-halt"),
        ("policyApplied", ["halt"], "$.policyApplied: expected one of halt, rollback-and-halt, found a list"),
        ("kind", "failed", "$: kind 'failed' is unknown"),
        ("kind", 3, "$: expected a member 'kind' with a string, found an integer"),
    ],
)
def test_a_member_that_does_not_fit_is_named_with_what_was_expected(member: str, value: Any, detail: str) -> None:
    assert refusal(**{member: value}) == detail


def test_the_place_is_given_in_the_names_the_document_uses() -> None:
    probes = [{"probeName": "a", "kind": "tcp", "mode": "enforce"}, {"probeName": "b", "kind": "tcp", "mode": "maybe"}]
    event = {"kind": "ProbeTopologyDeclared", "declaredAt": "2026-06-01T10:00:00Z", "seq": 4, "probes": probes}
    with pytest.raises(WireError, match=r"^parse: \$\.event\.probes\[1\]\.mode: 'maybe' is none of"):
        decode(EventEnvelope, {"hostname": "node7", "rolloutId": "edge@4b", "event": event})


@pytest.mark.parametrize(
    "rollout_id", ["", "edge", "edge@", "@4b", "edge@4B", "Edge@4b", "a/b@4b", "../x@4b", "e@4b\0", "e@4b\n", "é@4b"]
)
def test_what_is_not_a_rollout_id_is_refused(rollout_id: str) -> None:
    with pytest.raises(WireError, match=r"\$\.rolloutId: .* is not a rollout id"):
        decode(EventEnvelope, {"hostname": "node7", "rolloutId": rollout_id, "event": FAILED})


def test_a_rollout_id_of_129_characters_is_refused_and_the_error_stays_short() -> None:
    with pytest.raises(WireError) as caught:
        decode(EventEnvelope, {"hostname": "node7", "rolloutId": "e@" + "4" * 127, "event": FAILED})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "closure", ["/nix/store/" + NEW, NEW + "/bin", "..", "-rf", NEW + "\0", NEW[:32] + "-" + "x" * 200, "latest"]
)
def test_what_is_not_a_closure_is_refused(closure: str) -> None:
    with pytest.raises(WireError, match=r"\$\.current_closure: .* is not the base name of a store path"):
        decode(HeartbeatRequest, {"hostname": "node7", "at": "2026-06-01T10:00:00Z", "current_closure": closure})


def test_a_dispatch_with_an_endless_text_is_refused_before_anybody_writes_it_down() -> None:
    document = {"hostname": "node7", "rollout_id": "x" * 1025, "target_closure": NEW}
    with pytest.raises(WireError, match=r"\$\.rollout_id: the text has 1025 characters, the limit is 1024"):
        decode(Dispatch, document)
    assert len(decode(Dispatch, document | {"rollout_id": "x" * 1024}).rollout_id) == 1024


def test_a_bad_key_of_a_mapping_is_named() -> None:
    document = {"hostname": "node7", "at": "2026-06-01T10:00:00Z", "last_event_seq_by_rollout": {"../x": 1}}
    with pytest.raises(WireError, match=r"\$\.last_event_seq_by_rollout\['\.\./x'\]: '\.\./x' is not a rollout id"):
        decode(HeartbeatRequest, document)


def test_a_list_is_no_mapping() -> None:
    document = {"hostname": "node7", "at": "2026-06-01T10:00:00Z", "health": ["pass"]}
    with pytest.raises(WireError, match=r"\$\.health: expected an object, found a list"):
        decode(HeartbeatRequest, document)


def test_an_error_never_quotes_a_secret() -> None:
    with pytest.raises(WireError) as caught:
        decode(TokenClaims, {"hostname": "node7", "nonce": ["s3cret"]})
    with pytest.raises(WireError) as caught_too:
        decode(TokenClaims, ["s3cret"])
    assert "s3cret" not in f"{caught.value}{caught_too.value}"


@pytest.mark.parametrize("document", [None, 3, "Failed", [], [FAILED], {}])
def test_what_is_no_fact_at_all_is_refused(document: Any) -> None:
    with pytest.raises(WireError):
        decode_fact(document)


def test_no_member_of_a_fact_or_event_is_called_kind_besides_the_tag() -> None:
    for fact in FACTS:
        assert encode_fact(fact)["kind"] == type(fact).__name__
    for event in EVENTS:
        assert encode_event(event)["kind"] == type(event).__name__


def test_a_fraction_is_welcome_where_the_journal_keeps_one_and_an_integer_counts_as_one() -> None:
    document = {"kind": "DutyFinished", "at": {"wall_ms": 5, "mono_ms": 6}, "duty": "renewal", "ok": True, "jitter": 0}
    jitter = getattr(decode_event(document), "jitter", None)
    assert (jitter, type(jitter)) == (0.0, float)


@pytest.mark.parametrize("jitter", [float("nan"), float("inf"), -float("inf"), 10**400, "0.5", True])
def test_a_fraction_that_is_no_number_is_refused(jitter: Any) -> None:
    document = {"kind": "DutyFinished", "at": {"wall_ms": 5, "mono_ms": 6}, "duty": "renewal", "ok": True}
    with pytest.raises(WireError, match=r"\$\.jitter"):
        decode_event(document | {"jitter": jitter})


@pytest.mark.parametrize("validity", [[], [5], [5, 6, 7]])
def test_a_pair_has_two_items(validity: list[int]) -> None:
    document = {"kind": "CertificateLoaded", "at": {"wall_ms": 5, "mono_ms": 6}, "validity": validity}
    with pytest.raises(WireError, match=rf"\$\.validity: expected 2 items, found {len(validity)}"):
        decode_event(document)
