"""An operator switches the host by hand, or is in the way of a switch, while a rollout is under way.

The agent waits, takes note, and goes on; it never fights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from state_machine.values import Closure
from tests.system.fleet import Machine, fleet_of
from tests.system.generations import Generation

LOCK = "/run/nixos/switch-to-configuration.lock"


async def hold_the_lock(machine: Machine) -> None:
    """As a switch by hand does for as long as it lasts."""
    await machine.run("mkdir", "-p", "/run/nixos")
    await machine.run("systemd-run", "--unit=by-hand", "flock", LOCK, "sh", "-c", "touch /run/held; sleep infinity")
    await machine.until_live("/run/held")


async def occupy_the_unit(machine: Machine) -> None:
    """Some other program of the operator's runs in the unit in which the agent switches."""
    await machine.run("systemd-run", "--unit=nixfleet-switch", "--description=by hand", "sleep", "infinity")


async def by_hand(machine: Machine, closure: Closure) -> None:
    """`nixos-rebuild switch`."""
    await machine.run("nix-env", "--profile", "/nix/var/nix/profiles/system", "--set", f"/nix/store/{closure}")
    await machine.run(f"/nix/store/{closure}/bin/switch-to-configuration", "switch")


def drifted(closure: Closure | None) -> Callable[[dict[str, Any]], bool]:
    """What status says of drift, for `until`."""
    return lambda said: said["system"]["drift"] == closure


def busy(said: dict[str, Any]) -> bool:
    """The agent has given up waiting for once."""
    return any(refusal["what"].startswith("busy") for refusal in said["refusals"])


async def test_the_agent_waits_for_an_operators_switch_and_then_goes_on(place: Path) -> None:
    async with fleet_of(place, ("lock", "unit", "long")) as fleet:
        lock, unit, long = fleet.machines.values()
        await hold_the_lock(lock)
        await hold_the_lock(long)
        await occupy_the_unit(unit)
        second = fleet.build(Generation(version="2"))
        rollout = await fleet.release(second, soak_secs=1)

        async def waits(machine: Machine) -> None:
            await machine.until("a switch ordered", lambda said: said["waiting_on"] == "the switch to end")

        await fleet.each(waits)
        for machine in (lock, unit, long):
            assert machine.switches() == []
            assert machine.current() == machine.profile() == fleet.closure(machine.name, "1")
        await lock.systemctl("stop", "by-hand")
        await unit.systemctl("stop", "nixfleet-switch")
        await fleet.until_all(rollout, "Converged", hosts=["lock", "unit"])
        for machine in (lock, unit):
            assert machine.fact_kinds(rollout).count("ActivationStarted") == 1

        # A lock that stays held is waited for no longer than a minute; that is reported, and tried again.
        await long.until("a report", busy)
        assert await long.metric("nixfleet_agent_refusals_total", reason="busy") == 1
        assert long.switches() == []
        await long.systemctl("stop", "by-hand")
        await long.until_settled(rollout, "Converged")
        assert long.fact_kinds(rollout).count("ActivationStarted") == 2
        for name, machine in fleet.machines.items():
            assert machine.switches() == [f"switch {second[name]}"]
            assert machine.current() == machine.default() == machine.profile() == second[name]
            assert await fleet.told(rollout, name) == machine.fact_kinds(rollout)
        await fleet.audit()


async def test_a_switch_by_hand_during_the_soak_is_put_on_record_and_not_fought_over(place: Path) -> None:
    async with fleet_of(place, ("stays", "returns")) as fleet:
        second = fleet.build(Generation(version="2"))
        rollout = await fleet.release(second, soak_secs=8)

        async def taken_away(machine: Machine) -> None:
            first = fleet.closure(machine.name, "1")
            await machine.until_phase(rollout, "Soaking")
            await by_hand(machine, first)
            await machine.until("drift", drifted(first))
            assert await machine.metric("nixfleet_agent_drift") == 1
            assert (await machine.status() or {})["rollout"]["phase"] == "Soaking"

        await fleet.each(taken_away)
        returns, stays = fleet.machines["returns"], fleet.machines["stays"]
        await by_hand(returns, second["returns"])
        await returns.until_settled(rollout, "Converged")
        facts = returns.fact_kinds(rollout)
        since_drift = facts[facts.index("DriftObserved") :]
        assert since_drift.index("ProbeResult") < since_drift.index("Converged"), "proved anew"
        assert await returns.metric("nixfleet_agent_drift") == 0

        # The other one would have soaked long ago: it is off trial, and stays as its operator left it.
        assert stays.current() == stays.default() == stays.profile() == fleet.closure("stays", "1")
        assert (await stays.status() or {})["rollout"]["phase"] == "Soaking"
        assert stays.fact_kinds(rollout).count("DriftObserved") == 1
        third = fleet.build(Generation(version="3"))
        better = await fleet.release(third, soak_secs=1)
        await fleet.until_all(better, "Converged")
        assert stays.record(better).closure_at_dispatch == fleet.closure("stays", "1")
        for name, machine in fleet.machines.items():
            words = [f"switch {second[name]}", f"switch {fleet.closure(name, '1')}"]
            again = [f"switch {second[name]}"] if name == "returns" else []
            assert machine.switches() == [*words, *again, f"switch {third[name]}"]
            assert machine.current() == machine.default() == third[name]
            assert await fleet.told(rollout, name) == machine.fact_kinds(rollout)
        await fleet.audit()


async def test_a_switch_that_an_operator_stops_in_the_middle_is_begun_again_and_done_in_full(place: Path) -> None:
    steps = ("begin", "after-boot-loader", "after-activation", "between-units")
    async with fleet_of(place, steps) as fleet:
        second = fleet.build(Generation(version="2"))

        async def stop_at(machine: Machine) -> None:
            machine.stop_switches_at(machine.name)

        await fleet.each(stop_at)
        rollout = await fleet.release(second, soak_secs=1)

        async def stopped(machine: Machine) -> None:
            await machine.until_file("/var/lib/lab/stopped")
            machine.let_switches_go()
            await machine.systemctl("stop", "nixfleet-switch")

        await fleet.each(stopped)
        await fleet.until_all(rollout, "Converged")
        for name, machine in fleet.machines.items():
            # Also where the links said already that the new system runs: its units did not.
            assert await machine.web_version() == "2", name
            assert machine.switches() == [f"switch {second[name]}"] * 2, name
            assert machine.current() == machine.default() == machine.profile() == second[name], name
            assert machine.fact_kinds(rollout).count("ActivationStarted") == 2, name
            assert await fleet.told(rollout, name) == machine.fact_kinds(rollout)
        await fleet.audit()
