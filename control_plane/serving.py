"""Take connections and give each a task of its own, until told to stop.

Between its requests a connection holds its TLS keys and one waiting task. That is what lets one process keep tens of
thousands of them: `docs/load.md` has the figures, and those of the servers that were tried.
"""

import errno
import logging
import socket
import ssl
from typing import Final

import trio

from control_plane.conversation import Application, Conversation
from control_plane.listening import Listening
from control_plane.streams import Stream, over_tls

LOG: Final = logging.getLogger(__name__)

KEEP_ALIVE_S: Final = 75.0
"""Longer than the agents' poll and heartbeat periods, so one connection serves them; also the limit for headers."""

HANDSHAKE_S: Final = 10.0
GRACEFUL_S: Final = 3.0
"""How long requests under way may take to end once it is to stop."""

FULL_PAUSE_S: Final = 0.1
_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


async def serve(
    app: Application,
    listening: Listening,
    stop: trio.Event,
    *,
    context: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on a bound address, over TLS if there is a `context`, until `stop`.

    Then no connection is taken any more, those that wait for a request are closed, and the others are given
    `GRACEFUL_S` to end.
    """
    server = _Server(app, context)
    async with trio.open_nursery() as clients:
        async with trio.open_nursery() as doors:
            doors.start_soon(server.welcome, listening.open(), clients)
            task_status.started()
            await stop.wait()
            doors.cancel_scope.cancel()
        server.finish()
        clients.cancel_scope.deadline = trio.current_time() + GRACEFUL_S


class _Server:
    def __init__(self, app: Application, context: ssl.SSLContext | None) -> None:
        self._app, self._context = app, context
        self._talking: set[Conversation] = set()
        self._finishing = False

    async def welcome(self, listener: socket.socket, clients: trio.Nursery) -> None:
        """Accept for ever."""
        with listener:
            while True:
                try:
                    accepted, _ = listener.accept()
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(listener)
                except OSError as error:
                    # Whoever is connected is served on; for another there is room when one of them leaves.
                    if error.errno in _FULL:
                        LOG.error("no further connection can be taken: %s", error.strerror)
                        await trio.sleep(FULL_PAUSE_S)
                    else:
                        await trio.lowlevel.checkpoint()  # that client was gone before it was looked at
                else:
                    clients.start_soon(self._talk, accepted)
                    await trio.lowlevel.checkpoint()

    def finish(self) -> None:
        """Have every conversation end when its request does."""
        self._finishing = True
        for conversation in self._talking:
            conversation.finish()

    async def _talk(self, accepted: socket.socket) -> None:
        try:
            stream = await self._stream(accepted)
            conversation = Conversation(self._app, stream, kept_alive_s=KEEP_ALIVE_S)
        except (OSError, trio.TooSlowError) as error:
            # A port scan, or a client with a wrong certificate, is news for a debugger only.
            LOG.debug("no connection: %s", error)
            return
        self._talking.add(conversation)
        try:
            if not self._finishing:
                await conversation.run()
        except OSError as error:
            LOG.debug("connection broken: %s", error)
        finally:
            self._talking.discard(conversation)

    async def _stream(self, accepted: socket.socket) -> Stream:
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            return Stream(accepted)
        with trio.fail_after(HANDSHAKE_S):
            return await over_tls(accepted, self._context)
