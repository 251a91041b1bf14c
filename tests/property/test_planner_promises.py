"""What one plan promises, whatever the world is like. Each promise is checked against a plain reading of the input."""

from collections.abc import Mapping
from typing import TypeVar

import attrs
from hypothesis import given
from hypothesis import strategies as st

from state_machine.gates import GATES, REOFFER_AFTER_MS
from state_machine.intent import Manifest
from state_machine.planner import Dispatch, Held, Plan, RolloutState, plan
from state_machine.selector import limit, members
from state_machine.values import CLOCK_SLACK_MS, HostName, Phase, RolloutId
from state_machine.world import PlannerInput
from tests.property.planner_strategies import HOUR_MS, REFS, TROUBLES, tidy_worlds, wild_worlds
from tests.unit.planner_worlds import mirrors, record

K = TypeVar("K")
V = TypeVar("V")

worlds = st.one_of(tidy_worlds(), wild_worlds())
SETTLED = {Phase.CONVERGED, Phase.DEFERRED}


def phase_in(given: PlannerInput, rollout_id: RolloutId, host: HostName) -> Phase:
    """Where the host stands in the rollout."""
    mirror = given.mirrors.get((rollout_id, host))
    return Phase.PENDING if mirror is None else mirror.phase


def in_flight(given: PlannerInput) -> set[HostName]:
    """Hosts that are busy: with the last rollout they acknowledged, or with a dispatch that is coming."""
    busy = {host for rollout_id, host in given.outstanding if phase_in(given, rollout_id, host) is Phase.PENDING}
    for host, declared in given.fleet.hosts.items():
        phases = [phase_in(given, RolloutId(f"{declared.channel}@{ref}"), host) for ref in REFS]
        acknowledged = [phase for phase in phases if phase is not Phase.PENDING]
        if acknowledged and acknowledged[-1] in {Phase.ACTIVATING, Phase.SOAKING}:
            busy.add(host)
    return busy


def after_sending(given: PlannerInput, planned: Plan) -> PlannerInput:
    """The world once the plan's dispatches are on their way."""
    sent = {(dispatch.rollout_id, dispatch.host) for dispatch in planned.dispatches}
    return attrs.evolve(given, outstanding=given.outstanding | sent)


def sends_the_signed_target(given: PlannerInput, dispatch: Dispatch, manifest: Manifest) -> bool:
    """What the manifest says, and nothing else, is sent."""
    entry = manifest.target_of(dispatch.host)
    return entry is not None and (dispatch.target_closure, dispatch.wave_index) == (
        entry.target_closure,
        entry.wave_index,
    )


def sends_nothing_quarantined(given: PlannerInput, dispatch: Dispatch, manifest: Manifest) -> bool:
    """A closure that was rolled back is not sent, on its channel or to its host."""
    return (manifest.channel, dispatch.target_closure) not in given.quarantine and (
        dispatch.host,
        dispatch.target_closure,
    ) not in given.host_quarantine


def intent_is_current(given: PlannerInput, dispatch: Dispatch, manifest: Manifest) -> bool:
    """It is in its window, anchored to this fleet, and not overtaken."""
    return (
        manifest.meta.signed_at is not None
        and -CLOCK_SLACK_MS <= given.now - manifest.meta.signed_at <= HOUR_MS + CLOCK_SLACK_MS
        and manifest.fleet_resolved_hash == given.fleet_digest
        and dispatch.rollout_id not in given.superseded
    )


def host_can_take_it(given: PlannerInput, dispatch: Dispatch, manifest: Manifest) -> bool:
    """It is declared on the channel, in reach, in good standing, not reached yet and not sent to yet."""
    return (
        given.fleet.hosts[dispatch.host].channel == manifest.channel
        and dispatch.host not in given.revoked | given.unreachable
        and phase_in(given, dispatch.rollout_id, dispatch.host) is Phase.PENDING
        and (dispatch.rollout_id, dispatch.host) not in given.outstanding
    )


def earlier_waves_are_settled(given: PlannerInput, dispatch: Dispatch, manifest: Manifest) -> bool:
    """Every host of a wave before it is done, and the host is in a wave itself, if there are any."""
    waves = given.fleet.waves[manifest.channel]
    placed = {host for wave in waves for host in wave.hosts} if waves else set(given.fleet.hosts)
    return dispatch.host in placed and all(
        phase_in(given, manifest.rollout_id, entry.hostname) in SETTLED
        for entry in manifest.host_set
        if entry.wave_index < dispatch.wave_index and entry.hostname in placed
    )


def nobody_before_it_is_sick(given: PlannerInput, dispatch: Dispatch, manifest: Manifest) -> bool:
    """No host of its wave or an earlier one failed or went back."""
    return not any(
        phase_in(given, manifest.rollout_id, entry.hostname) in {Phase.FAILED, Phase.REVERTED}
        for entry in manifest.host_set
        if entry.wave_index <= dispatch.wave_index
    )


def hosts_that_go_first_are_settled(given: PlannerInput, dispatch: Dispatch, manifest: Manifest) -> bool:
    """Host edges inside the rollout are kept."""
    return all(
        phase_in(given, manifest.rollout_id, edge.gates) in SETTLED
        for edge in given.fleet.edges
        if edge.gated == dispatch.host and manifest.target_of(edge.gates) is not None
    )


def channels_that_go_first_are_through(given: PlannerInput, dispatch: Dispatch, manifest: Manifest) -> bool:
    """Channel edges are kept."""
    first = [given.manifests.get(edge.gates) for edge in given.fleet.channel_edges if edge.gated == manifest.channel]
    return all(
        phase_in(given, before.rollout_id, entry.hostname) is Phase.CONVERGED
        for before in first
        if before is not None
        for entry in before.host_set
    )


def did_not_refuse_lately(given: PlannerInput, dispatch: Dispatch, manifest: Manifest) -> bool:
    """A host that refused is asked again after a while, if it is known when it did."""
    pair = (dispatch.rollout_id, dispatch.host)
    if pair not in given.mirrors or given.mirrors[pair].refusal is None:
        return True
    return pair in given.refused_at and given.now - given.refused_at[pair] >= REOFFER_AFTER_MS


RULES = (
    sends_the_signed_target,
    sends_nothing_quarantined,
    intent_is_current,
    host_can_take_it,
    did_not_refuse_lately,
    earlier_waves_are_settled,
    nobody_before_it_is_sick,
    hosts_that_go_first_are_settled,
    channels_that_go_first_are_through,
)


@given(worlds)
def test_every_dispatch_keeps_every_rule(given: PlannerInput) -> None:
    by_id = {manifest.rollout_id: manifest for manifest in given.manifests.values()}
    for dispatch in plan(given).dispatches:
        for rule in RULES:
            assert rule(given, dispatch, by_id[dispatch.rollout_id]), f"{rule.__name__}: {dispatch}"


@given(tidy_worlds(), st.data())
def test_a_host_in_any_kind_of_trouble_is_held_by_the_gate_for_it(given: PlannerInput, data: st.DataObject) -> None:
    victim = data.draw(st.sampled_from(plan(given).dispatches))
    for name, befall in TROUBLES.items():
        planned = plan(befall(given, victim))
        gates = [held.gate for held in planned.held if (held.rollout_id, held.host) == (victim.rollout_id, victim.host)]
        if name != "anchor: misfiled":
            assert len(gates) == 1
            assert gates[0] in name
        assert victim.host not in {dispatch.host for dispatch in planned.dispatches}


@given(worlds)
def test_no_budget_is_ever_exceeded(given: PlannerInput) -> None:
    before = in_flight(given)
    afterwards = before | {dispatch.host for dispatch in plan(given).dispatches}
    of_manifests = [budget for manifest in given.manifests.values() for budget in manifest.disruption_budgets]
    for budget in (*given.fleet.disruption_budgets, *of_manifests):
        who = members(budget, given.fleet)
        bound = limit(budget, len(who))
        if bound is not None:
            assert len(afterwards & who) <= max(bound, len(before & who))


@given(worlds)
def test_every_host_not_yet_reached_is_either_sent_to_or_held_once_with_a_reason(given: PlannerInput) -> None:
    planned = plan(given)
    waiting = {
        (manifest.rollout_id, entry.hostname)
        for manifest in given.manifests.values()
        for entry in manifest.host_set
        if phase_in(given, manifest.rollout_id, entry.hostname) is Phase.PENDING
    } - given.outstanding
    answers: list[Dispatch | Held] = [*planned.dispatches, *planned.held]
    answered = [(answer.rollout_id, answer.host) for answer in answers]
    assert len(answered) == len(set(answered))
    assert set(answered) == waiting
    assert all(held.why.strip() for held in planned.held)
    assert {held.gate for held in planned.held} <= {gate.name for gate in GATES}


@given(worlds)
def test_a_plan_depends_on_its_input_alone_and_not_on_the_order_of_anything_in_it(given: PlannerInput) -> None:
    planned = plan(given)
    assert planned == plan(given) == plan(reordered(given))
    assert plan(after_sending(given, planned)).dispatches == ()


def reordered(given: PlannerInput) -> PlannerInput:
    """The same world with every mapping, host set and budget list the other way round."""
    return attrs.evolve(
        given,
        fleet=attrs.evolve(
            given.fleet,
            hosts=backwards(given.fleet.hosts),
            channels=backwards(given.fleet.channels),
            waves=backwards(given.fleet.waves),
        ),
        manifests={
            channel: attrs.evolve(manifest, host_set=manifest.host_set[::-1])
            for channel, manifest in backwards(given.manifests).items()
        },
        mirrors=backwards(given.mirrors),
        refused_at=backwards(given.refused_at),
    )


def backwards(mapping: Mapping[K, V]) -> dict[K, V]:
    """The mapping in the opposite order."""
    return dict(reversed(list(mapping.items())))


@given(tidy_worlds(), st.data())
def test_a_fleet_whose_hosts_all_converge_in_time_is_reached_to_the_last_host(
    given: PlannerInput, data: st.DataObject
) -> None:
    everybody = {(m.rollout_id, entry.hostname) for m in given.manifests.values() for entry in m.host_set}
    # One host at least gets there in every round, so there are no more rounds than hosts.
    for _ in range(len(everybody)):
        planned = plan(given)
        given = after_sending(given, planned)
        assert given.outstanding or set(given.mirrors) == everybody, planned.held
        if not given.outstanding:
            break
        on_their_way = sorted(given.outstanding)
        there = data.draw(st.lists(st.sampled_from(on_their_way), min_size=1, unique=True))
        converged = mirrors(*(record(host, Phase.CONVERGED, rollout_id) for rollout_id, host in there))
        given = attrs.evolve(
            given, mirrors={**given.mirrors, **converged}, outstanding=given.outstanding - frozenset(there)
        )
    assert {pair for pair, mirror in given.mirrors.items() if mirror.phase is Phase.CONVERGED} == everybody
    assert {summary.state for summary in plan(given).rollouts} <= {RolloutState.TERMINAL}
