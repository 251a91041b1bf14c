"""Everything an auditor needs in a directory of its own, there whole or not at all.

entries.jsonl        one entry a line: {"body": <the signed text, verbatim>, "signature": <hex>}
entries.jsonl.sig    over that file, for `ssh-keygen -Y verify` (when the private key could be read)
allowed_signers      the line `ssh-keygen -Y verify` needs
host.pub             the host's public key
artifacts/           the manifests and fleets that entries refer to by digest, with their signatures
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

from evidence.documents import is_host_name
from evidence.host_key import HostKey
from evidence.ssh_format import openssh_public_line
from evidence.sshsig import allowed_signers_line, sign_digest
from nixfleet_agent.errors import AgentError
from nixfleet_agent.files import sync_directory
from nixfleet_agent.journal.entries import sealed_entries
from nixfleet_agent.journal.errors import UnreadableJournalError
from nixfleet_agent.journal.schema import open_read_only, reading, snapshot, version_of

_ARTIFACT: Final = re.compile(r"[0-9a-f]{64}\.json(\.sig)?")


@attrs.frozen(kw_only=True)
class ExportError(AgentError):
    """The export could not be made; nothing of it is left."""

    directory: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.directory}: {self.problem}; name a new directory in a place that can be written"


def export(
    path: Path,
    directory: Path,
    *,
    host_key: HostKey | None = None,
    public: bytes | None = None,
    artifacts: Path | None = None,
) -> int:
    """Export the journal at `path`; how many entries. Give the host key, or at least its raw public half.

    Raises:
        ExportError: `directory` has something in it already or cannot be made.
        JournalError: the journal cannot be read, or is empty.
    """
    known_as = host_key.public if host_key is not None else public
    if known_as is None:
        raise ExportError(directory=directory, problem="neither the host key nor its public half is known")
    if version_of(path) is None:
        raise UnreadableJournalError(path=path, problem="there is no journal yet")
    with _whole_or_nothing(directory) as draft:
        count, host, sha512 = _write_entries(path, draft / "entries.jsonl")
        if host_key is not None:
            _write(draft / "entries.jsonl.sig", sign_digest(host_key, sha512))
        _write(draft / "allowed_signers", allowed_signers_line(host, known_as) + "\n")
        _write(draft / "host.pub", f"{openssh_public_line(known_as)} {host}\n")
        _copy_artifacts(artifacts, draft / "artifacts")
    return count


def _write_entries(path: Path, target: Path) -> tuple[int, str, bytes]:
    """Write the lines; how many, the host the last entry names, and SHA-512 over all of them."""
    digest = hashlib.sha512()
    count, body = 0, b""
    with contextlib.closing(open_read_only(path)) as db, target.open("wb") as file:
        with reading(path), snapshot(db):
            for entry in sealed_entries(db, path, 1):
                count, body = count + 1, entry.body
                members = {"body": body.decode("utf-8", "replace"), "signature": entry.signature.hex()}
                line = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
                digest.update(line)
                file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if not count:
        raise UnreadableJournalError(path=path, problem="it has no entries yet")
    return count, _host_of(path, body), digest.digest()


def _host_of(path: Path, body: bytes) -> str:
    try:
        host = json.loads(body)["host"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableJournalError(path=path, problem="its newest entry names no host") from error
    if not isinstance(host, str) or not is_host_name(host):
        raise UnreadableJournalError(path=path, problem="its newest entry names something that is no host")
    return host


def _copy_artifacts(source: Path | None, target: Path) -> None:
    target.mkdir()
    if source is None or not source.is_dir():
        return
    for each in sorted(source.iterdir()):
        if _ARTIFACT.fullmatch(each.name) and each.is_file() and not each.is_symlink():
            shutil.copyfile(each, target / each.name)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _whole_or_nothing(directory: Path) -> Iterator[Path]:
    """A draft that takes the place of `directory` when the block ends well and is removed when it does not."""
    draft = directory.with_name(f".{directory.name}.{os.getpid()}.draft")
    try:
        draft.mkdir(parents=True)
        yield draft
        # Renaming replaces an empty directory and fails for any other.
        draft.rename(directory)
        sync_directory(directory.parent)
    except OSError as error:
        raise ExportError(directory=directory, problem=(error.strerror or str(error)).lower()) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
