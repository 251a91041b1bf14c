"""How requests reach a builder: by a work queue that outlives it, or straight, on a server without JetStream.

With a queue a job that its builder did not live to see through comes again, to another one. Without, it waits in this
builder's memory, and whoever asked asks again when they hear nothing for long.
"""

import contextlib
import logging
import math
from typing import Final

import attrs
import trio

from messaging.errors import LinkError
from messaging.jetstream import Delivery, WorkQueue
from messaging.link import Link, Message
from nixfleet.builder.boards import open_bucket
from nixfleet.builder.desk import BEATS, Desk, Job
from nixfleet.builder.messages import MessageError, Request, decode_cancel, decode_request, encode
from nixfleet.clock import wall_now

QUEUE: Final = "builders"
"""What builders are called that share jobs."""
TAKE_S: Final = 5.0
"""A question for the next job that the server was restarted over is asked anew after this."""
PAUSE_S: Final = 2.0
LEAVE_S: Final = 3.0
MEASURE_S: Final = 10.0
LINE_MAX: Final = 4096
"""Jobs that may wait in memory."""
log = logging.getLogger(__name__)


async def serve_queue(desk: Desk, link: Link, stop: trio.Event) -> None:
    """Do the jobs of the server's work queue until told to stop.

    Raises:
        LinkError: it cannot be begun.
    """
    takers = _Takers(desk=desk, link=link)
    async with link.subscribed(desk.subjects.all_cancels) as cancels, trio.open_nursery() as nursery:
        nursery.start_soon(_hear_cancels, desk, cancels)
        for number in range(desk.settings.parallel):
            queue = await takers.open_queue()
            nursery.start_soon(takers.take_jobs, queue)
            if not number:
                nursery.start_soon(takers.look_after, queue)
        await stop.wait()
        desk.stopping.set()
        await takers.stop()
        await desk.stop()
        nursery.cancel_scope.cancel()


@attrs.define(kw_only=True, eq=False)
class _Takers:
    """As many as there may be builds at once: each takes a job, does it, and takes the next."""

    desk: Desk
    link: Link
    _taking: dict[trio.CancelScope, WorkQueue] = attrs.field(factory=dict)

    async def open_queue(self) -> WorkQueue:
        """The work queue, to take jobs from.

        How often a job may be begun is written down with it: here it is given out for as long as somebody has it.

        Raises:
            LinkError: it cannot be had.
        """
        subjects = self.desk.subjects
        patience_s = self.desk.settings.patience
        return await self.link.work_queue(
            subjects.stream, subjects.all_jobs, taking=QUEUE, patience_s=patience_s, tries=-1
        )

    async def take_jobs(self, queue: WorkQueue) -> None:
        """One after another, until this builder is to stop."""
        in_trouble = ""
        while not self.desk.stopping.is_set():
            try:
                if in_trouble:
                    queue = await self.open_queue()
                    in_trouble = ""
                delivery = await self._take(queue)
                if delivery is not None:
                    await _handle(self.desk, delivery)
            except LinkError as error:
                if str(error) != in_trouble:
                    in_trouble = str(error)
                    log.warning("no jobs for now", extra={"fields": {"why": in_trouble}})
                with trio.move_on_after(PAUSE_S):
                    await self.desk.stopping.wait()

    async def look_after(self, queue: WorkQueue) -> None:
        """Measure the queue now and then; make it and the bucket anew when the server has lost them."""
        while True:
            try:
                await open_bucket(self.link, self.desk.subjects)
                self.desk.gauges.waiting(await queue.depth())
            except LinkError as error:
                log.debug("not measured: %s", error)
                with contextlib.suppress(LinkError):
                    queue = await self.open_queue()
            await trio.sleep(MEASURE_S)

    async def _take(self, queue: WorkQueue) -> Delivery | None:
        with trio.CancelScope() as scope:
            self._taking[scope] = queue
            try:
                return await queue.take(TAKE_S)
            finally:
                del self._taking[scope]
        return None

    async def stop(self) -> None:
        """Take no more: what this builder gives back must not come to itself."""
        queues = tuple(self._taking.values())
        for scope in tuple(self._taking):
            scope.cancel()
        with trio.move_on_after(LEAVE_S):
            for queue in queues:
                with contextlib.suppress(LinkError):  # it is left when the connection is
                    await queue.leave()


async def _handle(desk: Desk, delivery: Delivery) -> None:
    """See to one request; it is settled afterwards, or comes again.

    Raises:
        LinkError: it comes again.
    """
    request = _request(delivery.data)
    if request is None:
        await delivery.done()
        return
    if (refusal := desk.refusal(request)) is not None:
        await desk.say(refusal)
        await delivery.done()
        return
    if desk.waiting.is_gone(request.asked_by) or await desk.board.is_gone(request.asked_by):
        await delivery.done()
        return
    await desk.ended(request.job)
    if (latest := desk.join(request, delivery)) is not None:
        await desk.say(latest)
    elif desk.stopping.is_set():
        await delivery.again(0)
    else:
        await desk.see_to(desk.open(request, delivery))


@attrs.frozen
class NoTicket:
    """A request that was answered when it came: nothing is to be settled."""

    async def done(self) -> None:
        """See `desk.Ticket`."""

    async def again(self, after_s: float) -> None:
        """See `desk.Ticket`. Whoever asked asks again."""

    async def working(self) -> None:
        """See `desk.Ticket`."""


async def serve_straight(desk: Desk, link: Link, stop: trio.Event) -> None:
    """Do the jobs that this builder is asked for until told to stop.

    Raises:
        LinkError: it cannot be begun.
    """
    line = _Line(desk=desk, link=link)
    subjects = desk.subjects
    async with (
        link.subscribed(subjects.all_cancels) as cancels,
        link.subscribed(subjects.all_whose) as whose,
        link.subscribed(subjects.all_jobs, queue=QUEUE) as requests,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_hear_cancels, desk, cancels)
        nursery.start_soon(line.answer_whose, whose)
        nursery.start_soon(line.take_requests, requests, nursery)
        nursery.start_soon(line.beat)
        for _ in range(desk.settings.parallel):
            nursery.start_soon(line.work)
        await stop.wait()
        await desk.stop()
        nursery.cancel_scope.cancel()


class _Line:
    """The jobs that wait in this builder's memory."""

    def __init__(self, *, desk: Desk, link: Link) -> None:
        self._desk, self._link = desk, link
        self._send, self._receive = trio.open_memory_channel[Job](math.inf)

    async def take_requests(self, requests: "trio.MemoryReceiveChannel[Message]", nursery: trio.Nursery) -> None:
        async for message in requests:
            nursery.start_soon(self._take, message)

    async def _take(self, message: Message) -> None:
        desk, request = self._desk, _request(message.data)
        if request is None or desk.waiting.is_gone(request.asked_by):
            return
        if (word := desk.refusal(request)) is None:
            await desk.ended(request.job)
            word = desk.join(request, NoTicket())
        if word is None:
            if desk.stopping.is_set() or len(desk.jobs) >= LINE_MAX:
                log.warning("not taken", extra={"fields": {"host": request.host, "waiting": len(desk.jobs)}})
                return
            job = desk.open(request, NoTicket())
            job.in_line, word = True, job.latest
            self._send.send_nowait(job)
            self._measure()
        await self._reply(message, encode(word))

    async def answer_whose(self, questions: "trio.MemoryReceiveChannel[Message]") -> None:
        async for message in questions:
            request = _request(message.data)
            word = request and self._desk.join(request, NoTicket())
            if word is not None:
                await self._reply(message, encode(word))

    async def work(self) -> None:
        async for job in self._receive.clone():
            self._measure()
            if job.in_line and self._desk.jobs.get(job.request.job) is job:
                await self._desk.see_to(job)

    async def beat(self) -> None:
        """Who waits long hears that they still do."""
        while True:
            await trio.sleep(self._desk.settings.patience / BEATS)
            for job in tuple(self._desk.jobs.values()):
                if job.in_line:
                    await self._desk.say(attrs.evolve(job.latest, at=wall_now()))

    async def _reply(self, message: Message, data: bytes) -> None:
        if not message.reply:
            return
        try:
            await self._link.publish(message.reply, data)
        except LinkError as error:
            log.debug("not answered: %s", error)

    def _measure(self) -> None:
        self._desk.gauges.waiting(self._receive.statistics().current_buffer_used)


async def _hear_cancels(desk: Desk, cancels: "trio.MemoryReceiveChannel[Message]") -> None:
    async for message in cancels:
        try:
            await desk.cancel(decode_cancel(message.data))
        except (MessageError, LinkError) as error:
            log.warning("a cancellation came to nothing", extra={"fields": {"why": str(error)}})


def _request(data: bytes) -> Request | None:
    try:
        return decode_request(data)
    except MessageError as error:
        log.warning("not a request", extra={"fields": {"why": str(error)}})
        return None
