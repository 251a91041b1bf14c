"""The wire between hosts and control plane at core depth: who gets which message, when, or never.

A request ends in exactly one answer for the agent: the control plane's, or a failure at the instant at which the real
transport would find out (at once, at the connect timeout, at the deadline of the whole request).
"""

import enum
from collections.abc import Callable
from typing import Final, Protocol

import attrs

from control_plane.rows import QueuedDispatch
from state_machine.events import Snapshot, VerifiedIntent
from state_machine.facts import Fact
from state_machine.values import RolloutId
from tests.simulation.core_machine import Scheduler
from tests.simulation.faults import SECOND, FaultKind

CONNECT_MS: Final = 10 * SECOND


class Status(enum.StrEnum):
    """How an exchange ended."""

    OK = "ok"
    UNREACHABLE = "unreachable"
    """No answer."""
    REFUSED = "refused"
    """A status that says nothing about the matter: 401, 429, 503."""
    MISSING = "missing"
    """404."""
    GAP = "gap"
    CONFLICT = "conflict"
    ILLEGAL = "illegal"


@attrs.frozen(kw_only=True)
class Shown:
    """A fleet with the manifest of one rollout as a host is shown them. `key` is who signed both.

    `intent` is what the evidence layer would make of them for this host.
    """

    rollout_id: RolloutId
    digest: str
    key: int
    intent: VerifiedIntent


@attrs.frozen(kw_only=True)
class Asked:
    """A request."""

    what: str
    rollout_id: RolloutId | None = None
    told: dict[RolloutId, int] = attrs.field(factory=dict)
    wait_ms: int = 0
    fact: Fact | None = None


@attrs.frozen(kw_only=True)
class Answer:
    """An answer, or that there was none."""

    status: Status
    retry_after_ms: int | None = None
    snapshots: tuple[Snapshot, ...] = ()
    replay: tuple[tuple[RolloutId, int], ...] = ()
    dispatch: QueuedDispatch | None = None
    shown: Shown | None = None
    want_seq: int = 0
    wall_ms: int = 0


UNREACHABLE: Final = Answer(status=Status.UNREACHABLE)
OK: Final = Answer(status=Status.OK)

Reply = Callable[[Answer], None]


class Peer(Protocol):
    """The control plane, as the network sees it."""

    up: bool

    def receive(self, host: int, asked: Asked, reply: Reply) -> None:
        """Take a request and answer it, now or later. A process that dies closes its connections."""
        ...


class Network:
    """Carries messages. The dice of each host are its own."""

    def __init__(self, world: Scheduler, peer: Peer) -> None:
        self.world, self._peer = world, peer
        hosts = range(world.scenario.hosts)
        self._dice = [world.scenario.stream("network", host) for host in hosts]
        self._faults = [world.faults(host) for host in hosts]

    def ask(self, host: int, asked: Asked, timeout_ms: int, then: Reply) -> None:
        """Send a request; `then` gets its one answer."""
        world = self.world
        exchange = _Exchange(network=self, host=host, asked=asked, deadline=world.now + timeout_ms, then=then)
        if self._faults[host]:
            self._ask_badly(exchange)
        else:
            world.after(2 + int(self._dice[host].random() * 40), exchange.arrive)

    def _ask_badly(self, exchange: "_Exchange") -> None:
        host, world = exchange.host, self.world
        faults = self._faults[host]
        if FaultKind.REFUSED in faults:
            return world.after(3, exchange.end, UNREACHABLE)
        if FaultKind.PARTITION in faults:
            return world.after(CONNECT_MS, exchange.end, UNREACHABLE)
        if self._chance(FaultKind.LOSS_UP, host):
            return exchange.fail_at_deadline()
        if self._chance(FaultKind.DUPLICATE, host):
            world.after(self.latency(host), exchange.arrive_again)
        return world.after(self.latency(host), exchange.arrive)

    def _chance(self, kind: FaultKind, host: int) -> bool:
        fault = self._faults[host].get(kind)
        return fault is not None and self._dice[host].random() * fault.amount < 1

    def latency(self, host: int) -> int:
        """How long one message takes now, in ms."""
        dice, faults = self._dice[host], self._faults[host]
        takes = 2 + int(dice.random() * 40)
        if faults:
            if (delay := faults.get(FaultKind.DELAY)) is not None:
                takes += int(dice.random() * delay.amount)
            if self._chance(FaultKind.REORDER, host):
                takes += int(dice.random() * 8 * SECOND)
        return takes

    def is_lost_down(self, host: int) -> bool:
        """An answer sent now never arrives."""
        faults = self._faults[host]
        return bool(faults) and (
            FaultKind.PARTITION in faults or FaultKind.HALF_OPEN in faults or self._chance(FaultKind.LOSS_DOWN, host)
        )

    def arrive(self, exchange: "_Exchange", reply: Reply) -> None:
        """The request is there, unless there is nobody, or the cable is cut by now."""
        host = exchange.host
        if FaultKind.PARTITION in self._faults[host]:
            return exchange.fail_at_deadline()
        if not self._peer.up:
            return self.world.after(3, exchange.end, UNREACHABLE)
        return self._peer.receive(host, exchange.asked, reply)


@attrs.define(kw_only=True, eq=False)
class _Exchange:
    """One request on its way to its one answer."""

    network: Network
    host: int
    asked: Asked
    deadline: int
    then: Reply
    over: bool = False

    def arrive(self) -> None:
        self.network.arrive(self, self._answered)

    def arrive_again(self) -> None:
        """A copy of the request, whose answer nobody waits for."""
        self.network.arrive(self, lambda answer: None)

    def _answered(self, answer: Answer) -> None:
        network = self.network
        if network.is_lost_down(self.host):
            return self.fail_at_deadline()
        takes = network.latency(self.host)
        if network.world.now + takes > self.deadline:
            return self.fail_at_deadline()
        return network.world.after(takes, self.end, answer)

    def fail_at_deadline(self) -> None:
        self.network.world.after(max(0, self.deadline - self.network.world.now), self.end, UNREACHABLE)

    def end(self, answer: Answer) -> None:
        """The agent has it. Once."""
        if not self.over:
            self.over = True
            self.then(answer)
