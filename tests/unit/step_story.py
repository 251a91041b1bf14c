"""How the stories of the core are told: rows of an event and everything that `step` made of it, as short sentences.

    (dispatched(0),   ["> fetch edge@1"]),
    (shown(1),        ["1 DispatchAck from old", "> realise 1 new"]),

A fact begins with its number, an order with `>`, a refusal with `!`, and what made no sense with `?`. Times are
seconds since the host's boot. What the agent exchanges with the control plane day by day is told from the start on
that names it (`> heartbeat`). Other stories leave it out, so that every row is short; nobody answers it in them.
"""

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
    DispatchKind,
    DispatchReceived,
    Duty,
    Event,
    IntentVerified,
    ProbeObserved,
    RealiseFinished,
    Settings,
    SwitchFinished,
    SystemObserved,
    TargetPolicy,
    Tick,
)
from state_machine.facts import (
    ActivationCompleted,
    ActivationDeferred,
    ActivationFailed,
    Converged,
    DispatchAck,
    DispatchReject,
    DriftObserved,
    Failed,
    ProbeFailureFirst,
    ProbeObservedFirst,
    ProbeResult,
    ProbeTopologyDeclared,
    RollbackComplete,
    RollbackFailed,
    RolloutFact,
    TargetRefused,
)
from state_machine.invariants import Passage, check_run, check_step
from state_machine.state import GENESIS, Known, Session, State
from state_machine.step import step
from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import (
    Channel,
    Closure,
    HostName,
    Moment,
    OpId,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    RolloutId,
    WallMs,
)
from tests.property.agent_world import make_intent

HOST: Final = HostName("node7")
T0: Final = 1_780_000_000_000
EDGE: Final = Channel("edge")
R1: Final = RolloutId("edge@1")
R2: Final = RolloutId("edge@2")
OLD: Final = Closure("0" * 32 + "-nixos-old")
NEW: Final = Closure("1" * 32 + "-nixos-new")
NEWER: Final = Closure("2" * 32 + "-nixos-newer")
BY_HAND: Final = Closure("9" * 32 + "-nixos-by-hand")
SSH: Final = ProbeSpec(name="ssh", kind="tcp", mode=ProbeMode.ENFORCE)
DISK: Final = ProbeSpec(name="disk", kind="command", mode=ProbeMode.OBSERVE)
SETTINGS: Final = Settings(machine_id=HOST)
SOAK: Final = TargetPolicy(soak_ms=120_000)

Row = tuple[Event, list[str]]


# --- what happens ---------------------------------------------------------------------------------------------------


def at(seconds: float, *, clock_off_s: float = 0) -> Moment:
    """Both clocks that long after the boot; the wall clock may be off."""
    ms = int(seconds * 1000)
    return Moment(wall_ms=WallMs(T0 + ms + int(clock_off_s * 1000)), mono_ms=ms)


def view(running: Closure | None = OLD, profile: Closure | None = None, *, boot: int = 1) -> SystemView:
    """The host's links. The profile is what runs unless said otherwise."""
    return SystemView(boot_id=f"boot-{boot}", running=running, booted=running, profile=profile or running)


def booted(
    seconds: float,
    system: SystemView | None = None,
    *,
    probes: tuple[ProbeSpec, ...] = (SSH,),
    settings: Settings = SETTINGS,
) -> Booted:
    """The agent starts."""
    return Booted(at=at(seconds), settings=settings, system=system or view(), probes=probes)


def dispatched(
    seconds: float, rollout_id: str = R1, target: str = NEW, *, running: Closure | None = OLD, host: str = HOST
) -> DispatchReceived:
    """The control plane routes a rollout here."""
    return DispatchReceived(
        at=at(seconds), hostname=host, rollout_id=rollout_id, target_closure=target, running=running
    )


def wished_back(seconds: float, rollout_id: str = R1, reason: str = "it burns") -> DispatchReceived:
    """The control plane wishes a rollout back."""
    return DispatchReceived(
        at=at(seconds),
        hostname=HOST,
        rollout_id=rollout_id,
        target_closure="",
        running=None,
        kind=DispatchKind.ROLLBACK,
        reason=reason,
    )


def shown(
    seconds: float,
    rollout_id: RolloutId = R1,
    target: Closure | None = NEW,
    *,
    signed: float = -60,
    policy: TargetPolicy = SOAK,
    clock_off_s: float = 0,
    channel: Channel = EDGE,
    fleet: float | None = None,
) -> IntentVerified:
    """A manifest is fetched and proved; `signed` (and `fleet`, if that differs) is on the same axis as `seconds`."""
    intent = make_intent(
        rollout_id,
        target,
        signed_at=T0 + int(signed * 1000),
        fleet_signed_at=None if fleet is None else T0 + int(fleet * 1000),
        channel=channel,
        policy=policy,
    )
    return IntentVerified(at=at(seconds, clock_off_s=clock_off_s), intent=intent)


def realised(seconds: float, op: int = 1, *, ok: bool = True, untrusted: bool = False, detail: str = "") -> Event:
    """A realisation ends."""
    return RealiseFinished(at=at(seconds), op=OpId(op), ok=ok, untrusted=untrusted, detail=detail)


def switched(
    seconds: float,
    op: int = 2,
    system: SystemView | None = None,
    outcome: SwitchOutcome = SwitchOutcome.SWITCHED,
    *,
    code: int | None = 0,
    detail: str = "",
) -> Event:
    """A switch or a rollback ends."""
    component = "kernel" if outcome is SwitchOutcome.DEFERRED else ""
    return SwitchFinished(
        at=at(seconds),
        op=OpId(op),
        outcome=outcome,
        system=system or view(NEW),
        exit_code=code,
        component=component,
        detail=detail,
    )


def probed(seconds: float, status: str = "pass", name: str = "ssh", *, began: float | None = None) -> Event:
    """A probe's run ends."""
    began_ms = int(1000 * (seconds if began is None else began))
    return ProbeObserved(at=at(seconds), name=name, status=ProbeStatus(status), began_mono_ms=began_ms)


def observed(seconds: float, system: SystemView | None = None) -> Event:
    """Somebody looked at the host."""
    return SystemObserved(at=at(seconds), system=system or view(NEW))


def tick(seconds: float, *, clock_off_s: float = 0) -> Tick:
    """The deadline named by `next_wakeup`."""
    return Tick(at=at(seconds, clock_off_s=clock_off_s))


# --- how it is told -------------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Told:
    """Where a story ended."""

    state: State
    run: tuple[Passage, ...]
    exchanges: bool = False
    """Heartbeats, polls and deliveries are told too."""

    @property
    def known(self) -> Known:
        """The durable state."""
        return self.state.known

    def then(self, *rows: Row) -> "Told":
        """The story goes on."""
        return _tell(self, rows)

    def killed(self) -> "Told":
        """The process dies: what only this run knew is gone, and the journal gives back the rest."""
        known = GENESIS.known
        for passage in self.run:
            if passage.step.durable:
                known = step(State(known=known), passage.event).state.known
        assert known == self.known
        return attrs.evolve(self, state=State(known=known, session=Session()))


def tell(*rows: Row) -> Told:
    """Tell a story from an agent's first start, and hold it to every row and to all the promises."""
    return _tell(Told(state=GENESIS, run=()), rows)


def _tell(before: Told, rows: tuple[Row, ...]) -> Told:
    state, run = before.state, list(before.run)
    exchanges, expected, happened = before.exchanges, [], []
    for event, sentences in rows:
        exchanges = exchanges or (isinstance(event, Booted) and f"> {Duty.HEARTBEAT}" in sentences)
        taken = step(state, event)
        problems = check_step(state, event, taken)
        run.append(Passage(before=state, event=event, step=taken))
        title = f"{type(event).__name__} at {event.at.mono_ms / 1000:g} s"
        expected.append((title, sentences))
        told = [order for order in taken.actions if exchanges or not _is_everyday(order)]
        happened.append((title, [*map(_fact, taken.facts), *map(_order, told), *problems]))
        state = taken.state
    assert happened == expected
    assert check_run(run) == []
    return Told(state=state, run=tuple(run), exchanges=exchanges)


def _is_everyday(order: Action) -> bool:
    match order:
        case Perform(duty=duty):
            return duty is not Duty.RENEWAL
        case _:
            return isinstance(order, DeliverFacts)


def to_activating(*, policy: TargetPolicy = SOAK, probes: tuple[ProbeSpec, ...] = (SSH,)) -> Told:
    """A host that took `NEW` at 1 s and is realising it as order 1."""
    return tell(
        (booted(0, probes=probes), ["> probes"]),
        (dispatched(0), ["> fetch edge@1"]),
        (shown(1, policy=policy), ["1 DispatchAck from old", "> realise 1 new"]),
    )


def to_switching(*, policy: TargetPolicy = SOAK, probes: tuple[ProbeSpec, ...] = (SSH,)) -> Told:
    """A host that is switching to `NEW` since 5 s, as order 2."""
    return to_activating(policy=policy, probes=probes).then((realised(5), ["2 ActivationStarted", "> switch 2 new"]))


def to_soaking(*, policy: TargetPolicy = SOAK, probes: tuple[ProbeSpec, ...] = (SSH,)) -> Told:
    """A host that runs `NEW` since 10 s; its soak ends at 130 s."""
    gate = policy.max_failed_units is not None
    names = ", ".join(spec.name for spec in probes) + (", systemd-failed-units" if gate else "")
    return to_switching(policy=policy, probes=probes).then(
        (switched(10), ["3 ActivationCompleted", f"4 ProbeTopologyDeclared {names}".rstrip(), "> probes"]),
    )


def to_converged() -> Told:
    """A host that has converged on `NEW` at 130 s."""
    return to_soaking().then(
        (probed(11), ["5 ProbeObservedFirst ssh", "6 ProbeResult ssh pass"]),
        (tick(130), ["> observe"]),
        (observed(130), ["7 Converged"]),
    )


def _name(closure: str | None) -> str:
    return closure.rpartition("nixos-")[2] if closure else "nothing"


def _fact(born: RolloutFact) -> str:
    return f"{born.fact.seq} {type(born.fact).__name__} {_details(born)}".rstrip()


def _details(born: RolloutFact) -> str:
    match born.fact:
        case DispatchAck(current_closure_at_dispatch=closure):
            return f"from {_name(closure)}"
        case ActivationCompleted(exit_code=code):
            return f"({code})" if code else ""
        case ActivationDeferred(component=component):
            return component
        case ActivationFailed(exit_code=code, stderr_tail=tail):
            return f"({code}) {tail}".strip()
        case ProbeTopologyDeclared(probes=probes):
            return ", ".join(spec.name for spec in probes)
        case ProbeObservedFirst(probe_name=name) | ProbeFailureFirst(probe_name=name):
            return name
        case ProbeResult(probe_name=name, status=status):
            return f"{name} {status}"
        case Failed(sustained_duration_secs=seconds, failing_probes=probes, policy_applied=policy):
            return f"{', '.join(probes)} for {seconds} s: {policy}"
        case RollbackComplete(reverted_to_closure=closure):
            return f"to {_name(closure)}"
        case RollbackFailed(stderr_tail=tail):
            return tail
        case DispatchReject(reason=reason) | TargetRefused(reason=reason):
            return reason
        case DriftObserved(expected_closure=expected, observed_closure=running):
            return f"{_name(running)}, not {_name(expected)}"
        case Converged():
            return ""
        case _:
            return ""


def _order(action: Action) -> str:
    match action:
        case FetchIntent(rollout_id=rollout_id):
            return f"> fetch {rollout_id}"
        case Perform(duty=duty):
            return f"> {duty}"
        case DeliverFacts(rollout_id=rollout_id, from_seq=first, through_seq=last):
            return f"> deliver {rollout_id} {first}-{last}"
        case Realise(op=op, closure=closure):
            return f"> realise {op} {_name(closure)}"
        case Abandon(op=op):
            return f"> abandon {op}"
        case Switch(op=op, closure=closure, only_if_begun=only_if_begun):
            return f"> switch {op} {_name(closure)}{' if begun' if only_if_begun else ''}"
        case Rollback(op=op, closure=closure):
            return f"> roll back {op} {_name(closure)}"
        case RunHooks(op=op, moment=moment, closure=closure):
            return f"> hooks {op} {moment} {_name(closure)}"
        case Reboot(op=op, closure=closure):
            return f"> reboot {op} {_name(closure)}"
        case ReadCalendar():
            return "> calendar"
        case RestartProbes():
            return "> probes"
        case ObserveSystem():
            return "> observe"
        case Refuse(reason=reason):
            return f"! {reason}"
        case Unexpected(detail=detail):
            return f"? {detail}"
