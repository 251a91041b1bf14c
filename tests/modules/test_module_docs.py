"""The pages about the modules' options have every option, in words, and are as the modules are today."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.modules.evaluation import DARWIN, GRADIENT_DEPLOY, ROOT, needs_nix, option_docs

PAGES: Final = {"nixos": GRADIENT_DEPLOY, "darwin": DARWIN}

_HEADING: Final = re.compile(r"^### `(.+)`$", re.MULTILINE)


def generate(*arguments: str, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    """docs/generate.py, with this PATH."""
    return subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", *arguments],
        env={**os.environ, **({} if path is None else {"PATH": path})},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.nix
@needs_nix
def test_the_pages_about_the_modules_are_up_to_date() -> None:
    said = generate("--check").stderr
    assert [world for world in PAGES if f"reference-{world}.md is out of date" in said] == [], said


@pytest.mark.nix
@needs_nix
@pytest.mark.parametrize(("world", "modules"), PAGES.items())
def test_every_option_has_a_section_and_there_is_no_other(world: str, modules: Sequence[Path]) -> None:
    page = (ROOT / f"docs/reference-{world}.md").read_text()
    assert _HEADING.findall(page) == [option.name for option in option_docs(world, modules)]


@pytest.mark.nix
@needs_nix
@pytest.mark.parametrize(("world", "modules"), PAGES.items())
def test_every_option_says_in_a_sentence_what_it_is_for(world: str, modules: Sequence[Path]) -> None:
    options = option_docs(world, modules)
    assert options
    assert [one.name for one in options if not re.search(r"[.:`]\Z", one.description)] == []
    assert [one.name for one in options if one.type == "unspecified value"] == []


def test_without_nix_the_pages_are_left_alone_and_that_is_said(tmp_path: Path) -> None:
    said = generate("--check", path=str(tmp_path)).stderr
    assert "nix-instantiate is not installed: reference-nixos.md and reference-darwin.md are left as they are" in said
    assert [world for world in PAGES if f"reference-{world}.md is out of date" in said] == []
