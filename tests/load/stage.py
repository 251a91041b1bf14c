"""The stage: keys and certificates for all hosts, a control plane for as many of them as a step needs, and crowds.

Each host has a key and a certificate of its own; they are made once and serve every step. Each step has a new control
plane with an empty database, so that one step's history does not weigh on the next.
"""

import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from state_machine.values import HostName, RolloutId
from tests.cplab import OLD, Lab, Running, closure
from tests.load.crowd import play
from tests.load.orders import Account, Calm, Flood, Join, Order, Role, Setting, Standing, Tally, Tell
from tests.load.watched import RESULT

DESCRIPTORS_EACH: Final = 2
DESCRIPTORS_MORE: Final = 200
PORTS_EACH: Final = 8_000
"""Connections from one address; a range of ephemeral ports has 28,000, and closed ones are held for a minute."""


class TooSlowError(Exception):
    """Something did not happen in time."""


def allow_descriptors(agents: int) -> int:
    """Let this process and its children hold the connections of so many agents; how many agents it can be at most."""
    wanted = agents * DESCRIPTORS_EACH + DESCRIPTORS_MORE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    elif wanted > hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        except (ValueError, PermissionError):  # only who may raise it may
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return min(agents, (hard - DESCRIPTORS_MORE) // DESCRIPTORS_EACH)
    return agents


@attrs.define(kw_only=True)
class Company:
    """The crowds that play together, each a process."""

    pipes: "Sequence[Connection[Any, Any]]"
    standings: dict[int, Standing] = attrs.field(factory=dict)
    accounts: dict[int, Account] = attrs.field(factory=dict)

    def order(self, order: Order) -> None:
        """Tell all of them."""
        for pipe in self.pipes:
            pipe.send(order)

    def join(self, roles: Sequence[Role]) -> None:
        """Have the hosts connect, dealt out to the crowds."""
        for number, pipe in enumerate(self.pipes):
            pipe.send(Join(roles=tuple(roles[number :: len(self.pipes)])))

    def flood(self, flood: Flood) -> None:
        """Begin a flood, a part in each crowd."""
        share = len(self.pipes)
        for pipe in self.pipes:
            pipe.send(attrs.evolve(flood, abreast=flood.abreast // share, per_second=flood.per_second / share))

    def look(self, seconds: float) -> None:
        """Hear what the crowds say for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for ready in wait(self.pipes, left):
                self._hear(ready)

    def until(self, holds: Callable[[], object], what: str, patience_s: float, tick: Callable[[], None]) -> float:
        """Listen until `holds`, calling `tick` now and then; how long that took.

        Raises:
            TooSlowError: it has not happened within `patience_s`.
        """
        began = time.monotonic()
        while not holds():
            if time.monotonic() - began > patience_s:
                raise TooSlowError(f"{what}: not within {patience_s:.0f} s; {'; '.join(self.breaches) or 'no errors'}")
            self.look(0.1)
            tick()
        return time.monotonic() - began

    def account(self, tick: Callable[[], None], patience_s: float = 60) -> Account:
        """What all have seen, once nothing is on its way any more."""
        self.accounts.clear()
        self.order(Calm())
        self.order(Tell())
        self.until(lambda: len(self.accounts) == len(self.pipes), "the end of what is on its way", patience_s, tick)
        tallies: dict[tuple[HostName, RolloutId], Tally] = {}
        dispatched: dict[tuple[HostName, RolloutId], float] = {}
        after: list[float] = []
        for account in self.accounts.values():
            tallies.update(account.tallies)
            dispatched.update(account.dispatched_at)
            after.extend(account.taken_after_s)
        return Account(tallies=tallies, dispatched_at=dispatched, taken_after_s=tuple(after))

    def _hear(self, ready: Any) -> None:
        heard = ready.recv()
        if isinstance(heard, Account):
            self.accounts[ready.fileno()] = heard
        else:
            self.standings[ready.fileno()] = heard

    @property
    def waiting(self) -> int:
        """Hosts whose long-poll is under way."""
        return sum(standing.waiting for standing in self.standings.values())

    @property
    def taken(self) -> int:
        """Facts that were taken."""
        return sum(standing.taken for standing in self.standings.values())

    @property
    def reconnected(self) -> int:
        """Connections that were lost, or could not be had at once."""
        return sum(standing.reconnected for standing in self.standings.values())

    @property
    def put_off(self) -> int:
        """Requests that were told to come again later."""
        return sum(standing.put_off for standing in self.standings.values())

    @property
    def cpu_s(self) -> float:
        """CPU time of all crowds."""
        return sum(standing.cpu_s for standing in self.standings.values())

    @property
    def breaches(self) -> tuple[str, ...]:
        """Answers that no agent expects."""
        return tuple(breach for standing in self.standings.values() for breach in standing.breaches)

    def told(self, rollout_id: RolloutId) -> int:
        """Hosts that have told their whole story of a rollout."""
        return sum(standing.told.get(rollout_id, 0) for standing in self.standings.values())

    def prepared(self, rollout_id: RolloutId) -> bool:
        """Everything is signed that will be said in a rollout."""
        standings = self.standings.values()
        return len(standings) == len(self.pipes) and all(rollout_id in standing.prepared for standing in standings)


class LoadLab(Lab):
    """A lab whose control plane may be started by another module, which watches it at work."""

    module = "control_plane"

    def arguments(self, **flags: Any) -> list[str]:
        """The command line."""
        interpreter, _, __, *rest = super().arguments(**flags)
        return [interpreter, "-m", self.module, *rest]


@attrs.frozen(kw_only=True)
class Stage:
    """Everything a step needs."""

    lab: LoadLab
    hosts: tuple[HostName, ...]

    @classmethod
    def build(cls, root: Path, agents: int) -> "Stage":
        """Keys and certificates for so many hosts."""
        lab = LoadLab(root, hosts=[f"host{number:05}" for number in range(agents)])
        return cls(lab=lab, hosts=lab.hosts)

    def roles(self, agents: int) -> list[Role]:
        """The first so many hosts, to be played."""
        return [
            Role(
                host=host,
                key=self.lab.keys[host],
                certificate=str(self.lab.path(f"{host}.pem")),
                private_key=str(self.lab.path(f"{host}-key.pem")),
                source=f"127.0.1.{1 + number * DESCRIPTORS_EACH // PORTS_EACH}",
            )
            for number, host in enumerate(self.hosts[:agents])
        ]

    @contextmanager
    def control_plane(self, agents: int, *, watched: bool) -> Iterator[Running]:
        """A new one for the first so many hosts, serving. `watched`: it notes where its time goes."""
        self.lab.hosts = self.hosts[:agents]
        self.lab.database = self.lab.root / f"{agents}-{time.monotonic_ns()}.db"
        self.lab.module = "tests.load.watched" if watched else "control_plane"
        self.lab.publish("000001", targets={"nobody": closure("nothing")})
        # The variable is for a watched one; nobody publishes but us, and we say so.
        os.environ[RESULT] = str(self.lab.path("watched.json"))
        with self.lab.start(artifact_poll_secs=3600) as running:
            yield running


@attrs.frozen(kw_only=True)
class Watched:
    """What a watched control plane noted."""

    parts: Mapping[str, int]
    """Samples of the event loop's thread since the last time, by part."""
    threads: Mapping[str, float]
    """CPU seconds of each thread since it began."""


def watched(lab: Lab, running: Running) -> Watched:
    """Have a watched control plane say where its time went since it was asked last."""
    place = lab.path("watched.json")
    place.unlink(missing_ok=True)
    running.process.send_signal(signal.SIGUSR1)
    while not place.exists():
        time.sleep(0.02)
    noted = json.loads(place.read_text())
    return Watched(parts=noted["parts"], threads=noted["threads"])


@contextmanager
def company(lab: Lab, running: Running, crowds: int, *, period_s: float, fetches: bool) -> Iterator[Company]:
    """Crowds for this control plane, hung up on at the end."""
    spawn = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for number in range(crowds):
            here, there = spawn.Pipe()
            setting = Setting(
                port=urlsplit(running.url).port or 443,
                ca=str(lab.path("ca.pem")),
                running=OLD,
                period_s=period_s,
                fetches=fetches,
                seed=number,
            )
            process = spawn.Process(target=play, args=(setting, there), daemon=True)
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        yield Company(pipes=pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
