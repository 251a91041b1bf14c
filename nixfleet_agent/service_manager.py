"""Talk to systemd by its notification socket (sd_notify(3)). Without one, every call does nothing.

Nothing here waits or fails: a manager that does not listen just now is told again the next time.
"""

import os
import socket
from collections.abc import Mapping


class ServiceManager:
    """Ready, status line, watchdog."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET")
        usec = environ.get("WATCHDOG_USEC", "")
        own = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self.watchdog_s: float | None = int(usec) / 2_000_000 if usec.isdigit() and own else None
        """Half the watchdog's time: how often to say that the reducer still turns. None: nobody asks."""
        self._status = ""

    def ready(self) -> None:
        """The journal is read and the host taken stock of."""
        self._send("READY=1")

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1")

    def status(self, line: str) -> None:
        """The line that `systemctl status` shows; sent only when it changes."""
        if line != self._status and self._send(f"STATUS={line}"):
            self._status = line

    def _send(self, message: str) -> bool:
        if not self._address:
            return False
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            try:
                channel.sendto(message.encode(), address)
            except OSError:
                return False  # it is restarting, or has more to read than it can take
        return True
