"""What a job says while it goes on: its first word and each new phase at once, the rest twice a second at most.

What is held back is not lost: when a build falls silent, the last that was said of it is told.
"""

from collections.abc import Callable
from typing import Any, Final

import attrs
import trio

from nixfleet.builder.messages import Phase, Progress, Request
from nixfleet.clock import wall_now

EVERY_S: Final = 0.5
LINE_MAX: Final = 400
"""Characters of the line in a message."""


@attrs.define(kw_only=True, eq=False)
class Voice:
    """Speaks for one job."""

    request: Request
    builder: str
    tell: Callable[[Progress], None]
    latest: Progress = attrs.field(init=False)
    _began: float = attrs.field(factory=trio.current_time)
    _told_at: float = float("-inf")
    _held: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.latest = Progress(
            job=self.request.job,
            repository=self.request.repository,
            host=self.request.host,
            phase=Phase.QUEUED,
            builder=self.builder,
            at=wall_now(),
        )

    def say(self, phase: Phase, **facts: Any) -> Progress:
        """Tell how it goes. `facts` are fields of `Progress`; what is not given stays as it was said last."""
        is_new = phase is not self.latest.phase
        seconds = round(trio.current_time() - self._began, 3)
        line = facts.pop("line", self.latest.line)[:LINE_MAX]
        self.latest = attrs.evolve(self.latest, phase=phase, at=wall_now(), seconds=seconds, line=line, **facts)
        if is_new or trio.current_time() - self._told_at >= EVERY_S:
            self._out()
        else:
            self._held.set()
        return self.latest

    async def tell_what_is_held_back(self) -> None:
        """Runs beside the job until it is cancelled."""
        while True:
            await self._held.wait()
            if (due := self._told_at + EVERY_S) > trio.current_time():
                await trio.sleep_until(due)
            else:
                self._out()

    def _out(self) -> None:
        self._told_at = trio.current_time()
        if self._held.is_set():  # else somebody waits for this one
            self._held = trio.Event()
        self.tell(self.latest)
