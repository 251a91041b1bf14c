"""What else can happen in a story: offers of a source without signatures, windows, hooks and reboots.

Times are seconds since the host's boot, as in `step_story`; windows too.
"""

from typing import Final

import attrs

from state_machine.events import (
    Booted,
    Calendar,
    CalendarRead,
    Event,
    HooksFinished,
    IntentRefused,
    QuarantineCleared,
    RebootDelayed,
    Settings,
    Span,
    TargetOffered,
)
from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import Basis, Closure, OpId, Reason, RebootPolicy, RolloutId, Source, WallMs
from tests.unit.step_story import NEW, OLD, SETTINGS, SOAK, T0, Told, at, booted, realised, switched, tell, view

HOUR: Final = 3600
DAY: Final = 24 * HOUR
LEGACY: Final = attrs.evolve(SETTINGS, source=Source.LEGACY, offer_policy=SOAK)
GRADIENT: Final = attrs.evolve(SETTINGS, source=Source.GRADIENT, offer_policy=SOAK)
HOOKED: Final = attrs.evolve(LEGACY, hooks=True)
REBOOTS: Final = attrs.evolve(LEGACY, reboot=RebootPolicy.WHEN_REQUIRED)
L1: Final = RolloutId("legacy@00000001")
L2: Final = RolloutId("legacy@00000002")
G1: Final = RolloutId("gradient@00000001")

Windows = tuple[tuple[float, float], ...]


def offered(
    seconds: float, closure: str | None = NEW, *, basis: Basis = Basis.MUTUAL_TLS, clock_off_s: float = 0
) -> TargetOffered:
    """The source names a closure, or nothing."""
    return TargetOffered(at=at(seconds, clock_off_s=clock_off_s), basis=basis, closure=closure, offered_as="build-1")


def no_answer(seconds: float, reason: Reason = Reason.NOT_BUILT) -> IntentRefused:
    """The source has no build to offer at the moment."""
    return IntentRefused(at=at(seconds), rollout_id=None, reason=reason, detail="evaluating", final=True)


def cleared(seconds: float, closure: Closure | None = NEW) -> QuarantineCleared:
    """An operator lifts a quarantine."""
    return QuarantineCleared(at=at(seconds), closure=closure, by="root")


def starts(
    seconds: float,
    settings: Settings = LEGACY,
    system: SystemView | None = None,
    *,
    calendar: Calendar | None = None,
    clock_off_s: float = 0,
) -> Booted:
    """The agent starts."""
    booting = booted(seconds, system, settings=settings)
    return attrs.evolve(booting, at=at(seconds, clock_off_s=clock_off_s), calendar=calendar)


def calendar(
    *, activation: Windows | None = None, reboot: Windows | None = None, since: float = 0, days: float = 35
) -> Calendar:
    """The windows that are known."""
    return Calendar(
        since=WallMs(T0 + int(since * 1000)),
        through=WallMs(T0 + int((since + days * DAY) * 1000)),
        activation=None if activation is None else _spans(activation),
        reboot=None if reboot is None else _spans(reboot),
    )


def _spans(windows: Windows) -> tuple[Span, ...]:
    return tuple(
        Span(begins=WallMs(T0 + int(begins * 1000)), ends=WallMs(T0 + int(ends * 1000))) for begins, ends in windows
    )


def calendar_read(seconds: float, known: Calendar, *, clock_off_s: float = 0) -> CalendarRead:
    """Somebody has worked the windows out anew."""
    return CalendarRead(at=at(seconds, clock_off_s=clock_off_s), calendar=known)


def hooks_said(seconds: float, op: int, veto: str = "") -> Event:
    """The hooks are through."""
    return HooksFinished(at=at(seconds), op=OpId(op), veto=veto, output="a-backup: ok")


def stays_up(seconds: float, op: int, *, locked: bool = False) -> RebootDelayed:
    """The host was asked to reboot and does not."""
    why = "/run/backup is there" if locked else "inhibited by a shutdown lock"
    return RebootDelayed(at=at(seconds), op=OpId(op), locked=locked, detail=why)


def to_offered(settings: Settings = LEGACY, known: Calendar | None = None) -> Told:
    """A host that was offered `NEW` at 1 s and is realising it as order 1."""
    return tell(
        (starts(0, settings, calendar=known), ["> probes"]),
        (offered(1), ["1 DispatchAck from old", "> realise 1 new"]),
    )


def to_soaking(settings: Settings = LEGACY) -> Told:
    """A host that runs the offered `NEW` since 10 s; its soak ends at 130 s."""
    return to_offered(settings).then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(10), ["3 ActivationCompleted", "4 ProbeTopologyDeclared ssh", "> probes"]),
    )


def to_deferred(settings: Settings = REBOOTS, known: Calendar | None = None, *, then: list[str] | None = None) -> Told:
    """A host for which the offered `NEW` waits since 10 s for a reboot; `then` is what follows at once."""
    return to_offered(settings, known).then(
        (realised(5), ["2 ActivationStarted", "> switch 2 new"]),
        (switched(10, 2, WAITS, SwitchOutcome.DEFERRED), ["3 ActivationDeferred kernel", *(then or [])]),
    )


WAITS: Final = view(OLD, profile=NEW)
"""What the links of a deferred host show."""
