"""The promises S1 to S10, L1 and L2 as functions over what happened. An empty list means that all of them held.

Property tests and the simulator check both kinds; a live agent in a debug run checks each of its steps. Safety comes
step by step (`check_step`) and over a whole run (`check_run`); liveness is a state to end in, once the world is honest
(`l1_converged`, `l2_taken_back`).
"""

from state_machine.events import Event
from state_machine.facts import Fact
from state_machine.lifecycle import HostRollout, fold, opened
from state_machine.passages import Passage
from state_machine.run_promises import RUN_PROMISES, Run
from state_machine.state import Known, State, fact_backlog
from state_machine.step_promises import STEP_PROMISES
from state_machine.turn import Step
from state_machine.values import Phase, ProbeMode, ProbeStatus, RolloutId

__all__ = (
    "RUN_PROMISES",
    "STEP_PROMISES",
    "Passage",
    "Run",
    "check_passage",
    "check_run",
    "check_step",
    "l1_converged",
    "l2_taken_back",
    "mirror_of",
)


def check_step(before: State, event: Event, step: Step) -> list[str]:
    """What is wrong with `step` as the answer to `event` in `before`: sentences that begin with the promise's name."""
    return check_passage(Passage(before=before, event=event, step=step))


def check_passage(passage: Passage) -> list[str]:
    """`check_step` of a passage."""
    return [f"{name}: {problem}" for name, promise in STEP_PROMISES.items() for problem in promise(passage)]


def check_run(run: Run) -> list[str]:
    """What is wrong with a run that began with an agent's first start: sentences that begin with the promise's name."""
    return [f"{name}: {problem}" for name, promise in RUN_PROMISES.items() for problem in promise(run)]


def l1_converged(known: Known, rollout_id: RolloutId) -> list[str]:
    """L1, as the end of a run whose world became honest and whose target is healthy: the host has converged."""
    tracked = known.rollouts.get(rollout_id)
    if tracked is None:
        return [f"{rollout_id} was never taken"]
    record, problems = tracked.record, []
    if record.phase is not Phase.CONVERGED:
        problems.append(f"{rollout_id} is {record.phase}, not {Phase.CONVERGED}")
    if known.system.running != record.target_closure:
        problems.append(f"{known.system.running} runs, not {record.target_closure}")
    if any(waiting.record.rollout_id == rollout_id for waiting in fact_backlog(known)):
        problems.append(f"{record.last_seq - tracked.delivered_seq} facts were never delivered")
    return problems


def l2_taken_back(known: Known, rollout_id: RolloutId) -> list[str]:
    """L2, as the end of a run whose target is sick: the earlier system runs, its probes pass, the target is barred."""
    tracked = known.rollouts.get(rollout_id)
    if tracked is None:
        return [f"{rollout_id} was never taken"]
    record, problems = tracked.record, []
    if record.phase is not Phase.REVERTED:
        problems.append(f"{rollout_id} is {record.phase}, not {Phase.REVERTED}")
    if known.system.running != tracked.prior:
        problems.append(f"{known.system.running} runs, not {tracked.prior}")
    if record.target_closure not in known.quarantine:
        problems.append(f"{record.target_closure} is not quarantined")
    silent = [spec.name for spec in known.judges if spec.mode is ProbeMode.ENFORCE and spec.name not in known.probes]
    sick = [name for name, health in known.probes.items() if health.status is ProbeStatus.FAIL]
    problems += [f"{name} does not run on the earlier system" for name in silent]
    problems += [f"{name} fails on the earlier system" for name in sick]
    return problems


def mirror_of(record: HostRollout, facts: list[Fact]) -> HostRollout | str:
    """What a control plane that knows of the rollout only by its facts makes of them; a text if one does not fit."""
    mirror = opened(record.rollout_id, record.hostname, record.target_closure, soak_due_at=record.soak_due_at)
    for fact in facts:
        folded = fold(mirror, fact)
        if not isinstance(folded, HostRollout):
            return f"{fact} does not follow: {folded}"
        mirror = folded
    return mirror
