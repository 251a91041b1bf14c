"""Ask builders for builds over NATS, and hear how they go until there is an answer for each.

Whoever stops waiting takes back what is not built yet, so that no builder works for nobody. With JetStream a request
outlives this connection, the builder that takes it and the server; without it, a builder that falls silent is asked for
again, a few times. What builders say is heard while it is said; an answer that was missed is looked up.
"""

import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, Final, Protocol

import attrs
import trio

from messaging.errors import BadServerError, LinkError, NoAnswerError, NobodyListensError
from messaging.jetstream import Bucket, WorkQueue
from messaging.link import Link, Message, connected
from messaging.server import Server
from nixfleet.builder.messages import (
    Cancel,
    HostsAnswer,
    HostsQuestion,
    MessageError,
    Phase,
    Progress,
    Request,
    Subjects,
    decode_hosts_answer,
    decode_hosts_question,
    decode_progress,
    decode_request,
    encode,
)
from nixfleet.clock import wall_now
from nixfleet.errors import ConfigurationError, StoppedError

SILENCE_S: Final = 45.0
"""Builders are heard of every 10 s."""
FIRST_S: Final = 5.0
"""When nobody has taken a request by then, that is told."""
WHOSE_S: Final = 0.5
TAKEN_S: Final = 10.0
PAUSE_S: Final = 1.0
AGAIN_S: Final = 20.0
"""Between two tries when no builder is there any more."""
TRIES: Final = 4
"""How often a request is made without JetStream, and how often the server may fail to say what became of one."""
TAKE_BACK_S: Final = 5.0
HOSTS_S: Final = 1000.0
KEPT_S: Final = 7 * 86_400.0

Heard = Callable[[Progress], None]
log = logging.getLogger(__name__)


class AskError(StoppedError):
    """No builder could be asked."""

    exit_code: ClassVar[int] = 3


@attrs.frozen(kw_only=True)
class NatsError(AskError):
    """The NATS server could not be spoken to."""

    cause: LinkError

    def __str__(self) -> str:
        return f"NATS: {self.cause}"


@attrs.frozen(kw_only=True)
class NatsSettingsError(ConfigurationError):
    """A connection is described in a way that cannot work."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        return f"NATS: {'; '.join(self.problems)}"


@attrs.frozen(kw_only=True)
class NoBuilderError(AskError):
    """Nobody listens where builders do."""

    prefix: str

    def __str__(self) -> str:
        where = f"{self.prefix}.>"
        return f"no builder listens on {where}: start one with `nixfleet builder`, or build here with --builder local"


@attrs.frozen(kw_only=True)
class SilentError(AskError):
    """Builders took a job and were not heard of again."""

    host: str

    def __str__(self) -> str:
        return f"{self.host}: no builder comes to an end with it; look at their logs, and ask again"


@attrs.frozen(kw_only=True)
class NoQueueError(AskError):
    """Nothing can be left for later."""

    def __str__(self) -> str:
        return "the NATS server has no JetStream, so that a request does not outlast whoever asks: use --wait"


@attrs.frozen(kw_only=True)
class NoHostsError(AskError):
    """A builder does not say what can be built."""

    why: str

    def __str__(self) -> str:
        return f"the builder says: {self.why}"


@attrs.frozen(kw_only=True)
class BadRequestError(ConfigurationError):
    """What is asked for can be nothing that a builder has."""

    why: str

    def __str__(self) -> str:
        return self.why


def request_for(repository: str, host: str, *, revision: str = "", compare: str = "") -> Request:
    """A new request.

    Raises:
        BadRequestError: a name in it is none.
    """
    asked_by = secrets.token_hex(8)
    made = Request(
        repository=repository, host=host, revision=revision, compare=compare, asked_by=asked_by, asked_at=wall_now()
    )
    try:
        return decode_request(encode(made))
    except MessageError as error:
        raise BadRequestError(why=str(error)) from error


def checked(question: HostsQuestion) -> HostsQuestion:
    """The same question.

    Raises:
        BadRequestError: a name in it is none.
    """
    try:
        return decode_hosts_question(encode(question))
    except MessageError as error:
        raise BadRequestError(why=str(error)) from error


@asynccontextmanager
async def reached(server: Server, name: str) -> AsyncIterator[Link]:
    """A connection.

    Raises:
        NatsSettingsError, NatsError: there is none, or it fails while it is used.
    """
    try:
        async with connected(server, name) as link:
            yield link
    except BadServerError as error:
        raise NatsSettingsError(problems=error.problems) from error
    except LinkError as error:
        raise NatsError(cause=error) from error


async def hosts(link: Link, subjects: Subjects, question: HostsQuestion) -> HostsAnswer:
    """Ask what can be built.

    Raises:
        NoBuilderError, NoHostsError: nobody says.
        BadRequestError: a name in the question is none.
        LinkError: the connection is in trouble.
    """
    try:
        answer = decode_hosts_answer(await link.request(subjects.hosts, encode(checked(question)), HOSTS_S))
    except NobodyListensError as error:
        raise NoBuilderError(prefix=subjects.prefix) from error
    except MessageError as error:
        raise NoHostsError(why=str(error)) from error
    if answer.why:
        raise NoHostsError(why=answer.why)
    return answer


async def ask(link: Link, subjects: Subjects, requests: Sequence[Request], heard: Heard) -> list[Progress]:
    """Ask for these builds, all at once; the answers, in their order. Cancelled, it takes all requests back.

    Raises:
        NoBuilderError, SilentError: there is no answer to be had; what is not built yet is taken back.
        LinkError: the connection is in trouble; the same.
    """
    way: _Way = await _queue(link, subjects) if await link.has_jetstream() else _Plain(link=link, subjects=subjects)
    answers: dict[Request, Progress] = {}
    troubles: list[StoppedError | LinkError | OSError] = []

    async def one(request: Request) -> None:
        try:
            answers[request] = await _answered(link, subjects, way, request, heard)
        except (StoppedError, LinkError, OSError) as error:  # the last: of what is done with what is heard
            troubles.append(error)
            nursery.cancel_scope.cancel()

    for request in requests:
        heard(_unheard(request))
    async with trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(one, request)
    if troubles:
        raise troubles[0]
    return [answers[request] for request in requests]


async def leave(link: Link, subjects: Subjects, requests: Sequence[Request]) -> None:
    """Put requests in, and wait for nothing. When this returns the server has them on its disk.

    Raises:
        NoQueueError: the server keeps nothing.
        LinkError: it has not got them all, as far as is known here.
    """
    if not await link.has_jetstream():
        raise NoQueueError
    queue = await link.work_queue(subjects.stream, subjects.all_jobs)
    for request in requests:
        await queue.put(subjects.job(request), encode(request))


async def _answered(link: Link, subjects: Subjects, way: "_Way", request: Request, heard: Heard) -> Progress:
    """The answer to one request, which is taken back on every way out without one."""
    async with link.subscribed(subjects.progress(request.job)) as messages:
        try:
            answer = await way.answer(request, _Ear(request=request, messages=messages, tell=heard))
        except BaseException:
            await _take_back(way, request)
            raise
    heard(answer)
    return answer


async def _take_back(way: "_Way", request: Request) -> None:
    with trio.move_on_after(TAKE_BACK_S, shield=True):
        try:
            await way.take_back(Cancel(job=request.job, asked_by=request.asked_by))
        except LinkError as error:
            log.warning("%s: not taken back: %s", request.host, error)


def _unheard(request: Request, line: str = "") -> Progress:
    """What is known before a builder says anything."""
    return Progress(
        job=request.job,
        repository=request.repository,
        host=request.host,
        phase=Phase.QUEUED,
        builder="",
        at=wall_now(),
        line=line,
    )


@attrs.define(kw_only=True, eq=False)
class _Ear:
    """Hears what is said of one job."""

    request: Request
    messages: "trio.MemoryReceiveChannel[Message]"
    tell: Heard
    last: Progress | None = None

    async def next(self, within_s: float) -> Progress | None:
        """What is said next; None: nothing for so long, or that the job is over because others took it back."""
        with trio.move_on_after(within_s):
            while True:
                message = await self.messages.receive()
                if (said := self.read(message.data)) is not None:
                    return self.take(said)
        return None

    def read(self, data: bytes) -> Progress | None:
        """What a builder says of this job; None: it is of none, or of another."""
        try:
            said = decode_progress(data)
        except MessageError as error:
            log.warning("%s: %s", self.request.host, error)
            return None
        return said if said.job == self.request.job else None

    def take(self, said: Progress) -> Progress | None:
        """Tell it, unless it is the end; that others took theirs back is none."""
        if said.phase is Phase.CANCELLED:
            return None
        self.last = said
        if not said.phase.is_last:
            self.tell(said)
        return said

    def complain(self, line: str) -> None:
        """Say what is not heard."""
        self.tell(_unheard(self.request, line) if self.last is None else attrs.evolve(self.last, line=line))


class _Way(Protocol):
    """How requests are made."""

    async def answer(self, request: Request, ear: _Ear) -> Progress:
        """Make a request and wait for the answer."""
        ...

    async def take_back(self, cancel: Cancel) -> None:
        """Say that nobody waits here any more."""
        ...


async def _queue(link: Link, subjects: Subjects) -> "_Queued":
    return _Queued(
        link=link,
        subjects=subjects,
        queue=await link.work_queue(subjects.stream, subjects.all_jobs),
        states=await link.bucket(subjects.bucket, KEPT_S),
    )


@attrs.frozen(kw_only=True)
class _Queued:
    """By the work queue of a server with JetStream."""

    link: Link
    subjects: Subjects
    queue: WorkQueue
    states: Bucket

    async def answer(self, request: Request, ear: _Ear) -> Progress:
        """The queue has it until there is an answer: all there is to do is to wait."""
        await self.queue.put(self.subjects.job(request), encode(request))
        troubles = 0
        while True:
            said = await ear.next(FIRST_S if ear.last is None else SILENCE_S)
            if said is None:
                try:
                    said = await self._missed(request, ear)
                    troubles = 0
                except LinkError as error:
                    troubles += 1
                    if troubles == TRIES:
                        raise
                    ear.complain(str(error))
            if said is not None and said.phase.is_last:
                return said

    async def _missed(self, request: Request, ear: _Ear) -> Progress | None:
        """An answer that was given and not heard."""
        found = await self.states.get(request.job)
        said = None if found is None else ear.read(found[0])
        if said is not None and self._answers(said, request, ear):
            return said
        ear.complain("no builder has taken it yet" if ear.last is None else "nothing is heard of it any more")
        return None

    def _answers(self, said: Progress, request: Request, ear: _Ear) -> bool:
        is_lasting = said.phase is Phase.DONE and request.wants_a_commit
        # The builder's clock may be another: what it was heard to work on, it did for this request.
        is_new = said.at >= (request.asked_at if ear.last is None else ear.last.at)
        return said.phase.is_last and said.phase is not Phase.CANCELLED and (is_lasting or is_new)

    async def take_back(self, cancel: Cancel) -> None:
        """For the builder that works on it, and for the one that takes it later."""
        await self.link.publish(self.subjects.cancel(cancel.job), encode(cancel))
        await self.states.put(f"cancelled.{cancel.asked_by}", b"1")


@attrs.frozen(kw_only=True)
class _Plain:
    """By request and reply, on a server that keeps nothing."""

    link: Link
    subjects: Subjects

    async def answer(self, request: Request, ear: _Ear) -> Progress:
        """Ask again when nothing is heard: the builder may have died, or the server was another.

        One that says that it still has the job, though it is silent otherwise, is waited for.
        """
        tries = 0
        while tries < TRIES:
            try:
                said = await self._joined(request, ear)
                tries = tries + 1 if said is None else 1
                said = ear.take(said or await self._handed_over(request, ear))
            except NobodyListensError as error:
                if tries in (0, TRIES - 1):
                    raise NoBuilderError(prefix=self.subjects.prefix) from error
                tries += 1
                ear.complain("no builder is there any more")
                await trio.sleep(AGAIN_S)
                continue
            except NoAnswerError as error:
                ear.complain(str(error))
                continue
            while said is not None and not said.phase.is_last:
                said = await ear.next(SILENCE_S)
            if said is not None:
                return said
            ear.complain("nothing is heard of it any more")
            await trio.sleep(PAUSE_S)
        raise SilentError(host=request.host)

    async def _joined(self, request: Request, ear: _Ear) -> Progress | None:
        """Ask for it where the same job is already; None: it is nowhere."""
        with contextlib.suppress(NoAnswerError):
            return ear.read(await self.link.request(self.subjects.whose(request.job), encode(request), WHOSE_S))
        return None

    async def _handed_over(self, request: Request, ear: _Ear) -> Progress:
        """Hand it to a builder that has not got it."""
        said = ear.read(await self.link.request(self.subjects.job(request), encode(request), TAKEN_S))
        return _unheard(request) if said is None else said

    async def take_back(self, cancel: Cancel) -> None:
        """For the builder that has it."""
        await self.link.publish(self.subjects.cancel(cancel.job), encode(cancel))
