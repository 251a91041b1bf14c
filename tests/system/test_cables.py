"""Network cables: pulled for a whole rollout, pulled in the middle of a switch, and loose.

A host without a network goes on with what it has begun, begins nothing, and forgets nothing it has to tell.
"""

import time
from pathlib import Path

import trio

from state_machine.facts import DispatchAck
from tests.system.fleet import Machine, fleet_of
from tests.system.generations import Generation

ONE_POLL_S = 60
"""The longest pause between two tries of any exchange."""
LOOSE_FOR_S = 20


def acknowledged_at(machine: Machine, rollout: str) -> float:
    """When the host took the dispatch, in UTC seconds."""
    facts = [given.fact for record in machine.records() for given in record.facts if given.rollout_id == rollout]
    return next(fact.received_at for fact in facts if isinstance(fact, DispatchAck)) / 1000


async def test_a_host_takes_the_rollout_it_missed_once_its_cable_is_back(place: Path) -> None:
    async with fleet_of(place, ("web1", "web2")) as fleet:
        web1, web2 = fleet.machines["web1"], fleet.machines["web2"]
        await web2.until_heard()
        web2.cut()
        second = fleet.build(Generation(version="2"))
        rollout = await fleet.release(second, soak_secs=1)
        await web1.until_settled(rollout, "Converged")

        alone = await web2.until_unheard()
        assert alone["rollout"] is None
        await web2.until_well()
        assert web2.current() == fleet.closure("web2", "1")
        assert web2.switches() == []
        assert await web2.metric("nixfleet_agent_consecutive_failures", duty="heartbeat")

        web2.mend()
        mended_at = time.time()
        await web2.until_settled(rollout, "Converged")
        assert acknowledged_at(web2, rollout) - mended_at < ONE_POLL_S
        assert web2.current() == web2.default() == second["web2"]
        assert await fleet.told(rollout, "web2") == web2.fact_kinds(rollout)
        await web2.until_heard()
        await fleet.audit()


async def test_a_cable_pulled_in_the_middle_of_a_switch_holds_up_nothing_and_loses_no_fact(place: Path) -> None:
    async with fleet_of(place, ("web1",)) as fleet:
        web1 = fleet.machines["web1"]
        web1.pause_switches_at("between-units")
        second = fleet.build(Generation(version="2"))["web1"]
        rollout = await fleet.release({"web1": second}, soak_secs=2)
        await web1.until_file("/var/lib/lab/paused")
        web1.cut()
        web1.let_switches_go()

        said = await web1.until_phase(rollout, "Converged")
        untold = web1.fact_kinds(rollout)
        assert said["outbox"][rollout] > 0
        assert await fleet.told(rollout, "web1") == untold[: -said["outbox"][rollout]]
        assert await web1.metric("nixfleet_agent_outbox_depth") == said["outbox"][rollout]

        web1.mend()
        await web1.until_settled(rollout, "Converged")
        assert await fleet.told(rollout, "web1") == untold == web1.fact_kinds(rollout)
        assert web1.switches() == [f"switch {second}"]
        await fleet.audit()


async def test_a_loose_cable_costs_neither_a_fact_nor_a_busy_loop(place: Path) -> None:
    async with fleet_of(place, ("web1",)) as fleet:
        web1 = fleet.machines["web1"]
        await web1.until_heard()
        second = fleet.build(Generation(version="2"))["web1"]
        began, spent, before = trio.current_time(), web1.processor_s(), await web1.metrics()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_wiggle, web1)
            rollout = await fleet.release({"web1": second}, soak_secs=3)
            await web1.until_settled(rollout, "Converged")
            nursery.cancel_scope.cancel()
        lasted, spent, after = trio.current_time() - began, web1.processor_s() - spent, await web1.metrics()
        ended = ("nixfleet_agent_events_total", frozenset({("event", "DutyFinished")}))
        exchanges = after[ended] - before[ended]

        # A rollout is some twenty facts; four exchanges take turns besides, none of them more than once a second.
        assert exchanges < 30 + 4 * lasted, f"{exchanges:g} exchanges in {lasted:.0f} s"
        assert spent < 5 + lasted / 5, f"{spent:.1f} s of processor time in {lasted:.0f} s"
        assert await fleet.told(rollout, "web1") == web1.fact_kinds(rollout)
        assert web1.switches() == [f"switch {second}"]
        await web1.until_heard()
        await fleet.audit()


async def _wiggle(machine: Machine) -> None:
    """Longer than a rollout takes without; then somebody has had enough of it."""
    try:
        with trio.move_on_after(LOOSE_FOR_S):
            while True:
                machine.cut()
                await trio.sleep(1)
                machine.mend()
                await trio.sleep(1)
    finally:
        machine.mend()
