"""Plan whenever something changed that a plan depends on, and let what it says have happened.

What is decided here is only what the pure planner cannot know: which dispatches are already in a host's hands. One
that is queued and was never handed out is planned anew each time, and withdrawn when the gates no longer let it
through; one that was handed out counts as on its way until the host answers, unless its rollout stops meanwhile.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Final

import attrs
import trio

from control_plane.entries import (
    DispatchQueued,
    DispatchWithdrawn,
    Entry,
    FactAccepted,
    HostsHeld,
    QuarantineLifted,
    RollbackAsked,
    RolloutOpened,
    WaveBegan,
)
from control_plane.errors import StoreUnavailableError
from control_plane.ledger import Ledger
from control_plane.presence import Presence
from control_plane.rows import Artifact, Change, Drop, Host, Mirror, Put, Quarantined, QueuedDispatch, Rollout
from control_plane.shelf import Shelf
from state_machine.events import DispatchKind
from state_machine.freshness import age_verdict
from state_machine.intent import Manifest
from state_machine.lifecycle import HostRollout
from state_machine.planner import Dispatch, Held, Plan, plan
from state_machine.values import Channel, HostName, Phase, RolloutId, WallMs
from state_machine.world import HALTING, PlannerInput

LOG: Final = logging.getLogger(__name__)

TICK_S: Final = 15.0
"""For what changes with time alone: windows that end, hosts that fall silent, refusals that are asked again."""

PAUSE_S: Final = 0.01
SHARE: Final = 2
"""Plan at most every `SHARE` times as long as a plan takes: requests come first."""

OPERATOR_GATE: Final = "halted"


class PlannerLoop:
    """Runs the planner over the book and the shelf."""

    def __init__(self, *, ledger: Ledger, shelf: Shelf, freshness_window_s: int) -> None:
        self._ledger, self._shelf = ledger, shelf
        self._window_ms = freshness_window_s * 1000
        self.presence = Presence(on_return=self._plan_soon)
        self._poke = trio.Event()
        self._dirty = True
        self._stricter = True
        """Something has happened since the plan was made that may hold somebody back whom it lets through."""
        self._plan: Plan = Plan(dispatches=(), held=(), rollouts=())
        self.last_tick_at: WallMs | None = None
        self.blocked: Counter[str] = Counter()
        self._held: dict[tuple[RolloutId, HostName], Held] = {}
        ledger.subscribe(self._on_change)

    async def run(self) -> None:
        """Plan for ever."""
        await self._shelf.ready.wait()
        while True:
            with trio.move_on_after(TICK_S):
                await self._poke.wait()
            self._poke = trio.Event()
            began = trio.current_time()
            try:
                self.plan_now()
            except StoreUnavailableError as error:
                LOG.warning("not planned: %s", error)
            await trio.sleep(max(PAUSE_S, SHARE * (trio.current_time() - began)))

    def poke(self) -> None:
        """Plan soon, and before anything is handed out: something a plan depends on has changed."""
        self._stricter = True
        self._plan_soon()

    def _plan_soon(self) -> None:
        self._dirty = True
        self._poke.set()

    @property
    def last_plan(self) -> Plan:
        """The plan as it was made last."""
        return self._plan

    def settle(self) -> None:
        """Bring the plan up to date, if what has happened may hold somebody back.

        What only lets more hosts through, as most facts of a rollout that goes well, waits for the next plan: were it
        made anew for each dispatch that is handed out meanwhile, a large fleet would do little else.
        """
        if self._stricter:
            self.current()

    def current(self) -> Plan:
        """The plan as of now, for whoever asks how things stand."""
        if self._dirty and self._shelf.is_ready and self._ledger.failure is None:
            self.plan_now()
        return self._plan

    def given(self) -> PlannerInput | None:
        """What the planner is given now; None while there is no fleet to plan for."""
        held = self._shelf.fleet
        if held is None:
            return None
        book, now = self._ledger.book, self._ledger.now()
        manifests = dict(self._plannable(now))
        return PlannerInput(
            now=now,
            fleet=held.value,
            fleet_digest=held.proven.digest,
            manifests=manifests,
            mirrors=self._records(manifests),
            outstanding=frozenset((row.rollout_id, row.hostname) for row in self._queued() if row.sent_at is not None),
            superseded=frozenset(row.rollout_id for row in book.all(Rollout) if row.superseded_at is not None),
            quarantine=frozenset((row.channel, row.closure) for row in book.all(Quarantined)),
            host_quarantine=frozenset((row.hostname, row.closure) for row in book.all(Quarantined)),
            refused_at=dict(self._refusals(manifests)),
            revoked=frozenset(self._revoked()),
            unreachable=frozenset(host for host in held.value.hosts if self.presence.is_silent(host)),
        )

    def plan_now(self) -> None:
        """Plan, and record what follows.

        Raises:
            StoreUnavailableError: it cannot be recorded.
        """
        given = self.given()
        self._dirty, self._stricter, self.last_tick_at = False, False, self._ledger.now()
        if given is None:
            return
        for queued, why in list(self._overtaken(given)):
            self._withdraw(queued, why)
        made = self._without_halted(plan(attrs.evolve(given, outstanding=self._still_out(given))))
        self._plan = made
        self._note_waves(made)
        self._note_gates(made)
        self._queue(made)

    # What the planner is given

    def _plannable(self, now: WallMs) -> Iterator[tuple[Channel, Manifest]]:
        """The manifests in force, but for rollouts that have nothing to do; none while the fleet itself is too old."""
        fleet = self._shelf.fleet
        if fleet is None or age_verdict(fleet.proven.signed_at, now, self._window_ms) is not None:
            return
        for channel, held in self._shelf.manifests.items():
            rollout = self._ledger.book.get(Rollout, held.value.rollout_id)
            if rollout is not None and rollout.same_as is None:
                yield channel, held.value

    def _records(self, manifests: dict[Channel, Manifest]) -> dict[tuple[RolloutId, HostName], HostRollout]:
        """The current rollouts, and of each host the record it is in: nothing else bears on a plan."""
        book = self._ledger.book
        rows = [row for row in book.last_acknowledged() if row.record.dispatch_acked_at is not None]
        for manifest in manifests.values():
            rows.extend(book.mirrors_of(manifest.rollout_id).values())
        return {(row.rollout_id, row.hostname): row.record for row in rows}

    def _refusals(self, manifests: dict[Channel, Manifest]) -> Iterator[tuple[tuple[RolloutId, HostName], WallMs]]:
        book = self._ledger.book
        for channel, manifest in manifests.items():
            artifact = book.get(Artifact, "rollout", channel)
            for row in book.mirrors_of(manifest.rollout_id).values():
                if row.refused_at is not None:
                    # What it refused was signed anew since: ask again at once.
                    renewed = artifact is not None and artifact.adopted_at > row.refused_at
                    yield (row.rollout_id, row.hostname), WallMs(0) if renewed else row.refused_at

    def _revoked(self) -> Iterator[HostName]:
        """Hosts whose newest certificate, as far as it was seen here, began before their revocation."""
        if self._shelf.revocations is None:
            return
        for entry in self._shelf.revocations.value.revocations:
            host = self._ledger.book.get(Host, entry.hostname)
            issued = 0 if host is None else host.certificate_not_before or 0
            if max(issued, self.presence.certificate_from(entry.hostname)) < entry.not_before:
                yield entry.hostname

    # What follows from a plan

    def _queued(self) -> list[QueuedDispatch]:
        return [row for row in self._ledger.book.all(QueuedDispatch) if row.kind is DispatchKind.DISPATCH]

    def _still_out(self, given: PlannerInput) -> frozenset[tuple[RolloutId, HostName]]:
        queued = {(row.rollout_id, row.hostname) for row in self._queued()}
        return given.outstanding & queued

    def _overtaken(self, given: PlannerInput) -> Iterator[tuple[QueuedDispatch, str]]:
        """Dispatches in a host's hands, unanswered, that are to be taken back."""
        for row in self._queued():
            if row.sent_at is None:
                continue
            if row.hostname in given.unreachable:
                yield row, "the host has fallen silent"
            elif row.hostname in given.revoked:
                yield row, "the host's certificate is revoked"
            elif (halted := self._halted(row)) is not None:
                yield row, halted

    def _halted(self, queued: QueuedDispatch) -> str | None:
        book = self._ledger.book
        rollout, own = book.get(Rollout, queued.rollout_id), book.get(Mirror, queued.rollout_id, queued.hostname)
        if rollout is not None and rollout.halted is not None:
            return rollout.halted
        for mirror in book.mirrors_of(queued.rollout_id).values():
            if mirror.record.phase in HALTING and (own is None or mirror.wave_index <= own.wave_index):
                return f"{mirror.hostname} is {mirror.record.phase}"
        return None

    def _without_halted(self, made: Plan) -> Plan:
        """The plan without hosts of rollouts that an operator has stopped."""
        held, dispatches = list(made.held), []
        for dispatch in made.dispatches:
            rollout = self._ledger.book.get(Rollout, dispatch.rollout_id)
            if rollout is None or rollout.halted is None:
                dispatches.append(dispatch)
            else:
                why = rollout.halted
                held.append(Held(host=dispatch.host, rollout_id=dispatch.rollout_id, gate=OPERATOR_GATE, why=why))
        return attrs.evolve(made, dispatches=tuple(dispatches), held=tuple(held))

    def _queue(self, made: Plan) -> None:
        wanted = {(dispatch.rollout_id, dispatch.host): dispatch for dispatch in made.dispatches}
        for row in self._queued():
            if row.sent_at is None and wanted.pop((row.rollout_id, row.hostname), None) is None:
                held = self._held.get((row.rollout_id, row.hostname))
                self._withdraw(row, "it is no longer planned" if held is None else f"{held.gate}: {held.why}")
        for dispatch in wanted.values():
            self._ledger.record(_queued_as(dispatch))

    def _withdraw(self, queued: QueuedDispatch, why: str) -> None:
        self._ledger.record(
            DispatchWithdrawn(hostname=queued.hostname, rollout_id=queued.rollout_id, kind=queued.kind, why=why)
        )

    def _note_waves(self, made: Plan) -> None:
        for summary in made.rollouts:
            rollout = self._ledger.book.get(Rollout, summary.rollout_id)
            if summary.current_wave is None or rollout is None or rollout.current_wave == summary.current_wave:
                continue
            self._ledger.record(WaveBegan(rollout_id=summary.rollout_id, wave_index=summary.current_wave))

    def _note_gates(self, made: Plan) -> None:
        """Record which gate holds which hosts, when that has changed."""
        before, self._held = self._held, {(held.rollout_id, held.host): held for held in made.held}
        changed: dict[tuple[RolloutId, str], list[Held]] = {}
        for held in made.held:
            known = before.get((held.rollout_id, held.host))
            if known is None or known.gate != held.gate:
                changed.setdefault((held.rollout_id, held.gate), []).append(held)
        for (rollout_id, gate), hosts in changed.items():
            self.blocked[gate] += len(hosts)
            names = tuple(held.host for held in hosts)
            self._ledger.record(HostsHeld(rollout_id=rollout_id, gate=gate, hosts=names, why=hosts[0].why))

    def _on_change(self, entry: Entry, changes: list[Change]) -> None:
        match entry:
            # Results of probes change no phase, and there are many of them.
            case FactAccepted() if '"kind":"Probe' in entry.event:
                pass
            case FactAccepted() if _holds_nobody_back(changes):
                self._plan_soon()
            case FactAccepted():
                self.poke()
            case RolloutOpened() | QuarantineLifted() | RollbackAsked():
                self.poke()
            case _:
                pass


def _holds_nobody_back(changes: list[Change]) -> bool:
    """True when the fact behind these changes can only let more hosts through: reckoned with before, or good news."""
    answered = any(isinstance(change, Drop) and change.row_type is QueuedDispatch for change in changes)
    for change in changes:
        match change:
            case Put(row=Mirror(record=HostRollout(phase=Phase.ACTIVATING) as record)):
                # A host that was sent for counts as in flight already; one that comes unbidden does not.
                return answered or record.activation_started_at is not None
            case Put(row=Mirror(record=HostRollout(phase=Phase.SOAKING) as record)):
                return record.deferred_component is None  # one that waited for its reboot was not in flight
            case Put(row=Mirror(record=record)):
                return record.phase is Phase.CONVERGED
            case _:
                pass
    return False


def _queued_as(dispatch: Dispatch) -> DispatchQueued:
    return DispatchQueued(
        hostname=dispatch.host,
        rollout_id=dispatch.rollout_id,
        kind=DispatchKind.DISPATCH,
        target_closure=dispatch.target_closure,
        soak_secs=-(-dispatch.soak_ms // 1000),
    )
