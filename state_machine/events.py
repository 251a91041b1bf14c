"""Events: everything a worker can tell the reducer. Nothing else moves the state.

Each carries `at`, one reading of both clocks. Answers carry the `op` of the order they answer, so that a late one is
recognisable after a restart. `jitter` is a number in [0, 1) drawn by whoever reports a failure: `step` has no dice.
"""

import enum

import attrs

from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import (
    Basis,
    Channel,
    Closure,
    FailurePolicy,
    HostName,
    Moment,
    OpId,
    Phase,
    ProbeSpec,
    ProbeStatus,
    Reason,
    RebootPolicy,
    RolloutId,
    Source,
    SubResult,
    SwitchMethod,
    WallMs,
)


@attrs.frozen(kw_only=True)
class TargetPolicy:
    """How a target is to be judged: its channel's policy in the anchored fleet, or what the operator configured."""

    on_failure: FailurePolicy = FailurePolicy.ROLLBACK_AND_HALT
    soak_ms: int = 0
    sustained_failure_ms: int | None = None
    max_failed_units: int | None = None


@attrs.frozen(kw_only=True)
class Span:
    """From one instant until before another."""

    begins: WallMs
    ends: WallMs


@attrs.frozen(kw_only=True)
class Calendar:
    """When activations and reboots may begin, as instants: time zones are the business of whoever made it.

    None: always. Nothing is known of the time before `since`, nor from `through` on.
    """

    through: WallMs
    since: WallMs = WallMs(0)
    activation: tuple[Span, ...] | None = None
    reboot: tuple[Span, ...] | None = None


@attrs.frozen(kw_only=True)
class Settings:
    """What the operator configured, as far as decisions depend on it. Durations in seconds."""

    machine_id: HostName
    poll_interval_s: int = 60
    heartbeat_interval_s: int = 60
    long_poll_wait_s: int = 60
    sustained_failure_s: int = 60
    """Used when the rollout's policy names none."""
    freshness_cap_s: int | None = None
    """May narrow a channel's signed window, never widen it."""
    switch_method: SwitchMethod = SwitchMethod.SYSTEMD_RUN
    switch_timeout_s: int = 300
    switch_attempts: int = 3
    """How often a switch that power cuts interrupt is begun before it counts as failed."""
    rollback_attempts: int = 5
    renewal_fraction: float = 0.5
    """The certificate is renewed when less than this part of its life is left."""
    holds: str = ""
    """Why nothing new may begin in this run, such as a journal that cannot be used; empty: nothing is in the way."""
    source: Source = Source.FLEET
    retry_interval_s: int = 30
    """The first pause after a failed poll of a source without signatures."""
    offer_policy: TargetPolicy = TargetPolicy()
    """How targets of a source that names no policy are judged."""
    reboot: RebootPolicy = RebootPolicy.NEVER
    hooks: bool = False
    """Hooks of the operator's are asked before a switch and told afterwards."""
    hook_timeout_s: int = 60


@attrs.frozen(kw_only=True)
class VerifiedIntent:
    """One rollout as it concerns this host, from a manifest and fleet whose signatures verified.

    Everything but time has been checked: signatures under an active trust root, schema, identity, `rejectBefore`,
    and that `fleet_digest` is the hash the manifest anchors. Whether it is fresh is decided in `step`.
    """

    rollout_id: RolloutId
    channel: Channel
    signed_at: WallMs
    manifest_digest: str
    manifest_key_id: str
    fleet_digest: str
    fleet_signed_at: WallMs
    fleet_key_id: str
    freshness_window_s: int
    target: Closure | None
    """None: the manifest does not name this host."""
    wave_index: int = 0
    policy: TargetPolicy = TargetPolicy()
    basis: Basis = Basis.SIGNED_MANIFEST
    """Any other: nobody signed this, it stands for a `TargetOffered`, and `signed_at` is when that came."""
    offered_as: str = ""
    """What the source calls it, such as the id of a build."""


class DispatchKind(enum.StrEnum):
    """What a dispatch asks for; absent on the wire means `dispatch`."""

    DISPATCH = "dispatch"
    ROLLBACK = "rollback"


class Duty(enum.StrEnum):
    """The recurring exchanges of the agent. When each is due next is decided in `step`."""

    INTENT = "intent"
    DISPATCH = "dispatch"
    HEARTBEAT = "heartbeat"
    DELIVERY = "delivery"
    RENEWAL = "renewal"


@attrs.frozen(kw_only=True)
class Booted:
    """The agent started: what it is configured to do and what it finds on the host. The first event of every run."""

    at: Moment
    settings: Settings
    system: SystemView
    probes: tuple[ProbeSpec, ...] = ()
    calendar: Calendar | None = None
    """None: no windows are configured."""


@attrs.frozen(kw_only=True)
class Tick:
    """The instant named by `next_wakeup` has come."""

    at: Moment


@attrs.frozen(kw_only=True)
class IntentVerified:
    """A manifest with its fleet snapshot was fetched or read from the cache, and proved."""

    at: Moment
    intent: VerifiedIntent


@attrs.frozen(kw_only=True)
class IntentRefused:
    """Intent could not be had or did not prove. `rollout_id` None: it was the fleet itself, with no rollout in mind.

    `final` False means it could not be fetched at all, which may pass; `retry_after_ms` is what the answer asked for.
    """

    at: Moment
    rollout_id: RolloutId | None
    reason: Reason
    detail: str
    final: bool
    jitter: float = 0.5
    retry_after_ms: int | None = None


@attrs.frozen(kw_only=True)
class DispatchReceived:
    """The control plane routed a dispatch (or a rollback wish) here. Nothing in it is trusted.

    Texts are as received; `running` is what the worker saw running when it arrived.
    """

    at: Moment
    hostname: str
    rollout_id: str
    target_closure: str
    running: Closure | None
    soak_due_at: WallMs | None = None
    soak_s: int | None = None
    kind: DispatchKind = DispatchKind.DISPATCH
    reason: str = ""


@attrs.frozen(kw_only=True)
class TargetOffered:
    """A source without signatures says what this host is to run. `closure` None: nothing is wanted of it now.

    The text is as received. `offered_as` is what the source calls it, for people and auditors.
    """

    at: Moment
    basis: Basis
    closure: str | None
    offered_as: str = ""


@attrs.frozen(kw_only=True)
class CalendarRead:
    """Answers `ReadCalendar`: the windows of the days to come."""

    at: Moment
    calendar: Calendar


@attrs.frozen(kw_only=True)
class HooksFinished:
    """Answers `RunHooks(op)`. `veto` is why a switch may not begin now, empty if it may; `output` is what they said."""

    at: Moment
    op: OpId
    veto: str = ""
    output: str = ""
    jitter: float = 0.5


@attrs.frozen(kw_only=True)
class RebootDelayed:
    """Answers `Reboot(op)` when the host does not go down: somebody's session lock is in the way, or it failed."""

    at: Moment
    op: OpId
    locked: bool
    detail: str = ""
    jitter: float = 0.5


@attrs.frozen(kw_only=True)
class RealiseFinished:
    """Answers `Realise(op)`. `untrusted` means Nix would not accept the path's signature: trying again is no use."""

    at: Moment
    op: OpId
    ok: bool
    untrusted: bool = False
    detail: str = ""
    jitter: float = 0.5


@attrs.frozen(kw_only=True)
class SwitchFinished:
    """Answers `Switch(op)` and `Rollback(op)`."""

    at: Moment
    op: OpId
    outcome: SwitchOutcome
    system: SystemView
    exit_code: int | None = None
    component: str = ""
    detail: str = ""
    jitter: float = 0.5


@attrs.frozen(kw_only=True)
class SystemObserved:
    """A look at the host outside of any switch of ours."""

    at: Moment
    system: SystemView


@attrs.frozen(kw_only=True)
class ProbesDeclared:
    """The health-check configuration was read (again)."""

    at: Moment
    probes: tuple[ProbeSpec, ...]


@attrs.frozen(kw_only=True)
class ProbeObserved:
    """One run of a probe ended. `began_mono_ms` tells runs that started before an activation from those after."""

    at: Moment
    name: str
    status: ProbeStatus
    began_mono_ms: int
    reason: str | None = None
    sub_results: tuple[SubResult, ...] = ()


@attrs.frozen(kw_only=True)
class FactsDelivered:
    """The control plane answered that it holds every fact of the rollout up to and including `through_seq`."""

    at: Moment
    rollout_id: RolloutId
    through_seq: int


@attrs.frozen(kw_only=True)
class FactRefused:
    """The control plane will never take this fact. Recorded, and delivery goes on."""

    at: Moment
    rollout_id: RolloutId
    seq: int
    status: int
    reason: str


@attrs.frozen(kw_only=True)
class ReplayRequested:
    """The control plane lacks facts of the rollout from `from_seq` on."""

    at: Moment
    rollout_id: RolloutId
    from_seq: int


@attrs.frozen(kw_only=True)
class Snapshot:
    """What the control plane believes of one rollout on this host (protocol section 3.6)."""

    rollout_id: str
    phase: Phase
    target_closure: str
    last_seq: int
    soak_due_at: WallMs | None = None


@attrs.frozen(kw_only=True)
class SnapshotsReceived:
    """A heartbeat reply showed the control plane's view. Compared with ours; adopted only where we have none."""

    at: Moment
    snapshots: tuple[Snapshot, ...]


@attrs.frozen(kw_only=True)
class DutyFinished:
    """One exchange with the control plane ended. `retry_after_ms` is what its answer asked for, if it did."""

    at: Moment
    duty: Duty
    ok: bool
    retry_after_ms: int | None = None
    jitter: float = 0.5
    again_after_ms: int | None = None
    """After a success: when the server wants to be asked again, if it said so."""


@attrs.frozen(kw_only=True)
class CertificateLoaded:
    """The client certificate in use, by its validity. None: there is none yet, and the renewal duty is to enrol."""

    at: Moment
    validity: tuple[WallMs, WallMs] | None


@attrs.frozen(kw_only=True)
class QuarantineCleared:
    """An operator at the host lifts a quarantine. `closure` None: every one."""

    at: Moment
    closure: Closure | None
    by: str


@attrs.frozen(kw_only=True)
class Poked:
    """An operator asks for every exchange now (`SIGHUP`, `nixfleet-agent poke`)."""

    at: Moment


Event = (
    Booted
    | Tick
    | IntentVerified
    | IntentRefused
    | DispatchReceived
    | TargetOffered
    | CalendarRead
    | HooksFinished
    | RebootDelayed
    | RealiseFinished
    | SwitchFinished
    | SystemObserved
    | ProbesDeclared
    | ProbeObserved
    | FactsDelivered
    | FactRefused
    | ReplayRequested
    | SnapshotsReceived
    | DutyFinished
    | CertificateLoaded
    | QuarantineCleared
    | Poked
)

EVENT_KINDS: tuple[type[Event], ...] = (
    Booted,
    Tick,
    IntentVerified,
    IntentRefused,
    DispatchReceived,
    TargetOffered,
    CalendarRead,
    HooksFinished,
    RebootDelayed,
    RealiseFinished,
    SwitchFinished,
    SystemObserved,
    ProbesDeclared,
    ProbeObserved,
    FactsDelivered,
    FactRefused,
    ReplayRequested,
    SnapshotsReceived,
    DutyFinished,
    CertificateLoaded,
    QuarantineCleared,
    Poked,
)
