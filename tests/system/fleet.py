"""A fleet of real hosts: one with the control plane and the binary cache, and as many with agents as a scenario needs.

    async with fleet_of(root, ("web1", "web2")) as fleet:      # everybody runs version 1 and is enrolled
        rollout = await fleet.release("2", waves=(("web1",), ("web2",)), soak_secs=2)
        await fleet.until_all(rollout, "Converged")
        await fleet.audit()                                     # journals, promises, evidence, metrics

Everything between is as in production: units that the NixOS module renders, `nixfleet release`, store paths from a
signed cache over HTTP, mTLS. What a test sees of a host it reads from the host's own files and sockets.
"""

import compileall
import contextlib
import functools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import httpx
import trio
from prometheus_client.parser import text_string_to_metric_families

from evidence.trust import load_trust
from nixfleet.audit.export import open_export
from nixfleet.audit.proof import prove
from nixfleet_agent import control
from nixfleet_agent.journal.entries import Record
from nixfleet_agent.journal.export import export as export_journal
from nixfleet_agent.journal.reader import JournalReader
from nixfleet_agent.ledger import JOURNAL_NAME, fold
from state_machine.facts import Fact
from state_machine.lifecycle import HostRollout
from state_machine.state import Known
from state_machine.values import Closure, HostName, RolloutId
from tests.cplab import Lab
from tests.system import promises, rendering
from tests.system.generations import Foundry, Generation
from tests.system.host import CHECKOUT, Host, seen_by_all
from tests.system.jitter import linger
from tests.system.network import Switch, network

T = TypeVar("T")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
FactKind = TypeVar("FactKind", bound=Fact)

PATIENCE_S: Final = 120.0
"""How long a thing may take to be seen. Only a test that fails waits that long; the machine may be busy."""

STATE_DIR: Final = "/var/lib/nixfleet-agent"
AGENT: Final = "nixfleet-agent.service"
CONTROL_PLANE: Final = "nixfleet-control-plane.service"
CACHE: Final = "cache.service"
CP_HOST: Final = "cp"
METRICS_PORT: Final = 9101
FIRST: Final = Generation(version="1")


def samples(text: str) -> Samples:
    """What a program serves to Prometheus: name and labels to value."""
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


class Machine(Host):
    """A host with an agent, and what can be seen of it."""

    @property
    def state_dir(self) -> Path:
        """The agent's, on the disk, or what the host has mounted there."""
        mounted = next((source for source, target in self.shared.items() if target == STATE_DIR), None)
        return mounted or self.disk / STATE_DIR.lstrip("/")

    async def status(self) -> dict[str, Any] | None:
        """What the agent says of itself; None while it does not answer."""
        if self.pid is None:
            return None
        try:
            return await trio.to_thread.run_sync(control.ask, self.live / STATE_DIR.lstrip("/"), {"do": "status"})
        except OSError:
            return None  # starting, or just killed

    async def seen(self) -> dict[str, Any]:
        """What the agent says of itself, as soon as it does."""
        return await self.until("an answer", lambda said: said)

    async def agent(self, *words: str) -> str:
        """A sub-command of the agent's program, in the host; what it wrote to standard output."""
        return await self.run(rendering.program("nixfleet-agent"), *words)

    def with_agent_flags(self, *flags: str) -> None:
        """Have the agent's unit add these to its command line, whatever generation brings it. The last one counts."""
        unit = rendering.agent_unit(self.name, ())
        start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
        command = start.replace("@agent@/bin/nixfleet-agent", rendering.program("nixfleet-agent"))
        text = f"[Service]\nExecStart=\n{command} {' '.join(flags)}\n"
        self.put(f"/etc/systemd/system.control/{AGENT}.d/flags.conf", text)

    async def until(self, what: str, seen: Callable[[dict[str, Any]], T], patience_s: float = PATIENCE_S) -> T:
        """The first true value of `seen` on the agent's status."""
        deadline = time.monotonic() + patience_s
        said = None
        while time.monotonic() < deadline:
            said = await self.status() or said
            if said is not None and (value := seen(said)):
                await linger()
                return value
            await trio.sleep(0.1)
        log = await self.journal_of("nixfleet-*") if self.pid is not None else "it is off"
        raise AssertionError(f"{self.name}: {what} was not seen; last status {json.dumps(said)}\n{log}")

    async def until_phase(self, rollout: str, *phases: str) -> dict[str, Any]:
        """The rollout is in one of these phases here; the status."""

        def there(said: dict[str, Any]) -> dict[str, Any] | None:
            current = said["rollout"]
            return said if current and current["id"] == rollout and current["phase"] in phases else None

        found = await self.until(f"{rollout} {' or '.join(phases)}", there)
        assert found is not None
        return found

    async def until_settled(self, rollout: str, *phases: str) -> None:
        """The same, and the control plane has been told everything."""
        await self.until_phase(rollout, *phases)
        await self.until("an empty outbox", lambda said: not said["outbox"])

    async def until_well(self) -> None:
        """Every probe passes."""
        await self.until("health", lambda said: all(probe["status"] == "pass" for probe in said["probes"]))

    async def until_heard(self) -> None:
        """The control plane hears the host, which waits for its word."""

        def heard(said: dict[str, Any]) -> bool:
            contact = said["contact"]
            beats = "heartbeat" in contact["last_by_duty"] and "heartbeat" not in contact["failures"]
            # Failures of the long-poll are forgotten when one ends, which may be in a minute.
            return beats and "dispatch" in contact["under_way"]

        await self.until("contact with the control plane", heard)

    async def until_unheard(self) -> dict[str, Any]:
        """The host has noticed that the control plane does not hear it; the status."""

        def unheard(said: dict[str, Any]) -> dict[str, Any] | None:
            return said if "heartbeat" in said["contact"]["failures"] else None

        found = await self.until("a failed heartbeat", unheard)
        assert found is not None
        return found

    async def until_file(self, path: str, text: str = "") -> str:
        """A file of the host exists, with `text` in it."""
        with trio.move_on_after(PATIENCE_S):
            while not ((self.disk / path.lstrip("/")).exists() and text in (found := self.read(path))):
                await trio.sleep(0.02)
            await linger()
            return found
        log = await self.journal_of("nixfleet-*")
        raise AssertionError(f"{self.name}: no {path} with {text!r}, but {self.read(path)!r}\n{log}")

    async def until_live(self, path: str) -> None:
        """A file exists that only the running host sees, one of /run."""
        with trio.move_on_after(PATIENCE_S):
            while not (self.live / path.lstrip("/")).exists():
                await trio.sleep(0.02)
            return await linger()
        raise AssertionError(f"{self.name}: no {path}")

    async def until_any(self, pattern: str) -> None:
        """Some file of the host has such a name."""
        with trio.move_on_after(PATIENCE_S):
            while not any(self.disk.glob(pattern.lstrip("/"))):
                await trio.sleep(0.05)
            return await linger()
        raise AssertionError(f"{self.name}: no {pattern}\n{await self.journal_of('nixfleet-*')}")

    async def web_version(self) -> str:
        """What the host's service says it is; empty when it does not answer."""
        return await self.attempt("curl", "--silent", "--max-time", "2", "http://127.0.0.1:8000/version")

    async def until_web_version(self, version: str) -> None:
        """The service says that it is this one: it takes a moment after the switch that started it."""
        said = ""
        with trio.move_on_after(PATIENCE_S):
            while (said := await self.web_version()) != version:
                await trio.sleep(0.1)
            return
        raise AssertionError(f"{self.name}: the service is version {said!r}, not {version!r}")

    def current(self) -> str:
        """The closure that runs."""
        return (self.live / "run/current-system").readlink().name

    def default(self) -> str:
        """The closure that the boot loader would start."""
        return Path(self.read("/boot/default").strip()).name

    def booted(self) -> str:
        """The closure that this boot began with."""
        return (self.live / "run/booted-system").readlink().name

    def profile(self) -> str:
        """The closure that the system profile names."""
        link = self.disk / "nix/var/nix/profiles/system"
        return (link.parent / link.readlink()).readlink().name

    # Stopping a switch in the middle. Steps: begin, before-boot-loader, after-boot-loader, before-activation,
    # after-activation, before-units, between-units, after-units, end.

    def stop_switches_at(self, step: str) -> None:
        """Every switch from now on goes no further than to this step."""
        self.let_switches_go()
        self.put("/var/lib/lab/stop-at", step)

    def pause_switches_at(self, step: str) -> None:
        """The same, but the switch goes on when it is let go."""
        self.let_switches_go()
        self.put("/var/lib/lab/pause-at", step)

    def let_switches_go(self) -> None:
        """Switches go their way again; one that was stopped for ever stays so."""
        for name in ("stop-at", "stopped", "pause-at", "paused"):
            (self.disk / "var/lib/lab" / name).unlink(missing_ok=True)

    def processes(self, word: str) -> list[int]:
        """The host's processes with this in their command line, by the numbers they have there."""
        found = []
        for entry in (self.live / "proc").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if entry.name.isdigit() and word in (entry / "cmdline").read_bytes().decode("utf-8", "replace"):
                    found.append(int(entry.name))
        return found

    def switches(self) -> list[str]:
        """Every time a system's `switch-to-configuration` went to work: verb and closure."""
        return self.read("/var/lib/lab/switches").splitlines()

    def records(self) -> list[Record]:
        """Every journal entry."""
        with JournalReader(self.state_dir / JOURNAL_NAME) as journal:
            return list(journal.records())

    def fact_kinds(self, rollout: str) -> list[str]:
        """The rollout's facts in the journal, by name."""
        return [type(f.fact).__name__ for record in self.records() for f in record.facts if f.rollout_id == rollout]

    def facts(self, rollout: str) -> list[Fact]:
        """The rollout's facts in the journal."""
        return [f.fact for record in self.records() for f in record.facts if f.rollout_id == rollout]

    def only_fact(self, rollout: str, kind: type[FactKind]) -> FactKind:
        """The one fact of this kind."""
        found = [fact for fact in self.facts(rollout) if isinstance(fact, kind)]
        assert len(found) == 1, f"{self.name}: {len(found)} {kind.__name__} in {self.fact_kinds(rollout)}"
        return found[0]

    def known(self) -> Known:
        """What the journal amounts to."""
        with JournalReader(self.state_dir / JOURNAL_NAME) as journal:
            return fold(journal)

    def record(self, rollout: str) -> HostRollout:
        """The agent's own record of a rollout."""
        return self.known().rollouts[RolloutId(rollout)].record

    async def metrics(self) -> Samples:
        """Every sample that the agent serves."""
        return samples(await self.run("curl", "--silent", "--show-error", f"http://127.0.0.1:{METRICS_PORT}/metrics"))

    async def metric(self, name: str, **labels: str) -> float | None:
        """One sample."""
        return (await self.metrics()).get((name, frozenset(labels.items())))

    def processor_s(self) -> float:
        """Processor time that the agent and its children have used since the host booted, in seconds."""
        stat = (self.live / "sys/fs/cgroup/system.slice" / AGENT / "cpu.stat").read_text()
        return int(dict(line.split() for line in stat.splitlines())["usage_usec"]) / 1e6


@attrs.define(kw_only=True)
class SystemFleet:
    """The fleet's keys and files, its machines, and what an operator does with them."""

    root: Path
    switch: Switch
    lab: Lab
    foundry: Foundry
    cp: Host
    machines: dict[str, Machine]
    versions: dict[tuple[str, str], Closure] = attrs.field(factory=dict)
    commits: int = 0

    # Systems and releases

    def build(self, generation: Generation, hosts: Iterable[str] = (), **options: Any) -> dict[str, Closure]:
        """A generation for each of these hosts (default: all), in the cache."""
        names = tuple(hosts) or tuple(self.machines)
        made = self.foundry.make({name: rendering.system(name, generation) for name in names}, **options)
        self.versions.update({(name, generation.version): closure for name, closure in made.items()})
        return made

    def closure(self, host: str, version: str) -> Closure:
        """What was built."""
        return self.versions[(host, version)]

    async def release(
        self,
        targets: Mapping[str, Closure],
        *,
        waves: Sequence[Sequence[str]] | None = None,
        soak_secs: int = 0,
        commit: str | None = None,
        new_rollout: bool = False,
        **policy: Any,
    ) -> RolloutId:
        """`nixfleet release` of these targets, as CI runs it; the rollout's id. Hosts without a target keep theirs.

        A release that changes nobody's target opens no rollout, unless it is told to.
        """
        self.commits += 1
        described = rendering.description(
            {host: self.lab.keys[HostName(host)].openssh_public for host in self.machines},
            waves or (tuple(self.machines),),
            soak_secs,
            policy,
        )
        path = self.root / "fleet.json"
        path.write_text(json.dumps(described))
        closures = [f"--closure={host}=/nix/store/{closure}" for host, closure in targets.items()]
        answer = await self.nixfleet(
            "release", str(path), *closures, "--ci-key", str(self.root / "ci.pem"), "--commit",
            commit or f"{self.commits:04x}c0ffee", "--releases-dir", str(self.lab.artifacts), "--trust-file",
            str(self.lab.path("trust.json")), "--json",
            *(["--new-rollout"] if new_rollout else []),
        )  # fmt: skip
        await self.refresh()
        return RolloutId(json.loads(answer)["rollouts"][0])

    async def declare(self) -> None:
        """Publish a fleet that gives nobody a target. Without any the control plane bids its callers wait for 30 s."""
        pubkeys = {host: self.lab.keys[HostName(host)].openssh_public for host in self.machines}
        path = self.root / "fleet.json"
        path.write_text(json.dumps(rendering.description(pubkeys, (tuple(self.machines),), 0, {})))
        await self.nixfleet(
            "release", str(path), "--ci-key", str(self.root / "ci.pem"), "--commit", "0000c0ffee",
            "--releases-dir", str(self.lab.artifacts), "--trust-file", str(self.lab.path("trust.json")), "--json",
        )  # fmt: skip

    async def nixfleet(self, *words: str) -> str:
        """The operator's command, on the machine; what it wrote to standard output."""
        command = [sys.executable, "-m", "nixfleet", *words]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, cwd=CHECKOUT)
        assert done.returncode == 0, f"nixfleet {' '.join(words)}: {done.stderr.decode()}{done.stdout.decode()}"
        return done.stdout.decode()

    # The control plane's host

    @property
    def url(self) -> str:
        """The control plane, for this process."""
        return f"https://{self.cp.address}:8080"

    async def operator(self, path: str) -> Any:
        """GET of an operator's endpoint."""
        answer = await self._get(path)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def _get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(verify=self.lab.tls("operator"), trust_env=False) as client:
            return await client.get(self.url + path)

    @property
    def connection(self) -> list[str]:
        """The flags by which the operator's command finds the control plane, and who asks."""
        named = {"ca-cert": "ca.pem", "client-cert": "operator.pem", "client-key": "operator-key.pem"}
        files = [f"--{flag}={self.lab.path(name)}" for flag, name in named.items()]
        return [f"--control-plane-url={self.url}", *files]

    async def cp_metric(self, name: str, **labels: str) -> float | None:
        """One sample of the control plane's."""
        return (await self.cp_metrics()).get((name, frozenset(labels.items())))

    async def rows(self, rollout: str) -> dict[str, dict[str, Any]]:
        """The control plane's view of a rollout's hosts, by name."""
        rows = (await self.operator(f"/v1/rollouts/{rollout}/hosts"))["hosts"]
        return {row["host"]: row for row in rows}

    async def until_opened(self, rollout: str) -> None:
        """The control plane has taken up the release, which it looks for in its own time."""
        opened: set[str] = set()
        with trio.move_on_after(PATIENCE_S):
            while True:
                opened = {row["rolloutId"] for row in (await self.operator("/v1/rollouts"))["rollouts"]}
                if rollout in opened:
                    return
                await trio.sleep(0.1)
        raise AssertionError(f"the control plane knows {opened}, not {rollout}")

    async def until_held(self, rollout: str, host: str, gate: str) -> str:
        """The control plane holds a host because of this gate; its words."""
        await self.until_opened(rollout)
        row: dict[str, Any] = {}
        with trio.move_on_after(PATIENCE_S):
            while not (row.get("heldBy") or "").startswith(f"{gate}: "):
                await trio.sleep(0.1)
                row = (await self.rows(rollout)).get(host, {})
            return str(row["heldBy"])
        raise AssertionError(f"{host} is not held by {gate} in {rollout}: {row}")

    async def refresh(self) -> None:
        """Have the control plane read its artifacts now. It may be down, and reads them when it comes back."""
        await self.cp.attempt("systemctl", "kill", "--signal=HUP", CONTROL_PLANE)

    async def refreshed(self) -> None:
        """The same, and it has read them: what was published before counts from now on."""
        async with httpx.AsyncClient(verify=self.lab.tls("operator"), trust_env=False) as client:
            answer = await client.post(f"{self.url}/v1/refresh")
            assert answer.status_code == 200, answer.text

    async def until_serving(self) -> None:
        """The control plane answers."""
        async with httpx.AsyncClient(verify=self.lab.tls("operator"), trust_env=False) as client:
            with trio.move_on_after(PATIENCE_S):
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if (await client.get(f"{self.url}/healthz")).status_code == 200:
                            return
                    await trio.sleep(0.1)
        raise AssertionError(f"the control plane does not answer:\n{await self.cp.journal_of(CONTROL_PLANE)}")

    async def cp_metrics(self) -> Samples:
        """Every sample that the control plane serves."""
        async with httpx.AsyncClient(verify=self.lab.tls("operator"), trust_env=False) as client:
            return samples((await client.get(f"{self.url}/metrics")).text)

    async def told(self, rollout: str, host: str) -> list[str]:
        """The kinds of the facts that the control plane has from a host, in order.

        None of a rollout that it does not know: a wiped one learns of the past from the hosts' next heartbeats.
        """
        answer = await self._get(f"/v1/rollouts/{rollout}/events")
        if answer.status_code == 404:
            return []
        rows = answer.raise_for_status().json()["events"]
        return [row["payload"]["kind"] for row in rows if row["kind"] == "agent_event" and row["host"] == host]

    async def until_told(self, rollout: str, host: str) -> None:
        """The control plane has all the facts of a host's journal, in order, each once."""
        told: list[str] = []
        machine = self.machines[host]
        with trio.move_on_after(PATIENCE_S):
            while (told := await self.told(rollout, host)) != machine.fact_kinds(rollout):
                await trio.sleep(0.2)
            return
        raise AssertionError(f"{host} has {machine.fact_kinds(rollout)} of {rollout}, but was heard to say {told}")

    # All hosts at once

    async def each(self, do: Callable[[Machine], Any], hosts: Iterable[str] = ()) -> None:
        """Something with each of these machines (default: all), side by side."""
        async with trio.open_nursery() as nursery:
            for name in tuple(hosts) or tuple(self.machines):
                nursery.start_soon(do, self.machines[name])

    async def boot_all(self, at_once: int = 6) -> None:
        """Switch all machines on, so many at the same moment: a boot is what costs a machine the most."""
        limit = trio.CapacityLimiter(at_once)

        async def boot(machine: Machine) -> None:
            async with limit:
                await machine.boot()

        await self.each(boot)

    async def until_all(self, rollout: str, *phases: str, hosts: Iterable[str] = ()) -> None:
        """The rollout is in one of these phases on all of these hosts, and the control plane knows."""

        async def settled(machine: Machine) -> None:
            await machine.until_settled(rollout, *phases)

        await self.each(settled, hosts)

    async def until_rollout_is(self, rollout: str, state: str) -> None:
        """The control plane says so of the whole rollout: one to ask, however many hosts there are."""
        await self.until_opened(rollout)
        said: dict[str, Any] = {}
        with trio.move_on_after(PATIENCE_S):
            while (said := await self.operator(f"/v1/rollouts/{rollout}/lifecycle"))["state"] != state:
                await trio.sleep(0.3)
            return
        raise AssertionError(f"{rollout} is not {state} but {said}: {await self.rows(rollout)}")

    async def audit(self, hosts: Iterable[str] = ()) -> None:
        """What must be true of these hosts (default: all that are on) after every scenario.

        The journal is whole, signed by the host's key, and traces each switch to a manifest that the trust file vouches
        for; no promise is broken in it; the control plane has each of its facts once, in order; metrics tell the same.
        """
        told = await self._told_by_all() if self.cp.pid is not None else {}
        for name in tuple(hosts) or tuple(name for name, machine in self.machines.items() if machine.pid is not None):
            machine = self.machines[name]
            await self._audit_evidence(machine)
            records, known = machine.records(), machine.known()
            broken = list(promises.problems(records, known))
            assert not broken, f"{name}: {broken}"
            self._audit_told(machine, told)
            await self._audit_metrics(machine, known)

    async def _told_by_all(self) -> dict[tuple[str, str], list[tuple[int, str]]]:
        """What the control plane has: rollout and host to numbers and kinds of facts, in its order."""
        told: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for rollout in (await self.operator("/v1/rollouts"))["rollouts"]:
            name = rollout["rolloutId"]
            for row in (await self.operator(f"/v1/rollouts/{name}/events?limit=100000"))["events"]:
                if row["kind"] == "agent_event":
                    told.setdefault((name, row["host"]), []).append((row["payload"]["seq"], row["payload"]["kind"]))
        return told

    def _audit_told(self, machine: Machine, told: Mapping[tuple[str, str], list[tuple[int, str]]]) -> None:
        for (rollout, host), facts in told.items():
            if host == machine.name:
                known = [(fact.seq, type(fact).__name__) for fact in machine.facts(rollout)]
                meant = [fact for fact in known if facts[0][0] <= fact[0] <= facts[-1][0]]
                assert facts == meant, f"{host} {rollout}: the control plane has {facts}, the journal {known}"

    async def _audit_evidence(self, machine: Machine) -> None:
        exported = self.root / f"audit-{machine.name}"
        shutil.rmtree(exported, ignore_errors=True)
        key, state_dir = self.lab.keys[HostName(machine.name)], machine.state_dir
        export_journal(state_dir / JOURNAL_NAME, exported, host_key=key, artifacts=state_dir / "artifacts")
        trusts = [load_trust(self.lab.path("trust.json"))]
        proof = prove(open_export(exported), host_key=key.public, trusts=trusts)
        assert proof.broken is None, f"{machine.name}: {proof.broken}"
        unproved = [allowed.activation for allowed in proof.allowed if not allowed.verified]
        assert not unproved, f"{machine.name}: nothing allowed {unproved}"

    async def _audit_metrics(self, machine: Machine, known: Known) -> None:
        said = await machine.metrics()
        phase = None if known.current is None else known.current.record.phase.value
        shown = {
            dict(labels)["state"] for (name, labels), value in said.items() if name == "nixfleet_agent_state" and value
        }
        assert shown == ({phase} if phase else set()), f"{machine.name}: metrics say {shown}, the journal {phase}"
        assert said[("nixfleet_agent_quarantined_closures", frozenset())] == len(known.quarantine)


@functools.cache
def _compile_programs() -> None:
    """Hosts see the checkout read-only: what is not compiled, each process of theirs would compile anew."""
    for package in ("state_machine", "wire", "evidence", "nixfleet_agent", "control_plane", "nixfleet"):
        assert compileall.compile_dir(CHECKOUT / package, quiet=1), f"{package} does not compile"


@contextlib.asynccontextmanager
async def fleet_of(
    root: Path,
    hosts: Sequence[str] = ("web1",),
    *,
    first: Generation = FIRST,
    enrolled: bool = True,
    boot: bool = True,
    **control_plane: Any,
) -> AsyncIterator[SystemFleet]:
    """A fleet whose machines run `first`, switched on. `control_plane` are flags of its control plane."""
    root.mkdir(parents=True, exist_ok=True)
    _compile_programs()
    with network() as switch, _memory(root):
        cp = Host(name=CP_HOST, directory=root / "hosts" / CP_HOST, switch=switch)
        lab = Lab(root / "fleet", hosts, server_names=(CP_HOST, cp.address), suffix=None)
        foundry = Foundry.at(root / "foundry")
        machines = {name: Machine(name=name, directory=root / "hosts" / name, switch=switch) for name in hosts}
        fleet = SystemFleet(root=root, switch=switch, lab=lab, foundry=foundry, cp=cp, machines=machines)
        try:
            _provision_control_plane(fleet, control_plane)
            installed = await trio.to_thread.run_sync(fleet.build, first)
            for name, machine in machines.items():
                _provision(fleet, machine, installed[name], enrolled=enrolled)
            await fleet.declare()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cp.boot)
                if boot:
                    nursery.start_soon(fleet.boot_all)
            await fleet.until_serving()
            yield fleet
        finally:
            for host in (cp, *machines.values()):
                host.destroy()


@contextlib.contextmanager
def _memory(root: Path) -> Any:
    """The disks of the hosts lie in memory: writable layers need a file system that can be one."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12g,mode=755", "lab", str(root)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


def _hosts_file(fleet: SystemFleet) -> str:
    names = [fleet.cp, *fleet.machines.values()]
    return "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in names)


def _provision_control_plane(fleet: SystemFleet, flags: Mapping[str, Any]) -> None:
    cp, lab = fleet.cp, fleet.lab
    cp.shared = {lab.artifacts: "/srv/releases", fleet.foundry.cache: "/srv/cache"}
    cp.put("/etc/hosts", _hosts_file(fleet))
    for name in ("ca.pem", "ca-key.pem", "server.pem", "server-key.pem", "trust.json"):
        cp.put(f"/etc/nixfleet/cp/{name}", lab.path(name).read_text(), 0o600)
    (cp.disk / "etc/nixfleet/cp/trust.json").chmod(0o644)
    _add_user(cp, "nixfleet-cp", 980)
    cp.put(f"/etc/systemd/system.control/{CONTROL_PLANE}.d/lab.conf", rendering.control_plane_drop_in(seen_by_all()))
    for unit, text in rendering.control_plane_units(flags).items():
        cp.put(f"/etc/systemd/system.control/{unit}", text)
        wants = cp.disk / "etc/systemd/system.control/multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        (wants / unit).symlink_to(f"../{unit}")
    (fleet.root / "ci.pem").write_bytes(lab.ci.pkcs8_pem())


def _add_user(host: Host, name: str, number: int) -> None:
    """As NixOS does for a service; and it must be able to reach the programs of the tests."""
    host.put("/etc/passwd", host.read("/etc/passwd") + f"{name}:x:{number}:{number}::/var/empty:/usr/sbin/nologin\n")
    host.put("/etc/group", host.read("/etc/group") + f"{name}:x:{number}:\n")
    for place in seen_by_all():
        for parent in reversed(place.parents):
            directory = host.disk / str(parent).lstrip("/")
            directory.mkdir(exist_ok=True)
            directory.chmod(directory.stat().st_mode | 0o001)


def _provision(fleet: SystemFleet, machine: Machine, installed: Closure, *, enrolled: bool) -> None:
    lab, key = fleet.lab, fleet.lab.keys[HostName(machine.name)]
    fleet.foundry.install(installed, machine.disk)
    machine.put("/etc/hosts", _hosts_file(fleet))
    machine.put("/etc/nix/nix.conf", rendering.nix_conf(fleet.foundry.public_key))
    key.write_openssh(_parent(machine.disk / "etc/ssh/ssh_host_ed25519_key"))
    for name in ("ca.pem", "trust.json"):
        machine.put(f"/etc/nixfleet/agent/{name}", lab.path(name).read_text())
    if enrolled:
        shutil.copy(lab.path(f"{machine.name}.pem"), _parent(machine.disk / "var/lib/nixfleet/agent-cert.pem"))


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
