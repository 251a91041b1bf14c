"""News that nobody has to trust: something was released, something was merged; whoever cares may look at once.

A listener learns that there is news and of which kind, and nothing more: what a message says besides is for people who
watch the subject. So whoever may send can make listeners look where they would look anyway, and how often they do is
theirs to say (`Pace`). News that is missed is no loss either: everybody looks by themselves in time.
"""

import enum
import json
import random
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from typing import Final

import attrs
import trio

from messaging.errors import LinkError, LostError, NoAnswerError
from messaging.link import Link, connected
from messaging.server import Server
from messaging.subjects import NEWS, token

TELL_S: Final = 5.0
"""How long telling may take: it is a courtesy."""

BASE_S: Final = 10.0
CAP_S: Final = 300.0
"""Before it tries to be connected again, a listener waits at random up to the first of these, twice that each time it
fails, at most the second; and the first again after a connection that held as long as the second."""

SAID_MAX: Final = 300

Act = Callable[[], Awaitable[None]]


class Kind(enum.StrEnum):
    """What there is news of."""

    RELEASED = "released"
    """A release was published, or signed again: for control planes and agents."""
    MERGED = "merged"
    """A repository's main branch moved: for builders, which may build what will be asked for."""


@attrs.frozen(kw_only=True)
class News:
    """What is told, for people who watch."""

    kind: Kind
    name: str
    """Of the repository that was merged to; of a release, where it was published."""
    commit: str = ""
    at: int
    """UTC milliseconds."""

    def subject(self, prefix: str = NEWS) -> str:
        """Where it goes. A server can say by it who may tell what."""
        return f"{prefix}.{self.kind}" + (f".{token(self.name)}" if self.kind is Kind.MERGED else "")


def subjects(prefix: str, kinds: Collection[Kind], names: Collection[str] = ()) -> tuple[str, ...]:
    """Where news of these kinds is told; where there are names, of merges to the repositories called so alone."""
    merged = [f"{prefix}.{Kind.MERGED}.{token(name)}" for name in names] or [f"{prefix}.{Kind.MERGED}.*"]
    released = [f"{prefix}.{Kind.RELEASED}"]
    return (*(released if Kind.RELEASED in kinds else ()), *(merged if Kind.MERGED in kinds else ()))


async def tell(server: Server, news: News, prefix: str = NEWS, name: str = "nixfleet") -> None:
    """Tell whoever listens, which may be nobody.

    Raises:
        LinkError: the server could not be told, or does not let this program tell.
    """
    subject = news.subject(prefix)
    with trio.move_on_after(TELL_S) as scope:
        async with connected(server, name, anew=False) as link:
            await link.publish(subject, json.dumps(attrs.asdict(news), separators=(",", ":")).encode())
            link.raise_complaint()
    if scope.cancelled_caught:
        raise NoAnswerError(subject=subject, within_s=TELL_S)


def heard(
    link: Link, prefix: str, kinds: Collection[Kind], names: Collection[str] = ()
) -> AbstractAsyncContextManager["trio.MemoryReceiveChannel[None]"]:
    """Something to receive from whenever there was news since it was last received from; `subjects` says of what.

        async with heard(link, NEWS, {Kind.MERGED}, names=("fleet",)) as news:
            async for _ in news:
                ...

    However many messages come meanwhile, one thing waits. What they say is never looked at. It ends when the connection
    does, if that is one which is not made anew. Raises, when entered, as `Link.woken_by`.
    """
    return link.woken_by(subjects(prefix, kinds, names))


@attrs.define(kw_only=True)
class Pace:
    """How often news may make a program do something, however often there is news."""

    gap_s: float
    """At least so long from the end of one time to the beginning of the next."""
    spread_s: float
    """Up to so much later than it could be, at random, so that all who hear the same do not act in one instant."""
    dice: Callable[[], float] = random.random
    """Numbers in [0, 1)."""

    async def keep(self, news: "trio.MemoryReceiveChannel[None]", act: Act) -> None:
        """`act` on news until there can be none any more. What comes before it begins is covered by that."""
        async for _ in news:
            await trio.sleep(self.dice() * self.spread_s)
            if news.statistics().current_buffer_used:
                news.receive_nowait()
            await act()
            await trio.sleep(self.gap_s)


@attrs.define(kw_only=True)
class Listener:
    """Listens for as long as it runs, whatever becomes of the server, and tells of each change once."""

    server: Server
    name: str
    """By which the server's operator knows this program."""
    prefix: str
    kinds: Collection[Kind]
    pace: Pace
    on_change: Callable[["Listener"], None]
    """Called when `connected` or `trouble` has changed."""
    connected: bool = False
    trouble: str = ""
    """Why it is not connected; empty before the first try has failed."""

    async def run(self, act: Act) -> None:
        """Call `act` when there is news, no oftener than the pace allows. Ends only by being cancelled, or with `act`.

        Raises:
            ExceptionGroup: with what `act` raised.
        """
        send, receive = trio.open_memory_channel[None](1)
        async with trio.open_nursery() as nursery:
            # Beside the connection, so that one which breaks does not begin the gap anew.
            nursery.start_soon(self.pace.keep, receive, act)
            await self._keep_listening(send)

    async def _keep_listening(self, wake: "trio.MemorySendChannel[None]") -> None:
        failures = 0
        while True:
            began = trio.current_time()
            self._note(await self._listen(wake))
            failures = 0 if trio.current_time() - began >= CAP_S else failures + 1
            # A server that comes back is not to be run over by everybody who waited for it.
            await trio.sleep(self.pace.dice() * min(CAP_S, BASE_S * 2 ** min(max(failures - 1, 0), 10)))

    async def _listen(self, wake: "trio.MemorySendChannel[None]") -> Exception:
        """Listen until that is over; why it is."""
        try:
            async with (
                connected(self.server, self.name, anew=False) as link,
                heard(link, self.prefix, self.kinds) as news,
            ):
                self._note(None)
                async for _ in news:
                    if not wake.statistics().current_buffer_used:
                        wake.send_nowait(None)
        except Exception as error:  # a server may send a library of somebody else's anything, and nothing ends for it
            return error
        return LostError(url=self.server.url)

    def _note(self, error: Exception | None) -> None:
        now = "" if error is None else _in_words(error)
        if self.connected is (error is None) and now == self.trouble:
            return
        self.connected, self.trouble = error is None, now
        self.on_change(self)


def _in_words(error: Exception) -> str:
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    said = str(error) if isinstance(error, LinkError) else f"{type(error).__name__}: {error}"
    return "".join(c if c.isprintable() else " " for c in said[:SAID_MAX])
