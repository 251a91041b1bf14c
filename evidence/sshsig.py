"""SSHSIG signatures (OpenSSH `PROTOCOL.sshsig`): evidence that stock `ssh-keygen` verifies.

    ssh-keygen -Y verify -f allowed_signers -I <host> -n nixfleet-journal@1 -s export.sig < export

No software of this project takes part in that check, so nobody has to trust it.
"""

import base64
import hashlib
import re
from typing import ClassVar, Final

import attrs

from evidence.documents import is_host_name
from evidence.errors import EvidenceError
from evidence.host_key import HostKey
from evidence.signature import PublicKey, verify
from evidence.ssh_format import (
    ED25519_NAME,
    Reader,
    SshFormatError,
    openssh_public_line,
    parse_public_blob,
    public_blob,
    string,
    uint32,
)
from state_machine.values import Reason

JOURNAL_NAMESPACE: Final = "nixfleet-journal@1"
"""What the signatures are for. A signature of one namespace counts in no other."""

_MAGIC: Final = b"SSHSIG"
_VERSION: Final = 1
_HASH: Final = b"sha512"
_WIDTH: Final = 70
_ARMOR: Final = re.compile(r"-----BEGIN SSH SIGNATURE-----\r?\n(.*?)-----END SSH SIGNATURE-----\s*", re.DOTALL)


@attrs.frozen(kw_only=True)
class SshsigError(EvidenceError):
    """An SSHSIG that is malformed, or is not this key's over this message for this purpose."""

    reason: ClassVar[Reason] = Reason.BAD_SIGNATURE
    problem: str

    def __str__(self) -> str:
        return f"the SSH signature does not count: {self.problem}"


def sign(host_key: HostKey, message: bytes, *, namespace: str = JOURNAL_NAMESPACE) -> str:
    """An armored detached signature over `message`."""
    return sign_digest(host_key, hashlib.sha512(message).digest(), namespace=namespace)


def sign_digest(host_key: HostKey, sha512: bytes, *, namespace: str = JOURNAL_NAMESPACE) -> str:
    """The same over a message already hashed with SHA-512, for exports that do not fit in memory."""
    signature = string(ED25519_NAME) + string(host_key.sign(_to_be_signed(sha512, namespace)))
    blob = _MAGIC + uint32(_VERSION) + string(public_blob(host_key.public)) + string(namespace.encode())
    text = base64.b64encode(blob + string(b"") + string(_HASH) + string(signature)).decode("ascii")
    lines = [text[at : at + _WIDTH] for at in range(0, len(text), _WIDTH)]
    return "\n".join(["-----BEGIN SSH SIGNATURE-----", *lines, "-----END SSH SIGNATURE-----", ""])


def check(armored: str, message: bytes, public: bytes, *, namespace: str = JOURNAL_NAMESPACE) -> None:
    """Accept what `sign` made with the key whose raw public half is `public`.

    Raises:
        SshsigError: anything else.
    """
    match = _ARMOR.fullmatch(armored)
    if match is None:
        raise SshsigError(problem="it is not one armored block")
    try:
        signature = _signature(_decoded("".join(match[1].split())), public, namespace)
    except ValueError as error:
        raise SshsigError(problem="it is not base64") from error
    except SshFormatError as error:
        raise SshsigError(problem=error.detail) from error
    if not verify(PublicKey.ed25519(public), _to_be_signed(hashlib.sha512(message).digest(), namespace), signature):
        raise SshsigError(problem="the message was changed, or another key signed it")


def allowed_signers_line(hostname: str, public: bytes, *, namespace: str = JOURNAL_NAMESPACE) -> str:
    """A line for ssh-keygen's `allowed_signers` file: this host's key counts for this host's journal only.

    Raises:
        SshsigError: the name would be read as a pattern or as several names.
    """
    if not is_host_name(hostname):
        raise SshsigError(problem=f"{hostname[:64]!r} is not a host name")
    return f'{hostname} namespaces="{namespace}" {openssh_public_line(public)}'


def _decoded(text: str) -> bytes:
    """Strictly: one text for each content, as OpenSSH has it. Bits that no byte needs must be zero (RFC 4648, 3.5)."""
    blob = base64.b64decode(text, validate=True)
    if base64.b64encode(blob).decode("ascii") != text:
        raise ValueError("not the canonical encoding")
    return blob


def _to_be_signed(sha512: bytes, namespace: str) -> bytes:
    return _MAGIC + string(namespace.encode()) + string(b"") + string(_HASH) + string(sha512)


def _signature(blob: bytes, public: bytes, namespace: str) -> bytes:
    reader = Reader(blob)
    if reader.take(len(_MAGIC)) != _MAGIC or reader.uint32() != _VERSION:
        raise SshsigError(problem="it is not SSHSIG version 1")
    if parse_public_blob(reader.string()) != public:
        raise SshsigError(problem="it is by another key")
    if reader.string() != namespace.encode():
        raise SshsigError(problem=f"it was not made for {namespace}")
    reader.string()  # reserved: to be ignored
    if reader.string() != _HASH:
        raise SshsigError(problem="its hash is not sha512")
    inner = Reader(reader.string())
    reader.end()
    if inner.string() != ED25519_NAME:
        raise SshsigError(problem="it is not an ed25519 signature")
    signature = inner.string()
    inner.end()
    return signature
