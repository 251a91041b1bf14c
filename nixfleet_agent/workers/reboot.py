"""Reboot the host, unless somebody holds a session lock: the worker behind `Reboot`."""

import errno
import fcntl
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from nixfleet_agent.commands import CommandError, run
from nixfleet_agent.desk import Desk
from state_machine.actions import Reboot
from state_machine.events import RebootDelayed

COMMAND: Final = ("systemctl", "--no-block", "reboot")
ASK_S: Final = 30.0

AskForReboot = Callable[[], Awaitable[str]]
"""Asks the service manager for a reboot; returns what it had against it, empty when it is on its way."""


class RebootWorker:
    """Answers with `RebootDelayed` when the host does not go down; a reboot answers for itself."""

    def __init__(self, desk: Desk, ask: AskForReboot) -> None:
        self._desk = desk
        self._ask = ask

    async def reboot(self, order: Reboot) -> None:
        """Ask for the reboot, if nobody is in the way."""
        locked = held_lock(self._desk.config.session_locks)
        problem = locked or await self._ask()
        if problem:
            await self._desk.tell(
                RebootDelayed(
                    at=self._desk.clock(),
                    op=order.op,
                    locked=bool(locked),
                    detail=problem[:512],
                    jitter=self._desk.jitter(),
                )
            )


def held_lock(paths: Sequence[Path]) -> str:
    """Why the host must stay up, empty when nobody is in the way.

    A file that is there holds the host up, locked or not, as tools that only touch a file mean it to: whoever made it
    takes it away, or the reboot it is to prevent never comes. One that cannot be looked at counts as held.
    """
    for path in paths:
        try:
            os.stat(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{path} cannot be looked at: {error.strerror}"
        return f"{path} is there{' and locked' if _is_locked(path) else ''}"
    return ""


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(handle)
    return False


async def ask_systemd() -> str:
    """`AskForReboot` of systemd: units stop in its own order, and delay inhibitors are waited for.

    Inhibitors that block count for people at a terminal; a tool that must keep the host up holds a session lock.
    """
    try:
        done = await run(COMMAND, timeout_s=ASK_S)
    except CommandError as error:
        return str(error)
    return "" if done.ok else f"{' '.join(COMMAND)}: {done.stderr_tail or 'no answer'}"
