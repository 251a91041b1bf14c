"""Everything that can happen to a control plane, as entries of its log. The log is the database; the rest is derived.

An entry says what happened, never what follows from it: `book.apply` works that out, the same way when the entry is
written and when the database is rebuilt from its log. Entries are stored for ever, so a field must never be renamed or
removed, and one added later needs a default.
"""

import enum
from collections.abc import Mapping
from typing import Final

import attrs

from state_machine.events import DispatchKind
from state_machine.values import Channel, Closure, HostName, RolloutId, Source, WallMs
from wire.json_value import JsonValue


@attrs.frozen(kw_only=True)
class FactAccepted:
    """A host's fact became part of its mirror.

    `event` is the canonical JSON of what the host sent, which `signature` covers; `verified` tells whether that
    signature was checked against the declared host key (it never is accepted with a wrong one). `concluded_from` names
    the protocol of a host that has no facts: then this control plane made it of what the host reported.
    """

    hostname: HostName
    rollout_id: RolloutId
    seq: int
    event: str
    signature: str | None = None
    prev: str | None = None
    verified: bool = False
    concluded_from: Source | None = None


@attrs.frozen(kw_only=True)
class FactRefused:
    """A host's fact was refused for good and its number is used up: the host goes on with the next one."""

    hostname: HostName
    rollout_id: RolloutId
    seq: int
    event: str
    status: int
    reason: str
    detail: str


class ArtifactKind(enum.StrEnum):
    """The signed files a control plane works from."""

    FLEET = "fleet"
    ROLLOUT = "rollout"
    REVOCATIONS = "revocations"
    BOOTSTRAP_NONCES = "bootstrap-nonces"


@attrs.frozen(kw_only=True)
class ArtifactAdopted:
    """A signed file was verified and is what counts from now on. `channel` and `rollout_id` are those of a manifest."""

    kind: ArtifactKind
    digest: str
    signed_at: WallMs
    key_id: str
    channel: Channel | None = None
    rollout_id: RolloutId | None = None


@attrs.frozen(kw_only=True)
class PlannedHost:
    """One host of a rollout as its manifest and the anchored fleet have it."""

    hostname: HostName
    wave_index: int
    target_closure: Closure
    soak_ms: int


@attrs.frozen(kw_only=True)
class RolloutOpened:
    """A manifest with an unseen id was adopted. It supersedes the channel's rollout before it.

    `same_as` names the rollout that has already brought every host to these very closures: then nobody has anything
    to do, and no host is made to soak and probe again for a commit that changed nothing.
    """

    rollout_id: RolloutId
    channel: Channel
    channel_ref: str
    manifest_digest: str
    fleet_digest: str
    hosts: tuple[PlannedHost, ...]
    same_as: RolloutId | None = None


@attrs.frozen(kw_only=True)
class RolloutPruned:
    """A superseded rollout is older than the retention: its mirrors go, its entries in the log stay."""

    rollout_id: RolloutId


@attrs.frozen(kw_only=True)
class DispatchQueued:
    """The planner lets a host go ahead, or an operator wants it back on its old system."""

    hostname: HostName
    rollout_id: RolloutId
    kind: DispatchKind
    target_closure: Closure
    soak_secs: int
    reason: str = ""


@attrs.frozen(kw_only=True)
class DispatchSent:
    """A queued dispatch was handed to its host for the first time. It stays queued until the host's fact says more."""

    hostname: HostName
    rollout_id: RolloutId
    kind: DispatchKind


@attrs.frozen(kw_only=True)
class DispatchWithdrawn:
    """A queued dispatch is no longer wanted."""

    hostname: HostName
    rollout_id: RolloutId
    kind: DispatchKind
    why: str


@attrs.frozen(kw_only=True)
class HostsHeld:
    """The gate that holds these hosts back changed. `why` is the sentence of the first of them."""

    rollout_id: RolloutId
    gate: str
    hosts: tuple[HostName, ...]
    why: str


@attrs.frozen(kw_only=True)
class WaveBegan:
    """The rollout has come to this wave."""

    rollout_id: RolloutId
    wave_index: int


@attrs.frozen(kw_only=True)
class RollbackAsked:
    """An operator wants hosts of a rollout back on their old systems; nobody else is dispatched in it from now on."""

    rollout_id: RolloutId
    hosts: tuple[HostName, ...]
    reason: str
    by: str


@attrs.frozen(kw_only=True)
class QuarantineLifted:
    """An operator allows closures again that hosts rolled back. None means any."""

    by: str
    channel: Channel | None = None
    closure: Closure | None = None
    hostname: HostName | None = None


@attrs.frozen(kw_only=True)
class MachineRegistered:
    """An operator announced a machine, or one of the first generation reported for the first time.

    It may enrol only once the signed fleet declares it. `tags` are what it is called until the fleet says.
    """

    hostname: HostName
    by: str
    note: str = ""
    tags: tuple[str, ...] = ()


class Issuance(enum.StrEnum):
    """Why a certificate was issued."""

    ENROLL = "enroll"
    RENEW = "renew"


@attrs.frozen(kw_only=True)
class CertificateIssued:
    """A host got a certificate. An enrolment's `nonce` is burnt by this very entry, so never without a certificate."""

    hostname: HostName
    serial: str
    not_before: WallMs
    not_after: WallMs
    why: Issuance
    nonce: str | None = None


@attrs.frozen(kw_only=True)
class HostChanged:
    """A heartbeat said something else than the one before it. `expected` is what should run, when that is not so.

    `source` is the protocol it came by, None the fleet's own; `tags` is what the host calls itself.
    """

    hostname: HostName
    boot_id: str | None = None
    current_closure: Closure | None = None
    agent_version: str | None = None
    uptime_secs: int | None = None
    health: Mapping[str, int] = attrs.field(factory=dict)
    waiting_on: str | None = None
    expected: Closure | None = None
    source: Source | None = None
    tags: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class BootstrapReported:
    """A host without a certificate told why it cannot enrol."""

    hostname: HostName
    agent_version: str
    event: str
    details: Mapping[str, JsonValue] = attrs.field(factory=dict)


Entry = (
    FactAccepted
    | FactRefused
    | ArtifactAdopted
    | RolloutOpened
    | RolloutPruned
    | DispatchQueued
    | DispatchSent
    | DispatchWithdrawn
    | HostsHeld
    | WaveBegan
    | RollbackAsked
    | QuarantineLifted
    | MachineRegistered
    | CertificateIssued
    | HostChanged
    | BootstrapReported
)

ENTRY_KINDS: Final[tuple[type[Entry], ...]] = (
    FactAccepted,
    FactRefused,
    ArtifactAdopted,
    RolloutOpened,
    RolloutPruned,
    DispatchQueued,
    DispatchSent,
    DispatchWithdrawn,
    HostsHeld,
    WaveBegan,
    RollbackAsked,
    QuarantineLifted,
    MachineRegistered,
    CertificateIssued,
    HostChanged,
    BootstrapReported,
)
