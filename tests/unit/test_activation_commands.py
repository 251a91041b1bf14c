"""`nixfleet_agent.commands` against real children that misbehave."""

import os
import sys
from pathlib import Path

import psutil
import pytest
import trio

from nixfleet_agent.commands import CommandError, Completed, run, tail


async def sh(script: str, *, timeout_s: float = 30.0, grace_s: float = 2.0, keep: int = 1024) -> Completed:
    return await run(["/bin/sh", "-c", script], timeout_s=timeout_s, grace_s=grace_s, keep=keep)


async def until_written(path: Path) -> str:
    with trio.fail_after(20):
        while not (path.exists() and path.read_text().endswith("\n")):
            await trio.sleep(0.005)
    return path.read_text()


async def until_gone(pid: int) -> None:
    with trio.fail_after(20):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await trio.sleep(0.005)


async def test_exit_status_and_both_outputs_come_back() -> None:
    done = await sh("echo out; echo err >&2; exit 7")
    assert done == Completed(exit_code=7, stdout=b"out\n", stderr=b"err\n", timed_out=False)
    assert not done.ok
    assert done.stderr_tail == "err"


async def test_a_child_ended_by_a_signal_has_a_negative_exit_code() -> None:
    assert (await sh("kill -9 $$")).exit_code == -9


async def test_standard_input_is_handed_over_and_then_ends() -> None:
    data = b"x" * 300_000
    done = await run(["/usr/bin/env", "wc", "-c"], timeout_s=30, stdin=data)
    assert done.stdout.strip() == b"300000"


async def test_a_child_that_reads_none_of_its_input_is_no_error() -> None:
    assert (await run(["/bin/sh", "-c", "exit 0"], timeout_s=30, stdin=b"x" * 300_000)).ok


async def test_a_child_cannot_speak_for_the_agent_to_its_service_manager() -> None:
    agents = {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_PID": "1", "WATCHDOG_USEC": "1"}
    done = await run(["/usr/bin/env"], timeout_s=30, env={**agents, "A": "b"})
    assert done.stdout == b"A=b\n"


async def test_without_input_a_reader_meets_end_of_file_at_once() -> None:
    assert (await sh("cat")).ok


async def test_environment_and_working_directory_are_the_ones_asked_for(tmp_path: Path) -> None:
    done = await run(["/bin/sh", "-c", "echo $A; pwd -P"], timeout_s=30, env={"A": "b"}, cwd=str(tmp_path))
    assert done.stdout.decode() == f"b\n{tmp_path.resolve()}\n"


async def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match=r"cannot run /no/such/thing: No such file.*PATH"):
        await run(["/no/such/thing"], timeout_s=1)


async def test_a_file_that_is_not_executable_is_named(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    with pytest.raises(CommandError, match="Permission denied"):
        await run([str(plain)], timeout_s=1)


async def test_a_working_directory_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="cannot run /bin/true in /no/such/place"):
        await run(["/bin/true"], timeout_s=1, cwd="/no/such/place")


async def test_an_argument_with_a_nul_byte_is_a_command_error() -> None:
    with pytest.raises(CommandError, match="null byte"):
        await run(["/bin/echo", "a\0b"], timeout_s=1)


async def test_the_first_output_and_the_last_error_output_are_kept() -> None:
    done = await sh("seq 100000; seq 100000 >&2", keep=1000)
    assert done.stdout.startswith(b"1\n2\n3\n")
    assert len(done.stdout) == 1000
    assert done.stderr.endswith(b"99999\n100000\n")
    assert len(done.stderr) == 1000


async def test_a_gigabyte_of_output_costs_no_memory() -> None:
    before = psutil.Process().memory_info().rss
    done = await sh("exec head -c 1000000000 /dev/zero", keep=64 * 1024)
    assert done.ok
    assert len(done.stdout) == 64 * 1024
    assert psutil.Process().memory_info().rss - before < 16 * 1024 * 1024


async def test_a_deadline_ends_a_child_that_prints_for_ever() -> None:
    done = await sh("yes; exit 0", timeout_s=0.2)
    assert done.timed_out
    assert done.exit_code is None
    assert done.stdout.startswith(b"y\ny\n")


async def test_a_deadline_kills_children_of_a_child_that_ignores_sigterm(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM; sleep 600 & first=$!; sh -c 'trap \"\" TERM; sleep 600' & echo $$ $first $! > {pids}; wait"
    outcome: list[Completed] = []

    async def hang() -> None:
        outcome.append(await sh(script, timeout_s=0.5, grace_s=0.1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang)
        members = [int(word) for word in (await until_written(pids)).split()]
    assert outcome[0].timed_out
    assert not psutil.pid_exists(members[0]), "the child itself is reaped"
    for pid in members[1:]:
        await until_gone(pid)


async def test_children_left_behind_by_a_child_that_ended_well_are_killed() -> None:
    done = await sh("sleep 600 & echo $!")
    assert done.exit_code == 0
    await until_gone(int(done.stdout))


async def test_a_grandchild_that_left_the_group_and_holds_the_pipes_does_not_hold_up_the_caller() -> None:
    escape = "import os, time; os.setsid(); print(os.getpid(), flush=True); time.sleep(600)"
    with trio.fail_after(60):
        done = await sh(f"{sys.executable} -c '{escape}' & sleep 1; echo done")
    pid, word = done.stdout.split()
    os.kill(int(pid), 9)
    assert word == b"done"
    assert done.ok


async def test_cancelling_the_caller_kills_and_reaps_the_child(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sh, f"sleep 600 & echo $$ $! > {pids}; wait")
            leader, member = (int(word) for word in (await until_written(pids)).split())
            scope.cancel()
    assert scope.cancelled_caught
    assert not psutil.pid_exists(leader)
    await until_gone(member)


async def test_a_hundred_commands_leave_no_zombie_and_no_descriptor() -> None:
    await sh("exit 0")
    before = len(os.listdir("/proc/self/fd")), len(psutil.Process().children())
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(sh, "exit 0")
    assert (len(os.listdir("/proc/self/fd")), len(psutil.Process().children())) == before


def test_a_tail_of_undecodable_bytes_keeps_to_its_limit() -> None:
    assert len(tail(b"\xff" * 5000).encode()) <= 2048
    assert tail(b"a" * 5000 + b"end\n").endswith("end")
    assert len(tail("é".encode() * 5000).encode()) <= 2048
