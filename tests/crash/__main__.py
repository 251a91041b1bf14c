"""Kill real agents with -9 at random instants, again and again, and compare every run with an undisturbed one."""

import argparse
import secrets
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis

from tests.crash.everywhere import Bench, explore
from tests.crash.lanes import TALES, Campaign
from tests.crash.points import COUNTS, Kind, write_counts
from tests.crash.stories import STORIES

assert hypothesis  # imported because it has Trio run its tasks in an order that can be repeated


def renew() -> None:
    """Count the crash points that there are, and write the counts down."""
    counts = {}
    for story in STORIES:
        with tempfile.TemporaryDirectory() as root:
            _, points = explore(Bench(Path(root)), story)
        found = Counter(point.kind for point in points)
        counts[story.name] = {kind.value: found[kind] for kind in Kind if found[kind]}
        print(f"{story.name}: {found.total()} crash points")
    write_counts(counts)
    print(f"written down in {COUNTS.name}")


def crash(seed: int, kills: int, lanes: int) -> int:
    """Kill agents; the exit status."""
    print(f"seed {seed}: {kills} kills in {lanes} lanes; repeat with make crash ARGS='--seed {seed}'")
    root = tempfile.mkdtemp(prefix="nixfleet-crash-")
    campaign = Campaign(root=Path(root), seed=seed, kills=kills, lanes=lanes, report=_progress())
    try:
        campaign.run()
    except KeyboardInterrupt:
        campaign.wrong.append("stopped before the end")
    print()
    if campaign.wrong:
        print("\n".join([*campaign.wrong, f"its files are in {root}"]))
        return 1
    shutil.rmtree(root)
    print(f"{campaign.killed} kills in {campaign.runs} runs; every one ended as if nobody had been killed")
    return 0


def _progress() -> Callable[[Campaign], None]:
    began = time.monotonic()

    def show(campaign: Campaign) -> None:
        minutes = (time.monotonic() - began) / 60
        rate = f"{campaign.killed / minutes:.0f} a minute" if minutes > 0.1 else ""
        print(f"\r{campaign.killed}/{campaign.kills} kills, {campaign.runs} runs compared, {rate} ", end="", flush=True)

    return show


def main() -> int:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="make crash", description=__doc__)
    parser.add_argument("--renew", action="store_true", help="write down how many crash points there are")
    parser.add_argument("--kills", type=int, default=1000, help="how many in all")
    parser.add_argument("--lanes", type=int, default=len(TALES), help="how many hosts side by side")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**9), help="what decides about everything")
    args = parser.parse_args()
    if args.renew:
        renew()
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return crash(args.seed, args.kills, args.lanes)


if __name__ == "__main__":
    raise SystemExit(main())
