"""Read a journal's export, a directory made by `nixfleet-agent journal export`. Nothing in it is believed yet.

entries.jsonl        one entry per line: {"body": <the signed bytes as text>, "signature": <hex>}
entries.jsonl.sig    an SSH signature over that file, for `ssh-keygen -Y verify`
allowed_signers      the line `ssh-keygen -Y verify` needs
host.pub             the host's public key
artifacts/           <sha256>.json with <sha256>.json.sig: manifests and fleets the entries refer to
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import attrs

from evidence.canonical import ARTIFACT_LIMIT, CanonicalError, parse
from evidence.chain import ENTRY_LIMIT, SealedEntry
from evidence.regular_files import open_regular, read_whole
from evidence.ssh_format import SshFormatError, parse_openssh_public
from nixfleet.errors import ConfigurationError, StoppedError
from nixfleet.files import LIMIT, read_bytes
from wire.json_value import JsonObject

ENTRIES: Final = "entries.jsonl"
ENTRIES_SIGNATURE: Final = "entries.jsonl.sig"
ALLOWED_SIGNERS: Final = "allowed_signers"
HOST_PUBLIC: Final = "host.pub"
ARTIFACTS: Final = "artifacts"

_LINE_LIMIT: Final = 2 * ENTRY_LIMIT + 1024
"""A body of escaped characters with its signature."""


@attrs.frozen(kw_only=True)
class NotAnExportError(ConfigurationError):
    """A path that was given does not lead to an export."""

    path: Path

    def __str__(self) -> str:
        return (
            f"{self.path} is no journal export and holds none (a directory with {ENTRIES}); "
            "`nixfleet-agent journal export` makes one"
        )


@attrs.frozen(kw_only=True)
class BrokenError(StoppedError):
    """Evidence that does not hold. `n` is the entry it is in; None: it is in a file beside the entries."""

    n: int | None
    problem: str

    def __str__(self) -> str:
        return self.problem if self.n is None else f"entry {self.n}: {self.problem}"


@attrs.frozen(kw_only=True)
class Export:
    """One host's export. `public` is the key the export itself names, 32 raw bytes."""

    directory: Path
    public: bytes

    def entries(self) -> Iterator[SealedEntry]:
        """The entries in the order of the file, one at a time.

        Raises:
            BrokenError: a line cannot be read as one.
        """
        with open_regular(self.directory / ENTRIES) as file:
            number = 0
            while line := file.readline(_LINE_LIMIT + 1):
                number += 1
                yield _entry(number, line)

    def bodies(self) -> Iterator[JsonObject]:
        """What the entries say, whether they are genuine or not.

        Raises:
            BrokenError: one says nothing that can be read.
        """
        for entry in self.entries():
            try:
                body = parse(entry.body, limit=ENTRY_LIMIT)
            except CanonicalError as error:
                raise BrokenError(n=entry.n, problem=error.detail) from error
            if not isinstance(body, dict):
                raise BrokenError(n=entry.n, problem="it is not an object")
            yield body

    def artifact(self, digest: str) -> tuple[bytes, bytes] | None:
        """The bytes and the signature filed under a digest, or None when they are not in the export."""
        path = self.directory / ARTIFACTS / f"{digest}.json"
        try:
            with open_regular(path) as file, open_regular(path.with_name(path.name + ".sig")) as signature:
                return file.read(ARTIFACT_LIMIT + 1), signature.read(_LINE_LIMIT)
        except FileNotFoundError:
            return None

    def text(self, name: str) -> str | None:
        """A small file of the export, or None when it is not there."""
        path = self.directory / name
        return read_whole(path, LIMIT).decode("utf-8", "replace") if path.is_file() else None

    def content(self) -> bytes:
        """The whole of `entries.jsonl`, which its SSH signature covers."""
        path = self.directory / ENTRIES
        return read_bytes(path, "journal export", path.stat().st_size)


def find_exports(paths: Iterable[Path]) -> list[Path]:
    """The export directories among `paths` and directly below them, sorted within each.

    Raises:
        NotAnExportError: a path leads to none.
    """
    found: list[Path] = []
    for path in paths:
        below = [path] if (path / ENTRIES).is_file() else sorted(each.parent for each in path.glob(f"*/{ENTRIES}"))
        if not below:
            raise NotAnExportError(path=path)
        found += below
    return found


def open_export(directory: Path) -> Export:
    """An export with the key it names.

    Raises:
        UnreadableFileError: its `host.pub` is missing.
        SshFormatError: that holds no ed25519 key.
    """
    line = read_bytes(directory / HOST_PUBLIC, "host's public key").decode("utf-8", "replace")
    return Export(directory=directory, public=parse_openssh_public(line))


def read_public(path: Path) -> bytes:
    """The raw key in an OpenSSH public key file.

    Raises:
        UnreadableFileError: the file cannot be read.
        PublicKeyFileError: it holds no ed25519 key.
    """
    try:
        return parse_openssh_public(read_bytes(path, "host key").decode("utf-8", "replace"))
    except SshFormatError as error:
        raise PublicKeyFileError(path=path, problem=error.detail) from error


@attrs.frozen(kw_only=True)
class PublicKeyFileError(ConfigurationError):
    """A file that should hold a host's public key does not."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def _entry(number: int, line: bytes) -> SealedEntry:
    try:
        members = parse(line, limit=_LINE_LIMIT)
    except CanonicalError as error:
        raise _broken_line(number, error.detail) from error
    if not isinstance(members, dict):
        raise _broken_line(number, "it is not an object")
    body, signature = members.get("body"), members.get("signature")
    if not isinstance(body, str) or not isinstance(signature, str):
        raise _broken_line(number, "it needs the texts `body` and `signature`")
    content = body.encode("utf-8")
    return SealedEntry(
        n=_number_in(content) or number,
        body=content,
        hash=hashlib.sha256(content).digest(),
        signature=_from_hex(number, signature),
    )


def _number_in(body: bytes) -> int | None:
    """What the entry calls itself, as far as it can be read: for naming it. The chain's check judges it."""
    try:
        members = parse(body, limit=ENTRY_LIMIT)
    except CanonicalError:
        return None
    n = members.get("n") if isinstance(members, dict) else None
    return n if type(n) is int else None


def _from_hex(number: int, text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise _broken_line(number, "its signature is not hex") from error


def _broken_line(number: int, problem: str) -> BrokenError:
    return BrokenError(n=None, problem=f"line {number} of {ENTRIES}: {problem}")
