"""Rollouts over time: hosts take their dispatches, converge, sicken and reboot while releases overtake one another.

The machine is the world: it keeps its own account of what each host is doing, and holds every plan to it.
"""

from collections.abc import Callable

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from state_machine.facts import (
    ActivationCompleted,
    ActivationDeferred,
    ActivationFailed,
    Converged,
    DispatchAck,
    Fact,
    RollbackComplete,
)
from state_machine.lifecycle import HostRollout, fold, opened
from state_machine.planner import RolloutState, plan
from state_machine.selector import limit, members
from state_machine.values import HostName, Phase, RolloutId, WallMs
from state_machine.world import PlannerInput
from tests.property.planner_strategies import tidy_worlds
from tests.unit.planner_worlds import NOW, OLD

BUSY = {Phase.ACTIVATING, Phase.SOAKING}
SICK = {Phase.FAILED, Phase.REVERTED}


class RolloutsOverTime(RuleBasedStateMachine):
    """Every rule is something that may happen to a fleet."""

    @initialize(world=tidy_worlds())
    def first_release(self, world: PlannerInput) -> None:
        self.world = world
        self.releases = 2
        self.clock = 0
        self.live: dict[HostName, RolloutId] = {}
        """The rollout each host acknowledged last: the one it is really busy with, or was."""

    def record(self, host: HostName) -> HostRollout | None:
        """The host in the rollout it acknowledged last."""
        return self.world.mirrors[self.live[host], host] if host in self.live else None

    def hosts_in(self, *phases: Phase) -> list[HostName]:
        """Hosts whose last rollout is in one of `phases`."""
        found = ((host, self.record(host)) for host in sorted(self.live))
        return [host for host, record in found if record is not None and record.phase in phases]

    def busy(self) -> set[HostName]:
        """Hosts that are being changed, or are about to be."""
        return {*self.hosts_in(*BUSY), *(host for _, host in self.world.outstanding)}

    def happens(self, host: HostName, make: Callable[[HostRollout, WallMs], Fact]) -> None:
        """A fact of the host arrives and is folded."""
        record = self.record(host)
        assert record is not None
        self.clock += 1
        following = fold(record, make(record, WallMs(NOW + self.clock)))
        assert isinstance(following, HostRollout), following
        self.world = attrs.evolve(
            self.world, mirrors={**self.world.mirrors, (record.rollout_id, record.hostname): following}
        )

    @rule()
    def the_planner_sends(self) -> None:
        planned = plan(self.world)
        sent = {(dispatch.rollout_id, dispatch.host) for dispatch in planned.dispatches}
        before, afterwards = self.busy(), self.busy() | {host for _, host in sent}
        for budget in (
            *self.world.fleet.disruption_budgets,
            *(budget for manifest in self.world.manifests.values() for budget in manifest.disruption_budgets),
        ):
            who = members(budget, self.world.fleet)
            bound = limit(budget, len(who))
            assert bound is None or len(afterwards & who) <= max(bound, len(before & who))
        assert not sent & self.world.outstanding
        for dispatch in planned.dispatches:
            assert dispatch.rollout_id not in self.world.superseded
            assert self.live.get(dispatch.host) != dispatch.rollout_id
        self.world = attrs.evolve(self.world, outstanding=self.world.outstanding | sent)

    @precondition(lambda self: self.world.outstanding)
    @rule(data=st.data())
    def a_host_takes_its_dispatch(self, data: st.DataObject) -> None:
        rollout_id, host = data.draw(st.sampled_from(sorted(self.world.outstanding)))
        manifest = next(made for made in self.world.manifests.values() if made.rollout_id == rollout_id)
        target = manifest.target_of(host)
        assert target is not None
        self.live[host] = rollout_id
        self.world = attrs.evolve(
            self.world,
            outstanding=self.world.outstanding - {(rollout_id, host)},
            mirrors={**self.world.mirrors, (rollout_id, host): opened(rollout_id, host, target.target_closure)},
        )
        self.happens(host, lambda _, at: DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=at))

    @precondition(lambda self: self.hosts_in(Phase.ACTIVATING))
    @rule(data=st.data(), deferred=st.sampled_from([False, False, True]))
    def a_host_switches(self, data: st.DataObject, deferred: bool) -> None:
        host = data.draw(st.sampled_from(self.hosts_in(Phase.ACTIVATING)))
        self.happens(host, _deferred if deferred else _completed)

    @precondition(lambda self: self.hosts_in(Phase.DEFERRED))
    @rule(data=st.data())
    def a_host_reboots_into_its_target_and_is_well(self, data: st.DataObject) -> None:
        host = data.draw(st.sampled_from(self.hosts_in(Phase.DEFERRED)))
        self.happens(host, _completed)
        self.happens(host, _converged)

    @precondition(lambda self: self.hosts_in(Phase.SOAKING))
    @rule(data=st.data())
    def a_host_converges(self, data: st.DataObject) -> None:
        self.happens(data.draw(st.sampled_from(self.hosts_in(Phase.SOAKING))), _converged)

    @precondition(lambda self: self.hosts_in(Phase.ACTIVATING))
    @rule(data=st.data())
    def a_host_fails(self, data: st.DataObject) -> None:
        self.happens(data.draw(st.sampled_from(self.hosts_in(Phase.ACTIVATING))), _failed)

    @precondition(lambda self: self.hosts_in(Phase.FAILED))
    @rule(data=st.data())
    def a_host_goes_back(self, data: st.DataObject) -> None:
        self.happens(data.draw(st.sampled_from(self.hosts_in(Phase.FAILED))), _reverted)

    @rule()
    def a_newer_release_overtakes_everything(self) -> None:
        self.releases += 1
        self.world = attrs.evolve(
            self.world,
            superseded=self.world.superseded | {made.rollout_id for made in self.world.manifests.values()},
            outstanding=frozenset(),
            manifests={
                channel: attrs.evolve(made, channel_ref=f"{self.releases:x}")
                for channel, made in self.world.manifests.items()
            },
        )

    @invariant()
    def nobody_is_left_waiting_for_nothing(self) -> None:
        """A quiet fleet with nobody sick or waiting for a reboot has something to send, or is done: no deadlock."""
        current = {made.rollout_id for made in self.world.manifests.values()}
        stopping = [host for host in self.hosts_in(*SICK, Phase.DEFERRED) if self.live[host] in current]
        if self.busy() or stopping:
            return
        planned = plan(self.world)
        states = {summary.state for summary in planned.rollouts if summary.rollout_id in current}
        assert planned.dispatches or states <= {RolloutState.TERMINAL}, planned.held


def _completed(record: HostRollout, at: WallMs) -> Fact:
    seq, target = record.last_seq + 1, record.target_closure
    return ActivationCompleted(seq=seq, observed_current_closure=target, exit_code=0, completed_at=at)


def _deferred(record: HostRollout, at: WallMs) -> Fact:
    return ActivationDeferred(seq=record.last_seq + 1, component="kernel", deferred_at=at)


def _converged(record: HostRollout, at: WallMs) -> Fact:
    return Converged(seq=record.last_seq + 1, converged_at=at, current_closure=record.target_closure)


def _failed(record: HostRollout, at: WallMs) -> Fact:
    return ActivationFailed(seq=record.last_seq + 1, exit_code=1, stderr_tail="boom", failed_at=at)


def _reverted(record: HostRollout, at: WallMs) -> Fact:
    return RollbackComplete(seq=record.last_seq + 1, reverted_to_closure=OLD, exit_code=0, completed_at=at)


TestRolloutsOverTime = RolloutsOverTime.TestCase
