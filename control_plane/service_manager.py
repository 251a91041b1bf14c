"""Tell systemd that the service is up (`sd_notify`), when it asked to be told."""

import os
import socket


def notify(state: str) -> None:
    """Send `READY=1` or the like to the service manager. Nobody listens: nothing happens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.sendall(state.encode())
