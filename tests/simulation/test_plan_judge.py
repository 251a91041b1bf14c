"""The judge of plans finds what is wrong with a plan, and nothing in the planner's own."""

from collections.abc import Callable
from typing import Final

import attrs
import pytest

from control_plane.rows import QueuedDispatch, Rollout
from state_machine.events import DispatchKind
from state_machine.planner import Dispatch, Plan, plan
from state_machine.values import HostName, Phase, Reason, WallMs
from state_machine.world import PlannerInput
from tests.simulation.plan_judge import ASKED_AGAIN_MS, PlanJudge
from tests.unit.planner_worlds import EDGE, NOW, everybody, mirrors, record, rollout, target_of, world

A: Final = HostName("a")
CALM: Final = world("ab", "c", phases={"b": Phase.CONVERGED})
"""`a` is sent its target; `c`, of the second wave, waits for it."""


def found(given: PlannerInput, made: Plan) -> set[str]:
    judge = PlanJudge()
    judge.planned(0, given, made)
    return {finding.promise for finding in judge.findings}


def refusing(ago_ms: int) -> PlannerInput:
    refused = record("a", Phase.PENDING, refused=Reason.BUSY)
    at = {(rollout(), A): WallMs(NOW - ago_ms)}
    return attrs.evolve(CALM, mirrors={**CALM.mirrors, **mirrors(refused)}, refused_at=at)


TROUBLES: Final[dict[str, tuple[PlannerInput, str]]] = {
    "a newer rollout": (attrs.evolve(CALM, superseded=frozenset({rollout()})), "plan-current"),
    "another fleet": (attrs.evolve(CALM, fleet_digest="cd" * 32), "plan-current"),
    "too old": (attrs.evolve(CALM, now=WallMs(NOW + 2 * 3_600_000)), "plan-fresh"),
    "from the future": (attrs.evolve(CALM, now=WallMs(NOW - 3_600_000)), "plan-fresh"),
    "revoked": (attrs.evolve(CALM, revoked=frozenset({A})), "plan-reach"),
    "silent": (attrs.evolve(CALM, unreachable=frozenset({A})), "plan-reach"),
    "taken back somewhere": (attrs.evolve(CALM, quarantine=frozenset({(EDGE, target_of("a"))})), "plan-quarantine"),
    "taken back here": (attrs.evolve(CALM, host_quarantine=frozenset({(A, target_of("a"))})), "plan-quarantine"),
    "refused": (refusing(60_000), "plan-refusals"),
    "coming already": (attrs.evolve(CALM, outstanding=frozenset({(rollout(), A)})), "plan-once"),
    "ill": (world("ab", "c", phases={"b": Phase.REVERTED}), "plan-halt"),
}


def test_the_planners_own_plans_are_as_they_should_be() -> None:
    for given in (CALM, refusing(ASKED_AGAIN_MS), *(given for given, _ in TROUBLES.values())):
        assert found(given, plan(given)) == set()


@pytest.mark.parametrize("name", TROUBLES)
def test_a_plan_that_does_not_know_of_a_trouble_is_found(name: str) -> None:
    given, promise = TROUBLES[name]
    assert promise in found(given, plan(CALM))


@pytest.mark.parametrize("name", sorted(TROUBLES.keys() - {"coming already"}))
def test_a_plan_that_holds_a_host_for_a_trouble_that_is_over_is_found(name: str) -> None:
    given, _ = TROUBLES[name]
    assert "plan-progress" in found(CALM, plan(given))


def test_a_wave_that_goes_too_early_is_found() -> None:
    due = plan(world("a", "b", phases={"a": Phase.CONVERGED}))
    assert found(world("a", "b", phases={"a": Phase.SOAKING}), due) == {"plan-waves"}


def test_a_host_that_goes_before_the_one_it_waits_for_is_found() -> None:
    assert found(world("ab", edges=[("a", "b")]), plan(world("ab"))) == {"plan-edges"}


def test_more_in_flight_than_the_budget_allows_are_found_and_so_is_a_place_left_empty() -> None:
    narrow = world("abc", budgets=[everybody(limit=1)])
    assert found(narrow, plan(world("abc"))) == {"plan-budget"}
    assert found(world("abc", budgets=[everybody(limit=3)]), plan(narrow)) == {"plan-progress"}
    assert found(narrow, plan(narrow)) == set()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda sent: attrs.evolve(sent, target_closure=target_of("b")),
        lambda sent: attrs.evolve(sent, soak_ms=0),
        lambda sent: attrs.evolve(sent, wave_index=1),
        lambda sent: attrs.evolve(sent, host=HostName("z")),
    ],
)
def test_a_dispatch_of_something_else_than_the_manifest_says_is_found(wrong: Callable[[Dispatch], Dispatch]) -> None:
    made = plan(CALM)
    assert "plan-target" in found(CALM, attrs.evolve(made, dispatches=tuple(map(wrong, made.dispatches))))


def test_a_host_that_is_in_the_plan_twice_is_found() -> None:
    made = plan(CALM)
    assert "plan-once" in found(CALM, attrs.evolve(made, dispatches=made.dispatches * 2))


def test_a_dispatch_of_a_rollout_that_is_over_is_found_where_it_is_handed_out() -> None:
    row = QueuedDispatch(
        hostname=A,
        rollout_id=rollout(),
        kind=DispatchKind.DISPATCH,
        target_closure=target_of("a"),
        soak_secs=0,
        enqueued_at=NOW,
    )
    opened = Rollout(rollout_id=rollout(), channel=EDGE, channel_ref="2", opened_at=NOW)
    judge = PlanJudge()
    judge.handed_out(0, row, opened)
    assert not judge.findings
    judge.handed_out(0, row, attrs.evolve(opened, superseded_at=NOW))
    judge.handed_out(0, row, attrs.evolve(opened, halted="an operator stopped it"))
    assert [finding.promise for finding in judge.findings] == ["plan-current"] * 2
