"""Client certificates that end in the middle of things: renewed without a gap, run out, revoked.

What a certificate decides is who talks to whom. What runs on a host does not hang on it.
"""

import json
from pathlib import Path
from typing import Any, Final

from control_plane.clock import wall_now
from control_plane.issuance import parse_request
from state_machine.values import HostName, WallMs
from tests.system.fleet import AGENT, Machine, SystemFleet, fleet_of
from tests.system.generations import Generation
from tests.system.rendering import program

TOKEN: Final = "/etc/nixfleet/agent/token.json"
CERTIFICATE: Final = "/var/lib/nixfleet/agent-cert.pem"
SHORT_S: Final = 60
"""What the control plane gives out here; hosts renew at half of it."""


def give_certificate(fleet: SystemFleet, machine: Machine, *, issued_at: WallMs, life_s: int) -> None:
    """Put a certificate on the host that lives so long, without the usual dating back."""
    request = parse_request(fleet.lab.csr(machine.name))
    issuer = fleet.lab.issuer(validity_s=life_s)
    issued = issuer.issue(request, HostName(machine.name), issued_at, not_before_floor=issued_at)
    machine.put(CERTIFICATE, issued.pem)


async def enrol_again(fleet: SystemFleet, machine: Machine) -> None:
    """What an operator does: remove the certificate, mint a token, start the agent anew."""
    machine.put(TOKEN, json.dumps(fleet.lab.token(machine.name)), 0o600)
    (machine.disk / CERTIFICATE.lstrip("/")).unlink()
    await fleet.refreshed()
    await machine.systemctl("restart", AGENT)


async def until_turned_away(fleet: SystemFleet, machine: Machine) -> dict[str, Any]:
    """The control plane will not hear the host, which stays as it was; its status."""
    said = await machine.until_unheard()
    await machine.until_well()
    assert machine.current() == machine.default() == fleet.closure(machine.name, "1")
    assert machine.switches() == []
    return said


async def test_a_certificate_is_renewed_in_the_middle_of_a_switch_without_a_gap(place: Path) -> None:
    async with fleet_of(place, ("web1",), boot=False, agent_cert_validity_secs=SHORT_S) as fleet:
        web1 = fleet.machines["web1"]
        web1.pause_switches_at("between-units")
        second = fleet.build(Generation(version="2"))["web1"]
        rollout = await fleet.release({"web1": second}, soak_secs=1)
        give_certificate(fleet, web1, issued_at=wall_now(), life_s=SHORT_S // 2)
        await web1.boot()
        before = await web1.until("a certificate", lambda said: said["contact"]["certificate_expires"])
        await web1.until_file("/var/lib/lab/paused")
        waiting = await web1.until(
            "a long-poll", lambda said: said if "dispatch" in said["contact"]["under_way"] else None
        )
        assert waiting is not None
        renewed = await web1.until("a renewal", lambda said: said["contact"]["last_by_duty"].get("renewal") and said)
        assert renewed["contact"]["certificate_expires"] > before
        # The request that waited for a dispatch waits on, on the connection of the old certificate.
        assert "dispatch" in renewed["contact"]["under_way"]
        assert renewed["contact"]["last_by_duty"]["dispatch"] == waiting["contact"]["last_by_duty"]["dispatch"]
        web1.let_switches_go()
        await web1.until_settled(rollout, "Converged")

        third = fleet.build(Generation(version="3"))["web1"]
        await web1.until_settled(await fleet.release({"web1": third}), "Converged")
        log = await web1.journal_of(AGENT, lines=1000)
        failed = [line for line in log.splitlines() if ' failed"' in line and "intent failed" not in line]
        assert not failed, failed
        assert ("status", "401") not in {label for _, labels in await fleet.cp_metrics() for label in labels}
        await fleet.audit()


async def test_a_host_whose_certificate_ran_out_keeps_its_system_until_it_is_enrolled_again(place: Path) -> None:
    async with fleet_of(place, ("web1",), boot=False) as fleet:
        web1 = fleet.machines["web1"]
        give_certificate(fleet, web1, issued_at=WallMs(wall_now() - 3_600_000), life_s=SHORT_S)
        second = fleet.build(Generation(version="2"))["web1"]
        rollout = await fleet.release({"web1": second}, soak_secs=1)
        await web1.boot()
        said = await until_turned_away(fleet, web1)
        assert said["contact"]["certificate_days"] < 0
        assert said["contact"]["last"] is None
        days_left = await web1.metric("nixfleet_agent_certificate_days_left")
        assert days_left is not None
        assert days_left < 0
        assert "the client certificate expired" in await web1.attempt(program("nixfleet-agent"), "status")

        await enrol_again(fleet, web1)
        await web1.until_settled(rollout, "Converged")
        assert web1.current() == second
        await fleet.audit()


async def test_a_revoked_host_is_turned_away_and_keeps_its_system_while_the_others_go_on(place: Path) -> None:
    async with fleet_of(place, ("web1", "web2")) as fleet:
        web1, web2 = fleet.machines["web1"], fleet.machines["web2"]
        await web2.until_heard()
        fleet.lab.revoke("web2")
        await fleet.refreshed()
        rollout = await fleet.release(fleet.build(Generation(version="2")), soak_secs=1)
        await web1.until_settled(rollout, "Converged")
        said = await until_turned_away(fleet, web2)
        assert "revoked: enrol again" in said["contact"]["causes"]["heartbeat"]
        assert await web2.metric("nixfleet_agent_consecutive_failures", duty="heartbeat")
        hosts = (await fleet.operator(f"/v1/rollouts/{rollout}/hosts"))["hosts"]
        held = {row["host"]: row.get("heldBy") for row in hosts}
        assert held == {"web1": None, "web2": "revoked: its certificate is revoked: enrol it again"}
        assert ("nixfleet_gate_block_total", frozenset({("gate", "revoked")})) in await fleet.cp_metrics()

        await enrol_again(fleet, web2)
        await fleet.until_all(rollout, "Converged")
        await fleet.until_told(rollout, "web2")
        await fleet.audit()
