"""Every reader of this package: whatever it is given, it answers with a value or with one of its own errors."""

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evidence import sshsig
from evidence.artifacts import verify, verify_fleet, verify_manifest, verify_nonces, verify_revocations
from evidence.canonical import CanonicalError, canonicalize
from evidence.compliance import (
    ControlRule,
    ControlSelection,
    FrameworkSelection,
    aggregate,
    evaluate,
    read_evidence,
)
from evidence.documents import decode, encode
from evidence.errors import EvidenceError
from evidence.host_key import HostKey
from evidence.host_key_errors import HostKeyError
from evidence.private_key_formats import openssh_private_pem, parse_private_key
from evidence.signature import Algorithm, PublicKey
from evidence.signature import verify as verify_signature
from evidence.ssh_format import Reader, SshFormatError, openssh_public_line, parse_openssh_public, string
from evidence.tokens import mint_token, parse_token, read_token
from evidence.trust import TrustRoots, parse_trust, unusable_keys
from state_machine.values import HostName, ProbeMode, Reason, RolloutId, WallMs
from tests.property.evidence_values import attempt, documents, near_misses
from tests.unit import evidence_samples as samples
from tests.unit.test_evidence_compliance import DOCUMENT as EVIDENCE
from tests.unit.test_evidence_trust import TRUST

HOST_KEY = HostKey(seed=b"the ed25519 host key of node7 --")
TOKEN: Any = mint_token(samples.ORG, hostname=HostName("node7"), public=HOST_KEY.public, issued_at=samples.NOW)
ARTIFACTS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "any": (verify, samples.FLEET),
    "fleet": (verify_fleet, samples.FLEET),
    "manifest": (lambda *given: verify_manifest(*given, rollout=samples.ROLLOUT), samples.MANIFEST),
    "revocations": (verify_revocations, samples.REVOCATIONS),
    "nonces": (verify_nonces, samples.NONCES),
}


def _answers(read: Callable[[], Any]) -> Any:
    """What `read` gives, or None when it refused with a reason and a sentence."""
    result = attempt(read, EvidenceError)
    if not isinstance(result, EvidenceError):
        return result
    assert isinstance(result.reason, Reason)
    return None


@pytest.mark.parametrize("kind", ARTIFACTS)
@given(data=st.data())
def test_a_signed_near_miss_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    check, genuine = ARTIFACTS[kind]
    document = data.draw(near_misses(genuine) | documents)
    try:
        signed = canonicalize(document)
    except CanonicalError:
        return  # nobody can sign it, so nobody can serve it
    verified = _answers(lambda: check(signed, samples.CI.sign(signed), samples.SLOT, samples.NOW))
    if verified is not None and kind != "any":
        assert decode(type(verified.value), encode(verified.value)) == verified.value


@given(st.binary(max_size=200), st.binary(max_size=70))
def test_any_bytes_served_as_an_artifact_are_refused(data: bytes, signature: bytes) -> None:
    for check, _ in ARTIFACTS.values():
        assert _answers(partial(check, data, signature, samples.SLOT, samples.NOW)) is None


@given(st.data())
def test_no_signature_but_the_signers_verifies(data: st.DataObject) -> None:
    signed, genuine = samples.signed(samples.FLEET)
    signature = data.draw(st.binary(min_size=64, max_size=64).filter(lambda drawn: drawn != genuine))
    assert _answers(lambda: verify_fleet(signed, signature, samples.SLOT, samples.NOW)) is None


@given(
    st.sampled_from(list(Algorithm)),
    st.binary(max_size=70) | st.binary(min_size=32, max_size=32) | st.binary(min_size=64, max_size=64),
    st.binary(max_size=20),
    st.binary(max_size=70) | st.binary(min_size=64, max_size=64),
)
def test_random_keys_and_signatures_never_verify_and_never_raise(
    algorithm: Algorithm, raw: bytes, message: bytes, signature: bytes
) -> None:
    assert not verify_signature(PublicKey(algorithm=algorithm, raw=raw), message, signature)


@given(near_misses(TRUST))
def test_a_trust_file_that_is_nearly_right_is_read_or_refused(document: Any) -> None:
    try:
        data = canonicalize(document)
    except CanonicalError:
        return
    roots = _answers(lambda: parse_trust(data))
    if isinstance(roots, TrustRoots):
        assert all(isinstance(sentence, str) for sentence in unusable_keys(roots))
        assert parse_trust(canonicalize(encode(roots))) == roots


@given(st.binary(max_size=100))
def test_any_bytes_are_a_trust_file_a_token_or_evidence_or_refused(data: bytes) -> None:
    assert _answers(lambda: parse_trust(data)) is None
    assert _answers(lambda: parse_token(data)) is None
    assert _answers(lambda: read_evidence(data, data, HOST_KEY.public)) is None


@given(near_misses(TOKEN))
def test_a_token_that_is_nearly_right_is_read_or_refused(document: Any) -> None:
    token = _answers(lambda: read_token(document))
    if token is not None:
        assert token.claims.nonce not in repr(token)


@given(near_misses(EVIDENCE), st.sampled_from(list(ProbeMode)))
def test_signed_evidence_that_is_nearly_right_is_evaluated_or_refused(document: Any, mode: ProbeMode) -> None:
    try:
        data = canonicalize(document)
    except CanonicalError:
        return
    line = base64.b64encode(HOST_KEY.sign(data))
    evidence = _answers(lambda: read_evidence(data, line, HOST_KEY.public))
    if evidence is None:
        return
    for selection in (
        FrameworkSelection(framework="nis2"),
        ControlSelection(controls={"disk-encryption": ControlRule(), "missing": ControlRule()}),
    ):
        results = evaluate(evidence, selection, mode)
        assert all(result.effective_mode is mode for result in results)
        assert aggregate(results, mode) in ("pass", "fail")


OPENSSH = openssh_private_pem(HOST_KEY.seed, HOST_KEY.public, comment="root@node7")
PKCS8 = HOST_KEY.pkcs8_pem()


@given(st.sampled_from([OPENSSH, PKCS8]), st.integers(0, 500), st.integers(0, 500), st.binary(max_size=4))
def test_a_damaged_key_file_yields_the_key_that_was_in_it_or_an_error(
    whole: bytes, start: int, length: int, patch: bytes
) -> None:
    damaged = whole[:start] + patch + whole[start + length :]
    seed = attempt(lambda: parse_private_key(damaged, path=Path("key")), HostKeyError)
    # The base64 of PKCS#8 has no redundancy: damage inside it is another key.
    assert isinstance(seed, HostKeyError) or seed == HOST_KEY.seed or whole is PKCS8


@given(st.binary(max_size=300))
def test_any_bytes_in_a_key_files_armor_are_refused(body: bytes) -> None:
    for label in ("OPENSSH PRIVATE KEY", "PRIVATE KEY"):
        armored = f"-----BEGIN {label}-----\n{base64.encodebytes(body).decode()}-----END {label}-----\n"
        with pytest.raises(HostKeyError):
            parse_private_key(armored.encode(), path=Path("key"))


@given(
    st.text(max_size=100) | st.binary(max_size=60).map(lambda blob: f"ssh-ed25519 {base64.b64encode(blob).decode()}")
)
def test_any_text_is_a_public_key_line_or_refused(line: str) -> None:
    public = attempt(lambda: parse_openssh_public(line), SshFormatError)
    if not isinstance(public, SshFormatError):
        assert parse_openssh_public(openssh_public_line(public)) == public


@given(st.binary(min_size=32, max_size=32))
def test_every_public_key_comes_back_from_its_line(public: bytes) -> None:
    assert parse_openssh_public(openssh_public_line(public)) == public


@given(st.binary(max_size=40))
def test_fields_are_taken_off_any_bytes_or_refused(data: bytes) -> None:
    def fields() -> list[bytes]:
        reader, taken = Reader(data), list[bytes]()
        while sum(4 + len(field) for field in taken) < len(data):
            taken.append(reader.string())
        reader.end()
        return taken

    taken = attempt(fields, SshFormatError)
    assert isinstance(taken, SshFormatError) or b"".join(map(string, taken)) == data


@given(st.binary(max_size=50), st.text(max_size=80) | st.just(sshsig.sign(HOST_KEY, b"x")))
def test_an_ssh_signature_counts_for_its_message_only(message: bytes, armored: str) -> None:
    sshsig.check(sshsig.sign(HOST_KEY, message), message, HOST_KEY.public)
    if message != b"x":
        with pytest.raises(sshsig.SshsigError):
            sshsig.check(armored, message, HOST_KEY.public)


@given(st.binary(min_size=32, max_size=32), st.text(max_size=12))
def test_a_key_file_we_write_is_the_key_we_read(seed: bytes, comment: str) -> None:
    key = HostKey(seed=seed)
    assert parse_private_key(openssh_private_pem(seed, key.public, comment=comment), path=Path("key")) == seed
    assert parse_private_key(key.pkcs8_pem(), path=Path("key")) == seed


@given(st.text(max_size=200), st.integers(0, 2**40))
def test_a_manifest_is_never_accepted_under_another_id(rollout: str, now: int) -> None:
    genuine = samples.signed(samples.MANIFEST)
    asked = RolloutId(rollout)
    verified = _answers(lambda: verify_manifest(*genuine, samples.SLOT, WallMs(now), rollout=asked))
    assert (verified is not None) == (rollout == samples.ROLLOUT)
