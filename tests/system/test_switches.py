"""Switches that go wrong in every way, and one that replaces the agent that ordered it."""

from collections.abc import Sequence
from pathlib import Path

import trio

from nixfleet_agent.journal.entries import Record
from state_machine.events import Booted
from state_machine.facts import ActivationCompleted, ActivationFailed, ActivationStarted, DispatchAck, RollbackComplete
from state_machine.values import Reason
from tests.system import rendering
from tests.system.fleet import AGENT, Machine, fleet_of
from tests.system.generations import Generation

CRASHY = {
    "crashy.service": """\
[Unit]
Description=A unit that does not come up

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/false

[Install]
WantedBy=multi-user.target
"""
}
TURNS = 10
GOOD_ROLLOUT = [
    "DispatchAck",
    "ActivationStarted",
    "ActivationCompleted",
    "ProbeTopologyDeclared",
    "ProbeObservedFirst",
    "ProbeResult",
    "Converged",
]


# The agent's own unit


async def test_ten_generations_that_restart_the_agent_are_each_finished_by_the_process_that_follows(
    place: Path,
) -> None:
    async with fleet_of(place) as fleet:
        web1 = fleet.machines["web1"]
        runs = (await web1.seen())["runs"]
        tags = [f"turn{turn:02}" for turn in range(1, TURNS + 1)]
        wanted = {tag: rendering.system("web1", Generation(version="1", tags=(tag,))) for tag in tags}
        systems = await trio.to_thread.run_sync(fleet.foundry.make, wanted)
        for turn, (tag, system) in enumerate(systems.items(), start=1):
            rollout = await fleet.release({"web1": system})
            await web1.until_settled(rollout, "Converged")

            assert (await web1.seen())["runs"] == runs + turn
            assert tag in await web1.systemctl("show", "--property=ExecStart", AGENT)
            assert web1.current() == web1.default() == web1.profile() == system
            assert web1.fact_kinds(rollout) == GOOD_ROLLOUT == await fleet.told(rollout, "web1")
            began, replaced, ended = _entries(web1.records(), rollout)
            assert began < replaced < ended, "the process that began the switch was not replaced before its end"

        assert web1.switches() == [f"switch {system}" for system in systems.values()]
        log = await _said_by_systemd(web1)
        assert "failed" not in log.lower(), log
        assert "timed out" not in log, log
        shown = (await web1.systemctl("show", "--property=NRestarts,Result", AGENT)).split()
        assert sorted(shown) == ["NRestarts=0", "Result=success"]
        downtimes = _downtimes_ms(log)
        assert len(downtimes) == TURNS, log
        print(f"the agent was down for {downtimes} ms")
        await fleet.audit()


def _entries(records: Sequence[Record], rollout: str) -> tuple[int, int, int]:
    """The journal's entries in which the rollout's switch was begun, the agent last started, the switch was over."""
    born = {type(fact.fact): record.n for record in records for fact in record.facts if fact.rollout_id == rollout}
    starts = [record.n for record in records if isinstance(record.event, Booted)]
    return born[ActivationStarted], starts[-1], born[ActivationCompleted]


async def _said_by_systemd(machine: Machine) -> str:
    """What the service manager logged of the agent's unit, with times in seconds."""
    return await machine.run("journalctl", "--no-pager", "--output=short-unix", f"UNIT={AGENT}", "_PID=1")


def _downtimes_ms(log: str) -> list[int]:
    """From each order to stop to the readiness that follows."""
    downtimes, stopped_s = [], None
    for line in log.splitlines():
        at_s, _, said = line.partition(" ")
        if "]: Stopping " in said:
            stopped_s = float(at_s)
        elif "]: Started " in said and stopped_s is not None:
            downtimes.append(round((float(at_s) - stopped_s) * 1000))
            stopped_s = None
    return downtimes


# Units that do not come up


async def test_a_switch_that_leaves_units_broken_is_taken_back_with_its_exit_status_on_record(place: Path) -> None:
    async with fleet_of(place) as fleet:
        web1, first = fleet.machines["web1"], fleet.closure("web1", "1")
        broken = fleet.build(Generation(version="2", units=CRASHY))["web1"]
        rollout = await fleet.release({"web1": broken})
        await web1.until_settled(rollout, "Reverted")

        # The switch had moved /run/current-system, and was a failure all the same.
        assert [line for line in web1.read("/var/lib/lab/steps").splitlines() if line == f"end {broken}"]
        failed = web1.only_fact(rollout, ActivationFailed)
        assert failed.exit_code == 4
        assert "the following units failed: crashy.service" in failed.stderr_tail
        assert web1.only_fact(rollout, RollbackComplete).reverted_to_closure == first
        assert web1.current() == web1.default() == web1.profile() == first
        await web1.until_web_version("1")
        assert web1.switches() == [f"switch {broken}", f"switch {first}"]
        assert "not-found" in await web1.systemctl("show", "--property=LoadState", "crashy.service")
        assert not (await web1.attempt("systemctl", "list-units", "--failed", "--no-legend")).strip()
        assert [barred["closure"] for barred in (await web1.seen())["quarantine"]] == [broken]
        assert await web1.metric("nixfleet_agent_refusals_total", reason=Reason.SWITCH_FAILED) == 1
        await fleet.audit()


async def test_under_halt_a_host_stays_on_what_failed_and_its_way_back_leads_past_it(place: Path) -> None:
    async with fleet_of(place) as fleet:
        web1, first = fleet.machines["web1"], fleet.closure("web1", "1")
        broken = fleet.build(Generation(version="2", units=CRASHY))["web1"]
        halted = await fleet.release({"web1": broken}, onHealthFailure="halt")
        await web1.until_settled(halted, "Failed")

        assert web1.only_fact(halted, ActivationFailed).exit_code == 4
        assert web1.current() == web1.default() == web1.profile() == broken
        assert web1.switches() == [f"switch {broken}"]
        await web1.until_web_version("2")
        await web1.until("a probe of what runs", lambda said: said["probes"][0]["status"] == "pass")
        assert not (await web1.seen())["quarantine"]

        # What failed is nothing to go back to.
        also_broken = fleet.build(Generation(version="3", units=CRASHY))["web1"]
        rollout = await fleet.release({"web1": also_broken})
        await web1.until_settled(rollout, "Reverted")
        assert web1.only_fact(rollout, DispatchAck).current_closure_at_dispatch == broken
        assert web1.only_fact(rollout, RollbackComplete).reverted_to_closure == first
        assert web1.current() == web1.default() == first
        await fleet.audit()


async def test_a_switch_that_fails_before_it_changes_units_leaves_boot_loader_and_profile_as_they_were(
    place: Path,
) -> None:
    async with fleet_of(place) as fleet:
        web1, first = fleet.machines["web1"], fleet.closure("web1", "1")
        failing = fleet.build(Generation(version="2", lab={"switch-fails": "error: no room in /boot\n"}))["web1"]
        rollout = await fleet.release({"web1": failing})
        await web1.until_settled(rollout, "Reverted")

        failed = web1.only_fact(rollout, ActivationFailed)
        assert failed.exit_code == 1
        assert failed.stderr_tail == f"{Reason.SWITCH_FAILED}: error: no room in /boot"
        assert web1.current() == web1.default() == web1.profile() == first
        assert web1.switches() == [f"switch {failing}", f"switch {first}"]
        await web1.until_web_version("1")
        assert await web1.metric("nixfleet_agent_refusals_total", reason=Reason.SWITCH_FAILED) == 1
        assert (await fleet.rows(rollout))["web1"]["state"] == "Reverted"
        await fleet.audit()


# A switch that does not end


async def test_a_switch_that_hangs_is_ended_with_all_its_processes_and_taken_back(place: Path) -> None:
    async with fleet_of(place, boot=False) as fleet:
        web1, first = fleet.machines["web1"], fleet.closure("web1", "1")
        web1.with_agent_flags("--switch-timeout=8")
        await web1.boot()
        hanging = fleet.build(Generation(version="2", lab={"switch-hangs": "for ever"}))["web1"]
        rollout = await fleet.release({"web1": hanging})
        await web1.until_file("/var/lib/lab/steps", f"after-boot-loader {hanging}")
        assert web1.processes("switch-to-configuration"), "the switch does not run"
        await web1.until_settled(rollout, "Reverted")

        failed = web1.only_fact(rollout, ActivationFailed)
        assert failed.exit_code == -1
        assert failed.stderr_tail.startswith(f"{Reason.SWITCH_TIMEOUT}: gave up 8 s after the switch began")
        assert "ActiveState=active SubState=running" in failed.stderr_tail
        assert not web1.processes("switch-to-configuration")
        assert not web1.processes("infinity")
        assert "not-found" in await web1.systemctl("show", "--property=LoadState", "nixfleet-switch.service")
        assert web1.current() == web1.default() == web1.profile() == first
        assert web1.switches() == [f"switch {hanging}", f"switch {first}"]
        assert await web1.metric("nixfleet_agent_refusals_total", reason=Reason.SWITCH_TIMEOUT) == 1

        good = fleet.build(Generation(version="3"))["web1"]
        await web1.until_settled(await fleet.release({"web1": good}), "Converged")
        assert web1.current() == web1.default() == good
        await fleet.audit()
