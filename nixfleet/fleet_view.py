"""What an operator sees of a fleet: listings of the control plane as rows of words. Pure."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

import attrs

from nixfleet.clock import in_words
from nixfleet.terminal import BAD, BUSY, GOOD, QUIET, WARN, Cell, Row
from state_machine.values import Basis, Closure, Phase, RolloutId, WallMs
from wire.listings import DeferralList, HostList, HostRow, RolloutList, RolloutRow
from wire.timestamps import format_rfc3339

STATUS_HEADERS: Final = ("host", "channel", "state", "rollout", "runs", "seen", "probes", "note")
HOST_HEADERS: Final = ("host", "channel", "runs", "declared", "agent", "up", "proved facts", "seen")
MACHINE_HEADERS: Final = ("machine", "declared on", "tags", "agent", "trust rests on", "seen", "trouble")
ROLLOUT_HEADERS: Final = ("rollout", "opened", "wave", "hosts")

PHASE_STYLES: Final[Mapping[Phase, str]] = {
    Phase.PENDING: QUIET,
    Phase.ACTIVATING: BUSY,
    Phase.DEFERRED: WARN,
    Phase.SOAKING: BUSY,
    Phase.CONVERGED: GOOD,
    Phase.FAILED: BAD,
    Phase.REVERTED: BAD,
}

_HASH_SHOWN: Final = 12
_REF_SHOWN: Final = 8
_SILENT_AFTER_MS: Final = 5 * 60_000
"""Five missed heartbeats at the usual minute: worth a colour."""


def status_summary(hosts: HostList) -> str:
    """The fleet in one line."""
    states = Counter(row.rollout_state for row in hosts.hosts)
    told = [f"{states[phase]} {phase.lower()}" for phase in Phase if states[phase]]
    if states[None]:
        told.append(f"{states[None]} without a rollout")
    count = len(hosts.hosts)
    return f"{count} host{'s' if count != 1 else ''}: {', '.join(told)}" if count else "no hosts are declared"


def status_rows(hosts: HostList, now: WallMs) -> list[Row]:
    """Where each host stands."""
    return [
        (
            row.hostname,
            row.channel or "-",
            phase_cell(row.rollout_state),
            short_rollout(row.last_rollout_id),
            short_closure(row.current_closure_hash),
            _seen(row, now),
            _probes(row.health),
            _note(row),
        )
        for row in hosts.hosts
    ]


def host_rows(hosts: HostList, now: WallMs) -> list[Row]:
    """What each host runs, and what it says of itself."""
    return [
        (
            row.hostname,
            row.channel or "-",
            _against(row.current_closure_hash, row.declared_closure_hash),
            row.declared_closure_hash or "-",
            row.agent_version or "-",
            "-" if row.last_uptime_secs is None else in_words(row.last_uptime_secs * 1000),
            str(row.verified_event_count),
            _seen(row, now),
        )
        for row in hosts.hosts
    ]


def machine_rows(hosts: HostList, now: WallMs) -> list[Row]:
    """Which machines are known, which of them the signed fleet declares, and what each goes by."""
    return [
        (
            row.hostname,
            row.channel or Cell("not declared", WARN),
            ",".join(row.tags) or "-",
            row.agent_version or "-",
            _basis(row),
            _seen(row, now),
            Cell(row.failure or "", BAD),
        )
        for row in hosts.hosts
    ]


def with_tags(hosts: HostList, tags: Collection[str]) -> HostList:
    """The hosts that have all of these tags."""
    return attrs.evolve(hosts, hosts=tuple(row for row in hosts.hosts if set(tags) <= set(row.tags)))


def rollout_rows(rollouts: RolloutList) -> list[Row]:
    """Every rollout with how many hosts are in which state."""
    return [(row.rollout_id, _opened(row), str(row.current_wave), _states(row)) for row in rollouts.rollouts]


def deferral_lines(deferrals: DeferralList) -> list[str]:
    """Which channels wait for which."""
    return [f"{each.channel} waits for {each.blocked_by}: {each.reason}" for each in deferrals.deferrals]


def phase_cell(phase: Phase | None) -> Cell:
    """A state in its colour."""
    return Cell("-", QUIET) if phase is None else Cell(phase.value, PHASE_STYLES[phase])


def short_closure(closure: Closure | None) -> str:
    """As much of a store path's name as a person compares: some of the hash and the end of the name."""
    if not closure:
        return "-"
    digest, _, name = closure.partition("-")
    return f"{digest[:_HASH_SHOWN]}-{name}"


def short_rollout(rollout_id: RolloutId | None) -> str:
    """`stable@4be0c1d2`."""
    if rollout_id is None:
        return "-"
    channel, _, ref = rollout_id.partition("@")
    return f"{channel}@{ref[:_REF_SHOWN]}"


def _basis(row: HostRow) -> Cell:
    """A host that checks no signature believes whoever holds the server's key."""
    if row.basis is None:
        return Cell("-", QUIET)
    return Cell(row.basis.value, GOOD if row.basis is Basis.SIGNED_MANIFEST else WARN)


def _seen(row: HostRow, now: WallMs) -> Cell:
    if row.last_checkin_at is None:
        return Cell("never", WARN)
    age = max(0, now - row.last_checkin_at)
    return Cell("just now" if age < 1000 else f"{in_words(age)} ago", WARN if age > _SILENT_AFTER_MS else "")


def _probes(health: Mapping[str, int]) -> Cell:
    told = [f"{count} {status}" for status, count in sorted(health.items()) if count]
    return Cell(", ".join(told) or "-", BAD if health.get("fail") else "")


def _note(row: HostRow) -> Cell:
    if row.failure is not None:
        return Cell(row.failure, BAD)
    if row.pending_reboot:
        return Cell("a reboot completes it", WARN)
    if row.waiting_on is not None:
        return Cell(f"waits for {row.waiting_on}", QUIET)
    if row.quarantined_closure is not None:
        return Cell(f"{short_closure(row.quarantined_closure)} is quarantined", WARN)
    if row.pin is not None:
        return Cell(f"pinned: {row.pin.reason}", QUIET)
    return Cell("")


def _against(running: Closure | None, declared: Closure | None) -> Cell:
    if running is None:
        return Cell("-", QUIET)
    return Cell(running, GOOD if running == declared else WARN)


def _opened(row: RolloutRow) -> str:

    return format_rfc3339(row.created_at)


def _states(row: RolloutRow) -> Cell:
    states = Counter(row.host_states.values())
    style = BAD if states[Phase.FAILED] or states[Phase.REVERTED] else ""
    return Cell(", ".join(f"{states[phase]} {phase.lower()}" for phase in Phase if states[phase]) or "-", style)
