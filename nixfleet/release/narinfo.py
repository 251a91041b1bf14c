"""A path's description in a binary cache, a `.narinfo` file (Nix manual), read as what it is: a stranger's text.

    StorePath: /nix/store/<hash>-<name>
    URL: nar/<file>.nar.xz
    NarHash: sha256:<base32>
    NarSize: 1234
    References: <hash>-<name> <hash>-<name> ...
    Sig: <key name>:<base64>

A description counts when one of the trusted keys signed its fingerprint, or when the path's own name is made from its
content (`CA:`), which hosts check without any key. Members that play no part in that are ignored.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Final

import attrs

from nixfleet.errors import StoppedError
from nixfleet_agent.activation.cache_keys import TrustedKeys
from state_machine.values import Closure, is_closure

LIMIT: Final = 1024 * 1024
"""The longest description there is names a few thousand references of some sixty bytes each."""

HASH_SIZE: Final = 32
"""Letters before the dash of a store path's base name."""

SIGNATURES_MAX: Final = 64
"""Each is a scalar multiplication."""

_LETTERS: Final = "0123456789abcdfghijklmnpqrsvwxyz"
_SHA256: Final = 32
_PATH_HASH: Final = 20
_SINGLE: Final = ("StorePath", "URL", "NarHash", "NarSize", "References", "CA")
_NEEDED: Final = ("StorePath", "URL", "NarHash", "NarSize")
_SIZE: Final = re.compile("[0-9]{1,19}")
_HEX: Final = re.compile("[0-9a-f]+")
_LINE: Final = re.compile("([A-Za-z][A-Za-z0-9_-]*):(?: (.*)|)")
_SIZES: Final[Mapping[str, int]] = {"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64}


@attrs.frozen(kw_only=True)
class NarInfoError(StoppedError):
    """A cache's description of a path that cannot be one."""

    problem: str

    def __str__(self) -> str:
        return f"it is no description of this path: {self.problem}; push the path to the cache again"


@attrs.frozen(kw_only=True)
class NarInfo:
    """What counts of a description. `nar_hash` is `sha256:` and base32, as it is signed; sizes are in bytes."""

    store_dir: str
    path: Closure
    url: str
    nar_hash: str
    nar_size: int
    references: tuple[Closure, ...] = ()
    signatures: tuple[str, ...] = ()
    content_address: str | None = None

    @property
    def fingerprint(self) -> bytes:
        """What signatures cover: `1;path;hash;size;references`, with whole paths in their order."""
        references = ",".join(f"{self.store_dir}/{name}" for name in sorted(set(self.references)))
        return f"1;{self.store_dir}/{self.path};{self.nar_hash};{self.nar_size};{references}".encode("ascii")

    @property
    def signers(self) -> tuple[str, ...]:
        """The names of the keys that are said to have signed it."""
        return tuple(signature.partition(":")[0] for signature in self.signatures)

    def counts(self, trusted: TrustedKeys) -> bool:
        """True when hosts that trust these keys may install the path."""
        return trusted.any_signed(self.fingerprint, self.signatures) or self.names_its_content

    @property
    def names_its_content(self) -> bool:
        """The path's name is the one that its content and references give, so that no signature is needed."""
        kind, _, rest = (self.content_address or "").partition(":")
        if kind == "text":
            return self._is_made_of("text", *_hash_of(rest), with_itself=False)
        if kind != "fixed":
            return False
        recursive = rest.startswith("r:")
        algorithm, digest = _hash_of(rest.removeprefix("r:"))
        if recursive and algorithm == "sha256":
            return self._is_made_of("source", algorithm, digest, with_itself=True)
        if digest is None or self.references:
            return False
        method = "r:" if recursive else ""
        inner = hashlib.sha256(f"fixed:out:{method}{algorithm}:{digest.hex()}:".encode()).digest()
        return self._is_named_by("output:out", inner)

    def _is_made_of(self, kind: str, algorithm: str, digest: bytes | None, *, with_itself: bool) -> bool:
        others = sorted({name for name in self.references if name != self.path})
        itself = self.path in self.references
        if algorithm != "sha256" or digest is None or (itself and not with_itself):
            return False
        of = [kind, *(f"{self.store_dir}/{name}" for name in others), *(["self"] if itself else [])]
        return self._is_named_by(":".join(of), digest)

    def _is_named_by(self, kind: str, digest: bytes) -> bool:
        name = self.path[HASH_SIZE + 1 :]
        text = f"{kind}:sha256:{digest.hex()}:{self.store_dir}:{name}"
        folded = bytearray(_PATH_HASH)
        for at, byte in enumerate(hashlib.sha256(text.encode("ascii")).digest()):
            folded[at % _PATH_HASH] ^= byte
        return self.path[:HASH_SIZE] == base32(bytes(folded))


def parse_narinfo(data: bytes, asked: Closure, store_dir: str = "/nix/store") -> NarInfo:
    """Read the description of `asked`, a path of the store at `store_dir`.

    Raises:
        NarInfoError: it is too long, no such text, lacks a member or has it twice, describes another path, or would
            lead elsewhere.
    """
    single, signatures = _members(data)
    if (missing := [name for name in _NEEDED if name not in single]) != []:
        raise NarInfoError(problem=f"it has no {missing[0]}")
    if single["StorePath"] != f"{store_dir}/{asked}":
        raise NarInfoError(problem=f"it describes {_shown(single['StorePath'])}")
    references = tuple(single.get("References", "").split())
    for name in references:
        if not is_closure(name):
            raise NarInfoError(problem=f"{_shown(name)} among its references is not the name of a store path")
    if not _SIZE.fullmatch(single["NarSize"]):
        raise NarInfoError(problem=f"its size is {_shown(single['NarSize'])}")
    algorithm, digest = _hash_of(single["NarHash"])
    if algorithm != "sha256" or digest is None:
        raise NarInfoError(problem=f"its hash is {_shown(single['NarHash'])}, not a SHA-256")
    return NarInfo(
        store_dir=store_dir,
        path=asked,
        url=_checked_url(single["URL"]),
        nar_hash=f"sha256:{base32(digest)}",
        nar_size=int(single["NarSize"]),
        references=tuple(map(Closure, references)),
        signatures=signatures,
        content_address=single.get("CA"),
    )


def base32(data: bytes) -> str:
    """Nix's base32: its own letters, the last five bits first."""
    number = int.from_bytes(data, "little")
    count = (len(data) * 8 + 4) // 5
    return "".join(_LETTERS[number >> 5 * place & 31] for place in reversed(range(count)))


def from_base32(text: str, size: int) -> bytes | None:
    """The `size` bytes that `base32` wrote so; None for any other text."""
    if len(text) != (size * 8 + 4) // 5 or not set(text) <= set(_LETTERS):
        return None
    number = 0
    for letter in text:
        number = number << 5 | _LETTERS.index(letter)
    return number.to_bytes(size, "little") if number < 1 << 8 * size else None


def _members(data: bytes) -> tuple[dict[str, str], tuple[str, ...]]:
    """The members that count, and the signatures."""
    if len(data) > LIMIT:
        raise NarInfoError(problem=f"it has more than {LIMIT} bytes")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise NarInfoError(problem="it is not plain text") from error
    single: dict[str, str] = {}
    signatures = []
    for line in text.removesuffix("\n").split("\n"):
        found = _LINE.fullmatch(line)
        if found is None or not line.isprintable():
            raise NarInfoError(problem=f"the line {_shown(line)} is no member")
        name, value = found[1], (found[2] or "")
        if name == "Sig":
            signatures.append(value)
        elif name in single:
            raise NarInfoError(problem=f"it has more than one {name}")
        elif name in _SINGLE:
            single[name] = value
    if len(signatures) > SIGNATURES_MAX:
        raise NarInfoError(problem=f"it has more than {SIGNATURES_MAX} signatures")
    return single, tuple(signatures)


def _checked_url(url: str) -> str:
    """A place below the cache's own address; nothing that leads to another machine or above it."""
    path = url.partition("?")[0]
    if not path or "://" in url or path.startswith("/") or ".." in path.split("/") or re.search(r"[\s%\\#]", path):
        raise NarInfoError(problem=f"its URL is {_shown(url)}, which is no place in the cache")
    return url


def _hash_of(text: str) -> tuple[str, bytes | None]:
    """Algorithm and bytes of a hash as Nix writes it: base32, base 16, base64 or SRI. None: it is none."""
    algorithm, separator, digest = text.partition(":")
    if not separator:
        algorithm, separator, digest = text.partition("-")
    size = _SIZES.get(algorithm)
    if size is None:
        return algorithm, None
    if len(digest) == size * 2:
        return algorithm, bytes.fromhex(digest) if _HEX.fullmatch(digest) else None
    if (found := from_base32(digest, size)) is not None:
        return algorithm, found
    try:
        raw = base64.b64decode(digest, validate=True)
    except binascii.Error:
        return algorithm, None
    return algorithm, raw if len(raw) == size else None


def _shown(text: str) -> str:
    return repr(text[:100])
