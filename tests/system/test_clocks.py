"""Clocks that are an hour off, on a real host over real TLS, and clocks that step while a rollout soaks.

The agent's clock is bent by libfaketime, wall time alone; the kernel's monotonic clock and everybody else's stay.
"""

import shutil
from pathlib import Path
from typing import Final

import pytest

from control_plane.clock import wall_now
from evidence.signature import Algorithm
from nixfleet.keys import certificates
from nixfleet_agent.journal.migrate import migrate
from nixfleet_agent.ledger import JOURNAL_NAME
from state_machine.facts import ActivationCompleted, Converged
from state_machine.values import WallMs
from tests.system.fleet import CONTROL_PLANE, CP_HOST, Machine, SystemFleet, fleet_of
from tests.system.generations import Generation

LIBRARY: Final = "faketime/libfaketimeMT.so.1"
CLOCK: Final = "/var/lib/lab/clock"
DROP_IN: Final = f"""\
[Service]
Environment=LD_PRELOAD=/var/lib/lab/faketime.so FAKETIME_TIMESTAMP_FILE={CLOCK} FAKETIME_NO_CACHE=1
Environment=FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_FORCE_MONOTONIC_FIX=0 NO_FAKE_STAT=1
"""
"""Without the last but one every wait of a thread for another, with a deadline, would be a busy loop."""
AHEAD: Final = "+3600"
BEHIND: Final = "-3600"
RIGHT: Final = "+0"
SOAK_S: Final = 6


@pytest.fixture
def library() -> Path:
    """What bends the clock of a process."""
    found = next(Path("/usr/lib").glob(f"*/{LIBRARY}"), None)
    if found is None:
        pytest.skip("needs libfaketime: apt-get install libfaketime")
    return found


def give_clock(machine: Machine, library: Path, offset: str) -> None:
    """A clock of its own for the agent of a host that is off."""
    set_clock(machine, offset)
    # The first start would wait for the process that makes the journal, and libfaketime fails Python's `time.sleep`.
    machine.state_dir.mkdir(parents=True)
    migrate(machine.state_dir / JOURNAL_NAME)
    shutil.copy(library, machine.disk / "var/lib/lab/faketime.so")
    machine.put("/etc/systemd/system.control/nixfleet-agent.service.d/clock.conf", DROP_IN)


def set_clock(machine: Machine, offset: str) -> None:
    """Step the agent's clock to so many seconds off."""
    machine.put(CLOCK + ".new", f"{offset}\n")
    (machine.disk / (CLOCK + ".new").lstrip("/")).rename(machine.disk / CLOCK.lstrip("/"))


def soaked_s(machine: Machine, rollout: str) -> float:
    """How long the host soaked, by the clock that no step touches."""
    at = {
        type(given.fact): record.event.at.mono_ms
        for record in machine.records()
        for given in record.facts
        if given.rollout_id == rollout
    }
    return (at[Converged] - at[ActivationCompleted]) / 1000


async def test_a_clock_an_hour_ahead_takes_what_is_fresh_by_it_and_is_reported(place: Path, library: Path) -> None:
    async with fleet_of(place, ("web1",), boot=False) as fleet:
        web1 = fleet.machines["web1"]
        give_clock(web1, library, AHEAD)
        second = await fleet.release(fleet.build(Generation(version="2")), soak_secs=1)
        await web1.boot()
        await web1.until_settled(second, "Converged")
        age_s = await web1.metric("nixfleet_agent_manifest_age_seconds")
        assert age_s is not None
        assert age_s > 3600
        drift = ("nixfleet_cp_drift_total", frozenset({("kind", "clock")}))
        assert (await fleet.cp_metrics())[drift]

        set_clock(web1, RIGHT)
        third = await fleet.release(fleet.build(Generation(version="3")), soak_secs=1)
        await web1.until_settled(third, "Converged")
        await fleet.audit()


async def test_a_host_an_hour_behind_trusts_nobody_and_goes_on_once_its_clock_is_right(
    place: Path, library: Path
) -> None:
    async with fleet_of(place, ("web1",), boot=False) as fleet:
        web1 = fleet.machines["web1"]
        give_clock(web1, library, BEHIND)
        second = fleet.build(Generation(version="2"))["web1"]
        rollout = await fleet.release({"web1": second}, soak_secs=1)
        await web1.boot()
        said = await web1.until_unheard()
        assert "certificate is not yet valid" in said["contact"]["causes"]["heartbeat"]
        await web1.until_well()
        assert web1.current() == fleet.closure("web1", "1")

        set_clock(web1, RIGHT)
        await web1.until_settled(rollout, "Converged")
        assert web1.current() == web1.default() == second
        await fleet.audit()


async def test_intent_from_the_future_is_refused_and_poisons_nothing(place: Path, library: Path) -> None:
    async with fleet_of(place, ("web1",), boot=False) as fleet:
        web1 = fleet.machines["web1"]
        await date_back_the_servers_certificate(fleet)
        give_clock(web1, library, BEHIND)
        rollout = await fleet.release(fleet.build(Generation(version="2")), soak_secs=1)
        await web1.boot()
        refusal = f"future-dated {rollout}"
        await web1.until("a refusal", lambda said: any(note["what"] == refusal for note in said["refusals"]))
        await web1.until("an answered dispatch", lambda said: rollout in web1.known().rollouts and not said["outbox"])
        assert await web1.metric("nixfleet_agent_refusals_total", reason="future-dated")
        assert web1.fact_kinds(rollout) == ["TargetRefused", "DispatchReject"]
        assert web1.current() == web1.default() == fleet.closure("web1", "1")

        assert web1.known().newest_signature is None, "intent from the future has left its mark"

        set_clock(web1, RIGHT)
        third = fleet.build(Generation(version="3"))["web1"]
        await web1.until_settled(await fleet.release({"web1": third}, soak_secs=1), "Converged")
        assert web1.switches() == [f"switch {third}"]
        await fleet.audit()


async def date_back_the_servers_certificate(fleet: SystemFleet) -> None:
    """Otherwise a host that is behind would not get as far as to weigh what it is told."""
    lab, at = fleet.lab, WallMs(wall_now() - 2 * 3_600_000)
    authority = certificates.make_authority(lab.authority.key, "lab CA", at, 30)
    key = certificates.generate(Algorithm.ED25519)
    server = certificates.make_server(authority, key, (CP_HOST, fleet.cp.address), at, 30)
    fleet.cp.put("/etc/nixfleet/cp/server.pem", server.certificate_pem.decode(), 0o600)
    fleet.cp.put("/etc/nixfleet/cp/server-key.pem", server.key_pem.decode(), 0o600)
    for machine in fleet.machines.values():
        machine.put("/etc/nixfleet/agent/ca.pem", authority.certificate_pem.decode())
    await fleet.cp.systemctl("restart", CONTROL_PLANE)
    await fleet.until_serving()


async def test_a_step_of_the_clock_neither_ends_a_soak_nor_prolongs_it(place: Path, library: Path) -> None:
    async with fleet_of(place, ("web1", "web2"), boot=False) as fleet:
        offsets = {"web1": AHEAD, "web2": BEHIND}
        for machine in fleet.machines.values():
            give_clock(machine, library, RIGHT)
        await fleet.each(Machine.boot)
        rollout = await fleet.release(fleet.build(Generation(version="2")), soak_secs=SOAK_S)

        async def step_while_it_soaks(machine: Machine) -> None:
            await machine.until_phase(rollout, "Soaking")
            set_clock(machine, offsets[machine.name])
            await machine.until_phase(rollout, "Converged")
            set_clock(machine, RIGHT)

        await fleet.each(step_while_it_soaks)
        await fleet.until_all(rollout, "Converged")
        for machine in fleet.machines.values():
            assert SOAK_S <= soaked_s(machine, rollout) < SOAK_S + 60
        await fleet.audit()
