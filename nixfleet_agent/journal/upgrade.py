"""Run the migration in a process of its own, and say what came of it."""

import os
from pathlib import Path
from typing import Final

from nixfleet_agent import child
from nixfleet_agent.journal.errors import EXIT_STATUS, CorruptJournalError, JournalWriteError, WriteProblem, write_error
from nixfleet_agent.journal.schema import shm_path, wal_path

MIGRATION_TIMEOUT_S: Final = 300


def upgrade(path: Path) -> None:
    """Make or bring up to date the file at `path`.

    Raises:
        JournalWriteError: it could not be written; nothing has changed.
        CorruptJournalError: it is damaged.
    """
    import subprocess  # not needed in the life of a daemon whose journal is up to date

    try:
        if not path.exists() or path.stat().st_size == 0:
            _move_stray_log(path)
    except OSError as error:
        raise write_error(path, error) from error
    command = child.module_command("nixfleet_agent.journal.migrate", os.fspath(path.absolute()))
    environment = child.module_environment()
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=MIGRATION_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JournalWriteError(path=path, cause=WriteProblem.DEVICE, problem=f"no migration: {error}") from error
    if done.returncode != 0:
        raise _failure(path, done.returncode, done.stderr.decode("utf-8", "replace"))


def _failure(path: Path, status: int, said: str) -> JournalWriteError | CorruptJournalError:
    cause = next((cause for cause, code in EXIT_STATUS.items() if code == status), WriteProblem.DEVICE)
    problem = said.strip().splitlines()[-1] if said.strip() else f"the migration ended with status {status}"
    if cause is WriteProblem.DAMAGED:
        return CorruptJournalError(path=path, problem=problem)
    return JournalWriteError(path=path, cause=cause, problem=problem)


def _move_stray_log(path: Path) -> None:
    # A log whose file is gone belongs to no file we may make: SQLite could take its pages for the new one's.
    for stray in (wal_path(path), shm_path(path)):
        if stray.exists():
            stray.rename(stray.with_name(f"{path.name}.stray{stray.name.removeprefix(path.name)}"))
