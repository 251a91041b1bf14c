"""Every crash point of every standard run: whatever instant takes the agent, the outcome is that of a quiet run.

The same state up to timestamps, the same facts exactly once and in order at the control plane, every switch exactly as
often, a journal that proves and replays. And all of it again with the new agent killed too.
"""

import itertools
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from state_machine.values import Closure
from tests.crash.everywhere import Bench, Ending, Point, Taker, differences, explore, resume
from tests.crash.points import Kind, problems_with
from tests.crash.stories import STORIES, Story
from tests.crash.world import NEW, OLD

BEGUN: Final = ("DispatchAck", "ActivationStarted")
PROBED: Final = ("ActivationCompleted", "ProbeTopologyDeclared", "ProbeObservedFirst")
CONVERGED: Final = (*PROBED, "ProbeResult", "Converged")
QUIET: Final[dict[str, tuple[tuple[str, ...], tuple[Closure, ...], Closure]]] = {
    "clean rollout": ((*BEGUN, *CONVERGED), (NEW,), NEW),
    "failing switch": ((*BEGUN, "ActivationFailed", "RollbackComplete"), (NEW, OLD), OLD),
    "sustained failure with rollback": (
        (*BEGUN, *PROBED, "ProbeFailureFirst", "ProbeResult", "Failed", "RollbackComplete"),
        (NEW, OLD),
        OLD,
    ),
    "deferral with reboot": ((*BEGUN, "ActivationDeferred", *CONVERGED), (NEW,), NEW),
    "replay after a wipe": ((*BEGUN, *CONVERGED), (NEW,), NEW),
}
"""Of each run that nobody disturbs: its facts, its switches, and what runs in the end."""

SECOND_KILLS: Final = 70
"""The second kill falls on one of so many points of the new agent's run; most runs have about as many."""


@attrs.frozen(kw_only=True)
class Explored:
    """A standard run, undisturbed, and all of its points."""

    bench: Bench
    story: Story
    ending: Ending
    points: list[Point]


@pytest.fixture(scope="module", params=STORIES, ids=lambda story: story.name)
def explored(request: pytest.FixtureRequest) -> Iterator[Explored]:
    # In memory where the system has such a place: a crash of a process is not a crash of the disk.
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    root = Path(tempfile.mkdtemp(prefix="nixfleet-crash-", dir=memory))
    try:
        bench = Bench(root)
        ending, points = explore(bench, request.param)
        yield Explored(bench=bench, story=request.param, ending=ending, points=points)
    finally:
        shutil.rmtree(root)


def test_a_run_that_nobody_disturbs_goes_as_it_should(explored: Explored) -> None:
    facts, switches, running = QUIET[explored.story.name]
    assert explored.ending.kinds == facts
    assert explored.ending.switches == switches
    assert explored.ending.running == (running, running)


def test_the_number_of_crash_points_does_not_change_unnoticed(explored: Explored) -> None:
    counts = Counter(point.kind for point in explored.points)
    print(f"{explored.story.name}: {counts.total()} crash points, {dict(counts)}")
    assert counts[Kind.IN_COMMIT] == counts[Kind.AFTER_COMMIT]
    assert problems_with(explored.story.name, counts) == []


def test_killed_at_any_point_and_then_once_more_it_ends_as_if_it_had_not_been(explored: Explored) -> None:
    chance, wrong = random.Random(explored.story.name), {}
    for point in explored.points:
        again = _nth_of(explored.bench, chance.randrange(SECOND_KILLS))
        wrong[point.said] = _differences(explored, point, again)
        for second in again.points:
            wrong[f"{point.said}, then {second.said}"] = _differences(explored, second, None)
    twice = len(wrong) - len(explored.points)
    print(f"{explored.story.name}: {len(explored.points)} times killed once, {twice} times twice")
    assert twice > len(explored.points) // 2
    assert {said: found for said, found in wrong.items() if found} == {}


def _nth_of(bench: Bench, nth: int) -> Taker:
    """Keeps one point of the run that it is shown, if there are as many."""
    count = itertools.count()
    return Taker(bench=bench, wanted=lambda kind: next(count) == nth)


def _differences(explored: Explored, point: Point, again: Taker | None) -> list[str]:
    return list(differences(explored.ending, resume(explored.bench, explored.story, point, again)))
