"""Whatever happens, in whatever order: applying never fails, and the log alone gives the same tables."""

import sqlite3
from pathlib import Path
from typing import Final

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from control_plane.book import Book
from control_plane.entries import (
    CertificateIssued,
    DispatchQueued,
    DispatchSent,
    DispatchWithdrawn,
    Entry,
    FactRefused,
    HostChanged,
    Issuance,
    QuarantineLifted,
    RollbackAsked,
    RolloutOpened,
    RolloutPruned,
    WaveBegan,
)
from control_plane.records import encode_entry, kind_of
from control_plane.rows import TABLES, Mirror, Rollout
from control_plane.schema import load_book, open_database, rebuild, write_changes
from state_machine.events import DispatchKind
from state_machine.facts import (
    ActivationCompleted,
    ActivationFailed,
    Converged,
    DispatchAck,
    DispatchReject,
    DriftObserved,
    Fact,
    RollbackComplete,
    RollbackRequested,
)
from state_machine.values import Channel, HostName, Reason, RolloutId, WallMs
from tests.unit.control_plane_worlds import AT, HOSTS, OLD, STABLE, accepted, opened, target

ROLLOUTS: Final = (RolloutId("stable@01"), RolloutId("stable@02"), RolloutId("edge@01"))

hosts = st.sampled_from(HOSTS)
rollouts = st.sampled_from(ROLLOUTS)
kinds = st.sampled_from(DispatchKind)


def facts(host: HostName, seq: int) -> tuple[Fact, ...]:
    goal = target(host)
    return (
        DispatchAck(seq=seq, current_closure_at_dispatch=OLD, received_at=WallMs(AT + seq)),
        DispatchReject(seq=seq, reason=Reason.BUSY, rejected_at=AT),
        ActivationCompleted(seq=seq, observed_current_closure=goal, exit_code=0, completed_at=AT),
        ActivationFailed(seq=seq, exit_code=1, stderr_tail="", failed_at=AT),
        Converged(seq=seq, converged_at=AT, current_closure=goal),
        RollbackRequested(seq=seq, reason="", requested_at=AT),
        RollbackComplete(seq=seq, reverted_to_closure=OLD, exit_code=0, completed_at=AT),
        DriftObserved(seq=seq, expected_closure=goal, observed_closure=OLD, observed_at=AT),
    )


@st.composite
def fact_entries(draw: st.DrawFn) -> Entry:
    host, seq = draw(hosts), draw(st.integers(1, 6))
    return accepted(host, draw(st.sampled_from(facts(host, seq))), rollout=draw(rollouts))


@st.composite
def openings(draw: st.DrawFn) -> RolloutOpened:
    rollout = draw(rollouts)
    opening = opened(*draw(st.sets(hosts, min_size=1)), rollout=rollout)
    same_as = draw(st.none() | rollouts)
    return attrs.evolve(opening, channel=Channel(rollout.partition("@")[0]), same_as=same_as)


entries: st.SearchStrategy[Entry] = st.one_of(
    fact_entries(),
    fact_entries(),
    fact_entries(),
    openings(),
    st.builds(
        FactRefused,
        hostname=hosts,
        rollout_id=rollouts,
        seq=st.integers(1, 6),
        event=st.just("{}"),
        status=st.just(409),
        reason=st.just("illegal"),
        detail=st.just(""),
    ),
    st.builds(
        DispatchQueued,
        hostname=hosts,
        rollout_id=rollouts,
        kind=kinds,
        target_closure=st.just(OLD),
        soak_secs=st.just(0),
    ),
    st.builds(DispatchSent, hostname=hosts, rollout_id=rollouts, kind=kinds),
    st.builds(DispatchWithdrawn, hostname=hosts, rollout_id=rollouts, kind=kinds, why=st.just("")),
    st.builds(WaveBegan, rollout_id=rollouts, wave_index=st.integers(0, 3)),
    st.builds(RolloutPruned, rollout_id=rollouts),
    st.builds(RollbackAsked, rollout_id=rollouts, hosts=st.just(()), reason=st.just(""), by=st.just("alice")),
    st.builds(QuarantineLifted, by=st.just("alice"), channel=st.just(STABLE), hostname=st.none() | hosts),
    st.builds(HostChanged, hostname=hosts, boot_id=st.sampled_from(("a", "b"))),
    st.builds(
        CertificateIssued,
        hostname=hosts,
        serial=st.sampled_from(("1", "2", "3")),
        not_before=st.just(AT),
        not_after=st.just(AT),
        why=st.sampled_from(Issuance),
        nonce=st.none() | st.sampled_from(("n1", "n2")),
    ),
)


def dump(connection: sqlite3.Connection) -> dict[str, list[object]]:
    return {table.name: connection.execute(f"SELECT * FROM {table.name}").fetchall() for table in TABLES.values()}


def apply_all(connection: sqlite3.Connection, happened: list[Entry]) -> Book:
    book = Book()
    for number, entry in enumerate(happened):
        at = WallMs(AT + number)
        connection.execute(
            "INSERT INTO log (at_ms, kind, body) VALUES (?, ?, ?)", (at, kind_of(entry), encode_entry(entry))
        )
        write_changes(connection, book.apply(entry, at))
    return book


@settings(deadline=None)
@given(happened=st.lists(entries, max_size=40))
def test_the_log_alone_gives_the_tables_that_were_written_step_by_step(happened: list[Entry]) -> None:
    connection = open_database(Path(":memory:"))
    book = apply_all(connection, happened)
    stepwise = dump(connection)
    rebuild(connection)
    assert dump(connection) == stepwise
    loaded = load_book(connection)
    for row_type in TABLES:
        assert set(map(repr, loaded.all(row_type))) == set(map(repr, book.all(row_type)))
    connection.close()


@settings(deadline=None)
@given(happened=st.lists(entries, max_size=60))
def test_at_most_one_rollout_of_a_channel_is_current_and_indexes_agree_with_the_tables(happened: list[Entry]) -> None:
    book = Book()
    for entry in happened:
        book.apply(entry, AT)
        current = [row.channel for row in book.all(Rollout) if row.is_current]
        assert len(current) == len(set(current))
    for row in book.all(Mirror):
        assert book.mirrors_of(row.rollout_id)[row.hostname] is row
    assert sum(len(book.mirrors_of(rollout)) for rollout in ROLLOUTS) == len(book.all(Mirror))
