"""Properties of the fold: it never raises, moves only as the table says, and no order of delivery changes its end."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from state_machine.facts import (
    FACT_KINDS,
    ActivationCompleted,
    ActivationFailed,
    Converged,
    DispatchAck,
    Fact,
    Failed,
    RollbackComplete,
    RollbackRequested,
)
from state_machine.lifecycle import LIFECYCLE, HostRollout, Illegal, OutOfOrder, fold, opened
from state_machine.values import (
    Closure,
    FailurePolicy,
    HostName,
    Phase,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    Reason,
    RolloutId,
    SubResult,
    SwitchMethod,
    WallMs,
)

OLD, NEW, NONE = Closure("0" * 32 + "-old"), Closure("1" * 32 + "-new"), Closure("")

texts = st.sampled_from(["", "ssh", "load", "boom"])
instants = st.integers(0, 20).map(WallMs)
probe_specs = st.builds(ProbeSpec, name=texts, kind=texts, mode=st.sampled_from(ProbeMode))
sub_results = st.builds(
    SubResult, control_id=texts, status=st.sampled_from(ProbeStatus), framework=texts, article=st.none() | texts
)
# Few values of each type, so that facts often fit together: by type of field, as every fact declares it.
VALUES: Mapping[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-1, 1),
    str: texts,
    str | None: st.none() | texts,
    Closure: st.sampled_from([OLD, NEW, NEW, NEW, NONE]),
    WallMs: instants,
    Reason: st.sampled_from(Reason),
    ProbeMode: st.sampled_from(ProbeMode),
    ProbeStatus: st.sampled_from(ProbeStatus),
    FailurePolicy: st.sampled_from(FailurePolicy),
    SwitchMethod: st.sampled_from(SwitchMethod),
    tuple[str, ...]: st.lists(texts, max_size=2).map(tuple),
    tuple[ProbeSpec, ...]: st.lists(probe_specs, max_size=2).map(tuple),
    tuple[SubResult, ...] | None: st.none() | st.lists(sub_results, max_size=1).map(tuple),
}


def facts(kind: type[Fact], seqs: st.SearchStrategy[int]) -> st.SearchStrategy[Fact]:
    """Any fact of this kind, with a number out of `seqs`."""
    fields = {field.name: VALUES[field.type] for field in attrs.fields(kind)}
    make: Callable[..., Fact] = kind
    return st.builds(make, **{**fields, "seq": seqs})


ENDINGS = {ActivationFailed, Failed, RollbackRequested, RollbackComplete}
"""Kinds that lead away from convergence: offered less often, or hardly any history would get there."""

any_fact = st.sampled_from(FACT_KINDS).flatmap(lambda kind: facts(kind, st.integers(-1, 12)))
fresh = st.builds(lambda due: opened(RolloutId("edge@1"), HostName("node"), NEW, soak_due_at=due), st.none() | instants)


@st.composite
def histories(draw: st.DrawFn) -> tuple[HostRollout, list[Fact]]:
    """A fresh record, and facts each of which it accepted: mostly legal kinds are offered, so that they go far."""
    first = record = draw(fresh)
    accepted: list[Fact] = []
    for _ in range(draw(st.integers(0, 14))):
        legal = sorted(LIFECYCLE[record.phase], key=lambda kind: (kind in ENDINGS, kind.__name__))
        kind = draw(st.sampled_from([kind for kind in legal for _ in range(1 if kind in ENDINGS else 4)]))
        fact = draw(facts(kind, st.just(record.last_seq + 1)))
        outcome = fold(record, fact)
        if isinstance(outcome, HostRollout):
            record = outcome
            accepted.append(fact)
    return first, accepted


def run(record: HostRollout, facts: Iterable[Fact]) -> HostRollout:
    """`record` after those of `facts` it takes."""
    for fact in facts:
        outcome = fold(record, fact)
        record = outcome if isinstance(outcome, HostRollout) else record
    return record


@given(histories(), st.lists(any_fact, max_size=8))
def test_the_fold_answers_every_fact_in_every_record_and_never_raises(
    history: tuple[HostRollout, list[Fact]], offered: list[Fact]
) -> None:
    record = run(*history)
    for fact in offered:
        match fold(record, fact):
            case HostRollout() as following:
                assert fact.seq == record.last_seq + 1
                assert following.phase is LIFECYCLE[record.phase][type(fact)]
                assert record.phase is not Phase.REVERTED or following.phase is Phase.REVERTED
                record = following
            case Illegal(phase=phase, kind=kind, why=why):
                assert (phase, kind) == (record.phase, type(fact).__name__)
                assert why
            case OutOfOrder(expected=expected, seq=seq):
                assert (expected, seq) == (record.last_seq + 1, fact.seq)
                assert seq != expected


@given(histories())
def test_numbers_have_no_gaps_and_name_the_host_and_target_they_began_with(
    history: tuple[HostRollout, list[Fact]],
) -> None:
    first, accepted = history
    record = run(first, accepted)
    assert [fact.seq for fact in accepted] == list(range(1, record.last_seq + 1))
    assert (record.rollout_id, record.hostname, record.target_closure, record.soak_due_at) == (
        first.rollout_id,
        first.hostname,
        first.target_closure,
        first.soak_due_at,
    )


@given(histories(), st.randoms(use_true_random=False))
def test_facts_delivered_twice_late_and_out_of_order_end_in_the_same_record(
    history: tuple[HostRollout, list[Fact]], random: Any
) -> None:
    first, accepted = history
    record = first
    # A receiver that names the number it wants, and a network that brings whatever it likes in between.
    while record.last_seq < len(accepted):
        noise = random.choices(accepted, k=random.randrange(4))
        record = run(record, [*noise, accepted[record.last_seq]])
    assert record == run(first, accepted)


@given(histories(), st.integers(0, 14))
def test_a_receiver_that_begins_again_from_nothing_ends_where_the_other_one_is(
    history: tuple[HostRollout, list[Fact]], lost_after: int
) -> None:
    first, accepted = history
    assert run(first, accepted) == run(run(first, accepted[:lost_after]), accepted)


@given(histories())
def test_converged_means_on_target_soaked_and_every_enforce_probe_passing(
    history: tuple[HostRollout, list[Fact]],
) -> None:
    record, accepted = history
    for fact in accepted:
        if isinstance(fact, Converged):
            enforced = [probe for probe in record.probes.values() if probe.mode is ProbeMode.ENFORCE]
            assert fact.current_closure == record.target_closure
            assert record.soak_due_at is None or fact.converged_at >= record.soak_due_at
            assert all(probe.status is ProbeStatus.PASS for probe in enforced)
            assert record.activation_completed_at is not None
        record = run(record, [fact])


@given(histories())
def test_nothing_is_reverted_onto_the_target_and_nothing_soaks_that_does_not_run(
    history: tuple[HostRollout, list[Fact]],
) -> None:
    for fact in history[1]:
        assert not (isinstance(fact, RollbackComplete) and fact.reverted_to_closure == NEW)
        assert not (isinstance(fact, ActivationCompleted) and fact.observed_current_closure != NEW)


@given(histories())
def test_no_phase_but_pending_is_reached_without_an_acknowledgement(history: tuple[HostRollout, list[Fact]]) -> None:
    first, accepted = history
    acknowledged = any(isinstance(fact, DispatchAck) for fact in accepted)
    record = run(first, accepted)
    assert acknowledged == (record.phase is not Phase.PENDING) == (record.dispatch_acked_at is not None)
