"""What must be true of a host after every scenario, looked up in its journal and on its disk."""

import itertools
from collections.abc import Iterator, Sequence

from nixfleet_agent.journal.entries import Record
from state_machine.events import QuarantineCleared
from state_machine.facts import ActivationStarted, Converged, ProbeResult, RollbackComplete, RolloutFact
from state_machine.state import Known
from state_machine.step_promises import contradictions
from state_machine.values import ProbeMode, ProbeStatus


def problems(records: Sequence[Record], known: Known) -> Iterator[str]:
    """Every promise that the journal shows broken, in words."""
    facts = [fact for record in records for fact in record.facts]
    yield from contradictions(known)
    yield from _numbers_without_gaps(facts)
    yield from _quarantine_holds(records, known)
    yield from _converged_means_proved(facts, known)


def _numbers_without_gaps(facts: Sequence[RolloutFact]) -> Iterator[str]:
    """S7: each number of a rollout once, in order."""
    last: dict[str, int] = {}
    for given in facts:
        before = last.get(given.rollout_id)
        if before is not None and given.fact.seq != before + 1:
            yield f"{given.rollout_id}: fact {given.fact.seq} follows {before}"
        last[given.rollout_id] = given.fact.seq


def _quarantine_holds(records: Sequence[Record], known: Known) -> Iterator[str]:
    """S3: what was taken back is not begun again, unless somebody cleared it."""
    targets = {rollout_id: tracked.record.target_closure for rollout_id, tracked in known.rollouts.items()}
    taken_back: set[str] = set()
    for record in records:
        if isinstance(record.event, QuarantineCleared):
            taken_back.clear()
        for given in record.facts:
            target = targets.get(given.rollout_id)
            match given.fact:
                case ActivationStarted() if target in taken_back:
                    yield f"{given.rollout_id} began {target}, which had been taken back"
                case RollbackComplete() if target is not None:
                    taken_back.add(target)
                case _:
                    pass


def _converged_means_proved(facts: Sequence[RolloutFact], known: Known) -> Iterator[str]:
    """S4: the last word of each enforce probe before `Converged` was a pass."""
    enforced = {spec.name for spec in known.judges if spec.mode is ProbeMode.ENFORCE}
    said: dict[str, ProbeStatus] = {}
    for given in facts:
        match given.fact:
            case ProbeResult(probe_name=name, status=status):
                said[name] = status
            case Converged():
                failing = [name for name in enforced if said.get(name, ProbeStatus.PASS) is not ProbeStatus.PASS]
                if failing:
                    yield f"{given.rollout_id} converged while {', '.join(failing)} failed"
            case _:
                pass


def switched_twice(switches: Sequence[str]) -> list[str]:
    """Switches that were run twice in a row."""
    return [line for line, following in itertools.pairwise(switches) if line == following]
