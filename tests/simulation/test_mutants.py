"""The table of mutants fits the product, and the simulation finds what it must. All of them: `make mutants`."""

import collections
from typing import Final

import pytest

from tests.simulation.faults import Depth
from tests.simulation.mutant_table import MUTANTS, Edit
from tests.simulation.mutants import PAGE, ROOT, MutantRottenError, hunt, mutated, replaced, rows_of, scratch

LEAST: Final = 60
CHEAP: Final = ("forget-quarantine", "rollback-to-the-target", "skip-the-soak", "ignore-budgets")
ENOUGH: Final = 20


def test_every_mutant_still_fits_the_product() -> None:
    for mutant in MUTANTS:
        for edit in mutant.edits:
            text = (ROOT / edit.file).read_text()
            assert replaced(text, edit) != text, mutant.name


def test_there_are_enough_mutants_and_each_has_a_name_of_its_own() -> None:
    assert len(MUTANTS) >= LEAST
    assert max(collections.Counter(mutant.name for mutant in MUTANTS).values()) == 1


def test_a_mutant_that_no_fleet_has_to_find_says_why_and_any_other_is_found_by_fleets() -> None:
    rows = rows_of(PAGE.read_text())
    for mutant in MUTANTS:
        assert bool(mutant.no_fleet) is not isinstance(mutant.by, Depth), mutant.name
        assert ("::" in rows[mutant.name]) is bool(mutant.no_fleet), rows[mutant.name]


def test_the_page_has_every_mutant() -> None:
    assert {mutant.name for mutant in MUTANTS} <= rows_of(PAGE.read_text()).keys()


def test_a_text_that_is_there_twice_or_not_at_all_is_not_replaced() -> None:
    for text, count in (("a b a", 2), ("b", 0)):
        with pytest.raises(MutantRottenError, match=f"{count} times"):
            replaced(text, Edit(file="x.py", old="a", new="c"))


def test_four_mutants_are_found_by_a_few_fleets_and_the_product_is_as_it_was_afterwards() -> None:
    with scratch() as copy:
        for mutant in (mutant for mutant in MUTANTS if mutant.name in CHEAP):
            with mutated(copy, mutant):
                verdict = hunt(copy, mutant.by, ENOUGH)
            assert verdict.killer, mutant.name
            assert "::" not in verdict.killer, f"{mutant.name}: no fleet found it, {verdict.killer} did"
            for edit in mutant.edits:
                assert (copy / edit.file).read_text() == (ROOT / edit.file).read_text()
