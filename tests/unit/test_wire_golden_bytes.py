"""What is on the wire and in journals today must be read and written the same for ever.

A line of a golden file is the canonical form of an example in `wire_examples`, now or once. Lines are only ever
added: a line that no longer reads means that an old journal would not replay. A new kind, or a new field with a
default, adds the line that the failing test prints.
"""

from pathlib import Path
from typing import Final

import pytest

from evidence.canonical import canonicalize, parse
from state_machine.events import EVENT_KINDS, Event
from state_machine.facts import FACT_KINDS, Fact
from tests.unit.wire_examples import EVENTS, FACTS, NODE7, ROLLOUT
from wire.codec import decode_fact, encode, encode_fact
from wire.messages import EventEnvelope
from wire.records import decode_event, encode_event

GOLDEN: Final = Path(__file__).parent / "golden"
FACT_LINES: Final = (GOLDEN / "facts.jsonl").read_bytes().splitlines()
EVENT_LINES: Final = (GOLDEN / "events.jsonl").read_bytes().splitlines()


def test_there_is_one_example_of_every_fact_and_of_every_event() -> None:
    assert {type(fact) for fact in FACTS} == set(FACT_KINDS)
    assert {type(event) for event in EVENTS} == set(EVENT_KINDS)
    assert (len(FACTS), len(EVENTS)) == (len(FACT_KINDS), len(EVENT_KINDS))


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: type(fact).__name__)
def test_the_wire_form_of_a_fact_has_not_changed(fact: Fact) -> None:
    line = canonicalize(encode_fact(fact))
    assert line in FACT_LINES, f"not in facts.jsonl: {line.decode()}"
    assert decode_fact(parse(line)) == fact


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_the_journal_form_of_an_event_has_not_changed(event: Event) -> None:
    line = canonicalize(encode_event(event))
    assert line in EVENT_LINES, f"not in events.jsonl: {line.decode()}"
    assert decode_event(parse(line)) == event


@pytest.mark.parametrize("line", FACT_LINES, ids=range(len(FACT_LINES)))
def test_every_fact_ever_pinned_still_reads(line: bytes) -> None:
    assert type(decode_fact(parse(line))) in FACT_KINDS


@pytest.mark.parametrize("line", EVENT_LINES, ids=range(len(EVENT_LINES)))
def test_every_event_ever_pinned_still_reads(line: bytes) -> None:
    assert type(decode_event(parse(line))) in EVENT_KINDS


def test_an_envelope_carries_the_very_bytes_that_the_fact_is_signed_as() -> None:
    for fact in FACTS:
        envelope = encode(EventEnvelope(hostname=NODE7, rollout_id=ROLLOUT, event=fact))
        assert canonicalize(envelope["event"]) == canonicalize(encode_fact(fact))
