"""The two file formats an ed25519 host key comes in, read and written by hand.

OpenSSH's own (`PROTOCOL.key`: "openssh-key-v1") and PKCS#8 (RFC 8410). By hand because the general library costs the
resident daemon 16 MB for these few fields. Strict: whatever ssh-keygen would not have written is refused.
"""

import base64
import binascii
import re
import secrets
from pathlib import Path
from typing import Final

import attrs
from nacl.bindings import crypto_sign_seed_keypair

from evidence.host_key_errors import (
    HostKeyCorruptError,
    HostKeyEncryptedError,
    HostKeyError,
    HostKeyMismatchError,
    HostKeyWrongTypeError,
)
from evidence.ssh_format import ED25519_NAME, PUBLIC_SIZE, Reader, SshFormatError, public_blob, string, uint32

SEED_SIZE: Final = 32
_MAGIC: Final = b"openssh-key-v1\0"
_BLOCK: Final = 8
"""What the private section is padded to when it is not encrypted."""

_PEM: Final = re.compile(rb"\s*-----BEGIN ([A-Z0-9 ]{1,40})-----\r?\n(.*?)-----END \1-----\s*", re.DOTALL)
_BEGIN: Final = re.compile(rb"\s*-----BEGIN ([A-Z0-9 ]{1,40})-----")
_OTHER_PEM: Final = {
    "RSA PRIVATE KEY": "an RSA key",
    "DSA PRIVATE KEY": "a DSA key",
    "EC PRIVATE KEY": "an ECDSA key",
    "PUBLIC KEY": "a public key",
    "CERTIFICATE": "a certificate",
}
_OTHER_SSH: Final = {b"ssh-rsa": "an RSA key", b"ssh-dss": "a DSA key"}
_OTHER_OID: Final = {
    bytes.fromhex("06092a864886f70d010101"): "an RSA key",
    bytes.fromhex("06072a8648ce3d0201"): "an ECDSA key",
    bytes.fromhex("06032b656e"): "an X25519 key",
    bytes.fromhex("06032b6571"): "an Ed448 key",
}
_PKCS8_PREFIX: Final = bytes.fromhex("302e020100300506032b657004220420")
_PKCS8_V2_PREFIX: Final = bytes.fromhex("3051020101300506032b657004220420")
_PKCS8_V2_PUBLIC: Final = bytes.fromhex("812100")


@attrs.frozen(kw_only=True)
class _Source:
    """The file under examination, for what errors say of it."""

    path: Path
    size: int

    def damaged(self, problem: str) -> HostKeyCorruptError:
        return HostKeyCorruptError(path=self.path, size=self.size, problem=problem)

    def other(self, found: str) -> HostKeyWrongTypeError:
        return HostKeyWrongTypeError(path=self.path, found=found)


def parse_private_key(data: bytes, *, path: Path) -> bytes:
    """The 32-byte ed25519 seed in a key file's bytes; `path` is only for what an error says.

    Raises:
        HostKeyError: a subclass that names what is wrong with the file.
    """
    source = _Source(path=path, size=len(data))
    pem = _PEM.fullmatch(data)
    if pem is None:
        raise _without_pem(data, source)
    label = pem[1].decode("ascii")
    if label == "ENCRYPTED PRIVATE KEY":
        raise HostKeyEncryptedError(path=path, cipher="PKCS#8")
    if label not in _READERS:
        raise source.other(_OTHER_PEM.get(label, f"a PEM block named {label}"))
    try:
        body = base64.b64decode(b"".join(pem[2].split()), validate=True)
    except binascii.Error as error:
        raise source.damaged("its text is not base64") from error
    return _READERS[label](body, source)


def openssh_private_pem(seed: bytes, public: bytes, *, comment: str) -> bytes:
    """A key file as ssh-keygen writes it, unencrypted."""
    check = secrets.token_bytes(4)
    section = check + check + public_blob(public) + string(seed + public) + string(comment.encode("utf-8"))
    section += bytes(range(1, -len(section) % _BLOCK + 1))
    body = _MAGIC + string(b"none") + string(b"none") + string(b"") + uint32(1)
    return _pem("OPENSSH PRIVATE KEY", body + string(public_blob(public)) + string(section))


def pkcs8_pem(seed: bytes) -> bytes:
    """The key as TLS libraries read it (RFC 8410 section 7)."""
    return _pem("PRIVATE KEY", _PKCS8_PREFIX + seed, width=64)


def public_of(seed: bytes) -> bytes:
    """The public key that belongs to a seed."""
    return crypto_sign_seed_keypair(seed)[0]


def _pem(label: str, body: bytes, *, width: int = 70) -> bytes:
    text = base64.b64encode(body).decode("ascii")
    lines = [text[at : at + width] for at in range(0, len(text), width)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode("ascii")


def _without_pem(data: bytes, source: _Source) -> HostKeyError:
    if begin := _BEGIN.match(data):
        end = b"-----END " + begin[1] + b"-----"
        return source.damaged("text surrounds its block" if end in data else "it is cut short, its END line is missing")
    if re.match(rb"\s*(ssh|ecdsa|sk-ssh|sk-ecdsa)-[!-~]+ AAAA", data):
        return source.other("a public key")
    return source.damaged("it does not begin like a private key file")


def _parse_openssh(body: bytes, source: _Source) -> bytes:
    reader = Reader(body)
    try:
        if reader.take(len(_MAGIC)) != _MAGIC:
            raise source.damaged("it is not in the openssh-key-v1 format")
        cipher, kdf, kdf_options, count = reader.string(), reader.string(), reader.string(), reader.uint32()
        if count != 1:
            raise source.damaged(f"it announces {count} keys instead of one")
        outer = reader.string()
        _check_type(Reader(outer).string(), source)
        if cipher != b"none":
            raise HostKeyEncryptedError(path=source.path, cipher=_text(cipher))
        if kdf != b"none" or kdf_options:
            raise source.damaged("it names a key derivation but no cipher")
        section = reader.string()
        reader.end()
        return _section_seed(section, outer, source)
    except SshFormatError as error:
        raise source.damaged(error.detail) from error


def _section_seed(section: bytes, outer: bytes, source: _Source) -> bytes:
    reader = Reader(section)
    if reader.uint32() != reader.uint32():
        raise source.damaged("its two check numbers differ")
    _check_type(reader.string(), source)
    public, pair, _comment, padding = reader.string(), reader.string(), reader.string(), reader.rest()
    if len(section) % _BLOCK or len(padding) >= _BLOCK or padding != bytes(range(1, len(padding) + 1)):
        raise source.damaged("its padding is wrong")
    if len(pair) != SEED_SIZE + PUBLIC_SIZE:
        raise source.damaged(f"its private half has {len(pair)} bytes instead of {SEED_SIZE + PUBLIC_SIZE}")
    # The seed decides which public key is right; the three copies in the file have to agree with it.
    seed = pair[:SEED_SIZE]
    true_public = public_of(seed)
    if outer != public_blob(true_public) or public != true_public or pair[SEED_SIZE:] != true_public:
        raise HostKeyMismatchError(path=source.path)
    return seed


def _check_type(name: bytes, source: _Source) -> None:
    if name != ED25519_NAME:
        raise source.other(_OTHER_SSH.get(name, f"a key of type {_text(name)}"))


def _parse_pkcs8(body: bytes, source: _Source) -> bytes:
    for oid, found in _OTHER_OID.items():
        # After a SEQUENCE header of 2 to 4 bytes, the version (3) and an inner SEQUENCE header (2).
        if any(body.startswith(oid, at) for at in (7, 8, 9)):
            raise source.other(found)
    head, public = body[: len(_PKCS8_PREFIX) + SEED_SIZE], body[len(_PKCS8_PREFIX) + SEED_SIZE :]
    prefix, seed = head[:-SEED_SIZE], head[-SEED_SIZE:]
    if prefix == _PKCS8_PREFIX and not public:
        return seed
    if prefix == _PKCS8_V2_PREFIX and len(public) == len(_PKCS8_V2_PUBLIC) + PUBLIC_SIZE:
        if public != _PKCS8_V2_PUBLIC + public_of(seed):
            raise HostKeyMismatchError(path=source.path)
        return seed
    raise source.damaged("it is not an ed25519 key in PKCS#8 form (RFC 8410)")


def _text(name: bytes) -> str:
    return name[:64].decode("ascii", "backslashreplace")


_READERS: Final = {"OPENSSH PRIVATE KEY": _parse_openssh, "PRIVATE KEY": _parse_pkcs8}
