"""Disks that are full in the middle of a rollout, and have space again.

Without space to remember in, nothing new begins; what is there is watched and reported. With space, all goes on.
"""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs

from tests.system.fleet import METRICS_PORT, STATE_DIR, Machine, fleet_of
from tests.system.generations import Generation

STEP: Final = 4096


@attrs.frozen(kw_only=True)
class SmallDisk:
    """A file system of its own for one directory of a host that is off."""

    path: Path

    def fill(self) -> None:
        """Leave no byte."""
        with (self.path / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(STEP))

    def clear(self) -> None:
        """Give the space back."""
        (self.path / "ballast").unlink()


@contextlib.contextmanager
def small_disk(machine: Machine, directory: str, megabytes: int) -> Iterator[SmallDisk]:
    """What the host has in `directory`, on a file system of this size."""
    source = machine.directory / directory.strip("/").replace("/", "-")
    before = machine.disk / directory.strip("/")
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "small", str(source)], check=True)
    try:
        if before.exists():
            subprocess.run(["cp", "--archive", f"{before}/.", str(source)], check=True)
        machine.shared = {**machine.shared, source: directory}
        yield SmallDisk(path=source)
    finally:
        machine.power_cut()
        subprocess.run(["umount", "--lazy", str(source)], check=True)


async def health(machine: Machine) -> str:
    """What the agent's own health endpoint says: body and status."""
    return await machine.run("curl", "--silent", "-w", "%{http_code}", f"http://127.0.0.1:{METRICS_PORT}/healthz")


def stuck(said: dict[str, Any]) -> dict[str, Any] | None:
    """The agent tells that it cannot write its journal; its status."""
    return said if said["journal_error"] else None


def soak_is_over(said: dict[str, Any]) -> bool:
    """The rollout has soaked for as long as it should."""
    return bool(said["rollout"]["soak_left_secs"] == 0)


async def test_a_full_disk_stops_what_needs_memory_and_nothing_else_until_there_is_space(place: Path) -> None:
    async with fleet_of(place, ("web1",), boot=False) as fleet:
        web1 = fleet.machines["web1"]
        with small_disk(web1, STATE_DIR, 3) as disk:
            second, third = (fleet.build(Generation(version=version))["web1"] for version in "23")
            rollout = await fleet.release({"web1": second}, soak_secs=8)
            await web1.boot()
            await web1.until_settled(rollout, "Soaking")
            await web1.until_well()
            disk.fill()
            newer = await fleet.release({"web1": third}, soak_secs=1)

            full = await web1.until("a journal that cannot be written", stuck)
            assert full is not None
            assert "disk is full" in full["journal_error"]
            assert (await health(web1)).endswith("503")
            assert await web1.metric("nixfleet_agent_journal_errors_total")
            # The soak ends, which cannot be put on record; heartbeats and probes go on all the same.
            over = await web1.until("the end of the soak", lambda said: stuck(said) if soak_is_over(said) else None)
            assert over is not None
            await web1.until(
                "a heartbeat since", lambda said: said["contact"]["last_by_duty"]["heartbeat"] > over["at"]
            )
            await web1.until_phase(rollout, "Soaking")
            await web1.until_well()
            assert web1.current() == web1.default() == second
            assert newer not in web1.known().rollouts

            disk.clear()
            await web1.until_settled(newer, "Converged")
            assert (await health(web1)).endswith("200")
            assert web1.switches() == [f"switch {second}", f"switch {third}"]
            for told in (rollout, newer):
                await fleet.until_told(told, "web1")
            await fleet.audit()


async def test_a_closure_that_finds_no_space_is_fetched_once_there_is_some(place: Path) -> None:
    async with fleet_of(place, ("web1",), boot=False) as fleet:
        web1 = fleet.machines["web1"]
        with small_disk(web1, "/nix", 24) as disk:
            disk.fill()
            second = fleet.build(Generation(version="2"))["web1"]
            rollout = await fleet.release({"web1": second}, soak_secs=1)
            await web1.boot()
            said = await web1.until("a failed fetch", lambda said: said if said["realise_failures"] else None)
            assert said is not None
            detail = said["refusals"][0]["detail"]
            assert "disk" in detail or "No space left" in detail, detail
            assert said["rollout"]["phase"] == "Activating"
            assert await web1.metric("nixfleet_agent_refusals_total", reason="realise-failed")
            assert web1.switches() == []

            disk.clear()
            await web1.until_settled(rollout, "Converged")
            assert web1.current() == second
            await fleet.audit()
