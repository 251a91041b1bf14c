"""The address that is listened on, bound before anything is served, so that a taken port is found out first."""

import socket
from typing import Final

from control_plane.errors import ListenError

UNREAD_TIMEOUT_MS: Final = 30_000
"""How long a client may leave sent bytes unread before the kernel gives the connection up (`TCP_USER_TIMEOUT`)."""

BACKLOG: Final = 1024


class Listening:
    """One bound address."""

    def __init__(self, flag: str, address: str) -> None:
        """Bind `host:port`, or `[host]:port`.

        Raises:
            ListenError: the address is taken, or is not ours.
        """
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, int(port)))
        except OSError as error:
            self._socket.close()
            raise ListenError(flag=flag, address=address, problem=error.strerror or str(error)) from error
        limit_unread(self._socket)

    @property
    def address(self) -> str:
        """Host and port as bound: the kernel's choice, when port 0 was asked for."""
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def open(self) -> socket.socket:
        """The socket, taking connections from now on."""
        self._socket.listen(BACKLOG)
        self._socket.setblocking(False)
        return self._socket


def limit_unread(listening: socket.socket) -> None:
    """Have the kernel drop connections whose client stops reading, where it can (Linux)."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_MS)
