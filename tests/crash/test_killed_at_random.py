"""Real agents, real switches, real TLS, `kill -9` at random instants: a short run of what `make crash` does long."""

import os
import secrets
from pathlib import Path
from typing import Final

import pytest

from tests.crash.lanes import TALES, Campaign, errands
from tests.crash.stories import STORIES

KILLS: Final = 40
SEED: Final = int(os.environ.get("NIXFLEET_CRASH_SEED") or secrets.randbelow(10**9))


@pytest.mark.slow
def test_agents_killed_at_random_instants_end_as_if_they_had_not_been(tmp_path: Path) -> None:
    print(f"repeat with NIXFLEET_CRASH_SEED={SEED}, or for longer with make crash ARGS='--seed {SEED}'")
    campaign = Campaign(root=tmp_path, seed=SEED, kills=KILLS)
    campaign.run()
    print(f"{campaign.killed} kills in {campaign.runs} runs")
    assert campaign.wrong == []
    assert campaign.killed == KILLS


def test_the_same_seed_kills_at_the_same_instants_of_the_same_runs() -> None:
    def plan(seed: int, lane: int) -> list[str]:
        return [str(errand) for errand, _ in zip(errands(seed, lane), range(20), strict=False)]

    assert plan(7, 0) == plan(7, 0)
    assert plan(7, 0) != plan(7, 1)
    assert plan(7, 0) != plan(8, 0)


def test_real_agents_go_through_the_runs_that_simulated_ones_do() -> None:
    assert [tale.name for tale in TALES] == [story.name for story in STORIES]
