"""`run-once`: the daemon, until this host is settled."""

from typing import Final

import trio

from nixfleet_agent.runtime import Runtime
from state_machine.events import Duty
from state_machine.state import State, fact_backlog
from state_machine.values import Phase

LONG_POLL_WAIT_S: Final = 1
"""Whoever runs once does not wait for what might come later."""

CONVERGED: Final = 0
CANNOT: Final = 1
"""Nothing may be begun in this run, such as for a journal that cannot be used; the log says why."""
ROLLED_BACK: Final = 3
FAILED: Final = 4
NEEDS_REBOOT: Final = 5
NOT_OVER: Final = 6

_STATUS: Final = {
    Phase.CONVERGED: CONVERGED,
    Phase.REVERTED: ROLLED_BACK,
    Phase.FAILED: FAILED,
    Phase.DEFERRED: NEEDS_REBOOT,
}


async def settled(runtime: Runtime, within_s: float) -> int:
    """Wait until nothing is under way and the control plane has been asked and told everything; the exit status."""
    with trio.move_on_after(within_s):
        while (status := exit_status(runtime.state())) is None:
            await runtime.turned()
        return status
    return NOT_OVER


def exit_status(state: State) -> int | None:
    """What there is to say about a settled host; None while it is not."""
    known, session = state.known, state.session
    if known.settings.holds:
        return CANNOT
    asked = Duty.DISPATCH in session.last_success and Duty.HEARTBEAT in session.last_success
    if not asked or known.waiting is not None or known.operation is not None or fact_backlog(known):
        return None
    return CONVERGED if known.current is None else _STATUS.get(known.current.record.phase)
