"""What kinds of instants the agent is killed at, and how many of each there are: `points.json` holds the counts.

A count that shrinks means that something is no longer tested, so it must not go unnoticed. One that grows must be
written down too, or it could shrink back unnoticed. `.venv/bin/python -m tests.crash --renew` writes them down.
"""

import enum
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

COUNTS: Final = Path(__file__).with_name("points.json")
RENEW: Final = ".venv/bin/python -m tests.crash --renew"


class Kind(enum.StrEnum):
    """An instant, by what has just happened or is about to."""

    AFTER_OPENING = "after opening the journal"
    IN_COMMIT = "in a commit"
    """Half of what the commit writes is in the file."""
    AFTER_COMMIT = "after a commit"
    BEFORE_ACTION = "before an action"
    AFTER_ACTION = "after an action"
    """Whoever is to carry it out has been told, and has not begun."""
    IN_OPERATION = "in an operation"
    """A closure is half fetched, a switch has begun, or is over and not yet reported."""
    BEFORE_DELIVERY = "before a fact is delivered"
    AFTER_DELIVERY = "after a fact was delivered"
    """The control plane has it, and the agent does not know."""
    ANSWER_UNREAD = "another answer unread"


Counts = Mapping[str, Mapping[str, int]]
"""By standard run and kind."""


def read_counts() -> Counts:
    """What is written down."""
    counts: Counts = json.loads(COUNTS.read_text())
    return counts


def write_counts(counts: Counts) -> None:
    """Write down what there is now."""
    COUNTS.write_text(json.dumps(counts, indent=2) + "\n")


def problems_with(run: str, found: Counter[Kind]) -> list[str]:
    """How the counts of a run differ from what is written down, in words."""
    written = read_counts().get(run, {})
    problems = []
    for kind in Kind:
        before, now = written.get(kind, 0), found[kind]
        if now != before:
            why = "what is it no longer killed at?" if now < before else "more is covered:"
            problems.append(f"{run}: {before} points {kind} are written down, and {now} found; {why} renew by {RENEW}")
    return problems
