"""Keys of a directory cache, in the form that `nix key generate-secret` writes: `name:base64`."""

import base64
import binascii
from collections.abc import Iterable, Mapping

import attrs
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from nixfleet_agent.activation.errors import CacheKeyError


@attrs.frozen(kw_only=True)
class CacheKey:
    """A secret cache key: the 32-byte seed of an ed25519 key, and the name under which hosts trust it."""

    name: str
    seed: bytes = attrs.field(repr=False)

    @classmethod
    def generate(cls, name: str) -> "CacheKey":
        """A new key from the system's randomness."""
        return cls(name=name, seed=bytes(SigningKey.generate()))

    @classmethod
    def parse(cls, text: str) -> "CacheKey":
        """Read `name:base64` of seed and public key, 64 bytes. Raises `CacheKeyError`."""
        name, key = _split(text)
        if len(key) != 64:
            raise CacheKeyError(name=name, cause=f"a secret key has 64 bytes, not {len(key)}")
        return cls(name=name, seed=key[:32])

    @property
    def secret(self) -> str:
        """As Nix writes a secret key."""
        signing = SigningKey(self.seed)
        return f"{self.name}:{base64.b64encode(self.seed + bytes(signing.verify_key)).decode()}"

    @property
    def public(self) -> str:
        """As Nix writes a public key, for `trusted-public-keys`."""
        return f"{self.name}:{base64.b64encode(bytes(SigningKey(self.seed).verify_key)).decode()}"

    def sign(self, message: bytes) -> str:
        """`name:base64` of the ed25519 signature (RFC 8032)."""
        return f"{self.name}:{base64.b64encode(SigningKey(self.seed).sign(message).signature).decode()}"


@attrs.frozen(kw_only=True)
class TrustedKeys:
    """The public keys that a store accepts, by name."""

    keys: Mapping[str, bytes] = attrs.field(factory=dict)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "TrustedKeys":
        """Read `name:base64` of 32 bytes each. Raises `CacheKeyError`."""
        keys: dict[str, bytes] = {}
        for text in texts:
            name, key = _split(text)
            if len(key) != 32:
                raise CacheKeyError(name=name, cause=f"a public key has 32 bytes, not {len(key)}")
            keys[name] = key
        return cls(keys=keys)

    def any_signed(self, message: bytes, signatures: Iterable[str]) -> bool:
        """At least one signature is by a key of ours and covers exactly `message`; unreadable ones do not count."""
        return any(self._signed(message, text) for text in signatures)

    def _signed(self, message: bytes, text: str) -> bool:
        try:
            name, signature = _split(text)
            VerifyKey(self.keys[name]).verify(message, signature)
        except (CacheKeyError, KeyError, BadSignatureError, ValueError):
            return False
        return True


def _split(text: str) -> tuple[str, bytes]:
    name, colon, encoded = text.strip().partition(":")
    if not colon or not name:
        raise CacheKeyError(name=name[:64], cause="there is no colon after a name")
    try:
        return name, base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CacheKeyError(name=name, cause=str(error)) from error
