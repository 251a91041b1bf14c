"""Sign canonical bytes with a release key. The key may live anywhere: `Signer` is all the rest of the tool knows.

Signatures are 64 raw bytes: ed25519 (RFC 8032), or P-256 over SHA-256 as R||S with the low S. Wherever the key lives,
`proven` holds each signature against the public key before anybody is given it, by the check that hosts make. A key
file signs with a deterministic nonce (RFC 6979), so that signing the same bytes twice gives the same file.
"""

from pathlib import Path
from typing import Final, Protocol

import attrs
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from evidence.signature import SIGNATURE_SIZE, Algorithm, PublicKey, verify
from nixfleet.errors import ConfigurationError, StoppedError
from nixfleet.files import read_bytes

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Signer(Protocol):
    """Whoever can sign for one key: a key file, `ssh-agent`, or a command of the user's."""

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what `sign` returns."""
        ...

    def sign(self, message: bytes) -> bytes:
        """64 raw bytes over `message`."""
        ...


@attrs.frozen(kw_only=True)
class SigningKeyError(ConfigurationError):
    """A file that holds no key to sign with."""

    path: Path
    what: str
    problem: str

    def __str__(self) -> str:
        return f"the {self.what} {self.path} {self.problem}; `nixfleet keygen` makes the kind that is needed"


@attrs.frozen(kw_only=True)
class UnprovenSignatureError(StoppedError):
    """What came back for a signature is none, or is not by the key that was asked."""

    source: str
    key_id: str
    size: int

    def __str__(self) -> str:
        return (
            f"{self.source} answered with {self.size} bytes that are no signature by the key {self.key_id} over what "
            "it was given: nothing was written; see that it signs with that key, P-256 over SHA-256"
        )


@attrs.frozen(kw_only=True)
class KeyFileSigner:
    """Signs with a private key held in memory."""

    key: PrivateKey = attrs.field(repr=False)

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what `sign` returns."""
        return public_key_of(self.key)

    def sign(self, message: bytes) -> bytes:
        """64 raw bytes over `message`.

        Raises:
            UnprovenSignatureError: they do not verify, which only broken memory explains.
        """
        match self.key:
            case Ed25519PrivateKey():
                signature = self.key.sign(message)
            case _:
                signature = _sign_p256(self.key, message)
        return proven(self.public_key, message, signature, source="the key file")


def load_signer(path: Path, what: str = "release key") -> KeyFileSigner:
    """Read an unencrypted ed25519 or P-256 private key, as PEM (PKCS#8) or in OpenSSH's format.

    Raises:
        UnreadableFileError: the file cannot be read.
        SigningKeyError: it holds something else.
    """
    content = read_bytes(path, what)
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in content else load_pem_private_key
    try:
        key = load(content, password=None)
    except TypeError as error:
        raise SigningKeyError(path=path, what=what, problem="is encrypted: give it without a passphrase") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningKeyError(path=path, what=what, problem="is not a private key file") from error
    if isinstance(key, Ed25519PrivateKey):
        return KeyFileSigner(key=key)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return KeyFileSigner(key=key)
    raise SigningKeyError(path=path, what=what, problem="is neither an ed25519 nor a P-256 key")


def proven(key: PublicKey, message: bytes, answer: bytes, *, source: str) -> bytes:
    """The 64 bytes that artifacts carry, out of what a signer answered: 64 raw bytes or, for P-256, their DER.

    `source` is whoever answered, for the error.

    Raises:
        UnprovenSignatureError: no reading of the answer is the key's signature over `message`.
    """
    readings = [answer] if len(answer) == SIGNATURE_SIZE else []
    if key.algorithm is Algorithm.ECDSA_P256:
        readings = [*map(_low_s, readings), *_from_der(answer)]
    for signature in readings:
        if verify(key, message, signature):
            return signature
    raise UnprovenSignatureError(source=source, key_id=key.key_id, size=len(answer))


def raw_p256(r: int, s: int) -> bytes:
    """R||S of 64 bytes with the low S; numbers that no P-256 signature has become zeros, which verify nowhere."""
    if not (0 < r < _P256_ORDER and 0 < s < _P256_ORDER):
        return bytes(SIGNATURE_SIZE)
    return r.to_bytes(32, "big") + min(s, _P256_ORDER - s).to_bytes(32, "big")


def public_key_of(key: PrivateKey) -> PublicKey:
    """The public half, as trust roots write it."""
    match key:
        case Ed25519PrivateKey():
            return PublicKey(algorithm=Algorithm.ED25519, raw=key.public_key().public_bytes_raw())
        case _:
            numbers = key.public_key().public_numbers()
            return PublicKey(
                algorithm=Algorithm.ECDSA_P256, raw=numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
            )


def _sign_p256(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    signature = key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    return raw_p256(*utils.decode_dss_signature(signature))


def _low_s(raw: bytes) -> bytes:
    return raw_p256(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))


def _from_der(answer: bytes) -> list[bytes]:
    try:
        return [raw_p256(*utils.decode_dss_signature(answer))]
    except ValueError:
        return []
