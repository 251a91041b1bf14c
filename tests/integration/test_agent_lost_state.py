"""A state directory that is lost in the middle of a rollout: the control plane remembers, and is not simply believed.

The snapshot in a heartbeat's answer says where the rollout stood. The agent goes on with it only after the manifest
has proved itself again, numbers its facts on from there, and without a journal of its own never takes it for proof.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from control_plane.clock import wall_now
from tests.agentlab import PATIENCE_S, Agent, AgentFleet, mirror, told
from tests.cplab import eventually
from tests.liar import Liar, status
from wire.codec import encode_fact
from wire.timestamps import format_rfc3339


def lose_state(agent: Agent) -> None:
    agent.kill()
    shutil.rmtree(agent.state_dir)
    agent.start()


def test_a_switch_that_runs_is_found_and_the_rollout_finished(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    target = fleet.system("waits")
    with fleet.start(require_evidence=True) as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system())
        with agent.running():
            rollout = fleet.release(cp, {"web1": target})
            agent.until("the switch", agent.host.note(".waiting").exists)
            agent.until_status("an empty outbox", lambda said: not said["outbox"])
            before = told(cp, rollout, "web1")
            lose_state(agent)
            agent.until_phase(rollout, "Activating")
            agent.host.note(".go").touch()
            agent.until_settled(rollout, "Converged")
            facts = told(cp, rollout, "web1")
            assert [fact["seq"] for fact in facts] == list(range(1, len(facts) + 1))
            assert facts[: len(before)] == before
            assert facts[len(before) :] == [encode_fact(fact.fact) for fact in agent.facts(rollout)]
            assert facts[-1]["kind"] == "Converged"
            assert agent.current() == target
            eventually(lambda: mirror(fleet.database, rollout, "web1").record.converged_at, PATIENCE_S)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rolloutId": "../../etc"}, "parse"),
        ({"targetClosure": "../../evil"}, "parse"),
    ],
    ids=["no-rollout-id", "no-closure"],
)
def test_what_cannot_be_a_rollout_is_not_adopted(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    fleet = AgentFleet(tmp_path)
    first, good = fleet.system(), fleet.system()
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first)
        rollout = fleet.release(None, {"web1": good})
        liar.replies["bootstrap_rollouts"] = [snapshot(rollout, good) | change]
        with agent.running():
            agent.until_logged("refused", reason=reason)
            liar.until_asked("heartbeat", 2)
            assert agent.switches() == []
            assert agent.until_ready()["rollout"] is None
            assert not liar.facts
            # It is not taken up again with every heartbeat either.
            assert len([kind for kind in agent.kinds() if kind == "SnapshotsReceived"]) <= 2


def test_a_snapshot_of_another_host_is_nothing_to_us(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    first, good = fleet.system(), fleet.system()
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first)
        rollout = fleet.release(None, {"web1": good})
        liar.replies["bootstrap_rollouts"] = [snapshot(rollout, good) | {"hostname": "web2"}]
        with agent.running():
            liar.until_asked("heartbeat", 2)
            assert agent.until_ready()["rollout"] is None
            assert "SnapshotsReceived" not in agent.kinds()


def test_without_the_manifest_nothing_is_gone_on_with_and_with_it_everything_is(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    first, good = fleet.system(), fleet.system()
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first)
        rollout = fleet.release(None, {"web1": good})
        liar.says["rollout"] = status(503)
        liar.replies["bootstrap_rollouts"] = [snapshot(rollout, good)]
        with agent.running():
            agent.until_status("it to be held", lambda said: said["waiting_on"] == f"the manifest of {rollout}")
            assert agent.switches() == []
            del liar.says["rollout"]
            agent.until_phase(rollout, "Converged")
            assert agent.switches() == [good]
            # Facts before the loss are the control plane's; ours go on from there.
            assert agent.facts(rollout)[0].fact.seq == 3


def snapshot(rollout: str, target: str) -> dict[str, Any]:
    return {
        "rolloutId": rollout,
        "hostname": "web1",
        "channel": "stable",
        "state": "Activating",
        "targetClosure": target,
        "dispatchedAt": format_rfc3339(wall_now()),
        "lastEventSeq": 2,
    }
