"""HTTP/1.1 with one client: requests one after another, each handed to the ASGI application in the client's own task.

h11 says what is HTTP and what is not. It exists from a request's first byte to the end of its answer, so a connection
that is merely kept alive costs no memory for it. An answer leaves in one piece whenever the application has it in one.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import h11
import trio

from control_plane.streams import Stream

LOG: Final = logging.getLogger(__name__)

HEADER_LIMIT: Final = 16 * 1024
"""Bytes of a request's line and header together."""

UNREAD_LIMIT: Final = 256 * 1024
UNREAD_S: Final = 2.0
"""So much of an unwanted body is read and dropped, so that its sender gets to see the answer."""

Message = MutableMapping[str, Any]
Application = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

_BODILESS: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_DISCONNECT: Final = "http.disconnect"


class GoneError(Exception):
    """The client has hung up, or says nothing that could be understood."""


class Conversation:
    """One client from its handshake to its end."""

    __slots__ = (
        "_app",
        "_bodiless",
        "_http",
        "_idle",
        "_kept_alive_s",
        "_left_over",
        "_method",
        "_scope",
        "_started",
        "_stream",
        "_unread",
        "closing",
    )

    def __init__(self, app: Application, stream: Stream, *, kept_alive_s: float) -> None:
        """`kept_alive_s`: how long it may take from the end of an answer to the end of the next request's header."""
        certificate = stream.peer_certificate()
        self._app, self._stream, self._kept_alive_s = app, stream, kept_alive_s
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http" if certificate is None else "https",
            "root_path": "",
            "client": stream.address(),
            "server": stream.own_address(),
            "extensions": {"tls": {"client_cert_chain": () if certificate is None else (certificate,)}},
        }
        self._http: h11.Connection | None = None
        self._left_over = b""
        self._method = b""
        self._started: Message | None = None
        """The beginning of an answer, kept back until there is some of its body."""
        self._bodiless = False
        self._unread = False
        """More is to be expected from the client than anybody here will look at."""
        self._idle: trio.CancelScope | None = None
        self.closing = False
        """No further request is wanted."""

    def finish(self) -> None:
        """End after the answer under way; at once if there is none."""
        self.closing = True
        if self._idle is not None:
            self._idle.cancel()

    async def run(self) -> None:
        """Talk until either side has had enough.

        Raises:
            OSError: the connection broke.
        """
        try:
            while not self.closing and await self._exchange():
                pass
            self._stream.say_goodbye()
            if self._unread:
                await self._hear_out()
        finally:
            self._stream.close()

    async def _exchange(self) -> bool:
        """A request and its answer; True when there may be another."""
        request = await self._next_request()
        if request is None:
            return False
        self._method = request.method
        try:
            await self._app(self._scope_of(request), self._receive, self._send)
        except GoneError:
            return False
        except Exception:
            # A defect costs one client its connection, and is told to whoever runs this.
            LOG.exception("%s %s failed", request.method.decode(), request.target[:256].decode("ascii", "replace"))
            return False
        return await self._begin_anew()

    # The request

    async def _next_request(self) -> h11.Request | None:
        """The header of the next request; None when there will be none."""
        with trio.move_on_after(self._kept_alive_s) as self._idle:
            try:
                while True:
                    if self._http is not None or self._left_over:
                        event = self._connection().next_event()
                        if isinstance(event, h11.Request):
                            return self._checked(event)
                        if event is not h11.NEED_DATA:
                            return None
                    data = await self._stream.receive()
                    if not data:
                        return None
                    self._connection().receive_data(data)
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)
                return None
            finally:
                self._idle = None
        return None

    def _connection(self) -> h11.Connection:
        if self._http is None:
            self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIMIT)
            if self._left_over:
                self._http.receive_data(self._left_over)
                self._left_over = b""
        return self._http

    def _checked(self, request: h11.Request) -> h11.Request:
        path = request.target.partition(b"?")[0]
        try:
            unquote_to_bytes(path).decode()
        except UnicodeDecodeError as error:
            raise h11.RemoteProtocolError("the path is not UTF-8", error_status_hint=400) from error
        if not path.startswith(b"/") and path != b"*" and request.method != b"CONNECT":
            raise h11.RemoteProtocolError("the target is not a path", error_status_hint=400)
        return request

    def _scope_of(self, request: h11.Request) -> MutableMapping[str, Any]:
        path, _, query = request.target.partition(b"?")
        return {
            **self._scope,
            "http_version": request.http_version.decode("ascii"),
            "method": request.method.decode("ascii").upper(),
            "path": unquote_to_bytes(path).decode(),
            "raw_path": path,
            "query_string": query,
            "headers": list(request.headers),
        }

    async def _receive(self) -> Message:
        """More of the body, and after its end the news that the client has gone."""
        http = self._connection()
        if http.they_are_waiting_for_100_continue:
            await self._stream.send(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        while True:
            try:
                event = http.next_event()
            except h11.RemoteProtocolError:
                return {"type": _DISCONNECT}
            match event:
                case h11.Data():
                    return {"type": "http.request", "body": bytes(event.data), "more_body": True}
                case h11.EndOfMessage():
                    return {"type": "http.request", "body": b"", "more_body": False}
                case h11.NEED_DATA:
                    if not await self._read_into(http):
                        return {"type": _DISCONNECT}
                case h11.PAUSED:
                    # The next request is here already. Whether its sender has gone will show when it is its turn.
                    await trio.sleep_forever()
                case _:
                    return {"type": _DISCONNECT}

    async def _read_into(self, http: h11.Connection) -> bool:
        try:
            data = await self._stream.receive()
        except OSError:
            return False
        http.receive_data(data)
        return bool(data)

    # The answer

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = message
            return
        http, data = self._connection(), bytearray()
        if self._started is not None:
            data += self._head(http, self._started)
            self._started = None
        body, more = message.get("body", b""), message.get("more_body", False)
        if body and not self._bodiless:
            data += http.send(h11.Data(data=body)) or b""
        if not more:
            data += http.send(h11.EndOfMessage()) or b""
        try:
            await self._stream.send(bytes(data))
        except OSError as error:
            raise GoneError from error

    def _head(self, http: h11.Connection, start: Message) -> bytes:
        self._bodiless = self._method == b"HEAD" or start["status"] in _BODILESS
        headers = [*start["headers"], (b"date", _date())]
        if self.closing:
            headers.append((b"connection", b"close"))
        return http.send(h11.Response(status_code=start["status"], headers=headers)) or b""

    async def _refuse(self, status: int) -> None:
        """Answer what is no proper request, if it can be answered."""
        http = self._connection()
        if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [(b"content-length", b"0"), (b"connection", b"close"), (b"date", _date())]
        self._unread = True
        answer = http.send(h11.Response(status_code=status, headers=headers)) or b""
        await self._stream.send(answer + (http.send(h11.EndOfMessage()) or b""))

    async def _hear_out(self) -> None:
        """Drop what still comes: closing on a client that is speaking would take the answer out of its hands."""
        dropped = 0
        with trio.move_on_after(UNREAD_S):
            while dropped < UNREAD_LIMIT and (data := await self._stream.receive()):
                dropped += len(data)

    async def _begin_anew(self) -> bool:
        """Drop what is left of the request; True when there may be another."""
        http = self._connection()
        if http.their_state is h11.SEND_BODY:
            await self._drop_rest(http)
        self._unread = http.their_state is h11.SEND_BODY
        if self.closing or http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            return False
        self._left_over, _ = http.trailing_data
        self._http = None
        return True

    async def _drop_rest(self, http: h11.Connection) -> None:
        dropped = 0
        with trio.move_on_after(UNREAD_S), contextlib.suppress(h11.RemoteProtocolError):
            while http.their_state is h11.SEND_BODY and dropped < UNREAD_LIMIT:
                event = http.next_event()
                if isinstance(event, h11.Data):
                    dropped += len(event.data)
                elif event is h11.NEED_DATA and not await self._read_into(http):
                    return


@functools.lru_cache(maxsize=1)
def _date_at(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")


def _date() -> bytes:
    return _date_at(int(time.time()))
