"""During a rollout the agent's service is restarted, stopped, killed, frozen, and its systemd executes itself anew.

Nothing is switched twice, no fact is lost or told twice, and systemd never has to kill the agent to stop it.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio

from state_machine.values import RolloutId
from tests.system.fleet import AGENT, Machine, SystemFleet, fleet_of
from tests.system.generations import Generation

_DROP_IN: Final = "/etc/systemd/system.control/nixfleet-agent.service.d/scenario.conf"
_STOPS_IN_TIME: Final = "[Service]\nTimeoutStopSec=5\nRestartSec=1\n"
"""What takes longer than five seconds to stop is killed by systemd, and systemd puts that on record."""

SOAK_S: Final = 8


async def until_over(machine: Machine, rollout: RolloutId, disturb: Callable[[Machine], Awaitable[None]]) -> int:
    """Do it to the agent every two seconds that it is up, until the rollout is over; how often that was."""
    times = 0
    while True:
        said = await machine.until("the agent", lambda said: said, patience_s=60)
        current = said["rollout"]
        if current and current["id"] == rollout and current["phase"] not in ("Pending", "Activating", "Soaking"):
            return times
        await trio.sleep(2)
        await disturb(machine)
        times += 1


async def restart(machine: Machine) -> None:
    """`systemctl restart`."""
    await machine.systemctl("restart", AGENT)


async def stop_and_start(machine: Machine) -> None:
    """With systemd's word, each time, that the agent ended well and by itself."""
    # A switch that is under way may cancel the stop: it wants all units of its system to run, this one too.
    await machine.attempt("systemctl", "stop", AGENT)
    shown = await machine.systemctl("show", "--property=Result,ExecMainStatus", AGENT)
    assert shown.split() == ["Result=success", "ExecMainStatus=0"], f"{machine.name}: {shown}"
    await machine.systemctl("start", AGENT)


async def kill(machine: Machine) -> None:
    """`kill -9`; systemd starts it again."""
    await machine.attempt("systemctl", "kill", "--kill-whom=main", "--signal=KILL", AGENT)


DISTURBANCES: Final = {"restarted": restart, "stopped": stop_and_start, "killed": kill}


async def went_well(fleet: SystemFleet, machine: Machine, rollout: RolloutId, target: str) -> None:
    """One switch, and every fact once."""
    assert machine.switches() == [f"switch {target}"]
    assert machine.current() == machine.default() == machine.profile() == target
    assert await machine.web_version() == "2"
    facts = machine.fact_kinds(rollout)
    for once in ("DispatchAck", "ActivationStarted", "ActivationCompleted", "Converged"):
        assert facts.count(once) == 1, f"{machine.name}: {facts}"
    assert await fleet.told(rollout, machine.name) == facts


async def test_an_agent_that_is_restarted_stopped_and_killed_every_two_seconds_finishes_its_rollout(
    place: Path,
) -> None:
    async with fleet_of(place, tuple(DISTURBANCES), boot=False) as fleet:
        for machine in fleet.machines.values():
            machine.put(_DROP_IN, _STOPS_IN_TIME)
        await fleet.boot_all()
        second = fleet.build(Generation(version="2"))
        rollout = await fleet.release(second, soak_secs=SOAK_S)
        times: dict[str, int] = {}

        async def disturbed(machine: Machine) -> None:
            times[machine.name] = await until_over(machine, rollout, DISTURBANCES[machine.name])

        await fleet.each(disturbed)
        await fleet.until_all(rollout, "Converged")
        for name, machine in fleet.machines.items():
            assert times[name] >= 2
            await went_well(fleet, machine, rollout, second[name])
            assert machine.known().runs >= 1 + times[name]
            assert "timed out" not in await machine.journal_of(AGENT, lines=10_000)
        await fleet.audit()


async def test_an_agent_that_hangs_is_killed_by_the_watchdog_and_the_next_one_finishes_the_rollout(
    place: Path,
) -> None:
    async with fleet_of(place, boot=False) as fleet:
        web1 = fleet.machines["web1"]
        web1.put(_DROP_IN, "[Service]\nWatchdogSec=3\nRestartSec=1\n")
        await fleet.boot_all()
        second = fleet.build(Generation(version="2"))["web1"]
        rollout = await fleet.release({"web1": second}, soak_secs=SOAK_S)
        await web1.until_phase(rollout, "Soaking")
        await web1.systemctl("kill", "--kill-whom=main", "--signal=STOP", AGENT)
        await web1.until("another run", lambda said: said["runs"] == 2)
        log = await web1.journal_of(AGENT)
        assert "Watchdog timeout" in log
        assert "Failed with result 'watchdog'" in log
        await web1.until_settled(rollout, "Converged")
        await went_well(fleet, web1, rollout, second)
        await fleet.audit()


async def test_a_systemd_that_executes_itself_anew_in_the_middle_of_a_switch_loses_nothing(place: Path) -> None:
    async with fleet_of(place) as fleet:
        web1 = fleet.machines["web1"]
        second = fleet.build(Generation(version="2"))["web1"]
        web1.pause_switches_at("after-activation")
        rollout = await fleet.release({"web1": second}, soak_secs=1)
        await web1.until_file("/var/lib/lab/paused")
        await web1.systemctl("daemon-reexec")
        await web1.run("systemctl", "is-active", "nixfleet-switch.service")
        web1.let_switches_go()
        await web1.until_settled(rollout, "Converged")
        assert web1.known().runs == 1
        await went_well(fleet, web1, rollout, second)
        await fleet.audit()
