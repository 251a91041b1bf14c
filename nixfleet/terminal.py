"""Words on the screen: tables, notes and marks. Colour and boxes on a terminal, plain aligned lines in a pipe.

The terminal toolkit is imported only when standard output is a terminal. `NO_COLOR` (no-color.org) is honoured.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

GOOD: Final = "green"
BAD: Final = "bold red"
BUSY: Final = "cyan"
QUIET: Final = "dim"
WARN: Final = "yellow"


@attrs.frozen
class Cell:
    """One cell of a table; `style` is used on a terminal only."""

    text: str
    style: str = ""


Row = Sequence[Cell | str]


def is_terminal() -> bool:
    """True when a person is looking at standard output."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def print_json(document: Any) -> None:
    """One JSON document, readable and stable."""
    click.echo(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))


def note(text: str) -> None:
    """Something worth knowing that is no result: standard error, so that a pipe gets results alone."""
    label = "note:" if os.environ.get("NO_COLOR") else click.style("note:", fg="yellow")
    click.echo(f"{label} {harmless(text)}", err=True)


def harmless(text: str) -> str:
    """A text that may quote a server, a build's log or a file name, without what would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t" else "\ufffd" for each in text)


def print_line(line: Row) -> None:
    """Cells one after another on a line, in colour where there is any."""
    cells = [_cell(value) for value in line]
    if not is_terminal():
        click.echo(" ".join(cell.text for cell in cells).rstrip())
        return
    from rich.text import Text

    console().print(Text(" ").join(Text(cell.text, style=cell.style) for cell in cells), soft_wrap=True)


def print_table(headers: Sequence[str], rows: Sequence[Row]) -> None:
    """A table: in a pipe one line per row, columns two spaces apart, never wrapped or cut."""
    if is_terminal():
        console().print(rich_table(headers, rows))
        return
    for line in plain_lines(headers, rows):
        click.echo(line)


def plain_lines(headers: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """A table as text."""
    texts = [[header.upper() for header in headers], *([_cell(value).text for value in row] for row in rows)]
    widths = [max(len(text[column]) for text in texts) for column in range(len(headers))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(text, widths, strict=True)).rstrip() for text in texts]


def rich_table(headers: Sequence[str], rows: Sequence[Row]) -> "Table":
    """A table for a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell.text, style=cell.style) for cell in map(_cell, row)))
    return table


def console() -> "Console":
    """The terminal."""
    from rich.console import Console

    return Console(highlight=False, markup=False)


def _cell(value: Cell | str) -> Cell:
    """What is shown may be a name that a host, a server or a file chose."""
    cell = value if isinstance(value, Cell) else Cell(value)
    return Cell(harmless(cell.text), cell.style)
