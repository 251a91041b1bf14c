"""Instants and durations for people: `2 min 5 s ago`, `in 55 s`, `Sat 2026-11-21 14:02:11 UTC`. Pure."""

import datetime
from typing import Final

from state_machine.values import WallMs

_UNITS: Final = (("day", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def duration(seconds: int) -> str:
    """The two largest units, of which the smaller may be absent; `0 s` is the least."""
    parts, left = [], max(0, seconds)
    for name, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {name}{'s' if name == 'day' and count > 1 else ''}")
        elif parts:
            break
        if len(parts) == 2:
            break
    return " ".join(parts) or "0 s"


def times(count: int) -> str:
    """`once`, `3 times`."""
    return "once" if count == 1 else f"{count} times"


def relative(instant: WallMs, now: WallMs) -> str:
    """How far `instant` lies from `now`."""
    if instant > now:
        return f"in {duration((instant - now) // 1000)}"
    return f"{duration((now - instant) // 1000)} ago" if now - instant >= 1000 else "just now"


def absolute(instant: WallMs, zone: datetime.tzinfo | None) -> str:
    """With the day of the week and the time zone; `zone` None is the host's own."""
    when = datetime.datetime.fromtimestamp(instant / 1000, datetime.UTC).astimezone(zone)
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[when.weekday()]
    return f"{day} {when:%Y-%m-%d %H:%M:%S %Z}"


def compact(instant: WallMs, zone: datetime.tzinfo | None) -> str:
    """As in a log: month, day and time."""
    when = datetime.datetime.fromtimestamp(instant / 1000, datetime.UTC).astimezone(zone)
    return f"{when:%m-%d %H:%M:%S}"
