"""The seven-state lifecycle of one host in one rollout, as a fold over facts.

`LIFECYCLE` is the page to read: for each phase, the facts it accepts and the phase that follows. Agent and control
plane fold the same facts with the same `fold`, so the agent's record and the control plane's mirror cannot differ.
Some facts must also satisfy an invariant of the record (`Converged`, `RollbackComplete`); `fold` says which failed.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, assert_never

import attrs

from state_machine.evolution import evolve
from state_machine.facts import (
    ActivationCompleted,
    ActivationDeferred,
    ActivationFailed,
    ActivationStarted,
    Converged,
    DispatchAck,
    DispatchReject,
    DriftObserved,
    Fact,
    Failed,
    ProbeFailureFirst,
    ProbeObservedFirst,
    ProbeResult,
    ProbeTopologyDeclared,
    RollbackComplete,
    RollbackFailed,
    RollbackRequested,
    TargetRefused,
)
from state_machine.values import (
    Closure,
    FailurePolicy,
    HostName,
    Phase,
    ProbeMode,
    ProbeStatus,
    RolloutId,
    WallMs,
)

P, A, D, S, C, F, R = (
    Phase.PENDING,
    Phase.ACTIVATING,
    Phase.DEFERRED,
    Phase.SOAKING,
    Phase.CONVERGED,
    Phase.FAILED,
    Phase.REVERTED,
)

# fmt: off
LIFECYCLE: Final[Mapping[Phase, Mapping[type[Fact], Phase]]] = MappingProxyType({
    P: MappingProxyType({DispatchAck: A, DispatchReject: P, TargetRefused: P}),
    A: MappingProxyType({ActivationStarted: A, ActivationCompleted: S, ActivationDeferred: D, ActivationFailed: F,
                         RollbackRequested: F, TargetRefused: A, DispatchReject: A}),
    D: MappingProxyType({ActivationCompleted: S, ActivationFailed: F, RollbackRequested: F, DriftObserved: D,
                         DispatchReject: D}),
    S: MappingProxyType({ProbeTopologyDeclared: S, ProbeObservedFirst: S, ProbeResult: S, ProbeFailureFirst: S,
                         Converged: C, Failed: F, RollbackRequested: F, DriftObserved: S, DispatchReject: S}),
    C: MappingProxyType({RollbackRequested: F, DriftObserved: C, DispatchReject: C}),
    F: MappingProxyType({RollbackComplete: R, RollbackFailed: F, DriftObserved: F}),
    R: MappingProxyType({DriftObserved: R}),
})
# fmt: on

TERMINAL: Final = frozenset({C, R})
"""Phases from which a rollout on this host goes nowhere by itself."""

OPEN: Final = frozenset({P, A, D, S})
"""Phases in which a rollout on this host is still under way."""

SETTLED: Final = frozenset({C, D})
"""Phases that count as done for ordering between hosts: a deferred host only waits for its reboot (section 5.1)."""

ROLLBACK_FAILED: Final = "rollback failed: "
"""How `HostRollout.failure` begins after a rollback that did not bring the earlier system up."""

IN_FLIGHT: Final = frozenset({A, S})
"""Phases that use up a disruption budget (section 5.6)."""


@attrs.frozen(kw_only=True)
class ProbeRecord:
    """What the facts of a rollout say about one probe."""

    mode: ProbeMode
    status: ProbeStatus = ProbeStatus.UNKNOWN
    observed_first_at: WallMs | None = None
    first_failed_at: WallMs | None = None
    failure_reason: str | None = None


@attrs.frozen(kw_only=True)
class HostRollout:
    """One host in one rollout, as its facts tell it. Make the first with `opened`, every other with `fold`."""

    rollout_id: RolloutId
    hostname: HostName
    target_closure: Closure
    soak_due_at: WallMs | None = None
    phase: Phase = Phase.PENDING
    last_seq: int = 0
    closure_at_dispatch: Closure | None = None
    current_closure: Closure | None = None
    dispatch_acked_at: WallMs | None = None
    activation_started_at: WallMs | None = None
    activation_completed_at: WallMs | None = None
    deferred_component: str | None = None
    probes: Mapping[str, ProbeRecord] = attrs.field(factory=dict)
    policy_applied: FailurePolicy | None = None
    failed_at: WallMs | None = None
    failure: str | None = None
    converged_at: WallMs | None = None
    reverted_at: WallMs | None = None
    refusal: str | None = None
    observed_drift: Closure | None = None


@attrs.frozen(kw_only=True)
class Illegal:
    """`fold` will not take this fact in this record, and why."""

    phase: Phase
    kind: str
    why: str


@attrs.frozen(kw_only=True)
class OutOfOrder:
    """The fact's number is not the next one. `expected` is the next; a lower number is a duplicate."""

    expected: int
    seq: int


def opened(
    rollout_id: RolloutId, hostname: HostName, target: Closure, *, soak_due_at: WallMs | None = None
) -> HostRollout:
    """The record before its first fact: Pending."""
    return HostRollout(rollout_id=rollout_id, hostname=hostname, target_closure=target, soak_due_at=soak_due_at)


def fold(record: HostRollout, fact: Fact) -> HostRollout | Illegal | OutOfOrder:
    """The record after `fact`, or why it cannot follow. Never raises."""
    if fact.seq != record.last_seq + 1:
        return OutOfOrder(expected=record.last_seq + 1, seq=fact.seq)
    following = LIFECYCLE[record.phase].get(type(fact))
    if following is None:
        return _illegal(record, fact, f"{record.phase} does not accept it")
    if (broken := _broken_invariant(record, fact)) is not None:
        return _illegal(record, fact, broken)
    return evolve(_stamped(record, fact), phase=following, last_seq=fact.seq)


def _illegal(record: HostRollout, fact: Fact, why: str) -> Illegal:
    return Illegal(phase=record.phase, kind=type(fact).__name__, why=why)


def _broken_invariant(record: HostRollout, fact: Fact) -> str | None:
    match fact:
        case Converged():
            return convergence_blocker(record, fact.current_closure, fact.converged_at)
        case RollbackComplete(reverted_to_closure=closure) if closure in ("", record.target_closure):
            return "a rollback ends on an earlier system, never on nothing or on the failing target"
        case ActivationCompleted(observed_current_closure=closure) if closure != record.target_closure:
            return f"{closure or 'nothing'} runs, not the target"
        case _:
            return None


def convergence_blocker(record: HostRollout, current: Closure, at: WallMs) -> str | None:
    """Why `record` may not converge at `at` while `current` runs, or None when it may (promise S4)."""
    if current != record.target_closure:
        return f"{current or 'nothing'} runs, not the target"
    if record.soak_due_at is not None and at < record.soak_due_at:
        return "the soak is not over"
    for name, probe in sorted(record.probes.items()):
        if probe.mode is ProbeMode.ENFORCE and probe.status is not ProbeStatus.PASS:
            return f"enforce probe {name} is {probe.status}"
    return None


def _stamped(record: HostRollout, fact: Fact) -> HostRollout:
    """`record` with what `fact` says, phase and number aside."""
    match fact:
        case DispatchAck():
            prior = fact.current_closure_at_dispatch or None
            return evolve(
                record,
                closure_at_dispatch=prior,
                current_closure=prior,
                dispatch_acked_at=fact.received_at,
                refusal=None,
            )
        case ActivationStarted():
            return evolve(record, activation_started_at=fact.started_at)
        case ActivationCompleted():
            return evolve(
                record,
                current_closure=fact.observed_current_closure,
                activation_completed_at=fact.completed_at,
                probes={},
            )
        case ActivationDeferred():
            return evolve(record, deferred_component=fact.component)
        case ActivationFailed():
            return evolve(record, failed_at=fact.failed_at, failure=fact.stderr_tail)
        case ProbeTopologyDeclared():
            return evolve(record, probes={spec.name: ProbeRecord(mode=spec.mode) for spec in fact.probes})
        case ProbeObservedFirst():
            probe = _probe(record, fact.probe_name, fact.mode)
            return _with_probe(record, fact.probe_name, evolve(probe, observed_first_at=fact.observed_at))
        case ProbeResult():
            return _with_probe(record, fact.probe_name, _after_result(record, fact))
        case ProbeFailureFirst():
            probe = _probe(record, fact.probe_name, fact.mode)
            return _with_probe(record, fact.probe_name, evolve(probe, first_failed_at=fact.first_failed_at))
        case Failed():
            failure = f"probes failed for {fact.sustained_duration_secs} s: {', '.join(fact.failing_probes)}"
            return evolve(record, failed_at=fact.failed_at, failure=failure, policy_applied=fact.policy_applied)
        case RollbackComplete():
            return evolve(record, current_closure=fact.reverted_to_closure, reverted_at=fact.completed_at)
        case Converged():
            return evolve(record, converged_at=fact.converged_at)
        case DispatchReject():
            return evolve(record, refusal=fact.reason.value)
        case TargetRefused():
            return evolve(record, refusal=f"{fact.reason}: {fact.detail}" if fact.detail else fact.reason.value)
        case RollbackRequested():
            return evolve(
                record, failed_at=fact.requested_at, failure=f"rollback requested by the control plane: {fact.reason}"
            )
        case RollbackFailed():
            return evolve(record, failure=f"{ROLLBACK_FAILED}{fact.stderr_tail}")
        case DriftObserved():
            return evolve(record, current_closure=fact.observed_closure, observed_drift=fact.observed_closure)
        case _:
            assert_never(fact)


def _after_result(record: HostRollout, fact: ProbeResult) -> ProbeRecord:
    probe = _probe(record, fact.probe_name, fact.mode)
    first_failed_at = None if fact.status is ProbeStatus.PASS else probe.first_failed_at
    return evolve(probe, status=fact.status, failure_reason=fact.failure_reason, first_failed_at=first_failed_at)


def _probe(record: HostRollout, name: str, mode: ProbeMode) -> ProbeRecord:
    """The probe so far. Its declared mode stands: a later fact cannot turn an enforced probe into an observed one."""
    return record.probes.get(name, ProbeRecord(mode=mode))


def _with_probe(record: HostRollout, name: str, probe: ProbeRecord) -> HostRollout:
    return evolve(record, probes={**record.probes, name: probe})
