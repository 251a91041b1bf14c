"""One journal entry as one line for a person: what happened, in the words of whoever stands at the host.

Pure. Every event and every fact has a sentence, which mypy holds to the closed unions; facts, being what a rollout is
judged by, come before the event that gave birth to them.
"""

from collections.abc import Iterable
from typing import Any, Final, assert_never

from nixfleet_agent.status import IN_WORDS
from state_machine.events import (
    Booted,
    CalendarRead,
    CertificateLoaded,
    DispatchKind,
    DispatchReceived,
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
    SnapshotsReceived,
    SwitchFinished,
    SystemObserved,
    TargetOffered,
    Tick,
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
    RolloutFact,
    TargetRefused,
)
from state_machine.values import ProbeStatus, Reason
from wire.timestamps import format_rfc3339


def told(n: int, event: Event, facts: tuple[RolloutFact, ...]) -> dict[str, Any]:
    """Entry number `n` as `status --json` lists it."""
    return {
        "n": n,
        "at": format_rfc3339(event.at.wall_ms),
        "event": type(event).__name__,
        "facts": [f"{born.rollout_id} {type(born.fact).__name__} {born.fact.seq}" for born in facts],
        "said": sentence(event, facts),
    }


def newest(entries: Iterable[tuple[int, Event, tuple[RolloutFact, ...]]], lines: int) -> list[dict[str, Any]]:
    """The last of the entries, oldest first. That facts arrived is no news to whoever stands at the host."""
    kept = [entry for entry in entries if not isinstance(entry[1], FactsDelivered)]
    return [told(*entry) for entry in kept[len(kept) - min(lines, len(kept)) :]]


def sentence(event: Event, facts: tuple[RolloutFact, ...]) -> str:
    """What happened; a rollout's facts if there are any, for they say more."""
    if not facts:
        return of_event(event)
    said: dict[str, list[str]] = {}
    # That it was the first time goes without saying where the result is told too.
    results = tuple(born for born in facts if not isinstance(born.fact, ProbeObservedFirst | ProbeFailureFirst))
    for born in results or facts:
        said.setdefault(born.rollout_id, []).append(of_fact(born.fact))
    return "; ".join(f"{rollout}: {', '.join(sentences)}" for rollout, sentences in said.items())


def of_fact(fact: Fact) -> str:
    """What a fact says of its rollout."""
    match fact:
        case DispatchAck(current_closure_at_dispatch=closure):
            return f"accepted while {closure or 'nothing known'} ran"
        case ActivationStarted():
            return "the switch began"
        case ActivationCompleted(observed_current_closure=closure, exit_code=code):
            return f"switched to {closure}" + (f", with exit status {code}" if code else "")
        case ActivationDeferred(component=component):
            return f"prepared for the next boot, because {component or 'a part of the system'} wants a reboot"
        case ActivationFailed(exit_code=code, stderr_tail=tail):
            return f"the switch failed with exit status {code}{_because(tail)}"
        case ProbeTopologyDeclared(probes=probes):
            return f"judged by {', '.join(spec.name for spec in probes) or 'no probe'}"
        case ProbeObservedFirst(probe_name=name):
            return f"probe {name} ran for the first time"
        case ProbeResult(probe_name=name, status=status, failure_reason=reason):
            return _result(name, status, reason)
        case ProbeFailureFirst(probe_name=name):
            return f"probe {name} failed for the first time"
        case Failed(sustained_duration_secs=seconds, failing_probes=probes, policy_applied=policy):
            return f"failed: {', '.join(probes)} failed for {seconds} s; the policy is {policy}"
        case RollbackComplete(reverted_to_closure=closure):
            return f"rolled back to {closure}"
        case Converged():
            return "converged"
        case DispatchReject(reason=reason):
            return f"rejected: {reason}"
        case TargetRefused(reason=reason, detail=detail):
            return f"refused: {reason}{_because(detail)}"
        case RollbackRequested(reason=why):
            return f"the control plane wished it back{_because(why)}"
        case RollbackFailed(stderr_tail=tail):
            return f"the rollback failed{_because(tail)}"
        case DriftObserved(observed_closure=closure):
            return f"somebody else switched this host to {closure}"
        case _:
            assert_never(fact)


NO_TARGET: Final = frozenset({Reason.NOT_BUILT, Reason.AMBIGUOUS, Reason.WRONG_ARCHITECTURE})
"""Why a source that signs nothing has no target for a host."""


def of_event(event: Event) -> str:
    """What an event without facts was about."""
    match event:
        case Booted(system=system):
            return f"the agent started; {system.running or 'an unknown system'} runs"
        case Tick():
            return "a deadline passed"
        case DispatchReceived(kind=DispatchKind.ROLLBACK, rollout_id=rollout):
            return f"a wish to roll {rollout} back was received"
        case DispatchReceived(rollout_id=rollout):
            return f"a dispatch of {rollout} was received"
        case ProbesDeclared(probes=probes):
            return f"health checks read: {', '.join(spec.name for spec in probes) or 'none'}"
        case ProbeObserved(name=name, status=status, reason=reason):
            return _result(name, status, reason)
        case SystemObserved(system=system):
            return f"{system.running or 'an unknown system'} runs"
        case RealiseFinished(ok=True):
            return "the closure is here"
        case RealiseFinished(detail=detail):
            return f"the closure could not be fetched{_because(detail)}"
        case SwitchFinished(outcome=outcome, detail=detail):
            return f"a switch ended: {outcome}{_because(detail)}"
        case CertificateLoaded(validity=None):
            return "there is no certificate yet"
        case CertificateLoaded():
            return "a certificate is in use"
        case QuarantineCleared(closure=closure, by=by):
            return f"{by} lifted the quarantine of {closure or 'everything'}"
        case Poked():
            return "everything was asked for now"
        case TargetOffered(closure=None):
            return "nothing is wanted of this host"
        case TargetOffered(closure=closure, basis=basis, offered_as=name):
            return f"{closure} was offered{f' as {name}' if name else ''}; it rests on {IN_WORDS[basis]}"
        case CalendarRead():
            return "the windows of the weeks to come were worked out"
        case HooksFinished(veto=veto, output=output):
            return f"a hook said no{_because(veto)}" if veto else f"the hooks ran{_because(output)}"
        case RebootDelayed(detail=detail):
            return f"the host was not rebooted{_because(detail)}"
        case _:
            return _of_exchange(event)


def _of_exchange(
    event: IntentVerified | IntentRefused | FactsDelivered | FactRefused | ReplayRequested | SnapshotsReceived
    | DutyFinished,
) -> str:  # fmt: skip
    match event:
        case IntentVerified(intent=intent):
            return f"the manifest of {intent.rollout_id} was verified, signed by key {intent.manifest_key_id}"
        case IntentRefused(rollout_id=None, reason=reason, detail=detail) if reason in NO_TARGET:
            return f"the source has no target for this host: {reason}{_because(detail)}"
        case IntentRefused(rollout_id=None, reason=reason, detail=detail):
            return f"what the source said was refused: {reason}{_because(detail)}"
        case IntentRefused(rollout_id=rollout, reason=reason, detail=detail):
            return f"the manifest of {rollout} was refused: {reason}{_because(detail)}"
        case FactsDelivered(rollout_id=rollout, through_seq=seq):
            return f"the control plane holds the facts of {rollout} through {seq}"
        case FactRefused(rollout_id=rollout, seq=seq, status=status, reason=reason):
            return f"the control plane refused fact {seq} of {rollout}: {reason or status}"
        case ReplayRequested(rollout_id=rollout, from_seq=seq):
            return f"the control plane asked for the facts of {rollout} from {seq} on"
        case SnapshotsReceived():
            return "the control plane's view was compared with this host's"
        case DutyFinished(duty=duty, ok=ok):
            return f"{duty}: {'done' if ok else 'failed'}"
        case _:
            assert_never(event)


def _result(name: str, status: ProbeStatus, reason: str | None) -> str:
    verb = {ProbeStatus.PASS: "passes", ProbeStatus.FAIL: "fails", ProbeStatus.UNKNOWN: "has no result"}[status]
    return f"probe {name} {verb}{_because(reason or '')}"


def _because(detail: str) -> str:
    """The last line of what a program said, which is where the reason stands."""
    lines = detail.strip().splitlines()
    return f": {lines[-1].strip()}" if lines else ""
