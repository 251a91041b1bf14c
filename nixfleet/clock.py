"""The wall clock, read in one place, and durations in words."""

import re
import time
from typing import Final

from state_machine.values import WallMs

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def wall_now() -> WallMs:
    """UTC milliseconds since 1970, as this machine's clock tells it."""
    return WallMs(time.time_ns() // 1_000_000)


def parse_duration_s(text: str) -> int:
    """Seconds in `90`, `90s`, `15m`, `24h`, `7d` or `2w`.

    Raises:
        ValueError: the text has another form or means no time at all.
    """
    match = re.fullmatch(r"(\d{1,9})([smhdw]?)", text.strip(), re.ASCII)
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{text!r} is not a duration such as 90s, 15m, 24h or 7d")
    return int(match[1]) * _UNITS[match[2] or "s"]


def in_words(ms: int) -> str:
    """A length of time with the two largest units that are not zero: `2 d 3 h`, `4 min 10 s`, `250 ms`."""
    if abs(ms) < 1000:
        return f"{ms} ms"
    left, parts = abs(ms) // 1000, []
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {name}")
    return ("-" if ms < 0 else "") + " ".join(parts[:2])
