"""`nixfleet audit`: what did the hosts do, and who allowed it? Answered from exports and public keys alone."""

from pathlib import Path
from typing import Any, Final

import click

from nixfleet.audit.export import find_exports, open_export, read_public
from nixfleet.audit.proof import Allowed, HostProof, Verdict, prove
from nixfleet.audit.trace import Offered, Proved
from nixfleet.commands import options
from nixfleet.keys.roots import read_roots
from nixfleet.terminal import BAD, GOOD, QUIET, WARN, Cell, note, print_json, print_line
from nixfleet_agent.status import IN_WORDS
from state_machine.values import WallMs
from wire.timestamps import format_rfc3339

EXIT_BROKEN: Final = 1
EXIT_UNSIGNED: Final = 3
"""Everything holds, but not everything is proved: some switch rests on no signature."""


@click.group()
def audit() -> None:
    """Prove what hosts did, from their public keys alone."""


@audit.command()
@click.argument("paths", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--trust-file",
    type=options.FILE,
    multiple=True,
    envvar="NIXFLEET_TRUST_FILE",
    show_envvar=True,
    help="The trust roots; may be repeated, for artifacts from before a rotation.",
)
@click.option("--host-key", type=options.FILE, help="The public key the host must have signed with, if it is known.")
@options.as_json
@click.pass_context
def verify(
    ctx: click.Context, paths: tuple[Path, ...], trust_file: tuple[Path, ...], host_key: Path | None, as_json: bool
) -> None:
    """Verify journal exports: each PATH is one host's export or a directory of them.

    Checks the hash chain and every signature; with a trust file also that the fleet declares the key that signed, and
    that every switch was to what a manifest gave the host, verified again from the manifest's bytes.

    Exit status: 0 everything holds, 1 something does not and the first entry of it is named, 3 everything holds, but a
    host followed a source that signs nothing: what it switched to rests on mutual TLS alone, or on the cache's key
    alone, as is said of each switch, and is not proved by a signature.
    """
    trusts = [read_roots(path) for path in trust_file]
    public = read_public(host_key) if host_key is not None else None
    exports = find_exports(paths)
    if host_key is not None and len(exports) > 1:
        raise click.UsageError(f"--host-key is one host's key, but there are {len(exports)} exports")
    proofs = [prove(open_export(path), host_key=public, trusts=trusts) for path in exports]
    if as_json:
        verdict = _worst(proofs)
        hosts = [_document(proof) for proof in proofs]
        print_json({"hosts": hosts, "ok": verdict is Verdict.HOLDS, "verdict": verdict.value})
    else:
        for proof in proofs:
            _show(proof)
        if not trusts:
            note("no --trust-file: who allowed the switches was read from the journals, not verified")
    for proof in proofs:
        if proof.unsigned:
            count = f"{len(proof.unsigned)} of {len(proof.allowed)} switches"
            click.echo(f"unsigned: {proof.host}: {count} not proved by a signature", err=True)
    broken = [proof for proof in proofs if proof.broken is not None]
    if broken:
        first = broken[0]
        click.echo(f"broken: {first.host}: {first.broken}", err=True)
        ctx.exit(EXIT_BROKEN)
    if _worst(proofs) is Verdict.UNSIGNED:
        ctx.exit(EXIT_UNSIGNED)


def _worst(proofs: list[HostProof]) -> Verdict:
    verdicts = {proof.verdict for proof in proofs}
    return next((each for each in (Verdict.BROKEN, Verdict.UNSIGNED) if each in verdicts), Verdict.HOLDS)


def _show(proof: HostProof) -> None:
    span = f"{proof.entries} entries" if proof.first == 1 else f"{proof.entries} entries from {proof.first} on"
    if proof.broken is None:
        print_line((Cell(f"{proof.host}:", GOOD), f"{span}, chain intact, {_key(proof)}"))
    else:
        print_line((Cell(f"{proof.host}: BROKEN", BAD), f"at {proof.broken}; {span} before it hold"))
    for allowed in proof.allowed:
        _show_switch(allowed)


def _key(proof: HostProof) -> str:
    whose = f"the one {proof.vouched_by} names" if proof.vouched_by else "known from the export alone"
    return f"key {proof.key[:12]} is {whose}"


def _show_switch(allowed: Allowed) -> None:
    activation = allowed.activation
    at = activation.started_at if activation.started_at is not None else activation.completed_at
    print_line((f"  activated {activation.closure or 'something'} at {_time(at)},",))
    print_line((Cell(f"    {_reason(allowed)}", WARN if allowed.offered is not None else ""),))
    if activation.converged_at is not None:
        print_line((Cell(f"    converged at {_time(activation.converged_at)}", QUIET),))
    if activation.failure is not None:
        print_line((Cell(f"    failed: {activation.failure}", WARN),))
    if activation.reverted_at is not None:
        print_line((Cell(f"    rolled back to {activation.reverted_to} at {_time(activation.reverted_at)}", WARN),))


def _reason(allowed: Allowed) -> str:
    if allowed.offered is not None:
        name = f" as {allowed.offered.offered_as}" if allowed.offered.offered_as else ""
        rests_on = IN_WORDS[allowed.offered.basis]
        return f"offered{name} at {_time(allowed.offered.at)}: rests on {rests_on}, not proved by a signature"
    if allowed.proved is None:
        return f"for {_short(allowed.activation.rollout_id)}; what allowed it was cut off with the oldest entries"
    intent = allowed.proved.intent
    how = "allowed by" if allowed.verified else "it says allowed by"
    signed = f"signed {_time(intent.signed_at)} by key {intent.manifest_key_id}"
    return f"{how} manifest {_short(intent.rollout_id)} {signed}"


def _short(rollout_id: str) -> str:
    channel, _, ref = rollout_id.partition("@")
    return f"{channel}@{ref[:8]}"


def _time(at: WallMs | None) -> str:
    return "an unknown time" if at is None else format_rfc3339(at)


def _document(proof: HostProof) -> dict[str, Any]:
    return {
        "host": proof.host,
        "ok": proof.verdict is Verdict.HOLDS,
        "verdict": proof.verdict.value,
        "entries": proof.entries,
        "firstEntry": proof.first,
        "head": {"n": proof.head.n, "hash": proof.head.hash.hex()},
        "keyFingerprint": proof.key,
        "keyVouchedBy": proof.vouched_by,
        "activations": [_activation(allowed) for allowed in proof.allowed],
        "broken": None if proof.broken is None else {"entry": proof.broken.n, "problem": proof.broken.problem},
    }


def _activation(allowed: Allowed) -> dict[str, Any]:
    activation, proved = allowed.activation, allowed.proved
    return {
        "rolloutId": activation.rollout_id,
        "entry": activation.n,
        "closure": activation.closure,
        "priorClosure": activation.prior,
        "decidedAt": format_rfc3339(activation.decided_at),
        "startedAt": _stamp(activation.started_at),
        "completedAt": _stamp(activation.completed_at),
        "convergedAt": _stamp(activation.converged_at),
        "failure": activation.failure,
        "revertedTo": activation.reverted_to,
        "revertedAt": _stamp(activation.reverted_at),
        "allowedBy": None if proved is None else _allowed_by(proved, allowed.verified),
        "offer": None if allowed.offered is None else _offer(allowed.offered),
    }


def _offer(offered: Offered) -> dict[str, Any]:
    return {
        "entry": offered.n,
        "at": format_rfc3339(offered.at),
        "basis": offered.basis.value,
        "restsOn": IN_WORDS[offered.basis],
        "offeredAs": offered.offered_as or None,
    }


def _allowed_by(proved: Proved, verified: bool) -> dict[str, Any]:
    return {
        "entry": proved.n,
        "manifestDigest": proved.intent.manifest_digest,
        "manifestKeyId": proved.intent.manifest_key_id,
        "signedAt": format_rfc3339(proved.intent.signed_at),
        "fleetDigest": proved.intent.fleet_digest,
        "fleetKeyId": proved.intent.fleet_key_id,
        "verified": verified,
    }


def _stamp(at: WallMs | None) -> str | None:
    return None if at is None else format_rfc3339(at)
