"""The control plane at core depth: the real planner and the real mirrors over a modelled database, desk and shelf.

What happens to a fact is `control_plane.ingest`, to a heartbeat `control_plane.heartbeats`, to a queued dispatch
`control_plane.dispatch_desk` and `control_plane.planner_loop`, to a published release `control_plane.adoption`, less
their HTTP and SQL. The database survives a crash; the desk, the shelf and who was seen lately do not.
"""

from typing import Final

import attrs

from control_plane import mirrors
from control_plane.entries import PlannedHost, RolloutOpened
from control_plane.rows import Mirror, Quarantined, QueuedDispatch, Rollout
from state_machine.events import DispatchKind, Snapshot
from state_machine.facts import (
    Fact,
    ProbeFailureFirst,
    ProbeObservedFirst,
    ProbeResult,
    ProbeTopologyDeclared,
    RollbackComplete,
)
from state_machine.lifecycle import OPEN, HostRollout
from state_machine.planner import Dispatch, Plan, plan
from state_machine.values import Closure, HostName, Phase, RolloutId, WallMs
from state_machine.waves import soak_ms
from state_machine.world import HALTING, PlannerInput
from tests.simulation.core_ci import Ci, Published
from tests.simulation.core_machine import Scheduler
from tests.simulation.core_network import OK, UNREACHABLE, Answer, Asked, Reply, Shown, Status
from tests.simulation.faults import SECOND, FaultKind
from tests.simulation.plan_judge import PlanJudge
from tests.simulation.scenario import CHANNEL, EPOCH
from tests.simulation.trace import Weight

SILENCE_MS: Final = 180 * SECOND
TICK_MS: Final = 15 * SECOND
PLAN_PAUSE_MS: Final = 20
LOOK_EVERY_MS: Final = 30 * SECOND
REDELIVERY_MS: Final = 5 * SECOND
REDELIVERY_MAX_MS: Final = 60 * SECOND
REPLAY_LIMIT: Final = 32
TIMELY_GATES: Final = frozenset({"freshness", "unreachable", "refused"})

_PROBE_FACTS: Final = (ProbeTopologyDeclared, ProbeObservedFirst, ProbeResult, ProbeFailureFirst)
_NOT_READY: Final = Answer(status=Status.REFUSED, retry_after_ms=2 * SECOND)

Key = tuple[HostName, RolloutId, DispatchKind]


@attrs.define(kw_only=True, eq=False)
class Database:
    """What is on the control plane's disk. Rows are frozen, so a copy of the tables is a backup."""

    rollouts: dict[RolloutId, Rollout] = attrs.field(factory=dict)
    mirrors: dict[tuple[RolloutId, HostName], Mirror] = attrs.field(factory=dict)
    queued: dict[Key, QueuedDispatch] = attrs.field(factory=dict)
    quarantine: dict[tuple[str, HostName], Quarantined] = attrs.field(factory=dict)
    log: dict[tuple[HostName, RolloutId, int], tuple[Fact, Status]] = attrs.field(factory=dict)
    acknowledged: dict[HostName, Mirror] = attrs.field(factory=dict)
    mark: int = -1
    """When the newest fleet that was ever in force here was signed."""
    adopted_at: int = 0
    revocations: dict[HostName, int] = attrs.field(factory=dict)

    def copy(self) -> "Database":
        """A backup."""
        return Database(
            rollouts=dict(self.rollouts),
            mirrors=dict(self.mirrors),
            queued=dict(self.queued),
            quarantine=dict(self.quarantine),
            log=dict(self.log),
            acknowledged=dict(self.acknowledged),
            mark=self.mark,
            adopted_at=self.adopted_at,
            revocations=dict(self.revocations),
        )

    def put(self, mirror: Mirror) -> None:
        """Replace a mirror."""
        self.mirrors[mirror.rollout_id, mirror.hostname] = mirror
        acked = mirror.record.dispatch_acked_at
        before = self.acknowledged.get(mirror.hostname)
        known = -1 if before is None or before.record.dispatch_acked_at is None else before.record.dispatch_acked_at
        if (-1 if acked is None else acked) >= known:
            self.acknowledged[mirror.hostname] = mirror


@attrs.define(kw_only=True, eq=False)
class _Place:
    reply: Reply
    deadline: int
    host: int


@attrs.frozen(kw_only=True)
class _HandedOut:
    times: int
    again_at: int


class ControlPlane:
    """The process, up or down, with its database."""

    def __init__(self, world: Scheduler, ci: Ci) -> None:
        self.world, self.ci = world, ci
        self.dice = world.scenario.stream("control-plane")
        self.db = Database()
        self.plans = PlanJudge()
        self.up = False
        self.life = 0
        self._hosts = [world.scenario.name(host) for host in range(world.scenario.hosts)]
        self._clear()

    def _clear(self) -> None:
        self._shelf: Published | None = None
        self._seen: dict[HostName, int] = {}
        self._since = self.world.now
        self._places: dict[HostName, _Place] = {}
        self._handed: dict[Key, _HandedOut] = {}
        self._planning = False
        self._held: Plan | None = None
        self._asked_for = 0

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The process begins, and looks at what is published."""
        if self.up:
            return
        self._clear()
        self.up = True
        self.life += 1
        self._note("control plane starts", Weight.STORY)
        self._look_again(self.life)
        self._tick(self.life)

    def crash(self) -> None:
        """It dies. Every waiting request ends with its connection."""
        if not self.up:
            return
        self.up = False
        self.life += 1
        self._note("control plane dies", Weight.STORY)
        for place in self._places.values():
            place.reply(UNREACHABLE)

    def _note(self, text: str, weight: Weight = Weight.NOISE) -> None:
        if self.world.trace.on:
            self.world.trace.note(self.world.now, "cp", text, weight)

    def _wall(self) -> WallMs:
        return WallMs(EPOCH + self.world.now)

    # --- requests ---------------------------------------------------------------------------------------------------

    def receive(self, host: int, asked: Asked, reply: Reply) -> None:
        """One request."""
        if (refusal := self._turned_away(host)) is not None:
            return reply(refusal)
        name = self._hosts[host]
        self._presence(name)
        match asked.what:
            case "heartbeat":
                return reply(self._heartbeat(name, asked))
            case "dispatch":
                return self._poll(name, host, asked, reply)
            case "intent":
                return reply(self._intent(host, asked.rollout_id))
            case "fact":
                return reply(self._fact(name, asked))
            case "renew":
                return reply(Answer(status=Status.OK, wall_ms=self._wall()))
            case _:
                raise AssertionError(asked.what)

    def _turned_away(self, host: int) -> Answer | None:
        if self._shelf is None:
            return _NOT_READY
        if (busy := self.world.fleet_active(FaultKind.CP_BUSY)) is not None:
            return Answer(status=Status.REFUSED, retry_after_ms=busy.amount * SECOND)
        if self.world.active(FaultKind.HOST_REVOKED, host) is not None:
            return Answer(status=Status.REFUSED)
        return None

    def _presence(self, name: HostName) -> None:
        was_silent = self._is_silent(name)
        self._seen[name] = self.world.now
        if was_silent:
            self._poke()

    def _is_silent(self, name: HostName) -> bool:
        return self.world.now - self._seen.get(name, self._since) > SILENCE_MS

    def _heartbeat(self, name: HostName, asked: Asked) -> Answer:
        replay: list[tuple[RolloutId, int]] = []
        for rollout_id, last in asked.told.items():
            mirror = self.db.mirrors.get((rollout_id, name))
            have = 0 if mirror is None else mirror.record.last_seq
            if last > have and len(replay) < REPLAY_LIMIT:
                replay.append((rollout_id, have + 1))
        snapshots = () if asked.rollout_id is not None else tuple(self._snapshots(name))
        return Answer(status=Status.OK, snapshots=snapshots, replay=tuple(replay))

    def _snapshots(self, name: HostName) -> list[Snapshot]:
        shown = []
        for rollout in self.db.rollouts.values():
            mirror = self.db.mirrors.get((rollout.rollout_id, name))
            if mirror is None or mirror.record.phase not in OPEN or not mirror.record.target_closure:
                continue
            if rollout.superseded_at is not None and mirror.record.phase is Phase.PENDING:
                continue
            record = mirror.record
            shown.append(
                Snapshot(
                    rollout_id=record.rollout_id,
                    phase=record.phase,
                    target_closure=record.target_closure,
                    last_seq=record.last_seq,
                )
            )
        return shown

    def _intent(self, host: int, rollout_id: RolloutId | None) -> Answer:
        shelf = self._shelf
        assert shelf is not None
        served = self._shown(self._confused(shelf))
        if rollout_id is not None and not self.ci.ever_published(rollout_id):
            return Answer(status=Status.MISSING)
        # Of another rollout than the current one there is the manifest, anchored to a fleet that is not served: the
        # two do not fit together, which is what the host finds when it is shown another rollout's.
        shown = Shown(
            rollout_id=served.rollout_id,
            digest=served.digest,
            key=served.key,
            intent=self.ci.intent(served, host),
        )
        return Answer(status=Status.OK, shown=shown)

    def _confused(self, shelf: Published) -> Published:
        confused = self.world.fleet_active(FaultKind.CP_CONFUSED)
        return shelf if confused is None else self.ci.earlier(shelf, confused.amount)

    def _shown(self, served: Published) -> Published:
        """What it passes on in its place: an older signature, or one of a clock that is ahead."""
        active = self.world.fleet_active
        if (stale := active(FaultKind.CP_STALE)) is not None:
            self._asked_for += 1
            return self.ci.signed_before(served, stale.amount) if self._asked_for % 2 else served
        if (ahead := active(FaultKind.CI_CLOCK)) is not None:
            return self.ci.signed(served.release, served.signed_ms + ahead.amount * SECOND)
        return served

    # --- facts ------------------------------------------------------------------------------------------------------

    def _fact(self, name: HostName, asked: Asked) -> Answer:
        rollout_id, fact = asked.rollout_id, asked.fact
        assert rollout_id is not None
        assert fact is not None
        db, at = self.db, self._wall()
        rollout = db.rollouts.get(rollout_id) or mirrors.rollout_without_manifest(rollout_id, at)
        mirror = db.mirrors.get((rollout_id, name)) or mirrors.unplanned(rollout, name, at)
        if fact.seq <= mirror.record.last_seq:
            known = db.log.get((name, rollout_id, fact.seq))
            return Answer(status=known[1] if known is not None and known[0] == fact else Status.CONFLICT)
        if fact.seq > mirror.record.last_seq + 1:
            return Answer(status=Status.GAP, want_seq=mirror.record.last_seq + 1)
        legal = isinstance(mirrors.folded(mirror.record, fact), HostRollout)
        status = Status.OK if legal else Status.ILLEGAL
        db.log[name, rollout_id, fact.seq] = (fact, status)
        db.rollouts.setdefault(rollout_id, rollout)
        if not legal:
            self._note(f"{name} {rollout_id}: {fact!r} is not admitted while {mirror.record.phase}", Weight.STORY)
            db.put(attrs.evolve(mirrors.passed_over(mirror, fact.seq), changed_at=at))
            return Answer(status=status)
        mirror = mirrors.after(mirror, fact, at, verified=True)
        db.put(mirror)
        self._settle_queue(mirror, fact)
        if isinstance(fact, RollbackComplete) and mirror.record.phase is Phase.REVERTED:
            row = Quarantined(
                channel=mirror.channel,
                closure=mirror.record.target_closure,
                hostname=name,
                rollout_id=rollout_id,
                since=at,
            )
            db.quarantine[row.closure, name] = row
        if not isinstance(fact, _PROBE_FACTS):
            self._poke()
        return OK

    def _settle_queue(self, mirror: Mirror, fact: Fact) -> None:
        for kind in DispatchKind:
            if mirrors.answers(kind, mirror, fact):
                self._unqueue((mirror.hostname, mirror.rollout_id, kind))

    def _unqueue(self, key: Key) -> None:
        self.db.queued.pop(key, None)
        self._handed.pop(key, None)

    # --- the desk ---------------------------------------------------------------------------------------------------

    def _poll(self, name: HostName, host: int, asked: Asked, reply: Reply) -> None:
        if (before := self._places.pop(name, None)) is not None:
            before.reply(OK)
        place = _Place(reply=reply, deadline=self.world.now + asked.wait_ms, host=host)
        self._places[name] = place
        self.world.after(asked.wait_ms, self._poll_over, self.life, name, place)
        self._serve(name)

    def _poll_over(self, life: int, name: HostName, place: _Place) -> None:
        if life == self.life and self._places.get(name) is place:
            del self._places[name]
            place.reply(OK)

    def _serve(self, name: HostName) -> None:
        """Hand out what is visible; look again when the next thing will be."""
        place = self._places.get(name)
        if place is None:
            return
        waiting = [row for row in self.db.queued.values() if row.hostname == name]
        if not waiting:
            return
        now = self.world.now

        def precedence(row: QueuedDispatch) -> tuple[int, bool, int]:
            return max(self._visible_at(row), now), row.kind is not DispatchKind.ROLLBACK, row.enqueued_at

        first = min(waiting, key=precedence)
        if (visible_at := self._visible_at(first)) > now:
            if visible_at < place.deadline:
                self.world.after(visible_at - now, self._serve_again, self.life, name, place)
            return
        del self._places[name]
        place.reply(Answer(status=Status.OK, dispatch=self._misled(place.host, self._hand_out(first))))

    def _serve_again(self, life: int, name: HostName, place: _Place) -> None:
        if life == self.life and self._places.get(name) is place:
            self._plan_now()
            self._serve(name)

    def _visible_at(self, row: QueuedDispatch) -> int:
        handed = self._handed.get(_key(row))
        return -1 if handed is None else handed.again_at

    def _hand_out(self, row: QueuedDispatch) -> QueuedDispatch:
        key = _key(row)
        if row.sent_at is None:
            row = self.db.queued[key] = attrs.evolve(row, sent_at=self._wall())
            mirror = self.db.mirrors.get((row.rollout_id, row.hostname))
            if mirror is not None and mirror.dispatched_at is None and row.kind is DispatchKind.DISPATCH:
                self.db.put(attrs.evolve(mirror, dispatched_at=self._wall()))
        self.plans.handed_out(self.world.now, row, self.db.rollouts.get(row.rollout_id))
        times = self._handed[key].times + 1 if key in self._handed else 1
        pause = min(REDELIVERY_MS * 2 ** (times - 1), REDELIVERY_MAX_MS)
        self._handed[key] = _HandedOut(times=times, again_at=self.world.now + pause)
        self._note(f"{row.kind} of {row.rollout_id} handed to {row.hostname}", Weight.STORY)
        return row

    def _misled(self, host: int, row: QueuedDispatch) -> QueuedDispatch:
        """What a confused control plane sends in its place: a dispatch of long ago."""
        shelf = self._shelf
        if shelf is None or row.kind is not DispatchKind.DISPATCH:
            return row
        if self.world.fleet_active(FaultKind.CP_MIXED_UP) is not None:
            another = (host + 1) % self.world.scenario.hosts
            return attrs.evolve(row, target_closure=self.world.scenario.closure(shelf.release, another))
        served = self._confused(shelf)
        if served is shelf:
            return row
        target = self.world.scenario.closure(served.release, host)
        return attrs.evolve(row, rollout_id=served.rollout_id, target_closure=target)

    # --- releases ---------------------------------------------------------------------------------------------------

    def _look_again(self, life: int) -> None:
        if life == self.life:
            self.look()
            self.world.after(LOOK_EVERY_MS, self._look_again, life)

    def look(self) -> None:
        """Look at what is published, and bring what is newer into force."""
        found = self.ci.published
        if found is None or (self._shelf is not None and self._shelf.digest == found.digest):
            return
        if found.signed_ms < self.db.mark:
            return
        was_ready = self._shelf is not None
        self._shelf, self.db.mark, self.db.adopted_at = found, found.signed_ms, self.world.now
        rollout = self.db.rollouts.get(found.rollout_id)
        if rollout is None or rollout.manifest_digest is None:
            self._open(found)
        if not was_ready:
            self._note("control plane is ready", Weight.STORY)
        self._poke()

    def _open(self, found: Published) -> None:
        """`control_plane.openings` and `Book._on_rollout_opened`: the newest rollout of the channel takes over."""
        db, at = self.db, self._wall()
        same_as = self._done_already(found)
        for before in list(db.rollouts.values()):
            if before.is_current:
                db.rollouts[before.rollout_id] = attrs.evolve(before, superseded_at=at, superseded_by=found.rollout_id)
                for key in [key for key in db.queued if key[1] == before.rollout_id]:
                    self._unqueue(key)
        manifest = found.manifest
        db.rollouts[found.rollout_id] = Rollout(
            rollout_id=found.rollout_id,
            channel=CHANNEL,
            channel_ref=manifest.channel_ref,
            opened_at=at,
            manifest_digest=found.digest,
            fleet_digest=found.digest,
            same_as=same_as,
        )
        for target in manifest.host_set if same_as is None else ():
            known = db.mirrors.get((found.rollout_id, target.hostname))
            soak = soak_ms(found.fleet, CHANNEL, target.wave_index)
            db.put(
                _planned(found.rollout_id, target.hostname, target.wave_index, target.target_closure, soak, known, at)
            )

    def _done_already(self, found: Published) -> RolloutId | None:
        """`control_plane.openings`: the current rollout, if it has brought every host to the target it has here."""
        current = next((row for row in self.db.rollouts.values() if row.is_current), None)
        if current is None:
            return None
        base = current.same_as or current.rollout_id
        for target in found.manifest.host_set:
            mirror = self.db.mirrors.get((base, target.hostname))
            if mirror is None or mirror.record.phase is not Phase.CONVERGED:
                return None
            if mirror.record.target_closure != target.target_closure:
                return None
        return base

    # --- plans ------------------------------------------------------------------------------------------------------

    def _tick(self, life: int) -> None:
        if life != self.life:
            return
        if self._changes_with_time():
            self._plan_now()
        self.world.after(TICK_MS, self._tick, life)

    def _changes_with_time(self) -> bool:
        """Time alone may make the next plan another one; what else does pokes. The product just plans."""
        if any(self._is_silent(row.hostname) for row in self.db.queued.values()):
            return True
        return self._held is not None and any(held.gate in TIMELY_GATES for held in self._held.held)

    def poke(self) -> None:
        """What a plan depends on has changed."""
        self._poke()

    def _poke(self) -> None:
        if not self._planning:
            self._planning = True
            self.world.after(PLAN_PAUSE_MS, self._plan_soon, self.life)

    def _plan_soon(self, life: int) -> None:
        if life == self.life:
            self._plan_now()

    def _plan_now(self) -> None:
        self._planning = False
        shelf = self._shelf
        if shelf is None:
            return
        opened = self.db.rollouts.get(shelf.rollout_id)
        if (opened is not None and opened.same_as is not None) or not self._anybody_pending(shelf.rollout_id):
            self._held = None
            return
        given = self._given(shelf)
        for row in [row for row in self.db.queued.values() if row.kind is DispatchKind.DISPATCH]:
            if row.sent_at is not None and self._is_overtaken(given, row):
                self._unqueue(_key(row))
        out = frozenset(
            (row.rollout_id, row.hostname)
            for row in self.db.queued.values()
            if row.kind is DispatchKind.DISPATCH and row.sent_at is not None
        )
        given = attrs.evolve(given, outstanding=out)
        made = plan(given)
        self.plans.planned(self.world.now, given, made)
        if self.world.trace.on and (self._held is None or self._held.held != made.held):
            for held in made.held:
                self._note(f"{held.host} is held by {held.gate}: {held.why}")
        self._held = made
        self._queue([row for row in made.dispatches if not self._is_stopped(row.rollout_id)])

    def _anybody_pending(self, rollout_id: RolloutId) -> bool:
        """A plan could come to something. The product plans all the same, and finds nothing to do."""
        if self.db.queued:
            return True
        mirrors_of = (self.db.mirrors.get((rollout_id, name)) for name in self._hosts)
        return any(mirror is not None and mirror.record.phase is Phase.PENDING for mirror in mirrors_of)

    def _is_stopped(self, rollout_id: RolloutId) -> bool:
        rollout = self.db.rollouts.get(rollout_id)
        return rollout is not None and rollout.halted is not None

    def _given(self, shelf: Published) -> PlannerInput:
        db = self.db
        rows = [row for row in db.acknowledged.values() if row.record.dispatch_acked_at is not None]
        rows += [row for (rollout_id, _), row in db.mirrors.items() if rollout_id == shelf.rollout_id]
        # One that is confused has forgotten what hosts took back; they have not (S3).
        barred = [] if self.world.fleet_active(FaultKind.CP_CONFUSED) is not None else list(db.quarantine.values())
        refused = {}
        for row in rows:
            if row.rollout_id == shelf.rollout_id and row.refused_at is not None:
                renewed = EPOCH + db.adopted_at > row.refused_at
                refused[row.rollout_id, row.hostname] = WallMs(0) if renewed else row.refused_at
        return PlannerInput(
            now=self._wall(),
            fleet=shelf.fleet,
            fleet_digest=shelf.digest,
            manifests={CHANNEL: shelf.manifest},
            mirrors={(row.rollout_id, row.hostname): row.record for row in rows},
            superseded=frozenset(row.rollout_id for row in db.rollouts.values() if row.superseded_at is not None),
            quarantine=frozenset((row.channel, row.closure) for row in barred),
            host_quarantine=frozenset((row.hostname, row.closure) for row in barred),
            refused_at=refused,
            revoked=frozenset(
                name
                for host, name in enumerate(self._hosts)
                if self.world.active(FaultKind.HOST_REVOKED, host) is not None
            ),
            unreachable=frozenset(name for name in self._hosts if self._is_silent(name)),
        )

    def _is_overtaken(self, given: PlannerInput, row: QueuedDispatch) -> bool:
        if row.hostname in given.unreachable or row.hostname in given.revoked or self._is_stopped(row.rollout_id):
            return True
        own = self.db.mirrors.get((row.rollout_id, row.hostname))
        return any(
            mirror.record.phase in HALTING and (own is None or mirror.wave_index <= own.wave_index)
            for (rollout_id, _), mirror in self.db.mirrors.items()
            if rollout_id == row.rollout_id
        )

    def _queue(self, dispatches: list[Dispatch]) -> None:
        wanted = {(row.host, row.rollout_id, DispatchKind.DISPATCH): row for row in dispatches}
        for key, row in list(self.db.queued.items()):
            if row.kind is DispatchKind.DISPATCH and row.sent_at is None and wanted.pop(key, None) is None:
                self._unqueue(key)
        for key, planned in wanted.items():
            self.db.queued[key] = QueuedDispatch(
                hostname=planned.host,
                rollout_id=planned.rollout_id,
                kind=DispatchKind.DISPATCH,
                target_closure=planned.target_closure,
                soak_secs=-(-planned.soak_ms // 1000),
                enqueued_at=self._wall(),
            )
            self._serve(planned.host)

    # --- operators --------------------------------------------------------------------------------------------------

    def ask_back(self) -> None:
        """`nixfleet rollout rollback` of the current rollout."""
        rollout = next((row for row in self.db.rollouts.values() if row.is_current), None)
        if not self.up or rollout is None:
            return
        self.db.rollouts[rollout.rollout_id] = attrs.evolve(rollout, halted="an operator asked for a rollback")
        self._note(f"an operator asks {rollout.rollout_id} back", Weight.STORY)
        for name in self._hosts:
            mirror = self.db.mirrors.get((rollout.rollout_id, name))
            latest = self.db.acknowledged.get(name)
            if mirror is None or mirror.record.phase not in mirrors.ROLLBACK_PHASES:
                continue
            if latest is not None and latest.rollout_id != rollout.rollout_id:
                continue
            row = QueuedDispatch(
                hostname=name,
                rollout_id=rollout.rollout_id,
                kind=DispatchKind.ROLLBACK,
                target_closure=mirror.record.target_closure,
                soak_secs=0,
                enqueued_at=self._wall(),
                reason="an operator",
            )
            self.db.queued[_key(row)] = row
            self._serve(name)
        self._poke()

    def mirrors_of(self, name: HostName) -> tuple[HostRollout, ...]:
        """What is known of a host."""
        return tuple(row.record for (_, host), row in self.db.mirrors.items() if host == name)


def _key(row: QueuedDispatch) -> Key:
    return row.hostname, row.rollout_id, row.kind


def _planned(
    rollout_id: RolloutId, name: HostName, wave: int, target: Closure, soak: int, known: Mirror | None, at: WallMs
) -> Mirror:
    """`mirrors.planned`, which wants the entries of the log."""
    host = PlannedHost(hostname=name, wave_index=wave, target_closure=target, soak_ms=soak)
    opened = RolloutOpened(
        rollout_id=rollout_id,
        channel=CHANNEL,
        channel_ref=rollout_id.partition("@")[2],
        manifest_digest="",
        fleet_digest="",
        hosts=(host,),
    )
    return mirrors.planned(opened, host, known, at)
