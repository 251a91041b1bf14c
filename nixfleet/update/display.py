"""Builds as a person sees them: a line for each host that changes in place on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import click

from nixfleet.terminal import BAD, BUSY, GOOD, QUIET
from nixfleet.update.flake import Built, System
from nixfleet.update.message import duration

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SAID_MAX: Final = 100
"""Characters of a build's last line that are shown."""


@attrs.frozen(kw_only=True)
class Words:
    """What is done to a system, while it is done and when it is over."""

    doing: str
    done: str


BUILDING: Final = Words(doing="building", done="built")
EVALUATING: Final = Words(doing="evaluating", done="evaluated")


@attrs.frozen
class PlainDisplay:
    """A line to standard error when a build begins and when it ends."""

    words: Words = BUILDING

    def say(self, text: str) -> None:
        """A phase of the run."""
        click.echo(text, err=True)

    def begun(self, system: System) -> None:
        """Its build has begun."""
        click.echo(f"{system.host}: {self.words.doing}", err=True)

    def said(self, system: System, line: str) -> None:
        """The log file has it."""

    def ended(self, built: Built) -> None:
        """Its build is over."""
        word = self.words.done if built.ok else "FAILED"
        log = "" if built.ok or built.log is None else f"; its log is {built.log}"
        click.echo(f"{built.system.host}: {word} after {duration(built.seconds)}{log}", err=True)


@attrs.define(kw_only=True)
class _Line:
    phase: str
    style: str
    began: float
    ended: float | None = None
    last: str = ""


class LiveDisplay:
    """A table on standard error that changes in place."""

    def __init__(self, console: "Console", words: Words = BUILDING) -> None:
        self._console, self._words = console, words
        self._lines: dict[str, _Line] = {}

    def say(self, text: str) -> None:
        """A phase of the run, above the table."""
        self._console.print(text, style=QUIET)

    def begun(self, system: System) -> None:
        """Its build has begun."""
        self._lines[system.host] = _Line(phase=self._words.doing, style=BUSY, began=time.monotonic())

    def said(self, system: System, line: str) -> None:
        """Shown beside it."""
        self._lines[system.host].last = line[:SAID_MAX]

    def ended(self, built: Built) -> None:
        """Its build is over."""
        line = self._lines[built.system.host]
        line.phase, line.style = (self._words.done, GOOD) if built.ok else ("failed", BAD)
        line.ended = time.monotonic()
        if built.log is not None and not built.ok:
            line.last = str(built.log)

    def table(self) -> "Table":
        """As it stands now."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        for host, line in self._lines.items():
            elapsed = duration((line.ended or time.monotonic()) - line.began)
            table.add_row(Text(host), Text(line.phase, style=line.style), elapsed, Text(line.last, style=QUIET))
        return table


@contextmanager
def display(environment: Mapping[str, str], words: Words = BUILDING) -> Iterator[PlainDisplay | LiveDisplay]:
    """What fits where standard error goes."""
    if not sys.stderr.isatty() or environment.get("TERM") == "dumb":
        yield PlainDisplay(words)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False, markup=False)
    shown = LiveDisplay(console, words)
    with Live(console=console, refresh_per_second=4, get_renderable=shown.table):
        yield shown
