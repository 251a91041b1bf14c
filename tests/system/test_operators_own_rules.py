"""What operators add to a host with a real systemd: hooks that are asked and told, and leave for it to be rebooted."""

import json
from pathlib import Path
from typing import Any, Final

import trio

from tests.system.fleet import Machine, fleet_of
from tests.system.generations import Generation

HOOK: Final = """\
#!/bin/sh
echo "$1 $(cat)" >> /var/lib/told
[ "$1" != before-switch ] || [ ! -e /run/busy ] || { echo "somebody is busy"; exit 1; }
"""
LOCK: Final = "/run/session.lock"
GOES_DOWN_S: Final = 90.0


def told(machine: Machine) -> list[tuple[str, dict[str, Any]]]:
    """What the hook heard: the moment and the facts."""
    lines = machine.read("/var/lib/told").splitlines()
    return [(line.split(" ")[0], json.loads(line.partition(" ")[2])) for line in lines]


async def until_off(machine: Machine) -> None:
    """Somebody on the host has it reboot; here it only goes down."""
    with trio.fail_after(GOES_DOWN_S):
        while machine.process is not None and machine.process.poll() is None:
            await trio.sleep(0.05)
    machine.power_cut()


async def test_a_host_reboots_by_itself_for_its_target_once_nobody_is_in_the_way(place: Path) -> None:
    """The agent's sandbox forbids the system call; asking systemd for it is another thing."""
    async with fleet_of(place) as fleet:
        web1 = fleet.machines["web1"]
        web1.put("/etc/nixfleet/hooks/10-notes", HOOK, mode=0o755)
        web1.put("/etc/nixfleet/hooks/README", "not a hook")
        web1.with_agent_flags("--reboot=when-required", f"--session-lock={LOCK}", "--hooks-dir=/etc/nixfleet/hooks")
        await web1.reboot()
        await web1.run("touch", "/run/busy", LOCK)
        second = fleet.build(Generation(version="2", kernel="6.12.2"))["web1"]
        rollout = await fleet.release({"web1": second}, soak_secs=1)

        said = await web1.until("a veto", lambda said: said["veto"] and said)
        assert said["veto"] == "10-notes: somebody is busy"
        assert web1.switches() == []
        await web1.run("rm", "/run/busy")
        await web1.until_phase(rollout, "Deferred")
        held = await web1.until("a reboot that is held", lambda said: said["reboot"]["delayed_by"])
        assert held.startswith(f"{LOCK} is there")

        await web1.run("rm", LOCK)
        await until_off(web1)
        await web1.boot()
        await web1.until_settled(rollout, "Converged")
        assert web1.booted() == web1.current() == second
        await web1.until("hooks told", lambda said: said["hooks_owed"] == [])
        moments = [moment for moment, _ in told(web1)]
        assert (set(moments[:-1]), moments[-1]) == ({"before-switch"}, "after-success")
        assert told(web1)[-1][1]["closure"] == second
        await fleet.audit()
