"""Keys: what `keygen` makes, what it never touches, how one is rotated, how a token comes to be."""

import base64
import hashlib
import json
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from nacl.signing import SigningKey, VerifyKey

from evidence.artifacts import verify_nonces, verify_revocations
from evidence.canonical import canonicalize
from evidence.signature import Algorithm
from evidence.tokens import TokenKeyError, check_request, check_token, parse_token
from evidence.trust import load_trust
from nixfleet.__main__ import run
from nixfleet.errors import ExistsError
from nixfleet.keys import keyset, rotate, tokens
from nixfleet.keys.hints import about_host
from nixfleet.release.description import Description
from nixfleet.release.publish import ClockBehindError, publish_release
from nixfleet.release.published import UnprovenError
from nixfleet.release.resolve import resolve
from nixfleet.release.sign import KeyFileSigner, SigningKeyError, load_signer
from nixfleet.release.staging import NONCES, REVOCATIONS
from state_machine.intent import Revocation
from state_machine.values import HostName, WallMs
from tests.unit.nixfleet_samples import (
    CI_KEY,
    HOST_KEYS,
    NOW,
    OTHER_KEY,
    P256_KEY,
    description,
    later,
    slot,
    write_key,
    write_trust,
)
from wire.json_value import JsonObject


def make(directory: Path, **wishes: Any) -> keyset.KeySet:
    return keyset.generate_keys(directory, keyset.Wishes(**wishes), NOW)


def certificate(keys: keyset.KeySet, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(keys.path(name).read_bytes())


# keygen


def test_every_file_is_there_and_secrets_are_private(tmp_path: Path) -> None:
    keys = make(tmp_path / "keys")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keys.directory.iterdir()}
    assert modes == {name: 0o600 if name in keyset.SECRETS else 0o644 for name in keyset.PURPOSES}
    assert stat.S_IMODE(keys.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("umask", ["0o000", "0o077"])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: str) -> None:
    code = f"import os,sys; os.umask({umask}); from nixfleet.__main__ import run; sys.exit(run(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, "keygen", "--out", str(tmp_path / "keys")], check=True)
    modes = [stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) for name in (keyset.CA_KEY, keyset.CA)]
    assert modes == [0o600, 0o644]


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    keys = make(tmp_path / "keys")
    before = {path: path.read_bytes() for path in keys.directory.iterdir()}
    with pytest.raises(ExistsError, match="exists and is never overwritten"):
        make(tmp_path / "keys")
    assert {path: path.read_bytes() for path in keys.directory.iterdir()} == before


@pytest.mark.parametrize("what", ["a file of somebody's", "a file in the way"])
def test_a_place_that_is_taken_is_left_alone(tmp_path: Path, what: str) -> None:
    place = tmp_path / "keys"
    if what == "a file in the way":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "note.txt").write_text("mine")
    with pytest.raises(ExistsError):
        make(place)
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    assert make(tmp_path / "keys").path(keyset.TRUST).exists()


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_the_trust_file_names_the_keys_that_sign(tmp_path: Path, algorithm: Algorithm) -> None:
    keys = make(tmp_path / "keys", ci_algorithm=algorithm)
    roots = load_trust(keys.path(keyset.TRUST))
    assert roots.ci_release_key.current is not None
    assert roots.org_root_key is not None
    assert roots.org_root_key.current is not None
    assert roots.ci_release_key.current.key == load_signer(keys.path(keyset.CI_RELEASE)).public_key == keys.ci_release
    assert roots.org_root_key.current.key == load_signer(keys.path(keyset.ORG_ROOT)).public_key == keys.org_root
    assert roots.cache_keys == (keys.path(keyset.CACHE_PUBLIC).read_text(),)


def test_the_cache_key_is_in_nixs_own_format(tmp_path: Path) -> None:
    keys = make(tmp_path / "keys", cache_name="cache.example.org-1")
    name, _, secret = keys.path(keyset.CACHE_SECRET).read_text().partition(":")
    raw = base64.b64decode(secret)
    assert name == "cache.example.org-1"
    assert SigningKey(raw[:32]).verify_key.encode() == raw[32:]
    assert keys.cache == f"{name}:{base64.b64encode(raw[32:]).decode()}"


def test_certificates_say_what_they_are_for(tmp_path: Path) -> None:
    keys = make(tmp_path / "keys", server_names=("cp.example.org", "10.0.0.1"), operator="kim")
    authority, server, operator = (certificate(keys, name) for name in (keyset.CA, keyset.SERVER, keyset.OPERATOR))
    for leaf, purpose in ((server, ExtendedKeyUsageOID.SERVER_AUTH), (operator, ExtendedKeyUsageOID.CLIENT_AUTH)):
        leaf.verify_directly_issued_by(authority)
        assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["cp.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    assert operator.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value == "operator"
    assert operator.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "kim"


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_tls_libraries_take_every_pair(tmp_path: Path, algorithm: Algorithm) -> None:
    keys = make(tmp_path / "keys", ca_algorithm=algorithm)
    for name in ("ca", "control-plane", "operator"):
        context = ssl.create_default_context(cafile=keys.path(keyset.CA))
        context.load_cert_chain(keys.path(f"{name}.pem"), keys.path(f"{name}-key.pem"))


def test_certificates_begin_a_little_earlier_for_clocks_that_lag(tmp_path: Path) -> None:
    made = certificate(make(tmp_path / "keys", leaf_days=10), keyset.SERVER)
    assert made.not_valid_before_utc.timestamp() * 1000 == NOW - 300_000
    assert made.not_valid_after_utc.timestamp() * 1000 == NOW + 10 * 86_400_000


def test_keygen_as_json_names_files_and_key_ids(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["keygen", "--out", str(tmp_path / "keys"), "--algorithm", "ecdsa-p256", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["ciReleaseKey"]["algorithm"] == "ecdsa-p256"
    assert sorted(told["files"]) == sorted(keyset.PURPOSES)


# Signing keys


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_keys_in_opensshs_format_sign_too(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key"
    bits = ["-b", "256"] if kind == "ecdsa" else []
    subprocess.run(["ssh-keygen", "-q", "-t", kind, *bits, "-N", "", "-f", str(path)], check=True)
    signer = load_signer(path)
    assert len(signer.sign(b"x")) == 64


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["ssh-keygen", "-q", "-t", "rsa", "-b", "1024", "-N", "", "-f"], "is neither an ed25519 nor a P-256 key"),
        (["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f"], "is encrypted"),
    ],
)
def test_keys_that_cannot_sign_here_say_why(tmp_path: Path, command: list[str], said: str) -> None:
    subprocess.run([*command, str(tmp_path / "key")], check=True)
    with pytest.raises(SigningKeyError, match=said):
        load_signer(tmp_path / "key")


def test_a_file_that_holds_no_key_says_so(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"hello")
    with pytest.raises(SigningKeyError, match=r"is not a private key file; `nixfleet keygen` makes the kind"):
        load_signer(tmp_path / "key", "CI key")


def test_ecdsa_signatures_have_the_low_s_that_other_tools_insist_on() -> None:
    half_of_the_order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551 // 2
    signatures = [P256_KEY.sign(bytes([number])) for number in range(32)]
    assert all(int.from_bytes(signature[32:], "big") <= half_of_the_order for signature in signatures)


def test_a_signer_keeps_its_secret_out_of_its_text() -> None:
    secret = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    assert "Private" not in repr(KeyFileSigner(key=secret))


# Rotation


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    """A trust file with a member that this software does not know."""
    path = make(tmp_path / "keys").path(keyset.TRUST)
    path.write_text(json.dumps({**json.loads(path.read_text()), "xFuture": 1}))
    return path


def test_a_rotation_keeps_the_old_key_until_it_is_finished(trust: Path, tmp_path: Path) -> None:
    before = load_trust(trust).ci_release_key.current
    public = rotate.rotate(trust, rotate.Role.CI_RELEASE, tmp_path / "new.pem", Algorithm.ECDSA_P256)
    after = load_trust(trust).ci_release_key
    assert after.previous == before
    assert after.current is not None
    assert after.current.key == public == load_signer(tmp_path / "new.pem").public_key
    assert rotate.finish(trust, rotate.Role.CI_RELEASE) is True
    assert load_trust(trust).ci_release_key.previous is None
    assert rotate.finish(trust, rotate.Role.CI_RELEASE) is False
    assert json.loads(trust.read_text())["xFuture"] == 1


def test_a_second_rotation_waits_for_the_end_of_the_first(trust: Path, tmp_path: Path) -> None:
    rotate.rotate(trust, rotate.Role.CI_RELEASE, tmp_path / "new.pem", Algorithm.ED25519)
    with pytest.raises(rotate.RotationPendingError, match=r"rotate --role ci-release --finish"):
        rotate.rotate(trust, rotate.Role.CI_RELEASE, tmp_path / "newer.pem", Algorithm.ED25519)
    assert not (tmp_path / "newer.pem").exists()


def test_after_a_compromise_only_the_new_key_and_new_signatures_count(trust: Path, tmp_path: Path) -> None:
    rotate.replace_compromised(trust, rotate.Role.ORG_ROOT, tmp_path / "new.pem", Algorithm.ED25519, NOW)
    after = load_trust(trust).org_root_key
    assert after is not None
    assert (after.previous, after.successor, after.reject_before) == (None, None, NOW)


def test_a_key_file_in_the_way_leaves_the_trust_file_as_it_was(trust: Path, tmp_path: Path) -> None:
    (tmp_path / "new.pem").write_text("mine")
    before = trust.read_bytes()
    with pytest.raises(ExistsError):
        rotate.rotate(trust, rotate.Role.CI_RELEASE, tmp_path / "new.pem", Algorithm.ED25519)
    assert trust.read_bytes() == before


def test_a_role_without_a_key_has_nothing_to_rotate(trust: Path, tmp_path: Path) -> None:
    document = json.loads(trust.read_text())
    trust.write_text(json.dumps({**document, "orgRootKey": None}))
    with pytest.raises(rotate.NoKeyToRotateError):
        rotate.rotate(trust, rotate.Role.ORG_ROOT, tmp_path / "new.pem", Algorithm.ED25519)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--role", "ci-release"],
        ["--role", "org-root", "--new-key", "x", "--algorithm", "ecdsa-p256"],
        ["--role", "ci-release", "--new-key", "x", "--reject-before", "2026-06-01T00:00:00Z"],
        ["--role", "ci-release", "--new-key", "x", "--finish"],
        ["--role", "cache"],
    ],
)
def test_a_rotation_that_makes_no_sense_is_a_usage_error(trust: Path, arguments: list[str]) -> None:
    before = trust.read_bytes()
    assert run(["keygen", "rotate", "--trust-file", str(trust), *arguments]) == 2
    assert trust.read_bytes() == before


# Tokens and lists


def mint_for(name: str, directory: Path, *arguments: str) -> int:
    (directory / "host.pub").write_text(f"{HOST_KEYS['node1'].openssh_public} root@{name}\n")
    keys = ["--org-root-key", str(write_key(directory / "root.pem", OTHER_KEY.key))]
    keys += ["--ci-key", str(write_key(directory / "ci.pem", CI_KEY.key))]
    place = ["--pubkey", str(directory / "host.pub"), "--nonces-file", str(directory / "out" / NONCES)]
    return run(["mint-token", "--hostname", name, *keys, *place, *arguments])


def test_a_minted_token_enrols_its_host_with_its_key_and_no_other(tmp_path: Path) -> None:
    assert mint_for("node1", tmp_path, "--out", str(tmp_path / "token.json"), "--minted-by", "kim") == 0
    assert stat.S_IMODE((tmp_path / "token.json").stat().st_mode) == 0o600
    token = parse_token((tmp_path / "token.json").read_bytes())
    listed = (tmp_path / "out" / NONCES).read_bytes(), (tmp_path / "out" / f"{NONCES}.sig").read_bytes()
    nonces = verify_nonces(*listed, slot(CI_KEY), token.claims.issued_at).value
    check_token(token, org_root=slot(OTHER_KEY), nonces=nonces, now_ms=token.claims.issued_at)
    check_request(token.claims, hostname="node1", public=HOST_KEYS["node1"].public)
    with pytest.raises(TokenKeyError):
        check_request(token.claims, hostname="node1", public=HOST_KEYS["node2"].public)
    assert [(entry.hostname, entry.minted_by) for entry in nonces.bootstrap_nonces] == [("node1", "kim")]
    assert token.claims.expires_at - token.claims.issued_at == 24 * 3_600_000


def test_how_many_may_enrol_now_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = []
    for name, count in (("node1", "1 nonce is allowed now"), ("node2", "2 nonces are allowed now")):
        assert mint_for(name, tmp_path, "--out", str(tmp_path / name)) == 0
        said.append(count in capfd.readouterr().err)
    assert said == [True, True]


def test_a_token_is_signed_over_its_canonical_claims(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert mint_for("node1", tmp_path, "--validity", "15m") == 0
    token = json.loads(capfd.readouterr().out)
    signed = canonicalize(token["claims"])
    VerifyKey(OTHER_KEY.public_key.raw).verify(signed, base64.b64decode(token["signature"]))
    fingerprint = hashlib.sha256(HOST_KEYS["node1"].public).digest()
    assert base64.b64decode(token["claims"]["expectedPubkeyFingerprint"]) == fingerprint
    assert len(bytes.fromhex(token["claims"]["nonce"])) == 16


def test_a_fingerprint_may_stand_for_the_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keys = ["--org-root-key", str(write_key(tmp_path / "root.pem", OTHER_KEY.key))]
    keys += ["--ci-key", str(write_key(tmp_path / "ci.pem", CI_KEY.key)), "--releases-dir", str(tmp_path / "out")]
    fingerprint = HOST_KEYS["node1"].fingerprint
    assert run(["mint-token", "--hostname", "node1", "--fingerprint", fingerprint, *keys]) == 0
    assert json.loads(capfd.readouterr().out)["claims"]["expectedPubkeyFingerprint"] == fingerprint
    ssh_style = subprocess.run(
        ["ssh-keygen", "-lf", "-"], input=HOST_KEYS["node1"].openssh_public, capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert run(["mint-token", "--hostname", "node1", "--fingerprint", ssh_style, *keys]) == 2
    assert "which is not what ssh-keygen -l prints" in capfd.readouterr().err


def test_a_token_is_never_written_over_another_and_leaves_no_nonce_then(tmp_path: Path) -> None:
    (tmp_path / "token.json").write_text("old")
    assert mint_for("node1", tmp_path, "--out", str(tmp_path / "token.json")) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../etc", "-x", "a b", ""])
def test_a_name_that_cannot_be_a_hosts_gets_no_token(tmp_path: Path, name: str) -> None:
    assert mint_for(name, tmp_path) == 2


def test_an_org_root_of_another_algorithm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tokens.OrgRootAlgorithmError, match="ecdsa-p256"):
        tokens.mint("node1", "x", P256_KEY, NOW, 1, None)


def test_expired_nonces_are_dropped_when_one_is_added(tmp_path: Path) -> None:
    path = tmp_path / NONCES
    for name, hours in (("a", 1), ("b", 5)):
        entry = tokens.mint(name, "x", OTHER_KEY, NOW, hours * 3_600_000, None).entry
        tokens.allow_nonce(path, entry, CI_KEY, NOW, None)
    entry = tokens.mint("c", "x", OTHER_KEY, later(2), 3_600_000, None).entry
    assert tokens.allow_nonce(path, entry, CI_KEY, later(2), None) == 2
    names = [entry["hostname"] for entry in json.loads(path.read_bytes())["bootstrapNonces"]]
    assert names == ["b", "c"]


def test_a_list_that_somebody_else_signed_is_not_added_to(tmp_path: Path) -> None:
    path = tmp_path / NONCES
    entry = tokens.mint("a", "x", OTHER_KEY, NOW, 3_600_000, None).entry
    tokens.allow_nonce(path, entry, OTHER_KEY, NOW, None)
    before = path.read_bytes()
    with pytest.raises(UnprovenError):
        tokens.allow_nonce(path, entry, CI_KEY, NOW, None)
    assert path.read_bytes() == before
    assert tokens.allow_nonce(path, entry, CI_KEY, NOW, slot(CI_KEY, OTHER_KEY)) == 2


def test_a_list_is_never_signed_earlier_than_before(tmp_path: Path) -> None:
    entry = tokens.mint("a", "x", OTHER_KEY, NOW, 3_600_000, None).entry
    tokens.allow_nonce(tmp_path / NONCES, entry, CI_KEY, later(1), None)
    with pytest.raises(ClockBehindError, match=r"bootstrap-nonces\.json was signed at 2026-06-01T11:00:00Z"):
        tokens.allow_nonce(tmp_path / NONCES, entry, CI_KEY, NOW, None)


def revocation(host: str, at: WallMs) -> Revocation:
    return Revocation(hostname=HostName(host), not_before=at, reason="lost", revoked_by="kim")


def test_a_revocation_is_signed_sorted_and_never_moved_back(tmp_path: Path) -> None:
    path = tmp_path / REVOCATIONS
    for host, at in (("b", later(1)), ("a", NOW), ("b", NOW), ("a", later(2))):
        tokens.revoke(path, revocation(host, at), CI_KEY, later(3), None)
    listed = verify_revocations(path.read_bytes(), (tmp_path / f"{path.name}.sig").read_bytes(), slot(CI_KEY), NOW)
    assert [(entry.hostname, entry.not_before) for entry in listed.value.revocations] == [
        ("a", later(2)),
        ("b", later(1)),
    ]


def test_revoking_says_since_when_and_where(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    key = write_key(tmp_path / "ci.pem", CI_KEY.key)
    words = ["revoke", "node1", "--ci-key", str(key), "--releases-dir", str(tmp_path / "out")]
    assert run([*words, "--not-before", "2026-06-01T00:00:00Z"]) == 0
    assert capfd.readouterr().out == (
        f"node1: certificates issued before 2026-06-01T00:00:00Z are revoked ({tmp_path}/out/revocations.json)\n"
    )
    assert run(["revoke", "../x", *words[2:]]) == 2


# What else is looked at before anything is signed


@pytest.mark.parametrize(
    "words", [["revoke", "node1"], ["release", "--refresh"], ["mint-token", "--hostname", "node1"]]
)
def test_a_key_that_nobody_trusts_signs_nothing(
    tmp_path: Path, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    trust = write_trust(tmp_path / "trust.json", OTHER_KEY)
    keys = ["--ci-key", str(write_key(tmp_path / "ci.pem", CI_KEY.key)), "--trust-file", str(trust)]
    more = ["--org-root-key", str(write_key(tmp_path / "root.pem", OTHER_KEY.key)), "--fingerprint", "A" * 43 + "="]
    out = ["--releases-dir", str(tmp_path / "out")]
    assert run([*words, *keys, *out, *(more if words[0] == "mint-token" else [])]) == 2
    said = f"the CI release key {CI_KEY.public_key.key_id} is not in `ciReleaseKey` of the trust file"
    assert said in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_that_the_fleet_does_not_have_is_noted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    publish_release(description(), CI_KEY, tmp_path / "out", "ab", NOW)
    key = write_key(tmp_path / "ci.pem", CI_KEY.key)
    words = ["--ci-key", str(key), "--releases-dir", str(tmp_path / "out")]
    assert run(["revoke", "nod1", *words]) == 0
    assert "note: the published fleet has no host nod1; did you mean node1?" in capfd.readouterr().err
    assert run(["revoke", "node1", *words]) == 0
    assert capfd.readouterr().err == ""


def test_a_token_for_another_key_than_the_declared_one_is_noted() -> None:
    fleet = documents_of(description())
    expected = HOST_KEYS["node1"].fingerprint
    assert about_host(fleet, "node1", expected) is None
    assert about_host(fleet, "node2", expected) == (
        "the published fleet declares another pubkey for node2: enrolling will be refused"
    )
    assert about_host(fleet, "node9", expected) == "the published fleet has no host node9; did you mean node3?"
    assert about_host({"hosts": {"a": {}}}, "a", expected) == (
        "the published fleet declares no pubkey for a: it cannot enrol before a release does"
    )
    assert about_host(None, "a", expected) is None


def documents_of(wanted: Description) -> JsonObject:
    fleet: JsonObject = json.loads(resolve(wanted, commit="ab", signed_at=NOW).fleet_bytes)
    return fleet
