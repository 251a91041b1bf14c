"""Hosts of the first generation among the others: what each is to run, and its reports as facts of its mirror.

Planner, mirrors, waves, quarantine and halts know nothing of this. A host belongs here until it sends heartbeats: from
then on it has facts of its own, and a word of the old agent beside the new one would take their numbers. When no
heartbeat has come for a while it may come back.
"""

import hashlib
import logging
from collections import OrderedDict
from typing import Final

import attrs
import trio

from control_plane import legacy
from control_plane.dispatch_desk import DispatchDesk
from control_plane.entries import HostChanged, MachineRegistered
from control_plane.errors import RequestRefusedError
from control_plane.heartbeats import Heartbeats
from control_plane.ingest import Ingest, concluded
from control_plane.ledger import Ledger
from control_plane.planner_loop import PlannerLoop
from control_plane.rows import Host, Mirror, QueuedDispatch, Rollout
from control_plane.shelf import Shelf
from state_machine.events import DispatchKind
from state_machine.planner import RolloutState
from state_machine.values import Channel, Closure, HostName, Phase, Source
from wire.legacy import DesiredGeneration, Report, closure_of, store_path

LOG: Final = logging.getLogger(__name__)

POLL_HINT_S: Final = 5
"""How soon a host asks again while its rollout is under way (protocol section 9.1)."""

VERSION_MAX: Final = 64
REMEMBERED: Final = 64
"""How many reports of a host are known again when they are repeated."""

_UNDER_WAY: Final = frozenset({RolloutState.OPENING, RolloutState.ACTIVE, RolloutState.CONVERGING})
_MOVING: Final = frozenset({Phase.PENDING, Phase.ACTIVATING, Phase.SOAKING})


@attrs.define
class _Talk:
    """What is being said with one host. Its reports are taken one after another."""

    lock: trio.Lock = attrs.field(factory=trio.Lock)
    heard: OrderedDict[bytes, None] = attrs.field(factory=OrderedDict)

    def remember(self, mark: bytes) -> None:
        """Know a report again when it is repeated."""
        self.heard[mark] = None
        if len(self.heard) > REMEMBERED:
            self.heard.popitem(last=False)


def _mark(report: Report) -> bytes:
    said = (report.timestamp, report.message, report.current_generation, report.success)
    return hashlib.sha256(repr(said).encode()).digest()


class LegacyDesk:
    """Speaks with hosts of the first generation."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        shelf: Shelf,
        desk: DispatchDesk,
        planner: PlannerLoop,
        ingest: Ingest,
        heartbeats: Heartbeats,
        cache_url: str | None,
    ) -> None:
        self._ledger, self._shelf, self._desk, self._planner = ledger, shelf, desk, planner
        self._ingest, self._heartbeats, self._cache_url = ingest, heartbeats, cache_url
        self._talks: dict[HostName, _Talk] = {}

    # What a host is to run

    def desired(self, host: HostName) -> DesiredGeneration | None:
        """What `host` is to run now, counted as handed out; None while that is not for this control plane to say.

        Raises:
            StoreUnavailableError: that it was handed out cannot be recorded, so it is not.
        """
        if self._heartbeats.speaks(host):
            return None
        queued = self._desk.waiting_for(host)
        target = self._hand_out(queued)
        if target is None:
            taken = self._taken(host)
            target = None if taken is None else legacy.standing_target(taken.record)
        if target is None:
            return None
        hint = POLL_HINT_S if queued or self._is_under_way(host) else None
        return DesiredGeneration(hash=store_path(target), cache_url=self._cache_url, poll_hint=hint)

    def _hand_out(self, waiting: list[QueuedDispatch]) -> Closure | None:
        for queued in waiting:
            self._desk.record_sent(queued)
            if queued.kind is DispatchKind.DISPATCH:
                return queued.target_closure
            mirror = self._ledger.book.get(Mirror, queued.rollout_id, queued.hostname)
            back = None if mirror is None else legacy.way_back(mirror.record)
            if back is not None:
                return back
        return None

    def _is_under_way(self, host: HostName) -> bool:
        states = {summary.rollout_id: summary.state for summary in self._planner.current().rollouts}
        return any(
            mirror.record.phase in _MOVING
            and states.get(mirror.rollout_id) in _UNDER_WAY
            and not self._is_halted(mirror)
            for mirror in self._ledger.book.mirrors_on(host)
        )

    def _is_halted(self, mirror: Mirror) -> bool:
        rollout = self._ledger.book.get(Rollout, mirror.rollout_id)
        return rollout is None or rollout.halted is not None

    # What a host reports

    async def take(self, host: HostName, report: Report) -> None:
        """Take a report. Returns when what it amounts to is on the disk.

        Raises:
            RequestRefusedError: 409, the host has moved on to the newer protocol.
            StoreUnavailableError: it could not be kept; it may be sent again.
        """
        talk = self._talks.setdefault(host, _Talk())
        async with talk.lock:
            if self._heartbeats.speaks(host):
                raise RequestRefusedError(
                    status=409,
                    reason="moved",
                    error=f"{host} speaks the newer protocol now: stop its agent of the first generation",
                )
            mark = _mark(report)
            if mark not in talk.heard:
                self._register(host, report)
                await self._conclude(host, report)
                self._note(host, report)
            await self._ledger.flushed()
            talk.remember(mark)

    def _register(self, host: HostName, report: Report) -> None:
        if self._ledger.book.get(Host, host) is None:
            LOG.info("%s reports for the first time, in the protocol of the first generation", host)
            self._ledger.record(MachineRegistered(hostname=host, by=host, note="by its first report", tags=report.tags))

    async def _conclude(self, host: HostName, report: Report) -> None:
        mirror = legacy.subject(self._taken(host), self._handed_out(host), report)
        if mirror is None:
            return
        known = self._ledger.book.get(Host, host)
        standing = legacy.Standing(
            mirror=mirror,
            ran=None if known is None else known.current_closure,
            wish=self._wish(mirror),
            rules=self._rules(mirror.channel),
        )
        for fact in legacy.amounts_to(standing, report, self._ledger.now()):
            await self._ingest.accept(concluded(host, mirror.rollout_id, fact, Source.LEGACY))

    def _note(self, host: HostName, report: Report) -> None:
        said = HostChanged(
            hostname=host,
            current_closure=closure_of(report.current_generation),
            agent_version=report.agent_version[:VERSION_MAX] or None,
            uptime_secs=max(0, report.uptime_seconds),
            health=legacy.counted(report),
            waiting_on=legacy.waits_for(report),
            source=Source.LEGACY,
            tags=report.tags,
        )
        self._heartbeats.note(said, self._ledger.now())

    def _rules(self, channel: Channel) -> legacy.Rules:
        fleet = None if self._shelf.fleet is None else self._shelf.fleet.value
        declared = None if fleet is None else fleet.channels.get(channel)
        policy = None if fleet is None or declared is None else fleet.rollout_policies.get(declared.rollout_policy)
        if policy is None:
            return legacy.Rules()
        sustained_s = policy.sustained_failure_secs
        return legacy.Rules(
            policy=policy.on_health_failure,
            sustained_ms=legacy.SUSTAINED_MS if sustained_s is None else sustained_s * 1000,
        )

    # The host's mirrors

    def _taken(self, host: HostName) -> Mirror | None:
        """The mirror of the dispatch it took last, by the order in which they were handed out here.

        A host that spoke the newer protocol before told by its own clock when it took one.
        """
        taken = [row for row in self._ledger.book.mirrors_on(host) if row.record.dispatch_acked_at is not None]
        return max(taken, key=lambda row: (row.dispatched_at or 0, row.record.dispatch_acked_at or 0), default=None)

    def _handed_out(self, host: HostName) -> Mirror | None:
        """The mirror of the dispatch handed out last, if the host has not taken it yet."""
        mirrors = self._ledger.book.mirrors_on(host)
        waiting = [row for row in mirrors if row.record.phase is Phase.PENDING and row.dispatched_at]
        return max(waiting, key=lambda row: row.dispatched_at or 0, default=None)

    def _wish(self, mirror: Mirror) -> str | None:
        key = (mirror.hostname, mirror.rollout_id, DispatchKind.ROLLBACK)
        queued = self._ledger.book.get(QueuedDispatch, *key)
        return None if queued is None or queued.sent_at is None else queued.reason
