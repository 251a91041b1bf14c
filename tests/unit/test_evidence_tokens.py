"""Bootstrap tokens: minted, checked, and refused for every reason there is."""

import json
from typing import Any, cast

import attrs
import pytest

from evidence.canonical import canonicalize
from evidence.documents import ShapeError, encode
from evidence.errors import EvidenceError
from evidence.host_key import HostKey, fingerprint, generate_host_key
from evidence.signature import PublicKey, decode_base64, verify
from evidence.tokens import (
    BootstrapToken,
    NonceNotAllowedError,
    TokenExpiredError,
    TokenHostError,
    TokenKeyError,
    TokenNotYetValidError,
    check_request,
    check_signature,
    check_token,
    mint_token,
    nonce_entry,
    parse_token,
    read_token,
)
from evidence.trust import KeySlot
from state_machine.intent import BootstrapNonces, Meta
from state_machine.values import HostName, Reason, WallMs
from tests.unit.evidence_samples import CI, NEXT_CI, NOW, ORG, STRANGER, P256Signer, changed, trusted
from wire.json_value import JsonObject

HOST_KEY = HostKey(seed=b"the ed25519 host key of node7 --")
NODE7 = HostName("node7")
ROOT = KeySlot(current=trusted(ORG))
DAY_MS = 24 * 3600 * 1000


def _mint(**changes: Any) -> JsonObject:
    token = mint_token(ORG, hostname=NODE7, public=HOST_KEY.public, issued_at=NOW)
    return changed(cast(dict[str, Any], token), **changes) if changes else token


def _allowing(token: BootstrapToken) -> BootstrapNonces:
    return BootstrapNonces(schema_version=1, bootstrap_nonces=(nonce_entry(token.claims),), meta=Meta(schema_version=1))


def _check(
    token: BootstrapToken, *, nonces: BootstrapNonces | None = None, root: KeySlot = ROOT, now: int = NOW
) -> None:
    check_token(token, org_root=root, nonces=nonces or _allowing(token), now_ms=WallMs(now))


def _refusal(token: BootstrapToken, **circumstances: Any) -> EvidenceError:
    with pytest.raises(EvidenceError) as caught:
        _check(token, **circumstances)
    assert token.claims.nonce not in str(caught.value)
    return caught.value


def test_a_minted_token_passes_for_the_host_it_was_minted_for() -> None:
    token = parse_token(canonicalize(_mint()))
    _check(token)
    check_request(token.claims, hostname="node7", public=HOST_KEY.public)
    assert token.claims.expires_at == NOW + DAY_MS
    assert token.claims.expected_pubkey_fingerprint == fingerprint(HOST_KEY.public)


def test_a_token_is_what_the_format_says() -> None:
    token = _mint()
    assert token.keys() == {"version", "claims", "signature"}
    claims = cast(dict[str, str], token["claims"])
    assert claims.keys() == {"hostname", "expectedPubkeyFingerprint", "issuedAt", "expiresAt", "nonce"}
    assert claims["issuedAt"] == "2026-06-01T10:05:00Z"
    assert len(bytes.fromhex(claims["nonce"])) == 16
    signature = decode_base64(cast(str, token["signature"]))
    assert signature is not None
    assert verify(PublicKey.ed25519(ORG.public), canonicalize(claims), signature)


def test_no_two_tokens_share_a_nonce() -> None:
    assert len({read_token(_mint()).claims.nonce for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("now", "error", "reason"),
    [
        (NOW - 1, TokenNotYetValidError, Reason.FUTURE_DATED),
        (NOW, None, None),
        (NOW + DAY_MS - 1, None, None),
        (NOW + DAY_MS, NonceNotAllowedError, Reason.MISSING),
    ],
)
def test_a_token_counts_from_its_issue_until_it_expires(
    now: int, error: type[EvidenceError] | None, reason: Reason | None
) -> None:
    token = read_token(_mint())
    if error is None:
        _check(token, now=now)
    else:
        refusal = _refusal(token, now=now)
        assert isinstance(refusal, error)
        assert refusal.reason is reason


def test_an_expired_token_is_expired_even_if_its_nonce_is_not() -> None:
    token = read_token(_mint())
    entry = attrs.evolve(nonce_entry(token.claims), expires_at=WallMs(NOW + 2 * DAY_MS))
    nonces = attrs.evolve(_allowing(token), bootstrap_nonces=(entry,))
    refusal = _refusal(token, nonces=nonces, now=NOW + DAY_MS)
    assert isinstance(refusal, TokenExpiredError)
    assert refusal.reason is Reason.STALE


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ([], "is not on the list"),
        ([{"nonce": "another"}], "is not on the list"),
        ([{"hostname": HostName("node8")}], "is on the list for another host"),
        ([{"expires_at": NOW}], "is on the list but expired there"),
        ([{"hostname": HostName("node8")}, {"expires_at": NOW}], "is on the list but expired there"),
        ([{"expires_at": NOW}, {}], None),
    ],
)
def test_the_nonce_has_to_be_on_the_signed_list(entries: list[dict[str, Any]], problem: str | None) -> None:
    token = read_token(_mint())
    entry = nonce_entry(token.claims, minted_by="ops")
    nonces = attrs.evolve(_allowing(token), bootstrap_nonces=tuple(attrs.evolve(entry, **each) for each in entries))
    if problem is None:
        _check(token, nonces=nonces)
    else:
        refusal = _refusal(token, nonces=nonces)
        assert refusal.reason is Reason.MISSING
        assert problem in str(refusal)


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        (KeySlot(), Reason.NO_TRUST_ROOTS),
        (KeySlot(current=trusted(STRANGER)), Reason.BAD_SIGNATURE),
        (KeySlot(current=trusted(CI), previous=trusted(NEXT_CI)), Reason.BAD_SIGNATURE),
        (KeySlot(current=P256Signer().trusted), Reason.UNSUPPORTED_ALGORITHM),
        (KeySlot(current=trusted(ORG), reject_before=WallMs(NOW + 1)), Reason.REJECTED_BEFORE),
        (KeySlot(current=trusted(ORG), reject_before=NOW), None),
        (KeySlot(current=trusted(CI), previous=trusted(ORG)), None),
        (KeySlot(current=trusted(CI), successor=trusted(ORG), retire_at=WallMs(NOW + 1)), None),
        (KeySlot(current=trusted(CI), successor=trusted(ORG), retire_at=NOW), Reason.BAD_SIGNATURE),
    ],
)
def test_only_the_org_root_vouches_for_a_host(root: KeySlot, reason: Reason | None) -> None:
    token = read_token(_mint())
    if reason is None:
        _check(token, root=root)
    else:
        assert _refusal(token, root=root).reason is reason


def test_the_root_key_of_the_other_algorithm_does_not_count_for_tokens() -> None:
    signer = P256Signer()
    token = read_token(_mint())
    forged = attrs.evolve(token, signature=signer.sign(token.signed))
    with pytest.raises(EvidenceError) as caught:
        check_signature(forged, KeySlot(current=signer.trusted, previous=trusted(ORG)), NOW)
    assert caught.value.reason is Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("claims/hostname", "node8"),
        ("claims/expectedPubkeyFingerprint", fingerprint(STRANGER.public)),
        ("claims/issuedAt", "2026-05-31T10:05:00Z"),
        ("claims/expiresAt", "2036-06-01T10:05:00Z"),
        ("claims/expiresAt", "2026-06-02T10:05:00+00:00"),  # the same instant in another spelling
        ("claims/nonce", "00112233445566778899aabbccddeeff"),
        ("claims/extra", "member"),
    ],
)
def test_a_claim_that_was_changed_is_noticed(path: str, value: Any) -> None:
    assert _refusal(read_token(_mint(path=path, value=value))).reason is Reason.BAD_SIGNATURE


def test_members_outside_the_claims_are_ignored() -> None:
    _check(read_token(_mint(path="comment", value="for the new rack")))


def test_another_version_is_refused() -> None:
    assert _refusal(read_token(_mint(path="version", value=2))).reason is Reason.SCHEMA_VERSION


def test_a_token_is_bound_to_its_host_and_its_key() -> None:
    claims = read_token(_mint()).claims
    for name in ("node8", "node7.example.org", "NODE7", ""):
        with pytest.raises(TokenHostError, match="the token is for node7"):
            check_request(claims, hostname=name, public=HOST_KEY.public)
    with pytest.raises(TokenKeyError) as caught:
        check_request(claims, hostname="node7", public=generate_host_key().public)
    assert caught.value.reason is Reason.BAD_KEY
    assert fingerprint(HOST_KEY.public) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", "1"),
        ("claims", None),
        ("claims/hostname", "../node7"),
        ("claims/hostname", ...),
        ("claims/nonce", ""),
        ("claims/nonce", "n" * 129),
        ("claims/nonce", "two words"),
        ("claims/nonce", "nül"),
        ("claims/nonce", 7),
        ("claims/issuedAt", 1780308000),
        ("claims/expiresAt", None),
        ("signature", ...),
        ("signature", "not base64!"),
        ("signature", [1]),
    ],
)
def test_a_token_of_another_shape_is_refused(path: str, value: Any) -> None:
    with pytest.raises(ShapeError) as caught:
        read_token(_mint(path=path, value=value))
    assert caught.value.reason is Reason.PARSE


@pytest.mark.parametrize("signature", ["", "AAAA", "A" * 84 + "AA=="])
def test_a_signature_of_another_length_is_a_bad_signature(signature: str) -> None:
    assert _refusal(read_token(_mint(path="signature", value=signature))).reason is Reason.BAD_SIGNATURE


def test_an_oversized_token_file_is_refused_unread() -> None:
    with pytest.raises(EvidenceError) as caught:
        parse_token(b" " * 100_000)
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_token_keeps_its_secrets_out_of_logs() -> None:
    document = _mint()
    token = read_token(document)
    assert token.claims.nonce not in repr(token)
    assert cast(str, document["signature"]) not in repr(token)
    assert str(token.signature)[2:20] not in repr(token)


def test_a_nonce_list_entry_is_what_the_list_needs() -> None:
    token = read_token(_mint())
    assert json.loads(json.dumps(encode(nonce_entry(token.claims, minted_by="ops")))) == {
        "nonce": token.claims.nonce,
        "hostname": "node7",
        "expiresAt": "2026-06-02T10:05:00Z",
        "mintedAt": "2026-06-01T10:05:00Z",
        "mintedBy": "ops",
    }
