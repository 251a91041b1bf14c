"""A signed rollout, from the control plane to the running system and back as facts: real processes, real mTLS."""

import json
from collections.abc import Iterator

import attrs
import pytest

from evidence.canonical import canonicalize
from evidence.signature import PublicKey, verify
from state_machine.values import HostName
from tests.agentlab import PATIENCE_S, Agent, AgentFleet, mirror, nix_is_usable, told
from tests.cplab import Running, eventually
from tests.liar import Liar
from wire.codec import encode_fact

HOSTS = ("web1", "web2", "web3", "web4")
CLEAN = [
    "DispatchAck",
    "ActivationStarted",
    "ActivationCompleted",
    "ProbeTopologyDeclared",
    "ProbeObservedFirst",
    "ProbeResult",
    "Converged",
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> AgentFleet:
    return AgentFleet(tmp_path_factory.mktemp("rollouts"), hosts=HOSTS)


@pytest.fixture(scope="module")
def cp(fleet: AgentFleet) -> Iterator[Running]:
    with fleet.start(require_evidence=True) as running:
        yield running


_fresh = iter(HOSTS)


@pytest.fixture
def agent(fleet: AgentFleet, cp: Running) -> Iterator[Agent]:
    agent = fleet.agent(next(_fresh), cp.url, running=fleet.system())
    with agent.running():
        yield agent


def test_a_rollout_is_taken_switched_to_soaked_probed_and_told(fleet: AgentFleet, cp: Running, agent: Agent) -> None:
    good = fleet.system()
    rollout = fleet.release(cp, {agent.name: good}, soak_secs=1)
    said = agent.until_settled(rollout, "Converged")
    assert agent.fact_kinds(rollout) == CLEAN
    assert agent.switches() == [good]
    assert agent.current() == good
    since = said["rollout"]["since"]
    assert since["acknowledged"] <= since["activated"] < since["converged"]
    assert said["rollout"]["signed_by"]
    # The control plane has the same facts, and every one of them proved to be the host's.
    facts = [encode_fact(fact.fact) for fact in agent.facts(rollout)]
    assert told(cp, rollout, agent.name) == facts
    assert mirror(fleet.database, rollout, agent.name).verified_facts == len(facts)


def test_the_control_planes_mirror_is_the_agents_record(fleet: AgentFleet, cp: Running, agent: Agent) -> None:
    rollout = fleet.release(cp, {agent.name: fleet.system()})
    agent.until_settled(rollout, "Converged")
    sick = fleet.release(cp, {agent.name: fleet.system(healthy=False)})
    agent.until_settled(sick, "Reverted")
    for rollout_id in (rollout, sick):
        mine = attrs.evolve(agent.record(rollout_id), soak_due_at=None)
        theirs = eventually(lambda r=rollout_id: mirror(fleet.database, r, agent.name).record)
        assert theirs == mine


def test_a_host_that_runs_its_target_already_is_soaked_and_probed_but_not_switched(
    fleet: AgentFleet, cp: Running, agent: Agent
) -> None:
    rollout = fleet.release(cp, {agent.name: agent.current()})
    agent.until_settled(rollout, "Converged")
    assert agent.switches() == []
    assert agent.fact_kinds(rollout) == [kind for kind in CLEAN if kind != "ActivationStarted"]


def test_health_checking_goes_on_after_convergence_and_is_reported(
    fleet: AgentFleet, cp: Running, agent: Agent
) -> None:
    rollout = fleet.release(cp, {agent.name: fleet.system()})
    agent.until_settled(rollout, "Converged")
    (agent.directory / "store" / agent.current() / "health").write_text("sick\n")
    said = agent.until_status("a failing probe", lambda said: said["probes"][0]["status"] == "fail")
    assert said["rollout"]["phase"] == "Converged"
    row = eventually(
        lambda: next(
            (
                row
                for row in cp.operator.get("/v1/hosts").json()["hosts"]
                if row["hostname"] == agent.name and row.get("health") == {"fail": 1}
            ),
            None,
        ),
        PATIENCE_S,
        "the failing probe at the control plane",
    )
    assert row["hostname"] == agent.name


# Closures


@pytest.mark.parametrize(
    "nix",
    [False, pytest.param(True, marks=[pytest.mark.nix, pytest.mark.skipif(not nix_is_usable(), reason="no nix")])],
)
def test_a_closure_without_a_trusted_signature_is_not_switched_to(
    tmp_path_factory: pytest.TempPathFactory, nix: bool
) -> None:
    fleet = AgentFleet(tmp_path_factory.mktemp("unsigned"), nix=nix)
    first, unsigned, good = fleet.system(), fleet.system(signed=False), fleet.system()
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first, metrics_port=0)
        with agent.running():
            rollout = fleet.release(None, {"web1": unsigned})
            liar.dispatch("web1", rollout, unsigned)
            said = agent.until_settled(rollout, "Failed")
            assert said["rollout"]["failure"].startswith("realise-failed: signature")
            assert any(note["what"] == f"realise-failed {rollout}" for note in said["refusals"])
            assert agent.metric("nixfleet_agent_refusals_total", reason="realise-failed") == 1
            failed = liar.facts[rollout][-1]
            assert (failed["kind"], failed["exitCode"]) == ("ActivationFailed", -2)
            assert agent.switches() == []
            assert agent.current() == first
            # Nothing was wrong with the host: the next good release goes through.
            rollout = fleet.release(None, {"web1": good})
            liar.dispatch("web1", rollout, good)
            agent.until_settled(rollout, "Converged")
            assert agent.switches() == [good]


def test_a_cache_that_is_down_is_waited_for(tmp_path_factory: pytest.TempPathFactory) -> None:
    fleet = AgentFleet(tmp_path_factory.mktemp("down"))
    first, good = fleet.system(), fleet.system()
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first)
        away = fleet.systems.cache.rename(fleet.systems.cache.with_name("away"))
        with agent.running():
            rollout = fleet.release(None, {"web1": good})
            liar.dispatch("web1", rollout, good)
            said = agent.until_status("a failure", lambda said: "tries failed: 1" in (said["waiting_on"] or ""))
            assert said["rollout"]["phase"] == "Activating"
            away.rename(fleet.systems.cache)
            agent.until_settled(rollout, "Converged")
        assert agent.switches() == [good]
        assert liar.told(rollout) == CLEAN


def test_a_newer_release_replaces_one_whose_closure_cannot_be_had(tmp_path_factory: pytest.TempPathFactory) -> None:
    fleet = AgentFleet(tmp_path_factory.mktemp("replaced"))
    first, lost, good = fleet.system(), fleet.system(), fleet.system()
    (fleet.systems.cache / lost).rename(fleet.systems.cache / "lost")
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first)
        with agent.running():
            older = fleet.release(None, {"web1": lost})
            liar.dispatch("web1", older, lost)
            agent.until_status("a failure", lambda said: "tries failed" in (said["waiting_on"] or ""))
            newer = fleet.release(None, {"web1": good})
            liar.dispatch("web1", newer, good)
            agent.until_settled(newer, "Converged")
        assert agent.switches() == [good]
        assert liar.told(older) == ["DispatchAck", "ActivationFailed"]
        assert newer in liar.facts[older][-1]["stderrTail"]


def test_every_fact_is_signed_by_the_host_key_over_the_bytes_that_were_sent(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    fleet = AgentFleet(tmp_path_factory.mktemp("signed"))
    good = fleet.system()
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=fleet.system())
        with agent.running():
            rollout = fleet.release(None, {"web1": good})
            liar.dispatch("web1", rollout, good)
            agent.until_settled(rollout, "Converged")
        key = PublicKey.ed25519(fleet.keys[HostName("web1")].public)
        envelopes = [json.loads(seen.body) for seen in liar.requests("events")]
        for envelope in envelopes:
            assert verify(key, canonicalize(envelope["event"]), bytes.fromhex(envelope["signature"]))
        # Each names the entry with facts before its own: the chain that nobody can take one out of unseen.
        assert envelopes[0].get("prev") is None
        assert all(len(envelope["prev"]) == 64 for envelope in envelopes[1:])
