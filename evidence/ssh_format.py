"""SSH's binary framing (RFC 4251 section 5) and its ed25519 key blob (RFC 8709), read strictly.

Everything OpenSSH writes that this project touches - key files, public key lines, SSHSIG - is made of these pieces.
"""

import base64
import binascii
from typing import Final

import attrs

from evidence.errors import EvidenceError
from state_machine.values import Reason

ED25519_NAME: Final = b"ssh-ed25519"
PUBLIC_SIZE: Final = 32


class SshFormatError(EvidenceError):
    """Bytes or text that are not what SSH would have written."""

    reason = Reason.BAD_KEY


@attrs.frozen(kw_only=True)
class TruncatedError(SshFormatError):
    """The data ends in the middle of a field."""

    wanted: int
    left: int

    def __str__(self) -> str:
        return f"a field of {self.wanted} bytes is announced where {self.left} are left"


@attrs.frozen(kw_only=True)
class TrailingError(SshFormatError):
    """The data goes on after its last field."""

    extra: int

    def __str__(self) -> str:
        return f"{self.extra} bytes follow the last field"


@attrs.frozen(kw_only=True)
class PublicKeyLineError(SshFormatError):
    """Text that is not a one-line OpenSSH ed25519 public key."""

    problem: str

    def __str__(self) -> str:
        return f"not an OpenSSH ed25519 public key (ssh-ed25519 AAAA...): {self.problem}"


class Reader:
    """Takes fields off the front of some bytes.

    Every method raises `TruncatedError` when fewer bytes are left than the field needs.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes as they are."""
        left = len(self._data) - self._at
        if size > left:
            raise TruncatedError(wanted=size, left=left)
        self._at += size
        return self._data[self._at - size : self._at]

    def uint32(self) -> int:
        """A big-endian 32-bit number."""
        return int.from_bytes(self.take(4), "big")

    def string(self) -> bytes:
        """Bytes with their length before them."""
        return self.take(self.uint32())

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Refuse what follows the last field.

        Raises:
            TrailingError: bytes are left.
        """
        if extra := len(self._data) - self._at:
            raise TrailingError(extra=extra)


def uint32(number: int) -> bytes:
    """A number as SSH's uint32."""
    return number.to_bytes(4, "big")


def string(data: bytes) -> bytes:
    """Bytes as SSH's string: length first."""
    return uint32(len(data)) + data


def public_blob(public: bytes) -> bytes:
    """An ed25519 public key as SSH sends it."""
    return string(ED25519_NAME) + string(public)


def parse_public_blob(blob: bytes) -> bytes:
    """The 32 raw bytes of an ed25519 public key blob.

    Raises:
        SshFormatError: another key type, another length, or something after the key.
    """
    reader = Reader(blob)
    name = reader.string()
    if name != ED25519_NAME:
        raise PublicKeyLineError(problem=f"the key type is {name[:64].decode('ascii', 'backslashreplace')}")
    public = reader.string()
    reader.end()
    if len(public) != PUBLIC_SIZE:
        raise PublicKeyLineError(problem=f"the key has {len(public)} bytes instead of {PUBLIC_SIZE}")
    return public


def openssh_public_line(public: bytes) -> str:
    """An ed25519 public key as one line without a comment, as in `ssh_host_ed25519_key.pub`."""
    return f"{ED25519_NAME.decode()} {base64.b64encode(public_blob(public)).decode()}"


def parse_openssh_public(line: str) -> bytes:
    """The 32 raw bytes of a one-line OpenSSH ed25519 public key; a comment is allowed and ignored.

    Raises:
        SshFormatError: not such a line; authorized_keys options are not part of one.
    """
    line = line.strip()
    if "\n" in line or "\r" in line:
        raise PublicKeyLineError(problem="it is more than one line")
    words = line.split(None, 2)
    if len(words) < 2:
        raise PublicKeyLineError(problem="it needs a type and a base64 text")
    if words[0] != ED25519_NAME.decode():
        raise PublicKeyLineError(problem=f"the key type is {words[0][:64]}")
    try:
        blob = base64.b64decode(words[1].encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise PublicKeyLineError(problem="its second word is not base64") from error
    return parse_public_blob(blob)
