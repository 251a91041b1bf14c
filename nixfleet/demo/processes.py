"""The demo's processes: one control plane, one agent a host, each with its own directory, keys and log."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs

from evidence.host_key import HostKey, generate_host_key
from nixfleet.demo.foundry import Foundry
from nixfleet.demo.stage import DemoFailedError
from nixfleet_agent import child, control

START_TIMEOUT_S: Final = 15.0


def wait_for(what: str, ready: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """The first true value of `ready`.

    Raises:
        DemoFailedError: there was none in time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := ready():
            return value
        time.sleep(0.05)
    raise DemoFailedError(f"waited {timeout_s:.0f} s for {what}")


def run_command(
    words: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """One of our programs, to its end."""
    return subprocess.run(
        child.module_command(*words),
        env={**child.module_environment(), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


@attrs.define(kw_only=True)
class Process:
    """A child that logs to a file and can be killed."""

    name: str
    log: Path
    child: "subprocess.Popen[bytes] | None" = None

    def start(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it."""
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                child.module_command(*words),
                env={**child.module_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def check(self) -> None:
        """Raise if it has ended by itself."""
        if self.child is not None and self.child.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise DemoFailedError(f"{self.name} ended with status {self.child.returncode}:\n{tail}")

    def kill(self) -> None:
        """`kill -9`."""
        assert self.child is not None
        self.child.kill()
        self.child.wait()
        self.child = None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that is not heard."""
        if self.child is None:
            return
        self.child.send_signal(signal.SIGTERM)
        try:
            self.child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        self.child = None


@attrs.define(kw_only=True)
class ControlPlane:
    """The control plane of the demo. `trust` can be another file than the hosts', as after a break-in."""

    directory: Path
    keys: Path
    process: Process
    url: str = ""

    @classmethod
    def at(cls, directory: Path, keys: Path) -> "ControlPlane":
        """A control plane with its state in `directory`."""
        directory.mkdir()
        return cls(directory=directory, keys=keys, process=Process(name="control plane", log=directory / "log"))

    def taken_over(self) -> "ControlPlane":
        """The same control plane in an attacker's hands: a copy of its database, its keys, its address."""
        directory = self.directory.with_name("control-plane-taken-over")
        shutil.copytree(self.directory, directory)
        process = Process(name="taken over control plane", log=directory / "log")
        return ControlPlane(directory=directory, keys=self.keys, process=process, url=self.url)

    def start(self, artifacts: Path, trust: Path) -> None:
        """Start it and wait until it listens. It keeps its port over restarts, as a real one would."""
        ready = self.directory / "ready"
        ready.unlink(missing_ok=True)
        listen = self.url.removeprefix("https://") or "127.0.0.1:0"
        keys = self.keys
        words = ["control_plane", "--listen", listen, "--ready-file", str(ready), "--artifacts", str(artifacts)]
        words += ["--tls-cert", str(keys / "control-plane.pem"), "--tls-key", str(keys / "control-plane-key.pem")]
        words += ["--client-ca", str(keys / "ca.pem"), "--fleet-ca-cert", str(keys / "ca.pem")]
        words += ["--fleet-ca-key", str(keys / "ca-key.pem"), "--trust-file", str(trust)]
        words += [
            "--db-path",
            str(self.directory / "state.sqlite"),
            "--audit-log",
            str(self.directory / "issuance.log"),
        ]
        words += ["--agent-cn-suffix", "fleet.demo", "--artifact-poll-secs", "1", "--require-evidence"]
        self.process.start(words, {})

        def listening() -> str:
            self.process.check()
            return str(json.loads(ready.read_text())["url"]) if ready.exists() else ""

        self.url = wait_for("the control plane", listening, START_TIMEOUT_S)


@attrs.define(kw_only=True)
class Host:
    """One host in a directory: its key, its system, its agent."""

    name: str
    directory: Path
    foundry: Foundry
    key: HostKey
    process: Process
    flags: list[str] = attrs.field(factory=list)

    @classmethod
    def at(cls, directory: Path, name: str, foundry: Foundry) -> "Host":
        """A host with a new ed25519 host key."""
        directory.mkdir(parents=True)
        key = generate_host_key()
        key.write_openssh(directory / "ssh_host_ed25519_key", comment=f"root@{name}")
        process = Process(name=name, log=directory / "agent.log")
        return cls(name=name, directory=directory, foundry=foundry, key=key, process=process)

    @property
    def state_dir(self) -> Path:
        """The agent's."""
        return self.directory / "state"

    @property
    def host_key_file(self) -> Path:
        """The private half."""
        return self.directory / "ssh_host_ed25519_key"

    @property
    def token(self) -> Path:
        """The one-time token."""
        return self.directory / "token.json"

    @property
    def certificate(self) -> Path:
        """Written by enrolment."""
        return self.directory / "agent-cert.pem"

    def configure(self, url: str, keys: Path, trust: Path) -> None:
        """The agent's flags, as a NixOS module would render them."""
        paths = self.foundry.paths(self.directory)
        checks = self.directory / "health-checks.json"
        probe = f"grep -qx ok {paths.current_system}/health"
        if paths.store_root is not None:
            probe = f"grep -qx ok {paths.store_root}/nix/store/$(basename $(readlink {paths.current_system}))/health"
        declared = {"kind": "command", "command": probe, "intervalSeconds": 5, "timeoutSecs": 2}
        checks.write_text(json.dumps({"service": declared}))
        self.flags = [
            *("--machine-id", self.name, "--control-plane-url", url, "--trust-file", str(trust)),
            *("--ca-cert", str(keys / "ca.pem"), "--client-cert", str(self.certificate)),
            *("--ssh-host-key-file", str(self.host_key_file), "--bootstrap-token-file", str(self.token)),
            *("--state-dir", str(self.state_dir), "--health-checks-config", str(checks)),
            *("--cache-url", self.foundry.cache_url, "--switch-method", "detached", "--log-format", "json"),
            *("--store", "nix" if paths.store_root else "directory", "--store-dir", paths.store),
            *(("--store-root", paths.store_root) if paths.store_root else ()),
            *("--profile", paths.profile, "--current-system", paths.current_system),
            *("--booted-system", paths.booted_system, "--switch-lock", paths.switch_lock),
            *("--boot-id-file", paths.boot_id, "--poll-interval", "5", "--heartbeat-interval", "5"),
        ]

    def start(self) -> None:
        """Start the agent."""
        self.process.start(["nixfleet_agent", *self.flags], self.foundry.environment(self.directory))

    def status(self) -> dict[str, Any] | None:
        """What the running agent says of itself."""
        self.process.check()
        try:
            return control.ask(self.state_dir, {"do": "status"})
        except (OSError, ValueError):
            return None  # it is just starting or was just killed; the next look tells

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """`nixfleet-agent WORDS` on this host."""
        flags = ["--state-dir", str(self.state_dir), "--ssh-host-key-file", str(self.host_key_file)]
        return run_command(["nixfleet_agent", *flags, *words])

    def switches(self) -> list[str]:
        """Every switch that was ever run here, in order: the closures."""
        log = Path(self.foundry.paths(self.directory).current_system + ".log")
        lines = log.read_text().splitlines() if log.exists() else []
        return [line.split()[1] for line in lines if line.startswith("switch ")]

    def running(self) -> str:
        """The closure behind the link to the running system."""
        return os.path.basename(os.readlink(self.foundry.paths(self.directory).current_system))
