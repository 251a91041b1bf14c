"""The world as a state machine of Hypothesis: its rules are everything that can happen to an agent.

After each rule the promises of the steps just taken are checked; at the end the world becomes honest, and what is
healthy must converge (L1) or, if it is sick and the policy says so, be taken back (L2). One machine is of a host of a
fleet, the other of a host that follows a source without signatures; what can happen to any host is the same for both.
"""

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from state_machine.actions import Realise, Rollback, Switch
from state_machine.events import (
    CalendarRead,
    DispatchKind,
    DispatchReceived,
    Duty,
    DutyFinished,
    FactRefused,
    FactsDelivered,
    HooksFinished,
    IntentVerified,
    Poked,
    ProbesDeclared,
    QuarantineCleared,
    RealiseFinished,
    RebootDelayed,
    ReplayRequested,
    Settings,
    Snapshot,
    SnapshotsReceived,
    SwitchFinished,
    SystemObserved,
    TargetOffered,
    TargetPolicy,
)
from state_machine.invariants import l1_converged, l2_taken_back
from state_machine.step_promises import contradictions
from state_machine.system import SwitchOutcome
from state_machine.values import Basis, Closure, OpId, Phase, ProbeSpec, ProbeStatus, Reason, RolloutId, Source
from tests.property.agent_world import (
    ADMIN,
    DAY,
    EDGE,
    FRESH,
    HOST,
    HOUR,
    MINUTE,
    NEW,
    NEWER,
    OLD,
    R1,
    SECOND,
    Hours,
    Release,
    World,
    make_intent,
)
from tests.property.strategies import (
    CLOSURE_TEXTS,
    FOLLOWERS,
    POLICIES,
    ROLLOUT_TEXTS,
    ROLLOUTS,
    SETTINGS,
    TEXTS,
    TOPOLOGIES,
    snapshots,
)

LAST = RolloutId("edge@1a57")


class AnyHost(RuleBasedStateMachine):
    """One agent, and what can happen to it whatever it follows."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    # --- honest workers, a world that goes on ---

    @rule(count=st.integers(1, 15))
    def things_take_their_course(self, count: int) -> None:
        for _ in range(count):
            self.world.next_thing()

    @rule(ms=st.sampled_from([SECOND, MINUTE, 10 * MINUTE, 2 * HOUR, 7 * DAY]))
    def time_passes_and_the_alarm_rings(self, ms: int) -> None:
        self.world.pass_time(ms)
        self.world.wake()

    @precondition(lambda self: self.world.work)
    @rule(data=st.data())
    def a_worker_is_done(self, data: st.DataObject) -> None:
        self.world.answer(data.draw(st.sampled_from(self.world.work), label="work"))

    # --- workers that fail, are late, speak twice or not at all ---

    @precondition(lambda self: self.world.work)
    @rule(data=st.data())
    def a_worker_dies_with_its_order(self, data: st.DataObject) -> None:
        self.world.work.remove(data.draw(st.sampled_from(self.world.work), label="work"))

    @rule(data=st.data())
    def an_answer_comes_again(self, data: st.DataObject) -> None:
        kinds = RealiseFinished | SwitchFinished | HooksFinished | RebootDelayed
        answers = [p.event for p in self.world.run if isinstance(p.event, kinds)]
        if answers:
            event = data.draw(st.sampled_from(answers[-10:]), label="answer")
            self.world.tell(attrs.evolve(event, at=self.world.moment()))

    @rule(
        outcome=st.sampled_from(SwitchOutcome),
        runs=st.sampled_from([NEW, NEWER, OLD, ADMIN, None]),
        code=st.sampled_from([None, 0, 4]),
    )
    def a_switch_ends_in_some_way(self, outcome: SwitchOutcome, runs: Closure | None, code: int | None) -> None:
        for work in [w for w in self.world.work if isinstance(w.order, Switch | Rollback)]:
            self.world.work.remove(work)
            self.world.system = attrs.evolve(self.world.system, running=runs)
            op = work.order.op if isinstance(work.order, Switch | Rollback) else OpId(0)
            self.world.tell(
                SwitchFinished(at=self.world.moment(), op=op, outcome=outcome, system=self.world.system, exit_code=code)
            )

    @rule(untrusted=st.booleans())
    def a_closure_cannot_be_had(self, untrusted: bool) -> None:
        for work in [w for w in self.world.work if isinstance(w.order, Realise)]:
            self.world.work.remove(work)
            op = work.order.op if isinstance(work.order, Realise) else OpId(0)
            self.world.tell(RealiseFinished(at=self.world.moment(), op=op, ok=False, untrusted=untrusted))

    @rule(op=st.integers(0, 30).map(OpId), outcome=st.sampled_from(SwitchOutcome))
    def somebody_answers_an_order_that_is_not_out(self, op: OpId, outcome: SwitchOutcome) -> None:
        operation = self.world.state.known.operation
        if operation is None or operation.op != op:
            at = self.world.moment()
            self.world.tell(SwitchFinished(at=at, op=op, outcome=outcome, system=self.world.system))
            self.world.tell(HooksFinished(at=at, op=op, veto="no"))
            self.world.tell(RebootDelayed(at=at, op=op, locked=False))

    # --- power and process ---

    @rule(into=st.sampled_from([None, OLD, NEW, ADMIN]))
    def the_power_fails(self, into: Closure | None) -> None:
        self.world.power_cut(into=into)

    @rule(settings=st.sampled_from(SETTINGS), probes=st.sampled_from(TOPOLOGIES))
    def the_agent_is_killed_and_configured_otherwise(self, settings: Settings, probes: tuple[ProbeSpec, ...]) -> None:
        self.world.settings, self.world.probes = settings, probes
        self.world.kill()

    @rule()
    def the_agent_is_killed(self) -> None:
        self.world.settings = self.world.calm
        self.world.kill()

    # --- the host ---

    @rule(off=st.sampled_from([0, HOUR, -HOUR, DAY, -DAY, 30 * SECOND]))
    def the_clock_steps(self, off: int) -> None:
        self.world.clock_off_ms = off

    @rule(runs=st.sampled_from([OLD, ADMIN, NEW, None]))
    def somebody_switches_by_hand(self, runs: Closure | None) -> None:
        self.world.system = attrs.evolve(self.world.system, running=runs)
        self.world.tell(SystemObserved(at=self.world.moment(), system=self.world.system))

    @rule(closure=st.sampled_from([NEW, NEWER]), how=st.sampled_from(["sick", "breaks", "defers"]))
    def a_target_turns_out_bad(self, closure: Closure, how: str) -> None:
        getattr(self.world, how).symmetric_difference_update({closure})

    @rule(count=st.integers(0, 3))
    def rollbacks_get_stuck(self, count: int) -> None:
        self.world.stuck_rollbacks = count

    @rule(probes=st.sampled_from(TOPOLOGIES))
    def the_probes_are_declared_anew(self, probes: tuple[ProbeSpec, ...]) -> None:
        self.world.probes = probes
        self.world.tell(ProbesDeclared(at=self.world.moment(), probes=self.world.probes))

    @rule(name=st.sampled_from(["ssh", "disk"]), status=st.sampled_from(ProbeStatus), took=st.sampled_from([0, MINUTE]))
    def a_probe_flaps(self, name: str, status: ProbeStatus, took: int) -> None:
        self.world.probe(name, status, took_ms=took)

    @rule(closure=st.sampled_from([None, NEW, NEWER, OLD]))
    def an_operator_clears_the_quarantine(self, closure: Closure | None) -> None:
        self.world.tell(QuarantineCleared(at=self.world.moment(), closure=closure, by="root"))

    @rule()
    def an_operator_pokes(self) -> None:
        self.world.tell(Poked(at=self.world.moment()))

    # --- the operator ---

    @rule(
        opens_in=st.sampled_from([-HOUR, 0, HOUR, 5 * HOUR]),
        days=st.sampled_from([35, 8, 0]),
        which=st.sampled_from(["activation_hours", "reboot_hours"]),
        told=st.booleans(),
    )
    def windows_are_set(self, opens_in: int, days: int, which: str, told: bool) -> None:
        """They count from the next start on, or when the calendar is read."""
        begins = (self.world.moment().wall_ms + opens_in) % (DAY - 2 * HOUR)
        setattr(self.world, which, Hours(begins=begins, ends=begins + 2 * HOUR))
        self.world.calendar_days = days
        calendar = self.world.calendar()
        if told and calendar is not None:
            self.world.tell(CalendarRead(at=self.world.moment(), calendar=calendar))

    @rule()
    def windows_are_done_away_with(self) -> None:
        self.world.activation_hours = self.world.reboot_hours = None

    @rule(veto=st.sampled_from(["", "a backup runs"]))
    def a_hook_changes_its_mind(self, veto: str) -> None:
        self.world.veto = veto

    @rule(locked=st.booleans(), stays_up=st.booleans())
    def sessions_begin_and_end(self, locked: bool, stays_up: bool) -> None:
        self.world.locked, self.world.stays_up = locked, stays_up

    # --- whoever sits at the other end ---

    @rule(reachable=st.booleans())
    def the_network_comes_and_goes(self, reachable: bool) -> None:
        self.world.reachable = reachable

    @rule(rollout_id=st.sampled_from(ROLLOUTS), seq=st.integers(-1, 12), what=st.integers(0, 2))
    def it_lies_about_facts(self, rollout_id: RolloutId, seq: int, what: int) -> None:
        at = self.world.moment()
        self.world.tell(
            (
                FactsDelivered(at=at, rollout_id=rollout_id, through_seq=seq),
                FactRefused(at=at, rollout_id=rollout_id, seq=seq, status=409, reason="no"),
                ReplayRequested(at=at, rollout_id=rollout_id, from_seq=seq),
            )[what]
        )

    @rule(
        duty=st.sampled_from(Duty),
        ok=st.booleans(),
        after=st.sampled_from([None, 0, 2**53 - 1]),
        again=st.sampled_from([None, 0, -1, 2**53 - 1]),
    )
    def an_exchange_ends(self, duty: Duty, ok: bool, after: int | None, again: int | None) -> None:
        self.world.tell(
            DutyFinished(at=self.world.moment(), duty=duty, ok=ok, retry_after_ms=after, again_after_ms=again)
        )

    # --- what must hold ---

    @invariant()
    def every_step_kept_the_promises(self) -> None:
        assert not self.world.problems

    @invariant()
    def the_state_hangs_together(self) -> None:
        assert not list(contradictions(self.world.state.known))


class FleetHost(AnyHost):
    """A host of a fleet, with CI and a control plane."""

    @initialize(probes=st.sampled_from(TOPOLOGIES), settings=st.sampled_from(SETTINGS))
    def start(self, probes: tuple[ProbeSpec, ...], settings: Settings) -> None:
        self.world.probes, self.world.settings = probes, settings
        self.world.start()

    @rule(policy=st.sampled_from(POLICIES), closure=st.sampled_from([NEW, NEWER, OLD]))
    def a_release_is_published(self, policy: TargetPolicy, closure: Closure) -> None:
        rollout_id = RolloutId(f"edge@{len(self.world.releases) + 1}")
        self.world.publish(rollout_id, Release(target=closure, policy=policy))

    @rule(rollout_id=st.sampled_from(ROLLOUT_TEXTS), closure=st.sampled_from(CLOSURE_TEXTS))
    def a_dispatch_is_forged(self, rollout_id: str, closure: str) -> None:
        self._dispatch(rollout_id, closure, DispatchKind.DISPATCH)

    @rule(times=st.integers(1, 3), reason=st.sampled_from(TEXTS))
    def a_rollback_is_wished_for_again_and_again(self, times: int, reason: str) -> None:
        for _ in range(times):
            self._dispatch(self.world.state.known.active or R1, "", DispatchKind.ROLLBACK, reason)

    def _dispatch(self, rollout_id: str, target: str, kind: DispatchKind, reason: str = "") -> None:
        self.world.tell(
            DispatchReceived(
                at=self.world.moment(),
                hostname=HOST,
                rollout_id=rollout_id,
                target_closure=target,
                running=self.world.system.running,
                kind=kind,
                reason=reason,
            )
        )

    @rule(
        rollout_id=st.sampled_from(ROLLOUTS),
        closure=st.sampled_from([NEW, NEWER, OLD, None]),
        age=st.sampled_from([0, MINUTE, 50 * MINUTE, 2 * HOUR, -30 * SECOND, -HOUR]),
        newest_fleet=st.booleans(),
    )
    def some_signed_manifest_is_shown(
        self, rollout_id: RolloutId, closure: Closure | None, age: int, newest_fleet: bool
    ) -> None:
        fleet = self.world.state.known.newest_fleet if newest_fleet else None
        signed = self.world.true_ms - age
        intent = make_intent(rollout_id, closure, signed_at=signed, channel=EDGE, fleet_signed_at=fleet)
        self.world.tell(IntentVerified(at=self.world.moment(), intent=intent))

    @rule(shown=st.lists(snapshots, max_size=3))
    def it_believes_something_else(self, shown: list[Snapshot]) -> None:
        self.world.tell(SnapshotsReceived(at=self.world.moment(), snapshots=tuple(shown)))

    @rule()
    def its_database_is_wiped(self) -> None:
        self.world.mirror = {id_: record for id_, record in self.world.mirror.items() if id_ == self.world.wanted}

    def teardown(self) -> None:
        if not self.world.run:
            return
        assert self.world.replayed().known == self.world.state.known
        sick = len(self.world.run) % 2 == 1
        self.world.reform()
        self.world.publish(LAST, Release(target=FRESH))
        if sick:
            self.world.sick.add(FRESH)
        ends = l2_taken_back if sick else l1_converged
        self.world.settle(lambda: not ends(self.world.state.known, LAST), limit=300)
        assert not self.world.broken_promises()


class Follower(AnyHost):
    """A host that follows a source without signatures."""

    @initialize(probes=st.sampled_from(TOPOLOGIES), settings=st.sampled_from(FOLLOWERS))
    def start(self, probes: tuple[ProbeSpec, ...], settings: Settings) -> None:
        self.world.probes, self.world.settings = probes, settings
        self.world.calm = settings
        self.world.start()

    @rule(closure=st.sampled_from([NEW, NEWER, OLD, None]), asked=st.booleans())
    def the_source_changes_its_mind(self, closure: Closure | None, asked: bool) -> None:
        self.world.offered, self.world.no_answer = closure, None
        if asked:
            self.world.say_what_is_wanted()

    @rule(reason=st.sampled_from([Reason.NOT_BUILT, Reason.AMBIGUOUS, Reason.WRONG_ARCHITECTURE, Reason.PARSE]))
    def the_source_has_no_answer(self, reason: Reason) -> None:
        self.world.no_answer = reason

    @rule(closure=st.none() | st.sampled_from(CLOSURE_TEXTS), basis=st.sampled_from(Basis), what=st.sampled_from(TEXTS))
    def something_is_offered(self, closure: str | None, basis: Basis, what: str) -> None:
        self.world.tell(TargetOffered(at=self.world.moment(), basis=basis, closure=closure, offered_as=what))

    @rule(source=st.sampled_from(Source))
    def the_operator_has_it_follow_something_else(self, source: Source) -> None:
        self.world.settings = attrs.evolve(self.world.calm, source=source)
        if source is not Source.FLEET:
            self.world.calm = self.world.settings
        self.world.kill()

    @rule()
    def the_state_directory_is_lost(self) -> None:
        assert not self.world.broken_promises()
        self.world.lose_state()

    def teardown(self) -> None:
        if not self.world.run:
            return
        assert self.world.replayed().known == self.world.state.known
        sick = len(self.world.run) % 2 == 1
        self.world.reform()
        self.world.offered = FRESH
        if sick:
            self.world.sick.add(FRESH)
        end, ends = (Phase.REVERTED, l2_taken_back) if sick else (Phase.CONVERGED, l1_converged)
        self.world.settle(lambda: self.world.phase_on(FRESH) is end and not ends(self.world.state.known, self._last()))
        if sick:
            self.world.live(20 * MINUTE)
            assert self.world.phase_on(FRESH) is Phase.REVERTED, "what was rolled back is offered on, and left alone"
        assert not self.world.broken_promises()

    def _last(self) -> RolloutId:
        return self.world.state.known.active or LAST


def test_an_agent_keeps_its_promises_whatever_happens_to_it() -> None:
    run_state_machine_as_test(FleetHost, settings=settings(stateful_step_count=40))


def test_an_agent_without_signatures_keeps_its_promises_whatever_happens_to_it() -> None:
    run_state_machine_as_test(Follower, settings=settings(stateful_step_count=40))
