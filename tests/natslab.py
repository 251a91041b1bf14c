"""A real NATS server for tests, with or without JetStream, with keys and TLS."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import pytest

START_S: Final = 20.0

needs_nats = pytest.mark.skipif(shutil.which("nats-server") is None, reason="nats-server is not installed")


@attrs.define(kw_only=True)
class NatsServer:
    """A server in a directory of its own, on a port of its own that it keeps."""

    directory: Path
    port: int
    more: str = ""
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        """For clients without TLS."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it listens."""
        config = self.directory / "nats.conf"
        config.write_text(f'listen: "127.0.0.1:{self.port}"\n{self.more}')
        with (self.directory / "nats.log").open("ab") as log:
            self.process = subprocess.Popen(["nats-server", "--config", str(config)], stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"nats-server does not listen:\n{self.log()}")

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def log(self) -> str:
        """What it said."""
        return (self.directory / "nats.log").read_text()


@contextmanager
def nats_server(directory: Path, *, jetstream: bool = True, more: str = "") -> Iterator[NatsServer]:
    """A server on this machine."""
    directory.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f'jetstream {{ store_dir: "{directory}/jetstream" }}\n' if jetstream else ""
    server = NatsServer(directory=directory, port=port, more=store + more)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.kill()
