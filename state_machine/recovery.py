"""The beginning of every run: what the journal says was under way, against what the host shows.

Recovery is replay plus this one event. It needs no answer from anybody: the control plane may be gone for good.
"""

from state_machine import activation, health, hooks, intake, offers, schedule
from state_machine.events import Booted
from state_machine.evolution import evolve
from state_machine.state import Known
from state_machine.turn import Turn
from state_machine.values import Phase


def known_after_boot(known: Known, event: Booted) -> Known:
    """`known` with the clock of this run, so that everything after it reads time on one axis."""
    return evolve(known, clock=known.clock.booted(event.system.boot_id, event.at))


def on_booted(turn: Turn, event: Booted, *, rebooted: bool) -> None:
    """Resume whatever is unfinished, and begin the timetable of this run."""
    before = turn.known.system.running
    turn.set(runs=turn.known.runs + 1, settings=event.settings, system=event.system, calendar=event.calendar)
    if rebooted:
        health.forget_results(turn)
    health.note_change(turn, before)
    health.doubt_results(turn)
    schedule.start(turn)
    _declare(turn, event, rebooted=rebooted)
    offers.begin_run(turn)
    activation.resume(turn, rebooted=rebooted)
    hooks.resume(turn)
    current = turn.known.current
    if current is not None and current.record.phase is Phase.DEFERRED:
        _resume_deferred(turn, rebooted=rebooted)
    health.restart_probes(turn)
    intake.consider(turn, may_fetch=True)
    health.judge(turn)
    schedule.mark_seen(turn)


def _declare(turn: Turn, event: Booted, *, rebooted: bool) -> None:
    changed = event.probes != turn.known.topology
    turn.set(topology=event.probes)
    current = turn.known.current
    if current is not None and current.record.phase is Phase.SOAKING and (changed or rebooted):
        health.forget_results(turn)
        health.declare_topology(turn)
    elif changed:
        names = {spec.name for spec in turn.known.judges}
        turn.set(probes={name: known for name, known in turn.known.probes.items() if name in names})


def _resume_deferred(turn: Turn, *, rebooted: bool) -> None:
    current = turn.known.current
    assert current is not None
    rollout_id = current.record.rollout_id
    if turn.known.system.running == current.record.target_closure:
        activation.complete_deferred(turn, rollout_id)
    elif rebooted:
        activation.fail_deferred(turn, rollout_id)
