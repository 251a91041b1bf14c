"""Weekly windows as people write them, and the instants they amount to.

    04:00-05:00                          every day, in the host's time zone
    Mon-Fri 22:00-02:00 Europe/Berlin    five times a week, over midnight, in that zone
    Sat,Sun 00:00-24:00 UTC              the whole of the weekend

A window belongs to the day on which it begins. On the days that clocks are put forward or back it is as much shorter
or longer as the day is; one of which nothing is left does not take place.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from state_machine.events import Span
from state_machine.values import WallMs

if TYPE_CHECKING:
    import zoneinfo
    from datetime import date

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTES_A_DAY: Final = 24 * 60
_SYNTAX: Final = re.compile(
    r"(?:(?P<days>[A-Za-z]+(?:[,-][A-Za-z]+)*) +)?"
    r"(?P<begins>\d{1,2}:\d{2})-(?P<ends>\d{1,2}:\d{2})"
    r"(?: +(?P<zone>[A-Za-z][A-Za-z0-9_+/-]*))?",
    re.ASCII,
)


@attrs.frozen(kw_only=True)
class WindowError(Exception):
    """A text is no window."""

    text: str
    problem: str

    def __str__(self) -> str:
        return f"{self.text[:80]!r} {self.problem}, such as 'Mon-Fri 04:00-05:00 Europe/Berlin'"


@attrs.frozen(kw_only=True)
class Window:
    """Minutes after midnight on certain days (0: Monday). An end at or before the beginning is on the next day.

    `zone` is a name of the time zone database; empty: the host's own.
    """

    days: frozenset[int]
    begins: int
    ends: int
    zone: str = ""


def parse_window(text: str) -> Window:
    """A window as a person wrote it.

    Raises:
        WindowError: it is none.
    """
    found = _SYNTAX.fullmatch(text.strip())
    if found is None:
        raise WindowError(text=text, problem="is not days, a span of time and a zone")
    zone = found["zone"] or ""
    if zone and not _is_zone(zone):
        raise WindowError(text=text, problem=f"names {zone!r}, which this host's time zone database does not have")
    begins, ends = _minutes(text, found["begins"]), _minutes(text, found["ends"])
    if begins in (_MINUTES_A_DAY, ends):
        raise WindowError(text=text, problem="begins when it ends")
    return Window(days=_days(text, found["days"]), begins=begins, ends=ends, zone=zone)


def _minutes(text: str, clock: str) -> int:
    hours, minutes = (int(part) for part in clock.split(":"))
    if minutes > 59 or hours * 60 + minutes > _MINUTES_A_DAY:
        raise WindowError(text=text, problem=f"has {clock}, which is no time of day")
    return hours * 60 + minutes


def _days(text: str, words: str | None) -> frozenset[int]:
    if words is None:
        return frozenset(range(7))
    days: set[int] = set()
    for word in words.split(","):
        first, _, last = word.partition("-")
        begin, end = _day(text, first), _day(text, last or first)
        days |= {day % 7 for day in range(begin, end + 1 if end >= begin else end + 8)}
    return frozenset(days)


def _day(text: str, word: str) -> int:
    name = word.lower()[:3]
    full = {"mon": "monday", "tue": "tuesday", "wed": "wednesday", "thu": "thursday", "fri": "friday",
            "sat": "saturday", "sun": "sunday"}  # fmt: skip
    if name not in DAYS or not full[name].startswith(word.lower()):
        raise WindowError(text=text, problem=f"has {word!r}, which is no day of the week")
    return DAYS.index(name)


def _is_zone(name: str) -> bool:
    import zoneinfo  # hosts without windows need none of it

    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def spans(windows: Iterable[Window], since: WallMs, days: int, delay_s: float = 0.0) -> tuple[Span, ...]:
    """When the windows are open in the `days` days after `since`, in order and without overlaps.

    Each begins `delay_s` seconds late, or not at all where that is past its end.
    """
    found = sorted((span for window in windows for span in _spans(window, since, days, delay_s)), key=_begins)
    joined: list[Span] = []
    for span in found:
        if joined and span.begins <= joined[-1].ends:
            joined[-1] = attrs.evolve(joined[-1], ends=max(joined[-1].ends, span.ends))
        elif span.ends > since:
            joined.append(span)
    return tuple(joined)


def _begins(span: Span) -> int:
    return span.begins


def _spans(window: Window, since: WallMs, days: int, delay_s: float) -> Iterator[Span]:
    from datetime import datetime, timedelta

    zone = _tz(window.zone)
    today = datetime.fromtimestamp(since / 1000, zone).date()
    over_midnight = _MINUTES_A_DAY if window.ends <= window.begins else 0
    for offset in range(-1, days + 1):
        day = today + timedelta(days=offset)
        if day.weekday() not in window.days:
            continue
        begins = int(_instant(day, window.begins, zone) + delay_s * 1000)
        ends = _instant(day, window.ends + over_midnight, zone)
        if begins < ends:
            yield Span(begins=WallMs(begins), ends=WallMs(ends))


def _tz(name: str) -> "zoneinfo.ZoneInfo | None":
    import zoneinfo

    return zoneinfo.ZoneInfo(name) if name else None


def _instant(day: "date", minutes: int, zone: "zoneinfo.ZoneInfo | None") -> int:
    """Milliseconds since 1970 of a time on the wall; without a zone the host's own rules count."""
    from datetime import datetime, time, timedelta

    on = day + timedelta(days=minutes // _MINUTES_A_DAY)
    at: datetime = datetime.combine(on, time(minutes % _MINUTES_A_DAY // 60, minutes % 60), zone)
    return int(at.timestamp() * 1000)


def in_words(windows: Sequence[Window]) -> str:
    """The windows for a line of status."""
    return "; ".join(_in_words(window) for window in windows)


def _in_words(window: Window) -> str:
    days = "" if len(window.days) == 7 else ",".join(DAYS[day].capitalize() for day in sorted(window.days)) + " "
    zone = f" {window.zone}" if window.zone else ""
    return f"{days}{_clock(window.begins)}-{_clock(window.ends)}{zone}"


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
