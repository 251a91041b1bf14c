"""Rebooting for a target that waits for it, where the operator allowed that: inside the window, and with nobody in.

A reboot that does not come about is tried again with growing pauses. One that came about is judged like any other:
the target runs then, or its rollout has failed, and there is no second one for it.
"""

from typing import Final

import attrs

from state_machine import windows
from state_machine.actions import Reboot
from state_machine.events import RebootDelayed
from state_machine.schedule import backoff_ms
from state_machine.state import Rebooting, Tracked
from state_machine.turn import Turn
from state_machine.values import Reason, SteadyMs

LOST_MS: Final = 900_000
"""How long a host may take to go down."""
LOCKED_MS: Final = 60_000
LOCKED_CAP_MS: Final = 600_000
"""How soon a session lock is looked at again: every ten minutes in the end, as each look is an entry in the journal."""
BASE_MS: Final = 300_000
CAP_MS: Final = 21_600_000


def consider(turn: Turn) -> None:
    """Order the reboot if it may begin now; take back one that waited longer than its window was open."""
    current, operation = windows.waits_for_reboot(turn.known), turn.known.operation
    if current is None:
        if isinstance(operation, Rebooting):
            turn.set(operation=None)
        return
    is_open = windows.reboot_opens_at(turn.known, turn.wall) == turn.wall
    match operation:
        case None if is_open and turn.known.waiting is None:
            _order(turn, current, attempt=1)
        case Rebooting(retry_at=int(retry_at)) if retry_at <= turn.now and is_open and turn.known.waiting is None:
            _order(turn, current, attempt=operation.attempt + 1, held_up=operation.held_up)
        case Rebooting(retry_at=int(retry_at)) if retry_at <= turn.now:
            turn.set(operation=None)
        case Rebooting(retry_at=None, due=due) if due <= turn.now:
            _later(turn, operation, "the host did not go down", 0.5, locked=False)
        case _:
            pass


def _order(turn: Turn, current: Tracked, *, attempt: int, held_up: int = 0) -> None:
    rollout_id, target = current.record.rollout_id, current.record.target_closure
    op, due = turn.new_op(), SteadyMs(turn.now + LOST_MS)
    turn.set(
        operation=Rebooting(op=op, rollout_id=rollout_id, closure=target, due=due, attempt=attempt, held_up=held_up)
    )
    turn.order(Reboot(op=op, rollout_id=rollout_id, closure=target))


def on_reboot_delayed(turn: Turn, event: RebootDelayed) -> None:
    """The host stays up for now."""
    match turn.known.operation:
        case Rebooting(op=event.op, retry_at=None) as operation:
            _later(turn, operation, event.detail, event.jitter, locked=event.locked)
        case _:
            turn.unexpected(f"no reboot {event.op} is under way")


def _later(turn: Turn, operation: Rebooting, why: str, jitter: float, *, locked: bool) -> None:
    turn.refuse(Reason.BUSY, f"no reboot: {why}", operation.rollout_id)
    if locked:  # no failure: the host may well go down when its people have left
        pause = min(LOCKED_CAP_MS, LOCKED_MS << min(operation.held_up, 20))
        operation = attrs.evolve(operation, attempt=operation.attempt - 1, held_up=operation.held_up + 1)
    else:
        pause = backoff_ms(BASE_MS, CAP_MS, operation.attempt - 1, jitter)
        operation = attrs.evolve(operation, held_up=0)
    turn.set(operation=attrs.evolve(operation, retry_at=SteadyMs(turn.now + pause), why=why[:512]))
