"""A builder and the NATS server it listens on, for the loop; where there is no such server, hosts are built at once."""

import json
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs

from nixfleet.demo.processes import Process, wait_for


@attrs.define(kw_only=True)
class Builders:
    """One builder, which fills the cache."""

    url: str
    server: "subprocess.Popen[bytes]"
    builder: Process

    @property
    def log(self) -> str:
        """What the builder said."""
        return self.builder.log.read_text(errors="replace")

    def close(self) -> None:
        """Stop both."""
        self.builder.stop()
        self.server.terminate()
        self.server.wait()


def have_nats() -> bool:
    """There is a server to start."""
    return shutil.which("nats-server") is not None


def start(
    place: Path, repository: Path, cache: str, signing_key_file: Path, environment: Mapping[str, str]
) -> Builders:
    """Start both below `place`, for one repository, `fleet`."""
    place.mkdir()
    port = _free_port()
    with (place / "nats.log").open("wb") as log:
        words = ["nats-server", "--jetstream", "--store_dir", str(place / "jetstream"), "--addr", "127.0.0.1"]
        server = subprocess.Popen([*words, "--port", str(port)], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    builders = Builders(
        url=f"nats://127.0.0.1:{port}", server=server, builder=Process(name="builder", log=place / "builder.log")
    )
    file = place / "builder.toml"
    file.write_text(
        f"state-dir = {json.dumps(str(place / 'state'))}\nparallel = 3\n"
        f"cache = {json.dumps(cache)}\nsigning-key-file = {json.dumps(str(signing_key_file))}\n"
        f"[nats]\nurl = {json.dumps(builders.url)}\n[repositories.fleet]\nurl = {json.dumps(str(repository))}\n"
    )
    wait_for("the NATS server", lambda: _listens(port))
    builders.builder.start(["nixfleet", "builder", "--config", str(file)], environment)
    wait_for("the builder", lambda: '"listening"' in builders.log)
    return builders


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
