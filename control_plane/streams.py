"""Bytes to and from one client, over TLS or in the clear, on Trio.

OpenSSL works on the socket itself. A stream that waits holds the connection's keys and nothing else: no buffers of
ours, no copy between two layers of streams. Most connections wait nearly all the time, and there are two for each host.
"""

import contextlib
import socket
import ssl
import sys
from typing import Final

import trio

CHUNK: Final = 16_384
"""Bytes read at a time: what a TLS record holds at most."""

Plain = socket.socket
AnySocket = socket.socket | ssl.SSLSocket


class Stream:
    """One accepted connection, non-blocking. Whatever goes wrong with it is an `OSError`."""

    __slots__ = ("_socket",)

    def __init__(self, accepted: AnySocket) -> None:
        self._socket = accepted

    async def receive(self) -> bytes:
        """What has come, at least one byte; nothing at the end.

        Raises:
            OSError: the connection is broken.
        """
        waited = False
        while True:
            try:
                data = self._socket.recv(CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                waited = True
                await trio.lowlevel.wait_readable(self._socket)
            except ssl.SSLWantWriteError:
                waited = True
                await trio.lowlevel.wait_writable(self._socket)
            else:
                if not waited:
                    # Others get their turn even while this client sends without a pause.
                    await trio.lowlevel.checkpoint()
                return data

    async def send(self, data: bytes) -> None:
        """Send all of it. A client that does not read is given up by the kernel (`listening.limit_unread`).

        Raises:
            OSError: the connection is broken.
        """
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await trio.lowlevel.wait_writable(self._socket)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self._socket)

    def say_goodbye(self) -> None:
        """Let the client know that nothing more will come, as far as that needs no waiting."""
        with contextlib.suppress(OSError, ValueError):  # whoever is gone needs no farewell
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket.unwrap()  # non-blocking: it sends our half of the farewell and does not wait for theirs
            else:
                self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close. What was sent and not read yet is lost if more has come from the client than was received."""
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def peer_certificate(self) -> str | None:
        """The verified certificate that the client showed, as PEM."""
        if not isinstance(self._socket, ssl.SSLSocket):
            return None
        der = self._socket.getpeercert(binary_form=True)
        # Interned: both connections of a host share it, and it goes when they do.
        return None if der is None else sys.intern(ssl.DER_cert_to_PEM_cert(der))

    def own_address(self) -> tuple[str, int]:
        """Where it called."""
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    def address(self) -> tuple[str, int]:
        """Where the client calls from."""
        host, port = self._socket.getpeername()[:2]
        return str(host), int(port)


async def over_tls(accepted: socket.socket, context: ssl.SSLContext) -> Stream:
    """A stream whose handshake is done.

    Raises:
        OSError: there is no handshake to be had with this client. The socket is closed.
    """
    try:
        secure = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
    except BaseException:
        accepted.close()
        raise
    try:
        while True:
            try:
                secure.do_handshake()
                return Stream(secure)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(secure)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(secure)
    except BaseException:
        trio.lowlevel.notify_closing(secure)
        secure.close()
        raise
