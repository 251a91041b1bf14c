"""Table A, everything but signed intent: answers without end or measure, nonsense, paths, wishes, caches, impostors."""

import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from control_plane.clock import wall_now
from evidence.signature import Algorithm
from nixfleet.keys import certificates
from state_machine.values import WallMs
from tests.agentlab import Agent, AgentFleet
from tests.cplab import closure
from tests.hostile.siege import HOST, SPOILED, Siege, within_memory
from tests.liar import Exchange, Liar, dribble, flood, says, silence, status

FLOODED: Final = (
    ("heartbeat", "heartbeat"),
    ("fleet", "intent"),
    ("fleet-sig", "intent"),
    ("rollout", "intent"),
    ("rollout-sig", "intent"),
    ("dispatch", "dispatch"),
)
"""Endpoints that every poll comes by, and the exchange that fails with each."""
DAY_MS: Final = 86_400_000


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with Siege.laid(tmp_path_factory.mktemp("exchanges")) as siege:
        yield siege


# Endless data, slow retrieval


def test_endless_data(siege: Siege) -> None:
    agent, liar = siege.agent, siege.liar
    with siege.withstands():
        for name, duty in FLOODED:
            siege.refuses_answer("too-large", duty, name, flood())
            assert "longer than" in agent.until_failed(duty)
        liar.says = {"rollout": flood(b'{"schemaVersion":1')}
        rollout = siege.release()
        liar.dispatch(HOST, rollout, siege.good)
        agent.until_logged("refused", reason="too-large", rollout=rollout)
        siege.assert_on_record("too-large", rollout)


def test_endless_answers_to_facts(siege: Siege) -> None:
    with within_memory(siege.agent.pid):
        siege.liar.says = {"events": flood()}
        target = siege.fleet.system()
        rollout = siege.fleet.release(None, {HOST: target})
        siege.liar.dispatch(HOST, rollout, target)
        siege.agent.until_failed("delivery", because="longer than")
        siege.agent.until_phase(rollout, "Converged")
    siege.recovers()
    assert siege.liar.told(rollout)[-1] == "Converged"


def test_endless_data_for_probes(siege: Siege) -> None:
    """A probe's command that prints for ever, and a page without end."""
    checks = json.loads(siege.agent.checks.read_text())
    with Liar(siege.fleet, https=False) as page:
        page.says["/endless"] = flood()
        endless = {
            "page": {"kind": "http", "url": f"{page.url}/endless", "timeoutSecs": 2, "mode": "observe"},
            "command": {"kind": "command", "command": "yes", "timeoutSecs": 2, "mode": "observe"},
        }
        siege.agent.write_checks({**checks, **endless})
        siege.agent.send(signal.SIGHUP)
        with siege.withstands():
            page.until("the page to be asked for", lambda: page.count("/endless"))
            siege.agent.until_status("both to have a result", lambda said: _failed(said) >= {"command"})
    siege.agent.write_checks(checks)
    siege.agent.send(signal.SIGHUP)


def _failed(said: Mapping[str, Any]) -> set[str]:
    return {probe["name"] for probe in said["probes"] if probe["status"] == "fail"}


def test_slow_retrieval(siege: Siege) -> None:
    """Each endpoint is slow in its own way, all at once; heartbeats are too, and are given up and sent again."""
    rollout = siege.release()
    with siege.withstands():
        siege.liar.says = {
            **dict.fromkeys(("fleet", "fleet-sig", "rollout", "rollout-sig"), dribble()),
            "dispatch": _dribbled_head,
            "heartbeat": silence(),
        }
        siege.agent.poke()
        for duty, deadline_s in (("heartbeat", 10), ("intent", 30)):
            siege.agent.until_failed(duty, because=f"within {deadline_s} s")
            assert (siege.agent.metric("nixfleet_agent_consecutive_failures", duty=duty) or 0) >= 1
        assert siege.liar.told(rollout) == []


async def _dribbled_head(exchange: Exchange) -> None:
    """For as long as it is the lie. Waiting for the deadline of a long-poll would take a minute."""
    await exchange.stream.send_all(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while "dispatch" in exchange.liar.says:
        await exchange.stream.send_all(b"a")
        await trio.sleep(0.2)


# Nonsense


NO_DOCUMENT: Final = (*(start + b'"hostname":"web1"}' for start in SPOILED.values()), b"{", b"[]", b"\xff\xfe")
NO_DISPATCH: Final = (
    b'{"hostname":7,"rollout_id":[],"target_closure":{}}',
    b'{"hostname":"web1"}',
    b'{"hostname":"' + b"x" * 900_000 + b'"}',
)
NO_REPLY: Final = (b"", b"null", b'{"received_at":7}', b'{"bootstrap_rollouts":{}}', b'{"replay":[7]}')


def test_prototype_abuse_in_answers(siege: Siege) -> None:
    with siege.withstands():
        for duty, bodies in (("dispatch", NO_DOCUMENT + NO_DISPATCH), ("heartbeat", NO_DOCUMENT + NO_REPLY)):
            for body in bodies:
                siege.refuses_answer("parse", duty, duty, status(200, body))


def test_path_tricks(siege: Siege) -> None:
    rollout = siege.release()
    names = (
        "../../etc/passwd",
        "/etc/passwd",
        "stable@../../x",
        "stable@00/..",
        "stable@0\0",
        "s" * 300 + "@0",
    )
    closures = ("../../evil", "/nix/store/" + siege.good, siege.good + "/bin", siege.good + "\0", "-rf", "x" * 300)
    with siege.withstands():
        asked = len(siege.liar.seen)
        for name, target in (*((name, siege.good) for name in names), *((rollout, target) for target in closures)):
            before = siege.refusals("parse")
            siege.liar.dispatch(HOST, name, target)
            siege.until_counted("parse", before)
        siege.assert_on_record("parse", rollout)
        assert not set(siege.liar.facts) & set(names)
        assert siege.liar.told(rollout) == []
        targets = [seen.target for seen in siege.liar.seen[asked:]]
        assert not [target for target in targets if "passwd" in target or ".." in target]
    files = [path.name for path in siege.agent.directory.rglob("*")]
    assert not [name for name in files if "passwd" in name or "evil" in name or name.startswith("-")]


# Wishes


def test_malicious_rollback(siege: Siege) -> None:
    old = siege.agent.until_ready()["rollout"]["id"]
    siege.recovers()
    current = siege.agent.until_ready()["rollout"]
    with siege.withstands():
        for members in ({"rollout_id": "stable@dead"}, {"rollout_id": old}):
            before = siege.refusals("rollback-failed")
            siege.liar.route(HOST, _wish(**members))
            siege.until_counted("rollback-failed", before)
            siege.assert_on_record("rollback-failed", members["rollout_id"])
        before = siege.refusals("manifest-mismatch")
        siege.liar.route(HOST, _wish(rollout_id=current["id"], hostname="web2"))
        siege.until_counted("manifest-mismatch", before)
    current, switches = siege.agent.until_ready()["rollout"], siege.agent.switches()
    with within_memory(siege.agent.pid):
        siege.liar.says["dispatch"] = says(_wish(rollout_id=current["id"]))
        siege.agent.until_settled(current["id"], "Reverted")
        siege.liar.until_asked("dispatch", 5)  # once a second; a thousand of them are a unit test
        assert siege.agent.switches() == [*switches, current["rollback_to"]]
        assert siege.liar.told(current["id"])[-2:] == ["RollbackRequested", "RollbackComplete"]
    siege.recovers()


def _wish(**members: str) -> dict[str, str]:
    return {"hostname": HOST, "target_closure": closure("any"), "kind": "rollback", "reason": "it is slow", **members}


# The cache


def test_extraneous_dependencies(siege: Siege) -> None:
    unsigned, altered, other = siege.fleet.system(signed=False), siege.fleet.system(), siege.fleet.system()
    siege.fleet.systems.alter(altered)
    siege.fleet.systems.impersonate(other, by=siege.good)
    for target in (unsigned, altered, other):
        with siege.withstands():
            before = siege.refusals("realise-failed")
            rollout = siege.fleet.release(None, {HOST: target})
            siege.liar.dispatch(HOST, rollout, target)
            said = siege.agent.until_settled(rollout, "Failed")
            assert said["rollout"]["failure"].startswith("realise-failed: signature")
            assert siege.refusals("realise-failed") == before + 1
            siege.assert_on_record("realise-failed", rollout)
            assert siege.liar.told(rollout) == ["DispatchAck", "ActivationFailed"]


# Impostors


def _serve_as(fleet: AgentFleet, authority: Any, names: tuple[str, ...], at: WallMs) -> None:
    identity = certificates.make_server(authority, certificates.generate(Algorithm.ED25519), names, at, 30)
    fleet.path("impostor.pem").write_bytes(identity.certificate_pem)
    fleet.path("impostor-key.pem").write_bytes(identity.key_pem)


def test_impersonation(tmp_path: Path) -> None:
    """Somebody else on the control plane's own address: an agent that is enrolled sends not even a heartbeat."""
    fleet = AgentFleet(tmp_path)
    other = certificates.make_authority(certificates.generate(Algorithm.ED25519), "other CA", wall_now(), 30)
    impostors = (
        (other, ("127.0.0.1",), wall_now()),
        (fleet.authority, ("cp.example",), wall_now()),
        (fleet.authority, ("127.0.0.1",), WallMs(wall_now() - 60 * DAY_MS)),
    )
    first, good = fleet.system(), fleet.system()
    fleet.publish("ba5e")
    with Liar(fleet) as honest:
        agent, port = fleet.agent(HOST, honest.url, running=first, metrics_port=0), honest.port
        agent.start()
        agent.until_reached("heartbeat")
    for impostor in impostors:
        _serve_as(fleet, *impostor)
        with Liar(fleet, identity="impostor", port=port) as liar, within_memory(agent.pid):
            liar.dispatch(HOST, fleet.release(None, {HOST: good}), good)
            agent.poke()
            agent.until_failed("heartbeat", because="certificate verify failed")
            agent.until_failed("dispatch", because="certificate verify failed")
            assert (agent.metric("nixfleet_agent_consecutive_failures", duty="heartbeat") or 0) >= 1
            assert liar.handshakes["refused"] >= 2
            assert liar.seen == []
    with Liar(fleet, https=False, port=port) as liar:
        agent.poke()
        agent.until_failed("heartbeat", times=2)
        assert liar.seen == []
    assert agent.switches() == []
    assert_probing(agent)
    with Liar(fleet, port=port) as honest:
        rollout = fleet.release(None, {HOST: good})
        honest.dispatch(HOST, rollout, good)
        agent.poke()
        agent.until_settled(rollout, "Converged")
        assert agent.stop() == 0
    assert agent.switches() == [good]


def assert_probing(agent: Agent) -> None:
    """The health checks go on: they notice that a system falls ill."""
    (agent.directory / "store" / agent.current() / "health").write_text("sick\n")
    agent.until_status("a probe that fails", lambda said: said["probes"][0]["status"] == "fail")
