"""The sockets, bound before anything is served, and how the server treats connections on them."""

import logging
import socket
import ssl
from pathlib import Path
from typing import Final

from anycorn import Config
from anycorn.config import Sockets

from control_plane.errors import ListenError

UNREAD_TIMEOUT_MS: Final = 30_000
"""How long a client may leave sent bytes unread before the kernel gives the connection up (`TCP_USER_TIMEOUT`)."""

KEEP_ALIVE_S: Final = 75
"""Longer than the agents' poll and heartbeat periods, so one connection serves them; also the limit for headers."""

HANDSHAKE_S: Final = 10
GRACEFUL_S: Final = 3.0
BACKLOG: Final = 1024


class BoundConfig(Config):
    """Anycorn's configuration over one address that is bound already, so that a taken port is found out first."""

    def __init__(self, flag: str, address: str) -> None:
        """Bind.

        Raises:
            ListenError: the address is taken, or is not ours.
        """
        super().__init__()
        self.bind = [address]
        self.alpn_protocols = ["http/1.1"]
        self.keep_alive_timeout = KEEP_ALIVE_S
        self.ssl_handshake_timeout = HANDSHAKE_S
        self.graceful_timeout = GRACEFUL_S
        self.backlog = BACKLOG
        self.include_server_header = False
        self.errorlog = logging.getLogger("anycorn")
        try:
            self._bound = super().create_sockets()
        except OSError as error:
            raise ListenError(flag=flag, address=address, problem=error.strerror or str(error)) from error
        for listening in self._all():
            limit_unread(listening)

    @property
    def address(self) -> str:
        """Host and port as bound: the kernel's choice, when port 0 was asked for."""
        host, port = self._all()[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def create_sockets(self) -> Sockets:
        """The sockets bound at construction, listening."""
        for listening in self._all():
            listening.listen(self.backlog)
        return self._bound

    def _all(self) -> list[socket.socket]:
        return [*self._bound.secure_sockets, *self._bound.insecure_sockets]


class TlsConfig(BoundConfig):
    """The same with our own TLS context, which may change its certificate while it serves."""

    def __init__(self, flag: str, address: str, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        # That these two are set is what makes Anycorn serve TLS; the context is ours.
        self.certfile, self.keyfile = str(certificate), str(key)
        self.context = context
        super().__init__(flag, address)

    def create_ssl_context(self) -> ssl.SSLContext:
        """The context given at construction."""
        return self.context


def limit_unread(listening: socket.socket) -> None:
    """Have the kernel drop connections whose client stops reading, where it can (Linux)."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_MS)
