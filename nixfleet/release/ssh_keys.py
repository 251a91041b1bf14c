"""SSH's public keys and signatures of the two kinds that sign releases: ed25519 (RFC 8709) and P-256 (RFC 5656)."""

import base64
from typing import Final

from evidence.signature import Algorithm, PublicKey
from evidence.ssh_format import ED25519_NAME, Reader, SshFormatError
from nixfleet.release.sign import raw_p256

_P256_NAME: Final = b"ecdsa-sha2-nistp256"
_P256_CURVE: Final = b"nistp256"
_UNCOMPRESSED: Final = b"\x04"


def parse_public_line(line: str) -> tuple[bytes, PublicKey]:
    """The blob and the key of a line as in `id_ed25519.pub`.

    Raises:
        SshFormatError: not such a line, or not of an ed25519 or P-256 key.
    """
    words = line.split(None, 2)
    if len(words) < 2 or "\n" in line.strip():
        raise SshFormatError("it is not one line with a type and a base64 text")
    try:
        blob = base64.b64decode(words[1].encode("ascii"), validate=True)
    except ValueError as error:
        raise SshFormatError("its second word is not base64") from error
    key = public_key_of_blob(blob)
    if key is None:
        raise SshFormatError(f"its kind is {kind_of(blob)}")
    return blob, key


def public_key_of_blob(blob: bytes) -> PublicKey | None:
    """The key in an SSH public key blob (RFC 8709, RFC 5656); None for a kind that signs no releases.

    Raises:
        SshFormatError: it is damaged.
    """
    reader = Reader(blob)
    match reader.string():
        case name if name == ED25519_NAME:
            key = PublicKey(algorithm=Algorithm.ED25519, raw=reader.string())
        case name if name == _P256_NAME:
            curve, point = reader.string(), reader.string()
            if curve != _P256_CURVE or point[:1] != _UNCOMPRESSED:
                raise SshFormatError("it is not an uncompressed point of P-256")
            key = PublicKey(algorithm=Algorithm.ECDSA_P256, raw=point[1:])
        case _:
            return None
    reader.end()
    if not key.is_sound:
        raise SshFormatError("it is not a sound key")
    return key


def kind_of(blob: bytes) -> str:
    """What a key blob calls itself, for people."""
    try:
        return Reader(blob).string()[:64].decode("ascii", "backslashreplace")
    except SshFormatError:
        return "unknown"


def raw_signature(blob: bytes) -> bytes:
    """The bytes of an SSH signature blob: ed25519 has them as they are, ECDSA as two numbers (RFC 5656, 3.1.2).

    Raises:
        SshFormatError: it is damaged.
    """
    outer = Reader(blob)
    name, inner = outer.string(), outer.string()
    outer.end()
    if name != _P256_NAME:
        return inner
    numbers = Reader(inner)
    r, s = (int.from_bytes(numbers.string(), "big", signed=True) for _ in range(2))
    numbers.end()
    return raw_p256(r, s)
