"""From an accepted target to a running one, and back (promises S1, S3, S5, S6).

One operation at a time: `Realising` (the closure is fetched; harmless and repeated until it succeeds, and then it may
wait for its window), `Consulting` (the operator's hooks are asked), `Switching`, `RollingBack`, `Rebooting` (see
`reboots`). The requirements of `intake` are checked again at the moment the switch is ordered. A rollback goes to the
system recorded when the dispatch was acknowledged, and the failing closure is quarantined before it begins.
"""

from typing import Final

import attrs

from state_machine import health, hooks, intake, windows
from state_machine.actions import Abandon, Realise, Rollback, Switch
from state_machine.events import HooksFinished, RealiseFinished, SwitchFinished
from state_machine.facts import (
    ActivationCompleted,
    ActivationDeferred,
    ActivationFailed,
    ActivationStarted,
    RollbackComplete,
    RollbackFailed,
    TargetRefused,
)
from state_machine.lifecycle import ROLLBACK_FAILED
from state_machine.schedule import backoff_ms
from state_machine.state import (
    Consulting,
    HeldDispatch,
    Known,
    Quarantined,
    Realising,
    Rebooting,
    RollingBack,
    Switching,
    Tracked,
)
from state_machine.system import SwitchOutcome
from state_machine.turn import Turn
from state_machine.values import (
    Closure,
    FailurePolicy,
    HookMoment,
    Phase,
    Reason,
    RolloutId,
    SteadyMs,
    SwitchMethod,
    WallMs,
)

REALISE_BASE_MS: Final = 5_000
REALISE_CAP_MS: Final = 300_000
ROLLBACK_BASE_MS: Final = 30_000
ROLLBACK_CAP_MS: Final = 3_600_000
REALISE_LOST_MS: Final = 4_200_000
"""How long a realisation may stay unanswered: whoever does it gives up after an hour."""
LOST_ANSWER_MS: Final = 600_000
"""How long past its own deadline an order may stay unanswered: waiting for the switch lock comes before the switch."""

ASKED_DURING_SWITCH: Final = "the control plane asked during the switch"

EXIT_GENERIC: Final = -1
EXIT_UNTRUSTED: Final = -2
EXIT_WRONG_SYSTEM: Final = -3

_REASON: Final = {
    SwitchOutcome.FAILED: Reason.SWITCH_FAILED,
    SwitchOutcome.TIMEOUT: Reason.SWITCH_TIMEOUT,
    SwitchOutcome.VERIFY_MISMATCH: Reason.VERIFY_MISMATCH,
    SwitchOutcome.INTERRUPTED: Reason.SWITCH_FAILED,
    SwitchOutcome.LOCK_HELD: Reason.BUSY,
    SwitchOutcome.DEFERRED: Reason.SWITCH_FAILED,
    SwitchOutcome.SWITCHED: Reason.VERIFY_MISMATCH,
}


# --- forward --------------------------------------------------------------------------------------------------------


def begin(turn: Turn, rollout_id: RolloutId) -> None:
    """Go on with the active rollout from wherever its record stands: just acknowledged, or adopted."""
    tracked = turn.known.rollouts[rollout_id]
    target = tracked.record.target_closure
    if tracked.record.phase is Phase.SOAKING:
        return health.begin_soak(turn, rollout_id)
    if _runs_for_good(turn, target) and not _left_unfinished(turn.known, target):
        return _completed(turn, rollout_id, 0)
    if tracked.record.phase is Phase.ACTIVATING:
        _order_realise(turn, _realising(turn, rollout_id, target))
    return None


def _runs_for_good(turn: Turn, closure: Closure) -> bool:
    """The closure runs, and the next boot will bring it up as well: somebody may have chosen this one boot by hand."""
    return turn.known.system.running == closure and turn.known.system.profile == closure


def _left_unfinished(known: Known, closure: Closure) -> bool:
    """A switch to the closure failed here, so that the links may call it running while not all of its units do."""
    records = (tracked.record for tracked in known.rollouts.values())
    return any(r.target_closure == closure and r.failed_at and not r.activation_completed_at for r in records)


def _realising(turn: Turn, rollout_id: RolloutId, closure: Closure, *, attempt: int = 1) -> Realising:
    return Realising(op=turn.new_op(), rollout_id=rollout_id, closure=closure, due=turn.now, attempt=attempt)


def _order_realise(turn: Turn, operation: Realising) -> None:
    turn.set(operation=attrs.evolve(operation, due=SteadyMs(turn.now + REALISE_LOST_MS)))
    turn.order(Realise(op=operation.op, closure=operation.closure))


def on_realise_finished(turn: Turn, event: RealiseFinished) -> None:
    """The closure is in the store (then decide again, and switch), cannot be trusted, or is tried again later."""
    match turn.known.operation:
        case Realising(op=event.op, retry_at=None, opens_at=None) as operation if event.ok:
            _switch_if_allowed(turn, operation, event.jitter)
        case Realising(op=event.op, retry_at=None, opens_at=int()):
            turn.unexpected(f"realisation {event.op} has been answered")
        case Realising(op=event.op, retry_at=None) as operation if event.untrusted:
            _note_untouched(turn, operation.rollout_id)
            turn.refuse(Reason.REALISE_FAILED, f"signature: {event.detail}", operation.rollout_id)
            _fail(turn, operation.rollout_id, EXIT_UNTRUSTED, f"{Reason.REALISE_FAILED}: signature: {event.detail}")
        case Realising(op=event.op, retry_at=None) as operation:
            turn.refuse(Reason.REALISE_FAILED, event.detail, operation.rollout_id)
            _realise_later(turn, operation, event.jitter, Reason.REALISE_FAILED, event.detail)
        case _:
            turn.unexpected(f"no realisation {event.op} is under way")


def _realise_later(turn: Turn, operation: Realising, jitter: float, reason: Reason, why: str) -> None:
    pause = backoff_ms(REALISE_BASE_MS, REALISE_CAP_MS, operation.failures, jitter)
    later = attrs.evolve(
        operation,
        failures=operation.failures + 1,
        retry_at=SteadyMs(turn.now + pause),
        reason=reason,
        why=why[:512],
    )
    turn.set(operation=later)


def _switch_if_allowed(turn: Turn, operation: Realising, jitter: float, *, consulted: bool = False) -> None:
    """The moment of the decision (S1): fetching may have taken longer than the manifest stays fresh.

    Outside the activation window it waits; inside it the operator's hooks are asked, and all of this is asked again.
    What has begun already is finished without asking anybody but the source.
    """
    held = HeldDispatch(rollout_id=operation.rollout_id, target=operation.closure)
    seen = turn.known.intents.get(operation.rollout_id)
    refusal = (
        (Reason.MISSING, "the manifest is gone")
        if seen is None
        else intake.unmet(turn.known, held, seen, turn.wall, turn.now)
    )
    if turn.known.settings.holds:
        turn.refuse(Reason.BUSY, turn.known.settings.holds, operation.rollout_id)
        return _realise_later(turn, operation, jitter, Reason.BUSY, turn.known.settings.holds)
    if seen is not None and seen.withdrawn:  # it may prove again, or its time runs out
        return _realise_later(turn, operation, jitter, Reason.MISSING, "what it rests on was taken back")
    if refusal is not None:
        return _refuse_for_now(turn, operation, jitter, *refusal)
    if operation.begun:
        return _order_switch(turn, operation)
    opens_at = windows.opens_at(turn.known.calendar, windows.activation, turn.wall)
    if opens_at is None or opens_at > turn.wall:
        return _wait_for_window(turn, operation, opens_at)
    if turn.known.settings.hooks and not consulted:
        return _consult(turn, operation)
    return _order_switch(turn, operation)


def _refuse_for_now(turn: Turn, operation: Realising, jitter: float, reason: Reason, detail: str) -> None:
    turn.refuse(reason, detail, operation.rollout_id)
    if turn.known.rollouts[operation.rollout_id].record.refusal is None:
        turn.record(
            operation.rollout_id,
            lambda seq: TargetRefused(seq=seq, reason=reason, detail=detail[:512], refused_at=turn.wall),
        )
    _realise_later(turn, operation, jitter, reason, detail)


def _wait_for_window(turn: Turn, operation: Realising, opens_at: WallMs | None) -> None:
    """It is in the store; what holds now is asked again when the window opens, and so is whether it is still there."""
    when = windows.known_through(turn) if opens_at is None else opens_at
    turn.set(operation=attrs.evolve(operation, opens_at=when, reason=None, why=""))


def _consult(turn: Turn, operation: Realising) -> None:
    tracked = turn.known.rollouts[operation.rollout_id]
    op = turn.new_op()
    turn.set(
        operation=Consulting(
            op=op,
            rollout_id=operation.rollout_id,
            closure=operation.closure,
            due=SteadyMs(turn.now + turn.known.settings.hook_timeout_s * 1000 + LOST_ANSWER_MS),
            failures=operation.failures,
            attempt=operation.attempt,
        )
    )
    hooks.ask(turn, op, tracked)


def on_hooks_finished(turn: Turn, event: HooksFinished) -> None:
    """Hooks had their say: a veto is asked about again later, anything else lets the switch begin."""
    match turn.known.operation:
        case Consulting(op=event.op) as operation:
            prepared = _prepared(turn, operation)
            if event.veto:
                return _refuse_for_now(turn, prepared, event.jitter, Reason.VETOED, event.veto)
            return _switch_if_allowed(turn, prepared, event.jitter, consulted=True)
        case _:
            return hooks.told(turn, event)


def _prepared(turn: Turn, operation: Consulting) -> Realising:
    return Realising(
        op=turn.new_op(),
        rollout_id=operation.rollout_id,
        closure=operation.closure,
        due=turn.now,
        failures=operation.failures,
        attempt=operation.attempt,
    )


def let_go(turn: Turn, why: str) -> None:
    """The target that is being prepared is no longer wanted: its rollout ends before the system was touched."""
    operation = turn.known.operation
    assert isinstance(operation, Realising | Consulting)
    _note_untouched(turn, operation.rollout_id)
    turn.order(Abandon(op=operation.op))
    _fail(turn, operation.rollout_id, EXIT_GENERIC, why)


def _note_untouched(turn: Turn, rollout_id: RolloutId) -> None:
    turn.put(attrs.evolve(turn.known.rollouts[rollout_id], untouched=True))


def _order_switch(turn: Turn, prepared: Realising) -> None:
    settings = turn.known.settings
    op = turn.new_op()
    turn.record(
        prepared.rollout_id,
        lambda seq: ActivationStarted(seq=seq, started_at=turn.wall, switch_method=settings.switch_method),
    )
    turn.set(
        operation=Switching(
            op=op,
            rollout_id=prepared.rollout_id,
            closure=prepared.closure,
            boot_id=turn.known.clock.boot_id,
            due=_lost_at(turn),
            attempt=prepared.attempt,
        )
    )
    turn.order(Switch(op=op, closure=prepared.closure, timeout_s=settings.switch_timeout_s))


def _lost_at(turn: Turn) -> SteadyMs:
    return SteadyMs(turn.now + turn.known.settings.switch_timeout_s * 1000 + LOST_ANSWER_MS)


def on_switch_finished(turn: Turn, event: SwitchFinished) -> None:
    """The answer to a switch or a rollback."""
    match turn.known.operation:
        case Switching(op=event.op) as operation:
            turn.set(system=event.system, operation=None)
            _after_switch(turn, operation, event)
        case RollingBack(op=event.op, retry_at=None) as operation:
            turn.set(system=event.system)
            _after_rollback(turn, operation, event)
        case _:
            turn.unexpected(f"no switch {event.op} is under way")
    intake.consider(turn, may_fetch=True)


def _after_switch(turn: Turn, operation: Switching, event: SwitchFinished) -> None:
    rollout_id = operation.rollout_id
    if turn.known.rollouts[rollout_id].record.phase is Phase.FAILED:
        return roll_back(turn, rollout_id, ASKED_DURING_SWITCH)
    if turn.known.settings.switch_method is SwitchMethod.DRY_RUN:
        _note_untouched(turn, rollout_id)
        return _fail(turn, rollout_id, event.exit_code or 0, f"dry run: would switch. {event.detail}")
    match event.outcome:
        case SwitchOutcome.SWITCHED if event.system.running == operation.closure:
            return _completed(turn, rollout_id, event.exit_code or 0)
        case SwitchOutcome.DEFERRED:
            return _deferred(turn, rollout_id, event.component)
        case SwitchOutcome.LOCK_HELD | SwitchOutcome.INTERRUPTED:
            return again_or_fail(turn, operation, event.outcome, event.detail, event.jitter)
        case _:
            return _switch_failed(turn, rollout_id, event.outcome, event.exit_code, event.detail)


def again_or_fail(
    turn: Turn, operation: Switching, outcome: SwitchOutcome, detail: str, jitter: float, *, rebooted: bool = False
) -> None:
    """A switch that was cut off, or never got the lock, is begun again a bounded number of times.

    After a reboot into the target the boot itself has activated it; nothing is left to do.
    """
    rollout_id = operation.rollout_id
    if rebooted and _runs_for_good(turn, operation.closure):
        return _completed(turn, rollout_id, 0)
    if operation.attempt >= turn.known.settings.switch_attempts:
        if outcome is SwitchOutcome.LOCK_HELD:  # nothing was touched, so nothing is to be taken back
            _note_untouched(turn, rollout_id)
            return _fail(turn, rollout_id, EXIT_GENERIC, f"{Reason.BUSY}: {detail}")
        return _switch_failed(turn, rollout_id, outcome, None, f"cut off {operation.attempt} times. {detail}")
    again = _realising(turn, rollout_id, operation.closure, attempt=operation.attempt + 1)
    if outcome is SwitchOutcome.LOCK_HELD:
        turn.refuse(Reason.BUSY, detail, rollout_id)
        return _realise_later(turn, again, jitter, Reason.BUSY, detail)
    return _order_realise(turn, attrs.evolve(again, begun=not rebooted))


def _switch_failed(
    turn: Turn, rollout_id: RolloutId, outcome: SwitchOutcome, exit_code: int | None, detail: str
) -> None:
    reason = _REASON[outcome]
    mismatch = reason is Reason.VERIFY_MISMATCH
    code = EXIT_WRONG_SYSTEM if mismatch else EXIT_GENERIC if exit_code is None else exit_code
    turn.refuse(reason, detail, rollout_id)
    _fail(turn, rollout_id, code, f"{reason}: {detail}")
    after_failure(turn, rollout_id, f"{reason}: {detail[:200]}")


def _fail(turn: Turn, rollout_id: RolloutId, exit_code: int, detail: str) -> None:
    turn.set(operation=None)
    turn.record(
        rollout_id,
        lambda seq: ActivationFailed(seq=seq, exit_code=exit_code, stderr_tail=detail[-2048:], failed_at=turn.wall),
    )


def _completed(turn: Turn, rollout_id: RolloutId, exit_code: int) -> None:
    target = turn.known.rollouts[rollout_id].record.target_closure
    turn.set(operation=None, drift=None)
    turn.record(
        rollout_id,
        lambda seq: ActivationCompleted(
            seq=seq, observed_current_closure=target, exit_code=exit_code, completed_at=turn.wall
        ),
    )
    health.begin_soak(turn, rollout_id)


def complete_deferred(turn: Turn, rollout_id: RolloutId) -> None:
    """A reboot has brought the deferred target up."""
    _completed(turn, rollout_id, 0)


def fail_deferred(turn: Turn, rollout_id: RolloutId) -> None:
    """The host rebooted, but not into the deferred target: it did not come up, or somebody chose another.

    Where the earlier system runs, the policy's rollback makes it permanent; any other is not fought over.
    """
    running = turn.known.system.running or Closure("")
    detail = f"{Reason.VERIFY_MISMATCH}: after the reboot {running or 'nothing'} runs"
    _fail(turn, rollout_id, EXIT_WRONG_SYSTEM, detail)
    if running == turn.known.rollouts[rollout_id].prior:
        after_failure(turn, rollout_id, detail)


def _deferred(turn: Turn, rollout_id: RolloutId, component: str) -> None:
    turn.set(operation=None)
    turn.record(rollout_id, lambda seq: ActivationDeferred(seq=seq, component=component, deferred_at=turn.wall))


# --- back -----------------------------------------------------------------------------------------------------------


def after_failure(turn: Turn, rollout_id: RolloutId, why: str) -> None:
    """The target is sick or half-activated: do what the policy says (L2)."""
    if turn.known.rollouts[rollout_id].policy.on_failure is FailurePolicy.ROLLBACK_AND_HALT:
        roll_back(turn, rollout_id, why)


NO_WAY_BACK: Final = "no earlier system is on record to go back to, or it is the failing one or quarantined itself"


def has_way_back(known: Known, tracked: Tracked) -> bool:
    """There is a recorded system to go back to: not the target (S5), and none that this host has rolled back (S3)."""
    prior = tracked.prior
    return bool(prior) and prior != tracked.record.target_closure and prior not in known.quarantine


def roll_back(turn: Turn, rollout_id: RolloutId, why: str) -> None:
    """Quarantine the target and go back to the recorded system; without one, stay Failed and say so (S5)."""
    tracked, operation = turn.known.rollouts[rollout_id], turn.known.operation
    target = tracked.record.target_closure
    if isinstance(operation, Realising | Consulting):
        turn.order(Abandon(op=operation.op))
    if isinstance(operation, Realising | Consulting | Rebooting):
        turn.set(operation=None)
    if not has_way_back(turn.known, tracked):
        detail = NO_WAY_BACK
        turn.refuse(Reason.ROLLBACK_FAILED, detail, rollout_id)
        turn.record(
            rollout_id,
            lambda seq: RollbackFailed(seq=seq, exit_code=EXIT_GENERIC, stderr_tail=detail, failed_at=turn.wall),
        )
        return
    entry = Quarantined(rollout_id=rollout_id, at=turn.wall, why=why)
    turn.set(quarantine={**turn.known.quarantine, target: entry})
    _order_rollback(turn, tracked, attempt=1)


def _order_rollback(turn: Turn, tracked: Tracked, *, attempt: int) -> None:
    assert tracked.prior is not None
    op = turn.new_op()
    turn.set(
        operation=RollingBack(
            op=op,
            rollout_id=tracked.record.rollout_id,
            closure=tracked.prior,
            boot_id=turn.known.clock.boot_id,
            due=_lost_at(turn),
            attempt=attempt,
        )
    )
    turn.order(Rollback(op=op, closure=tracked.prior, timeout_s=turn.known.settings.switch_timeout_s))


_AT_NEXT_BOOT: Final = f"{SwitchOutcome.DEFERRED} (waits for a reboot"


def way_back_waits_for_reboot(known: Known) -> bool:
    """The system to go back to cannot be swapped in live: profile and boot loader point at it for the next boot."""
    current, system = known.current, known.system
    if current is None or current.record.phase is not Phase.FAILED or known.busy:
        return False
    waits = (current.record.failure or "").startswith(f"{ROLLBACK_FAILED}{_AT_NEXT_BOOT}")
    return waits and system.profile == current.prior != system.running


def _after_rollback(turn: Turn, operation: RollingBack, event: SwitchFinished) -> None:
    if event.outcome is SwitchOutcome.SWITCHED and event.system.running == operation.closure:
        return rolled_back(turn, operation, event.exit_code or 0)
    deferred = event.outcome is SwitchOutcome.DEFERRED
    how = f"{_AT_NEXT_BOOT}: {event.component})" if deferred else event.outcome.value
    detail = f"{how}: {event.detail}"
    return _rollback_failed(turn, operation, event.exit_code, detail, event.jitter)


def rolled_back(turn: Turn, operation: RollingBack, exit_code: int) -> None:
    """The recorded system runs again."""
    _record_being_back(turn, operation.rollout_id, operation.closure, exit_code)


def _record_being_back(turn: Turn, rollout_id: RolloutId, closure: Closure, exit_code: int) -> None:
    turn.set(operation=None, drift=None)
    turn.record(
        rollout_id,
        lambda seq: RollbackComplete(seq=seq, reverted_to_closure=closure, exit_code=exit_code, completed_at=turn.wall),
    )
    health.forget_results(turn)
    health.restart_probes(turn, activated_at=turn.wall)
    hooks.tell(turn, HookMoment.AFTER_ROLLBACK, turn.known.rollouts[rollout_id])


def notice_being_back(turn: Turn) -> None:
    """A rollback that was given up has come about all the same: by the reboot it waited for, or by hand."""
    known, current = turn.known, turn.known.current
    if current is None or current.record.phase is not Phase.FAILED or known.operation is not None:
        return
    prior, target = current.prior, current.record.target_closure
    if prior and prior != target and target in known.quarantine and _runs_for_good(turn, prior):
        _record_being_back(turn, current.record.rollout_id, prior, 0)


def _rollback_failed(turn: Turn, operation: RollingBack, exit_code: int | None, detail: str, jitter: float) -> None:
    code = EXIT_GENERIC if exit_code is None else exit_code
    turn.refuse(Reason.ROLLBACK_FAILED, detail, operation.rollout_id)
    turn.record(
        operation.rollout_id,
        lambda seq: RollbackFailed(seq=seq, exit_code=code, stderr_tail=detail[-2048:], failed_at=turn.wall),
    )
    if operation.attempt >= turn.known.settings.rollback_attempts:
        turn.set(operation=None)
        return
    pause = backoff_ms(ROLLBACK_BASE_MS, ROLLBACK_CAP_MS, 2 * (operation.attempt - 1), jitter)
    turn.set(operation=attrs.evolve(operation, retry_at=SteadyMs(turn.now + pause)))


# --- time and restarts ----------------------------------------------------------------------------------------------


def on_time(turn: Turn) -> None:
    """What is due by now: a retry, or an order whose answer got lost."""
    match turn.known.operation:
        case None:
            pass
        case Realising(retry_at=int(retry_at)) as operation if retry_at <= turn.now:
            _order_realise(turn, attrs.evolve(operation, op=turn.new_op(), retry_at=None))
        case Realising(opens_at=int(opens_at)) as operation:
            _look_at_window(turn, operation, opens_at)
        case Realising(retry_at=None, due=due) as operation if due <= turn.now:
            _order_realise(turn, operation)
        case Consulting(due=due) as operation if due <= turn.now:
            _order_realise(turn, _prepared(turn, operation))
        case RollingBack(retry_at=int(retry_at)) as operation if retry_at <= turn.now:
            _order_rollback(turn, turn.known.rollouts[operation.rollout_id], attempt=operation.attempt + 1)
        case Switching(due=due) as operation if due <= turn.now:
            turn.set(operation=None)
            _switch_lost(turn, operation.rollout_id)
            intake.consider(turn, may_fetch=True)
        case RollingBack(due=due, retry_at=None) as operation if due <= turn.now:
            _rollback_failed(turn, operation, None, "the rollback was never answered", 0.5)
            intake.consider(turn, may_fetch=True)
        case _:
            pass


def _look_at_window(turn: Turn, operation: Realising, expected: int) -> None:
    """It may be open by now, later than expected or, where the clock has been set, sooner."""
    opens_at = windows.opens_at(turn.known.calendar, windows.activation, turn.wall)
    if opens_at is not None and opens_at <= turn.wall:
        _order_realise(turn, attrs.evolve(operation, op=turn.new_op(), opens_at=None))
    elif expected <= turn.wall:
        _wait_for_window(turn, operation, opens_at)


def _switch_lost(turn: Turn, rollout_id: RolloutId) -> None:
    if turn.known.rollouts[rollout_id].record.phase is Phase.FAILED:
        return roll_back(turn, rollout_id, ASKED_DURING_SWITCH)
    return _switch_failed(turn, rollout_id, SwitchOutcome.TIMEOUT, None, "the switch was never answered")


def on_calendar(turn: Turn) -> None:
    """The windows are known anew: what waits for one looks for its place in them again."""
    operation = turn.known.operation
    if isinstance(operation, Realising) and operation.opens_at is not None:
        _wait_for_window(turn, operation, windows.opens_at(turn.known.calendar, windows.activation, turn.wall))
        on_time(turn)


def resume(turn: Turn, *, rebooted: bool) -> None:
    """Take up the operation that an earlier run of the agent left behind."""
    left_behind = turn.known.operation
    if isinstance(left_behind, Realising) and rebooted:  # what runs now was brought up by a boot, whole
        turn.set(operation=attrs.evolve(left_behind, begun=False))
    match turn.known.operation:
        case Realising(retry_at=None) as operation:
            _order_realise(turn, attrs.evolve(operation, opens_at=None))
        case Consulting() as operation:
            _order_realise(turn, _prepared(turn, operation))
        case Rebooting() if rebooted:
            turn.set(operation=None)
        case Rebooting(retry_at=None) as operation:  # it may never have been asked for
            turn.set(operation=attrs.evolve(operation, retry_at=turn.now))
        case Switching() as operation if rebooted:
            turn.set(operation=None)
            _resume_switch_after_reboot(turn, operation)
        case Switching() as operation:
            timeout_s = turn.known.settings.switch_timeout_s
            turn.set(operation=attrs.evolve(operation, due=_lost_at(turn)))
            # One that was asked back meanwhile is waited for, and not begun for the sake of being undone.
            asked_back = turn.known.rollouts[operation.rollout_id].record.phase is Phase.FAILED
            turn.order(
                Switch(op=operation.op, closure=operation.closure, timeout_s=timeout_s, only_if_begun=asked_back)
            )
        case RollingBack() as operation if rebooted and _runs_for_good(turn, operation.closure):
            rolled_back(turn, operation, 0)
        case RollingBack() as operation if rebooted:
            _order_rollback(turn, turn.known.rollouts[operation.rollout_id], attempt=operation.attempt)
        case RollingBack(retry_at=None) as operation:
            timeout_s = turn.known.settings.switch_timeout_s
            turn.set(operation=attrs.evolve(operation, due=_lost_at(turn)))
            turn.order(Rollback(op=operation.op, closure=operation.closure, timeout_s=timeout_s))
        case None:
            notice_being_back(turn)
        case _:
            pass


def _resume_switch_after_reboot(turn: Turn, operation: Switching) -> None:
    if turn.known.rollouts[operation.rollout_id].record.phase is Phase.FAILED:
        return roll_back(turn, operation.rollout_id, ASKED_DURING_SWITCH)
    return again_or_fail(
        turn, operation, SwitchOutcome.INTERRUPTED, "the host went down during the switch", 0.5, rebooted=True
    )
