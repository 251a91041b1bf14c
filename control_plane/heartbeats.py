"""Answer heartbeats: say truthfully what is known of the host, and ask for the facts that are missing.

Nothing is concluded from a heartbeat about a rollout: only the host's own facts move its mirror. What it says of
itself is kept when it differs from the last time, or when that is an hour ago.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Final

import attrs
import trio

from control_plane.entries import HostChanged
from control_plane.ledger import Ledger
from control_plane.presence import SILENCE_S
from control_plane.rows import Host, Mirror, Rollout
from state_machine.lifecycle import OPEN
from state_machine.values import CLOCK_SLACK_MS, Closure, HostName, Phase, RolloutId, WallMs
from wire.messages import HeartbeatReply, HeartbeatRequest, HostRolloutSnapshot, ReplayFrom

KEPT_FOR_MS: Final = 3_600_000
TAGS_KEPT: Final = 64
REPLAY_LIMIT: Final = 32
"""How many rollouts one reply asks for; the next heartbeat asks for the rest."""


@attrs.frozen(kw_only=True)
class Answer:
    """A reply with the header that names the first rollout to replay."""

    reply: HeartbeatReply
    replay_from: int | None


class Heartbeats:
    """What hosts say of themselves."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.uptime_secs: dict[HostName, int] = {}
        self.drifts: Counter[str] = Counter()
        self.received = 0
        self._since = trio.current_time()
        self._heard: dict[HostName, float] = {}

    def answer(self, heartbeat: HeartbeatRequest) -> Answer:
        """Take note, and answer.

        Raises:
            StoreUnavailableError: what has changed cannot be recorded.
        """
        now = self._ledger.now()
        self.received += 1
        self._heard[heartbeat.hostname] = trio.current_time()
        if abs(heartbeat.at - now) > CLOCK_SLACK_MS:
            self.drifts["clock"] += 1
        self.note(_said(heartbeat), now)
        replay = tuple(self._missing(heartbeat))
        snapshots = () if heartbeat.rollout_id is not None else tuple(self._snapshots(heartbeat.hostname))
        reply = HeartbeatReply(received_at=now, bootstrap_rollouts=snapshots, replay=replay)
        return Answer(reply=reply, replay_from=_header(heartbeat.rollout_id, replay))

    def speaks(self, hostname: HostName) -> bool:
        """Heartbeats come from this host: it was heard lately, or before a start of ours that was not long ago."""
        if (heard := self._heard.get(hostname)) is not None:
            return trio.current_time() - heard <= SILENCE_S
        known = self._ledger.book.get(Host, hostname)
        spoke = known is not None and known.seen_at is not None and known.source is None
        return spoke and trio.current_time() - self._since <= SILENCE_S

    def note(self, said: HostChanged, now: WallMs) -> None:
        """Keep what a host says of itself, if it is something else than before.

        Raises:
            StoreUnavailableError: it cannot be recorded.
        """
        if said.uptime_secs is not None:
            self.uptime_secs[said.hostname] = said.uptime_secs
        said = attrs.evolve(said, expected=self._drift_from(said))
        known = self._ledger.book.get(Host, said.hostname)
        if known is not None and _same(known, said) and now - (known.seen_at or 0) < KEPT_FOR_MS:
            return
        if said.expected is not None and (known is None or known.drift_from != said.expected):
            self.drifts["closure"] += 1
        self._ledger.record(said, at=now)

    def _drift_from(self, said: HostChanged) -> Closure | None:
        """What should run on the host by its own facts, if it runs something else."""
        if said.current_closure is None:
            return None
        latest = self._ledger.book.acknowledged_by(said.hostname)
        if latest is None or latest.record.phase not in (Phase.SOAKING, Phase.CONVERGED, Phase.REVERTED):
            return None
        expected = latest.record.current_closure if latest.record.observed_drift is None else _target(latest)
        return expected if expected is not None and expected != said.current_closure else None

    def _missing(self, heartbeat: HeartbeatRequest) -> Iterator[ReplayFrom]:
        """The rollouts of which the host has told more than is here, and those of which it knows less than it told."""
        book, asked = self._ledger.book, 0
        for rollout_id, last in heartbeat.last_event_seq_by_rollout.items():
            rollout, mirror = book.get(Rollout, rollout_id), book.get(Mirror, rollout_id, heartbeat.hostname)
            have = 0 if mirror is None else mirror.record.last_seq
            if (rollout is not None and rollout.pruned_at is not None) or last == have:
                continue
            if last < have:
                self.drifts["history"] += 1
            elif asked < REPLAY_LIMIT:
                asked += 1
                yield ReplayFrom(rollout_id=rollout_id, from_seq=have + 1)

    def _snapshots(self, hostname: HostName) -> Iterator[HostRolloutSnapshot]:
        """Every record of the host that is still open, as its facts have it."""
        book = self._ledger.book
        for rollout in book.all(Rollout):
            mirror = book.get(Mirror, rollout.rollout_id, hostname)
            if mirror is None or mirror.record.phase not in OPEN or not mirror.record.target_closure:
                continue
            if rollout.superseded_at is not None and mirror.record.phase is Phase.PENDING:
                continue
            yield _snapshot(mirror)


def _said(heartbeat: HeartbeatRequest) -> HostChanged:
    return HostChanged(
        hostname=heartbeat.hostname,
        boot_id=heartbeat.boot_id,
        current_closure=heartbeat.current_closure,
        agent_version=heartbeat.agent_version,
        uptime_secs=heartbeat.uptime_secs,
        health=dict(heartbeat.health),
        waiting_on=heartbeat.waiting_on,
        tags=heartbeat.tags[:TAGS_KEPT],
    )


def _snapshot(mirror: Mirror) -> HostRolloutSnapshot:
    record = mirror.record
    return HostRolloutSnapshot(
        rollout_id=record.rollout_id,
        hostname=record.hostname,
        channel=mirror.channel,
        state=record.phase,
        target_closure=record.target_closure,
        dispatched_at=mirror.dispatched_at or mirror.opened_at,
        last_event_seq=record.last_seq,
        current_closure_at_dispatch=record.closure_at_dispatch,
        current_closure=record.current_closure,
        dispatch_acked_at=record.dispatch_acked_at,
        activation_started_at=record.activation_started_at,
        activation_completed_at=record.activation_completed_at,
    )


def _target(mirror: Mirror) -> Closure | None:
    """What the host should run although its own last fact says that it does not."""
    return mirror.record.closure_at_dispatch if mirror.record.phase is Phase.REVERTED else mirror.record.target_closure


def _same(known: Host, said: HostChanged) -> bool:
    return (
        known.boot_id == said.boot_id
        and known.current_closure == said.current_closure
        and known.agent_version == said.agent_version
        and dict(known.health) == dict(said.health)
        and known.waiting_on == said.waiting_on
        and known.drift_from == said.expected
        and known.source == said.source
        and (not said.tags or known.tags == said.tags)
    )


def _header(asked_about: RolloutId | None, replay: tuple[ReplayFrom, ...]) -> int | None:
    """The header names no rollout: it speaks of the one in the request (protocol section 3.6), else of the first."""
    chosen = [item for item in replay if asked_about in (None, item.rollout_id)]
    return chosen[0].from_seq if chosen else None
