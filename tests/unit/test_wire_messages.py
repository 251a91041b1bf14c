"""Bodies as protocol sections 1.4, 1.5 and 3 write them: names, what is left out, and what a reader accepts."""

import json
from typing import Any

import pytest

from state_machine.events import DispatchKind
from state_machine.facts import ProbeResult
from state_machine.intent import Pin
from state_machine.values import (
    Channel,
    Closure,
    HostName,
    Phase,
    ProbeMode,
    ProbeStatus,
    Reason,
    RolloutId,
    SubResult,
    WallMs,
)
from tests.unit.wire_examples import AT, LATER, NEW, NODE7, OLD, ROLLOUT
from wire.codec import decode, decode_fact, encode, encode_fact
from wire.listings import HostRow, LogKind, LogRow, RolloutEvents, RolloutHostRow, RolloutHosts
from wire.messages import (
    Dispatch,
    EnrollRequest,
    EnrollResponse,
    ErrorBody,
    HeartbeatReply,
    HeartbeatRequest,
    HostRolloutSnapshot,
    ReplayFrom,
    Token,
    TokenClaims,
)

SNAPSHOT = HostRolloutSnapshot(
    rollout_id="edge@4be0c1",
    hostname="node7",
    channel="edge",
    state=Phase.SOAKING,
    target_closure=NEW,
    dispatched_at=AT,
    last_event_seq=3,
)
RESULT = ProbeResult(
    seq=6, probe_name="sshd", mode=ProbeMode.ENFORCE, status=ProbeStatus.PASS, observed_at=WallMs(1_780_308_180_000)
)


def test_a_dispatch_is_snake_case_and_an_ordinary_one_carries_none_of_our_additions() -> None:
    dispatch = Dispatch(
        hostname="node7", rollout_id="edge@4be0c1", target_closure=NEW, soak_due_at=LATER, enqueued_at=AT
    )
    assert encode(dispatch) == {
        "hostname": "node7",
        "rollout_id": "edge@4be0c1",
        "target_closure": NEW,
        "soak_due_at": "2026-06-01T10:02:40Z",
        "enqueued_at": "2026-06-01T10:00:02.125Z",
    }


def test_a_rollback_wish_says_so() -> None:
    wish = Dispatch(
        hostname="node7",
        rollout_id="edge@4be0c1",
        target_closure=NEW,
        soak_secs=30,
        kind=DispatchKind.ROLLBACK,
        reason="canary is sick",
    )
    document = encode(wish)
    assert (document["kind"], document["reason"], document["soak_secs"]) == ("rollback", "canary is sick", 30)
    assert decode(Dispatch, document) == wish


def test_a_dispatch_keeps_hostile_texts_for_the_core_to_refuse_by_name() -> None:
    document = {"hostname": "node7", "rollout_id": "../../etc", "target_closure": "-rf"}
    assert decode(Dispatch, document).rollout_id == "../../etc"


def test_the_heartbeat_of_another_agent_is_understood() -> None:
    text = f'{{"hostname":"node7","current_closure":"{NEW}","at":"2026-06-01T10:03:00+00:00"}}'
    request = decode(HeartbeatRequest, json.loads(text))
    assert request == HeartbeatRequest(hostname=NODE7, current_closure=NEW, at=WallMs(1_780_308_180_000))


def test_our_heartbeat_adds_members_in_snake_case_and_leaves_out_what_is_not_known() -> None:
    request = HeartbeatRequest(
        hostname=NODE7, at=AT, agent_version="0.1.0", last_event_seq_by_rollout={ROLLOUT: 6}, health={"pass": 2}
    )
    assert encode(request) == {
        "hostname": "node7",
        "at": "2026-06-01T10:00:02.125Z",
        "agent_version": "0.1.0",
        "last_event_seq_by_rollout": {"edge@4be0c1": 6},
        "health": {"pass": 2},
    }


def test_a_heartbeat_reply_is_snake_case_around_camel_case_snapshots() -> None:
    reply = HeartbeatReply(
        received_at=AT, bootstrap_rollouts=(SNAPSHOT,), replay=(ReplayFrom(rollout_id=ROLLOUT, from_seq=4),)
    )
    assert encode(reply) == {
        "received_at": "2026-06-01T10:00:02.125Z",
        "bootstrap_rollouts": [
            {
                "rolloutId": "edge@4be0c1",
                "hostname": "node7",
                "channel": "edge",
                "state": "Soaking",
                "targetClosure": NEW,
                "dispatchedAt": "2026-06-01T10:00:02.125Z",
                "lastEventSeq": 3,
            }
        ],
        "replay": [{"rollout_id": "edge@4be0c1", "from_seq": 4}],
    }


@pytest.mark.parametrize("document", [{}, {"received_at": None, "bootstrap_rollouts": None, "replay": None}])
def test_null_and_absent_are_the_same_to_a_reader(document: dict[str, Any]) -> None:
    assert decode(HeartbeatReply, document) == HeartbeatReply()


def test_a_reply_without_a_time_says_null() -> None:
    assert encode(HeartbeatReply()) == {"received_at": None}


def test_a_token_travels_verbatim_because_its_signature_covers_the_text_of_its_times() -> None:
    claims = {
        "hostname": "node7",
        "expectedPubkeyFingerprint": "q83vEjRWeJA=",
        "issuedAt": "2026-06-01T10:00:00.000001+00:00",
        "expiresAt": "2026-06-02T10:00:00Z",
        "nonce": "00112233445566778899aabbccddeeff",
    }
    token: dict[str, Any] = {"version": 1, "claims": claims, "signature": "c2ln"}
    request = EnrollRequest(token=token, csr_pem="-----BEGIN")
    assert encode(request) == {"token": token, "csrPem": "-----BEGIN"}
    assert decode(Token, request.token) == Token(
        version=1,
        claims=TokenClaims(
            hostname=NODE7,
            expected_pubkey_fingerprint="q83vEjRWeJA=",
            issued_at=WallMs(1_780_308_000_000),
            expires_at=WallMs(1_780_394_400_000),
            nonce="00112233445566778899aabbccddeeff",
        ),
        signature="c2ln",
    )


def test_enrolment_answers_in_camel_case() -> None:
    assert encode(EnrollResponse(cert_pem="-----BEGIN", not_after=LATER)) == {
        "certPem": "-----BEGIN",
        "notAfter": "2026-06-01T10:02:40Z",
    }


def test_a_refusal_names_the_number_it_wants_only_after_a_gap() -> None:
    assert encode(ErrorBody(error="facts 4 to 6 are missing", reason="gap", want_seq=4)) == {
        "error": "facts 4 to 6 are missing",
        "reason": "gap",
        "want_seq": 4,
    }
    assert decode(ErrorBody, {"error": "no upstream", "closure": "x", "tracking": "y"}) == ErrorBody(
        error="no upstream"
    )


def test_a_probe_result_leaves_out_what_it_does_not_have() -> None:
    assert encode_fact(RESULT) == {
        "kind": "ProbeResult",
        "seq": 6,
        "probeName": "sshd",
        "mode": "enforce",
        "status": "pass",
        "observedAt": "2026-06-01T10:03:00Z",
    }


def test_a_sub_result_without_a_mode_counts_as_enforced() -> None:
    document = encode_fact(RESULT) | {"subResults": [{"controlId": "AC-2", "status": "fail", "framework": "nis2"}]}
    fact = decode_fact(document)
    assert isinstance(fact, ProbeResult)
    assert fact.sub_results == (SubResult(control_id="AC-2", status=ProbeStatus.FAIL, framework="nis2"),)
    assert fact.sub_results[0].effective_mode is ProbeMode.ENFORCE


def test_the_switch_method_of_other_agents_is_understood() -> None:
    document = {"kind": "ActivationStarted", "startedAt": "2026-06-01T10:00:00Z", "seq": 2}
    fact = decode_fact(document | {"switchMethod": "switch-to-configuration"})
    assert encode_fact(fact)["switchMethod"] == "switch-to-configuration"


def test_reasons_are_slugs() -> None:
    fact = decode_fact(
        {"kind": "DispatchReject", "reason": "quarantined", "rejectedAt": "2026-06-01T10:00:00Z", "seq": 1}
    )
    assert getattr(fact, "reason", None) is Reason.QUARANTINED


def test_a_host_row_writes_null_for_what_is_not_known() -> None:
    document = encode(
        HostRow(hostname=NODE7, channel=Channel("edge"), current_closure_hash=OLD, pin=Pin(commit="4be0c1", reason="x"))
    )
    assert document["lastCheckinAt"] is None
    assert document["rolloutState"] is None
    assert document["pin"] == {"commit": "4be0c1", "reason": "x"}
    assert document["converged"] is False
    assert {"agentVersion", "waitingOn", "health"}.isdisjoint(document)


def test_a_rollouts_hosts_are_snake_case_around_camel_case_rows() -> None:
    row = RolloutHostRow(
        host=NODE7, channel=Channel("edge"), wave=1, target_closure_hash=NEW, target_channel_ref="4be0c1"
    )
    assert encode(RolloutHosts(rollout_id=ROLLOUT, hosts=(row,))) == {
        "rollout_id": "edge@4be0c1",
        "hosts": [
            {
                "host": "node7",
                "channel": "edge",
                "wave": 1,
                "targetClosureHash": NEW,
                "targetChannelRef": "4be0c1",
                "dispatchedAt": None,
                "terminalState": None,
                "terminalAt": None,
            }
        ],
    }


def test_a_log_carries_any_payload() -> None:
    row = LogRow(seq=1, ts=AT, kind=LogKind.GATE_DECISION, host=HostName("node7"), payload={"gate": "soak", "n": [1]})
    listing = RolloutEvents(rollout_id=RolloutId("edge@4be0c1"), events=(row,))
    assert decode(RolloutEvents, encode(listing)) == listing


def test_an_empty_closure_means_none() -> None:
    fact = decode_fact(
        {"kind": "DispatchAck", "currentClosureAtDispatch": "", "receivedAt": "2026-06-01T10:00:00Z", "seq": 1}
    )
    assert getattr(fact, "current_closure_at_dispatch", None) == Closure("")
