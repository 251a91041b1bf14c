"""Garbage is looked for seldom, but it is looked for."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from control_plane import garbage


class Knot:
    """Something that holds on to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def settled() -> Iterator[None]:
    before = gc.get_threshold()
    garbage.settle()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("settled")
async def test_what_holds_on_to_itself_is_found_within_the_hour(autojump_clock: trio.testing.MockClock) -> None:
    knot = weakref.ref(Knot())
    assert knot() is not None
    with trio.move_on_after(garbage.EVERY_S + 1):
        await garbage.look()
    assert knot() is None


@pytest.mark.usefixtures("settled")
def test_nobody_waits_while_everything_there_is_is_looked_at() -> None:
    whole = gc.get_stats()[2]["collections"]
    kept = [[number] for number in range(300_000)]
    assert len(kept) == 300_000
    assert gc.get_stats()[2]["collections"] == whole
    assert gc.get_stats()[0]["collections"] > 0
