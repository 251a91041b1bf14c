"""The load harness on a fleet small enough for every run: what it claims to check is checked. Nothing here is timed."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest

from benchmarks import costs
from state_machine.values import HostName, RolloutId
from tests.cplab import Running, closure
from tests.load import books, report
from tests.load.orders import Account, Flood, Prepare, Tally
from tests.load.stage import Company, Stage, company
from tests.load.step import Figures, Plan, run

AGENTS = 40
ROLLOUT = RolloutId("stable@00000a")

needs_linux = pytest.mark.skipif(not costs.available(), reason=costs.MISSING)


def quiet(_: str = "") -> None:
    """Nobody looks on."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage.build(tmp_path_factory.mktemp("load") / "stage", AGENTS)


@pytest.fixture(scope="module")
def figures(stage: Stage) -> Figures:
    plan = Plan(agents=AGENTS, seconds=1.0, per_second=50.0, crowds=2, period_s=1.0, fetches=True, watched=True)
    return run(stage, plan, quiet)


@needs_linux
def test_forty_agents_tell_two_rollouts_and_nothing_is_lost(figures: Figures) -> None:
    assert figures.lost == ()
    assert figures.breaches == ()
    assert figures.facts > AGENTS * (7 + 6)


@needs_linux
def test_every_figure_of_the_table_is_there(figures: Figures) -> None:
    cells = [cell for _, cells in report.rows([figures]) for cell in cells]
    assert cells
    assert not [cell for cell in cells if "nan" in cell or "inf" in cell]


@needs_linux
def test_a_watched_control_plane_says_where_its_time_went(figures: Figures) -> None:
    assert {"connecting", "in waves", "all at once", "facts"} <= figures.parts.keys()
    assert any("TLS" in spent for spent in figures.parts.values())


@contextmanager
def soaking(stage: Stage, running: Running) -> Iterator[Company]:
    """Every host has been sent for and soaks."""
    targets = {host: closure(f"{host}-x") for host in stage.hosts}
    with company(stage.lab, running, 1, period_s=60, fetches=False) as crowds:
        crowds.join(stage.roles(AGENTS))
        crowds.until(lambda: crowds.waiting == AGENTS, "everybody's long-poll", 60, quiet)
        crowds.order(Prepare(rollout_id=ROLLOUT, targets=targets, converges=False))
        stage.lab.publish("00000a", targets=targets)
        crowds.until(lambda: crowds.prepared(ROLLOUT), "signatures", 60, quiet)
        assert running.refresh() == {}
        crowds.until(lambda: crowds.told(ROLLOUT) == AGENTS, "every story", 60, quiet)
        yield crowds


def test_a_control_plane_killed_in_a_flood_has_every_fact_that_it_answered_for_exactly_once(stage: Stage) -> None:
    with stage.control_plane(AGENTS, watched=False) as running, soaking(stage, running) as crowds:
        crowds.flood(Flood(rollout_id=ROLLOUT, abreast=AGENTS))
        taken = crowds.taken
        crowds.until(lambda: crowds.taken > taken + 100, "a hundred facts", 60, quiet)
        running.kill()
        port = urlsplit(running.url).port
        with stage.lab.start(listen=f"127.0.0.1:{port}", artifact_poll_secs=3600):
            taken = crowds.taken
            crowds.until(lambda: crowds.taken > taken + 100, "a hundred facts more", 60, quiet)
            account = crowds.account(quiet)
            assert list(books.differences(account.tallies, stage.lab.database)) == []
            assert crowds.breaches == ()


# What the comparison would find


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "log.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE log (kind TEXT, hostname TEXT, rollout_id TEXT, seq INTEGER, body TEXT)")
        for seq in (1, 2):
            row = ("FactAccepted", "web1", ROLLOUT, seq, '{"event":"x"}')
            db.execute("INSERT INTO log VALUES (?, ?, ?, ?, ?)", row)
        db.commit()
    return path


def told(**changes: int) -> Account:
    tally = Tally(facts=2, checksum=2 * 0x8CDC1683)
    return Account(
        tallies={(HostName("web1"), ROLLOUT): attrs.evolve(tally, **changes)}, dispatched_at={}, taken_after_s=()
    )


def test_the_comparison_is_content_with_what_is_right(database: Path) -> None:
    assert list(books.differences(told().tallies, database)) == []


@pytest.mark.parametrize("changes", [{"facts": 3}, {"facts": 1}, {"checksum": 7}])
def test_the_comparison_finds_a_fact_that_is_missing_spare_or_another(database: Path, changes: dict[str, int]) -> None:
    [found] = books.differences(told(**changes).tallies, database)
    assert "web1" in found


def test_the_comparison_finds_a_number_that_was_left_out_and_a_refusal(database: Path) -> None:
    with closing(sqlite3.connect(database)) as db:
        db.execute("UPDATE log SET seq = 3 WHERE seq = 2")
        db.execute("INSERT INTO log VALUES ('FactRefused', 'web2', ?, 1, '{}')", (ROLLOUT,))
        db.commit()
    assert [line.split(" in ")[0] for line in books.differences(told().tallies, database)] == ["web1", "web2"]


def test_more_agents_than_there_may_be_open_files_are_fewer_agents() -> None:
    ask = "import resource; from tests.load.stage import allow_descriptors; print(allow_descriptors(20_000))"
    limited = ["prlimit", "--nofile=1000:1000"]
    if os.geteuid() == 0:
        limited += ["setpriv", "--bounding-set=-sys_resource"]
    done = subprocess.run([*limited, sys.executable, "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) == 400
