"""The control plane's own host in trouble, in the middle of a rollout: killed, restored from an old copy, wiped.

Hosts go on with what they have begun; whatever the control plane forgot, it has from them again, each fact once.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.system.fleet import CONTROL_PLANE, SystemFleet, fleet_of
from tests.system.generations import Generation

HOSTS = ("web1", "web2")
WAVES = (("web1",), ("web2",))
PAUSED = "/var/lib/lab/paused"


async def kill(fleet: SystemFleet) -> None:
    """End the control plane's process as a fault would, and wait for the next one."""
    await fleet.cp.systemctl("kill", "--kill-whom=main", "--signal=KILL", CONTROL_PLANE)
    await fleet.until_serving()


@asynccontextmanager
async def database_of(fleet: SystemFleet) -> AsyncIterator[Path]:
    """Its directory, while the control plane is stopped."""
    await fleet.cp.systemctl("stop", CONTROL_PLANE)
    yield fleet.cp.disk / "var/lib/nixfleet-cp"
    await fleet.cp.systemctl("start", CONTROL_PLANE)
    await fleet.until_serving()


async def copy(source: Path, target: Path) -> None:
    """Everything that is in one directory into another, owners and all."""
    target.mkdir(exist_ok=True)
    await trio.run_process(["cp", "--archive", f"{source}/.", str(target)])


def wipe(directory: Path) -> None:
    """Remove the database, with whatever SQLite has beside it."""
    for path in directory.glob("state.db*"):
        path.unlink()


async def test_a_control_plane_that_is_killed_again_and_again_loses_nothing(place: Path) -> None:
    async with fleet_of(place, HOSTS) as fleet:
        web1, web2 = fleet.machines["web1"], fleet.machines["web2"]
        for machine in (web1, web2):
            machine.pause_switches_at("between-units")
        second = fleet.build(Generation(version="2"))
        rollout = await fleet.release(second, waves=WAVES, soak_secs=1)
        for machine in (web1, web2):
            await machine.until_file(PAUSED)
            await kill(fleet)
            machine.let_switches_go()
            await machine.until_phase(rollout, "Soaking", "Converged")
            await kill(fleet)
        await fleet.until_all(rollout, "Converged")
        for machine in (web1, web2):
            await fleet.until_told(rollout, machine.name)
            assert machine.switches() == [f"switch {second[machine.name]}"]
        await fleet.audit()


async def test_a_control_plane_restored_from_an_old_copy_or_wiped_has_the_facts_from_the_hosts_again(
    place: Path, tmp_path: Path
) -> None:
    async with fleet_of(place, HOSTS) as fleet:
        web1, web2 = fleet.machines["web1"], fleet.machines["web2"]
        backup = tmp_path / "backup"
        async with database_of(fleet) as directory:
            await copy(directory, backup)

        web2.pause_switches_at("between-units")
        second = await fleet.release(fleet.build(Generation(version="2")), waves=WAVES, soak_secs=1)
        await web1.until_settled(second, "Converged")
        await web2.until_file(PAUSED)
        async with database_of(fleet) as directory:
            wipe(directory)
            await copy(backup, directory)
        web2.let_switches_go()
        await fleet.until_all(second, "Converged")
        for host in HOSTS:
            await fleet.until_told(second, host)

        web1.pause_switches_at("between-units")
        third = await fleet.release(fleet.build(Generation(version="3")), waves=WAVES, soak_secs=1)
        await web1.until_file(PAUSED)
        async with database_of(fleet) as directory:
            wipe(directory)
        web1.let_switches_go()
        await fleet.until_all(third, "Converged")
        for host in HOSTS:
            await fleet.until_told(second, host)
            await fleet.until_told(third, host)
            assert fleet.machines[host].switches() == [f"switch {fleet.closure(host, version)}" for version in "23"]
        await fleet.audit()
