"""What the control plane takes from the machine it runs on, gathered in one value: its clock, its threads, its dice.

The defaults are a real machine's. Where time is simulated nothing may happen in a thread, since such a clock goes on
while a thread still works.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio
from cryptography import x509

from control_plane.clock import wall_now
from state_machine.values import WallMs

InThread = Callable[..., Awaitable[Any]]
"""Runs a function that blocks, with its arguments, and returns what it returns."""


@attrs.frozen(kw_only=True)
class Surroundings:
    """Given once, when the parts are put together."""

    clock: Callable[[], WallMs] = wall_now
    in_thread: InThread = trio.to_thread.run_sync
    writes_in_thread: bool = True
    """The database has a writing thread of its own; without, the event loop writes what waits when it comes round."""
    serial: Callable[[], int] = x509.random_serial_number
    """Serial numbers for certificates."""
