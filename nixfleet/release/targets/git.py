"""A branch of a git repository: each publication is one commit on top of the branch, and one push that is never forced.

A push moves the branch or does not, so readers of the branch see a release whole. No checkout is touched: commits are
made in a bare repository of our own below the cache directory, which holds nothing that could not be fetched again. A
lock beside it, which goes with the process, keeps others of this machine away; others elsewhere are noticed by the
push that the remote then refuses. A branch that is not there begins with a commit that has no parent.

Git runs without hooks, prompts, signing agents and whatever a caller's environment says about other repositories, and
speaks with no remote but over https, ssh and files.
"""

import base64
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs

from evidence.canonical import ARTIFACT_LIMIT
from nixfleet.errors import NoDirectoryError
from nixfleet.release.staging import SIGNATURE, BusyError
from nixfleet.release.target import MovedError, TargetError, in_order, is_manifest
from nixfleet.update.worktree import environment_here

NETWORK_S: Final = 300.0
LOCAL_S: Final = 60.0
AUTHOR: Final = "nixfleet-release"

_SEEN: Final = "refs/nixfleet/published"
_NOTHING: Final = "0" * 40
_TOKEN_USER: Final = "x-access-token"
"""Forges look at the token alone and take any name with it; one of them wants this one."""

_BRANCH: Final = re.compile(r"(?!-)(?!.*(?:\.\.|//|@\{|\.lock(?:/|$)|/\.|/$|\.$))[A-Za-z0-9][A-Za-z0-9._/@+-]{0,199}")
_PROTOCOLS: Final = ("https", "ssh", "file")
_OPTIONS: Final = (
    "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false", "-c", "gc.autoDetach=false",
    "-c", "maintenance.autoDetach=false",
)  # fmt: skip


@attrs.frozen(kw_only=True)
class GitRefusedError(TargetError):
    """Git could not do it. The problem is what git said."""


@attrs.define(kw_only=True)
class GitTarget:
    """A branch of a remote. `cache` is where our own repository and its lock are."""

    remote: str
    branch: str
    cache: Path
    token: str | None = attrs.field(default=None, repr=False)
    _base: str | None = attrs.field(default=None, init=False)
    _files: frozenset[str] | None = attrs.field(default=None, init=False)
    """What the branch has; None as long as nobody looked."""

    @property
    def where(self) -> str:
        """The remote and its branch."""
        return f"{self.remote}#{self.branch}"

    @property
    def repository(self) -> Path:
        """Our own copy."""
        named = hashlib.sha256(f"{self.remote}\0{self.branch}".encode()).hexdigest()[:24]
        return self.cache / f"{named}.git"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """As `Target.held`: a lock on our own copy, and what the branch has now."""
        with self._locked():
            self._look()
            yield

    def read(self, name: str) -> bytes | None:
        """As `Target.read`, of the branch as it was when it was last looked at."""
        if name not in self._known():
            return None
        there = f"{self._base}:{name}"
        if int(self._text("cat-file", "-s", there)) > ARTIFACT_LIMIT:
            raise TargetError(where=self.where, problem=f"{name} has more than {ARTIFACT_LIMIT} bytes")
        return self._git("cat-file", "blob", there)

    def names(self) -> tuple[str, ...]:
        """As `Target.names`."""
        return tuple(sorted(filter(is_manifest, self._known())))

    def publish(self, files: Mapping[str, bytes], *, remove: Sequence[str] = (), message: str) -> None:
        """As `Target.publish`: one commit, which has no other changes than these."""
        tree = self._tree(files, [name for plain in remove for name in (plain, plain + SIGNATURE)])
        if self._base is not None and tree == self._text("rev-parse", f"{self._base}^{{tree}}"):
            return
        commit = self._commit(tree, message)
        try:
            self._git(
                "push", "--quiet", "--no-verify", "--", self.remote, f"{commit}:refs/heads/{self.branch}", network=True
            )
        except GitRefusedError:
            there = self._tip()
            if there == commit:  # it went through, and only the answer was lost
                return
            if there != self._base:
                raise MovedError(where=self.where) from None
            raise

    # What there is

    def _known(self) -> frozenset[str]:
        if self._files is None:
            with self._locked():
                self._look()
        assert self._files is not None
        return self._files

    def _look(self) -> None:
        """Fetch the branch, or find that there is none yet."""
        self._make_repository()
        if self._tip() is None:
            self._git("update-ref", "-d", _SEEN)
            self._base, self._files = None, frozenset()
            return
        refspec = f"+refs/heads/{self.branch}:{_SEEN}"
        self._git("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", self.remote, refspec, network=True)
        self._base = self._text("rev-parse", "--verify", f"{_SEEN}^{{commit}}")
        listed = self._git("ls-tree", "-r", "-z", "--name-only", self._base)
        self._files = frozenset(os.fsdecode(name) for name in listed.split(b"\0") if name)

    def _tip(self) -> str | None:
        """The commit that the remote's branch is at."""
        reference = f"refs/heads/{self.branch}"
        for line in self._text("ls-remote", "--", self.remote, reference, network=True).splitlines():
            commit, _, name = line.partition("\t")
            if name == reference:
                return commit
        return None

    def _make_repository(self) -> None:
        path = self.repository
        try:
            if not (path / "objects").is_dir():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir(parents=True)
                self._git("init", "--quiet", "--bare", "--template=", "--initial-branch=none", str(path))
        except OSError as error:
            cause = error.strerror or str(error)
            raise NoDirectoryError(path=path, what="the copy of a git branch", cause=cause) from error
        # Nobody else is at work here, so these are of a git that was killed, and would stop every other.
        for left in (*path.glob("*.lock"), *(path / "refs").rglob("*.lock")):
            left.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.repository.with_suffix(".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise NoDirectoryError(
                path=path.parent, what="the copy of a git branch", cause=error.strerror or str(error)
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise BusyError(where=self.where) from error
        finally:
            os.close(descriptor)

    # What is made

    def _tree(self, files: Mapping[str, bytes], remove: Sequence[str]) -> str:
        """The branch's tree with these files instead."""
        index = self.repository / "nixfleet-index"
        index.unlink(missing_ok=True)
        blobs = {name: self._text("hash-object", "-w", "--stdin", stdin=files[name]) for name in in_order([*files])}
        lines = [f"0 {_NOTHING}\t{name}" for name in remove if name in self._known()]
        lines += [f"100644 {blob}\t{name}" for name, blob in blobs.items()]
        with_index = {"GIT_INDEX_FILE": str(index)}
        self._git("read-tree", self._base or "--empty", environment=with_index)
        listed = "".join(f"{line}\0" for line in lines).encode()
        self._git("update-index", "-z", "--index-info", stdin=listed, environment=with_index)
        return self._text("write-tree", environment=with_index)

    def _commit(self, tree: str, message: str) -> str:
        parent = ("-p", self._base) if self._base is not None else ()
        words = (*self._author(), "commit-tree", *parent, "-F", "-", tree)
        return self._text(*words, stdin=message.encode())

    def _author(self) -> tuple[str, ...]:
        """Somebody to be the author where nobody is configured, as with a service."""
        with contextlib.suppress(GitRefusedError):
            self._git("var", "GIT_COMMITTER_IDENT")
            return ()
        return ("-c", f"user.name={AUTHOR}", "-c", f"user.email={AUTHOR}@localhost")

    # How git is run

    def _text(
        self, *words: str, stdin: bytes = b"", network: bool = False, environment: Mapping[str, str] | None = None
    ) -> str:
        return os.fsdecode(self._git(*words, stdin=stdin, network=network, environment=environment)).strip()

    def _git(
        self, *words: str, stdin: bytes = b"", network: bool = False, environment: Mapping[str, str] | None = None
    ) -> bytes:
        """Run git in our own repository.

        Raises:
            GitRefusedError: it failed, is not installed, or took too long.
        """
        argv = ["git", f"--git-dir={self.repository}", *_OPTIONS, *words]
        within_s = NETWORK_S if network else LOCAL_S
        try:
            # A group of its own: what git has started, such as ssh, must not outlive it.
            with subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                cwd=self.repository, env={**self._environment(), **(environment or {})},
            ) as child:  # fmt: skip
                try:
                    out, err = child.communicate(stdin, timeout=within_s)
                except BaseException:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    raise
        except subprocess.TimeoutExpired as error:
            said = f"git {_verb(words)} had no end within {within_s:.0f} s"
            raise GitRefusedError(where=self.where, problem=said) from error
        except OSError as error:
            said = f"git cannot be run ({error.strerror}): install it, or put it on PATH"
            raise GitRefusedError(where=self.where, problem=said) from error
        if child.returncode:
            raise GitRefusedError(where=self.where, problem=f"git {_verb(words)}: {_said(err)}")
        return out

    def _environment(self) -> dict[str, str]:
        quiet = {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "",
            "SSH_ASKPASS": "",
            "GIT_ALLOW_PROTOCOL": ":".join(_PROTOCOLS),
            "LC_ALL": "C",
        }
        ssh = {} if "GIT_SSH_COMMAND" in os.environ else {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes"}
        return {**environment_here(), **quiet, **ssh, **self._credentials()}

    def _credentials(self) -> dict[str, str]:
        """The token as a header, told by the environment: a command line is everybody's to read."""
        if self.token is None:
            return {}
        parts = urlsplit(self.remote)
        pair = base64.b64encode(f"{parts.username or _TOKEN_USER}:{self.token}".encode()).decode()
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{parts.scheme}://{parts.netloc}/.extraHeader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {pair}",
        }


def remote_problem(remote: str, branch: str, with_token: bool) -> str | None:
    """What is wrong with a remote and a branch, if anything is."""
    if not remote or not remote.isprintable() or " " in remote or remote.startswith("-") or "::" in remote:
        return "that is no remote of git"
    scheme = remote.partition("://")[0] if "://" in remote else None
    if scheme is not None and scheme not in _PROTOCOLS:
        return f"a git remote is reached by {', '.join(_PROTOCOLS)} only, not by {scheme}"
    try:
        secret = scheme is not None and urlsplit(remote).password is not None
    except ValueError as error:
        return str(error)
    if secret:
        return "a password does not belong into an address: put a token into the file that --to-token-file names"
    if with_token and scheme != "https":
        return "--to-token-file is for remotes by https"
    if not _BRANCH.fullmatch(branch):
        return f"{branch[:80]!r} makes no name of a branch" if branch else "name the branch behind a #"
    return None


def _verb(words: Sequence[str]) -> str:
    """The git command among its words."""
    rest = iter(words)
    for word in rest:
        if word != "-c":
            return word
        next(rest)
    return ""


def _said(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr[-4096:].decode("utf-8", "replace").splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "remote:", "!", "ssh:"))]
    return "; ".join(dict.fromkeys(telling or lines[-3:])) or "it failed and said nothing"
