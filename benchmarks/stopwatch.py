"""A TLS server that notes when requests arrive and leaves them waiting: what a start is measured against."""

import contextlib
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import attrs

from tests.cplab import Lab

PATIENCE_S: Final = 30.0


@attrs.frozen(kw_only=True)
class Stopwatch:
    """Where it listens, and the instants (`time.monotonic`) at which requests had arrived."""

    url: str
    arrived: "queue.SimpleQueue[float]"

    def since(self, began: float) -> float:
        """Seconds from `began` to the first request; what came before `began` is forgotten."""
        while True:
            at = self.arrived.get(timeout=PATIENCE_S)
            if at >= began:
                return at - began


@contextmanager
def stopwatch(lab: Lab) -> Iterator[Stopwatch]:
    """Listen with the control plane's certificate and ask for a client's, as a control plane does."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=lab.path("ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(lab.path("server.pem"), lab.path("server-key.pem"))
    listener = socket.create_server(("127.0.0.1", 0))
    watch = Stopwatch(url=f"https://127.0.0.1:{listener.getsockname()[1]}", arrived=queue.SimpleQueue())
    threading.Thread(target=_accept, args=(listener, context, watch), daemon=True).start()
    try:
        yield watch
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _accept(listener: socket.socket, context: ssl.SSLContext, watch: Stopwatch) -> None:
    with contextlib.suppress(OSError):  # closed: it is over
        while True:
            plain, _ = listener.accept()
            threading.Thread(target=_serve, args=(plain, context, watch), daemon=True).start()


def _serve(plain: socket.socket, context: ssl.SSLContext, watch: Stopwatch) -> None:
    with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
        while data := connection.recv(65_536):
            if b"HTTP/1.1" in data:
                watch.arrived.put(time.monotonic())
