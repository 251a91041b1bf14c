"""Switches with real processes on a host in a directory: every way in which one can end, and never twice."""

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import trio

from nixfleet_agent.activation.interface import SwitchReport
from nixfleet_agent.activation.jobs import LOG_BYTES
from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import Closure, SwitchMethod
from tests.nixlab import DirectoryPublisher, Host, switch_in_child


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> DirectoryPublisher:
    return DirectoryPublisher.at(tmp_path_factory.mktemp("publisher"))


@pytest.fixture
def host(publisher: DirectoryPublisher, tmp_path: Path) -> Host:
    return publisher.host(tmp_path)


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("NIXFLEET_CURRENT_SYSTEM", "").startswith(f"{tmp_path}/"):
            process.kill()


async def installed(host: Host, publisher: DirectoryPublisher, behaviour: str = "good") -> tuple[Closure, Closure]:
    """A host that runs one closure and has another, which behaves as asked, in its store."""
    old, new = publisher.publish("good"), publisher.publish(behaviour)
    await host.starts_on(old)
    assert (await host.platform().realise(new, caches=[host.cache])).ok
    return old, new


async def until(path: Path) -> str:
    with trio.fail_after(20):
        while not (path.exists() and path.read_text().endswith("\n")):
            await trio.sleep(0.005)
    return path.read_text()


async def until_gone(pid: int) -> None:
    with trio.fail_after(20):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await trio.sleep(0.005)


# --- how a switch ends ----------------------------------------------------------------------------------------------


async def test_a_good_switch_moves_the_system_and_the_profile(host: Host, publisher: DirectoryPublisher) -> None:
    old, new = await installed(host, publisher)
    platform = host.platform()
    assert platform.observe() == SystemView(boot_id="boot-1", running=old, booted=old, profile=old)
    begun: list[str] = []
    report = await platform.switch("op-1", new, started=lambda: begun.append("now"))
    assert report == SwitchReport(
        outcome=SwitchOutcome.SWITCHED, method=SwitchMethod.DETACHED, exit_code=0, observed=new
    )
    assert platform.observe() == SystemView(boot_id="boot-1", running=new, booted=old, profile=new)
    assert host.runs() == [f"switch {new}"]
    assert begun == ["now"]


async def test_the_running_system_is_not_switched_to_again(host: Host, publisher: DirectoryPublisher) -> None:
    old, _ = await installed(host, publisher)
    report = await host.platform().switch("op-1", old, started=lambda: pytest.fail("nothing begins"))
    assert (report.outcome, report.exit_code) == (SwitchOutcome.SWITCHED, 0)
    assert host.runs() == []


async def test_the_running_system_is_switched_to_when_the_profile_points_elsewhere(
    host: Host, publisher: DirectoryPublisher
) -> None:
    old, new = await installed(host, publisher)
    await host.store.set_profile(new)
    report = await host.platform().switch("op-1", old)
    assert report.outcome is SwitchOutcome.SWITCHED
    assert host.platform().observe().profile == old
    assert host.runs() == [f"switch {old}"]


async def test_failed_units_are_a_failure_although_the_link_moved(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, "units-fail")
    report = await host.platform().switch("op-1", new)
    assert (report.outcome, report.exit_code, report.observed) == (SwitchOutcome.FAILED, 4, new)
    assert "example.service" in report.detail


async def test_a_switch_that_breaks_reports_its_exit_code_and_what_it_said(
    host: Host, publisher: DirectoryPublisher
) -> None:
    old, new = await installed(host, publisher, "breaks")
    report = await host.platform().switch("op-1", new)
    assert (report.outcome, report.exit_code, report.observed) == (SwitchOutcome.FAILED, 1, old)
    assert report.detail == "nothing works"


@pytest.mark.parametrize("behaviour", ["lies", "goes-elsewhere"])
async def test_exit_status_zero_with_another_system_running_is_a_mismatch(
    host: Host, publisher: DirectoryPublisher, behaviour: str
) -> None:
    old, other = await installed(host, publisher)
    new = publisher.publish(behaviour, files={"other": other})
    assert (await host.platform().realise(new, caches=[host.cache])).ok
    report = await host.platform().switch("op-1", new)
    assert (report.outcome, report.exit_code) == (SwitchOutcome.VERIFY_MISMATCH, 0)
    assert report.observed == (old if behaviour == "lies" else other)
    assert str(report.observed) in report.detail


@pytest.mark.parametrize("behaviour", ["hangs", "hangs-after-flip"])
async def test_a_hanging_switch_is_killed_with_its_children_at_its_deadline(
    host: Host, publisher: DirectoryPublisher, behaviour: str
) -> None:
    old, new = await installed(host, publisher, behaviour)
    report = await host.platform().switch("op-1", new, timeout_s=0.5)
    assert (report.outcome, report.exit_code) == (SwitchOutcome.TIMEOUT, None)
    assert report.observed == (old if behaviour == "hangs" else new)
    assert report.detail.startswith("gave up 0.5 s after")
    if behaviour == "hangs":
        assert "hanging" in report.detail
        for pid in host.note(".pids").read_text().split():
            await until_gone(int(pid))


async def test_after_a_switch_that_did_not_end_by_itself_a_link_to_the_system_is_no_proof_that_it_runs(
    host: Host, publisher: DirectoryPublisher
) -> None:
    _, new = await installed(host, publisher, "hangs-after-flip")
    for op in ("op-1", "op-2"):
        report = await host.platform().switch(op, new, timeout_s=0.5)
        assert (report.outcome, report.observed) == (SwitchOutcome.TIMEOUT, new)
    assert host.platform().observe().profile == new
    assert host.runs() == [f"switch {new}"] * 2
    Path(host.paths.boot_id).write_text("boot-2\n")
    # A boot has started all of it.
    assert (await host.platform().switch("op-3", new)).outcome is SwitchOutcome.SWITCHED
    assert host.runs() == [f"switch {new}"] * 2


async def test_a_switch_that_leaves_a_process_behind_ends_when_the_switch_does(
    host: Host, publisher: DirectoryPublisher
) -> None:
    _, new = await installed(host, publisher, "forks")
    report = await host.platform().switch("op-1", new)
    assert report.outcome is SwitchOutcome.SWITCHED
    assert psutil.pid_exists(int(host.note(".pids").read_text())), "a process started on purpose goes on"


async def test_a_gigabyte_of_output_is_cut_on_disk_and_the_end_of_it_reported(
    host: Host, publisher: DirectoryPublisher
) -> None:
    _, new = await installed(host, publisher, "floods")
    report = await host.platform().switch("op-1", new)
    assert report.outcome is SwitchOutcome.SWITCHED
    kept = sum(path.stat().st_size for path in Path(host.paths.work, "op-1").iterdir())
    assert kept < LOG_BYTES + 64 * 1024
    with trio.fail_after(20):
        while b"the end" not in Path(host.paths.work, "op-1", "tail").read_bytes():
            await trio.sleep(0.01)


async def test_a_switch_sees_nothing_of_the_agents_environment(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, "shows-environment")
    os.environ["NOTIFY_SOCKET"] = "/run/somewhere"
    try:
        report = await host.platform(environment={"EXTRA": "yes"}).switch("op-1", new)
    finally:
        del os.environ["NOTIFY_SOCKET"]
    assert report.exit_code == 9
    assert "NOTIFY_SOCKET" not in report.detail
    lines = report.detail.splitlines()
    assert "EXTRA=yes" in lines
    assert f"NIXFLEET_CURRENT_SYSTEM={host.paths.current_system}" in lines
    assert lines[-2:] == ["/", "0022"], "working directory, umask, and an empty standard input"
    ignored = next(line for line in lines if line.startswith("SigIgn:")).split()[1]
    assert int(ignored, 16) & 0x7FFFFFFF == 0, "none of the signals that Python ignores; glibc ignores two of its own"


# --- before it begins -----------------------------------------------------------------------------------------------


async def test_a_closure_that_is_not_in_the_store_is_a_failure_without_a_switch(host: Host) -> None:
    report = await host.platform().switch("op-1", Closure("0" * 32 + "-absent"))
    assert (report.outcome, report.exit_code) == (SwitchOutcome.FAILED, None)
    assert "is absent" in report.detail


@pytest.mark.parametrize("name", ["../evil", "", "-rf", "0" * 32 + "-a/../../b"])
async def test_a_name_that_is_no_closure_is_a_failure_without_a_switch(host: Host, name: str) -> None:
    report = await host.platform().switch("op-1", Closure(name))
    assert report.outcome is SwitchOutcome.FAILED
    assert not Path(host.paths.work, "op-1").exists()


async def test_a_store_path_that_is_no_system_is_named(host: Host, publisher: DirectoryPublisher) -> None:
    closure = publisher.publish("good", files={"bin/other": ""})
    assert (await host.store.realise(closure, caches=[host.cache], timeout_s=60)).ok
    os.unlink(f"{host.store.path(closure)}/bin/switch-to-configuration")
    report = await host.platform().switch("op-1", closure)
    assert report.outcome is SwitchOutcome.FAILED
    assert "switch-to-configuration is absent" in report.detail
    assert host.platform().observe().profile is None


@pytest.mark.parametrize("op", ["", "../x", "a/b", ".hidden", "-x", "a\n", "x" * 101])
async def test_an_order_whose_name_cannot_be_a_file_is_a_mistake_of_the_caller(host: Host, op: str) -> None:
    with pytest.raises(ValueError, match="is not a name for an order"):
        await host.platform().switch(op, Closure("0" * 32 + "-x"))


async def test_one_name_is_not_used_for_two_orders(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, "waits")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.platform().switch, "op-1", new)
        await until(host.note(".waiting"))
        other = await host.platform().switch("op-1", publisher.publish("good"))
        host.note(".go").touch()
    assert other.outcome is SwitchOutcome.FAILED
    assert new in other.detail
    assert len(host.runs()) == 1


async def test_a_profile_that_cannot_be_set_stops_the_switch(host: Host, publisher: DirectoryPublisher) -> None:
    old, new = await installed(host, publisher)
    os.unlink(host.paths.profile)
    os.mkdir(host.paths.profile)
    report = await host.platform().switch("op-1", new)
    assert (report.outcome, report.observed) == (SwitchOutcome.FAILED, old)
    assert "could not be set" in report.detail
    assert host.runs() == []


async def test_a_work_directory_that_cannot_be_written_stops_the_switch(
    host: Host, publisher: DirectoryPublisher
) -> None:
    _, new = await installed(host, publisher)
    Path(host.paths.work).write_text("a file is in the way")
    report = await host.platform().switch("op-1", new)
    assert report.outcome is SwitchOutcome.FAILED
    assert host.runs() == []


# --- the lock -------------------------------------------------------------------------------------------------------


async def test_a_held_lock_is_waited_for(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher)
    reports: list[SwitchReport] = []

    async def switch() -> None:
        reports.append(await host.platform().switch("op-1", new, lock_wait_s=30))

    with open(host.paths.switch_lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(switch)
            await trio.sleep(0.2)
            assert host.runs() == []
            assert host.platform().observe().profile != new
            fcntl.flock(lock, fcntl.LOCK_UN)
    assert reports[0].outcome is SwitchOutcome.SWITCHED


async def test_a_lock_that_stays_held_touches_nothing_and_may_be_tried_again(
    host: Host, publisher: DirectoryPublisher
) -> None:
    old, new = await installed(host, publisher)
    before = host.platform().observe()
    with open(host.paths.switch_lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        report = await host.platform().switch("op-1", new, lock_wait_s=0.1)
    assert (report.outcome, report.observed) == (SwitchOutcome.LOCK_HELD, old)
    assert host.platform().observe() == before
    assert (await host.platform().switch("op-1", new)).outcome is SwitchOutcome.SWITCHED


async def test_a_lock_that_cannot_be_examined_is_no_free_lock(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher)
    os.mkdir(host.paths.switch_lock)
    report = await host.platform().switch("op-1", new)
    assert report.outcome is SwitchOutcome.FAILED
    assert "cannot be examined" in report.detail
    assert host.runs() == []


async def test_a_race_for_the_lock_that_is_lost_is_run_again(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, "loses-lock-once")
    report = await host.platform().switch("op-1", new, lock_wait_s=30)
    assert report.outcome is SwitchOutcome.SWITCHED
    assert host.runs() == [f"switch {new}"] * 2, "the first of them did nothing but say so"


async def test_a_race_for_the_lock_that_is_always_lost_leaves_the_profile_as_it_was(
    host: Host, publisher: DirectoryPublisher
) -> None:
    old, new = await installed(host, publisher, "loses-lock")
    report = await host.platform().switch("op-1", new, lock_wait_s=0.1)
    assert (report.outcome, report.observed) == (SwitchOutcome.LOCK_HELD, old)
    assert host.platform().observe().profile == old


# --- what cannot be swapped live ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "path"),
    [
        ("kernel", "kernel"),
        ("kernel-modules", "kernel-modules"),
        ("systemd", "sw/lib/systemd/systemd"),
        ("dbus", "etc/systemd/system/dbus.service"),
    ],
)
async def test_a_component_that_cannot_be_swapped_live_waits_for_a_reboot(
    host: Host, publisher: DirectoryPublisher, component: str, path: str
) -> None:
    old = publisher.publish("good", files={path: "-> /old/thing"})
    new = publisher.publish("good", files={path: "-> /new/thing"})
    await host.starts_on(old)
    assert (await host.platform().realise(new, caches=[host.cache])).ok
    report = await host.platform().switch("op-1", new, started=lambda: pytest.fail("no switch begins"))
    assert (report.outcome, report.component) == (SwitchOutcome.DEFERRED, component)
    assert (report.exit_code, report.observed) == (0, old)
    assert host.platform().observe().profile == new
    assert host.runs() == [f"boot {new}"]
    back = await host.platform().rollback("op-2", old)
    assert back.outcome is SwitchOutcome.SWITCHED
    assert host.platform().observe().profile == old


async def test_equal_and_absent_components_are_no_difference(host: Host, publisher: DirectoryPublisher) -> None:
    old = publisher.publish("good", files={"kernel": "-> /same/kernel", "initrd": "-> /old/initrd"})
    new = publisher.publish("good", files={"kernel": "-> /same/kernel", "kernel-modules": "-> /new/modules"})
    await host.starts_on(old)
    assert (await host.platform().realise(new, caches=[host.cache])).ok
    assert (await host.platform().switch("op-1", new)).outcome is SwitchOutcome.SWITCHED


async def test_a_rollback_goes_to_the_named_system_and_not_to_the_previous_generation(
    host: Host, publisher: DirectoryPublisher
) -> None:
    old, new = await installed(host, publisher)
    between = publisher.publish("good")
    assert (await host.platform().realise(between, caches=[host.cache])).ok
    await host.store.set_profile(between)
    assert (await host.platform().switch("op-1", new)).outcome is SwitchOutcome.SWITCHED
    assert (await host.platform().rollback("op-2", old)).outcome is SwitchOutcome.SWITCHED
    assert host.platform().observe().running == host.platform().observe().profile == old


# --- once and only once ---------------------------------------------------------------------------------------------


async def test_a_report_that_was_given_is_given_again(host: Host, publisher: DirectoryPublisher) -> None:
    old, new = await installed(host, publisher, "breaks")
    first = await host.platform().switch("op-1", new)
    assert await host.platform().switch("op-1", new) == first
    assert host.runs() == [f"switch {new}"]
    assert (await host.platform().switch("op-2", new)).outcome is SwitchOutcome.FAILED
    assert host.runs() == [f"switch {new}"] * 2, "another order is another switch"
    assert (await host.platform().rollback("op-3", old)).outcome is SwitchOutcome.SWITCHED


async def test_a_timeout_stays_a_timeout(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, "hangs")
    first = await host.platform().switch("op-1", new, timeout_s=0.3)
    assert first.outcome is SwitchOutcome.TIMEOUT
    assert await host.platform().switch("op-1", new, timeout_s=300) == first


async def test_a_cancelled_watch_leaves_the_switch_running_and_the_next_one_waits_for_it(
    host: Host, publisher: DirectoryPublisher
) -> None:
    _, new = await installed(host, publisher, "waits")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.platform().switch, "op-1", new)
        await until(host.note(".waiting"))
        nursery.cancel_scope.cancel()
    begun: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_collect, host, new, begun)
        await trio.sleep(0.1)
        host.note(".go").touch()
    assert begun == ["begun", "switched"]
    assert host.runs() == [f"switch {new}"]


async def _collect(host: Host, new: Closure, into: list[str]) -> None:
    into.append((await host.platform().switch("op-1", new, started=lambda: into.append("begun"))).outcome)


async def test_two_agents_with_one_order_switch_once(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher)
    children = [switch_in_child(host, "op-1", new) for _ in range(3)]
    outcomes = [json.loads((await trio.to_thread.run_sync(child.communicate))[0].splitlines()[1]) for child in children]
    assert {outcome["outcome"] for outcome in outcomes} == {"switched"}
    assert host.runs() == [f"switch {new}"]


@pytest.mark.parametrize("delay_ms", [0, 1, 2, 4, 6, 8, 12, 16, 24, 32])
async def test_an_agent_killed_at_any_moment_is_succeeded_by_one_that_switches_once(
    host: Host, publisher: DirectoryPublisher, delay_ms: int
) -> None:
    _, new = await installed(host, publisher)
    child = switch_in_child(host, "op-1", new)
    assert child.stdout is not None
    await trio.to_thread.run_sync(child.stdout.readline)
    await trio.sleep(delay_ms / 1000)
    await _kill_9(child)
    report = await host.platform().switch("op-1", new)
    assert report.outcome is SwitchOutcome.SWITCHED
    assert host.runs() == [f"switch {new}"]


async def _kill_9(child: subprocess.Popen[str]) -> None:
    os.killpg(child.pid, signal.SIGKILL)
    await trio.to_thread.run_sync(child.communicate)


async def test_a_switch_survives_the_kill_of_its_agents_whole_process_group(
    host: Host, publisher: DirectoryPublisher
) -> None:
    _, new = await installed(host, publisher, "waits")
    child = switch_in_child(host, "op-1", new)
    pid = int(await until(host.note(".waiting")))
    await _kill_9(child)
    assert psutil.pid_exists(pid)
    host.note(".go").touch()
    report = await host.platform().switch("op-1", new)
    assert (report.outcome, report.exit_code) == (SwitchOutcome.SWITCHED, 0)
    assert host.runs() == [f"switch {new}"]


async def test_a_switch_that_finished_while_no_agent_was_there_is_reported(
    host: Host, publisher: DirectoryPublisher
) -> None:
    _, new = await installed(host, publisher, "waits")
    child = switch_in_child(host, "op-1", new)
    await until(host.note(".waiting"))
    await _kill_9(child)
    host.note(".go").touch()
    await until(Path(host.paths.work, "op-1", "exit"))
    assert (await host.platform().switch("op-1", new)).outcome is SwitchOutcome.SWITCHED


async def test_a_later_agent_keeps_to_the_deadline_of_the_first(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, "hangs")
    child = switch_in_child(host, "op-1", new)
    await until(host.note(".pids"))
    await _kill_9(child)
    order = Path(host.paths.work, "op-1", "order")
    fields = json.loads(order.read_text())
    order.write_text(json.dumps(fields | {"launched_mono_s": fields["launched_mono_s"] - 300}))
    with trio.fail_after(60):
        report = await host.platform().switch("op-1", new, timeout_s=300)
    assert report.outcome is SwitchOutcome.TIMEOUT
    for pid in host.note(".pids").read_text().split():
        await until_gone(int(pid))


async def test_a_switch_killed_with_everything_it_started_is_interrupted_and_not_begun_again(
    host: Host, publisher: DirectoryPublisher
) -> None:
    old, new = await installed(host, publisher, "waits")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.platform().switch, "op-1", new)
        pid = int(await until(host.note(".waiting")))
        os.killpg(os.getpgid(pid), signal.SIGKILL)
    report = await host.platform().switch("op-1", new)
    assert (report.outcome, report.exit_code, report.observed) == (SwitchOutcome.INTERRUPTED, None, old)
    assert host.runs() == [f"switch {new}"]


async def test_a_switch_whose_wrapper_alone_was_killed_still_counts_as_running(
    host: Host, publisher: DirectoryPublisher
) -> None:
    _, new = await installed(host, publisher, "hangs")
    child = switch_in_child(host, "op-1", new)
    pid, _ = (int(word) for word in (await until(host.note(".pids"))).split())
    await _kill_9(child)
    for ancestor in psutil.Process(pid).parents():
        if "wrapper" in " ".join(ancestor.cmdline()):
            ancestor.kill()
    report = await host.platform().switch("op-1", new, timeout_s=1)
    assert report.outcome is SwitchOutcome.TIMEOUT
    await until_gone(pid)


async def test_after_a_reboot_a_switch_that_was_ordered_counts_as_begun(
    host: Host, publisher: DirectoryPublisher
) -> None:
    old, new = await installed(host, publisher, "waits")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.platform().switch, "op-1", new)
        pid = int(await until(host.note(".waiting")))
        nursery.cancel_scope.cancel()
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    await until_gone(pid)
    # A power cut may take what the wrapper wrote last; what the agent wrote it has synced.
    os.unlink(f"{host.paths.work}/op-1/started")
    Path(host.paths.boot_id).write_text("boot-2\n")
    report = await host.platform().switch("op-1", new, timeout_s=5)
    assert (report.outcome, report.observed) == (SwitchOutcome.INTERRUPTED, old)
    assert host.runs() == [f"switch {new}"]


@pytest.mark.parametrize("name", ["order", "report", "exit", "started"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"{", b'{"closure": 1}', b"[]", b"99999999999999999999"])
async def test_a_record_damaged_by_a_power_cut_never_switches_twice(
    host: Host, publisher: DirectoryPublisher, name: str, content: bytes
) -> None:
    _, new = await installed(host, publisher, "breaks")
    first = await host.platform().switch("op-1", new)
    for later in ("exit", "report") if name == "exit" else ("report",):
        os.unlink(f"{host.paths.work}/op-1/{later}")
    Path(host.paths.work, "op-1", name).write_bytes(content)
    report = await host.platform().switch("op-1", new)
    assert report.outcome in (first.outcome, SwitchOutcome.INTERRUPTED)
    assert host.runs() == [f"switch {new}"]


async def test_only_the_newest_records_are_kept(host: Host, publisher: DirectoryPublisher) -> None:
    old, new = await installed(host, publisher)
    for number in range(20):
        report = await host.platform().switch(f"op-{number}", new if number % 2 == 0 else old)
        assert report.outcome is SwitchOutcome.SWITCHED
    kept = os.listdir(host.paths.work)
    assert len(kept) <= 17
    assert "op-19" in kept


async def test_no_descriptor_and_no_zombie_is_left_by_switches(host: Host, publisher: DirectoryPublisher) -> None:
    old, new = await installed(host, publisher)
    platform = host.platform()
    await platform.switch("op-0", new)
    before = len(os.listdir("/proc/self/fd")), len(psutil.Process().children())
    for number in range(1, 5):
        await platform.switch(f"op-{number}", new if number % 2 == 0 else old)
    assert (len(os.listdir("/proc/self/fd")), len(psutil.Process().children())) == before
