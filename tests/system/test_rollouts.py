"""A release on its way through a fleet: waves in their order, and a release that makes hosts sick."""

import itertools
from pathlib import Path

from state_machine.facts import ActivationCompleted, Converged, DispatchAck, Failed, ProbeResult
from state_machine.values import ProbeStatus, Reason
from tests.system.fleet import fleet_of
from tests.system.generations import Generation

SOAK_S = 2


async def test_a_wave_begins_when_every_host_of_the_one_before_has_soaked_and_converged(place: Path) -> None:
    waves = (("web1",), ("web2", "web3", "web4"), ("web5", "web6", "web7", "web8"))
    hosts = [host for wave in waves for host in wave]
    async with fleet_of(place, hosts) as fleet:
        targets = fleet.build(Generation(version="2"))
        rollout = await fleet.release(targets, waves=waves, soak_secs=SOAK_S)
        await fleet.until_all(rollout, "Converged")

        acknowledged, converged = {}, {}
        for name, machine in fleet.machines.items():
            acknowledged[name] = machine.only_fact(rollout, DispatchAck).received_at
            converged[name] = machine.only_fact(rollout, Converged).converged_at
            soaked_ms = converged[name] - machine.only_fact(rollout, ActivationCompleted).completed_at
            assert soaked_ms >= SOAK_S * 1000, f"{name} soaked for {soaked_ms} ms"
            assert machine.current() == machine.default() == machine.profile() == targets[name]
            assert machine.switches() == [f"switch {targets[name]}"]
        for earlier, later in itertools.pairwise(waves):
            early = {host: acknowledged[host] - max(converged[name] for name in earlier) for host in later}
            assert min(early.values()) >= 0, f"acknowledged before {earlier} had converged (ms): {early}"

        rows = await fleet.rows(rollout)
        seen = {host: (row["state"], row["wave"], row.get("heldBy")) for host, row in rows.items()}
        assert seen == {host: ("Converged", wave, None) for wave, names in enumerate(waves) for host in names}
        assert (await fleet.operator(f"/v1/rollouts/{rollout}/lifecycle"))["state"] == "Terminal"
        assert await fleet.cp_metric("nixfleet_cp_hosts_in_phase", phase="Converged") == len(hosts)
        held = await fleet.cp_metric("nixfleet_gate_block_total", gate="wave-promotion") or 0
        assert held >= len(hosts) - 1, f"{held} hosts were ever held for their wave"
        await fleet.audit()


async def test_a_sick_release_is_taken_back_stops_there_and_is_not_tried_again(place: Path) -> None:
    async with fleet_of(place, ("web1", "web2", "web3")) as fleet:
        waves = (("web1",), ("web2", "web3"))
        web1, first = fleet.machines["web1"], {host: fleet.closure(host, "1") for host in fleet.machines}
        sick = fleet.build(Generation(version="2", health="sick"))
        rollout = await fleet.release(sick, waves=waves, sustainedFailureSecs=1)
        await web1.until_settled(rollout, "Reverted")

        failed = web1.only_fact(rollout, Failed)
        assert failed.failing_probes == ("web",)
        assert failed.sustained_duration_secs >= 1
        assert web1.current() == web1.default() == web1.profile() == first["web1"]
        await web1.until_web_version("1")
        assert web1.switches() == [f"switch {sick['web1']}", f"switch {first['web1']}"]
        assert [barred["closure"] for barred in (await web1.seen())["quarantine"]] == [sick["web1"]]
        assert await web1.metric("nixfleet_agent_quarantined_closures") == 1

        # Later waves are held, and say why.
        for host in waves[1]:
            assert "web1 of wave 0 is Reverted" in await fleet.until_held(rollout, host, "halted")
            assert fleet.machines[host].current() == first[host]
            assert not fleet.machines[host].switches()
        assert (await fleet.operator(f"/v1/rollouts/{rollout}/lifecycle"))["state"] == "Reverted"
        assert await fleet.cp_metric("nixfleet_gate_block_total", gate="halted") == len(waves[1])

        # The same system under another commit is sent to nobody ...
        again = await fleet.release(sick, waves=waves, new_rollout=True, sustainedFailureSecs=1)
        assert again != rollout
        assert sick["web1"] in await fleet.until_held(again, "web1", "quarantine")
        # ... and when an operator clears it for the channel, the host still refuses it by itself.
        await fleet.nixfleet("quarantine", "clear", "--channel", "stable", *fleet.connection)
        assert Reason.QUARANTINED in await fleet.until_held(again, "web1", "refused")
        assert web1.fact_kinds(again) == ["DispatchReject"]
        assert await web1.metric("nixfleet_agent_refusals_total", reason=Reason.QUARANTINED) == 1
        await fleet.until_held(again, "web2", "wave-promotion")

        # A better release is the way on. What was taken back stays barred until somebody at the host clears it.
        better = fleet.build(Generation(version="3"))
        mended = await fleet.release(better, waves=waves)
        await fleet.until_all(mended, "Converged")
        for name, machine in fleet.machines.items():
            assert machine.switches()[-1] == f"switch {better[name]}"
            assert f"switch {sick[name]}" not in machine.switches()[1:]
        assert await web1.metric("nixfleet_agent_quarantined_closures") == 1
        await fleet.audit()
        await web1.agent("quarantine", "clear", sick["web1"])
        assert await web1.metric("nixfleet_agent_quarantined_closures") == 0
        lifted = await fleet.release({"web1": sick["web1"]}, waves=waves, sustainedFailureSecs=600)
        await web1.until_phase(lifted, "Soaking")
        assert web1.current() == sick["web1"]
        await fleet.audit()


async def test_a_service_that_is_well_within_the_window_converges(place: Path) -> None:
    async with fleet_of(place) as fleet:
        web1 = fleet.machines["web1"]
        slow = fleet.build(Generation(version="2", health="20"))
        rollout = await fleet.release(slow, sustainedFailureSecs=60)
        await web1.until_settled(rollout, "Converged")

        said = [fact.status for fact in web1.facts(rollout) if isinstance(fact, ProbeResult)]
        assert said == [ProbeStatus.FAIL, ProbeStatus.PASS]
        assert web1.current() == web1.default() == slow["web1"]
        assert web1.switches() == [f"switch {slow['web1']}"]
        await fleet.audit()


async def test_a_service_that_needs_longer_than_the_window_is_taken_back(place: Path) -> None:
    async with fleet_of(place) as fleet:
        web1 = fleet.machines["web1"]
        slow = fleet.build(Generation(version="2", health="20"))
        rollout = await fleet.release(slow, sustainedFailureSecs=6)
        await web1.until_settled(rollout, "Reverted")

        assert web1.only_fact(rollout, Failed).sustained_duration_secs >= 6
        said = [fact.status for fact in web1.facts(rollout) if isinstance(fact, ProbeResult)]
        assert said == [ProbeStatus.FAIL]
        assert web1.current() == web1.default() == fleet.closure("web1", "1")
        await web1.until_web_version("1")
        await fleet.audit()
