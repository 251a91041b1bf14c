"""Where it is written down how far each job is: for all builders of a server with JetStream, else for one of them.

Of those who write over the same word one is told that it did; the other has lost the job.
"""

from collections import OrderedDict
from typing import Final, Protocol

import attrs

from messaging.jetstream import Bucket
from messaging.link import Link
from nixfleet.builder.messages import MessageError, Progress, Subjects, decode_progress, encode

KEPT_S: Final = 7 * 86_400
"""How long a server remembers what came of a job."""
REMEMBERED_MAX: Final = 1024


class Board(Protocol):
    """The last word on each job."""

    async def look(self, job: str) -> Progress | None:
        """What was said last.

        Raises:
            LinkError: the server does not say.
        """
        ...

    async def write(self, progress: Progress) -> bool:
        """Say more about a job that was looked at. False: somebody else did meanwhile, and has it now.

        Raises:
            LinkError: nobody knows whether it was written; the next one will tell.
        """
        ...

    async def is_gone(self, asked_by: str) -> bool:
        """A request was taken back.

        Raises:
            LinkError: the server does not say.
        """
        ...

    def forget(self, job: str) -> None:
        """This builder is through with it."""
        ...


@attrs.define(eq=False)
class SharedBoard:
    """In a bucket of the server."""

    _bucket: Bucket
    _revisions: dict[str, int] = attrs.field(factory=dict)
    _tried: dict[str, bytes] = attrs.field(factory=dict)

    async def look(self, job: str) -> Progress | None:
        """See `Board.look`."""
        found = await self._bucket.get(job)
        data, self._revisions[job] = found or (b"", 0)
        try:
            return decode_progress(data) if found is not None else None
        except MessageError:
            return None  # no builder's word: it is written over

    async def write(self, progress: Progress) -> bool:
        """See `Board.write`. One that was written though its answer got lost is known; one that is gone is no rival."""
        job, data = progress.job, encode(progress)
        before, self._tried[job] = self._tried.get(job), data
        revision = await self._bucket.replace(job, data, self._revisions.get(job, 0))
        if revision is None:
            found = await self._bucket.get(job)
            if found is None or found[0] == before:
                revision = await self._bucket.replace(job, data, 0 if found is None else found[1])
        if revision is None:
            return False
        self._revisions[job] = revision
        return True

    async def is_gone(self, asked_by: str) -> bool:
        """See `Board.is_gone`."""
        return await self._bucket.get(f"cancelled.{asked_by}") is not None

    def forget(self, job: str) -> None:
        """See `Board.forget`."""
        self._revisions.pop(job, None)
        self._tried.pop(job, None)


@attrs.define(eq=False)
class OwnBoard:
    """In the memory of this builder, whose word is the only one."""

    _words: "OrderedDict[str, Progress]" = attrs.field(factory=OrderedDict)

    async def look(self, job: str) -> Progress | None:
        """See `Board.look`."""
        return self._words.get(job)

    async def write(self, progress: Progress) -> bool:
        """See `Board.write`."""
        self._words[progress.job] = progress
        self._words.move_to_end(progress.job)
        while len(self._words) > REMEMBERED_MAX:
            self._words.popitem(last=False)
        return True

    async def is_gone(self, asked_by: str) -> bool:
        """See `Board.is_gone`."""
        return False

    def forget(self, job: str) -> None:
        """See `Board.forget`. An unfinished word of a job that nobody has would keep it from being begun."""
        found = self._words.get(job)
        if found is not None and not found.phase.is_last:
            del self._words[job]


async def open_bucket(link: Link, subjects: Subjects) -> Bucket:
    """The bucket of a server, made when it is not there, or no longer.

    Raises:
        LinkError: it cannot be had.
    """
    return await link.bucket(subjects.bucket, KEPT_S)
