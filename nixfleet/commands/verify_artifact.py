"""`nixfleet verify-artifact`: would a host accept this file, by this trust root, at this moment?"""

import enum
from pathlib import Path
from typing import Final

import attrs
import click

from evidence.artifacts import verify, verify_fleet, verify_manifest, verify_nonces, verify_revocations
from evidence.canonical import ARTIFACT_LIMIT
from evidence.documents import decode
from evidence.errors import EvidenceError
from evidence.regular_files import read_start
from evidence.trust import KeySlot, TrustFileError, load_trust
from nixfleet.clock import in_words
from nixfleet.commands import options
from state_machine.freshness import age_verdict
from state_machine.intent import Fleet
from state_machine.values import Channel, Reason, RolloutId, WallMs

DEFAULT_WINDOW_S: Final = 2_592_000
"""How old a list or a manifest may be when nobody says: 30 days (protocol section 2.6)."""

_SIGNATURE_READ: Final = 4095
"""A signature has 64 bytes; enough to say how long a wrong one is without reading a disk image."""


class Kind(enum.StrEnum):
    """Which artifact it should be."""

    FLEET = "fleet"
    ROLLOUT = "rollout"
    REVOCATIONS = "revocations"
    BOOTSTRAP_NONCES = "bootstrap-nonces"


@attrs.frozen(kw_only=True)
class RefusedError(Exception):
    """The artifact is not to be acted on."""

    reason: Reason
    detail: str


@attrs.frozen(kw_only=True)
class _RolloutName:
    """The two members of a manifest that make its id."""

    channel: Channel
    channel_ref: str


@click.command()
@options.trust_file
@click.option("--artifact", type=options.FILE, required=True, help="The file to check.")
@click.option("--signature", type=options.FILE, help="Its signature, 64 raw bytes.  [default: ARTIFACT.sig]")
@click.option("--kind", type=options.MemberType(Kind), default=Kind.FLEET.value, help="What the file should be.")
@options.now
@click.option(
    "--freshness-window-secs",
    type=click.IntRange(min=0, max=10 * 366 * 86_400),
    help="How old it may be.  [default: the widest channel window of a fleet, 30 days for others]",
)
@click.option("--rollout-id", help="The rollout that was asked for; the manifest must be of no other.")
@click.pass_context
def verify_artifact(
    ctx: click.Context,
    trust_file: Path | None,
    artifact: Path,
    signature: Path | None,
    kind: Kind,
    now: WallMs | None,
    freshness_window_secs: int | None,
    rollout_id: str | None,
) -> None:
    """Check an artifact as a host would: signature, schema, rejectBefore, identity, freshness, in that order.

    Writes `ok` and ends with 0, or ends with 1 and the reason first on standard error.
    """
    if rollout_id is not None and kind is not Kind.ROLLOUT:
        raise click.UsageError("--rollout-id goes with --kind rollout")
    roots_path = options.required(trust_file, "--trust-file", "the trust file")
    signature = signature or artifact.with_name(artifact.name + ".sig")
    try:
        slot = _slot(roots_path)
        data, mark = _content(artifact, ARTIFACT_LIMIT), _content(signature, _SIGNATURE_READ)
        check(data, mark, slot, kind, options.instant(now), freshness_window_secs, rollout_id)
    except (EvidenceError, RefusedError) as error:
        click.echo(f"{error.reason}: {error.detail}", err=True)
        ctx.exit(1)
    click.echo("ok")


def _slot(trust_file: Path) -> KeySlot:
    """The keys to check with.

    Raises:
        EvidenceError, RefusedError: there are none, naming the file.
    """
    try:
        return load_trust(trust_file).ci_release_key
    except TrustFileError:
        raise
    except EvidenceError as error:
        detail = f"the trust file {trust_file} cannot be used: {error.detail}"
        raise RefusedError(reason=error.reason, detail=detail) from error


def check(
    data: bytes, signature: bytes, slot: KeySlot, kind: Kind, now: WallMs, window_s: int | None, rollout_id: str | None
) -> None:
    """Every check of protocol section 2.6, in its order.

    Raises:
        EvidenceError, RefusedError: with the reason of the first that failed.
    """
    value, signed_at = _proven(data, signature, slot, kind, now, rollout_id)
    window_ms = 1000 * (window_s if window_s is not None else _own_window_s(value))
    age = now - signed_at
    match age_verdict(signed_at, now, window_ms):
        case None:
            return
        case Reason.STALE as reason:
            detail = f"signed {in_words(age)} ago, window {in_words(window_ms)}"
        case reason:
            detail = f"signed {in_words(-age)} in the future"
    raise RefusedError(reason=reason, detail=detail)


def _proven(
    data: bytes, signature: bytes, slot: KeySlot, kind: Kind, now: WallMs, rollout_id: str | None
) -> tuple[object, WallMs]:
    """The artifact and when it was signed, once everything but its age has been checked."""
    match kind:
        case Kind.FLEET:
            fleet = verify_fleet(data, signature, slot, now)
            return fleet.value, fleet.signed_at
        case Kind.ROLLOUT:
            wanted = RolloutId(rollout_id) if rollout_id is not None else _own_id(data, signature, slot, now)
            manifest = verify_manifest(data, signature, slot, now, rollout=wanted)
            return manifest.value, manifest.signed_at
        case Kind.REVOCATIONS:
            revocations = verify_revocations(data, signature, slot, now)
            return revocations.value, revocations.signed_at
        case Kind.BOOTSTRAP_NONCES:
            nonces = verify_nonces(data, signature, slot, now)
            return nonces.value, nonces.signed_at


def _own_id(data: bytes, signature: bytes, slot: KeySlot, now: WallMs) -> RolloutId:
    """The id a manifest gives itself: when none was asked for, there is nothing else to hold it to."""
    name = decode(_RolloutName, verify(data, signature, slot, now).value)
    return RolloutId(f"{name.channel}@{name.channel_ref}")


def _own_window_s(artifact: object) -> int:
    """A fleet is good as long as any channel of it is; other artifacts do not say."""
    if not isinstance(artifact, Fleet) or not artifact.channels:
        return DEFAULT_WINDOW_S
    return 60 * max(channel.freshness_window for channel in artifact.channels.values())


def _content(path: Path, limit: int) -> bytes:
    try:
        return read_start(path, limit)
    except FileNotFoundError as error:
        raise RefusedError(reason=Reason.MISSING, detail=f"there is no {path}") from error
