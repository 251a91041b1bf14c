"""A connection to NATS for Trio: what the client library does on asyncio goes on in a loop beside it.

A connection that breaks is made anew by itself; what was subscribed to is subscribed to again, and what was sent in
between may be lost, as NATS has it. Who must not lose anything uses a work queue, which only a server with JetStream
has. Messages arrive by memory channels.
"""

import contextlib
import logging
import math
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import attrs
import nats
import trio
import trio_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import AuthorizationError, NoRespondersError, ProtocolError, StaleConnectionError
from nats.js.api import ConsumerConfig, KeyValueConfig, RetentionPolicy, StreamConfig
from nats.js.errors import APIError, BadRequestError, NotFoundError, ServiceUnavailableError
from nats.protocol.parser import Parser

from messaging.errors import (
    LinkError,
    LostError,
    NoAnswerError,
    NobodyListensError,
    StrangeAnswerError,
    UnreachableError,
    UnwelcomeError,
)
from messaging.jetstream import ANSWER_S, Bucket, WorkQueue
from messaging.loops import on_asyncio
from messaging.server import Server

CONNECT_S: Final = 10.0
RECONNECT_S: Final = 5
"""How long it waits between two tries to be connected again."""
INCOMING_MAX: Final = 2 * 1024 * 1024
"""Bytes of a message; a server takes 1 MiB unless told otherwise, and ours have less."""
WAITING_MAX: Final = 4096
"""Messages of a subscription that may wait for its reader; more are dropped, and it is logged."""
WAKING_MAX: Final = 64
WAKING_BYTES_MAX: Final = 4 * 1024 * 1024
"""The same, of one whose messages only wake somebody, and in silence."""
CLOSE_S: Final = 5.0
"""How long saying goodbye may take; `HURRY_S` on a connection that is not to be made anew, which nobody waits for."""
HURRY_S: Final = 1.0
TIDY_S: Final = 0.3

JOB_MAX_AGE_S: Final = 7 * 86_400
"""A job that nobody took for so long is forgotten."""

log = logging.getLogger(__name__)
# The library's own words about what is told here by errors.
logging.getLogger("nats").setLevel(logging.CRITICAL)


@attrs.frozen(kw_only=True)
class Message:
    """What came by a subscription."""

    subject: str
    data: bytes
    reply: str
    """Where whoever sent it waits for an answer; empty: nowhere."""


class _Bounded(Parser):
    """The library would keep whatever comes until it makes sense; here a connection ends that never does."""

    async def parse(self, data: bytes = b"") -> None:
        """Take in what was read."""
        await super().parse(data)
        if len(self.buf) > INCOMING_MAX:
            raise ProtocolError(f"nats: more than {INCOMING_MAX} bytes of one message")


class Link:
    """A connection."""

    def __init__(self, server: Server, client: Client, close_s: float = CLOSE_S) -> None:
        self._server, self._client, self._close_s = server, client, close_s
        self._said = ""
        self._is_refused = False
        self.was_up = False
        self._wakers: set[trio.MemorySendChannel[None]] = set()
        self.jetstream = client.jetstream(timeout=ANSWER_S)

    def raise_complaint(self) -> None:
        """What is not permitted the server only says beside: look whether it did, after what was done last.

        Raises:
            UnwelcomeError: it did.
        """
        if self._said:
            raise UnwelcomeError(url=self._server.url, said=self._said)

    @property
    def is_over(self) -> bool:
        """It ended for good: the server no longer takes who this is. What broke otherwise is made anew by itself."""
        return bool(self._client.is_closed) or (self._is_refused and not self.is_up)

    @property
    def is_up(self) -> bool:
        """It is there just now. One that is not may be again in a moment, by itself."""
        return bool(self._client.is_connected)

    # Messages

    async def publish(self, subject: str, data: bytes) -> None:
        """Send it to whoever listens, which may be nobody."""
        with self.trouble(subject):
            await on_asyncio(self._client.publish, subject, data)
            await self.flush()

    async def flush(self) -> None:
        """Wait until the server has all that was sent. Raises what the library does."""
        await on_asyncio(self._client.flush, timeout=ANSWER_S)

    async def request(self, subject: str, data: bytes, within_s: float = ANSWER_S) -> bytes:
        """Ask, and wait for an answer.

        Raises:
            NobodyListensError, NoAnswerError: as their names say.
            LinkError: the connection is in trouble.
        """
        with self.trouble(subject, within_s):
            answer = await on_asyncio(self._client.request, subject, data, timeout=within_s)
        return answer.data

    @asynccontextmanager
    async def subscribed(self, subject: str, queue: str = "") -> AsyncIterator["trio.MemoryReceiveChannel[Message]"]:
        """What is sent to a subject from now on; of those in one `queue` each message goes to one."""
        send, receive = trio.open_memory_channel[Message](WAITING_MAX)

        async def take(message: Msg) -> None:
            try:
                send.send_nowait(Message(subject=message.subject, data=message.data, reply=message.reply))
            except trio.WouldBlock:
                log.warning("%s: too many messages wait, one is dropped", subject)
            except trio.BrokenResourceError:
                pass  # its reader has gone; the server is about to be told

        with self.trouble(subject):
            subscription = await on_asyncio(self._client.subscribe, subject, queue=queue, cb=take)
            await on_asyncio(self._client.flush, timeout=ANSWER_S)
        try:
            async with receive:
                yield receive
        finally:
            with trio.move_on_after(CLOSE_S, shield=True), contextlib.suppress(nats.errors.Error):
                await on_asyncio(subscription.unsubscribe)

    @asynccontextmanager
    async def woken_by(self, subjects: Sequence[str]) -> AsyncIterator["trio.MemoryReceiveChannel[None]"]:
        """Something to receive from once there was a message since it was last received from; which, is not told.

        However many come, one thing waits. The end of a connection that is not made anew is its end too.

        Raises:
            UnwelcomeError: the server does not permit it.
            LinkError: the connection is in trouble.
        """
        send, receive = trio.open_memory_channel[None](1)

        async def wake(_: Msg) -> None:
            with contextlib.suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                send.send_nowait(None)

        self._wakers.add(send)
        subscriptions = []
        try:
            with self.trouble(", ".join(subjects)):
                for subject in subjects:
                    subscriptions.append(await on_asyncio(self._wake_on, subject, wake))
                await on_asyncio(self._client.flush, timeout=ANSWER_S)
            self.raise_complaint()
            async with receive:
                yield receive
        finally:
            self._wakers.discard(send)
            with trio.move_on_after(self._close_s, shield=True), contextlib.suppress(nats.errors.Error):
                for subscription in subscriptions:
                    await on_asyncio(subscription.unsubscribe)

    async def _wake_on(self, subject: str, wake: Callable[[Msg], Awaitable[None]]) -> Subscription:
        # What one message does, many do: those that come faster than they are passed over may be dropped.
        return await self._client.subscribe(
            subject, cb=wake, pending_msgs_limit=WAKING_MAX, pending_bytes_limit=WAKING_BYTES_MAX
        )

    # What only JetStream has

    async def has_jetstream(self) -> bool:
        """Whether the server keeps messages for this program.

        Raises:
            LinkError: it does not say.
        """
        try:
            with self.trouble("JetStream"):
                await on_asyncio(self.jetstream.account_info)
        except (NobodyListensError, _NotHereError):
            return False
        return True

    async def work_queue(
        self, stream: str, subjects: str, *, taking: str = "", patience_s: float = 30, tries: int = 5
    ) -> WorkQueue:
        """A queue of jobs sent to `subjects`, made when it is not there; to take some, with the name of those who do.

        A job that was taken is given to somebody else when nothing is heard of it for `patience_s`, so many times.
        """
        subscription = None
        with self.trouble(stream):
            await self._made_stream(stream, subjects)
            if taking:
                config = ConsumerConfig(ack_wait=patience_s, max_deliver=tries, max_ack_pending=10_000)
                subscribe = self.jetstream.pull_subscribe
                subscription = await on_asyncio(subscribe, subjects, durable=taking, stream=stream, config=config)
        return WorkQueue(self, stream, taking, subscription)

    async def _made_stream(self, stream: str, subjects: str) -> None:
        try:
            await on_asyncio(self.jetstream.stream_info, stream)
        except NotFoundError:
            config = StreamConfig(
                name=stream, subjects=[subjects], retention=RetentionPolicy.WORK_QUEUE, max_age=JOB_MAX_AGE_S
            )
            await on_asyncio(self.jetstream.add_stream, config)

    async def bucket(self, name: str, ttl_s: float) -> Bucket:
        """A bucket whose values are forgotten after a time, made when it is not there."""
        with self.trouble(name):
            try:
                values = await on_asyncio(self.jetstream.key_value, name)
            except NotFoundError:
                config = KeyValueConfig(bucket=name, ttl=ttl_s, history=1)
                values = await on_asyncio(self.jetstream.create_key_value, config)
        return Bucket(self, values)

    # Trouble

    @contextmanager
    def trouble(self, subject: str, within_s: float = ANSWER_S) -> Iterator[None]:
        """Say what the library raises in our words."""
        self._said = ""
        try:
            yield
        except NoRespondersError as error:
            raise NobodyListensError(subject=subject) from error
        except (ServiceUnavailableError, NotFoundError) as error:
            raise _NotHereError(subject=subject, said=_text(error)) from error
        except (TimeoutError, nats.errors.TimeoutError) as error:
            # A server that does not permit something says so beside, and answers nothing.
            if self._said:
                raise UnwelcomeError(url=self._server.url, said=self._said) from error
            raise NoAnswerError(subject=subject, within_s=within_s) from error
        except (BadRequestError, APIError) as error:
            raise UnwelcomeError(url=self._server.url, said=_text(error)) from error
        except (nats.errors.Error, OSError) as error:
            raise LostError(url=self._server.url) from error
        # What the library raises when it takes apart an answer that no server gives. Only calls of it are done here.
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise StrangeAnswerError(url=self._server.url, subject=subject, problem=problem) from error

    async def heard_of_trouble(self, error: Exception) -> None:
        """What the library tells beside: a connection that broke, a permission that lacks."""
        text = _text(error)
        log.debug("%s: %s", self._server.url, text)
        if self.is_up and not isinstance(error, StaleConnectionError | OSError):  # it is there, and complains
            self._said = text
        self._is_refused = "authorization" in text.lower()

    async def has_ended(self) -> None:
        """The connection is over, and is not made anew."""
        for waker in self._wakers:
            waker.close()


@attrs.frozen(kw_only=True)
class _NotHereError(LinkError):
    subject: str
    said: str

    def __str__(self) -> str:
        return f"the server has no {self.subject}: {self.said}"


@asynccontextmanager
async def connected(server: Server, name: str, *, anew: bool = True) -> AsyncIterator[Link]:
    """A connection under a name that the server's operator sees. The first try must succeed.

    `anew`: make it again when it breaks; else it stays broken.

    Raises:
        BadServerError, UnreachableError, UnwelcomeError: it did not.
    """
    options = server.options()
    with _by_itself():
        async with trio_asyncio.open_loop():
            client = Client()
            client._ps = _Bounded(client)
            close_s = CLOSE_S if anew else HURRY_S
            link = Link(server, client, close_s)
            try:
                await _first(server, client, link, {**options, "name": name, "allow_reconnect": anew})
                yield link
            finally:
                with trio.move_on_after(close_s, shield=True), contextlib.suppress(nats.errors.Error, OSError):
                    await on_asyncio(client.close)


@contextmanager
def _by_itself() -> Iterator[None]:
    """The loop is a nursery, which makes a group of every error; a single one is what it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from error.__cause__


async def _first(server: Server, client: Client, link: Link, options: dict[str, Any]) -> None:
    """The library would try for ever; here the first failure ends it."""
    failed: list[Exception] = []
    with trio.move_on_after(CONNECT_S) as scope:

        async def hear(error: Exception) -> None:
            if not (client.is_connected or link.was_up):
                failed.append(error)
                # It closes what it had opened, and then waits for its next try.
                scope.deadline = min(scope.deadline, trio.current_time() + TIDY_S)
            else:
                await link.heard_of_trouble(error)

        try:
            await on_asyncio(
                client.connect,
                server.url,
                error_cb=hear,
                closed_cb=link.has_ended,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_S,
                connect_timeout=math.ceil(CONNECT_S / 2),
                **options,
            )
            link.was_up = True
            return
        # The last three: what it raises on hearing something that no NATS server says.
        except (nats.errors.Error, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            failed.append(error)
    cause = failed[0] if failed else TimeoutError(f"no answer within {CONNECT_S:g} s")
    if isinstance(cause, AuthorizationError) or "authorization" in str(cause).lower():
        raise UnwelcomeError(url=server.url, said="it does not know who this is") from cause
    raise UnreachableError(url=server.url, cause=_text(cause)) from cause


def _text(error: Exception) -> str:
    if isinstance(error, APIError):
        return str(error.description or error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, OSError) and error.errno:
        return (os.strerror(error.errno) if error.errno > 0 else str(error.strerror)).lower()
    if isinstance(error, LookupError | TypeError | AttributeError):
        return "what answers is no NATS server"
    return str(error).removeprefix("nats: ") or type(error).__name__
