"""Hear of news and look at once, as `nixfleet-agent poke` does. Loaded only where a NATS server is configured.

What there is news of is not asked, and nothing is taken from a message: the agent only does earlier what it does
anyway. So nothing here can fail that matters; a server that is away or hostile costs a log line and a little traffic.
What failed and is to be tried again later is not hurried: neither a pause that grows nor one that was asked for by a
control plane is anybody's to shorten.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from messaging.news import Kind, Listener, Pace
from messaging.server import Server
from nixfleet_agent.config import Config
from state_machine.events import Duty
from state_machine.state import State

SPREAD_S: Final = 10.0
"""Of the hosts that hear the same, each looks at a moment of its own within this: 5,000 are 500 a second."""
GAP_S: Final = 30.0
"""The least between two looks, or half of the poll interval where that is more: whoever floods the subject has a host
look at most twice as often as it would."""

log = logging.getLogger(__name__)


class NewsWorker:
    """Listens from its start to the end of the daemon."""

    def __init__(self, config: Config, server: Server, state: Callable[[], State], dice: Callable[[], float]) -> None:
        self._state = state
        self._listener = Listener(
            server=server,
            name=f"nixfleet-agent {config.machine_id}",
            prefix=config.news_prefix,
            kinds={Kind.RELEASED},
            pace=Pace(gap_s=max(GAP_S, config.poll_interval / 2), spread_s=SPREAD_S, dice=dice),
            on_change=_tell,
        )

    async def run(self, poke: Callable[[], Awaitable[None]]) -> None:
        """`poke` when there is news."""

        async def act() -> None:
            failures = self._state().session.failures
            failing = [duty for duty, times in failures.items() if times and duty is not Duty.DELIVERY]
            if failing:
                log.info("there is news, but what failed is not hurried", extra={"fields": {"failing": failing}})
                return
            log.info("there is news")
            await poke()

        await self._listener.run(act)

    def status(self) -> dict[str, Any]:
        """For `status --json`."""
        listener = self._listener
        state = "connected" if listener.connected else "trying"
        return {"state": state, "server": listener.server.url, "why": listener.trouble or None}


def _tell(listener: Listener) -> None:
    fields = {"server": listener.server.url}
    if listener.connected:
        log.info("listening for news", extra={"fields": fields})
    else:
        log.warning("no news is heard; polling goes on", extra={"fields": {**fields, "why": listener.trouble}})
