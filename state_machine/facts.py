"""Facts: what happened on a host in a rollout, in the past tense.

A fact is born inside `step`, numbered there without gaps per rollout, and never changed. It goes on the wire and
into evidence. Class names are the wire's `kind`, field names its members in camelCase (protocol section 4); the
last five kinds are additions that another control plane may ignore.
"""

from typing import Final

import attrs

from state_machine.values import (
    Closure,
    FailurePolicy,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    Reason,
    RolloutId,
    SubResult,
    SwitchMethod,
    WallMs,
)


@attrs.frozen(kw_only=True)
class DispatchAck:
    """The dispatch was taken. `current_closure_at_dispatch` ran then, empty if unknown: a rollback returns to it."""

    seq: int
    current_closure_at_dispatch: Closure
    received_at: WallMs


@attrs.frozen(kw_only=True)
class ActivationStarted:
    """A switch to the target is about to begin. Recorded before it does."""

    seq: int
    started_at: WallMs
    switch_method: SwitchMethod


@attrs.frozen(kw_only=True)
class ActivationCompleted:
    """The target runs, seen on the host."""

    seq: int
    observed_current_closure: Closure
    exit_code: int
    completed_at: WallMs


@attrs.frozen(kw_only=True)
class ActivationDeferred:
    """The target is set for the next boot because `component` cannot be swapped live."""

    seq: int
    component: str
    deferred_at: WallMs


@attrs.frozen(kw_only=True)
class ActivationFailed:
    """The target could not be activated. `exit_code`: the real one, -1 generic, -2 store signature, -3 wrong system."""

    seq: int
    exit_code: int
    stderr_tail: str
    failed_at: WallMs


@attrs.frozen(kw_only=True)
class ProbeTopologyDeclared:
    """The whole set of probes that judges this rollout."""

    seq: int
    probes: tuple[ProbeSpec, ...]
    declared_at: WallMs


@attrs.frozen(kw_only=True)
class ProbeObservedFirst:
    """The probe's first result since activation is in."""

    seq: int
    probe_name: str
    mode: ProbeMode
    observed_at: WallMs


@attrs.frozen(kw_only=True)
class ProbeResult:
    """What the probe says now: sent for its first result and whenever it changes."""

    seq: int
    probe_name: str
    mode: ProbeMode
    status: ProbeStatus
    observed_at: WallMs
    failure_reason: str | None = None
    sub_results: tuple[SubResult, ...] | None = None


@attrs.frozen(kw_only=True)
class ProbeFailureFirst:
    """The first failure of an unbroken run of failures."""

    seq: int
    probe_name: str
    mode: ProbeMode
    first_failed_at: WallMs


@attrs.frozen(kw_only=True)
class Failed:
    """An enforce probe failed for longer than the policy allows."""

    seq: int
    failed_at: WallMs
    sustained_duration_secs: int
    failing_probes: tuple[str, ...]
    policy_applied: FailurePolicy


@attrs.frozen(kw_only=True)
class RollbackComplete:
    """The host is back on the system it ran before."""

    seq: int
    reverted_to_closure: Closure
    exit_code: int
    completed_at: WallMs


@attrs.frozen(kw_only=True)
class Converged:
    """The target runs, its soak is over, every enforce probe passes."""

    seq: int
    converged_at: WallMs
    current_closure: Closure


@attrs.frozen(kw_only=True)
class DispatchReject:
    """The host will not do what it was sent, a dispatch or a rollback wish; it need not be offered again."""

    seq: int
    reason: Reason
    rejected_at: WallMs


@attrs.frozen(kw_only=True)
class TargetRefused:
    """The intent behind a dispatch failed a check of promise S1 or S2."""

    seq: int
    reason: Reason
    detail: str
    refused_at: WallMs


@attrs.frozen(kw_only=True)
class RollbackRequested:
    """The control plane asked for a rollback and the host honours it: its wish, not a finding."""

    seq: int
    reason: str
    requested_at: WallMs


@attrs.frozen(kw_only=True)
class RollbackFailed:
    """A rollback did not bring the old system back; it will be tried again on a bounded schedule."""

    seq: int
    exit_code: int
    stderr_tail: str
    failed_at: WallMs


@attrs.frozen(kw_only=True)
class DriftObserved:
    """The host runs something nobody sent it."""

    seq: int
    expected_closure: Closure
    observed_closure: Closure
    observed_at: WallMs


Fact = (
    DispatchAck
    | ActivationStarted
    | ActivationCompleted
    | ActivationDeferred
    | ActivationFailed
    | ProbeTopologyDeclared
    | ProbeObservedFirst
    | ProbeResult
    | ProbeFailureFirst
    | Failed
    | RollbackComplete
    | Converged
    | DispatchReject
    | TargetRefused
    | RollbackRequested
    | RollbackFailed
    | DriftObserved
)

FACT_KINDS: Final[tuple[type[Fact], ...]] = (
    DispatchAck,
    ActivationStarted,
    ActivationCompleted,
    ActivationDeferred,
    ActivationFailed,
    ProbeTopologyDeclared,
    ProbeObservedFirst,
    ProbeResult,
    ProbeFailureFirst,
    Failed,
    RollbackComplete,
    Converged,
    DispatchReject,
    TargetRefused,
    RollbackRequested,
    RollbackFailed,
    DriftObserved,
)


@attrs.frozen(kw_only=True)
class RolloutFact:
    """A fact with the rollout it belongs to: `(rollout, seq)` names it for ever."""

    rollout_id: RolloutId
    fact: Fact
