"""What operators are shown, worked out from the book, the shelf and the plan when they ask."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from control_plane.entries import (
    ArtifactAdopted,
    DispatchQueued,
    DispatchSent,
    DispatchWithdrawn,
    Entry,
    FactAccepted,
    FactRefused,
    HostsHeld,
    RollbackAsked,
    RolloutOpened,
    RolloutPruned,
    WaveBegan,
)
from control_plane.heartbeats import Heartbeats
from control_plane.ledger import Ledger
from control_plane.planner_loop import PlannerLoop
from control_plane.rows import Host, Mirror, Quarantined, Rollout
from control_plane.shelf import Shelf
from state_machine.intent import FleetHost
from state_machine.lifecycle import SETTLED, TERMINAL
from state_machine.planner import RolloutState
from state_machine.values import (
    Basis,
    Channel,
    Closure,
    HostName,
    Phase,
    ProbeMode,
    ProbeStatus,
    RolloutId,
    Source,
    WallMs,
)
from state_machine.world import survey
from wire.json_value import JsonValue
from wire.listings import (
    ChannelView,
    Deferral,
    DeferralList,
    HostList,
    HostRow,
    LogKind,
    LogRow,
    RolloutEvents,
    RolloutHostRow,
    RolloutHosts,
    RolloutLifecycle,
    RolloutList,
    RolloutRow,
)

PRUNED: Final = "Pruned"

BASES: Final[Mapping[Source, Basis]] = {Source.FLEET: Basis.SIGNED_MANIFEST, Source.LEGACY: Basis.MUTUAL_TLS}
"""What hosts that speak with a control plane rest their trust on."""

_LOG_KINDS: Final[Mapping[type[Entry], LogKind]] = {
    FactAccepted: LogKind.AGENT_EVENT,
    FactRefused: LogKind.VERIFY_OUTCOME,
    ArtifactAdopted: LogKind.MANIFEST_POLL,
    RolloutOpened: LogKind.ROLLOUT_EVENT,
    RolloutPruned: LogKind.ROLLOUT_EVENT,
    RollbackAsked: LogKind.ROLLOUT_EVENT,
    WaveBegan: LogKind.PLAN_ACTION,
    DispatchQueued: LogKind.PLAN_ACTION,
    DispatchSent: LogKind.EFFECT,
    DispatchWithdrawn: LogKind.EFFECT,
    HostsHeld: LogKind.GATE_DECISION,
}
_KIND_BY_NAME: Final = {kind.__name__: log_kind for kind, log_kind in _LOG_KINDS.items()}


class Views:
    """The answers to operators' questions."""

    def __init__(self, *, ledger: Ledger, shelf: Shelf, planner: PlannerLoop, heartbeats: Heartbeats) -> None:
        self._ledger, self._shelf, self._planner, self._heartbeats = ledger, shelf, planner, heartbeats

    # Hosts

    def hosts(self) -> HostList:
        """Every host that is declared, or was ever heard of, by name."""
        fleet = self._shelf.fleet
        declared = {} if fleet is None else fleet.value.hosts
        known = {row.hostname: row for row in self._ledger.book.all(Host)}
        names = sorted({*declared, *known})
        return HostList(hosts=tuple(self._host(name, declared.get(name), known.get(name)) for name in names))

    def _host(self, name: HostName, declared: FleetHost | None, known: Host | None) -> HostRow:
        known = known or Host(hostname=name)
        mirror = self._concerning(name, declared)
        return HostRow(
            hostname=name,
            channel=declared.channel if declared is not None else Channel(""),
            declared_closure_hash=None if declared is None else declared.closure_hash,
            current_closure_hash=known.current_closure or (None if mirror is None else mirror.record.current_closure),
            last_checkin_at=self._planner.presence.last_seen(name) or known.seen_at,
            last_uptime_secs=self._heartbeats.uptime_secs.get(name, known.uptime_secs),
            quarantined_closure=self._quarantined(name),
            pin=None if declared is None else declared.pin,
            agent_version=known.agent_version,
            health=known.health,
            waiting_on=known.waiting_on,
            **({} if mirror is None else _of_rollout(mirror)),
            failure=self._failure(mirror, known),
            **self._spoken(known),
            tags=known.tags if declared is None else declared.tags,
        )

    def _spoken(self, known: Host) -> dict[str, Any]:
        """In which protocol the host was last heard, and what that makes of the trust in its targets."""
        if known.seen_at is None and self._planner.presence.last_seen(known.hostname) is None:
            return {}
        source = known.source or Source.FLEET
        return {"source": source, "basis": BASES[source]}

    def _concerning(self, name: HostName, declared: FleetHost | None) -> Mirror | None:
        """The mirror in the current rollout of the host's channel, or of what it took last."""
        book = self._ledger.book
        current = None if declared is None else book.current(declared.channel)
        if current is not None:
            mirror = book.get(Mirror, current.same_as or current.rollout_id, name)
            if mirror is not None:
                return mirror
        return book.acknowledged_by(name)

    def _quarantined(self, name: HostName) -> Closure | None:
        rows = [row for row in self._ledger.book.all(Quarantined) if row.hostname == name]
        return max(rows, key=lambda row: row.since).closure if rows else None

    def _failure(self, mirror: Mirror | None, known: Host) -> str | None:
        if mirror is not None and (mirror.record.failure or mirror.record.refusal):
            return mirror.record.failure or mirror.record.refusal
        if known.drift_from is not None:
            return f"it runs {known.current_closure}, not {known.drift_from}"
        return known.trouble

    # Rollouts

    def rollouts(self) -> RolloutList:
        """Every rollout that is kept, newest first."""
        kept = [row for row in self._ledger.book.all(Rollout) if row.pruned_at is None]
        self._planner.current()
        return RolloutList(
            rollouts=tuple(
                RolloutRow(
                    rollout_id=row.rollout_id,
                    channel=row.channel,
                    current_wave=row.current_wave,
                    created_at=row.opened_at,
                    host_states={name: mirror.record.phase for name, mirror in sorted(self._mirrors(row).items())},
                )
                for row in sorted(kept, key=lambda row: (-row.opened_at, row.rollout_id))
            )
        )

    def lifecycle(self, rollout_id: RolloutId) -> RolloutLifecycle | None:
        """Where a whole rollout stands; None for one that was never heard of."""
        rollout = self._ledger.book.get(Rollout, rollout_id)
        if rollout is None:
            return None
        current = self._ledger.book.current(rollout.channel)
        overtaken_by = rollout.superseded_by
        if rollout.manifest_digest is None and current is not None:
            overtaken_by = current.rollout_id
        return RolloutLifecycle(
            rollout_id=rollout_id,
            state=self._state(rollout, overtaken=overtaken_by is not None),
            superseded_at=rollout.superseded_at,
            superseded_by=overtaken_by,
            terminal_at=rollout.terminal_at,
        )

    def hosts_of(self, rollout_id: RolloutId) -> RolloutHosts | None:
        """Every host of a rollout; None for one that was never heard of."""
        rollout = self._ledger.book.get(Rollout, rollout_id)
        if rollout is None:
            return None
        held = {(held.rollout_id, held.host): held for held in self._planner.current().held}
        rows = []
        for name, mirror in sorted(self._mirrors(rollout).items()):
            block = held.get((rollout_id, name))
            rows.append(
                RolloutHostRow(
                    host=name,
                    channel=rollout.channel,
                    wave=mirror.wave_index,
                    target_closure_hash=mirror.record.target_closure,
                    target_channel_ref=rollout.channel_ref,
                    dispatched_at=mirror.dispatched_at,
                    terminal_state=mirror.record.phase if mirror.record.phase in TERMINAL else None,
                    terminal_at=mirror.terminal_at,
                    state=mirror.record.phase,
                    held_by=None if block is None else f"{block.gate}: {block.why}",
                    last_event_seq=mirror.record.last_seq,
                )
            )
        return RolloutHosts(rollout_id=rollout_id, hosts=tuple(rows))

    async def events_of(self, rollout_id: RolloutId, limit: int) -> RolloutEvents | None:
        """The newest `limit` entries of a rollout's log, oldest first; None for a rollout never heard of."""
        if self._ledger.book.get(Rollout, rollout_id) is None:
            return None
        await self._ledger.flushed()
        rows = await self._ledger.store.read(lambda reader: _log_rows(reader, rollout_id, limit))
        return RolloutEvents(rollout_id=rollout_id, events=tuple(rows))

    def _mirrors(self, rollout: Rollout) -> Mapping[HostName, Mirror]:
        return self._ledger.book.mirrors_of(rollout.same_as or rollout.rollout_id)

    def _state(self, rollout: Rollout, *, overtaken: bool) -> str:
        if rollout.pruned_at is not None:
            return PRUNED
        if overtaken:
            return RolloutState.SUPERSEDED
        if rollout.same_as is not None:
            return RolloutState.TERMINAL
        summaries = {summary.rollout_id: summary.state for summary in self._planner.current().rollouts}
        return summaries.get(rollout.rollout_id, RolloutState.ACTIVE)

    # Channels

    def channel(self, name: Channel) -> ChannelView | None:
        """What the fleet in force declares of a channel."""
        fleet = self._shelf.fleet
        declared = None if fleet is None else fleet.value.channels.get(name)
        if fleet is None or declared is None:
            return None
        return ChannelView(
            name=name,
            declared_ci_commit=fleet.value.meta.ci_commit,
            signed_at=fleet.proven.signed_at,
            freshness_window_minutes=declared.freshness_window,
        )

    def deferrals(self) -> DeferralList:
        """Channels whose current rollout waits for that of another."""
        given = self._planner.given()
        if given is None:
            return DeferralList(deferrals=())
        world = survey(given)
        return DeferralList(
            deferrals=tuple(
                Deferral(
                    channel=edge.gated,
                    target_ref=manifest.channel_ref,
                    blocked_by=edge.gates,
                    reason=edge.reason or world.unfinished[edge.gates],
                )
                for edge in given.fleet.channel_edges
                if edge.gates in world.unfinished
                and (manifest := given.manifests.get(edge.gated)) is not None
                and edge.gated in world.unfinished
            )
        )


def _of_rollout(mirror: Mirror) -> dict[str, Any]:
    record = mirror.record
    settled = record.phase in (*SETTLED, Phase.REVERTED, Phase.FAILED)
    failing = [probe for probe in record.probes.values() if probe.mode is ProbeMode.ENFORCE]
    return {
        "pending_closure_hash": None if record.phase is Phase.CONVERGED or settled else record.target_closure,
        "last_rollout_id": record.rollout_id,
        "converged": record.phase is Phase.CONVERGED,
        "outstanding_compliance_failures": sum(map(len, mirror.failing_controls.values())),
        "outstanding_health_failures": sum(probe.status is ProbeStatus.FAIL for probe in failing),
        "verified_event_count": mirror.verified_facts,
        "rollout_state": record.phase,
        "pending_reboot": record.phase is Phase.DEFERRED,
    }


def _log_rows(reader: sqlite3.Connection, rollout_id: RolloutId, limit: int) -> list[LogRow]:
    rows = reader.execute(
        "SELECT id, at_ms, kind, hostname, body FROM log WHERE rollout_id = ? ORDER BY id DESC LIMIT ?",
        (rollout_id, limit),
    ).fetchall()
    return [
        LogRow(
            seq=number,
            ts=WallMs(at_ms),
            kind=_KIND_BY_NAME.get(kind, LogKind.ROLLOUT_EVENT),
            host=None if hostname is None else HostName(hostname),
            payload=_payload(kind, body),
        )
        for number, at_ms, kind, hostname, body in reversed(rows)
    ]


def _payload(kind: str, body: str) -> JsonValue:
    """An agent's own event as it sent it; every other entry with its name."""
    try:
        document = json.loads(body)
        if kind == FactAccepted.__name__:
            return _event(document)
        if kind == FactRefused.__name__:
            document["event"] = json.loads(document["event"])
    except (ValueError, KeyError) as error:
        return {"_parse_error": str(error), "_raw": body}
    return {"entry": kind, **document}


def _event(document: dict[str, Any]) -> JsonValue:
    event: JsonValue = json.loads(document["event"])
    return event


def only_of(listing: Any, member: str, host: HostName) -> Any:
    """A listing with the rows of one host alone."""
    rows: Iterator[Any] = (row for row in getattr(listing, member) if _host_of(row) == host)
    return attrs.evolve(listing, **{member: tuple(rows)})


def _host_of(row: Any) -> Any:
    return row.hostname if isinstance(row, HostRow) else row.host
