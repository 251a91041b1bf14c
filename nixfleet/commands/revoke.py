"""`nixfleet revoke`: refuse a host's certificates that were issued before an instant."""

from pathlib import Path

import click

from nixfleet.clock import wall_now
from nixfleet.commands import options, signing, targets
from nixfleet.keys import tokens
from nixfleet.keys.hints import about_host
from nixfleet.release.published import published_document
from nixfleet.release.staging import FLEET, REVOCATIONS
from nixfleet.release.target import Target
from nixfleet.terminal import note
from state_machine.intent import Revocation
from state_machine.values import HostName, WallMs
from wire.timestamps import format_rfc3339


@click.command()
@click.argument("host", type=options.HOST)
@click.option("--reason", help="Noted on the list.")
@click.option("--not-before", type=options.INSTANT, help="Refuse certificates issued before this.  [default: now]")
@click.option("--revoked-by", help="Who is noted on the list.  [default: the user's name]")
@options.ci_key
@targets.to_target
@options.trust_file
def revoke(
    host: str,
    reason: str | None,
    not_before: WallMs | None,
    revoked_by: str | None,
    ci_key: str | None,
    target: Target,
    trust_file: Path | None,
) -> None:
    """Put HOST on the signed list of revocations, which the control plane follows.

    Every certificate of the host that was issued earlier is refused from then on. Enrolling again, with a new token,
    gives it a certificate that is good: revoke first, then find out, then enrol.
    """
    signer = signing.ci_signer(ci_key, trust_file)
    if (hint := about_host(published_document(target, FLEET), host)) is not None:
        note(hint)
    now = wall_now()
    entry = Revocation(
        hostname=HostName(host),
        not_before=options.instant(not_before),
        reason=reason,
        revoked_by=revoked_by or options.user(),
    )
    listed = tokens.revoke(target, entry, signer, now, signing.ci_slot(trust_file))
    since = next(known.not_before for known in listed.revocations if known.hostname == host)
    click.echo(f"{host}: certificates issued before {format_rfc3339(since)} are revoked ({target.where}/{REVOCATIONS})")
