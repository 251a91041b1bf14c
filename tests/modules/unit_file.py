"""Read unit files as systemd does, as far as ours need it: sections, and the words of a command line.

Written from systemd.syntax(7) and systemd.service(5) alone, so that it can tell whether what the modules render means
what it should.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

UNITS: Final = Path(__file__).parent / "units"
RENEW: Final = "NIXFLEET_RENEW"

_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "s": " "}


def settings(unit: str, section: str) -> Mapping[str, Sequence[str]]:
    """The values of each key of a section, in order; an empty value counts as one."""
    found: dict[str, list[str]] = {}
    here = ""
    for line in unit.splitlines():
        if line.startswith("["):
            here = line.strip("[]")
        elif "=" in line and here == section and not line.startswith(("#", ";")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def command(unit: str, *, credentials: str = "/run/credentials/x") -> Sequence[str]:
    """Program and arguments that `ExecStart=` means; `credentials` is what `%d` becomes."""
    (line,) = settings(unit, "Service")["ExecStart"]
    return [_expanded(word, credentials) for word in _words(line)]


def _words(line: str) -> Sequence[str]:
    words, word, quote, characters = list[str](), "", "", iter(line)
    begun = False
    for character in characters:
        if character == "\\":
            word, begun = word + _ESCAPES[next(characters)], True
        elif quote and character == quote:
            quote = ""
        elif not quote and character in "\"'":
            quote, begun = character, True
        elif not quote and character in " \t":
            if begun:
                words.append(word)
            word, begun = "", False
        else:
            word, begun = word + character, True
    assert not quote, f"a quote is not closed: {line}"
    return [*words, word] if begun else words


def _expanded(word: str, credentials: str) -> str:
    specifiers = {"%": "%", "d": credentials}
    expanded, characters = "", iter(word)
    for character in characters:
        expanded += specifiers[next(characters)] if character == "%" else character
    assert "$" not in expanded.replace("$$", ""), f"systemd would take a part of {word!r} for a variable"
    return expanded.replace("$$", "$")


def assert_checked_in(name: str, text: str) -> None:
    """The unit is the one in `units/`. With NIXFLEET_RENEW=1 in the environment it is written there first."""
    path = UNITS / name
    if os.environ.get(RENEW) == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    again = f"look at the difference; when it is meant, run `{RENEW}=1 pytest tests/modules`"
    assert path.read_text(encoding="utf-8") == text, f"{path.name} is not what the module renders: {again}"
