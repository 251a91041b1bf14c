"""Wait for something that nobody announces: a file of another process, a lock, a unit's end."""

from collections.abc import Awaitable, Callable

import trio


async def comes_true(
    check: Callable[[], Awaitable[bool]], *, within_s: float, first_pause_s: float = 0.02, longest_pause_s: float = 1.0
) -> bool:
    """Ask at once and then ever more rarely until `check` says yes or `within_s` seconds are over; whether it did."""
    deadline = trio.current_time() + within_s
    pause = first_pause_s
    while not await check():
        remaining = deadline - trio.current_time()
        if remaining <= 0:
            return False
        await trio.sleep(min(pause, remaining))
        pause = min(pause * 1.5, longest_pause_s)
    return True
