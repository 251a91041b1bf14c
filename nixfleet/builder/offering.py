"""Give builders a commit that is in no branch: of a worktree as it is now, before anything of it is merged.

It is pushed under `refs/nixfleet/builds/`, where nobody sees it who does not look, and removed when it was built,
whatever came of it. What a run left that was killed is removed by a later one, after a day.
"""

import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Protocol

import attrs
import trio

from nixfleet.update.errors import GitError
from nixfleet.update.flake import System
from nixfleet.update.worktree import NETWORK_S, Worktree, git

REFERENCES: Final = "refs/nixfleet/builds/"
LEFT_S: Final = 86_400
"""What is older was left by a run that died."""
WITHDRAW_S: Final = 20.0
_MESSAGE: Final = "Built before it is merged\n\nOf no branch: nixfleet removes it when it is built.\n"
_AUTHOR: Final = ("-c", "user.name=nixfleet", "-c", "user.email=nixfleet@localhost")
log = logging.getLogger(__name__)

CommitOf = Callable[[System], str]
"""The commit that a system is to be built from."""


class Commits(Protocol):
    """Commits that builders can fetch."""

    def offered(self) -> contextlib.AbstractAsyncContextManager[CommitOf]:
        """What is to be built, for as long as it takes.

        Raises:
            UpdateError: it cannot be had.
        """
        ...


@attrs.frozen(kw_only=True)
class Published:
    """Commits that are in the repository that builders fetch."""

    commit_of: CommitOf

    @asynccontextmanager
    async def offered(self) -> AsyncIterator[CommitOf]:
        """There they are."""
        yield self.commit_of


@attrs.define(kw_only=True, eq=False)
class Snapshots:
    """A worktree as it is at the time."""

    tree: Worktree
    remote: str
    now: Callable[[], float] = time.time
    _is_swept: bool = False

    @asynccontextmanager
    async def offered(self) -> AsyncIterator[CommitOf]:
        """Push a commit of all that git knows of in the worktree, and remove it in the end.

        Raises:
            GitError: the remote would not take it.
        """
        await self._sweep_once()
        commit = await self._commit()
        reference, is_there = f"{REFERENCES}{commit}", True
        try:
            try:
                await self._at_remote("push", "--quiet", "--no-verify", self.remote, f"{commit}:{reference}")
            except GitError:
                is_there = False
                raise
            yield lambda _: commit
        finally:
            if is_there:
                with trio.move_on_after(WITHDRAW_S, shield=True):
                    await self._remove(reference)

    async def _commit(self) -> str:
        """A commit of the files that Nix sees of the worktree, made beside its index."""
        with self._other_index(await self._git("rev-parse", "--path-format=absolute", "--git-path", "index")) as more:
            await git(self.tree.path, "add", "--update", more=more)
            files = await git(self.tree.path, "write-tree", more=more)
        words = (*_AUTHOR, "commit-tree", files, "-p", await self.tree.head(), "-F", "-")
        return await git(self.tree.path, *words, stdin=_MESSAGE.encode())

    @contextmanager
    def _other_index(self, index: str) -> Iterator[dict[str, str]]:
        other = Path(f"{index}.nixfleet")
        shutil.copyfile(index, other)
        try:
            yield {"GIT_INDEX_FILE": str(other)}
        finally:
            other.unlink(missing_ok=True)

    async def _sweep_once(self) -> None:
        """Remove what was left long ago; that it cannot be removed is no reason to build nothing."""
        if self._is_swept:
            return
        try:
            said = await self._at_remote("ls-remote", self.remote, f"{REFERENCES}*")
            for line in said.splitlines():
                commit, _, reference = line.partition("\t")
                if await self._made(commit, reference) < self.now() - LEFT_S:
                    await self._remove(reference)
        except GitError as error:
            log.warning("what may have been left is not removed: %s", error)
        self._is_swept = True

    async def _made(self, commit: str, reference: str) -> int:
        await self._at_remote("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", self.remote, reference)
        return int(await self._git("show", "--no-patch", "--format=%ct", f"{commit}^{{commit}}"))

    async def _remove(self, reference: str) -> None:
        try:
            await self._at_remote("push", "--quiet", "--no-verify", self.remote, f":{reference}")
        except GitError as error:
            log.warning("%s stays at %s: %s", reference, self.remote, error)

    async def _git(self, *words: str) -> str:
        return await git(self.tree.path, *words)

    async def _at_remote(self, *words: str) -> str:
        # From the repository: the address of a remote may be relative to it.
        return await git(self.tree.repository.path, *words, within_s=NETWORK_S)
