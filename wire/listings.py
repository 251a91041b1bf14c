"""What the control plane tells an operator (protocol section 3.9). Rows are camelCase; see `SNAKE_CASE` for the rest.

A member whose answer is not known is `null`, never a made-up constant. Members that close a class under "ours" are
additions that another control plane leaves out.
"""

import enum
from collections.abc import Mapping
from typing import Final

import attrs

from state_machine.intent import Pin
from state_machine.values import Basis, Channel, Closure, HostName, Phase, RolloutId, Source, WallMs
from wire.json_value import JsonValue
from wire.presence import OMIT_DEFAULT, WRITE_NULL


@attrs.frozen(kw_only=True)
class Health:
    """`/healthz`: the process lives. `last_tick_at` is when it last planned."""

    ok: bool
    version: str
    last_tick_at: WallMs | None = attrs.field(default=None, metadata=WRITE_NULL)


@attrs.frozen(kw_only=True)
class Whoami:
    """`/v1/whoami`: the caller's certificate as the control plane reads it."""

    cn: str
    issued_at: WallMs


@attrs.frozen(kw_only=True)
class ChannelView:
    """`/v1/channels/{name}`: what the verified fleet declares."""

    name: Channel
    declared_ci_commit: str | None = attrs.field(default=None, metadata=WRITE_NULL)
    signed_at: WallMs | None = attrs.field(default=None, metadata=WRITE_NULL)
    freshness_window_minutes: int


@attrs.frozen(kw_only=True)
class HostRow:
    """One row of `/v1/hosts`: a host in the rollout that concerns it, or a declared host without one.

    Ours are what follows `pin`: `health` counts probes by status, `source` is the protocol that the host was last heard
    in and `basis` what the trust in its targets rests on, `tags` what the fleet calls it, else what it calls itself.
    """

    hostname: HostName
    channel: Channel
    declared_closure_hash: Closure | None = attrs.field(default=None, metadata=WRITE_NULL)
    current_closure_hash: Closure | None = attrs.field(default=None, metadata=WRITE_NULL)
    pending_closure_hash: Closure | None = attrs.field(default=None, metadata=WRITE_NULL)
    last_checkin_at: WallMs | None = attrs.field(default=None, metadata=WRITE_NULL)
    last_rollout_id: RolloutId | None = attrs.field(default=None, metadata=WRITE_NULL)
    converged: bool = False
    outstanding_compliance_failures: int = 0
    outstanding_runtime_gate_errors: int = 0
    outstanding_health_failures: int = 0
    verified_event_count: int = 0
    last_uptime_secs: int | None = attrs.field(default=None, metadata=WRITE_NULL)
    rollout_state: Phase | None = attrs.field(default=None, metadata=WRITE_NULL)
    pending_reboot: bool = False
    quarantined_closure: Closure | None = attrs.field(default=None, metadata=WRITE_NULL)
    pin: Pin | None = attrs.field(default=None, metadata=WRITE_NULL)
    agent_version: str | None = None
    health: Mapping[str, int] = attrs.field(factory=dict, metadata=OMIT_DEFAULT)
    waiting_on: str | None = None
    failure: str | None = None
    source: Source | None = None
    basis: Basis | None = None
    tags: tuple[str, ...] = attrs.field(default=(), metadata=OMIT_DEFAULT)


@attrs.frozen(kw_only=True)
class HostList:
    """`/v1/hosts`."""

    hosts: tuple[HostRow, ...]


@attrs.frozen(kw_only=True)
class RolloutRow:
    """One row of `/v1/rollouts`."""

    rollout_id: RolloutId
    channel: Channel
    current_wave: int
    created_at: WallMs
    host_states: Mapping[HostName, Phase]


@attrs.frozen(kw_only=True)
class RolloutList:
    """`/v1/rollouts`."""

    rollouts: tuple[RolloutRow, ...]


@attrs.frozen(kw_only=True)
class RolloutLifecycle:
    """`/v1/rollouts/{id}/lifecycle`. `state` is a rollout-level state (section 5.5)."""

    rollout_id: RolloutId
    state: str
    superseded_at: WallMs | None = attrs.field(default=None, metadata=WRITE_NULL)
    superseded_by: RolloutId | None = attrs.field(default=None, metadata=WRITE_NULL)
    terminal_at: WallMs | None = attrs.field(default=None, metadata=WRITE_NULL)


@attrs.frozen(kw_only=True)
class RolloutHostRow:
    """One host of a rollout.

    Ours are `held_by`, why the planner does not dispatch to it now, and `last_event_seq`, the number of its last fact.
    """

    host: HostName
    channel: Channel
    wave: int
    target_closure_hash: Closure
    target_channel_ref: str
    dispatched_at: WallMs | None = attrs.field(default=None, metadata=WRITE_NULL)
    terminal_state: Phase | None = attrs.field(default=None, metadata=WRITE_NULL)
    terminal_at: WallMs | None = attrs.field(default=None, metadata=WRITE_NULL)
    state: Phase | None = None
    held_by: str | None = None
    last_event_seq: int | None = None


@attrs.frozen(kw_only=True)
class RolloutHosts:
    """`/v1/rollouts/{id}/hosts`."""

    rollout_id: RolloutId
    hosts: tuple[RolloutHostRow, ...]


class LogKind(enum.StrEnum):
    """What an entry of a rollout's event log is about."""

    AGENT_EVENT = "agent_event"
    PLAN_ACTION = "plan_action"
    EFFECT = "effect"
    GATE_DECISION = "gate_decision"
    VERIFY_OUTCOME = "verify_outcome"
    MANIFEST_POLL = "manifest_poll"
    ROLLOUT_EVENT = "rollout_event"


@attrs.frozen(kw_only=True)
class LogRow:
    """One entry of a rollout's event log. `seq` is the log's own number, `payload` depends on `kind`."""

    seq: int
    ts: WallMs
    kind: LogKind
    host: HostName | None = attrs.field(default=None, metadata=WRITE_NULL)
    payload: JsonValue = attrs.field(default=None, metadata=WRITE_NULL)


@attrs.frozen(kw_only=True)
class RolloutEvents:
    """`/v1/rollouts/{id}/events`, oldest first."""

    rollout_id: RolloutId
    events: tuple[LogRow, ...]


@attrs.frozen(kw_only=True)
class Deferral:
    """A rollout that may not open yet, and the channel it waits for."""

    channel: Channel
    target_ref: str
    blocked_by: str
    reason: str


@attrs.frozen(kw_only=True)
class DeferralList:
    """`/v1/deferrals`."""

    deferrals: tuple[Deferral, ...]


SNAKE_CASE: Final[tuple[type, ...]] = (Health, ChannelView, RolloutHosts, RolloutEvents)
"""Bodies whose own members are written in snake_case (section 1.4)."""
