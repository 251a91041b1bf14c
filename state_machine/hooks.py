"""The operator's hooks: asked before a switch, told after a success or a rollback.

Being told is owed until it has been done: it is on record before the hooks run, and ordered again after a restart, so
a hook may be told of the same thing twice. Its number, `op`, is the same both times.
"""

from typing import Final

from state_machine.actions import RunHooks
from state_machine.events import HooksFinished
from state_machine.state import HookRun, Tracked
from state_machine.turn import Turn
from state_machine.values import Basis, HookMoment, OpId

OWED_MAX: Final = 8
"""Hooks that hang for days are told of the last things only."""


def ask(turn: Turn, op: OpId, tracked: Tracked) -> None:
    """Ask whether a switch to the rollout's target may begin."""
    _order(
        turn,
        HookRun(
            op=op,
            moment=HookMoment.BEFORE_SWITCH,
            rollout_id=tracked.record.rollout_id,
            closure=tracked.record.target_closure,
            before=turn.known.system.running,
            basis=_basis(tracked),
        ),
    )


def tell(turn: Turn, moment: HookMoment, tracked: Tracked) -> None:
    """Tell of what has just become of the rollout, if there is anybody to tell."""
    if not turn.known.settings.hooks:
        return
    target, prior = tracked.record.target_closure, tracked.prior
    went_back = moment is HookMoment.AFTER_ROLLBACK
    run = HookRun(
        op=turn.new_op(),
        moment=moment,
        rollout_id=tracked.record.rollout_id,
        closure=(prior or target) if went_back else target,
        before=target if went_back else prior,
        basis=_basis(tracked),
    )
    turn.set(hook_runs=(*turn.known.hook_runs, run)[-OWED_MAX:])
    _order(turn, run)


def told(turn: Turn, event: HooksFinished) -> None:
    """They have been told: it is no longer owed."""
    left = tuple(run for run in turn.known.hook_runs if run.op != event.op)
    if left == turn.known.hook_runs:
        return turn.unexpected(f"no hooks {event.op} are running")
    return turn.set(hook_runs=left)


def resume(turn: Turn) -> None:
    """Tell again what an earlier run of the agent may not have told, if there is still anybody to tell."""
    if not turn.known.settings.hooks:
        return turn.set(hook_runs=())
    for run in turn.known.hook_runs:
        _order(turn, run)
    return None


def _order(turn: Turn, run: HookRun) -> None:
    turn.order(
        RunHooks(
            op=run.op,
            moment=run.moment,
            rollout_id=run.rollout_id,
            closure=run.closure,
            before=run.before,
            basis=run.basis,
        )
    )


def _basis(tracked: Tracked) -> Basis:
    return Basis.SIGNED_MANIFEST if tracked.intent is None else tracked.intent.basis
