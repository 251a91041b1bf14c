"""No tampering with a chain goes unnoticed by a reader who has the host's public key and nothing else."""

import hashlib
from typing import Any

import attrs
from hypothesis import assume, given
from hypothesis import strategies as st

from evidence.canonical import canonicalize, parse
from evidence.chain import Fault, SealedEntry, seal, verify_chain
from tests.property.evidence_values import plain_documents
from tests.unit.test_evidence_chain import KEY, OTHER, chain

WHOLE = chain(12)
positions = st.integers(0, len(WHOLE) - 1)


def _found(entries: list[SealedEntry], first_bad: int) -> Fault:
    """The chain is refused at `first_bad` (counting from 0), after every good entry before it."""
    report = verify_chain(entries, KEY.public)
    assert report.fault is not None
    assert report.good == first_bad
    assert report.fault.position == first_bad + 1
    return report.fault.fault


def _replaced(at: int, entry: SealedEntry) -> list[SealedEntry]:
    return [*WHOLE[:at], entry, *WHOLE[at + 1 :]]


@given(st.lists(plain_documents, max_size=6))
def test_whatever_is_sealed_verifies(events: list[Any]) -> None:
    entries: list[SealedEntry] = []
    prev = bytes(32)
    for n, event in enumerate(events, 1):
        entries.append(seal(KEY, {"n": n, "prev": prev.hex(), "host": "node7", "event": event}))
        prev = entries[-1].hash
    report = verify_chain(entries, KEY.public, host="node7")
    assert report.ok
    assert report.good == len(events)


@given(positions, st.data())
def test_a_changed_byte_is_found(at: int, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(["body", "hash", "signature"]))
    old = getattr(WHOLE[at], field)
    place = data.draw(st.integers(0, len(old) - 1))
    new = old[:place] + bytes([old[place] ^ data.draw(st.integers(1, 255))]) + old[place + 1 :]
    fault = _found(_replaced(at, attrs.evolve(WHOLE[at], **{field: new})), at)
    assert fault is (Fault.BAD_SIGNATURE if field == "signature" else Fault.EDITED)


@given(positions, plain_documents)
def test_an_edit_with_its_hash_made_good_is_found(at: int, event: Any) -> None:
    body = parse(WHOLE[at].body)
    assert isinstance(body, dict)
    edited = canonicalize(body | {"event": event})
    assume(edited != WHOLE[at].body)
    forged = attrs.evolve(WHOLE[at], body=edited, hash=hashlib.sha256(edited).digest())
    assert _found(_replaced(at, forged), at) is Fault.BAD_SIGNATURE


@given(positions, plain_documents)
def test_an_edit_signed_with_another_key_is_found(at: int, event: Any) -> None:
    body = parse(WHOLE[at].body)
    assert isinstance(body, dict)
    assert _found(_replaced(at, seal(OTHER, body | {"event": event})), at) is Fault.BAD_SIGNATURE


@given(st.integers(0, len(WHOLE) - 2), plain_documents)
def test_an_edit_signed_again_by_the_host_itself_breaks_the_link_after_it(at: int, event: Any) -> None:
    body = parse(WHOLE[at].body)
    assert isinstance(body, dict)
    rewritten = seal(KEY, body | {"event": event})
    assume(rewritten.body != WHOLE[at].body)
    assert _found(_replaced(at, rewritten), at + 1) is Fault.BROKEN_LINK


@given(st.integers(0, len(WHOLE) - 2), st.integers(1, 5))
def test_removed_entries_are_found(at: int, count: int) -> None:
    assume(at + count < len(WHOLE))
    assert _found(WHOLE[:at] + WHOLE[at + count :], at) is Fault.REMOVED


@given(positions, positions)
def test_swapped_entries_are_found(one: int, other: int) -> None:
    first, second = sorted((one, other))
    assume(first != second)
    swapped = list(WHOLE)
    swapped[first], swapped[second] = swapped[second], swapped[first]
    assert _found(swapped, first) is Fault.REORDERED


@given(st.permutations(WHOLE))
def test_a_shuffled_chain_is_found(shuffled: list[SealedEntry]) -> None:
    first_bad = next((at for at, entry in enumerate(shuffled) if entry is not WHOLE[at]), None)
    if first_bad is None:
        assert verify_chain(shuffled, KEY.public).ok
    else:
        assert _found(shuffled, first_bad) is Fault.REORDERED


@given(positions, positions)
def test_a_repeated_entry_is_found(which: int, at: int) -> None:
    assume(which <= at)
    assert _found([*WHOLE[: at + 1], WHOLE[which], *WHOLE[at + 1 :]], at + 1) is Fault.REORDERED


@given(st.integers(0, len(WHOLE) - 1))
def test_a_cut_tail_is_found_only_by_a_witness(length: int) -> None:
    assert verify_chain(WHOLE[:length], KEY.public).ok
    report = verify_chain(WHOLE[:length], KEY.public, witnesses=[WHOLE[-1].anchor])
    assert report.fault is not None
    assert report.fault.fault is Fault.TAIL_MISSING


@given(st.integers(0, len(WHOLE) - 1))
def test_a_chain_verifies_from_any_cut_with_its_anchor(cut: int) -> None:
    anchor = WHOLE[cut - 1].anchor if cut else None
    report = verify_chain(WHOLE[cut:], KEY.public, anchor=anchor, witnesses=[WHOLE[-1].anchor])
    assert report.ok
    assert report.head == WHOLE[-1].anchor


entries = st.builds(
    SealedEntry,
    n=st.integers(),
    body=st.binary(max_size=40) | plain_documents.map(canonicalize) | st.sampled_from([each.body for each in WHOLE]),
    hash=st.binary(max_size=40) | st.sampled_from([each.hash for each in WHOLE]),
    signature=st.binary(max_size=70) | st.sampled_from([each.signature for each in WHOLE]),
)


@given(st.lists(entries | st.sampled_from(WHOLE), max_size=8), st.binary(max_size=40) | st.just(KEY.public))
def test_any_entries_at_all_give_a_report(made_up: list[SealedEntry], public: bytes) -> None:
    report = verify_chain(made_up, public)
    assert report.ok == (report.good == len(made_up))
    assert report.ok or str(report.fault)
    assert not report.ok or public == KEY.public or not made_up
