"""What `nix --log-format internal-json -v` says, as counts, lines and errors. Pure; nothing that is said can raise.

The numbers of activities and results are those of Nix's `src/libutil/logging.hh`, the same from 2.8 until today. Lines
that are none of Nix's (git writes to the same stream) are text.
"""

import json
import re
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import attrs

LINE_MAX: Final = 4096
"""Characters of a line that are kept."""
PART_MAX: Final = 4 * 1024 * 1024
"""Bytes without an end of line that are waited for; what is longer is no message."""
TAIL_LINES: Final = 400

_MARK: Final = b"@nix "
_BUILDS, _BUILD = 104, 105
_LOG_LINES: Final = (101, 107)
"""Of a build, and of the hook that runs after it."""
_PROGRESS: Final = 105
_INFO: Final = 3
"""The level of what a user is told; above it is chatter."""
_ACTIVITIES_MAX: Final = 20_000
_ERRORS_MAX: Final = 20
_NAME_MAX: Final = 200

_CONTROL: Final = re.compile(
    r"\x1b\[[0-9;:?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_CAUSE: Final = re.compile(r"^\s*error:[ \t]*(\S.*)", re.MULTILINE)
"""Not just anywhere: an error may quote lines of a log, with `>` before them."""
_HASHED: Final = re.compile(r"(?:.*/)?[0-9a-z]{32}-(.+?)(?:\.drv)?", re.ASCII | re.DOTALL)


@attrs.define(kw_only=True)
class NixLog:
    """Reads the stream piece by piece."""

    line: str = ""
    """What a build said last, after the name of what is built."""
    errors: list[str] = attrs.field(factory=list)
    """What Nix gave for errors, in plain text, the first ones; each may have several lines."""
    _part: bytes = b""
    _names: dict[int, str] = attrs.field(factory=dict)
    _counts: dict[int, tuple[int, int]] = attrs.field(factory=dict)
    _kept: deque[str] = attrs.field(factory=lambda: deque(maxlen=TAIL_LINES))

    def feed(self, chunk: bytes) -> list[str]:
        """Take a piece of the stream; the lines of text that it completes, none of which has an end of line."""
        *whole, part = (self._part + chunk).split(b"\n")
        if len(part) > PART_MAX:
            whole, part = [*whole, part], b""
        self._part = part
        return [line for raw in whole for line in self._read(raw)]

    def end(self) -> list[str]:
        """The stream is over; what its last line was, should that have no end."""
        part, self._part = self._part, b""
        return self._read(part) if part else []

    @property
    def done(self) -> int:
        """Derivations built."""
        return sum(done for done, _ in self._counts.values())

    @property
    def expected(self) -> int:
        """Derivations to be built in all, as far as Nix knows by now."""
        return sum(expected for _, expected in self._counts.values())

    @property
    def reason(self) -> str:
        """The first error in a line: later ones are about what needed it, and its own last `error:` is the cause."""
        for text in self.errors:
            if found := _CAUSE.findall(text):
                return str(found[-1])
        return self.errors[-1].partition("\n")[0] if self.errors else ""

    def tail(self, limit: int) -> str:
        """The last lines, `limit` characters at most."""
        text = "\n".join(self._kept)
        return text if len(text) <= limit else text[len(text) - limit :].partition("\n")[2]

    def _read(self, raw: bytes) -> list[str]:
        lines = self._lines(raw)
        self._kept.extend(lines)
        return lines

    def _lines(self, raw: bytes) -> list[str]:
        message = _message(raw)
        if message is None:
            return _plain(raw.decode("utf-8", "replace"))
        kind, number = message.get("type"), _whole(message.get("id"))
        match message.get("action"):
            case "msg":
                return self._said(message)
            case "start":
                return self._started(message, kind, number)
            case "result" if kind in _LOG_LINES:
                return self._logged(_fields(message), number)
            case "result" if kind == _PROGRESS and number in self._counts:
                self._counts[number] = _counts(_fields(message)) or self._counts[number]
            case "stop":
                self._names.pop(number, None)
            case _:  # an action of another version of Nix, or a result that nothing here asks for
                pass
        return []

    def _said(self, message: Mapping[str, Any]) -> list[str]:
        level = message.get("level")
        if not isinstance(level, int) or level > _INFO:
            return []
        lines = _plain(message.get("msg"))
        if level <= 0 and lines and len(self.errors) < _ERRORS_MAX:
            self.errors.append("\n".join(lines))
        return lines

    def _started(self, message: Mapping[str, Any], kind: object, number: int) -> list[str]:
        if kind == _BUILDS and len(self._counts) < _ACTIVITIES_MAX:
            self._counts.setdefault(number, (0, 0))
        elif kind == _BUILD and len(self._names) < _ACTIVITIES_MAX:
            self._names[number] = _name(_fields(message))
        level = message.get("level")
        return _plain(message.get("text")) if isinstance(level, int) and level <= _INFO else []

    def _logged(self, fields: list[Any], number: int) -> list[str]:
        name = self._names.get(number, "")
        lines = [f"{name}> {line}" if name else line for line in _plain(fields[0] if fields else None)]
        self.line = lines[-1] if lines else self.line
        return lines


def plain(text: str) -> str:
    """A text without colours, control characters, and halves of characters that no encoding has."""
    return _CONTROL.sub("", text).encode("utf-8", "replace").decode("utf-8")


def _message(raw: bytes) -> dict[str, Any] | None:
    if not raw.startswith(_MARK):
        return None
    try:
        message = json.loads(raw[len(_MARK) :])
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def _plain(text: object) -> list[str]:
    """The lines of a text that have something in them. What was written over on its line is gone."""
    if not isinstance(text, str):
        return []
    lines = (plain(line.rstrip("\r").rpartition("\r")[2]).rstrip()[:LINE_MAX] for line in text.split("\n"))
    return [line for line in lines if line]


def _fields(message: Mapping[str, Any]) -> list[Any]:
    fields = message.get("fields")
    return fields if isinstance(fields, list) else []


def _whole(value: object) -> int:
    """A number from 0 on; -1 for all else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64 else -1


def _counts(fields: list[Any]) -> tuple[int, int] | None:
    numbers = [_whole(field) for field in fields[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and all(0 <= number < 2**32 for number in numbers) else None


def _name(fields: list[Any]) -> str:
    path = fields[0] if fields and isinstance(fields[0], str) else ""
    found = _HASHED.fullmatch(path[:LINE_MAX])
    return (_plain(found[1]) or [""])[0][:_NAME_MAX] if found else ""
