"""Run a child process and come back, whatever it does.

A child gets a session and process group of its own. When it ends, passes its deadline or the caller is cancelled,
everything that is still in that group is killed (SIGTERM, a grace period, SIGKILL) and the child is reaped; output
beyond the limit is read and dropped, so a child that prints without end costs time and no memory. Nothing a child
does raises: only a child that could not be started does, as `CommandError`.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import trio

KEEP_BYTES: Final = 64 * 1024
"""Output kept per stream, in bytes: the first of standard output, the last of standard error."""

STDERR_TAIL_BYTES: Final = 2048
"""How much of standard error a report carries, in bytes."""

GRACE_S: Final = 2.0
"""Between SIGTERM and SIGKILL. With the waits below it leaves room in the agent's own five seconds to stop."""

_REAP_S: Final = 1.0
# A process in uninterruptible sleep (a dead network file system) ignores even SIGKILL; it is not waited for longer.

_DRAIN_S: Final = 0.25
# A grandchild that left the group may hold the pipes open for ever; what the child itself wrote is read by then.


_MANAGERS: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"})
# A child that found the service manager's socket would speak for this process: systemctl tells its failures there.


@attrs.frozen(kw_only=True)
class CommandError(Exception):
    """A program could not be started at all."""

    program: str
    cause: str
    cwd: str | None = None

    def __str__(self) -> str:
        where = "" if self.cwd is None else f" in {self.cwd}"
        return f"cannot run {self.program}{where}: {self.cause}; check that it is installed, executable and on PATH"


@attrs.frozen(kw_only=True)
class Completed:
    """How a child ended. `exit_code` is negative for a signal, None when its deadline passed."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool

    @property
    def ok(self) -> bool:
        """Ended by itself with exit status 0."""
        return self.exit_code == 0

    @property
    def stderr_tail(self) -> str:
        """The last 2 KiB of standard error as text, for a report."""
        return tail(self.stderr)


def tail(output: bytes, limit: int = STDERR_TAIL_BYTES) -> str:
    """The last `limit` bytes of `output` as text of at most `limit` UTF-8 bytes, whatever bytes they were."""
    text = output[-limit:].decode("utf-8", "replace").strip()
    # A replacement character is three bytes long, so undecodable output grows and is cut again.
    return text.encode()[-limit:].decode("utf-8", "ignore")


async def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    cwd: str | None = None,
    keep: int = KEEP_BYTES,
    grace_s: float = GRACE_S,
    heard: Callable[[bytes], None] | None = None,
) -> Completed:
    """Run `argv` to its end or for at most `timeout_s` seconds, then kill what is left of its process group.

    `env` None means this process's own. `heard` is shown standard error as it comes. `keep` bounds each output, in
    bytes. Children that `argv` leaves behind in its group are killed even when it ended well; a program meant to
    outlive its caller starts a session of its own.

    Raises `CommandError` when the program cannot be started.
    """
    child = await _start(argv, env=env, stdin=stdin, cwd=cwd)
    stdout, stderr = bytearray(), bytearray()
    finished = False
    try:
        async with trio.open_nursery() as io:
            if child.stdin is not None:
                io.start_soon(_feed, child.stdin, stdin)
            io.start_soon(_keep_first, child.stdout, stdout, keep)
            io.start_soon(_keep_last, child.stderr, stderr, keep, heard)
            with trio.move_on_after(timeout_s):
                await child.exited()
                finished = True
            await child.end_group(grace_s)
            io.cancel_scope.deadline = trio.current_time() + _DRAIN_S
    finally:
        with trio.CancelScope(shield=True):
            await child.end_group(grace_s)
            await child.close()
    return Completed(
        exit_code=child.exit_code if finished else None,
        stdout=bytes(stdout),
        stderr=bytes(stderr[-keep:]) if keep else b"",
        timed_out=not finished,
    )


@attrs.define(kw_only=True)
class _Child:
    """A started child. It stays unreaped until its group is dead, so that its number cannot become another group's."""

    process: trio.Process
    stdin: trio.abc.SendStream | None
    stdout: trio.abc.ReceiveStream
    stderr: trio.abc.ReceiveStream
    pidfd: int | None
    exit_code: int | None = None
    ended: bool = False

    async def exited(self) -> None:
        """Wait for the child's end, without reaping it where the kernel allows that (not on Darwin)."""
        if self.pidfd is None:
            await self.process.wait()
        else:
            await trio.lowlevel.wait_readable(self.pidfd)

    async def end_group(self, grace_s: float) -> None:
        """Kill what remains of the group and reap the child; done twice it does nothing."""
        if self.ended:
            return
        self._signal(signal.SIGTERM)
        with trio.move_on_after(grace_s):
            await self.exited()
        self._signal(signal.SIGKILL)
        with trio.move_on_after(_REAP_S):
            self.exit_code = await self.process.wait()
        self.ended = True

    async def close(self) -> None:
        """Drop the pipes; once only."""
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                await trio.aclose_forcefully(stream)
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def _signal(self, number: signal.Signals) -> None:
        # Gone already, or all of it runs as somebody else: in both cases there is nothing more this process can do.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


async def _start(argv: Sequence[str], *, env: Mapping[str, str] | None, stdin: bytes, cwd: str | None) -> _Child:
    given = os.environ if env is None else env
    try:
        process = await trio.lowlevel.open_process(
            list(argv),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={name: value for name, value in given.items() if name not in _MANAGERS},
            cwd=cwd,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        # ValueError: a NUL byte in an argument, which no program can be given.
        cause = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CommandError(program=argv[0] if argv else "", cause=cause, cwd=cwd) from error
    assert process.stdout is not None
    assert process.stderr is not None
    return _Child(
        process=process,
        stdin=process.stdin,
        stdout=process.stdout,
        stderr=process.stderr,
        pidfd=_pidfd(process.pid),
    )


def _pidfd(pid: int) -> int | None:
    """A descriptor that turns readable at the child's end; None where there are none (Darwin, or too many open)."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


async def _feed(stream: trio.abc.SendStream, data: bytes) -> None:
    # A child that does not read its input is no error of the caller's.
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.send_all(data)
    await stream.aclose()


async def _keep_first(stream: trio.abc.ReceiveStream, kept: bytearray, limit: int) -> None:
    while chunk := await stream.receive_some(KEEP_BYTES):
        kept += chunk[: max(0, limit - len(kept))]


async def _keep_last(
    stream: trio.abc.ReceiveStream, kept: bytearray, limit: int, heard: Callable[[bytes], None] | None
) -> None:
    while chunk := await stream.receive_some(KEEP_BYTES):
        kept += chunk
        if heard is not None:
            heard(bytes(chunk))
        if len(kept) > 2 * limit:
            del kept[: len(kept) - limit]
