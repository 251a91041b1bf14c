"""Look at the published artifacts at once when somebody says that there are new ones.

What there is news of is not asked, and nothing is taken from a message: artifacts prove themselves, and are looked at
every `--artifact-poll-secs` anyway. Loaded only where a NATS server is configured.
"""

import logging
from collections.abc import Callable
from typing import Final

from messaging.news import Kind, Listener, Pace
from messaging.server import Server

SPREAD_S: Final = 0.5
GAP_S: Final = 5.0
"""The least between two looks. A look reads a few files; agents that heard the same news ask within seconds."""

LOG: Final = logging.getLogger(__name__)


async def listen(server: Server, prefix: str, look: Callable[[], None]) -> None:
    """Have `look` look whenever there is news, for as long as this runs."""

    async def act() -> None:
        LOG.info("there is news: looking at the artifacts")
        look()

    listener = Listener(
        server=server,
        name="nixfleet-control-plane",
        prefix=prefix,
        kinds={Kind.RELEASED},
        pace=Pace(gap_s=GAP_S, spread_s=SPREAD_S),
        on_change=_tell,
    )
    await listener.run(act)


def _tell(listener: Listener) -> None:
    if listener.connected:
        LOG.info("listening for news at %s", listener.server.url)
    else:
        LOG.warning("no news is heard, artifacts are looked at as without: %s", listener.trouble)
