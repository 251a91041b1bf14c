"""Hand queued dispatches to hosts that wait for them.

A dispatch stays queued until the host's own fact settles it, so it may be handed out more than once: not sooner than
`REDELIVERY_S` after the last time, then after twice as long, up to `REDELIVERY_MAX_S`. A host has one place at the
desk: a new request takes it over, so what is handed out goes to the connection the host listens on.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from control_plane.entries import DispatchSent, Entry
from control_plane.ledger import Ledger
from control_plane.rows import Change, Drop, Key, Put, QueuedDispatch, key_of
from state_machine.events import DispatchKind
from state_machine.values import HostName

REDELIVERY_S: Final = 5.0
REDELIVERY_MAX_S: Final = 60.0


@attrs.frozen(kw_only=True)
class _HandedOut:
    times: int
    again_at: float


class DispatchDesk:
    """The waiting hosts and what waits for them."""

    def __init__(self, ledger: Ledger, *, settle: Callable[[], object]) -> None:
        """`settle` brings the plan up to date: nothing is handed out that the newest facts would have held back."""
        self._ledger, self._settle = ledger, settle
        self._queued: dict[HostName, dict[Key, QueuedDispatch]] = {}
        self._handed: dict[Key, _HandedOut] = {}
        self._bells: dict[HostName, Callable[[], None]] = {}
        """What wakes a waiting host's request."""
        self._places: dict[HostName, object] = {}
        self.closing = trio.Event()
        for row in ledger.book.all(QueuedDispatch):
            self._hold(row)
        ledger.subscribe(self._on_change)

    @property
    def waiting(self) -> int:
        """How many hosts wait now."""
        return len(self._places)

    async def take(
        self, host: HostName, wait_s: float, gone: Callable[[], Awaitable[object]] = trio.sleep_forever
    ) -> QueuedDispatch | None:
        """The next dispatch for `host`, as soon as there is one. None: not within `wait_s`, or the host asked anew.

        `gone` returns when the client has gone, and then there is nothing either. It is awaited here, in the request's
        own task: a task more for each of ten thousand hosts that wait would cost as much memory again.

        Raises:
            StoreUnavailableError: that it was handed out cannot be recorded, so it is not.
        """
        place, deadline = object(), trio.current_time() + wait_s
        self._places[host] = place
        self._ring(host)
        try:
            while self._places.get(host) is place and not self.closing.is_set():
                queued = self._next_allowed(host)
                visible_at = self._visible_at(queued)
                if queued is not None and visible_at <= trio.current_time():
                    return self._hand_out(queued)
                if trio.current_time() >= deadline:
                    return None
                with trio.move_on_at(min(deadline, visible_at)) as nap:
                    self._bells[host] = nap.cancel
                    await gone()
                if not nap.cancelled_caught:
                    return None
            return None
        finally:
            if self._places.get(host) is place:
                del self._places[host]
                self._bells.pop(host, None)

    def waiting_for(self, host: HostName) -> list[QueuedDispatch]:
        """Everything that waits for `host` now, a rollback before the rest. For a host that asks again and again."""
        self._settle()
        return sorted(
            self._queued.get(host, {}).values(),
            key=lambda queued: (queued.kind is not DispatchKind.ROLLBACK, queued.enqueued_at),
        )

    def record_sent(self, queued: QueuedDispatch) -> None:
        """The host has it in its hands.

        Raises:
            StoreUnavailableError: that cannot be recorded, so it must not be handed out.
        """
        if queued.sent_at is None:
            sent = DispatchSent(hostname=queued.hostname, rollout_id=queued.rollout_id, kind=queued.kind)
            self._ledger.record(sent)

    def close(self) -> None:
        """Send every waiting host away."""
        self.closing.set()
        for host in list(self._bells):
            self._ring(host)

    def _next_allowed(self, host: HostName) -> QueuedDispatch | None:
        if self._visible_at(self._next(host)) <= trio.current_time():
            self._settle()
        return self._next(host)

    def _next(self, host: HostName) -> QueuedDispatch | None:
        """What is visible first; of what is visible now, a rollback, then the oldest."""
        now = trio.current_time()

        def precedence(queued: QueuedDispatch) -> tuple[float, bool, int]:
            return max(self._visible_at(queued), now), queued.kind is not DispatchKind.ROLLBACK, queued.enqueued_at

        return min(self._queued.get(host, {}).values(), key=precedence, default=None)

    def _visible_at(self, queued: QueuedDispatch | None) -> float:
        if queued is None:
            return float("inf")
        handed = self._handed.get(key_of(queued))
        return -float("inf") if handed is None else handed.again_at

    def _hand_out(self, queued: QueuedDispatch) -> QueuedDispatch:
        self.record_sent(queued)
        times = self._handed[key_of(queued)].times + 1 if key_of(queued) in self._handed else 1
        pause = min(REDELIVERY_S * 2 ** (times - 1), REDELIVERY_MAX_S)
        self._handed[key_of(queued)] = _HandedOut(times=times, again_at=trio.current_time() + pause)
        return queued

    def _on_change(self, _: Entry, changes: list[Change]) -> None:
        for change in changes:
            match change:
                case Put(row=QueuedDispatch() as row):
                    self._hold(row)
                    self._ring(row.hostname)
                case Drop(row_type=row_type, key=key) if row_type is QueuedDispatch:
                    self._queued.get(HostName(key[0]), {}).pop(key, None)
                    self._handed.pop(key, None)
                case _:
                    pass

    def _hold(self, row: QueuedDispatch) -> None:
        self._queued.setdefault(row.hostname, {})[key_of(row)] = row

    def _ring(self, host: HostName) -> None:
        if (bell := self._bells.pop(host, None)) is not None:
            bell()
