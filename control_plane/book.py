"""What the control plane knows: the rows, and how each entry of the log changes them.

`Book.apply` is the only place where a row changes. It is deterministic and never refuses: it runs when an entry is
written, and again for every entry when the database is rebuilt from its log, with the same outcome. Whoever must
decide whether an entry may be written at all does so before, by looking at the rows.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar, assert_never, cast

import attrs

from control_plane import mirrors
from control_plane.entries import (
    ArtifactAdopted,
    BootstrapReported,
    CertificateIssued,
    DispatchQueued,
    DispatchSent,
    DispatchWithdrawn,
    Entry,
    FactAccepted,
    FactRefused,
    HostChanged,
    HostsHeld,
    Issuance,
    MachineRegistered,
    QuarantineLifted,
    RollbackAsked,
    RolloutOpened,
    RolloutPruned,
    WaveBegan,
)
from control_plane.rows import (
    TABLES,
    Artifact,
    Certificate,
    Change,
    Drop,
    Host,
    Key,
    Mirror,
    Put,
    Quarantined,
    QueuedDispatch,
    Rollout,
    Row,
    UsedNonce,
    key_of,
)
from state_machine.events import DispatchKind
from state_machine.facts import Fact, RollbackComplete
from state_machine.values import Channel, HostName, Phase, RolloutId, WallMs
from wire.codec import decode_fact
from wire.errors import WireError

AnyRow = TypeVar("AnyRow", bound=Row)


class Book:
    """All rows by their keys, with the indexes that make every fact of a host cost the same in a fleet of any size."""

    def __init__(self) -> None:
        self._tables: dict[type[Any], dict[Key, Row]] = {row_type: {} for row_type in TABLES}
        self._by_rollout: dict[RolloutId, dict[HostName, Mirror]] = {}
        self._by_host: dict[HostName, dict[RolloutId, Mirror]] = {}
        self._acknowledged: dict[HostName, Mirror] = {}
        self._unconverged: dict[RolloutId, set[HostName]] = {}
        """Planned hosts of each rollout that have not converged."""

    def apply(self, entry: Entry, at: WallMs, fact: Fact | None = None) -> list[Change]:
        """Let `entry` have happened at `at`. Returns the rows that changed, in order.

        `fact` is the accepted fact, for who has read it already; without, it is read from the entry.
        """
        return list(self._consequences(entry, at, fact))

    def get(self, row_type: type[AnyRow], *key: str) -> AnyRow | None:
        """The row of this key, if there is one."""
        return cast(AnyRow | None, self._tables[row_type].get(key))

    def all(self, row_type: type[AnyRow]) -> Collection[AnyRow]:
        """Every row of a table, oldest first."""
        return cast(Collection[AnyRow], self._tables[row_type].values())

    def put(self, row: Row) -> Put:
        """Take over a row as it is."""
        self._tables[type(row)][key_of(row)] = row
        if isinstance(row, Mirror):
            self._by_rollout.setdefault(row.rollout_id, {})[row.hostname] = row
            self._note_convergence(row)
            self._by_host.setdefault(row.hostname, {})[row.rollout_id] = row
            if _acknowledged_at(row) >= _acknowledged_at(self._acknowledged.get(row.hostname)):
                self._acknowledged[row.hostname] = row
        return Put(row=row)

    def drop(self, row: Row) -> Drop:
        """Forget a row."""
        key = key_of(row)
        del self._tables[type(row)][key]
        if isinstance(row, Mirror):
            del self._by_rollout[row.rollout_id][row.hostname]
            self._unconverged[row.rollout_id].discard(row.hostname)
            del self._by_host[row.hostname][row.rollout_id]
            if self._acknowledged.get(row.hostname) is row:
                del self._acknowledged[row.hostname]
        return Drop(row_type=type(row), key=key)

    def _note_convergence(self, row: Mirror) -> None:
        waited_for = self._unconverged.setdefault(row.rollout_id, set())
        if row.planned and row.record.phase is not Phase.CONVERGED:
            waited_for.add(row.hostname)
        else:
            waited_for.discard(row.hostname)

    def current(self, channel: Channel) -> Rollout | None:
        """The newest opened rollout of a channel."""
        return next((row for row in self.all(Rollout) if row.channel == channel and row.is_current), None)

    def mirrors_of(self, rollout_id: RolloutId) -> Mapping[HostName, Mirror]:
        """Every host of a rollout."""
        return self._by_rollout.get(rollout_id, {})

    def mirrors_on(self, hostname: HostName) -> Collection[Mirror]:
        """Every rollout of a host that is kept."""
        return self._by_host.get(hostname, {}).values()

    def last_acknowledged(self) -> Collection[Mirror]:
        """Of each host that ever took a dispatch, the mirror of the one it took last."""
        return self._acknowledged.values()

    def acknowledged_by(self, hostname: HostName) -> Mirror | None:
        """The mirror of the dispatch this host took last."""
        return self._acknowledged.get(hostname)

    def _host(self, hostname: HostName) -> Host:
        return self.get(Host, hostname) or Host(hostname=hostname)

    def _consequences(self, entry: Entry, at: WallMs, fact: Fact | None) -> Iterator[Change]:
        match entry:
            case FactAccepted():
                yield from self._on_fact(entry, fact or _fact(entry), at)
            case FactRefused():
                yield from self._on_fact(entry, None, at)
            case ArtifactAdopted():
                yield self.put(_artifact(entry, at))
            case RolloutOpened():
                yield from self._on_rollout_opened(entry, at)
            case RolloutPruned():
                yield from self._on_pruned(entry, at)
            case DispatchQueued():
                yield from self._on_queued(entry, at)
            case DispatchSent():
                yield from self._on_sent(entry, at)
            case DispatchWithdrawn():
                yield from self._unqueue(entry.hostname, entry.rollout_id, entry.kind)
            case HostsHeld():
                pass  # the gates say it again whenever they are asked
            case WaveBegan():
                if (rollout := self.get(Rollout, entry.rollout_id)) is not None:
                    yield self.put(attrs.evolve(rollout, current_wave=entry.wave_index))
            case RollbackAsked():
                if (rollout := self.get(Rollout, entry.rollout_id)) is not None:
                    yield self.put(attrs.evolve(rollout, halted=f"{entry.by} asked for a rollback: {entry.reason}"))
            case QuarantineLifted():
                yield from self._on_lifted(entry)
            case MachineRegistered() | HostChanged() | BootstrapReported():
                yield self.put(_host_after(self._host(entry.hostname), entry, at))
            case CertificateIssued():
                yield from self._on_certificate(entry, at)
            case _:
                assert_never(entry)

    # Facts

    def _on_fact(self, entry: FactAccepted | FactRefused, fact: Fact | None, at: WallMs) -> Iterator[Change]:
        rollout, mirror = self.place_of(entry.rollout_id, entry.hostname, at)
        if self.get(Rollout, rollout.rollout_id) is None:
            yield self.put(rollout)
        if fact is None:
            yield self.put(attrs.evolve(mirrors.passed_over(mirror, entry.seq), changed_at=at))
            return
        verified = isinstance(entry, FactAccepted) and entry.verified
        mirror = mirrors.after(mirror, fact, at, verified=verified)
        yield self.put(mirror)
        yield from self._unqueue_answered(mirror, fact)
        if isinstance(fact, RollbackComplete) and mirror.record.phase is Phase.REVERTED:
            yield self.put(_quarantined(mirror, at))
        if mirror.record.phase is Phase.CONVERGED:
            yield from self._on_converged(rollout, at)

    def place_of(self, rollout_id: RolloutId, hostname: HostName, at: WallMs) -> tuple[Rollout, Mirror]:
        """The rollout and mirror a host's fact belongs to, or what they would be made as: without a manifest."""
        rollout = self.get(Rollout, rollout_id) or mirrors.rollout_without_manifest(rollout_id, at)
        mirror = self.get(Mirror, rollout_id, hostname) or mirrors.unplanned(rollout, hostname, at)
        return rollout, mirror

    def _unqueue_answered(self, mirror: Mirror, fact: Fact) -> Iterator[Change]:
        for kind in DispatchKind:
            if mirrors.answers(kind, mirror, fact):
                yield from self._unqueue(mirror.hostname, mirror.rollout_id, kind)

    def _on_converged(self, rollout: Rollout, at: WallMs) -> Iterator[Change]:
        if rollout.terminal_at is not None or rollout.manifest_digest is None:
            return
        if not self._unconverged.get(rollout.rollout_id):
            yield self.put(attrs.evolve(rollout, terminal_at=at))

    # Rollouts and dispatches

    def _on_rollout_opened(self, entry: RolloutOpened, at: WallMs) -> Iterator[Change]:
        before = self.current(entry.channel)
        if before is not None:
            yield self.put(attrs.evolve(before, superseded_at=at, superseded_by=entry.rollout_id))
            for queued in [row for row in self.all(QueuedDispatch) if row.rollout_id == before.rollout_id]:
                yield self.drop(queued)
        yield self.put(
            Rollout(
                rollout_id=entry.rollout_id,
                channel=entry.channel,
                channel_ref=entry.channel_ref,
                opened_at=at,
                manifest_digest=entry.manifest_digest,
                fleet_digest=entry.fleet_digest,
                same_as=entry.same_as,
                terminal_at=at if entry.same_as is not None else None,
            )
        )
        for host in entry.hosts if entry.same_as is None else ():
            known = self.get(Mirror, entry.rollout_id, host.hostname)
            yield self.put(mirrors.planned(entry, host, known, at))

    def _on_pruned(self, entry: RolloutPruned, at: WallMs) -> Iterator[Change]:
        for mirror in list(self.mirrors_of(entry.rollout_id).values()):
            yield self.drop(mirror)
        if (rollout := self.get(Rollout, entry.rollout_id)) is not None:
            yield self.put(attrs.evolve(rollout, pruned_at=at))

    def _on_queued(self, entry: DispatchQueued, at: WallMs) -> Iterator[Change]:
        yield self.put(
            QueuedDispatch(
                hostname=entry.hostname,
                rollout_id=entry.rollout_id,
                kind=entry.kind,
                target_closure=entry.target_closure,
                soak_secs=entry.soak_secs,
                reason=entry.reason,
                enqueued_at=at,
            )
        )

    def _on_sent(self, entry: DispatchSent, at: WallMs) -> Iterator[Change]:
        queued = self.get(QueuedDispatch, entry.hostname, entry.rollout_id, entry.kind)
        if queued is not None:
            yield self.put(attrs.evolve(queued, sent_at=queued.sent_at or at))
        mirror = self.get(Mirror, entry.rollout_id, entry.hostname)
        if mirror is not None and mirror.dispatched_at is None and entry.kind is DispatchKind.DISPATCH:
            yield self.put(attrs.evolve(mirror, dispatched_at=at))

    def _unqueue(self, hostname: HostName, rollout_id: RolloutId, kind: DispatchKind) -> Iterator[Change]:
        if (queued := self.get(QueuedDispatch, hostname, rollout_id, kind)) is not None:
            yield self.drop(queued)

    # Operators and hosts

    def _on_lifted(self, entry: QuarantineLifted) -> Iterator[Change]:
        for row in list(self.all(Quarantined)):
            if (
                entry.channel in (None, row.channel)
                and entry.closure in (None, row.closure)
                and entry.hostname in (None, row.hostname)
            ):
                yield self.drop(row)

    def _on_certificate(self, entry: CertificateIssued, at: WallMs) -> Iterator[Change]:
        yield self.put(
            Certificate(
                serial=entry.serial,
                hostname=entry.hostname,
                issued_at=at,
                not_before=entry.not_before,
                not_after=entry.not_after,
            )
        )
        if entry.nonce is not None:
            yield self.put(UsedNonce(nonce=entry.nonce, hostname=entry.hostname, used_at=at))
        host = attrs.evolve(
            self._host(entry.hostname),
            certificate_not_before=entry.not_before,
            certificate_not_after=entry.not_after,
            trouble=None,
        )
        if entry.why is Issuance.ENROLL:
            host = attrs.evolve(host, enrolled_at=at)
        yield self.put(host)


def _fact(entry: FactAccepted) -> Fact | None:
    try:
        return decode_fact(json.loads(entry.event))
    except WireError:
        # Taken by a version that knew this kind. Its number is used up, its bytes stay in the log.
        return None


def _acknowledged_at(mirror: Mirror | None) -> int:
    if mirror is None or mirror.record.dispatch_acked_at is None:
        return -1
    return mirror.record.dispatch_acked_at


def _artifact(entry: ArtifactAdopted, at: WallMs) -> Artifact:
    return Artifact(
        kind=entry.kind,
        channel=entry.channel or "",
        digest=entry.digest,
        signed_at=entry.signed_at,
        key_id=entry.key_id,
        adopted_at=at,
        rollout_id=entry.rollout_id,
    )


def _quarantined(mirror: Mirror, at: WallMs) -> Quarantined:
    return Quarantined(
        channel=mirror.channel,
        closure=mirror.record.target_closure,
        hostname=mirror.hostname,
        rollout_id=mirror.rollout_id,
        since=at,
    )


def _host_after(host: Host, entry: MachineRegistered | HostChanged | BootstrapReported, at: WallMs) -> Host:
    match entry:
        case MachineRegistered():
            return attrs.evolve(host, registered_at=at, tags=entry.tags or host.tags)
        case BootstrapReported():
            return attrs.evolve(host, trouble=entry.event)
        case HostChanged():
            return attrs.evolve(
                host,
                boot_id=entry.boot_id,
                current_closure=entry.current_closure,
                agent_version=entry.agent_version,
                uptime_secs=entry.uptime_secs,
                health=entry.health,
                waiting_on=entry.waiting_on,
                drift_from=entry.expected,
                seen_at=at,
                source=entry.source,
                tags=entry.tags or host.tags,
            )
        case _:
            assert_never(entry)
