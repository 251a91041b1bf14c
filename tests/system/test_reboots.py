"""Reboots: those that a release waits for, and those into a system that somebody chose in the boot loader's menu."""

from pathlib import Path
from typing import Any

from state_machine.values import Closure
from tests.system.fleet import Machine, SystemFleet, fleet_of
from tests.system.generations import Generation
from tests.system.host import LAB_ROOT


def dbus(comment: str) -> dict[str, str]:
    """The host's own bus as a unit of its system, for this test's purposes another one."""
    unit = Path(LAB_ROOT, "lib/systemd/system/dbus.service").read_text()
    return {"dbus.service": f"# {comment}\n{unit}"}


async def reboot(machine: Machine) -> None:
    """As its operator does."""
    await machine.reboot()


async def choose(machine: Machine, closure: Closure) -> None:
    """Reboot, and pick another system in the boot loader's menu, for this one boot."""
    await machine.shut_down()
    machine.put("/boot/chosen", f"/nix/store/{closure}\n")
    await machine.boot()


def drifted(closure: Closure | None) -> Any:
    """What status says of drift, for `until`."""
    return lambda said: said["system"]["drift"] == closure


async def looked_again(machine: Machine) -> None:
    """The agent has looked at the running system once more, as it does for every heartbeat."""
    said = await machine.status() or {}
    before = said["contact"]["last_by_duty"].get("heartbeat")
    await machine.until("a heartbeat", lambda said: said["contact"]["last_by_duty"].get("heartbeat") != before)


async def test_only_what_a_running_host_cannot_swap_waits_for_a_reboot(place: Path) -> None:
    changes = {
        "kernel": Generation(version="2", kernel="6.12.2", units=dbus("1")),
        "systemd": Generation(version="2", systemd="258", units=dbus("1")),
        "dbus": Generation(version="2", units=dbus("2")),
        "initrd": Generation(version="2", initrd="2", units=dbus("1")),
    }
    waiting = ("kernel", "systemd", "dbus")
    async with fleet_of(place, tuple(changes), first=Generation(version="1", units=dbus("1"))) as fleet:
        second = {name: fleet.build(generation, [name])[name] for name, generation in changes.items()}
        rollout = await fleet.release(second, waves=(waiting, ("initrd",)), soak_secs=1)
        await fleet.until_all(rollout, "Deferred", hosts=waiting)
        # A host that only waits for its reboot holds up no later wave, and this one need not wait for any.
        await fleet.until_all(rollout, "Converged", hosts=["initrd"])
        assert fleet.machines["initrd"].switches() == [f"switch {second['initrd']}"]

        for name in waiting:
            machine, first = fleet.machines[name], fleet.closure(name, "1")
            assert machine.switches() == [f"boot {second[name]}"]
            assert machine.default() == machine.profile() == second[name]
            assert machine.current() == first
            assert await machine.web_version() == "1"
            said = await machine.status() or {}
            assert said["system"]["reboot_required"] is True
            assert said["waiting_on"] == "a reboot"
            assert said["rollout"]["deferred_by"] == name
            assert await machine.metric("nixfleet_agent_reboot_required") == 1

        await fleet.each(reboot, waiting)
        await fleet.until_all(rollout, "Converged")
        for name in waiting:
            machine = fleet.machines[name]
            assert machine.booted() == machine.current() == machine.default() == second[name]
            assert machine.switches() == [f"boot {second[name]}"]
            assert await machine.web_version() == "2"
            assert await machine.metric("nixfleet_agent_reboot_required") == 0
            facts = machine.fact_kinds(rollout)
            assert facts[:4] == ["DispatchAck", "ActivationStarted", "ActivationDeferred", "ActivationCompleted"]
            assert await fleet.told(rollout, name) == facts
        await fleet.audit()


async def test_a_deferred_host_that_is_rebooted_into_the_old_system_is_left_on_it_for_good(place: Path) -> None:
    async with fleet_of(place) as fleet:
        web1, first = fleet.machines["web1"], fleet.closure("web1", "1")
        second = fleet.build(Generation(version="2", kernel="6.12.2"))["web1"]
        rollout = await fleet.release({"web1": second}, soak_secs=1)
        await web1.until_settled(rollout, "Deferred")
        await choose(web1, first)
        await web1.until_settled(rollout, "Reverted")

        assert web1.current() == web1.default() == web1.profile() == first
        assert set(web1.known().quarantine) == {second}
        assert web1.fact_kinds(rollout) == [
            "DispatchAck", "ActivationStarted", "ActivationDeferred", "ActivationFailed", "RollbackComplete",
        ]  # fmt: skip
        assert f"after the reboot {first} runs" in (web1.record(rollout).failure or "")
        assert await fleet.told(rollout, "web1") == web1.fact_kinds(rollout)

        third = fleet.build(Generation(version="3"))["web1"]
        better = await fleet.release({"web1": third}, soak_secs=1)
        await web1.until_settled(better, "Converged")
        assert web1.current() == web1.default() == third
        await fleet.audit()


async def test_a_newer_release_takes_the_place_of_one_that_waits_for_a_reboot(place: Path) -> None:
    async with fleet_of(place, ("same-kernel", "newer-kernel")) as fleet:
        second = fleet.build(Generation(version="2", kernel="6.12.2"))
        waits = await fleet.release(second, soak_secs=1)
        await fleet.until_all(waits, "Deferred")
        third = {
            **fleet.build(Generation(version="3"), ["same-kernel"]),
            **fleet.build(Generation(version="3", kernel="6.12.3"), ["newer-kernel"]),
        }
        rollout = await fleet.release(third, soak_secs=1)
        live, waiting = fleet.machines["same-kernel"], fleet.machines["newer-kernel"]
        await live.until_settled(rollout, "Converged")
        await waiting.until_settled(rollout, "Deferred")

        assert live.switches() == [f"boot {second[live.name]}", f"switch {third[live.name]}"]
        assert live.current() == live.default() == live.profile() == third[live.name]
        assert live.booted() == fleet.closure(live.name, "1")
        assert await live.metric("nixfleet_agent_reboot_required") == 0
        assert waiting.switches() == [f"boot {second[waiting.name]}", f"boot {third[waiting.name]}"]
        assert waiting.current() == fleet.closure(waiting.name, "1")
        assert waiting.default() == waiting.profile() == third[waiting.name]

        await fleet.each(reboot)
        await fleet.until_all(rollout, "Converged")
        for name, machine in fleet.machines.items():
            assert machine.booted() == machine.current() == machine.default() == third[name]
            assert len(machine.switches()) == 2, "the boot was all it took"
        await fleet.audit()


async def converged_on_the_second(fleet: SystemFleet, soak_secs: int = 0) -> dict[str, Closure]:
    """Version 2 on all hosts."""
    second = fleet.build(Generation(version="2"))
    await fleet.until_all(await fleet.release(second, soak_secs=soak_secs), "Converged")
    return second


async def test_a_reboot_into_an_older_system_is_put_on_record_and_not_fought_over(place: Path) -> None:
    async with fleet_of(place, ("stays", "returns")) as fleet:
        second = await converged_on_the_second(fleet)
        rollout = next(iter(fleet.machines["stays"].known().rollouts))

        async def into_the_first(machine: Machine) -> None:
            first = fleet.closure(machine.name, "1")
            await choose(machine, first)
            await machine.until("drift", drifted(first))
            await looked_again(machine)
            assert machine.current() == first
            assert machine.default() == machine.profile() == second[machine.name]
            assert machine.switches() == [f"switch {second[machine.name]}"]
            assert machine.fact_kinds(rollout).count("DriftObserved") == 1
            assert await machine.metric("nixfleet_agent_drift") == 1
            assert (await machine.status() or {})["rollout"]["phase"] == "Converged"

        await fleet.each(into_the_first)
        returns, stays = fleet.machines["returns"], fleet.machines["stays"]
        await returns.reboot()
        await returns.until("no drift", drifted(None))
        assert returns.current() == second["returns"]
        assert len(returns.switches()) == 1

        third = fleet.build(Generation(version="3"))
        better = await fleet.release(third, soak_secs=1)
        await fleet.until_all(better, "Converged")
        assert stays.record(better).closure_at_dispatch == fleet.closure("stays", "1")
        assert returns.record(better).closure_at_dispatch == second["returns"]
        for name, machine in fleet.machines.items():
            assert machine.current() == machine.default() == machine.profile() == third[name]
            assert await machine.metric("nixfleet_agent_drift") == 0
            assert await fleet.told(rollout, name) == machine.fact_kinds(rollout)
        await fleet.audit()


async def test_a_reboot_into_an_older_system_takes_the_release_off_trial_until_it_is_back(place: Path) -> None:
    async with fleet_of(place) as fleet:
        web1, first = fleet.machines["web1"], fleet.closure("web1", "1")
        second = fleet.build(Generation(version="2"))["web1"]
        rollout = await fleet.release({"web1": second}, soak_secs=8)
        await web1.until_phase(rollout, "Soaking")
        await choose(web1, first)
        await web1.until("drift", drifted(first))
        assert (await web1.status() or {})["rollout"]["phase"] == "Soaking"
        assert web1.current() == first

        await web1.reboot()
        await web1.until_settled(rollout, "Converged")
        assert web1.current() == web1.default() == second
        assert web1.switches() == [f"switch {second}"]
        facts = web1.fact_kinds(rollout)
        assert facts.count("DriftObserved") == facts.count("Converged") == 1
        since_drift = facts[facts.index("DriftObserved") :]
        assert since_drift.index("ProbeResult") < since_drift.index("Converged"), "proved anew"
        await fleet.audit()
