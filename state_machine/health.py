"""Watching the running system: probes, soak, sustained failure, convergence, drift (promises S4, L1, L2).

Probes judge the system, not a rollout: they go on before, during and after one. While the active rollout is Soaking
what they say goes on its record.
"""

from collections.abc import Iterator

import attrs

from state_machine import activation, hooks, schedule
from state_machine.actions import ObserveSystem, RestartProbes
from state_machine.events import ProbeObserved, ProbesDeclared, SystemObserved
from state_machine.evolution import evolve
from state_machine.facts import (
    Converged,
    DriftObserved,
    Failed,
    ProbeFailureFirst,
    ProbeObservedFirst,
    ProbeResult,
    ProbeTopologyDeclared,
)
from state_machine.lifecycle import LIFECYCLE, convergence_blocker
from state_machine.state import Known, ProbeHealth, Tracked
from state_machine.turn import Turn
from state_machine.values import (
    Closure,
    HookMoment,
    Phase,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    RolloutId,
    SteadyMs,
    WallMs,
)


def begin_soak(turn: Turn, rollout_id: RolloutId) -> None:
    """The target runs: from here on its health counts, and nothing seen earlier does."""
    turn.put(evolve(turn.known.rollouts[rollout_id], soak_from=turn.now))
    forget_results(turn)
    declare_topology(turn)
    restart_probes(turn)


def declare_topology(turn: Turn) -> None:
    """Put on the record which probes judge the rollout that is soaking."""
    current = _soaking(turn)
    if current is not None:
        turn.record(
            current.record.rollout_id,
            lambda seq: ProbeTopologyDeclared(seq=seq, probes=turn.known.judges, declared_at=turn.wall),
        )


def forget_results(turn: Turn) -> None:
    """Another system runs: what probes said before says nothing about it."""
    turn.set(probes={}, probes_since=turn.now)


def doubt_results(turn: Turn) -> None:
    """The agent was not there to look: an old failure goes on counting only once it has been seen again."""
    probes = turn.known.probes
    turn.set(probes={name: attrs.evolve(health, seen_in_this_run=False) for name, health in probes.items()})


def restart_probes(turn: Turn, *, activated_at: WallMs | None = None) -> None:
    """Run all probes now, with the gate of the active policy. `activated_at`: what runs now has run since then."""
    current = turn.known.current
    completed_at = None if current is None else current.record.activation_completed_at
    turn.order(
        RestartProbes(
            activated_at=completed_at if activated_at is None else activated_at,
            max_failed_units=None if current is None else current.policy.max_failed_units,
        )
    )


def _soaking(turn: Turn) -> Tracked | None:
    current = turn.known.current
    return current if current is not None and current.record.phase is Phase.SOAKING else None


def _on_trial(turn: Turn) -> Tracked | None:
    """The rollout that what is seen now speaks for or against: Soaking, and its target is what runs."""
    current = _soaking(turn)
    return current if current is not None and turn.known.system.running == current.record.target_closure else None


def note_change(turn: Turn, before: Closure | None) -> None:
    """What runs is not what ran `before`: somebody else took the target away, or gave it back.

    What probes said of one system says nothing about another, and the soak of a target that comes back begins anew.
    """
    current, running = _soaking(turn), turn.known.system.running
    if current is None or running == before or current.record.target_closure not in (running, before):
        return
    forget_results(turn)
    if running == current.record.target_closure:
        turn.put(evolve(current, soak_from=turn.now))
    restart_probes(turn)


# --- probes ---------------------------------------------------------------------------------------------------------


def on_probes_declared(turn: Turn, event: ProbesDeclared) -> None:
    """The operator changed what is probed. Results of probes that are still there stay."""
    if event.probes == turn.known.topology:
        return restart_probes(turn)  # an address or an interval may have changed, which is no business of decisions
    names = {spec.name for spec in event.probes}
    kept = {name: health for name, health in turn.known.probes.items() if name in names}
    turn.set(topology=event.probes, probes=kept)
    current = _soaking(turn)
    if current is not None:
        # The declaration starts the record's probe map afresh, so the results start afresh with it.
        forget_results(turn)
        declare_topology(turn)
    return restart_probes(turn)


def on_probe_observed(turn: Turn, event: ProbeObserved) -> None:
    """A result. Only a first one or a change is news; a run that began before the activation says nothing."""
    known = turn.known
    spec = next((spec for spec in known.judges if spec.name == event.name), None)
    if spec is None or spec.mode is ProbeMode.DISABLED:
        return turn.unexpected(f"no probe {event.name[:64]!r} is declared")
    if event.status is ProbeStatus.UNKNOWN:
        return turn.unexpected(f"{event.name} observed nothing")
    if event.began_mono_ms + known.clock.offset_ms < known.probes_since:
        return None
    before = known.probes.get(event.name)
    if before is None or (before.status, before.sub_results) != (event.status, event.sub_results):
        _note_result(turn, spec, event, before)
    elif not before.seen_in_this_run:
        turn.set(probes={**known.probes, spec.name: attrs.evolve(before, seen_in_this_run=True)})
    return judge(turn)


def _note_result(turn: Turn, spec: ProbeSpec, event: ProbeObserved, before: ProbeHealth | None) -> None:
    unbroken = before is not None and before.status is event.status
    since = before.since if before is not None and unbroken else turn.now
    health = ProbeHealth(status=event.status, since=since, reason=event.reason, sub_results=event.sub_results)
    turn.set(probes={**turn.known.probes, spec.name: health})
    current = _on_trial(turn)
    if current is None:
        return
    rollout_id, name, mode = current.record.rollout_id, spec.name, spec.mode
    if before is None:
        turn.record(
            rollout_id,
            lambda seq: ProbeObservedFirst(seq=seq, probe_name=name, mode=mode, observed_at=turn.wall),
        )
    if event.status is ProbeStatus.FAIL and not unbroken:
        turn.record(
            rollout_id,
            lambda seq: ProbeFailureFirst(seq=seq, probe_name=name, mode=mode, first_failed_at=turn.wall),
        )
    turn.record(
        rollout_id,
        lambda seq: ProbeResult(
            seq=seq,
            probe_name=name,
            mode=mode,
            status=event.status,
            observed_at=turn.wall,
            failure_reason=event.reason if event.status is ProbeStatus.FAIL else None,
            sub_results=event.sub_results or None,
        ),
    )


# --- judgement ------------------------------------------------------------------------------------------------------


def judge(turn: Turn, *, looked: bool = False) -> None:
    """Has the soaking rollout failed, or converged? `looked`: the running system was observed in this very event.

    Failure comes first: a probe that has failed for too long is not outvoted by a soak that ends in the same instant.
    """
    current = _on_trial(turn)
    if current is None or turn.known.busy:
        return None
    sick = tuple(sorted(_sustained_failures(turn.known, turn.now)))
    if sick:
        return _sick(turn, current, sick)
    if not _soaked(turn, current) or _unproven(turn.known):
        return None
    running = turn.known.system.running or Closure("")
    if convergence_blocker(current.record, running, turn.wall) is not None:
        return None
    if not looked:
        # What runs now must be seen now, not a minute ago (S4).
        return turn.order(ObserveSystem())
    turn.record(
        current.record.rollout_id,
        lambda seq: Converged(seq=seq, converged_at=turn.wall, current_closure=running),
    )
    hooks.tell(turn, HookMoment.AFTER_SUCCESS, current)
    return None


def _soaked(turn: Turn, current: Tracked) -> bool:
    """The soak counts running time from this host's own activation."""
    return current.soak_from is not None and turn.now - current.soak_from >= current.soak_ms


def _unproven(known: Known) -> bool:
    """Some enforce probe has not passed last since the activation: no result is not a pass (S4)."""
    passing = {name for name, health in known.probes.items() if health.status is ProbeStatus.PASS}
    return any(spec.mode is ProbeMode.ENFORCE and spec.name not in passing for spec in known.judges)


def _sustained_failures(known: Known, now: SteadyMs) -> Iterator[str]:
    limit = schedule.sustained_ms(known)
    for spec in known.judges:
        health = known.probes.get(spec.name)
        if spec.mode is ProbeMode.ENFORCE and health is not None and health.status is ProbeStatus.FAIL:
            if health.seen_in_this_run and now - health.since >= limit:
                yield spec.name


def _sick(turn: Turn, current: Tracked, sick: tuple[str, ...]) -> None:
    longest = max(turn.now - turn.known.probes[name].since for name in sick)
    policy = current.policy.on_failure
    turn.record(
        current.record.rollout_id,
        lambda seq: Failed(
            seq=seq,
            failed_at=turn.wall,
            sustained_duration_secs=longest // 1000,
            failing_probes=sick,
            policy_applied=policy,
        ),
    )
    activation.after_failure(turn, current.record.rollout_id, f"probes failed: {', '.join(sick)}")


# --- drift ----------------------------------------------------------------------------------------------------------


def on_system_observed(turn: Turn, event: SystemObserved) -> None:
    """Somebody else may have switched the host: put it on record, do not fight over it."""
    if turn.known.busy:
        return None
    before = turn.known.system.running
    if event.system != turn.known.system:
        turn.set(system=event.system)
        note_change(turn, before)
    current = turn.known.current
    if current is None:
        return None
    if current.record.phase is Phase.DEFERRED and event.system.running == current.record.target_closure:
        return activation.complete_deferred(turn, current.record.rollout_id)
    activation.notice_being_back(turn)
    _note_drift(turn, current)
    judge(turn, looked=True)
    return None


def _note_drift(turn: Turn, current: Tracked) -> None:
    running, expected = turn.known.system.running, _expected(current)
    if running is None or expected is None or running == expected:
        if turn.known.drift is not None:
            turn.set(drift=None)
        return
    if running == turn.known.drift or DriftObserved not in LIFECYCLE[current.record.phase]:
        return
    turn.set(drift=running)
    turn.record(
        current.record.rollout_id,
        lambda seq: DriftObserved(seq=seq, expected_closure=expected, observed_closure=running, observed_at=turn.wall),
    )


def _expected(current: Tracked) -> Closure | None:
    match current.record.phase:
        case Phase.SOAKING | Phase.CONVERGED:
            return current.record.target_closure
        case Phase.DEFERRED:
            # Not the way back: where what ran at the dispatch had not proved itself, that leads further back.
            return current.record.closure_at_dispatch
        case Phase.REVERTED:
            return current.prior
        case _:
            return None
