"""Gates: who may not be dispatched now, and why, in a sentence an operator can act on.

`GATES` is the page to read. A gate is a pure function of the world, one candidate and the plan so far; it returns
why it blocks, or None. They are asked in order and the first that blocks is reported, so those that say a rollout is
wrong come before those that say it must wait, and the budget, which depends on the plan so far, comes last. A new
gate is one function and one row.

There is no gate for pins: the release tool builds a pinned host from its pinned commit, so what the signed manifest
gives it is what its pin asks for (protocol section 2.2).
"""

from collections.abc import Callable
from typing import Final

import attrs

from state_machine.freshness import age_verdict
from state_machine.intent import HostEdge, HostTarget
from state_machine.lifecycle import SETTLED
from state_machine.values import Channel, HostName, Reason
from state_machine.world import RolloutView, World

REOFFER_AFTER_MS: Final = 10 * 60_000
"""How long after a refusal a host is asked again. What it refused may have healed: a clock, a mirror, a quarantine."""


@attrs.frozen(kw_only=True)
class Candidate:
    """A host that its rollout has not reached: Pending, and nothing on its way to it."""

    rollout: RolloutView
    target: HostTarget

    @property
    def host(self) -> HostName:
        """Its name."""
        return self.target.hostname


@attrs.frozen(kw_only=True)
class PlanSoFar:
    """How many members of each of `World.budgets` are in flight, with those this plan has dispatched already."""

    used: tuple[int, ...]

    def after(self, world: World, host: HostName) -> "PlanSoFar":
        """The same with `host` dispatched. One that was in flight before counts already."""
        if host in world.in_flight:
            return self
        pairs = zip(self.used, world.budgets, strict=True)
        return PlanSoFar(used=tuple(count + (host in budget.members) for count, budget in pairs))


def nothing_planned(world: World) -> PlanSoFar:
    """The plan before its first dispatch."""
    return PlanSoFar(used=tuple(len(budget.members & world.in_flight) for budget in world.budgets))


Predicate = Callable[[World, Candidate, PlanSoFar], str | None]


def superseded(world: World, candidate: Candidate, _: PlanSoFar) -> str | None:
    """A newer rollout of the channel has been opened."""
    if candidate.rollout.rollout_id not in world.given.superseded:
        return None
    return "a newer rollout of its channel has been opened"


def anchor(world: World, candidate: Candidate, _: PlanSoFar) -> str | None:
    """The manifest is for another fleet snapshot, or for another channel, than it is planned with (mix and match)."""
    manifest, given = candidate.rollout.manifest, world.given
    if manifest.channel != candidate.rollout.filed_under:
        return f"the manifest is for channel {manifest.channel}, not {candidate.rollout.filed_under}"
    if manifest.fleet_resolved_hash != given.fleet_digest:
        return (
            f"the manifest is anchored to fleet snapshot {manifest.fleet_resolved_hash[:12] or 'nothing'}, "
            f"the current one is {given.fleet_digest[:12]}: release both together"
        )
    return None


def declared(world: World, candidate: Candidate, _: PlanSoFar) -> str | None:
    """The fleet snapshot does not know the channel, or does not have the host on it."""
    channel, host = candidate.rollout.manifest.channel, world.given.fleet.hosts.get(candidate.host)
    if channel not in world.given.fleet.channels:
        return f"the fleet declares no channel {channel}"
    if host is None:
        return "the fleet does not declare this host"
    if host.channel != channel:
        return f"the fleet has this host on channel {host.channel}, not {channel}"
    return None


def freshness(world: World, candidate: Candidate, _: PlanSoFar) -> str | None:
    """The manifest is older than its channel's signed window, or from the future (section 2.6, steps 7, 9 and 10)."""
    manifest, now = candidate.rollout.manifest, world.given.now
    signed_at = manifest.meta.signed_at
    if signed_at is None:
        return "the manifest does not say when it was signed"
    channel = world.given.fleet.channels.get(manifest.channel)
    window_s = 0 if channel is None else channel.freshness_window * 60
    match age_verdict(signed_at, now, window_s * 1000):
        case None:
            return None
        case Reason.FUTURE_DATED:
            return f"the manifest is dated {(signed_at - now) // 1000} s in the future: check the clocks"
        case _:
            age_s = (now - signed_at) // 1000
            return f"the manifest was signed {age_s} s ago and its channel allows {window_s} s: sign it again"


def revoked(world: World, candidate: Candidate, _: PlanSoFar) -> str | None:
    """The host's certificate is revoked."""
    return "its certificate is revoked: enrol it again" if candidate.host in world.given.revoked else None


def unreachable(world: World, candidate: Candidate, _: PlanSoFar) -> str | None:
    """The host has not been heard of; a dispatch waiting for it would use up a budget."""
    return "it has not been heard of lately" if candidate.host in world.given.unreachable else None


def quarantine(world: World, candidate: Candidate, _: PlanSoFar) -> str | None:
    """The target was rolled back before: anywhere on the channel, or on this host (promise S3)."""
    channel, target = candidate.rollout.manifest.channel, candidate.target.target_closure
    if (channel, target) in world.given.quarantine:
        return f"{target} is quarantined on channel {channel}: release another, or clear it"
    if (candidate.host, target) in world.given.host_quarantine:
        return f"{target} is quarantined on this host: release another, or clear it there"
    return None


def halted(_: World, candidate: Candidate, __: PlanSoFar) -> str | None:
    """A host of this wave or an earlier one failed or was rolled back: the rollout spreads no further."""
    failure = candidate.rollout.first_failure
    if failure is None or failure.wave_index > candidate.target.wave_index:
        return None
    phase = candidate.rollout.phase_of(failure.hostname)
    return f"{failure.hostname} of wave {failure.wave_index} is {phase}: this rollout goes no further"


def refused(world: World, candidate: Candidate, _: PlanSoFar) -> str | None:
    """The host rejected the dispatch. It is asked again after `REOFFER_AFTER_MS`, when it is known when it did."""
    record = candidate.rollout.records.get(candidate.host)
    if record is None or record.refusal is None:
        return None
    refused_at = world.given.refused_at.get((candidate.rollout.rollout_id, candidate.host))
    if refused_at is None:
        return f"it refused this rollout ({record.refusal})"
    left_ms = refused_at + REOFFER_AFTER_MS - world.given.now
    return f"it refused ({record.refusal}) and is asked again in {-(-left_ms // 1000)} s" if left_ms > 0 else None


def channel_edges(world: World, candidate: Candidate, _: PlanSoFar) -> str | None:
    """A channel that goes first is not through with its current rollout. One without a manifest holds nobody."""
    channel = candidate.rollout.manifest.channel
    for edge in world.given.fleet.channel_edges:
        if edge.gated == channel and edge.gates in world.unfinished:
            circle = f"; {_circle(world.circular_channels)}" if channel in world.circular_channels else ""
            return f"channel {edge.gates} goes first{_because(edge.reason)}: {world.unfinished[edge.gates]}{circle}"
    return None


def wave_promotion(_: World, candidate: Candidate, __: PlanSoFar) -> str | None:
    """An earlier wave is not settled, or the channel has waves and none of them has this host."""
    rollout, wave = candidate.rollout, candidate.target.wave_index
    if candidate.host in rollout.unplaced:
        return f"channel {rollout.manifest.channel} has waves and none of them lists this host: add it to one"
    if wave <= rollout.current_wave:
        return None
    first, *others = rollout.awaited
    more = f" and {len(others)} more" if others else ""
    return f"wave {wave} waits for wave {rollout.current_wave}: {first} is {rollout.phase_of(first)}{more}"


def host_edge(_: World, candidate: Candidate, __: PlanSoFar) -> str | None:
    """A host that goes first in the same rollout is not settled."""
    rollout = candidate.rollout
    for edge in rollout.waits_for.get(candidate.host, ()):
        phase = rollout.phase_of(edge.gates)
        if phase not in SETTLED:
            return f"{edge.gates} goes first{_because(edge.reason)} and is {phase}{_contradiction(candidate, edge)}"
    return None


def disruption_budget(world: World, candidate: Candidate, so_far: PlanSoFar) -> str | None:
    """As many hosts of a budget as it allows are in flight. A host in flight itself takes no further place."""
    if candidate.host in world.in_flight:
        return None
    for budget, used in zip(world.budgets, so_far.used, strict=True):
        if used >= budget.limit and candidate.host in budget.members:
            return f"the budget for {budget.label} allows {budget.limit} in flight and {used} are"
    return None


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _contradiction(candidate: Candidate, edge: HostEdge) -> str:
    """What makes the wait endless, if anything does: then the signed intent contradicts itself."""
    rollout = candidate.rollout
    if candidate.host in rollout.circular and edge.gates in rollout.circular:
        return f"; {_circle(rollout.circular)}"
    if (wave := rollout.entries[edge.gates].wave_index) > candidate.target.wave_index:
        return f", but its wave {wave} comes after this host's: move one of them"
    return ""


def _circle(names: frozenset[HostName] | frozenset[Channel]) -> str:
    return f"the edges between {', '.join(sorted(names))} go round in a circle: remove one"


@attrs.frozen
class Gate:
    """A row of the table: the name that is reported and counted, and the predicate."""

    name: str
    blocks: Predicate


GATES: Final = (
    Gate("superseded", superseded),
    Gate("anchor", anchor),
    Gate("declared", declared),
    Gate("freshness", freshness),
    Gate("revoked", revoked),
    Gate("unreachable", unreachable),
    Gate("quarantine", quarantine),
    Gate("halted", halted),
    Gate("refused", refused),
    Gate("channel-edges", channel_edges),
    Gate("wave-promotion", wave_promotion),
    Gate("host-edge", host_edge),
    Gate("disruption-budget", disruption_budget),
)


def first_block(world: World, candidate: Candidate, so_far: PlanSoFar) -> tuple[str, str] | None:
    """The name of the first gate that blocks the candidate and why it does, or None when it may go."""
    for gate in GATES:
        if why := gate.blocks(world, candidate, so_far):
            return gate.name, why
    return None
