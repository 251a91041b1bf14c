"""Work out what a release would do before it does it: under which commit, and what changes for whom.

A commit that changes nothing a host runs opens no new rollouts: the intent that is out is signed once more under the
commit it has, so that a fleet does not soak and probe for the sake of a corrected comment.
"""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import attrs

from evidence.canonical import parse
from nixfleet.release.changes import Change, changes_between, same_intent
from nixfleet.release.commit import ref_of
from nixfleet.release.description import Description
from nixfleet.release.published import published_document
from nixfleet.release.resolve import Resolved, resolve
from nixfleet.release.staging import FLEET
from nixfleet.release.target import Target, target_of
from state_machine.values import WallMs
from wire.json_value import JsonObject

_NO_COMMIT = "0"


@attrs.frozen(kw_only=True)
class Plan:
    """A release that has not been written. `unchanged`: it asks for exactly what is published."""

    commit: str
    resolved: Resolved
    changes: tuple[Change, ...]
    unchanged: bool


def plan_release(
    description: Description,
    out: Target | Path,
    now: WallMs,
    *,
    commit: str | None,
    head: Callable[[], str | None],
    new_rollout: bool = False,
) -> Plan:
    """Decide the commit: the published one when nothing changes, else `commit`, else `head()`, else one made of the
    content. `new_rollout` opens new rollouts even when nothing changes.

    Raises:
        DescriptionError: listing everything that is wrong.
        DamagedError: what is published cannot be read.
        TargetError: it cannot be reached.
    """
    published = published_document(target_of(out), FLEET)
    document = cast(JsonObject, parse(resolve(description, commit=_NO_COMMIT, signed_at=now).fleet_bytes))
    unchanged = same_intent(published, document)
    kept = _commit_of(published) if unchanged and not new_rollout else None
    chosen = kept or commit or head() or ref_of(document)
    resolved = resolve(description, commit=chosen, signed_at=now)
    return Plan(
        commit=chosen,
        resolved=resolved,
        changes=changes_between(published, resolved.fleet),
        unchanged=unchanged,
    )


def _commit_of(published: JsonObject | None) -> str | None:
    meta = published.get("meta") if published is not None else None
    commit = meta.get("ciCommit") if isinstance(meta, dict) else None
    return commit if isinstance(commit, str) else None
