"""Every parser of what others wrote, as one table: the same rows are replayed, fuzzed and fed what is too large.

A row's `read` takes the bytes as they would arrive and either returns or raises one of `refusals`; anything else that
comes out of it is a finding. Where only signed documents get far, `read` signs what it is given, so that the fuzzer
sees behind the signature as well as in front of it.
"""

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from control_plane.errors import BadRequestError, RequestRefusedError
from control_plane.guards import BODY_LIMIT
from evidence import sshsig
from evidence.artifacts import Verified, verify, verify_fleet, verify_manifest, verify_nonces, verify_revocations
from evidence.canonical import ARTIFACT_LIMIT, CanonicalError, canonicalize, parse
from evidence.compliance import (
    ControlRule,
    ControlSelection,
    FrameworkSelection,
    aggregate,
    check_current,
    evaluate,
    read_evidence,
)
from evidence.documents import decode, encode
from evidence.errors import EvidenceError
from evidence.host_key import FILE_LIMIT, HostKey
from evidence.host_key_errors import HostKeyError
from evidence.private_key_formats import openssh_private_pem, parse_private_key
from evidence.ssh_format import SshFormatError, openssh_public_line, parse_openssh_public
from evidence.tokens import TOKEN_LIMIT, check_token, parse_token
from evidence.trust import TRUST_FILE_LIMIT, KeySlot, accepted_keys, parse_trust, unusable_keys
from nixfleet.release.narinfo import LIMIT as NARINFO_LIMIT
from nixfleet.release.narinfo import NarInfoError, parse_narinfo
from nixfleet.release.signing_command import ANSWER_MAX, parse_public_key
from nixfleet_agent.activation.cache_keys import TrustedKeys
from nixfleet_agent.desk import AnswerError
from nixfleet_agent.health_checks import FILE_LIMIT as HEALTH_CHECKS_LIMIT
from nixfleet_agent.identity import CERTIFICATE_LIMIT
from nixfleet_agent.journal.errors import JournalError
from nixfleet_agent.probes.declaration import HealthChecksError, read_health_checks
from nixfleet_agent.transport import RESPONSE_LIMIT, TransportError
from nixfleet_agent.workers.intent import SIGNATURE_LIMIT
from state_machine.values import HostName, ProbeMode, WallMs
from tests.fuzz import agent_side, control_plane_side, damaged_journals
from tests.fuzz.certificate_samples import armor_body, in_armor
from tests.unit import evidence_samples as samples
from tests.unit import narinfo_samples
from tests.unit.test_evidence_compliance import COLLECTED
from tests.unit.test_evidence_compliance import DOCUMENT as EVIDENCE
from tests.unit.test_evidence_trust import TRUST
from wire.errors import WireError
from wire.timestamps import TimestampError, format_rfc3339, parse_rfc3339

HOST_KEY: Final = HostKey(seed=b"the ed25519 host key of node7 --")
_CLAIMS: Final = {
    "hostname": "node7",
    "expectedPubkeyFingerprint": HOST_KEY.fingerprint,
    "issuedAt": samples.SIGNED_AT,
    "expiresAt": "2026-06-02T00:00:00Z",
    "nonce": samples.NONCES["bootstrapNonces"][0]["nonce"],
}
TOKEN: Final[Any] = {
    "version": 1,
    "claims": _CLAIMS,
    "signature": base64.b64encode(samples.ORG.sign(canonicalize(_CLAIMS))).decode(),
}
_ORG: Final = KeySlot(current=samples.trusted(samples.ORG))
MESSAGE: Final = b"what was signed"
SSHSIG_LIMIT: Final = 64 * 1024
TIMESTAMP_LIMIT: Final = RESPONSE_LIMIT
"""It comes inside another document."""


@attrs.frozen(kw_only=True)
class Target:
    """One parser. `limit` is the size of the largest input it documents; `genuine` are inputs that it takes."""

    name: str
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    limit: int
    genuine: tuple[bytes, ...]
    is_json: bool = True


def answer(target: Target, data: bytes) -> object:
    """What the parser makes of `data`: a value, or its refusal, found to explain itself in a few lines."""
    try:
        return target.read(data)
    except target.refusals as refusal:
        explained = refusal
    assert 0 < len(str(explained)) <= 16 * 1024, f"{type(explained).__name__} says {len(str(explained))} characters"
    return explained


def _canonical(data: bytes) -> object:
    canonical = canonicalize(parse(data))
    assert canonicalize(parse(canonical)) == canonical
    return canonical


def _artifact(check: Callable[..., Verified[Any]]) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        try:
            signature = samples.CI.sign(canonicalize(parse(data)))
        except CanonicalError:
            signature = bytes(64)
        verified = check(data, signature, samples.SLOT, samples.NOW)
        if check is not verify:
            assert decode(type(verified.value), encode(verified.value)) == verified.value
        return verified

    return read


def _signature_file(data: bytes) -> object:
    document = canonicalize(samples.MANIFEST)
    return verify(document, data, samples.SLOT, samples.NOW)


def _trust(data: bytes) -> object:
    roots = parse_trust(data)
    accepted_keys(roots.ci_release_key, samples.NOW)
    assert all(isinstance(sentence, str) for sentence in unusable_keys(roots))
    return roots


def _token(data: bytes) -> object:
    token = parse_token(data)
    another = attrs.evolve(token, claims=attrs.evolve(token.claims, nonce="another"))
    assert repr(token) == repr(another), "the secret can be read off it"
    nonces = verify_nonces(*samples.signed(samples.NONCES), samples.SLOT, samples.NOW).value
    check_token(token, org_root=_ORG, nonces=nonces, now_ms=samples.NOW)
    return token


def _evidence(data: bytes) -> object:
    try:
        signed = HOST_KEY.sign(canonicalize(parse(data)))
    except CanonicalError:
        signed = b""
    evidence = read_evidence(data, base64.b64encode(signed) + b"\n", HOST_KEY.public)
    check_current(evidence, host=HostName("node7"), not_before=COLLECTED, now=WallMs(COLLECTED + 1000))
    controls = ControlSelection(controls={"disk-encryption": ControlRule(mode=ProbeMode.OBSERVE)})
    for selection in (FrameworkSelection(framework="nis2"), controls):
        for mode in ProbeMode:
            aggregate(evaluate(evidence, selection, mode), mode)
    return evidence


def _evidence_signature(data: bytes) -> object:
    return read_evidence(json.dumps(EVIDENCE).encode(), data, HOST_KEY.public)


def _health_checks(data: bytes) -> object:
    found: list[object] = []
    refused: HealthChecksError | None = None
    for platform in ("linux", "darwin"):
        try:
            found.append(read_health_checks(data, platform=platform, exists=lambda path: False))
        except HealthChecksError as error:
            refused = error
    if not found and refused is not None:
        raise refused
    return found


def _host_key(data: bytes) -> object:
    return HostKey(seed=parse_private_key(data, path=Path("key")))


def _host_key_in_armor(data: bytes) -> object:
    label = "OPENSSH PRIVATE KEY" if data.startswith(b"openssh") else "PRIVATE KEY"
    return parse_private_key(in_armor(label, data), path=Path("key"))


def _public_line(data: bytes) -> object:
    public = parse_openssh_public(data.decode("utf-8", "replace"))
    assert parse_openssh_public(openssh_public_line(public)) == public
    return public


def _sshsig(data: bytes) -> object:
    sshsig.check(data.decode("utf-8", "replace"), MESSAGE, HOST_KEY.public)
    return data


def _sshsig_in_armor(data: bytes) -> object:
    sshsig.check(in_armor("SSH SIGNATURE", data).decode(), MESSAGE, HOST_KEY.public)
    return data


def _narinfo(data: bytes) -> object:
    """Signed after it was read, so that the fuzzer sees what is signed as well."""
    info = parse_narinfo(data, narinfo_samples.described(narinfo_samples.DEP), narinfo_samples.STORE)
    info.counts(narinfo_samples.TRUSTED)
    signed = attrs.evolve(info, signatures=(narinfo_samples.KEY.sign(info.fingerprint),))
    assert signed.counts(TrustedKeys.parse([narinfo_samples.KEY.public]))
    return info


def _printed_key(data: bytes) -> object:
    """What a signing command printed for its public key: a key, or None."""
    key = parse_public_key(data)
    assert key is None or (key.is_sound in (True, False) and len(key.raw) in (32, 64))
    return key


def _timestamp(data: bytes) -> object:
    at = parse_rfc3339(data.decode("utf-8", "replace"))
    assert parse_rfc3339(format_rfc3339(at)) == at
    return at


def _json(*documents: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(document, indent=1).encode() for document in documents)


_CHECKS: Final = {
    "disk": {"kind": "command", "command": "df", "timeoutSecs": 3, "runOnce": True, "mode": "observe"},
    "web": {"kind": "http", "url": "https://[::1]:80/x", "expectStatus": 204},
    "port": {"kind": "tcp", "port": 22, "intervalSeconds": 0.5},
    "units": {"kind": "systemd", "units": ["sshd.service"]},
    "controls": {"kind": "evidence", "framework": "nis2", "controlOverrides": {"a": {"mode": "observe"}}},
}
_OLD_CHECKS: Final = {
    "systemd": [{"units": ["sshd"]}],
    "launchd": [],
    "http": [{"url": "http://x/"}],
    "mode": "enforce",
}
_OPENSSH: Final = openssh_private_pem(HOST_KEY.seed, HOST_KEY.public, comment="root@node7")
_PKCS8: Final = HOST_KEY.pkcs8_pem()
_PEM_PUBLIC: Final = (
    derive_private_key(0xC0FFEE, SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
)
_SSHSIG: Final = sshsig.sign(HOST_KEY, MESSAGE)
_NUMBERS: Final = b'{"a":[1e-7,0.1,-0.0,1.0,9007199254740991,1E21],"\\u00e9":"\\ud83d\\ude00\xc3\xa9","":{"b":[]}}'

TARGETS: Final[Mapping[str, Target]] = {
    target.name: target
    for target in (
        Target(
            name="canonical-json",
            read=_canonical,
            refusals=(CanonicalError,),
            limit=ARTIFACT_LIMIT,
            genuine=(_NUMBERS, *_json(samples.FLEET)),
        ),
        *(
            Target(
                name=name,
                read=_artifact(check),
                refusals=(EvidenceError,),
                limit=ARTIFACT_LIMIT,
                genuine=_json(document),
            )
            for name, check, document in (
                ("artifact", verify, samples.FLEET),
                ("fleet", verify_fleet, samples.FLEET),
                ("manifest", lambda *given: verify_manifest(*given, rollout=samples.ROLLOUT), samples.MANIFEST),
                ("revocations", verify_revocations, samples.REVOCATIONS),
                ("nonces", verify_nonces, samples.NONCES),
            )
        ),
        Target(
            name="artifact-signature",
            read=_signature_file,
            refusals=(EvidenceError,),
            limit=SIGNATURE_LIMIT,
            genuine=(samples.CI.sign(canonicalize(samples.MANIFEST)),),
            is_json=False,
        ),
        Target(name="trust", read=_trust, refusals=(EvidenceError,), limit=TRUST_FILE_LIMIT, genuine=_json(TRUST)),
        Target(name="token", read=_token, refusals=(EvidenceError,), limit=TOKEN_LIMIT, genuine=_json(TOKEN)),
        Target(
            name="evidence",
            read=_evidence,
            refusals=(EvidenceError,),
            limit=ARTIFACT_LIMIT,
            genuine=_json(EVIDENCE),
        ),
        Target(
            name="evidence-signature",
            read=_evidence_signature,
            refusals=(EvidenceError,),
            limit=4096,
            genuine=(base64.b64encode(HOST_KEY.sign(canonicalize(EVIDENCE))),),
            is_json=False,
        ),
        Target(
            name="health-checks",
            read=_health_checks,
            refusals=(HealthChecksError,),
            limit=HEALTH_CHECKS_LIMIT,
            genuine=_json(_CHECKS, _OLD_CHECKS),
        ),
        Target(
            name="host-key",
            read=_host_key,
            refusals=(HostKeyError,),
            limit=FILE_LIMIT,
            genuine=(_OPENSSH, _PKCS8),
            is_json=False,
        ),
        Target(
            name="host-key-body",
            read=_host_key_in_armor,
            refusals=(HostKeyError,),
            limit=FILE_LIMIT * 3 // 4,
            genuine=(armor_body(_OPENSSH), armor_body(_PKCS8)),
            is_json=False,
        ),
        Target(
            name="public-key-line",
            read=_public_line,
            refusals=(SshFormatError,),
            limit=BODY_LIMIT,
            genuine=(HOST_KEY.openssh_public.encode() + b" root@node7",),
            is_json=False,
        ),
        Target(
            name="sshsig",
            read=_sshsig,
            refusals=(sshsig.SshsigError,),
            limit=SSHSIG_LIMIT,
            genuine=(_SSHSIG.encode(),),
            is_json=False,
        ),
        Target(
            name="sshsig-body",
            read=_sshsig_in_armor,
            refusals=(sshsig.SshsigError,),
            limit=SSHSIG_LIMIT,
            genuine=(armor_body(_SSHSIG.encode()),),
            is_json=False,
        ),
        Target(
            name="narinfo",
            read=_narinfo,
            refusals=(NarInfoError,),
            limit=NARINFO_LIMIT,
            genuine=(narinfo_samples.DEP, narinfo_samples.DEP + b"CA: fixed:r:sha256:" + b"0" * 52 + b"\n"),
            is_json=False,
        ),
        Target(
            name="printed-key",
            read=_printed_key,
            refusals=(),
            limit=ANSWER_MAX,
            genuine=(_PEM_PUBLIC, HOST_KEY.openssh_public.encode(), base64.b64encode(HOST_KEY.public)),
            is_json=False,
        ),
        Target(
            name="timestamp",
            read=_timestamp,
            refusals=(TimestampError,),
            limit=TIMESTAMP_LIMIT,
            genuine=(b"2026-06-01T10:30:00Z", b"0001-01-01T00:00:00.123456789+00:00", b"2024-02-29t23:59:59-23:59"),
            is_json=False,
        ),
        *(
            Target(
                name=name,
                read=read,
                refusals=(AnswerError, TransportError),
                limit=RESPONSE_LIMIT,
                genuine=_json(*documents),
            )
            for name, read, documents in (
                ("dispatch-answer", agent_side.dispatch_answer, agent_side.DISPATCHES),
                ("heartbeat-answer", agent_side.heartbeat_answer, agent_side.HEARTBEAT_REPLIES),
                ("fact-answer", agent_side.fact_answer, agent_side.REFUSALS),
            )
        ),
        Target(
            name="enrol-answer",
            read=agent_side.enrol_answer,
            refusals=(AnswerError, *agent_side.CERTIFICATE_REFUSALS),
            limit=RESPONSE_LIMIT,
            genuine=_json(*agent_side.ENROL_ANSWERS),
        ),
        Target(
            name="certificate",
            read=agent_side.certificate,
            refusals=agent_side.CERTIFICATE_REFUSALS,
            limit=CERTIFICATE_LIMIT,
            genuine=(agent_side.CERTIFICATE,),
            is_json=False,
        ),
        Target(
            name="certificate-body",
            read=agent_side.certificate_body,
            refusals=agent_side.CERTIFICATE_REFUSALS,
            limit=CERTIFICATE_LIMIT * 3 // 4,
            genuine=(agent_side.CERTIFICATE_BODY,),
            is_json=False,
        ),
        *(
            Target(
                name=name,
                read=read,
                refusals=(RequestRefusedError,),
                limit=BODY_LIMIT,
                genuine=_json(*documents),
            )
            for name, read, documents in (
                ("fact", control_plane_side.fact, control_plane_side.ENVELOPES),
                ("heartbeat", control_plane_side.heartbeat, control_plane_side.HEARTBEATS),
                ("enrol-request", control_plane_side.enrol, control_plane_side.enrol_requests(TOKEN)),
                ("bootstrap-report", control_plane_side.report, control_plane_side.reports(TOKEN)),
            )
        ),
        Target(
            name="csr",
            read=control_plane_side.csr,
            refusals=(BadRequestError,),
            limit=BODY_LIMIT,
            genuine=(control_plane_side.CSR.encode(),),
            is_json=False,
        ),
        Target(
            name="csr-body",
            read=control_plane_side.csr_body,
            refusals=(BadRequestError,),
            limit=BODY_LIMIT * 3 // 4,
            genuine=(control_plane_side.CSR_BODY,),
            is_json=False,
        ),
        Target(
            name="journal-file",
            read=damaged_journals.patched_file,
            refusals=(JournalError,),
            limit=64 * 1024,
            genuine=damaged_journals.PATCHES,
            is_json=False,
        ),
        Target(
            name="journal-entry",
            read=damaged_journals.signed_entry,
            refusals=(JournalError, WireError),
            limit=1024 * 1024,
            genuine=damaged_journals.ENTRIES,
        ),
        Target(
            name="journal-mark",
            read=damaged_journals.signed_mark,
            refusals=(JournalError,),
            limit=1024 * 1024,
            genuine=damaged_journals.MARKS,
        ),
    )
}
