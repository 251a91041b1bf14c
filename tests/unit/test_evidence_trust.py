"""Trust files: what is read, what is skipped, and which keys count when."""

import json
from pathlib import Path
from typing import Any

import pytest

from evidence.canonical import CanonicalError
from evidence.documents import ShapeError, encode
from evidence.errors import EvidenceError
from evidence.trust import (
    KeySlot,
    TrustedKey,
    TrustFileError,
    TrustVersionError,
    accepted_keys,
    load_trust,
    parse_trust,
    unusable_keys,
)
from state_machine.values import Reason, WallMs
from tests.unit.evidence_samples import CI, NEXT_CI, ORG, P256Signer, at, trusted

CURRENT, PREVIOUS, SUCCESSOR = trusted(CI), trusted(NEXT_CI), trusted(ORG)
TRUST: dict[str, Any] = {
    "schemaVersion": 1,
    "ciReleaseKey": {
        "current": {"algorithm": "ed25519", "public": CURRENT.public},
        "previous": None,
        "rejectBefore": "2026-05-01T00:00:00Z",
        "successor": None,
        "retireAt": None,
    },
    "cacheKeys": ["cache.example.org-1:AAAA"],
    "orgRootKey": None,
}


def _parse(document: dict[str, Any]) -> Any:
    return parse_trust(json.dumps(document).encode())


def test_a_trust_file_is_read() -> None:
    roots = _parse(TRUST)
    assert roots.ci_release_key == KeySlot(current=CURRENT, reject_before=at("2026-05-01T00:00:00Z"))
    assert roots.cache_keys == ("cache.example.org-1:AAAA",)
    assert roots.org_root_key is None


def test_what_is_written_is_read_back_the_same() -> None:
    roots = _parse(TRUST)
    assert _parse(encode(roots)) == roots


@pytest.mark.parametrize(
    "members",
    [
        {"rootCaPem": "PEM", "issuanceCaPems": ["A", "B"]},
        {"rootCAPem": "PEM", "issuanceCAPems": ["A", "B"]},
        {"rootCAPem": "PEM", "rootCaPem": None, "issuanceCAPems": ["A", "B"]},
    ],
)
def test_ca_certificates_are_read_in_either_casing(members: dict[str, Any]) -> None:
    roots = _parse(TRUST | members)
    assert (roots.root_ca_pem, roots.issuance_ca_pems) == ("PEM", ("A", "B"))


def test_a_ca_certificate_in_both_casings_is_refused() -> None:
    with pytest.raises(ShapeError, match="two names"):
        _parse(TRUST | {"rootCaPem": "X", "rootCAPem": "Y"})


def test_the_smallest_trust_file_has_no_keys() -> None:
    roots = _parse({"schemaVersion": 1, "ciReleaseKey": {}})
    assert accepted_keys(roots.ci_release_key, WallMs(0)) == ()


@pytest.mark.parametrize(
    ("slot", "now", "keys"),
    [
        (KeySlot(), 0, ()),
        (KeySlot(current=CURRENT), 0, (CURRENT,)),
        (KeySlot(previous=PREVIOUS), 0, (PREVIOUS,)),
        (KeySlot(current=CURRENT, previous=PREVIOUS), 0, (CURRENT, PREVIOUS)),
        (KeySlot(current=CURRENT, successor=SUCCESSOR), 0, (CURRENT,)),
        (KeySlot(current=CURRENT, successor=SUCCESSOR, retire_at=WallMs(10)), 9, (CURRENT, SUCCESSOR)),
        (KeySlot(current=CURRENT, successor=SUCCESSOR, retire_at=WallMs(10)), 10, (CURRENT,)),
        (
            KeySlot(current=CURRENT, previous=PREVIOUS, successor=SUCCESSOR, retire_at=WallMs(10)),
            0,
            (CURRENT, PREVIOUS, SUCCESSOR),
        ),
    ],
)
def test_the_keys_that_count_come_in_order(slot: KeySlot, now: int, keys: tuple[TrustedKey, ...]) -> None:
    assert accepted_keys(slot, WallMs(now)) == keys


@pytest.mark.parametrize(
    ("document", "error", "reason"),
    [
        (TRUST | {"schemaVersion": 2}, TrustVersionError, Reason.SCHEMA_VERSION),
        (TRUST | {"schemaVersion": "1"}, ShapeError, Reason.PARSE),
        (TRUST | {"ciReleaseKey": None}, ShapeError, Reason.PARSE),
        (TRUST | {"ciReleaseKey": []}, ShapeError, Reason.PARSE),
        (TRUST | {"ciReleaseKey": {"current": "AAAA"}}, ShapeError, Reason.PARSE),
        (TRUST | {"ciReleaseKey": {"current": {"algorithm": "ed25519"}}}, ShapeError, Reason.PARSE),
        (TRUST | {"ciReleaseKey": {"rejectBefore": "yesterday"}}, ShapeError, Reason.PARSE),
        (TRUST | {"ciReleaseKey": {"rejectBefore": 5}}, ShapeError, Reason.PARSE),
        (TRUST | {"cacheKeys": "one"}, ShapeError, Reason.PARSE),
        ({}, ShapeError, Reason.PARSE),
    ],
)
def test_a_trust_file_of_another_shape_is_refused(
    document: dict[str, Any], error: type[EvidenceError], reason: Reason
) -> None:
    with pytest.raises(error) as caught:
        _parse(document)
    assert caught.value.reason is reason


def test_a_trust_file_with_a_member_twice_is_refused() -> None:
    with pytest.raises(CanonicalError):
        parse_trust(b'{"schemaVersion":1,"schemaVersion":1,"ciReleaseKey":{}}')


def test_a_trust_file_is_loaded_from_its_path(tmp_path: Path) -> None:
    (tmp_path / "trust.json").write_text(json.dumps(TRUST))
    assert load_trust(tmp_path / "trust.json") == _parse(TRUST)


@pytest.mark.parametrize(("name", "problem"), [("missing", "no such file"), ("", "is a directory")])
def test_a_trust_file_that_cannot_be_read_says_why(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(TrustFileError, match=problem) as caught:
        load_trust(tmp_path / name)
    assert caught.value.reason is Reason.NO_TRUST_ROOTS
    assert "--trust-file" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (CURRENT, None),
        (P256Signer().trusted, None),
        (TrustedKey(algorithm="ml-dsa-65", public="AAAA"), "algorithm 'ml-dsa-65' is unknown"),
        (TrustedKey(algorithm="ED25519", public=CURRENT.public), "algorithm 'ED25519' is unknown"),
        (TrustedKey(algorithm="ed25519", public="AAAA"), "not the base64 of an ed25519 key"),
        (TrustedKey(algorithm="ecdsa-p256", public=CURRENT.public), "not the base64 of an ecdsa-p256 key"),
        (TrustedKey(algorithm="ed25519", public="A" * 43 + "="), "not a sound ed25519 key"),
        (TrustedKey(algorithm="ecdsa-p256", public="A" * 86 + "=="), "not a sound ecdsa-p256 key"),
    ],
)
def test_a_key_that_will_never_verify_anything_is_pointed_out(key: TrustedKey, problem: str | None) -> None:
    roots = _parse(TRUST | {"orgRootKey": {"previous": {"algorithm": key.algorithm, "public": key.public}}})
    found = unusable_keys(roots)
    if problem is None:
        assert found == ()
    else:
        [sentence] = found
        assert sentence.startswith("orgRootKey.previous: ")
        assert problem in sentence
