"""Obey `Realise`, `Switch` and `Rollback`: call the platform, tell the reducer how it ended."""

import functools
from collections.abc import Awaitable, Callable

import trio

from nixfleet_agent.activation.interface import Platform, SwitchReport
from nixfleet_agent.desk import Desk
from state_machine.actions import Abandon, Realise, Rollback, Switch
from state_machine.events import RealiseFinished, SwitchFinished
from state_machine.values import OpId


class ActivationWorker:
    """Answers with `RealiseFinished(op)` and `SwitchFinished(op)`."""

    def __init__(self, desk: Desk, platform: Platform, journal_id: str, caches: Callable[[], tuple[str, ...]]) -> None:
        """`caches` gives those that the source of intent names, to be tried after the configured ones."""
        self._desk = desk
        self._caches = caches
        self._platform = platform
        self._journal_id = journal_id
        self._fetching: dict[OpId, trio.CancelScope] = {}

    async def realise(self, order: Realise) -> None:
        """Fetch the closure, unless a newer target makes it unwanted meanwhile."""
        with trio.CancelScope() as scope:
            self._fetching[order.op] = scope
            try:
                outcome = await self._platform.realise(
                    order.closure, caches=(*self._desk.config.cache_urls, *self._caches())
                )
            finally:
                del self._fetching[order.op]
        if scope.cancelled_caught:
            return
        await self._desk.tell(
            RealiseFinished(
                at=self._desk.clock(),
                op=order.op,
                ok=outcome.ok,
                untrusted=outcome.signature,
                detail=outcome.detail,
                jitter=self._desk.jitter(),
            )
        )

    def abandon(self, order: Abandon) -> None:
        """Stop fetching."""
        scope = self._fetching.get(order.op)
        if scope is not None:
            scope.cancel()

    async def switch(self, order: Switch) -> None:
        """Switch forward."""
        await self._carry_out(order, functools.partial(self._platform.switch, only_if_begun=order.only_if_begun))

    async def roll_back(self, order: Rollback) -> None:
        """Switch back."""
        await self._carry_out(order, self._platform.rollback)

    async def _carry_out(self, order: Switch | Rollback, go: Callable[..., Awaitable[SwitchReport]]) -> None:
        report = await go(self._name(order.op), order.closure, timeout_s=float(order.timeout_s))
        await self._desk.tell(
            SwitchFinished(
                at=self._desk.clock(),
                op=order.op,
                outcome=report.outcome,
                system=self._platform.observe(),
                exit_code=report.exit_code,
                component=report.component or "",
                detail=report.detail,
                jitter=self._desk.jitter(),
            )
        )

    def _name(self, op: OpId) -> str:
        """Unique beyond this journal: a new one begins to count anew while records of old switches still lie about."""
        return f"{self._journal_id}-{op}"
