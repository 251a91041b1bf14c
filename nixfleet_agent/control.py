"""The daemon's own socket, for commands of the person at the host: one JSON line in, one out.

It lies in the state directory, mode 0600: who may use it may do as the daemon does anyway.
"""

import errno
import json
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import trio

SOCKET_NAME: Final = "control.sock"
LINE_LIMIT: Final = 64 * 1024
TIMEOUT_S: Final = 10.0
log = logging.getLogger(__name__)

Handler = Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]


async def serve(state_dir: Path, handle: Handler) -> None:
    """Answer requests for ever."""
    path = state_dir / SOCKET_NAME
    path.unlink(missing_ok=True)
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            await listener.bind(_short(path))
        finally:
            os.umask(before)
        listener.listen(8)
        async with trio.open_nursery() as nursery:
            while True:
                connection, _ = await listener.accept()
                nursery.start_soon(_answer, trio.SocketStream(connection), handle)
    finally:
        listener.close()
        path.unlink(missing_ok=True)


async def _answer(stream: trio.SocketStream, handle: Handler) -> None:
    async with stream:
        with trio.move_on_after(TIMEOUT_S):
            try:
                line = await _read_line(stream)
                request = json.loads(line)
                reply = await handle(request) if isinstance(request, dict) else {"error": "not an object"}
                await stream.send_all(json.dumps(reply).encode() + b"\n")
            except (ValueError, trio.BrokenResourceError) as error:
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
    """The daemon's answer, or None when none runs on this state directory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(TIMEOUT_S)
        try:
            channel.connect(_short(state_dir / SOCKET_NAME))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
                return None
            raise
        channel.sendall(json.dumps(request).encode() + b"\n")
        with channel.makefile("rb") as file:
            answer = json.loads(file.readline())
    assert isinstance(answer, dict)
    return answer


def _short(path: Path) -> str:
    """The path in a form that fits a socket address (108 bytes on Linux), however deep the directory lies."""
    text = str(path)
    if len(text.encode()) < 100 or not sys.platform.startswith("linux"):
        return text
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    _open_directories.append(descriptor)
    return f"/proc/self/fd/{descriptor}/{path.name}"


_open_directories: list[int] = []
"""Descriptors that `/proc/self/fd` addresses stand on; as long as the process lives, since the socket does too."""
