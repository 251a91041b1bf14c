"""The power goes in the middle of a switch, or of the switch back, on either side of each of its steps.

What boots then decides. Up to the step that sets the boot loader it is the system from before, and the agent begins
again; from there on it is the other one, activated by the boot itself, and nothing is run a second time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from state_machine.values import RolloutId
from tests.system.fleet import CACHE, STATE_DIR, Machine, SystemFleet, fleet_of
from tests.system.generations import Generation

BEFORE_THE_BOOT_LOADER: Final = ("fetching", "launching", "begin", "before-boot-loader")
AROUND_ACTIVATION: Final = ("after-boot-loader", "before-activation", "after-activation", "before-units")
AROUND_UNITS: Final = ("between-units", "after-units", "end", "exited", "soaking")
BACK_BEFORE_THE_BOOT_LOADER: Final = ("launching", "begin", "before-boot-loader")
BACK_AFTER_IT: Final = ("after-boot-loader", "after-activation", "between-units", "end")
"""Each host of a test is named after the moment at which its power goes: a step of its switch, or, beside these, while
the closure is `fetching`; while the switch's unit is asked for (`launching`); with the switch over and the agent not
knowing (`exited`) and knowing (`soaking`)."""

_LAUNCHER: Final = "usr/bin/systemd-run"
_NO_UNIT: Final = "#!/bin/sh\nmkdir -p /var/lib/lab\ntouch /var/lib/lab/stopped\nexec sleep infinity\n"
"""In its place."""

_DEAFENS: Final = """\
[Unit]
Description=Stops the agent in the middle of the switch that starts this
ConditionPathExists=/var/lib/lab/deaf

[Service]
Type=oneshot
ExecStart=systemctl kill --kill-whom=main --signal=STOP nixfleet-agent.service
"""


async def prepare(machine: Machine) -> None:
    """See to it that the moment after which the host is named will last."""
    match machine.name:
        case "fetching" | "soaking":
            pass
        case "launching":
            (machine.disk / _LAUNCHER).rename(machine.disk / f"{_LAUNCHER}.kept")
            machine.put(_LAUNCHER, _NO_UNIT, 0o755)
        case "exited":
            machine.put("/var/lib/lab/deaf", "")
        case step:
            machine.stop_switches_at(step)


async def has_come(machine: Machine, rollout: RolloutId) -> None:
    """Wait for the moment after which the host is named."""
    match machine.name:
        case "fetching":
            await machine.until("a closure being fetched", lambda said: said["waiting_on"] == "fetching the closure")
        case "soaking":
            await machine.until_phase(rollout, "Soaking", "Converged")
        case "exited":
            await machine.until_any(f"{STATE_DIR}/activation/*/exit")
        case _:
            await machine.until_file("/var/lib/lab/stopped")


def cut(machine: Machine) -> None:
    """The power goes, and what kept the moment goes with it."""
    machine.power_cut()
    machine.let_switches_go()
    (machine.disk / "var/lib/lab/deaf").unlink(missing_ok=True)
    if machine.name == "launching":
        (machine.disk / f"{_LAUNCHER}.kept").rename(machine.disk / _LAUNCHER)


async def cut_and_boot_each(fleet: SystemFleet, rollout: RolloutId) -> None:
    """Every host loses its power at its moment, and gets it back."""

    async def cut_and_boot(machine: Machine) -> None:
        await has_come(machine, rollout)
        cut(machine)
        if machine.name == "fetching":
            await fleet.cp.systemctl("kill", "--signal=CONT", CACHE)
        await machine.boot()

    await fleet.each(cut_and_boot)


async def test_cut_before_the_boot_loader_is_set_the_old_system_boots_and_the_switch_is_begun_again(
    place: Path,
) -> None:
    async with fleet_of(place, BEFORE_THE_BOOT_LOADER) as fleet:
        second = fleet.build(Generation(version="2"))
        await fleet.each(prepare)
        await fleet.cp.systemctl("kill", "--signal=STOP", CACHE)
        rollout = await fleet.release(second, soak_secs=1)
        await cut_and_boot_each(fleet, rollout)
        await fleet.until_all(rollout, "Converged")

        for name, machine in fleet.machines.items():
            begun = 2 if name in ("begin", "before-boot-loader") else 1
            assert machine.switches() == [f"switch {second[name]}"] * begun, name
            assert machine.booted() == fleet.closure(name, "1"), name
            assert machine.current() == machine.default() == machine.profile() == second[name], name
            assert await machine.web_version() == "2", name
            facts = machine.fact_kinds(rollout)
            assert facts.count("ActivationStarted") == (1 if name == "fetching" else 2), f"{name}: {facts}"
            assert facts.count("ActivationCompleted") == 1, f"{name}: {facts}"
            assert await fleet.told(rollout, name) == facts
        await fleet.audit()


@pytest.mark.parametrize("moments", [AROUND_ACTIVATION, AROUND_UNITS], ids=["activation", "units"])
async def test_cut_once_the_boot_loader_is_set_the_boot_completes_the_switch_and_it_is_not_run_again(
    place: Path, moments: Sequence[str]
) -> None:
    async with fleet_of(place, moments) as fleet:
        second = fleet.build(Generation(version="2", units={"deafens.service": _DEAFENS}))
        await fleet.each(prepare)
        rollout = await fleet.release(second, soak_secs=1)
        await cut_and_boot_each(fleet, rollout)
        await fleet.until_all(rollout, "Converged")

        for name, machine in fleet.machines.items():
            assert machine.switches() == [f"switch {second[name]}"], name
            assert machine.booted() == second[name], name
            assert machine.current() == machine.default() == machine.profile() == second[name], name
            assert await machine.web_version() == "2", name
            facts = machine.fact_kinds(rollout)
            assert facts.count("ActivationStarted") == facts.count("ActivationCompleted") == 1, f"{name}: {facts}"
            assert await fleet.told(rollout, name) == facts
        await fleet.audit()


async def test_a_switch_that_is_cut_off_three_times_is_taken_back(place: Path) -> None:
    async with fleet_of(place) as fleet:
        web1, first, second = fleet.machines["web1"], fleet.closure("web1", "1"), fleet.build(Generation(version="2"))
        web1.stop_switches_at("before-boot-loader")
        rollout = await fleet.release(second)
        for _ in range(2):
            await web1.until_file("/var/lib/lab/stopped")
            web1.power_cut()
            web1.stop_switches_at("before-boot-loader")
            await web1.boot()
        await web1.until_file("/var/lib/lab/stopped")
        cut(web1)
        await web1.boot()
        await web1.until_settled(rollout, "Reverted")

        assert web1.switches() == [f"switch {second['web1']}"] * 3 + [f"switch {first}"]
        assert web1.current() == web1.default() == web1.profile() == first
        assert web1.fact_kinds(rollout) == [
            "DispatchAck", *["ActivationStarted"] * 3, "ActivationFailed", "RollbackComplete",
        ]  # fmt: skip
        assert "cut off 3 times" in (web1.record(rollout).failure or "")
        assert set(web1.known().quarantine) == {second["web1"]}
        assert await fleet.told(rollout, "web1") == web1.fact_kinds(rollout)
        await fleet.audit()


@pytest.mark.parametrize(
    ("moments", "boots"),
    [(BACK_BEFORE_THE_BOOT_LOADER, "2"), (BACK_AFTER_IT, "1")],
    ids=["before-the-boot-loader", "after-it"],
)
async def test_cut_while_a_sick_release_is_taken_back_the_host_ends_on_what_ran_before(
    place: Path, moments: Sequence[str], boots: str
) -> None:
    async with fleet_of(place, moments) as fleet:
        second = fleet.build(Generation(version="2", health="sick"))
        rollout = await fleet.release(second, soak_secs=1)

        async def soaking(machine: Machine) -> None:
            await machine.until_phase(rollout, "Soaking")
            await prepare(machine)

        await fleet.each(soaking)
        await cut_and_boot_each(fleet, rollout)
        await fleet.until_all(rollout, "Reverted")

        for name, machine in fleet.machines.items():
            first, back = fleet.closure(name, "1"), 2 if name in ("begin", "before-boot-loader") else 1
            assert machine.switches() == [f"switch {second[name]}"] + [f"switch {first}"] * back, name
            assert machine.booted() == fleet.closure(name, boots), name
            assert machine.current() == machine.default() == machine.profile() == first, name
            assert await machine.web_version() == "1", name
            assert set(machine.known().quarantine) == {second[name]}, name
            facts = machine.fact_kinds(rollout)
            assert facts.count("Failed") == facts.count("RollbackComplete") == 1, f"{name}: {facts}"
            assert "RollbackFailed" not in facts, f"{name}: {facts}"
            assert await fleet.told(rollout, name) == facts
        await fleet.audit()
