"""What only a server with JetStream has: work queues and buckets, opened by `messaging.link.Link`."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Final, Protocol

import attrs
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from messaging.errors import NoAnswerError
from messaging.loops import on_asyncio

ANSWER_S: Final = 10


class Connection(Protocol):
    """As much of a link as these need."""

    @property
    def jetstream(self) -> JetStreamContext:
        """The library's half."""
        ...

    def trouble(self, subject: str, within_s: float = ANSWER_S) -> AbstractContextManager[None]:
        """Says what the library raises in our words."""
        ...

    async def flush(self) -> None:
        """Waits until the server has all that was sent."""
        ...


@attrs.frozen
class Delivery:
    """A job of a work queue. It is whoever took it's until it is settled, while `working` is said often enough."""

    _message: Msg
    _trouble: Callable[[], AbstractContextManager[None]]

    @property
    def data(self) -> bytes:
        """What was put in."""
        return self._message.data

    @property
    def tries(self) -> int:
        """How often it was given to somebody, this time included."""
        return self._message.metadata.num_delivered or 1

    async def done(self) -> None:
        """It is over, and nobody gets it again."""
        await self._tell(self._message.ack)

    async def again(self, after_s: float) -> None:
        """Not here and now: somebody gets it again later."""
        await self._tell(lambda: self._message.nak(delay=after_s))

    async def working(self) -> None:
        """It is being worked on: nobody else gets it for a while."""
        await self._tell(self._message.in_progress)

    async def _tell(self, what: Callable[[], Awaitable[None]]) -> None:
        with self._trouble():
            await on_asyncio(what)


@attrs.frozen
class WorkQueue:
    """Jobs that outlive those who ask and those who work; each is done by one of them."""

    _link: Connection
    _stream: str
    _durable: str
    _subscription: JetStreamContext.PullSubscription | None

    async def put(self, subject: str, data: bytes) -> None:
        """Put a job in. When this returns, the server has it on its disk.

        Raises:
            LinkError: it has not, as far as is known here.
        """
        with self._link.trouble(subject):
            await on_asyncio(self._link.jetstream.publish, subject, data, timeout=ANSWER_S)

    async def take(self, within_s: float) -> Delivery | None:
        """The next job, or None when there was none in that time."""
        assert self._subscription is not None, "this queue was opened to put jobs in"
        try:
            with self._link.trouble(self._stream):
                [message] = await on_asyncio(self._subscription.fetch, 1, timeout=within_s)
        except NoAnswerError:
            return None
        return Delivery(message, lambda: self._link.trouble(self._stream))

    async def leave(self) -> None:
        """Take no more: a job that somebody gives back from now on goes to others."""
        assert self._subscription is not None, "this queue was opened to put jobs in"
        with self._link.trouble(self._stream):
            await on_asyncio(self._subscription.unsubscribe)
            await self._link.flush()

    async def depth(self) -> int:
        """How many jobs nobody has taken."""
        with self._link.trouble(self._stream):
            info = await on_asyncio(self._link.jetstream.consumer_info, self._stream, self._durable)
        return info.num_pending or 0


@attrs.frozen
class Bucket:
    """Small values by name, of which a writer can say what it believes is there."""

    _link: Connection
    _values: KeyValue

    async def get(self, key: str) -> tuple[bytes, int] | None:
        """A value and its revision."""
        with self._link.trouble(key):
            try:
                entry = await on_asyncio(self._values.get, key)
            except KeyNotFoundError:
                return None
        return entry.value or b"", entry.revision or 0

    async def replace(self, key: str, value: bytes, revision: int) -> int | None:
        """Write it when what is there has this revision, 0 for nothing. The new revision; None: it is another now."""
        with self._link.trouble(key):
            try:
                if revision:
                    return await on_asyncio(self._values.update, key, value, last=revision)
                return await on_asyncio(self._values.create, key, value)
            except KeyWrongLastSequenceError:
                return None

    async def put(self, key: str, value: bytes) -> None:
        """Write it, whatever is there."""
        with self._link.trouble(key):
            await on_asyncio(self._values.put, key, value)
