"""The process that plays agents: each with its certificate and two connections, as a real one has them.

One waits for dispatches; the other brings heartbeats and facts and looks at signed intent. Whatever a real agent asks
of a control plane is asked, at its pace; nothing is kept on a disk, and nothing is proved.
"""

import gc
import heapq
import itertools
import json
import random
import re
import select
import signal
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

import attrs

from state_machine.values import Closure, HostName, ProbeStatus, RolloutId, WallMs
from tests.cplab import probed
from tests.load.line import Line
from tests.load.orders import Account, Calm, Flood, Join, Leave, Order, Prepare, Role, Setting, Standing, Tally, Tell
from tests.load.seat import Errand, Seat
from tests.load.stories import Written, heartbeat, story, written
from wire.endpoints import DISPATCH, EVENTS, FLEET, FLEET_SIGNATURE, HEARTBEAT, ROLLOUT, ROLLOUT_SIGNATURE

POLL: Final = f"{DISPATCH}?wait=60"
CONNECTING: Final = 24
"""So many hosts at most are on their way in at a time, or handshakes would wait for one another until they time out."""
REPORT_S: Final = 0.25
RETRY_S: Final = 1.0
TICK_S: Final = 0.01
BREACHES_SHOWN: Final = 20
PREPARED_AT_A_TIME: Final = 10
AT: Final = WallMs(1_790_000_000_000)
"""What hosts say is signed before it happens, so they all say that it happened then."""
_TAG: Final = re.compile(rb'\r\netag: *("[^"]*")', re.IGNORECASE)


@attrs.define(eq=False)
class Player:
    """One host."""

    role: Role
    polling: Seat | None = None
    telling: Seat | None = None
    last: dict[RolloutId, int] = attrs.field(factory=dict)
    """The number of the last fact that was taken, by rollout."""
    sent: dict[RolloutId, int] = attrs.field(factory=dict)
    checksums: Counter[RolloutId] = attrs.field(factory=Counter)
    ready: dict[RolloutId, list[Written]] = attrs.field(factory=dict)
    """What it will say when it is sent for."""
    targets: dict[RolloutId, Closure] = attrs.field(factory=dict)
    dispatched_at: dict[RolloutId, float] = attrs.field(factory=dict)


class Crowd:
    """All hosts of one process."""

    def __init__(self, setting: Setting, pipe: "Connection[Any, Any]") -> None:
        self._setting, self._pipe = setting, pipe
        self._random = random.Random(setting.seed)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_verify_locations(setting.ca)
        self._epoll = select.epoll()
        self._epoll.register(pipe.fileno(), select.EPOLLIN)
        self._seats: dict[int, Seat] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._players: dict[HostName, Player] = {}
        self._outside: deque[Role] = deque()
        self._coming = 0
        self._tags: dict[str, str] = {}
        self._prepared: set[RolloutId] = set()
        self._told: Counter[RolloutId] = Counter()
        self._taken = self._heartbeats = 0
        self._unexpected: Counter[str] = Counter()
        self._flood: Flood | None = None
        self._turns: deque[Player] = deque()
        self._under_way = 0
        """Facts that are not answered yet."""
        self._taken_after: list[float] = []
        self._account_wanted = False

    def run(self) -> None:
        """Play until the other end of the pipe is closed."""
        self.later(REPORT_S, self._report)
        while True:
            pause = max(0.0, self._timers[0][0] - time.monotonic())
            for descriptor, _ in self._epoll.poll(pause, 256):
                if descriptor == self._pipe.fileno():
                    self._obey(self._pipe.recv())
                elif descriptor in self._seats:
                    self._seats[descriptor].on_event()
            while self._timers[0][0] <= time.monotonic():
                heapq.heappop(self._timers)[2]()

    def _obey(self, order: Order) -> None:
        match order:
            case Join():
                self._outside.extend(order.roles)
                self._let_in()
            case Prepare():
                self._prepare(order)
            case Flood():
                self._begin_flood(order)
            case Calm():
                self._flood = None
            case Tell():
                self._account_wanted = True
            case Leave():
                self._leave()

    # What seats ask for

    def connect(self, role: Role, ready: Callable[[Line], None], seat: Seat) -> Line:
        """A watched connection."""
        line = Line(role, self._setting.port, self._context, ready)
        self._seats[line.fd] = seat
        self._epoll.register(line.fd, select.EPOLLIN)
        return line

    def forget(self, line: Line) -> None:
        """Close a connection."""
        del self._seats[line.fd]
        self._epoll.unregister(line.fd)
        line.close()

    def later(self, pause_s: float, action: Callable[[], None]) -> None:
        """Do `action` after a while."""
        heapq.heappush(self._timers, (time.monotonic() + pause_s, next(self._order), action))

    # Coming and going

    def _let_in(self) -> None:
        while self._outside and self._coming < CONNECTING:
            self._coming += 1
            player = Player(self._outside.popleft())
            self._players[player.role.host] = player
            player.polling = Seat(self, player.role, partial(self._sit_down, player))
            player.polling.open()

    def _sit_down(self, player: Player) -> None:
        def arrived() -> None:
            self._coming -= 1
            self._heartbeat(player)
            self.later(self._random.random() * self._setting.period_s, lambda: self._look(player))
            self._let_in()

        player.telling = Seat(self, player.role, arrived)
        player.telling.open()
        self._poll(player)

    def _leave(self) -> None:
        for seat in set(self._seats.values()):
            seat.close()
        self._players.clear()
        self._outside.clear()
        self._timers.clear()
        self._turns.clear()
        self._tags.clear()
        self._told.clear()
        self._coming, self._under_way, self._flood = 0, 0, None
        self.later(REPORT_S, self._report)

    # The life of a host

    def _poll(self, player: Player) -> None:
        assert player.polling is not None
        player.polling.put(
            Errand("GET", POLL, b"", lambda status, _, body: self._on_poll(player, status, body)),
        )

    def _on_poll(self, player: Player, status: int, body: bytes) -> None:
        if status == 200:
            self._on_dispatch(player, json.loads(body))
        pause = 0.0 if status == 204 else RETRY_S
        if status not in (200, 204):
            self._note(POLL, status, body)
        self.later(pause, lambda: self._poll(player))

    def _on_dispatch(self, player: Player, dispatch: Any) -> None:
        rollout_id = dispatch["rollout_id"]
        if rollout_id in player.dispatched_at:
            return
        player.dispatched_at[rollout_id] = time.time()
        if dispatch["target_closure"] != player.targets.get(rollout_id):
            self._unexpected[f"{player.role.host} was sent {dispatch['target_closure']} in {rollout_id}"] += 1
        if self._setting.fetches:
            manifest = ROLLOUT.format(rollout_id=rollout_id), ROLLOUT_SIGNATURE.format(rollout_id=rollout_id)
            self._fetch(player, FLEET, FLEET_SIGNATURE, whole=True)
            self._fetch(player, *manifest, whole=True)
        *before, last = player.ready.pop(rollout_id)
        for fact in before:
            self._say(player, rollout_id, fact)
        self._say(player, rollout_id, last, lambda: self._told.update((rollout_id,)))

    def _say(
        self, player: Player, rollout_id: RolloutId, fact: Written, then: Callable[[], None] | None = None
    ) -> None:
        def answered(status: int, _: bytes, body: bytes) -> None:
            if status == 204:
                self._taken += 1
                player.last[rollout_id] = player.last.get(rollout_id, 0) + 1
                player.checksums[rollout_id] += fact.checksum
            else:
                self._note(EVENTS, status, body)
            self._under_way -= 1
            if then is not None:
                then()

        self._under_way += 1
        player.sent[rollout_id] = player.sent.get(rollout_id, 0) + 1
        self._tell(player, Errand("POST", EVENTS, fact.body, answered))

    def _heartbeat(self, player: Player) -> None:
        def beaten(status: int, _: bytes, body: bytes) -> None:
            self._heartbeats += status == 200
            if status != 200:
                self._note(HEARTBEAT, status, body)

        running = self._setting.running
        body = heartbeat(player.role.host, running, player.last, WallMs(int(time.time() * 1000)))
        self._tell(player, Errand("POST", HEARTBEAT, body, beaten))
        self._again(lambda: self._heartbeat(player))

    def _look(self, player: Player) -> None:
        self._fetch(player, FLEET, FLEET_SIGNATURE)
        self._again(lambda: self._look(player))

    def _fetch(self, player: Player, path: str, signature: str, *, whole: bool = False) -> None:
        def fetched(status: int, head: bytes, body: bytes) -> None:
            if (tag := _TAG.search(head)) is not None:
                self._tags[path] = tag[1].decode()
            if status == 200:
                self._tell(player, Errand("GET", signature, b"", lambda *_: None))
            elif status != 304:
                self._note(path, status, body)

        known = "" if whole else self._tags.get(path, "")
        header = f"If-None-Match: {known}\r\n" if known else ""
        self._tell(player, Errand("GET", path, b"", fetched, header))

    def _tell(self, player: Player, errand: Errand) -> None:
        assert player.telling is not None
        player.telling.put(errand)

    def _again(self, action: Callable[[], None]) -> None:
        self.later(self._setting.period_s * (0.95 + 0.1 * self._random.random()), action)

    def _note(self, path: str, status: int, body: bytes) -> None:
        self._unexpected[f"{path}: HTTP {status} {body[:200]!r}"] += 1

    # Rollouts

    def _prepare(self, order: Prepare) -> None:
        """Sign what will be said, a little at a time: everybody else goes on living meanwhile."""
        left = [player for player in self._players.values() if player.role.host in order.targets]

        def prepare_some() -> None:
            for _ in range(min(PREPARED_AT_A_TIME, len(left))):
                player = left.pop()
                host, target = player.role.host, order.targets[player.role.host]
                facts = story(self._setting.running, target, AT, converges=order.converges)
                player.targets[order.rollout_id] = target
                player.ready[order.rollout_id] = written(host, player.role.key, order.rollout_id, facts, 1)
            if left:
                self.later(0.0, prepare_some)
            else:
                self._prepared.add(order.rollout_id)

        prepare_some()

    def _begin_flood(self, flood: Flood) -> None:
        self._flood = flood
        self._taken_after.clear()
        self._turns = deque(player for player in self._players.values() if flood.rollout_id in player.last)
        for _ in range(min(flood.abreast, len(self._turns))):
            self._send_result(flood)
        if flood.per_second:
            self._keep_pace(flood, began=time.monotonic(), sent=0)

    def _keep_pace(self, flood: Flood, *, began: float, sent: int) -> None:
        if self._flood is not flood:
            return
        due = int((time.monotonic() - began) * flood.per_second)
        for _ in range(due - sent):
            self._send_result(flood)
        self.later(TICK_S, lambda: self._keep_pace(flood, began=began, sent=due))

    def _send_result(self, flood: Flood) -> None:
        player = self._turns.popleft()
        self._turns.append(player)
        rollout_id, began = flood.rollout_id, time.monotonic()

        def through() -> None:
            self._taken_after.append(time.monotonic() - began)
            if self._flood is flood and flood.abreast:
                self._send_result(flood)

        *_, result = probed(ProbeStatus.PASS, AT)
        [fact] = written(player.role.host, player.role.key, rollout_id, [result], player.sent[rollout_id] + 1)
        self._say(player, rollout_id, fact, through)

    # Reports

    def _report(self) -> None:
        players = self._players.values()
        if self._account_wanted and not self._under_way:
            self._account_wanted = False
            self._pipe.send(self._account())
        seats = [seat for player in players for seat in (player.polling, player.telling) if seat is not None]
        self._pipe.send(
            Standing(
                waiting=sum(player.polling is not None and player.polling.waits for player in players),
                told=dict(self._told),
                prepared=frozenset(self._prepared),
                taken=self._taken,
                heartbeats=self._heartbeats,
                reconnected=sum(seat.lost for seat in seats),
                put_off=sum(seat.put_off for seat in seats),
                breaches=tuple(
                    f"{what} ({count} times)" for what, count in self._unexpected.most_common(BREACHES_SHOWN)
                ),
                cpu_s=time.process_time(),
            )
        )
        self.later(REPORT_S, self._report)

    def _account(self) -> Account:
        tallies, dispatched = {}, {}
        for host, player in self._players.items():
            for rollout_id, facts in player.last.items():
                tallies[host, rollout_id] = Tally(facts=facts, checksum=player.checksums[rollout_id])
            for rollout_id, at in player.dispatched_at.items():
                dispatched[host, rollout_id] = at
        return Account(tallies=tallies, dispatched_at=dispatched, taken_after_s=tuple(self._taken_after))


def play(setting: Setting, pipe: "Connection[Any, Any]") -> None:
    """The process of a crowd: until the harness hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the harness ends this, whoever pressed the key
    gc.disable()  # it is not this process that is measured, and it does not live long
    try:
        Crowd(setting, pipe).run()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
