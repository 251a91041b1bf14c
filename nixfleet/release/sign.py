"""Sign canonical bytes with a release key. The key may live anywhere: `Signer` is all the rest of the tool knows.

Signatures are 64 raw bytes: ed25519 (RFC 8032), or P-256 over SHA-256 as R||S with the low S and a deterministic
nonce (RFC 6979), so that signing the same bytes twice gives the same file.
"""

from pathlib import Path
from typing import Final, Protocol

import attrs
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from evidence.signature import Algorithm, PublicKey
from nixfleet.errors import ConfigurationError
from nixfleet.files import read_bytes

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Signer(Protocol):
    """Whoever can sign for one key: a file today, an agent or an external command behind the same two members."""

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
class KeyFileSigner:
    """Signs with a private key held in memory."""

    key: PrivateKey = attrs.field(repr=False)

    @property
    def public_key(self) -> PublicKey:
        """The key that verifies what `sign` returns."""
        return public_key_of(self.key)

    def sign(self, message: bytes) -> bytes:
        """64 raw bytes over `message`."""
        match self.key:
            case Ed25519PrivateKey():
                return self.key.sign(message)
            case _:
                return _sign_p256(self.key, message)


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
    r, s = utils.decode_dss_signature(signature)
    return r.to_bytes(32, "big") + min(s, _P256_ORDER - s).to_bytes(32, "big")
