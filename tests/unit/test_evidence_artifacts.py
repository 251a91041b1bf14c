"""Signed artifacts: what is accepted, and for every way to be refused its reason and its place in the order."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from evidence.artifacts import (
    Verified,
    verify,
    verify_fleet,
    verify_manifest,
    verify_nonces,
    verify_revocations,
)
from evidence.canonical import canonicalize, digest
from evidence.documents import decode, encode
from evidence.errors import EvidenceError
from evidence.signature import Algorithm, PublicKey
from evidence.trust import KeySlot, TrustedKey
from state_machine.intent import (
    BootstrapNonces,
    Budget,
    ChannelEdge,
    Fleet,
    FleetChannel,
    FleetHost,
    HealthGate,
    HostEdge,
    Manifest,
    Pin,
    Revocations,
    Selector,
)
from state_machine.values import Channel, Closure, FailurePolicy, HostName, Reason, RolloutId, WallMs
from tests.unit.evidence_samples import (
    CI,
    CLOSURE,
    FLEET,
    MANIFEST,
    META,
    NEXT_CI,
    NONCES,
    NOW,
    REVOCATIONS,
    ROLLOUT,
    SIGNED_AT,
    SLOT,
    STRANGER,
    P256Signer,
    at,
    changed,
    signed,
    trusted,
)

EDGE, NODE7, NODE8 = Channel("edge"), HostName("node7"), HostName("node8")
UNKNOWN_ALGORITHM = TrustedKey(algorithm="ml-dsa-65", public="AAAA")
UNREADABLE = TrustedKey(algorithm="ed25519", public="AAAA")


def _manifest(data: bytes, signature: bytes, slot: KeySlot, now: WallMs) -> Verified[Manifest]:
    return verify_manifest(data, signature, slot, now, rollout=ROLLOUT)


KINDS: list[tuple[Callable[..., Verified[Any]], dict[str, Any], type]] = [
    (verify_fleet, FLEET, Fleet),
    (_manifest, MANIFEST, Manifest),
    (verify_revocations, REVOCATIONS, Revocations),
    (verify_nonces, NONCES, BootstrapNonces),
]


def _reason(document: dict[str, Any], slot: KeySlot = SLOT, check: Callable[..., Any] = verify_fleet) -> Reason:
    with pytest.raises(EvidenceError) as caught:
        check(*signed(document), slot, NOW)
    assert 0 < len(caught.value.detail) < 400
    return caught.value.reason


# What is accepted


@pytest.mark.parametrize(("check", "document", "kind"), KINDS)
def test_a_genuine_artifact_is_verified(
    check: Callable[..., Verified[Any]], document: dict[str, Any], kind: type
) -> None:
    verified = check(*signed(document), SLOT, NOW)
    assert isinstance(verified.value, kind)
    assert verified.digest == digest(canonicalize(document))
    assert verified.key_id == PublicKey.ed25519(CI.public).key_id
    assert verified.algorithm == "ed25519"
    assert verified.signed_at == at(SIGNED_AT)


@pytest.mark.parametrize(("check", "document", "kind"), KINDS)
def test_what_is_written_is_read_back_the_same(
    check: Callable[..., Verified[Any]], document: dict[str, Any], kind: type
) -> None:
    value = check(*signed(document), SLOT, NOW).value
    assert decode(kind, json.loads(canonicalize(encode(value)))) == value


def test_a_fleet_is_read_member_by_member() -> None:
    fleet = verify_fleet(*signed(FLEET), SLOT, NOW).value
    assert fleet.hosts[NODE7] == FleetHost(
        system="x86_64-linux",
        channel=EDGE,
        tags=("web", "eu"),
        closure_hash=Closure(CLOSURE),
        pin=Pin(commit="00ff", reason="disk", expires_at=at("2026-07-01T00:00:00Z")),
    )
    assert fleet.hosts[NODE8] == FleetHost(system="aarch64-darwin", channel=EDGE)
    assert fleet.channels[EDGE] == FleetChannel(rollout_policy="careful", freshness_window=120)
    policy = fleet.rollout_policies["careful"]
    assert policy.on_health_failure is FailurePolicy.ROLLBACK_AND_HALT
    assert policy.waves[0].selector == Selector(tags=("web",))
    assert policy.health_gate.systemd_failed_units is not None
    assert [wave.soak_ms for wave in fleet.waves[EDGE]] == [600_000, 0]
    assert fleet.edges == (HostEdge(gated=NODE8, gates=NODE7, reason="database first"),)
    assert fleet.channel_edges == (ChannelEdge(gated=EDGE, gates=Channel("stable")),)
    assert fleet.disruption_budgets == (
        Budget(selector=Selector(tags_any=("eu",), hosts=(NODE8,), channel=EDGE), max_in_flight=1),
    )


def test_the_smallest_fleet_gets_the_defaults() -> None:
    document = {"schemaVersion": 1, "hosts": {}, "channels": {}, "waves": {}, "meta": META}
    fleet = verify_fleet(*signed(document), SLOT, NOW).value
    assert (fleet.rollout_policies, fleet.edges, fleet.channel_edges, fleet.disruption_budgets) == ({}, (), (), ())


@pytest.mark.parametrize(
    "path", ["rolloutPolicies", "edges", "channelEdges", "disruptionBudgets", "hosts/node7/pin", "hosts/node7/tags"]
)
def test_null_is_the_same_as_absent(path: str) -> None:
    with_null = verify_fleet(*signed(changed(FLEET, path, None)), SLOT, NOW)
    without = verify_fleet(*signed(changed(FLEET, path, ...)), SLOT, NOW)
    assert with_null.value == without.value
    assert with_null.digest != without.digest


def test_unknown_members_are_ignored_but_signed() -> None:
    document = changed(FLEET, "channels/edge/compliance", {"frameworks": ["nis2"], "mode": "enforce"})
    data, signature = signed(document)
    assert verify_fleet(data, signature, SLOT, NOW).value == verify_fleet(*signed(FLEET), SLOT, NOW).value
    with pytest.raises(EvidenceError) as caught:
        verify_fleet(data.replace(b"nis2", b"nis3"), signature, SLOT, NOW)
    assert caught.value.reason is Reason.BAD_SIGNATURE


@pytest.mark.parametrize("edges", ["edges", "channelEdges"])
def test_an_edge_may_say_before_and_after(edges: str) -> None:
    document = changed(FLEET, f"{edges}/0", {"after": "edge", "before": "stable", "reason": None})
    fleet = encode(verify_fleet(*signed(document), SLOT, NOW).value)
    assert fleet[edges] == [{"gated": "edge", "gates": "stable", "reason": None}]


def test_an_edge_that_says_both_is_refused() -> None:
    assert _reason(changed(FLEET, "edges/0/before", "node7")) is Reason.PARSE


def test_all_at_once_without_waves_means_one_wave_of_everybody() -> None:
    document = changed(FLEET, "rolloutPolicies/careful", {"strategy": "all-at-once", "waves": []})
    policy = verify_fleet(*signed(document), SLOT, NOW).value.rollout_policies["careful"]
    [wave] = policy.waves
    assert wave.selector == Selector(all=True)
    assert wave.soak_minutes == 0


def test_all_at_once_with_waves_keeps_them() -> None:
    document = changed(FLEET, "rolloutPolicies/careful/strategy", "all-at-once")
    [wave] = verify_fleet(*signed(document), SLOT, NOW).value.rollout_policies["careful"].waves
    assert wave.selector == Selector(tags=("web",))


def test_our_additions_are_read_and_left_out_when_unset() -> None:
    document = changed(FLEET, "waves/edge/0/soakSecs", 3)
    document = changed(document, "rolloutPolicies/careful/sustainedFailureSecs", 5)
    fleet = verify_fleet(*signed(document), SLOT, NOW).value
    assert fleet.waves[EDGE][0].soak_ms == 3000
    assert fleet.rollout_policies["careful"].sustained_failure_secs == 5
    plain = json.dumps(encode(verify_fleet(*signed(FLEET), SLOT, NOW).value))
    assert "soakSecs" not in plain
    assert "sustainedFailureSecs" not in plain


def test_unset_members_are_written_as_null_or_left_out_as_other_readers_expect() -> None:
    host = encode(FleetHost(system="x86_64-linux", channel=EDGE))
    assert host == {"system": "x86_64-linux", "channel": "edge", "tags": [], "closureHash": None, "pubkey": None}
    assert encode(HealthGate()) == {}
    assert encode(Budget(selector=Selector())) == {
        "selector": {"tags": [], "tagsAny": [], "hosts": [], "channel": None, "all": False},
        "maxInFlight": None,
        "maxInFlightPct": None,
    }
    assert encode(Budget(selector=Selector(), hosts=(NODE7,)))["hosts"] == ["node7"]
    assert encode(Pin(commit="00", reason="")) == {"commit": "00", "reason": ""}
    assert "signatureAlgorithm" not in str(encode(verify_fleet(*signed(FLEET), SLOT, NOW).value.meta))


# The order of the checks: each document has the faults of its line and of all lines below it.

Document = dict[str, Any]
_faults: list[tuple[Reason, Callable[[Document], Document]]] = [
    (Reason.PARSE, lambda d: changed(d, "hosts/node7/system", 7)),
    (Reason.SCHEMA_VERSION, lambda d: changed(d, "schemaVersion", 2)),
    (Reason.SCHEMA_VERSION, lambda d: changed(d, "meta/schemaVersion", 2)),
    (Reason.UNSUPPORTED_ALGORITHM, lambda d: changed(d, "meta/signatureAlgorithm", "ecdsa-p256")),
    (Reason.NOT_SIGNED, lambda d: changed(d, "meta/signedAt", None)),
]


@pytest.mark.parametrize("first", range(len(_faults)))
def test_the_first_failing_check_names_the_reason(first: int) -> None:
    document = FLEET
    for _, spoil in _faults[first:]:
        document = spoil(document)
    assert _reason(document) is _faults[first][0]


def test_without_roots_nothing_else_is_looked_at() -> None:
    for slot in (KeySlot(), KeySlot(successor=trusted(CI)), KeySlot(successor=trusted(CI), retire_at=NOW)):
        with pytest.raises(EvidenceError) as caught:
            verify(b"not json", b"", slot, NOW)
        assert caught.value.reason is Reason.NO_TRUST_ROOTS


def test_json_comes_before_keys() -> None:
    with pytest.raises(EvidenceError) as caught:
        verify(b"not json", b"", KeySlot(current=UNKNOWN_ALGORITHM), NOW)
    assert caught.value.reason is Reason.PARSE


# Keys and signatures


@pytest.mark.parametrize("size", [0, 1, 32, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(size: int) -> None:
    data, signature = signed(FLEET)
    with pytest.raises(EvidenceError, match=f"signature of {size} bytes") as caught:
        verify_fleet(data, (signature * 2)[:size], SLOT, NOW)
    assert caught.value.reason is Reason.BAD_SIGNATURE


def test_one_altered_byte_is_noticed_wherever_it_is() -> None:
    data, signature = signed(MANIFEST)
    for place in range(0, len(data), 7):
        altered = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        if altered.split() != data.split():  # white space between members is not signed
            with pytest.raises(EvidenceError) as caught:
                verify(altered, signature, SLOT, NOW)
            assert caught.value.reason in (Reason.BAD_SIGNATURE, Reason.PARSE)


def test_the_signature_of_another_artifact_is_refused() -> None:
    with pytest.raises(EvidenceError) as caught:
        verify_fleet(signed(FLEET)[0], signed(MANIFEST)[1], SLOT, NOW)
    assert caught.value.reason is Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("slot", "reason"),
    [
        (SLOT, None),
        (KeySlot(previous=trusted(CI)), None),
        (KeySlot(current=trusted(NEXT_CI), previous=trusted(CI)), None),
        (KeySlot(current=trusted(NEXT_CI), successor=trusted(CI), retire_at=WallMs(NOW + 1)), None),
        (KeySlot(current=UNKNOWN_ALGORITHM, previous=trusted(CI)), None),
        (KeySlot(current=UNREADABLE, previous=trusted(CI)), None),
        (KeySlot(current=P256Signer().trusted, previous=trusted(CI)), None),
        (KeySlot(current=trusted(NEXT_CI)), Reason.BAD_SIGNATURE),
        (KeySlot(current=trusted(NEXT_CI), successor=trusted(CI), retire_at=NOW), Reason.BAD_SIGNATURE),
        (KeySlot(current=trusted(NEXT_CI), previous=trusted(STRANGER)), Reason.BAD_SIGNATURE),
        (KeySlot(current=P256Signer().trusted), Reason.BAD_SIGNATURE),
        (KeySlot(current=UNREADABLE), Reason.BAD_SIGNATURE),
        (KeySlot(current=TrustedKey(algorithm="ed25519", public="A" * 43 + "=")), Reason.BAD_SIGNATURE),
        (KeySlot(current=UNKNOWN_ALGORITHM), Reason.UNSUPPORTED_ALGORITHM),
        (KeySlot(current=UNKNOWN_ALGORITHM, previous=UNREADABLE), Reason.BAD_SIGNATURE),
        (KeySlot(), Reason.NO_TRUST_ROOTS),
    ],
)
def test_a_rotation_accepts_the_keys_it_lists_and_no_others(slot: KeySlot, reason: Reason | None) -> None:
    if reason is None:
        assert verify_fleet(*signed(FLEET), slot, NOW).key_id == PublicKey.ed25519(CI.public).key_id
    else:
        assert _reason(FLEET, slot) is reason


def test_an_ecdsa_key_verifies_too_and_is_said_to() -> None:
    signer = P256Signer()
    document = changed(FLEET, "meta/signatureAlgorithm", "ecdsa-p256")
    data, signature = json.dumps(document).encode(), signer.sign(canonicalize(document))
    verified = verify_fleet(data, signature, KeySlot(current=signer.trusted), NOW)
    assert verified.algorithm == Algorithm.ECDSA_P256


@pytest.mark.parametrize("claim", ["none", "ecdsa-p256", "ED25519", "hmac-sha256", ""])
def test_an_algorithm_the_artifact_claims_never_decides(claim: str) -> None:
    assert _reason(changed(FLEET, "meta/signatureAlgorithm", claim)) is Reason.UNSUPPORTED_ALGORITHM


def test_the_right_claim_and_no_claim_are_both_fine() -> None:
    for claim in ("ed25519", None, ...):
        document = changed(changed(FLEET, "meta/signatureAlgorithm", "x"), "meta/signatureAlgorithm", claim)
        verify_fleet(*signed(document), SLOT, NOW)


def test_a_key_that_the_artifact_brings_along_is_ignored() -> None:
    document = changed(FLEET, "meta/publicKey", trusted(STRANGER).public)
    document["ciReleaseKey"] = {"current": {"algorithm": "ed25519", "public": trusted(STRANGER).public}}
    with pytest.raises(EvidenceError) as caught:
        verify_fleet(*signed(document, STRANGER), SLOT, NOW)
    assert caught.value.reason is Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("reject_before", "reason"),
    [
        (None, None),
        (at(SIGNED_AT) - 1, None),
        (at(SIGNED_AT), None),
        (at(SIGNED_AT) + 1, Reason.REJECTED_BEFORE),
        (NOW, Reason.REJECTED_BEFORE),
    ],
)
def test_what_was_signed_before_an_incident_is_refused(reject_before: int | None, reason: Reason | None) -> None:
    slot = attrs.evolve(SLOT, reject_before=None if reject_before is None else WallMs(reject_before))
    if reason is None:
        verify_fleet(*signed(FLEET), slot, NOW)
    else:
        assert _reason(FLEET, slot) is reason


@pytest.mark.parametrize("now", [0, 4_102_444_800_000])
def test_the_clock_plays_no_part_here(now: int) -> None:
    # Whether it is stale or from the future is decided where the history is known.
    verify_fleet(*signed(FLEET), SLOT, WallMs(now))


# Shapes


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *itertools.product(["schemaVersion", "meta/schemaVersion"], ["1", True, 1.5, [1], {}, -1, 2**32, None, ...]),
        *itertools.product(["hosts", "channels", "waves", "meta"], [[], "", 1, None, ...]),
        *itertools.product(["meta/signedAt"], [0, 1780308000, "", "yesterday", "2026-06-01", [], True]),
        *itertools.product(["hosts/node7", "channels/edge", "waves/edge/0"], [None, [], "x", 1]),
        *itertools.product(["hosts/node7/tags", "waves/edge", "waves/edge/0/hosts"], ["web", {"web": 1}, [1], [None]]),
        *itertools.product(["hosts/node7/closureHash"], ["", "/nix/store/x", "../../etc", CLOSURE + "\n", 1, "-x"]),
        *itertools.product(["hosts/node7/channel"], ["", "a/b", "A", "..", "a@b", "x" * 127, 1, None, ...]),
        *itertools.product(["channels/edge/freshnessWindow"], [-1, 1.5, "120", True, 2**32, None, ...]),
        *itertools.product(["rolloutPolicies/careful/onHealthFailure"], ["ignore", "HALT", 1, []]),
        *itertools.product(["edges/0/gated", "edges/0/gates"], ["", "../x", "-node7", "no\0de", 1, None, ...]),
        ("hosts/-node", FLEET["hosts"]["node7"]),
        ("hosts/no\0de", FLEET["hosts"]["node7"]),
        (f"hosts/{'n' * 254}", FLEET["hosts"]["node7"]),
        ("channels/Edge.1", FLEET["channels"]["edge"]),
        ("disruptionBudgets/0/selector/all", "yes"),
        ("disruptionBudgets/0/maxInFlight", -1),
    ],
)
def test_a_fleet_of_another_shape_is_refused(path: str, value: Any) -> None:
    assert _reason(changed(FLEET, path, value)) is Reason.PARSE


@pytest.mark.parametrize("document", [[], "x", 1, None, True, [FLEET]])
def test_a_signed_document_that_is_no_object_is_refused(document: Any) -> None:
    data = canonicalize(document)
    for check in (verify, verify_fleet, _manifest, verify_revocations, verify_nonces):
        with pytest.raises(EvidenceError) as caught:
            check(data, CI.sign(data), SLOT, NOW)
        assert caught.value.reason is Reason.PARSE


def test_a_refused_member_is_named_by_its_place() -> None:
    with pytest.raises(EvidenceError, match=r"^\$\.waves\['edge'\]\[1\]\.soakMinutes: "):
        verify_fleet(*signed(changed(FLEET, "waves/edge/1/soakMinutes", -1)), SLOT, NOW)


def test_the_general_check_looks_at_the_header_only() -> None:
    document = {"schemaVersion": 1, "meta": META, "anything": [1, 2]}
    assert verify(*signed(document), SLOT, NOW).value == document
    assert _reason({"schemaVersion": 1, "anything": 1}, check=verify) is Reason.PARSE


# Manifests


@pytest.mark.parametrize("rollout", ["edge@4be0c2", "edge@4be0", "stable@4be0c1", "edge@4be0c10", "../../etc", ""])
def test_a_genuine_manifest_of_another_rollout_is_refused(rollout: str) -> None:
    with pytest.raises(EvidenceError) as caught:
        verify_manifest(*signed(MANIFEST), SLOT, NOW, rollout=RolloutId(rollout))
    assert caught.value.reason is Reason.MANIFEST_MISMATCH


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("channelRef", "", Reason.PARSE),
        ("channelRef", "../x", Reason.PARSE),
        ("channelRef", "4BE0C1", Reason.PARSE),
        ("channelRef", "f" * 124, Reason.PARSE),
        ("channelRef", "4be0c2", Reason.MANIFEST_MISMATCH),
        ("channel", "stable", Reason.MANIFEST_MISMATCH),
        ("channel", "ed/ge", Reason.PARSE),
        ("hostSet", MANIFEST["hostSet"] * 2, Reason.MANIFEST_MISMATCH),
        ("hostSet/0/targetClosure", "", Reason.PARSE),
        ("hostSet/0/targetClosure", None, Reason.PARSE),
        ("hostSet/0/targetClosure", "../../bin/sh", Reason.PARSE),
        ("hostSet/0/waveIndex", -1, Reason.PARSE),
        ("fleetResolvedHash", ..., Reason.PARSE),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(path: str, value: Any, reason: Reason) -> None:
    assert _reason(changed(MANIFEST, path, value), check=_manifest) is reason


def test_a_manifest_is_anchored_to_its_fleet_by_digest() -> None:
    fleet, manifest = verify_fleet(*signed(FLEET), SLOT, NOW), _manifest(*signed(MANIFEST), SLOT, NOW)
    assert manifest.value.fleet_resolved_hash == fleet.digest


def test_one_kind_of_artifact_is_not_taken_for_another() -> None:
    for (_, document, kind), (check, _, other) in itertools.product(KINDS, KINDS):
        if kind is not other:
            assert _reason(document, check=check) is Reason.PARSE
