"""The seeds that once found something: `seeds.txt`, read. A line is `seed depth what it found`; `#` begins a remark."""

from pathlib import Path

from tests.simulation.faults import Depth

PATH = Path(__file__).with_name("seeds.txt")


def regressions(depth: Depth) -> tuple[int, ...]:
    """The seeds of a depth, in the order of the file, each once."""
    rows = [line.split(maxsplit=2) for line in PATH.read_text().splitlines() if line and not line.startswith("#")]
    return tuple(dict.fromkeys(int(row[0]) for row in rows if row[1] == depth))
