"""The daemon's own socket, for commands of the person at the host: one JSON line in, one out.

It lies in the state directory, mode 0600: who may use it may do as the daemon does anyway.
"""

import contextlib
import errno
import json
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from nixfleet_agent.supervision import contain

SOCKET_NAME: Final = "control.sock"
LINE_LIMIT: Final = 64 * 1024
TIMEOUT_S: Final = 10.0
log = logging.getLogger(__name__)

Handler = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


async def serve(state_dir: Path, handle: Handler, crashes: Counter[str]) -> None:
    """Answer requests for ever. A request that crashes its handler is counted and ends nothing else."""
    path = state_dir / SOCKET_NAME
    path.unlink(missing_ok=True)
    with _short(path) as address, trio.socket.from_stdlib_socket(_listener(address, path)) as listener:
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    connection, _ = await listener.accept()
                    answer = partial(_answer, trio.SocketStream(connection), handle)
                    nursery.start_soon(contain, "control", answer, crashes)
        finally:
            path.unlink(missing_ok=True)


def _listener(address: str, path: Path) -> socket.socket:
    """A listening socket that only its owner can use, from its first instant where the kernel allows that."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(OSError):  # Linux takes a socket's mode over to its file; others refuse
            os.fchmod(listener.fileno(), 0o600)
        listener.bind(address)
        os.chmod(path, 0o600)
        listener.listen(8)
    except OSError:
        listener.close()
        raise
    return listener


async def _answer(stream: trio.SocketStream, handle: Handler) -> None:
    async with stream:
        with trio.move_on_after(TIMEOUT_S):
            try:
                request = json.loads(await _read_line(stream))
                reply = await handle(request) if isinstance(request, dict) else {"error": "not an object"}
                await stream.send_all(json.dumps(reply).encode() + b"\n")
            except (ValueError, RecursionError, trio.BrokenResourceError) as error:
                log.debug("a request on the control socket came to nothing: %s", error)


async def _read_line(stream: trio.SocketStream) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= LINE_LIMIT:
        chunk = await stream.receive_some(4096)
        if not chunk:
            break
        line += chunk
    return bytes(line)


def ask(state_dir: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The daemon's answer, or None when none runs on this state directory.

    Raises:
        OSError: one runs that does not answer, or whose socket is not for this user.
    """
    with _short(state_dir / SOCKET_NAME) as address, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(TIMEOUT_S)
        try:
            channel.connect(address)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.ELOOP):
                return None
            raise OSError(error.errno, error.strerror, str(state_dir)) from error
        try:
            channel.sendall(json.dumps(request).encode() + b"\n")
            with channel.makefile("rb") as file:
                answer = json.loads(file.readline())
        except (OSError, ValueError) as error:
            raise ConnectionError("the agent does not answer; it may be stopping, try again") from error
    assert isinstance(answer, dict)
    return answer


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """The path in a form that fits a socket address (108 bytes on Linux), however deep the directory lies."""
    text = str(path)
    if len(text.encode()) < 100 or not sys.platform.startswith("linux"):
        yield text
        return
    try:
        descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield f"/proc/self/fd/none/{path.name}"  # nobody can be listening there
        return
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)
