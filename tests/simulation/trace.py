"""What happened in a run: one line for each thing, the same byte for byte whenever and wherever the seed is played.

A trace is kept in three ways: not at all (most runs), as a hash, or as lines, of which `timeline` shows a person those
that tell the story.
"""

import enum
import hashlib

import attrs


class Weight(enum.IntEnum):
    """How much a line tells."""

    NOISE = 0
    """Every message and every event. In the trace, not in a timeline."""
    STORY = 1
    """What a person wants to read: facts, switches, releases, starts."""
    FAULT = 2
    """Something went wrong on purpose."""
    FIND = 3
    """A promise was broken."""


_MARK = {Weight.NOISE: " ", Weight.STORY: " ", Weight.FAULT: "!", Weight.FIND: "#"}


@attrs.frozen(kw_only=True)
class Line:
    """One thing that happened, `at_ms` after the beginning of the run."""

    at_ms: int
    who: str
    text: str
    weight: Weight

    def __str__(self) -> str:
        minutes, ms = divmod(self.at_ms, 60_000)
        return f"{minutes:4}:{ms / 1000:06.3f} {_MARK[self.weight]} {self.who:8} {self.text}"


@attrs.define(eq=False)
class Trace:
    """Takes lines. `on` False: throws them away, and whoever would make one need not."""

    on: bool = True
    lines: list[Line] = attrs.field(factory=list)

    def note(self, at_ms: int, who: str, text: str, weight: Weight = Weight.NOISE) -> None:
        """Something happened."""
        if self.on:
            self.lines.append(Line(at_ms=at_ms, who=who, text=text, weight=weight))

    def text(self) -> str:
        """All of it."""
        return "".join(f"{line}\n" for line in self.lines)

    def digest(self) -> str:
        """SHA-256 of all of it, hex."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def timeline(self) -> str:
        """The lines that tell the story: faults are marked `!`, broken promises `#`."""
        return "".join(f"{line}\n" for line in self.lines if line.weight > Weight.NOISE)
