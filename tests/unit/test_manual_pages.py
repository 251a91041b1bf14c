"""The manual pages: every command and option of every program, in pages that a formatter takes without a complaint.

That they are up to date with the code is held by `test_docs`, with the other pages that `docs/generate.py` writes.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import pytest

from control_plane.cli import cli as control_plane
from nixfleet.cli import cli as nixfleet
from nixfleet_agent.cli import cli as agent
from nixfleet_agent.inspection import EXIT_NOT_RUNNING, EXIT_SICK
from nixfleet_agent.options import OPTIONS

FOLDER: Final = Path(__file__).parents[2] / "docs/man"
PROGRAMS: Final[dict[str, click.Command]] = {
    "nixfleet-agent.8": agent,
    "nixfleet-control-plane.8": control_plane,
    "nixfleet.1": nixfleet,
}
SECTIONS: Final = [
    "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS", "ENVIRONMENT", "FILES", "EXIT STATUS", "EXAMPLES",
    "SEE ALSO",
]  # fmt: skip


@pytest.fixture(params=PROGRAMS)
def page(request: pytest.FixtureRequest) -> Path:
    return FOLDER / str(request.param)


def plain(text: str) -> str:
    """The text without what only a formatter wants."""
    return re.sub(r"\\f[BIR]|\\&", "", text).replace(r"\-", "-").replace(r"\(ga", "`").replace(r"\(ti", "~")


def commands(command: click.Command, *path: str) -> Iterator[tuple[str, click.Command]]:
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, *path, name)


def test_there_is_one_page_a_program() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PROGRAMS)


def test_a_page_has_the_sections_a_reader_looks_for_in_their_order(page: Path) -> None:
    found = re.findall(r"^\.SH (.+)$", page.read_text(), re.MULTILINE)
    assert [section for section in found if section != "SIGNALS"] == SECTIONS


def test_a_page_is_of_its_program_and_section(page: Path) -> None:
    program, _, section = page.name.rpartition(".")
    assert re.search(
        rf'^\.TH {program.upper()} {section} "\d{{4}}-\d\d-\d\d" "nixfleet [\d.]+"', page.read_text(), re.M
    )
    assert f"{program} - " in plain(page.read_text())


def test_a_page_has_every_command_and_option_of_its_program(page: Path) -> None:
    text = plain(page.read_text())
    for name, command in commands(PROGRAMS[page.name]):
        shown = [o for o in command.params if isinstance(o, click.Option) and not o.hidden]
        if name and (not isinstance(command, click.Group) or {o.name for o in shown} - {"help"}):
            assert f"\n.SS {name}" in text
        for option in shown:
            if option.name not in ("help", "version"):
                assert all(re.search(rf"^{flag}\b|, {flag}\b", text, re.MULTILINE) for flag in option.opts), option.opts


def test_the_agents_page_has_every_variable() -> None:
    text = plain((FOLDER / "nixfleet-agent.8").read_text())
    assert [name for option in OPTIONS for name in option.variables if name not in text] == []


def test_the_agents_page_has_the_exit_statuses_of_status() -> None:
    text = plain((FOLDER / "nixfleet-agent.8").read_text())
    exits = text.partition("\n.SH EXIT STATUS\n")[2].partition("\n.SH ")[0]
    told = {int(code): " ".join(said.split()) for code, said in re.findall(r"\.TP\n(\d+)\n((?:[^.].*\n?)+)", exits)}
    assert "status: the agent does not run" in told[EXIT_NOT_RUNNING]
    assert "status: it runs, and something is wrong" in told[EXIT_SICK]


def test_every_command_of_ours_in_an_example_exists(page: Path) -> None:
    text = plain(page.read_text()).replace("\\e\n", "")
    programs = {"nixfleet-agent": agent, "nixfleet-control-plane": control_plane, "nixfleet": nixfleet}
    calls = re.findall(r"^[#$] (nixfleet\S*) ?([^;|\n]*)", text, re.MULTILINE)
    assert len(calls) >= 2
    for program, rest in calls:
        known, flags = dict(commands(programs[program])), set()
        path: list[str] = []
        for word in rest.split():
            path += [word] if " ".join([*path, word]) in known else []
        for depth in range(len(path) + 1):
            flags |= {opt for param in known[" ".join(path[:depth])].params for opt in param.opts}
        assert [word for word in rest.split() if word.startswith("--") and word not in flags] == [], rest


def test_no_line_of_text_is_taken_for_a_request(page: Path) -> None:
    requests = {line.split()[0] for line in page.read_text().splitlines() if line.startswith((".", "'"))}
    assert requests <= {
        '.\\"',
        ".TH",
        ".SH",
        ".SS",
        ".TP",
        ".PP",
        ".B",
        ".BR",
        ".RS",
        ".RE",
        ".nf",
        ".fi",
        ".nh",
        ".ad",
    }


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_mandoc_has_nothing_to_say_about_a_page(page: Path) -> None:
    done = subprocess.run(["mandoc", "-Tlint", str(page)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_nothing_to_say_about_a_page(page: Path) -> None:
    words = ["groff", "-man", "-Tutf8", "-ww", "-z", str(page)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
