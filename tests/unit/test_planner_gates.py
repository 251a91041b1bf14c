"""Each gate on its own: what it blocks, what it lets through, and the sentence an operator gets to read."""

import attrs
import pytest

from state_machine.gates import GATES, REOFFER_AFTER_MS
from state_machine.intent import Budget, HostTarget, Meta, Selector, Wave
from state_machine.planner import plan
from state_machine.values import CLOCK_SLACK_MS, Channel, HostName, Phase, Reason, WallMs
from state_machine.world import PlannerInput
from tests.unit.planner_worlds import (
    EDGE,
    NOW,
    channels,
    everybody,
    gates_of,
    manifest,
    mirrors,
    record,
    rollout,
    sent,
    target_of,
    why,
    with_manifest,
    world,
)

A, B = HostName("a"), HostName("b")


def test_every_gate_has_a_name_of_its_own_and_says_what_it_is_about() -> None:
    names = [gate.name for gate in GATES]
    assert len(names) == len(set(names))
    assert all(gate.blocks.__doc__ for gate in GATES)


def test_with_nothing_in_the_way_everybody_is_sent_in_order_of_name() -> None:
    assert sent(plan(world("cab"))) == "abc"


class TestSuperseded:
    def test_an_overtaken_rollout_sends_to_nobody(self) -> None:
        planned = plan(attrs.evolve(world("ab"), superseded=frozenset({rollout()})))
        assert gates_of(planned) == {"a": "superseded", "b": "superseded"}


class TestAnchor:
    def test_policies_of_one_snapshot_are_not_mixed_with_the_targets_of_another(self) -> None:
        planned = plan(attrs.evolve(world("a"), fleet_digest="cd" * 32))
        assert gates_of(planned) == {"a": "anchor"}
        assert why(planned, "a") == (
            "the manifest is anchored to fleet snapshot abababababab, the current one is cdcdcdcdcdcd: "
            "release both together"
        )

    def test_a_manifest_filed_under_another_channel_is_not_acted_on(self) -> None:
        given = world("a")
        planned = plan(attrs.evolve(given, manifests={Channel("prod"): given.manifests[EDGE]}))
        assert (gates_of(planned), why(planned, "a")) == ({"a": "anchor"}, "the manifest is for channel edge, not prod")


class TestDeclared:
    def test_a_host_the_fleet_does_not_declare_is_held(self) -> None:
        planned = plan(with_manifest(world("a"), manifest(["az"])))
        assert (sent(planned), why(planned, "z")) == ("a", "the fleet does not declare this host")

    def test_a_host_of_another_channel_is_held(self) -> None:
        given = channels("edge", "prod")
        planned = plan(with_manifest(given, manifest([["prod"]], "edge")))
        assert why(planned, "prod") == "the fleet has this host on channel prod, not edge"

    def test_a_channel_the_fleet_does_not_declare_is_held(self) -> None:
        given = world("a")
        planned = plan(attrs.evolve(given, fleet=attrs.evolve(given.fleet, channels={})))
        assert why(planned, "a") == "the fleet declares no channel edge"


class TestFreshness:
    WINDOW_MS = 60 * 60_000

    def test_a_manifest_is_good_up_to_its_window_and_the_slack(self) -> None:
        edge = NOW + self.WINDOW_MS + CLOCK_SLACK_MS
        assert sent(plan(attrs.evolve(world("a"), now=WallMs(edge)))) == "a"
        late = plan(attrs.evolve(world("a"), now=WallMs(edge + 1)))
        assert gates_of(late) == {"a": "freshness"}
        assert why(late, "a") == "the manifest was signed 3660 s ago and its channel allows 3600 s: sign it again"

    def test_a_manifest_from_the_future_waits_for_its_time(self) -> None:
        assert sent(plan(attrs.evolve(world("a"), now=WallMs(NOW - CLOCK_SLACK_MS)))) == "a"
        early = plan(attrs.evolve(world("a"), now=WallMs(NOW - CLOCK_SLACK_MS - 1)))
        assert why(early, "a") == "the manifest is dated 60 s in the future: check the clocks"

    def test_a_manifest_nobody_signed_is_not_acted_on(self) -> None:
        given = world("a")
        unsigned = attrs.evolve(given.manifests[EDGE], meta=Meta(schema_version=1))
        assert why(plan(with_manifest(given, unsigned)), "a") == "the manifest does not say when it was signed"


class TestReachability:
    def test_a_revoked_host_is_sent_nothing(self) -> None:
        planned = plan(attrs.evolve(world("ab"), revoked=frozenset({A})))
        assert (sent(planned), gates_of(planned)) == ("b", {"a": "revoked"})

    def test_a_host_that_is_not_heard_of_takes_no_place_in_a_budget(self) -> None:
        given = world("ab", budgets=[everybody(1)])
        planned = plan(attrs.evolve(given, unreachable=frozenset({A})))
        assert (sent(planned), gates_of(planned)) == ("b", {"a": "unreachable"})


class TestQuarantine:
    def test_a_closure_rolled_back_on_the_channel_is_sent_to_nobody_on_it(self) -> None:
        planned = plan(attrs.evolve(world("ab"), quarantine=frozenset({(EDGE, target_of("a"))})))
        assert (sent(planned), gates_of(planned)) == ("b", {"a": "quarantine"})
        assert why(planned, "a").endswith("-a is quarantined on channel edge: release another, or clear it")

    def test_the_same_closure_on_another_channel_is_not_concerned(self) -> None:
        given = attrs.evolve(world("a"), quarantine=frozenset({(Channel("prod"), target_of("a"))}))
        assert sent(plan(given)) == "a"

    def test_a_closure_rolled_back_on_one_host_is_not_sent_to_that_host(self) -> None:
        given = attrs.evolve(world("ab"), host_quarantine=frozenset({(A, target_of("a")), (A, target_of("b"))}))
        assert (sent(plan(given)), gates_of(plan(given))) == ("b", {"a": "quarantine"})


class TestHalted:
    @pytest.mark.parametrize("phase", [Phase.FAILED, Phase.REVERTED])
    def test_one_sick_host_stops_the_others_of_its_wave(self, phase: Phase) -> None:
        planned = plan(world("abc", phases={"b": phase}))
        assert (sent(planned), gates_of(planned)) == ("", {"a": "halted", "c": "halted"})
        assert why(planned, "a") == f"b of wave 0 is {phase}: this rollout goes no further"

    def test_later_waves_say_what_stopped_them_rather_than_that_they_wait(self) -> None:
        assert gates_of(plan(world("a", "b", phases={"a": Phase.REVERTED}))) == {"b": "halted"}

    def test_a_host_that_failed_in_an_older_rollout_stops_nobody(self) -> None:
        failed = record("a", Phase.FAILED, rollout(ref="1"))
        assert sent(plan(attrs.evolve(world("ab"), mirrors=mirrors(failed)))) == "ab"

    def test_a_failure_in_a_later_wave_does_not_stop_an_earlier_one(self) -> None:
        assert sent(plan(world("a", "b", phases={"b": Phase.FAILED}))) == "a"


class TestRefused:
    def given(self, refused_ms_ago: int | None) -> PlannerInput:
        """A world in which `a` refused because it was busy."""
        at = {} if refused_ms_ago is None else {(rollout(), A): WallMs(NOW - refused_ms_ago)}
        refusing = record("a", Phase.PENDING, refused=Reason.BUSY)
        return attrs.evolve(world("ab"), mirrors=mirrors(refusing), refused_at=at)

    def test_a_host_that_refused_is_left_alone_for_a_while(self) -> None:
        planned = plan(self.given(1))
        assert (sent(planned), gates_of(planned)) == ("b", {"a": "refused"})
        assert why(planned, "a") == "it refused (busy) and is asked again in 600 s"

    def test_and_is_asked_again_after_it(self) -> None:
        assert sent(plan(self.given(REOFFER_AFTER_MS))) == "ab"

    def test_a_refusal_at_an_unknown_time_is_final_for_its_rollout(self) -> None:
        assert why(plan(self.given(None)), "a") == "it refused this rollout (busy)"


class TestChannelEdges:
    def test_a_channel_waits_until_the_one_before_it_has_converged_everywhere(self) -> None:
        planned = plan(channels("canary", "prod", channel_edges=[("prod", "canary")]))
        assert (sent(planned), gates_of(planned)) == ("canary", {"prod": "channel-edges"})
        assert why(planned, "prod") == "channel canary goes first: 0 of 1 hosts of canary@2 have converged"

    @pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.CONVERGED])
    def test_no_other_phase_will_do_and_neither_will_a_pending_reboot(self, phase: Phase) -> None:
        given = channels("canary", "prod", channel_edges=[("prod", "canary")], phases={"canary": phase})
        assert gates_of(plan(given))["prod"] == "channel-edges"

    def test_it_goes_once_the_other_is_through(self) -> None:
        given = channels("canary", "prod", channel_edges=[("prod", "canary")], phases={"canary": Phase.CONVERGED})
        assert sent(plan(given)) == "prod"

    def test_convergence_in_an_older_rollout_of_the_other_channel_does_not_count(self) -> None:
        given = channels("canary", "prod", channel_edges=[("prod", "canary")])
        older = record("canary", Phase.CONVERGED, rollout("canary", "1"))
        assert gates_of(plan(attrs.evolve(given, mirrors=mirrors(older))))["prod"] == "channel-edges"

    def test_a_channel_without_a_manifest_holds_nobody(self) -> None:
        given = channels("prod", channel_edges=[("prod", "canary")])
        assert sent(plan(given)) == "prod"

    def test_channels_that_wait_for_each_other_are_told_so(self) -> None:
        planned = plan(channels("a", "b", "c", channel_edges=[("a", "b"), ("b", "a"), ("c", "b")]))
        assert sent(planned) == ""
        assert why(planned, "a").endswith("; the edges between a, b go round in a circle: remove one")
        assert why(planned, "c") == "channel b goes first: 0 of 1 hosts of b@2 have converged"

    def test_a_channel_that_waits_for_itself_is_told_so(self) -> None:
        assert "go round in a circle" in why(plan(channels("a", channel_edges=[("a", "a")])), "a")


class TestWavePromotion:
    def test_a_wave_waits_for_every_host_of_the_one_before(self) -> None:
        planned = plan(world("abc", "d", phases={"a": Phase.CONVERGED, "b": Phase.SOAKING}))
        assert (sent(planned), gates_of(planned)) == ("c", {"d": "wave-promotion"})
        assert why(planned, "d") == "wave 1 waits for wave 0: b is Soaking and 1 more"

    @pytest.mark.parametrize("phase", [Phase.CONVERGED, Phase.DEFERRED])
    def test_a_settled_wave_lets_the_next_one_go(self, phase: Phase) -> None:
        assert sent(plan(world("a", "b", phases={"a": phase}))) == "b"

    def test_an_empty_wave_is_passed_through(self) -> None:
        assert sent(plan(world("", "a", "", "", "b", phases={"a": Phase.CONVERGED}))) == "b"

    def test_a_wave_whose_hosts_have_nothing_to_install_is_passed_through(self) -> None:
        assert sent(plan(with_manifest(world("a", "b"), manifest(["", "b"])))) == "b"

    def test_a_host_in_no_wave_of_a_channel_with_waves_is_held_and_holds_nobody(self) -> None:
        # A release tool gives a host that is in no wave the number 0.
        given = world("ab", "c", phases={"a": Phase.CONVERGED})
        waves = (Wave(hosts=(A,)), Wave(hosts=(HostName("c"),)))
        planned = plan(attrs.evolve(given, fleet=attrs.evolve(given.fleet, waves={EDGE: waves})))
        assert (sent(planned), gates_of(planned)) == ("c", {"b": "wave-promotion"})
        assert why(planned, "b") == "channel edge has waves and none of them lists this host: add it to one"

    def test_a_channel_without_waves_is_one_wave_of_everybody(self) -> None:
        given = world("ab")
        assert sent(plan(attrs.evolve(given, fleet=attrs.evolve(given.fleet, waves={})))) == "ab"


class TestHostEdge:
    def test_a_host_waits_for_the_one_that_goes_first(self) -> None:
        planned = plan(world("ab", edges=[("a", "b")]))
        assert (sent(planned), gates_of(planned)) == ("b", {"a": "host-edge"})
        assert why(planned, "a") == "b goes first and is Pending"

    @pytest.mark.parametrize("phase", [Phase.CONVERGED, Phase.DEFERRED])
    def test_it_goes_once_the_other_is_settled(self, phase: Phase) -> None:
        assert sent(plan(world("ab", edges=[("a", "b")], phases={"b": phase}))) == "a"

    def test_a_host_that_is_not_in_the_rollout_holds_nobody(self) -> None:
        given = world("ab", edges=[("a", "b")])
        assert sent(plan(with_manifest(given, manifest(["a"])))) == "a"

    def test_the_same_edge_counts_in_its_own_rollout_only(self) -> None:
        given = world("ab", edges=[("a", "b")])
        older = record("b", Phase.CONVERGED, rollout(ref="1"))
        assert gates_of(plan(attrs.evolve(given, mirrors=mirrors(older)))) == {"a": "host-edge"}

    def test_hosts_that_wait_for_each_other_are_told_so(self) -> None:
        planned = plan(world("abc", edges=[("a", "b"), ("b", "a")]))
        assert sent(planned) == "c"
        assert (
            why(planned, "a") == "b goes first and is Pending; the edges between a, b go round in a circle: remove one"
        )

    def test_an_edge_against_the_order_of_waves_is_told_so(self) -> None:
        planned = plan(world("a", "b", edges=[("a", "b")]))
        assert (
            why(planned, "a") == "b goes first and is Pending, but its wave 1 comes after this host's: move one of them"
        )


class TestDisruptionBudget:
    def test_it_counts_what_the_same_plan_has_dispatched(self) -> None:
        planned = plan(world("abcd", budgets=[everybody(2)]))
        assert (sent(planned), gates_of(planned)) == ("ab", {"c": "disruption-budget", "d": "disruption-budget"})
        assert why(planned, "c") == "the budget for every host allows 2 in flight and 2 are"

    @pytest.mark.parametrize("phase", [Phase.ACTIVATING, Phase.SOAKING])
    def test_it_counts_hosts_in_flight(self, phase: Phase) -> None:
        assert sent(plan(world("abc", budgets=[everybody(2)], phases={"a": phase}))) == "b"

    def test_it_counts_dispatches_nobody_has_acknowledged_yet(self) -> None:
        given = world("abc", budgets=[everybody(2)])
        assert sent(plan(attrs.evolve(given, outstanding=frozenset({(rollout(), A)})))) == "b"

    def test_an_acknowledged_dispatch_is_not_counted_twice(self) -> None:
        given = world("abc", budgets=[everybody(2)], phases={"a": Phase.SOAKING})
        assert sent(plan(attrs.evolve(given, outstanding=frozenset({(rollout(), A)})))) == "b"

    @pytest.mark.parametrize("phase", [Phase.CONVERGED, Phase.DEFERRED])
    def test_it_does_not_count_hosts_that_are_settled(self, phase: Phase) -> None:
        assert sent(plan(world("abc", budgets=[everybody(1)], phases={"a": phase}))) == "b"

    def test_it_counts_hosts_in_flight_in_other_rollouts(self) -> None:
        soaking = record("a", Phase.SOAKING, rollout(ref="1"))
        given = attrs.evolve(world("ab", budgets=[everybody(1)]), mirrors=mirrors(soaking))
        # `a` may take the new rollout itself: it is in flight anyway.
        assert (sent(plan(given)), gates_of(plan(given))) == ("a", {"b": "disruption-budget"})

    def test_a_host_that_takes_a_newer_rollout_while_in_flight_takes_one_place(self) -> None:
        soaking = record("a", Phase.SOAKING, rollout(ref="1"))
        given = attrs.evolve(world("abc", budgets=[everybody(2)]), mirrors=mirrors(soaking))
        assert sent(plan(given)) == "ab"

    def test_a_record_that_a_newer_rollout_overtook_uses_nothing_up(self) -> None:
        overtaken = record("a", Phase.SOAKING, rollout(ref="1"), acked_at=NOW - 1)
        done = record("a", Phase.CONVERGED)
        given = attrs.evolve(world("ab", budgets=[everybody(1)]), mirrors=mirrors(overtaken, done))
        assert sent(plan(given)) == "b"

    def test_the_current_rollout_is_the_newest_even_if_the_hosts_clock_went_back(self) -> None:
        overtaken = record("a", Phase.CONVERGED, rollout(ref="1"), acked_at=NOW + 1)
        soaking = record("a", Phase.SOAKING)
        given = attrs.evolve(world("ab", budgets=[everybody(1)]), mirrors=mirrors(overtaken, soaking))
        assert sent(plan(given)) == ""

    def test_it_concerns_its_members_only(self) -> None:
        web = Budget(selector=Selector(tags=("web",)), max_in_flight=1)
        planned = plan(world("abcd", budgets=[web], tags={"a": ("web",), "b": ("web", "eu")}))
        assert (sent(planned), gates_of(planned)) == ("acd", {"b": "disruption-budget"})

    def test_the_membership_frozen_at_signing_counts_whatever_the_tags_say_now(self) -> None:
        frozen = Budget(selector=Selector(tags=("web",)), hosts=(A, B), max_in_flight=1)
        given = with_manifest(world("abc"), manifest(["abc"], budgets=[frozen]))
        assert sent(plan(given)) == "ac"

    def test_it_holds_across_channels(self) -> None:
        given = channels("a", "b")
        budgeted = attrs.evolve(given, fleet=attrs.evolve(given.fleet, disruption_budgets=(everybody(1),)))
        assert (sent(plan(budgeted)), gates_of(plan(budgeted))) == ("a", {"b": "disruption-budget"})

    def test_the_tightest_of_several_decides(self) -> None:
        assert sent(plan(world("abcd", budgets=[everybody(3), everybody(1), everybody(2)]))) == "a"

    @pytest.mark.parametrize(
        ("pct", "expected"), [(0, "a"), (1, "a"), (49, "a"), (50, "ab"), (75, "abc"), (99, "abc"), (100, "abcd")]
    )
    def test_a_percentage_is_rounded_down_but_never_to_nobody(self, pct: int, expected: str) -> None:
        assert sent(plan(world("abcd", budgets=[everybody(pct=pct)]))) == expected

    def test_the_smaller_of_number_and_percentage_counts(self) -> None:
        assert sent(plan(world("abcd", budgets=[everybody(3, pct=50)]))) == "ab"
        assert sent(plan(world("abcd", budgets=[everybody(1, pct=50)]))) == "a"

    def test_a_budget_of_none_stops_everybody_and_says_so(self) -> None:
        planned = plan(world("a", budgets=[everybody(0)]))
        assert why(planned, "a") == "the budget for every host allows 0 in flight and 0 are"

    def test_a_budget_without_a_limit_limits_nothing(self) -> None:
        assert sent(plan(world("abc", budgets=[everybody()]))) == "abc"


def test_a_host_named_twice_in_a_manifest_is_dispatched_once() -> None:
    given = world("a")
    twice = HostTarget(hostname=A, wave_index=5, target_closure=target_of("z"))
    made = given.manifests[EDGE]
    planned = plan(with_manifest(given, attrs.evolve(made, host_set=(*made.host_set, twice))))
    assert [(dispatch.host, dispatch.wave_index) for dispatch in planned.dispatches] == [("a", 0)]
