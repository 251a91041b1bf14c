"""The daemon's own socket: who may use it, what it takes, and what a broken caller cannot do to it."""

import json
import os
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from nixfleet_agent import control

Request = Mapping[str, Any]


async def echo(request: Request) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    if request.get("do") == "crash":
        raise RuntimeError("a defect")
    return {"heard": dict(request)}


@asynccontextmanager
async def serving(state_dir: Path) -> AsyncIterator[Counter[str]]:
    crashes: Counter[str] = Counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.serve, state_dir, echo, crashes)
        while not (state_dir / control.SOCKET_NAME).exists():
            await trio.sleep(0.001)
        yield crashes
        nursery.cancel_scope.cancel()


async def ask(state_dir: Path, request: Request) -> dict[str, Any] | None:
    return await trio.to_thread.run_sync(control.ask, state_dir, request)


def send(state_dir: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(5)
        channel.connect(str(state_dir / control.SOCKET_NAME))
        channel.sendall(data)
        channel.shutdown(socket.SHUT_WR)
        return channel.makefile("rb").read()


async def test_a_request_and_its_answer(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert await ask(tmp_path, {"do": "status"}) == {"heard": {"do": "status"}}


async def test_nobody_answers_where_no_daemon_runs(tmp_path: Path) -> None:
    assert control.ask(tmp_path, {"do": "status"}) is None
    assert control.ask(tmp_path / "absent", {"do": "status"}) is None
    assert control.ask(tmp_path / ("deep" * 40) / "absent", {"do": "status"}) is None


async def test_a_socket_that_a_kill_left_behind_is_nobody_and_makes_way(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / control.SOCKET_NAME))
    assert control.ask(tmp_path, {"do": "status"}) is None
    async with serving(tmp_path):
        with trio.fail_after(5):
            while await ask(tmp_path, {"do": "status"}) is None:
                await trio.sleep(0.001)


async def test_only_its_owner_may_use_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with serving(tmp_path):
            assert stat.S_IMODE((tmp_path / control.SOCKET_NAME).stat().st_mode) == 0o600
            assert os.umask(0) == 0, "the mask is the whole process's, and other tasks make files"
    finally:
        os.umask(before)


async def test_it_is_gone_when_the_daemon_is(tmp_path: Path) -> None:
    async with serving(tmp_path):
        pass
    assert not (tmp_path / control.SOCKET_NAME).exists()


async def test_the_state_directory_may_lie_deeper_than_a_socket_address_can_say(tmp_path: Path) -> None:
    deep = tmp_path / "/".join(["a-rather-long-name"] * 12)
    deep.mkdir(parents=True)
    async with serving(deep):
        assert await ask(deep, {"do": "status"}) is not None
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            await ask(deep, {"do": "status"})
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    "line",
    [b"", b"\n", b"nonsense\n", b"[1]\n", b"\xff\xfe\n", b"{", b"[" * 60_000 + b"\n", b"x" * 200_000],
    ids=["nothing", "empty", "no-json", "no-object", "no-text", "cut-off", "deep", "endless"],
)
async def test_nonsense_costs_one_connection_and_nothing_else(tmp_path: Path, line: bytes) -> None:
    async with serving(tmp_path) as crashes:
        try:
            said = await trio.to_thread.run_sync(send, tmp_path, line)
        except (BrokenPipeError, ConnectionResetError):
            said = b""
        assert said in (b"", b'{"error": "not an object"}\n')
        assert await ask(tmp_path, {"do": "status"}) is not None
        assert not crashes


async def test_a_request_that_crashes_its_handler_is_counted_and_the_next_one_answered(tmp_path: Path) -> None:
    async with serving(tmp_path) as crashes:
        with pytest.raises(OSError, match="does not answer"):
            await ask(tmp_path, {"do": "crash"})
        assert await ask(tmp_path, {"do": "status"}) is not None
        assert crashes == {"control": 1}


async def test_a_caller_that_says_nothing_holds_up_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path):
        silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
        try:
            for channel in silent:
                channel.connect(str(tmp_path / control.SOCKET_NAME))
                await trio.lowlevel.checkpoint()
            assert await ask(tmp_path, {"do": "status"}) is not None
        finally:
            for channel in silent:
                channel.close()


async def test_an_answer_is_one_line_of_json(tmp_path: Path) -> None:
    async with serving(tmp_path):
        said = await trio.to_thread.run_sync(send, tmp_path, b'{"do": "x", "text": "a\\nb"}\n')
    assert said.endswith(b"\n")
    assert json.loads(said) == {"heard": {"do": "x", "text": "a\nb"}}
