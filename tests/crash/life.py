"""One life of the real daemon in a simulated world, under simulated time.

It is `nixfleet_agent.daemon.live`, whole and unchanged; what it takes from the machine around it comes from the `World`
instead, and its state directory is real files. `passed` is told of every instant at which being killed could make a
difference.
"""

import contextlib
import enum
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import trio
from trio.testing import MockClock

from nixfleet_agent import daemon
from nixfleet_agent.config import Config
from nixfleet_agent.journal.schema import wal_path
from nixfleet_agent.journal.store import Journal
from nixfleet_agent.ledger import JOURNAL_NAME
from nixfleet_agent.probes.kinds import HttpProbe
from nixfleet_agent.probes.reading import PASSED, Outcome, failed
from nixfleet_agent.surroundings import Surroundings
from state_machine.passages import Passage
from state_machine.state import GENESIS, State, fact_backlog
from state_machine.values import Moment
from tests.crash.office import Line
from tests.crash.points import Kind
from tests.crash.stories import Story
from tests.crash.world import EPOCH, SECOND, SimulatedPlatform, World

YEAR: Final = 365 * 86_400 * SECOND
PATIENCE_S: Final = 20 * 60.0
"""By then a run must be over, in simulated time."""
TAIL_S: Final = 25.0
"""How long is looked whether a run that is over does anything more."""

WORKERS: Final = frozenset(
    {"intent", "dispatch", "heartbeat", "renewal", "delivery", "fetch-intent", "realise", "switch", "rollback"}
    | {"observe", "declare"}
)
"""Tasks of the agent that each carry out one action."""

CRASHED: Final = "a worker crashed"
"""What supervision logs; no kill is a reason for it."""


class End(enum.Enum):
    """How a life ended."""

    OVER = "over"
    REBOOT = "reboot"


class NotOverError(Exception):
    """The run did not come to its end."""


@attrs.define(eq=False)
class Life(trio.abc.Instrument):
    """`passed` gets the kind of an instant, a detail for people, and, in a commit, how long the log is half-way; it is
    None in a life whose points nobody asks for. `power_cut` is called when the host goes down, before anything is
    closed in good order.
    """

    world: World
    config: Config
    story: Story
    passed: Callable[[Kind, str, int | None], None] | None
    power_cut: Callable[[], None]
    state: State = GENESIS
    end: End | None = None
    _began_ms: int = 0

    def live(self) -> End:
        """From the start of the process to the end of the story, or to a reboot.

        Raises:
            NotOverError: it comes to no end.
        """
        self._began_ms = self.world.now_ms
        with _no_worker_crashes():
            trio.run(self._live, clock=MockClock(autojump_threshold=0), instruments=[self])
        if self.end is None:
            raise NotOverError(f"{self.story.name}: not over, but {self.world.office.kinds()}: {self.state.known}")
        return self.end

    async def _live(self) -> None:
        with trio.move_on_after(PATIENCE_S) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, scope)
                never = daemon.Signals(stop=_never(), hangup=_never())
                await daemon.live(self.config, self._surroundings(), never)

    async def _watch(self, scope: trio.CancelScope) -> None:
        """Let happen what happens to the world, and see when the story has been told."""
        while not self._is_over():
            await trio.sleep(1)
            self.now_ms()
            if self.story.interfere(self.world):
                self.end = End.REBOOT
                self.power_cut()
                return scope.cancel()
        await trio.sleep(TAIL_S)
        self.end = End.OVER
        scope.cancel()

    def _is_over(self) -> bool:
        known = self.state.known
        return self.story.is_over(self.world) and not fact_backlog(known) and known.operation is None

    def now_ms(self) -> int:
        """The world's time."""
        self.world.now_ms = self._began_ms + round(trio.current_time() * SECOND)
        return self.world.now_ms

    def _clock(self) -> Moment:
        self.now_ms()
        return self.world.moment()

    def _pass(self, kind: Kind, detail: str, torn_at: int | None = None) -> None:
        if self.passed is not None and self.end is None:
            self.now_ms()
            self.passed(kind, detail, torn_at)

    def _surroundings(self) -> Surroundings:
        return Surroundings(
            platform=SimulatedPlatform(world=self.world, now_ms=self.now_ms, passed=self._pass),
            clock=self._clock,
            dice=lambda: 0.5,
            in_thread=self._in_place,
            connect=self._connect,
            certificate_tool=self._certificate_tool,
            http_prober=lambda: Service(world=self.world, now_ms=self.now_ms),
            serve_control=_nobody_comes,
            witness=self._witness,
        )

    def _connect(self, config: Config, certificate: Path | None) -> httpx.AsyncBaseTransport:
        self._pass(Kind.AFTER_OPENING, "")
        return Line(office=self.world.office, now_ms=self.now_ms, passed=self._pass)

    async def _certificate_tool(self, request: dict[str, str]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        validity = {"not_before_ms": EPOCH - YEAR, "not_after_ms": EPOCH + 2 * YEAR}
        return {"cn": self.config.machine_id, "fits_key": True, **validity}

    async def _in_place(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Simulated time would not wait for a thread."""
        await trio.lowlevel.checkpoint()
        if getattr(work, "__func__", None) is not Journal.append or self.passed is None:
            return work(*arguments)
        return self._commit(work, arguments)

    def _commit(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        log = wal_path(self.config.state_dir / JOURNAL_NAME)
        before = log.stat().st_size
        done = work(*arguments)
        after, kinds = log.stat().st_size, ", ".join(type(event).__name__ for event, _ in arguments[0])
        if after > before:  # it does not grow where a torn tail is written over
            self._pass(Kind.IN_COMMIT, kinds, (before + after) // 2)
        self._pass(Kind.AFTER_COMMIT, kinds)
        return done

    def _witness(self, passages: Sequence[Passage]) -> None:
        self.state = passages[-1].step.state
        if actions := [type(action).__name__ for passage in passages for action in passage.step.actions]:
            self._pass(Kind.BEFORE_ACTION, ", ".join(actions))

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`: a worker is through with its order, and its answer waits for the reducer."""
        if task.name in WORKERS:
            self._pass(Kind.AFTER_ACTION, task.name)


@attrs.frozen(kw_only=True)
class Service:
    """What the host is there for, as an http probe finds it."""

    world: World
    now_ms: Callable[[], int]

    async def run(self, probe: HttpProbe) -> Outcome:
        """Well or sick, as the running system is."""
        await trio.sleep(0.01)
        self.now_ms()
        return PASSED if self.world.healthy() else failed("status 500, expected 200")


async def _never() -> AsyncIterator[int]:
    await trio.sleep_forever()
    yield 0


async def _nobody_comes(state_dir: Path, handler: object, restarts: Counter[str]) -> None:
    await trio.sleep_forever()


class _Complaints(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == CRASHED:
            self.said.append(f"{getattr(record, 'fields', '')}: {record.exc_info}")


@contextlib.contextmanager
def _no_worker_crashes() -> Any:
    complaints, root = _Complaints(), logging.getLogger()
    root.addHandler(complaints)
    try:
        yield
    finally:
        root.removeHandler(complaints)
    assert not complaints.said, complaints.said[0]
