"""What can be wrong with a JSON value that should have been a message, and where in it."""

from types import MappingProxyType, NoneType
from typing import Final

import attrs

from state_machine.values import Reason

_QUOTED_MAX: Final = 64
_JSON_NAMES: Final = MappingProxyType(
    {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        NoneType: "null",
    }
)


@attrs.frozen(kw_only=True)
class WireError(Exception):
    """A JSON value does not have the shape of the type it was to become.

    `path` is the place, written `$.event.probes[2].mode`, in the names the document uses. `problem` says what was
    expected there and what kind of thing was found; it quotes ids and keywords, never free text, so that no token
    reaches a log.
    """

    path: str
    problem: str
    reason: Reason = Reason.PARSE

    @property
    def detail(self) -> str:
        """Place and problem in one line."""
        return f"{self.path}: {self.problem}"

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@attrs.frozen(kw_only=True)
class MismatchError(ValueError):
    """One value is not what its place asks for. Becomes a `WireError`, which adds the place."""

    problem: str

    def __str__(self) -> str:
        return self.problem


@attrs.frozen(kw_only=True)
class ItemMismatchError(ValueError):
    """Something inside a container does not fit; the cause says what. `index` is its place or its key."""

    index: int | str

    def __str__(self) -> str:
        return f"item {self.index} does not fit"


def expected(what: str, found: object) -> MismatchError:
    """The error for a value of the wrong JSON type."""
    return MismatchError(problem=f"expected {what}, found {_JSON_NAMES.get(type(found), type(found).__name__)}")


def quoted(text: str) -> str:
    """`text` as an error may show it: escaped and cut."""
    return repr(text if len(text) <= _QUOTED_MAX else text[:_QUOTED_MAX] + "…")
