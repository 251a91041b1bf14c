"""A control plane and its hosts over real TLS: who is sent what, when, and what stops it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from state_machine.facts import DispatchReject, RollbackComplete, RollbackRequested
from state_machine.intent import ChannelEdge, FleetChannel, FleetHost
from state_machine.values import Channel, HostName, Reason
from tests.cplab import OLD, STABLE, Lab, Puppet, Running, closure, converged, eventually


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def cp(lab: Lab) -> Iterator[Running]:
    lab.publish("c0ffee", waves=(("web1",), ("web2", "web3")))
    with lab.start() as running:
        yield running


def states(cp: Running, rollout_id: str) -> dict[str, str]:
    rows = cp.operator.get(f"/v1/rollouts/{rollout_id}/hosts").json()["hosts"]
    return {row["host"]: row["state"] for row in rows}


def held(cp: Running, rollout_id: str, host: str) -> str:
    rows = cp.operator.get(f"/v1/rollouts/{rollout_id}/hosts").json()["hosts"]
    why: str = next(row.get("heldBy", "") for row in rows if row["host"] == host)
    return why


def lifecycle(cp: Running, rollout_id: str) -> dict[str, Any]:
    answer = cp.operator.get(f"/v1/rollouts/{rollout_id}/lifecycle")
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    return body


def log_of(cp: Running, rollout_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = cp.operator.get(f"/v1/rollouts/{rollout_id}/events").json()["events"]
    return events


def dispatched(agent: Puppet) -> dict[str, Any]:
    dispatch = agent.dispatch(wait=10)
    assert dispatch is not None
    return dispatch


def test_waves_follow_one_another_and_a_rollout_ends_when_all_have_converged(cp: Running) -> None:
    first, second, third = cp.agent("web1"), cp.agent("web2"), cp.agent("web3")
    assert second.dispatch() is None
    assert held(cp, "stable@c0ffee", "web2") == "wave-promotion: wave 1 waits for wave 0: web1 is Pending"
    first.converge(dispatched(first))
    for agent in (second, third):
        agent.converge(dispatched(agent))
    assert lifecycle(cp, "stable@c0ffee")["state"] == "Terminal"
    assert lifecycle(cp, "stable@c0ffee")["terminalAt"] is not None
    [row] = cp.operator.get("/v1/rollouts").json()["rollouts"]
    assert row["currentWave"] == 1
    assert set(row["hostStates"].values()) == {"Converged"}


def test_a_dispatch_carries_what_the_host_needs_to_judge_it(lab: Lab) -> None:
    lab.publish("c0ffee", soak_secs=90)
    with lab.start() as cp:
        dispatch = dispatched(cp.agent("web1"))
    assert dispatch["hostname"] == "web1"
    assert dispatch["rollout_id"] == "stable@c0ffee"
    assert dispatch["target_closure"] == closure("web1-c0ffee")
    assert dispatch["soak_secs"] == 90
    # The host counts its own soak from its own activation, so this names no later instant.
    assert dispatch["soak_due_at"] == dispatch["enqueued_at"]


def test_a_waiting_host_is_answered_when_the_plan_reaches_it(cp: Running) -> None:
    first, second = cp.agent("web1"), cp.agent("web2")
    first.activate(dispatched(first))
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(second.dispatch(wait=60)))
    waiting.start()
    eventually(lambda: cp.metric("nixfleet_cp_long_polls") == 1, what="the long-poll")
    first.tell("stable@c0ffee", *converged(closure("web1-c0ffee"), first.clock))
    waiting.join(20)
    assert answers[0]["target_closure"] == closure("web2-c0ffee")


def test_a_host_that_reverts_stops_its_wave_and_its_closure_is_quarantined(cp: Running, lab: Lab) -> None:
    first, second = cp.agent("web1"), cp.agent("web2")
    first.converge(dispatched(first))
    second.revert(dispatched(second))
    assert cp.agent("web3").dispatch() is None
    assert held(cp, "stable@c0ffee", "web3").startswith("halted: web2 of wave 1 is Reverted")
    assert lifecycle(cp, "stable@c0ffee")["state"] == "Reverted"

    bad = closure("web2-c0ffee")
    lab.publish("dead01", targets={"web2": bad, "web1": closure("web1-c0ffee"), "web3": closure("w3")})
    eventually(lambda: cp.operator.get("/v1/rollouts/stable@dead01/hosts").status_code == 200, what="the new rollout")
    assert second.dispatch() is None
    assert f"{bad} is quarantined on channel stable" in held(cp, "stable@dead01", "web2")
    [row] = [row for row in cp.operator.get("/v1/hosts").json()["hosts"] if row["hostname"] == "web2"]
    assert row["quarantinedClosure"] == bad

    answer = cp.operator.post("/v1/quarantine/clear", json={"channel": "stable", "closure": bad})
    assert answer.json() == {"cleared": 1}
    assert dispatched(second)["rollout_id"] == "stable@dead01"


def test_a_dispatch_waiting_in_the_queue_is_withdrawn_when_its_rollout_halts(lab: Lab) -> None:
    lab.publish("c0ffee")
    with lab.start() as cp:
        first = cp.agent("web1")
        first.revert(dispatched(first))
        assert cp.agent("web2").dispatch() is None
        withdrawn = [row for row in log_of(cp, "stable@c0ffee") if row["payload"].get("entry") == "DispatchWithdrawn"]
    assert {row["host"] for row in withdrawn} == {"web2", "web3"}
    assert "web1 of wave 0 is" in withdrawn[0]["payload"]["why"]


def test_a_dispatch_stays_queued_until_the_host_answers(cp: Running) -> None:
    agent = cp.agent("web1")
    dispatch = dispatched(agent)
    assert agent.dispatch() is None  # it is in the host's hands, and not handed out again at once
    assert cp.metric("nixfleet_cp_dispatches_queued") == 1
    agent.ack(dispatch)
    assert cp.metric("nixfleet_cp_dispatches_queued") == 0


def test_a_host_that_rejects_is_not_asked_again_at_once_but_for_a_new_signature(cp: Running, lab: Lab) -> None:
    agent = cp.agent("web1")
    dispatched(agent)
    agent.tell("stable@c0ffee", DispatchReject(seq=0, reason=Reason.STALE, rejected_at=agent.clock))
    assert agent.dispatch() is None
    assert held(cp, "stable@c0ffee", "web1").startswith("refused: it refused (stale)")
    lab.publish("c0ffee", waves=(("web1",), ("web2", "web3")))  # the same rollout, signed again
    assert dispatched(agent)["rollout_id"] == "stable@c0ffee"


def test_a_newer_release_takes_the_place_of_an_older_one(cp: Running, lab: Lab) -> None:
    first = cp.agent("web1")
    old = dispatched(first)
    lab.publish("dead01")
    eventually(lambda: cp.operator.get("/v1/rollouts/stable@dead01/hosts").status_code == 200, what="the new rollout")
    assert dispatched(first)["rollout_id"] == "stable@dead01"
    after = lifecycle(cp, "stable@c0ffee")
    assert (after["state"], after["supersededBy"]) == ("Superseded", "stable@dead01")
    first.ack(old)  # what it says of the older one is still taken
    assert states(cp, "stable@c0ffee")["web1"] == "Activating"


def test_a_release_that_changes_no_closure_makes_nobody_start_over(lab: Lab) -> None:
    targets = {"web1": closure("one"), "web2": closure("two"), "web3": closure("three")}
    lab.publish("c0ffee", targets=targets)
    with lab.start() as cp:
        agents = [cp.agent(host) for host in targets]
        for agent in agents:
            agent.converge(dispatched(agent))
        lab.publish("dead01", targets=targets)
        eventually(lambda: cp.operator.get("/v1/rollouts/stable@dead01/hosts").status_code == 200, what="the release")
        assert lifecycle(cp, "stable@dead01")["state"] == "Terminal"
        assert [agent.dispatch() for agent in agents] == [None, None, None]
        assert set(states(cp, "stable@dead01").values()) == {"Converged"}

        lab.publish("beef02", targets={**targets, "web2": closure("two changed")})
        assert dispatched(agents[1])["rollout_id"] == "stable@beef02"


def test_an_operators_rollback_reaches_the_host_and_stops_the_rollout(cp: Running) -> None:
    first = cp.agent("web1")
    first.converge(dispatched(first))
    second = cp.agent("web2")
    second.activate(dispatched(second))
    wish = {"hosts": ["web1", "web2", "web3", "nobody"], "reason": "the shop is down"}
    answer = cp.operator.post("/v1/rollouts/stable@c0ffee/rollback", json=wish)
    assert answer.status_code == 202
    assert answer.json()["hosts"] == ["web1", "web2"]
    assert answer.json()["passed_over"] == {"web3": "it is Pending", "nobody": "it is not in this rollout"}

    for agent in (first, second):
        dispatch = dispatched(agent)
        assert (dispatch["kind"], dispatch["reason"]) == ("rollback", "the shop is down")
        agent.tell("stable@c0ffee", RollbackRequested(seq=0, reason="the shop is down", requested_at=agent.clock))
        assert agent.dispatch() is None  # honoured once
        back = RollbackComplete(seq=0, reverted_to_closure=OLD, exit_code=0, completed_at=agent.clock)
        agent.tell("stable@c0ffee", back)
    assert cp.agent("web3").dispatch() is None
    assert "halted" in held(cp, "stable@c0ffee", "web3")
    assert len(cp.operator.get("/v1/quarantine").json()["quarantine"]) == 2


def test_a_channel_waits_for_the_channel_before_it(lab: Lab) -> None:
    edge = Channel("edge")
    fleet = lab.fleet("c0ffee", targets={"web1": closure("a"), "web2": closure("b")})
    on_edge = FleetHost(
        system="x86_64-linux", channel=edge, closure_hash=closure("c"), pubkey=lab.keys[HostName("web3")].openssh_public
    )
    fleet = attrs.evolve(
        fleet,
        hosts={**fleet.hosts, HostName("web3"): on_edge},
        channels={**fleet.channels, edge: FleetChannel(rollout_policy="careful", freshness_window=1440)},
        waves={STABLE: (), edge: ()},
        channel_edges=(ChannelEdge(gates=edge, gated=STABLE, reason="try it there first"),),
    )
    lab.publish("c0ffee", fleet=fleet)
    with lab.start() as cp:
        assert cp.agent("web1").dispatch() is None
        [deferral] = cp.operator.get("/v1/deferrals").json()["deferrals"]
        assert deferral == {
            "channel": "stable",
            "targetRef": "c0ffee",
            "blockedBy": "edge",
            "reason": "try it there first",
        }
        third = cp.agent("web3")
        third.converge(dispatched(third))
        assert dispatched(cp.agent("web1"))["rollout_id"] == "stable@c0ffee"
        assert cp.operator.get("/v1/deferrals").json() == {"deferrals": []}


def test_every_step_of_a_rollout_is_in_its_log_in_order(cp: Running) -> None:
    agent = cp.agent("web1")
    agent.converge(dispatched(agent))
    second = cp.agent("web2")
    dispatched(second)
    told = [
        (row["kind"], row["host"], row["payload"].get("entry") or row["payload"]["kind"])
        for row in log_of(cp, "stable@c0ffee")
    ]
    story = [
        ("manifest_poll", None, "ArtifactAdopted"),
        ("rollout_event", None, "RolloutOpened"),
        ("gate_decision", None, "HostsHeld"),
        ("plan_action", "web1", "DispatchQueued"),
        ("effect", "web1", "DispatchSent"),
        ("agent_event", "web1", "DispatchAck"),
        ("agent_event", "web1", "ActivationStarted"),
        ("agent_event", "web1", "ActivationCompleted"),
        ("agent_event", "web1", "ProbeTopologyDeclared"),
        ("agent_event", "web1", "ProbeObservedFirst"),
        ("agent_event", "web1", "ProbeResult"),
        ("agent_event", "web1", "Converged"),
        ("plan_action", None, "WaveBegan"),
        ("plan_action", "web2", "DispatchQueued"),
        ("effect", "web2", "DispatchSent"),
    ]
    assert [step for step in told if step in story] == story


def test_the_hosts_view_holds_what_hosts_said_and_no_constants(cp: Running) -> None:
    agent = cp.agent("web1")
    agent.converge(dispatched(agent))
    agent.heartbeat(
        current_closure=closure("web1-c0ffee"),
        agent_version="1.2.3",
        uptime_secs=77,
        boot_id="b00",
        health={"pass": 2},
        waiting_on="nothing",
    )
    rows = {row["hostname"]: row for row in cp.operator.get("/v1/hosts").json()["hosts"]}
    row = rows["web1"]
    assert row["currentClosureHash"] == row["declaredClosureHash"] == closure("web1-c0ffee")
    assert (row["converged"], row["rolloutState"], row["pendingClosureHash"]) == (True, "Converged", None)
    assert (row["agentVersion"], row["lastUptimeSecs"], row["health"]) == ("1.2.3", 77, {"pass": 2})
    assert row["verifiedEventCount"] == 7
    assert row["lastCheckinAt"] is not None
    assert rows["web3"]["lastCheckinAt"] is None
    assert rows["web3"]["pendingClosureHash"] == closure("web3-c0ffee")


def test_a_host_that_runs_something_else_than_it_said_is_reported_as_drift(cp: Running) -> None:
    agent = cp.agent("web1")
    agent.converge(dispatched(agent))
    agent.heartbeat(current_closure=closure("by hand"))
    [row] = [row for row in cp.operator.get("/v1/hosts").json()["hosts"] if row["hostname"] == "web1"]
    assert row["failure"] == f"it runs {closure('by hand')}, not {closure('web1-c0ffee')}"
    assert cp.metric("nixfleet_cp_drift_total", kind="closure") == 1
    assert states(cp, "stable@c0ffee")["web1"] == "Converged"  # a heartbeat concludes nothing


def test_snapshots_tell_a_host_what_is_known_of_its_open_rollouts(cp: Running) -> None:
    agent = cp.agent("web1")
    agent.activate(dispatched(agent))
    [snapshot] = agent.heartbeat().json()["bootstrap_rollouts"]
    assert snapshot["rolloutId"] == "stable@c0ffee"
    assert (snapshot["state"], snapshot["lastEventSeq"]) == ("Soaking", 3)
    assert snapshot["currentClosureAtDispatch"] == OLD
    assert "bootstrap_rollouts" not in agent.heartbeat(rollout_id="stable@c0ffee").json()
    agent.tell("stable@c0ffee", *converged(closure("web1-c0ffee"), agent.clock))
    assert "bootstrap_rollouts" not in agent.heartbeat().json()


def test_stopping_sends_waiting_hosts_away_and_leaves_with_status_0(cp: Running) -> None:
    agent = cp.agent("web2")
    answers: list[int] = []
    waiting = threading.Thread(
        target=lambda: answers.append(agent.http.get("/v1/agent/dispatch", params={"wait": 60}).status_code)
    )
    waiting.start()
    eventually(lambda: cp.metric("nixfleet_cp_long_polls") == 1, what="the long-poll")
    began = time.monotonic()
    assert cp.stop(timeout_s=30) == 0
    waiting.join(10)
    assert answers == [503]
    # Five seconds are the limit systemd is told; the rest is for a busy machine.
    assert time.monotonic() - began < 15
