"""First-generation hosts at their desk, with the real planner and ledger: who is told what, and whose word counts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio

from control_plane.clock import wall_now
from control_plane.dispatch_desk import DispatchDesk
from control_plane.entries import (
    DispatchQueued,
    DispatchWithdrawn,
    Entry,
    FactAccepted,
    MachineRegistered,
    RollbackAsked,
)
from control_plane.errors import RequestRefusedError
from control_plane.heartbeats import Heartbeats
from control_plane.ingest import Ingest
from control_plane.ledger import Ledger
from control_plane.legacy_desk import LegacyDesk
from control_plane.planner_loop import PlannerLoop
from control_plane.presence import SILENCE_S
from control_plane.rows import Host, Mirror
from state_machine.events import DispatchKind
from state_machine.facts import ActivationCompleted, DispatchAck
from state_machine.values import Closure, HostName, Phase, RolloutId, Source, WallMs
from tests.unit.control_plane_legacy_world import report
from tests.unit.control_plane_worlds import OLD, ROLLOUT, accepted, closure, opened, shelf, target
from wire.legacy import Report, closure_of
from wire.messages import HeartbeatRequest

WEB1, WEB2 = HostName("web1"), HostName("web2")
NEW = target(WEB1)
CACHE = "http://cache.example.org"


@attrs.define(kw_only=True)
class World:
    ledger: Ledger
    planner: PlannerLoop
    desk: LegacyDesk
    heartbeats: Heartbeats
    entries: list[Entry]
    said: int = 0

    def wanted(self, host: HostName = WEB1) -> Closure | None:
        self.planner.presence.note(host, wall_now(), wall_now())
        desired = self.desk.desired(host)
        return None if desired is None else closure_of(desired.hash)

    async def hears(self, message: str, running: Closure, host: HostName = WEB1) -> None:
        await self.takes(attrs.evolve(report(message, running), machine_id=host), host)

    async def takes(self, said: Report, host: HostName = WEB1) -> None:
        self.said += 1
        await self.desk.take(host, attrs.evolve(said, timestamp=WallMs(said.timestamp + self.said)))

    def beat(self) -> None:
        self.heartbeats.answer(HeartbeatRequest(hostname=WEB1, at=wall_now(), current_closure=NEW))

    def phase(self, rollout: RolloutId = ROLLOUT, host: HostName = WEB1) -> Phase:
        mirror = self.ledger.book.get(Mirror, rollout, host)
        assert mirror is not None
        return mirror.record.phase

    def facts(self, host: HostName) -> list[FactAccepted]:
        return [each for each in self.entries if isinstance(each, FactAccepted) and each.hostname == host]


@asynccontextmanager
async def world(tmp_path: Path, *before: Entry) -> AsyncIterator[World]:
    async with Ledger(tmp_path / "state.db") as ledger:
        in_force = shelf(wall_now())
        planner = PlannerLoop(ledger=ledger, shelf=in_force, freshness_window_s=86_400)
        desk, heartbeats = DispatchDesk(ledger, settle=planner.current), Heartbeats(ledger)
        entries: list[Entry] = []
        ledger.subscribe(lambda entry, _: entries.append(entry))
        ledger.record(opened())
        for entry in before:
            ledger.record(entry)
        legacy = LegacyDesk(
            ledger=ledger,
            shelf=in_force,
            desk=desk,
            planner=planner,
            ingest=Ingest(ledger=ledger, shelf=in_force, require_evidence=False),
            heartbeats=heartbeats,
            cache_url=CACHE,
        )
        yield World(ledger=ledger, planner=planner, desk=legacy, heartbeats=heartbeats, entries=entries)


def kinds(it: World) -> list[str]:
    return [type(each).__name__ for each in it.entries]


async def test_asking_counts_as_handing_out_and_only_the_first_time_is_news(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        for _ in range(3):
            desired = it.desk.desired(WEB1)
            assert desired is not None
            assert (closure_of(desired.hash), desired.cache_url, desired.poll_hint) == (NEW, CACHE, 5)
        assert kinds(it).count("DispatchSent") == 1


async def test_what_was_never_handed_out_is_not_taken_for_obedience(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.hears("applying", OLD)
        await it.hears("deployed", NEW)
        assert (it.phase(), it.facts(WEB1)) == (Phase.PENDING, [])


async def test_no_report_moves_another_host(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        for host in (WEB1, WEB2):
            assert it.wanted(host) == target(host)
        for message, running in (("applying", OLD), ("deployed", NEW), ("rolled back: x", OLD)):
            await it.hears(message, running)
        assert {each.hostname for each in it.entries if isinstance(each, FactAccepted)} == {WEB1}
        assert it.phase(host=WEB2) is Phase.PENDING


async def test_a_dispatch_that_was_taken_back_too_late_still_counts(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert it.wanted() == NEW
        it.ledger.record(
            DispatchWithdrawn(hostname=WEB1, rollout_id=ROLLOUT, kind=DispatchKind.DISPATCH, why="web3 is Failed")
        )
        await it.hears("applying", OLD)
        await it.hears("deployed", NEW)
        assert it.phase() in (Phase.SOAKING, Phase.CONVERGED)


async def test_a_report_that_is_sent_again_is_heard_once(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert it.wanted() == NEW
        stray = report("rolled back: it did not boot", OLD)
        await it.desk.take(WEB1, stray)
        assert it.phase() is Phase.REVERTED
        later = opened("web1", rollout=RolloutId("stable@decade"))
        it.ledger.record(attrs.evolve(later, hosts=(attrs.evolve(later.hosts[0], target_closure=closure("9")),)))
        it.ledger.record(
            DispatchQueued(
                hostname=WEB1,
                rollout_id=later.rollout_id,
                kind=DispatchKind.DISPATCH,
                target_closure=closure("9"),
                soak_secs=0,
            )
        )
        await it.desk.take(WEB1, stray)
        assert it.phase(later.rollout_id) is Phase.PENDING


async def test_an_unknown_machine_is_registered_with_its_tags_and_a_known_one_is_not(tmp_path: Path) -> None:
    async with world(tmp_path, MachineRegistered(hostname=WEB2, by="alice", tags=("db",))) as it:
        await it.takes(attrs.evolve(report("up-to-date", OLD), tags=("web", "eu")))
        await it.hears("up-to-date", OLD, WEB2)
        registered = [each.hostname for each in it.entries if isinstance(each, MachineRegistered)]
        assert registered == [WEB2, WEB1]
        tags = {host.hostname: host.tags for host in it.ledger.book.all(Host)}
        assert tags == {WEB2: ("db",), WEB1: ("web", "eu")}
        assert {host.source for host in it.ledger.book.all(Host)} == {Source.LEGACY}


async def test_a_host_that_sends_heartbeats_is_told_nothing_and_not_heard(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert it.wanted() == NEW
        it.beat()
        assert it.wanted() is None
        with pytest.raises(RequestRefusedError, match="newer protocol") as refused:
            await it.hears("rolled back: x", OLD)
        assert (refused.value.status, it.facts(WEB1)) == (409, [])


async def test_a_host_may_come_back_once_its_heartbeats_have_stopped(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as it:
        it.beat()
        await trio.sleep(SILENCE_S + 1)
        assert it.wanted() == NEW
        await it.hears("applying", OLD)
        await it.hears("deployed", NEW)
        assert it.phase() is not Phase.PENDING
        host = it.ledger.book.get(Host, WEB1)
        assert host is not None
        assert host.source is Source.LEGACY


async def test_a_host_that_took_a_rollout_by_a_clock_ahead_is_not_sent_back_to_it(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert it.wanted() == NEW
        ahead = WallMs(wall_now() + 10**9)
        for fact in (
            DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=ahead),
            ActivationCompleted(seq=2, observed_current_closure=NEW, exit_code=0, completed_at=ahead),
        ):
            it.ledger.record(accepted(WEB1, fact))
        later = opened("web1", rollout=RolloutId("stable@decade"))
        it.ledger.record(attrs.evolve(later, hosts=(attrs.evolve(later.hosts[0], target_closure=closure("9")),)))
        mirror = it.ledger.book.get(Mirror, later.rollout_id, WEB1)
        assert mirror is not None
        it.ledger.book.put(attrs.evolve(mirror, dispatched_at=WallMs(wall_now() + 1)))
        await it.hears("applying", NEW)
        await it.hears("deployed", closure("9"))
        assert it.phase(later.rollout_id) is not Phase.PENDING
        assert it.wanted() == closure("9")


async def test_a_wish_without_a_way_back_is_refused_by_the_next_report(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        assert it.wanted() == NEW
        await it.hears("deployed", NEW)
        it.ledger.record(RollbackAsked(rollout_id=ROLLOUT, hosts=(WEB1,), reason="too hot", by="alice"))
        it.ledger.record(
            DispatchQueued(
                hostname=WEB1,
                rollout_id=ROLLOUT,
                kind=DispatchKind.ROLLBACK,
                target_closure=NEW,
                soak_secs=0,
                reason="too hot",
            )
        )
        assert it.wanted() == NEW
        await it.hears("up-to-date", NEW)
        mirror = it.ledger.book.get(Mirror, ROLLOUT, WEB1)
        assert mirror is not None
        assert mirror.record.refusal == "missing"


async def test_a_dispatch_of_the_system_that_runs_already_is_taken_by_up_to_date(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await it.hears("up-to-date", NEW)
        assert it.wanted() == NEW
        await it.hears("up-to-date", NEW)
        assert it.phase() in (Phase.SOAKING, Phase.CONVERGED)
