"""The bodies that agent and control plane exchange (protocol sections 3.1 to 3.6 and 8.1).

Fields carry Python names; `wire.codec` writes them in camelCase except for the classes in `SNAKE_CASE`. A class says
what a well-formed body is, never whether to believe it: texts that a control plane sends and that `step` must be able
to refuse by name (`Dispatch`, `HostRolloutSnapshot`) are plain strings here, of a limited length because the refusal
quotes them.
"""

from collections.abc import Mapping
from typing import Final

import attrs

from state_machine.events import DispatchKind
from state_machine.facts import Fact
from state_machine.values import Closure, HostName, Phase, RolloutId, WallMs
from wire.json_value import JsonValue
from wire.presence import OMIT_DEFAULT, SHORT_TEXT, WRITE_NULL

# Enrolment and renewal


@attrs.frozen(kw_only=True)
class TokenClaims:
    """What a bootstrap token allows: one enrolment of `hostname` with one key, once, within a time."""

    hostname: HostName
    expected_pubkey_fingerprint: str
    """Base64 of the SHA-256 of the raw 32-byte public key."""
    issued_at: WallMs
    expires_at: WallMs
    nonce: str


@attrs.frozen(kw_only=True)
class Token:
    """A bootstrap token (section 8.1). `signature` is base64 over the canonical bytes of `claims` as received."""

    version: int
    claims: TokenClaims
    signature: str


@attrs.frozen(kw_only=True)
class EnrollRequest:
    """Asks for the first certificate.

    `token` is the document as it was minted: its signature covers the text of its timestamps, which decoding and
    encoding again could change. Decode it as `Token` to look inside.
    """

    token: Mapping[str, JsonValue]
    csr_pem: str


@attrs.frozen(kw_only=True)
class EnrollResponse:
    """The certificate, and when it ends."""

    cert_pem: str
    not_after: WallMs


@attrs.frozen(kw_only=True)
class RenewRequest:
    """Asks for a new certificate for the caller's own name and key."""

    csr_pem: str


@attrs.frozen(kw_only=True)
class RenewResponse:
    """The certificate, and when it ends."""

    cert_pem: str
    not_after: WallMs


@attrs.frozen(kw_only=True)
class ReportEvent:
    """A report in the older vocabulary (section 9.3): a kebab-case tag, and details in snake_case."""

    event: str
    details: Mapping[str, JsonValue] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class BootstrapReport:
    """Why a host cannot enrol, told without a certificate. `token` is verbatim, as in `EnrollRequest`."""

    token: Mapping[str, JsonValue]
    agent_version: str
    occurred_at: WallMs
    event: ReportEvent


# Dispatch


@attrs.frozen(kw_only=True)
class Dispatch:
    """The control plane routes a rollout here, or asks for it to be undone. Nothing in it is trusted.

    From `soak_secs` on the members are ours; other control planes leave them out.
    """

    hostname: str = attrs.field(metadata=SHORT_TEXT)
    rollout_id: str = attrs.field(metadata=SHORT_TEXT)
    target_closure: str = attrs.field(metadata=SHORT_TEXT)
    soak_due_at: WallMs | None = None
    enqueued_at: WallMs | None = None
    soak_secs: int | None = None
    confirm_deadline: WallMs | None = None
    kind: DispatchKind = attrs.field(default=DispatchKind.DISPATCH, metadata=OMIT_DEFAULT)
    reason: str = attrs.field(default="", metadata={**OMIT_DEFAULT, **SHORT_TEXT})


# Events


@attrs.frozen(kw_only=True)
class EventEnvelope:
    """One fact on its way. Who verifies `signature` does so over the canonical bytes of the received `event` member.

    `signature` is hex, ed25519 by the host key; `prev` is the hex hash of the journal entry that was sent before.
    """

    hostname: HostName
    rollout_id: RolloutId
    event: Fact
    signature: str | None = None
    prev: str | None = None


# Heartbeat


@attrs.frozen(kw_only=True)
class HeartbeatRequest:
    """A sign of life. From `agent_version` on the members are ours.

    `health` counts probes by status; `waiting_on` says in a few words what the host cannot go on without. `tags`
    are what the host calls itself; what the fleet file calls it decides.
    """

    hostname: HostName
    at: WallMs
    rollout_id: RolloutId | None = None
    current_closure: Closure | None = None
    agent_version: str | None = None
    uptime_secs: int | None = None
    last_event_seq_by_rollout: Mapping[RolloutId, int] = attrs.field(factory=dict, metadata=OMIT_DEFAULT)
    health: Mapping[str, int] = attrs.field(factory=dict, metadata=OMIT_DEFAULT)
    boot_id: str | None = None
    waiting_on: str | None = None
    tags: tuple[str, ...] = attrs.field(default=(), metadata=OMIT_DEFAULT)


@attrs.frozen(kw_only=True)
class HostRolloutSnapshot:
    """What the control plane believes of one rollout on this host (section 3.6)."""

    rollout_id: str = attrs.field(metadata=SHORT_TEXT)
    hostname: str = attrs.field(metadata=SHORT_TEXT)
    channel: str = attrs.field(metadata=SHORT_TEXT)
    state: Phase
    target_closure: str = attrs.field(metadata=SHORT_TEXT)
    dispatched_at: WallMs
    last_event_seq: int
    current_closure_at_dispatch: str | None = None
    current_closure: str | None = None
    dispatch_acked_at: WallMs | None = None
    activation_started_at: WallMs | None = None
    activation_completed_at: WallMs | None = None
    soak_due_at: WallMs | None = None


@attrs.frozen(kw_only=True)
class ReplayFrom:
    """The control plane lacks this rollout's facts from `from_seq` on, that one included."""

    rollout_id: RolloutId
    from_seq: int


@attrs.frozen(kw_only=True)
class HeartbeatReply:
    """Answers a heartbeat. `replay` is ours, beside the header that can name only one rollout."""

    received_at: WallMs | None = attrs.field(default=None, metadata=WRITE_NULL)
    bootstrap_rollouts: tuple[HostRolloutSnapshot, ...] = attrs.field(default=(), metadata=OMIT_DEFAULT)
    replay: tuple[ReplayFrom, ...] = attrs.field(default=(), metadata=OMIT_DEFAULT)


# Refusals


@attrs.frozen(kw_only=True)
class ErrorBody:
    """Every refusal of our control plane: `error` for a person, `reason` for a program, `want_seq` after a gap."""

    error: str
    reason: str = ""
    want_seq: int | None = None


SNAKE_CASE: Final[tuple[type, ...]] = (Dispatch, HeartbeatRequest, HeartbeatReply, ReplayFrom, ErrorBody)
"""Bodies whose own members are written in snake_case (section 1.4); what lies inside them goes by its own class."""
