"""exec, command and launchd probes with real processes, well and badly behaved."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import trio

from nixfleet_agent.probes.kinds import CommandProbe, ExecProbe, LaunchdProbe, Probe
from nixfleet_agent.probes.reading import REASON_BYTES, TRUNCATED, ProbeReading
from nixfleet_agent.probes.runners import ProbeContext, run_probe
from state_machine.values import HostName, Moment, ProbeStatus, WallMs


def now() -> Moment:
    return Moment(wall_ms=WallMs(1_700_000_000_000), mono_ms=int(trio.current_time() * 1000))


async def measure(probe: Probe, launchctl: tuple[str, ...] = ("launchctl",)) -> ProbeReading:
    context = ProbeContext(
        clock=now, hostname=HostName("node7"), activated=Moment(wall_ms=WallMs(0), mono_ms=0), launchctl=launchctl
    )
    return await run_probe(probe, context)


async def shell(command: str, timeout_s: float = 10) -> ProbeReading:
    return await measure(CommandProbe(name="job", command=command, timeout_s=timeout_s))


def alive(pid: int) -> bool:
    """Whether the process still runs. One that was killed and is not reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pid: int) -> None:
    with trio.fail_after(10):
        while alive(pid):
            await trio.sleep(0.01)


async def test_exit_status_zero_passes() -> None:
    assert (await measure(ExecProbe(name="job", argv=("true",)))).status is ProbeStatus.PASS
    assert (await shell("echo noise >&2; test 1 -lt 2 | cat")).status is ProbeStatus.PASS


async def test_arguments_reach_the_program_without_a_shell() -> None:
    program = "import sys; sys.exit(sys.argv[1:] != ['$HOME; false', '*'])"
    assert (await measure(ExecProbe(name="job", argv=(sys.executable, "-c", program, "$HOME; false", "*")))).status == (
        ProbeStatus.PASS
    )


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("exit 3", "exit status 3"),
        ("echo out; exit 3", "exit status 3"),
        ("echo one >&2; exit 1", "one"),
        ("printf 'one\\ntwo\\n\\nthree\\nfour\\n\\n' >&2; exit 1", "two\nthree\nfour"),
        ("printf 'no end' >&2; exit 1", "no end"),
        ("kill -9 $$", "killed by signal 9"),
    ],
)
async def test_the_reason_is_the_last_three_lines_of_standard_error(command: str, reason: str) -> None:
    reading = await shell(command)
    assert (reading.status, reading.reason) == (ProbeStatus.FAIL, reason)


async def test_a_program_that_is_not_there_fails_and_is_named() -> None:
    reading = await measure(ExecProbe(name="job", argv=("/nonexistent/check", "--all")))
    assert reading.status is ProbeStatus.FAIL
    assert "/nonexistent/check" in (reading.reason or "")


async def test_a_long_reason_is_cut_and_says_so() -> None:
    reading = await shell("printf '%2000s' x | tr ' ' y >&2; exit 1")
    assert reading.reason == "y" * REASON_BYTES + TRUNCATED


async def test_output_that_is_no_text_is_still_a_reason() -> None:
    reading = await shell("printf '\\377\\376\\n\\000' >&2; exit 1")
    assert reading.reason
    assert reading.reason.encode("utf-8")


async def test_a_hung_program_is_killed_at_its_deadline_with_what_it_said() -> None:
    reading = await shell("echo waiting for the disk >&2; sleep 600", timeout_s=1)
    assert (reading.status, reading.reason) == (
        ProbeStatus.FAIL,
        "killed: it did not end within 1 s\nwaiting for the disk",
    )


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see which processes are left")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param("echo $$ >> {pids}; (echo $(sh -c 'echo $PPID') >> {pids}; sleep 600) & sleep 600", id="forks"),
        pytest.param("trap '' TERM INT HUP; echo $$ >> {pids}; while :; do sleep 1; done", id="ignores SIGTERM"),
        pytest.param("(sleep 600 & echo $! >> {pids}) & wait; sleep 600", id="double fork"),
    ],
)
async def test_the_whole_process_group_is_killed_at_the_deadline(tmp_path: Path, command: str) -> None:
    pids = tmp_path / "pids"
    reading = await shell(command.format(pids=pids), timeout_s=1)
    assert reading.status is ProbeStatus.FAIL
    started = [int(line) for line in pids.read_text().split()]
    assert started
    for pid in started:
        await gone(pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see which processes are left")
async def test_children_left_holding_the_output_are_not_waited_for(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with trio.fail_after(30):
        reading = await shell(f"sleep 600 & echo $! > {pids}; echo done >&2; exit 1", timeout_s=300)
    assert reading.reason == "done"
    await gone(int(pids.read_text()))


@pytest.mark.skipif(shutil.which("setsid") is None, reason="setsid is not installed")
async def test_a_daemon_that_left_the_group_with_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    try:
        with trio.fail_after(30):
            reading = await shell(f"setsid sh -c 'echo $$ > {pid}; exec sleep 600' & sleep 0.2; exit 1", timeout_s=300)
        assert reading.reason == "exit status 1"
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


async def test_endless_output_is_cut_and_the_next_run_works() -> None:
    flood = await shell("yes | head -c 200000000; yes >&2 | head -c 1; exit 1", timeout_s=0.5)
    assert flood.status is ProbeStatus.FAIL
    assert len((flood.reason or "").encode()) <= REASON_BYTES + len(TRUNCATED)
    assert (await shell("true")).status is ProbeStatus.PASS


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see which processes are left")
async def test_a_cancelled_run_leaves_no_process_behind(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shell, f"echo $$ > {pid}.new; mv {pid}.new {pid}; sleep 600", 600)
        while not pid.exists():
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    await gone(int(pid.read_text()))


LAUNCHCTL = """#!/bin/sh
echo "$@" >> {calls}
test "$1" = list || exit 64
case "$2" in
  running) printf '{{\\n\\t"LimitLoadToSessionType" = "System";\\n\\t"Label" = "%s";\\n\\t"PID" = 513;\\n}};\\n' "$2";;
  loaded) printf '{{\\n\\t"Label" = "loaded";\\n\\t"OnDemand" = false;\\n\\t"LastExitStatus" = 256;\\n}};\\n';;
  hung) sleep 600;;
  *) echo "Could not find service \\"$2\\" in domain for system" >&2; exit 113;;
esac
"""


@pytest.fixture
def launchctl(tmp_path: Path) -> Path:
    """A stand-in for launchd's command that records how it was called."""
    program = tmp_path / "launchctl"
    program.write_text(LAUNCHCTL.format(calls=tmp_path / "calls"))
    os.chmod(program, 0o755)
    return program


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (("running",), None),
        (("running", "running"), None),
        (("loaded",), "loaded is loaded but not running"),
        (("other",), "other is not loaded (exit status 113)"),
        (("other", "running", "loaded"), "other is not loaded (exit status 113); loaded is loaded but not running"),
    ],
)
async def test_launchd_labels_must_be_loaded_and_running(
    launchctl: Path, labels: tuple[str, ...], reason: str | None
) -> None:
    reading = await measure(LaunchdProbe(name="agents", labels=labels), (str(launchctl),))
    assert (reading.status, reading.reason) == (ProbeStatus.FAIL if reason else ProbeStatus.PASS, reason)
    assert launchctl.with_name("calls").read_text().splitlines() == [f"list {label}" for label in labels]


async def test_a_hung_launchctl_is_given_up_for_all_labels_together(launchctl: Path) -> None:
    labels = ("running", "hung", "hung", "hung")
    reading = await measure(LaunchdProbe(name="agents", labels=labels, timeout_s=0.3), (str(launchctl),))
    assert (reading.status, reading.reason) == (ProbeStatus.FAIL, "no full answer within 0.3 s")


async def test_a_host_without_launchctl_fails_and_says_so() -> None:
    reading = await measure(LaunchdProbe(name="agents", labels=("a",)), ("/nonexistent/launchctl",))
    assert reading.status is ProbeStatus.FAIL
    assert "/nonexistent/launchctl" in (reading.reason or "")
