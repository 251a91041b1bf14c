"""The promises of a whole run about what is gone on with: tries that fail, wishes, work left half done, lost numbers.

Like `run_promises`, they look at events, orders and facts and not at how a handler decided; `RUN_PROMISES` names them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from state_machine.events import Booted, Snapshot, SnapshotsReceived, SwitchFinished
from state_machine.facts import (
    ActivationCompleted,
    DispatchAck,
    DispatchReject,
    RollbackComplete,
    RollbackFailed,
    RollbackRequested,
)
from state_machine.intake import ADOPTED_SEQ_MAX
from state_machine.passages import Passage, facts_of, new_rollbacks, new_switches, rollout_of
from state_machine.state import RollingBack, Switching
from state_machine.system import SwitchOutcome
from state_machine.values import Closure, Phase, RolloutId, Source, is_closure, is_rollout_id

Run = Sequence[Passage]

_LEFT_HALF_DONE = (SwitchOutcome.FAILED, SwitchOutcome.TIMEOUT, SwitchOutcome.VERIFY_MISMATCH)
_UNDER_WAY = (Phase.ACTIVATING, Phase.DEFERRED, Phase.SOAKING)


def rebooted(passage: Passage) -> bool:
    """The agent starts on another boot than it ran on last."""
    return isinstance(passage.event, Booted) and passage.event.system.boot_id != passage.known.clock.boot_id


def s4_half_done_is_not_done(run: Run) -> Iterator[str]:
    """S4: a target whose switch failed runs only once a switch to it has worked, or a boot, whatever the links say."""
    half_done: set[Closure] = set()
    for passage in run:
        event, operation = passage.event, passage.known.operation
        if rebooted(passage):
            half_done.clear()
        if isinstance(event, SwitchFinished) and isinstance(operation, Switching) and event.op == operation.op:
            if event.outcome in _LEFT_HALF_DONE:
                half_done.add(operation.closure)
            elif event.outcome in (SwitchOutcome.SWITCHED, SwitchOutcome.DEFERRED):
                half_done.discard(operation.closure)
        for rollout_id, fact in facts_of(passage, ActivationCompleted):
            if fact.observed_current_closure in half_done:
                yield f"{rollout_id} counts as activated, and the last switch to its target failed"


def s7_numbers_go_on_after_those_of_a_lost_journal(run: Run) -> Iterator[str]:
    """S7: what the control plane was seen to hold of a rollout that this host has no record of is numbered on from.

    A host that follows another source has no such control plane, and listens to no snapshots.
    """
    held: dict[RolloutId, int] = {}
    shown: dict[RolloutId, list[Snapshot]] = {}
    for passage in run:
        known = passage.known
        if isinstance(passage.event, SnapshotsReceived) and known.settings.source is Source.FLEET:
            for snapshot in passage.event.snapshots:
                rollout_id = RolloutId(snapshot.rollout_id)
                shown.setdefault(rollout_id, []).append(snapshot)
                if _is_news(passage, snapshot) and snapshot.phase is Phase.PENDING:
                    held.setdefault(rollout_id, snapshot.last_seq)
        for rollout_id in passage.after.rollouts.keys() - known.rollouts.keys() - known.forgotten.keys():
            if not _is_answered(passage, rollout_id):
                yield from _taken_up(passage, rollout_id, shown.get(rollout_id, []))
        for born in passage.step.facts:
            if born.fact.seq <= held.pop(born.rollout_id, 0):
                yield f"{born.rollout_id} has a fact {born.fact.seq}, which the control plane was seen to hold already"


def _is_news(passage: Passage, snapshot: Snapshot) -> bool:
    rollout_id, known = RolloutId(snapshot.rollout_id), passage.known
    well_formed = is_rollout_id(rollout_id) and is_closure(snapshot.target_closure)
    well_formed = well_formed and 1 <= snapshot.last_seq <= ADOPTED_SEQ_MAX
    return well_formed and rollout_id not in known.rollouts and rollout_id not in known.forgotten


def _is_answered(passage: Passage, rollout_id: RolloutId) -> bool:
    """A dispatch of it was taken or rejected in this passage; if not, a lost journal left it under way."""
    answers = (*facts_of(passage, DispatchAck), *facts_of(passage, DispatchReject))
    return any(answered == rollout_id for answered, _ in answers)


def _taken_up(passage: Passage, rollout_id: RolloutId, shown: Sequence[Snapshot]) -> Iterator[str]:
    under_way = [snapshot for snapshot in shown if snapshot.phase in _UNDER_WAY]
    if not under_way:
        yield f"{rollout_id} is gone on with, and nobody showed it to be under way"
    born = [born.fact.seq for born in passage.step.facts if born.rollout_id == rollout_id]
    first = min(born, default=passage.after.rollouts[rollout_id].record.last_seq + 1)
    if under_way and first - 1 not in {snapshot.last_seq for snapshot in under_way}:
        yield f"{rollout_id} is gone on with from fact {first}, and the control plane held {under_way[0].last_seq}"


def l2_tried_again_and_not_for_ever(run: Run) -> Iterator[str]:
    """L2: a rollback that fails is tried as often as the settings say, and so is a switch that is cut off."""
    failed: Counter[RolloutId] = Counter()
    switched: Counter[RolloutId | None] = Counter()
    for passage in run:
        settings, before, after = passage.after.settings, passage.known.operation, passage.after.operation
        if rebooted(passage) and isinstance(before, RollingBack) and before.retry_at is not None:
            failed[before.rollout_id] -= 1  # what waited for its next try begins the last one anew
        for order in new_switches(passage):
            rollout_id = rollout_of(passage, order)
            switched[rollout_id] += 1
            if switched[rollout_id] > settings.switch_attempts:
                yield f"{rollout_id} is switched to for the {switched[rollout_id]}th time"
        for of, _ in facts_of(passage, RollbackFailed):
            if isinstance(before, RollingBack) and before.rollout_id == of:
                failed[of] += 1
                goes_on = isinstance(after, RollingBack) and after.rollout_id == of
                if goes_on and failed[of] >= settings.rollback_attempts:
                    yield f"the rollback of {of} goes on after {failed[of]} failures"
                elif not goes_on and passage.after.active == of and failed[of] < settings.rollback_attempts:
                    yield f"the rollback of {of} is given up after {failed[of]} failures"


def l2_a_wish_is_followed(run: Run) -> Iterator[str]:
    """L2: a rollback that was asked for begins, or it is said why not, once no switch is under way."""
    asked: set[RolloutId] = set()
    for passage in run:
        asked |= {rollout_id for rollout_id, _ in facts_of(passage, RollbackRequested)}
        if not asked:
            continue
        asked -= {rollout for order in new_rollbacks(passage) if (rollout := rollout_of(passage, order))}
        asked -= {rollout_id for rollout_id, _ in facts_of(passage, RollbackFailed)}
        asked -= {rollout_id for rollout_id, _ in facts_of(passage, RollbackComplete)}
        asked &= {passage.after.active}
        if asked and not isinstance(passage.after.operation, Switching):
            yield f"{passage.after.active} was asked back, and nothing came of it"
            asked.clear()
