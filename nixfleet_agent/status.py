"""The state, said to a person or a program: a document made from `Known`, the session if there is one, and a clock."""

from typing import Any, Final

from nixfleet_agent import __version__
from state_machine.freshness import clock_is_behind, freshness_left_ms, window_ms
from state_machine.state import (
    Known,
    ProbeHealth,
    Realising,
    RollingBack,
    Session,
    Switching,
    Tracked,
    fact_backlog,
)
from state_machine.values import Moment, Phase, ProbeMode, ProbeStatus, SteadyMs
from wire.timestamps import format_rfc3339

SCHEMA: Final = 1


def waiting_on(known: Known) -> str | None:
    """In a few words, what the host cannot go on without; None when it waits for nothing."""
    if known.settings.holds:
        return known.settings.holds
    match known.operation:
        case Realising(failures=failures) if failures:
            return f"fetching the closure; {failures} tries failed"
        case Realising():
            return "fetching the closure"
        case Switching():
            return "the switch to end"
        case RollingBack(retry_at=None):
            return "the rollback to end"
        case RollingBack(attempt=attempt):
            return f"another try of the rollback; {attempt} failed"
        case None:
            pass
    return _waiting_without_operation(known)


def _waiting_without_operation(known: Known) -> str | None:
    if known.waiting is not None:
        return f"the manifest of {known.waiting.rollout_id}"
    current = known.current
    match None if current is None else current.record.phase:
        case Phase.DEFERRED:
            return "a reboot"
        case Phase.SOAKING:
            unproven = sorted(
                spec.name
                for spec in known.judges
                if spec.mode is ProbeMode.ENFORCE and _status(known.probes.get(spec.name)) is not ProbeStatus.PASS
            )
            return f"probes: {', '.join(unproven)}" if unproven else "the soak"
        case _:
            return None


def _status(health: ProbeHealth | None) -> ProbeStatus:
    return ProbeStatus.UNKNOWN if health is None else health.status


def document(known: Known, session: Session | None, at: Moment) -> dict[str, Any]:
    """Everything `status --json` prints. Members are stable; times are RFC 3339, durations seconds."""
    current = known.current
    return {
        "schema": SCHEMA,
        "version": __version__,
        "machine_id": known.settings.machine_id,
        "daemon": "running" if session is not None else "not running",
        "runs": known.runs,
        "system": {
            "running": known.system.running,
            "booted": known.system.booted,
            "profile": known.system.profile,
            "boot_id": known.system.boot_id,
            "reboot_required": reboot_required(known),
            "drift": known.drift,
        },
        "rollout": None if current is None else _rollout(known, current, at),
        "waiting_on": waiting_on(known),
        "probes": [
            {
                "name": spec.name,
                "kind": spec.kind,
                "mode": spec.mode.value,
                **_probe(known, known.probes.get(spec.name), at),
            }
            for spec in known.judges
        ],
        "intent": _intent(known, at),
        "quarantine": [
            {"closure": closure, "rollout": entry.rollout_id, "since": format_rfc3339(entry.at), "why": entry.why}
            for closure, entry in sorted(known.quarantine.items())
        ],
        "refusals": [
            {"what": what, "detail": note.detail, "age_secs": _age_s(known, note.at, at)}
            for what, note in sorted(known.refusals.items(), key=lambda item: item[1].at)
        ],
        "outbox": {t.record.rollout_id: t.record.last_seq - t.delivered_seq for t in fact_backlog(known)},
        "facts_refused": sum(tracked.refused_facts for tracked in known.rollouts.values()),
        "contact": None if session is None else _contact(session, at),
    }


def _age_s(known: Known, since: SteadyMs, at: Moment) -> int:
    """Running time since an instant. After a reboot without the agent the clock of its last run reads too early."""
    return max(0, known.clock.read(at) - since) // 1000


def reboot_required(known: Known) -> bool:
    """The next boot would start another system than the one that runs, and a rollout waits for it."""
    current = known.current
    return current is not None and current.record.phase is Phase.DEFERRED


def _rollout(known: Known, tracked: Tracked, at: Moment) -> dict[str, Any]:
    record, intent = tracked.record, tracked.intent
    soak_left = None
    if record.phase is Phase.SOAKING and tracked.soak_from is not None:
        soak_left = max(0, tracked.soak_from + tracked.soak_ms - known.clock.read(at)) // 1000
    stamps = {
        "acknowledged": record.dispatch_acked_at,
        "activated": record.activation_completed_at,
        "converged": record.converged_at,
        "failed": record.failed_at,
        "reverted": record.reverted_at,
    }
    return {
        "id": record.rollout_id,
        "phase": record.phase.value,
        "target": record.target_closure,
        "rollback_to": tracked.prior,
        "signed_at": None if intent is None else format_rfc3339(intent.signed_at),
        "signed_by": None if intent is None else intent.manifest_key_id,
        "manifest": None if intent is None else intent.manifest_digest,
        "soak_left_secs": soak_left,
        "failure": record.failure,
        "since": {name: format_rfc3339(stamp) for name, stamp in stamps.items() if stamp is not None},
    }


def _probe(known: Known, health: ProbeHealth | None, at: Moment) -> dict[str, Any]:
    if health is None:
        return {"status": ProbeStatus.UNKNOWN.value}
    since = _age_s(known, health.since, at)
    return {"status": health.status.value, "for_secs": since, "reason": health.reason}


def _intent(known: Known, at: Moment) -> dict[str, Any] | None:
    """The newest accepted intent: how long it is still good."""
    newest = max(known.intents.values(), key=lambda seen: seen.intent.signed_at, default=None)
    if newest is None:
        return None
    left = freshness_left_ms(known, newest, at.wall_ms, known.clock.read(at))
    behind = clock_is_behind(known, at.wall_ms)
    return {
        "rollout": newest.intent.rollout_id,
        "signed_at": format_rfc3339(newest.intent.signed_at),
        "window_secs": window_ms(known, newest) // 1000,
        "fresh_for_secs": max(0, left) // 1000,
        "state": "clock-behind" if behind else "stale" if left < 0 else "fresh",
    }


def _contact(session: Session, at: Moment) -> dict[str, Any]:
    certificate = session.certificate
    return {
        "last": None if session.last_contact is None else format_rfc3339(session.last_contact),
        "last_by_duty": {duty.value: format_rfc3339(wall) for duty, wall in sorted(session.last_success.items())},
        "failures": {duty.value: count for duty, count in sorted(session.failures.items()) if count},
        "certificate_days": None if certificate is None else round((certificate[1] - at.wall_ms) / 86_400_000, 2),
    }


def one_line(known: Known) -> str:
    """For `systemctl status`."""
    current, waits = known.current, waiting_on(known)
    said = "no rollout yet" if current is None else f"{current.record.rollout_id} {current.record.phase.value}"
    return f"{said}, waiting for {waits}" if waits else said
