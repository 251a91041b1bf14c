"""What hosts rolled back and remember is not released to them again: nobody would be sent it, and nobody wants it.

The hosts and the control plane would hold such a release by themselves. It is refused here because a release that
goes nowhere hides the one that should be made instead.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from nixfleet.errors import StoppedError
from state_machine.intent import Fleet
from state_machine.values import Closure, HostName

SHOWN: Final = 10
LONGEST: Final = 255
"""Letters of what the control plane says, which it is not trusted to keep short."""


@attrs.frozen(kw_only=True)
class Quarantined:
    """A host that would be sent what was rolled back. `by` rolled it back, `since` then (RFC 3339)."""

    rollout: str
    """That would send it."""
    host: HostName
    closure: Closure
    by: str
    since: str

    def __str__(self) -> str:
        who = "it itself" if self.by == self.host else self.by
        return f"{self.rollout}: {self.host} would run {self.closure}, which {who} rolled back on {self.since}"


@attrs.frozen(kw_only=True)
class QuarantinedError(StoppedError):
    """A release asks for closures that are quarantined."""

    found: tuple[Quarantined, ...]

    def __str__(self) -> str:
        more = len(self.found) - SHOWN
        lines = [f"  {each}" for each in self.found[:SHOWN]] + ([f"  and {more} more"] if more > 0 else [])
        return "\n".join([
            "not released: the fleet has what it asks for in quarantine",
            *lines,
            "mend it and release what comes of it; `nixfleet quarantine clear` allows it again, and "
            "--allow-quarantined releases it as it is",
        ])  # fmt: skip


def quarantined_in(fleet: Fleet, quarantine: Iterable[Mapping[str, Any]]) -> tuple[Quarantined, ...]:
    """The hosts of a fleet whose closure is quarantined on their channel, by the control plane's rows."""
    rows = {(str(row.get("channel")), str(row.get("closure"))): row for row in quarantine}
    return tuple(
        Quarantined(
            rollout=f"{host.channel}@{fleet.meta.ci_commit or ''}",
            host=name,
            closure=host.closure_hash,
            by=str(row.get("hostname", "somebody"))[:LONGEST],
            since=str(row.get("since", "an unknown day"))[:LONGEST],
        )
        for name, host in sorted(fleet.hosts.items())
        if host.closure_hash is not None and (row := rows.get((host.channel, host.closure_hash))) is not None
    )
