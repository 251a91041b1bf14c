"""Git, as far as the updater goes: a worktree of its own, made from the fetched main branch and removed in the end.

The user's checkout is never touched: nothing here writes to its files, its index, its HEAD or its branches. The
worktree has a detached HEAD, so that no branch is left behind by a run that dies; one that an earlier run left is found
by where it is and removed, which is safe because the lock says that no other run is using it. Git runs without its
user's prompts, hooks and signing agents: a run by a timer must not wait for somebody.
"""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from nixfleet.update.errors import GitError, LockedError, NoRepositoryError
from nixfleet_agent.commands import CommandError, run, tail

NETWORK_S: Final = 600.0
LOCAL_S: Final = 120.0
_HOME: Final = "nixfleet-update"
"""Below the repository's git directory: the lock, worktrees and the logs of the last run."""

_AUTHOR: Final = "nixfleet-update"
_ELSEWHERE: Final = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE",
)  # fmt: skip
"""Variables that a hook is given, and that would lead git into another repository than the named one."""
_QUIET: Final = {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"}
_OPTIONS: Final = ("-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", "-c", "gc.auto=0")


@attrs.frozen(kw_only=True)
class Repository:
    """A repository on this machine, by its checkout or by itself when it is bare."""

    path: Path
    git_dir: Path
    """Where git keeps what all worktrees share."""

    @property
    def home(self) -> Path:
        """Where the updater keeps what is its own."""
        return self.git_dir / _HOME

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the repository against other runs; the kernel lets go of it should this process die.

        Raises:
            LockedError: another run holds it.
        """
        self.home.mkdir(exist_ok=True)
        path = self.home / "lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno == errno.EWOULDBLOCK:
                    raise LockedError(path=path) from error
                raise
            yield
        finally:
            os.close(handle)

    async def fetch(self, remote: str, branch: str) -> str:
        """Fetch a branch and return its newest commit.

        Raises:
            GitError: the remote cannot be reached, or has no such branch.
        """
        reference = f"refs/remotes/{remote}/{branch}"
        what = f"+refs/heads/{branch}:{reference}"
        await git(self.path, "fetch", "--quiet", "--no-tags", remote, what, within_s=NETWORK_S)
        return await git(self.path, "rev-parse", "--verify", f"{reference}^{{commit}}")

    async def remote_branches(self, remote: str, prefix: str) -> dict[str, str]:
        """The remote's branches that begin with `prefix`, with the commit each is at."""
        said = await git(self.path, "ls-remote", "--heads", remote, f"refs/heads/{prefix}*", within_s=NETWORK_S)
        pairs = (line.split("\t", 1) for line in said.splitlines())
        return {reference.removeprefix("refs/heads/"): commit for commit, reference in pairs}

    async def local_branches(self) -> frozenset[str]:
        """The repository's own branches, which are somebody else's."""
        said = await git(self.path, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads")
        return frozenset(said.splitlines())

    @asynccontextmanager
    async def worktree(self, commit: str) -> "AsyncIterator[Worktree]":
        """A checkout of `commit` for this run, gone again on every way out."""
        await self.sweep()
        path = self.home / "worktrees" / str(os.getpid())
        path.parent.mkdir(exist_ok=True)
        await git(self.path, "worktree", "add", "--quiet", "--detach", str(path), commit)
        try:
            yield Worktree(repository=self, path=path)
        finally:
            with trio.CancelScope(shield=True):
                await self._remove(path)

    async def sweep(self) -> list[Path]:
        """Remove what runs left that were killed; which worktrees those were."""
        left = sorted((self.home / "worktrees").glob("*"))
        for path in left:
            await self._remove(path)
        # Not `git worktree prune`: it would forget the user's own worktrees too that are on a disk not mounted now.
        for entry in (self.git_dir / "worktrees").glob("*/gitdir"):
            if Path(entry.read_text().strip()).is_relative_to(self.home / "worktrees"):
                shutil.rmtree(entry.parent)
        return left

    async def _remove(self, path: Path) -> None:
        with contextlib.suppress(GitError):  # half made, git does not know it
            await git(self.path, "worktree", "remove", "--force", "--force", str(path))
        shutil.rmtree(path, ignore_errors=True)


@attrs.frozen(kw_only=True)
class Worktree:
    """The checkout of one run."""

    repository: Repository
    path: Path

    async def head(self) -> str:
        """The commit it is at."""
        return await git(self.path, "rev-parse", "HEAD")

    async def references(self) -> str:
        """Every branch and tag of the repository, with where it is."""
        return await git(self.path, "for-each-ref")

    async def stage(self) -> None:
        """Let git know of every file there is: Nix sees no other."""
        await git(self.path, "add", "--all")

    async def changed(self) -> tuple[str, ...]:
        """Every file that differs from HEAD, new ones included."""
        said = await git(self.path, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames")
        return tuple(entry[3:] for entry in said.split("\0") if entry)

    async def commit(self, message: str, paths: Sequence[str]) -> str:
        """Commit the named paths, and nothing else; the new commit.

        Raises:
            GitError: nothing changed in them, or nobody is configured to be the author.
        """
        await git(self.path, "add", "--all", "--", *paths)
        words = (*await self._author(), "commit", "--quiet", "--no-verify", "--file", "-", "--", *paths)
        await git(self.path, *words, stdin=message.encode())
        return await self.head()

    async def _author(self) -> tuple[str, ...]:
        """Somebody to be the author where nobody is configured, as with a service."""
        with contextlib.suppress(GitError):
            await git(self.path, "var", "GIT_COMMITTER_IDENT")
            return ()
        return ("-c", f"user.name={_AUTHOR}", "-c", f"user.email={_AUTHOR}@localhost")

    def link(self) -> bytes:
        """What `.git` says, which in a worktree is a file that leads to the repository; empty when it is none."""
        path = self.path / ".git"
        return path.read_bytes() if path.is_file() and not path.is_symlink() else b""

    def mend_link(self, link: bytes) -> None:
        """Put `.git` back as it was."""
        path = self.path / ".git"
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.write_bytes(link)

    def settings(self) -> dict[Path, bytes]:
        """Files that tell git what to do in this repository, with what they say."""
        shared = self.repository.git_dir
        places = (shared / "config", *shared.glob("hooks/*"), *shared.glob("info/*"))
        return {path: path.read_bytes() for path in places if path.is_file()}

    async def reset(self, commit: str) -> None:
        """Go back to `commit` and forget every change since."""
        await git(self.path, "reset", "--quiet", "--hard", commit)
        await git(self.path, "clean", "-ffdxq")

    async def push(self, remote: str, branch: str, *, replace: bool = False) -> None:
        """Push HEAD as `branch`. Only forward, unless it may replace what is there.

        Raises:
            GitError: the remote would not take it.
        """
        refspec = f"{'+' if replace else ''}{await self.head()}:refs/heads/{branch}"
        await self._push(remote, refspec)

    async def keep_as(self, branch: str) -> None:
        """Make HEAD a branch of the repository, which must not have one of that name."""
        await git(self.path, "branch", branch, "HEAD")

    async def delete_remote(self, remote: str, branch: str) -> None:
        """Remove a branch from the remote."""
        await self._push(remote, f":refs/heads/{branch}")

    async def _push(self, remote: str, refspec: str) -> None:
        # From the repository: the address of a remote may be relative to it.
        where = self.repository.path
        await git(where, "push", "--quiet", "--no-verify", remote, refspec, within_s=NETWORK_S)


async def open_repository(path: Path) -> Repository:
    """The repository at `path`.

    Raises:
        NoRepositoryError: there is none that can be used.
    """
    try:
        common = await git(path, "rev-parse", "--path-format=absolute", "--git-common-dir")
    except GitError as error:
        raise NoRepositoryError(path=path, said=error.said) from error
    return Repository(path=path, git_dir=Path(common))


async def git(
    where: Path, *words: str, stdin: bytes = b"", within_s: float = LOCAL_S, more: Mapping[str, str] | None = None
) -> str:
    """Run git and return what it wrote, without the end of the last line. `more` is added to its environment.

    Raises:
        GitError: it failed, could not be started, or took longer than `within_s` seconds.
    """
    argv = ["git", "-C", str(where), *_OPTIONS, *words]
    environment = {**environment_here(), **_QUIET, **({} if more is None else more)}
    try:
        done = await run(argv, timeout_s=within_s, env=environment, stdin=stdin, keep=16 * 1024 * 1024)
    except CommandError as error:
        raise GitError(words=words, said=str(error)) from error
    if not done.ok:
        said = f"no answer within {within_s:g} s" if done.timed_out else _said(done.stderr)
        raise GitError(words=words, said=said)
    return done.stdout.decode("utf-8", "surrogateescape").rstrip("\n")


def environment_here() -> dict[str, str]:
    """This process's environment without what would lead git, or a nix that asks git, into another repository."""
    return {name: value for name, value in os.environ.items() if name not in _ELSEWHERE}


def _said(stderr: bytes) -> str:
    lines = [line.strip() for line in tail(stderr).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "remote:", "!"))]
    return "; ".join(dict.fromkeys(telling or lines[-3:]))
