"""RFC 3339 timestamps to UTC milliseconds and back.

What is accepted is RFC 3339 section 5.6 and no more: a full date, `T`, a full time, one to nine fraction digits if
any, and `Z` or a numeric offset. Digits past the millisecond are cut off, never rounded up, so an instant is never
read as later than it was written. A leap second (`:60`) is refused: `WallMs` has no name for it.
"""

import datetime
import re
from typing import Final

import attrs

from state_machine.values import WallMs

_RFC3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt]([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d{1,9}))?"
    r"(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
_EPOCH: Final = datetime.date(1970, 1, 1).toordinal()
_MS_PER_DAY: Final = 86_400_000
_NAMEABLE: Final = range((1 - _EPOCH) * _MS_PER_DAY, (datetime.date.max.toordinal() + 1 - _EPOCH) * _MS_PER_DAY)
"""Instants of the years 0001 to 9999: what can be written, and so what may be read."""


@attrs.frozen(kw_only=True)
class TimestampError(ValueError):
    """Text that is not an RFC 3339 timestamp, or an instant that has no four-digit year."""

    found: str

    def __str__(self) -> str:
        return f"{self.found!r} is not an RFC 3339 timestamp such as 2026-06-01T10:30:00Z"


def parse_rfc3339(text: str) -> WallMs:
    """Read an RFC 3339 timestamp as UTC milliseconds since 1970.

    Raises:
        TimestampError: the text has another form or names a day or time that does not exist.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise TimestampError(found=text[:64])
    year, month, day, hour, minute, second, fraction, sign, off_hour, off_minute = match.groups()
    try:
        days = datetime.date(int(year), int(month), int(day)).toordinal() - _EPOCH
    except ValueError as error:
        raise TimestampError(found=text) from error
    seconds = int(hour) * 3600 + int(minute) * 60 + int(second)
    if sign is not None:
        offset = int(off_hour) * 3600 + int(off_minute) * 60
        seconds += offset if sign == "-" else -offset
    ms = 0 if fraction is None else int(fraction[:3].ljust(3, "0"))
    at = WallMs(days * _MS_PER_DAY + seconds * 1000 + ms)
    if at not in _NAMEABLE:
        raise TimestampError(found=text)
    return at


def format_rfc3339(at: WallMs) -> str:
    """Write UTC milliseconds since 1970 with `Z`, and three fraction digits only when they are not zero.

    Raises:
        TimestampError: the instant lies outside the years 0001 to 9999.
    """
    if at not in _NAMEABLE:
        raise TimestampError(found=f"{at} ms")
    days, ms = divmod(at, _MS_PER_DAY)
    seconds, ms = divmod(ms, 1000)
    date = datetime.date.fromordinal(days + _EPOCH)
    time = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{date.isoformat()}T{time}.{ms:03}Z" if ms else f"{date.isoformat()}T{time}Z"
