"""Judge one export: chain, key, and for each switch the artifacts that allowed it, verified again from their bytes.

The promise: an export that passes is whole from its first entry to its last, every byte of it signed by one key; with
a trust file, that key is the one the fleet declares for this host, and each switch was to what a manifest gave this
host, signed by a trusted key, anchored to its fleet, and fresh when the host decided. A switch to what a source without
signatures offered is not proved by any of this; it has a verdict of its own, which says what the trust in it rests on.
`proof` never raises for bad evidence: what is wrong is in the result, with the entry it is in.
"""

import enum
from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs

from evidence.artifacts import Verified, verify_fleet, verify_manifest
from evidence.chain import GENESIS, Anchor, verify_chain
from evidence.errors import EvidenceError
from evidence.host_key import fingerprint
from evidence.project import project
from evidence.ssh_format import SshFormatError, parse_openssh_public
from evidence.sshsig import SshsigError, allowed_signers_line, check
from evidence.trust import KeySlot, TrustRoots
from nixfleet.audit.export import ALLOWED_SIGNERS, ENTRIES, ENTRIES_SIGNATURE, BrokenError, Export
from nixfleet.audit.trace import Activation, Offered, Proved, follow
from nixfleet.clock import in_words
from state_machine.events import VerifiedIntent
from state_machine.freshness import age_verdict
from state_machine.intent import Fleet, Manifest
from state_machine.values import HostName

Value = TypeVar("Value")


class Verdict(enum.StrEnum):
    """What there is to say about an export as a whole."""

    HOLDS = "holds"
    UNSIGNED = "unsigned"
    """It is whole and the host's own, but some switch rests on no signature."""
    BROKEN = "broken"


@attrs.frozen(kw_only=True)
class Allowed:
    """A switch with what allowed it.

    `proved` None: nobody signed for it, see `offered`; or, without that, it lies in the part that was cut off.
    """

    activation: Activation
    proved: Proved | None
    verified: bool
    """True when the manifest and the fleet were verified again from their bytes."""

    @property
    def offered(self) -> Offered | None:
        """The offer it rests on, when nobody signed for it."""
        return self.activation.offered


@attrs.frozen(kw_only=True)
class HostProof:
    """The verdict over one export."""

    host: str
    key: str
    """The key's fingerprint: base64 of SHA-256 over its raw bytes."""
    entries: int = 0
    """How many are good, from the first on."""
    first: int = 1
    head: Anchor = GENESIS
    vouched_by: str | None
    """Who says that this key is the host's: the fleet, or whoever ran the audit."""
    allowed: tuple[Allowed, ...] = ()
    broken: BrokenError | None = None

    @property
    def unsigned(self) -> tuple[Allowed, ...]:
        """The switches that rest on no signature."""
        return tuple(allowed for allowed in self.allowed if allowed.offered is not None)

    @property
    def verdict(self) -> Verdict:
        """Broken evidence counts before evidence that is only weak."""
        if self.broken is not None:
            return Verdict.BROKEN
        return Verdict.UNSIGNED if self.unsigned else Verdict.HOLDS


def prove(export: Export, *, host_key: bytes | None, trusts: Sequence[TrustRoots]) -> HostProof:
    """Check everything there is to check.

    `host_key` is the key the host must have signed with, when the auditor knows it. Of `trusts` any one may vouch for
    an artifact: after a rotation, old ones need the trust file of their time.
    """
    proof = HostProof(
        host=export.directory.name,
        key=fingerprint(export.public),
        vouched_by=None if host_key is None else "the auditor",
    )
    try:
        if host_key is not None and host_key != export.public:
            raise BrokenError(n=None, problem="host.pub is not the key given as --host-key")
        host, anchor = _beginning(export)
        proof = attrs.evolve(proof, host=host, first=anchor.n + 1)
        report = verify_chain(export.entries(), export.public, host=host, anchor=anchor)
        proof = attrs.evolve(proof, entries=report.good, head=report.head)
        if report.fault is not None:
            raise BrokenError(n=report.fault.n, problem=f"{report.fault.fault}: {report.fault.detail}")
        _check_ssh_files(export, host, whole=anchor == GENESIS)
        for activation in follow(export.bodies()):
            if activation.offered is not None:
                _check_offer(activation, activation.offered)
            if activation.offered is not None or (activation.proved is None and anchor != GENESIS):
                proof = attrs.evolve(proof, allowed=(*proof.allowed, _unproved(activation)))
                continue
            allowed, declares_key = _allowed(export, HostName(host), activation, trusts)
            vouched_by = proof.vouched_by or ("the fleet" if declares_key else None)
            proof = attrs.evolve(proof, allowed=(*proof.allowed, allowed), vouched_by=vouched_by)
    except BrokenError as error:
        return attrs.evolve(proof, broken=error)
    return proof


def _beginning(export: Export) -> tuple[str, Anchor]:
    """The host the first entry names, and what that entry follows: nothing, unless an older part was cut off."""
    first = next(export.bodies(), None)
    if first is None:
        raise BrokenError(n=None, problem=f"{ENTRIES} is empty")
    host, n, prev = first.get("host"), first.get("n"), first.get("prev")
    if not isinstance(host, str) or not isinstance(n, int) or not isinstance(prev, str):
        raise BrokenError(n=None, problem="the first entry is not one of a journal")
    try:
        return host, GENESIS if n == 1 else Anchor(n=n - 1, hash=bytes.fromhex(prev))
    except ValueError as error:
        raise BrokenError(n=n, problem="its `prev` is not hex") from error


def _check_ssh_files(export: Export, host: str, *, whole: bool) -> None:
    """What `ssh-keygen -Y verify` would be given must say the same.

    Only a journal without its oldest part must have them: nothing else tells who cut it.
    """
    signature, signers = export.text(ENTRIES_SIGNATURE), export.text(ALLOWED_SIGNERS)
    if signature is None and not whole:
        raise BrokenError(n=None, problem=f"its beginning is missing, and no {ENTRIES_SIGNATURE} says the host cut it")
    try:
        if signature is not None:
            check(signature, export.content(), export.public)
        if signers is not None and allowed_signers_line(host, export.public) not in signers.splitlines():
            raise BrokenError(n=None, problem=f"{ALLOWED_SIGNERS} does not name {host} with the key in host.pub")
    except SshsigError as error:
        raise BrokenError(n=None, problem=f"{ENTRIES_SIGNATURE}: {error.problem}") from error


def _check_offer(activation: Activation, offered: Offered) -> None:
    if activation.closure != offered.closure:
        problem = f"{activation.closure} was activated, but what was offered is {offered.closure}"
        raise BrokenError(n=activation.n, problem=problem)


def _unproved(activation: Activation) -> Allowed:
    return Allowed(activation=activation, proved=None, verified=False)


def _allowed(
    export: Export, host: HostName, activation: Activation, trusts: Sequence[TrustRoots]
) -> tuple[Allowed, bool]:
    """The switch with its proof, and whether the fleet behind it declares the host's key."""
    proved = activation.proved
    if proved is None:
        problem = f"{activation.rollout_id} was activated, but no entry before says what allowed it"
        raise BrokenError(n=activation.n, problem=problem)
    if proved.intent.target is None or activation.closure != proved.intent.target:
        problem = f"{activation.closure} was activated, but {activation.rollout_id} gives {proved.intent.target}"
        raise BrokenError(n=activation.n, problem=problem)
    _check_age(activation, proved)
    if not trusts:
        return Allowed(activation=activation, proved=proved, verified=False), False
    fleet = _check_artifacts(export, host, proved, trusts)
    return Allowed(activation=activation, proved=proved, verified=True), _declares_key(export, host, proved, fleet)


def _check_age(activation: Activation, proved: Proved) -> None:
    window_ms = proved.intent.freshness_window_s * 1000
    reason = age_verdict(proved.intent.signed_at, activation.decided_at, window_ms)
    if reason is not None:
        age = in_words(activation.decided_at - proved.intent.signed_at)
        problem = f"the manifest was {reason} when the host decided: {age} old, window {in_words(window_ms)}"
        raise BrokenError(n=activation.n, problem=problem)


def _check_artifacts(export: Export, host: HostName, proved: Proved, trusts: Sequence[TrustRoots]) -> Fleet:
    """Derive the intent again from the artifacts' bytes and hold it against what the journal says."""
    intent = proved.intent

    def manifest_of(data: bytes, signature: bytes, slot: KeySlot) -> Verified[Manifest]:
        return verify_manifest(data, signature, slot, proved.at, rollout=intent.rollout_id)

    def fleet_of(data: bytes, signature: bytes, slot: KeySlot) -> Verified[Fleet]:
        return verify_fleet(data, signature, slot, proved.at)

    manifest = _verified(export, "manifest", intent.manifest_digest, proved.n, trusts, manifest_of)
    fleet = _verified(export, "fleet", intent.fleet_digest, proved.n, trusts, fleet_of)
    try:
        derived = project(fleet, manifest, host)
    except EvidenceError as error:
        raise BrokenError(n=proved.n, problem=error.detail) from error
    if derived != intent:
        problem = f"the artifacts do not say what it recorded of {', '.join(_differing(derived, intent))}"
        raise BrokenError(n=proved.n, problem=problem)
    return fleet.value


def _verified(
    export: Export,
    what: str,
    digest: str,
    n: int,
    trusts: Sequence[TrustRoots],
    verify: Callable[[bytes, bytes, KeySlot], Verified[Value]],
) -> Verified[Value]:
    found = export.artifact(digest)
    if found is None:
        raise BrokenError(n=n, problem=f"the {what} {digest[:12]} that it refers to is not in the export")
    refusals: list[EvidenceError] = []
    for roots in trusts:
        try:
            verified = verify(*found, roots.ci_release_key)
        except EvidenceError as error:
            refusals.append(error)
            continue
        if verified.digest != digest:
            raise BrokenError(n=n, problem=f"the {what} filed as {digest[:12]} is {verified.digest[:12]}")
        return verified
    raise BrokenError(n=n, problem=f"{what} {digest[:12]}: {refusals[0].reason}: {refusals[0].detail}")


def _declares_key(export: Export, host: HostName, proved: Proved, fleet: Fleet) -> bool:
    declared = fleet.hosts[host].pubkey if host in fleet.hosts else None
    if declared is None:
        return False
    try:
        matches = parse_openssh_public(declared) == export.public
    except SshFormatError as error:
        raise BrokenError(n=proved.n, problem=f"the fleet's key of {host} cannot be read: {error.detail}") from error
    if not matches:
        raise BrokenError(n=proved.n, problem=f"the fleet declares another key for {host} than the one that signed")
    return True


def _differing(one: VerifiedIntent, other: VerifiedIntent) -> list[str]:
    names = [field.name for field in attrs.fields(VerifiedIntent)]
    return [name for name in names if getattr(one, name) != getattr(other, name)]
