"""Git, as far as a builder goes: one mirror for each repository, fetched when a job needs it.

Jobs share a fetch, but none takes one that began before it was asked for: whoever pushed and then asked is served what
was pushed. A mirror is `NAME/.git` and bare: Nix reads a repository of that shape where it lies, and would make itself
a second copy of any other bare one. What a power cut damaged is noticed by what git says of it, and made anew, once.
"""

import contextlib
import logging
import re
import shutil
from pathlib import Path
from typing import Final

import attrs
import trio

from nixfleet.builder.errors import FetchError, RevisionError
from nixfleet.builder.settings import Source
from nixfleet.update.errors import DiskError, GitError
from nixfleet.update.worktree import git

FETCH_S: Final = 3600.0
"""For one fetch: the first one brings the whole history."""

PROTOCOLS: Final = {"GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh"}
"""Among git's remotes are some that run a command of their address."""

_REFS: Final = ("refs/heads/", "refs/tags/", "refs/nixfleet/")
"""What is fetched. The updater puts under the last what it wants built before it is merged."""

_FULL: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_SHORT: Final = re.compile(r"[0-9a-f]{7,63}", re.ASCII)
# Packs are synced to the disk before a reference names what is in them; loose objects are only asked to be.
_SAFELY: Final = ("-c", "fetch.unpackLimit=1", "-c", "core.fsync=all")
_TIDILY: Final = ("-c", "gc.auto=6700", "-c", "gc.autoDetach=false")
log = logging.getLogger(__name__)


@attrs.define(kw_only=True, eq=False)
class Mirror:
    """One repository as it was when last fetched."""

    source: Source
    home: Path
    """Where mirrors are."""
    fetches: int = 0
    """How many were begun."""
    _ended: tuple[int, str] = (0, "")
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    @property
    def path(self) -> Path:
        """Where it is, as Nix is told it."""
        return self.home / self.source.name

    async def fetch(self) -> None:
        """Bring it up to date with what the remote has now, or in a moment.

        Raises:
            FetchError: the remote or the disk would not.
        """
        begun = self.fetches
        async with self._lock:
            if self._ended[0] <= begun:
                self.fetches += 1
                self._ended = (self.fetches, await self._attempt())
            said = self._ended[1]
        if said:
            raise FetchError(repository=self.source.name, said=said)

    async def renew(self) -> None:
        """Throw it away and make it anew.

        Raises:
            FetchError: the remote or the disk would not; the old one is still there.
        """
        async with self._lock:
            try:
                await self._make()
            except (GitError, OSError) as error:
                raise FetchError(repository=self.source.name, said=_said(error)) from error

    async def resolve(self, revision: str) -> str:
        """The commit that a revision means: empty, a commit, a branch, a tag, or a reference in full.

        Raises:
            RevisionError: it means none that was fetched.
        """
        for name in self._names(revision):
            with contextlib.suppress(GitError):  # it is another kind of name
                return await self._git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        raise RevisionError(repository=self.source.name, revision=revision or self.source.branch)

    async def has(self, commit: str) -> bool:
        """It has a commit, named in full."""
        with contextlib.suppress(RevisionError):
            return bool(_FULL.fullmatch(commit)) and await self.resolve(commit) == commit
        return False

    async def is_sound(self, commit: str) -> bool:
        """Every file of a commit can be read."""
        with contextlib.suppress(GitError):
            await self._git("archive", "--format=tar", "--output=/dev/null", commit, within_s=FETCH_S)
            return True
        return False

    def _names(self, revision: str) -> tuple[str, ...]:
        if not revision:
            return (f"refs/heads/{self.source.branch}",)
        if revision.startswith("refs/"):
            return (revision,) if revision.startswith(_REFS) else ()
        if _FULL.fullmatch(revision):
            return (revision,)
        named = tuple(f"{kind}{revision}" for kind in _REFS)
        return (*named, revision) if _SHORT.fullmatch(revision) else named

    async def _attempt(self) -> str:
        """Fetch; what went wrong, or nothing."""
        try:
            if (self.path / ".git").is_dir():
                await self._update_or_make()
            else:
                await self._make()
        except (GitError, OSError) as error:
            return _said(error)
        try:
            await self._git(*_TIDILY, "gc", "--auto", "--quiet", within_s=FETCH_S)
        except GitError as error:
            log.warning("%s: %s", self.path, error)
        return ""

    async def _update_or_make(self) -> None:
        try:
            await self._update(self.path)
        except GitError as error:
            # Whose fault it is, the remote tells: one that answers has nothing against being fetched from.
            await git(self.home, "ls-remote", "--heads", "--", self.source.url, within_s=FETCH_S, more=PROTOCOLS)
            log.warning("%s is damaged and made anew: %s", self.path, error)
            await self._make()

    async def _make(self) -> None:
        """Beside the old one, which stays until the new one is whole."""
        fresh, old = (self.path.with_name(f"{self.source.name}.{word}") for word in ("new", "old"))
        self.home.mkdir(parents=True, exist_ok=True)
        await trio.to_thread.run_sync(_remove, fresh)
        await git(self.home, "init", "--quiet", "--bare", "--template=", "--", str(fresh / ".git"), more=PROTOCOLS)
        await self._update(fresh)
        await trio.to_thread.run_sync(_remove, old)
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(old)
        fresh.rename(self.path)
        await trio.to_thread.run_sync(_remove, old)

    async def _update(self, path: Path) -> None:
        refs = tuple(f"+{kind}*:{kind}*" for kind in _REFS)
        words = ("fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--", self.source.url, *refs)
        await self._git(*_SAFELY, *words, where=path, within_s=FETCH_S)
        # Nix asks what HEAD is even when it is told a commit.
        heads = await self._git("for-each-ref", "--count=1", "--format=%(objectname)", "refs/heads", where=path)
        if heads:
            await self._git("update-ref", "--no-deref", "HEAD", heads, where=path)

    async def _git(self, *words: str, where: Path | None = None, within_s: float = 120.0) -> str:
        path = self.path if where is None else where
        # By its name: one that is damaged enough is none, and git would go looking in the directories above it.
        return await git(path, *words, within_s=within_s, more={**PROTOCOLS, "GIT_DIR": str(path / ".git")})


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _said(error: GitError | OSError) -> str:
    return error.said if isinstance(error, GitError) else str(DiskError.of(error))
