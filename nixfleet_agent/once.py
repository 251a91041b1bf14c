"""`run-once`: the daemon, until this host is settled.

Settled means: the source has been asked, in this run, what there is to do, and told what it wants to know; and nothing
is under way. Whoever runs once does not wait for what comes later than the time he gives.
"""

from collections.abc import Callable, Mapping
from typing import Final

import trio

from nixfleet_agent.runtime import Runtime
from state_machine.events import Duty
from state_machine.freshness import is_signed
from state_machine.offers import NO_LONGER_OFFERED
from state_machine.state import Known, Realising, State, fact_backlog
from state_machine.values import Moment, Phase, RolloutId, Source, WallMs

LONG_POLL_WAIT_S: Final = 1

CONVERGED: Final = 0
CANNOT: Final = 1
"""Nothing may be begun in this run, such as for a journal that cannot be used; the log says why."""
ROLLED_BACK: Final = 3
FAILED: Final = 4
NEEDS_REBOOT: Final = 5
NOT_OVER: Final = 6
NOTHING_OFFERED: Final = 7
"""The source has nothing that this host could run: no build yet, none that worked, several, or what it has is refused.
That a control plane sets nothing for a host is no such thing, but the ordinary case of nothing to do."""
WAITS_FOR_WINDOW: Final = 8
"""The target is here, and the activation window opens later than this run may last."""

_STATUS: Final = {
    Phase.CONVERGED: CONVERGED,
    Phase.REVERTED: ROLLED_BACK,
    Phase.FAILED: FAILED,
    Phase.DEFERRED: NEEDS_REBOOT,
}

ASKED: Final[Mapping[Source, frozenset[Duty]]] = {
    Source.FLEET: frozenset({Duty.DISPATCH, Duty.HEARTBEAT}),
    Source.LEGACY: frozenset({Duty.INTENT, Duty.HEARTBEAT}),
    Source.GRADIENT: frozenset({Duty.INTENT}),
}
"""The exchanges that must have gone well once. A fleet's manifests are fetched for the dispatch that names them."""


async def settled(runtime: Runtime, within_s: float, clock: Callable[[], Moment]) -> int:
    """Wait until nothing is under way and the source has been asked and told everything; the exit status."""
    until = WallMs(clock().wall_ms + int(within_s * 1000))
    with trio.move_on_after(within_s):
        while (status := exit_status(runtime.state(), until)) is None:
            await runtime.turned()
        return status
    return NOT_OVER


def exit_status(state: State, until: WallMs) -> int | None:
    """What there is to say about a settled host; None while it is not. The run may last `until` then."""
    known, session = state.known, state.session
    if known.settings.holds:
        return CANNOT
    asked = ASKED[known.settings.source] <= session.last_success.keys()
    if not asked or fact_backlog(known) or known.hook_runs:
        return None
    if isinstance(known.operation, Realising) and (known.operation.opens_at or until) > until:
        return WAITS_FOR_WINDOW
    if _is_under_way(known):
        return None
    phase = None if known.current is None else known.current.record.phase
    if _has_nothing(known, phase):
        return NOTHING_OFFERED
    return CONVERGED if phase is None else _STATUS.get(phase)


def _is_under_way(known: Known) -> bool:
    """A target is on its way that its source still offers, or that is past being called off."""
    held, operation = known.waiting, known.operation
    if held is not None and not _is_withdrawn(known, held.rollout_id):
        return True
    return not (operation is None or (isinstance(operation, Realising) and _is_withdrawn(known, operation.rollout_id)))


def _is_withdrawn(known: Known, rollout_id: RolloutId) -> bool:
    """An offer that its source no longer makes. A signed manifest in doubt is waited for: it is being fetched again."""
    seen = known.intents.get(rollout_id)
    return seen is not None and seen.withdrawn and not is_signed(seen.intent)


def _has_nothing(known: Known, phase: Phase | None) -> bool:
    if any(not (is_signed(seen.intent) or seen.withdrawn) for seen in known.intents.values()):
        return False
    match known.settings.source:
        case Source.FLEET:
            return False
        case _ if known.current is not None and known.current.record.failure == NO_LONGER_OFFERED:
            return True
        case Source.LEGACY:
            return phase in (Phase.PENDING, Phase.ACTIVATING)
        case Source.GRADIENT:
            return phase in (None, Phase.PENDING, Phase.ACTIVATING, Phase.CONVERGED)
