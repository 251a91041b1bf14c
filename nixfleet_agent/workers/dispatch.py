"""The long-poll: wait for the control plane to route something here, and say what it was (protocol section 3.4)."""

from collections.abc import Awaitable, Callable
from typing import Final

from nixfleet_agent.desk import Desk, NotJsonAnswerError, read_json
from state_machine.events import DispatchReceived
from state_machine.system import SystemView
from state_machine.values import WallMs
from wire.codec import decode
from wire.endpoints import DISPATCH
from wire.errors import WireError
from wire.messages import Dispatch

GRACE_S: Final = 5.0
"""How much longer than the asked-for wait the answer may take."""


class DispatchWorker:
    """Answers with `DispatchReceived`, or with nothing when nothing came."""

    def __init__(self, desk: Desk, observe: Callable[[], SystemView], review: Callable[[], Awaitable[None]]) -> None:
        """`review` looks at accepted intent by the trust file of now; see `IntentWorker.review`."""
        self._desk = desk
        self._observe = observe
        self._review = review

    async def poll(self) -> None:
        """One long-poll.

        Raises:
            TransportError, AnswerError: it failed.
        """
        wait_s = self._desk.state().known.settings.long_poll_wait_s
        path = f"{DISPATCH}?wait={wait_s}"
        answer = await self._desk.uplink.ask("GET", path, timeout_s=wait_s + GRACE_S)
        if answer.status == 204 or (answer.ok and not answer.body.strip()):
            return
        value = read_json(DISPATCH, answer)
        if value is None:
            return
        try:
            dispatch = decode(Dispatch, value)
        except WireError as error:
            raise NotJsonAnswerError(path=DISPATCH, problem=str(error)) from error
        await self._review()
        await self._desk.tell(
            DispatchReceived(
                at=self._desk.clock(),
                hostname=dispatch.hostname,
                rollout_id=dispatch.rollout_id,
                target_closure=dispatch.target_closure,
                running=self._observe().running,
                soak_due_at=soak_end(dispatch),
                soak_s=dispatch.soak_secs,
                kind=dispatch.kind,
                reason=dispatch.reason,
            )
        )


def soak_end(dispatch: Dispatch) -> WallMs | None:
    """The instant before which its sender wants no convergence; None where the sender's own clock had passed it.

    Compared with our clock, such an instant could still delay something: that clock may be behind, or step back later.
    """
    due, sent = dispatch.soak_due_at, dispatch.enqueued_at
    return None if due is not None and sent is not None and due <= sent else due
