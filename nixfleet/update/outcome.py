"""How a run of the updater ended."""

import enum
from collections.abc import Mapping
from typing import Any, Final

import attrs

from nixfleet.update.errors import UpdateError
from nixfleet.update.message import Findings, in_words
from nixfleet.update.releasing import Released


class Kind(enum.StrEnum):
    """In one word."""

    UNCHANGED = "unchanged"
    """No input moved."""
    MERGED = "merged"
    PUSHED = "pushed"
    """On a branch, for somebody to merge."""
    PREPARED = "prepared"
    """A dry run, or nothing may be pushed: everything builds, and nothing was written anywhere."""
    BROKEN = "broken"
    """A system does not build; nothing was merged."""
    STOPPED = "stopped"
    """Git, nix, the disk or the network would not."""


EXIT_STATUS: Final[Mapping[Kind, int]] = {
    Kind.UNCHANGED: 0,
    Kind.MERGED: 0,
    Kind.PUSHED: 0,
    Kind.PREPARED: 0,
    Kind.BROKEN: 1,
    Kind.STOPPED: UpdateError.exit_code,
}


NOT_RELEASED: Final = 5
"""The exit status of a run that went well, but whose release did not come about."""


@attrs.frozen(kw_only=True)
class Outcome:
    """How it ended, and what it left."""

    instance: str
    kind: Kind
    findings: Findings
    base: str = ""
    """The commit of the main branch that the run began from."""
    commit: str = ""
    branch: str = ""
    pull_request: str = ""
    closed: tuple[str, ...] = ()
    """Stale branches that were removed."""
    released: Released | None = None
    """None: no release is made by this instance, or there was nothing to release."""
    notes: tuple[str, ...] = ()
    """What else went wrong, none of which changes how it ended."""

    @property
    def exit_status(self) -> int:
        """The command's."""
        failed = self.released is not None and self.released.why is not None
        return NOT_RELEASED if failed else EXIT_STATUS[self.kind]


def document(outcome: Outcome) -> dict[str, Any]:
    """For `--json`."""
    findings = outcome.findings
    return {
        "instance": outcome.instance,
        "outcome": outcome.kind.value,
        "base": outcome.base,
        "commit": outcome.commit or None,
        "branch": outcome.branch or None,
        "pullRequest": outcome.pull_request or None,
        "inputs": [
            {
                "name": move.name,
                "from": None if move.before is None else move.before.rev,
                "to": None if move.after is None else move.after.rev,
                "words": in_words(move),
            }
            for move in findings.moves
        ],
        "systems": [
            {
                "host": built.system.host,
                "ok": built.ok,
                "path": built.path,
                "seconds": round(built.seconds, 1),
                "log": None if built.log is None else str(built.log),
                "changes": list(findings.closures.get(built.system.host, ())),
            }
            for built in findings.built
        ],
        "attempts": [
            {"host": a.system.host, "number": a.number, "ok": a.ok, "why": a.why, "changed": list(a.changed)}
            for a in findings.attempts
        ],
        "released": None if outcome.released is None else attrs.asdict(outcome.released),
        "closedBranches": list(outcome.closed),
        "notes": list(outcome.notes),
    }
