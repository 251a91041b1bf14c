"""systemd probes over a real message bus. Only systemd itself is a stand-in, written in a page."""

import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from jeepney import HeaderFields, Message, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.trio import DBusConnection, open_dbus_connection

from nixfleet_agent.probes.kinds import FailedUnitsProbe, Probe, SystemdProbe
from nixfleet_agent.probes.reading import ProbeReading
from nixfleet_agent.probes.runners import ProbeContext, run_probe
from nixfleet_agent.probes.systemd import SystemBus, systemd_failed_units, unit_path
from state_machine.values import HostName, Moment, ProbeStatus, WallMs

pytestmark = pytest.mark.skipif(shutil.which("dbus-daemon") is None, reason="dbus-daemon is not installed")

BUS_CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/>
  </policy>
</busconfig>
"""


def now() -> Moment:
    return Moment(wall_ms=WallMs(1_700_000_000_000), mono_ms=int(trio.current_time() * 1000))


def context(bus: SystemBus) -> ProbeContext:
    return ProbeContext(clock=now, hostname=HostName("node7"), activated=Moment(wall_ms=WallMs(0), mono_ms=0), bus=bus)


async def measure(probe: Probe, bus: SystemBus) -> ProbeReading:
    return await run_probe(probe, context(bus))


@asynccontextmanager
async def message_bus_at(path: Path) -> AsyncIterator[str]:
    """A dbus-daemon of its own, listening on `path`."""
    configuration = path.with_suffix(".conf")
    configuration.write_text(BUS_CONFIGURATION.format(path=path))
    path.unlink(missing_ok=True)
    # It prints its address once it listens: the socket file alone is there a moment too early.
    command = ["dbus-daemon", "--nofork", f"--config-file={configuration}", "--print-address"]
    daemon = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert daemon.stdout is not None
    async with daemon.stdout:
        try:
            assert await daemon.stdout.receive_some(), "dbus-daemon did not start"
            yield f"unix:path={path}"
        finally:
            daemon.terminate()
            with trio.CancelScope(shield=True):
                await daemon.wait()


@attrs.define
class FakeSystemd:
    """Answers for `org.freedesktop.systemd1`: units by name with their ActiveState and LoadState."""

    units: dict[str, tuple[str, str]]
    calls: int = 0
    silent: bool = False

    def answer(self, call: Message) -> Message:
        fields = call.header.fields
        if fields[HeaderFields.member] == "ListUnitsFiltered":
            failed = [
                (name, "", "loaded", active, "", "", "/x", 0, "", "/")
                for name, (active, _) in self.units.items()
                if active == "failed"
            ]
            unloadable = [("broken.service", "", "failed", "inactive", "", "", "/x", 0, "", "/")]
            return new_method_return(call, "a(ssssssouso)", (failed + unloadable,))
        unit = next((name for name in self.units if unit_path(name) == fields[HeaderFields.path]), None)
        active, loaded = self.units[unit] if unit else ("inactive", "not-found")
        if active == "invalid":
            return new_error(call, "org.freedesktop.systemd1.NoSuchUnit", "s", ("Unit name is not valid.",))
        value = {"ActiveState": active, "LoadState": loaded}[call.body[1]]
        return new_method_return(call, "v", (("s", value),))

    async def serve(self, connection: DBusConnection, task_status: trio.TaskStatus[None]) -> None:
        async with connection.router() as router:
            await router.send_and_get_reply(message_bus.RequestName("org.freedesktop.systemd1"))
        task_status.started()
        while True:
            message = await connection.receive()
            if message.header.message_type is MessageType.method_call:
                self.calls += 1
                if not self.silent:
                    await connection.send(self.answer(message))


@asynccontextmanager
async def systemd(path: Path, units: dict[str, tuple[str, str]]) -> AsyncIterator[tuple[FakeSystemd, SystemBus]]:
    """A message bus with a stand-in for systemd on it, and a client."""
    fake = FakeSystemd(units)
    async with (
        message_bus_at(path) as address,
        await open_dbus_connection(address) as connection,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(fake.serve, connection)
        bus = SystemBus(address)
        yield fake, bus
        bus.close()
        nursery.cancel_scope.cancel()


@attrs.frozen(eq=False)
class ReadingOf:
    """Equal to a reading with this status and reason."""

    status: ProbeStatus
    reason: str | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProbeReading) and (other.status, other.reason) == (self.status, self.reason)


UNITS = {
    "nginx.service": ("active", "loaded"),
    "getty@tty1.service": ("active", "loaded"),
    "busy.service": ("reloading", "loaded"),
    "job.service": ("failed", "loaded"),
    "off.timer": ("inactive", "loaded"),
    "hidden.service": ("inactive", "masked"),
    "other.service": ("failed", "loaded"),
}


async def test_active_units_pass(tmp_path: Path) -> None:
    async with systemd(tmp_path / "bus", UNITS) as (_, bus):
        probe = SystemdProbe(name="units", units=("nginx.service", "getty@tty1.service", "busy", "nginx"))
        assert await measure(probe, bus) == ReadingOf(ProbeStatus.PASS, None)


@pytest.mark.parametrize(
    ("unit", "reason"),
    [
        ("job.service", "job.service is failed"),
        ("off.timer", "off.timer is inactive"),
        ("hidden", "hidden is masked"),
        ("nothing.service", "nothing.service is not-found"),
    ],
)
async def test_a_unit_that_is_not_active_is_said_to_be_what_it_is(tmp_path: Path, unit: str, reason: str) -> None:
    async with systemd(tmp_path / "bus", UNITS) as (_, bus):
        probe = SystemdProbe(name="units", units=("nginx.service", unit))
        assert await measure(probe, bus) == ReadingOf(ProbeStatus.FAIL, reason)


async def test_what_systemd_refuses_is_a_failure_in_its_words(tmp_path: Path) -> None:
    async with systemd(tmp_path / "bus", {"x.service": ("invalid", "")}) as (_, bus):
        reading = await measure(SystemdProbe(name="units", units=("x.service",)), bus)
        assert reading.status is ProbeStatus.FAIL
        assert (reading.reason or "").endswith("Unit name is not valid.")


@pytest.mark.parametrize(("most", "status"), [(0, ProbeStatus.FAIL), (1, ProbeStatus.FAIL), (2, ProbeStatus.PASS)])
async def test_the_policy_allows_so_many_failed_units(tmp_path: Path, most: int, status: ProbeStatus) -> None:
    async with systemd(tmp_path / "bus", UNITS) as (_, bus):
        reason = f"failed units (2, at most {most} allowed): job.service, other.service"
        expected = ReadingOf(status, None if status is ProbeStatus.PASS else reason)
        assert await measure(FailedUnitsProbe(max=most), bus) == expected
        assert await systemd_failed_units(bus) == ("job.service", "other.service")


async def test_the_connection_is_kept_and_made_again_when_the_bus_was_restarted(tmp_path: Path) -> None:
    probe = SystemdProbe(name="units", units=("nginx.service",))
    async with systemd(tmp_path / "bus", UNITS) as (_, bus):
        assert (await measure(probe, bus)).status is ProbeStatus.PASS
        before = open_descriptors()
        for _ in range(20):
            assert (await measure(probe, bus)).status is ProbeStatus.PASS
        assert open_descriptors() == before
        kept = SystemBus(bus.address)
        assert (await measure(probe, kept)).status is ProbeStatus.PASS
    gone = await measure(probe, kept)
    assert gone.status is ProbeStatus.FAIL
    assert "nothing learned" in (gone.reason or "")
    async with systemd(tmp_path / "bus", UNITS):
        assert (await measure(probe, kept)).status is ProbeStatus.PASS
        kept.close()


async def test_a_kept_connection_that_broke_does_not_cost_a_reading(tmp_path: Path) -> None:
    probe = SystemdProbe(name="units", units=("nginx.service",))
    kept = SystemBus(f"unix:path={tmp_path / 'bus'}")
    for _ in range(2):
        async with systemd(tmp_path / "bus", UNITS):
            assert (await measure(probe, kept)).status is ProbeStatus.PASS
    kept.close()


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))


async def test_a_manager_that_does_not_answer_is_given_up_and_asked_afresh(tmp_path: Path) -> None:
    probe = SystemdProbe(name="units", units=("nginx.service",), timeout_s=0.1)
    async with systemd(tmp_path / "bus", UNITS) as (fake, bus):
        fake.silent = True
        assert await measure(probe, bus) == ReadingOf(ProbeStatus.FAIL, "no full answer within 0.1 s")
        fake.silent = False
        assert (await measure(attrs.evolve(probe, timeout_s=5), bus)).status is ProbeStatus.PASS


async def test_probes_at_the_same_time_share_the_connection(tmp_path: Path) -> None:
    readings: list[ProbeReading] = []

    async def one(probe: Probe, bus: SystemBus) -> None:
        readings.append(await measure(probe, bus))

    async with systemd(tmp_path / "bus", UNITS) as (_, bus), trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one, SystemdProbe(name="units", units=("nginx.service", "getty@tty1")), bus)
            nursery.start_soon(one, FailedUnitsProbe(max=2), bus)
    assert [reading.status for reading in readings] == [ProbeStatus.PASS] * 20


async def test_a_bus_without_systemd_fails_with_a_reason(tmp_path: Path) -> None:
    async with message_bus_at(tmp_path / "bus") as address:
        bus = SystemBus(address)
        reading = await measure(SystemdProbe(name="units", units=("nginx.service",)), bus)
        bus.close()
    assert reading.status is ProbeStatus.FAIL
    assert "org.freedesktop.systemd1" in (reading.reason or "")


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "tcp:host=localhost", "", "nonsense", "unix:"])
async def test_an_address_without_a_bus_fails_with_a_reason(address: str) -> None:
    reading = await measure(SystemdProbe(name="units", units=("nginx.service",)), SystemBus(address))
    assert reading.status is ProbeStatus.FAIL
    assert (reading.reason or "").startswith(f"nothing learned from systemd over {address}: ")


GREETING = b"OK 0123456789abcdef0123456789abcdef\r\n"


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"", id="hangs up at once"),
        pytest.param(b"REJECTED EXTERNAL\r\n", id="rejects"),
        pytest.param(b"x" * 20_000, id="no line"),
        pytest.param(GREETING + b"l\x02\x00\x01", id="talks before its turn"),
        pytest.param([GREETING, b"x" * 5000], id="noise"),
        pytest.param([GREETING, b"l\x02\x00\x01" + b"\xff" * 12], id="a message without end"),
        pytest.param(
            [GREETING, b"l\x02\x00\x01\x04\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00" + b"\xff" * 64], id="bad"
        ),
        pytest.param([GREETING, b""], id="hangs up after hello"),
    ],
)
async def test_a_bus_that_talks_nonsense_fails_with_a_reason(tmp_path: Path, said: bytes | list[bytes]) -> None:
    path = str(tmp_path / "bus")
    answers = said if isinstance(said, list) else [said]

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            for answer in answers:
                await stream.receive_some(4096)
                await stream.send_all(answer)

    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(path)
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [trio.SocketListener(listener)])
        bus = SystemBus(f"unix:path={path}")
        reading = await measure(SystemdProbe(name="units", units=("nginx.service",), timeout_s=1), bus)
        nursery.cancel_scope.cancel()
    assert reading.status is ProbeStatus.FAIL
    assert reading.reason


@pytest.mark.parametrize(
    ("unit", "label"),
    [
        ("nginx", "nginx_2eservice"),
        ("nginx.service", "nginx_2eservice"),
        ("dev-sda1.device", "dev_2dsda1_2edevice"),
        ("getty@tty1", "getty_40tty1_2eservice"),
        ("9p.mount", "_39p_2emount"),
        ("b\u00e4r.v2", "b_c3_a4r_2ev2_2eservice"),
    ],
)
def test_a_units_object_path_is_escaped_as_systemd_does(unit: str, label: str) -> None:
    assert unit_path(unit) == f"/org/freedesktop/systemd1/unit/{label}"
