"""Every kept input again: the corpus, and for ever whatever once broke a parser. And inputs as large as they may be."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.corpus import CORPUS, FINDINGS, kept
from tests.fuzz.costs import MEMORY_PROMISE_MIB, costs_of
from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS, answer

REPOSITORY = Path(__file__).parents[2]
CORPUS_FILES_MAX = 250
CORPUS_BYTES_MAX = 300_000


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_takes_what_is_genuine(name: str) -> None:
    target = TARGETS[name]
    assert target.genuine
    assert not isinstance(answer(target, target.genuine[0]), Exception)


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_is_a_value_or_a_typed_refusal(name: str) -> None:
    target = TARGETS[name]
    for path in [*kept(CORPUS, target), *kept(FINDINGS, target)]:
        costs = costs_of(lambda path=path: answer(target, path.read_bytes()))  # type: ignore[misc]
        assert costs.memory_mib <= MEMORY_PROMISE_MIB, path


@pytest.mark.parametrize("name", TARGETS)
def test_a_genuine_input_cut_anywhere_is_a_value_or_a_typed_refusal(name: str) -> None:
    target = TARGETS[name]
    genuine = target.genuine[0]
    for size in range(0, len(genuine), max(1, len(genuine) // 40)):
        answer(target, genuine[:size])


def test_no_input_is_kept_for_a_parser_that_is_not_in_the_table() -> None:
    assert {path.name for directory in (CORPUS, FINDINGS) for path in directory.iterdir()} <= TARGETS.keys()


def test_the_corpus_stays_small() -> None:
    files = [path for target in TARGETS.values() for path in kept(CORPUS, target)]
    assert len(files) <= CORPUS_FILES_MAX
    assert sum(path.stat().st_size for path in files) <= CORPUS_BYTES_MAX


@pytest.mark.skipif(sys.platform != "linux", reason="the highest mark of memory is told by Linux's /proc only")
@pytest.mark.parametrize("name", ["canonical-json", "health-checks"])
def test_the_largest_inputs_cost_no_more_than_promised(name: str) -> None:
    command = [sys.executable, "-m", "tests.fuzz.floods", "--worst", name]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_the_flood_check_sees_a_parser_that_takes_too_much() -> None:
    costs = costs_of(lambda: bytearray(b"x" * (MEMORY_PROMISE_MIB + 8) * 2**20))
    if sys.platform == "linux":
        assert str(MEMORY_PROMISE_MIB) in costs.broken


def test_a_mutated_document_is_often_a_document_and_always_the_same_for_the_same_number() -> None:
    data = TARGETS["fleet"].genuine[0]
    made = [mutated(data, random.Random(seed), 4096) for seed in range(200)]
    assert made == [mutated(data, random.Random(seed), 4096) for seed in range(200)]
    readable = 0
    for each in filter(None, made):
        try:
            json.loads(each)
        except (ValueError, RecursionError):
            continue
        readable += 1
    assert readable > 150
