"""The rows that are derived from the log: what the control plane knows now. All are frozen; `book` replaces them.

`TABLES` says which table holds which class and by what it is found. A row's document is everything in it.
"""

from collections.abc import Mapping
from typing import Final

import attrs

from control_plane.entries import ArtifactKind
from state_machine.events import DispatchKind
from state_machine.lifecycle import HostRollout
from state_machine.values import Channel, Closure, HostName, RolloutId, Source, WallMs


@attrs.frozen(kw_only=True)
class Rollout:
    """A rollout. One that only hosts speak of, because its manifest is gone, has no digests and is never planned."""

    rollout_id: RolloutId
    channel: Channel
    channel_ref: str
    opened_at: WallMs
    manifest_digest: str | None = None
    fleet_digest: str | None = None
    same_as: RolloutId | None = None
    current_wave: int = 0
    superseded_at: WallMs | None = None
    superseded_by: RolloutId | None = None
    terminal_at: WallMs | None = None
    pruned_at: WallMs | None = None
    """Its mirrors were dropped for age; its row stays, so that nobody is asked for its facts again."""
    halted: str | None = None
    """Why nobody else is dispatched in it: an operator asked for a rollback."""

    @property
    def is_current(self) -> bool:
        """It has a manifest and no newer rollout of its channel has been opened."""
        return self.superseded_at is None and self.manifest_digest is not None


@attrs.frozen(kw_only=True)
class Mirror:
    """One host in one rollout. `record` is `lifecycle.fold` over the facts the host sent, as on the host itself.

    `soak_due_at` of the record stays empty here: the control plane's own deadlines change when its database is lost,
    and a fact that was once legal must be legal again when it is replayed.
    """

    record: HostRollout
    channel: Channel
    planned: bool
    """True when a manifest names the host in this rollout; only then may it be dispatched."""
    opened_at: WallMs
    wave_index: int = 0
    soak_ms: int = 0
    dispatched_at: WallMs | None = None
    changed_at: WallMs | None = None
    refused_at: WallMs | None = None
    terminal_at: WallMs | None = None
    verified_facts: int = 0
    failing_controls: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    """Enforced controls that the latest result of each evidence probe found failing."""

    @property
    def rollout_id(self) -> RolloutId:
        """The rollout."""
        return self.record.rollout_id

    @property
    def hostname(self) -> HostName:
        """The host."""
        return self.record.hostname


@attrs.frozen(kw_only=True)
class QueuedDispatch:
    """A dispatch that its host has neither acknowledged nor rejected."""

    hostname: HostName
    rollout_id: RolloutId
    kind: DispatchKind
    target_closure: Closure
    soak_secs: int
    enqueued_at: WallMs
    reason: str = ""
    sent_at: WallMs | None = None


@attrs.frozen(kw_only=True)
class Host:
    """What hosts say of themselves between rollouts, and what certificates they hold."""

    hostname: HostName
    registered_at: WallMs | None = None
    enrolled_at: WallMs | None = None
    certificate_not_before: WallMs | None = None
    certificate_not_after: WallMs | None = None
    boot_id: str | None = None
    current_closure: Closure | None = None
    agent_version: str | None = None
    uptime_secs: int | None = None
    health: Mapping[str, int] = attrs.field(factory=dict)
    waiting_on: str | None = None
    drift_from: Closure | None = None
    """What should run, while something else does."""
    seen_at: WallMs | None = None
    trouble: str | None = None
    """The last reason it gave for not being able to enrol."""
    source: Source | None = None
    """The protocol that it spoke last; None is the fleet's own."""
    tags: tuple[str, ...] = ()
    """What it calls itself; what the fleet calls it decides."""


@attrs.frozen(kw_only=True)
class Certificate:
    """A certificate that was issued here."""

    serial: str
    hostname: HostName
    issued_at: WallMs
    not_before: WallMs
    not_after: WallMs


@attrs.frozen(kw_only=True)
class UsedNonce:
    """An enrolment nonce that has served."""

    nonce: str
    hostname: HostName
    used_at: WallMs


@attrs.frozen(kw_only=True)
class Quarantined:
    """A closure that this host rolled back, and that nobody on the channel is sent until an operator lifts it."""

    channel: Channel
    closure: Closure
    hostname: HostName
    rollout_id: RolloutId
    since: WallMs


@attrs.frozen(kw_only=True)
class Artifact:
    """The newest adopted file of its kind; `channel` is empty except for manifests. Older ones are refused."""

    kind: ArtifactKind
    channel: str
    digest: str
    signed_at: WallMs
    key_id: str
    adopted_at: WallMs
    rollout_id: RolloutId | None = None


Row = Rollout | Mirror | QueuedDispatch | Host | Certificate | UsedNonce | Quarantined | Artifact

Key = tuple[str, ...]


@attrs.frozen(kw_only=True)
class Table:
    """Where a class of rows is kept, and the columns that find one."""

    name: str
    keys: tuple[str, ...]


TABLES: Final[Mapping[type[Row], Table]] = {
    Rollout: Table(name="rollouts", keys=("rollout_id",)),
    Mirror: Table(name="mirrors", keys=("rollout_id", "hostname")),
    QueuedDispatch: Table(name="dispatches", keys=("hostname", "rollout_id", "kind")),
    Host: Table(name="hosts", keys=("hostname",)),
    Certificate: Table(name="certificates", keys=("serial",)),
    UsedNonce: Table(name="nonces", keys=("nonce",)),
    Quarantined: Table(name="quarantine", keys=("channel", "closure", "hostname")),
    Artifact: Table(name="artifacts", keys=("kind", "channel")),
}


def key_of(row: Row) -> Key:
    """What finds `row` in its table."""
    return tuple(str(getattr(row, column)) for column in TABLES[type(row)].keys)


@attrs.frozen(kw_only=True)
class Put:
    """A row is new or has changed."""

    row: Row


@attrs.frozen(kw_only=True)
class Drop:
    """A row is no more."""

    row_type: type[Row]
    key: Key


Change = Put | Drop
