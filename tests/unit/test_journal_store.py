"""Appending, reading back, handing out facts: what the daemon leans on while it runs."""

import json
import os
import sqlite3
import stat
import threading
from pathlib import Path

import attrs
import pytest

from evidence.chain import SealedEntry, verify_chain
from nixfleet_agent.journal.errors import (
    ForeignJournalError,
    JournalBusyError,
    JournalWriteError,
    UnwritableEventError,
    WriteProblem,
)
from nixfleet_agent.journal.outbox import PORTION_BYTES, PORTION_MAX
from nixfleet_agent.journal.reader import JournalReader
from nixfleet_agent.journal.store import Journal
from state_machine.events import DutyFinished
from state_machine.state import Known
from state_machine.values import HostName
from tests.unit.journal_support import (
    KEY,
    OTHER_KEY,
    OTHER_ROLLOUT,
    events_in,
    fact,
    open_journal,
    probe,
    python,
    tick,
)
from tests.unit.wire_examples import EVENTS, ROLLOUT
from wire.codec import decode_fact, encode_fact


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_a_new_journal_is_empty_and_only_its_owner_may_read_it(path: Path) -> None:
    journal = open_journal(path)
    assert (journal.head.n, journal.head.hash, journal.entries_since_checkpoint) == (0, bytes(32), 0)
    assert len(bytes.fromhex(journal.journal_id)) == 16
    journal.append([tick()])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite.lock"} <= set(modes)
    journal.close()


def test_every_event_comes_back_in_order_after_a_restart(path: Path) -> None:
    journal = open_journal(path)
    journal.append([(event, ()) for event in EVENTS])
    head, name = journal.head, journal.journal_id
    journal.close()
    again = open_journal(path)
    assert (again.head, again.journal_id) == (head, name)
    assert [(n, event) for n, event in again.restore().tail] == list(enumerate(EVENTS, 1))
    again.close()


def test_an_entry_is_a_signed_link_that_says_what_happened_and_what_came_of_it(path: Path) -> None:
    journal = open_journal(path)
    [first] = journal.append([tick()])
    [second] = journal.append([probe(fact(1), fact(2))])
    body = json.loads(second.body)
    assert list(body) == ["event", "facts", "host", "journal", "n", "prev"]
    assert (body["n"], body["prev"], body["host"]) == (2, first.hash.hex(), "node7")
    assert body["journal"] == journal.journal_id
    assert body["event"]["kind"] == "ProbeObserved"
    assert body["facts"] == [{"rollout_id": ROLLOUT, **encode_fact(fact(seq).fact)} for seq in (1, 2)]
    assert verify_chain([first, second], KEY.public, host="node7").ok
    journal.close()


def test_a_batch_is_one_commit_of_several_links(path: Path) -> None:
    journal = open_journal(path)
    entries = journal.append([tick(0), probe(fact(1)), tick(1)])
    assert [entry.n for entry in entries] == [1, 2, 3]
    assert journal.head == entries[-1].anchor
    assert journal.append([]) == ()
    assert verify_chain(entries, KEY.public).ok
    journal.close()


def test_a_fact_is_never_handed_out_before_its_commit(path: Path) -> None:
    journal = open_journal(path)
    journal.append([probe(fact(1))])
    blocker = open_journal_for_sql(path)
    blocker.execute("BEGIN IMMEDIATE")
    done = threading.Event()

    def append() -> None:
        journal.append([probe(fact(2))])
        done.set()

    thread = threading.Thread(target=append)
    thread.start()
    assert [item.fact.seq for item in journal.facts_from(ROLLOUT, 1, 10)] == [1]
    assert not done.is_set()
    blocker.execute("ROLLBACK")
    thread.join()
    blocker.close()
    assert [item.fact.seq for item in journal.facts_from(ROLLOUT, 1, 10)] == [1, 2]
    journal.close()


def test_appending_and_handing_out_do_not_get_in_each_others_way(path: Path) -> None:
    journal = open_journal(path)

    def append() -> None:
        for seq in range(1, 301):
            journal.append([probe(fact(seq)), tick()])

    thread = threading.Thread(target=append)
    thread.start()
    while thread.is_alive():
        handed_out = journal.facts_from(ROLLOUT, 1, 500)
        assert [item.fact.seq for item in handed_out] == list(range(1, len(handed_out) + 1))
    thread.join()
    assert len(journal.facts_from(ROLLOUT, 1, 500)) == 300
    journal.close()


def open_journal_for_sql(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def test_facts_of_a_rollout_come_in_order_from_where_they_are_asked_for(path: Path) -> None:
    journal = open_journal(path)
    journal.append([probe(fact(1), fact(1, OTHER_ROLLOUT)), tick(), probe(fact(2), fact(3)), probe(fact(4))])
    assert [(item.fact.seq, item.n) for item in journal.facts_from(ROLLOUT, 2, 10)] == [(2, 3), (3, 3), (4, 4)]
    assert [item.fact.seq for item in journal.facts_from(ROLLOUT, 1, 2)] == [1, 2]
    assert [item.fact for item in journal.facts_from(OTHER_ROLLOUT, 1, 10)] == [fact(1, OTHER_ROLLOUT).fact]
    assert journal.facts_from(ROLLOUT, 5, 10) == []
    journal.close()


def test_prev_names_the_entry_that_held_facts_before_and_never_changes(path: Path) -> None:
    journal = open_journal(path)
    first, _, third, fourth = journal.append(
        [probe(fact(1)), tick(), probe(fact(1, OTHER_ROLLOUT)), probe(fact(2), fact(3))]
    )
    expected = [None, third.hash.hex(), third.hash.hex()]
    assert [item.prev for item in journal.facts_from(ROLLOUT, 1, 10)] == expected
    assert [item.prev for item in journal.facts_from(OTHER_ROLLOUT, 1, 10)] == [first.hash.hex()]
    journal.append([probe(fact(4))])
    assert [item.prev for item in journal.facts_from(ROLLOUT, 1, 10)] == [*expected, fourth.hash.hex()]
    journal.close()


def test_a_fact_that_is_sent_again_has_the_same_bytes(path: Path) -> None:
    journal = open_journal(path)
    journal.append([probe(fact(1, name="über")), probe(fact(2))])
    before = journal.facts_from(ROLLOUT, 1, 10)
    journal.close()
    again = open_journal(path)
    assert again.facts_from(ROLLOUT, 1, 10) == before
    assert [decode_fact(encode_fact(item.fact)) for item in before] == [item.fact for item in before]
    again.close()


def test_ten_thousand_waiting_facts_come_in_portions(path: Path) -> None:
    journal = open_journal(path)
    journal.append([probe(*[fact(seq) for seq in range(first, first + 100)]) for first in range(1, 10_001, 100)])
    portion = journal.facts_from(ROLLOUT, 1, 10_000)
    assert 0 < len(portion) <= PORTION_MAX
    assert [item.fact.seq for item in portion] == list(range(1, len(portion) + 1))
    journal.close()


def test_a_portion_of_large_facts_is_short_but_never_empty(path: Path) -> None:
    journal = open_journal(path)
    journal.append([probe(fact(seq, name="x" * (PORTION_BYTES // 3))) for seq in range(1, 7)])
    assert [item.fact.seq for item in journal.facts_from(ROLLOUT, 1, 100)] == [1, 2, 3]
    assert [item.fact.seq for item in journal.facts_from(ROLLOUT, 4, 100)] == [4, 5, 6]
    journal.close()


def test_a_second_writer_is_told_who_the_first_is(path: Path) -> None:
    journal = open_journal(path)
    with pytest.raises(JournalBusyError, match=f"in use by process {os.getpid()}"):
        open_journal(path)
    journal.close()
    open_journal(path).close()


def test_a_second_writer_in_another_process_is_told_too(path: Path) -> None:
    journal = open_journal(path)
    script = (
        "import sys, pathlib; from nixfleet_agent.journal.lock import take_lock; take_lock(pathlib.Path(sys.argv[1]))"
    )
    said = python(path, script=script).communicate()[1]
    assert f"in use by process {os.getpid()}" in said
    journal.close()


def test_a_journal_of_another_key_is_not_added_to(path: Path) -> None:
    journal = open_journal(path)
    journal.append([tick()])
    journal.close()
    with pytest.raises(ForeignJournalError, match="entry 1 is not signed by this host's key"):
        open_journal(path, OTHER_KEY)
    with pytest.raises(ForeignJournalError, match="of host 'node7', not 'node8'"):
        Journal.open(path, host_key=KEY, hostname=HostName("node8"))
    assert len(events_in(path)) == 1


def test_an_event_that_has_no_signed_form_is_refused_by_name_and_leaves_no_trace(path: Path) -> None:
    journal = open_journal(path)
    poison = probe(fact(1, name="\ud800"))
    with pytest.raises(UnwritableEventError, match="a ProbeObserved cannot be journaled: a string contains a lone"):
        journal.append([tick(), poison])
    with pytest.raises(UnwritableEventError, match="more than"):
        journal.append([probe(fact(1, name="x" * 2**20))])
    assert journal.head.n == 0
    journal.append([tick()])
    journal.close()
    assert len(events_in(path)) == 1


def test_the_same_fact_number_twice_is_a_defect_and_not_a_full_disk(path: Path) -> None:
    journal = open_journal(path)
    journal.append([probe(fact(1))])
    with pytest.raises(sqlite3.IntegrityError):
        journal.append([tick(), probe(fact(1))])
    assert journal.head.n == 1
    journal.append([probe(fact(2))])
    assert [item.n for item in journal.facts_from(ROLLOUT, 1, 9)] == [1, 2]
    journal.close()


def test_fractions_are_kept_to_the_last_digit(path: Path) -> None:
    journal = open_journal(path)
    jitters = (0.0, 0.1 + 0.2, 1e-9, 0.9999999999999999, 5e-324)
    template = next(event for event in EVENTS if isinstance(event, DutyFinished))
    journal.append([(attrs.evolve(template, jitter=jitter), ()) for jitter in jitters])
    journal.close()
    assert [getattr(event, "jitter", None) for event in events_in(path)] == list(jitters)


def test_a_reader_looks_on_while_the_writer_writes_and_sees_one_instant(path: Path) -> None:
    journal = open_journal(path)
    journal.append([tick(), probe(fact(1))])
    with JournalReader(path) as reader:
        journal.append([tick()] * 10)
        journal.save_checkpoint(Known())
        seen: list[SealedEntry] = list(reader.entries())
        assert [entry.n for entry in seen] == [1, 2]
        assert [record.facts for record in reader.records()] == [(), (fact(1),)]
        assert reader.journal_id == journal.journal_id
    with JournalReader(path) as reader:
        assert [entry.n for entry in reader.entries(from_n=11)] == [11, 12]
    journal.close()


def test_the_cause_of_a_failed_write_is_in_its_message() -> None:
    error = JournalWriteError(path=Path("/x/journal.sqlite"), cause=WriteProblem.DISK_FULL, problem="no space")
    assert str(error) == (
        "/x/journal.sqlite cannot be written (disk-full): no space; free some space on its file system"
    )
    assert str(JournalWriteError(problem="it was set aside")) == "the journal cannot be written: it was set aside"
