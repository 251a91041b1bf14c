"""The planner: which hosts may be sent their target now, who is held and why, and how each rollout stands.

`plan` is pure and total. It depends on its input alone, not on the order of any mapping; given the same world with
its own dispatches outstanding, it dispatches nothing. It goes by channel, then wave, then host name, so who gets the
last place of a budget is the same every time.
"""

import enum
from collections.abc import Collection, Iterator

import attrs

from state_machine.gates import Candidate, first_block, nothing_planned
from state_machine.lifecycle import IN_FLIGHT
from state_machine.values import Channel, Closure, HostName, Phase, RolloutId
from state_machine.waves import soak_ms
from state_machine.world import PlannerInput, World, survey


class RolloutState(enum.StrEnum):
    """Where a whole rollout stands (protocol section 5.5). Pruned is for whoever keeps history to say."""

    OPENING = "Opening"
    """Nothing has been sent to any host yet."""
    ACTIVE = "Active"
    """At least one host is on its way."""
    CONVERGING = "Converging"
    """Every host that was reached is settled; others remain, or wait for their reboot."""
    TERMINAL = "Terminal"
    """Every host has converged."""
    REVERTED = "Reverted"
    """A host went back to what it ran before."""
    FAILED = "Failed"
    """A host failed and has not gone back."""
    SUPERSEDED = "Superseded"
    """A newer rollout of the channel has been opened."""


@attrs.frozen(kw_only=True)
class Dispatch:
    """Send the host its target. `soak_ms` is the soak of its wave, counted by the host from its own activation."""

    host: HostName
    rollout_id: RolloutId
    target_closure: Closure
    wave_index: int
    soak_ms: int


@attrs.frozen(kw_only=True)
class Held:
    """The host is not sent its target now: the gate that blocks, and why."""

    host: HostName
    rollout_id: RolloutId
    gate: str
    why: str


@attrs.frozen(kw_only=True)
class RolloutSummary:
    """One rollout before the plan's dispatches. `current_wave` is None for one that is not current on its channel."""

    rollout_id: RolloutId
    channel: Channel
    state: RolloutState
    current_wave: int | None
    hosts: int
    converged: int


@attrs.frozen(kw_only=True)
class Plan:
    """What to do now. Every host of a current rollout that is Pending and not already sent for is in one of the two."""

    dispatches: tuple[Dispatch, ...]
    held: tuple[Held, ...]
    rollouts: tuple[RolloutSummary, ...]


def plan(given: PlannerInput) -> Plan:
    """Who may be dispatched now, and why the others may not."""
    world = survey(given)
    so_far = nothing_planned(world)
    dispatches, held = [], []
    for candidate in _candidates(world):
        block = first_block(world, candidate, so_far)
        if block is None:
            dispatches.append(_dispatch(world, candidate))
            so_far = so_far.after(world, candidate.host)
        else:
            held.append(_held(candidate, *block))
    return Plan(dispatches=tuple(dispatches), held=tuple(held), rollouts=tuple(_summaries(world)))


def _candidates(world: World) -> Iterator[Candidate]:
    for rollout in world.rollouts.values():
        for target in rollout.entries.values():
            sent_for = (rollout.rollout_id, target.hostname) in world.given.outstanding
            if rollout.phase_of(target.hostname) is Phase.PENDING and not sent_for:
                yield Candidate(rollout=rollout, target=target)


def _dispatch(world: World, candidate: Candidate) -> Dispatch:
    rollout, target = candidate.rollout, candidate.target
    return Dispatch(
        host=target.hostname,
        rollout_id=rollout.rollout_id,
        target_closure=target.target_closure,
        wave_index=target.wave_index,
        soak_ms=soak_ms(world.given.fleet, rollout.manifest.channel, target.wave_index),
    )


def _held(candidate: Candidate, gate: str, why: str) -> Held:
    return Held(host=candidate.host, rollout_id=candidate.rollout.rollout_id, gate=gate, why=why)


def _summaries(world: World) -> Iterator[RolloutSummary]:
    """By channel, then by id. An older rollout's manifest is not at hand: it has the hosts that answered to it."""
    sent = {rollout_id for rollout_id, _ in world.given.outstanding}
    views = {view.rollout_id: view for view in world.rollouts.values()}
    phases = {view.rollout_id: [view.phase_of(host) for host in view.entries] for view in views.values()}
    for (rollout_id, _), record in world.given.mirrors.items():
        if rollout_id not in views:
            phases.setdefault(rollout_id, []).append(record.phase)
    for channel, rollout_id in sorted((_channel(rollout_id), rollout_id) for rollout_id in phases):
        view = views.get(rollout_id)
        yield RolloutSummary(
            rollout_id=rollout_id,
            channel=channel,
            state=_state(phases[rollout_id], rollout_id in world.given.superseded, rollout_id in sent),
            current_wave=None if view is None else view.current_wave,
            hosts=len(phases[rollout_id]),
            converged=phases[rollout_id].count(Phase.CONVERGED),
        )


def _channel(rollout_id: RolloutId) -> Channel:
    return Channel(rollout_id.partition("@")[0])


def _state(phases: Collection[Phase], superseded: bool, sent: bool) -> RolloutState:
    seen = frozenset(phases)
    if superseded:
        return RolloutState.SUPERSEDED
    if Phase.FAILED in seen:
        return RolloutState.FAILED
    if Phase.REVERTED in seen:
        return RolloutState.REVERTED
    if seen <= {Phase.CONVERGED}:
        return RolloutState.TERMINAL
    if sent or seen & IN_FLIGHT:
        return RolloutState.ACTIVE
    return RolloutState.OPENING if seen == {Phase.PENDING} else RolloutState.CONVERGING
