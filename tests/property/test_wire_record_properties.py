"""The journal's record codec gives back exactly what it was given, and answers anything else with a `WireError`."""

from typing import Any

from hypothesis import given

from evidence.canonical import canonicalize, parse
from state_machine.events import Event
from state_machine.facts import RolloutFact
from state_machine.state import Known
from tests.property.wire_values import json_values, reads_or_refuses, spoiled, values_of
from wire.records import (
    decode_event,
    decode_known,
    decode_rollout_fact,
    encode_event,
    encode_known,
    encode_rollout_fact,
)


@given(event=values_of(Event))
def test_every_event_comes_back_from_its_canonical_bytes_as_it_was(event: Event) -> None:
    assert decode_event(parse(canonicalize(encode_event(event)))) == event


@given(fact=values_of(RolloutFact))
def test_every_fact_of_a_rollout_comes_back_from_its_canonical_bytes_as_it_was(fact: RolloutFact) -> None:
    assert decode_rollout_fact(parse(canonicalize(encode_rollout_fact(fact)))) == fact


@given(known=values_of(Known))
def test_the_durable_state_comes_back_from_its_canonical_bytes_as_it_was(known: Known) -> None:
    assert decode_known(parse(canonicalize(encode_known(known)))) == known


@given(document=spoiled(values_of(Event).map(encode_event)) | json_values)
def test_a_spoiled_event_is_read_or_refused_but_never_crashes(document: Any) -> None:
    reads_or_refuses(lambda value: encode_event(decode_event(value)), document)


@given(document=spoiled(values_of(RolloutFact).map(encode_rollout_fact)) | json_values)
def test_a_spoiled_fact_of_a_rollout_is_read_or_refused_but_never_crashes(document: Any) -> None:
    reads_or_refuses(lambda value: encode_rollout_fact(decode_rollout_fact(value)), document)


@given(document=spoiled(values_of(Known).map(encode_known)) | json_values)
def test_a_spoiled_state_is_read_or_refused_but_never_crashes(document: Any) -> None:
    reads_or_refuses(lambda value: encode_known(decode_known(value)), document)
