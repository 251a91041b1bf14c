"""Strategies for the core: events of every kind, durable states that hang together, and runs in a hostile world.

Values come out of small pools, so that what is drawn apart meets often: the same few rollouts, closures and numbers of
orders. A run is a list of scripts, ten bytes each; `play` reads every script as one move of somebody in a `World`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import attrs
from hypothesis import strategies as st

from state_machine.actions import Realise, Rollback, Switch
from state_machine.events import (
    Booted,
    Calendar,
    CalendarRead,
    CertificateLoaded,
    DispatchKind,
    DispatchReceived,
    Duty,
    DutyFinished,
    Event,
    FactRefused,
    FactsDelivered,
    HooksFinished,
    IntentRefused,
    IntentVerified,
    Poked,
    ProbeObserved,
    ProbesDeclared,
    QuarantineCleared,
    RealiseFinished,
    RebootDelayed,
    ReplayRequested,
    Settings,
    Snapshot,
    SnapshotsReceived,
    Span,
    SwitchFinished,
    SystemObserved,
    TargetOffered,
    TargetPolicy,
    Tick,
)
from state_machine.lifecycle import HostRollout, opened
from state_machine.state import (
    GATE_PROBE,
    Consulting,
    Forgotten,
    HeldDispatch,
    HookRun,
    Known,
    Operation,
    ProbeHealth,
    Quarantined,
    Realising,
    Rebooting,
    RollingBack,
    SeenIntent,
    Session,
    State,
    SteadyClock,
    Switching,
    Tracked,
)
from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import (
    Basis,
    Closure,
    FailurePolicy,
    HookMoment,
    Moment,
    OpId,
    Phase,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    Reason,
    RebootPolicy,
    RolloutId,
    Source,
    SteadyMs,
    SubResult,
    SwitchMethod,
    WallMs,
)
from tests.property.agent_world import (
    ADMIN,
    C1,
    CORE,
    DAY,
    DISK,
    EDGE,
    HOST,
    HOUR,
    MINUTE,
    NEW,
    NEWER,
    OLD,
    R1,
    R2,
    R3,
    SECOND,
    SSH,
    T0,
    WINDOW_S,
    Hours,
    Release,
    World,
    make_intent,
    make_offer,
)

Item = TypeVar("Item")

ROLLOUTS: Final = (R1, R2, R3, C1)
CLOSURES: Final = (NEW, OLD, NEWER, ADMIN)
TEXTS: Final = ("", "because", "x" * 3000, "\ud800", "../../etc")
ROLLOUT_TEXTS: Final = (*ROLLOUTS, "", "edge@", "EDGE@1", "edge@1@2", "../edge@1", "e" * 200 + "@1")
CLOSURE_TEXTS: Final = (*CLOSURES, "", "0" * 32, "-rf", "0" * 32 + "-", "0" * 32 + "-..", "0" * 32 + "-a/b")
GATE_LOOKALIKE: Final = ProbeSpec(name=GATE_PROBE.name, kind="tcp", mode=ProbeMode.OBSERVE)
OFF: Final = ProbeSpec(name="off", kind="tcp", mode=ProbeMode.DISABLED)
TOPOLOGIES: Final = ((SSH, DISK), (), (SSH,), (SSH, DISK, OFF), (GATE_LOOKALIKE, SSH))
POLICIES: Final = (
    TargetPolicy(soak_ms=2 * MINUTE),
    TargetPolicy(),
    TargetPolicy(on_failure=FailurePolicy.HALT, soak_ms=MINUTE),
    TargetPolicy(max_failed_units=0, sustained_failure_ms=0),
    TargetPolicy(soak_ms=HOUR, sustained_failure_ms=5 * MINUTE),
)
YEAR_2100_MS: Final = 4_102_444_800_000
NUMBERS: Final = (0, 1, 2, 3, 5, 10, -1, 2**53 - 1)
MACHINE: Final = Settings(machine_id=HOST)
SETTINGS: Final = (
    MACHINE,
    attrs.evolve(MACHINE, switch_attempts=1, rollback_attempts=1),
    attrs.evolve(MACHINE, switch_method=SwitchMethod.DRY_RUN),
    attrs.evolve(MACHINE, freshness_cap_s=60),
    attrs.evolve(MACHINE, holds="the disk is full"),
    attrs.evolve(MACHINE, hooks=True, reboot=RebootPolicy.WHEN_REQUIRED),
    attrs.evolve(MACHINE, source=Source.LEGACY, offer_policy=POLICIES[0]),
    attrs.evolve(MACHINE, source=Source.GRADIENT, offer_policy=POLICIES[0]),
    attrs.evolve(MACHINE, source=Source.LEGACY, hooks=True, reboot=RebootPolicy.WHEN_REQUIRED),
    attrs.evolve(MACHINE, source=Source.GRADIENT, hooks=True, reboot=RebootPolicy.WHEN_REQUIRED, freshness_cap_s=60),
)
FOLLOWERS: Final = tuple(settings for settings in SETTINGS if settings.source is not Source.FLEET)
"""Hosts whose source does not sign."""
CALENDARS: Final = (
    None,
    Calendar(through=WallMs(T0 + 30 * DAY), since=WallMs(T0)),
    Calendar(
        through=WallMs(T0 + 30 * DAY),
        since=WallMs(T0),
        activation=(Span(begins=WallMs(T0), ends=WallMs(T0 + HOUR)),),
        reboot=(Span(begins=WallMs(T0), ends=WallMs(T0 + HOUR)),),
    ),
    Calendar(
        through=WallMs(T0 + 30 * DAY),
        since=WallMs(T0),
        activation=(
            Span(begins=WallMs(T0 + HOUR), ends=WallMs(T0 + 2 * HOUR)),
            Span(begins=WallMs(T0 + DAY), ends=WallMs(T0 + DAY + HOUR)),
        ),
        reboot=(Span(begins=WallMs(T0 + DAY), ends=WallMs(T0 + DAY + HOUR)),),
    ),
    Calendar(through=WallMs(T0 - DAY), activation=(), reboot=()),
)
"""No windows, windows of no kind, open ones, closed ones, and a horizon that has run out."""

# --- events ---------------------------------------------------------------------------------------------------------

texts = st.sampled_from(TEXTS)
closures = st.sampled_from(CLOSURES)
rollout_ids = st.sampled_from(ROLLOUTS)
numbers = st.sampled_from(NUMBERS)
ops = st.sampled_from(NUMBERS[:6]).map(OpId)
jitters = st.sampled_from([0.0, 0.5, 0.999])
wall_instants = st.sampled_from([0, T0, T0 - HOUR, T0 + 10 * SECOND, T0 + HOUR, T0 + DAY, YEAR_2100_MS]).map(WallMs)
moments = st.builds(Moment, wall_ms=wall_instants, mono_ms=st.sampled_from([0, MINUTE, HOUR, 2 * HOUR, DAY]))
systems = st.builds(
    SystemView,
    boot_id=st.sampled_from(["boot-1", "boot-2"]),
    running=st.none() | closures | st.just(Closure("")),
    booted=st.none() | closures,
    profile=st.none() | closures,
)
topologies = st.sampled_from(TOPOLOGIES)
policies = st.sampled_from(POLICIES)
intents = st.builds(
    make_intent,
    rollout_ids,
    st.none() | closures,
    signed_at=wall_instants,
    channel=st.sampled_from([EDGE, CORE]),
    fleet_signed_at=st.none() | wall_instants,
    policy=policies,
    window_s=st.sampled_from([WINDOW_S, 0, 30 * 86_400]),
)
offers = st.builds(
    make_offer,
    rollout_ids,
    closures,
    source=st.sampled_from([Source.LEGACY, Source.GRADIENT]),
    policy=policies,
    offered_at=wall_instants,
)
calendars = st.sampled_from(CALENDARS)
statuses = st.sampled_from(ProbeStatus)
sub_results = st.builds(SubResult, control_id=texts, status=statuses, framework=texts)
snapshots = st.builds(
    Snapshot,
    rollout_id=st.sampled_from(ROLLOUT_TEXTS),
    phase=st.sampled_from(Phase),
    target_closure=st.sampled_from(CLOSURE_TEXTS),
    last_seq=numbers,
    soak_due_at=st.none() | wall_instants,
)

EVENTS: Final[dict[type[Event], st.SearchStrategy[Event]]] = {
    Booted: st.builds(
        Booted,
        at=moments,
        settings=st.sampled_from(SETTINGS),
        system=systems,
        probes=topologies,
        calendar=calendars,
    ),
    Tick: st.builds(Tick, at=moments),
    IntentVerified: st.builds(IntentVerified, at=moments, intent=intents),
    IntentRefused: st.builds(
        IntentRefused,
        at=moments,
        rollout_id=st.none() | rollout_ids,
        reason=st.sampled_from(Reason),
        detail=texts,
        final=st.booleans(),
        jitter=jitters,
    ),
    DispatchReceived: st.builds(
        DispatchReceived,
        at=moments,
        hostname=st.sampled_from([HOST, HOST, HOST, "node8", "x" * 3000]),
        rollout_id=st.sampled_from(ROLLOUT_TEXTS),
        target_closure=st.sampled_from(CLOSURE_TEXTS),
        running=st.none() | closures | st.just(Closure("")),
        soak_due_at=st.none() | wall_instants,
        soak_s=st.none() | numbers,
        kind=st.sampled_from(DispatchKind),
        reason=texts,
    ),
    TargetOffered: st.builds(
        TargetOffered,
        at=moments,
        basis=st.sampled_from(Basis),
        closure=st.none() | st.sampled_from(CLOSURE_TEXTS),
        offered_as=texts,
    ),
    CalendarRead: st.builds(CalendarRead, at=moments, calendar=calendars.filter(lambda calendar: calendar is not None)),
    HooksFinished: st.builds(HooksFinished, at=moments, op=ops, veto=texts | st.just(""), output=texts, jitter=jitters),
    RebootDelayed: st.builds(RebootDelayed, at=moments, op=ops, locked=st.booleans(), detail=texts, jitter=jitters),
    RealiseFinished: st.builds(
        RealiseFinished, at=moments, op=ops, ok=st.booleans(), untrusted=st.booleans(), detail=texts, jitter=jitters
    ),
    SwitchFinished: st.builds(
        SwitchFinished,
        at=moments,
        op=ops,
        outcome=st.sampled_from(SwitchOutcome),
        system=systems,
        exit_code=st.none() | numbers,
        component=texts,
        detail=texts,
        jitter=jitters,
    ),
    SystemObserved: st.builds(SystemObserved, at=moments, system=systems),
    ProbesDeclared: st.builds(ProbesDeclared, at=moments, probes=topologies),
    ProbeObserved: st.builds(
        ProbeObserved,
        at=moments,
        name=st.sampled_from(["ssh", "disk", "off", GATE_PROBE.name, "nobody", "x" * 3000]),
        status=statuses,
        began_mono_ms=st.sampled_from([0, MINUTE, HOUR, DAY]),
        reason=st.none() | texts,
        sub_results=st.lists(sub_results, max_size=2).map(tuple),
    ),
    FactsDelivered: st.builds(FactsDelivered, at=moments, rollout_id=rollout_ids, through_seq=numbers),
    FactRefused: st.builds(FactRefused, at=moments, rollout_id=rollout_ids, seq=numbers, status=numbers, reason=texts),
    ReplayRequested: st.builds(ReplayRequested, at=moments, rollout_id=rollout_ids, from_seq=numbers),
    SnapshotsReceived: st.builds(SnapshotsReceived, at=moments, snapshots=st.lists(snapshots, max_size=3).map(tuple)),
    DutyFinished: st.builds(
        DutyFinished,
        at=moments,
        duty=st.sampled_from(Duty),
        ok=st.booleans(),
        retry_after_ms=st.none() | numbers,
        jitter=jitters,
        again_after_ms=st.none() | numbers,
    ),
    CertificateLoaded: st.builds(
        CertificateLoaded, at=moments, validity=st.none() | st.tuples(wall_instants, wall_instants)
    ),
    QuarantineCleared: st.builds(QuarantineCleared, at=moments, closure=st.none() | closures, by=texts),
    Poked: st.builds(Poked, at=moments),
}
any_event: Final = st.sampled_from(list(EVENTS)).flatmap(lambda kind: EVENTS[kind])


# --- states ---------------------------------------------------------------------------------------------------------


def record_in(phase: Phase, rollout_id: RolloutId = R1, *, target: Closure = NEW, last_seq: int = 3) -> HostRollout:
    """A record as it would stand in this phase."""
    return attrs.evolve(opened(rollout_id, HOST, target), phase=phase, last_seq=last_seq)


def operations_in(phase: Phase, prior: Closure | None, *, target: Closure = NEW) -> list[Operation | None]:
    """Every operation that may be under way while the active rollout is in this phase."""
    due, boot, later = SteadyMs(2 * HOUR), "boot-1", SteadyMs(MINUTE)
    switching = Switching(op=OpId(1), rollout_id=R1, closure=target, boot_id=boot, due=due)
    if phase is Phase.ACTIVATING:
        realising = Realising(op=OpId(1), rollout_id=R1, closure=target, due=due)
        again = attrs.evolve(realising, attempt=3, failures=40)
        return [
            realising,
            attrs.evolve(realising, retry_at=later),
            attrs.evolve(realising, opens_at=WallMs(T0 + HOUR)),
            attrs.evolve(realising, begun=True, attempt=2),
            Consulting(op=OpId(1), rollout_id=R1, closure=target, due=due),
            again,
            switching,
            attrs.evolve(switching, attempt=3),
        ]
    if phase is Phase.FAILED and prior and prior != target:
        back = RollingBack(op=OpId(1), rollout_id=R1, closure=prior, boot_id=boot, due=due)
        return [None, switching, back, attrs.evolve(back, retry_at=later), attrs.evolve(back, attempt=5)]
    if phase is Phase.DEFERRED:
        rebooting = Rebooting(op=OpId(1), rollout_id=R1, closure=target, due=due)
        return [None, rebooting, attrs.evolve(rebooting, retry_at=later, attempt=30, why="/run/backup is there")]
    return [None]


def known_with(
    tracked: Tracked | None, operation: Operation | None, *, waiting: HeldDispatch | None = None, **more: Any
) -> Known:
    """A durable state around one active rollout."""
    rollouts = {} if tracked is None else {tracked.record.rollout_id: tracked}
    fields: dict[str, Any] = {
        "runs": 1,
        "settings": MACHINE,
        "clock": SteadyClock(boot_id="boot-1"),
        "system": SystemView(boot_id="boot-1", running=OLD, booted=OLD, profile=OLD),
        "topology": (SSH, DISK),
        "rollouts": rollouts,
        "next_number": 10,
        "active": None if tracked is None else tracked.record.rollout_id,
        "waiting": waiting,
        "operation": operation,
        "next_op": 10,
    }
    return Known(**{**fields, **more})


PHASES_OF_THE_ACTIVE: Final = [phase for phase in Phase if phase is not Phase.PENDING]


@st.composite
def constructed(draw: st.DrawFn) -> State:
    """A state that hangs together and that no run need ever have reached."""
    phase = draw(st.sampled_from([None, *PHASES_OF_THE_ACTIVE]))
    prior, target = draw(st.none() | closures | st.just(Closure(""))), draw(closures)
    tracked, operation = None, None
    if phase is not None:
        operation = draw(st.sampled_from(operations_in(phase, prior, target=target)))
        tracked = Tracked(
            number=1,
            record=record_in(phase, target=target),
            intent=draw(
                st.none()
                | st.builds(make_intent, st.just(R1), st.just(target), signed_at=wall_instants)
                | st.builds(make_offer, st.just(R1), st.just(target), offered_at=wall_instants)
            ),
            untouched=draw(st.booleans()),
            cleared=draw(st.booleans()),
            prior=prior,
            soak_ms=draw(st.sampled_from([0, MINUTE])),
            soak_from=SteadyMs(draw(st.sampled_from([0, HOUR]))),
            delivered_seq=draw(st.integers(0, 3)),
        )
    quarantine = draw(st.dictionaries(closures, _quarantined, max_size=2))
    if isinstance(operation, RollingBack):
        quarantine.pop(operation.closure, None)
    seen = st.builds(
        SeenIntent,
        intent=intents | offers,
        seen_wall=wall_instants,
        seen_steady=st.just(0),
        withdrawn=st.booleans(),
    )
    shown = draw(st.lists(seen, max_size=4))
    known = known_with(
        tracked,
        operation,
        waiting=draw(st.none() | _held(barred=R1 if tracked is not None else None)),
        settings=draw(st.sampled_from(SETTINGS)),
        clock=SteadyClock(boot_id="boot-1", offset_ms=draw(st.sampled_from([0, HOUR])), last_ms=SteadyMs(MINUTE)),
        system=draw(systems),
        topology=draw(topologies),
        probes=draw(st.dictionaries(st.sampled_from(["ssh", "disk"]), _health, max_size=2)),
        intents={s.intent.rollout_id: s for s in shown},
        newest_signed=draw(st.dictionaries(st.sampled_from([EDGE, CORE]), wall_instants, max_size=2)),
        newest_fleet=draw(st.none() | wall_instants),
        stale_through=draw(st.dictionaries(st.sampled_from([EDGE, CORE]), wall_instants, max_size=2)),
        forgotten=draw(st.dictionaries(st.just(C1), _forgotten, max_size=1)),
        quarantine=quarantine,
        drift=draw(st.none() | closures),
        calendar=draw(calendars),
        hook_runs=draw(st.lists(_hook_runs, max_size=2, unique_by=lambda run: run.op).map(tuple)),
    )
    duties = st.sampled_from(Duty)
    session = Session(
        due=draw(st.dictionaries(duties, st.sampled_from([SteadyMs(0), SteadyMs(DAY)]), max_size=5)),
        started=draw(st.dictionaries(duties, st.just(SteadyMs(MINUTE)), max_size=5)),
        failures=draw(st.dictionaries(duties, st.integers(0, 100), max_size=2)),
        refetch_at=draw(st.none() | st.just(SteadyMs(MINUTE))),
        refetch_failures=draw(st.integers(0, 100)),
        calendar_asked=draw(st.none() | st.just(SteadyMs(MINUTE))),
    )
    return State(known=known, session=session)


_health = st.builds(
    ProbeHealth, status=st.sampled_from([ProbeStatus.PASS, ProbeStatus.FAIL]), since=st.just(SteadyMs(0))
)
_hook_runs = st.builds(
    HookRun,
    op=st.sampled_from([OpId(2), OpId(3)]),
    moment=st.sampled_from([HookMoment.AFTER_SUCCESS, HookMoment.AFTER_ROLLBACK]),
    rollout_id=rollout_ids,
    closure=closures,
    before=st.none() | closures,
    basis=st.sampled_from(Basis),
)
_quarantined = st.builds(Quarantined, rollout_id=rollout_ids, at=wall_instants, why=texts)
_forgotten = st.builds(
    Forgotten,
    number=st.just(2),
    phase=st.sampled_from([Phase.PENDING, Phase.CONVERGED]),
    last_seq=st.sampled_from([0, 1, 10]),
)


def _held(barred: RolloutId | None) -> st.SearchStrategy[HeldDispatch]:
    free = [rollout_id for rollout_id in (R2, R3, R1) if rollout_id != barred]
    adopted = [None] if barred is not None else [None, Phase.ACTIVATING, Phase.DEFERRED, Phase.SOAKING]
    return st.builds(
        HeldDispatch,
        rollout_id=st.sampled_from(free),
        target=closures,
        soak_due_at=st.none() | wall_instants,
        soak_ms=st.none() | st.just(MINUTE),
        adopted=st.sampled_from(adopted),
        adopted_seq=st.just(0),
    ).map(lambda held: held if held.adopted is None else attrs.evolve(held, adopted_seq=4))


# --- runs -----------------------------------------------------------------------------------------------------------

_line = st.binary(min_size=10, max_size=10)
# Left alone, Hypothesis draws lists of about five; a run needs more to get anywhere.
scripts = st.lists(_line, max_size=12) | st.lists(_line, min_size=15, max_size=60)


class Dice:
    """Choices read off bytes: zero is always the first and plainest one, so that shrinking finds it."""

    def __init__(self, script: bytes) -> None:
        self._bytes = iter(script)

    def below(self, count: int) -> int:
        return next(self._bytes, 0) % count

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.below(len(items))]

    def one_in(self, count: int) -> bool:
        return self.below(count) == count - 1


Move = Callable[[World, Dice], object]


def work_on(world: World, dice: Dice) -> None:
    if world.work:
        world.answer(world.work[dice.below(len(world.work))])
    else:
        world.wake()


def let_time_pass(world: World, dice: Dice) -> None:
    world.pass_time(dice.pick((SECOND, 10 * SECOND, MINUTE, 10 * MINUTE, 2 * HOUR, 3 * DAY)))
    if not dice.one_in(3):
        world.tell(Tick(at=world.moment()))


def step_the_clock(world: World, dice: Dice) -> None:
    off = dice.pick((0, HOUR, -HOUR, DAY, -DAY, -T0, 70 * 365 * DAY, 30 * SECOND))
    world.clock_off_ms = off


def run_probes(world: World, dice: Dice) -> None:
    name = dice.pick(("ssh", "disk", GATE_PROBE.name, "nobody"))
    status = dice.pick((ProbeStatus.PASS, ProbeStatus.FAIL, ProbeStatus.UNKNOWN))
    world.probe(name, status, took_ms=dice.pick((0, 20 * SECOND)))


def publish(world: World, dice: Dice) -> None:
    """CI signs a release and the control plane routes it here; honest workers will bring it."""
    number = len(world.releases) + 1
    rollout_id = dice.pick((RolloutId(f"edge@{number}"), *ROLLOUTS))
    channel = CORE if rollout_id == C1 else EDGE
    release = Release(target=dice.pick((NEW, NEWER, OLD)), channel=channel, policy=dice.pick(POLICIES))
    world.publish(rollout_id, release)
    world.wake()


def change_the_host(world: World, dice: Dice) -> None:
    """What the host will do to a target from now on."""
    target = dice.pick((NEW, NEWER))
    kind = dice.pick((world.sick, world.breaks, world.defers))
    kind.symmetric_difference_update({target})
    world.stuck_rollbacks = dice.pick((0, 2))


def go_on(world: World, dice: Dice) -> None:
    """Several honest steps in a row, or nothing ever gets far."""
    for _ in range(2 + dice.below(12)):
        world.next_thing()


def show_intent(world: World, dice: Dice) -> None:
    rollout_id, target = dice.pick(ROLLOUTS), dice.pick((NEW, NEWER, OLD, None))
    age = dice.pick((0, MINUTE, 50 * MINUTE, 2 * HOUR, -30 * SECOND, -10 * MINUTE, -DAY))
    channel = CORE if rollout_id == C1 else EDGE
    policy, signed = dice.pick(POLICIES), world.true_ms - age
    # The fleet may be as old as the manifest, older, or the newest there was: then only the manifest tells its age.
    fleet = dice.pick((signed, world.state.known.newest_fleet or signed, signed - MINUTE))
    intent = make_intent(rollout_id, target, signed_at=signed, channel=channel, policy=policy, fleet_signed_at=fleet)
    world.tell(IntentVerified(at=world.moment(), intent=intent))


def change_its_mind(world: World, dice: Dice) -> None:
    """A source without signatures wants something else from now on, or cannot say."""
    world.offered = dice.pick((NEW, NEWER, OLD, None, NEW, "../../etc"))
    world.no_answer = dice.pick((None, None, Reason.NOT_BUILT, None))
    if dice.one_in(3):
        world.defers.add(dice.pick((NEW, NEWER)))
    if not dice.one_in(3):
        world.say_what_is_wanted()


def cut_the_line(world: World, dice: Dice) -> None:
    """Nobody at the other end can be reached, or can be again; most cuts come with a start of the agent."""
    world.reachable = dice.one_in(3)
    if not world.reachable and dice.one_in(2):
        world.kill()
        go_on(world, dice)


def offer_anything(world: World, dice: Dice) -> None:
    closure, basis = dice.pick((*CLOSURES, None, *CLOSURE_TEXTS)), dice.pick(tuple(Basis))
    world.tell(TargetOffered(at=world.moment(), basis=basis, closure=closure, offered_as=dice.pick(TEXTS)))


def restrict(world: World, dice: Dice) -> None:
    """The operator's windows, hooks and session locks change; windows at the next start, or when they are read."""
    now = world.moment().wall_ms % DAY
    open_now = Hours(begins=max(0, now - HOUR), ends=min(DAY, now + HOUR))
    soon = Hours(begins=min(DAY - HOUR, now + HOUR), ends=DAY)
    world.activation_hours = dice.pick((None, open_now, soon))
    world.reboot_hours = dice.pick((None, open_now, soon))
    world.calendar_days = dice.pick((35, 8, 0))
    world.veto, world.locked = dice.pick(("", "a backup runs")), dice.one_in(2)
    world.stays_up = dice.one_in(3)
    calendar = world.calendar()
    if calendar is not None and dice.one_in(2):
        world.tell(CalendarRead(at=world.moment(), calendar=calendar))


def refuse_intent(world: World, dice: Dice) -> None:
    world.tell(
        IntentRefused(
            at=world.moment(),
            rollout_id=dice.pick((*ROLLOUTS, None)),
            reason=dice.pick((Reason.MISSING, Reason.BAD_SIGNATURE, Reason.PARSE)),
            detail=dice.pick(TEXTS),
            final=dice.one_in(2),
        )
    )


def send_dispatch(world: World, dice: Dice) -> None:
    honest = not dice.one_in(4)
    rollout_id = dice.pick(ROLLOUTS)
    seen = world.state.known.intents.get(rollout_id)
    given = seen.intent.target if seen is not None and seen.intent.target is not None else NEW
    world.tell(
        DispatchReceived(
            at=world.moment(),
            hostname=HOST if honest else dice.pick((HOST, "node8")),
            rollout_id=rollout_id if honest else dice.pick(ROLLOUT_TEXTS),
            target_closure=given if honest else dice.pick(CLOSURE_TEXTS),
            running=world.system.running,
            soak_s=dice.pick((None, 60, 0, 2**53 - 1)),
            soak_due_at=dice.pick((None, WallMs(world.true_ms + 3 * MINUTE), WallMs(0))),
        )
    )


def wish_rollback(world: World, dice: Dice) -> None:
    active = world.state.known.active
    rollout_id = dice.pick((active or R1, *ROLLOUT_TEXTS))
    world.tell(
        DispatchReceived(
            at=world.moment(),
            hostname=HOST,
            rollout_id=rollout_id,
            target_closure="",
            running=world.system.running,
            kind=DispatchKind.ROLLBACK,
            reason=dice.pick(TEXTS),
        )
    )


def end_badly(world: World, dice: Dice) -> None:
    """A worker ends an order in some other way than an honest and lucky one would."""
    work = [w for w in world.work if isinstance(w.order, Realise | Switch | Rollback)]
    if not work:
        return work_on(world, dice)
    item = work[dice.below(len(work))]
    world.work.remove(item)
    match item.order:
        case Realise(op=op):
            untrusted = dice.one_in(4)
            world.tell(RealiseFinished(at=world.moment(), op=op, ok=False, untrusted=untrusted, detail="no"))
        case Switch(op=op, closure=closure) | Rollback(op=op, closure=closure):
            runs = dice.pick((world.system.running, closure, ADMIN, None))
            world.system = attrs.evolve(world.system, running=runs, profile=dice.pick((closure, world.system.profile)))
            world.tell(
                SwitchFinished(
                    at=world.moment(),
                    op=op,
                    outcome=dice.pick(tuple(SwitchOutcome)),
                    system=world.system,
                    exit_code=dice.pick((None, 0, 4)),
                    component="kernel",
                    detail="no",
                )
            )
        case _:
            pass
    return None


def hear_late(world: World, dice: Dice) -> None:
    """Events of two workers reach the reducer in another order than they were stamped in."""
    now = world.moment()
    at = attrs.evolve(now, wall_ms=WallMs(now.wall_ms - 3000), mono_ms=now.mono_ms - 3000)
    match dice.below(3):
        case 0:
            world.tell(SystemObserved(at=at, system=world.system))
        case 1:
            status = dice.pick((ProbeStatus.PASS, ProbeStatus.FAIL))
            world.tell(ProbeObserved(at=at, name="ssh", status=status, began_mono_ms=at.mono_ms))
        case _:
            world.tell(Tick(at=at))


def lose_work(world: World, dice: Dice) -> None:
    """A worker dies with what it was doing, and nobody says so."""
    if world.work:
        world.work.pop(dice.below(len(world.work)))


def say_it_again(world: World, dice: Dice) -> None:
    """An answer comes twice, or long after it was wanted."""
    answers = [
        p.event
        for p in world.run[-40:]
        if isinstance(p.event, RealiseFinished | SwitchFinished | DutyFinished | FactsDelivered)
    ]
    if answers:
        world.tell(attrs.evolve(answers[dice.below(len(answers))], at=world.moment()))


def stray_answer(world: World, dice: Dice) -> None:
    op, at = OpId(dice.below(20)), world.moment()
    match dice.below(4):
        case 0:
            world.tell(RealiseFinished(at=at, op=op, ok=not dice.one_in(2)))
        case 1:
            world.tell(SwitchFinished(at=at, op=op, outcome=dice.pick(tuple(SwitchOutcome)), system=world.system))
        case 2:
            world.tell(HooksFinished(at=at, op=op, veto=dice.pick(TEXTS)))
        case _:
            world.tell(RebootDelayed(at=at, op=op, locked=dice.one_in(2), detail=dice.pick(TEXTS)))


def die(world: World, dice: Dice) -> None:
    world.probes = dice.pick((world.probes, *TOPOLOGIES))
    world.settings = dice.pick((world.settings, MACHINE, MACHINE, *SETTINGS))
    match dice.below(3):
        case 0:
            world.kill()
        case 1:
            world.power_cut()
        case _:
            world.power_cut(into=dice.pick((OLD, NEW, ADMIN)))


def switch_by_hand(world: World, dice: Dice) -> None:
    running = dice.pick((OLD, ADMIN, NEW, None))
    world.system = attrs.evolve(world.system, running=running)
    if not dice.one_in(3):
        world.tell(SystemObserved(at=world.moment(), system=world.system))


def declare_probes(world: World, dice: Dice) -> None:
    world.probes = dice.pick(TOPOLOGIES)
    world.tell(ProbesDeclared(at=world.moment(), probes=world.probes))


def talk_of_facts(world: World, dice: Dice) -> None:
    rollout_id, seq, at = dice.pick(ROLLOUTS), dice.pick(NUMBERS), world.moment()
    match dice.below(4):
        case 0:
            world.tell(FactsDelivered(at=at, rollout_id=rollout_id, through_seq=seq))
        case 1:
            world.tell(ReplayRequested(at=at, rollout_id=rollout_id, from_seq=seq))
        case 2:
            world.tell(FactRefused(at=at, rollout_id=rollout_id, seq=seq, status=409, reason="no"))
        case _:
            shown = Snapshot(
                rollout_id=rollout_id, phase=dice.pick(tuple(Phase)), target_closure=dice.pick(CLOSURES), last_seq=seq
            )
            world.tell(SnapshotsReceived(at=at, snapshots=(shown,)))


def end_duty(world: World, dice: Dice) -> None:
    world.tell(
        DutyFinished(
            at=world.moment(),
            duty=dice.pick(tuple(Duty)),
            ok=dice.one_in(2),
            retry_after_ms=dice.pick((None, 0, 2**53 - 1)),
            again_after_ms=dice.pick((None, 0, -1, 2**53 - 1)),
        )
    )


def operate(world: World, dice: Dice) -> None:
    at = world.moment()
    match dice.below(3):
        case 0:
            world.tell(QuarantineCleared(at=at, closure=dice.pick((None, *CLOSURES)), by="root"))
        case 1:
            world.tell(Poked(at=at))
        case _:
            ends = WallMs(at.wall_ms + dice.pick((30 * DAY, MINUTE, -DAY)))
            world.tell(CertificateLoaded(at=at, validity=dice.pick((None, (at.wall_ms, ends)))))


MOVES: Final[Sequence[Move]] = (
    *[go_on] * 14,
    *[publish] * 5,
    *[work_on] * 6,
    *[show_intent] * 4,
    *[send_dispatch] * 4,
    *[run_probes] * 3,
    *[change_the_host] * 3,
    *[let_time_pass] * 3,
    *[end_badly] * 4,
    *[die] * 3,
    *[wish_rollback] * 2,
    *[say_it_again] * 2,
    *[lose_work] * 2,
    *[talk_of_facts] * 2,
    *[change_its_mind] * 4,
    *[cut_the_line] * 2,
    *[restrict] * 2,
    offer_anything,
    hear_late,
    step_the_clock,
    refuse_intent,
    stray_answer,
    switch_by_hand,
    declare_probes,
    end_duty,
    operate,
)


def play(script: Sequence[bytes], world: World | None = None) -> World:
    """A started world after the moves of `script`."""
    world = world or World()
    world.start()
    for line in script:
        dice = Dice(line)
        dice.pick(MOVES)(world, dice)
    return world


worlds: Final = st.builds(play, scripts)
"""Worlds in the middle of a hostile run; `World.run` is what happened, `World.state` where the agent stands."""
starts: Final = st.sampled_from([MACHINE, MACHINE, *FOLLOWERS])
worlds_of_any_source: Final = st.builds(lambda script, start: play(script, World(settings=start)), scripts, starts)
"""The same where the agent need not have begun by following a fleet."""
