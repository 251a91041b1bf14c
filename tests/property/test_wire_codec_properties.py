"""The wire codec gives back what it was given, and answers anything else with a `WireError`."""

import typing
from typing import Any, Final

import attrs
from hypothesis import given
from hypothesis import strategies as st

from evidence.canonical import canonicalize, parse
from state_machine.facts import FACT_KINDS, Fact
from tests.property.wire_values import json_values, reads_or_refuses, spoiled, values_of
from wire import legacy, listings, messages
from wire.codec import decode, decode_fact, encode, encode_fact

MESSAGES: Final = tuple(
    thing
    for module in (messages, listings, legacy)
    for thing in vars(module).values()
    if isinstance(thing, type) and attrs.has(thing) and thing.__module__ == module.__name__
)
any_message = st.one_of([values_of(target) for target in MESSAGES])


@given(message=any_message)
def test_every_message_comes_back_from_its_canonical_bytes_as_it_was(message: Any) -> None:
    assert decode(type(message), parse(canonicalize(encode(message)))) == message


@given(fact=values_of(Fact))
def test_every_fact_comes_back_from_its_canonical_bytes_as_it_was(fact: Fact) -> None:
    assert decode_fact(parse(canonicalize(encode_fact(fact)))) == fact


@given(data=st.data(), target=st.sampled_from(MESSAGES))
def test_a_spoiled_message_is_read_or_refused_but_never_crashes(data: st.DataObject, target: type) -> None:
    document = data.draw(spoiled(values_of(target).map(encode)))
    reads_or_refuses(lambda value: encode(decode(target, value)), document)


@given(document=json_values, target=st.sampled_from(MESSAGES))
def test_any_json_is_read_as_a_message_or_refused_but_never_crashes(document: Any, target: type) -> None:
    reads_or_refuses(lambda value: encode(decode(target, value)), document)


@given(document=spoiled(values_of(Fact).map(encode_fact)) | json_values)
def test_a_spoiled_fact_is_read_or_refused_but_never_crashes(document: Any) -> None:
    reads_or_refuses(lambda value: encode_fact(decode_fact(value)), document)


@given(fact=values_of(Fact), extra=st.dictionaries(st.text(min_size=30, max_size=31), json_values, max_size=3))
def test_members_nobody_knows_are_ignored(fact: Fact, extra: dict[str, Any]) -> None:
    assert decode_fact({**extra, **encode_fact(fact)}) == fact


def test_the_properties_above_reach_every_kind_of_fact() -> None:
    assert set(FACT_KINDS) == set(typing.get_args(Fact))
