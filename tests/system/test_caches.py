"""Binary caches that are away, that offer what nobody signed, and that lost half a file.

A closure that cannot be had is waited for; one that cannot be trusted is refused for good. Neither moves anything.
"""

from pathlib import Path

from state_machine.values import Closure
from tests.system.fleet import CACHE, Machine, SystemFleet, fleet_of
from tests.system.generations import Generation

REFUSED = {"reason": "realise-failed"}


async def until_a_fetch_has_failed(machine: Machine) -> str:
    """The host tells that it could not fetch a closure; what it says of it."""

    def told(said: dict[str, list[dict[str, str]]]) -> str | None:
        details = [note["detail"] for note in said["refusals"] if note["what"].startswith("realise-failed")]
        return details[0] if details and said["realise_failures"] else None

    detail = await machine.until("a failed fetch", told)
    assert detail is not None
    return detail


def give_up_soon(machine: Machine) -> None:
    """Nix asks a cache once, not five times with pauses: the agent's own retries are looked at here."""
    machine.put("/etc/nix/nix.conf", machine.read("/etc/nix/nix.conf") + "download-attempts = 1\n")


def nothing_moved(fleet: SystemFleet, machine: Machine) -> None:
    """The host is as it was installed."""
    first = fleet.closure(machine.name, "1")
    assert machine.current() == machine.default() == machine.profile() == first
    assert machine.switches() == []


def archive_of(fleet: SystemFleet, closure: Closure) -> Path:
    """The cache's file with the contents of a store path."""
    described = (fleet.foundry.cache / f"{closure.split('-')[0]}.narinfo").read_text()
    [name] = [line.removeprefix("URL: ") for line in described.splitlines() if line.startswith("URL: ")]
    return fleet.foundry.cache / name


async def test_a_cache_that_is_down_is_waited_for(place: Path) -> None:
    async with fleet_of(place, ("web1",)) as fleet:
        web1 = fleet.machines["web1"]
        give_up_soon(web1)
        await fleet.cp.systemctl("stop", CACHE)
        second = fleet.build(Generation(version="2"))["web1"]
        rollout = await fleet.release({"web1": second}, soak_secs=1)
        detail = await until_a_fetch_has_failed(web1)
        said = await web1.until_phase(rollout, "Activating")
        assert "http://cp" in detail
        assert said["waiting_on"].startswith("fetching the closure; tries failed: ")
        assert said["waiting_until_means"] in ("next-try", "at-latest")
        assert await web1.metric("nixfleet_agent_refusals_total", **REFUSED)
        nothing_moved(fleet, web1)

        await fleet.cp.systemctl("start", CACHE)
        await web1.until_settled(rollout, "Converged")
        assert web1.current() == web1.default() == second
        assert "ActivationFailed" not in await fleet.told(rollout, "web1")
        await fleet.audit()


async def test_a_closure_that_nobody_signed_is_refused_for_good_and_the_next_release_is_taken(place: Path) -> None:
    async with fleet_of(place, ("web1",)) as fleet:
        web1 = fleet.machines["web1"]
        unsigned = fleet.build(Generation(version="2"), signed=False)
        rollout = await fleet.release(unsigned, soak_secs=1)
        await web1.until_settled(rollout, "Failed")
        said = await web1.until_phase(rollout, "Failed")
        assert said["rollout"]["failure"].startswith("realise-failed: signature: ")
        assert unsigned["web1"] in said["rollout"]["failure"]
        assert (await fleet.told(rollout, "web1"))[-1] == "ActivationFailed"
        assert await web1.metric("nixfleet_agent_refusals_total", **REFUSED) == 1
        nothing_moved(fleet, web1)

        third = fleet.build(Generation(version="3"))["web1"]
        signed = await fleet.release({"web1": third}, soak_secs=1)
        await web1.until_settled(signed, "Converged")
        assert web1.switches() == [f"switch {third}"]
        await fleet.audit()


async def test_a_truncated_archive_is_refused_and_taken_once_it_is_whole(place: Path) -> None:
    async with fleet_of(place, ("web1",)) as fleet:
        web1 = fleet.machines["web1"]
        give_up_soon(web1)
        second = fleet.build(Generation(version="2"))["web1"]
        archive = archive_of(fleet, second)
        whole = archive.read_bytes()
        archive.write_bytes(whole[: len(whole) // 2])
        rollout = await fleet.release({"web1": second}, soak_secs=1)
        await until_a_fetch_has_failed(web1)
        assert await web1.metric("nixfleet_agent_refusals_total", **REFUSED)
        nothing_moved(fleet, web1)

        archive.write_bytes(whole)
        await web1.until_settled(rollout, "Converged")
        assert web1.current() == web1.default() == second
        await fleet.audit()
