"""The lifecycle table, held to a second copy written by hand, and the fold's refusals one by one."""

import pathlib
from collections.abc import Mapping
from typing import Final

import attrs
import pytest

from state_machine import diagram
from state_machine.facts import (
    FACT_KINDS,
    ActivationCompleted,
    ActivationDeferred,
    ActivationFailed,
    ActivationStarted,
    Converged,
    DispatchAck,
    DispatchReject,
    DriftObserved,
    Fact,
    Failed,
    ProbeFailureFirst,
    ProbeObservedFirst,
    ProbeResult,
    ProbeTopologyDeclared,
    RollbackComplete,
    RollbackFailed,
    RollbackRequested,
    TargetRefused,
)
from state_machine.lifecycle import (
    IN_FLIGHT,
    LIFECYCLE,
    OPEN,
    SETTLED,
    TERMINAL,
    HostRollout,
    Illegal,
    OutOfOrder,
    fold,
    opened,
)
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
    SwitchMethod,
    WallMs,
)

OLD: Final = Closure("0" * 32 + "-old")
NEW: Final = Closure("1" * 32 + "-new")
T: Final = WallMs(1_000_000)
LATER: Final = WallMs(2_000_000)
SSH: Final = ProbeSpec(name="ssh", kind="tcp", mode=ProbeMode.ENFORCE)
LOAD: Final = ProbeSpec(name="load", kind="exec", mode=ProbeMode.OBSERVE)

ACK: Final = DispatchAck(seq=0, current_closure_at_dispatch=OLD, received_at=T)
COMPLETED: Final = ActivationCompleted(seq=0, observed_current_closure=NEW, exit_code=0, completed_at=T)
PASSED: Final = ProbeResult(seq=0, probe_name="ssh", mode=ProbeMode.ENFORCE, status=ProbeStatus.PASS, observed_at=T)
BACK: Final = RollbackComplete(seq=0, reverted_to_closure=OLD, exit_code=0, completed_at=T)
DONE: Final = Converged(seq=0, converged_at=LATER, current_closure=NEW)

SAMPLES: Final[Mapping[type[Fact], Fact]] = {
    type(fact): fact
    for fact in (
        ACK,
        ActivationStarted(seq=0, started_at=T, switch_method=SwitchMethod.SYSTEMD_RUN),
        COMPLETED,
        ActivationDeferred(seq=0, component="kernel", deferred_at=T),
        ActivationFailed(seq=0, exit_code=1, stderr_tail="boom", failed_at=T),
        ProbeTopologyDeclared(seq=0, probes=(SSH, LOAD), declared_at=T),
        ProbeObservedFirst(seq=0, probe_name="ssh", mode=ProbeMode.ENFORCE, observed_at=T),
        PASSED,
        ProbeFailureFirst(seq=0, probe_name="ssh", mode=ProbeMode.ENFORCE, first_failed_at=T),
        Failed(
            seq=0,
            failed_at=T,
            sustained_duration_secs=60,
            failing_probes=("ssh",),
            policy_applied=FailurePolicy.ROLLBACK_AND_HALT,
        ),
        BACK,
        DONE,
        DispatchReject(seq=0, reason=Reason.QUARANTINED, rejected_at=T),
        TargetRefused(seq=0, reason=Reason.STALE, detail="two hours old", refused_at=T),
        RollbackRequested(seq=0, reason="bad release", requested_at=T),
        RollbackFailed(seq=0, exit_code=1, stderr_tail="boom", failed_at=T),
        DriftObserved(seq=0, expected_closure=NEW, observed_closure=OLD, observed_at=T),
    )
}
"""One fact of each kind, such that no invariant of the records below forbids it. Numbered when used."""

PATHS: Final[Mapping[Phase, tuple[type[Fact], ...]]] = {
    Phase.PENDING: (),
    Phase.ACTIVATING: (DispatchAck,),
    Phase.DEFERRED: (DispatchAck, ActivationDeferred),
    Phase.SOAKING: (DispatchAck, ActivationStarted, ActivationCompleted),
    Phase.CONVERGED: (DispatchAck, ActivationStarted, ActivationCompleted, Converged),
    Phase.FAILED: (DispatchAck, ActivationFailed),
    Phase.REVERTED: (DispatchAck, ActivationFailed, RollbackComplete),
}

EXPECTED: Final = """
                        Pending     Activating  Deferred  Soaking    Converged  Failed    Reverted
DispatchAck             Activating  -           -         -          -          -         -
ActivationStarted       -           Activating  -         -          -          -         -
ActivationCompleted     -           Soaking     Soaking   -          -          -         -
ActivationDeferred      -           Deferred    -         -          -          -         -
ActivationFailed        -           Failed      Failed    -          -          -         -
ProbeTopologyDeclared   -           -           -         Soaking    -          -         -
ProbeObservedFirst      -           -           -         Soaking    -          -         -
ProbeResult             -           -           -         Soaking    -          -         -
ProbeFailureFirst       -           -           -         Soaking    -          -         -
Failed                  -           -           -         Failed     -          -         -
RollbackComplete        -           -           -         -          -          Reverted  -
Converged               -           -           -         Converged  -          -         -
DispatchReject          Pending     Activating  Deferred  Soaking    Converged  -         -
TargetRefused           Pending     Activating  -         -          -          -         -
RollbackRequested       -           Failed      Failed    Failed     Failed     -         -
RollbackFailed          -           -           -         -          -          Failed    -
DriftObserved           -           -           Deferred  Soaking    Converged  Failed    Reverted
"""


def expected() -> dict[tuple[Phase, str], Phase | None]:
    """`EXPECTED`, read."""
    header, *rows = EXPECTED.strip().splitlines()
    phases = [Phase(word) for word in header.split()]
    return {
        (phase, name): None if cell == "-" else Phase(cell)
        for name, *cells in (row.split() for row in rows)
        for phase, cell in zip(phases, cells, strict=True)
    }


def after(record: HostRollout, *facts: Fact) -> HostRollout:
    """`record` after `facts`, numbered as they come. Each must be accepted."""
    for fact in facts:
        outcome = fold(record, attrs.evolve(fact, seq=record.last_seq + 1))
        assert isinstance(outcome, HostRollout), outcome
        record = outcome
    return record


def pending(soak_due_at: WallMs | None = None) -> HostRollout:
    """The record before its first fact."""
    return opened(RolloutId("edge@1"), HostName("node"), NEW, soak_due_at=soak_due_at)


def record_in(phase: Phase) -> HostRollout:
    """A record that facts brought to `phase`."""
    record = after(pending(), *(SAMPLES[kind] for kind in PATHS[phase]))
    assert record.phase is phase
    return record


def soaking(*facts: Fact, soak_due_at: WallMs | None = None) -> HostRollout:
    """A record in Soaking, and `facts` after that."""
    return after(pending(soak_due_at), *(SAMPLES[kind] for kind in PATHS[Phase.SOAKING]), *facts)


def next_of(record: HostRollout, fact: Fact) -> HostRollout | Illegal | OutOfOrder:
    """What `fold` says to `fact` with the right number."""
    return fold(record, attrs.evolve(fact, seq=record.last_seq + 1))


def refusal(record: HostRollout, fact: Fact) -> str:
    """Why `fold` will not take `fact`."""
    outcome = next_of(record, fact)
    assert isinstance(outcome, Illegal), outcome
    return outcome.why


def test_the_hand_written_table_covers_every_phase_and_every_kind_of_fact() -> None:
    assert set(expected()) == {(phase, kind.__name__) for phase in Phase for kind in FACT_KINDS}


def test_the_samples_cover_every_kind_of_fact_and_the_paths_every_phase() -> None:
    assert set(SAMPLES) == set(FACT_KINDS)
    assert set(PATHS) == set(Phase)


@pytest.mark.parametrize("kind", FACT_KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("phase", Phase)
def test_each_phase_takes_each_fact_exactly_as_the_table_says(phase: Phase, kind: type[Fact]) -> None:
    should_be = expected()[phase, kind.__name__]
    record = record_in(phase)
    outcome = next_of(record, SAMPLES[kind])
    assert LIFECYCLE[phase].get(kind) is should_be
    if should_be is None:
        assert outcome == Illegal(phase=phase, kind=kind.__name__, why=f"{phase} does not accept it")
    else:
        assert isinstance(outcome, HostRollout)
        assert (outcome.phase, outcome.last_seq) == (should_be, record.last_seq + 1)


def test_no_phase_lacks_a_row() -> None:
    assert set(LIFECYCLE) == set(Phase)


def test_every_phase_is_open_or_terminal_or_failed_and_none_is_two_of_them() -> None:
    assert OPEN | TERMINAL | {Phase.FAILED} == set(Phase)
    assert not OPEN & TERMINAL
    assert IN_FLIGHT < OPEN
    assert not SETTLED & IN_FLIGHT


def test_only_converged_and_reverted_go_nowhere_unless_the_control_plane_asks() -> None:
    by_itself = {
        phase
        for phase, row in LIFECYCLE.items()
        if any(following is not phase for kind, following in row.items() if kind is not RollbackRequested)
    }
    assert set(Phase) - by_itself == TERMINAL


@pytest.mark.parametrize("phase", [phase for phase in Phase if PATHS[phase]])
def test_a_fact_delivered_twice_is_recognised_by_its_number(phase: Phase) -> None:
    record = record_in(phase)
    again = attrs.evolve(SAMPLES[PATHS[phase][-1]], seq=record.last_seq)
    assert fold(record, again) == OutOfOrder(expected=record.last_seq + 1, seq=record.last_seq)


@pytest.mark.parametrize("seq", [-1, 0, 2, 3, 2**63])
def test_a_fact_with_a_gap_before_it_is_not_taken_and_the_wanted_number_is_named(seq: int) -> None:
    assert fold(pending(), attrs.evolve(ACK, seq=seq)) == OutOfOrder(expected=1, seq=seq)


def test_the_number_is_looked_at_before_the_phase() -> None:
    assert isinstance(fold(pending(), attrs.evolve(DONE, seq=7)), OutOfOrder)


def test_facts_in_the_wrong_order_are_refused_although_their_kinds_are_right() -> None:
    started = attrs.evolve(SAMPLES[ActivationStarted], seq=1)
    assert fold(pending(), started) == Illegal(
        phase=Phase.PENDING, kind="ActivationStarted", why="Pending does not accept it"
    )


def test_a_refused_fact_leaves_the_record_ready_for_the_right_one() -> None:
    record = soaking()
    assert refusal(record, attrs.evolve(DONE, current_closure=OLD))
    assert after(record, DONE).phase is Phase.CONVERGED


class TestConvergence:
    def test_it_needs_the_target_to_be_what_runs(self) -> None:
        drifted = attrs.evolve(DONE, current_closure=OLD)
        assert refusal(soaking(), drifted) == f"{OLD} runs, not the target"

    def test_it_needs_something_to_run(self) -> None:
        assert refusal(soaking(), attrs.evolve(DONE, current_closure=Closure(""))) == "nothing runs, not the target"

    def test_it_needs_the_soak_to_be_over(self) -> None:
        too_early = attrs.evolve(DONE, converged_at=WallMs(LATER - 1))
        assert refusal(soaking(soak_due_at=LATER), too_early) == "the soak is not over"

    def test_it_may_come_on_the_millisecond_that_the_soak_ends(self) -> None:
        assert after(soaking(soak_due_at=LATER), DONE).phase is Phase.CONVERGED

    def test_it_needs_a_result_of_every_enforce_probe_that_was_declared(self) -> None:
        record = soaking(SAMPLES[ProbeTopologyDeclared])
        assert refusal(record, DONE) == "enforce probe ssh is unknown"

    def test_it_needs_the_latest_result_to_be_a_pass(self) -> None:
        failing = attrs.evolve(PASSED, status=ProbeStatus.FAIL)
        record = soaking(SAMPLES[ProbeTopologyDeclared], PASSED, failing)
        assert refusal(record, DONE) == "enforce probe ssh is fail"
        assert after(record, PASSED, DONE).phase is Phase.CONVERGED

    def test_it_does_not_wait_for_a_probe_that_only_observes(self) -> None:
        record = soaking(SAMPLES[ProbeTopologyDeclared], PASSED)
        assert record.probes["load"].status is ProbeStatus.UNKNOWN
        assert after(record, DONE).phase is Phase.CONVERGED


class TestRollback:
    def test_it_cannot_end_on_the_failing_target(self) -> None:
        on_target = attrs.evolve(BACK, reverted_to_closure=NEW)
        assert (
            refusal(record_in(Phase.FAILED), on_target)
            == "a rollback ends on an earlier system, never on nothing or on the failing target"
        )

    def test_it_is_recorded_with_what_runs_now(self) -> None:
        record = record_in(Phase.REVERTED)
        assert (record.current_closure, record.reverted_at) == (OLD, T)

    def test_one_that_failed_leaves_the_host_failed_and_may_be_followed_by_one_that_works(self) -> None:
        record = after(record_in(Phase.FAILED), SAMPLES[RollbackFailed])
        assert record.failure == "rollback failed: boom"
        assert after(record, BACK).phase is Phase.REVERTED

    def test_the_control_planes_wish_is_told_apart_from_a_finding(self) -> None:
        record = after(record_in(Phase.CONVERGED), SAMPLES[RollbackRequested])
        assert record.failure == "rollback requested by the control plane: bad release"


class TestRecord:
    def test_it_keeps_what_ran_at_dispatch_for_the_way_back(self) -> None:
        assert record_in(Phase.ACTIVATING).closure_at_dispatch == OLD

    def test_an_unknown_running_system_is_none_rather_than_an_empty_name(self) -> None:
        record = after(pending(), attrs.evolve(ACK, current_closure_at_dispatch=Closure("")))
        assert record.closure_at_dispatch is None

    def test_an_activation_of_another_system_is_refused(self) -> None:
        other = attrs.evolve(COMPLETED, observed_current_closure=OLD)
        assert refusal(record_in(Phase.ACTIVATING), other) == f"{OLD} runs, not the target"

    def test_results_from_before_an_activation_do_not_count_after_it(self) -> None:
        assert record_in(Phase.SOAKING).probes == {}

    def test_a_new_topology_forgets_what_the_old_probes_said(self) -> None:
        record = soaking(SAMPLES[ProbeTopologyDeclared], PASSED, SAMPLES[ProbeTopologyDeclared])
        assert {probe.status for probe in record.probes.values()} == {ProbeStatus.UNKNOWN}

    def test_a_pass_clears_the_first_failure_stamp(self) -> None:
        record = soaking(SAMPLES[ProbeFailureFirst])
        assert record.probes["ssh"].first_failed_at == T
        assert after(record, PASSED).probes["ssh"].first_failed_at is None

    def test_a_refusal_is_kept_until_the_host_takes_the_dispatch_after_all(self) -> None:
        record = after(pending(), SAMPLES[TargetRefused])
        assert record.refusal == "stale: two hours old"
        assert after(record, ACK).refusal is None

    def test_a_sustained_failure_names_its_probes_and_the_policy(self) -> None:
        record = soaking(SAMPLES[Failed])
        assert record.failure == "probes failed for 60 s: ssh"
        assert record.policy_applied is FailurePolicy.ROLLBACK_AND_HALT


class TestPage:
    def test_it_shows_the_lifecycle_of_today(self) -> None:
        page = pathlib.Path(__file__).parents[2] / "docs" / "lifecycle.md"
        shown = page.read_text(encoding="utf-8")
        rewrite = "p = pathlib.Path('docs/lifecycle.md'); p.write_text(diagram.embedded(p.read_text()))"
        assert shown == diagram.embedded(shown), (
            f'docs/lifecycle.md is stale: python -c "import pathlib; from state_machine import diagram; {rewrite}"'
        )

    def test_the_diagram_has_an_arrow_for_every_change_of_phase_and_no_other(self) -> None:
        arrows = {line.strip().partition(":")[0] for line in diagram.mermaid().splitlines()[1:]}
        moves = {(phase, to) for (phase, _), to in expected().items() if to is not None and to is not phase}
        ends = {"[*] --> Pending", "Converged --> [*]", "Reverted --> [*]"}
        assert arrows == {f"{phase} --> {to}" for phase, to in moves} | ends

    def test_the_table_names_every_legal_pair_once(self) -> None:
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in diagram.table().splitlines()[2:]]
        pairs = [(Phase(phase), fact.strip("`")) for phase, facts, _ in cells for fact in facts.split(", ")]
        assert len(pairs) == len(set(pairs))
        assert set(pairs) == {pair for pair, to in expected().items() if to is not None}

    @pytest.mark.parametrize("page", ["", diagram.BEGIN, diagram.END, diagram.END + diagram.BEGIN])
    def test_a_page_without_both_markers_is_an_error_that_names_them(self, page: str) -> None:
        with pytest.raises(ValueError, match="begin -->' and, after it"):
            diagram.embedded(page)


class TestProbeModes:
    def test_a_later_fact_cannot_turn_an_enforced_probe_into_an_observed_one(self) -> None:
        spec = ProbeSpec(name="web", kind="http", mode=ProbeMode.ENFORCE)
        record = _soaking_with(spec)
        disarmed = fold(
            record,
            ProbeResult(
                seq=record.last_seq + 1,
                probe_name="web",
                mode=ProbeMode.OBSERVE,
                status=ProbeStatus.FAIL,
                observed_at=WallMs(0),
            ),
        )
        assert isinstance(disarmed, HostRollout)
        assert disarmed.probes["web"].mode is ProbeMode.ENFORCE

    def test_a_rollback_cannot_end_on_nothing(self) -> None:
        failed = HostRollout(
            rollout_id=RolloutId("stable@ab"), hostname=HostName("n"), target_closure=Closure("t"), phase=Phase.FAILED
        )
        fact = RollbackComplete(seq=1, reverted_to_closure=Closure(""), exit_code=0, completed_at=WallMs(0))
        assert isinstance(fold(failed, fact), Illegal)


def _soaking_with(spec: ProbeSpec) -> HostRollout:
    record = HostRollout(
        rollout_id=RolloutId("stable@ab"), hostname=HostName("n"), target_closure=Closure("t"), phase=Phase.SOAKING
    )
    declared = fold(record, ProbeTopologyDeclared(seq=1, probes=(spec,), declared_at=WallMs(0)))
    assert isinstance(declared, HostRollout)
    return declared
