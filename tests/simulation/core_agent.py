"""One agent at core depth: the real `step` in a modelled runtime, journal and workers.

What is modelled keeps to the product: events are taken in batches, durable ones are committed with their facts before
any order of the batch is carried out (`nixfleet_agent.runtime`), the state after a restart is the journal's, a journal
that cannot be written holds durable events back, one that cannot be opened at start puts the run on hold
(`nixfleet_agent.ledger`), and each worker tells what its namesake in `nixfleet_agent.workers` would.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import attrs

from state_machine.actions import (
    Abandon,
    Action,
    DeliverFacts,
    FetchIntent,
    ObserveSystem,
    Perform,
    Realise,
    Refuse,
    RestartProbes,
    Rollback,
    Switch,
    Unexpected,
)
from state_machine.events import (
    Booted,
    CertificateLoaded,
    DispatchReceived,
    Duty,
    DutyFinished,
    Event,
    FactRefused,
    FactsDelivered,
    IntentRefused,
    IntentVerified,
    Poked,
    ProbeObserved,
    ProbesDeclared,
    QuarantineCleared,
    RealiseFinished,
    ReplayRequested,
    Settings,
    SnapshotsReceived,
    SwitchFinished,
    SystemObserved,
    Tick,
)
from state_machine.facts import Fact, RolloutFact
from state_machine.schedule import next_wakeup
from state_machine.state import GENESIS, Known, Session, State
from state_machine.step import exchange, step
from state_machine.turn import Step
from state_machine.values import Closure, OpId, ProbeMode, ProbeSpec, ProbeStatus, Reason, RolloutId, WallMs
from tests.simulation.core_machine import Machine, Report
from tests.simulation.core_network import Answer, Asked, Shown, Status
from tests.simulation.faults import DAY, SECOND, Fault, FaultKind
from tests.simulation.judge import RunJudge
from tests.simulation.scenario import WELL, Health
from tests.simulation.trace import Weight

JOURNAL_RETRY_MS: Final = 5 * SECOND
HELD_BACK_MAX: Final = 1000
OPEN_AGAIN_MS: Final = 30 * SECOND
RESTART_MS: Final = SECOND
"""systemd's pause before it starts an agent that ended."""
REQUEST_MS: Final = 30 * SECOND
SHORT_REQUEST_MS: Final = 10 * SECOND
GRACE_MS: Final = 5 * SECOND
REPORT_EVERY: Final = 50
PROBE_EVERY_MS: Final = 120 * SECOND
PROBE_DEADLINE_MS: Final = 10 * SECOND

SERVICE: Final = ProbeSpec(name="service", kind="tcp", mode=ProbeMode.ENFORCE)
DISK: Final = ProbeSpec(name="disk", kind="command", mode=ProbeMode.OBSERVE)
EXTRA: Final = ProbeSpec(name="extra", kind="http", mode=ProbeMode.ENFORCE)
PROBES: Final = (SERVICE, DISK)
EDITED: Final = (SERVICE, EXTRA)

Kill = FaultKind
TRAPS: Final = frozenset(
    {
        Kill.KILL_BEFORE_COMMIT,
        Kill.KILL_AFTER_COMMIT,
        Kill.KILL_BEFORE_ACTION,
        Kill.KILL_AFTER_ACTION,
        Kill.KILL_UNANSWERED,
        Kill.KILL_UNREAD,
    }
)
"""Deaths that wait for the next occasion."""


class Died(Exception):  # noqa: N818  # no error: the process is gone, and whatever it was in the middle of
    """The agent's process was killed in the middle of what it was doing."""


@attrs.define(kw_only=True, eq=False)
class Journal:
    """What is on the disk: the state it amounts to, the facts it holds, the intents that were kept beside it."""

    number: int
    known: Known = Known()
    entries: int = 0
    facts: dict[RolloutId, list[Fact]] = attrs.field(factory=dict)
    fleet: Shown | None = None
    manifests: dict[RolloutId, Shown] = attrs.field(factory=dict)

    def append(self, known: Known, facts: Sequence[RolloutFact]) -> None:
        """Commit one entry."""
        self.known = known
        self.entries += 1
        for born in facts:
            self.facts.setdefault(born.rollout_id, []).append(born.fact)

    def facts_from(self, rollout_id: RolloutId, from_seq: int, through_seq: int) -> list[Fact]:
        """The facts of the rollout in that range."""
        return [fact for fact in self.facts.get(rollout_id, ()) if from_seq <= fact.seq <= through_seq]


@attrs.define(kw_only=True, eq=False)
class _Worked:
    before: State
    event: Event
    step: Step


class Agent:
    """The agent's process on one machine, dead or alive, and its state directory."""

    def __init__(self, machine: Machine, ask: Callable[..., None]) -> None:
        self.machine, self.world, self.host, self.name = machine, machine.world, machine.host, machine.name
        self._faults = self.world.faults(self.host)
        self._ask = ask
        self.dice = self.world.scenario.stream("agent", self.host)
        self.settings = Settings(
            machine_id=self.name,
            poll_interval_s=self.world.scenario.poll_s,
            heartbeat_interval_s=150,
            long_poll_wait_s=150,
            switch_attempts=self.world.scenario.switch_attempts,
            rollback_attempts=self.world.scenario.rollback_attempts,
        )
        self.journal = Journal(number=1)
        self.judge = RunJudge(who=self.name)
        self.judges = [self.judge]
        self.life = 0
        self.alive = False
        self.traps: dict[FaultKind, Fault] = {}
        self.on_fact: Callable[[RolloutFact], None] = lambda fact: None
        self.on_event: Callable[[Known, Event], None] | None = None
        self.refused_by_control_plane: list[tuple[RolloutId, int, str]] = []
        self._clear()
        self._orders: dict[type[Action], Callable[[Any], None]] = {
            Perform: self._perform,
            DeliverFacts: self._deliver,
            FetchIntent: self._fetch,
            Realise: self._realise,
            Abandon: self._abandon,
            Switch: self._switch,
            Rollback: self._switch,
            RestartProbes: self._restart_probes,
            ObserveSystem: self._observe,
            Refuse: self._refused,
            Unexpected: self._refused,
        }

    def _clear(self) -> None:
        self.state: State = GENESIS
        self.holds = ""
        self._inbox: list[Event] = []
        self._busy = False
        self._committing: list[_Worked] | None = None
        self._held_back: list[Event] = []
        self._retry_at = 0
        self._stuck = False
        self._alarm_at: int | None = None
        self._alarm_due: int | None = None
        self._alarm_wanted = False
        self._planned_for: State | None = None
        self._planned_off = 0
        self._wakeup: int | None = None
        self._round = 0
        self._flaps = 0
        self._declared: tuple[ProbeSpec, ...] = PROBES
        self._fetching: set[OpId] = set()
        self._sending = False
        self._waiting_sends: list[DeliverFacts] = []
        self._reviewed: frozenset[int] | None = None

    # --- life and death ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """systemd starts the process."""
        if self.alive or not self.machine.up:
            return
        self._clear()
        self.alive = True
        self.life += 1
        if self._disk_is_bad():
            if self.journal.entries == 0:
                self._note("cannot begin a journal, and ends")
                return self._die(5 * SECOND)
            self._hold()
        else:
            self.state = State(known=self.journal.known, session=Session())
        self._note("agent starts" + (f", on hold: {self.holds}" if self.holds else ""), Weight.STORY)
        settings = attrs.evolve(self.settings, holds=self.holds) if self.holds else self.settings
        at = self.machine.moment()
        self._declared = self._health_checks()
        try:
            self._inbox.append(Booted(at=at, settings=settings, system=self.machine.view(), probes=self._declared))
            wall = at.wall_ms
            self._inbox.append(CertificateLoaded(at=at, validity=(WallMs(wall - DAY), WallMs(wall + 29 * DAY))))
            self._reduce()
        except Died:
            pass
        return None

    def _hold(self) -> None:
        self.holds = "the journal cannot be written"
        self.judge = RunJudge(who=f"{self.name} on hold")
        self.judges.append(self.judge)
        self._later(OPEN_AGAIN_MS, self._open_again)

    def _open_again(self) -> None:
        if self._disk_is_bad():
            return self._later(OPEN_AGAIN_MS, self._open_again)
        self._note("the journal can be used again", Weight.STORY)
        return self._die(0)

    def kill(self, why: str, restart_ms: int | None = RESTART_MS) -> None:
        """The process dies now, whatever it does. None: whoever killed it sees to what comes next."""
        if not self.alive:
            return
        self._note(f"agent dies: {why}", Weight.STORY)
        self._die(restart_ms)

    def _die(self, restart_ms: int | None) -> None:
        committing, self._committing = self._committing, None
        if committing is not None and self.dice.random() < 0.5:
            self._make_durable(committing)  # the disk had it; only the process did not learn of it
        self.alive = False
        self.life += 1
        self.judge = self._judge_of_journal()
        if restart_ms is not None:
            self.world.after(restart_ms, self.start)

    def _judge_of_journal(self) -> RunJudge:
        return next(judge for judge in reversed(self.judges) if judge.who == self.name)

    def lose_state(self) -> None:
        """The state directory is gone; the agent was stopped for it. Units and their machine go on."""
        self.kill("its state directory is removed", None)
        self.machine.jobs.clear()
        self.journal = Journal(number=self.journal.number + 1)
        self.judge = RunJudge(who=self.name)
        self.judges.append(self.judge)
        self.world.after(RESTART_MS, self.start)

    def _trap(self, kind: FaultKind) -> None:
        """Die here, if a fault waits for this place."""
        if self.traps and (fault := self.traps.pop(kind, None)) is not None:
            self.kill(str(kind), fault.amount * SECOND)
            raise Died

    def _later(self, ms: int, call: Callable[..., None], *args: object) -> None:
        """Do it later, in this life."""
        self.world.after(ms, self._in_life, self.life, call, args)

    def _in_life(self, life: int, call: Callable[..., None], args: tuple[Any, ...]) -> None:
        if life == self.life:
            try:
                call(*args)
            except Died:
                return

    def _alive_in(self, life: int) -> Callable[[], bool]:
        return lambda: self.life == life

    def _note(self, text: str, weight: Weight = Weight.NOISE) -> None:
        if self.world.trace.on:
            self.world.trace.note(self.world.now, self.name, text, weight)

    def _disk_is_bad(self) -> bool:
        return Kill.DISK_FULL in self._faults or Kill.DISK_READ_ONLY in self._faults

    # --- the reducer ------------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Hand an event to the reducer."""
        if not self.alive:
            return
        self._inbox.append(event)
        try:
            self._reduce()
        except Died:
            return

    def _reduce(self) -> None:
        if self._busy:
            return
        self._busy = True
        while self._inbox:
            events, self._inbox = self._inbox, []
            if self._held_back and self.world.now >= self._retry_at:
                events, self._held_back = self._held_back + events, []
            if self._turn(events):
                return  # a commit is under way; it goes on from there
        self._busy = False

    def _want_alarm(self) -> None:
        """The alarm is set before time goes on: only the last state of an instant counts."""
        if not self._alarm_wanted:
            self._alarm_wanted = True
            self.world.settle(self.set_alarm)

    def _turn(self, events: list[Event]) -> bool:
        """One batch. True when it waits for the disk."""
        if self._held_back:
            self._go_on_without_journal(events)
            return False
        state, worked, durable = self.state, [], False
        for event in events:
            taken = step(state, event)
            worked.append(_Worked(before=state, event=event, step=taken))
            state = taken.state
            durable = durable or taken.durable
        if not durable or self.holds:
            self._act_on(worked)
            return False
        return self._commit(worked)

    def _commit(self, worked: list[_Worked]) -> bool:
        self._trap(Kill.KILL_BEFORE_COMMIT)
        if self._disk_is_bad():
            if any(isinstance(item.event, Booted) for item in worked):
                self.kill("the journal cannot be written at start", 5 * SECOND)
                raise Died
            self._journal_refuses([item.event for item in worked])
            return False
        slow = self._faults.get(Kill.DISK_SLOW)
        if slow is not None:
            self._committing = worked
            self._later(slow.amount, self._slowly_committed, worked)
            return True
        self._committed(worked)
        return False

    def _journal_refuses(self, events: list[Event]) -> None:
        if not self._stuck:
            self._note("the journal cannot be written", Weight.STORY)
        self._stuck = True
        self._retry_at = self.world.now + JOURNAL_RETRY_MS
        self._later(JOURNAL_RETRY_MS, self._try_journal_again)
        self._go_on_without_journal(events)

    def _try_journal_again(self) -> None:
        if self._busy or not self._held_back or self.world.now < self._retry_at:
            return
        events, self._held_back = self._held_back, []
        self._inbox = events + self._inbox
        self._reduce()

    def _slowly_committed(self, worked: list[_Worked]) -> None:
        self._committing = None
        self._committed(worked)
        self._busy = False
        self._reduce()
        self._want_alarm()

    def _committed(self, worked: list[_Worked]) -> None:
        self._make_durable(worked)
        if self._stuck:
            self._note("the journal can be written again", Weight.STORY)
            self._stuck = False
        self._trap(Kill.KILL_AFTER_COMMIT)
        self._act_on(worked)

    def _make_durable(self, worked: list[_Worked]) -> None:
        for item in worked:
            if item.step.durable:
                self.journal.append(item.step.state.known, item.step.facts)
                self._saw(item)
                for fact in item.step.facts:
                    self.on_fact(fact)

    def _saw(self, item: _Worked) -> None:
        self.judge.decided(self.world.now, item.before, item.event, item.step)
        if self.on_event is not None:
            self.on_event(item.before.known, item.event)
        if self.world.trace.on:
            self._trace(item)

    def _trace(self, item: _Worked) -> None:
        event = item.event
        self._note(f"{'*' if item.step.durable else ' '} {event!r}")
        for fact in item.step.facts:
            self._note(f"{fact.rollout_id} {fact.fact!r}", Weight.STORY)

    def _act_on(self, worked: list[_Worked]) -> None:
        self.state = worked[-1].step.state
        self._want_alarm()
        for item in worked:
            durable = item.step.durable
            if not durable or self.holds:
                self._saw(item)
            for action in item.step.actions:
                if durable and self.traps:
                    self._trap(Kill.KILL_BEFORE_ACTION)
                self._orders[type(action)](action)
                if durable and self.traps:
                    self._trap(Kill.KILL_AFTER_ACTION)

    def _go_on_without_journal(self, events: list[Event]) -> None:
        for event in events:
            taken = step(self.state, event)
            if taken.durable:
                if not isinstance(event, Tick | ProbeObserved) and len(self._held_back) < HELD_BACK_MAX:
                    self._held_back.append(event)
                taken = exchange(self.state, event.at)
            self._act_on([_Worked(before=self.state, event=event, step=taken)])

    def set_alarm(self) -> None:
        """Sleep until the next instant that the state names."""
        self._alarm_wanted = False
        if not self.alive or self._busy:
            return
        wakeup = self._next_wakeup()
        if wakeup is None:
            self._alarm_due = None
            return
        now = self.world.now
        self._alarm_due = due = max(wakeup, now + 1000 if self._stuck else now)
        if self._alarm_at is None or due < self._alarm_at:
            self._alarm_at = due
            self._later(due - now, self._alarm, due)

    def _next_wakeup(self) -> int | None:
        """The instant in question; the same as before for as long as neither state nor wall clock have moved."""
        off = self.machine.wall_off_ms()
        if self.state is not self._planned_for or off != self._planned_off:
            wait_ms = next_wakeup(self.state, self.machine.moment())
            self._wakeup = None if wait_ms is None else self.world.now + wait_ms
            self._planned_for, self._planned_off = self.state, off
        return self._wakeup

    def _alarm(self, at: int) -> None:
        if at != self._alarm_at:
            return
        self._alarm_at = None
        due = self._alarm_due
        if due is None:
            return
        if due > self.world.now:
            self._alarm_at = due
            return self._later(due - self.world.now, self._alarm, due)
        self._alarm_due = None
        self.tell(Tick(at=self.machine.moment()))
        self._want_alarm()
        return None

    # --- exchanges --------------------------------------------------------------------------------------------------

    def _request(self, asked: Asked, timeout_ms: int, then: Callable[[Answer], None]) -> None:
        """Send, and go on with the answer, in this life only."""
        life = self.life

        def answered(answer: Answer) -> None:
            if life != self.life:
                return
            try:
                if self.traps:
                    self._trap(Kill.KILL_UNREAD)
                then(answer)
            except Died:
                pass

        self._ask(self.host, asked, timeout_ms, answered)
        if self.traps and Kill.KILL_UNANSWERED in self.traps:
            self._later(15, self._trap, Kill.KILL_UNANSWERED)

    def _finish(self, duty: Duty, answer: Answer, ok: bool | None = None) -> None:
        self.tell(
            DutyFinished(
                at=self.machine.moment(),
                duty=duty,
                ok=answer.status is Status.OK if ok is None else ok,
                retry_after_ms=answer.retry_after_ms,
                jitter=self.dice.random(),
            )
        )

    def _perform(self, order: Perform) -> None:
        match order.duty:
            case Duty.HEARTBEAT:
                self._inbox.append(SystemObserved(at=self.machine.moment(), system=self.machine.view()))
                known = self.state.known
                told = {rollout_id: tracked.record.last_seq for rollout_id, tracked in known.rollouts.items()}
                asked = Asked(what="heartbeat", rollout_id=known.active, told=told)
                self._request(asked, SHORT_REQUEST_MS, self._heard)
            case Duty.DISPATCH:
                wait_ms = self.settings.long_poll_wait_s * 1000
                self._request(Asked(what="dispatch", wait_ms=wait_ms), wait_ms + GRACE_MS, self._dispatched)
            case Duty.INTENT:
                self._request(Asked(what="intent"), REQUEST_MS, self._shown_current)
            case Duty.RENEWAL:
                self._request(Asked(what="renew"), REQUEST_MS, self._renewed)
            case Duty.DELIVERY:
                raise AssertionError("facts are delivered by DeliverFacts")

    def _heard(self, answer: Answer) -> None:
        if answer.status is Status.OK:
            at = self.machine.moment()
            if answer.snapshots:
                self._review()
                self.tell(SnapshotsReceived(at=at, snapshots=answer.snapshots))
            for rollout_id, from_seq in answer.replay:
                self.tell(ReplayRequested(at=at, rollout_id=rollout_id, from_seq=from_seq))
        self._finish(Duty.HEARTBEAT, answer)

    def _dispatched(self, answer: Answer) -> None:
        sent = answer.dispatch
        if answer.status is Status.OK and sent is not None:
            self._review()
            self.tell(
                DispatchReceived(
                    at=self.machine.moment(),
                    hostname=sent.hostname,
                    rollout_id=sent.rollout_id,
                    target_closure=sent.target_closure,
                    running=self.machine.running,
                    soak_due_at=sent.enqueued_at,
                    soak_s=sent.soak_secs,
                    kind=sent.kind,
                    reason=sent.reason,
                )
            )
        self._finish(Duty.DISPATCH, answer)

    def _renewed(self, answer: Answer) -> None:
        if answer.status is Status.OK:
            validity = (WallMs(answer.wall_ms), WallMs(answer.wall_ms + 30 * DAY))
            self.tell(CertificateLoaded(at=self.machine.moment(), validity=validity))
        self._finish(Duty.RENEWAL, answer)

    # --- intent -----------------------------------------------------------------------------------------------------

    def _review(self) -> None:
        """`IntentWorker.review`: the trust file has changed, and what it no longer proves is refused."""
        trusted = self.world.trusted(self.host)
        if trusted is self._reviewed:
            return
        for seen in tuple(self.state.known.intents.values()):
            if int(seen.intent.manifest_key_id.removeprefix("key")) not in trusted:
                self.tell(self._no_intent(seen.intent.rollout_id, Reason.BAD_SIGNATURE, final=True))
        self._reviewed = trusted

    def _shown_current(self, answer: Answer) -> None:
        self._review()
        if answer.status is Status.OK and answer.shown is not None:
            self.tell(self._proved(answer.shown, answer.shown.rollout_id, asked=False))
        self._finish(Duty.INTENT, answer)

    def _fetch(self, order: FetchIntent) -> None:
        def shown(answer: Answer) -> None:
            self.tell(self._fetched(order.rollout_id, answer))

        self._request(Asked(what="intent", rollout_id=order.rollout_id), REQUEST_MS, shown)

    def _fetched(self, rollout_id: RolloutId, answer: Answer) -> Event:
        if answer.status is Status.OK and answer.shown is not None:
            return self._proved(answer.shown, rollout_id, asked=True)
        fleet, manifest = self.journal.fleet, self.journal.manifests.get(rollout_id)
        if fleet is not None and manifest is not None and fleet.digest == manifest.digest:
            event = self._proved(manifest, rollout_id, asked=True)
            if isinstance(event, IntentVerified):
                return event
        final = answer.status is Status.MISSING
        return self._no_intent(rollout_id, Reason.MISSING, final=final, retry_after_ms=answer.retry_after_ms)

    def _proved(self, shown: Shown, rollout_id: RolloutId | None, *, asked: bool) -> Event:
        """What the evidence layer makes of a fleet and a manifest: signatures, identity, anchor."""
        told = rollout_id if asked else None
        if shown.key not in self.world.trusted(self.host):
            return self._no_intent(told or rollout_id, Reason.BAD_SIGNATURE, final=True)
        if shown.intent.rollout_id != rollout_id:
            return self._no_intent(rollout_id, Reason.MANIFEST_MISMATCH, final=True)
        kept = self.journal.manifests.get(shown.intent.rollout_id)
        if kept is None or kept.digest != shown.digest:
            if self._disk_is_bad():
                return self._no_intent(rollout_id, Reason.MISSING, final=False)
            self.journal.fleet = shown
            self.journal.manifests[shown.intent.rollout_id] = shown
        return IntentVerified(at=self.machine.moment(), intent=shown.intent)

    def _no_intent(
        self, rollout_id: RolloutId | None, reason: Reason, *, final: bool, retry_after_ms: int | None = None
    ) -> IntentRefused:
        return IntentRefused(
            at=self.machine.moment(),
            rollout_id=rollout_id,
            reason=reason,
            detail="as simulated",
            final=final,
            jitter=self.dice.random(),
            retry_after_ms=retry_after_ms,
        )

    # --- delivery ---------------------------------------------------------------------------------------------------

    def _deliver(self, order: DeliverFacts) -> None:
        """One delivery at a time, as the worker's lock has it."""
        if self._sending:
            self._waiting_sends.append(order)
            return
        self._sending = True
        facts = [] if self.holds else self.journal.facts_from(order.rollout_id, order.from_seq, order.through_seq)
        self._send_next(order, facts, 0, order.from_seq - 1, order.from_seq - 1)

    def _send_next(self, order: DeliverFacts, facts: list[Fact], index: int, reported: int, through: int) -> None:
        if index == len(facts):
            self._report(order, reported, through)
            return self._sent(Answer(status=Status.OK), ok=True)
        fact = facts[index]

        def answered(answer: Answer) -> None:
            self._fact_answered(order, facts, index, reported, through, answer)

        asked = Asked(what="fact", rollout_id=order.rollout_id, fact=fact)
        return self._request(asked, SHORT_REQUEST_MS, answered)

    def _fact_answered(
        self, order: DeliverFacts, facts: list[Fact], index: int, reported: int, through: int, answer: Answer
    ) -> None:
        fact, rollout_id = facts[index], order.rollout_id
        match answer.status:
            case Status.OK:
                pass
            case Status.GAP if self.journal.facts_from(rollout_id, answer.want_seq, answer.want_seq):
                self._report(order, reported, through)
                self.tell(ReplayRequested(at=self.machine.moment(), rollout_id=rollout_id, from_seq=answer.want_seq))
                return self._sent(answer, ok=False)
            case Status.GAP | Status.CONFLICT | Status.ILLEGAL:
                self.refused_by_control_plane.append((rollout_id, fact.seq, answer.status.value))
                self.tell(
                    FactRefused(
                        at=self.machine.moment(),
                        rollout_id=rollout_id,
                        seq=fact.seq,
                        status=409,
                        reason=answer.status.value,
                    )
                )
            case _:
                self._report(order, reported, through)
                return self._sent(answer, ok=False)
        through = fact.seq
        if through - reported >= REPORT_EVERY:
            self._report(order, reported, through)
            reported = through
        return self._send_next(order, facts, index + 1, reported, through)

    def _report(self, order: DeliverFacts, reported: int, through: int) -> None:
        if through > reported:
            self.tell(FactsDelivered(at=self.machine.moment(), rollout_id=order.rollout_id, through_seq=through))

    def _sent(self, answer: Answer, *, ok: bool) -> None:
        self._sending = False
        self._finish(Duty.DELIVERY, answer, ok)
        if self._waiting_sends and not self._sending:
            self._deliver(self._waiting_sends.pop(0))

    # --- the host ---------------------------------------------------------------------------------------------------

    def _realise(self, order: Realise) -> None:
        self._fetching.add(order.op)
        present = order.closure in self.machine.store
        takes = 200 if present else SECOND + int(self.dice.random() * 20 * SECOND)
        self._later(takes, self._realised, order)

    def _realised(self, order: Realise) -> None:
        if order.op not in self._fetching:
            return
        self._fetching.discard(order.op)
        present = order.closure in self.machine.store
        untrusted = self.world.scenario.health(order.closure, self.host) is Health.UNTRUSTED
        outage = Kill.CACHE_OUTAGE in self._faults
        ok = present or not (untrusted or outage)
        if ok:
            self.machine.store.add(order.closure)
        self.tell(
            RealiseFinished(
                at=self.machine.moment(),
                op=order.op,
                ok=ok,
                untrusted=not ok and not outage,
                detail="" if ok else "no such path",
                jitter=self.dice.random(),
            )
        )

    def _abandon(self, order: Abandon) -> None:
        self._fetching.discard(order.op)

    def _switch(self, order: Switch | Rollback) -> None:
        life = self.life

        def ended(report: Report) -> None:
            if (lost := self.world.active(Kill.SWITCH_UNANSWERED, self.host)) is not None:
                return self.world.spend(lost)
            if life == self.life:
                # After the reducer's turn, as a task of its own would.
                self._later(1, self._switched, order.op, report)
            return None

        self.machine.carry_out(
            f"{self.journal.number}-{order.op}",
            order.closure,
            timeout_ms=order.timeout_s * 1000,
            only_if_begun=isinstance(order, Switch) and order.only_if_begun,
            alive=self._alive_in(life),
            tell=ended,
        )

    def _switched(self, op: OpId, report: Report) -> None:
        self.tell(
            SwitchFinished(
                at=self.machine.moment(),
                op=op,
                outcome=report.outcome,
                system=self.machine.view(),
                exit_code=report.exit_code,
                component=report.component,
                detail=report.detail,
                jitter=self.dice.random(),
            )
        )

    def _observe(self, _: ObserveSystem) -> None:
        self._inbox.append(SystemObserved(at=self.machine.moment(), system=self.machine.view()))

    def _refused(self, order: Refuse | Unexpected) -> None:
        if self.world.trace.on:
            self._note(f"  {order!r}", Weight.STORY if isinstance(order, Refuse) else Weight.NOISE)

    # --- probes -----------------------------------------------------------------------------------------------------

    def _health_checks(self) -> tuple[ProbeSpec, ...]:
        return EDITED if Kill.PROBES_EDITED in self._faults else PROBES

    def _restart_probes(self, _: RestartProbes) -> None:
        self._declared = self._health_checks()
        if self._declared != self.state.known.topology:
            self._inbox.append(ProbesDeclared(at=self.machine.moment(), probes=self._declared))
        self._round += 1
        lead = int(self.dice.random() * PROBE_EVERY_MS / 10)
        self._begin_round(self._round, self.world.now - lead)

    def _begin_round(self, number: int, tick: int) -> None:
        if number != self._round:
            return
        hangs = Kill.PROBES_HANG in self._faults
        takes = PROBE_DEADLINE_MS if hangs else 20 + int(self.dice.random() ** 4 * 5000)
        self._later(takes, self._end_round, number, tick, takes, hangs, self.machine.running)

    def _end_round(self, number: int, tick: int, took: int, hangs: bool, ran: Closure | None) -> None:
        if number != self._round:
            return
        seen = ran if self.dice.random() < 0.5 else self.machine.running
        for spec in self._declared:
            status = self._look(spec, seen, hangs)
            at = self.machine.moment()
            reason = None if status is ProbeStatus.PASS else "it does not answer"
            event = ProbeObserved(at=at, name=spec.name, status=status, began_mono_ms=at.mono_ms - took, reason=reason)
            self.tell(event)
            if number != self._round:
                return
        due = tick + PROBE_EVERY_MS
        while due <= self.world.now:
            due += PROBE_EVERY_MS
        self._later(due - self.world.now, self._begin_round, number, due)

    def _look(self, spec: ProbeSpec, closure: Closure | None, hangs: bool) -> ProbeStatus:
        if hangs:
            return ProbeStatus.FAIL
        health = self.world.scenario.health(closure, self.host)
        well = spec is DISK or health in WELL
        self._flaps += 1
        flap = self._faults.get(Kill.PROBES_FLAP)
        if flap is not None and self._flaps % flap.amount == 0:
            well = not well
        if Kill.PROBES_LIE in self._faults:
            well = not well
        return ProbeStatus.PASS if well else ProbeStatus.FAIL

    # --- people -----------------------------------------------------------------------------------------------------

    def poke(self) -> None:
        """`nixfleet-agent poke`."""
        self._retry_at = 0
        self.tell(Poked(at=self.machine.moment()))

    def reload_health_checks(self) -> None:
        """SIGHUP: the health checks were edited."""
        if self.alive:
            self.tell(ProbesDeclared(at=self.machine.moment(), probes=self._health_checks()))
            self.poke()

    def clear_quarantine(self) -> None:
        """`nixfleet-agent clear-quarantine`, where there is one."""
        if self.alive and self.state.known.quarantine and not self.holds:
            self.tell(QuarantineCleared(at=self.machine.moment(), closure=None, by="root"))
