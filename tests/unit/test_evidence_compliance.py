"""Compliance evidence: signed by the host, about the host, recent, and one result per control."""

import base64
import json
from typing import Any

import pytest

from evidence.canonical import canonicalize
from evidence.compliance import (
    ComplianceEvidence,
    ControlRule,
    ControlSelection,
    EvidenceFutureError,
    EvidenceHostError,
    EvidenceSignatureError,
    EvidenceStaleError,
    EvidenceVersionError,
    FrameworkSelection,
    Selection,
    aggregate,
    check_current,
    evaluate,
    read_evidence,
)
from evidence.errors import EvidenceError
from evidence.host_key import HostKey, generate_host_key
from state_machine.values import CLOCK_SLACK_MS, HostName, ProbeMode, ProbeStatus, Reason, SubResult, WallMs
from tests.unit.evidence_samples import at, changed

KEY = HostKey(seed=b"the ed25519 host key of node7 --")
COLLECTED = at("2026-06-01T10:00:00Z")
DOCUMENT: dict[str, Any] = {
    "schemaVersion": 1,
    "hostname": "node7",
    "collectedAt": "2026-06-01T10:00:00+00:00",
    "collector": {"version": "2.1"},
    "controls": [
        {
            "controlId": "disk-encryption",
            "passed": True,
            "frameworkArticles": {"nis2": ["21.2.h", "21.2.j"], "dora": ["9"]},
            "details": {"device": "/dev/sda2"},
        },
        {"controlId": "audit-log", "passed": False, "frameworkArticles": {"nis2": ["21.2.b"]}, "schema": "audit/1"},
        {"controlId": "banner", "passed": False, "frameworkArticles": {}},
        {"controlId": "backup", "passed": True, "frameworkArticles": {"nis2": []}},
    ],
}
# The shape from before version 1.
OLD: dict[str, Any] = {
    "host": "node7",
    "timestamp": "2026-06-01T10:00:00Z",
    "controls": [{"control": "disk-encryption", "status": "compliant", "framework_articles": {}, "checks": []}],
    "overall": "compliant",
}


def _read(document: Any, *, key: HostKey = KEY) -> ComplianceEvidence:
    return read_evidence(json.dumps(document, indent=1).encode(), _signature(document, key), KEY.public)


def _signature(document: Any, key: HostKey = KEY) -> bytes:
    return base64.b64encode(key.sign(canonicalize(document))) + b"\n"


def _shown(results: tuple[SubResult, ...]) -> list[str]:
    return [f"{r.control_id} {r.framework} {r.article} {r.status} {r.effective_mode}" for r in results]


def test_evidence_is_read_whatever_members_its_collector_adds() -> None:
    evidence = _read(DOCUMENT)
    assert (evidence.hostname, evidence.collected_at) == ("node7", COLLECTED)
    assert [control.control_id for control in evidence.controls] == ["disk-encryption", "audit-log", "banner", "backup"]


@pytest.mark.parametrize(
    ("selection", "mode", "shown", "status"),
    [
        (
            FrameworkSelection(framework="nis2"),
            ProbeMode.ENFORCE,
            [
                "disk-encryption nis2 21.2.h pass enforce",
                "disk-encryption nis2 21.2.j pass enforce",
                "audit-log nis2 21.2.b fail enforce",
                "backup nis2 None pass enforce",
            ],
            ProbeStatus.FAIL,
        ),
        (
            FrameworkSelection(framework="dora"),
            ProbeMode.ENFORCE,
            ["disk-encryption dora 9 pass enforce"],
            ProbeStatus.PASS,
        ),
        (
            FrameworkSelection(
                framework="nis2", overrides={"audit-log": ControlRule(mode=ProbeMode.OBSERVE, reason="ticket 12")}
            ),
            ProbeMode.ENFORCE,
            [
                "disk-encryption nis2 21.2.h pass enforce",
                "disk-encryption nis2 21.2.j pass enforce",
                "audit-log nis2 21.2.b fail observe",
                "backup nis2 None pass enforce",
            ],
            ProbeStatus.PASS,
        ),
        (
            FrameworkSelection(framework="nis2", overrides={"audit-log": ControlRule(mode=ProbeMode.DISABLED)}),
            ProbeMode.ENFORCE,
            [
                "disk-encryption nis2 21.2.h pass enforce",
                "disk-encryption nis2 21.2.j pass enforce",
                "backup nis2 None pass enforce",
            ],
            ProbeStatus.PASS,
        ),
        (FrameworkSelection(framework="iso27001"), ProbeMode.ENFORCE, [], ProbeStatus.FAIL),
        (
            ControlSelection(controls={"disk-encryption": ControlRule()}),
            ProbeMode.ENFORCE,
            [
                "disk-encryption nis2 21.2.h pass enforce",
                "disk-encryption nis2 21.2.j pass enforce",
                "disk-encryption dora 9 pass enforce",
            ],
            ProbeStatus.PASS,
        ),
        (
            ControlSelection(controls={"banner": ControlRule()}),
            ProbeMode.ENFORCE,
            ["banner custom None fail enforce"],
            ProbeStatus.FAIL,
        ),
        (
            ControlSelection(controls={"backup": ControlRule(), "never-collected": ControlRule()}),
            ProbeMode.ENFORCE,
            ["backup nis2 None pass enforce", "never-collected custom None fail enforce"],
            ProbeStatus.FAIL,
        ),
        (
            ControlSelection(controls={"banner": ControlRule(mode=ProbeMode.OBSERVE), "backup": ControlRule()}),
            ProbeMode.ENFORCE,
            ["banner custom None fail observe", "backup nis2 None pass enforce"],
            ProbeStatus.PASS,
        ),
        (
            ControlSelection(controls={"banner": ControlRule(), "backup": ControlRule()}),
            ProbeMode.OBSERVE,
            ["banner custom None fail observe", "backup nis2 None pass observe"],
            ProbeStatus.FAIL,
        ),
        (ControlSelection(controls={}), ProbeMode.ENFORCE, [], ProbeStatus.FAIL),
        (
            ControlSelection(controls={"backup": ControlRule(mode=ProbeMode.DISABLED)}),
            ProbeMode.ENFORCE,
            [],
            ProbeStatus.FAIL,
        ),
    ],
)
def test_every_selected_control_has_its_result(
    selection: Selection, mode: ProbeMode, shown: list[str], status: ProbeStatus
) -> None:
    results = evaluate(_read(DOCUMENT), selection, mode)
    assert _shown(results) == shown
    assert aggregate(results, mode) is status


def test_an_override_shows_its_reason() -> None:
    rules = {"backup": ControlRule(mode=ProbeMode.OBSERVE, reason="ticket 12"), "banner": ControlRule(reason="")}
    backup, banner = sorted(
        evaluate(_read(DOCUMENT), ControlSelection(controls=rules), ProbeMode.ENFORCE), key=lambda r: r.control_id
    )
    assert backup.override_reason == "ticket 12"
    assert banner.override_reason is None


@pytest.mark.parametrize(
    ("host", "not_before", "now", "error"),
    [
        ("node7", COLLECTED, COLLECTED, None),
        ("node7", COLLECTED - 1, COLLECTED - CLOCK_SLACK_MS, None),
        ("node8", COLLECTED, COLLECTED, EvidenceHostError),
        ("node7", COLLECTED + 1, COLLECTED + 1, EvidenceStaleError),
        ("node7", 0, COLLECTED - CLOCK_SLACK_MS - 1, EvidenceFutureError),
    ],
)
def test_evidence_has_to_be_about_this_host_and_recent(
    host: str, not_before: int, now: int, error: type[EvidenceError] | None
) -> None:
    evidence = _read(DOCUMENT)
    arguments: Any = {"host": HostName(host), "not_before": WallMs(not_before), "now": WallMs(now)}
    if error is None:
        check_current(evidence, **arguments)
    else:
        with pytest.raises(error):
            check_current(evidence, **arguments)


def test_evidence_signed_by_another_key_is_refused() -> None:
    with pytest.raises(EvidenceSignatureError) as caught:
        _read(DOCUMENT, key=generate_host_key())
    assert caught.value.reason is Reason.BAD_SIGNATURE


def test_evidence_that_was_changed_is_refused() -> None:
    flattered = changed(DOCUMENT, "controls/1/passed", True)
    with pytest.raises(EvidenceSignatureError):
        read_evidence(canonicalize(flattered), _signature(DOCUMENT), KEY.public)


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"not base64", b"\xff\xfe", b"AAAA", _signature(DOCUMENT)[:-4], _signature(DOCUMENT) * 2]
)
def test_a_signature_file_of_another_shape_is_refused(text: bytes) -> None:
    with pytest.raises(EvidenceSignatureError):
        read_evidence(canonicalize(DOCUMENT), text, KEY.public)


def test_the_shape_from_before_version_one_is_called_by_its_name() -> None:
    for signature in (_signature(OLD), b"", b"AAAA"):
        with pytest.raises(EvidenceVersionError, match="before version 1") as caught:
            read_evidence(canonicalize(OLD), signature, KEY.public)
        assert caught.value.reason is Reason.SCHEMA_VERSION


def test_a_later_version_is_refused() -> None:
    with pytest.raises(EvidenceVersionError, match="schemaVersion 2"):
        _read(changed(DOCUMENT, "schemaVersion", 2))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schemaVersion", ...),
        ("hostname", ...),
        ("hostname", ""),
        ("collectedAt", "today"),
        ("controls", {}),
        ("controls/0/controlId", ...),
        ("controls/0/passed", "yes"),
        ("controls/0/passed", 1),
        ("controls/0/passed", None),
        ("controls/0/frameworkArticles", []),
        ("controls/0/frameworkArticles/nis2", "21"),
        ("controls/0/frameworkArticles/nis2", None),
    ],
)
def test_signed_evidence_of_another_shape_is_refused(path: str, value: Any) -> None:
    with pytest.raises(EvidenceError) as caught:
        _read(changed(DOCUMENT, path, value))
    assert caught.value.reason is Reason.PARSE
