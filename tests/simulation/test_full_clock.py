"""The clock of full depth jumps from instant to instant, past nobody, and never while there is something to do."""

from collections.abc import Awaitable, Callable

import trio

from tests.simulation.full_clock import JumpingClock


def run(play: Callable[[JumpingClock], Awaitable[None]]) -> None:
    clock = JumpingClock()
    trio.run(play, clock, clock=clock)


def test_everybody_wakes_at_their_instant_whatever_they_sleep_with() -> None:
    woken: list[tuple[str, float]] = []

    async def play(clock: JumpingClock) -> None:
        async def sleep(name: str, seconds: float, how: Callable[[float], Awaitable[None]]) -> None:
            await how(seconds)
            woken.append((name, trio.current_time()))

        async with trio.open_nursery() as nursery:
            for name, seconds, how in (
                ("last", 3600.0, clock.sleep),
                ("second", 2.0, trio.sleep),
                ("first", 1.0, clock.sleep),
                ("third", 3.0, clock.sleep_until),
            ):
                nursery.start_soon(sleep, name, seconds, how)

    run(play)
    assert woken == [("first", 1.0), ("second", 2.0), ("third", 3.0), ("last", 3600.0)]


def test_a_sleep_can_be_cancelled() -> None:
    async def play(clock: JumpingClock) -> None:
        with trio.move_on_after(1) as patience:
            await clock.sleep(60)
        assert patience.cancelled_caught
        await clock.sleep(100)
        assert clock.now_s == 101

    run(play)


def test_an_instant_that_has_been_is_not_waited_for() -> None:
    async def play(clock: JumpingClock) -> None:
        await clock.sleep(5)
        await clock.sleep_until(4)
        assert clock.now_s == 5

    run(play)


def test_what_is_handed_in_from_outside_of_all_tasks_comes_before_any_later_instant() -> None:
    seen: list[float] = []

    async def play(clock: JumpingClock) -> None:
        token = trio.lowlevel.current_trio_token()
        token.run_sync_soon(lambda: seen.append(clock.now_s))
        await clock.sleep(7)

    run(play)
    assert seen == [0.0]
