"""S1 to S10 by name, each over runs in a world where anybody may lie, die, be late or speak twice.

Half of the runs begin with an agent that follows a source without signatures; S1 and S2 say of it what can be said.
"""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state_machine.events import Booted, Event, Settings, TargetOffered, Tick
from state_machine.facts import RolloutFact
from state_machine.invariants import RUN_PROMISES, STEP_PROMISES, Passage, Run, mirror_of
from state_machine.schedule import next_wakeup
from state_machine.state import GENESIS, Known, Session, State
from state_machine.step import step
from state_machine.values import HostName, Phase
from tests.property.agent_world import HOST, R1, R2, Release, World, closure
from tests.property.strategies import FOLLOWERS, any_event, play, scripts, starts
from wire.records import decode_known, encode_known


def broken(name: str, run: Run) -> list[str]:
    """What `run` did to one promise, step by step and as a whole."""
    found = [problem for passage in run for problem in STEP_PROMISES[name](passage)]
    return found + (list(RUN_PROMISES[name](run)) if name in RUN_PROMISES else [])


def unwatched(script: list[bytes], start: Settings) -> World:
    """A run that is judged only afterwards, by the test itself."""
    return play(script, World(settings=start, watched=False))


worlds = st.builds(unwatched, scripts, starts)


@given(script=scripts, start=starts)
def test_s1_a_switch_goes_only_to_what_a_fresh_verified_manifest_names(script: list[bytes], start: Settings) -> None:
    assert not broken("S1", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_s2_nothing_older_than_the_newest_accepted_manifest_is_acted_on(script: list[bytes], start: Settings) -> None:
    assert not broken("S2", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_s3_what_was_rolled_back_is_not_switched_to_until_an_operator_clears_it(
    script: list[bytes], start: Settings
) -> None:
    assert not broken("S3", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_s4_converged_means_seen_running_soaked_and_passed_by_every_enforce_probe(
    script: list[bytes], start: Settings
) -> None:
    assert not broken("S4", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_s5_a_rollback_goes_to_what_ran_at_the_dispatch_or_says_that_it_cannot(
    script: list[bytes], start: Settings
) -> None:
    assert not broken("S5", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_s6_one_switch_or_rollback_is_in_flight(script: list[bytes], start: Settings) -> None:
    assert not broken("S6", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_s7_facts_are_numbered_without_gaps_and_no_number_twice(script: list[bytes], start: Settings) -> None:
    assert not broken("S7", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_s8_no_clock_revives_stale_intent_or_begins_anything_while_behind(script: list[bytes], start: Settings) -> None:
    assert not broken("S8", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_s9_the_control_plane_moves_nothing_by_its_word_alone(script: list[bytes], start: Settings) -> None:
    assert not broken("S9", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_s10_the_journal_alone_gives_the_same_state_and_the_same_facts(script: list[bytes], start: Settings) -> None:
    assert not broken("S10", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_what_the_operator_restricts_is_not_begun_otherwise(script: list[bytes], start: Settings) -> None:
    assert not broken("operator", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_the_durable_state_contradicts_itself_nowhere_and_stays_bounded(script: list[bytes], start: Settings) -> None:
    assert not broken("whole", unwatched(script, start).run)


@given(script=scripts, start=starts)
def test_l2_what_fails_is_tried_again_and_not_for_ever_and_a_wish_is_followed(
    script: list[bytes], start: Settings
) -> None:
    assert not list(RUN_PROMISES["L2"](unwatched(script, start).run))


def test_every_promise_of_the_architecture_has_its_function_and_its_test() -> None:
    names = [f"S{number}" for number in range(1, 11)]
    assert sorted(RUN_PROMISES) == sorted([*names, "L2"])
    assert sorted(STEP_PROMISES) == sorted([*names, "operator", "whole"])
    tests = [name for name in globals() if name.startswith("test_s")]
    assert all(any(test.startswith(f"test_{name.lower()}_") for test in tests) for name in names)


# --- S10, looked at from its other sides ----------------------------------------------------------------------------


def refold(run: Run) -> tuple[Known, list[RolloutFact]]:
    """What the journaled events of `run` give when nothing else ever happened."""
    known = GENESIS.known
    facts: list[RolloutFact] = []
    for passage in run:
        if passage.step.durable:
            taken = step(State(known=known), passage.event)
            known = taken.state.known
            facts += taken.facts
    return known, facts


@given(world=worlds)
def test_dropping_every_event_that_was_not_journaled_changes_nothing(world: World) -> None:
    known, facts = refold(world.run)
    assert known == world.state.known
    assert facts == [born for passage in world.run for born in passage.step.facts]


@given(world=worlds)
def test_what_only_a_run_knows_never_decides_what_the_journal_will_know(world: World) -> None:
    for passage in world.run:
        bare = State(known=passage.before.known, session=Session())
        taken = step(bare, passage.event)
        assert taken.state.known == passage.after
        assert taken.facts == passage.step.facts


@given(world=worlds, event=any_event)
def test_a_checkpoint_gives_the_same_state_and_whatever_follows_goes_on_from_it_alike(
    world: World, event: Event
) -> None:
    known = decode_known(encode_known(world.state.known))
    assert known == world.state.known
    session = world.state.session
    assert step(State(known=known, session=session), event) == step(world.state, event)


@given(world=worlds, data=st.data())
def test_a_crash_after_any_event_loses_nothing(world: World, data: st.DataObject) -> None:
    """From any prefix, the journal gives the state the agent had, and the boot that follows is an event like any."""
    cut = data.draw(st.integers(1, len(world.run)))
    prefix = world.run[:cut]
    known, _ = refold(prefix)
    assert known == prefix[-1].after
    event = Booted(
        at=attrs.evolve(prefix[-1].event.at, mono_ms=prefix[-1].event.at.mono_ms + 1),
        settings=known.settings,
        system=known.system,
        probes=known.topology,
        calendar=known.calendar,
    )
    again = step(State(known=known), event)
    assert not broken_by(Passage(before=State(known=known), event=event, step=again))


def broken_by(passage: Passage) -> list[str]:
    return [problem for promise in STEP_PROMISES.values() for problem in promise(passage)]


# --- the mirror -----------------------------------------------------------------------------------------------------


@given(world=worlds)
def test_the_facts_of_a_rollout_fold_into_exactly_the_agents_own_record(world: World) -> None:
    for rollout_id, tracked in world.state.known.rollouts.items():
        facts = world.facts.get(rollout_id, [])
        if tracked.oldest_seq == 1:  # an adopted rollout's first facts went with the journal that held them
            assert mirror_of(tracked.record, facts) == tracked.record


# --- waking up ------------------------------------------------------------------------------------------------------


@given(world=worlds)
def test_following_the_alarms_alone_always_gets_somewhere(world: World) -> None:
    """No busy loop: once a `Tick` has been told at the instant that was named, the next instant lies in the future."""
    for _ in range(60):
        if not world.wake():
            return
        delay = next_wakeup(world.state, world.moment())
        assert delay is None or delay > 0


@given(world=worlds)
def test_unfinished_business_has_an_alarm_of_its_own(world: World) -> None:
    """No lost wake-up: even if every worker died now, what is under way would be looked at again."""
    known = world.state.known
    waits = known.waiting is not None and not known.settings.holds
    if known.operation is None and not waits:
        return
    session = attrs.evolve(world.state.session, due={}, started={})
    bare = State(known=attrs.evolve(known, intents={}), session=session)
    assert next_wakeup(bare, world.moment()) is not None


@given(world=worlds)
def test_the_end_of_a_soak_wakes_the_agent_whatever_else_came_just_before(world: World) -> None:
    current = world.state.known.current
    if current is None or current.record.phase is not Phase.SOAKING or current.soak_from is None:
        return
    clock, ends = world.state.known.clock, current.soak_from + current.soak_ms
    ticks = [p for p in world.run if isinstance(p.event, Tick | Booted) and p.after.clock.boot_id == clock.boot_id]
    if any(clock.read(p.event.at) >= ends for p in ticks):
        return
    delay = next_wakeup(world.state, world.moment())
    assert delay is not None
    assert delay <= max(0, ends - clock.read(world.moment()))


@given(world=worlds)
def test_a_tick_before_its_time_is_harmless(world: World) -> None:
    at = world.moment()
    first = world.tell(Tick(at=at))
    again = world.tell(Tick(at=at))
    assert not again.facts
    assert again.state.known == first.state.known


# --- the checks themselves ------------------------------------------------------------------------------------------


@pytest.fixture
def converged() -> World:
    world = World()
    world.start()
    world.publish(R1, Release(target=closure("1", "new")))
    world.settle(lambda: world.phase == "Converged")
    return world


def test_a_run_with_a_passage_cut_out_is_found(converged: World) -> None:
    facts = [index for index, passage in enumerate(converged.run) if passage.step.facts]
    cut = converged.run[: facts[1]] + converged.run[facts[1] + 1 :]
    assert broken("S7", cut)
    assert broken("S10", cut)


def test_a_switch_without_the_manifest_that_allowed_it_is_found(converged: World) -> None:
    shown = [p for p in converged.run if type(p.event).__name__ != "IntentVerified"]
    assert list(RUN_PROMISES["S1"](shown))


def test_a_switch_to_what_its_source_did_not_say_last_is_found() -> None:
    world = World(settings=FOLLOWERS[0])
    world.start()
    world.offered = closure("1", "new")
    world.settle(lambda: world.phase == "Converged")
    assert not world.broken_promises()
    silent = [passage for passage in world.run if not isinstance(passage.event, TargetOffered)]
    assert list(RUN_PROMISES["S1"](silent))


def test_facts_that_belong_to_another_host_or_order_do_not_mirror(converged: World) -> None:
    record = converged.state.known.rollouts[R1].record
    assert record.hostname == HOST
    assert mirror_of(attrs.evolve(record, hostname=HostName("node8")), converged.facts[R1]) != record
    assert "does not follow" in str(mirror_of(record, converged.facts[R1][1:]))
    assert R2 not in converged.facts
