"""Run something on Trio that Ctrl-C and SIGTERM cancel, so that it stops what it started before the program ends."""

import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from nixfleet.errors import StoppedError

Result = TypeVar("Result")


def run_stoppable(work: Callable[[], Awaitable[Result]]) -> Result:
    """What `work` returns.

    Raises:
        KeyboardInterrupt: it was cancelled by a signal.
        StoppedError: what it raised, by itself and not as one of a group.
    """
    return trio.run(_until_stopped, work)


async def _until_stopped(work: Callable[[], Awaitable[Result]]) -> Result:
    done: list[Result] = []
    troubles: list[StoppedError] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_on_signal, nursery.cancel_scope)
        try:
            done.append(await work())
        except StoppedError as error:  # told when the nursery is closed
            troubles.append(error)
        nursery.cancel_scope.cancel()
    if troubles:
        raise troubles[0]
    if not done:
        raise KeyboardInterrupt
    return done[0]


async def _cancel_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return
