"""The jobs that one builder has: begun once however many ask, told to all of them, ended when nobody waits any more.

Whatever became of a job is written down, then told, then settled with who asked, in this order: a builder that ends in
between has it told twice, and never not at all.
"""

import contextlib
import enum
import logging
from collections.abc import Callable
from typing import Final, Protocol

import attrs
import trio

from messaging.errors import LinkError
from messaging.link import Link
from nixfleet.builder.boards import Board
from nixfleet.builder.gauges import Gauges
from nixfleet.builder.jobs import Step, Waiting, claim, given_up, handed_back, next_step
from nixfleet.builder.messages import Cancel, Phase, Progress, Request, Subjects, encode
from nixfleet.builder.settings import Settings
from nixfleet.clock import wall_now

BEATS: Final = 3
"""How often within its patience a builder says that it is still at a job."""
STALE: Final = 2
"""After so many times its patience a job of which nothing is heard is anybody's."""
LATER_S: Final = 5.0
RETRY_S: Final = 2.0
HAND_BACK_S: Final = 5.0
"""For handing a job back when it is told to stop: after it the server waits out its patience."""
log = logging.getLogger(__name__)


class Ticket(Protocol):
    """One request, where it is to be settled."""

    async def done(self) -> None:
        """It is answered."""
        ...

    async def again(self, after_s: float) -> None:
        """Somebody is to look at it again."""
        ...

    async def working(self) -> None:
        """It is being worked on."""
        ...


class Building(Protocol):
    """Whoever builds."""

    async def build(self, request: Request, tell: Callable[[Progress], None]) -> Progress:
        """Do a job to its end, telling how it goes; the last that was told."""
        ...


class End(enum.Enum):
    """Why a job ends before its time."""

    CANCELLED = "nobody waits for it"
    STOPPED = "the builder stops"
    LOST = "another builder has it"


@attrs.define(kw_only=True, eq=False)
class Job:
    """One that this builder has."""

    request: Request
    latest: Progress
    end: End | None = None
    in_line: bool = False
    """It waits for a free place, and nobody sees to it yet."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    news: trio.Event = attrs.field(factory=trio.Event)

    def hear(self, progress: Progress) -> None:
        """What is said of it."""
        self.latest = attrs.evolve(progress, ended=self.latest.ended)
        if not progress.phase.is_last:  # that is told when it is written down
            self.news.set()

    def stop(self, end: End) -> None:
        """End it."""
        self.end = self.end or end
        self.scope.cancel()


@attrs.define(kw_only=True, eq=False)
class Desk:
    """Takes requests and cancellations, and sees to the jobs."""

    settings: Settings
    link: Link
    board: Board
    works: Building
    gauges: Gauges
    waiting: Waiting[Ticket] = attrs.field(factory=Waiting)
    jobs: dict[str, Job] = attrs.field(factory=dict)
    stopping: trio.Event = attrs.field(factory=trio.Event)
    _fewer: trio.Event = attrs.field(factory=trio.Event)

    @property
    def subjects(self) -> Subjects:
        """Where things are said."""
        return Subjects(prefix=self.settings.prefix)

    # Requests

    def refusal(self, request: Request) -> Progress | None:
        """What is said to a request for what is built for nobody."""
        why = self.settings.refusal(request.repository, request.host)
        if not why:
            return None
        log.info("refused", extra={"fields": {**_named(request), "why": why}})
        self.gauges.refused()
        return attrs.evolve(self._word(request, None), phase=Phase.REFUSED, why=why)

    def join(self, request: Request, ticket: Ticket) -> Progress | None:
        """Attach a request to its job, should this builder have it; how far that is."""
        job = self.jobs.get(request.job)
        if job is None or job.end is not None:
            return None
        self.waiting.join(request.job, request.asked_by, ticket)
        log.info("one more asks", extra={"fields": _named(request)})
        return job.latest

    async def ended(self, job: str) -> None:
        """Wait while this builder has a job that is to end before its time: what asks for it now begins anew."""
        while (known := self.jobs.get(job)) is not None and known.end is not None:
            await self._fewer.wait()

    def open(self, request: Request, ticket: Ticket) -> Job:
        """Take a job on; it is still to be seen whether this builder is to do it."""
        job = Job(request=request, latest=self._word(request, None))
        self.jobs[request.job] = job
        self.waiting.join(request.job, request.asked_by, ticket)
        return job

    async def see_to(self, job: Job) -> None:
        """Do what is to be done about a job that was opened: all of it, when it is this builder's.

        Raises:
            LinkError: the server would not say whose it is; the request was not settled.
        """
        request, job.in_line = job.request, False
        try:
            found = await self.board.look(request.job)
            match next_step(request, found, now=wall_now(), stale_ms=STALE * self.settings.patience * 1000):
                case Step.BEGIN:
                    job.latest = self._word(request, found)
                    await self._begin(job)
                case Step.GIVE_UP:
                    assert found is not None
                    log.error("given up", extra={"fields": _named(request)})
                    await self._conclude(job, given_up(found, now=wall_now()))
                case Step.ANSWER:
                    assert found is not None
                    await self.say(found)
                    await self._settle(request)
                case Step.LATER:
                    await self._leave_to_others(request.job, LATER_S)
        finally:
            self._close(request.job)

    async def cancel(self, cancel: Cancel) -> None:
        """Somebody takes their request back; a job that nobody waits for ends.

        Raises:
            LinkError: the server was not told; who asked is to say it again.
        """
        left = self.waiting.leave(cancel.job, cancel.asked_by)
        job = self.jobs.get(cancel.job)
        if left is None or job is None:
            return
        log.info("taken back", extra={"fields": _named(job.request)})
        if not left.nobody_waits:
            await left.ticket.done()
            return
        self.waiting.join(cancel.job, cancel.asked_by, left.ticket)  # settled when it is written down
        job.stop(End.CANCELLED)
        if job.in_line:
            job.in_line = False  # whoever comes to it in the line passes it over
            await self._after(job, None)
            self._close(cancel.job)

    async def stop(self) -> None:
        """End all jobs, so that other builders may begin them; returns when this builder has none."""
        self.stopping.set()
        for job in self.jobs.values():
            job.stop(End.STOPPED)
        while self.jobs:
            await self._fewer.wait()

    # One job

    async def _begin(self, job: Job) -> None:
        if not await self.board.write(job.latest):
            await self._leave_to_others(job.request.job, 1.0)
            return
        log.info("begun", extra={"fields": _named(job.request)})
        last: Progress | None = None
        with self.gauges.running(), job.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, job)
                nursery.start_soon(self._beat, job)
                last = await self.works.build(job.request, job.hear)
                nursery.cancel_scope.cancel()
        await self._after(job, last)

    async def _after(self, job: Job, last: Progress | None) -> None:
        if last is not None:
            await self._conclude(job, attrs.evolve(last, ended=0))
            return
        match job.end:
            case End.CANCELLED:
                word = attrs.evolve(job.latest, phase=Phase.CANCELLED, at=wall_now(), line="", ended=0)
                await self._conclude(job, word)
            case End.LOST:
                log.warning("another builder took it over", extra={"fields": _named(job.request)})
                await self._leave_to_others(job.request.job, LATER_S)
            case _:
                log.info("handed back", extra={"fields": _named(job.request)})
                await self._hand_back(job)

    async def _tell(self, job: Job) -> None:
        """Tell how it goes, as it goes."""
        while True:
            await job.news.wait()
            job.news = trio.Event()
            await self.say(job.latest)

    async def _beat(self, job: Job) -> None:
        """Say now and then that somebody is at it."""
        while True:
            await trio.sleep(self.settings.patience / BEATS)
            try:
                for ticket in self.waiting.tickets(job.request.job):
                    await ticket.working()
                word = attrs.evolve(job.latest, at=wall_now())
                if not await self.board.write(word):
                    job.stop(End.LOST)
                await self.say(word)
            except LinkError as error:
                log.debug("not told: %s", error)

    async def _conclude(self, job: Job, last: Progress) -> None:
        """Write it down, tell it, settle it: until that is done, or this builder is to stop."""
        self.gauges.ended(last)
        seconds = {"seconds": last.seconds} if last.seconds else {}
        why = {"why": last.why} if last.why else {"path": last.path} if last.path else {}
        log.info(last.phase.value, extra={"fields": {**_named(job.request), **seconds, **why}})
        while True:  # the server may be away just then
            try:
                await self._written_and_told(job, last)
                return
            except LinkError as error:
                log.warning("not told yet", extra={"fields": {**_named(job.request), "why": str(error)}})
            if self.stopping.is_set():
                return
            with trio.move_on_after(RETRY_S):
                await self.stopping.wait()

    async def _written_and_told(self, job: Job, last: Progress) -> None:
        if not await self.board.write(last) and last.phase is not Phase.DONE:
            await self._leave_to_others(job.request.job, LATER_S)
            return
        await self.link.publish(self.subjects.progress(last.job), encode(last))
        for ticket in self.waiting.tickets(job.request.job):
            await ticket.done()

    async def _settle(self, request: Request) -> None:
        """This request was answered; who asked for the same meanwhile is to be looked at by themselves."""
        tickets = self.waiting.close(request.job)
        if request.asked_by in tickets:
            await tickets.pop(request.asked_by).done()
        for ticket in tickets.values():
            await ticket.again(0)

    async def _leave_to_others(self, job: str, after_s: float) -> None:
        for ticket in self.waiting.close(job).values():
            await ticket.again(after_s)

    async def _hand_back(self, job: Job) -> None:
        with trio.move_on_after(HAND_BACK_S), contextlib.suppress(LinkError):
            await self.board.write(handed_back(job.latest))
            await self._leave_to_others(job.request.job, 0)

    # Words

    async def say(self, progress: Progress) -> None:
        """Tell whoever listens; they hear it at the next word when the server is away."""
        try:
            await self.link.publish(self.subjects.progress(progress.job), encode(progress))
        except LinkError as error:
            log.debug("not told: %s", error)

    def _word(self, request: Request, found: Progress | None) -> Progress:
        return claim(request, found, builder=self.settings.name, now=wall_now())

    def _close(self, job: str) -> None:
        self.waiting.close(job)
        self.board.forget(job)
        self.jobs.pop(job, None)
        self._fewer.set()
        self._fewer = trio.Event()


def _named(request: Request) -> dict[str, str]:
    named = {"repository": request.repository, "host": request.host, "revision": request.revision}
    return {key: value for key, value in named.items() if value} | {"job": request.job[:8]}
