"""Builds on builders as a person sees them: a table that changes in place on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import attrs
import click

from nixfleet.builder.messages import Phase, Progress, Request
from nixfleet.terminal import BAD, BUSY, GOOD, QUIET, WARN
from nixfleet.update.message import duration

if TYPE_CHECKING:
    from rich.table import Table

LINE_MAX: Final = 100
"""Characters of a build's last line that are shown."""

STYLES: Final[Mapping[Phase, str]] = {
    Phase.QUEUED: QUIET,
    Phase.DONE: GOOD,
    Phase.FAILED: BAD,
    Phase.REFUSED: BAD,
    Phase.CANCELLED: WARN,
}


@attrs.define(kw_only=True, eq=False)
class Watch:
    """Remembers what was last heard of each job, in the order in which they were asked for."""

    latest: dict[str, Progress] = attrs.field(factory=dict)

    def heard(self, progress: Progress) -> None:
        """Something was said of a job."""
        before = self.latest.get(progress.job)
        self.latest[progress.job] = progress
        self.show(before, progress)

    def show(self, before: Progress | None, now: Progress) -> None:
        """Show it."""

    def answers(self, requests: Sequence[Request], why: str) -> list[Progress]:
        """What became of the jobs when the waiting has ended: those without an answer were taken back, and why."""
        return [_ended(self.latest[each.job], why) for each in requests if each.job in self.latest]


def _ended(last: Progress, why: str) -> Progress:
    return last if last.phase.is_last else attrs.evolve(last, phase=Phase.CANCELLED, why=why)


class PlainWatch(Watch):
    """A line to standard error when a job gets on."""

    def show(self, before: Progress | None, now: Progress) -> None:
        """Not what the build says, which is thousands of lines; but why nothing happens."""
        is_stuck = now.phase is Phase.QUEUED and bool(now.line)
        if before is None or (before.phase, before.builder, is_stuck and before.line) != (
            now.phase, now.builder, is_stuck and now.line,
        ):  # fmt: skip
            click.echo(f"{now.host}: {in_words(now)}{f': {now.line}' if is_stuck else ''}", err=True)


def in_words(progress: Progress) -> str:
    """How far a job is, and who has it."""
    where = f" on {progress.builder}" if progress.builder else ""
    after = f" after {duration(progress.seconds)}" if progress.phase in (Phase.DONE, Phase.FAILED) else ""
    return f"{progress.phase.value}{where}{after}"


@attrs.define(kw_only=True, eq=False)
class LiveWatch(Watch):
    """A table on standard error."""

    _began: float = attrs.field(factory=time.monotonic)

    def table(self) -> "Table":
        """As it stands now."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        for each in self.latest.values():
            count = f"{each.done}/{each.expected}" if each.expected else ""
            elapsed = each.seconds if each.phase.is_last else time.monotonic() - self._began
            table.add_row(
                Text(each.host), Text(each.phase.value, style=STYLES.get(each.phase, BUSY)), count, duration(elapsed),
                Text(each.builder), Text(each.line[:LINE_MAX], style=QUIET),
            )  # fmt: skip
        return table


@contextmanager
def watch(environment: Mapping[str, str]) -> Iterator[Watch]:
    """What fits where standard error goes."""
    if not sys.stderr.isatty() or environment.get("TERM") == "dumb":
        yield PlainWatch()
        return
    from rich.console import Console
    from rich.live import Live

    console: Console = Console(stderr=True, highlight=False, markup=False)
    shown = LiveWatch()
    with Live(console=console, refresh_per_second=4, get_renderable=shown.table):
        yield shown
