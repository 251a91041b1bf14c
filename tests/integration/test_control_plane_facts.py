"""What a control plane takes from hosts, over real TLS: every fact once, in order, proved, and on the disk first."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from evidence.host_key import generate_host_key
from state_machine.facts import ActivationCompleted, ActivationStarted, Converged, DispatchAck
from state_machine.values import Closure, SwitchMethod, WallMs
from tests.cplab import OLD, Lab, Puppet, Running, activated, closure
from wire.codec import encode_fact
from wire.json_value import JsonObject

AT = WallMs(1_790_000_000_000)
HOSTS = tuple(f"h{number}" for number in range(40))
ROLLOUT = "stable@c0ffee"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("facts"), hosts=HOSTS)
    lab.publish("c0ffee")
    return lab


@pytest.fixture(scope="module")
def cp(lab: Lab) -> Iterator[Running]:
    with lab.start() as running:
        yield running


_fresh = iter(HOSTS)


@pytest.fixture
def agent(cp: Running) -> Puppet:
    return cp.agent(next(_fresh))


def ack(seq: int = 1, running: Closure = OLD) -> DispatchAck:
    return DispatchAck(seq=seq, current_closure_at_dispatch=running, received_at=AT)


def started(seq: int) -> ActivationStarted:
    return ActivationStarted(seq=seq, started_at=AT, switch_method=SwitchMethod.DETACHED)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) <= {"error", "reason", "want_seq"}
    return answer.status_code, body["reason"]


def last_seq(agent: Puppet) -> int:
    """What the control plane has, by its answer to a fact far ahead."""
    answer = agent.send(ROLLOUT, started(seq=10_000))
    want: int = answer.json()["want_seq"]
    return want - 1


def test_the_same_fact_again_is_taken_for_granted(agent: Puppet) -> None:
    assert [agent.send(ROLLOUT, ack()).status_code for _ in range(3)] == [204, 204, 204]
    assert last_seq(agent) == 1


def test_another_fact_under_a_number_that_is_taken_is_a_conflict(agent: Puppet) -> None:
    agent.send(ROLLOUT, ack())
    assert refusal(agent.send(ROLLOUT, ack(running=closure("another")))) == (409, "conflict")
    assert agent.send(ROLLOUT, started(2)).status_code == 204


def test_a_gap_is_answered_with_the_number_that_is_wanted(agent: Puppet) -> None:
    agent.send(ROLLOUT, ack())
    answer = agent.send(ROLLOUT, started(4))
    assert refusal(answer) == (409, "gap")
    assert answer.json()["want_seq"] == 2
    assert last_seq(agent) == 1


def test_an_illegal_fact_is_refused_for_good_and_the_next_number_is_taken(agent: Puppet) -> None:
    done = Converged(seq=1, converged_at=AT, current_closure=OLD)
    answer = agent.send(ROLLOUT, done)
    assert refusal(answer) == (409, "illegal")
    assert answer.json()["error"] == "Converged: Pending does not accept it"
    assert refusal(agent.send(ROLLOUT, done)) == (409, "illegal")  # the same answer again
    assert agent.send(ROLLOUT, ack(seq=2)).status_code == 204
    assert last_seq(agent) == 2


def test_a_fact_that_breaks_an_invariant_is_refused_with_the_invariant(agent: Puppet) -> None:
    agent.tell(ROLLOUT, ack(), started(2))
    wrong = ActivationCompleted(seq=3, observed_current_closure=OLD, exit_code=0, completed_at=AT)
    answer = agent.send(ROLLOUT, wrong)
    assert refusal(answer) == (409, "illegal")
    assert f"{OLD} runs, not the target" in answer.json()["error"]


def test_a_kind_from_the_future_is_refused_for_good_and_does_not_stop_delivery(agent: Puppet) -> None:
    agent.send(ROLLOUT, ack())
    news: JsonObject = {"kind": "MoonPhaseObserved", "seq": 2, "phase": "full"}
    assert refusal(agent.post(ROLLOUT, news)) == (422, "parse")
    assert agent.send(ROLLOUT, started(3)).status_code == 204


@pytest.mark.parametrize(
    "change",
    [
        {"receivedAt": "yesterday"},
        {"receivedAt": None},
        {"currentClosureAtDispatch": "../../etc/passwd"},
        {"currentClosureAtDispatch": 7},
        {"seq": "1"},
        {"seq": 0},
        {"seq": 1.5},
        {"seq": True},
        {"kind": None},
    ],
    ids=str,
)
def test_a_malformed_fact_is_422(agent: Puppet, change: JsonObject) -> None:
    assert refusal(agent.post(ROLLOUT, {**encode_fact(ack()), **change})) == (422, "parse")


HOSTILE = {
    "duplicate member": b'{"hostname":"x","hostname":"y"}',
    "deep nesting": b"[" * 10_000 + b"]" * 10_000,
    "NaN": b'{"hostname":NaN}',
    "infinity by exponent": b'{"hostname":1e400}',
    "lone surrogate": b'{"hostname":"\\ud800"}',
    "too large an integer": b'{"hostname":9007199254740993}',
    "byte order mark": b'\xef\xbb\xbf{"hostname":"x"}',
    "not UTF-8": b'{"hostname":"\xff"}',
    "no object": b"[]",
    "nothing": b"",
    "half": b'{"hostname":',
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_json_is_a_typed_refusal(cp: Running, body: bytes) -> None:
    assert refusal(cp.client("h0").post("/v1/agent/events", content=body)) == (422, "parse")


@pytest.mark.parametrize("rollout_id", ["stable", "a@b@c", "../../x@00", "Stable@00", "stable@xyz", "s@" + "0" * 200])
def test_a_rollout_id_of_another_shape_reaches_nothing(agent: Puppet, rollout_id: str) -> None:
    assert refusal(agent.post(rollout_id, encode_fact(ack()))) == (422, "parse")


def test_unknown_members_are_ignored_but_signed(agent: Puppet) -> None:
    assert agent.post(ROLLOUT, {**encode_fact(ack()), "mood": "good"}).status_code == 204


def test_a_body_beyond_the_limit_is_413(cp: Running) -> None:
    body = json.dumps({"hostname": "h0", "padding": "x" * 1_100_000})
    assert refusal(cp.client("h0").post("/v1/agent/events", content=body)) == (413, "too-large")
    chunks = (b"x" * 100_000 for _ in range(20))
    assert refusal(cp.client("h0").post("/v1/agent/events", content=chunks)) == (413, "too-large")


def test_a_host_speaks_for_itself_only(agent: Puppet, cp: Running) -> None:
    other = cp.client("h0" if agent.host != "h0" else "h1")
    envelope = agent.envelope(ROLLOUT, encode_fact(ack()))
    assert refusal(other.post("/v1/agent/events", json=envelope)) == (403, "hostname")
    heartbeat = {"hostname": agent.host, "at": "2026-06-01T10:03:00Z"}
    assert refusal(other.post("/v1/agent/heartbeat", json=heartbeat)) == (403, "hostname")
    assert last_seq(agent) == 0


def test_a_signature_by_another_key_is_refused_and_uses_nothing_up(agent: Puppet) -> None:
    event = encode_fact(ack())
    envelope = agent.envelope(ROLLOUT, event)
    forged = {**envelope, "signature": generate_host_key().sign(b"whatever").hex()}
    altered = {**envelope, "event": {**event, "currentClosureAtDispatch": closure("another")}}
    garbled = {**envelope, "signature": "zz"}
    for body in (forged, altered, garbled):
        assert refusal(agent.http.post("/v1/agent/events", json=body)) == (403, "bad-signature")
    assert agent.http.post("/v1/agent/events", json=envelope).status_code == 204


def test_an_unsigned_fact_is_taken_and_not_counted_as_verified(agent: Puppet, cp: Running) -> None:
    assert agent.post(ROLLOUT, encode_fact(ack()), signed=False).status_code == 204
    [row] = [row for row in cp.operator.get("/v1/hosts").json()["hosts"] if row["hostname"] == agent.host]
    assert row["verifiedEventCount"] == 0


def test_evidence_can_be_demanded(tmp_path: Path) -> None:
    lab = Lab(tmp_path, hosts=("web1",))
    lab.publish("c0ffee")
    with lab.start(require_evidence=True) as cp:
        agent = cp.agent("web1")
        assert refusal(agent.post(ROLLOUT, encode_fact(ack()), signed=False)) == (403, "not-signed")
        assert agent.send(ROLLOUT, ack()).status_code == 204


def test_a_rollout_that_only_the_host_knows_is_kept_as_the_host_tells_it(agent: Puppet, cp: Running) -> None:
    target = closure("long ago")
    agent.tell("stable@0123", ack(), *activated(target, AT))
    assert refusal(agent.send("stable@0123", Converged(seq=4, converged_at=AT, current_closure=OLD))) == (
        409,
        "illegal",
    )
    agent.seqs["stable@0123"] = 4
    agent.tell("stable@0123", Converged(seq=0, converged_at=AT, current_closure=target))
    [row] = cp.operator.get("/v1/rollouts/stable@0123/hosts").json()["hosts"]
    assert (row["state"], row["targetClosureHash"]) == ("Converged", target)
    assert cp.operator.get("/v1/rollouts/stable@0123/lifecycle").json()["state"] == "Superseded"
    assert agent.dispatch(wait=10) is not None  # and it keeps nothing from the current one


def test_what_is_missing_is_asked_for_in_the_heartbeats_answer(agent: Puppet) -> None:
    agent.send(ROLLOUT, ack())
    answer = agent.heartbeat(last_event_seq_by_rollout={ROLLOUT: 5, "stable@0456": 9}, rollout_id=ROLLOUT)
    assert answer.json()["replay"] == [
        {"rollout_id": ROLLOUT, "from_seq": 2},
        {"rollout_id": "stable@0456", "from_seq": 1},
    ]
    assert answer.headers["X-Nixfleet-Replay-From"] == "2"
    settled = agent.heartbeat(last_event_seq_by_rollout={ROLLOUT: 1}, rollout_id=ROLLOUT)
    assert "replay" not in settled.json()
    assert "X-Nixfleet-Replay-From" not in settled.headers


def test_refusals_are_counted_by_reason(cp: Running, agent: Puppet) -> None:
    before = cp.metric("nixfleet_cp_facts_refused_total", reason="gap") or 0
    agent.send(ROLLOUT, started(7))
    assert cp.metric("nixfleet_cp_facts_refused_total", reason="gap") == before + 1
