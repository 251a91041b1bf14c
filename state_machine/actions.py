"""Actions: what `step` orders. The applier hands each to the worker that can do it, after the journal's commit.

All are idempotent: orders with an `op` by that number, the others because doing them twice does no harm. After a
restart `step` issues again whatever has no answer yet.
"""

import attrs

from state_machine.events import Duty
from state_machine.values import Basis, Closure, HookMoment, OpId, Reason, RolloutId, WallMs


@attrs.frozen(kw_only=True)
class FetchIntent:
    """Fetch and prove the fleet and the manifest of `rollout_id` now, out of turn.

    Answered by `IntentVerified` or `IntentRefused`.
    """

    rollout_id: RolloutId


@attrs.frozen(kw_only=True)
class Perform:
    """Do one exchange of `duty` now. Answered by `DutyFinished`, after the events that came of it."""

    duty: Duty


@attrs.frozen(kw_only=True)
class DeliverFacts:
    """Send the facts of `rollout_id` from `from_seq` to `through_seq`, in order, from the journal.

    Answered by `FactsDelivered`, `FactRefused` or `ReplayRequested` as they come.
    """

    rollout_id: RolloutId
    from_seq: int
    through_seq: int


@attrs.frozen(kw_only=True)
class Realise:
    """Bring the closure into the store, verified. Answered by `RealiseFinished(op)`."""

    op: OpId
    closure: Closure


@attrs.frozen(kw_only=True)
class Abandon:
    """Stop working on `op`: a newer target replaced it. No answer is expected; a late one is ignored."""

    op: OpId


@attrs.frozen(kw_only=True)
class Switch:
    """Switch to the closure. Answered by `SwitchFinished(op)`.

    `only_if_begun`: wait for the switch that an earlier run of the agent began, but begin none.
    """

    op: OpId
    closure: Closure
    timeout_s: int
    only_if_begun: bool = False


@attrs.frozen(kw_only=True)
class Rollback:
    """Switch back to the recorded closure. Answered by `SwitchFinished(op)`."""

    op: OpId
    closure: Closure
    timeout_s: int


@attrs.frozen(kw_only=True)
class RunHooks:
    """Run the operator's hooks of this moment, with these facts. Answered by `HooksFinished(op)`."""

    op: OpId
    moment: HookMoment
    rollout_id: RolloutId
    closure: Closure
    """The system that is about to be switched to, or that runs now."""
    before: Closure | None
    """The system that runs, or that was left."""
    basis: Basis


@attrs.frozen(kw_only=True)
class Reboot:
    """Reboot the host into the target that waits for it, unless a session lock is held.

    Answered by `Booted` with another boot id, or `RebootDelayed(op)`.
    """

    op: OpId
    rollout_id: RolloutId
    closure: Closure


@attrs.frozen(kw_only=True)
class ReadCalendar:
    """Work out the windows of the days to come. Answered by `CalendarRead`."""


@attrs.frozen(kw_only=True)
class RestartProbes:
    """Run every probe anew, at once.

    `activated_at` is when the running target was activated, where known; `max_failed_units` adds the policy's gate.
    """

    activated_at: WallMs | None
    max_failed_units: int | None


@attrs.frozen(kw_only=True)
class ObserveSystem:
    """Look at the host now. Answered by `SystemObserved`."""


@attrs.frozen(kw_only=True)
class Refuse:
    """Something asked for was not done. Counted by reason and logged; nothing else follows."""

    reason: Reason
    detail: str
    rollout_id: str = ""


@attrs.frozen(kw_only=True)
class Unexpected:
    """An event that makes no sense now: a late or repeated answer. Logged, nothing else."""

    event: str
    detail: str


Action = (
    FetchIntent
    | Perform
    | DeliverFacts
    | Realise
    | Abandon
    | Switch
    | Rollback
    | RunHooks
    | Reboot
    | ReadCalendar
    | RestartProbes
    | ObserveSystem
    | Refuse
    | Unexpected
)
