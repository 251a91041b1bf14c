"""Is this signature over these bytes by this key? Strictly: for a message and a key, one signer, one answer.

ed25519 is RFC 8032 with the doors closed that it leaves open: the key must be a canonical point of prime order, R must
be canonical and not of small order, S must be below the group order. So no key verifies what its owner did not sign,
and nobody can turn one valid signature into another. ecdsa-p256 is SHA-256 with raw R||S; a high S counts as its low
twin, as the format allows both.
"""

import base64
import binascii
import enum
import functools
import hashlib
from typing import Final

import attrs
from nacl.bindings import crypto_core_ed25519_is_valid_point, crypto_sign_open
from nacl.exceptions import BadSignatureError

SIGNATURE_SIZE: Final = 64

_FIELD: Final = 2**255 - 19
_ED25519_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_SIGN_BIT: Final = 1 << 255
_ORDER_EIGHT_Y: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y: Final = frozenset({0, 1, _FIELD - 1, _ORDER_EIGHT_Y, _FIELD - _ORDER_EIGHT_Y})
"""The y coordinates of the eight points whose order divides 8; either sign of x."""

_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Algorithm(enum.StrEnum):
    """The signature algorithms in use, as trust roots spell them."""

    ED25519 = "ed25519"
    ECDSA_P256 = "ecdsa-p256"


_KEY_SIZES: Final = {Algorithm.ED25519: 32, Algorithm.ECDSA_P256: 64}


@attrs.frozen(kw_only=True)
class PublicKey:
    """A key to verify with: 32 bytes for ed25519, X||Y of 64 bytes for ecdsa-p256."""

    algorithm: Algorithm
    raw: bytes

    @property
    def key_id(self) -> str:
        """The first 16 hex digits of SHA-256 over the algorithm's name followed by the raw key."""
        return hashlib.sha256(self.algorithm.encode("ascii") + self.raw).hexdigest()[:16]

    @classmethod
    def ed25519(cls, raw: bytes) -> "PublicKey":
        """A host key or any other ed25519 key."""
        return cls(algorithm=Algorithm.ED25519, raw=raw)

    @classmethod
    def from_base64(cls, algorithm: Algorithm, text: str) -> "PublicKey | None":
        """A key as trust roots write it; None when the text is not the base64 of a key of that length."""
        raw = decode_base64(text)
        return None if raw is None or len(raw) != _KEY_SIZES[algorithm] else cls(algorithm=algorithm, raw=raw)

    @property
    def is_sound(self) -> bool:
        """False for bytes that no honest key generator yields: such a key verifies nothing."""
        if len(self.raw) != _KEY_SIZES[self.algorithm]:
            return False
        return _ed25519_key_is_sound(self.raw) if self.algorithm is Algorithm.ED25519 else _p256_key_is_sound(self.raw)


def verify(key: PublicKey, message: bytes, signature: bytes) -> bool:
    """True when `signature` over `message` was made by the owner of `key`. Never raises, whatever the bytes are."""
    if len(signature) != SIGNATURE_SIZE or not key.is_sound:
        return False
    match key.algorithm:
        case Algorithm.ED25519:
            return _verify_ed25519(key.raw, message, signature)
        case Algorithm.ECDSA_P256:
            return _verify_p256(key.raw, message, signature)


def decode_base64(text: str) -> bytes | None:
    """Standard base64 with padding and nothing else in it; None for any other text."""
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return None


# One scalar multiplication for a key that signs thousands of entries. More places than a fleet has hosts: with fewer,
# hosts that come in turn would find theirs taken every time.
@functools.lru_cache(maxsize=32_768)
def _ed25519_key_is_sound(raw: bytes) -> bool:
    return crypto_core_ed25519_is_valid_point(raw)


def _verify_ed25519(key: bytes, message: bytes, signature: bytes) -> bool:
    # libsodium checks R and S as well unless it was built to be lenient, which cannot be seen from here.
    r, s = (int.from_bytes(half, "little") for half in (signature[:32], signature[32:]))
    r_y = r & (_SIGN_BIT - 1)
    if s >= _ED25519_ORDER or r_y >= _FIELD or r_y in _SMALL_ORDER_Y:
        return False
    try:
        crypto_sign_open(signature + message, key)
    except BadSignatureError:
        return False
    return True


def _p256_key_is_sound(raw: bytes) -> bool:
    # Imported here: 16 MB that a fleet with ed25519 keys never needs.
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + raw)
    except ValueError:
        return False
    return True


def _verify_p256(key: bytes, message: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, utils

    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    if not (0 < r < _P256_ORDER and 0 < s < _P256_ORDER):
        return False
    low_s = min(s, _P256_ORDER - s)
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + key)
    try:
        public.verify(utils.encode_dss_signature(r, low_s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True
