"""The core decides from what it is given: no clock, no dice, no disk, no network. Checked on its source and its import.

The import contract in `pyproject.toml` forbids by list; this allows by list, and sees what needs no import.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import state_machine

ALLOWED = {
    "attrs",
    "collections",
    "enum",
    "functools",
    "itertools",
    "operator",
    "re",
    "state_machine",
    "types",
    "typing",
}
FORBIDDEN_BUILTINS = {
    "__import__",
    "breakpoint",
    "compile",
    "eval",
    "exec",
    "globals",
    "id",
    "input",
    "locals",
    "open",
    "print",
    "vars",
}
"""Builtins that reach outside, or tell two equal values apart. `hash` of a string differs from process to process."""
FORBIDDEN_BUILTINS |= {"hash"}

MODULES = sorted(Path(state_machine.__file__).parent.rglob("*.py"))
by_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The top-level packages a module imports, with the line."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name.partition(".")[0]) for alias in names)
            case ast.ImportFrom(module=module, level=level):
                yield node.lineno, (module or "").partition(".")[0] if not level else "."
            case _:
                pass


@by_module
def test_a_module_of_the_core_imports_only_values_and_itself(path: Path) -> None:
    foreign = [(line, name) for line, name in imported(ast.parse(path.read_text())) if name not in ALLOWED]
    assert not foreign, f"{path.name} imports {foreign}; time, chance and the world arrive in events"


@by_module
def test_a_module_of_the_core_uses_no_builtin_that_reaches_outside(path: Path) -> None:
    tree = ast.parse(path.read_text())
    used = [(n.lineno, n.id) for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in FORBIDDEN_BUILTINS]
    assert not used, f"{path.name} uses {used}"


@by_module
def test_a_module_of_the_core_keeps_no_state_of_its_own(path: Path) -> None:
    """Nothing is declared `global`, and what a module binds to a mutable display is declared `Final`."""
    tree = ast.parse(path.read_text())
    shared = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Global | ast.Nonlocal)]
    mutable = ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp
    bare = [n.lineno for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.value, mutable)]
    assert not shared, f"{path.name}: lines {shared}"
    assert not bare, f"{path.name}: lines {bare}"


@by_module
def test_a_module_of_the_core_can_be_the_first_one_imported(path: Path) -> None:
    """No circle of imports that only works in one order."""
    name = f"state_machine.{path.stem}" if path.stem != "__init__" else "state_machine"
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_list_of_what_is_allowed_is_itself_noticed_when_broken() -> None:
    source = "import os.path\nfrom time import time\nfrom . import step\n"
    assert [name for _, name in imported(ast.parse(source))] == ["os", "time", "."]
