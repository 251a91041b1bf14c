"""A small world around one agent: a host, its workers, CI that signs and a control plane, all played in memory.

An agent that follows a source without signatures finds one here as well: it says what `offered` holds.

The world carries out what the agent orders when it is told to (`answer`), lets time pass, cuts the power, and keeps
the run for `check_run`. `settle` plays everybody honestly until a goal is reached. Nothing in here is random; whoever
drives it is.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import attrs

from state_machine.actions import (
    Abandon,
    Action,
    DeliverFacts,
    FetchIntent,
    ObserveSystem,
    Perform,
    ReadCalendar,
    Realise,
    Reboot,
    Refuse,
    RestartProbes,
    Rollback,
    RunHooks,
    Switch,
    Unexpected,
)
from state_machine.events import (
    Booted,
    Calendar,
    CalendarRead,
    CertificateLoaded,
    DispatchReceived,
    Duty,
    DutyFinished,
    Event,
    FactsDelivered,
    HooksFinished,
    IntentRefused,
    IntentVerified,
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
    VerifiedIntent,
)
from state_machine.facts import Fact
from state_machine.invariants import Passage, check_run, check_step
from state_machine.lifecycle import HostRollout, fold, opened
from state_machine.schedule import next_wakeup
from state_machine.state import GENESIS, Session, State
from state_machine.step import step
from state_machine.system import SwitchOutcome, SystemView
from state_machine.turn import Step
from state_machine.values import (
    Basis,
    Channel,
    Closure,
    HookMoment,
    HostName,
    Moment,
    OpId,
    Phase,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    Reason,
    RolloutId,
    Source,
    WallMs,
)

SECOND: Final = 1_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
T0: Final = 1_780_000_000_000

HOST: Final = HostName("node7")
EDGE: Final = Channel("edge")
CORE: Final = Channel("core")


def closure(letter: str, name: str) -> Closure:
    """A store path's base name that a reader can tell from another."""
    return Closure(letter * 32 + f"-nixos-{name}")


OLD: Final = closure("0", "old")
NEW: Final = closure("1", "new")
NEWER: Final = closure("2", "newer")
FRESH: Final = closure("3", "fresh")
SICK: Final = closure("4", "sick")
ADMIN: Final = closure("9", "by-hand")
R1: Final = RolloutId("edge@1")
R2: Final = RolloutId("edge@2")
R3: Final = RolloutId("edge@3")
C1: Final = RolloutId("core@1")
SOUND: Final = RolloutId("edge@50d")

SSH: Final = ProbeSpec(name="ssh", kind="tcp", mode=ProbeMode.ENFORCE)
DISK: Final = ProbeSpec(name="disk", kind="command", mode=ProbeMode.OBSERVE)

PROBE_EVERY_MS: Final = 30 * SECOND
WINDOW_S: Final = 3600
OFFER_GOOD_S: Final = 86_400
BASIS: Final = {
    Source.FLEET: Basis.SIGNED_MANIFEST,
    Source.LEGACY: Basis.MUTUAL_TLS,
    Source.GRADIENT: Basis.CACHE_KEY,
}
_TAKES_MS: Final[Mapping[type[Action], int]] = {
    Realise: 5_000,
    Switch: 8_000,
    Rollback: 8_000,
    RunHooks: 1_000,
    Reboot: 5_000,
}
_WAIT_MS: Final = 60 * SECOND


@attrs.frozen(kw_only=True)
class Release:
    """What CI has published for this host as one rollout."""

    target: Closure | None
    channel: Channel = EDGE
    policy: TargetPolicy = TargetPolicy(soak_ms=2 * MINUTE)


@attrs.frozen(kw_only=True)
class Hours:
    """A window of every day, in milliseconds after midnight UTC."""

    begins: int
    ends: int

    def spans(self, wall: WallMs, days: int) -> tuple[Span, ...]:
        midnight = wall - wall % DAY
        starts = (midnight + day * DAY for day in range(-1, days + 1))
        spans = (Span(begins=WallMs(at + self.begins), ends=WallMs(at + self.ends)) for at in starts)
        return tuple(span for span in spans if span.ends > wall)


@attrs.define(kw_only=True, eq=False)
class Work:
    """An order that has not been answered, and when an honest worker would be done with it."""

    order: Action
    done_ms: int


class World:
    """The whole of it. `true_ms` is the time in the world; the host's own clock is off by `clock_off_ms`."""

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        probes: tuple[ProbeSpec, ...] = (SSH, DISK),
        running: Closure | None = OLD,
        watched: bool = True,
    ) -> None:
        self.settings = settings or Settings(machine_id=HOST)
        self.calm = Settings(machine_id=HOST)
        self.probes = probes
        self.watched = watched
        self.true_ms = T0
        self.clock_off_ms = 0
        self.boots = 1
        self.booted_at_ms = T0 - MINUTE
        self.system = SystemView(boot_id="boot-1", running=running, booted=running, profile=running)
        self.state = GENESIS
        self.run: list[Passage] = []
        self.problems: list[str] = []
        self.refused: list[Refuse | Unexpected] = []
        self.work: list[Work] = []
        self.told: list[Event] = []
        self.journal: list[Event] = []
        self.facts: dict[RolloutId, list[Fact]] = {}
        self.ended: dict[OpId, SwitchFinished] = {}
        self.probes_due_ms: int | None = None
        # What the host is like.
        self.sick: set[Closure] = set()
        self.breaks: set[Closure] = set()
        self.defers: set[Closure] = set()
        self.stuck_rollbacks = 0
        # CI and the control plane.
        self.reachable = True
        self.releases: dict[RolloutId, Release] = {}
        self.signed: dict[RolloutId, int] = {}
        self.wanted: RolloutId | None = None
        self.offered_ms = -DAY
        self.mirror: dict[RolloutId, HostRollout] = {}
        # A source without signatures: what it says, and where that has no answer, what is wrong.
        self.offered: str | None = None
        self.no_answer: Reason | None = None
        # The operator's part.
        self.activation_hours: Hours | None = None
        self.reboot_hours: Hours | None = None
        self.calendar_days = 35
        self.veto = ""
        self.locked = False
        self.stays_up = False
        self.hooks_told: list[RunHooks] = []

    # --- time -------------------------------------------------------------------------------------------------------

    def moment(self) -> Moment:
        return Moment(wall_ms=WallMs(self.true_ms + self.clock_off_ms), mono_ms=self.true_ms - self.booted_at_ms)

    def pass_time(self, ms: int) -> None:
        self.true_ms += ms

    def wake(self) -> bool:
        """Sleep until the agent wants a `Tick`, and give it. False if it wants none."""
        delay = next_wakeup(self.state, self.moment())
        if delay is None:
            return False
        self.pass_time(delay)
        self.tell(Tick(at=self.moment()))
        return True

    # --- the agent --------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> Step:
        """Give the agent an event, journal it as it asks, and take its orders."""
        before = self.state
        taken = step(before, event)
        self.state = taken.state
        self.run.append(Passage(before=before, event=event, step=taken))
        if self.watched:
            self.problems += [f"{problem} [{event}]" for problem in check_step(before, event, taken)]
        if taken.durable:
            self.journal.append(event)
        for born in taken.facts:
            self.facts.setdefault(born.rollout_id, []).append(born.fact)
        for action in taken.actions:
            self._take_order(action)
        return taken

    def _take_order(self, action: Action) -> None:
        match action:
            case Refuse() | Unexpected():
                self.refused.append(action)
            case Abandon(op=op):
                self.work = [w for w in self.work if not (isinstance(w.order, Realise | RunHooks) and w.order.op == op)]
            case RestartProbes():
                self.probes_due_ms = self.true_ms + SECOND
            case _:
                self.work = [w for w in self.work if w.order != action]  # asked again: the same piece of work
                self.work.append(Work(order=action, done_ms=self.true_ms + _TAKES_MS.get(type(action), 50)))

    def start(self) -> Step:
        """The agent's process begins."""
        return self.tell(
            Booted(
                at=self.moment(),
                settings=self.settings,
                system=self.system,
                probes=self.probes,
                calendar=self.calendar(),
            ),
        )

    def calendar(self) -> Calendar | None:
        """The windows of the days to come, by the host's own clock."""
        if self.activation_hours is None and self.reboot_hours is None:
            return None
        wall, days = self.moment().wall_ms, self.calendar_days
        return Calendar(
            since=wall,
            through=WallMs(wall + days * DAY),
            activation=None if self.activation_hours is None else self.activation_hours.spans(wall, days),
            reboot=None if self.reboot_hours is None else self.reboot_hours.spans(wall, days),
        )

    def kill(self) -> None:
        """The process dies without warning and starts again: only the journal and running switch units survive."""
        self.work = []
        replayed = self.replayed()
        assert replayed.known == self.state.known, "the journal does not replay"
        self.state = State(known=replayed.known, session=Session())
        self.start()

    def lose_state(self) -> None:
        """Somebody removes the state directory under a dead agent. What follows is another agent's run."""
        self.state, self.journal, self.run, self.facts = GENESIS, [], [], {}
        self.ended = {}  # a new journal counts its orders from one; units are told apart by journal as well
        # Only a fleet's control plane remembers rollouts by name; names that this host gave begin anew.
        self.mirror = {rollout_id: record for rollout_id, record in self.mirror.items() if rollout_id in self.releases}
        self.kill()

    def power_cut(self, into: Closure | None = None) -> None:
        """The host goes down, stays down for a minute and comes up with `into`, by default the profile."""
        self.pass_time(MINUTE)
        self.boots += 1
        self.booted_at_ms = self.true_ms - 20 * SECOND
        target = into or self.system.profile
        self.system = SystemView(
            boot_id=f"boot-{self.boots}", running=target, booted=target, profile=self.system.profile
        )
        self.ended = {}
        self.kill()

    def replayed(self) -> State:
        """The state that the journal alone gives."""
        state = GENESIS
        for event in self.journal:
            state = step(State(known=state.known), event).state
        return state

    # --- the host and its workers -----------------------------------------------------------------------------------

    def answer(self, work: Work) -> None:
        """An honest worker is done with `work` and says what came of it."""
        self.work.remove(work)
        at, order = self.moment(), work.order
        match order:
            case Realise(op=op):
                self.tell(RealiseFinished(at=at, op=op, ok=True))
            case Switch(op=op) | Rollback(op=op):
                self.tell(attrs.evolve(self._switched(op, order), at=at))
            case ObserveSystem():
                self.tell(SystemObserved(at=at, system=self.system))
            case FetchIntent(rollout_id=rollout_id):
                self._tell_intent(rollout_id)
            case DeliverFacts():
                self._deliver(order)
            case Perform(duty=duty):
                self._perform(duty)
            case RunHooks():
                self._run_hooks(order)
            case Reboot(op=op):
                self._reboot(op)
            case ReadCalendar():
                calendar = self.calendar()
                if calendar is not None:
                    self.tell(CalendarRead(at=at, calendar=calendar))
            case _:
                raise AssertionError(f"{order} is no work")

    def _run_hooks(self, order: RunHooks) -> None:
        self.hooks_told.append(order)
        veto = self.veto if order.moment is HookMoment.BEFORE_SWITCH else ""
        self.tell(HooksFinished(at=self.moment(), op=order.op, veto=veto))

    def _reboot(self, op: OpId) -> None:
        if self.locked or self.stays_up:
            why = "/run/backup is there" if self.locked else "inhibited"
            self.tell(RebootDelayed(at=self.moment(), op=op, locked=self.locked, detail=why))
        else:
            self.power_cut()

    def _switched(self, op: OpId, order: Switch | Rollback) -> SwitchFinished:
        """Do it, at most once for `op`."""
        if op not in self.ended:
            self.ended[op] = self._switch(op, order)
        return self.ended[op]

    def _switch(self, op: OpId, order: Switch | Rollback) -> SwitchFinished:
        target, outcome, code = order.closure, SwitchOutcome.SWITCHED, 0
        if isinstance(order, Rollback) and self.stuck_rollbacks > 0:
            self.stuck_rollbacks -= 1
            outcome, code = SwitchOutcome.FAILED, 1
        elif target in self.defers and isinstance(order, Switch):
            self.system = attrs.evolve(self.system, profile=target)
            outcome = SwitchOutcome.DEFERRED
        else:
            self.system = attrs.evolve(self.system, running=target, profile=target)
            if target in self.breaks:
                outcome, code = SwitchOutcome.FAILED, 4
        component = "kernel" if outcome is SwitchOutcome.DEFERRED else ""
        return SwitchFinished(
            at=self.moment(), op=op, outcome=outcome, system=self.system, exit_code=code, component=component
        )

    def run_probes(self) -> None:
        """Every probe runs once and says what the running system is like."""
        self.probes_due_ms = self.true_ms + PROBE_EVERY_MS
        status = ProbeStatus.FAIL if self.system.running in self.sick else ProbeStatus.PASS
        for spec in self.state.known.judges:
            if spec.mode is not ProbeMode.DISABLED:
                self.probe(spec.name, status)

    def probe(self, name: str, status: ProbeStatus, *, took_ms: int = 0) -> Step:
        at = self.moment()
        reason = "connection refused" if status is ProbeStatus.FAIL else None
        return self.tell(
            ProbeObserved(at=at, name=name, status=status, began_mono_ms=at.mono_ms - took_ms, reason=reason)
        )

    # --- CI and the control plane -----------------------------------------------------------------------------------

    def publish(self, rollout_id: RolloutId, release: Release) -> None:
        """CI signs a release, and the control plane wants this host to take it."""
        self.releases[rollout_id] = release
        self.signed[rollout_id] = self.true_ms
        self.wanted = rollout_id
        self.offered_ms = -DAY
        self.mirror.setdefault(rollout_id, opened(rollout_id, HOST, release.target or Closure("")))

    def intent(self, rollout_id: RolloutId) -> VerifiedIntent:
        """The manifest as an honest CI has it now: signed again while it is current."""
        release = self.releases[rollout_id]
        if rollout_id == self.wanted and self.true_ms - self.signed[rollout_id] > WINDOW_S * 500:
            self.signed[rollout_id] = self.true_ms
        return make_intent(
            rollout_id,
            release.target,
            signed_at=self.signed[rollout_id],
            channel=release.channel,
            policy=release.policy,
        )

    def _tell_intent(self, rollout_id: RolloutId | None) -> None:
        at = self.moment()
        if not self.reachable:
            self.tell(
                IntentRefused(at=at, rollout_id=rollout_id, reason=Reason.MISSING, detail="unreachable", final=False)
            )
        elif rollout_id is None or rollout_id not in self.releases:
            self.tell(
                IntentRefused(at=at, rollout_id=rollout_id, reason=Reason.MISSING, detail="no such one", final=True)
            )
        else:
            self.tell(IntentVerified(at=at, intent=self.intent(rollout_id)))

    def _perform(self, duty: Duty) -> None:
        match duty:
            case Duty.HEARTBEAT:
                self.tell(SystemObserved(at=self.moment(), system=self.system))
                if self.reachable and self.settings.source is Source.FLEET:
                    self.tell(SnapshotsReceived(at=self.moment(), snapshots=tuple(self._snapshots())))
            case Duty.INTENT if self.settings.source is not Source.FLEET:
                self.tell(SystemObserved(at=self.moment(), system=self.system))
                if self.reachable:
                    self.say_what_is_wanted()
            case Duty.INTENT if self.reachable and self.wanted is not None:
                self._tell_intent(self.wanted)
            case Duty.DISPATCH if self._has_offer():
                self._offer()
            case Duty.RENEWAL:
                at = self.moment()
                self.tell(CertificateLoaded(at=at, validity=(at.wall_ms, WallMs(at.wall_ms + 30 * DAY))))
            case _:
                pass
        self.tell(DutyFinished(at=self.moment(), duty=duty, ok=self.reachable))

    def say_what_is_wanted(self) -> Step:
        """What the server of a source without signatures answers."""
        at, source = self.moment(), self.settings.source
        if self.no_answer is not None:
            return self.tell(
                IntentRefused(at=at, rollout_id=None, reason=self.no_answer, detail="no such build", final=True)
            )
        return self.tell(TargetOffered(at=at, basis=BASIS[source], closure=self.offered, offered_as="build-1"))

    def _has_offer(self) -> bool:
        if self.wanted is None or not self.reachable:
            return False
        taken = self.mirror[self.wanted].phase is not Phase.PENDING
        return not taken and self.true_ms - self.offered_ms >= 2 * MINUTE

    def _offer(self) -> None:
        assert self.wanted is not None
        self.offered_ms = self.true_ms
        self.tell(
            DispatchReceived(
                at=self.moment(),
                hostname=HOST,
                rollout_id=self.wanted,
                target_closure=self.releases[self.wanted].target or "",
                running=self.system.running,
            )
        )

    def _snapshots(self) -> Iterable[Snapshot]:
        for record in self.mirror.values():
            if record.phase in (Phase.PENDING, Phase.ACTIVATING, Phase.DEFERRED, Phase.SOAKING):
                yield Snapshot(
                    rollout_id=record.rollout_id,
                    phase=record.phase,
                    target_closure=record.target_closure,
                    last_seq=record.last_seq,
                )

    def _deliver(self, order: DeliverFacts) -> None:
        if not self.reachable:
            self.tell(DutyFinished(at=self.moment(), duty=Duty.DELIVERY, ok=False))
            return
        tracked = self.state.known.rollouts.get(order.rollout_id)
        target = tracked.record.target_closure if tracked is not None else Closure("")
        record = self.mirror.get(order.rollout_id, opened(order.rollout_id, HOST, target))
        record = attrs.evolve(record, target_closure=target)
        wanted: int | None = None
        for fact in self.facts.get(order.rollout_id, []):
            if order.from_seq <= fact.seq <= order.through_seq and fact.seq > record.last_seq:
                if fact.seq > record.last_seq + 1:
                    wanted = record.last_seq + 1
                    break
                folded = fold(record, fact)
                assert isinstance(folded, HostRollout), folded
                record = folded
        self.mirror[order.rollout_id] = record
        self._told_how_far(order, record, wanted)

    def _told_how_far(self, order: DeliverFacts, record: HostRollout, wanted: int | None) -> None:
        at, through = self.moment(), min(record.last_seq, order.through_seq)
        if wanted is not None:
            self.tell(ReplayRequested(at=at, rollout_id=order.rollout_id, from_seq=wanted))
        else:
            self.tell(FactsDelivered(at=at, rollout_id=order.rollout_id, through_seq=through))
        self.tell(DutyFinished(at=at, duty=Duty.DELIVERY, ok=wanted is None))

    # --- everybody is honest ----------------------------------------------------------------------------------------

    def settle(self, goal: Callable[[], bool], *, limit: int = 400) -> int:
        """Play everybody honestly until `goal`; how many events that took. Fails when it takes more than `limit`."""
        begun = len(self.run)
        while not goal():
            assert len(self.run) - begun < limit, f"not there after {limit} events: {self.state}"
            self.next_thing()
        return len(self.run) - begun

    def live(self, ms: int) -> None:
        """Play everybody honestly for a while."""
        until = self.true_ms + ms
        while self._next_instant() <= until:
            self.next_thing()
        self.true_ms = until

    def _done_at(self, work: Work) -> int:
        if work.order == Perform(duty=Duty.DISPATCH) and not self._has_offer():
            return work.done_ms + _WAIT_MS
        return work.done_ms

    def _next_instant(self) -> int:
        delay = next_wakeup(self.state, self.moment())
        instants = [self._done_at(work) for work in self.work]
        instants += [] if self.probes_due_ms is None else [self.probes_due_ms]
        instants += [] if delay is None else [self.true_ms + delay]
        assert instants, "nothing will ever happen again"
        return max(self.true_ms, min(instants))

    def next_thing(self) -> None:
        """The one thing that happens next, when all are honest."""
        self.true_ms = self._next_instant()
        ready = next((work for work in self.work if self._done_at(work) <= self.true_ms), None)
        if ready is not None:
            self.answer(ready)
        elif self.probes_due_ms is not None and self.probes_due_ms <= self.true_ms:
            self.run_probes()
        else:
            self.tell(Tick(at=self.moment()))

    def reform(self) -> None:
        """From here on the world is honest and healthy, and the last one who lied did so days ago."""
        self.clock_off_ms = 0
        self.reachable, self.stuck_rollbacks = True, 0
        for ill in (self.sick, self.breaks, self.defers):
            ill.clear()
        self.no_answer, self.veto, self.locked, self.stays_up = None, "", False, False
        if self.system.running is None:  # a host that runs nothing can be taken back to nothing
            self.system = attrs.evolve(self.system, running=self.system.profile or OLD)
        if self.system.running in self.state.known.quarantine:  # nor to what it may not be switched to again
            self.tell(QuarantineCleared(at=self.moment(), closure=self.system.running, by="root"))
        self.pass_time(3 * DAY)
        self.probes = (SSH, DISK)
        self.tell(ProbesDeclared(at=self.moment(), probes=self.probes))
        windows = self.state.known.calendar is not None or self.activation_hours or self.reboot_hours
        self.activation_hours = self.reboot_hours = None
        if self.state.known.settings != self.calm or windows:
            self.settings = self.calm
            self.kill()
        self.live(5 * MINUTE)
        current = self.state.known.current
        if current is not None and current.record.phase is not Phase.CONVERGED and not current.prior:
            # Neither what runs nor what ran before it has ever proved itself: nothing could be gone back to.
            sound = closure("5", "sound")
            self.publish(SOUND, Release(target=sound))
            self.offered = sound
            self.settle(lambda: self.phase_on(sound) is Phase.CONVERGED)

    # --- judgement --------------------------------------------------------------------------------------------------

    def broken_promises(self) -> list[str]:
        """What `check_step` found on the way, and what `check_run` finds now."""
        return self.problems + check_run(self.run)

    @property
    def phase(self) -> Phase | None:
        """Where the active rollout stands."""
        current = self.state.known.current
        return None if current is None else current.record.phase

    def phase_on(self, target: Closure) -> Phase | None:
        """Where the active rollout stands, if it is of this target."""
        current = self.state.known.current
        return None if current is None or current.record.target_closure != target else current.record.phase

    def phase_of(self, rollout_id: RolloutId) -> Phase | None:
        """Where one rollout stands."""
        tracked = self.state.known.rollouts.get(rollout_id)
        return None if tracked is None else tracked.record.phase


PLAIN_POLICY: Final = TargetPolicy()


def make_intent(
    rollout_id: RolloutId,
    target: Closure | None,
    *,
    signed_at: int,
    channel: Channel = EDGE,
    fleet_signed_at: int | None = None,
    policy: TargetPolicy = PLAIN_POLICY,
    window_s: int = WINDOW_S,
) -> VerifiedIntent:
    """Intent as the evidence layer hands it in."""
    fleet_ms = signed_at if fleet_signed_at is None else fleet_signed_at
    return VerifiedIntent(
        rollout_id=rollout_id,
        channel=channel,
        signed_at=WallMs(signed_at),
        manifest_digest=f"manifest-{rollout_id}-{signed_at}",
        manifest_key_id="ci",
        fleet_digest=f"fleet-{fleet_ms}",
        fleet_signed_at=WallMs(fleet_ms),
        fleet_key_id="ci",
        freshness_window_s=window_s,
        target=target,
        policy=policy,
    )


def make_offer(
    rollout_id: RolloutId,
    target: Closure | None,
    *,
    source: Source = Source.GRADIENT,
    policy: TargetPolicy = PLAIN_POLICY,
    offered_at: int = T0,
) -> VerifiedIntent:
    """What a source without signatures wants, as the agent remembers it."""
    return VerifiedIntent(
        rollout_id=rollout_id,
        channel=Channel(source.value),
        signed_at=WallMs(offered_at),
        manifest_digest="",
        manifest_key_id="",
        fleet_digest="",
        fleet_signed_at=WallMs(offered_at),
        fleet_key_id="",
        freshness_window_s=OFFER_GOOD_S,
        target=target,
        policy=policy,
        basis=BASIS[source],
        offered_as="build-1",
    )
