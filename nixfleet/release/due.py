"""When what is published has to be signed again: half way to the end of its shortest freshness window.

So a timer may run often and change nothing most of the time, and one run that fails leaves time for many more.
"""

from typing import cast

from evidence.documents import decode
from evidence.trust import KeySlot
from nixfleet.release.published import proven
from nixfleet.release.staging import FLEET
from nixfleet.release.target import Target
from state_machine.intent import Fleet
from state_machine.values import WallMs
from wire.json_value import JsonObject

_MINUTE_MS = 60_000


def due_at(target: Target, slot: KeySlot, now_ms: WallMs) -> WallMs:
    """From when on less than half of the window is left. What is published must verify: whoever could change the time
    in it could put off every signature to come.

    Raises:
        UnprovenError: it does not verify.
        NothingPublishedError: there is nothing.
        BusyError, TargetError: as the names say.
    """
    with target.held():
        fleet = proven(target, FLEET, slot, now_ms)
    channels = decode(Fleet, cast(JsonObject, fleet.value)).channels.values()
    shortest = min((channel.freshness_window for channel in channels), default=0)
    return WallMs(fleet.signed_at + shortest * _MINUTE_MS // 2)
