"""The agent's whole state: what its journal can rebuild (`Known`) and what only this run knows (`Session`).

`Known` is the fold of the journal and nothing else: no transition of it may read `Session`, or a replay would come
out differently. `Session` begins empty at every start; it holds the timetable of exchanges with the control plane.
Mappings are never changed in place, and nothing may depend on their order: a state read back from a checkpoint has
them sorted.
"""

from collections.abc import Mapping
from typing import Final

import attrs

from state_machine.events import Calendar, Duty, Settings, TargetPolicy, VerifiedIntent
from state_machine.evolution import evolve
from state_machine.lifecycle import HostRollout
from state_machine.system import SystemView
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
    SteadyMs,
    SubResult,
    WallMs,
)

GATE_PROBE: Final = ProbeSpec(name="systemd-failed-units", kind="systemd-failed-units", mode=ProbeMode.ENFORCE)
"""The probe that a policy's `healthGate.systemdFailedUnits` adds to a host's own."""


@attrs.frozen(kw_only=True)
class SteadyClock:
    """Running time that survives reboots: the monotonic clock, shifted at each boot to go on from where it was seen.

    Time the agent did not see (powered off) does not count, so no soak ends while the host is down.
    """

    boot_id: str = ""
    offset_ms: int = 0
    last_ms: SteadyMs = SteadyMs(0)

    def read(self, at: Moment) -> SteadyMs:
        """`at` on the axis of running time."""
        return SteadyMs(at.mono_ms + self.offset_ms)

    def booted(self, boot_id: str, at: Moment) -> "SteadyClock":
        """The clock for a run that found `boot_id`. Running time never goes back, whatever the monotonic clock says."""
        if boot_id == self.boot_id and self.read(at) >= self.last_ms:
            return self
        return evolve(self, boot_id=boot_id, offset_ms=self.last_ms - at.mono_ms)


@attrs.frozen(kw_only=True)
class SeenIntent:
    """A verified intent and when it was first accepted, by both clocks, so that its age cannot shrink.

    Of an offer that nobody signed: when its source last said it, as far as that is on record.
    """

    intent: VerifiedIntent
    seen_wall: WallMs
    seen_steady: SteadyMs
    withdrawn: bool = False
    """It was refused since, or is no longer offered: it has to prove itself, or be said, again before anything is begun
    on its account."""


@attrs.frozen(kw_only=True)
class HeldDispatch:
    """A dispatch or an offer that waits: for its manifest, or for the switch in flight to end.

    `adopted` is set when it stands for a rollout that only the control plane remembers: the phase it believes and the
    number of the last fact it holds. Such a rollout must prove itself like any other before it is gone on with.
    """

    rollout_id: RolloutId
    target: Closure
    soak_due_at: WallMs | None = None
    soak_ms: int | None = None
    adopted: Phase | None = None
    adopted_seq: int = 0


@attrs.frozen(kw_only=True, slots=False)
class Tracked:
    """One rollout on this host: its record, and what the agent alone needs to know about it."""

    number: int
    """The order in which rollouts came to this host."""
    record: HostRollout
    intent: VerifiedIntent | None = None
    prior: Closure | None = None
    """What to roll back to: what ran when the dispatch was acknowledged."""
    soak_ms: int = 0
    soak_from: SteadyMs | None = None
    oldest_seq: int = 1
    """The first fact that this host's journal holds: an adopted rollout's earlier ones went with the lost journal."""
    delivered_seq: int = 0
    refused_facts: int = 0
    rejected_at: SteadyMs | None = None
    superseded_by: RolloutId | None = None
    untouched: bool = False
    """It failed before the system was touched, and not through any fault of the target."""
    cleared: bool = False
    """An operator has lifted the quarantine that its failure put its target into."""

    @property
    def policy(self) -> TargetPolicy:
        """How this rollout is judged."""
        return self.intent.policy if self.intent is not None else TargetPolicy()


@attrs.frozen(kw_only=True)
class Forgotten:
    """What is left of a rollout that is no longer tracked: enough never to use a number of its facts twice (S7)."""

    number: int
    phase: Phase
    last_seq: int
    oldest_seq: int = 1


@attrs.frozen(kw_only=True)
class Realising:
    """The closure is being fetched (`retry_at` None) or will be tried again at `retry_at`."""

    op: OpId
    rollout_id: RolloutId
    closure: Closure
    due: SteadyMs
    """Past this the order counts as lost, and is given again: the worker's own deadline is well before."""
    failures: int = 0
    attempt: int = 1
    """Which try of the switch this prepares."""
    retry_at: SteadyMs | None = None
    opens_at: WallMs | None = None
    """It is in the store and waits for the activation window that opens then."""
    reason: Reason | None = None
    """Why the switch was not begun last time, with `why` for people; None: nothing was in the way."""
    why: str = ""
    begun: bool = False
    """A switch to it was cut off in the middle of this boot: it is not left half done until some window opens."""


@attrs.frozen(kw_only=True)
class Consulting:
    """The operator's hooks are asked whether the switch may begin."""

    op: OpId
    rollout_id: RolloutId
    closure: Closure
    due: SteadyMs
    """Past this the answer counts as lost."""
    failures: int = 0
    attempt: int = 1


@attrs.frozen(kw_only=True)
class Switching:
    """A switch to the closure has been ordered and not answered."""

    op: OpId
    rollout_id: RolloutId
    closure: Closure
    boot_id: str
    due: SteadyMs
    """Past this the order counts as lost: the worker's own deadline is well before."""
    attempt: int = 1


@attrs.frozen(kw_only=True)
class RollingBack:
    """A rollback to the closure has been ordered (`retry_at` None), or will be tried again at `retry_at`."""

    op: OpId
    rollout_id: RolloutId
    closure: Closure
    boot_id: str
    due: SteadyMs
    attempt: int = 1
    retry_at: SteadyMs | None = None


@attrs.frozen(kw_only=True)
class Rebooting:
    """A reboot into the deferred target has been ordered (`retry_at` None), or will be tried again at `retry_at`."""

    op: OpId
    rollout_id: RolloutId
    closure: Closure
    due: SteadyMs
    """Past this the order counts as lost."""
    attempt: int = 1
    retry_at: SteadyMs | None = None
    why: str = ""
    """Why the host is not going down yet, for people."""
    held_up: int = 0
    """How often in a row a session lock was in the way."""


Operation = Realising | Consulting | Switching | RollingBack | Rebooting


@attrs.frozen(kw_only=True)
class HookRun:
    """Hooks that are to be told of something that has happened, until they have been."""

    op: OpId
    moment: HookMoment
    rollout_id: RolloutId
    closure: Closure
    before: Closure | None
    basis: Basis


@attrs.frozen(kw_only=True)
class ProbeHealth:
    """What a probe says, and since when without a break."""

    status: ProbeStatus
    since: SteadyMs
    reason: str | None = None
    sub_results: tuple[SubResult, ...] = ()
    seen_in_this_run: bool = True


@attrs.frozen(kw_only=True)
class Quarantined:
    """A closure this host rolled back, and why. Only an operator lifts it."""

    rollout_id: RolloutId
    at: WallMs
    why: str


@attrs.frozen(kw_only=True)
class RefusalNote:
    """A refusal that is in the journal, so that the same one is not written again every minute."""

    at: SteadyMs
    detail: str


@attrs.frozen(kw_only=True, slots=False)
class Known:
    """Everything the journal knows."""

    runs: int = 0
    """How often the agent has been started."""
    settings: Settings = Settings(machine_id=HostName(""))
    clock: SteadyClock = SteadyClock()
    system: SystemView = SystemView(boot_id="")
    topology: tuple[ProbeSpec, ...] = ()
    probes: Mapping[str, ProbeHealth] = attrs.field(factory=dict)
    probes_since: SteadyMs = SteadyMs(0)
    """Results of probe runs that began earlier say nothing about the running system."""
    intents: Mapping[RolloutId, SeenIntent] = attrs.field(factory=dict)
    newest_signed: Mapping[Channel, WallMs] = attrs.field(factory=dict)
    newest_fleet: WallMs | None = None
    stale_through: Mapping[Channel, WallMs] = attrs.field(factory=dict)
    """Manifests of the channel signed at or before this were once found stale and stay so (S8)."""
    rollouts: Mapping[RolloutId, Tracked] = attrs.field(factory=dict)
    forgotten: Mapping[RolloutId, Forgotten] = attrs.field(factory=dict)
    next_number: int = 1
    active: RolloutId | None = None
    waiting: HeldDispatch | None = None
    operation: Operation | None = None
    next_op: int = 1
    quarantine: Mapping[Closure, Quarantined] = attrs.field(factory=dict)
    drift: Closure | None = None
    refusals: Mapping[str, RefusalNote] = attrs.field(factory=dict)
    calendar: Calendar | None = None
    hook_runs: tuple[HookRun, ...] = ()
    """What hooks have not been told yet, oldest first."""

    @property
    def current(self) -> Tracked | None:
        """The rollout that decides what this host should run."""
        return None if self.active is None else self.rollouts.get(self.active)

    @property
    def busy(self) -> bool:
        """A switch or rollback is running now (S6)."""
        match self.operation:
            case Switching():
                return True
            case RollingBack(retry_at=retry_at):
                return retry_at is None
            case _:
                return False

    @property
    def judges(self) -> tuple[ProbeSpec, ...]:
        """Every probe that judges the running system: the host's own, and the policy's gate in its own name."""
        current = self.current
        if current is None or current.intent is None or current.intent.policy.max_failed_units is None:
            return self.topology
        return (*(spec for spec in self.topology if spec.name != GATE_PROBE.name), GATE_PROBE)

    @property
    def newest_signature(self) -> WallMs | None:
        """The newest instant at which trusted keys are known to have signed: the clock cannot be honest before it."""
        marks = [*self.newest_signed.values(), *(() if self.newest_fleet is None else (self.newest_fleet,))]
        return max(marks, default=None)


@attrs.frozen(kw_only=True, slots=False)
class Session:
    """What only this run knows. Never read by a transition of `Known`."""

    seen: SteadyMs = SteadyMs(-1)
    seen_wall: WallMs = WallMs(-1)
    """The instants up to which a `Tick` has considered the levels of a soak."""
    due: Mapping[Duty, SteadyMs] = attrs.field(factory=dict)
    """When each exchange is due next; a duty that is absent is under way or has nothing to do."""
    started: Mapping[Duty, SteadyMs] = attrs.field(factory=dict)
    delivering: tuple[RolloutId, int] | None = None
    """The rollout and the first number of the facts that were handed out last."""
    stuck: int = 0
    """The number (`Tracked.number`) of a rollout whose facts got nowhere last time; others go first."""
    failures: Mapping[Duty, int] = attrs.field(factory=dict)
    last_contact: WallMs | None = None
    last_success: Mapping[Duty, WallMs] = attrs.field(factory=dict)
    certificate: tuple[WallMs, WallMs] | None = None
    """notBefore and notAfter of the client certificate in use."""
    refetch_at: SteadyMs | None = None
    """When to fetch the manifest of the held dispatch again."""
    refetch_failures: int = 0
    calendar_asked: SteadyMs | None = None
    """When `ReadCalendar` was ordered last."""


@attrs.frozen(kw_only=True)
class State:
    """All of it."""

    known: Known = Known()
    session: Session = Session()


GENESIS: Final = State()

TAKES_FACTS: Final = frozenset({Source.FLEET, Source.LEGACY})
"""Sources with somebody at the other end who is told what became of a target."""


def fact_backlog(known: Known) -> tuple[Tracked, ...]:
    """Rollouts with facts that the source wants told and does not have, oldest first."""
    if known.settings.source not in TAKES_FACTS:
        return ()
    waiting = [t for t in known.rollouts.values() if t.record.last_seq > t.delivered_seq and is_ours(known, t)]
    return tuple(sorted(waiting, key=lambda tracked: tracked.number)) if waiting else ()


def is_ours(known: Known, tracked: Tracked) -> bool:
    """The rollout came from the source this host follows now: what became of others is nobody's business there."""
    if tracked.intent is None:
        return known.settings.source is Source.FLEET
    return is_of_source(known.settings.source, tracked.intent)


def is_of_source(source: Source, intent: VerifiedIntent) -> bool:
    """The intent is of this source, and not left over from another that the host followed before."""
    if source is Source.FLEET:
        return intent.basis is Basis.SIGNED_MANIFEST
    return intent.basis is not Basis.SIGNED_MANIFEST and intent.channel == source.value
