"""Signatures that count and signatures that must not, however they were made."""

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from evidence.host_key import HostKey, generate_host_key
from evidence.signature import Algorithm, PublicKey, verify
from tests.unit import edwards25519 as curve

# RFC 8032 section 7.1: secret key, message, signature.
RFC_8032 = {
    "TEST 1": (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        b"",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24"
        "655141438e7a100b",
    ),
    "TEST 2": (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        b"\x72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee"
        "b00d291612bb0c00",
    ),
    "TEST 3": (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        b"\xaf\x82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28d"
        "c027beceea1ec40a",
    ),
    "TEST SHA(abc)": (
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        hashlib.sha512(b"abc").digest(),
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17a"
        "d9bef1177331a704",
    ),
}

# RFC 6979 appendix A.2.5: P-256 with SHA-256. The first signature has a high S, the second a low one.
P256_KEY = PublicKey(
    algorithm=Algorithm.ECDSA_P256,
    raw=bytes.fromhex(
        "60FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6"
        "7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299"
    ),
)
RFC_6979 = [
    (
        b"sample",
        "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716"
        "F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8",
    ),
    (
        b"test",
        "F1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367"
        "019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083",
    ),
]
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

# RFC 8032 section 5.1.3 step 1: y at or above the prime. Together with their sign bits these are all small-order points
# that can be written in a second way.
NON_CANONICAL = [y.to_bytes(32, "little") for low in (0, 1) for y in (curve.P + low, curve.P + low | 1 << 255)] + [
    (1 | 1 << 255).to_bytes(32, "little"),
    ((curve.P - 1) | 1 << 255).to_bytes(32, "little"),
]

SCALAR = 123456789012345678901234567890
NONCE = 987654321098765432109876543210
HONEST = curve.encode(curve.multiply(curve.BASE, SCALAR))
R = curve.multiply(curve.BASE, NONCE)


def _commitments(count: int) -> list[tuple[int, bytes]]:
    made, point = [], R
    for nonce in range(NONCE, NONCE + count):
        made.append((nonce, curve.encode(point)))
        point = curve.add(point, curve.BASE)
    return made


COMMITMENTS = _commitments(16)
"""Nonces and their points, so that a chance of one in eight is not missed."""


@pytest.mark.parametrize("name", RFC_8032)
def test_the_signatures_of_rfc_8032_count_and_are_the_ones_we_make(name: str) -> None:
    seed, message, signature = RFC_8032[name]
    key = HostKey(seed=bytes.fromhex(seed))
    assert key.sign(message).hex() == signature
    assert verify(PublicKey.ed25519(key.public), message, bytes.fromhex(signature))


@pytest.mark.parametrize("name", RFC_8032)
def test_one_bit_anywhere_makes_a_signature_worthless(name: str) -> None:
    seed, message, text = RFC_8032[name]
    key, signature = PublicKey.ed25519(HostKey(seed=bytes.fromhex(seed)).public), bytes.fromhex(text)
    for at in range(64):
        assert not verify(key, message, signature[:at] + bytes([signature[at] ^ 0x40]) + signature[at + 1 :])
    assert not verify(key, message + b"\0", signature)


@pytest.mark.parametrize("size", [0, 1, 32, 63, 65, 128])
def test_a_signature_of_another_length_never_counts(size: int) -> None:
    key = generate_host_key()
    signature = (key.sign(b"m") * 2)[:size]
    assert not verify(PublicKey.ed25519(key.public), b"m", signature)
    assert not verify(P256_KEY, b"sample", signature)


def test_a_byte_of_the_message_cannot_hide_behind_the_signature() -> None:
    # The library takes the two as one text, so where one ends and the other begins is ours to check.
    key = generate_host_key()
    assert not verify(PublicKey.ed25519(key.public), b"m", key.sign(b"\0m") + b"\0")


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_key_of_another_length_verifies_nothing(size: int) -> None:
    key = generate_host_key()
    assert not verify(PublicKey.ed25519((key.public * 2)[:size]), b"m", key.sign(b"m"))


def test_the_plain_arithmetic_makes_signatures_that_count() -> None:
    commitment = curve.encode(R)
    signature = curve.sign(SCALAR, HONEST, NONCE, commitment, b"m")
    assert verify(PublicKey.ed25519(HONEST), b"m", signature)


def test_a_signature_with_s_beyond_the_order_does_not_count() -> None:
    signature = curve.sign(SCALAR, HONEST, NONCE, curve.encode(R), b"m")
    s = int.from_bytes(signature[32:], "little")
    for times in range(1, 16):
        malleated = signature[:32] + (s + times * curve.ORDER).to_bytes(32, "little")
        assert not verify(PublicKey.ed25519(HONEST), b"m", malleated)


@pytest.mark.parametrize("raw", [curve.encode(point) for point in curve.TORSION] + NON_CANONICAL, ids=bytes.hex)
def test_a_small_order_key_verifies_nothing(raw: bytes) -> None:
    # With the secret scalar 0 such a key "signs" any message for anybody who tries a few nonces.
    assert not PublicKey.ed25519(raw).is_sound
    for nonce, commitment in COMMITMENTS:
        assert not verify(PublicKey.ed25519(raw), b"m", curve.sign(0, raw, nonce, commitment, b"m"))


@pytest.mark.parametrize("raw", [curve.encode(point) for point in curve.TORSION] + NON_CANONICAL, ids=bytes.hex)
def test_a_small_order_commitment_does_not_count(raw: bytes) -> None:
    for message in (b"%d" % number for number in range(16)):
        assert not verify(PublicKey.ed25519(HONEST), message, curve.sign(SCALAR, HONEST, 0, raw, message))


@pytest.mark.parametrize("torsion", curve.TORSION[1:])
def test_a_key_outside_the_prime_order_group_verifies_nothing(torsion: curve.Point) -> None:
    # Whether these verify depends on whether the verifier multiplies by the cofactor, so two verifiers may disagree.
    raw = curve.encode(curve.add(curve.multiply(curve.BASE, SCALAR), torsion))
    for nonce, commitment in COMMITMENTS:
        assert not verify(PublicKey.ed25519(raw), b"m", curve.sign(SCALAR, raw, nonce, commitment, b"m"))


@pytest.mark.parametrize("torsion", curve.TORSION[1:])
def test_a_commitment_outside_the_prime_order_group_does_not_count(torsion: curve.Point) -> None:
    commitment = curve.encode(curve.add(R, torsion))
    assert not verify(PublicKey.ed25519(HONEST), b"m", curve.sign(SCALAR, HONEST, NONCE, commitment, b"m"))


def test_a_key_that_is_no_point_verifies_nothing() -> None:
    not_on_the_curve = next(y for y in range(2, 100) if curve.x_of(y) is None).to_bytes(32, "little")
    assert not PublicKey.ed25519(not_on_the_curve).is_sound
    assert not verify(PublicKey.ed25519(not_on_the_curve), b"m", generate_host_key().sign(b"m"))


@pytest.mark.parametrize(("message", "signature"), RFC_6979)
def test_the_signatures_of_rfc_6979_count_with_either_s(message: bytes, signature: str) -> None:
    raw = bytes.fromhex(signature)
    other_s = (P256_ORDER - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    assert verify(P256_KEY, message, raw)
    assert verify(P256_KEY, message, raw[:32] + other_s)
    assert not verify(P256_KEY, message + b"!", raw)


@pytest.mark.parametrize("r", [0, 1, P256_ORDER - 1, P256_ORDER, 2**256 - 1])
@pytest.mark.parametrize("s", [0, 1, P256_ORDER - 1, P256_ORDER, 2**256 - 1])
def test_p256_numbers_at_the_edges_do_not_count(r: int, s: int) -> None:
    assert not verify(P256_KEY, b"sample", r.to_bytes(32, "big") + s.to_bytes(32, "big"))


@pytest.mark.parametrize("raw", [bytes(64), b"\xff" * 64, P256_KEY.raw[:-1] + b"\0", P256_KEY.raw[:-1], b""])
def test_a_p256_key_off_the_curve_verifies_nothing(raw: bytes) -> None:
    key = PublicKey(algorithm=Algorithm.ECDSA_P256, raw=raw)
    assert not key.is_sound
    assert not verify(key, b"sample", bytes.fromhex(RFC_6979[0][1]))


def test_a_p256_signature_of_the_general_library_counts_once_it_is_raw() -> None:
    secret = ec.generate_private_key(ec.SECP256R1())
    numbers = secret.public_key().public_numbers()
    key = PublicKey(algorithm=Algorithm.ECDSA_P256, raw=numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big"))
    der = secret.sign(b"message", ec.ECDSA(hashes.SHA256()))
    r, s = utils.decode_dss_signature(der)
    assert verify(key, b"message", r.to_bytes(32, "big") + s.to_bytes(32, "big"))
    assert not verify(key, b"message", der)


def test_a_key_id_depends_on_the_algorithm_and_the_key() -> None:
    key = generate_host_key()
    public = PublicKey.ed25519(key.public)
    assert public.key_id == hashlib.sha256(b"ed25519" + key.public).hexdigest()[:16]
    assert public.key_id != PublicKey(algorithm=Algorithm.ECDSA_P256, raw=key.public).key_id


@pytest.mark.parametrize("text", ["", "AAAA", "not base64", "ü", "A" * 44, f"{'A' * 43}=\n", f" {'A' * 43}="])
def test_text_that_is_not_the_base64_of_a_key_is_no_key(text: str) -> None:
    assert PublicKey.from_base64(Algorithm.ED25519, text) is None


def test_a_key_is_read_from_base64_by_its_length() -> None:
    assert PublicKey.from_base64(Algorithm.ED25519, f"{'A' * 43}=") == PublicKey.ed25519(bytes(32))
    assert PublicKey.from_base64(Algorithm.ECDSA_P256, f"{'A' * 43}=") is None
