"""`make mutants`: put each mistake of `mutant_table.py` into a copy of the product, and see who finds it, and how soon.

The product itself is never touched. A mutant is killed by a broken promise, by a crash, or by a failing test; before
any of that counts, the copy without a mistake must find nothing in as many seeds. What came of it is kept in
`docs/mutants.md`, one row for each mutant.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import click

import state_machine
from tests.simulation.faults import Depth
from tests.simulation.mutant_table import MUTANTS, STORIES, Edit, Mutant
from tests.simulation.report import player
from tests.simulation.scenario import draw

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "mutants.md"
COPIED: Final = ("state_machine", "wire", "evidence", "nixfleet_agent", "control_plane", "nixfleet", "tests")
SEEDS: Final = {Depth.CORE: 300, Depth.FULL: 20}
"""How many seeds a mutant may live through before it counts as a survivor."""
LONGEST_S: Final = 3_600
"""Of the clock on the wall, which a busy machine makes short: only for a process that waits for nothing."""
RUN_CPU_S: Final = 60
"""Processor time for one run. Runs without a mistake take a tenth of a second, with the real programs two."""
MEMORY: Final = 2 << 30
"""Bytes of address space. A mutant may go round in circles and keep every turn of it."""
LIVENESS: Final = ("L1", "L2")
"""What else was broken at the same time says more."""
_BEGINS: Final = "seed "
FAILED_TESTS: Final = 1
"""pytest's exit status when tests failed; others mean that it did not get to run them."""


@attrs.frozen(kw_only=True)
class Verdict:
    """What found the mutant, after how many runs; `killer` is empty for one that nobody found."""

    killer: str
    after: int
    text: str = ""


class MutantRottenError(Exception):
    """A text to be replaced is not there exactly once."""

    def __init__(self, edit: Edit, count: int) -> None:
        super().__init__(edit, count)
        self.edit, self.count = edit, count

    def __str__(self) -> str:
        return f"{self.edit.file} has {self.edit.old!r} {self.count} times, not once: renew the row in mutant_table.py"


class CopyBrokenError(Exception):
    """The run in the copy did not get as far as an answer, so that it says nothing about the mutant."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said

    def __str__(self) -> str:
        return f"the copy could not be run, look at what it said:\n{self.said}"


# --- the copy -------------------------------------------------------------------------------------------------------


@contextmanager
def scratch() -> Iterator[Path]:
    """A copy of the product and its tests, which goes away again."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copy = Path(name)
        for package in COPIED:
            shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__", "corpus"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        yield copy


@contextmanager
def mutated(copy: Path, mutant: Mutant) -> Iterator[None]:
    """The copy with the mistake in it; afterwards as it was.

    Raises:
        MutantRottenError: the product's text is no longer what the table says.
    """
    whole = {edit.file: (copy / edit.file).read_text() for edit in mutant.edits}
    try:
        for edit in mutant.edits:
            path = copy / edit.file
            path.write_text(replaced(path.read_text(), edit))
        yield
    finally:
        for file, text in whole.items():
            (copy / file).write_text(text)


def replaced(text: str, edit: Edit) -> str:
    """`text` after the edit.

    Raises:
        MutantRottenError: what it replaces is not there exactly once.
    """
    if (count := text.count(edit.old)) != 1:
        raise MutantRottenError(edit, count)
    return text.replace(edit.old, edit.new)


# --- the hunt -------------------------------------------------------------------------------------------------------


def hunt(copy: Path, by: Depth | tuple[str, ...], seeds: int | None = None) -> Verdict:
    """Look for a mistake in the copy, the way the mutant's row says; where fleets find nothing, ask the stories.

    Raises:
        CopyBrokenError: it could not be looked for.
    """
    if not isinstance(by, Depth):
        return _by_tests(copy, by)
    verdict = _by_fleets(copy, by, SEEDS[by] if seeds is None else seeds)
    return verdict if verdict.killer else attrs.evolve(_by_tests(copy, STORIES), after=verdict.after)


def _by_fleets(copy: Path, depth: Depth, seeds: int) -> Verdict:
    try:
        ran = _python(copy, "-m", "tests.simulation.mutants", "--play", depth.value, "--seeds", str(seeds))
    except subprocess.TimeoutExpired:
        return Verdict(killer="hangs", after=seeds, text=f"not over after {LONGEST_S} s")
    last = ran.stdout.splitlines()[-1:]
    if ran.returncode == 0:
        return Verdict(**json.loads(last[0]))
    if ran.returncode == -signal.SIGPROF:
        seed = int(last[0].removeprefix(_BEGINS))
        return Verdict(killer="hangs", after=seed + 1, text=f"not over after {RUN_CPU_S} s of processor time")
    if not last or not last[0].startswith(_BEGINS):
        raise CopyBrokenError(ran.stdout + ran.stderr)
    why = ran.stderr.splitlines()[-1:]
    return Verdict(killer="crash", after=int(last[0].removeprefix(_BEGINS)) + 1, text="".join(why)[:300])


def _by_tests(copy: Path, tests: tuple[str, ...]) -> Verdict:
    ran = _python(copy, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)
    if ran.returncode == 0:
        return Verdict(killer="", after=0)
    failed = re.search(r"^FAILED (\S+)", ran.stdout, re.MULTILINE)
    if ran.returncode != FAILED_TESTS or failed is None:
        raise CopyBrokenError(ran.stdout + ran.stderr)
    file, *_, test = failed[1].partition("[")[0].split("::")
    return Verdict(killer=f"{file}::{test}", after=0)


def _python(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # No bytecode: two texts of the same length within one second would be taken for the same.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )


def _play(depth: Depth, seeds: int) -> Verdict:
    """In the copy: play seeds until one finds something. Says which it begins, should the mutant end the process."""
    assert Path(state_machine.__file__).is_relative_to(Path.cwd()), "this is not the copy"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    play = player(depth)
    for seed in range(seeds):
        click.echo(f"{_BEGINS}{seed}")
        signal.setitimer(signal.ITIMER_PROF, RUN_CPU_S)
        findings = play(draw(seed, depth)).findings
        if findings:
            first = min(findings, key=lambda finding: (finding.at_ms, finding.promise in LIVENESS))
            return Verdict(killer=first.promise, after=seed + 1, text=str(first))
    return Verdict(killer="", after=seeds)


def control(copy: Path, verdicts: Sequence[tuple[Mutant, Verdict]]) -> None:
    """Look just as long at the copy without a mistake.

    Raises:
        CopyBrokenError: something is found in it, so that a find says nothing about a mutant.
    """
    for by in {mutant.by for mutant, _ in verdicts}:
        longest = max(verdict.after for mutant, verdict in verdicts if mutant.by == by)
        verdict = hunt(copy, by, longest)
        if verdict.killer:
            raise CopyBrokenError(f"without any mutant: {verdict.killer} after {verdict.after} runs. {verdict.text}")


# --- the page -------------------------------------------------------------------------------------------------------

_TOP: Final = """\
# Mutants

Does the simulation find anything? Each of these mistakes was put into a copy of the product, alone, and the copy was
played until something was found. `make mutants` does it again and writes this page; `ARGS="--only NAME"` does one. The
table of the mistakes is `tests/simulation/mutant_table.py`;
`tests/simulation/test_mutants.py::test_every_mutant_still_fits_the_product` keeps it from rotting.

*Seeds* is how many runs it took, from seed 0 on. *Found by* is the promise of [the simulation](simulation.md) that was
broken first, or `crash` where the mistake made the decisions contradict themselves. Mistakes that no fleet can show
go to tests at once (`test`, without seeds), for the reason given. *More than* means that so many fleets found nothing,
and the story tests were asked then. The product without a mistake passes those tests and finds nothing in as many
seeds as the slowest find took.

| mutant | what it breaks | in | depth | seeds | found by |
| --- | --- | --- | --- | --- | --- |
"""
_SURVIVED: Final = "**survives**"


def row(mutant: Mutant, verdict: Verdict) -> str:
    """Its line of the page."""
    depth = mutant.by if isinstance(mutant.by, Depth) else "test"
    found = f"`{verdict.killer}`" if verdict.killer else _SURVIVED
    found += f"; no fleet does: {mutant.no_fleet}" if mutant.no_fleet else ""
    in_vain = "more than " if "::" in verdict.killer or not verdict.killer else ""
    seeds = f"{in_vain}{verdict.after}" if isinstance(mutant.by, Depth) else "-"
    cells = (mutant.name, mutant.breaks, f"`{mutant.edits[0].file}`", depth, seeds, found)
    return f"| {' | '.join(map(str, cells))} |"


def rows_of(page: str) -> dict[str, str]:
    """The lines that are on the page already, by mutant."""
    lines = (line for line in page.splitlines() if line.startswith("| "))
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines}


def page(rows: dict[str, str]) -> str:
    """The page, with those rows, in the order of the table."""
    ordered = [rows[mutant.name] for mutant in MUTANTS if mutant.name in rows]
    dead = [line for line in ordered if _SURVIVED not in line]
    by = {depth: sum(_is_by_fleets(line, depth) for line in dead) for depth in Depth}
    tests = len(dead) - sum(by.values())
    table = "\n".join(ordered)
    fleets = f"{by[Depth.CORE]} by fleets at core depth, {by[Depth.FULL]} at full depth"
    return f"{_TOP}{table}\n\nKilled: {len(dead)} of {len(ordered)}; {fleets}, {tests} by tests.\n"


def _is_by_fleets(line: str, depth: Depth) -> bool:
    return f" | {depth} | " in line and "::" not in line


# --- command --------------------------------------------------------------------------------------------------------


@click.command()
@click.option("--only", multiple=True, help="This mutant; may be repeated.")
@click.option("--play", type=click.Choice([depth.value for depth in Depth]), hidden=True)
@click.option("--seeds", type=int, help="Give a mutant up after so many.")
def main(only: tuple[str, ...], play: str | None, seeds: int | None) -> None:
    """Put mistakes into a copy of the product, and see who finds them."""
    if play is not None:
        click.echo(json.dumps(attrs.asdict(_play(Depth(play), seeds or SEEDS[Depth(play)]))))
        return
    verdicts = judged([mutant for mutant in MUTANTS if not only or mutant.name in only], _note, seeds)
    alive = [mutant.name for mutant, verdict in verdicts if not verdict.killer]
    click.echo(f"{len(verdicts) - len(alive)} of {len(verdicts)} killed; alive: {', '.join(alive) or 'none'}")
    sys.exit(1 if alive else 0)


def _note(mutant: Mutant, verdict: Verdict) -> None:
    """Print what came of it, and put it on the page."""
    click.echo(f"{mutant.name}: {verdict.killer or 'SURVIVES'} after {verdict.after}  {verdict.text}")
    known = rows_of(PAGE.read_text()) if PAGE.exists() else {}
    PAGE.write_text(page(known | {mutant.name: row(mutant, verdict)}))


def judged(
    chosen: Sequence[Mutant], note: Callable[[Mutant, Verdict], None], seeds: int | None = None
) -> list[tuple[Mutant, Verdict]]:
    """What came of each, told as it is known, with the control at the end.

    Raises:
        MutantRottenError, CopyBrokenError: the table or the product is not fit for it.
    """
    verdicts = []
    with scratch() as copy:
        for mutant in chosen:
            with mutated(copy, mutant):
                verdict = hunt(copy, mutant.by, seeds)
            note(mutant, verdict)
            verdicts.append((mutant, verdict))
        control(copy, verdicts)
    return verdicts


if __name__ == "__main__":
    main()
