"""Compliance evidence: a signed `evidence.json` to one result per control (protocol section 6.4).

A control counts only when the document is signed by this host's key, is about this host, was collected in the window
asked for, and says so. What is absent never passes: a listed control without evidence fails, and so does a probe that
selects nothing. The signature covers the document as it was written, so members unknown here do no harm.
"""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Final, assert_never

import attrs

from evidence import documents
from evidence.canonical import canonicalize, parse
from evidence.errors import EvidenceError
from evidence.selection import ControlRule as ControlRule
from evidence.selection import ControlSelection as ControlSelection
from evidence.selection import FrameworkSelection as FrameworkSelection
from evidence.selection import Selection as Selection
from evidence.signature import PublicKey, decode_base64, verify
from state_machine.values import CLOCK_SLACK_MS, HostName, ProbeMode, ProbeStatus, Reason, SubResult, WallMs
from wire.timestamps import format_rfc3339

SCHEMA_VERSION: Final = 1
CUSTOM_FRAMEWORK: Final = "custom"
"""The framework of a control that names none itself."""

_OLD_MEMBERS: Final = frozenset({"host", "timestamp", "controls", "overall"})


class ComplianceError(EvidenceError):
    """Compliance evidence that proves nothing. Never raised as itself."""


@attrs.frozen(kw_only=True)
class EvidenceVersionError(ComplianceError):
    """A version this software does not know; `found` is None for the shape that had no version yet."""

    reason: ClassVar[Reason] = Reason.SCHEMA_VERSION
    found: int | None

    def __str__(self) -> str:
        which = "has the shape from before version 1" if self.found is None else f"has schemaVersion {self.found}"
        return f"the evidence {which}, only {SCHEMA_VERSION} is known; update the collector or this software"


@attrs.frozen(kw_only=True)
class EvidenceSignatureError(ComplianceError):
    """Not signed by this host's key."""

    reason: ClassVar[Reason] = Reason.BAD_SIGNATURE
    problem: str

    def __str__(self) -> str:
        return f"the evidence's signature does not count: {self.problem}"


@attrs.frozen(kw_only=True)
class EvidenceHostError(ComplianceError):
    """About another host."""

    reason: ClassVar[Reason] = Reason.MANIFEST_MISMATCH
    expected: str
    found: str

    def __str__(self) -> str:
        return f"the evidence is about {self.found}, this host is {self.expected}"


@attrs.frozen(kw_only=True)
class EvidenceStaleError(ComplianceError):
    """Collected before what it should prove."""

    reason: ClassVar[Reason] = Reason.STALE
    collected_at: WallMs
    not_before: WallMs

    def __str__(self) -> str:
        return (
            f"the evidence was collected {format_rfc3339(self.collected_at)}, "
            f"it has to be from {format_rfc3339(self.not_before)} or later; run the collector"
        )


@attrs.frozen(kw_only=True)
class EvidenceFutureError(ComplianceError):
    """Collected in the future, so it would stay fresh without being collected again."""

    reason: ClassVar[Reason] = Reason.FUTURE_DATED
    collected_at: WallMs
    now: WallMs

    def __str__(self) -> str:
        return (
            f"the evidence was collected {format_rfc3339(self.collected_at)}, "
            f"but it is {format_rfc3339(self.now)}; check the clock and run the collector"
        )


@attrs.frozen(kw_only=True)
class Control:
    """One control's outcome, and the articles it counts for in each framework."""

    control_id: str
    passed: bool
    framework_articles: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class ComplianceEvidence:
    """`evidence.json`, version 1, with a good signature."""

    schema_version: int
    hostname: HostName
    collected_at: WallMs
    controls: tuple[Control, ...]


def read_evidence(data: bytes, signature_text: bytes, public: bytes) -> ComplianceEvidence:
    """Check the signature file's line (base64) against the host's raw public key and read the document.

    Raises:
        CanonicalError, ShapeError: it is not such a document.
        EvidenceSignatureError: the host's key did not sign it.
        EvidenceVersionError: another version, or the shape from before versions.
    """
    value = parse(data)
    # Before the signature, because the old shape's signers canonicalised differently and the true cause would hide.
    if isinstance(value, dict) and "schemaVersion" not in value and value.keys() >= _OLD_MEMBERS:
        raise EvidenceVersionError(found=None)
    signature = decode_base64(signature_text.strip().decode("ascii", "replace"))
    if signature is None:
        raise EvidenceSignatureError(problem="the signature file is not one line of base64")
    if not verify(PublicKey.ed25519(public), canonicalize(value), signature):
        raise EvidenceSignatureError(problem="the document was changed, or another key than the host's signed it")
    evidence = documents.decode(ComplianceEvidence, value)
    if evidence.schema_version != SCHEMA_VERSION:
        raise EvidenceVersionError(found=evidence.schema_version)
    return evidence


def check_current(evidence: ComplianceEvidence, *, host: HostName, not_before: WallMs, now: WallMs) -> None:
    """The evidence is about `host` and was collected between `not_before` and `now` (plus the clock slack).

    Raises:
        EvidenceHostError, EvidenceStaleError, EvidenceFutureError: it was not.
    """
    if evidence.hostname != host:
        raise EvidenceHostError(expected=host, found=evidence.hostname)
    if evidence.collected_at < not_before:
        raise EvidenceStaleError(collected_at=evidence.collected_at, not_before=not_before)
    if evidence.collected_at - now > CLOCK_SLACK_MS:
        raise EvidenceFutureError(collected_at=evidence.collected_at, now=now)


def evaluate(evidence: ComplianceEvidence, selection: Selection, mode: ProbeMode) -> tuple[SubResult, ...]:
    """One result per selected control and article, in the order of the document; `mode` is the probe's.

    Controls whose effective mode is `disabled` are left out.
    """
    match selection:
        case FrameworkSelection():
            results = _of_framework(evidence, selection, mode)
        case ControlSelection():
            results = _of_controls(evidence, selection, mode)
        case _:
            assert_never(selection)
    return tuple(result for result in results if result.effective_mode is not ProbeMode.DISABLED)


def aggregate(results: tuple[SubResult, ...], mode: ProbeMode) -> ProbeStatus:
    """What the probe says as a whole: its enforced results decide; for a probe that only observes, all do.

    Nothing selected is a failure.
    """
    decisive = [r for r in results if mode is not ProbeMode.ENFORCE or r.effective_mode is ProbeMode.ENFORCE]
    passed = bool(results) and all(result.status is ProbeStatus.PASS for result in decisive)
    return ProbeStatus.PASS if passed else ProbeStatus.FAIL


def _of_framework(evidence: ComplianceEvidence, selection: FrameworkSelection, mode: ProbeMode) -> Iterable[SubResult]:
    for control in evidence.controls:
        articles = control.framework_articles.get(selection.framework)
        if articles is not None:
            rule = selection.overrides.get(control.control_id)
            yield from _results(control, selection.framework, articles, rule, mode)


def _of_controls(evidence: ComplianceEvidence, selection: ControlSelection, mode: ProbeMode) -> Iterable[SubResult]:
    for control in evidence.controls:
        rule = selection.controls.get(control.control_id)
        if rule is not None:
            for framework, articles in (control.framework_articles or {CUSTOM_FRAMEWORK: ()}).items():
                yield from _results(control, framework, articles, rule, mode)
    present = {control.control_id for control in evidence.controls}
    for control_id, rule in selection.controls.items():
        if control_id not in present:
            yield from _results(Control(control_id=control_id, passed=False), CUSTOM_FRAMEWORK, (), rule, mode)


def _results(
    control: Control, framework: str, articles: tuple[str, ...], rule: ControlRule | None, mode: ProbeMode
) -> Iterable[SubResult]:
    for article in articles or (None,):
        yield SubResult(
            control_id=control.control_id,
            status=ProbeStatus.PASS if control.passed else ProbeStatus.FAIL,
            framework=framework,
            article=article,
            effective_mode=mode if rule is None or rule.mode is None else rule.mode,
            override_reason=None if rule is None else rule.reason or None,
        )
