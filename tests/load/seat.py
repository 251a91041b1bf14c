"""A host's place in the queue: one connection that is made again when it is lost, and requests that wait for it."""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import attrs

from tests.load.line import Answered, Line, LostError
from tests.load.orders import Role

REOPEN_S: Final = 0.05
RETRY_S: Final = 1.0
PUT_OFF: Final = frozenset({408, 425, 429, 503})
"""Answers that say nothing about what was asked: it is asked again later."""


@attrs.frozen
class Errand:
    """A request. It is made again until there is an answer, as agents do."""

    method: str
    path: str
    body: bytes
    answered: Answered
    header: str = ""


class House(Protocol):
    """Where connections are made and watched."""

    def connect(self, role: Role, ready: Callable[[Line], None], seat: "Seat") -> Line:
        """A connection that `seat` is told about when something arrives on it.

        Raises:
            OSError: none can be had.
        """
        ...

    def forget(self, line: Line) -> None:
        """A connection is gone."""
        ...

    def later(self, pause_s: float, action: Callable[[], None]) -> None:
        """Do something in a while."""
        ...


class Seat:
    """One connection of one host."""

    __slots__ = ("_at_first", "_errands", "_house", "_line", "_role", "lost", "put_off")

    def __init__(self, house: House, role: Role, at_first: Callable[[], None]) -> None:
        """`at_first` is called when it is connected for the first time."""
        self._house, self._role = house, role
        self._at_first: Callable[[], None] | None = at_first
        self._errands: deque[Errand] = deque()
        self._line: Line | None = None
        self.put_off = 0
        """How often it was told to come again later."""
        self.lost = 0
        """How often the connection was lost, or could not be had."""

    @property
    def waits(self) -> bool:
        """A request is under way."""
        return self._line is not None and self._line.busy and bool(self._errands)

    def put(self, errand: Errand) -> None:
        """Ask in turn."""
        self._errands.append(errand)
        self._go()

    def on_event(self) -> None:
        """Something has arrived."""
        if self._line is None:
            return
        try:
            self._line.on_event()
        except LostError:
            self._reopen()

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._house.forget(self._line)

    def open(self) -> None:
        """Connect."""
        try:
            self._line = self._house.connect(self._role, self._on_ready, self)
        except OSError:
            self._line = None
            self.lost += 1
            self._house.later(RETRY_S, self.open)
            return
        self.on_event()

    def _reopen(self) -> None:
        assert self._line is not None
        self._house.forget(self._line)
        self._line = None
        self.lost += 1
        self._house.later(REOPEN_S, self.open)

    def _on_ready(self, _: Line) -> None:
        if self._at_first is not None:
            at_first, self._at_first = self._at_first, None
            at_first()
        self._go()

    def _go(self) -> None:
        if self._line is None or self._line.busy or not self._errands:
            return
        errand = self._errands[0]
        try:
            self._line.ask(errand.method, errand.path, errand.body, self._on_answer, errand.header)
        except LostError:
            self._reopen()

    def _on_answer(self, status: int, head: bytes, body: bytes) -> None:
        if status in PUT_OFF:
            self.put_off += 1
            self._house.later(RETRY_S, self._go)
            return
        self._errands.popleft().answered(status, head, body)
        self._go()
