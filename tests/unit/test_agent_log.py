"""Log lines: one JSON object each for machines, plain text for people, and nothing in them that a terminal obeys."""

import json
import logging
import sys
from typing import Any

import pytest

from nixfleet_agent.log import HumanFormatter, JsonFormatter, printable


def record(message: str = "refused", level: int = logging.WARNING, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("nixfleet_agent.applier", level, __file__, 1, message, None, None)
    made.created, made.msecs = 1_780_308_002.125, 125.0
    made.fields = fields
    return made


def test_a_json_line_has_the_fields_beside_the_message() -> None:
    said = json.loads(JsonFormatter().format(record(reason="stale", rollout="edge@4be0c1")))
    assert said == {
        "at": "2026-06-01T10:00:02.125Z",
        "level": "warning",
        "logger": "nixfleet_agent.applier",
        "message": "refused",
        "reason": "stale",
        "rollout": "edge@4be0c1",
    }


def test_a_json_line_is_one_line_whatever_is_in_it() -> None:
    line = JsonFormatter().format(record("two\nlines", detail="a\nb\x1b[31m", path=object()))
    assert "\n" not in line
    assert "\x1b" not in line


def test_a_traceback_is_in_the_same_line() -> None:
    made = record()
    try:
        raise ValueError("a defect")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "a defect" in json.loads(line)["exception"]
    assert "ValueError: a defect" in HumanFormatter().format(made)


def test_a_line_for_people_names_levels_above_info() -> None:
    assert "warning: refused  reason=stale" in HumanFormatter().format(record(reason="stale"))
    assert "info" not in HumanFormatter().format(record(level=logging.INFO))


@pytest.mark.parametrize("said", ["\x1b[2J\x1b[31mowned", "a\nFeb 30 all is well", "\x00", "\u202eright to left"])
def test_what_a_control_plane_said_cannot_command_a_terminal(said: str) -> None:
    line = HumanFormatter().format(record(cause=said))
    assert line.isprintable()


def test_letters_of_any_language_stay_as_they_are() -> None:
    assert printable("Rückfall: 失敗") == "Rückfall: 失敗"
