"""When Python looks for garbage that reference counts do not find.

Left to itself it looks at everything there is whenever a quarter has been added. With a task, a TLS connection and
a mirror for each of thousands of hosts that is half a million objects or more, and none of them ever is garbage:
at four thousand hosts it took three fifths of all CPU time while facts came in, and each look made everybody wait.
So what has just been made is looked at as ever, and everything only once an hour.
"""

import gc
from typing import Final

import trio

EVERY_S: Final = 3600.0

_YOUNG: Final = 5_000
_MIDDLE: Final = 20
_NEVER: Final = 1_000_000


def settle() -> None:
    """What the program has made to begin with will stay: it is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _NEVER)


async def look() -> None:
    """Look at everything once in a while, for ever."""
    while True:
        await trio.sleep(EVERY_S)
        gc.collect()
