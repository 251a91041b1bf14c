"""What a first-generation control plane is told, in its own words (protocol section 9.2).

`told_by` says what a fact amounts to there, if anything; a `Reporter` makes reports of that, and of how the host is
now. Texts are cut to what that generation takes.
"""

from typing import assert_never

import attrs

from nixfleet_agent import __version__
from nixfleet_agent.desk import Desk
from state_machine import offers
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
from state_machine.lifecycle import OPEN
from state_machine.state import ProbeHealth, Tracked
from state_machine.values import (
    Closure,
    FailurePolicy,
    ProbeMode,
    ProbeStatus,
    SwitchMethod,
    WallMs,
)
from wire.legacy import (
    APPLYING,
    DEPLOYED,
    DRY_RUN,
    GENERATION_MAX,
    MESSAGE_MAX,
    ROLLED_BACK,
    UP_TO_DATE,
    HealthCheckResult,
    HealthReport,
    Report,
    store_path,
)


@attrs.frozen(kw_only=True)
class Told:
    """What a fact amounts to. `running`: what it says runs, None where it says nothing of that."""

    at: WallMs
    message: str
    success: bool
    running: Closure | None = None


def told_by(fact: Fact, tracked: Tracked | None, *, dry: bool) -> Told | None:
    """What the server is told of `fact`; None: nothing. `dry`: the switch it is about was only shown."""
    match fact:
        case ActivationStarted(started_at=at, switch_method=method):
            message = DRY_RUN if method is SwitchMethod.DRY_RUN else APPLYING
            return Told(at=at, message=message, success=True)
        case ActivationDeferred(deferred_at=at, component=component):
            return Told(at=at, message=f"waits for a reboot: {component}", success=True)
        case Converged(converged_at=at, current_closure=running):
            switched = tracked is None or tracked.record.activation_started_at is not None
            return Told(at=at, message=DEPLOYED if switched else UP_TO_DATE, success=True, running=running)
        case RollbackComplete(completed_at=at, reverted_to_closure=running):
            why = (None if tracked is None else tracked.record.failure) or "it failed"
            return Told(at=at, message=f"{ROLLED_BACK}{why}", success=False, running=running)
        case ActivationFailed() | Failed() | RollbackFailed() | TargetRefused() | DispatchReject():
            return _told_by_failure(fact, tracked, dry=dry)
        case (
            DispatchAck()
            | ActivationCompleted()
            | ProbeTopologyDeclared()
            | ProbeObservedFirst()
            | ProbeResult()
            | ProbeFailureFirst()
            | RollbackRequested()
            | DriftObserved()
        ):
            return None  # the next health report shows what matters of it
        case _:
            assert_never(fact)


def _told_by_failure(
    fact: ActivationFailed | Failed | RollbackFailed | TargetRefused | DispatchReject,
    tracked: Tracked | None,
    *,
    dry: bool,
) -> Told | None:
    match fact:
        case ActivationFailed() if dry or (tracked is not None and tracked.superseded_by and tracked.untouched):
            return None  # nothing was to change, or it gave way to a newer target: no failure of this machine
        case ActivationFailed(stderr_tail=offers.NO_LONGER_OFFERED):
            return None
        case ActivationFailed(failed_at=at, stderr_tail=why):
            return Told(at=at, message=f"failed: {why}", success=False)
        case Failed(policy_applied=FailurePolicy.ROLLBACK_AND_HALT):
            return None  # the end of the rollback says so
        case Failed(failed_at=at, failing_probes=probes):
            return Told(at=at, message=f"failed: probes failed: {', '.join(probes)}", success=False)
        case RollbackFailed(failed_at=at, stderr_tail=why):
            return Told(at=at, message=f"rollback failed: {why}", success=False)
        case TargetRefused(refused_at=at, reason=reason, detail=detail):
            return Told(at=at, message=f"refused: {reason}: {detail}", success=False)
        case DispatchReject(rejected_at=at, reason=reason):
            return Told(at=at, message=f"refused: {reason}", success=False)
        case _:
            assert_never(fact)


class Reporter:
    """Makes reports of the state of this host."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def of_now(self, message: str) -> Report:
        """How the host is now: it does well while no enforced check fails."""
        health = self._health()
        success = health is None or health.all_passed
        return self.of(Told(at=self._desk.clock().wall_ms, message=message, success=success))

    def of(self, told: Told) -> Report:
        """What happened, with what the checks say now."""
        config, telemetry = self._desk.config, self._desk.telemetry
        running = told.running or self._desk.state().known.system.running
        return Report(
            machine_id=config.machine_id,
            current_generation="" if not running else store_path(running)[:GENERATION_MAX],
            success=told.success,
            message=told.message[:MESSAGE_MAX],
            timestamp=told.at,
            tags=config.tags,
            health=self._health(),
            agent_version=__version__,
            uptime_seconds=max(0, self._desk.clock().mono_ms - telemetry.started_mono_ms) // 1000,
        )

    def on_trial(self) -> bool:
        """The active target has yet to prove itself."""
        current = self._desk.state().known.current
        return current is not None and current.record.phase in OPEN

    def _health(self) -> HealthReport | None:
        """None while an enforced check has not ended once: half of the checks would pass for all of them."""
        known = self._desk.state().known
        # That generation knows no check that only observes: a server would hold one that fails against the machine.
        enforced = [spec.name for spec in known.judges if spec.mode is ProbeMode.ENFORCE]
        if any(name not in known.probes for name in enforced):
            return None
        results = tuple(self._result(name, known.probes[name]) for name in enforced)
        passed = all(result.status is ProbeStatus.PASS for result in results)
        return HealthReport(results=results, all_passed=passed, timestamp=self._desk.clock().wall_ms)

    def _result(self, name: str, health: ProbeHealth) -> HealthCheckResult:
        seconds = self._desk.telemetry.probe_seconds.get(name, 0.0)
        passed = health.status is ProbeStatus.PASS
        return HealthCheckResult(
            status=ProbeStatus.PASS if passed else ProbeStatus.FAIL,
            check_name=name,
            duration_ms=max(0, round(seconds * 1000)),
            message=None if passed else (health.reason or "it failed")[:MESSAGE_MAX],
        )
