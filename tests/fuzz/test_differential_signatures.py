"""Signatures against `cryptography` and stock `ssh-keygen`: who accepts what, on random and on crafted inputs.

`cryptography` (OpenSSL) checks the equation of RFC 8032 without its cofactor and refuses S beyond the order and R that
is not canonical. Beyond that we refuse keys of small or mixed order, keys that are not canonical, and R of small order:
with those somebody who is not the signer, or the signer twice, can make a signature that counts.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from evidence import sshsig
from evidence.host_key import HostKey
from evidence.signature import Algorithm, PublicKey, verify
from tests.unit import edwards25519 as curve

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
seeds = st.binary(min_size=32, max_size=32)
messages = st.binary(max_size=200)

_SECRET: Final = 123456789
_NONCE: Final = 987654321
_KEY: Final = curve.multiply(curve.BASE, _SECRET)
_COMMITMENT: Final = curve.multiply(curve.BASE, _NONCE)
_TRIES: Final = 24
"""Whether a crafted signature fits its equation is a matter of luck, one in eight at worst."""

_P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _not_canonical(points: list[curve.Point]) -> list[bytes]:
    """Encodings of y as y + p, where 255 bits hold it; and of x = 0 with the sign that zero has not."""
    raised = [y + curve.P for _, y in points if y + curve.P < 2**255]
    unsigned = [(y | 1 << 255).to_bytes(32, "little") for y in (1, curve.P - 1)]
    return [(y | sign << 255).to_bytes(32, "little") for y in raised for sign in (0, 1)] + unsigned


Encoded = tuple[int, bytes]
"""A discrete logarithm that is true up to the small-order part, and the 32 bytes."""

KEYS: Final[dict[str, list[Encoded]]] = {
    "honest": [(_SECRET, curve.encode(_KEY))],
    "of small order": [(0, curve.encode(point)) for point in curve.TORSION],
    "not canonical": [(0, raw) for raw in _not_canonical(curve.TORSION)],
    "of mixed order": [(_SECRET, curve.encode(curve.add(_KEY, point))) for point in curve.TORSION[1:]],
}
COMMITMENTS: Final[dict[str, list[Encoded]]] = {
    "honest": [(_NONCE, curve.encode(_COMMITMENT))],
    "of small order": [(0, curve.encode(point)) for point in curve.TORSION],
    "not canonical": [(0, raw) for raw in _not_canonical(curve.TORSION)],
    "of mixed order": [(_NONCE, curve.encode(curve.add(_COMMITMENT, point))) for point in curve.TORSION[1:]],
}
THEY_ACCEPT: Final = {
    ("honest", "honest"),
    ("honest", "of small order"),
    *(
        (key, commitment)
        for key in KEYS
        if key != "honest"
        for commitment in COMMITMENTS
        if commitment != "not canonical"
    ),
}
"""Kinds of key and of R with which `cryptography` accepts some of the crafted signatures."""

WE_ACCEPT: Final = {("honest", "honest")}


def _crafted(key_kind: str, commitment_kind: str) -> Iterator[tuple[bytes, bytes, bytes]]:
    for secret, key in KEYS[key_kind]:
        for nonce, commitment in COMMITMENTS[commitment_kind]:
            for number in range(_TRIES):
                message = b"%d" % number
                yield key, message, curve.sign(secret, key, nonce, commitment, message)


def _they_accept(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _we_accept(key: bytes, message: bytes, signature: bytes) -> bool:
    return verify(PublicKey.ed25519(key), message, signature)


@pytest.mark.parametrize("commitment", COMMITMENTS)
@pytest.mark.parametrize("key", KEYS)
def test_of_crafted_signatures_only_honest_ones_count_here_and_the_table_says_where_others_differ(
    key: str, commitment: str
) -> None:
    crafted = list(_crafted(key, commitment))
    assert any(_they_accept(*one) for one in crafted) == ((key, commitment) in THEY_ACCEPT)
    assert any(_we_accept(*one) for one in crafted) == ((key, commitment) in WE_ACCEPT)


@pytest.mark.parametrize("key", KEYS)
def test_s_beyond_the_order_counts_nowhere(key: str) -> None:
    for public, message, signature in _crafted(key, "honest"):
        beyond = int.from_bytes(signature[32:], "little") + curve.ORDER
        raised = signature[:32] + beyond.to_bytes(32, "little")
        assert not _they_accept(public, message, raised)
        assert not _we_accept(public, message, raised)


@settings(max_examples=60)
@given(seeds, messages)
def test_either_library_makes_the_same_ed25519_signature_and_accepts_it(seed: bytes, message: bytes) -> None:
    theirs = Ed25519PrivateKey.from_private_bytes(seed)
    ours = HostKey(seed=seed)
    assert theirs.public_key().public_bytes_raw() == ours.public
    assert theirs.sign(message) == ours.sign(message)
    assert _we_accept(ours.public, message, theirs.sign(message))


@settings(max_examples=60)
@given(seeds, messages, st.integers(0, 96 * 8 - 1))
def test_an_ed25519_key_or_signature_with_a_flipped_bit_counts_nowhere(seed: bytes, message: bytes, bit: int) -> None:
    key = HostKey(seed=seed)
    both = bytearray(key.public + key.sign(message))
    both[bit // 8] ^= 1 << bit % 8
    assert not _they_accept(bytes(both[:32]), message, bytes(both[32:]))
    assert not _we_accept(bytes(both[:32]), message, bytes(both[32:]))


@settings(max_examples=60)
@given(st.integers(1, _P256_ORDER - 1), messages, st.booleans(), st.none() | st.integers(0, 128 * 8 - 1))
def test_p256_signatures_count_in_both_libraries_or_in_none(
    secret: int, message: bytes, high: bool, bit: int | None
) -> None:
    private = ec.derive_private_key(secret, ec.SECP256R1())
    r, s = utils.decode_dss_signature(private.sign(message, ec.ECDSA(hashes.SHA256())))
    s = max(s, _P256_ORDER - s) if high else min(s, _P256_ORDER - s)
    numbers = private.public_key().public_numbers()
    both = bytearray().join(number.to_bytes(32, "big") for number in (numbers.x, numbers.y, r, s))
    if bit is not None:
        both[bit // 8] ^= 1 << bit % 8
    key, signature = bytes(both[:64]), bytes(both[64:])
    ours = verify(PublicKey(algorithm=Algorithm.ECDSA_P256, raw=key), message, signature)
    assert ours == _they_accept_p256(key, message, signature) == (bit is None)


@pytest.mark.parametrize("r", [0, 1, _P256_ORDER - 1, _P256_ORDER, _P256_ORDER + 1, 2**256 - 1])
@pytest.mark.parametrize("s", [0, 1, _P256_ORDER - 1, _P256_ORDER, _P256_ORDER + 1, 2**256 - 1])
def test_p256_numbers_at_the_edges_count_in_neither(r: int, s: int) -> None:
    numbers = ec.derive_private_key(7, ec.SECP256R1()).public_key().public_numbers()
    key = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert not verify(PublicKey(algorithm=Algorithm.ECDSA_P256, raw=key), b"x", signature)
    assert not _they_accept_p256(key, b"x", signature)


def _they_accept_p256(key: bytes, message: bytes, signature: bytes) -> bool:
    encoded = utils.encode_dss_signature(*(int.from_bytes(half, "big") for half in (signature[:32], signature[32:])))
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + key)
        public.verify(encoded, message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        return False
    return True


@needs_ssh_keygen
@settings(max_examples=12)
@given(seeds, messages, st.sampled_from(["nixfleet-journal@1", "file", "a b", "é"]))
def test_ssh_keygen_makes_what_we_accept_and_accepts_what_we_make(
    tmp_path_factory: pytest.TempPathFactory, seed: bytes, message: bytes, namespace: str
) -> None:
    place = tmp_path_factory.mktemp("sshsig")
    key = HostKey(seed=seed)
    key.write_openssh(place / "key")
    theirs = _ssh_keygen(place, "sign", "-q", "-f", "key", "-n", namespace, message=message).stdout.decode()
    sshsig.check(theirs, message, key.public, namespace=namespace)
    assert sshsig.sign(key, message, namespace=namespace) == theirs
    assert _they_take(place, theirs, message, namespace)


@needs_ssh_keygen
@settings(max_examples=25)
@given(seeds, messages, st.data())
def test_a_spoiled_ssh_signature_that_we_accept_ssh_keygen_accepts_too(
    tmp_path_factory: pytest.TempPathFactory, seed: bytes, message: bytes, data: st.DataObject
) -> None:
    place = tmp_path_factory.mktemp("sshsig")
    key = HostKey(seed=seed)
    whole = sshsig.sign(key, message)
    at = data.draw(st.integers(0, len(whole) - 1))
    spoiled = whole[:at] + data.draw(st.text("A+/=\n\rZ9- ", max_size=2)) + whole[at + data.draw(st.integers(0, 2)) :]
    try:
        sshsig.check(spoiled, message, key.public)
    except sshsig.SshsigError:
        return  # ssh-keygen is more forgiving about what surrounds a signature
    assert _they_take(place, spoiled, message, sshsig.JOURNAL_NAMESPACE)


def _they_take(place: Path, armored: str, message: bytes, namespace: str) -> bool:
    (place / "sig").write_text(armored)
    return _ssh_keygen(place, "check-novalidate", "-n", namespace, "-s", "sig", message=message).returncode == 0


def _ssh_keygen(place: Path, *options: str, message: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ssh-keygen", "-Y", *options], cwd=place, input=message, capture_output=True, timeout=30)
