"""Build every host of a repository when its branch has moved, before anybody asks.

News of it is told to all builders and trusted by none: each fetches, and asks for the hosts of the commit it finds as
anybody would, so that builders which share a server share these builds too. News that was missed is no loss: those
hosts are built when they are asked for.
"""

import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

import attrs
import trio

from messaging.errors import LinkError
from messaging.link import Link
from messaging.news import Kind, Pace, heard
from nixfleet.builder.errors import BuildError
from nixfleet.builder.messages import Request, Subjects, encode
from nixfleet.builder.settings import Settings
from nixfleet.clock import wall_now

GAP_S: Final = 30.0
SPREAD_S: Final = 3.0
WHOSE_S: Final = 1.0
log = logging.getLogger(__name__)

Ask = Callable[[Request], Awaitable[None]]


class Lists(Protocol):
    """Whoever knows what there is to build."""

    async def hosts(self, repository: str, revision: str) -> tuple[str, tuple[str, ...]]:
        """The commit that a revision means now, and the hosts of it that are built here.

        Raises:
            BuildError, OSError: that cannot be known.
        """
        ...


@attrs.frozen(kw_only=True)
class Prebuilder:
    """Listens for news of the repositories that want it."""

    settings: Settings
    link: Link
    works: Lists
    ask: Ask

    async def run(self) -> None:
        """Until it is cancelled."""
        async with trio.open_nursery() as nursery:
            for name, source in self.settings.repositories.items():
                if source.prebuild:
                    nursery.start_soon(self._listen, name)

    async def _listen(self, name: str) -> None:
        pace = Pace(gap_s=GAP_S, spread_s=SPREAD_S)
        try:
            async with heard(self.link, self.settings.news_prefix, {Kind.MERGED}, names=(name,)) as news:
                await pace.keep(news, partial(self._ask_for_all, name))
        except LinkError as error:
            log.warning("no news", extra={"fields": {"repository": name, "why": str(error)}})

    async def _ask_for_all(self, name: str) -> None:
        try:
            commit, hosts = await self.works.hosts(name, "")
            log.info("moved", extra={"fields": {"repository": name, "commit": commit, "hosts": len(hosts)}})
            for host in hosts:
                asked_by = f"prebuild-{secrets.token_hex(8)}"
                request = Request(repository=name, host=host, revision=commit, asked_by=asked_by, asked_at=wall_now())
                await self.ask(request)
        except (BuildError, LinkError, OSError) as error:
            log.warning("not built ahead", extra={"fields": {"repository": name, "why": str(error)}})


def ask_queue(link: Link, subjects: Subjects) -> Ask:
    """How to ask a server with JetStream."""

    async def ask(request: Request) -> None:
        queue = await link.work_queue(subjects.stream, subjects.all_jobs)
        await queue.put(subjects.job(request), encode(request))

    return ask


def ask_straight(link: Link, subjects: Subjects) -> Ask:
    """How to ask a server without: whoever has the job keeps it."""

    async def ask(request: Request) -> None:
        with contextlib.suppress(LinkError):
            await link.request(subjects.whose(request.job), encode(request), WHOSE_S)
            return
        await link.publish(subjects.job(request), encode(request))

    return ask
