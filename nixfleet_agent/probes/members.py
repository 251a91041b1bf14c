"""Read untrusted JSON member by member, noting every problem with its path instead of stopping at the first.

A read that fails notes a `Problem` and returns a stand-in of the right type, so that the rest is still looked at; the
caller throws everything away when there are problems. Strings that no program or wire could carry (NUL, lone
surrogates) are problems too, so what comes out of here can be run, signed and sent.
"""

import collections
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Final, NoReturn

import attrs

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 64
MAX_SECONDS: Final = 365 * 24 * 3600
"""No interval or timeout is longer than a year: a larger number is a mistake, and would overflow timers."""

PROBLEMS_MAX: Final = 32
_NAME_SHOWN: Final = 64

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)


@attrs.frozen(kw_only=True)
class Problem:
    """One thing that is wrong, and where: a path such as `$.http[0].url`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path} {self.message}"


class Problems(list[Problem]):
    """The first problems of a file: one of a megabyte can have a hundred thousand, and nobody reads those."""

    def append(self, problem: Problem, /) -> None:
        """Note a problem, while there is room."""
        if len(self) < PROBLEMS_MAX:
            super().append(problem)
        elif len(self) == PROBLEMS_MAX:
            super().append(Problem(path="$", message="has more problems than these"))


class JsonObject(dict[str, object]):
    """A JSON object that remembers which of its member names came more than once."""

    repeated: tuple[str, ...] = ()


def parse(data: bytes, problems: list[Problem]) -> object:
    """The JSON document in `data`; None and a problem when it is none (RFC 8259: UTF-8, no byte order mark)."""
    if len(data) > MAX_BYTES:
        problems.append(Problem(path="$", message=f"is {len(data)} bytes long; at most {MAX_BYTES} are read"))
        return None
    try:
        document: object = json.loads(data.decode(), object_pairs_hook=_json_object, parse_constant=_no_constant)
        depth = _depth(document)
    except RecursionError:
        depth = MAX_DEPTH + 1
    except ValueError as error:
        problems.append(Problem(path="$", message=f"is not JSON: {error}"))
        return None
    if depth > MAX_DEPTH:
        problems.append(Problem(path="$", message=f"is nested deeper than {MAX_DEPTH} levels"))
        return None
    return document


@attrs.frozen(kw_only=True)
class Members:
    """One JSON object under reading. Several names in one read are spellings of one member; only one may be given."""

    path: str
    values: JsonObject
    problems: list[Problem]

    def wrong(self, name: str, message: str) -> None:
        """Note a problem with the member `name`."""
        self._note(child(self.path, name), message)

    def has(self, name: str) -> bool:
        """Whether the member is there; null counts as absent (protocol section 1.5)."""
        return self.values.get(name) is not None

    def text(self, name: str, *, default: str | None = None) -> str:
        """A string; required, and not empty, unless there is a default."""
        path, value = self._take((name,), required=default is None)
        if value is None:
            return default or ""
        return self._text(path, value, empty=default is not None)

    def texts(self, name: str) -> tuple[str, ...]:
        """A required list of one string or more."""
        path, value = self._take((name,), required=True)
        if value is None:
            return ()
        if not isinstance(value, list) or not value:
            self._note(path, f"must be a list of one string or more, not {_named(value)}")
            return ()
        return tuple(self._text(f"{path}[{place}]", item, empty=place > 0) for place, item in enumerate(value))

    def integer(self, *names: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from `low` to `high`; required unless there is a default."""
        path, value = self._take(names, required=default is None)
        if value is None:
            return low if default is None else default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self._note(path, f"must be a whole number from {low} to {high}, not {_named(value)}")
            return low
        return value

    def seconds(self, *names: str, default: float, low: float) -> float:
        """A duration in seconds of at least `low`."""
        path, value = self._take(names, required=False)
        if value is None:
            return default
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if not low <= number <= MAX_SECONDS:
            self._note(path, f"must be a number of seconds from {low:g} to {MAX_SECONDS}, not {_named(value)}")
            return default
        return float(number)

    def flag(self, name: str) -> bool:
        """A truth value; false when absent."""
        path, value = self._take((name,), required=False)
        if value is not None and not isinstance(value, bool):
            self._note(path, f"must be true or false, not {_named(value)}")
        return value is True

    def members(self, name: str) -> "Members":
        """An object; an empty one when absent."""
        path, value = self._take((name,), required=False)
        self._is_sound(path, name)
        found = JsonObject() if value is None else self._object(path, value)
        return Members(path=path, values=found, problems=self.problems)

    def each(self) -> Iterator[tuple[str, "Members"]]:
        """Every member of this object by name, read as an object itself."""
        for name in self.values:
            yield name, self.members(name)

    def entries(self, name: str) -> Iterator["Members"]:
        """Every item of the list `name` that is an object; the others are problems."""
        path, value = self._take((name,), required=True)
        for place, item in enumerate(value if isinstance(value, list) else []):
            at = f"{path}[{place}]"
            found = self._object(at, item)
            if isinstance(item, JsonObject):
                yield Members(path=at, values=found, problems=self.problems)

    def _note(self, path: str, message: str) -> None:
        self.problems.append(Problem(path=path, message=message))

    def _take(self, names: Sequence[str], *, required: bool) -> tuple[str, object]:
        given = [name for name in names if self.has(name)]
        if required and not given:
            self.wrong(names[0], "is missing")
        if len(given) > 1:
            self.wrong(given[1], f"says the same thing as {child(self.path, given[0])}; keep one of them")
        name = given[0] if given else names[0]
        return child(self.path, name), self.values.get(name)

    def _text(self, path: str, value: object, *, empty: bool = False) -> str:
        if not isinstance(value, str) or not (value or empty):
            self._note(path, f"must be a string that is not empty, not {_named(value)}")
            return ""
        return value if self._is_sound(path, value) else ""

    def _is_sound(self, path: str, value: str) -> bool:
        nul = "\0" in value
        if nul:
            self._note(path, "contains a NUL character, which no program can be given")
        halves = any("\ud800" <= character <= "\udfff" for character in value)
        if halves:
            self._note(path, "contains half of a surrogate pair, which is no text")
        return not nul and not halves

    def _object(self, path: str, value: object) -> JsonObject:
        if isinstance(value, JsonObject):
            for name in value.repeated:
                self._note(child(path, name), "is given more than once; only one of them would count")
            return value
        self._note(path, f"must be an object, not {_named(value)}")
        return JsonObject()


def document(data: bytes, problems: list[Problem]) -> Members:
    """The object that is the whole document; an empty one, and a problem, when it is none."""
    value = parse(data, problems)
    root = Members(path="$", values=JsonObject(), problems=problems)
    return root if problems else attrs.evolve(root, values=root._object("$", value))


def child(path: str, name: str) -> str:
    """The path of member `name` of the object at `path`. Of a very long name only the beginning is shown."""
    name = name if len(name) <= _NAME_SHOWN else name[:_NAME_SHOWN] + "..."
    return f"{path}.{name}" if _PLAIN.fullmatch(name) else f"{path}[{json.dumps(name)}]"


def _json_object(pairs: list[tuple[str, object]]) -> JsonObject:
    found = JsonObject(pairs)
    if len(found) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        found.repeated = tuple(name for name, count in counts.items() if count > 1)
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def _named(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list" if value else "an empty list"
        case str():
            return json.dumps(value if len(value) <= 40 else value[:40] + "...")
        case _:
            return json.dumps(value) if len(repr(value)) <= 40 else "a number that long"
