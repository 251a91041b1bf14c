"""The documents say nothing that is not so: links lead somewhere, named tests and commands exist, pages are current."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from state_machine.gates import GATES
from state_machine.values import Reason

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")],
)
PROGRAMS: Final = ("nixfleet-agent", "nixfleet-control-plane", "nixfleet")

_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_TEST: Final = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
_PATH: Final = re.compile(
    r"`((?:state_machine|wire|evidence|nixfleet_agent|control_plane|nixfleet|tests|benchmarks|docs)/[\w./-]*)"
)
_MAKE: Final = re.compile(r"(?:^|[\s`(])make ([a-z-]+)", re.MULTILINE)
_COMMAND: Final = re.compile(r"^(?:\$ |# )?(nixfleet(?:-agent|-control-plane)?)((?: .*)?)$", re.MULTILINE)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(params=PAGES, ids=_name)
def page(request: pytest.FixtureRequest) -> Path:
    path = request.param
    assert isinstance(path, Path)
    return path


def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    prose = _FENCE.sub("", page.read_text())
    for target in _LINK.findall(prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{_name(page)}: {target} leads nowhere"
        if anchor:
            assert anchor in set(_anchors(there)), f"{_name(page)}: {target} names no heading of {_name(there)}"


def _anchors(page: Path) -> Iterator[str]:
    """The names of the headings as a forge makes them: lower case, no punctuation, dashes for blanks."""
    for heading in re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text()), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for path, name in _TEST.findall(page.read_text()):
        assert (ROOT / path).is_file(), f"{_name(page)} names {path}, which is not there"
        assert re.search(rf"def {name}\(", (ROOT / path).read_text()), f"{_name(page)}: no test {name} in {path}"


def test_every_file_that_a_page_names_exists(page: Path) -> None:
    for path in _PATH.findall(page.read_text()):
        there = ROOT / path.rstrip("/.")
        assert there.exists() or "results.json" in path, f"{_name(page)} names {path}, which is not there"


def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in _MAKE.findall("\n".join(_code(page))):
        assert target in targets, f"{_name(page)}: there is no `make {target}`"


def _code(page: Path) -> Iterator[str]:
    """Fenced blocks and code within lines."""
    text = page.read_text()
    yield from _FENCE.findall(text)
    yield from re.findall(r"`[^`\n]+`", _FENCE.sub("", text))


def test_every_flag_and_command_of_ours_that_a_page_shows_exists(page: Path) -> None:
    sections = _reference()
    for program, rest in _COMMAND.findall("\n".join(_joined(page))):
        words = rest.split(" | ")[0].split(" > ")[0].split(" < ")[0].split()
        command, options = program, set(sections[program])
        for word in words:
            if f"{command} {word}" in sections:
                command = f"{command} {word}"
                options |= sections[command]
            elif word.startswith("--"):
                flag = word.partition("=")[0]
                assert flag in options | {"--help", "--version"}, f"{_name(page)}: `{command}` has no {flag}"


def _joined(page: Path) -> Iterator[str]:
    """Code of the page with its continued lines joined, and without the marks around code in a line."""
    for block in _code(page):
        text = re.sub(r"\\\n\s*", "", block)
        yield text.strip("`") if not block.startswith("```") else text


def _reference() -> dict[str, set[str]]:
    """Every command with its flags, as the reference has them."""
    sections: dict[str, set[str]] = {}
    command = ""
    for line in (ROOT / "docs/reference-cli.md").read_text().splitlines():
        if line.startswith(("## ", "### ")):
            command = line.lstrip("# ")
            sections[command] = set()
        elif line.startswith("| `--"):
            sections[command].update(re.findall(r"`(--[\w-]+)`", line.split(" | ")[0]))
    return sections


def test_the_reference_of_the_command_line_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_reference_has_every_program(program: str) -> None:
    assert program in _reference()


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_remedy_in_the_operating_guide(reason: Reason) -> None:
    assert f"| `{reason}` |" in (ROOT / "docs/operating.md").read_text()


@pytest.mark.parametrize("gate", [gate.name for gate in GATES])
def test_every_gate_of_the_planner_is_explained_in_the_operating_guide(gate: str) -> None:
    assert f"| `{gate}` |" in (ROOT / "docs/operating.md").read_text()


METRIC_SOURCES: Final = ("nixfleet_agent/metrics.py", "control_plane/metrics.py", "control_plane/gauges.py")


@pytest.mark.parametrize("source", METRIC_SOURCES)
def test_every_metric_is_in_the_operating_guide(source: str) -> None:
    guide = (ROOT / "docs/operating.md").read_text()
    names = set(re.findall(r'"(nixfleet_[a-z_]+)"', (ROOT / source).read_text()))
    assert names
    assert {name for name in names if f"`{name}" not in guide} == set()


DECISIONS: Final = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))


def test_decisions_are_numbered_without_gaps_and_listed() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    index = (ROOT / "docs/decisions/README.md").read_text()
    assert [path.name for path in DECISIONS if f"({path.name})" not in index] == []


@pytest.mark.parametrize("decision", DECISIONS, ids=_name)
def test_a_decision_says_context_decision_why_and_alternatives_on_a_dozen_lines(decision: Path) -> None:
    text = decision.read_text()
    places = [text.find(f"**{part}.**") for part in ("Context", "Decision", "Why", "Alternatives")]
    assert -1 not in places
    assert places == sorted(places)
    assert len(text.splitlines()) <= 12


def test_the_readme_begins_with_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    first = _FENCE.findall(readme)[0]
    assert "make demo" in first
    assert "make test" in first
