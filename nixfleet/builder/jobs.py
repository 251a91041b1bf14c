"""What a builder does about a request, by what is known of the job: begin, answer, wait. Pure.

Of all builders that share a server one has a job: whoever wrote it down last, and not long ago. A job outlives builders
that end while they build it, but not for ever: one that ends whoever builds it is given up.
"""

import enum
from collections import OrderedDict
from typing import Final, Generic, TypeVar

import attrs

from nixfleet.builder.messages import Phase, Progress, Request

ENDED_MAX: Final = 5
"""So many builders may end while they build a job; then nobody builds it until it is asked for anew."""
GONE_MAX: Final = 4096
"""How many requests that were taken back are remembered."""

Ticket = TypeVar("Ticket")


class Step(enum.Enum):
    """What is done about a request."""

    BEGIN = enum.auto()
    ANSWER = enum.auto()
    """What came of the job is an answer to it."""
    LATER = enum.auto()
    """Another builder has it."""
    GIVE_UP = enum.auto()


def next_step(request: Request, found: Progress | None, *, now: int, stale_ms: int) -> Step:
    """What to do about a request for a job that this builder does not have, when `found` was said of it last."""
    if found is None:
        return Step.BEGIN
    if found.phase.is_last:
        return Step.ANSWER if _answers(found, request) else Step.BEGIN
    if abs(now - found.at) <= stale_ms:
        return Step.LATER
    return Step.GIVE_UP if ended_over(found) >= ENDED_MAX else Step.BEGIN


def ended_over(found: Progress | None) -> int:
    """How many builders ended while they built a job that now begins once more."""
    if found is None or found.phase.is_last:
        return 0
    return found.ended + (0 if was_handed_back(found) else 1)


def claim(request: Request, found: Progress | None, *, builder: str, now: int) -> Progress:
    """What a builder writes down that begins a job."""
    return Progress(
        job=request.job,
        repository=request.repository,
        host=request.host,
        phase=Phase.QUEUED,
        builder=builder,
        at=now,
        ended=ended_over(found),
    )


def given_up(found: Progress, *, now: int) -> Progress:
    """The last word on a job that no builder survives."""
    why = f"given up: {ended_over(found)} builders ended while building it"
    return attrs.evolve(found, phase=Phase.FAILED, at=now, why=why, line="", ended=0)


def handed_back(latest: Progress) -> Progress:
    """What a builder writes down that is told to stop: anybody may begin at once, and it is nobody's fault."""
    return attrs.evolve(latest, phase=Phase.QUEUED, at=0, line="")


def was_handed_back(found: Progress) -> bool:
    """Its builder was told to stop."""
    return found.at == 0


def _answers(found: Progress, request: Request) -> bool:
    if found.phase is Phase.DONE and request.wants_a_commit:
        return True
    return found.phase is not Phase.CANCELLED and found.at >= request.asked_at


@attrs.frozen(kw_only=True)
class Left(Generic[Ticket]):
    """Somebody took their request back."""

    ticket: Ticket
    nobody_waits: bool


@attrs.define(eq=False)
class Waiting(Generic[Ticket]):
    """Who waits for which job of this builder, each with a ticket, and which requests were taken back."""

    _jobs: dict[str, dict[str, Ticket]] = attrs.field(factory=dict)
    _gone: "OrderedDict[str, None]" = attrs.field(factory=OrderedDict)

    def is_gone(self, asked_by: str) -> bool:
        """The request was taken back, maybe before it came."""
        return asked_by in self._gone

    def join(self, job: str, asked_by: str, ticket: Ticket) -> None:
        """One more waits for it; a ticket that they had before is replaced."""
        self._jobs.setdefault(job, {})[asked_by] = ticket

    def leave(self, job: str, asked_by: str) -> Left[Ticket] | None:
        """A request is taken back; None when it does not wait here, or not yet."""
        self._gone[asked_by] = None
        while len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)
        waiting = self._jobs.get(job, {})
        if asked_by not in waiting:
            return None
        return Left(ticket=waiting.pop(asked_by), nobody_waits=not waiting)

    def tickets(self, job: str) -> tuple[Ticket, ...]:
        """Of all who wait."""
        return tuple(self._jobs.get(job, {}).values())

    def close(self, job: str) -> dict[str, Ticket]:
        """The job is over: who waited, and it is forgotten."""
        return self._jobs.pop(job, {})
