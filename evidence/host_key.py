"""The host's identity: one ed25519 key pair for SSH, for TLS and for everything the host signs.

The secret half never leaves this object except as `pkcs8_pem()`, which is for a memory file handed to TLS, and as
`write_openssh()`. It is in no `repr` and in no error.
"""

import base64
import contextlib
import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

import attrs
from nacl.signing import SigningKey

from evidence import private_key_formats
from evidence.host_key_errors import (
    HostKeyCorruptError,
    HostKeyExistsError,
    HostKeyMissingError,
    HostKeyNotAFileError,
    HostKeyUnreadableError,
)
from evidence.private_key_formats import SEED_SIZE
from evidence.ssh_format import openssh_public_line

FILE_LIMIT: Final = 64 * 1024
"""More than the largest key file ssh-keygen writes."""

_KINDS: Final = {
    stat.S_IFDIR: "directory",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def _signing_key(key: "HostKey") -> SigningKey:
    return SigningKey(key.seed)


def _public(key: "HostKey") -> bytes:
    return bytes(key.signing_key.verify_key)


@attrs.frozen(kw_only=True)
class HostKey:
    """An ed25519 key pair. `seed` is the 32 secret bytes, `public` the 32 bytes others know the host by.

    Raises:
        ValueError: the seed has another length.
    """

    seed: bytes = attrs.field(repr=False)
    signing_key: SigningKey = attrs.field(init=False, repr=False, eq=False, default=attrs.Factory(_signing_key, True))
    public: bytes = attrs.field(init=False, default=attrs.Factory(_public, True))

    @property
    def openssh_public(self) -> str:
        """The public key as one line, as a fleet declares it."""
        return openssh_public_line(self.public)

    @property
    def fingerprint(self) -> str:
        """Base64 of SHA-256 over the raw public key: what a bootstrap token is bound to (protocol section 8.1)."""
        return fingerprint(self.public)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte ed25519 signature of `message` (RFC 8032)."""
        return self.signing_key.sign(message).signature

    def pkcs8_pem(self) -> bytes:
        """The secret key as TLS libraries read it. Hand it over in memory; never write it to a disk."""
        return private_key_formats.pkcs8_pem(self.seed)

    def write_openssh(self, path: Path, *, comment: str = "") -> None:
        """Write a new OpenSSH private key file, mode 0600, all of it or nothing.

        Raises:
            HostKeyExistsError: something is at `path` already; it is left as it was.
            OSError: the directory cannot be written.
        """
        _write_new(path, private_key_formats.openssh_private_pem(self.seed, self.public, comment=comment))


def fingerprint(public: bytes) -> str:
    """Base64 of SHA-256 over 32 raw public key bytes (protocol section 8.1): not SPKI, not SSH's own form."""
    return base64.b64encode(hashlib.sha256(public).digest()).decode("ascii")


def generate_host_key() -> HostKey:
    """A new random key."""
    return HostKey(seed=secrets.token_bytes(SEED_SIZE))


def load_host_key(path: Path) -> HostKey:
    """Read an unencrypted ed25519 private key, in OpenSSH's format or as PKCS#8 PEM.

    Raises:
        HostKeyError: a subclass per cause (missing, unreadable, not a file, wrong type, encrypted, damaged, halves that
            do not match), each saying what to do.
    """
    return HostKey(seed=private_key_formats.parse_private_key(_read(path), path=path))


def _read(path: Path) -> bytes:
    try:
        # Non-blocking, because opening a pipe would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise HostKeyMissingError(path=path) from error
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise HostKeyNotAFileError(path=path, found="socket") from error
        raise HostKeyUnreadableError(path=path, problem=_problem(error)) from error
    try:
        data = _read_regular(descriptor, path)
    finally:
        os.close(descriptor)
    if len(data) > FILE_LIMIT:
        raise HostKeyCorruptError(path=path, size=len(data), problem="it is far too long for a key file")
    return data


def _read_regular(descriptor: int, path: Path) -> bytes:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        raise HostKeyNotAFileError(path=path, found=_KINDS.get(stat.S_IFMT(mode), "special file"))
    try:
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(FILE_LIMIT + 1)
    except OSError as error:
        raise HostKeyUnreadableError(path=path, problem=_problem(error)) from error


def _problem(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _write_new(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # A link, unlike a rename, never replaces what is there.
        os.link(temporary, path)
    except FileExistsError as error:
        raise HostKeyExistsError(path=path) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
