"""`make load`: grow a fleet of agents until the control plane is too slow for it, or loses something.

Each step is one line that changes while it runs; at the end there is one table, and the largest fleets whose dispatches
were in 99 of 100 hosts' hands within a second while nothing was lost. Ctrl-C shows what was found by then.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from benchmarks import costs
from tests.load import report
from tests.load.stage import Stage, TooSlowError, allow_descriptors
from tests.load.step import Figures, Plan, run

STEPS: Final = (250, 500, 1000, 2000, 3000, 5000, 7500, 10_000)
SAY_EVERY_S: Final = 5.0


@click.command()
@click.option("--agents", type=click.IntRange(1, 20_000), multiple=True, help="So many, in place of a growing number.")
@click.option("--seconds", type=click.FloatRange(0.5), default=10.0, show_default=True, help="For each flood of facts.")
@click.option("--rate", type=click.FloatRange(1), default=1000.0, show_default=True, help="Facts a second to sustain.")
@click.option("--period", type=click.FloatRange(1), default=60.0, show_default=True, help="Seconds between heartbeats.")
@click.option("--crowds", type=click.IntRange(1, 16), default=1, show_default=True, help="Processes that play agents.")
@click.option("--fetch", is_flag=True, help="Each host fetches fleet and manifest before it answers a dispatch.")
@click.option("--parts", is_flag=True, help="Say where the control plane's CPU time goes (costs a little of it).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
def main(
    agents: tuple[int, ...],
    seconds: float,
    rate: float,
    period: float,
    crowds: int,
    fetch: bool,
    parts: bool,
    as_json: bool,
) -> None:
    """How many agents one control plane bears, and what they cost it."""
    sizes = agents or STEPS
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever ends this, nothing it started is left behind
    if not costs.available():
        raise click.ClickException(costs.MISSING)
    most = allow_descriptors(max(sizes))
    if most < max(sizes):
        click.echo(f"at most {most} agents: no more open files are allowed here (ulimit -Hn)", err=True)
        sizes = tuple(dict.fromkeys(min(size, most) for size in sizes))
    steps: list[Figures] = []
    try:
        with tempfile.TemporaryDirectory(prefix="nixfleet-load-") as place, _progress() as say:
            say(f"making keys and certificates for {max(sizes)} hosts")
            stage = Stage.build(Path(place) / "stage", max(sizes))
            for size in sizes:
                plan = Plan(
                    agents=size,
                    seconds=seconds,
                    per_second=rate,
                    crowds=crowds,
                    period_s=period,
                    fetches=fetch,
                    watched=parts,
                )
                steps.append(run(stage, plan, say))
                if not agents and not _worth_more(steps[-1]):
                    break
    except KeyboardInterrupt:
        click.echo("interrupted: this is what was found until then", err=True)
        _print(steps, as_json=as_json)
        sys.exit(130)
    except TooSlowError as error:
        click.echo(f"the step was given up: {error}", err=True)
    _print(steps, as_json=as_json)
    sys.exit(0 if steps and all(step.sound for step in steps) else 1)


def _worth_more(step: Figures) -> bool:
    """A larger fleet may do as well."""
    return step.sound and report.soon(step.waves.p99_ms)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """One line that changes on a terminal, a line now and then elsewhere; on standard error."""
    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        with console.status("…") as line:
            yield line.update
        return
    said = {"at": 0.0, "what": 0.0}

    def say(text: str) -> None:
        if time.monotonic() - said["at"] >= SAY_EVERY_S:
            said["at"] = time.monotonic()
            console.print(text, markup=False, soft_wrap=True)

    yield say


def _print(steps: list[Figures], *, as_json: bool) -> None:
    if as_json:
        click.echo(report.document(steps))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    if steps:
        console.print(report.table(steps))
    for step in steps:
        if step.parts:
            console.print()
            console.print(report.parts_table(step))
        for what in (*step.lost[:20], *step.breaches):
            console.print(f"{step.agents} agents: {what}", markup=False, soft_wrap=True)
    console.print(
        f"\nwithin a second and nothing lost: {report.largest(steps, at_once=False):,} agents in ten waves, "
        f"{report.largest(steps, at_once=True):,} all at once; load of the machine {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
