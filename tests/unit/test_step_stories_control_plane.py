"""Stories of a control plane that repeats itself, forgets, lies or wants something back."""

import attrs
import pytest

from state_machine.actions import DeliverFacts, Perform, Refuse
from state_machine.events import (
    CertificateLoaded,
    Duty,
    DutyFinished,
    FactRefused,
    FactsDelivered,
    Poked,
    ReplayRequested,
    Snapshot,
    SnapshotsReceived,
)
from state_machine.invariants import check_run
from state_machine.schedule import next_wakeup
from state_machine.system import SwitchOutcome
from state_machine.tracking import FORGOTTEN_KEPT, TRACKED_KEPT
from state_machine.values import Phase, RolloutId, WallMs
from tests.property.agent_world import (
    FRESH,
    MINUTE,
    Release,
    World,
)
from tests.unit.step_story import (
    NEW,
    NEWER,
    OLD,
    R1,
    R2,
    T0,
    Row,
    Told,
    at,
    booted,
    dispatched,
    probed,
    realised,
    shown,
    switched,
    tell,
    tick,
    to_activating,
    to_converged,
    to_soaking,
    to_switching,
    view,
    wished_back,
)

# --- it wants a rollout back ----------------------------------------------------------------------------------------


def test_a_wish_while_fetching_stops_the_fetch_and_goes_back() -> None:
    end = to_activating().then(
        (wished_back(3), ["2 RollbackRequested", "> abandon 1", "> roll back 2 old"]),
        (realised(4), ["? no realisation 1 is under way"]),
        (switched(9, 2, view(OLD)), ["3 RollbackComplete to old", "> probes"]),
    )
    assert "it burns" in end.known.quarantine[NEW].why


@pytest.mark.parametrize("outcome", list(SwitchOutcome))
def test_a_wish_during_the_switch_waits_for_its_end_whatever_it_is(outcome: SwitchOutcome) -> None:
    to_switching().then(
        (wished_back(6), ["3 RollbackRequested"]),
        (wished_back(7), ["! rollback-failed"]),
        (switched(10, 2, view(NEW), outcome), ["> roll back 3 old"]),
        (switched(20, 3, view(OLD)), ["4 RollbackComplete to old", "> probes"]),
    )


def test_a_wish_while_soaking_and_after_convergence_is_honoured() -> None:
    to_soaking().then(
        (wished_back(20), ["5 RollbackRequested", "> roll back 3 old"]),
        (switched(30, 3, view(OLD)), ["6 RollbackComplete to old", "> probes"]),
    )
    to_converged().then(
        (wished_back(200), ["8 RollbackRequested", "> roll back 3 old"]),
        (switched(210, 3, view(OLD)), ["9 RollbackComplete to old", "> probes"]),
    )


def test_a_wish_while_a_reboot_is_awaited_makes_the_old_system_permanent() -> None:
    to_switching().then(
        (switched(10, 2, view(OLD, profile=NEW), SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel"]),
        (wished_back(20), ["4 RollbackRequested", "> roll back 3 old"]),
        (switched(30, 3, view(OLD)), ["5 RollbackComplete to old", "> probes"]),
    )


def test_a_wish_repeated_a_thousand_times_is_done_once_and_costs_the_journal_nothing_more() -> None:
    story = to_converged().then((wished_back(200), ["8 RollbackRequested", "> roll back 3 old"]))
    again: list[Row] = [(wished_back(201 + second), ["! rollback-failed"]) for second in range(1000)]
    story = story.then(*again)
    durable = [passage for passage in story.run if passage.step.durable]
    assert len(durable) == len([p for p in to_converged().run if p.step.durable]) + 2


def test_a_wish_for_a_foreign_unknown_finished_or_malformed_rollout_is_refused() -> None:
    taken_back = to_converged().then(
        (wished_back(200), ["8 RollbackRequested", "> roll back 3 old"]),
        (switched(210, 3, view(OLD)), ["9 RollbackComplete to old", "> probes"]),
        (wished_back(211), ["! rollback-failed"]),
        (wished_back(212, "core@9"), ["! rollback-failed"]),
        (wished_back(213, "../edge@1"), ["! parse"]),
        (attrs.evolve(wished_back(214), hostname="node8"), ["! manifest-mismatch"]),
    )
    assert taken_back.known.operation is None


def test_a_wish_without_an_earlier_system_is_refused() -> None:
    tell(
        (booted(0, view(NEW)), ["> probes"]),
        (shown(1), []),
        (
            dispatched(2, running=NEW),
            ["1 DispatchAck from new", "2 ActivationCompleted", "3 ProbeTopologyDeclared ssh", "> probes"],
        ),
        (wished_back(3), ["4 DispatchReject rollback-failed", "! rollback-failed"]),
        (wished_back(8), ["! rollback-failed"]),
    )


# --- facts and how far they got -------------------------------------------------------------------------------------


def delivered(seconds: float, through: int, rollout_id: RolloutId = R1) -> FactsDelivered:
    return FactsDelivered(at=at(seconds), rollout_id=rollout_id, through_seq=through)


def over(seconds: float, duty: Duty = Duty.DELIVERY, *, ok: bool = True, after_ms: int | None = None) -> DutyFinished:
    return DutyFinished(at=at(seconds), duty=duty, ok=ok, retry_after_ms=after_ms)


def talking() -> Told:
    """An agent that talks to its control plane and has one fact to tell."""
    return tell(
        (booted(0), ["> probes", "> heartbeat", "> dispatch", "> intent"]),
        (shown(1), []),
        (dispatched(2), ["1 DispatchAck from old", "> realise 1 new", "> deliver edge@1 1-1"]),
    )


def test_facts_are_delivered_in_order_and_again_from_where_it_asks() -> None:
    talking().then(
        (delivered(3, 1), []),
        (over(3), []),
        (realised(5), ["2 ActivationStarted", "> switch 2 new", "> deliver edge@1 2-2"]),
        (delivered(6, 2), []),
        (ReplayRequested(at=at(6), rollout_id=R1, from_seq=1), []),
        (over(6, ok=False), []),
        (tick(6.75), ["> deliver edge@1 1-2"]),
        (delivered(7, 99), []),
        (over(7), []),
        (ReplayRequested(at=at(8), rollout_id=R1, from_seq=3), []),
        (ReplayRequested(at=at(8), rollout_id=R1, from_seq=0), ["? a replay of edge@1 from 0"]),
        (ReplayRequested(at=at(8), rollout_id=R2, from_seq=1), ["? a replay of edge@2 from 1"]),
    )


def test_a_fact_that_is_refused_for_good_holds_nothing_up() -> None:
    end = talking().then(
        (realised(3), ["2 ActivationStarted", "> switch 2 new"]),
        (FactRefused(at=at(4), rollout_id=R1, seq=1, status=422, reason="no"), []),
        (
            FactRefused(at=at(4), rollout_id=R1, seq=1, status=422, reason="no"),
            ["? fact 1 of edge@1 refused, which is not on its way"],
        ),
        (over(5), ["> deliver edge@1 2-2"]),
    )
    assert end.known.rollouts[R1].refused_facts == 1


def test_a_delivery_that_gets_nowhere_is_not_repeated_at_once_even_if_it_says_it_went_well() -> None:
    talking().then((over(3), []), (tick(3.7), []), (tick(3.75), ["> deliver edge@1 1-1"]), (over(4), []), (tick(5), []))


def test_a_rollout_whose_facts_get_nowhere_does_not_stand_in_the_way_of_another() -> None:
    talking().then(
        (shown(3, R2, NEWER, signed=3), []),
        (
            dispatched(4, R2, NEWER),
            [
                "2 ActivationFailed (-1) superseded by edge@2 before the switch",
                "1 DispatchAck from old",
                "> abandon 1",
                "> realise 2 newer",
            ],
        ),
        (over(5, ok=False), []),
        (tick(6), ["> deliver edge@2 1-1"]),
        (delivered(7, 1, R2), []),
        (over(7), ["> deliver edge@1 1-2"]),
    )


def test_a_long_backlog_goes_out_in_portions() -> None:
    story = to_soaking()
    rows: list[Row] = []
    seq = 7
    for flap in range(120):
        second = 12 + flap / 10
        rows.append((probed(second, "fail"), [f"{seq} ProbeFailureFirst ssh", f"{seq + 1} ProbeResult ssh fail"]))
        rows.append((probed(second + 0.05), [f"{seq + 2} ProbeResult ssh pass"]))
        seq += 3
    story = story.then((probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]), *rows)
    talks = story.killed().then(
        (
            booted(30, view(NEW)),
            ["> probes", "> heartbeat", "> dispatch", "> intent", "> deliver edge@1 1-200"],
        ),
        (delivered(31, 200), []),
        (over(31), [f"> deliver edge@1 201-{seq - 1}"]),
    )
    assert talks.known.rollouts[R1].delivered_seq == 200


def test_a_control_plane_that_lost_facts_is_told_them_again_but_never_believed() -> None:
    story = talking().then((delivered(3, 1), []), (over(3), []))
    lost = Snapshot(rollout_id=R1, phase=Phase.PENDING, target_closure=NEW, last_seq=0)
    end = story.then(
        (SnapshotsReceived(at=at(4), snapshots=(lost,)), ["> deliver edge@1 1-1"]),
        (
            SnapshotsReceived(at=at(5), snapshots=(attrs.evolve(lost, target_closure="-rf"),)),
            ["! parse"],
        ),
    )
    assert end.known.rollouts[R1].record.phase is Phase.ACTIVATING


# --- its pace -------------------------------------------------------------------------------------------------------


def test_a_long_poll_that_is_answered_at_once_is_not_begun_again_at_once() -> None:
    story = tell((booted(0), ["> probes", "> heartbeat", "> dispatch", "> intent"]))
    story.then(
        (over(0.05, Duty.DISPATCH), []),
        (tick(0.9), []),
        (tick(1), ["> dispatch"]),
        (over(61, Duty.DISPATCH), ["> dispatch"]),
    )


def test_retry_after_is_honoured_up_to_an_hour() -> None:
    story = tell((booted(0), ["> probes", "> heartbeat", "> dispatch", "> intent"]))
    story.then((over(1, Duty.INTENT, ok=False, after_ms=30_000), []), (tick(30), []), (tick(31), ["> intent"]))
    story.then(
        (over(1, Duty.INTENT, ok=False, after_ms=2**53 - 1), []),
        (tick(3600), ["> heartbeat", "> dispatch"]),
        (tick(3601), ["> intent"]),
    )


def test_an_exchange_that_never_ends_is_begun_again() -> None:
    tell(
        (booted(0), ["> probes", "> heartbeat", "> dispatch", "> intent"]),
        (tick(299), []),
        (tick(300), ["> heartbeat", "> dispatch", "> intent"]),
    )


def test_a_certificate_is_renewed_at_half_life_and_a_useless_one_does_not_go_round() -> None:
    def loaded(seconds: float, days: float) -> CertificateLoaded:
        begins = at(seconds).wall_ms
        return CertificateLoaded(at=at(seconds), validity=(begins, WallMs(begins + int(days * 86_400_000))))

    story = tell(
        (booted(0), ["> probes"]),
        (loaded(1, 30), []),
        (tick(15 * 86_400), []),
        (Poked(at=at(15 * 86_400)), []),
        (tick(15 * 86_400 + 1), ["> renewal"]),
        (over(15 * 86_400 + 2, Duty.RENEWAL, ok=False), []),
    )
    begun = story.then((tick(15 * 86_400 + 3600), ["> renewal"]))
    begun.then(
        (loaded(15 * 86_400 + 3601, -1), []),
        (over(15 * 86_400 + 3602, Duty.RENEWAL), []),
        (tick(15 * 86_400 + 3630), []),
        (tick(15 * 86_400 + 3631), ["> renewal"]),
    )
    begun.then((over(15 * 86_400 + 3602, Duty.RENEWAL), []), (tick(15 * 86_400 + 7202), ["> renewal"]))


def test_a_host_without_a_certificate_enrols_at_once_and_a_poke_tries_that_again() -> None:
    tell(
        (booted(0), ["> probes"]),
        (CertificateLoaded(at=at(1), validity=None), ["> renewal"]),
        (over(2, Duty.RENEWAL, ok=False), []),
        (Poked(at=at(3)), ["> renewal"]),
        (
            CertificateLoaded(at=at(4), validity=(WallMs(T0), WallMs(T0 + 30 * 86_400_000))),
            [],
        ),
        (Poked(at=at(4)), []),
        (over(4, Duty.RENEWAL), []),
        (tick(1000), []),
    )


# --- floods ---------------------------------------------------------------------------------------------------------


def size(thing: object) -> int:
    """How many values a state is made of."""
    match thing:
        case dict():
            return 1 + sum(size(value) for value in thing.values())
        case list() | tuple():
            return 1 + sum(size(value) for value in thing)
        case _:
            return 1


def flooded(target: str, *, answer: bool) -> World:
    """Ten thousand dispatches with an id each, a second apart; their manifests do not prove, or never come."""
    world = World(watched=False)
    world.start()
    world.live(MINUTE)
    for number in range(10_000):
        world.pass_time(1000)
        event = dispatched(0, f"edge@{number:x}", target)
        world.tell(attrs.evolve(event, at=world.moment()))
        if answer:
            for work in [w for w in world.work if not isinstance(w.order, Perform | DeliverFacts)]:
                world.answer(work)
        world.work.clear()
    return world


@pytest.mark.parametrize("answer", [True, False], ids=["refused", "unanswered"])
@pytest.mark.parametrize("target", [NEW, "-rf"], ids=["closure", "nonsense"])
def test_ten_thousand_hostile_dispatches_fill_neither_the_state_nor_the_journal(target: str, answer: bool) -> None:
    world = flooded(target, answer=answer)
    hours = 3
    assert len([passage for passage in world.run if passage.step.durable]) < 33 * 3 * hours
    assert size(attrs.asdict(world.state)) < 3000
    assert not check_run(world.run)
    assert len([r for r in world.refused if isinstance(r, Refuse)]) >= 9_000
    world.pass_time(60 * MINUTE)
    world.publish(R1, Release(target=FRESH))
    world.live(10 * MINUTE)
    assert world.phase_of(R1) is Phase.CONVERGED


def test_a_rollout_that_was_forgotten_goes_on_counting_where_it_stopped() -> None:
    """Its facts keep their numbers for ever: `(rollout, seq)` names one fact, whoever makes the host forget."""
    story = tell((booted(0), ["> probes"]), (shown(1, target=None), []))
    mismatch = ["TargetRefused manifest-mismatch", "DispatchReject manifest-mismatch"]
    refused = [f"1 {mismatch[0]}", f"2 {mismatch[1]}", "! manifest-mismatch"]
    second = 10.0
    story = story.then((dispatched(second, R1), refused))
    for number in range(TRACKED_KEPT):
        second += 3600
        rollout_id = RolloutId(f"edge@f{number:x}")
        story = story.then(
            (shown(second, rollout_id, None, signed=second), []),
            (dispatched(second, rollout_id), refused),
        )
    assert R1 in story.known.forgotten
    story.then(
        (shown(second + 3600, R1, None, signed=second + 3600), []),
        (dispatched(second + 3601, R1), [f"3 {mismatch[0]}", f"4 {mismatch[1]}", "! manifest-mismatch"]),
    )
    assert FORGOTTEN_KEPT > TRACKED_KEPT


def test_what_a_hostile_dispatch_asks_for_stays_within_what_can_be_written_down() -> None:
    end = tell(
        (booted(0), ["> probes"]),
        (shown(1), []),
        (attrs.evolve(dispatched(2), soak_s=2**53 - 1), ["1 DispatchAck from old", "> realise 1 new"]),
    )
    assert end.known.rollouts[R1].soak_ms == 30 * 86_400 * 1000
    shorter = tell(
        (booted(0), ["> probes"]),
        (shown(1), []),
        (attrs.evolve(dispatched(2), soak_s=-5), ["1 DispatchAck from old", "> realise 1 new"]),
    )
    assert shorter.known.rollouts[R1].soak_ms == 120_000


@pytest.mark.parametrize("target", ["", "-rf", "0" * 32, f"{NEW}/../x", NEW + "\n", "x" * 300])
def test_what_is_no_closure_reaches_no_file_and_no_command(target: str) -> None:
    tell((booted(0), ["> probes"]), (dispatched(1, target=target), ["! parse"]))


@pytest.mark.parametrize(
    "rollout_id", ["", "edge", "edge@", "@1", "../edge@1", "edge@1/..", "e" * 200 + "@1", "edge@1\0"]
)
def test_what_is_no_rollout_id_becomes_no_path_and_no_url(rollout_id: str) -> None:
    tell((booted(0), ["> probes"]), (dispatched(1, rollout_id), ["! parse"]))


def test_a_dispatch_for_another_host_is_refused() -> None:
    tell((booted(0), ["> probes"]), (dispatched(1, host="node8"), ["! manifest-mismatch"]))


def test_a_second_dispatch_takes_the_place_of_one_that_still_waits_for_its_manifest() -> None:
    tell(
        (booted(0), ["> probes"]),
        (dispatched(1, R1), ["> fetch edge@1"]),
        (dispatched(2, R1, NEWER), ["? edge@1 is being considered already"]),
        (dispatched(3, R2, NEWER), ["! busy", "> fetch edge@2"]),
        (shown(4, R1), []),
        (shown(5, R2, NEWER, signed=-50), ["1 DispatchAck from old", "> realise 1 newer"]),
    )


def test_an_idle_agent_wakes_for_its_polls_and_nothing_else() -> None:
    world = World()
    world.start()
    world.publish(R1, Release(target=FRESH))
    world.live(20 * MINUTE)
    begun = len(world.run)
    world.probes_due_ms = None
    world.live(60 * MINUTE)
    events = [passage.event for passage in world.run[begun:]]
    assert len([e for e in events if type(e).__name__ == "Tick"]) < 60 * 3 + 10
    delay = next_wakeup(world.state, world.moment())
    assert delay is not None
    assert delay > 0
