"""Facts on their way: at least once, whatever the answers are.

How a gap is filled, and what a control plane that was restarted, wiped or restored is told, is in
`test_agent_and_a_troubled_control_plane`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agentlab import Agent, AgentFleet
from tests.liar import Behaviour, Liar, hang_up, html, status


@pytest.fixture
def fleet(tmp_path: Path) -> AgentFleet:
    return AgentFleet(tmp_path)


@pytest.fixture
def liar(fleet: AgentFleet) -> Iterator[Liar]:
    with Liar(fleet) as liar:
        yield liar


@pytest.fixture
def agent(fleet: AgentFleet, liar: Liar) -> Iterator[Agent]:
    agent = fleet.agent("web1", liar.url, running=fleet.system(), metrics_port=0)
    with agent.running():
        yield agent


def send(agent: Agent, liar: Liar) -> str:
    closure = agent.fleet.system()
    rollout = agent.fleet.release(None, {agent.name: closure})
    liar.dispatch(agent.name, rollout, closure)
    return rollout


@pytest.mark.parametrize(
    "trouble",
    [status(500), status(502, b"<html>bad gateway</html>"), status(403), status(408), hang_up(), html()],
    ids=["500", "502", "403", "408", "hang-up", "captive-portal"],
)
def test_what_may_pass_loses_nothing(agent: Agent, liar: Liar, trouble: Behaviour) -> None:
    liar.says["events"] = trouble
    rollout = send(agent, liar)
    agent.until_phase(rollout, "Converged")
    agent.until_failed("delivery")
    assert agent.metric("nixfleet_agent_outbox_depth") == len(agent.facts(rollout))
    del liar.says["events"]
    agent.until_settled(rollout, "Converged")
    assert [fact["seq"] for fact in liar.facts[rollout]] == list(range(1, 8))
    assert agent.metric("nixfleet_agent_outbox_depth") == 0
    assert agent.metric("nixfleet_agent_facts_refused_total") == 0


def test_a_control_plane_that_wants_what_is_not_there_is_not_argued_with_for_ever(agent: Agent, liar: Liar) -> None:
    body = json.dumps({"error": "a gap", "reason": "gap", "want_seq": 9_999}).encode()
    liar.says["events"] = status(409, body)
    rollout = send(agent, liar)
    said = agent.until_settled(rollout, "Converged")
    assert said["facts_refused"] == 7
    # Should it think better of it, everything is still there.
    del liar.says["events"]
    liar.replies["replay"] = [{"rollout_id": rollout, "from_seq": 1}]
    liar.until("all of it", lambda: len(liar.told(rollout)) == 7)
