"""The real daemon on one simulated host: started, killed, stopped, started again, and what is left on its disk.

A kill is played in three moves: what the journal's files hold at that instant is put aside, the whole daemon is
cancelled, and when it is gone the files are put back. A real `kill -9` would also spare it the way out; here a task
that is cancelled runs its `finally` blocks. Nothing they do reaches the world: the network asks whether the caller is
alive, no work in a thread begins any more, and the files are put back. What the daemon writes beside the journal
(caches, records) it writes within one step of one task, so no kill falls between.
"""

import contextlib
import functools
import json
import os
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import trio

import control_plane.server
from evidence.host_key import HostKey
from nixfleet_agent import certificates
from nixfleet_agent.config import Config, read_config
from nixfleet_agent.control import Handler
from nixfleet_agent.daemon import Ended, Signals, live
from nixfleet_agent.identity import UnusableCertificateError
from nixfleet_agent.journal.errors import JournalBusyError, JournalError, write_error
from nixfleet_agent.journal.migrate import migrate
from nixfleet_agent.journal.schema import shm_path, wal_path
from nixfleet_agent.ledger import JOURNAL_NAME
from nixfleet_agent.probes.kinds import HttpProbe
from nixfleet_agent.probes.reading import PASSED, Outcome, failed
from nixfleet_agent.surroundings import Surroundings
from state_machine.events import Booted, Duty
from state_machine.facts import RolloutFact
from state_machine.passages import Passage
from state_machine.state import Known
from state_machine.values import WallMs
from tests.simulation.coverage import Coverage
from tests.simulation.faults import Fault, FaultKind
from tests.simulation.full_control_plane import Peer, Publisher, key_of, replace
from tests.simulation.full_machine import Machine
from tests.simulation.full_network import Network
from tests.simulation.full_world import leaves
from tests.simulation.judge import RunJudge
from tests.simulation.scenario import EPOCH, Health, Scenario
from tests.simulation.trace import Weight

assert control_plane.server  # imported before the daemon, which has no use for AnyIO and keeps others from it

RESTART_S: Final = 1.0
"""systemd's pause before it starts an agent that ended."""
PROBE_S: Final = (0.01, 0.4)
ENROLS: Final = 0.3
"""The share of hosts that begin without a certificate."""
ASKS_FOR_S: Final = 10.0
SIGTERM: Final = 15
SIGHUP: Final = 1
PROBES: Final = {"service": "enforce", "disk": "observe"}
EDITED: Final = {"service": "enforce", "extra": "enforce"}


class Dead(BaseException):
    """Raised where the process has just been killed, so that nothing after that place is done."""


@attrs.define(eq=False, kw_only=True)
class Life:
    """One process."""

    number: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    alive: bool = True
    left: dict[str, bytes] | None = None
    """What the disk had when it was killed."""
    signals: trio.MemorySendChannel[int]
    hangups: trio.MemorySendChannel[int]
    requests: trio.MemorySendChannel[dict[str, Any]]
    asked: trio.MemoryReceiveChannel[dict[str, Any]]
    judge: RunJudge
    known: Known = Known()
    crashes: Counter[str] = attrs.field(factory=Counter)
    handle: Handler | None = None
    """Answers what is asked at the control socket."""


@functools.cache
def _empty_journal() -> bytes:
    """The file that the real migration makes, made once."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        path = Path(directory, JOURNAL_NAME)
        migrate(path)
        return path.read_bytes()


@functools.lru_cache(maxsize=512)
def _certificate_facts(pem: str, key: str, _key_bytes: bytes) -> dict[str, Any]:
    return certificates.inspect(pem, key)


async def certificate_tool(request: dict[str, str]) -> dict[str, Any]:
    """The agent's certificate tool, in this process."""
    await trio.lowlevel.checkpoint()
    key = request["key"]
    try:
        if request["do"] == "csr":
            return {"csr_pem": certificates.make_csr(request["machine_id"], key)}
        return _certificate_facts(request["cert_pem"], key, Path(key).read_bytes())
    except (ValueError, TypeError, OSError) as error:
        raise UnusableCertificateError(problem=str(error)) from error


class Agent:
    """The daemon on `machine`, dead or alive, and its state directory."""

    def __init__(
        self, machine: Machine, network: Network, peer: Peer, publisher: Publisher, coverage: Coverage | None
    ) -> None:
        self.machine, self.world = machine, machine.world
        self.host, self.name = machine.host, machine.name
        self._network, self._peer, self._publisher, self._coverage = network, peer, publisher, coverage
        self.dice = self.world.scenario.stream("agent", self.host)
        self._prober = Prober(machine)
        self.state_dir = machine.root / "state"
        self.key = host_key(self.world.scenario.seed, self.host)
        self.enrols = enrols(self.world.scenario, self.host)
        self.trusts = 0
        """The generation of CI's key that its trust file is of."""
        self.config = self._configured()
        self.judge = RunJudge(who=self.name)
        self.judges = [self.judge]
        self.life: Life | None = None
        self.lives = 0
        self.journals = 0
        self.known = Known()
        """What the last life that had a journal knew."""
        self.lost_state = False
        self.restarts: Counter[str] = Counter()
        self.faults: Callable[[], tuple[FaultKind, ...]] = tuple
        self.on_fact: Callable[[RolloutFact], None] = lambda fact: None
        self._pause_s = 0.0
        self._wanted, self._changed = True, trio.Event()
        self._after_action: Fault | None = None
        machine.on_power_lost = self._power_lost
        machine.on_booted = self._change
        machine.on_restart = self.stop

    def _configured(self) -> Config:
        root = self.machine.root
        self.key.write_openssh(root / "host_key")
        self.learn_trust(0)
        self.write_probes(PROBES)
        if not self.enrols:
            self.give_certificate(None)
        self.state_dir.mkdir(mode=0o700)
        paths = self.machine.paths
        texts = {
            "control_plane_url": "https://cp.test",
            "machine_id": self.name,
            "poll_interval": "600",
            "heartbeat_interval": "170",
            "trust_file": str(root / "trust.json"),
            "client_cert": str(root / "client.pem"),
            "bootstrap_token_file": str(root / "token.json"),
            "state_dir": str(self.state_dir),
            "ssh_host_key_file": str(root / "host_key"),
            "health_checks_config": str(root / "health-checks.json"),
            "store_dir": paths.store,
            "profile": paths.profile,
            "current_system": paths.current_system,
            "booted_system": paths.booted_system,
            "switch_lock": paths.switch_lock,
            "boot_id_file": paths.boot_id,
            "switch_method": "systemd-run",
            "log_level": "error",
        }
        return read_config({name: (text,) for name, text in texts.items()})

    # --- what people and deployments put on the host ----------------------------------------------------------------

    def learn_trust(self, generation: int) -> None:
        """The trust file of that generation of CI's key is deployed here."""
        self.trusts = generation
        replace(self.machine.root / "trust.json", self._publisher.trust(generation))

    def write_probes(self, probes: dict[str, str]) -> None:
        """Somebody edits the health checks."""
        declared = {
            name: {"kind": "http", "url": f"http://127.0.0.1/{name}", "mode": mode, "intervalSeconds": 90}
            for name, mode in probes.items()
        }
        replace(self.machine.root / "health-checks.json", json.dumps(declared).encode())

    def give_certificate(self, not_before: WallMs | None) -> None:
        """Somebody puts a new client certificate here, good from `not_before` on."""
        from control_plane.issuance import parse_request

        path = self.machine.root / "host_key"
        csr = parse_request(certificates.make_csr(self.name, str(path)))
        at = WallMs(EPOCH + self.world.now)
        issued = self._peer.issuer.issue(csr, self.name, at, not_before_floor=not_before)
        replace(self.machine.root / "client.pem", issued.pem.encode())

    async def give_token(self, after_s: float) -> None:
        """Somebody has a token minted for this host, and puts it here later; its nonce may not be in force by then."""
        token = await self._publisher.admit(self.name, self.key.public)
        await self.world.sleep(after_s)
        replace(self.machine.root / "token.json", token)
        self.note("is given a token")

    @property
    def enrolled(self) -> bool:
        """It has a certificate."""
        return (self.machine.root / "client.pem").exists()

    async def spent_its_token(self) -> bool:
        """What it says of its enrolment: the token was used, and nothing came of it."""
        life = self.life
        if life is None or life.handle is None or not life.alive:
            return False
        with trio.move_on_after(ASKS_FOR_S):  # it may end before it has begun
            said = await life.handle({"do": "status"})
            return "HTTP 409" in said["contact"]["causes"].get(Duty.RENEWAL.value, "")
        return False

    # --- its lives --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Be started again and again, as a service manager does, while the host is up."""
        await self.world.sleep(self.dice.uniform(0, 5))
        while True:
            while not (self.machine.up and self._wanted):
                await self._changed.wait()
            self._pause_s = RESTART_S
            await self._one_life()
            await self.world.sleep(self._pause_s)

    def _change(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _one_life(self) -> None:
        self.lives += 1
        send_signals, signals = trio.open_memory_channel[int](8)
        send_hangups, hangups = trio.open_memory_channel[int](8)
        requests, asked = trio.open_memory_channel[dict[str, Any]](8)
        self.life = life = Life(
            number=self.lives, signals=send_signals, hangups=send_hangups, requests=requests, asked=asked,
            judge=self.judge,
        )  # fmt: skip
        self.note(f"the agent starts, life {life.number}")
        try:
            with life.scope:
                around = self._surroundings(life)
                ended = await live(self.config, around, Signals(stop=signals, hangup=hangups))
                self._ended(ended)
        except BaseException as error:
            self._broke(error)
        finally:
            self._buried(life)

    def _ended(self, ended: Ended) -> None:
        self.note("the agent starts itself anew" if ended.reborn else "the agent stops")
        self._pause_s = 0.0 if ended.reborn else self._pause_s

    def _broke(self, error: BaseException) -> None:
        ends = leaves(error)
        if any(isinstance(end, trio.Cancelled) for end in ends):
            raise error
        # An unwritable journal may end a start; a busy one means that the agent is in its own way.
        rest = [end for end in ends if isinstance(end, JournalBusyError) or not isinstance(end, Dead | JournalError)]
        for end in rest:
            self.world.find(self.name, "crash", repr(end))
        for end in ends:
            if isinstance(end, JournalError):
                self.note(f"the agent exits: {type(end).__name__}: {end}".replace(str(self.machine.root), ""))

    def _buried(self, life: Life) -> None:
        life.alive = False
        if life.left is not None:
            self._put_back(life.left)
        if life.judge is self.judge:
            self.known = life.known
        else:
            life.judge.ended(self.world.now)
        for worker, times in life.crashes.items():
            self.world.find(self.name, "crash", f"worker {worker} crashed {times} times")
        self.life = None

    def die(self, fault: Fault | None) -> None:
        """The process is killed, here and now."""
        life = self.life
        if life is None or not life.alive:
            return
        life.alive, life.left = False, self._on_disk()
        self._pause_s = RESTART_S if fault is None else float(fault.amount)
        self.note("the agent is killed", Weight.FAULT)
        life.scope.cancel()

    def _power_lost(self) -> None:
        self.die(None)
        life = self.life
        if life is not None and life.left is not None and self.dice.random() < 0.5:
            # A commit that was on its way to the disk, half of it there.
            log = f"{JOURNAL_NAME}-wal"
            life.left[log] = life.left.get(log, b"") + self.dice.randbytes(self.dice.randrange(1, 4096))

    def stop(self) -> None:
        """SIGTERM."""
        if self.life is not None and self.life.alive:
            with contextlib.suppress(trio.WouldBlock):
                self.life.signals.send_nowait(SIGTERM)

    def reload(self) -> None:
        """SIGHUP."""
        if self.life is not None and self.life.alive:
            with contextlib.suppress(trio.WouldBlock):
                self.life.hangups.send_nowait(SIGHUP)

    def ask(self, request: dict[str, Any]) -> None:
        """Somebody at the host asks something of the agent."""
        if self.life is not None and self.life.alive:
            with contextlib.suppress(trio.WouldBlock):
                self.life.requests.send_nowait(request)

    async def lose_state(self) -> None:
        """The agent is stopped, its state directory removed, and it is started again."""
        self._wanted = False
        self.stop()
        while self.life is not None:
            await self.world.sleep(0.1)
        shutil.rmtree(self.state_dir)
        self.state_dir.mkdir(mode=0o700)
        self.machine.lose_records()
        self.judge.ended(self.world.now)
        self.judge, self.known, self.lost_state = RunJudge(who=self.name), Known(), True
        self.judges.append(self.judge)
        self._wanted = True
        self._change()

    def note(self, text: str, weight: Weight = Weight.STORY) -> None:
        """Put something into the trace."""
        self.world.note(self.name, text, weight)

    # --- its disk ---------------------------------------------------------------------------------------------------

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.state_dir / JOURNAL_NAME

    def _files(self) -> tuple[Path, ...]:
        return self.journal, wal_path(self.journal)

    def _on_disk(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self._files() if path.exists()}

    def _put_back(self, files: dict[str, bytes]) -> None:
        for path in (*self._files(), shm_path(self.journal)):
            path.unlink(missing_ok=True)
        for name, data in files.items():
            (self.state_dir / name).write_bytes(data)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        """While the disk is full no file grows beyond where the log ends, give or take; while it is read-only, none."""
        full = self.world.active(FaultKind.DISK_FULL, self.host) is not None
        if self.world.active(FaultKind.DISK_READ_ONLY, self.host) is not None:
            limit = 0
        elif full:
            log = wal_path(self.journal)
            limit = (log.stat().st_size if log.exists() else 0) + self.dice.randrange(0, 2000)
        else:
            yield
            return
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    def _make_journal(self, path: Path) -> None:
        """As the migration, whose work is always the same but for the journal's random name."""
        import sqlite3

        if path.exists():
            migrate(path)
            return
        self.journals += 1
        name = key_of(self.world.scenario.seed, "journal", self.host, self.journals).seed.hex()[:32]
        try:
            path.write_bytes(_empty_journal())
            with contextlib.closing(sqlite3.connect(path)) as db, db:
                db.execute("UPDATE journal SET id = ?", (name,))
        except (OSError, sqlite3.Error) as error:
            path.unlink(missing_ok=True)  # the migration is one transaction
            raise write_error(path, error) from error

    # --- what it is surrounded by -----------------------------------------------------------------------------------

    def _surroundings(self, life: Life) -> Surroundings:
        return Surroundings(
            platform=self.machine.platform(),
            clock=self.machine.moment,
            dice=self.dice.random,
            in_thread=functools.partial(self._in_thread, life),
            connect=functools.partial(self._connect, life),
            certificate_tool=certificate_tool,
            make_journal=self._make_journal,
            http_prober=lambda: self._prober,
            serve_control=functools.partial(self._serve_control, life),
            witness=functools.partial(self._witness, life),
        )

    async def _in_thread(self, life: Life, work: Callable[..., Any], *args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        commits = getattr(work, "__name__", "") == "append"
        if commits and (slow := self.world.active(FaultKind.DISK_SLOW, self.host)) is not None:
            await self.world.sleep(slow.amount / 1000)
        if commits and self._strikes(FaultKind.KILL_BEFORE_COMMIT):
            raise Dead
        with self._disk():
            return work(*args)

    def _strikes(self, kind: FaultKind) -> bool:
        fault = self.world.strikes(kind, self.host)
        if fault is not None:
            self.die(fault)
        return fault is not None

    def _connect(self, life: Life, config: Config, certificate: Path | None) -> httpx.AsyncBaseTransport:
        pem = None if certificate is None else certificate.read_text()
        return self._network.transport(_Caller(agent=self, life=life), pem)

    async def _serve_control(self, life: Life, _: Path, handle: Handler, crashes: Counter[str]) -> None:
        life.crashes, life.handle = crashes, handle
        async for request in life.asked:
            answer = await handle(request)
            self.note(f"asked to {request['do']}: {answer}")

    def _witness(self, life: Life, passages: Sequence[Passage]) -> None:
        if not life.alive:
            return
        now = self.world.now
        for passage in passages:
            if isinstance(passage.event, Booted) and passage.event.settings.holds:
                life.judge = RunJudge(who=self.name)
                self.judges.append(life.judge)
            life.judge.decided(now, passage.before, passage.event, passage.step)
            self._record(passage)
        life.known = passages[-1].step.state.known
        self._may_die(passages)

    def _record(self, passage: Passage) -> None:
        if self._coverage is not None:
            self._coverage.saw(passage.known, passage.event, self.faults())
        if self.world.trace.on:
            self.note(f"{passage.event}".replace(str(self.machine.root), ""), Weight.NOISE)
            for action in passage.step.actions:
                self.note(f"=> {action}".replace(str(self.machine.root), ""), Weight.NOISE)
        for born in passage.step.facts:
            self.note(f"{born.rollout_id} {born.fact.seq}: {type(born.fact).__name__}")
            self.on_fact(born)

    def _may_die(self, passages: Sequence[Passage]) -> None:
        durable = [passage.step for passage in passages if passage.step.durable]
        if durable and self._strikes(FaultKind.KILL_AFTER_COMMIT):
            raise Dead
        if any(step.actions for step in durable):
            if self._strikes(FaultKind.KILL_BEFORE_ACTION):
                raise Dead
            if (fault := self.world.strikes(FaultKind.KILL_AFTER_ACTION, self.host)) is not None:
                self.world.nursery.start_soon(self._die_soon, fault)

    async def _die_soon(self, fault: Fault) -> None:
        """After the orders were given, before or after their tasks have begun, as the scheduler will."""
        await trio.lowlevel.checkpoint()
        self.die(fault)


@attrs.frozen(kw_only=True)
class _Caller:
    """One life of the agent, as the network knows it."""

    agent: Agent
    life: Life

    @property
    def host(self) -> int:
        return self.agent.host

    @property
    def name(self) -> str:
        return self.agent.name

    def die(self, fault: Fault) -> None:
        self.agent.die(fault)


@attrs.define(eq=False)
class Prober:
    """Measures what is so on the host just now, as well as the faults let it."""

    machine: Machine
    _count: int = 0

    async def run(self, probe: HttpProbe) -> Outcome:
        """One measurement."""
        machine, world = self.machine, self.machine.world
        await world.sleep(machine.dice.uniform(*PROBE_S))
        if world.active(FaultKind.PROBES_HANG, machine.host) is not None:
            await trio.sleep_forever()
        sick = probe.name == "service" and world.scenario.health(machine.running, machine.host) is Health.SICK
        self._count += 1
        flap = world.active(FaultKind.PROBES_FLAP, machine.host)
        if flap is not None and self._count % flap.amount == 0:
            sick = not sick
        if world.active(FaultKind.PROBES_LIE, machine.host) is not None:
            sick = not sick
        return failed("connection refused") if sick else PASSED


def enrols(scenario: Scenario, host: int) -> bool:
    """The host begins without a certificate, and has to enrol with a token."""
    return scenario.stream("enrolment", host).random() < ENROLS


def host_key(seed: int, host: int) -> HostKey:
    """The SSH host key of a host."""
    return key_of(seed, "host", host)
