"""Keep workers going: a crash is logged, counted, and the work begun again after a growing pause.

This is the one place where any exception is caught: a defect in one worker, or in answering one caller, must not end
the others. Orders are idempotent, so beginning one again is safe. The reducer is not supervised; a crash of it ends
the process.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import trio

BASE_S: Final = 1.0
CAP_S: Final = 60.0
log = logging.getLogger(__name__)


async def keep_going(name: str, work: Callable[[], Awaitable[object]], restarts: Counter[str]) -> None:
    """Run `work` until it returns; when it crashes, run it again."""
    pause_s = BASE_S
    while True:
        try:
            await work()
        except Exception as error:
            _note(name, error, restarts, retry_s=pause_s)
        else:
            return
        await trio.sleep(pause_s)
        pause_s = min(CAP_S, pause_s * 2)


async def contain(name: str, work: Callable[[], Awaitable[object]], restarts: Counter[str]) -> None:
    """Run `work` once; a crash is noted and goes no further. For answers to callers, who may ask again."""
    try:
        await work()
    except Exception as error:
        _note(name, error, restarts)


def _note(name: str, error: Exception, restarts: Counter[str], **more: float) -> None:
    restarts[name] += 1
    fields = {"worker": name, "error": f"{type(error).__name__}: {error}", **more}
    log.exception("a worker crashed", extra={"fields": fields})
