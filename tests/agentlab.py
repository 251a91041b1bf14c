"""Real agents in directories: keys, stores, systems that can be switched to, and the agent as a process.

    fleet = AgentFleet(tmp_path, hosts=("web1",))
    first, good = fleet.system("good"), fleet.system("good")
    with fleet.start() as cp:                        # the real control plane, see `cplab`
        agent = fleet.agent("web1", cp.url, running=first)
        with agent.running():
            rollout = fleet.release(cp, {"web1": good})
            agent.until_phase(rollout, "Converged")
        assert agent.switches() == [good]

Systems are those of `nixlab`; with `nix=True` they are real store paths out of a real signed cache. Nothing here waits
for a length of time: everything waits for something to be seen, and gives up with the agent's log in the message.
"""

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import trio
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from control_plane.rows import Mirror
from control_plane.schema import load_book, open_reader
from nixfleet_agent import control
from nixfleet_agent.activation.nix_store import NixStore
from nixfleet_agent.journal.entries import Record
from nixfleet_agent.journal.reader import JournalReader
from nixfleet_agent.ledger import JOURNAL_NAME, fold
from state_machine.facts import RolloutFact
from state_machine.lifecycle import HostRollout
from state_machine.state import Known
from state_machine.values import Closure, HostName, RolloutId
from tests.cplab import Lab, Running
from tests.nixlab import DirectoryPublisher, Host, NixPublisher

T = TypeVar("T")

PATIENCE_S: Final = float(os.environ.get("TEST_PATIENCE_S", "40"))
"""How long a thing may take to be seen. Only a test that fails waits that long; the machine may be busy."""

HEALTHY: Final = {"health": "ok\n"}
SICK: Final = {"health": "sick\n"}


class AgentFleet(Lab):
    """The files of one fleet, with systems and a cache that its hosts trust."""

    def __init__(self, root: Path, hosts: Sequence[str] = ("web1",), *, nix: bool = False) -> None:
        systems = root / "systems"
        systems.mkdir(parents=True)
        self.systems: DirectoryPublisher | NixPublisher = (NixPublisher if nix else DirectoryPublisher).at(systems)
        self.nix = nix
        self._commits = 0
        super().__init__(root, hosts)

    def write_trust(self, **slots: Any) -> Path:
        """`trust.json`, which names the cache's key too."""
        key = self.systems.key
        return super().write_trust(cacheKeys=[key if isinstance(key, str) else key.public], **slots)

    def system(self, behaviour: str = "good", *, healthy: bool = True, signed: bool = True, **more: str) -> Closure:
        """A new system in the cache; `more` are files of it."""
        files = {**(HEALTHY if healthy else SICK), **more}
        return self.systems.publish(behaviour, signed=signed, files=files)

    def commit(self) -> str:
        """A commit that was not used before."""
        self._commits += 1
        return f"{self._commits:04x}c0ffee"

    def release(
        self, cp: Running | None, targets: Mapping[str, Closure], *, soak_secs: int = 0, **changes: Any
    ) -> RolloutId:
        """Sign and publish a rollout of these targets, in one wave, and have the control plane look at once."""
        named = {HostName(host): closure for host, closure in targets.items()}
        published = self.publish(self.commit(), targets=named, waves=(tuple(targets),), soak_secs=soak_secs, **changes)
        if cp is not None:
            assert cp.refresh() == {}
        return published.rollout_id

    def agent(self, name: str, url: str, **options: Any) -> "Agent":
        """A host of this fleet; see `Agent`."""
        return Agent(self, name, url, **options)


class Agent:
    """One host in a directory, and its agent. `flags` are options by name; None leaves one out, True is a bare flag.

    `running`: the system it runs, as after its installation. `enrolled`: it has a certificate already.
    """

    def __init__(
        self,
        fleet: AgentFleet,
        name: str,
        url: str,
        *,
        running: Closure | None = None,
        enrolled: bool = True,
        checks: Mapping[str, Any] | None = None,
        **flags: Any,
    ) -> None:
        self.fleet, self.name = fleet, name
        self.directory = fleet.root / "hosts" / name
        self.directory.mkdir(parents=True)
        self.host: Host = fleet.systems.host(self.directory)
        self.state_dir, self.log_file = self.directory / "state", self.directory / "agent.log"
        self.certificate, self.token = self.directory / "agent-cert.pem", self.directory / "token.json"
        self.host_key, self.checks = self.directory / "ssh_host_ed25519_key", self.directory / "health-checks.json"
        fleet.keys[HostName(name)].write_openssh(self.host_key)
        self.write_checks({"service": self.health_check()} if checks is None else checks)
        if enrolled:
            shutil.copy(fleet.path(f"{name}.pem"), self.certificate)
        if running is not None:
            trio.run(self.host.starts_on, running)
        self.flags = {**self._defaults(url), **flags}
        self.process: subprocess.Popen[bytes] | None = None
        self._log_begins = 0

    def _defaults(self, url: str) -> dict[str, Any]:
        paths = self.host.paths
        return {
            "machine_id": self.name,
            "control_plane_url": url,
            "trust_file": self.fleet.path("trust.json"),
            "ca_cert": self.fleet.path("ca.pem"),
            "client_cert": self.certificate,
            "ssh_host_key_file": self.host_key,
            "bootstrap_token_file": self.token,
            "state_dir": self.state_dir,
            "health_checks_config": self.checks,
            "cache_url": self.host.cache,
            "poll_interval": 1,
            "heartbeat_interval": 1,
            "sustained_failure": 0,
            "log_format": "json",
            "store": "nix" if self.fleet.nix else "directory",
            "store_dir": paths.store,
            "store_root": paths.store_root,
            "profile": paths.profile,
            "current_system": paths.current_system,
            "booted_system": paths.booted_system,
            "switch_lock": paths.switch_lock,
            "boot_id_file": paths.boot_id,
            "switch_method": "detached",
        }

    def health_check(self) -> dict[str, Any]:
        """Passes while the running system's file `health` says ok."""
        paths = self.host.paths
        link = paths.current_system
        # In a chroot store the link's target is a name there, not a path here.
        place = link if paths.store_root is None else f"{paths.store_root}/nix/store/$(basename $(readlink {link}))"
        return {
            "kind": "command",
            "command": f"grep -qx ok {place}/health",
            "intervalSeconds": 5,
            "timeoutSecs": 5,
        }

    def write_checks(self, checks: Mapping[str, Any]) -> None:
        """What is probed from the next (re)load on."""
        self.checks.write_text(json.dumps(checks))

    # The process

    def words(self, *more: str, **flags: Any) -> list[str]:
        """The command line, without the interpreter."""
        words = []
        for name, value in {**self.flags, **flags}.items():
            flag = "--" + name.replace("_", "-")
            if value is True:
                words.append(flag)
            elif value is not None and value is not False:
                words += [flag, str(value)]
        return [*words, *more]

    def environment(self) -> dict[str, str]:
        """A clean one, with what Nix needs where it is used."""
        own = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "LANG": "C.UTF-8"}
        store = self.host.store
        return {**own, **store.environment} if isinstance(store, NixStore) else own

    def start(self, *, python: Sequence[str] = (), wrap: Sequence[str] = (), **environment: str) -> None:
        """Start the agent. `python` are flags of the interpreter, `wrap` what runs it all."""
        assert self.process is None
        words = [*wrap, sys.executable, *python, "-m", "nixfleet_agent", *self.words()]
        self._log_begins = len(self.log_text())
        with self.log_file.open("ab") as log:
            env = {**self.environment(), **environment}
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        _started.append(self.process)

    @contextmanager
    def running(self, **options: Any) -> Iterator["Agent"]:
        """The agent runs until the block ends, unless it is killed before."""
        self.start(**options)
        try:
            yield self
        finally:
            if self.process is not None:
                self.kill()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`, as a power cut for the agent alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def ended(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end; the exit status, negative for a signal."""
        assert self.process is not None
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {timeout_s:g} s:\n{self.log_tail()}") from None
        self.process = None
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = PATIENCE_S) -> int:
        """Ask it to end; the exit status."""
        self.send(number)
        return self.ended(timeout_s)

    def restart(self) -> None:
        """kill -9, and start."""
        self.kill()
        self.start()

    def command(self, *more: str, **flags: Any) -> "subprocess.CompletedProcess[str]":
        """`nixfleet-agent <flags> MORE`, to its end."""
        words = [sys.executable, "-m", "nixfleet_agent", *self.words(*more, **flags)]
        return subprocess.run(
            words, env=self.environment(), capture_output=True, text=True, check=False, timeout=PATIENCE_S * 2
        )

    def poke(self) -> None:
        """Have it try everything now that it would try later."""
        assert self.until("an answer", lambda: self._ask({"do": "poke"})) == {"ok": True}

    # What can be seen of it

    def until(self, what: str, seen: Callable[[], T], timeout_s: float = PATIENCE_S) -> T:
        """The first true value of `seen`; fails at once when the agent ends by itself."""
        deadline = time.monotonic() + timeout_s
        while not (value := seen()):
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name}: {what} was not seen:\n{self.log_tail()}")
            time.sleep(0.01)
        return value

    def status(self) -> dict[str, Any] | None:
        """What the agent says of itself; None while it does not answer."""
        return self._ask({"do": "status"})

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return control.ask(self.state_dir, request)
        except OSError:
            return None  # starting, or just killed

    def until_status(self, what: str, holds: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The first status of which `holds` is true."""

        def seen() -> dict[str, Any] | None:
            said = self.status()
            return said if said is not None and holds(said) else None

        found = self.until(what, seen)
        assert found is not None
        return found

    def until_ready(self) -> dict[str, Any]:
        """It answers."""
        return self.until_status("an answer", lambda said: said["runs"])

    def until_phase(self, rollout_id: str, *phases: str) -> dict[str, Any]:
        """The rollout is in one of these phases here."""

        def there(said: dict[str, Any]) -> bool:
            rollout = said["rollout"]
            return rollout is not None and rollout["id"] == rollout_id and rollout["phase"] in phases

        return self.until_status(f"{rollout_id} {' or '.join(phases)}", there)

    def until_settled(self, rollout_id: str, *phases: str) -> dict[str, Any]:
        """The same, and the control plane has been told everything."""
        self.until_phase(rollout_id, *phases)
        return self.until_status("an empty outbox", lambda said: not said["outbox"])

    def until_failed(self, duty: str, times: int = 1, because: str = "") -> str:
        """An exchange failed at least so often in a row, lastly for a reason with `because` in it; the whole reason."""

        def failed(said: dict[str, Any]) -> bool:
            contact = said["contact"]
            return contact["failures"].get(duty, 0) >= times and because in contact["causes"].get(duty, "")

        said = self.until_status(f"{duty} to fail {times} times because of {because!r}", failed)
        return str(said["contact"]["causes"][duty])

    def until_reached(self, duty: str) -> dict[str, Any]:
        """An exchange has succeeded since the start of this process."""
        return self.until_status(f"{duty} to succeed", lambda said: duty in said["contact"]["last_by_duty"])

    def until_enrolled(self) -> None:
        """A certificate is in use."""
        self.until_status("a certificate", lambda said: said["contact"]["certificate_days"] is not None)

    def metrics(self) -> list[Metric]:
        """What it serves on its metrics port, parsed."""
        url = self.until_logged("metrics")["url"]
        answer = httpx.get(url, trust_env=False)
        assert answer.status_code == 200
        return list(text_string_to_metric_families(answer.text))

    def metric(self, name: str, **labels: str) -> float | None:
        """One sample."""
        samples = [sample for family in self.metrics() for sample in family.samples]
        return next((s.value for s in samples if s.name == name and s.labels == labels), None)

    def until_logged(self, message: str, **fields: Any) -> dict[str, Any]:
        """A log line with this message and these fields."""

        def seen() -> dict[str, Any] | None:
            return next((line for line in self.log() if _matches(line, message, fields)), None)

        found = self.until(f"the log line {message!r} {fields}", seen)
        assert found is not None
        return found

    def log(self) -> list[dict[str, Any]]:
        """Every line of JSON that was logged since it was started last."""
        lines = []
        for text in self.log_text()[self._log_begins :].splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
        return lines

    def log_text(self) -> str:
        """Everything that was ever logged."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_tail(self) -> str:
        return self.log_text()[-6000:]

    def switches(self) -> list[str]:
        """Every switch that was ever begun here, in order: the closures."""
        return [line.split()[1] for line in self.host.runs() if line.startswith("switch ")]

    def current(self) -> Closure:
        """The closure behind the link to the running system."""
        return Closure(os.path.basename(os.readlink(self.host.paths.current_system)))

    @property
    def journal(self) -> Path:
        return self.state_dir / JOURNAL_NAME

    def records(self) -> list[Record]:
        """Every journal entry, decoded."""
        with JournalReader(self.journal) as journal:
            return list(journal.records())

    def kinds(self) -> list[str]:
        """The event kinds in the journal, read as cheaply as can be: for those who watch closely."""
        if not self.journal.exists():
            return []
        try:
            with contextlib.closing(sqlite3.connect(f"{self.journal.as_uri()}?mode=ro", uri=True)) as db:
                return [kind for (kind,) in db.execute("SELECT kind FROM entries ORDER BY n")]
        except sqlite3.OperationalError:
            return []  # being made

    def facts(self, rollout_id: str) -> list[RolloutFact]:
        """The rollout's facts in the journal."""
        return [fact for record in self.records() for fact in record.facts if fact.rollout_id == rollout_id]

    def fact_kinds(self, rollout_id: str) -> list[str]:
        return [type(fact.fact).__name__ for fact in self.facts(rollout_id)]

    def known(self) -> Known:
        """What the journal amounts to."""
        with JournalReader(self.journal) as journal:
            return fold(journal)

    def record(self, rollout_id: str) -> HostRollout:
        """The agent's own record of a rollout."""
        return self.known().rollouts[RolloutId(rollout_id)].record

    def give_token(self, token: Any) -> None:
        """Put a bootstrap token where the agent looks for one."""
        self.token.write_text(json.dumps(token))


def not_soon() -> str:
    """A daily window that opens some hours from now."""
    hour = (time.gmtime().tm_hour + 12) % 24
    return f"{hour:02}:00-{hour:02}:30 UTC"


_started: list["subprocess.Popen[bytes]"] = []


@atexit.register
def _leave_nobody_behind() -> None:
    """A test that failed half-way may not have got round to it."""
    for process in _started:
        if process.poll() is None:
            process.kill()
            process.wait()


def _matches(line: Mapping[str, Any], message: str, fields: Mapping[str, Any]) -> bool:
    return line.get("message") == message and all(line.get(name) == value for name, value in fields.items())


def told(cp: Running, rollout_id: str, host: str) -> list[dict[str, Any]]:
    """The facts of a host that the control plane has, in the order it took them."""
    answer = cp.operator.get(f"/v1/rollouts/{rollout_id}/events")
    if answer.status_code == 404:
        return []
    rows = answer.json()["events"]
    return [row["payload"] for row in rows if row["kind"] == "agent_event" and row["host"] == host]


def mirror(database: Path, rollout_id: str, host: str) -> Mirror:
    """What a control plane's database says of a host in a rollout."""
    with contextlib.closing(open_reader(database)) as reader:
        row = load_book(reader).get(Mirror, rollout_id, host)
    assert row is not None
    return row


@functools.cache
def nix_is_usable() -> bool:
    """The nix commands are there."""
    return all(shutil.which(name) for name in ("nix", "nix-build", "nix-store", "nix-env"))
