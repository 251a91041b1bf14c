"""The state, said to a person or a program: a document made from `Known`, the session if there is one, and a clock.

Pure: the same state and the same moment make the same document. What the state does not hold (the process, the keys
in the trust file, the last journal entries, what to do about it all) is added by `inspection`.
"""

from collections.abc import Mapping
from typing import Any, Final, assert_never

from nixfleet_agent import __version__
from state_machine import windows
from state_machine.activation import way_back_waits_for_reboot
from state_machine.events import Duty, VerifiedIntent
from state_machine.freshness import clock_is_behind, freshness_left_ms, is_signed, window_ms
from state_machine.lifecycle import HostRollout
from state_machine.schedule import sustained_ms
from state_machine.state import (
    Consulting,
    Known,
    ProbeHealth,
    Realising,
    Rebooting,
    RollingBack,
    SeenIntent,
    Session,
    Switching,
    Tracked,
    fact_backlog,
)
from state_machine.values import (
    Basis,
    Moment,
    Phase,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    Reason,
    Source,
    SteadyMs,
    WallMs,
)
from wire.timestamps import format_rfc3339

SCHEMA: Final = 2
"""Of the document. A member that is added and can be missed leaves it as it is."""
FAR: Final = 253_402_300_799_000
"""The last second of the year 9999, in UTC milliseconds."""
CONFIGURED: Final = ("control_plane_url", "trust_file", "profile", "current_system", "client_cert")
"""Options that a running daemon tells, because what they name is looked at from outside too."""
IN_WORDS: Final[Mapping[Basis, str]] = {
    Basis.SIGNED_MANIFEST: "a signed manifest",
    Basis.MUTUAL_TLS: "mutual TLS alone",
    Basis.CACHE_KEY: "the cache's key alone",
}
"""What the trust in a target rests on."""


def rests_on(intent: VerifiedIntent) -> str:
    """What the trust in this target rests on; of a signature, whose."""
    key = f", key {intent.manifest_key_id}" if is_signed(intent) else ""
    return f"{IN_WORDS[intent.basis]}{key}"


A_REBOOT: Final = "a reboot"


def waiting_on(known: Known) -> str | None:
    """In a few words, what the host cannot go on without; None when it waits for nothing."""
    if known.settings.holds:
        return known.settings.holds
    match known.operation:
        case Realising(opens_at=int()):
            return "the activation window"
        case Realising(reason=Reason.VETOED, why=why):
            return f"the hooks, one of which said no: {_last_line(why)}"
        case Realising(reason=Reason() as reason, why=why, failures=failures) if reason is not Reason.REALISE_FAILED:
            return f"another try; {failures} ended before the switch, with {reason}: {_last_line(why)}"
        case Realising(failures=failures) if failures:
            return f"fetching the closure; tries failed: {failures}"
        case Realising():
            return "fetching the closure"
        case Consulting():
            return "the hooks"
        case Rebooting(retry_at=None):
            return "the host to go down"
        case Rebooting(why=why):
            return f"another try of the reboot: {_last_line(why)}"
        case Switching():
            return "the switch to end"
        case RollingBack(retry_at=None):
            return "the rollback to end"
        case RollingBack() if way_back_waits_for_reboot(known):
            return A_REBOOT
        case RollingBack(attempt=attempt):
            return f"another try of the rollback; {attempt} failed"
        case None:
            pass
    return _waiting_without_operation(known)


def _waiting_without_operation(known: Known) -> str | None:
    if known.waiting is not None:
        seen = known.intents.get(known.waiting.rollout_id)
        is_offer = seen is not None and not is_signed(seen.intent)
        return (
            f"its turn to begin {known.waiting.rollout_id}"
            if is_offer
            else f"the manifest of {known.waiting.rollout_id}"
        )
    current = known.current
    match None if current is None else current.record.phase:
        case Phase.DEFERRED:
            return A_REBOOT if windows.waits_for_reboot(known) is None else "the reboot window"
        case Phase.FAILED if way_back_waits_for_reboot(known):
            return A_REBOOT
        case Phase.SOAKING:
            unproven = sorted(
                spec.name
                for spec in known.judges
                if spec.mode is ProbeMode.ENFORCE and _status(known.probes.get(spec.name)) is not ProbeStatus.PASS
            )
            return f"probes: {', '.join(unproven)}" if unproven else "the soak"
        case _:
            return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


def _status(health: ProbeHealth | None) -> ProbeStatus:
    return ProbeStatus.UNKNOWN if health is None else health.status


def waiting_until(known: Known, session: Session | None, at: Moment) -> tuple[WallMs, str] | None:
    """When what `waiting_on` names comes, and how to read that; None: open.

    One of `next-try`, `at-latest`, `window-opens` and `soak-end`.
    """
    if known.settings.holds or way_back_waits_for_reboot(known):
        return None
    match known.operation:
        case Realising(retry_at=int(retry)) | RollingBack(retry_at=int(retry)) | Rebooting(retry_at=int(retry)):
            return _wall(known, SteadyMs(retry), at), "next-try"
        case Realising(opens_at=int(opens_at)):
            return _writable(opens_at), "window-opens"
        case Realising(due=due) | Consulting(due=due) | Switching(due=due) | RollingBack(due=due) | Rebooting(due=due):
            return _wall(known, due, at), "at-latest"
        case None:
            pass
    if known.waiting is not None:
        fetch_at = None if session is None else session.refetch_at
        return None if fetch_at is None else (_wall(known, fetch_at, at), "next-try")
    if windows.waits_for_reboot(known) is not None:
        opens = windows.reboot_opens_at(known, at.wall_ms)
        return None if opens is None else (_writable(opens), "window-opens")
    soak_end = _soak_end(known, at)
    return None if soak_end is None else (soak_end, "soak-end")


def _soak_end(known: Known, at: Moment) -> WallMs | None:
    """When the soak is over, should every probe pass: by running time here and, if it named one, by the dispatch."""
    current = known.current
    if current is None or current.record.phase is not Phase.SOAKING or current.soak_from is None:
        return None
    by_running_time = _wall(known, SteadyMs(current.soak_from + current.soak_ms), at)
    return max(by_running_time, current.record.soak_due_at or by_running_time)


def _wall(known: Known, instant: SteadyMs, at: Moment) -> WallMs:
    """An instant of running time as this host's wall clock will tell, or has told, it."""
    return _writable(at.wall_ms + instant - known.clock.read(at))


def _writable(instant: int) -> WallMs:
    """An instant in the future, however far a signed window reaches: RFC 3339 has years of four digits."""
    return WallMs(min(instant, FAR))


def _since(known: Known, instant: SteadyMs, at: Moment) -> str:
    """The same for one that has passed, which never lies ahead."""
    return format_rfc3339(min(at.wall_ms, _wall(known, instant, at)))


def document(known: Known, session: Session | None, at: Moment) -> dict[str, Any]:
    """What `status --json` prints, as far as the state knows. Members are stable; times RFC 3339, durations seconds."""
    current, until = known.current, waiting_until(known, session, at)
    return {
        "schema": SCHEMA,
        "at": format_rfc3339(at.wall_ms),
        "version": __version__,
        "machine_id": known.settings.machine_id,
        "source": known.settings.source.value,
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
        "waiting_until": None if until is None else format_rfc3339(until[0]),
        "waiting_until_means": None if until is None else until[1],
        "realise_failures": _realise_failures(known),
        "veto": _veto(known),
        "windows": _windows(known, at),
        "reboot": {"policy": known.settings.reboot.value, "delayed_by": _reboot_delay(known)},
        "hooks_owed": [{"moment": run.moment.value, "rollout": run.rollout_id} for run in known.hook_runs],
        "holds": known.settings.holds or None,
        "probes": [_probe(known, spec, at) for spec in known.judges],
        "intent": _intent(known, at),
        "quarantine": [
            {"closure": closure, "rollout": entry.rollout_id, "since": format_rfc3339(entry.at), "why": entry.why}
            for closure, entry in sorted(known.quarantine.items())
        ],
        "refusals": [
            {
                "what": what,
                "detail": note.detail,
                "age_secs": _age_s(known, note.at, at),
                "at": _since(known, note.at, at),
            }
            for what, note in sorted(known.refusals.items(), key=lambda item: item[1].at)
        ],
        "outbox": {t.record.rollout_id: t.record.last_seq - t.delivered_seq for t in fact_backlog(known)},
        "facts_refused": sum(tracked.refused_facts for tracked in known.rollouts.values()),
        "contact": None if session is None else _contact(known, session, at),
    }


def _realise_failures(known: Known) -> int:
    """How often in a row the closure could not be fetched."""
    match known.operation:
        case Realising(reason=None | Reason.REALISE_FAILED, failures=failures):
            return failures
        case _:
            return 0


def _veto(known: Known) -> str | None:
    """Why a hook did not let the switch begin when it was last asked; None: none is in the way."""
    match known.operation:
        case Realising(reason=Reason.VETOED, why=why):
            return why
        case _:
            return None


def _reboot_delay(known: Known) -> str | None:
    return known.operation.why or None if isinstance(known.operation, Rebooting) else None


def _windows(known: Known, at: Moment) -> dict[str, Any]:
    """Of activations and of reboots, whether one may begin now and when the next may; None where there are no windows.

    `next` None beside `open` false: it is further away than the windows have been worked out.
    """
    calendar, told = known.calendar, dict[str, Any]()
    for name, kind in (("activation", windows.activation), ("reboot", windows.reboot)):
        has_any = calendar is not None and kind(calendar) is not None
        opens = windows.opens_at(calendar, kind, at.wall_ms)
        is_open = opens is not None and opens <= at.wall_ms
        next_at = None if opens is None or is_open else format_rfc3339(_writable(opens))
        told[name] = {"open": is_open, "next": next_at} if has_any else None
    return told


def _age_s(known: Known, since: SteadyMs, at: Moment) -> int:
    """Running time since an instant. After a reboot without the agent the clock of its last run reads too early."""
    return max(0, known.clock.read(at) - since) // 1000


def reboot_required(known: Known) -> bool:
    """The next boot would start another system than the one that runs, and a rollout or its rollback waits for it."""
    current = known.current
    deferred = current is not None and current.record.phase is Phase.DEFERRED
    return deferred or way_back_waits_for_reboot(known)


def _rollout(known: Known, tracked: Tracked, at: Moment) -> dict[str, Any]:
    record, intent = tracked.record, tracked.intent
    soak_left = None
    if record.phase is Phase.SOAKING and tracked.soak_from is not None:
        soak_left = max(0, tracked.soak_from + tracked.soak_ms - known.clock.read(at)) // 1000
    since = _phase_since(record)
    stamps = {
        "acknowledged": record.dispatch_acked_at,
        "activating": record.activation_started_at,
        "activated": record.activation_completed_at,
        "converged": record.converged_at,
        "failed": record.failed_at,
        "reverted": record.reverted_at,
    }
    return {
        "id": record.rollout_id,
        "channel": record.rollout_id.partition("@")[0] if intent is None else intent.channel,
        "wave": intent.wave_index if intent is not None and is_signed(intent) else None,
        "phase": record.phase.value,
        "phase_since": None if since is None else format_rfc3339(since),
        "target": record.target_closure,
        "rollback_to": tracked.prior,
        "on_failure": tracked.policy.on_failure.value,
        "deferred_by": record.deferred_component,
        "signed_at": format_rfc3339(intent.signed_at) if intent is not None and is_signed(intent) else None,
        "signed_by": None if intent is None else intent.manifest_key_id or None,
        "manifest": None if intent is None else intent.manifest_digest or None,
        "basis": None if intent is None else intent.basis.value,
        "rests_on": None if intent is None else rests_on(intent),
        "offered_as": None if intent is None else intent.offered_as or None,
        "soak_left_secs": soak_left,
        "failure": record.failure,
        "since": {name: format_rfc3339(stamp) for name, stamp in stamps.items() if stamp is not None},
    }


def _phase_since(record: HostRollout) -> WallMs | None:
    """Since when the host stands where it stands; for Deferred, when the switch that ended so began."""
    match record.phase:
        case Phase.PENDING:
            return None
        case Phase.ACTIVATING:
            return record.dispatch_acked_at
        case Phase.DEFERRED:
            return record.activation_started_at
        case Phase.SOAKING:
            return record.activation_completed_at
        case Phase.CONVERGED:
            return record.converged_at
        case Phase.FAILED:
            return record.failed_at
        case Phase.REVERTED:
            return record.reverted_at
        case _:
            assert_never(record.phase)


def _probe(known: Known, spec: ProbeSpec, at: Moment) -> dict[str, Any]:
    said = {"name": spec.name, "kind": spec.kind, "mode": spec.mode.value}
    health = known.probes.get(spec.name)
    if health is None:
        return {**said, "status": ProbeStatus.UNKNOWN.value}
    fails_at = _fails_at(known, spec, health)
    return {
        **said,
        "status": health.status.value,
        "for_secs": _age_s(known, health.since, at),
        "since": _since(known, health.since, at),
        "reason": health.reason,
        "rollout_fails_at": None if fails_at is None else format_rfc3339(_wall(known, fails_at, at)),
    }


def _fails_at(known: Known, spec: ProbeSpec, health: ProbeHealth) -> SteadyMs | None:
    """When this probe fails the rollout, unless it passes before."""
    current = known.current
    soaking = current is not None and current.record.phase is Phase.SOAKING
    if not soaking or spec.mode is not ProbeMode.ENFORCE or health.status is not ProbeStatus.FAIL:
        return None
    return SteadyMs(health.since + sustained_ms(known))


def _intent(known: Known, at: Moment) -> dict[str, Any] | None:
    """The newest accepted intent of the source in use: how long it is still good."""
    ours = [
        seen for seen in known.intents.values() if is_signed(seen.intent) is (known.settings.source is Source.FLEET)
    ]
    newest = max(ours, key=lambda seen: (not _is_withdrawn(seen), seen.intent.signed_at), default=None)
    if newest is None:
        return None
    left = freshness_left_ms(known, newest, at.wall_ms, known.clock.read(at))
    behind = clock_is_behind(known, at.wall_ms)
    return {
        "rollout": newest.intent.rollout_id,
        "signed_at": format_rfc3339(newest.intent.signed_at) if is_signed(newest.intent) else None,
        "basis": newest.intent.basis.value,
        "said_at": format_rfc3339(newest.seen_wall),
        "window_secs": window_ms(known, newest) // 1000,
        "fresh_for_secs": max(0, left) // 1000,
        "fresh_until": None if left < 0 else format_rfc3339(_writable(at.wall_ms + left)),
        "state": _intent_state(newest, behind=behind, left_ms=left),
    }


def _is_withdrawn(seen: SeenIntent) -> bool:
    """An offer that its source has taken back, or has not repeated since the agent started."""
    return seen.withdrawn and not is_signed(seen.intent)


def _intent_state(seen: SeenIntent, *, behind: bool, left_ms: int) -> str:
    if not is_signed(seen.intent):  # the clock says nothing about it
        return "withdrawn" if seen.withdrawn else "stale" if left_ms < 0 else "fresh"
    return "clock-behind" if behind else "stale" if left_ms < 0 else "fresh"


def _contact(known: Known, session: Session, at: Moment) -> dict[str, Any]:
    certificate, renewal = session.certificate, session.due.get(Duty.RENEWAL)
    last = session.last_contact
    return {
        "last": None if last is None else format_rfc3339(last),
        "last_by_duty": {duty.value: format_rfc3339(wall) for duty, wall in sorted(session.last_success.items())},
        "failures": {duty.value: count for duty, count in sorted(session.failures.items()) if count},
        "next": {
            duty.value: format_rfc3339(_wall(known, due, at))
            for duty, due in sorted(session.due.items())
            if duty is not Duty.DELIVERY or fact_backlog(known)
        },
        "under_way": {duty.value: _since(known, began, at) for duty, began in sorted(session.started.items())},
        "certificate_days": None if certificate is None else round((certificate[1] - at.wall_ms) / 86_400_000, 2),
        "certificate_expires": None if certificate is None else format_rfc3339(certificate[1]),
        "certificate_renews": None if renewal is None else format_rfc3339(_wall(known, renewal, at)),
    }


def one_line(known: Known) -> str:
    """For `systemctl status`."""
    current, waits = known.current, waiting_on(known)
    said = "no rollout yet" if current is None else f"{current.record.rollout_id} {current.record.phase.value}"
    if current is not None and current.intent is not None and not is_signed(current.intent):
        said += f" ({rests_on(current.intent)})"
    return f"{said}, waiting for {waits}" if waits else said
