"""Networks and control planes that lie, dawdle or shout: whatever they say, only the request in question suffers.

Health checks, heartbeats and rollouts that can go on do go on, memory stays flat, nothing is switched, and when the
trouble is over the agent is back within one poll.
"""

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from control_plane.clock import wall_now
from evidence.signature import Algorithm
from nixfleet.keys import certificates
from state_machine.values import WallMs
from tests.agentlab import Agent, AgentFleet
from tests.liar import ENDPOINTS, Behaviour, Liar, dribble_head, hang_up, silence, status

DAY_MS: Final = 86_400_000


@pytest.fixture
def fleet(tmp_path: Path) -> AgentFleet:
    return AgentFleet(tmp_path)


@pytest.fixture
def liar(fleet: AgentFleet) -> Iterator[Liar]:
    with Liar(fleet) as liar:
        yield liar


def send(agent: Agent, liar: Liar) -> tuple[str, str]:
    closure = agent.fleet.system()
    rollout = agent.fleet.release(None, {agent.name: closure})
    liar.dispatch(agent.name, rollout, closure)
    return rollout, closure


def until_probed(agent: Agent) -> None:
    agent.until_status("a probe's result", lambda said: said["probes"] and said["probes"][0]["status"] == "pass")


# Lies


@pytest.mark.parametrize(
    "lie",
    [status(302, Location="https://login.example/"), status(200, b"null"), status(500), hang_up()],
    ids=["redirect", "null", "500", "hang-up"],
)
def test_an_answer_that_means_nothing_to_every_request_changes_nothing(
    fleet: AgentFleet, liar: Liar, lie: Behaviour
) -> None:
    for name in ENDPOINTS:
        liar.says[name] = lie
    first = fleet.system()
    agent = fleet.agent("web1", liar.url, running=first)
    with agent.running():
        until_probed(agent)
        liar.until(
            "all of the first polls", lambda: all(liar.count(name) for name in ("dispatch", "heartbeat", "fleet"))
        )
        agent.until_failed("heartbeat")
        assert agent.switches() == []
        liar.says.clear()
        agent.poke()
        rollout, good = send(agent, liar)
        agent.until_settled(rollout, "Converged")
        assert agent.switches() == [good]


# Dawdling


@pytest.mark.parametrize("slow", [dribble_head(), silence()], ids=["head", "silence"])
def test_a_server_that_dawdles_over_heartbeats_holds_up_no_rollout(
    fleet: AgentFleet, liar: Liar, slow: Behaviour
) -> None:
    liar.says["heartbeat"] = slow
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        liar.until("the slow one to be asked", lambda: liar.count("heartbeat"))
        rollout, good = send(agent, liar)
        agent.until_settled(rollout, "Converged")
        assert agent.switches() == [good]


def test_cookies_by_the_thousand_are_forgotten(fleet: AgentFleet, liar: Liar) -> None:
    async def baker(exchange: Any) -> None:
        await exchange.answer(200, b"{}", {"Set-Cookie": f"n{len(liar.seen)}={'x' * 3000}; Path=/"})

    liar.says["heartbeat"] = baker
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        liar.until("heartbeats", lambda: liar.count("heartbeat") >= 3)
    assert not any("cookie" in seen.headers for seen in liar.seen)


# Impersonation


def foreign_ca(fleet: AgentFleet) -> None:
    other = certificates.make_authority(certificates.generate(Algorithm.ED25519), "other CA", wall_now(), 30)
    _serve_as(fleet, other, ("127.0.0.1",), wall_now())


def wrong_name(fleet: AgentFleet) -> None:
    _serve_as(fleet, fleet.authority, ("cp.example",), wall_now())


def ended_long_ago(fleet: AgentFleet) -> None:
    _serve_as(fleet, fleet.authority, ("127.0.0.1",), WallMs(wall_now() - 60 * DAY_MS))


def _serve_as(fleet: AgentFleet, authority: Any, names: tuple[str, ...], at: WallMs) -> None:
    identity = certificates.make_server(authority, certificates.generate(Algorithm.ED25519), names, at, 30)
    fleet.path("impostor.pem").write_bytes(identity.certificate_pem)
    fleet.path("impostor-key.pem").write_bytes(identity.key_pem)


@pytest.mark.parametrize("impostor", [foreign_ca, wrong_name, ended_long_ago])
def test_an_impostor_gets_no_request_and_no_token(fleet: AgentFleet, impostor: Callable[[AgentFleet], None]) -> None:
    impostor(fleet)
    with Liar(fleet, identity="impostor") as liar:
        agent = fleet.agent("web1", liar.url, running=fleet.system(), enrolled=False)
        agent.give_token(fleet.token("web1"))
        with agent.running():
            agent.until_failed("renewal", because="certificate verify failed")
            until_probed(agent)
        assert liar.handshakes["refused"] >= 1
        assert liar.seen == []


def test_a_server_without_tls_gets_no_request(fleet: AgentFleet) -> None:
    with Liar(fleet, https=False) as liar:
        agent = fleet.agent("web1", liar.url.replace("http:", "https:"), running=fleet.system())
        with agent.running():
            agent.until_failed("heartbeat")
        assert liar.seen == []


def test_tls_older_than_1_3_is_refused(fleet: AgentFleet) -> None:
    with Liar(fleet, newest_tls=ssl.TLSVersion.TLSv1_2) as liar:
        agent = fleet.agent("web1", liar.url, running=fleet.system())
        with agent.running():
            agent.until_failed("heartbeat")
        assert liar.seen == []


def test_plain_http_needs_to_be_asked_for(fleet: AgentFleet) -> None:
    fleet.publish("c0ffee")
    with Liar(fleet, https=False) as liar:
        agent = fleet.agent("web1", liar.url, running=fleet.system())
        with agent.running():
            assert agent.ended() == 2
        assert "--allow-insecure" in agent.log_text()
        assert liar.seen == []
        agent.flags |= {"allow_insecure": True, "client_cert": None}
        with agent.running():
            agent.until_reached("intent")
            agent.until_reached("heartbeat")
