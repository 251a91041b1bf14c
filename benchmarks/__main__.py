"""`python -m benchmarks [TOPIC...]`: measure, print the table, keep it as JSON.

Ctrl-C ends it cleanly: what was measured by then is still shown, every process that was started is stopped.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from benchmarks.running import Run
from benchmarks.table import Row, document, rendered, write

TOPICS: Final[Mapping[str, str]] = {
    "core": "steps a second on a recorded run",
    "journal": "commits a second, single and grouped",
    "starting": "cold start; restart with 100,000 journal entries",
    "idle": "memory and CPU time of an idle agent",
    "dispatching": "from a dispatch to the switch it starts",
    "serving": "a control plane with 500 agents",
    "simulating": "runs of the simulator a second, at both depths",
}
RESULTS: Final = Path(__file__).with_name("results.json")
WIDTH: Final = 160
"""In a pipe nothing is folded or cut off."""


@click.command(epilog="Topics: " + "; ".join(f"{name} ({what})" for name, what in TOPICS.items()) + ".")
@click.argument("topics", nargs=-1, type=click.Choice(list(TOPICS)))
@click.option("--quick", is_flag=True, help="Rough figures, in about a minute.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON in place of the table.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Where to keep it.")
def main(topics: tuple[str, ...], quick: bool, as_json: bool, out: Path) -> None:
    """Measure what the programs cost and how fast they answer. Without TOPICS, everything."""
    rows: list[Row] = []
    status = 0
    try:
        with _progress() as say, tempfile.TemporaryDirectory(prefix="nixfleet-benchmarks-") as place:
            for row in _measured(topics or tuple(TOPICS), Run(place=Path(place), quick=quick, say=say)):
                rows.append(row)
    except KeyboardInterrupt:
        click.echo("interrupted: this is what was measured until then", err=True)
        status = 130
    else:
        write(rows, out, quick=quick)
    _print(rows, as_json=as_json, quick=quick)
    sys.exit(status)


def _measured(topics: tuple[str, ...], run: Run) -> Iterator[Row]:
    for name in topics:
        module = importlib.import_module(f"benchmarks.{name}")

        def say(text: str, name: str = name) -> None:
            run.say(f"{name}: {text}")

        yield from module.measure(Run(place=run.place, quick=run.quick, say=say))


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """One line that changes on a terminal, a line for each step elsewhere; on standard error."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda text: console.print(text, markup=False, soft_wrap=True)
        return
    with console.status("…") as line:
        yield line.update


def _print(rows: list[Row], *, as_json: bool, quick: bool) -> None:
    if as_json:
        click.echo(json.dumps(document(rows, quick=quick), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH) if not console.is_terminal else console.width
    console.print(rendered(rows))
    for note in dict.fromkeys(f"{row.name}: {row.note}" for row in rows if row.note):
        console.print(f"  {note}", style="dim", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
