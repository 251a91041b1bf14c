"""Strategies for JSON that can be signed, JSON that nearly is a given document, and chains that were tampered with."""

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from evidence.canonical import MAX_INTEGER


def attempt(read: Callable[[], Any], refusal: type[Exception]) -> Any:
    """What `read` gives, or the refusal it raised after checking that it explains itself."""
    try:
        return read()
    except refusal as error:
        explained = error
    assert 0 < len(str(explained)) < 2000
    return explained


scalars: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-MAX_INTEGER, MAX_INTEGER),
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: not (x.is_integer() and 2**53 <= abs(x) < 1e21)),
    st.text(max_size=8),
)
"""What has a canonical form. `st.text` draws no surrogates."""

documents: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)

plain_documents: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
"""What journal entries are made of: names in ASCII, whole numbers."""

hostile_scalars: st.SearchStrategy[Any] = st.one_of(
    scalars,
    st.sampled_from([2**53, -(2**53), 2**64, float("nan"), float("inf"), 1e20, "\ud800", "", "../x", "\0", -1, 1.5]),
)


@st.composite
def near_misses(draw: st.DrawFn, document: Any) -> Any:
    """A copy of `document` with up to three members replaced, removed or added, at any depth."""
    copied = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        place, key = draw(st.sampled_from(_places(copied)))
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                place[key] = draw(hostile_scalars | documents)
            case "remove":
                del place[key]
            case _ if isinstance(place, dict):
                place[draw(st.text(max_size=4))] = draw(hostile_scalars)
            case _:
                place.append(draw(hostile_scalars))
        if not _places(copied):
            break
    return copied


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    for key in keys:
        found.append((value, key))
        found.extend(_places(value[key]))
    return found
