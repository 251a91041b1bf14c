"""The hash chain: a whole one passes, and every kind of tampering is named for what it is."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from evidence.canonical import NumberError, canonicalize, parse
from evidence.chain import (
    ENTRY_LIMIT,
    GENESIS,
    Anchor,
    EntryError,
    Fault,
    SealedEntry,
    seal,
    verify_chain,
)
from evidence.host_key import HostKey, generate_host_key
from evidence.signature import PublicKey, verify

KEY = HostKey(seed=b"the ed25519 host key of node7 --")
OTHER = HostKey(seed=b"the ed25519 host key of node8 --")
Chain = list[SealedEntry]


def chain(length: int, *, key: HostKey = KEY, host: str = "node7", after: Anchor = GENESIS) -> Chain:
    """Entries as a journal seals them, one after the other."""
    entries: Chain = []
    for _ in range(length):
        body: dict[str, Any] = {
            "n": after.n + 1,
            "prev": after.hash.hex(),
            "host": host,
            "event": {"kind": "Tick", "of": after.n},
        }
        entries.append(seal(key, body))
        after = entries[-1].anchor
    return entries


WHOLE = chain(6)


def _with_body(entry: SealedEntry, body: bytes) -> SealedEntry:
    return attrs.evolve(entry, body=body)


def _forged(entry: SealedEntry, body: bytes, key: HostKey | None = None) -> SealedEntry:
    """Another body with the hash that belongs to it, and the old signature or a new one."""
    signature = entry.signature if key is None else key.sign(body)
    return attrs.evolve(entry, body=body, hash=hashlib.sha256(body).digest(), signature=signature)


def _replaced(at: int, change: Callable[[SealedEntry], SealedEntry]) -> Chain:
    return [*WHOLE[:at], change(WHOLE[at]), *WHOLE[at + 1 :]]


def _member(entry: SealedEntry, name: str, value: Any) -> bytes:
    body = parse(entry.body)
    assert isinstance(body, dict)
    return canonicalize(body | {name: value})


def test_a_sealed_entry_is_canonical_hashed_and_signed() -> None:
    [entry] = chain(1)
    assert entry.body == b'{"event":{"kind":"Tick","of":0},"host":"node7","n":1,"prev":"' + b"0" * 64 + b'"}'
    assert entry.hash == hashlib.sha256(entry.body).digest()
    assert verify(PublicKey.ed25519(KEY.public), entry.body, entry.signature)


def test_a_whole_chain_passes_and_says_where_it_ends() -> None:
    report = verify_chain(WHOLE, KEY.public)
    assert report.ok
    assert (report.good, report.head) == (6, WHOLE[-1].anchor)


def test_an_empty_chain_passes_and_ends_where_it_began() -> None:
    report = verify_chain([], KEY.public)
    assert (report.ok, report.good, report.head) == (True, 0, GENESIS)


def test_a_chain_goes_on_after_a_cut() -> None:
    assert verify_chain(WHOLE[3:], KEY.public, anchor=WHOLE[2].anchor).ok


def test_a_chain_is_read_once_and_only_as_far_as_needed() -> None:
    def entries() -> Iterator[SealedEntry]:
        yield WHOLE[0]
        yield WHOLE[0]
        raise AssertionError("read on after the first bad entry")

    assert verify_chain(entries(), KEY.public).good == 1


TAMPERED: list[tuple[str, Chain, Fault, int, int]] = [
    # what was done; the chain; what it is called; the entry named; its place
    ("a byte changed", _replaced(2, lambda e: _with_body(e, e.body.replace(b"Tick", b"Tock"))), Fault.EDITED, 3, 3),
    ("the stored hash changed", _replaced(2, lambda e: attrs.evolve(e, hash=bytes(32))), Fault.EDITED, 3, 3),
    ("the number beside it changed", _replaced(2, lambda e: attrs.evolve(e, n=7)), Fault.EDITED, 7, 3),
    (
        "changed and hashed again",
        _replaced(2, lambda e: _forged(e, e.body.replace(b"Tick", b"Tock"))),
        Fault.BAD_SIGNATURE,
        3,
        3,
    ),
    (
        "changed, hashed and signed by another key",
        _replaced(2, lambda e: _forged(e, e.body.replace(b"Tick", b"Tock"), OTHER)),
        Fault.BAD_SIGNATURE,
        3,
        3,
    ),
    (
        "changed and signed by the host itself",
        _replaced(2, lambda e: _forged(e, e.body.replace(b"Tick", b"Tock"), KEY)),
        Fault.BROKEN_LINK,
        4,
        4,
    ),
    ("no signature", _replaced(2, lambda e: attrs.evolve(e, signature=b"")), Fault.BAD_SIGNATURE, 3, 3),
    (
        "the signature of another entry",
        _replaced(2, lambda e: attrs.evolve(e, signature=WHOLE[3].signature)),
        Fault.BAD_SIGNATURE,
        3,
        3,
    ),
    ("the first removed", WHOLE[1:], Fault.REMOVED, 2, 1),
    ("one removed", WHOLE[:2] + WHOLE[3:], Fault.REMOVED, 4, 3),
    ("two removed", WHOLE[:2] + WHOLE[4:], Fault.REMOVED, 5, 3),
    ("two swapped", [*WHOLE[:2], WHOLE[3], WHOLE[2], *WHOLE[4:]], Fault.REORDERED, 4, 3),
    ("the last moved to the front", [WHOLE[-1], *WHOLE[:-1]], Fault.REORDERED, 6, 1),
    ("one repeated", [*WHOLE[:3], WHOLE[2], *WHOLE[3:]], Fault.REORDERED, 3, 4),
    ("backwards", WHOLE[::-1], Fault.REORDERED, 6, 1),
    ("another host's chain", chain(6, key=OTHER, host="node8"), Fault.WRONG_KEY, 1, 1),
    ("another host's entry", _replaced(2, lambda e: chain(3, key=OTHER, host="node8")[2]), Fault.BAD_SIGNATURE, 3, 3),
    (
        "an entry for another host under the same key",
        _replaced(5, lambda e: _forged(e, _member(e, "host", "node8"), KEY)),
        Fault.WRONG_HOST,
        6,
        6,
    ),
    (
        "another beginning under the same key",
        [*chain(2, host="node7", after=Anchor(n=0, hash=b"\1" * 32)), *WHOLE[2:]],
        Fault.BROKEN_LINK,
        1,
        1,
    ),
    ("a space added", _replaced(2, lambda e: _forged(e, e.body + b" ", KEY)), Fault.NOT_CANONICAL, 3, 3),
    ("not JSON", _replaced(2, lambda e: _forged(e, b"x", KEY)), Fault.UNREADABLE, 3, 3),
    ("not an object", _replaced(2, lambda e: _forged(e, b"[]", KEY)), Fault.UNREADABLE, 3, 3),
    ("very deep", _replaced(2, lambda e: _forged(e, b"[" * 10_000, KEY)), Fault.UNREADABLE, 3, 3),
    ("too large", _replaced(2, lambda e: _forged(e, b'"' + b"x" * ENTRY_LIMIT + b'"', KEY)), Fault.UNREADABLE, 3, 3),
    ("without its link", _replaced(2, lambda e: _forged(e, _member(e, "prev", None), KEY)), Fault.UNREADABLE, 3, 3),
    ("with a short link", _replaced(2, lambda e: _forged(e, _member(e, "prev", "00"), KEY)), Fault.UNREADABLE, 3, 3),
    ("numbered true", _replaced(0, lambda e: _forged(e, _member(e, "n", True), KEY)), Fault.UNREADABLE, 1, 1),
    ("numbered zero", _replaced(0, lambda e: _forged(e, _member(e, "n", 0), KEY)), Fault.UNREADABLE, 1, 1),
    ("of nobody", _replaced(0, lambda e: _forged(e, _member(e, "host", ""), KEY)), Fault.UNREADABLE, 1, 1),
]


@pytest.mark.parametrize(
    ("entries", "fault", "n", "position"), [pytest.param(*rest, id=name) for name, *rest in TAMPERED]
)
def test_tampering_is_named_with_the_entry_it_was_done_to(entries: Chain, fault: Fault, n: int, position: int) -> None:
    report = verify_chain(entries, KEY.public)
    assert report.fault is not None
    assert (report.fault.fault, report.fault.n, report.fault.position) == (fault, n, position)
    assert report.good == position - 1
    assert str(report.fault).startswith(f"entry {n}: {fault}: ")


def test_a_single_entry_of_another_key_is_a_bad_signature() -> None:
    # With one entry nothing tells a foreign key from a forged entry.
    report = verify_chain(chain(1, key=OTHER), KEY.public)
    assert report.fault is not None
    assert report.fault.fault is Fault.BAD_SIGNATURE


def test_a_tail_signed_with_another_key_is_a_bad_signature_where_it_begins() -> None:
    tail = chain(3, key=OTHER, after=WHOLE[2].anchor)
    report = verify_chain(WHOLE[:3] + tail, KEY.public)
    assert report.fault is not None
    assert (report.fault.fault, report.fault.n) == (Fault.BAD_SIGNATURE, 4)


@pytest.mark.parametrize("public", [b"", b"x" * 31, bytes(32), b"\xff" * 32])
def test_a_public_key_that_is_none_is_a_wrong_key(public: bytes) -> None:
    report = verify_chain(WHOLE, public)
    assert report.fault is not None
    assert report.fault.fault is Fault.WRONG_KEY


def test_the_expected_host_is_held_to_when_it_is_given() -> None:
    assert verify_chain(WHOLE, KEY.public, host="node7").ok
    report = verify_chain(WHOLE, KEY.public, host="node8")
    assert report.fault is not None
    assert report.fault.fault is Fault.WRONG_HOST
    assert report.fault.n == 1


@pytest.mark.parametrize(
    ("entries", "anchor", "fault"),
    [
        (WHOLE[3:], Anchor(n=3, hash=bytes(32)), Fault.BROKEN_LINK),
        (WHOLE[3:], WHOLE[1].anchor, Fault.REMOVED),
        (WHOLE[3:], WHOLE[3].anchor, Fault.REORDERED),
        (WHOLE, WHOLE[2].anchor, Fault.REORDERED),
    ],
)
def test_a_cut_chain_has_to_follow_its_anchor(entries: Chain, anchor: Anchor, fault: Fault) -> None:
    report = verify_chain(entries, KEY.public, anchor=anchor)
    assert report.fault is not None
    assert report.fault.fault is fault
    assert report.head == anchor


@pytest.mark.parametrize(
    ("entries", "witness", "fault", "n"),
    [
        (WHOLE, WHOLE[5].anchor, None, 0),
        (WHOLE, WHOLE[2].anchor, None, 0),
        (WHOLE[:4], WHOLE[5].anchor, Fault.TAIL_MISSING, 5),
        ([], WHOLE[0].anchor, Fault.TAIL_MISSING, 1),
        (WHOLE, Anchor(n=3, hash=b"\7" * 32), Fault.REWRITTEN, 3),
    ],
)
def test_what_others_have_seen_has_to_be_there(entries: Chain, witness: Anchor, fault: Fault | None, n: int) -> None:
    report = verify_chain(entries, KEY.public, witnesses=[witness])
    assert (report.fault and report.fault.fault) == fault
    assert report.fault is None or report.fault.n == n


def test_a_history_signed_again_from_the_start_is_found_by_a_witness() -> None:
    rewritten = chain(6, after=GENESIS)[:2]
    rewritten += [seal(KEY, {"n": 3, "prev": rewritten[1].hash.hex(), "host": "node7", "event": "nothing happened"})]
    assert verify_chain(rewritten, KEY.public).ok
    report = verify_chain(rewritten, KEY.public, witnesses=[WHOLE[2].anchor, WHOLE[1].anchor])
    assert report.fault is not None
    assert (report.fault.fault, report.fault.n) == (Fault.REWRITTEN, 3)


def test_witnesses_of_the_part_cut_off_say_nothing_but_the_anchor_has_to_agree() -> None:
    assert verify_chain(WHOLE[3:], KEY.public, anchor=WHOLE[2].anchor, witnesses=[WHOLE[0].anchor]).ok
    report = verify_chain(WHOLE[3:], KEY.public, anchor=WHOLE[2].anchor, witnesses=[Anchor(n=3, hash=bytes(32))])
    assert report.fault is not None
    assert (report.fault.fault, report.fault.n, report.good) == (Fault.REWRITTEN, 3, 0)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"n": 0, "prev": "0" * 64, "host": "node7"},
        {"n": True, "prev": "0" * 64, "host": "node7"},
        {"n": "1", "prev": "0" * 64, "host": "node7"},
        {"n": 1, "prev": "0" * 63, "host": "node7"},
        {"n": 1, "prev": "A" * 64, "host": "node7"},
        {"n": 1, "prev": None, "host": "node7"},
        {"n": 1, "prev": "0" * 64, "host": ""},
        {"n": 1, "prev": "0" * 64},
        {"n": 1, "prev": "0" * 64, "host": "node7", "event": "x" * ENTRY_LIMIT},
    ],
)
def test_what_could_not_be_verified_is_not_sealed(body: dict[str, Any]) -> None:
    with pytest.raises(EntryError):
        seal(KEY, body)


def test_what_has_no_canonical_form_is_not_sealed() -> None:
    with pytest.raises(NumberError):
        seal(KEY, {"n": 1, "prev": "0" * 64, "host": "node7", "at": 2**53})


def test_two_keys_never_seal_alike() -> None:
    assert chain(1, key=generate_host_key())[0].signature != WHOLE[0].signature
