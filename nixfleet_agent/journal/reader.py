"""Look into a journal from outside: while the daemon writes it, or when no daemon can.

Nothing here changes the file, and everything one `JournalReader` shows is of one instant.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

from evidence.chain import Anchor, ChainFault, ChainReport, Fault, SealedEntry, verify_chain
from nixfleet_agent.journal import checkpoints, marks
from nixfleet_agent.journal.checkpoints import Restored
from nixfleet_agent.journal.entries import Record, event_of, facts_of, sealed_entries, whole_body
from nixfleet_agent.journal.errors import UnreadableJournalError
from nixfleet_agent.journal.export import export
from nixfleet_agent.journal.marks import Mark, MarkKind
from nixfleet_agent.journal.schema import open_read_only, reading, version_of

__all__: Final = ["JournalReader", "export", "verify"]


class JournalReader:
    """A view of the journal at `path`, from `with` to its end.

    `public` is the host's raw public key. Without it, checkpoints are believed unsigned: good enough to show.

    Raises:
        NewerJournalError, CorruptJournalError, UnreadableJournalError: it cannot be read.
    """

    def __init__(self, path: Path, public: bytes | None = None) -> None:
        if version_of(path) is None:
            raise UnreadableJournalError(path=path, problem="there is no journal yet")
        self.path = path
        self._public = public
        self._db: sqlite3.Connection = open_read_only(path)
        with reading(path):
            self._db.execute("BEGIN")
            # The instant is that of the first read, not of BEGIN.
            self._db.execute("SELECT id FROM journal").fetchone()

    def __enter__(self) -> "JournalReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    @property
    def journal_id(self) -> str:
        """The random name of this journal."""
        with reading(self.path):
            [name] = self._db.execute("SELECT id FROM journal").fetchone()
        return str(name)

    @property
    def last_n(self) -> int:
        """The number of the newest entry; 0 when there is none."""
        with reading(self.path):
            [n] = self._db.execute("SELECT max(n) FROM entries").fetchone()
        return n or 0

    @property
    def start(self) -> Anchor:
        """What the first entry follows: nothing, unless an older part was cut off."""
        return self.anchor()[0]

    def anchor(self) -> tuple[Anchor, Mark | None]:
        """What the first entry follows, with the signed mark if an older part was cut off."""
        return marks.start_of(self._db, self.path)

    def entries(self, from_n: int = 1) -> Iterator[SealedEntry]:
        """Entries as stored from number `from_n` on, one at a time; nothing in them is checked."""
        return sealed_entries(self._db, self.path, from_n)

    def records(self, from_n: int = 1) -> Iterator[Record]:
        """The same, decoded. Each is what was hashed; who signed it is for `verify` to say.

        Raises:
            CorruptJournalError, NewerJournalError: an entry cannot be read.
        """
        for entry in self.entries(from_n):
            body = whole_body(self.path, entry)
            event, facts = event_of(self.path, entry.n, body), facts_of(self.path, entry.n, body)
            yield Record(n=entry.n, event=event, facts=facts)

    def restore(self) -> Restored:
        """The newest usable checkpoint and the entries after it."""
        return checkpoints.restore(self._db, self.path, self._public)

    def restore_oldest(self) -> Restored:
        """As much as there is to fold: from the start, or from the oldest checkpoint after a cut."""
        return checkpoints.restore(self._db, self.path, self._public, oldest=True)

    def checkpoints_by(self, public: bytes) -> list[Anchor]:
        """The entries that signed checkpoints of this journal name: each must still be here."""
        found = marks.find(self._db, self.path, MarkKind.CHECKPOINT)
        return [mark.anchor for mark in found if mark.journal_id == self.journal_id and mark.is_by(public)]


def verify(path: Path, public: bytes, *, host: str | None = None, witnesses: Iterable[Anchor] = ()) -> ChainReport:
    """Check the chain and every signature with the host's raw public key; what it found, up to the first fault.

    `witnesses` are entries others have seen, such as what a control plane holds; those that the journal's own
    checkpoints name are added.

    Raises:
        NewerJournalError, CorruptJournalError, UnreadableJournalError: SQLite cannot read it.
    """
    with JournalReader(path, public) as journal:
        start, mark = journal.anchor()
        if mark is not None and (problem := _problem_with(mark, public, journal.journal_id)):
            fault = ChainFault(fault=Fault.BAD_SIGNATURE, n=start.n, position=0, detail=problem)
            return ChainReport(good=0, head=start, fault=fault)
        seen = [*witnesses, *journal.checkpoints_by(public)]
        return verify_chain(journal.entries(), public, host=host, anchor=start, witnesses=seen)


def _problem_with(mark: Mark, public: bytes, journal_id: str) -> str:
    if not mark.is_by(public):
        return "the mark where its older part was cut off is not signed by this host's key"
    return "" if mark.journal_id == journal_id else "the mark where its older part was cut off is of another journal"
