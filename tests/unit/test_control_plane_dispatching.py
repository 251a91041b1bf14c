"""Who is handed what and when, by a clock that jumps: planner loop, desk and presence together."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from control_plane.clock import wall_now
from control_plane.dispatch_desk import REDELIVERY_MAX_S, REDELIVERY_S, DispatchDesk
from control_plane.entries import DispatchQueued, DispatchWithdrawn, Entry, HostsHeld, RollbackAsked
from control_plane.heartbeats import Heartbeats
from control_plane.ledger import Ledger
from control_plane.planner_loop import PlannerLoop
from control_plane.presence import SILENCE_S
from control_plane.rows import QueuedDispatch
from control_plane.shelf import Held, Shelf
from evidence.artifacts import Verified
from state_machine.events import DispatchKind
from state_machine.facts import (
    ActivationCompleted,
    ActivationDeferred,
    ActivationFailed,
    ActivationStarted,
    Converged,
    DispatchAck,
    DispatchReject,
)
from state_machine.intent import Meta, Revocation, Revocations
from state_machine.values import HostName, Reason, SwitchMethod, WallMs
from tests.unit.control_plane_worlds import AT, HOSTS, OLD, ROLLOUT, accepted, opened, shelf, target
from wire.messages import HeartbeatRequest

WEB1, WEB2 = HostName("web1"), HostName("web2")
DAY_S = 86_400


@attrs.define(kw_only=True)
class World:
    ledger: Ledger
    planner: PlannerLoop
    desk: DispatchDesk
    shelf: Shelf
    entries: list[Entry]

    def take_note(self, *entries: Entry) -> None:
        for entry in entries:
            self.ledger.record(entry)

    def everybody_is_there(self) -> None:
        for host in HOSTS:
            self.planner.presence.note(host, wall_now(), wall_now())

    def queued(self) -> set[str]:
        return {row.hostname for row in self.ledger.book.all(QueuedDispatch)}


@asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with Ledger(tmp_path / "state.db") as ledger:
        in_force = shelf(wall_now())
        planner = PlannerLoop(ledger=ledger, shelf=in_force, freshness_window_s=DAY_S)
        desk = DispatchDesk(ledger, settle=planner.settle)
        entries: list[Entry] = []
        ledger.subscribe(lambda entry, _: entries.append(entry))
        held = in_force.manifests[next(iter(in_force.manifests))]
        opening = attrs.evolve(opened(), manifest_digest=held.proven.digest)
        ledger.record(opening)
        yield World(ledger=ledger, planner=planner, desk=desk, shelf=in_force, entries=entries)


def ack(seq: int = 1) -> DispatchAck:
    return DispatchAck(seq=seq, current_closure_at_dispatch=OLD, received_at=AT)


async def test_a_dispatch_is_handed_out_again_ever_more_seldom(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as it:
        it.planner.plan_now()
        began = trio.current_time()
        times: list[int] = []
        while len(times) < 7:
            taken = await it.desk.take(WEB1, 60)
            if taken is not None:
                times.append(round(trio.current_time() - began))
            it.everybody_is_there()
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert pauses == [5, 10, 20, 40, 60, 60]
        assert (REDELIVERY_S, REDELIVERY_MAX_S) == (5, 60)
        sent = [entry for entry in it.entries if type(entry).__name__ == "DispatchSent"]
        assert len(sent) == 1  # the first time is news, the others are not


async def test_a_host_that_waits_is_woken_by_what_is_queued_for_it_alone(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as it:
        answers: dict[HostName, float] = {}

        async def wait_for(host: HostName) -> None:
            taken = await it.desk.take(host, 60)
            answers[host] = trio.current_time() if taken is not None else -1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for, WEB1)
            nursery.start_soon(wait_for, HostName("stranger"))
            await wait_all_tasks_blocked()
            assert it.desk.waiting == 2
            began = trio.current_time()
            it.planner.plan_now()
        assert answers[WEB1] == began
        assert answers[HostName("stranger")] == -1
        assert it.desk.waiting == 0


async def test_a_rollback_goes_before_a_dispatch(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.planner.plan_now()
        wish = DispatchQueued(
            hostname=WEB1,
            rollout_id=ROLLOUT,
            kind=DispatchKind.ROLLBACK,
            target_closure=target(WEB1),
            soak_secs=0,
            reason="r",
        )
        it.take_note(wish)
        taken = await it.desk.take(WEB1, 0)
        assert taken is not None
        assert taken.kind is DispatchKind.ROLLBACK


async def test_closing_sends_everybody_away(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(it.desk.take, HostName(f"h{number}"), 60)
            await wait_all_tasks_blocked()
            it.desk.close()
        assert it.desk.waiting == 0
        assert await it.desk.take(WEB1, 60) is None


async def test_nothing_is_handed_out_that_a_newer_fact_would_have_held_back(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.planner.plan_now()
        assert it.queued() == set(HOSTS)
        it.take_note(
            accepted("web1", ack()),
            accepted("web1", ActivationFailed(seq=2, exit_code=1, stderr_tail="", failed_at=AT)),
        )
        # No plan has run since: the desk sees to it.
        assert await it.desk.take(WEB2, 0) is None
        assert it.queued() == set()
        assert sum(isinstance(entry, DispatchWithdrawn) for entry in it.entries) == 2


async def test_no_plan_is_made_for_a_dispatch_after_facts_that_hold_nobody_back(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.planner.plan_now()
        assert await it.desk.take(WEB1, 0) is not None
        made = it.planner.last_plan
        it.take_note(
            accepted("web1", ack()),
            accepted("web1", ActivationStarted(seq=2, started_at=AT, switch_method=SwitchMethod.DETACHED)),
            accepted(
                "web1", ActivationCompleted(seq=3, observed_current_closure=target(WEB1), exit_code=0, completed_at=AT)
            ),
            accepted("web1", Converged(seq=4, converged_at=AT, current_closure=target(WEB1))),
        )
        assert await it.desk.take(WEB2, 0) is not None
        assert it.planner.last_plan is made
        assert it.planner.current() is not made  # whoever asks how things stand is told


@pytest.mark.parametrize("unbidden", [True, False])
async def test_a_plan_is_made_for_a_dispatch_after_a_host_has_begun_that_was_not_reckoned_with(
    tmp_path: Path, unbidden: bool
) -> None:
    async with world(tmp_path) as it:
        it.planner.plan_now()
        assert await it.desk.take(WEB1, 0) is not None
        if unbidden:
            it.take_note(
                DispatchWithdrawn(hostname=WEB1, rollout_id=ROLLOUT, kind=DispatchKind.DISPATCH, why="a test"),
                accepted("web1", ack()),
            )
        else:
            it.take_note(
                accepted("web1", ack()),
                accepted("web1", ActivationDeferred(seq=2, component="kernel", deferred_at=AT)),
            )
            it.planner.plan_now()
            completed = ActivationCompleted(seq=3, observed_current_closure=target(WEB1), exit_code=0, completed_at=AT)
            it.take_note(accepted("web1", completed))
        made = it.planner.last_plan
        assert await it.desk.take(WEB2, 0) is not None
        assert it.planner.last_plan is not made


async def test_a_silent_host_is_not_waited_for_and_is_sent_for_when_it_returns(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as it, trio.open_nursery() as nursery:
        it.everybody_is_there()
        it.planner.plan_now()
        assert await it.desk.take(WEB1, 0) is not None
        nursery.start_soon(it.planner.run)
        await trio.sleep(SILENCE_S + 20)
        assert it.queued() == set()
        assert "the host has fallen silent" in {
            entry.why for entry in it.entries if isinstance(entry, DispatchWithdrawn)
        }
        it.planner.presence.note(WEB1, wall_now(), wall_now())
        taken = await it.desk.take(WEB1, 10)
        assert taken is not None
        nursery.cancel_scope.cancel()


async def test_planning_twice_changes_nothing_the_second_time(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.planner.plan_now()
        before = len(it.entries)
        it.planner.plan_now()
        assert len(it.entries) == before


async def test_a_gate_is_recorded_when_it_begins_to_hold_and_not_again(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        reject = DispatchReject(seq=1, reason=Reason.BUSY, rejected_at=AT)
        it.take_note(accepted("web1", reject))
        for _ in range(3):
            it.planner.plan_now()
        held = [entry for entry in it.entries if isinstance(entry, HostsHeld)]
        assert [(entry.gate, entry.hosts) for entry in held] == [("refused", (WEB1,))]
        assert it.planner.blocked == {"refused": 1}


async def test_an_operators_rollback_stops_the_rollout_before_any_host_has_answered(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.planner.plan_now()
        assert await it.desk.take(WEB1, 0) is not None  # in the host's hands, unanswered
        it.take_note(RollbackAsked(rollout_id=ROLLOUT, hosts=(), reason="stop", by="alice"))
        it.planner.plan_now()
        assert it.queued() == set()
        assert {held.gate for held in it.planner.current().held} == {"halted"}


async def test_a_revoked_host_is_not_sent_anything_until_it_has_a_newer_certificate(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        it.everybody_is_there()
        meta = Meta(schema_version=1, signed_at=wall_now())
        revoked = Revocation(hostname=WEB1, not_before=WallMs(wall_now() + 1))
        listed = Revocations(schema_version=1, revocations=(revoked,), meta=meta)
        raw = next(iter(it.shelf.manifests.values())).raw
        proven = Verified(value=listed, digest="r", key_id="k", algorithm="ed25519", signed_at=wall_now())
        it.shelf.revocations = Held(raw=raw, proven=proven)
        it.planner.plan_now()
        assert it.queued() == {"web2", "web3"}
        it.planner.presence.note(WEB1, wall_now(), revoked.not_before)
        it.planner.plan_now()
        assert it.queued() == set(HOSTS)


async def test_nothing_is_planned_from_a_fleet_that_is_too_old(tmp_path: Path) -> None:
    async with Ledger(tmp_path / "state.db") as ledger:
        in_force = shelf(WallMs(wall_now() - 2 * DAY_S * 1000))
        planner = PlannerLoop(ledger=ledger, shelf=in_force, freshness_window_s=DAY_S)
        ledger.record(opened())
        planner.plan_now()
        assert not ledger.book.all(QueuedDispatch)


async def test_a_heartbeat_is_recorded_when_it_says_something_new(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        heartbeats = Heartbeats(it.ledger)
        beat = HeartbeatRequest(hostname=WEB1, at=AT, boot_id="b1", health={"pass": 1}, uptime_secs=1)
        for uptime in range(5):
            heartbeats.answer(attrs.evolve(beat, uptime_secs=uptime))
        heartbeats.answer(attrs.evolve(beat, boot_id="b2"))
        changes = [entry for entry in it.entries if type(entry).__name__ == "HostChanged"]
        assert len(changes) == 2
        assert heartbeats.uptime_secs[WEB1] == 1
