"""Weekly windows as people write them, and the instants they amount to.

    04:00-05:00                          every day, in the host's time zone
    Mon-Fri 22:00-02:00 Europe/Berlin    five times a week, over midnight, in that zone
    Sat,Sun 00:00-24:00 UTC              the whole of the weekend

A window belongs to the day on which it begins: it opens when the clocks there first show its beginning or a later
time, and closes when they first show its end or a later time. So it takes place once on a day that has its hours twice,
and not at all on one that has none of them.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from state_machine.events import Span
from state_machine.values import WallMs

if TYPE_CHECKING:
    import zoneinfo
    from datetime import date, datetime

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
        raise WindowError(text=text, problem="is not days, a span of time and a zone, of which the second is needed")
    zone = found["zone"] or ""
    if zone and not _is_zone(zone):
        raise WindowError(text=text, problem=f"names {zone!r}, which this host's time zone database does not have")
    begins, ends = _minutes(text, found["begins"]), _minutes(text, found["ends"])
    if begins == _MINUTES_A_DAY:
        raise WindowError(text=text, problem="begins at 24:00, which is 00:00 of the next day: name that")
    if begins == ends:
        raise WindowError(text=text, problem="ends when it begins; a whole day is 00:00-24:00, a window something")
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


def spans(
    windows: Iterable[Window], since: WallMs, days: int, *, delay_s: float = 0.0, jitter: float = 0.0
) -> tuple[Span, ...]:
    """When the windows are open in the `days` days after `since`, in order; what overlaps or touches is one span.

    Each span begins late by the part `jitter`, in [0, 1), of `delay_s` seconds, or of its own length if that is less:
    however long the delay, something is left of every span.
    """
    found = sorted((span for window in windows for span in _spans(window, since, days)), key=_begins)
    joined: list[Span] = []
    for span in found:
        if joined and span.begins <= joined[-1].ends:
            joined[-1] = attrs.evolve(joined[-1], ends=max(joined[-1].ends, span.ends))
        else:
            joined.append(span)
    late = (_late(span, delay_s, jitter) for span in joined if span.ends > since)
    return tuple(late)


def _begins(span: Span) -> int:
    return span.begins


def _late(span: Span, delay_s: float, jitter: float) -> Span:
    delay_ms = int(jitter * min(delay_s * 1000, span.ends - span.begins))
    return attrs.evolve(span, begins=WallMs(span.begins + delay_ms)) if delay_ms else span


def _spans(window: Window, since: WallMs, days: int) -> Iterator[Span]:
    from datetime import timedelta

    zone = _tz(window.zone)
    today = _on_the_wall(since // 1000, zone).date()
    over_midnight = _MINUTES_A_DAY if window.ends <= window.begins else 0
    for offset in range(-1, days + 1):
        day = today + timedelta(days=offset)
        if day.weekday() not in window.days:
            continue
        begins = _first_shown(day, window.begins, zone)
        ends = _first_shown(day, window.ends + over_midnight, zone)
        if begins < ends:
            yield Span(begins=WallMs(begins * 1000), ends=WallMs(ends * 1000))


def _tz(name: str) -> "zoneinfo.ZoneInfo | None":
    """The rules as they are in the database now; None stands for the host's own."""
    import zoneinfo

    return zoneinfo.ZoneInfo.no_cache(name) if name else None


def _on_the_wall(seconds: int, zone: "zoneinfo.ZoneInfo | None") -> "datetime":
    """What the clocks of a zone show at an instant, in seconds since 1970."""
    from datetime import datetime

    return datetime.fromtimestamp(seconds, zone).replace(tzinfo=None)


def _first_shown(day: "date", minutes: int, zone: "zoneinfo.ZoneInfo | None") -> int:
    """The first second since 1970 at which the clocks show this time of the day or a later one.

    Where clocks are put back, a time is shown twice, and Python reckons the first (PEP 495); where they are put
    forward past it, Python reckons as if they had not been, which is after the step that is looked for.
    """
    from datetime import datetime, time, timedelta

    shows = datetime.combine(day + timedelta(days=minutes // _MINUTES_A_DAY), time()) + timedelta(
        minutes=minutes % _MINUTES_A_DAY
    )
    after = int(shows.replace(tzinfo=zone).timestamp())
    if _on_the_wall(after, zone) == shows:
        return after
    before = int(shows.replace(tzinfo=zone, fold=1).timestamp())
    while after - before > 1:
        middle = (before + after) // 2
        if _on_the_wall(middle, zone) < shows:
            before = middle
        else:
            after = middle
    return after


def in_words(windows: Sequence[Window]) -> str:
    """The windows for a line of status."""
    return "; ".join(_in_words(window) for window in windows)


def _in_words(window: Window) -> str:
    days = "" if len(window.days) == 7 else ",".join(DAYS[day].capitalize() for day in sorted(window.days)) + " "
    zone = f" {window.zone}" if window.zone else ""
    return f"{days}{_clock(window.begins)}-{_clock(window.ends)}{zone}"


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"
