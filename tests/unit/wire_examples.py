"""One example of every fact and every event, with every member filled. The golden files pin their bytes."""

from typing import Final

from state_machine.events import (
    Booted,
    Calendar,
    CalendarRead,
    CertificateLoaded,
    DispatchKind,
    DispatchReceived,
    Duty,
    DutyFinished,
    Event,
    FactRefused,
    FactsDelivered,
    HooksFinished,
    IntentRefused,
    IntentVerified,
    Poked,
    ProbeObserved,
    ProbesDeclared,
    QuarantineCleared,
    RealiseFinished,
    RebootDelayed,
    ReplayRequested,
    Settings,
    Snapshot,
    SnapshotsReceived,
    Span,
    SwitchFinished,
    SystemObserved,
    TargetOffered,
    TargetPolicy,
    Tick,
    VerifiedIntent,
)
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
from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import (
    Basis,
    Channel,
    Closure,
    FailurePolicy,
    HostName,
    Moment,
    OpId,
    Phase,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    Reason,
    RebootPolicy,
    RolloutId,
    Source,
    SubResult,
    SwitchMethod,
    WallMs,
)

OLD: Final = Closure("0c5b2m7zq9v1d3f4g6h8j0k2l4n6p8r0-nixos-system-node7-25.05")
NEW: Final = Closure("1d6c3n8zr0w2f4g5h7i9k1l3m5n7q9s1-nixos-system-node7-25.11")
ROLLOUT: Final = RolloutId("edge@4be0c1")
NODE7: Final = HostName("node7")
AT: Final = WallMs(1_780_308_002_125)
"""2026-06-01T10:00:02.125Z"""
LATER: Final = WallMs(1_780_308_160_000)
MOMENT: Final = Moment(wall_ms=AT, mono_ms=86_400_123)
SSHD: Final = ProbeSpec(name="sshd", kind="tcp", mode=ProbeMode.ENFORCE)
CONTROL: Final = SubResult(
    control_id="AC-2",
    status=ProbeStatus.FAIL,
    framework="nis2",
    article="21(2)(i)",
    effective_mode=ProbeMode.OBSERVE,
    override_reason="accepted until autumn",
)
SYSTEM: Final = SystemView(boot_id="0d5e0d1c-4a43-4b9a-9f0e-5a0a2c4f8b11", running=NEW, booted=OLD, profile=NEW)

FACTS: Final[tuple[Fact, ...]] = (
    DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=AT),
    ActivationStarted(seq=2, started_at=AT, switch_method=SwitchMethod.SYSTEMD_RUN),
    ActivationCompleted(seq=3, observed_current_closure=NEW, exit_code=0, completed_at=LATER),
    ActivationDeferred(seq=3, component="dbus", deferred_at=LATER),
    ActivationFailed(seq=3, exit_code=-2, stderr_tail="error: cannot add path", failed_at=LATER),
    ProbeTopologyDeclared(seq=4, probes=(SSHD,), declared_at=LATER),
    ProbeObservedFirst(seq=5, probe_name="sshd", mode=ProbeMode.ENFORCE, observed_at=LATER),
    ProbeResult(
        seq=6,
        probe_name="controls",
        mode=ProbeMode.OBSERVE,
        status=ProbeStatus.FAIL,
        observed_at=LATER,
        failure_reason="AC-2: Konto „gast“ ist offen",
        sub_results=(CONTROL,),
    ),
    ProbeFailureFirst(seq=7, probe_name="sshd", mode=ProbeMode.ENFORCE, first_failed_at=LATER),
    Failed(
        seq=8,
        failed_at=LATER,
        sustained_duration_secs=61,
        failing_probes=("sshd", "web"),
        policy_applied=FailurePolicy.ROLLBACK_AND_HALT,
    ),
    RollbackComplete(seq=9, reverted_to_closure=OLD, exit_code=0, completed_at=LATER),
    Converged(seq=8, converged_at=LATER, current_closure=NEW),
    DispatchReject(seq=1, reason=Reason.QUARANTINED, rejected_at=AT),
    TargetRefused(seq=1, reason=Reason.SUPERSEDED, detail="signed 3600 s before the newest seen", refused_at=AT),
    RollbackRequested(seq=9, reason="operator: bad certificate", requested_at=LATER),
    RollbackFailed(seq=9, exit_code=4, stderr_tail="warning: the following units failed: nginx", failed_at=LATER),
    DriftObserved(seq=9, expected_closure=NEW, observed_closure=OLD, observed_at=LATER),
)

INTENT: Final = VerifiedIntent(
    rollout_id=ROLLOUT,
    channel=Channel("edge"),
    signed_at=AT,
    manifest_digest="6c" * 32,
    manifest_key_id="a1b2c3d4",
    fleet_digest="7d" * 32,
    fleet_signed_at=AT,
    fleet_key_id="a1b2c3d4",
    freshness_window_s=10_800,
    target=NEW,
    wave_index=1,
    policy=TargetPolicy(
        on_failure=FailurePolicy.HALT, soak_ms=600_000, sustained_failure_ms=30_000, max_failed_units=0
    ),
)
CALENDAR: Final = Calendar(
    since=AT,
    through=WallMs(AT + 35 * 86_400_000),
    activation=(Span(begins=AT, ends=LATER),),
    reboot=(),
)

EVENTS: Final[tuple[Event, ...]] = (
    Booted(
        at=MOMENT,
        settings=Settings(
            machine_id=NODE7,
            freshness_cap_s=3600,
            switch_method=SwitchMethod.DETACHED,
            source=Source.GRADIENT,
            offer_policy=TargetPolicy(
                on_failure=FailurePolicy.HALT, soak_ms=60_000, sustained_failure_ms=30_000, max_failed_units=2
            ),
            reboot=RebootPolicy.WHEN_REQUIRED,
            hooks=True,
        ),
        system=SYSTEM,
        probes=(SSHD,),
        calendar=CALENDAR,
    ),
    Tick(at=MOMENT),
    IntentVerified(at=MOMENT, intent=INTENT),
    IntentRefused(
        at=MOMENT,
        rollout_id=ROLLOUT,
        reason=Reason.BAD_SIGNATURE,
        detail="no active key verifies it",
        final=True,
        jitter=0.125,
    ),
    DispatchReceived(
        at=MOMENT,
        hostname="node7",
        rollout_id="edge@4be0c1",
        target_closure="../../etc/passwd",
        running=OLD,
        soak_due_at=LATER,
        soak_s=600,
        kind=DispatchKind.ROLLBACK,
        reason="canary is sick",
    ),
    RealiseFinished(at=MOMENT, op=OpId(7), ok=False, untrusted=True, detail="no signature", jitter=0.75),
    SwitchFinished(
        at=MOMENT,
        op=OpId(8),
        outcome=SwitchOutcome.DEFERRED,
        system=SYSTEM,
        exit_code=0,
        component="dbus",
        detail="dbus implementation changes",
        jitter=0.25,
    ),
    SystemObserved(at=MOMENT, system=SYSTEM),
    ProbesDeclared(at=MOMENT, probes=(SSHD,)),
    ProbeObserved(
        at=MOMENT,
        name="controls",
        status=ProbeStatus.FAIL,
        began_mono_ms=86_399_000,
        reason="AC-2 failed",
        sub_results=(CONTROL,),
    ),
    FactsDelivered(at=MOMENT, rollout_id=ROLLOUT, through_seq=6),
    FactRefused(at=MOMENT, rollout_id=ROLLOUT, seq=7, status=409, reason="invariant"),
    ReplayRequested(at=MOMENT, rollout_id=ROLLOUT, from_seq=3),
    SnapshotsReceived(
        at=MOMENT,
        snapshots=(
            Snapshot(
                rollout_id="edge@4be0c1",
                phase=Phase.SOAKING,
                target_closure=str(NEW),
                last_seq=3,
                soak_due_at=LATER,
            ),
        ),
    ),
    DutyFinished(at=MOMENT, duty=Duty.HEARTBEAT, ok=False, retry_after_ms=30_000, jitter=0.5, again_after_ms=5_000),
    CertificateLoaded(at=MOMENT, validity=(AT, LATER)),
    QuarantineCleared(at=MOMENT, closure=NEW, by="root"),
    Poked(at=MOMENT),
    TargetOffered(at=MOMENT, basis=Basis.CACHE_KEY, closure="../../etc/passwd", offered_as="a build's id"),
    CalendarRead(at=MOMENT, calendar=CALENDAR),
    HooksFinished(at=MOMENT, op=OpId(9), veto="10-backup: a backup runs", output="10-backup: 4 GB left", jitter=0.5),
    RebootDelayed(at=MOMENT, op=OpId(10), locked=True, detail="/run/backup.lock is there", jitter=0.5),
)
