"""Is signed intent acceptable in time? (protocol section 2.6, steps 9 and 10; promises S2 and S8)

A wall clock may lie in both directions, so age is never taken from it alone: intent is at least as old as it was when
first seen plus the running time since, and what was once found stale stays stale whatever the clock says later.
"""

from state_machine.events import VerifiedIntent
from state_machine.state import Known, SeenIntent
from state_machine.values import CLOCK_SLACK_MS, Basis, Reason, SteadyMs, WallMs


def age_verdict(signed_at: WallMs, now: WallMs, window_ms: int) -> Reason | None:
    """`STALE`, `FUTURE_DATED` or None, from one reading of the clock. For readers without memory, such as a CLI."""
    if now - signed_at > window_ms + CLOCK_SLACK_MS:
        return Reason.STALE
    if signed_at - now > CLOCK_SLACK_MS:
        return Reason.FUTURE_DATED
    return None


def window_ms(known: Known, seen: SeenIntent) -> int:
    """The channel's signed window, narrowed by the operator's cap if there is one; of an offer, how long it is good."""
    window_s = seen.intent.freshness_window_s
    cap_s = known.settings.freshness_cap_s if is_signed(seen.intent) else None
    return 1000 * (window_s if cap_s is None else min(window_s, cap_s))


def is_signed(intent: VerifiedIntent) -> bool:
    """A trusted key signed it, so its date says something. What is only offered has the date of this host's clock."""
    return intent.basis is Basis.SIGNED_MANIFEST


def is_marked_stale(known: Known, seen: SeenIntent) -> bool:
    """The intent was once found stale, or a newer one of its channel was (S8)."""
    return is_signed(seen.intent) and seen.intent.signed_at <= known.stale_through.get(seen.intent.channel, -1)


def freshness_left_ms(known: Known, seen: SeenIntent, wall: WallMs, steady: SteadyMs) -> int:
    """Time until the intent is stale; negative when it is."""
    return -1 if is_marked_stale(known, seen) else window_left_ms(known, seen, wall, steady)


def window_left_ms(known: Known, seen: SeenIntent, wall: WallMs, steady: SteadyMs) -> int:
    """Time until the window of intent that is not marked closes, by the clock that says it is older."""
    if not is_signed(seen.intent):
        return window_ms(known, seen) - (steady - seen.seen_steady)
    by_running_time = seen.seen_wall + steady - seen.seen_steady
    age_ms = max(wall, by_running_time) - seen.intent.signed_at
    return window_ms(known, seen) + CLOCK_SLACK_MS - age_ms


def is_superseded(known: Known, intent: VerifiedIntent) -> bool:
    """A newer manifest of the channel has been accepted (S2), or a newer fleet, which may put this host elsewhere."""
    newest_fleet = known.newest_fleet
    if newest_fleet is not None and intent.fleet_signed_at < newest_fleet:
        return True
    return intent.signed_at < known.newest_signed.get(intent.channel, intent.signed_at)


def clock_is_behind(known: Known, wall: WallMs) -> bool:
    """The clock reads earlier than an instant at which a trusted key has signed, by more than the slack (S8)."""
    newest = known.newest_signature
    return newest is not None and wall < newest - CLOCK_SLACK_MS


def time_verdict(known: Known, seen: SeenIntent, wall: WallMs, steady: SteadyMs) -> Reason | None:
    """Why the intent may not be acted on at this moment, or None.

    Future-dated comes first: intent from the future must not leave a mark that makes honest intent look old.
    """
    if not is_signed(seen.intent):  # its age counts from when it was offered, whatever the clock says
        return Reason.STALE if freshness_left_ms(known, seen, wall, steady) < 0 else None
    if clock_is_behind(known, wall):
        return Reason.CLOCK_BEHIND
    if seen.intent.signed_at - wall > CLOCK_SLACK_MS:
        return Reason.FUTURE_DATED
    if is_superseded(known, seen.intent):
        return Reason.SUPERSEDED
    if freshness_left_ms(known, seen, wall, steady) < 0:
        return Reason.STALE
    return None
