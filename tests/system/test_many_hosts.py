"""One release to thirty hosts that are all of them real: what a small fleet costs a small machine."""

import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from state_machine.facts import Converged, DispatchAck
from tests.system.fleet import AGENT, CONTROL_PLANE, SystemFleet, fleet_of
from tests.system.generations import Generation

HOSTS = 30


async def test_a_release_reaches_thirty_hosts_one_first_and_then_all_the_others(place: Path) -> None:
    hosts = [f"web{number:02}" for number in range(1, HOSTS + 1)]
    waves = (hosts[:1], hosts[1:])
    stopwatch = Stopwatch()
    async with fleet_of(place, hosts) as fleet:
        stopwatch.lap("thirty-one hosts are up")
        targets = fleet.build(Generation(version="2"))
        rollout = await fleet.release(targets, waves=waves, soak_secs=1)
        stopwatch.lap("released")
        await fleet.until_rollout_is(rollout, "Terminal")
        await fleet.until_all(rollout, "Converged")
        stopwatch.lap("converged everywhere")

        canary = fleet.machines[hosts[0]].only_fact(rollout, Converged).converged_at
        for name in waves[1]:
            assert fleet.machines[name].only_fact(rollout, DispatchAck).received_at >= canary, name
        for name, machine in fleet.machines.items():
            assert machine.current() == machine.default() == targets[name]
            assert machine.switches() == [f"switch {targets[name]}"]
        rows = await fleet.rows(rollout)
        assert {host: (row["state"], row["wave"]) for host, row in rows.items()} == {
            host: ("Converged", wave) for wave, names in enumerate(waves) for host in names
        }
        assert await fleet.cp_metric("nixfleet_cp_hosts_in_phase", phase="Converged") == HOSTS
        await fleet.audit()
        stopwatch.lap("audited")
        for line in (*stopwatch.laps, *_costs(fleet)):
            print(line)


def _costs(fleet: SystemFleet) -> Iterator[str]:
    """What agents and control plane take, from the kernel's books."""
    machines = fleet.machines.values()
    resident = sorted(machine.resident_mib(AGENT) for machine in machines)
    used = sorted(machine.processor_s_of(AGENT) for machine in machines)
    yield f"an agent: {resident[len(resident) // 2]:.0f} MiB resident, at most {resident[-1]:.0f}"
    yield f"an agent and its children since the boot: {used[len(used) // 2]:.2f} s of processor, at most {used[-1]:.2f}"
    memory, processor_s = fleet.cp.resident_mib(CONTROL_PLANE), fleet.cp.processor_s_of(CONTROL_PLANE)
    yield f"the control plane: {memory:.0f} MiB resident, {processor_s:.2f} s of processor"


@attrs.define
class Stopwatch:
    """Wall time of one thing after the other."""

    laps: list[str] = attrs.field(factory=list)
    _last: float = attrs.field(factory=time.monotonic)

    def lap(self, what: str) -> None:
        """This is done now."""
        now = time.monotonic()
        self.laps.append(f"{what} after {now - self._last:.1f} s")
        self._last = now
