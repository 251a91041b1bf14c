"""From Trio into the asyncio loop beside it, and back."""

from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

import trio_asyncio

P = ParamSpec("P")
T = TypeVar("T")


async def on_asyncio(call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do what the client library does there, and wait for it here. Cancelled here, it is cancelled there."""
    result: T = await trio_asyncio.aio_as_trio(call)(*args, **kwargs)
    return result
