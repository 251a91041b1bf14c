"""Whatever a first-generation agent says, in whatever order and however often, its mirror takes every fact of it."""

from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from control_plane.legacy import Rules, Standing, amounts_to, standing_target, subject, way_back
from control_plane.rows import Mirror
from state_machine.facts import FACT_KINDS, Fact
from state_machine.lifecycle import HostRollout, fold
from state_machine.values import Closure, FailurePolicy, Phase, ProbeStatus, WallMs
from tests.property.test_lifecycle import facts as any_fact_of
from tests.property.wire_values import values_of
from tests.unit.control_plane_legacy_world import NEW, OLD, OTHER, WEB1, Host, mirror
from tests.unit.control_plane_worlds import AT
from wire.legacy import HealthCheckResult, HealthReport, Report, store_path

NAMES = ("web", "db", "report", "", "w" * 300)

generations = st.sampled_from([*map(store_path, (OLD, NEW, OTHER)), "", "/nix/store/../etc", "7"])
messages = st.sampled_from(
    [
        *("applying", "deployed", "up-to-date", "health-check", "dry-run: would apply", "rolled back: no boot"),
        *("failed: x", "rolled back:", "rollback failed: x", "waits for a reboot: kernel", "applying ", "", "x" * 4096),
    ]
)
results = st.builds(
    HealthCheckResult,
    status=st.sampled_from(ProbeStatus),
    check_name=st.sampled_from(NAMES),
    message=st.none() | st.just("down"),
)
healths = st.none() | st.builds(
    HealthReport, results=st.lists(results, max_size=3).map(tuple), all_passed=st.booleans(), timestamp=st.just(AT)
)
reports = st.builds(
    Report,
    machine_id=st.just(WEB1),
    current_generation=generations,
    success=st.booleans(),
    message=messages,
    timestamp=st.just(AT),
    health=healths,
)
sensible = st.sampled_from(
    [
        Report(machine_id=WEB1, current_generation=store_path(running), success=well, message=said, timestamp=AT)
        for running, well, said in (
            (OLD, True, "applying"),
            (NEW, True, "deployed"),
            (NEW, True, "up-to-date"),
            (OLD, False, "rolled back: no boot"),
        )
    ]
)
"""So that histories go far."""

steps = st.tuples(
    sensible | reports,
    st.integers(-5_000, 90_000),
    st.none() | st.none() | st.just("too hot"),
    st.builds(Rules, policy=st.sampled_from(FailurePolicy), sustained_ms=st.integers(0, 90_000)),
)


@given(said=st.lists(steps, max_size=12), soak_ms=st.integers(0, 60_000), ran=st.sampled_from([None, OLD, NEW, OTHER]))
def test_any_sequence_of_reports_folds(said: list[Any], soak_ms: int, ran: Closure | None) -> None:
    it = Host(mirror=mirror(soak_ms), ran=ran)
    for report, after_ms, wish, rules in said:
        it.wish, it.rules = wish, rules
        it.hears(report, after_ms)
    assert [fact.seq for fact in it.facts] == list(range(1, len(it.facts) + 1))


@given(data=st.data(), soak_ms=st.integers(0, 60_000))
def test_reports_fold_among_the_facts_of_a_host_that_moved_between_the_protocols(
    data: st.DataObject, soak_ms: int
) -> None:
    it = Host(mirror=mirror(soak_ms))
    for _ in range(data.draw(st.integers(0, 10))):
        if data.draw(st.booleans()):
            report, after_ms, it.wish, it.rules = data.draw(steps)
            it.hears(report, after_ms)
        elif (fact := data.draw(st.sampled_from(FACT_KINDS).flatmap(_next(it.record)))) is not None:
            it.take([fact])


def _next(record: HostRollout) -> Any:
    """A fact of this kind that the record takes, or None: what another agent may have told."""

    def of(kind: type[Fact]) -> st.SearchStrategy[Fact | None]:
        made = any_fact_of(kind, st.just(record.last_seq + 1)).map(_here)
        return made.map(lambda fact: fact if isinstance(fold(record, fact), HostRollout) else None)

    return of


def _here(fact: Fact) -> Fact:
    """With the closures of this file; the probes of both protocols have names in common."""
    theirs = {Closure("0" * 32 + "-old"): OLD, Closure("1" * 32 + "-new"): NEW}
    changes: dict[str, Any] = {
        field.name: theirs[value] for field in attrs.fields(type(fact)) if (value := _value(fact, field.name)) in theirs
    }
    return attrs.evolve(fact, **changes)


def _value(fact: Fact, name: str) -> Any:
    value = getattr(fact, name)
    return value if isinstance(value, str) else None


@given(said=st.lists(steps, max_size=12))
def test_no_host_converges_but_on_its_target_after_its_soak_with_every_check_passing(said: list[Any]) -> None:
    it = Host(mirror=mirror(30_000))
    for report, after_ms, wish, rules in said:
        it.wish, it.rules = wish, rules
        before = it.record
        it.hears(report, after_ms)
        if it.record.phase is Phase.CONVERGED and before.phase is not Phase.CONVERGED:
            assert report.success
            assert report.current_generation == store_path(NEW)
            assert before.activation_completed_at is not None
            assert it.at - before.activation_completed_at >= 30_000
            assert all(probe.status is ProbeStatus.PASS for probe in it.record.probes.values())


@given(said=st.lists(steps, max_size=12))
def test_what_has_failed_is_never_wanted_again(said: list[Any]) -> None:
    it = Host()
    for report, after_ms, wish, rules in said:
        it.wish, it.rules = wish, rules
        it.hears(report, after_ms)
        if it.record.phase in (Phase.FAILED, Phase.REVERTED):
            assert standing_target(it.record) != NEW
        assert way_back(it.record) != NEW


mirrors = st.builds(
    lambda target, at: attrs.evolve(mirror(target=target), dispatched_at=at),
    st.sampled_from([OLD, NEW, OTHER]),
    st.none() | st.integers(0, 3).map(WallMs),
)


@given(taken=st.none() | mirrors, handed_out=st.none() | mirrors, report=values_of(Report) | reports)
def test_a_report_is_about_one_of_the_hosts_own_mirrors_or_about_none(
    taken: Mirror | None, handed_out: Mirror | None, report: Report
) -> None:
    chosen = subject(taken, handed_out, report)
    assert (chosen is None) == (taken is None and handed_out is None)
    assert any(chosen is each for each in (taken, handed_out))
    if chosen is not None:
        amounts_to(Standing(mirror=chosen), report, AT)
