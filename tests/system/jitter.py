"""Random timing, for `make soak`: what a scenario does next, it does a little later than it could.

`NIXFLEET_LAB_JITTER=SEED:SECONDS` turns it on. Without it nothing here waits, and every run has the same timing.
"""

import os
import random
from typing import Final

import trio

_GIVEN: Final = os.environ.get("NIXFLEET_LAB_JITTER", "")
_SEED, _, _SECONDS = _GIVEN.partition(":")
_DICE: Final = random.Random(_SEED)
_MOST_S: Final = float(_SECONDS or 0)


async def linger() -> None:
    """Wait for a random while, mostly a short one."""
    if _MOST_S:
        await trio.sleep(_MOST_S * _DICE.random() ** 3)
