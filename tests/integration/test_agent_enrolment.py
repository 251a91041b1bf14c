"""Enrolment by a real agent: from a one-time token to a certificate, and every way in which that may not work.

An agent that cannot enrol neither ends nor hammers: it goes on probing, says why to the control plane by
bootstrap-report and to its operator by log and status, and tries again ever more rarely.
"""

import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evidence.host_key import generate_host_key
from state_machine.values import HostName
from tests.agentlab import Agent, AgentFleet
from tests.cplab import Running
from tests.liar import Gate, Liar, html, says, status

HOSTS = tuple(f"h{number}" for number in range(12))

REFUSALS = (
    ("used", 409, "nonce-used"),
    ("expired", 401, "expired"),
    ("for another host", 401, "hostname"),
    ("for another key", 401, "fingerprint"),
    ("not on the list", 401, "missing"),
    ("forged", 401, "bad-signature"),
    ("no token", 400, "parse"),
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> AgentFleet:
    fleet = AgentFleet(tmp_path_factory.mktemp("enrolment"), hosts=HOSTS)
    fleet.publish("c0ffee")
    fleet.publish_nonces()
    return fleet


@pytest.fixture(scope="module")
def cp(fleet: AgentFleet) -> Iterator[Running]:
    with fleet.start() as running:
        yield running


_fresh = iter(HOSTS)


@pytest.fixture
def name() -> str:
    return next(_fresh)


def newcomer(fleet: AgentFleet, name: str, url: str, token: Any = None, **flags: Any) -> Agent:
    agent = fleet.agent(name, url, enrolled=False, **flags)
    if token is not None:
        agent.give_token(token)
    return agent


def until_refused(agent: Agent) -> str:
    """The first failure to enrol, as it was logged."""
    return str(agent.until_logged("renewal failed")["cause"])


def test_a_token_becomes_a_certificate_for_the_host_key(fleet: AgentFleet, cp: Running, name: str) -> None:
    agent = newcomer(fleet, name, cp.url, fleet.token(name))
    cp.refresh()
    with agent.running():
        agent.until_enrolled()
        # It is used at once, for everything that was due.
        agent.until_reached("heartbeat")
        assert stat.S_IMODE(agent.certificate.stat().st_mode) == 0o600
        assert sorted(path.name for path in agent.directory.glob("*cert.pem*")) == ["agent-cert.pem"]
        assert cp.metric("nixfleet_cp_enrolments_total", outcome="issued") in (None, 1.0)
    key = fleet.keys[HostName(name)]
    assert key.seed not in b"".join(path.read_bytes() for path in agent.state_dir.rglob("*") if path.is_file())


def test_an_enrolled_agent_needs_no_token_at_its_next_start(fleet: AgentFleet, cp: Running, name: str) -> None:
    agent = newcomer(fleet, name, cp.url, fleet.token(name))
    cp.refresh()
    with agent.running():
        agent.until_enrolled()
        issued = agent.certificate.read_bytes()
        agent.token.unlink()
        agent.restart()
        agent.until_reached("heartbeat")
    assert agent.certificate.read_bytes() == issued


def test_a_token_that_is_not_good_is_reported_and_not_tried_at_once_again(tmp_path: Path) -> None:
    """Which tokens are good is tested where it is decided; what the agent makes of the answers is the same for each."""
    fleet = AgentFleet(tmp_path, hosts=("web1",))
    token = fleet.token("web1")
    with Liar(fleet) as liar:
        agent = newcomer(fleet, "web1", liar.url, token, running=fleet.system(), metrics_port=0)
        for count, (case, code, reason) in enumerate(REFUSALS, start=1):
            liar.says["enroll"] = status(code, json.dumps({"error": f"it is {case}", "reason": reason}).encode())
            if count == 1:
                agent.start()
            else:
                agent.poke()
            said = agent.until_logged("renewal failed", cause=f"/v1/enroll: HTTP {code} {liar_body(case, reason)}")
            assert said["level"] == "warning"
            agent.until_failed("renewal", count, because=reason)
            report = liar.requests("report")[-1].json
            assert report["event"] == {"event": "enrollment-failed", "details": {"status": code, "reason": reason}}
            assert report["token"] == token
            assert liar.count("enroll") == liar.count("report") == count
            assert agent.metric("nixfleet_agent_consecutive_failures", duty="renewal") == count
        agent.until_status("a probe's result", lambda said: said["probes"][0]["status"] == "pass")
        assert agent.switches() == []
        del liar.says["enroll"]
        agent.poke()
        agent.until_enrolled()
        agent.kill()
    assert_no_secrets(agent, token)


def liar_body(case: str, reason: str) -> str:
    return json.dumps({"error": f"it is {case}", "reason": reason})


def assert_no_secrets(agent: Agent, token: Any) -> None:
    log = agent.log_text()
    for secret in (token["signature"], token["claims"]["nonce"], "PRIVATE KEY"):
        assert secret not in log


def test_the_real_control_plane_refuses_a_used_token_and_keeps_the_report(
    fleet: AgentFleet, cp: Running, name: str
) -> None:
    token = fleet.token(name)
    cp.refresh()
    body = {"token": token, "csrPem": fleet.csr(name)}
    assert cp.client().post("/v1/enroll", json=body).status_code == 200
    agent = newcomer(fleet, name, cp.url, token)
    with agent.running():
        assert "409" in until_refused(agent)
        log = Path(cp.lab.database)
        agent.until("the report", lambda: b"enrollment-failed" in log.read_bytes() + _wal(log))
        assert not agent.certificate.exists()
    assert_no_secrets(agent, token)


def _wal(database: Path) -> bytes:
    wal = database.with_name(database.name + "-wal")
    return wal.read_bytes() if wal.exists() else b""


def test_a_control_plane_that_repeats_the_token_does_not_get_it_into_the_log(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path, hosts=("web1",))
    token: Any = fleet.token("web1")
    with Liar(fleet) as liar:
        liar.says["enroll"] = status(401, b"no: " + token["signature"].encode() + token["claims"]["nonce"].encode())
        agent = newcomer(fleet, "web1", liar.url, token, log_level="debug")
        with agent.running():
            until_refused(agent)
    assert_no_secrets(agent, token)


def test_an_operator_who_mended_the_token_can_have_it_tried_now(fleet: AgentFleet, cp: Running, name: str) -> None:
    agent = newcomer(fleet, name, cp.url, fleet.token(name, allow=False))
    with agent.running():
        assert "401" in until_refused(agent)
        agent.give_token(fleet.token(name))
        cp.refresh()
        agent.poke()
        agent.until_enrolled()


def test_a_token_file_that_holds_no_token_is_said_and_waited_for(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path, hosts=("web1",))
    with Liar(fleet) as liar:
        agent = newcomer(fleet, "web1", liar.url, log_level="debug")
        with agent.running():
            until_refused(agent)
            for count, text in enumerate((b"", b"{", b"[]", b'{"a": 1, "a": 2}', b"\xff", b"x" * 100_000), start=2):
                agent.token.write_bytes(text)
                agent.poke()
                agent.until_failed("renewal", count)
            assert liar.count("enroll") == 0
            agent.give_token(fleet.token("web1"))
            agent.poke()
            agent.until_enrolled()


def test_a_control_plane_that_is_not_ready_is_asked_again(tmp_path: Path) -> None:
    """503 before it has signed artifacts; the agent waits as long as it was asked to, or until it is poked."""
    fleet = AgentFleet(tmp_path, hosts=("web1",))
    fleet.publish_nonces()
    with fleet.start() as cp:
        agent = newcomer(fleet, "web1", cp.url, fleet.token("web1"))
        with agent.running():
            assert "503" in until_refused(agent)
            assert not agent.certificate.exists()
            fleet.publish("c0ffee")
            assert cp.refresh() == {}
            agent.poke()
            agent.until_enrolled()


def test_a_network_that_is_away_is_no_reason_to_end_or_to_hurry(fleet: AgentFleet, name: str) -> None:
    with Liar(fleet) as gone:
        url = gone.url
    agent = newcomer(fleet, name, url, fleet.token(name))
    with agent.running():
        until_refused(agent)
        said = agent.until_status("probes", lambda said: said["probes"] and said["probes"][0]["status"] != "unknown")
    assert said["contact"]["failures"]["renewal"] == 1


def test_what_is_no_certificate_of_ours_is_not_installed(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path, hosts=("web1", "web2"))
    foreign = fleet.path("web2.pem").read_text()
    answers: tuple[tuple[Any, str], ...] = (
        ({"certPem": foreign, "notAfter": "2030-01-01T00:00:00Z"}, "agent-web2.fleet.test"),
        ({"certPem": "nonsense", "notAfter": "2030-01-01T00:00:00Z"}, "PEM"),
        ({"certPem": 1, "notAfter": "2030-01-01T00:00:00Z"}, "certPem"),
        ({}, "certPem"),
    )
    with Liar(fleet) as liar:
        liar.says["enroll"] = html()
        agent = newcomer(fleet, "web1", liar.url, fleet.token("web1"))
        with agent.running():
            assert "JSON" in until_refused(agent)
            for body, why in answers:
                liar.says["enroll"] = says(body)
                agent.poke()
                agent.until_failed("renewal", because=why)
                assert not agent.certificate.exists()
            del liar.says["enroll"]
            agent.poke()
            agent.until_enrolled()


def test_a_token_is_not_spent_for_a_certificate_that_could_not_be_kept(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path, hosts=("web1",))
    with Liar(fleet) as liar:
        # Not even root can make anything there.
        agent = newcomer(fleet, "web1", liar.url, fleet.token("web1"), client_cert="/proc/nixfleet/cert.pem")
        with agent.running():
            agent.until_failed("renewal", because="/proc/nixfleet")
            assert liar.count("enroll") == 0


def test_killed_while_enrolling_it_enrols_at_the_next_start(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path, hosts=("web1",))
    with Liar(fleet) as liar:
        liar.says["enroll"] = gate = Gate()
        agent = newcomer(fleet, "web1", liar.url, fleet.token("web1"))
        with agent.running():
            gate.wait()
            agent.kill()
            assert not agent.certificate.exists()
            gate.open()
            agent.start()
            agent.until_enrolled()


# What ends the start


def test_a_certificate_of_another_machine_ends_the_start_naming_both(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path, hosts=("web1", "web2"))
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url)
        shutil.copy(fleet.path("web2.pem"), agent.certificate)
        with agent.running():
            assert agent.ended() == 2
        assert not liar.seen
    [line] = agent.log_text().splitlines()
    assert line.startswith("nixfleet-agent: configuration: ")
    assert "web1" in line
    assert "agent-web2.fleet.test" in line


def test_a_certificate_for_another_key_ends_the_start(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path, hosts=("web1",))
    agent = fleet.agent("web1", "https://127.0.0.1:1")
    agent.host_key.unlink()
    generate_host_key().write_openssh(agent.host_key)
    with agent.running():
        assert agent.ended() == 2
    [line] = agent.log_text().splitlines()
    assert "does not belong to the client key" in line


def test_a_certificate_that_cannot_be_read_ends_the_start(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path, hosts=("web1",))
    agent = fleet.agent("web1", "https://127.0.0.1:1")
    agent.certificate.unlink()
    agent.certificate.mkdir()
    with agent.running():
        assert agent.ended() == 2
    [line] = agent.log_text().splitlines()
    assert str(agent.certificate) in line
