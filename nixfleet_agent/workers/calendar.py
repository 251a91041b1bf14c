"""Work out the windows of the weeks to come: the worker behind `ReadCalendar`."""

import time
from typing import Final

from nixfleet_agent.config import Config
from nixfleet_agent.desk import Desk
from nixfleet_agent.windows import Window, spans
from state_machine.events import Calendar, CalendarRead, Span
from state_machine.values import WallMs

DAYS: Final = 35
_DAY_MS: Final = 86_400_000


class CalendarWorker:
    """Answers with `CalendarRead`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def read(self) -> None:
        """Tell the windows from now on. Time zones are read anew, as their rules change."""
        at = self._desk.clock()
        calendar = calendar_of(self._desk.config, at.wall_ms, self._desk.jitter())
        if calendar is not None:
            await self._desk.tell(CalendarRead(at=at, calendar=calendar))


def calendar_of(config: Config, now: WallMs, jitter: float) -> Calendar | None:
    """The configured windows as instants, None without any. `jitter` in [0, 1) is this host's part of the delay."""
    if not config.activation_windows and not config.reboot_windows:
        return None
    time.tzset()  # the host may have been given another time zone since
    return Calendar(
        since=now,
        through=WallMs(now + DAYS * _DAY_MS),
        activation=_spans(config.activation_windows, now, config.activation_delay, jitter),
        reboot=_spans(config.reboot_windows, now),
    )


def _spans(windows: tuple[Window, ...], now: WallMs, delay_s: int = 0, jitter: float = 0.0) -> tuple[Span, ...] | None:
    return spans(windows, now, DAYS, delay_s=delay_s, jitter=jitter) if windows else None
