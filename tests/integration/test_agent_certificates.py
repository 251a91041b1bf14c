"""Renewal: the certificate is replaced at half its life, and requests go on without a gap, whatever the answer is."""

import stat
from pathlib import Path
from typing import Any

import pytest

from control_plane.clock import wall_now
from control_plane.issuance import Issued, parse_request
from state_machine.values import HostName
from tests.agentlab import Agent, AgentFleet
from tests.cplab import eventually
from tests.liar import Behaviour, Gate, Liar, hang_up, html, status


def expiring(fleet: AgentFleet, url: str, *, left_s: int, **flags: Any) -> tuple[Agent, Issued]:
    """An agent whose certificate is past its half life already: it was issued long ago, for this much longer."""
    issued = fleet.issuer(validity_s=left_s).issue(parse_request(fleet.csr("web1")), HostName("web1"), wall_now())
    agent = fleet.agent("web1", url, running=fleet.system(), **flags)
    agent.certificate.write_text(issued.pem)
    return agent, issued


def until_ended(certificate: Issued) -> None:
    """Its last moment has passed."""
    eventually(lambda: wall_now() > certificate.not_after, what="the end of the old certificate")


def test_requests_go_on_over_the_end_of_the_old_certificate(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    with Liar(fleet) as liar:
        agent, old = expiring(fleet, liar.url, left_s=8, metrics_port=0)
        with agent.running():
            liar.until("a renewal", lambda: liar.count("renew"))
            agent.until("the new certificate", lambda: agent.certificate.read_text() != old.pem)
            assert stat.S_IMODE(agent.certificate.stat().st_mode) == 0o600
            # The long-poll that was under way is answered where it was asked, under the old identity.
            closure = fleet.system()
            rollout = fleet.release(None, {"web1": closure})
            liar.dispatch("web1", rollout, closure)
            agent.until_settled(rollout, "Converged")
            until_ended(old)
            liar.until_asked("heartbeat", 2)
            said = agent.until_ready()
            assert said["contact"]["failures"] == {}
            assert said["contact"]["certificate_days"] > 0.9
            assert (agent.metric("nixfleet_agent_certificate_days_left") or 0) > 0.9
        serials = [seen.serial for seen in liar.requests("heartbeat")]
        assert len(set(serials)) == 2
        assert serials == sorted(serials, key=serials.index)  # once changed, it never changes back
        assert {seen.client for seen in liar.seen} == {"agent-web1.fleet.test"}


def test_the_real_control_plane_renews_short_lived_certificates(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    fleet.publish("c0ffee")
    with fleet.start(agent_cert_validity_secs=60) as cp:
        agent, old = expiring(fleet, cp.url, left_s=10)
        with agent.running():
            agent.until("the new certificate", lambda: agent.certificate.read_text() != old.pem)
            until_ended(old)
            agent.restart()
            agent.until_reached("heartbeat")
            rollout = fleet.release(cp, {"web1": fleet.system()})
            agent.until_settled(rollout, "Converged")
        assert fleet.path("issuance.log").read_text().count("web1") >= 1


@pytest.mark.parametrize(
    "refusal", [status(401, b"{}"), status(503, b"{}"), html(), hang_up()], ids=["401", "503", "portal", "hang-up"]
)
def test_a_renewal_that_fails_costs_nothing_as_long_as_the_old_certificate_is_good(
    tmp_path: Path, refusal: Behaviour
) -> None:
    fleet = AgentFleet(tmp_path)
    with Liar(fleet) as liar:
        liar.says["renew"] = refusal
        agent, old = expiring(fleet, liar.url, left_s=60)
        with agent.running():
            agent.until_failed("renewal")
            liar.until_asked("heartbeat", 2)
            assert agent.certificate.read_text() == old.pem
            assert liar.count("renew") == 1


def test_killed_in_the_middle_of_a_renewal_it_renews_at_the_next_start(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    with Liar(fleet) as liar:
        liar.says["renew"] = gate = Gate()
        agent, old = expiring(fleet, liar.url, left_s=60)
        with agent.running():
            gate.wait()
            agent.kill()
            assert agent.certificate.read_text() == old.pem
            gate.open()
            agent.start()
            agent.until("the new certificate", lambda: agent.certificate.read_text() != old.pem)
            agent.until_reached("heartbeat")


def test_a_certificate_that_has_ended_is_told_and_does_not_end_the_agent(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    with Liar(fleet) as liar:
        agent, old = expiring(fleet, liar.url, left_s=1)
        until_ended(old)
        with agent.running():
            agent.until_failed("heartbeat")
            agent.until_status("a probe's result", lambda said: said["probes"][0]["status"] == "pass")
            assert not liar.seen
            checked = agent.command("check-config")
            assert checked.returncode == 2
            assert "enrol again with a new token" in checked.stderr
