"""A host that was just installed: token, enrolment, first rollout."""

import json
from pathlib import Path

from tests.system.fleet import fleet_of
from tests.system.generations import Generation


async def test_a_new_host_enrols_with_its_token_and_takes_its_first_rollout(place: Path) -> None:
    async with fleet_of(place, ("web1",), enrolled=False, boot=False) as fleet:
        web1 = fleet.machines["web1"]
        web1.put("/etc/nixfleet/agent/token.json", json.dumps(fleet.lab.token("web1")), 0o600)
        second = fleet.build(Generation(version="2"))["web1"]
        rollout = await fleet.release({"web1": second}, soak_secs=1)
        await web1.boot()
        await web1.until_settled(rollout, "Converged")

        assert web1.current() == web1.default() == second
        assert await web1.web_version() == "2"
        assert web1.switches() == [f"switch {second}"]
        assert (await fleet.told(rollout, "web1"))[-1] == "Converged"
        await fleet.audit()
