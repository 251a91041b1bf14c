"""The schedule of probes, told in virtual time: hours pass, nothing is waited for.

The probes are real; they connect to a loopback port, which answers (or refuses) at once whatever clock is used.
"""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock as Clock
from trio.testing import wait_all_tasks_blocked

from nixfleet_agent.probes.kinds import FailedUnitsProbe, Probe, TcpProbe
from nixfleet_agent.probes.reading import REASON_BYTES, TRUNCATED, ProbeReading, cut
from nixfleet_agent.probes.runners import ProbeContext
from nixfleet_agent.probes.systemd import SystemBus
from nixfleet_agent.probes.worker import JITTER, ProbeSet, next_tick
from state_machine.events import ProbeObserved
from state_machine.values import HostName, Moment, ProbeMode, ProbeStatus, WallMs

START_MS = 1_000_000
BOOT = Moment(wall_ms=WallMs(0), mono_ms=0)


@pytest.fixture
def clock() -> Clock:
    """The test plugin runs a test under the clock among its arguments."""
    return Clock(autojump_threshold=0)


@pytest.fixture
def port() -> Iterator[int]:
    """A port that accepts connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        yield listener.getsockname()[1]


@attrs.define
class Log:
    """Takes readings, as (seconds since the start, name); optionally slowly."""

    started: float = attrs.field(factory=trio.current_time)
    seen: list[tuple[float, str]] = attrs.field(factory=list)
    readings: list[ProbeReading] = attrs.field(factory=list)
    slow: Callable[[], Awaitable[None]] | None = None

    def now(self) -> Moment:
        since_ms = round((trio.current_time() - self.started) * 1000)
        return Moment(wall_ms=WallMs(START_MS + since_ms), mono_ms=START_MS + since_ms)

    async def take(self, reading: ProbeReading) -> None:
        self.readings.append(reading)
        self.seen.append((round(trio.current_time() - self.started, 3), reading.name))
        if self.slow is not None:
            await self.slow()

    def times(self, name: str) -> list[float]:
        return [at for at, seen in self.seen if seen == name]


@asynccontextmanager
async def running(*probes: Probe, log: Log, jitter: float = 0.0, restart: bool = True) -> AsyncIterator[ProbeSet]:
    context = ProbeContext(clock=log.now, hostname=HostName("node7"), activated=BOOT, bus=SystemBus("unix:path=/none"))
    probe_set = ProbeSet(probes, context=context, send=log.take, jitter=lambda: jitter)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe_set.run)
        if restart:
            probe_set.restart(BOOT)
        yield probe_set
        nursery.cancel_scope.cancel()


async def test_each_probe_runs_at_once_and_then_at_its_own_interval(clock: Clock, port: int) -> None:
    log = Log()
    async with running(
        TcpProbe(name="a", port=port, interval_s=30), TcpProbe(name="b", port=port, interval_s=7), log=log
    ):
        await trio.sleep(61)
    assert log.times("a") == [0, 30, 60]
    assert log.times("b") == [0, 7, 14, 21, 28, 35, 42, 49, 56]
    assert {reading.status for reading in log.readings} == {ProbeStatus.PASS}


async def test_only_runs_after_the_first_are_jittered(clock: Clock, port: int) -> None:
    log = Log()
    async with running(TcpProbe(name="a", port=port, interval_s=100), log=log, jitter=0.5):
        await trio.sleep(299)
    lead = 100 * JITTER * 0.5
    assert log.times("a") == [0, 100 - lead, 200 - lead, 300 - lead]


async def twelve_seconds() -> None:
    await trio.sleep(12)


async def test_missed_ticks_are_skipped_and_the_rhythm_is_kept(clock: Clock, port: int) -> None:
    log = Log(slow=twelve_seconds)
    async with running(TcpProbe(name="a", port=port, interval_s=5), log=log):
        await trio.sleep(50)
    assert log.times("a") == [0, 15, 30, 45]


async def test_nothing_runs_before_the_first_restart(clock: Clock, port: int) -> None:
    log = Log()
    async with running(TcpProbe(name="a", port=port), log=log, restart=False) as probe_set:
        await trio.sleep(100)
        assert log.seen == []
        probe_set.restart(BOOT)
        await trio.sleep(1)
    assert log.seen == [(100, "a")]


async def test_a_restart_runs_everything_anew_at_once(clock: Clock, port: int) -> None:
    log = Log()
    async with running(TcpProbe(name="a", port=port, interval_s=30), log=log) as probe_set:
        await trio.sleep(40)
        probe_set.restart(log.now())
        await trio.sleep(31)
    assert log.times("a") == [0, 30, 40, 70]


async def test_a_probe_that_runs_once_does_so_once_for_each_restart(clock: Clock, port: int) -> None:
    log = Log()
    async with running(TcpProbe(name="a", port=port, interval_s=5, run_once=True), log=log) as probe_set:
        await trio.sleep(100)
        probe_set.restart(log.now())
        await trio.sleep(100)
    assert log.times("a") == [0, 100]


async def test_a_disabled_probe_is_declared_and_never_run(clock: Clock, port: int) -> None:
    log = Log()
    off = TcpProbe(name="off", port=port, mode=ProbeMode.DISABLED)
    async with running(off, TcpProbe(name="seen", port=port, mode=ProbeMode.OBSERVE), log=log) as probe_set:
        await trio.sleep(10)
        assert [probe.name for probe in probe_set.probes] == ["off", "seen"]
    assert log.seen == [(0, "seen")]


async def test_extra_probes_last_until_the_next_restart_and_new_declarations_for_good(clock: Clock, port: int) -> None:
    log = Log()
    async with running(TcpProbe(name="a", port=port), log=log) as probe_set:
        await trio.sleep(1)
        probe_set.restart(BOOT, (FailedUnitsProbe(max=0),))
        await trio.sleep(1)
        assert [probe.name for probe in probe_set.probes] == ["a", "systemd-failed-units"]
        probe_set.declare((TcpProbe(name="b", port=port),))
        assert [probe.name for probe in probe_set.probes] == ["a", "systemd-failed-units"]
        probe_set.restart(BOOT)
        await trio.sleep(1)
        probe_set.restart(BOOT)
        assert [probe.name for probe in probe_set.probes] == ["b"]
        await trio.sleep(1)
    assert sorted(log.seen) == [(0, "a"), (1, "a"), (1, "systemd-failed-units"), (2, "b"), (3, "b")]


async def test_no_reading_that_began_before_a_restart_is_sent_after_it(clock: Clock, port: int) -> None:
    log = Log()
    restarts_ms: list[int] = []
    probe = TcpProbe(name="a", port=port, interval_s=5)
    async with running(probe, log=log) as probe_set:
        for _ in range(50):
            # Let the run get a little further each time: restarts hit it at every one of its steps.
            for _ in range(len(restarts_ms) % 12):
                await trio.lowlevel.checkpoint()
            await trio.sleep(0.001)
            restarts_ms.append(log.now().mono_ms)
            already = len(log.readings)
            probe_set.restart(log.now())
            await wait_all_tasks_blocked()
            assert all(reading.began_mono_ms >= restarts_ms[-1] for reading in log.readings[already:])


async def test_a_restart_while_the_reader_is_stuck_does_not_wait_for_it(clock: Clock, port: int) -> None:
    log = Log(slow=trio.sleep_forever)
    async with running(TcpProbe(name="a", port=port), TcpProbe(name="b", port=port), log=log) as probe_set:
        await trio.sleep(1)
        probe_set.restart(log.now())
        await trio.sleep(1)
    assert sorted(log.seen) == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


async def test_many_restarts_at_once_are_one(clock: Clock, port: int) -> None:
    log = Log()
    async with running(TcpProbe(name="a", port=port), log=log) as probe_set:
        await trio.sleep(1)
        for _ in range(10):
            probe_set.restart(log.now())
        await trio.sleep(1)
    assert log.seen == [(0, "a"), (1, "a")]


async def test_started_again_after_a_crash_it_goes_on_with_the_last_restart(clock: Clock, port: int) -> None:
    log = Log()
    context = ProbeContext(clock=log.now, hostname=HostName("node7"), activated=BOOT)
    probe_set = ProbeSet((TcpProbe(name="a", port=port),), context=context, send=log.take)
    probe_set.restart(BOOT)
    for _ in range(2):
        with trio.move_on_after(1):
            await probe_set.run()
    assert log.seen == [(0, "a"), (1, "a")]


async def test_a_reading_becomes_the_event_the_reducer_takes(clock: Clock, port: int) -> None:
    log = Log()
    async with running(TcpProbe(name="a", port=port), log=log):
        await trio.sleep(1)
    moment = Moment(wall_ms=WallMs(START_MS), mono_ms=START_MS)
    assert log.readings[0].event() == ProbeObserved(
        at=moment, name="a", status=ProbeStatus.PASS, began_mono_ms=START_MS
    )
    assert log.readings[0].duration_ms == 0


@given(
    last=st.floats(0, 1e7),
    interval_s=st.floats(0.001, 1e6),
    waited_s=st.floats(0, 1e6),
)
def test_the_next_tick_is_ahead_in_rhythm_and_at_most_one_interval_away(
    last: float, interval_s: float, waited_s: float
) -> None:
    now = last + waited_s
    tick = next_tick(last, interval_s, now)
    rounding = 1e-6 * max(1.0, now, interval_s)
    assert tick > last
    assert now - rounding <= tick <= now + interval_s + rounding
    periods = (tick - last) / interval_s
    assert abs(periods - round(periods)) * interval_s <= rounding


@given(st.text(max_size=700) | st.text(alphabet="\ud800\udfff\u20ac\U0001f600a", max_size=700))
def test_a_reason_is_always_text_that_can_be_sent_and_never_too_long(reason: str) -> None:
    shown = cut(reason)
    assert len(shown.encode()) <= REASON_BYTES + len(TRUNCATED)
    fits = len(reason.encode("utf-8", "replace")) <= REASON_BYTES
    assert shown.endswith(TRUNCATED) is not fits or reason.endswith(TRUNCATED)


def test_a_reason_is_cut_between_characters() -> None:
    assert cut("\u20ac" * 171) == "\u20ac" * 170 + TRUNCATED
