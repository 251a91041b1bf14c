"""What a release would change and what it published: as tables and lines for people, as a document for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from nixfleet.release.changes import Change, ChangeKind
from nixfleet.release.plan import Plan
from nixfleet.release.publish import Published
from nixfleet.terminal import BUSY, GOOD, QUIET, WARN, Cell, note, print_json, print_line, print_table
from state_machine.values import WallMs
from wire.timestamps import format_rfc3339

Packages = Mapping[str, Sequence[str]]
"""By host a line for each package that its closure gains, loses or has in another version."""

_STYLES = {
    ChangeKind.NEW: GOOD,
    ChangeKind.CHANGED: BUSY,
    ChangeKind.SAME: QUIET,
    ChangeKind.REMOVED: WARN,
}


def show_plan(plan: Plan, notices: Sequence[str], packages: Packages) -> None:
    """Who gets what, before anything is written."""
    for text in notices:
        note(text)
    different = [change for change in plan.changes if change.kind is not ChangeKind.SAME]
    if different:
        print_table(("host", "", "channel", "wave", "from", "to"), [_row(change) for change in different])
    for host, lines in packages.items():
        print_line((host,))
        for line in lines or ("no package differs",):
            print_line((Cell(f"  {line}", QUIET),))
    same = len(plan.changes) - len(different)
    if same:
        print_line((Cell(f"{same} host{'s' if same > 1 else ''} unchanged", QUIET),))
    if plan.unchanged:
        note(f"the published release asks for the same: commit {plan.commit[:8]} is kept, no new rollouts open")


def _row(change: Change) -> tuple[Cell | str, ...]:
    wave = "" if change.wave is None else str(change.wave)
    kind = Cell(change.kind.value, _STYLES[change.kind])
    return change.host, kind, change.channel, wave, change.old or "-", change.new or "-"


def show_published(published: Published, where: str) -> None:
    """What is out now."""
    for rollout_id in published.rollout_ids:
        print_line((Cell("signed", GOOD), rollout_id))
    for name in published.pruned:
        print_line((Cell("removed", QUIET), name))
    what = f"{where}: commit {published.commit[:8]}, key {published.key_id}"
    print_line((Cell("published", GOOD), f"{what}, signed {format_rfc3339(published.signed_at)}"))


def show_unsigned(plan: Plan, where: str) -> None:
    """What a dry run left undone."""
    for manifest, _ in plan.resolved.manifests:
        print_line((Cell("would sign", QUIET), manifest.rollout_id))
    print_line((Cell("dry run:", QUIET), f"nothing was written to {where}"))


def not_due(where: str, due: WallMs, as_json: bool) -> None:
    """That nothing was signed, because the signatures are good for a while yet."""
    if as_json:
        print_json({"dueAt": format_rfc3339(due)})
    else:
        print_line((Cell("not due", GOOD), f"until {format_rfc3339(due)}: {where}"))


def plan_document(plan: Plan, notices: Sequence[str], packages: Packages, published: Published | None) -> Any:
    """The same for a program."""
    changes = [
        {
            "host": change.host,
            "kind": change.kind.value,
            "channel": change.channel,
            "wave": change.wave,
            "old": change.old,
            "new": change.new,
            **({"packages": list(packages[change.host])} if change.host in packages else {}),
        }
        for change in plan.changes
    ]
    return {
        "commit": plan.commit,
        "changes": changes,
        "notices": list(notices),
        "published": None if published is None else published_document(published),
        "rollouts": [manifest.rollout_id for manifest, _ in plan.resolved.manifests],
        "unchanged": plan.unchanged,
    }


def published_document(published: Published) -> dict[str, Any]:
    """What is out now, for a program."""
    return {
        "commit": published.commit,
        "files": list(published.files),
        "fleetDigest": published.fleet_digest,
        "keyId": published.key_id,
        "pruned": list(published.pruned),
        "rollouts": list(published.rollout_ids),
        "signedAt": format_rfc3339(published.signed_at),
    }
