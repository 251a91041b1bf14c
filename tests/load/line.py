"""One TLS connection of one host with hand-made HTTP/1.1 on it, and nothing that costs: the client must be cheap.

OpenSSL works on the socket itself, an answer is found by its `Content-Length`, and one `epoll` wakes them all.
"""

import re
import socket
import ssl
from collections.abc import Callable
from typing import Final

from tests.load.orders import Role
from wire.endpoints import PROTOCOL_HEADER, PROTOCOL_VERSION

CHUNK: Final = 65_536
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_BIND_ADDRESS_NO_PORT: Final = 24
"""`IP_BIND_ADDRESS_NO_PORT` of Linux: the port is chosen when it is known where to."""

Answered = Callable[[int, bytes, bytes], None]
"""Gets status, header and body."""


class LostError(Exception):
    """The connection is gone."""


class Line:
    """A connection, kept alive, for one request after another."""

    __slots__ = ("_answered", "_head", "_ready", "_received", "_tls", "_whole", "fd")

    def __init__(self, role: Role, port: int, context: ssl.SSLContext, ready: Callable[["Line"], None]) -> None:
        """Connect. `ready` is called once requests can be sent."""
        context.load_cert_chain(role.certificate, role.private_key)  # for the next connection: one context serves all
        plain = socket.socket()
        plain.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        plain.bind((role.source, 0))
        plain.connect(("127.0.0.1", port))
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = context.wrap_socket(plain, server_hostname="127.0.0.1", do_handshake_on_connect=False)
        self.fd = self._tls.fileno()
        self._ready: Callable[[Line], None] | None = ready
        self._answered: Answered | None = None
        self._received = bytearray()
        self._head = b""
        """Of the answer that is arriving, once it is there."""
        self._whole = 0
        """Bytes that the answer will have with its head."""

    @property
    def busy(self) -> bool:
        """An answer is awaited, or there is no connection yet."""
        return self._answered is not None or self._ready is not None

    def close(self) -> None:
        """Hang up without a word."""
        self._tls.close()

    def ask(self, method: str, path: str, body: bytes, answered: Answered, header: str = "") -> None:
        """Send a request; `header` is one more line of its header, with its end.

        Raises:
            LostError: there is no connection any more.
        """
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{PROTOCOL_HEADER}: {PROTOCOL_VERSION}\r\n"
            f"{header}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._answered = answered
        try:
            self._tls.sendall(head.encode() + body)
        except OSError as error:
            raise LostError(str(error)) from error

    def on_event(self) -> None:
        """Go on: something has arrived.

        Raises:
            LostError: the connection is gone.
        """
        try:
            if self._ready is not None:
                self._tls.do_handshake()
                ready, self._ready = self._ready, None
                ready(self)
                return
            arrived = self._tls.recv(CHUNK)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            raise LostError(str(error)) from error
        if not arrived:
            raise LostError("closed by the control plane")
        self._take(arrived)

    def _take(self, arrived: bytes) -> None:
        self._received += arrived
        if not self._head:
            end = self._received.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            self._head = bytes(self._received[:end])
            length = _LENGTH.search(self._head)
            self._whole = end + (0 if length is None else int(length[1]))
        if len(self._received) < self._whole:
            if self._tls.pending():
                self.on_event()
            return
        answered, head, body = self._answered, self._head, bytes(self._received[len(self._head) :])
        self._answered, self._head, self._received = None, b"", bytearray()
        assert answered is not None, "nothing was asked"
        answered(int(head[9:12]), head, body)
