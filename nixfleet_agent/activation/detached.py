"""Run a switch in a session of its own, on hosts without systemd.

"Still running" is a lock that the kernel releases when the last process of the switch is gone, so there is no instant,
not even between two instructions of a dying agent, at which a running switch looks like none.
"""

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import attrs
import trio

from nixfleet_agent.activation.errors import LaunchError
from nixfleet_agent.activation.jobs import Job
from nixfleet_agent.activation.polling import comes_true
from state_machine.values import SwitchMethod

_GRACE_S: Final = 2.0
"""Between SIGTERM and SIGKILL, in seconds."""

_DEAD_S: Final = 1.0
"""How long a killed group may take to be gone, in seconds."""

# Python ignores these; a child that inherits that would not die of a closed pipe.
_DEFAULT_SIGNALS: Final = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@attrs.define(kw_only=True)
class DetachedRunner:
    """A `Runner` (see `runners`). The wrapper's standard input is the lock, which its children inherit."""

    method: SwitchMethod = SwitchMethod.DETACHED
    look_every_s: float = 0.0
    grace_s: float = _GRACE_S
    _children: set[int] = attrs.field(factory=set, init=False)

    async def launch(self, job: Job, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the wrapper unless it runs already. Raises `LaunchError`."""
        await trio.lowlevel.checkpoint()
        try:
            lock = os.open(_lock_path(job), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LaunchError(how="a detached session", cause=str(error)) from error
        try:
            if _take(lock):
                self._children.add(_spawn(lock, job, command, environment))
        except (OSError, ValueError) as error:
            raise LaunchError(how="a detached session", cause=str(error)) from error
        finally:
            # The wrapper holds the lock from here on, or nobody does.
            os.close(lock)

    async def runs(self, job: Job) -> bool:
        """The lock is held."""
        await trio.lowlevel.checkpoint()
        self._reap()
        try:
            lock = os.open(_lock_path(job), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not _take(lock)
        finally:
            os.close(lock)

    async def end(self, job: Job) -> str:
        """SIGTERM, a grace period and SIGKILL to the wrapper's group, whether its leader lives or not."""
        for number, patience_s in ((signal.SIGTERM, self.grace_s), (signal.SIGKILL, _DEAD_S)):
            # While the lock is held the group exists, so its number is nobody else's.
            if (group := job.wrapper_pid()) is not None and await self.runs(job):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, number)
            if await comes_true(partial(self._is_gone, job), within_s=patience_s, longest_pause_s=0.1):
                return ""
        return "killed, but something it started in a session of its own lives on"

    async def settle(self, job: Job) -> None:
        """Reap the wrapper, which needs a moment to write the log.

        What the switch left running on purpose stays; a wrapper that waits for its output is reaped another time.
        """
        await comes_true(self._is_reaped, within_s=_DEAD_S, first_pause_s=0.002)

    async def busy_with(self) -> str | None:
        """Sessions do not exclude one another; the switch lock does."""
        await trio.lowlevel.checkpoint()
        return None

    async def _is_gone(self, job: Job) -> bool:
        return not await self.runs(job)

    async def _is_reaped(self) -> bool:
        await trio.lowlevel.checkpoint()
        self._reap()
        return not self._children

    def _reap(self) -> None:
        for pid in list(self._children):
            try:
                ended = os.waitpid(pid, os.WNOHANG)[0] != 0
            except ChildProcessError:
                ended = True
            if ended:
                self._children.discard(pid)


def _lock_path(job: Job) -> str:
    return f"{job.directory}/lock"


def _take(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise
    return True


def _spawn(lock: int, job: Job, command: Sequence[str], environment: Mapping[str, str]) -> int:
    """One call of the kernel's between "lock held by us" and "lock held by a session of its own"."""
    return os.posix_spawn(
        "/bin/sh",
        ["/bin/sh", f"{job.directory}/wrapper", job.directory, *command],
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_DUP2, lock, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=_DEFAULT_SIGNALS,
    )
