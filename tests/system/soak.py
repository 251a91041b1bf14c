"""`make soak`: the scenarios on real hosts, in random order and with random timing, until told to stop.

Each round has a seed, which is printed; `--seed N --rounds 1` repeats it. Ends with status 1 when a scenario failed.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.system.host import CHECKOUT, why_not

_HERE = Path(__file__).parent


def main() -> int:
    """Rounds without end, or as many as asked for."""
    given = argparse.ArgumentParser(prog="make soak", description=__doc__)
    given.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the first round")
    given.add_argument("--rounds", type=int, default=0, help="how many; 0: until told to stop")
    given.add_argument("--jitter", type=float, default=4.0, help="the longest random pause, seconds")
    given.add_argument("--workers", type=int, default=4, help="scenarios at once")
    options = given.parse_args()
    if reason := why_not():
        print(f"soak: no hosts on this machine: {reason}", file=sys.stderr)
        return 2
    return _rounds(options)


def _rounds(options: argparse.Namespace) -> int:
    failures: Counter[str] = Counter()
    done, began = 0, time.monotonic()
    try:
        while not options.rounds or done < options.rounds:
            seed = options.seed + done
            failed = _round(seed, options)
            failures.update(failed)
            done += 1
            hours = (time.monotonic() - began) / 3600
            print(f"round {done}, seed {seed}: {', '.join(failed) or 'all good'}; {done / hours:.1f} rounds an hour")
    except KeyboardInterrupt:
        pass
    print(f"\n{done} rounds, {sum(failures.values())} failures")
    for name, times in failures.most_common():
        print(f"{times:4}  {name}")
    return 1 if failures else 0


def _round(seed: int, options: argparse.Namespace) -> list[str]:
    """Every scenario once; the names of those that failed. What they said goes to standard output."""
    files = sorted(_HERE.glob("test_*.py"))
    random.Random(seed).shuffle(files)
    words = [sys.executable, "-m", "pytest", "-q", "-n", str(options.workers), "--dist", "worksteal", *map(str, files)]
    environment = {**os.environ, "NIXFLEET_LAB_JITTER": f"{seed}:{options.jitter}"}
    done = subprocess.run(words, cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode != 0:
        print(done.stdout)
    return failed or ([f"pytest itself, status {done.returncode}"] if done.returncode else [])


if __name__ == "__main__":
    sys.exit(main())
