"""Starting again: from a checkpoint, without one, with a bad one, and after the file was cut."""

import contextlib
import hashlib
import json
import sqlite3
from pathlib import Path

import attrs
import pytest

from evidence.canonical import canonicalize
from evidence.chain import Anchor, Fault
from nixfleet_agent.journal.checkpoints import KEPT, STATE_VERSION, Restored
from nixfleet_agent.journal.errors import CorruptJournalError, NewerJournalError
from nixfleet_agent.journal.reader import JournalReader, verify
from nixfleet_agent.journal.retention import ALWAYS_KEPT, MOST_AT_ONCE
from nixfleet_agent.journal.store import Journal
from state_machine.state import GENESIS, Known, State
from state_machine.step import step
from state_machine.values import WallMs
from tests.unit.journal_support import KEY, OTHER_KEY, OTHER_ROLLOUT, fact, open_journal, probe, tick
from tests.unit.wire_examples import AT, EVENTS, ROLLOUT
from wire.json_value import JsonValue

DAY_MS = 86_400_000
LONG_AFTER = WallMs(AT + 91 * DAY_MS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def state_of(number: int) -> Known:
    """A state that can be told from others."""
    return Known(next_op=number)


def number_of(restored: Restored) -> tuple[int | None, int, list[int]]:
    """Which state it begins with, after which entry, and what is left to fold."""
    known = None if restored.known is None else restored.known.next_op
    return known, restored.n, [n for n, _ in restored.tail]


def with_checkpoints(path: Path, *numbers: int) -> Journal:
    """Ten entries before each checkpoint and one after the last."""
    journal = open_journal(path)
    for number in numbers:
        journal.append([tick(number)] * 10)
        journal.save_checkpoint(state_of(number))
    journal.append([tick()])
    return journal


def fold(restored: Restored) -> Known:
    state = GENESIS if restored.known is None else State(known=restored.known)
    for _, event in restored.tail:
        state = step(state, event).state
    return state.known


def tamper(path: Path, statement: str, *values: object) -> None:
    db = sqlite3.connect(path)
    with db:
        assert db.execute(statement, values).rowcount > 0
    db.close()


def test_a_restart_goes_on_from_the_newest_checkpoint(path: Path) -> None:
    journal = with_checkpoints(path, 1, 2)
    assert journal.entries_since_checkpoint == 1
    journal.close()
    again = open_journal(path)
    assert again.entries_since_checkpoint == 1
    assert number_of(again.restore()) == (2, 20, [21])
    again.close()


def test_without_a_checkpoint_everything_is_folded(path: Path) -> None:
    journal = with_checkpoints(path)
    assert number_of(journal.restore()) == (None, 0, [1])
    journal.close()


def test_a_checkpoint_and_the_tail_amount_to_the_fold_from_nothing(path: Path) -> None:
    journal = open_journal(path)
    state = GENESIS
    for count, event in enumerate(EVENTS, 1):
        outcome = step(state, event)
        journal.append([(event, outcome.facts)])
        state = outcome.state
        if count % 5 == 0:
            journal.save_checkpoint(state.known)
    assert fold(journal.restore()) == state.known
    journal.close()
    with JournalReader(path) as reader:
        assert fold(reader.restore()) == fold(reader.restore_oldest()) == state.known
        assert reader.restore_oldest().n == 0


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE checkpoints SET body = replace(body, '\"next_op\":3', '\"next_op\":9') WHERE n = 30",
        "UPDATE checkpoints SET body = 'torn' WHERE n = 30",
        "UPDATE checkpoints SET signature = zeroblob(64) WHERE n = 30",
        "UPDATE checkpoints SET n = 31 WHERE n = 30",
        "DELETE FROM checkpoints WHERE n = 30",
    ],
)
def test_a_checkpoint_that_does_not_prove_is_passed_over_for_an_older_one(path: Path, harm: str) -> None:
    with_checkpoints(path, 1, 2, 3).close()
    tamper(path, harm.replace("replace(body", "replace(CAST(body AS TEXT)"))
    journal = open_journal(path)
    assert number_of(journal.restore()) == (2, 20, list(range(21, 32)))
    assert journal.entries_since_checkpoint == 11
    journal.close()


def test_a_checkpoint_by_another_key_or_of_another_journal_is_passed_over(path: Path, tmp_path: Path) -> None:
    with_checkpoints(path, 1, 2).close()
    db = sqlite3.connect(path)
    [body] = db.execute("SELECT body FROM checkpoints WHERE n = 20").fetchone()
    db.close()
    said = json.loads(body)
    said["journal"] = "00" * 16
    foreign = canonicalize(said)
    for text, key in ((body, OTHER_KEY), (foreign, KEY)):
        tamper(path, "UPDATE checkpoints SET body = ?, signature = ? WHERE n = 20", text, key.sign(text))
        journal = open_journal(path)
        assert number_of(journal.restore())[:2] == (1, 10)
        journal.close()


def test_a_checkpoint_of_a_version_that_folds_differently_is_not_built_on(path: Path) -> None:
    with_checkpoints(path, 1, 2).close()
    resign(path, 20, version=STATE_VERSION + 1)
    journal = open_journal(path)
    assert number_of(journal.restore())[:2] == (1, 10)
    journal.close()


def test_a_checkpoint_with_a_state_nobody_can_read_is_passed_over(path: Path) -> None:
    with_checkpoints(path, 1, 2).close()
    resign(path, 20, known={"next_op": "two"})
    journal = open_journal(path)
    assert number_of(journal.restore())[:2] == (1, 10)
    journal.close()


def resign(path: Path, n: int, **changes: JsonValue) -> None:
    db = sqlite3.connect(path)
    [body] = db.execute("SELECT body FROM checkpoints WHERE n = ?", (n,)).fetchone()
    db.close()
    text = canonicalize({**json.loads(body), **changes})
    tamper(path, "UPDATE checkpoints SET body = ?, signature = ? WHERE n = ?", text, KEY.sign(text), n)


def test_only_a_few_checkpoints_are_kept_and_the_oldest_among_them(path: Path) -> None:
    with_checkpoints(path, *range(1, 9)).close()
    db = sqlite3.connect(path)
    kept = [n for (n,) in db.execute("SELECT n FROM checkpoints ORDER BY n")]
    db.close()
    assert kept == [10, 60, 70, 80]
    assert len(kept) == KEPT + 1


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        ("UPDATE entries SET body = CAST(replace(body, 'Tick', 'Tock') AS BLOB) WHERE n = 15", "entry 15 is not what"),
        ("DELETE FROM entries WHERE n = 15", "entry 16 does not follow entry 14"),
        ("UPDATE entries SET n = n + 100 WHERE n > 15", "entry 116 does not follow entry 15"),
    ],
)
def test_a_damaged_entry_is_found_when_it_is_folded(path: Path, harm: str, problem: str) -> None:
    journal = open_journal(path)
    journal.append([tick()] * 20)
    journal.close()
    tamper(path, harm)
    journal = open_journal(path)
    with pytest.raises(CorruptJournalError, match=problem):
        list(journal.restore().tail)
    journal.close()


@pytest.mark.parametrize("harm", ["idx = 'first'", "idx = 7", "n = 3", "n = NULL", "seq = 9"])
def test_a_damaged_index_of_facts_never_yields_another_fact(path: Path, harm: str) -> None:
    journal = open_journal(path)
    journal.append([probe(fact(1)), probe(fact(2)), tick()])
    journal.close()
    db = sqlite3.connect(path)
    with contextlib.suppress(sqlite3.IntegrityError):  # what the schema itself refuses need not be found
        db.execute(f"UPDATE facts SET {harm} WHERE seq = 2")
        db.commit()
    db.close()
    journal = open_journal(path)
    try:
        handed_out = [(item.fact.seq, item.n) for item in journal.facts_from(ROLLOUT, 2, 9)]
    except CorruptJournalError as error:
        handed_out = []
        assert_names_the_fact(error)
    journal.close()
    assert handed_out in ([], [(2, 2)])


def assert_names_the_fact(error: CorruptJournalError) -> None:
    assert "is not where it should be, in entry" in str(error)


def test_an_entry_that_was_swapped_for_a_whole_one_is_found_by_the_next(path: Path) -> None:
    journal = open_journal(path)
    journal.append([tick()] * 20)
    journal.close()
    body = b'{"event":{"at":{"mono_ms":0,"wall_ms":0},"kind":"Tick"},"facts":[],"n":15}'
    prev = journal_row(path, 14)
    body = canonicalize({**json.loads(body), "prev": prev.hex()})
    tamper(path, "UPDATE entries SET body = ?, hash = ? WHERE n = 15", body, hashlib.sha256(body).digest())
    journal = open_journal(path)
    with pytest.raises(CorruptJournalError, match="entry 16 does not follow entry 15"):
        list(journal.restore().tail)
    journal.close()


def journal_row(path: Path, n: int) -> bytes:
    db = sqlite3.connect(path)
    [digest] = db.execute("SELECT hash FROM entries WHERE n = ?", (n,)).fetchone()
    db.close()
    assert isinstance(digest, bytes)
    return digest


def test_a_checkpoint_of_a_history_that_was_cut_off_is_not_built_on(path: Path) -> None:
    with_checkpoints(path, 1, 2).close()
    tamper(path, "DELETE FROM entries WHERE n > 15")
    journal = open_journal(path)
    journal.append([tick(5)] * 10)
    assert number_of(journal.restore())[:2] == (1, 10)
    journal.close()
    report = verify(path, KEY.public)
    assert report.fault is not None
    assert report.fault.fault is Fault.REWRITTEN


def test_an_entry_of_a_newer_agent_is_no_damage(path: Path) -> None:
    journal = open_journal(path)
    [entry] = journal.append([tick()])
    journal.close()
    body = entry.body.replace(b'"Tick"', b'"MoonRose"')
    digest = hashlib.sha256(body).digest()
    tamper(path, "UPDATE entries SET body = ?, hash = ?, signature = ?", body, digest, KEY.sign(body))
    journal = open_journal(path)
    with pytest.raises(NewerJournalError, match=r"event of entry 1: .*'MoonRose' is unknown; run that agent"):
        list(journal.restore().tail)
    journal.close()


# What is forgotten


def filled(path: Path, count: int) -> Journal:
    """Entries with a fact in every hundredth, and a checkpoint before the last hundred."""
    journal = open_journal(path)
    batch = [probe(fact(n // 100 + 1)) if n % 100 == 0 else tick() for n in range(count)]
    journal.append(batch[:-100])
    journal.save_checkpoint(state_of(7))
    journal.append(batch[-100:])
    return journal


def everything(_: object) -> int:
    return 10**6


def test_old_delivered_entries_go_and_the_chain_verifies_from_the_cut(path: Path) -> None:
    journal = filled(path, 3000)
    facts_before = journal.facts_from(ROLLOUT, 25, 10)
    assert journal.prune(now=LONG_AFTER, delivered=everything) == 3000 - ALWAYS_KEPT
    assert journal.prune(now=LONG_AFTER, delivered=everything) == 0
    assert journal.facts_from(ROLLOUT, 25, 10) == facts_before
    assert [item.fact.seq for item in journal.facts_from(ROLLOUT, 1, 1)] == [21]
    journal.append([tick()])
    journal.close()
    report = verify(path, KEY.public, host="node7")
    assert (report.ok, report.good, report.head.n) == (True, ALWAYS_KEPT + 1, 3001)
    again = open_journal(path)
    assert number_of(again.restore()) == (7, 2900, list(range(2901, 3002)))
    again.close()


def test_prev_of_the_first_fact_after_a_cut_is_what_it_was_before(path: Path) -> None:
    journal = filled(path, 3000)
    before = {item.fact.seq: item.prev for item in journal.facts_from(ROLLOUT, 1, 100)}
    journal.prune(now=LONG_AFTER, delivered=everything)
    after = {item.fact.seq: item.prev for item in journal.facts_from(ROLLOUT, 1, 100)}
    assert min(after) == 21
    assert after == {seq: prev for seq, prev in before.items() if seq >= 21}
    journal.close()


def test_prev_survives_a_second_cut_that_takes_no_facts(path: Path) -> None:
    journal = open_journal(path)
    journal.append([probe(fact(1)), *[tick(number) for number in range(2500)], probe(fact(2))])
    journal.save_checkpoint(state_of(1))
    before = journal.facts_from(ROLLOUT, 2, 1)
    assert journal.prune(now=WallMs(AT + 90 * DAY_MS + 500_000), delivered=everything) == 501
    assert journal.prune(now=WallMs(AT + 90 * DAY_MS + 900_000), delivered=everything) == 400
    assert journal.facts_from(ROLLOUT, 2, 1) == before
    assert before[0].prev is not None
    journal.close()


def test_what_was_not_delivered_stays_with_everything_after_it(path: Path) -> None:
    journal = filled(path, 3000)
    assert journal.prune(now=LONG_AFTER, delivered=lambda _: 4) == 400
    assert [item.fact.seq for item in journal.facts_from(ROLLOUT, 1, 1)] == [5]
    journal.close()


def test_each_rollout_counts_by_its_own_watermark(path: Path) -> None:
    journal = open_journal(path)
    journal.append([probe(fact(1)), probe(fact(1, OTHER_ROLLOUT)), *[tick()] * 2000])
    journal.save_checkpoint(state_of(1))
    assert journal.prune(now=LONG_AFTER, delivered=lambda rollout: 1 if rollout == ROLLOUT else 0) == 1
    journal.close()


def test_what_no_checkpoint_covers_stays(path: Path) -> None:
    journal = open_journal(path)
    journal.append([tick()] * 3000)
    assert journal.prune(now=LONG_AFTER, delivered=everything) == 0
    journal.close()


def test_young_entries_stay_until_the_file_is_too_large(path: Path) -> None:
    journal = filled(path, 3000)
    assert journal.prune(now=AT, delivered=everything) == 0
    assert journal.prune(now=AT, delivered=everything, keep_bytes=900_000) > 0
    while journal.prune(now=AT, delivered=everything, keep_bytes=100_000):
        pass
    journal.close()
    assert path.stat().st_size < 900_000
    assert verify(path, KEY.public).good == ALWAYS_KEPT


def test_a_clock_that_jumped_to_2100_costs_only_what_is_old_by_number_too(path: Path) -> None:
    journal = filled(path, 1500)
    journal.prune(now=WallMs(4_102_444_800_000), delivered=everything)
    journal.close()
    assert verify(path, KEY.public).good == ALWAYS_KEPT


def test_one_call_forgets_a_bounded_part(path: Path) -> None:
    journal = open_journal(path)
    journal.append([tick()] * (MOST_AT_ONCE + 2000))
    journal.save_checkpoint(state_of(1))
    assert journal.prune(now=LONG_AFTER, delivered=everything) == MOST_AT_ONCE
    assert journal.prune(now=LONG_AFTER, delivered=everything) == 1000
    journal.close()


def test_after_a_cut_even_a_checkpoint_of_another_version_is_better_than_nothing(path: Path) -> None:
    journal = filled(path, 3000)
    journal.prune(now=LONG_AFTER, delivered=everything)
    journal.close()
    resign(path, 2900, version=STATE_VERSION + 1)
    again = open_journal(path)
    assert number_of(again.restore())[:2] == (7, 2900)
    again.close()
    with JournalReader(path, KEY.public) as reader:
        assert number_of(reader.restore_oldest())[:2] == (7, 2900)


def test_after_a_cut_without_any_checkpoint_the_journal_says_that_it_cannot_tell(path: Path) -> None:
    journal = filled(path, 3000)
    journal.prune(now=LONG_AFTER, delivered=everything)
    journal.close()
    tamper(path, "DELETE FROM checkpoints")
    again = open_journal(path)
    with pytest.raises(CorruptJournalError, match="entries up to 2000 were cut off, and no checkpoint"):
        again.restore()
    again.close()


def test_an_anchor_that_the_host_did_not_sign_is_found(path: Path) -> None:
    journal = filled(path, 3000)
    journal.close()
    db = sqlite3.connect(path)
    [digest] = db.execute("SELECT hash FROM entries WHERE n = 2500").fetchone()
    [name] = db.execute("SELECT id FROM journal").fetchone()
    db.close()
    forged = canonicalize(
        {"mark": "anchor", "journal": name, "host": "node7", "n": 2500, "hash": digest.hex(), "last_facts": None}
    )
    tamper(path, "DELETE FROM entries WHERE n <= 2500")
    tamper(path, "INSERT INTO anchor VALUES (2500, ?, ?)", forged, OTHER_KEY.sign(forged))
    report = verify(path, KEY.public)
    assert report.fault is not None
    assert (report.fault.fault, report.fault.n) == (Fault.BAD_SIGNATURE, 2500)
    assert "cut off is not signed by this host's key" in str(report.fault)


# What verification finds


def test_a_truncated_tail_is_found_against_what_others_have_seen(path: Path) -> None:
    journal = open_journal(path)
    entries = journal.append([tick(), probe(fact(1)), tick()])
    journal.close()
    assert verify(path, KEY.public, witnesses=[entries[2].anchor]).ok
    tamper(path, "DELETE FROM entries WHERE n = 3")
    assert verify(path, KEY.public).ok
    report = verify(path, KEY.public, witnesses=[entries[2].anchor])
    assert report.fault is not None
    assert (report.fault.fault, report.fault.n) == (Fault.TAIL_MISSING, 3)


def test_a_truncated_tail_is_found_against_the_journals_own_checkpoint(path: Path) -> None:
    with_checkpoints(path, 1, 2).close()
    tamper(path, "DELETE FROM entries WHERE n > 15")
    report = verify(path, KEY.public)
    assert report.fault is not None
    assert report.fault.fault is Fault.TAIL_MISSING


def test_a_second_history_is_found_against_what_others_have_seen(path: Path) -> None:
    journal = open_journal(path)
    journal.append([tick()] * 3)
    journal.close()
    report = verify(path, KEY.public, witnesses=[Anchor(n=2, hash=bytes(32))])
    assert report.fault is not None
    assert (report.fault.fault, report.fault.n) == (Fault.REWRITTEN, 2)


@pytest.mark.parametrize(
    ("harm", "fault", "n"),
    [
        ("UPDATE entries SET body = CAST(replace(body, 'Tick', 'Tock') AS BLOB) WHERE n = 2", Fault.EDITED, 2),
        ("DELETE FROM entries WHERE n = 2", Fault.REMOVED, 3),
        ("UPDATE entries SET signature = zeroblob(64) WHERE n = 2", Fault.BAD_SIGNATURE, 2),
        ("UPDATE entries SET hash = zeroblob(32) WHERE n = 3", Fault.EDITED, 3),
        ("UPDATE entries SET n = 9 WHERE n = 4", Fault.EDITED, 9),
    ],
)
def test_verification_names_the_first_bad_entry(path: Path, harm: str, fault: Fault, n: int) -> None:
    journal = open_journal(path)
    journal.append([tick(number) for number in range(4)])
    journal.close()
    tamper(path, harm)
    report = verify(path, KEY.public)
    assert report.fault is not None
    assert (report.fault.fault, report.fault.n) == (fault, n)


def test_the_journal_of_another_key_does_not_verify(path: Path) -> None:
    with_checkpoints(path, 1).close()
    report = verify(path, OTHER_KEY.public)
    assert report.fault is not None
    assert report.fault.fault is Fault.WRONG_KEY
    assert attrs.asdict(report.head)["n"] == 0
