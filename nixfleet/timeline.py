"""A rollout's log as a story, host by host: what happened, when, and how long after the step before. Pure.

A host's own facts carry the host's clock, everything else the control plane's; a step that seems to lie before the
one it followed shows how far the two clocks are apart, and is told as it was recorded.
"""

import enum
from collections.abc import Iterable, Sequence
from typing import Any, Final, assert_never

import attrs

from state_machine import facts
from state_machine.facts import Fact
from state_machine.values import HostName, Phase, ProbeStatus, WallMs
from wire.codec import decode_fact
from wire.errors import WireError
from wire.listings import LogKind, LogRow, RolloutHostRow, RolloutHosts

_SHOWN_CLOSURE: Final = 12


class Tone(enum.StrEnum):
    """How a step is to be taken."""

    GOOD = "good"
    BAD = "bad"
    BUSY = "busy"
    PLAIN = "plain"


@attrs.frozen(kw_only=True)
class Step:
    """One line of the story. `after_ms` counts from the step before; None for the first."""

    at: WallMs
    after_ms: int | None
    kind: str
    text: str
    tone: Tone


@attrs.frozen(kw_only=True)
class HostTimeline:
    """One host's part in a rollout."""

    host: HostName
    wave: int
    state: Phase | None
    held_by: str | None
    steps: tuple[Step, ...]

    @property
    def took_ms(self) -> int:
        """From its first step to its last."""
        return self.steps[-1].at - self.steps[0].at if self.steps else 0


@attrs.frozen(kw_only=True)
class _Moment:
    at: WallMs
    kind: str
    text: str
    tone: Tone


def timelines(hosts: RolloutHosts, rows: Sequence[LogRow]) -> tuple[HostTimeline, ...]:
    """Each host of the rollout with its steps, by wave and name."""
    return tuple(
        HostTimeline(
            host=row.host, wave=row.wave, state=row.state, held_by=row.held_by, steps=_steps(_moments(row, rows))
        )
        for row in sorted(hosts.hosts, key=lambda row: (row.wave, row.host))
    )


def _moments(host: RolloutHostRow, rows: Iterable[LogRow]) -> list[_Moment]:
    return [moment for row in rows if row.host == host.host and (moment := _moment(row)) is not None]


def _steps(moments: Sequence[_Moment]) -> tuple[Step, ...]:
    return tuple(
        Step(
            at=moment.at,
            after_ms=None if number == 0 else moment.at - moments[number - 1].at,
            kind=moment.kind,
            text=moment.text,
            tone=moment.tone,
        )
        for number, moment in enumerate(moments)
    )


def _moment(row: LogRow) -> _Moment | None:
    payload = row.payload if isinstance(row.payload, dict) else {}
    if row.kind is LogKind.AGENT_EVENT:
        try:
            return _told(decode_fact(payload))
        except WireError as error:
            kind = str(payload.get("kind", "unknown"))
            return _Moment(at=row.ts, kind=kind, text=f"{kind} ({error.detail})", tone=Tone.PLAIN)
    entry = str(payload.get("entry", row.kind))
    return _Moment(at=row.ts, kind=entry, text=_entry_text(entry, payload), tone=_ENTRY_TONES.get(entry, Tone.PLAIN))


_ENTRY_TONES: Final = {"FactRefused": Tone.BAD, "DispatchSent": Tone.BUSY}


def _entry_text(entry: str, payload: dict[str, Any]) -> str:
    what = "rollback" if payload.get("kind") == "rollback" else "dispatch"
    match entry:
        case "DispatchQueued":
            return f"{what} queued"
        case "DispatchSent":
            return f"{what} sent"
        case "DispatchWithdrawn":
            return f"{what} withdrawn: {payload.get('why', '')}"
        case "FactRefused":
            return f"a fact was refused: {payload.get('reason', '')} {payload.get('detail', '')}".rstrip()
        case _:
            return entry


def _told(fact: Fact) -> _Moment:
    at, text, tone = _words(fact)
    return _Moment(at=at, kind=type(fact).__name__, text=text, tone=tone)


def _words(fact: Fact) -> tuple[WallMs, str, Tone]:
    """When the host says it happened, what, and how it is to be taken."""
    match fact:
        case facts.DispatchAck():
            return fact.received_at, f"acknowledged; {_short(fact.current_closure_at_dispatch)} runs", Tone.BUSY
        case facts.ActivationStarted():
            return fact.started_at, f"switch started ({fact.switch_method})", Tone.BUSY
        case facts.ActivationCompleted():
            return fact.completed_at, f"switched to {_short(fact.observed_current_closure)}", Tone.GOOD
        case facts.ActivationDeferred():
            return fact.deferred_at, f"waits for a reboot: {fact.component} cannot be swapped live", Tone.BUSY
        case facts.ActivationFailed():
            return fact.failed_at, f"switch failed ({fact.exit_code}): {_last_line(fact.stderr_tail)}", Tone.BAD
        case facts.ProbeTopologyDeclared():
            names = ", ".join(probe.name for probe in fact.probes) or "none"
            return fact.declared_at, f"judged by probes: {names}", Tone.PLAIN
        case facts.ProbeObservedFirst():
            return fact.observed_at, f"probe {fact.probe_name} ran for the first time", Tone.PLAIN
        case facts.ProbeResult():
            passed = fact.status is ProbeStatus.PASS
            why = f": {fact.failure_reason}" if fact.failure_reason else ""
            return fact.observed_at, f"probe {fact.probe_name}: {fact.status}{why}", Tone.GOOD if passed else Tone.BAD
        case facts.ProbeFailureFirst():
            return fact.first_failed_at, f"probe {fact.probe_name} began to fail", Tone.BAD
        case facts.Failed():
            names = ", ".join(fact.failing_probes)
            text = f"failed: {names} for {fact.sustained_duration_secs} s; policy {fact.policy_applied}"
            return fact.failed_at, text, Tone.BAD
        case facts.RollbackComplete():
            return fact.completed_at, f"rolled back to {_short(fact.reverted_to_closure)}", Tone.BAD
        case facts.Converged():
            return fact.converged_at, f"converged on {_short(fact.current_closure)}", Tone.GOOD
        case facts.DispatchReject():
            return fact.rejected_at, f"dispatch rejected: {fact.reason}", Tone.BAD
        case facts.TargetRefused():
            return fact.refused_at, f"target refused: {fact.reason}: {fact.detail}", Tone.BAD
        case facts.RollbackRequested():
            return fact.requested_at, f"told to roll back: {fact.reason}", Tone.BAD
        case facts.RollbackFailed():
            return fact.failed_at, f"rollback failed ({fact.exit_code}): {_last_line(fact.stderr_tail)}", Tone.BAD
        case facts.DriftObserved():
            return fact.observed_at, f"drift: {_short(fact.observed_closure)} runs, nobody sent it", Tone.BAD
        case _:
            assert_never(fact)


def _short(closure: str) -> str:
    return f"{closure[:_SHOWN_CLOSURE]}..." if closure else "something unknown"


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
