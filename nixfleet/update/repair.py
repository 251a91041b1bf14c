"""Let a command mend a build, and look at what it did before anything comes of it.

The command runs in the worktree with `-p` and a prompt: the host, what moved, the end of the failing build's log. It
sees no variable of this run but PATH, HOME and TERM, and what the configured file has. It has a deadline. What it
changed counts only if it is about files below the allowed paths, touches neither git nor the lock, and leaves every
host in the flake; a command that commits, or moves HEAD, is taken back.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import attrs

from nixfleet.errors import UnreadableFileError
from nixfleet.files import read_bytes
from nixfleet.update.errors import FlakeError
from nixfleet.update.flake import Built, Flake, System
from nixfleet.update.instance import AutoFix
from nixfleet.update.locks import Move
from nixfleet.update.message import Attempt, in_words
from nixfleet.update.worktree import Worktree
from nixfleet_agent.commands import CommandError, run, tail

PROMPT_MAX: Final = 60_000
"""Bytes of a build's log in the prompt: Linux takes 131,072 in one argument."""
_KEPT: Final = ("PATH", "HOME", "TERM", "LANG")


@attrs.frozen(kw_only=True)
class Mender:
    """Tries to mend one system at a time in the worktree."""

    settings: AutoFix
    worktree: Worktree
    flake: Flake
    moves: tuple[Move, ...]
    hosts: tuple[System, ...]

    async def mend(self, failed: Built, number: int) -> Attempt:
        """One try. `ok` says that there is something to build; the worktree is as it was before where there is not."""
        before, refs = await self.worktree.head(), await self.worktree.references()
        link, settings = self.worktree.link(), self.worktree.settings()
        problem = await self._ask(failed)
        if self.worktree.link() != link:
            self.worktree.mend_link(link)
            problem = "it touched .git"
        elif self.worktree.settings() != settings:
            problem = "git's own settings or hooks of the repository are not what they were; look at them"
        await self.worktree.stage()
        changed = await self.worktree.changed()
        problem = problem or await self._objection(before, refs, changed)
        if problem:
            await self.worktree.reset(before)
        return Attempt(
            system=failed.system,
            number=number,
            ok=not problem,
            why=problem or "it is to be built again",
            changed=() if problem and not changed else changed,
        )

    async def _ask(self, failed: Built) -> str:
        settings = self.settings
        argv = [settings.command, "-p", self._prompt(failed), *settings.extra_args]
        try:
            environment = self._environment()
            done = await run(argv, timeout_s=settings.timeout, env=environment, cwd=str(self.worktree.path))
        except (CommandError, UnreadableFileError) as error:
            return str(error)
        if done.timed_out:
            return f"{settings.command} had no answer within {settings.timeout} s"
        return "" if done.ok else f"{settings.command} ended with status {done.exit_code}: {tail(done.stderr, 300)}"

    def _prompt(self, failed: Built) -> str:
        log = tail(failed.tail.encode(), PROMPT_MAX).replace("\0", "")
        moved = "\n".join(f"  {in_words(move)}" for move in self.moves)
        return (
            f"The NixOS or nix-darwin system of host {failed.system.host} (flake attribute {failed.system.attribute}) "
            f"no longer builds after these inputs of the flake moved:\n{moved}\n\n"
            "Change the files of this repository so that it builds again. Do not touch flake.lock or .git, do not "
            f"commit, do not remove a host.\n\nThe end of the build's output:\n{log}\n"
        )

    def _environment(self) -> dict[str, str]:
        environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
        if self.settings.env_file is not None:
            environment |= read_environment(self.settings.env_file)
        return environment

    async def _objection(self, before: str, refs: str, changed: Sequence[str]) -> str:
        if await self.worktree.head() != before:
            return "it committed, which is not its business"
        if await self.worktree.references() != refs:
            return "it moved branches or tags of the repository; look at them"
        if not changed:
            return "it changed nothing"
        outside = [name for name in changed if not self._is_allowed(name)]
        if outside:
            return f"it changed what it may not: {', '.join(outside[:5])}"
        try:
            left = {system.host for system in await self.flake.systems(())}
        except FlakeError as error:
            return f"the flake has no systems then: {error}"
        gone = sorted({system.host for system in self.hosts} - left)
        return f"it removed {', '.join(gone)} from the flake" if gone else ""

    def _is_allowed(self, name: str) -> bool:
        path = PurePosixPath(name)
        if name == self.flake.lock_name or ".git" in path.parts or ".gitmodules" in path.parts:
            return False
        return not self.settings.paths or any(path.is_relative_to(allowed) for allowed in self.settings.paths)


def read_environment(path: Path) -> dict[str, str]:
    """The variables of a file with a `NAME=value` a line, as systemd reads such a file, without its escapes.

    Raises:
        UnreadableFileError: it cannot be read.
    """
    lines = read_bytes(path, "environment file").decode("utf-8", "replace").splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith(("#", ";")))
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs if name.strip().isidentifier()}
