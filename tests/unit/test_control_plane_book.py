"""What follows from each entry of the log, and that the disk holds the same as memory."""

import sqlite3
from pathlib import Path

import attrs
import pytest

from control_plane.book import Book
from control_plane.entries import (
    ENTRY_KINDS,
    ArtifactAdopted,
    ArtifactKind,
    BootstrapReported,
    CertificateIssued,
    DispatchQueued,
    DispatchSent,
    DispatchWithdrawn,
    Entry,
    FactAccepted,
    FactRefused,
    HostChanged,
    HostsHeld,
    Issuance,
    MachineRegistered,
    QuarantineLifted,
    RollbackAsked,
    RolloutPruned,
    WaveBegan,
)
from control_plane.records import decode_entry, decode_row, encode_entry, encode_row, kind_of
from control_plane.rows import (
    TABLES,
    Artifact,
    Certificate,
    Host,
    Mirror,
    Put,
    Quarantined,
    QueuedDispatch,
    Rollout,
    UsedNonce,
)
from control_plane.schema import open_database, rebuild, write_changes
from state_machine.events import DispatchKind
from state_machine.facts import (
    ActivationCompleted,
    ActivationFailed,
    ActivationStarted,
    Converged,
    DispatchAck,
    DispatchReject,
    Fact,
    ProbeResult,
    RollbackComplete,
    RollbackRequested,
)
from state_machine.lifecycle import HostRollout, fold
from state_machine.lifecycle import opened as opened_record
from state_machine.values import (
    HostName,
    Phase,
    ProbeMode,
    ProbeStatus,
    Reason,
    RolloutId,
    SubResult,
    SwitchMethod,
    WallMs,
)
from tests.unit.control_plane_worlds import AT, OLD, ROLLOUT, STABLE, accepted, closure, opened, target, told

WEB1, WEB2 = HostName("web1"), HostName("web2")
NEXT = RolloutId("stable@dead01")


def ack(seq: int = 1) -> DispatchAck:
    return DispatchAck(seq=seq, current_closure_at_dispatch=OLD, received_at=AT)


def started(seq: int) -> ActivationStarted:
    return ActivationStarted(seq=seq, started_at=AT, switch_method=SwitchMethod.DETACHED)


def completed(seq: int, host: HostName = WEB1) -> ActivationCompleted:
    return ActivationCompleted(seq=seq, observed_current_closure=target(host), exit_code=0, completed_at=AT)


def queued(host: HostName = WEB1, kind: DispatchKind = DispatchKind.DISPATCH) -> DispatchQueued:
    return DispatchQueued(hostname=host, rollout_id=ROLLOUT, kind=kind, target_closure=target(host), soak_secs=60)


HISTORY: tuple[Fact, ...] = (
    ack(),
    started(2),
    completed(3),
    Converged(seq=4, converged_at=AT, current_closure=target(WEB1)),
)
REVERTED: tuple[Fact, ...] = (
    ack(),
    ActivationFailed(seq=2, exit_code=1, stderr_tail="no", failed_at=AT),
    RollbackComplete(seq=3, reverted_to_closure=OLD, exit_code=0, completed_at=AT),
)

EVERYTHING: tuple[Entry, ...] = (
    ArtifactAdopted(kind=ArtifactKind.FLEET, digest="f", signed_at=AT, key_id="k"),
    ArtifactAdopted(
        kind=ArtifactKind.ROLLOUT, digest="m", signed_at=AT, key_id="k", channel=STABLE, rollout_id=ROLLOUT
    ),
    opened(),
    WaveBegan(rollout_id=ROLLOUT, wave_index=1),
    HostsHeld(rollout_id=ROLLOUT, gate="wave-promotion", hosts=(WEB2,), why="because"),
    queued(),
    DispatchSent(hostname=WEB1, rollout_id=ROLLOUT, kind=DispatchKind.DISPATCH),
    *(accepted("web1", fact) for fact in HISTORY),
    queued(WEB2),
    *(accepted("web2", fact) for fact in REVERTED),
    FactRefused(
        hostname=HostName("web3"), rollout_id=ROLLOUT, seq=1, event="{}", status=409, reason="illegal", detail="no"
    ),
    queued(HostName("web3")),
    DispatchWithdrawn(hostname=HostName("web3"), rollout_id=ROLLOUT, kind=DispatchKind.DISPATCH, why="halted"),
    RollbackAsked(rollout_id=ROLLOUT, hosts=(WEB1,), reason="why not", by="alice"),
    queued(WEB1, DispatchKind.ROLLBACK),
    MachineRegistered(hostname=HostName("db9"), by="alice", note="rack 4"),
    CertificateIssued(
        hostname=WEB1, serial="ab", not_before=AT, not_after=WallMs(AT + 1), why=Issuance.ENROLL, nonce="n1"
    ),
    HostChanged(hostname=WEB1, boot_id="b", current_closure=OLD, health={"pass": 1}, expected=target(WEB1)),
    BootstrapReported(hostname=WEB2, agent_version="1", event="trust-error", details={"a": [1, None]}),
    opened("web1", rollout=NEXT),
    RolloutPruned(rollout_id=RolloutId("stable@0000")),
    QuarantineLifted(by="alice", channel=STABLE, hostname=HostName("nobody")),
)


def test_the_examples_hold_every_kind_of_entry_and_fill_every_table() -> None:
    assert {type(entry) for entry in EVERYTHING} == set(ENTRY_KINDS)
    book = told(Book(), *EVERYTHING)
    assert all(book.all(row_type) for row_type in TABLES if row_type is not QueuedDispatch)


@pytest.mark.parametrize("entry", EVERYTHING, ids=kind_of)
def test_every_entry_reads_back_as_it_was_written(entry: Entry) -> None:
    assert decode_entry(kind_of(entry), encode_entry(entry)) == entry


def test_every_row_reads_back_as_it_was_written() -> None:
    book = Book()
    for entry in EVERYTHING:
        for change in book.apply(entry, AT):
            if isinstance(change, Put):
                assert decode_row(type(change.row), encode_row(change.row)) == change.row


def test_the_tables_written_step_by_step_are_those_that_a_rebuild_makes(tmp_path: Path) -> None:
    connection = open_database(tmp_path / "state.db")
    book = Book()
    for number, entry in enumerate(EVERYTHING):
        at = WallMs(AT + number)
        _insert(connection, entry, at)
        write_changes(connection, book.apply(entry, at))
    before = _tables(connection)
    assert rebuild(connection) == len(EVERYTHING)
    assert _tables(connection) == before
    connection.close()


def _insert(connection: sqlite3.Connection, entry: Entry, at: WallMs) -> None:
    connection.execute(
        "INSERT INTO log (at_ms, kind, body) VALUES (?, ?, ?)", (at, kind_of(entry), encode_entry(entry))
    )


def _tables(connection: sqlite3.Connection) -> dict[str, list[object]]:
    return {table.name: connection.execute(f"SELECT * FROM {table.name}").fetchall() for table in TABLES.values()}


def test_a_mirror_is_the_fold_of_its_hosts_facts() -> None:
    book = told(Book(), opened(), *(accepted("web1", fact) for fact in HISTORY))
    record = opened_record(ROLLOUT, WEB1, target(WEB1))
    for fact in HISTORY:
        after = fold(record, fact)
        assert isinstance(after, HostRollout)
        record = after
    mirror = book.get(Mirror, ROLLOUT, WEB1)
    assert mirror is not None
    assert mirror.record == record


def test_a_refused_fact_uses_up_its_number_and_nothing_else() -> None:
    refused = FactRefused(
        hostname=WEB1, rollout_id=ROLLOUT, seq=1, event="{}", status=409, reason="illegal", detail="no"
    )
    book = told(Book(), opened(), refused, accepted("web1", ack(seq=2)))
    mirror = book.get(Mirror, ROLLOUT, WEB1)
    assert mirror is not None
    assert (mirror.record.phase, mirror.record.last_seq) == (Phase.ACTIVATING, 2)


def test_a_fact_of_a_kind_this_version_no_longer_knows_does_not_stop_a_rebuild() -> None:
    news = FactAccepted(hostname=WEB1, rollout_id=ROLLOUT, seq=1, event='{"kind":"MoonPhaseObserved","seq":1}')
    book = told(Book(), opened(), news, accepted("web1", ack(seq=2)))
    mirror = book.get(Mirror, ROLLOUT, WEB1)
    assert mirror is not None
    assert mirror.record.phase is Phase.ACTIVATING


@pytest.mark.parametrize(
    "answer",
    [ack(), DispatchReject(seq=1, reason=Reason.BUSY, rejected_at=AT)],
    ids=lambda fact: type(fact).__name__,
)
def test_a_dispatch_is_settled_by_the_hosts_answer(answer: Fact) -> None:
    book = told(Book(), opened(), queued())
    assert len(book.all(QueuedDispatch)) == 1
    told(book, accepted("web1", answer))
    assert not book.all(QueuedDispatch)


def test_a_rollback_is_settled_when_the_host_honours_it() -> None:
    history = [accepted("web1", fact) for fact in HISTORY]
    book = told(Book(), opened(), *history, queued(WEB1, DispatchKind.ROLLBACK))
    assert len(book.all(QueuedDispatch)) == 1
    told(book, accepted("web1", RollbackRequested(seq=5, reason="r", requested_at=AT)))
    assert not book.all(QueuedDispatch)


def test_a_rollback_quarantines_the_closure_for_its_channel_and_its_host() -> None:
    book = told(Book(), opened(), *(accepted("web2", fact) for fact in REVERTED))
    [row] = book.all(Quarantined)
    assert (row.channel, row.closure, row.hostname) == (STABLE, target(WEB2), WEB2)
    told(book, QuarantineLifted(by="alice", closure=closure("9")))
    assert book.all(Quarantined)
    told(book, QuarantineLifted(by="alice", closure=target(WEB2)))
    assert not book.all(Quarantined)


def test_a_newer_rollout_supersedes_and_takes_back_what_was_queued() -> None:
    book = told(Book(), opened(), queued(), opened("web1", rollout=NEXT))
    old = book.get(Rollout, ROLLOUT)
    assert old is not None
    assert (old.superseded_by, old.superseded_at) == (NEXT, AT)
    assert not book.all(QueuedDispatch)
    current = book.current(STABLE)
    assert current is not None
    assert current.rollout_id == NEXT


def test_a_rollout_is_over_when_its_last_planned_host_has_converged() -> None:
    book = told(Book(), opened("web1"), *(accepted("web1", fact) for fact in HISTORY[:-1]))
    rollout = book.get(Rollout, ROLLOUT)
    assert rollout is not None
    assert rollout.terminal_at is None
    told(book, accepted("web1", HISTORY[-1]), at=WallMs(AT + 5))
    rollout = book.get(Rollout, ROLLOUT)
    assert rollout is not None
    assert rollout.terminal_at == AT + 5


def test_a_host_learns_the_target_of_a_rollout_nobody_here_knows() -> None:
    book = told(Book(), *(accepted("web1", fact) for fact in HISTORY))
    mirror = book.get(Mirror, ROLLOUT, WEB1)
    assert mirror is not None
    assert (mirror.record.phase, mirror.record.target_closure, mirror.planned) == (Phase.CONVERGED, target(WEB1), False)
    assert book.current(STABLE) is None  # what a host says alone is never planned from
    told(book, opened())
    mirror = book.get(Mirror, ROLLOUT, WEB1)
    assert mirror is not None
    assert (mirror.record.phase, mirror.planned) == (Phase.CONVERGED, True)


def test_a_nonce_and_its_certificate_are_one_entry() -> None:
    issued = CertificateIssued(
        hostname=WEB1, serial="ab", not_before=AT, not_after=WallMs(AT + 9), why=Issuance.ENROLL, nonce="n1"
    )
    changes = Book().apply(issued, AT)
    assert [type(change.row) for change in changes if isinstance(change, Put)] == [Certificate, UsedNonce, Host]


def test_failing_controls_are_cleared_by_a_later_pass() -> None:
    def result(seq: int, status: ProbeStatus) -> ProbeResult:
        sub = SubResult(control_id="ac-1", status=status, framework="f")
        return ProbeResult(
            seq=seq, probe_name="p", mode=ProbeMode.ENFORCE, status=status, observed_at=AT, sub_results=(sub,)
        )

    book = told(Book(), opened(), *(accepted("web1", fact) for fact in HISTORY[:3]))
    told(book, accepted("web1", result(4, ProbeStatus.FAIL)))
    mirror = book.get(Mirror, ROLLOUT, WEB1)
    assert mirror is not None
    assert mirror.failing_controls == {"p": ("ac-1",)}
    told(book, accepted("web1", result(5, ProbeStatus.PASS)))
    mirror = book.get(Mirror, ROLLOUT, WEB1)
    assert mirror is not None
    assert mirror.failing_controls == {}


def test_pruning_lets_the_hosts_go_and_keeps_the_rollouts_name() -> None:
    book = told(Book(), opened(), accepted("web1", ack()), RolloutPruned(rollout_id=ROLLOUT))
    assert not book.all(Mirror)
    assert book.acknowledged_by(WEB1) is None
    rollout = book.get(Rollout, ROLLOUT)
    assert rollout is not None
    assert rollout.pruned_at == AT


def test_the_last_acknowledged_rollout_of_a_host_is_found_whatever_the_order_of_loading() -> None:
    later = attrs.evolve(ack(), received_at=WallMs(AT + 1000))
    book = told(
        Book(), opened(), accepted("web1", ack()), opened("web1", rollout=NEXT), accepted("web1", later, rollout=NEXT)
    )
    for rows in (list(book.all(Mirror)), list(reversed(list(book.all(Mirror))))):
        loaded = Book()
        for row in rows:
            loaded.put(row)
        latest = loaded.acknowledged_by(WEB1)
        assert latest is not None
        assert latest.rollout_id == NEXT


def test_an_artifact_mark_is_kept_for_each_channel() -> None:
    book = told(Book(), *EVERYTHING[:2])
    assert book.get(Artifact, ArtifactKind.FLEET, "") is not None
    assert book.get(Artifact, ArtifactKind.ROLLOUT, STABLE) is not None
    assert book.get(Artifact, ArtifactKind.ROLLOUT, "edge") is None
