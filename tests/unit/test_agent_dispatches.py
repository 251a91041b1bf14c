"""What the agent reads out of a dispatch."""

import pytest

from nixfleet_agent.workers.dispatch import soak_end
from state_machine.values import WallMs
from wire.messages import Dispatch

SENT = WallMs(1_780_000_000_000)
LATER = WallMs(SENT + 1)


@pytest.mark.parametrize(
    ("due", "sent", "read"),
    [(SENT, SENT, None), (LATER, SENT, LATER), (SENT, LATER, None), (SENT, None, SENT), (None, SENT, None)],
)
def test_a_soak_end_that_had_passed_by_the_senders_clock_delays_nothing_by_ours(
    due: WallMs | None, sent: WallMs | None, read: WallMs | None
) -> None:
    dispatch = Dispatch(
        hostname="web1", rollout_id="stable@c0ffee", target_closure="none", soak_due_at=due, enqueued_at=sent
    )
    assert soak_end(dispatch) == read
