"""What a plan holds: the dispatches in full, their order, and how each rollout stands."""

from collections.abc import Mapping

import attrs
import pytest

from state_machine.intent import Fleet, FleetHost, PolicyWave, RolloutPolicy, Selector, Wave
from state_machine.planner import Dispatch, Held, Plan, RolloutState, RolloutSummary, plan
from state_machine.selector import describe, matches
from state_machine.values import Channel, HostName, Phase, RolloutId
from state_machine.waves import DEFAULT_SOAK_MS, soak_ms
from state_machine.world import PlannerInput
from tests.unit.planner_worlds import (
    EDGE,
    channels,
    everybody,
    manifest,
    mirrors,
    record,
    rollout,
    sent,
    target_of,
    with_manifest,
    world,
)


def test_a_dispatch_carries_the_signed_target_and_the_soak_of_its_wave() -> None:
    planned = plan(world("a", "b", phases={"a": Phase.CONVERGED}))
    assert planned.dispatches == (
        Dispatch(
            host=HostName("b"),
            rollout_id=RolloutId("edge@2"),
            target_closure=target_of("b"),
            wave_index=1,
            soak_ms=600_000,
        ),
    )


def test_dispatches_and_holds_come_by_channel_then_wave_then_name() -> None:
    given = attrs.evolve(channels("zebra", "ant"), superseded=frozenset({rollout("ant")}))
    assert [held.host for held in plan(given).held] == ["ant"]
    assert sent(plan(world("cb", "a"))) == "bc"
    assert [held.host for held in plan(attrs.evolve(world("cb", "a"), fleet_digest="")).held] == ["b", "c", "a"]


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.PENDING])
def test_a_host_the_rollout_has_reached_is_neither_sent_to_again_nor_held(phase: Phase) -> None:
    planned = plan(world("a", phases={"a": phase}))
    assert (planned.dispatches, planned.held) == ((), ())


def test_a_dispatch_on_its_way_is_not_sent_again() -> None:
    planned = plan(attrs.evolve(world("ab"), outstanding=frozenset({(rollout(), HostName("a"))})))
    assert (sent(planned), planned.held) == ("b", ())


def test_a_dispatch_of_an_older_rollout_does_not_stand_in_for_the_new_one() -> None:
    older = frozenset({(rollout(ref="1"), HostName("a"))})
    assert sent(plan(attrs.evolve(world("a"), outstanding=older))) == "a"


def test_a_pending_record_whose_dispatch_was_lost_is_sent_again() -> None:
    assert sent(plan(world("a", phases={"a": Phase.PENDING}))) == "a"


def test_a_held_host_names_its_rollout_gate_and_reason() -> None:
    planned = plan(world("ab", budgets=[everybody(1)]))
    assert planned.held == (
        Held(
            host=HostName("b"),
            rollout_id=rollout(),
            gate="disruption-budget",
            why="the budget for every host allows 1 in flight and 1 are",
        ),
    )


def test_nothing_is_planned_for_a_fleet_without_manifests() -> None:
    given = attrs.evolve(world("a"), manifests={})
    assert plan(given) == Plan(dispatches=(), held=(), rollouts=())


def only(given: PlannerInput) -> RolloutSummary:
    """The one summary of a plan."""
    (summary,) = plan(given).rollouts
    return summary


class TestRolloutState:
    @pytest.mark.parametrize(
        ("phases", "state"),
        [
            ({}, RolloutState.OPENING),
            ({"a": Phase.PENDING}, RolloutState.OPENING),
            ({"a": Phase.ACTIVATING}, RolloutState.ACTIVE),
            ({"a": Phase.SOAKING, "b": Phase.CONVERGED}, RolloutState.ACTIVE),
            ({"a": Phase.CONVERGED}, RolloutState.CONVERGING),
            ({"a": Phase.DEFERRED, "b": Phase.CONVERGED}, RolloutState.CONVERGING),
            ({"a": Phase.CONVERGED, "b": Phase.CONVERGED}, RolloutState.TERMINAL),
            ({"a": Phase.REVERTED, "b": Phase.CONVERGED}, RolloutState.REVERTED),
            ({"a": Phase.REVERTED, "b": Phase.FAILED}, RolloutState.FAILED),
            ({"a": Phase.FAILED, "b": Phase.SOAKING}, RolloutState.FAILED),
        ],
    )
    def test_it_follows_from_the_phases_of_its_hosts(self, phases: Mapping[str, Phase], state: RolloutState) -> None:
        assert only(world("ab", phases=phases)).state is state

    def test_a_dispatch_on_its_way_makes_it_active(self) -> None:
        given = attrs.evolve(world("ab"), outstanding=frozenset({(rollout(), HostName("a"))}))
        assert only(given).state is RolloutState.ACTIVE

    def test_an_overtaken_one_is_superseded_whatever_its_hosts_say(self) -> None:
        given = attrs.evolve(world("a", phases={"a": Phase.FAILED}), superseded=frozenset({rollout()}))
        assert only(given).state is RolloutState.SUPERSEDED

    def test_an_older_rollout_is_told_from_the_records_it_left(self) -> None:
        older = [record("a", Phase.CONVERGED, rollout(ref="1")), record("b", Phase.SOAKING, rollout(ref="1"))]
        given = attrs.evolve(world("ab"), mirrors=mirrors(*older), superseded=frozenset({rollout(ref="1")}))
        assert plan(given).rollouts[0] == RolloutSummary(
            rollout_id=rollout(ref="1"),
            channel=EDGE,
            state=RolloutState.SUPERSEDED,
            current_wave=None,
            hosts=2,
            converged=1,
        )

    def test_summaries_come_by_channel_then_rollout(self) -> None:
        given = channels("b", "a")
        older = record("b", Phase.CONVERGED, rollout("b", "1"))
        summaries = plan(attrs.evolve(given, mirrors=mirrors(older))).rollouts
        assert [summary.rollout_id for summary in summaries] == ["a@2", "b@1", "b@2"]


class TestCurrentWave:
    @pytest.mark.parametrize(
        ("waves", "phases", "current"),
        [
            (["a", "b"], {}, 0),
            (["a", "b"], {"a": Phase.SOAKING}, 0),
            (["a", "b"], {"a": Phase.DEFERRED}, 1),
            (["a", "", "b"], {"a": Phase.CONVERGED}, 2),
            (["", "a"], {}, 1),
            (["a", "b"], {"a": Phase.CONVERGED, "b": Phase.CONVERGED}, 1),
            (["ab", "c"], {"a": Phase.CONVERGED}, 0),
        ],
    )
    def test_it_is_the_first_with_work_left(self, waves: list[str], phases: Mapping[str, Phase], current: int) -> None:
        assert only(world(*waves, phases=phases)).current_wave == current

    def test_a_rollout_of_nobody_is_over_in_wave_0(self) -> None:
        summary = only(with_manifest(world("a"), manifest([])))
        assert (summary.current_wave, summary.state, summary.hosts) == (0, RolloutState.TERMINAL, 0)


class TestSoak:
    def fleet(self, strategy: str, waves: tuple[Wave, ...], policy_waves: tuple[PolicyWave, ...] = ()) -> Fleet:
        policy = RolloutPolicy(strategy=strategy, waves=policy_waves)
        return attrs.evolve(world("a").fleet, waves={EDGE: waves}, rollout_policies={"staged": policy})

    @pytest.mark.parametrize(
        ("strategy", "waves", "policy_waves", "wave_index", "expected"),
        [
            ("staged", (Wave(soak_minutes=5),), (), 0, 300_000),
            ("staged", (Wave(soak_minutes=5, soak_secs=3),), (), 0, 3_000),
            ("staged", (Wave(soak_minutes=0),), (PolicyWave(soak_minutes=9),), 0, 0),
            ("staged", (), (PolicyWave(soak_minutes=9),), 0, 540_000),
            ("staged", (Wave(soak_minutes=5),), (), 1, DEFAULT_SOAK_MS),
            ("staged", (), (), 0, DEFAULT_SOAK_MS),
            ("all-at-once", (), (), 0, 0),
            ("all-at-once", (Wave(soak_minutes=5),), (), 0, 300_000),
            ("all-at-once", (Wave(soak_minutes=5),), (), 1, DEFAULT_SOAK_MS),
        ],
    )
    def test_it_is_the_waves_then_the_policys_then_an_hour(
        self,
        strategy: str,
        waves: tuple[Wave, ...],
        policy_waves: tuple[PolicyWave, ...],
        wave_index: int,
        expected: int,
    ) -> None:
        assert soak_ms(self.fleet(strategy, waves, policy_waves), EDGE, wave_index) == expected

    def test_an_undeclared_channel_soaks_an_hour(self) -> None:
        assert soak_ms(world("a").fleet, Channel("nowhere"), 0) == DEFAULT_SOAK_MS


class TestSelector:
    HOST = FleetHost(system="x86_64-linux", channel=EDGE, tags=("web", "eu"))

    @pytest.mark.parametrize(
        ("selector", "expected"),
        [
            (Selector(), False),
            (Selector(all=True), True),
            (Selector(hosts=(HostName("node"),)), True),
            (Selector(hosts=(HostName("other"),)), False),
            (Selector(channel=EDGE), True),
            (Selector(channel=Channel("prod")), False),
            (Selector(tags=("web",)), True),
            (Selector(tags=("web", "eu")), True),
            (Selector(tags=("web", "us")), False),
            (Selector(tags_any=("us", "eu")), True),
            (Selector(tags_any=("us",)), False),
            (Selector(tags=("us",), channel=EDGE), True),
            (Selector(tags=("us",), channel=Channel("prod"), hosts=(HostName("node"),)), True),
        ],
    )
    def test_it_is_the_union_of_its_criteria(self, selector: Selector, expected: bool) -> None:
        assert matches(selector, HostName("node"), self.HOST) is expected

    def test_it_can_be_said_in_words(self) -> None:
        selector = Selector(tags=("web", "eu"), tags_any=("a", "b"), hosts=(HostName("n"),), channel=EDGE)
        assert describe(selector) == "channel edge; tags web and eu; tags a or b; hosts n"
        assert (describe(Selector()), describe(Selector(all=True))) == ("nobody", "every host")
