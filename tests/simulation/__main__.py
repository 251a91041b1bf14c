"""`make simulate`: play seeds for ever on every core, or one seed with its timeline.

Prints its rate, its coverage of (state, event, fault) triples, and each find once, shrunk. Ctrl-C ends it with a
summary. Exit status 1 if any promise was broken.
"""

import itertools
import multiprocessing
import os
import queue
import signal
import sys
import time
from collections.abc import Iterator
from typing import Final

import attrs
import click

from tests.simulation.coverage import Coverage, Triple
from tests.simulation.faults import Depth
from tests.simulation.report import command, describe, player
from tests.simulation.scenario import draw

BATCH: Final = {Depth.CORE: 100, Depth.FULL: 5}
SHOWN: Final = 5
"""Finds that are shrunk and told at length; of the others only the seed is."""
PATIENCE_S: Final = 5.0


@attrs.frozen(kw_only=True)
class Portion:
    """What one worker did since it last said something."""

    runs: int
    simulated_ms: int
    triples: dict[Triple, int]
    failed: tuple[int, ...]


@click.command()
@click.option("--seed", type=int, help="Play this one, and print its timeline.")
@click.option(
    "--depth", type=click.Choice([depth.value for depth in Depth]), default=Depth.CORE.value, show_default=True
)
@click.option("--first", type=int, help="The first seed of a run that goes on; by default the clock says.")
@click.option("--runs", type=int, help="Stop after so many runs.")
@click.option("--jobs", type=int, help="Processes; by default one for each core.")
@click.option("--whole", is_flag=True, help="With --seed: every line of the trace, and nothing shrunk.")
def main(seed: int | None, depth: str, first: int | None, runs: int | None, jobs: int | None, whole: bool) -> None:
    """Play fleets in a simulated world in which everything goes wrong."""
    if seed is not None:
        sys.exit(_one(seed, Depth(depth), whole=whole))
    start = int(time.time()) * 1000 if first is None else first
    sys.exit(_many(start, Depth(depth), runs, jobs or len(os.sched_getaffinity(0))))


def _one(seed: int, depth: Depth, *, whole: bool) -> int:
    outcome = player(depth)(draw(seed, depth), trace=True)
    if whole:
        click.echo(outcome.trace.text(), nl=False)
    elif outcome.findings:
        click.echo(describe(seed, depth))
    else:
        click.echo(f"{outcome.scenario}\n\n{outcome.trace.timeline()}")
    verdict = f"{len(outcome.findings)} promises broken" if outcome.findings else "every promise was kept"
    click.echo(f"seed {seed} at depth {depth}: {verdict}; trace {outcome.trace.digest()}")
    return 1 if outcome.findings else 0


# --- many -----------------------------------------------------------------------------------------------------------


def _work(first: int, step: int, depth: Depth, said: "multiprocessing.Queue[Portion]") -> None:
    """Play `first`, `first + step`, ... for ever, and say how it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    play = player(depth)
    for begin in itertools.count(first, step * BATCH[depth]):
        said.put(_portion(play, range(begin, begin + step * BATCH[depth], step), depth))


def _portion(play: object, seeds: range, depth: Depth) -> Portion:
    assert callable(play)
    coverage, simulated_ms, failed = Coverage(), 0, []
    for seed in seeds:
        outcome = play(draw(seed, depth), coverage=coverage)
        simulated_ms += outcome.ended_ms
        if outcome.findings:
            failed.append(seed)
    return Portion(runs=len(seeds), simulated_ms=simulated_ms, triples=coverage.triples(), failed=tuple(failed))


@attrs.define(kw_only=True, eq=False)
class _Tally:
    depth: Depth
    began: float = attrs.field(factory=time.monotonic)
    runs: int = 0
    simulated_ms: int = 0
    coverage: Coverage = attrs.field(factory=Coverage)
    failed: list[int] = attrs.field(factory=list)

    def take(self, portion: Portion) -> None:
        self.runs += portion.runs
        self.simulated_ms += portion.simulated_ms
        self.coverage.add(portion.triples)
        self.failed += portion.failed

    def __str__(self) -> str:
        took_s = time.monotonic() - self.began
        years = self.simulated_ms / (365.25 * 86_400_000)
        return (
            f"{self.runs:,} runs at depth {self.depth} ({self.runs / took_s:.1f}/s, {years:.2f} simulated years), "
            f"{len(self.coverage.triples()):,} triples of state, event and fault; "
            f"{len(self.failed)} seeds found something"
        )


def _many(first: int, depth: Depth, runs: int | None, jobs: int) -> int:
    tally = _Tally(depth=depth)
    workers, said = _started(first, depth, jobs)
    click.echo(f"seeds from {first} on, {jobs} processes; Ctrl-C ends it")
    try:
        for portion in _portions(said, workers):
            tally.take(portion)
            for seed in portion.failed:
                _tell(seed, depth, len(tally.failed))
            click.echo(str(tally))
            if runs is not None and tally.runs >= runs:
                break
    except KeyboardInterrupt:
        click.echo()
    finally:
        for worker in workers:
            worker.terminate()
    return _summed_up(tally)


def _started(
    first: int, depth: Depth, jobs: int
) -> tuple[list[multiprocessing.Process], "multiprocessing.Queue[Portion]"]:
    said: multiprocessing.Queue[Portion] = multiprocessing.Queue()
    workers = [
        multiprocessing.Process(target=_work, args=(first + number, jobs, depth, said), daemon=True)
        for number in range(jobs)
    ]
    for worker in workers:
        worker.start()
    return workers, said


def _portions(said: "multiprocessing.Queue[Portion]", workers: list[multiprocessing.Process]) -> Iterator[Portion]:
    while True:
        try:
            yield said.get(timeout=PATIENCE_S)
        except queue.Empty:
            if not all(worker.is_alive() for worker in workers):
                raise click.ClickException("a worker has died; what it said is above") from None


def _tell(seed: int, depth: Depth, found: int) -> None:
    click.echo(f"\nseed {seed} found something: {command(seed, depth)}")
    if found <= SHOWN:
        click.echo(describe(seed, depth))


def _summed_up(tally: _Tally) -> int:
    click.echo(str(tally))
    for seed in tally.failed:
        click.echo(f"  {command(seed, tally.depth)}")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    main()
