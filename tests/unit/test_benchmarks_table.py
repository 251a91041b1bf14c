"""The benchmarks' table and JSON on figures small enough to check by hand. No time is measured here."""

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks.__main__ import TOPICS, main
from benchmarks.core import entries, events
from benchmarks.running import Run, median, per_second, percentile
from benchmarks.table import Aim, Beside, Row, at_least, below, below_times, document, rendered, shown, write

ROW = Row(name="idle", measured=28.0, unit="MB", beside=Beside(what="bare", measured=20.0))


def text_of(*rows: Row) -> str:
    console = Console(width=160, no_color=True)
    with console.capture() as capture:
        console.print(rendered(rows))
    return capture.get()


def with_aims(measured: float, *aims: Aim) -> Row:
    return Row(name="x", measured=measured, unit="MB", beside=ROW.beside, aims=aims)


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (with_aims(28.0), None),
        (with_aims(28.0, below(30)), True),
        (with_aims(30.0, below(30)), False),
        (with_aims(3000.0, at_least(3000)), True),
        (with_aims(2999.0, at_least(3000)), False),
        (with_aims(27.9, below_times(1.4)), True),
        (with_aims(28.1, below_times(1.4)), False),
        (with_aims(28.1, below(30), below_times(1.4)), False),
        (with_aims(math.nan, below(30)), None),
    ],
)
def test_an_aim_is_met_by_the_figure_or_by_its_ratio(row: Row, met: bool | None) -> None:
    assert row.met is met


def test_an_aim_on_the_ratio_cannot_be_judged_without_a_figure_beside_it() -> None:
    assert Row(name="x", measured=1.0, unit="s", aims=(below_times(2),)).met is None


def test_the_table_shows_figure_neighbour_ratio_and_aim() -> None:
    line = text_of(with_aims(28.0, below(30), below_times(1.3))).splitlines()[1].split()
    assert line == ["x", "28", "MB", "bare:", "20", "1.40", "<", "30,", "<", "1.3", "x", "no"]


@pytest.mark.parametrize(
    ("value", "text"), [(138_181.4, "138,181"), (0.28534, "0.285"), (0.0, "0"), (0.00001, "1.0e-05"), (math.nan, "-")]
)
def test_figures_are_shown_with_the_digits_that_count(value: float, text: str) -> None:
    assert shown(value) == text


def test_the_json_holds_every_row_and_what_it_was_measured_on(tmp_path: Path) -> None:
    write([ROW, with_aims(math.nan, below(30))], tmp_path / "results.json", quick=True)
    read = json.loads((tmp_path / "results.json").read_text())
    assert read == json.loads(json.dumps(document([ROW, with_aims(math.nan, below(30))], quick=True))) | {
        "machine": read["machine"]
    }
    assert read["quick"] is True
    assert set(read["machine"]) == {"python", "system", "cores", "load"}
    assert read["rows"][0]["ratio"] == pytest.approx(1.4)
    assert read["rows"][1]["measured"] is None


def test_percentiles_are_values_that_occurred() -> None:
    assert [percentile(range(1, 101), percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 99) == 7.0
    assert math.isnan(percentile([], 50))
    assert math.isnan(median([]))


def test_a_rate_counts_what_the_work_says_it_did() -> None:
    calls = iter(range(10**9))

    def work() -> int:
        next(calls)
        return 3

    assert per_second(work, 0.05) > 0
    assert next(calls) > 1


def test_the_recorded_run_is_the_same_every_time_and_holds_what_a_rollout_is_made_of() -> None:
    assert events() == events()
    kinds = {type(event).__name__ for event in events()}
    assert {"DispatchReceived", "ProbeObserved", "FactsDelivered", "DutyFinished", "SwitchFinished"} <= kinds


def test_journal_entries_go_on_for_ever_without_a_fact_twice() -> None:
    endless = entries()
    facts = [fact for _ in range(3000) for fact in next(endless)[1]]
    names = [(fact.rollout_id, fact.fact.seq) for fact in facts]
    assert len(names) == len(set(names)) > 0


def test_quick_means_less() -> None:
    assert (Run(place=Path(), quick=True).of(60, 15), Run(place=Path(), quick=False).of(60, 15)) == (15, 60)


def test_an_unknown_topic_is_refused_with_the_known_ones() -> None:
    answer = CliRunner().invoke(main, ["nonsense"])
    assert answer.exit_code == 2
    assert all(topic in answer.output for topic in TOPICS)
