"""`nixfleet release`: from a fleet description to signed files that hosts will act on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from nixfleet.clock import wall_now
from nixfleet.commands import options, signing
from nixfleet.release.changes import Change, ChangeKind
from nixfleet.release.commit import head_of
from nixfleet.release.example import EXAMPLE
from nixfleet.release.plan import Plan, plan_release
from nixfleet.release.publish import Published, publish_release, refresh_release
from nixfleet.release.read import read_description
from nixfleet.terminal import BUSY, GOOD, QUIET, WARN, Cell, note, print_json, print_line, print_table
from wire.timestamps import format_rfc3339

_STYLES = {
    ChangeKind.NEW: GOOD,
    ChangeKind.CHANGED: BUSY,
    ChangeKind.SAME: QUIET,
    ChangeKind.REMOVED: WARN,
}


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = dict(value.partition("=")[::2] for value in values)
    if len(pairs) != len(values) or not all(host and path for host, path in pairs.items()):
        raise click.BadParameter("write --closure HOST=STORE_PATH, once for each host", ctx, param)
    return pairs


def _show_example(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(EXAMPLE, nl=False)
        ctx.exit()


@click.command()
@click.argument("description", type=options.FILE, required=False)
@click.option(
    "--closure",
    "closures",
    multiple=True,
    callback=_pairs,
    metavar="HOST=STORE_PATH",
    help="What a host is to run, instead of what the description says; may be repeated.",
)
@options.ci_key
@options.releases_dir
@click.option(
    "--commit",
    type=options.COMMIT,
    help="The commit, in hex, that rollouts are named after.  [default: git's HEAD, else a hash]",
)
@click.option("--new-rollout", is_flag=True, help="Open new rollouts even when nothing changes for any host.")
@click.option("--refresh", is_flag=True, help="Sign what is published once more, unchanged; needs no description.")
@options.trust_file
@click.option("--dry-run", is_flag=True, help="Check, show what would change, write nothing; needs no key.")
@options.as_json
@click.option(
    "--example",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_example,
    help="Print a description to begin from, with every member explained, and stop.",
)
def release(
    description: Path | None,
    closures: Any,
    ci_key: Path | None,
    releases_dir: Path,
    commit: str | None,
    new_rollout: bool,
    refresh: bool,
    trust_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Resolve DESCRIPTION, sign it and publish it: fleet.resolved.json and one rollout manifest per channel.

    DESCRIPTION is TOML or JSON and has the members of fleet.resolved.json without `schemaVersion`, `waves` and `meta`;
    its policies' waves are resolved to hosts here, the first wave that matches a host taking it. All problems are
    listed at once. Files appear complete: manifests before the fleet that names them. `--example` shows a description.

    A signature must be renewed before the channel's freshness window closes: run `release --refresh` from a timer.
    """
    if refresh:
        _refresh(description, ci_key, releases_dir, trust_file, dry_run, as_json)
        return
    if description is None:
        raise click.UsageError("name the fleet description, or give --refresh to sign again what is published")
    now = wall_now()
    wanted = read_description(description).with_closures(closures)
    plan = plan_release(
        wanted,
        releases_dir,
        now,
        commit=commit,
        head=lambda: head_of(description.absolute().parent),
        new_rollout=new_rollout,
    )
    if not as_json:
        _show_plan(plan)
    published = None
    if not dry_run:
        signer = signing.ci_signer(ci_key, trust_file)
        published = publish_release(wanted, signer, releases_dir, plan.commit, now)
    if as_json:
        print_json(_document(plan, published))
    elif published is not None:
        _show_published(published, releases_dir)


def _refresh(
    description: Path | None,
    ci_key: Path | None,
    releases_dir: Path,
    trust_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    if description is not None or dry_run:
        raise click.UsageError("--refresh goes without a description and without --dry-run: it changes nothing")
    signer = signing.ci_signer(ci_key, trust_file)
    published = refresh_release(signer, releases_dir, wall_now(), trusted=signing.ci_slot(trust_file))
    if as_json:
        print_json(_published(published))
    else:
        _show_published(published, releases_dir)


def _show_plan(plan: Plan) -> None:
    for text in plan.resolved.notices:
        note(text)
    different = [change for change in plan.changes if change.kind is not ChangeKind.SAME]
    if different:
        print_table(("host", "", "channel", "wave", "from", "to"), [_row(change) for change in different])
    same = len(plan.changes) - len(different)
    if same:
        print_line((Cell(f"{same} host{'s' if same > 1 else ''} unchanged", QUIET),))
    if plan.unchanged:
        note(f"the published release asks for the same: commit {plan.commit[:8]} is kept, no new rollouts open")


def _row(change: Change) -> tuple[Cell | str, ...]:
    wave = "" if change.wave is None else str(change.wave)
    kind = Cell(change.kind.value, _STYLES[change.kind])
    return change.host, kind, change.channel, wave, change.old or "-", change.new or "-"


def _show_published(published: Published, releases_dir: Path) -> None:
    for rollout_id in published.rollout_ids:
        print_line((Cell("signed", GOOD), rollout_id))
    what = f"{releases_dir}: commit {published.commit[:8]}, key {published.key_id}"
    print_line((Cell("published", GOOD), f"{what}, signed {format_rfc3339(published.signed_at)}"))


def _document(plan: Plan, published: Published | None) -> dict[str, Any]:
    changes = [
        {
            "host": change.host,
            "kind": change.kind.value,
            "channel": change.channel,
            "wave": change.wave,
            "old": change.old,
            "new": change.new,
        }
        for change in plan.changes
    ]
    return {
        "commit": plan.commit,
        "changes": changes,
        "notices": list(plan.resolved.notices),
        "published": None if published is None else _published(published),
        "rollouts": [manifest.rollout_id for manifest, _ in plan.resolved.manifests],
        "unchanged": plan.unchanged,
    }


def _published(published: Published) -> dict[str, Any]:
    return {
        "commit": published.commit,
        "files": list(published.files),
        "fleetDigest": published.fleet_digest,
        "keyId": published.key_id,
        "rollouts": list(published.rollout_ids),
        "signedAt": format_rfc3339(published.signed_at),
    }
