"""A directory tree as a value: copied whole, and named by a digest of all of it.

A tree is directories, regular files with or without the executable bit, and symbolic links; owners, times and other
permissions are no part of it, and anything else (devices, sockets, pipes) is refused. The digest is SHA-256 over one
record per entry in byte order of the paths: kind, path with its length in front, and the SHA-256 of the file's content
or the link's target.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from nixfleet_agent.activation.errors import TreeError

_CHUNK: Final = 1024 * 1024

Breath = Callable[[], None]
"""Called between chunks of work; may raise to stop it."""


@attrs.frozen(kw_only=True)
class Entry:
    """One thing in a tree. `kind` is `d`, `f`, `x` (an executable file) or `l`; `path` is relative to the top."""

    kind: str
    path: bytes


def entries(top: str) -> Iterator[Entry]:
    """All of the tree at `top` but `top` itself, each directory before what it holds. Raises `TreeError`."""
    yield from _below(os.fsencode(top), b"")


def tree_digest(top: str, breath: Breath = lambda: None) -> str:
    """The digest in lower-case hexadecimal. Raises `TreeError`."""
    digest = hashlib.sha256()
    for entry in sorted(entries(top), key=lambda entry: entry.path):
        breath()
        content = _content_digest(os.path.join(os.fsencode(top), entry.path), entry.kind, breath)
        digest.update(f"{entry.kind} {len(entry.path)}:".encode() + entry.path + b" " + content + b"\n")
    return digest.hexdigest()


def copy_tree(source: str, target: str, breath: Breath = lambda: None) -> None:
    """Copy the tree to `target`, which must not exist, with read-only files on the disk. Raises `TreeError`."""
    os.makedirs(target, mode=0o755)
    for entry in entries(source):
        breath()
        old = os.path.join(os.fsencode(source), entry.path)
        new = os.path.join(os.fsencode(target), entry.path)
        try:
            match entry.kind:
                case "d":
                    os.mkdir(new, 0o755)
                case "l":
                    os.symlink(os.readlink(old), new)
                case _:
                    _copy_file(old, new, executable=entry.kind == "x", breath=breath)
        except OSError as error:
            raise TreeError(path=os.fsdecode(old), cause=error.strerror or str(error)) from error


def _below(top: bytes, inside: bytes) -> Iterator[Entry]:
    directory = os.path.join(top, inside)
    try:
        with os.scandir(directory) as found:
            names = sorted(found, key=lambda item: item.name)
        for item in names:
            path = os.path.join(inside, item.name)
            kind = _kind(item.stat(follow_symlinks=False).st_mode)
            if kind is None:
                raise TreeError(path=os.fsdecode(item.path), cause="neither file, directory nor link")
            yield Entry(kind=kind, path=path)
            if kind == "d":
                yield from _below(top, path)
    except OSError as error:
        raise TreeError(path=os.fsdecode(directory), cause=error.strerror or str(error)) from error


def _kind(mode: int) -> str | None:
    if stat.S_ISREG(mode):
        return "x" if mode & 0o111 else "f"
    if stat.S_ISDIR(mode):
        return "d"
    return "l" if stat.S_ISLNK(mode) else None


def _content_digest(path: bytes, kind: str, breath: Breath) -> bytes:
    digest = hashlib.sha256()
    if kind == "l":
        digest.update(os.readlink(path))
    elif kind != "d":
        for chunk in _chunks(path):
            breath()
            digest.update(chunk)
    return digest.hexdigest().encode()


def _copy_file(old: bytes, new: bytes, *, executable: bool, breath: Breath) -> None:
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        for chunk in _chunks(old):
            breath()
            file.write(chunk)
        file.flush()
        os.fchmod(descriptor, 0o555 if executable else 0o444)
        os.fsync(descriptor)


def _chunks(path: bytes) -> Iterator[bytes]:
    """The content of a regular file. A link put in its place meanwhile is not followed, a pipe not waited for."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
