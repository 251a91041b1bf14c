"""Facts reach the control plane: in order, unchanged, at least once, whatever happens to it or to the way there."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest

from tests.agentlab import PATIENCE_S, Agent, AgentFleet, mirror, told
from tests.cplab import Running, eventually
from tests.liar import Behaviour, Exchange, Liar, hang_up, html, status
from wire.codec import encode_fact


@contextmanager
def restarted(fleet: AgentFleet, cp: Running) -> Iterator[Running]:
    """Another control plane process at the same address, after the first was killed."""
    cp.kill()
    with fleet.start(listen=urlsplit(cp.url).netloc) as again:
        yield again


def until_mirrored(agent: Agent, *rollouts: str) -> None:
    """The control plane's mirrors are the agent's records."""
    for rollout in rollouts:
        mine = attrs.evolve(agent.record(rollout), soak_due_at=None)

        def same(rollout: str = rollout, mine: object = mine) -> bool:
            try:
                return mirror(agent.fleet.database, rollout, agent.name).record == mine
            except AssertionError:
                return False

        eventually(same, PATIENCE_S, f"the mirror of {rollout}")


def converge(agent: Agent, cp: Running) -> str:
    rollout = agent.fleet.release(cp, {agent.name: agent.fleet.system()})
    agent.until_settled(rollout, "Converged")
    return rollout


# The control plane


def test_a_control_plane_killed_in_mid_rollout_gets_the_rest_when_it_is_back(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    target = fleet.system("waits")
    with fleet.start() as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system())
        with agent.running():
            rollout = fleet.release(cp, {"web1": target})
            agent.until("the switch", agent.host.note(".waiting").exists)
            cp.kill()
            agent.host.note(".go").touch()
            # It converges without anybody to tell.
            agent.until_phase(rollout, "Converged")
            with restarted(fleet, cp):
                agent.until_settled(rollout, "Converged")
                until_mirrored(agent, rollout)


def test_a_control_plane_whose_database_was_wiped_is_told_everything_again(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    with fleet.start() as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system())
        with agent.running():
            rollouts = [converge(agent, cp), converge(agent, cp)]
            until_mirrored(agent, *rollouts)
            cp.kill()
            for path in fleet.root.glob("state.db*"):
                path.unlink()
            with restarted(fleet, cp) as again:
                until_mirrored(agent, *rollouts)
                for rollout in rollouts:
                    assert told(again, rollout, "web1") == [encode_fact(fact.fact) for fact in agent.facts(rollout)]
                agent.until_settled(rollouts[-1], "Converged")
            assert len(agent.switches()) == 2


def test_a_control_plane_restored_from_a_backup_is_told_what_it_lost(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    with fleet.start() as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system())
        with agent.running():
            older = converge(agent, cp)
            until_mirrored(agent, older)
            cp.stop()
            shutil.copy(fleet.database, fleet.root / "backup")
            with restarted(fleet, cp) as second:
                newer = converge(agent, second)
                until_mirrored(agent, newer)
                second.kill()
                for path in fleet.root.glob("state.db*"):
                    path.unlink()
                shutil.copy(fleet.root / "backup", fleet.database)
                with restarted(fleet, second):
                    until_mirrored(agent, older, newer)


# The way there


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


def test_retry_after_is_honoured(agent: Agent, liar: Liar) -> None:
    """A lower bound: it may take longer, it may not come sooner."""
    liar.says["events"] = status(429, b"{}", Retry_After="2")
    rollout = send(agent, liar)
    liar.until("a second try", lambda: liar.count("events") >= 2)
    del liar.says["events"]
    agent.until_settled(rollout, "Converged")
    first, second = liar.requests("events")[:2]
    assert second.at - first.at >= 2.0


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


def test_a_gap_is_filled_with_the_very_same_facts(agent: Agent, liar: Liar) -> None:
    rollout = send(agent, liar)
    agent.until_settled(rollout, "Converged")
    liar.forget()
    # The next thing it has to say shows the gap.
    again = _drift(agent, liar, rollout)
    assert [fact["seq"] for fact in liar.facts[rollout]] == list(range(1, again + 1))
    bodies: dict[int, set[bytes]] = {}
    for seen in liar.requests("events"):
        bodies.setdefault(seen.json["event"]["seq"], set()).add(seen.body)
    assert all(len(different) == 1 for different in bodies.values())
    assert set(bodies) == set(range(1, again + 1))


def _drift(agent: Agent, liar: Liar, rollout: str) -> int:
    """An administrator switches by hand; the number of the fact that tells of it."""
    link = Path(agent.host.paths.current_system)
    other = next(path for path in link.resolve().parent.iterdir() if path != link.resolve() and "-" in path.name)
    link.unlink()
    link.symlink_to(other)
    liar.until("the drift", lambda: "DriftObserved" in liar.told(rollout))
    agent.until_status("an empty outbox", lambda said: not said["outbox"])
    return len(agent.facts(rollout))


def test_a_replay_that_a_heartbeat_asks_for_is_sent(agent: Agent, liar: Liar) -> None:
    rollout = send(agent, liar)
    agent.until_settled(rollout, "Converged")
    liar.forget()
    liar.replies["replay"] = [{"rollout_id": rollout, "from_seq": 1}]
    liar.until("all of it", lambda: len(liar.told(rollout)) == 7)
    liar.replies.clear()
    agent.until_settled(rollout, "Converged")


def test_a_fact_that_is_refused_for_good_does_not_hold_up_those_behind_it(agent: Agent, liar: Liar) -> None:
    async def picky(exchange: Exchange) -> None:
        envelope = exchange.seen.json
        if envelope["event"]["kind"] != "ActivationStarted":
            return await exchange.honestly()
        exchange.liar.facts[envelope["rolloutId"]].append(envelope["event"])  # its number is used up
        return await exchange.answer(422, b'{"error": "no such switch method", "reason": "parse"}')

    liar.says["events"] = picky
    rollout = send(agent, liar)
    said = agent.until_settled(rollout, "Converged")
    assert said["facts_refused"] == 1
    assert agent.metric("nixfleet_agent_facts_refused_total") == 1
    agent.until_logged("the control plane will not take a fact", seq=2, status=422, reason="parse")
    assert "FactRefused" in agent.kinds()
    assert [fact["seq"] for fact in liar.facts[rollout]] == list(range(1, 8))
    # It is still the agent's own truth.
    assert agent.fact_kinds(rollout)[1] == "ActivationStarted"


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
