"""What the words of a first-generation agent amount to, and what such a host is to run (protocol section 9). Pure.

That protocol has no rollouts and no facts: a host asks for one store path and tells now and then what runs. From a
mirror and a report follow here the facts that the host's own record would hold, timed by this control plane's clock
and numbered after the mirror's last. They always fold: a report that is repeated, late or makes no sense where the
host stands amounts to nothing. Nothing but the host's own mirror is looked at.

A report that fails before the switch (a cache that does not answer, a lock that is held) says nothing about the target
and amounts to nothing either: the agent tries again by itself.
"""

from collections.abc import Iterator
from typing import Final

import attrs

from control_plane.legacy_checks import REASON_MAX, REPORTED, checks_of, failing, names_none_of, probed, tells_nothing
from control_plane.mirrors import ROLLBACK_PHASES, UNKNOWN_TARGET
from control_plane.rows import Mirror
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
    RollbackComplete,
    RollbackFailed,
    RollbackRequested,
)
from state_machine.lifecycle import HostRollout
from state_machine.values import (
    Closure,
    FailurePolicy,
    Phase,
    ProbeStatus,
    Reason,
    SwitchMethod,
    WallMs,
)
from wire.legacy import APPLYING, DRY_RUN, REBOOT, ROLLED_BACK, Report, closure_of

SUSTAINED_MS: Final = 60_000
SWITCH_MS: Final = 300_000
"""How long an agent of this generation waits for a switch (section 7.4)."""

_GIVEN_UP: Final = "rollback failed: "


@attrs.frozen(kw_only=True)
class Rules:
    """What the fleet says of failures on the host's channel."""

    policy: FailurePolicy = FailurePolicy.ROLLBACK_AND_HALT
    sustained_ms: int = SUSTAINED_MS


@attrs.frozen(kw_only=True)
class Standing:
    """Where a host stands when a report arrives.

    `ran` is what it ran by the report before this one. `wish` is the reason of a rollback that was handed to it, and
    that it has not answered yet.
    """

    mirror: Mirror
    ran: Closure | None = None
    wish: str | None = None
    rules: Rules = Rules()


# What a host is to run


def subject(acknowledged: Mirror | None, handed_out: Mirror | None, report: Report) -> Mirror | None:
    """The mirror that a report is about: the dispatch handed out last and not taken yet, or the one taken last."""
    if handed_out is None:
        return acknowledged
    if acknowledged is not None and (handed_out.dispatched_at or 0) < (acknowledged.dispatched_at or 0):
        return acknowledged
    running = closure_of(report.current_generation)
    begun = report.message == APPLYING or is_rolled_back(report) or is_deferred(report)
    there = report.success and running == handed_out.record.target_closure
    return handed_out if acknowledged is None or begun or there else acknowledged


def way_back(record: HostRollout) -> Closure | None:
    """What a rollback of this rollout goes back to; None when that is not known."""
    closure = record.closure_at_dispatch
    return closure if closure and closure != record.target_closure else None


def standing_target(record: HostRollout) -> Closure | None:
    """What a host runs on account of the dispatch it took last; None when it is better left alone.

    After a failure that the policy rolls back that is the way back, once: a host that could not go there stays.
    """
    match record.phase:
        case Phase.REVERTED:
            return None
        case Phase.FAILED:
            wanted = record.policy_applied is FailurePolicy.ROLLBACK_AND_HALT
            return way_back(record) if wanted and not _has_given_up(record) else None
        case _:
            return record.target_closure or None


# What a report amounts to


def amounts_to(standing: Standing, report: Report, at: WallMs) -> tuple[Fact, ...]:
    """The facts that the report amounts to at `at`, with their numbers. Each folds into the mirror after the last."""
    record = standing.mirror.record
    if record.target_closure == UNKNOWN_TARGET or report.message.startswith(DRY_RUN):
        return ()
    facts = _Reading(standing=standing, report=report, at=at).facts()
    return tuple(attrs.evolve(fact, seq=record.last_seq + 1 + number) for number, fact in enumerate(facts))


def is_rolled_back(report: Report) -> bool:
    """The host tried a system, and says that it went back."""
    return not report.success and report.message.startswith(ROLLED_BACK.rstrip())


def is_deferred(report: Report) -> bool:
    """The target is set for the next boot. Only agents of ours know that, and say so."""
    return report.success and report.message.startswith(REBOOT)


def counted(report: Report) -> dict[str, int]:
    """How many checks of a report say what."""
    statuses = [result.status.value for result in report.health.results] if report.health is not None else []
    return {status: statuses.count(status) for status in sorted(set(statuses))}


def waits_for(report: Report) -> str | None:
    """What the host cannot go on without, in a few words."""
    if report.message.startswith(DRY_RUN):
        return "an operator: it is told to change nothing (--dry-run)"
    if report.success or is_rolled_back(report):
        return None
    return f"its next try: {report.message[:REASON_MAX]}"


@attrs.frozen(kw_only=True)
class _Reading:
    """One report, read where the host stands. Facts are made without numbers."""

    standing: Standing
    report: Report
    at: WallMs

    @property
    def record(self) -> HostRollout:
        return self.standing.mirror.record

    @property
    def running(self) -> Closure | None:
        return closure_of(self.report.current_generation)

    @property
    def on_target(self) -> bool:
        return self.running == self.record.target_closure

    @property
    def applying(self) -> bool:
        return self.report.message == APPLYING

    def facts(self) -> list[Fact]:
        if self.standing.wish is not None and self.record.phase in ROLLBACK_PHASES:
            answer = list(self._of_wish(self.standing.wish))
            if answer:
                return answer
        match self.record.phase:
            case Phase.PENDING:
                return list(self._pending())
            case Phase.ACTIVATING | Phase.DEFERRED:
                return list(self._on_the_way())
            case Phase.SOAKING:
                return list(self._soaking())
            case Phase.CONVERGED:
                return list(self._drift())
            case Phase.FAILED:
                return list(self._failed())
            case Phase.REVERTED:
                return []

    # Where it stands, phase by phase

    def _pending(self) -> Iterator[Fact]:
        if self.applying:
            yield self._ack(self.standing.ran if self.on_target else self.running)
            yield self._started()
        elif self.report.success and self.on_target:
            yield self._ack(self.standing.ran)
            yield from self._arrived()
        elif is_deferred(self.report):
            yield self._ack(self.running)
            yield self._deferred()
        elif is_rolled_back(self.report):
            # Its word that it began never arrived.
            yield self._ack(self.standing.ran if self.on_target else self.running)
            yield from self._activation_failed()

    def _on_the_way(self) -> Iterator[Fact]:
        deferred = self.record.phase is Phase.DEFERRED
        if self.applying:
            if self.record.activation_started_at is None and not deferred:
                yield self._started()
        elif not self.report.success:
            if is_rolled_back(self.report) or (not deferred and self._has_failed()):
                yield from self._activation_failed()
        elif self.on_target:
            yield from self._arrived()
        elif is_deferred(self.report) and not deferred:
            yield self._deferred()

    def _soaking(self) -> Iterator[Fact]:
        if self.applying or self.running is None:
            return
        if self.on_target:
            yield from self._judged()
        elif not self.report.success and self._went_back():
            yield self._failed_for(0, failing(checks_of(self.report)))
            yield self._rolled_back()
        else:
            yield from self._drift()

    def _failed(self) -> Iterator[Fact]:
        if self.applying:
            return
        if self._went_back():
            yield self._rolled_back()
        elif self.on_target and is_rolled_back(self.report) and standing_target(self.record) is not None:
            yield RollbackFailed(seq=0, exit_code=-1, stderr_tail=self._said(), failed_at=self.at)

    def _of_wish(self, reason: str) -> Iterator[Fact]:
        back = way_back(self.record)
        if back is None:
            yield DispatchReject(seq=0, reason=Reason.MISSING, rejected_at=self.at)
        elif self.running == back and not self.applying:
            yield RollbackRequested(seq=0, reason=reason, requested_at=self.at)
            yield self._rolled_back()
        elif self.on_target and is_rolled_back(self.report) and self.record.phase is not Phase.ACTIVATING:
            yield DispatchReject(seq=0, reason=Reason.ROLLBACK_FAILED, rejected_at=self.at)

    # The steps

    def _ack(self, ran: Closure | None) -> Fact:
        return DispatchAck(seq=0, current_closure_at_dispatch=ran or Closure(""), received_at=self.at)

    def _started(self) -> Fact:
        return ActivationStarted(seq=0, started_at=self.at, switch_method=SwitchMethod.SWITCH_TO_CONFIGURATION)

    def _deferred(self) -> Fact:
        component = self.report.message.removeprefix(REBOOT)[:REASON_MAX]
        return ActivationDeferred(seq=0, component=component, deferred_at=self.at)

    def _arrived(self) -> Iterator[Fact]:
        yield ActivationCompleted(
            seq=0, observed_current_closure=self.record.target_closure, exit_code=0, completed_at=self.at
        )
        if tells_nothing(self.report):
            return
        checks = checks_of(self.report)
        yield from probed(checks, {}, self.at)
        if not failing(checks) and self.standing.mirror.soak_ms <= 0 and self.standing.wish is None:
            yield self._converged()

    def _activation_failed(self) -> Iterator[Fact]:
        yield ActivationFailed(seq=0, exit_code=-1, stderr_tail=self._said(), failed_at=self.at)
        if self._went_back():
            yield self._rolled_back()

    def _judged(self) -> Iterator[Fact]:
        """The target runs: what its checks say, and what follows from how long they have said it."""
        known = self.record.probes
        if tells_nothing(self.report):
            return
        if names_none_of(known, self.report):
            if self._is_proven() and all(probe.status is ProbeStatus.PASS for probe in known.values()):
                yield self._converged()
            return
        checks = checks_of(self.report)
        yield from probed(checks, known, self.at)
        sick = failing(checks)
        since = min((self._failing_since(name) for name in sick), default=self.at)
        if sick and self.at - since >= self.standing.rules.sustained_ms:
            yield self._failed_for((self.at - since) // 1000, sick)
        elif not sick and self._is_proven():
            yield self._converged()

    def _drift(self) -> Iterator[Fact]:
        if self.applying or self.running is None or self.on_target or self.running == self.record.current_closure:
            return
        yield DriftObserved(
            seq=0, expected_closure=self.record.target_closure, observed_closure=self.running, observed_at=self.at
        )

    def _failed_for(self, seconds: int, names: tuple[str, ...]) -> Fact:
        return Failed(
            seq=0,
            failed_at=self.at,
            sustained_duration_secs=seconds,
            failing_probes=names or (REPORTED,),
            policy_applied=self.standing.rules.policy,
        )

    def _rolled_back(self) -> Fact:
        assert self.running is not None, "whoever went back runs something"
        return RollbackComplete(seq=0, reverted_to_closure=self.running, exit_code=0, completed_at=self.at)

    def _converged(self) -> Fact:
        return Converged(seq=0, converged_at=self.at, current_closure=self.record.target_closure)

    # What is so

    def _went_back(self) -> bool:
        """What runs is not the target, and is what ran before or what the host says that it went back to."""
        if self.running is None or self.on_target:
            return False
        return self.running == way_back(self.record) or is_rolled_back(self.report)

    def _has_failed(self) -> bool:
        """A failure after the switch was begun, or one that has lasted for longer than any switch may take.

        The agent is restarted by the very switch it began. Until that is over it finds the lock held or its store
        busy, and says that it failed: the target may come up all the same.
        """
        if self.on_target:
            return True
        began = self.record.activation_started_at or self.record.dispatch_acked_at
        return began is not None and self.at - began >= SWITCH_MS

    def _is_proven(self) -> bool:
        """The soak is over, and nobody wants the host back.

        A host that came from the newer protocol told by its own clock when it completed: not before it was sent here,
        and not after it said so.
        """
        told, mirror = self.record.activation_completed_at, self.standing.mirror
        if told is None or self.standing.wish is not None:
            return False
        completed = max(min(told, mirror.changed_at or told), mirror.dispatched_at or 0)
        return self.at - completed >= mirror.soak_ms

    def _failing_since(self, name: str) -> WallMs:
        known = self.record.probes.get(name)
        return self.at if known is None or known.first_failed_at is None else known.first_failed_at

    def _said(self) -> str:
        return self.report.message[:REASON_MAX]


def _has_given_up(record: HostRollout) -> bool:
    """A rollback was tried, and failed: `lifecycle.fold` keeps that as the failure."""
    return record.failure is not None and record.failure.startswith(_GIVEN_UP)
