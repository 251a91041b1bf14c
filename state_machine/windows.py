"""When something may begin: the operator's windows for activations and for reboots.

Windows come as instants of the host's wall clock, worked out by somebody who knows time zones, for some weeks at a
time. What is not known yet counts as closed, and more is asked for in good time. A rollback never waits.
"""

from collections.abc import Callable
from typing import Final

from state_machine.actions import ReadCalendar
from state_machine.events import Calendar, CalendarRead, Span
from state_machine.state import Known, Tracked, is_of_source
from state_machine.turn import Turn
from state_machine.values import CLOCK_SLACK_MS, Phase, RebootPolicy, SteadyMs, WallMs

AHEAD_MS: Final = 10 * 86_400_000
"""More is asked for when less than this is known of the time to come: longer than a week, so the next window shows."""
LOST_MS: Final = 300_000
"""How long to wait for an answer, and how soon to look again where nothing is known."""

Kind = Callable[[Calendar], tuple[Span, ...] | None]


def activation(calendar: Calendar) -> tuple[Span, ...] | None:
    """When switches forward may begin."""
    return calendar.activation


def reboot(calendar: Calendar) -> tuple[Span, ...] | None:
    """When reboots may begin."""
    return calendar.reboot


def opens_at(calendar: Calendar | None, kind: Kind, wall: WallMs) -> WallMs | None:
    """`wall` itself inside a window or where there are none, else when the next one begins; None: not known yet."""
    spans = None if calendar is None else kind(calendar)
    if spans is None:
        return wall
    return next((max(wall, span.begins) for span in spans if wall < span.ends), None)


def waits_for_reboot(known: Known) -> Tracked | None:
    """The rollout whose target the agent may reboot for, if there is one.

    The next boot must lead there, and whoever wanted the target must still want it: an offer is said anew in every run.
    """
    current = known.current
    if known.settings.reboot is RebootPolicy.NEVER or current is None or current.record.phase is not Phase.DEFERRED:
        return None
    seen = known.intents.get(current.record.rollout_id)
    wanted = seen is not None and not seen.withdrawn and is_of_source(known.settings.source, seen.intent)
    leads_there = known.system.profile == current.record.target_closure
    return current if wanted and leads_there and not known.settings.holds else None


def reboot_opens_at(known: Known, wall: WallMs) -> WallMs | None:
    """When the next reboot may begin; None: not known yet."""
    return opens_at(known.calendar, reboot, wall)


def known_through(turn: Turn) -> WallMs:
    """From when on somebody has to look again, where nothing is known of the next window."""
    calendar, soon = turn.known.calendar, WallMs(turn.wall + LOST_MS)
    return soon if calendar is None else max(calendar.through, soon)


def on_calendar_read(turn: Turn, event: CalendarRead) -> None:
    """The windows of the days to come. What waits for one looks for its place in them again."""
    turn.set(calendar=event.calendar)


def order_calendar(turn: Turn) -> None:
    """Ask for the windows of the days to come, before those that are known run out, and not too often."""
    asked = turn.session.calendar_asked
    if wants_calendar(turn.known, turn.wall) and (asked is None or turn.now - asked >= LOST_MS):
        turn.set_session(calendar_asked=turn.now)
        turn.order(ReadCalendar())


def wants_calendar(known: Known, wall: WallMs) -> bool:
    """Less than it takes is known of the time to come; or the clock was ahead when it was worked out."""
    calendar = _with_windows(known)
    return calendar is not None and (wall < calendar.since - CLOCK_SLACK_MS or wall > calendar.through - AHEAD_MS)


def next_calendar_ms(known: Known, wall: WallMs, now: SteadyMs, asked: SteadyMs | None) -> int | None:
    """Milliseconds until `order_calendar` has something to do; None: never."""
    calendar = _with_windows(known)
    if calendar is None:
        return None
    wanted_in = 0 if wants_calendar(known, wall) else calendar.through - AHEAD_MS - wall + 1
    return wanted_in if asked is None else max(wanted_in, asked + LOST_MS - now)


def _with_windows(known: Known) -> Calendar | None:
    calendar = known.calendar
    return calendar if calendar is not None and (calendar.activation, calendar.reboot) != (None, None) else None
