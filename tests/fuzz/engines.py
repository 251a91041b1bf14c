"""The two engines behind the table: atheris, which sees the coverage of every input, and Hypothesis where it is absent.

A session fuzzes one target in the process it is called in. What breaks the parser ends that process with status
`FOUND`, after the input was written down.
"""

import importlib
import importlib.util
import mmap
import os
import random
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Final

import attrs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.costs import costs_of
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import Target, answer

FOUND: Final = 77
LENGTH_MAX: Final = 4096
CORPUS: Final = "corpus"
FINDING: Final = "finding"
"""Names below a session's directory: the inputs that reached new places, and the one that broke it."""

_COUNT: Final = struct.Struct("q")
_CHECKS: Final = list(HealthCheck)


class CostsTooMuchError(Exception):
    """An input that breaks a promise of `tests.fuzz.costs`."""


@attrs.define(kw_only=True)
class Session:
    """One target's turn, in a process of its own. `work` is where a finding is left for the parent."""

    target: Target
    seeds: list[bytes]
    work: Path
    seconds: float
    counter: mmap.mmap = attrs.field(factory=lambda: mmap.mmap(-1, _COUNT.size))
    """Shared with the parent: libFuzzer ends a process without a word."""

    @property
    def tried(self) -> int:
        """How many inputs there were so far."""
        return int(_COUNT.unpack_from(self.counter)[0])

    def judge(self, data: bytes) -> None:
        """Feed one input. What is a finding ends the process."""
        _COUNT.pack_into(self.counter, 0, self.tried + 1)
        try:
            if broken := costs_of(lambda: answer(self.target, data)).broken:
                raise CostsTooMuchError(broken)
        except BaseException:  # whatever it is, it is not what the table allows
            (self.work / FINDING).write_bytes(data)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(FOUND)


def run(session: Session) -> None:
    """Fuzz until the time is over, by the better engine there is. With atheris the process ends here, with status 0."""
    (_with_atheris if has_atheris() else _with_hypothesis)(session)


def has_atheris() -> bool:
    """Whether it is installed; there are wheels for Linux on x86-64 only."""
    return importlib.util.find_spec("atheris") is not None


def _with_atheris(session: Session) -> None:
    """Mutate what reaches new places. The modules must have been imported under `atheris.instrument_imports`."""
    atheris = importlib.import_module("atheris")
    corpus = session.work / CORPUS
    corpus.mkdir()
    for number, seed in enumerate(session.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    longest = min(session.target.limit, LENGTH_MAX)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        dice = random.Random(seed)
        made = mutated(data, dice, max_size) if dice.random() < 0.8 else None
        return bytes(atheris.Mutate(data, max_size)) if made is None else made

    # The processor time and the memory of an input are measured here; libFuzzer's own limits are for what hangs.
    arguments = ["fuzz", str(corpus), f"-max_total_time={max(1, round(session.seconds))}", f"-max_len={longest}"]
    arguments += [f"-artifact_prefix={session.work}/", "-timeout=60", "-rss_limit_mb=0", "-verbosity=0"]
    if os.environ.get("CI"):  # a red run can be repeated; `make fuzz` elsewhere goes another way each time
        arguments.append("-seed=1")
    atheris.Setup(arguments, session.judge, **({"custom_mutator": mutate} if session.target.is_json else {}))
    atheris.Fuzz()


def _with_hypothesis(session: Session) -> None:
    """Mutate the seeds, and what came of them, blindly."""
    ends = time.monotonic() + session.seconds
    pool, made_now = list(session.seeds), list[bytes]()

    @settings(max_examples=500, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=_CHECKS)
    @given(st.randoms(use_true_random=False), st.binary(max_size=8))
    def one(dice: random.Random, patch: bytes) -> None:
        data = dice.choice(pool)
        made = mutated(data, dice, LENGTH_MAX) if session.target.is_json else None
        if made is None:
            at = dice.randint(0, len(data))
            made = data[:at] + patch + data[at + dice.randint(0, 8) :]
        session.judge(made)
        made_now.append(made)

    while time.monotonic() < ends:
        one()
        # Between runs only: what Hypothesis chooses from may not change during one.
        pool = [*session.seeds, *made_now[::10][:200]]
        made_now.clear()
