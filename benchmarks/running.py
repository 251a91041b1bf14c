"""What every topic is given: a place to work, how long it may take, somebody to say how far it is."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from benchmarks.table import Row


@attrs.frozen(kw_only=True)
class Run:
    """One run of the benchmarks. `quick`: rough figures in a fraction of the time."""

    place: Path
    quick: bool
    say: Callable[[str], None] = lambda text: None

    def of(self, whole: int, quick: int) -> int:
        """How many, or how long: the first, or the second when it is to be quick."""
        return quick if self.quick else whole

    def directory(self, name: str) -> Path:
        """A new directory for a topic."""
        path = self.place / name
        path.mkdir(parents=True)
        return path


Topic = Callable[[Run], Iterator[Row]]


def per_second(work: Callable[[], int], seconds: float) -> float:
    """How many things a second `work` does, which does a number of them and returns how many. One call is not counted.

    The best of five parts of the time: what else runs on the machine can only make it slower.
    """
    work()
    rates = []
    for _ in range(5):
        done, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds / 5:
            done += work()
        rates.append(done / passed)
    return max(rates)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of a hundred lie, by nearest rank; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-len(ordered) * percent // 100).__int__() - 1))]


def median(values: Sequence[float]) -> float:
    """The middle one; NaN of nothing."""
    return statistics.median(values) if values else float("nan")
