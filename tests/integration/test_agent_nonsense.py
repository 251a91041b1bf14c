"""Options that cannot work: exit status 2, one clear line for each problem, and never a traceback.

Which texts an option takes is tested where they are read; here it is the process that answers, and what lies behind
the paths.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from nixfleet_agent.options import OPTIONS, Kind
from tests.agentlab import Agent, AgentFleet

NONSENSE: Final = {
    Kind.SECONDS: "soon",
    Kind.NUMBER: "many",
    Kind.FRACTION: "half",
    Kind.CHOICE: "neither",
    Kind.FLAG: "perhaps",
}


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    fleet = AgentFleet(tmp_path)
    return fleet.agent("web1", "https://127.0.0.1:1", running=fleet.system())


def lines(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """What a refusal says, line by line."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


def run(environment: dict[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "nixfleet_agent", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


def test_every_option_that_is_given_nonsense_is_named_in_a_line_of_its_own(agent: Agent) -> None:
    environment = agent.environment()
    for option in OPTIONS:
        if option.kind in NONSENSE:
            environment[option.variables[0]] = NONSENSE[option.kind]
    environment |= {
        "NIXFLEET_AGENT_CONTROL_PLANE_URL": "ftp://nowhere",
        "NIXFLEET_AGENT_MACHINE_ID": "../web1",
        "NIXFLEET_AGENT_CACHE_URL": "--option",
    }
    said = lines(run(environment))
    assert all(line.startswith("nixfleet-agent: configuration: --") for line in said)
    named = [line.split()[2] for line in said]
    wanted = {option.flag for option in OPTIONS if option.kind in NONSENSE}
    assert set(named) >= wanted | {"--control-plane-url", "--machine-id", "--cache-url"}
    assert len(named) == len(set(named)), "one line for each"


def test_with_nothing_at_all_it_says_what_it_needs(agent: Agent) -> None:
    said = lines(run(agent.environment()))
    assert [line.split()[2] for line in said] == ["--control-plane-url", "--machine-id", "--client-cert"]


@pytest.mark.parametrize(
    "words",
    [
        ("--nonsense", "1"),
        ("--poll-interval",),
        ("nonsense",),
        ("journal",),
        ("journal", "nonsense"),
        ("--dry-run=yes",),
    ],
    ids=" ".join,
)
def test_a_command_line_that_makes_no_sense_shows_how_it_is_used(agent: Agent, words: tuple[str, ...]) -> None:
    said = lines(run(agent.environment(), *words))
    [line] = [line for line in said if line.startswith("nixfleet-agent: ")] or said[:1]
    assert line.startswith(("nixfleet-agent: ", "Usage: nixfleet-agent journal"))


# What lies behind the paths


def absent(path: Path) -> Path:
    return path / "absent"


def a_directory(path: Path) -> Path:
    (path / "a-directory").mkdir()
    return path / "a-directory"


def garbage(path: Path) -> Path:
    (path / "garbage").write_bytes(b"\0garbage\n" * 20)
    return path / "garbage"


def below_a_file(path: Path) -> Path:
    (path / "a-file").write_text("")
    return path / "a-file" / "state"


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("ca_cert", absent),
        ("ca_cert", garbage),
        ("client_cert", garbage),
        ("client_cert", a_directory),
        ("client_key", absent),
        ("client_key", garbage),
        ("ssh_host_key_file", absent),
        ("ssh_host_key_file", garbage),
        ("state_dir", garbage),
        ("state_dir", below_a_file),
        ("trust_file", garbage),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_path_that_leads_to_nothing_of_use_ends_the_start_in_one_line(
    agent: Agent, tmp_path: Path, option: str, make: Callable[[Path], Path]
) -> None:
    place = make(tmp_path)
    flags: dict[str, Any] = {option: place}
    if option == "ssh_host_key_file":
        flags["client_key"] = agent.host_key
    [line] = lines(agent.command(**flags))
    assert line.startswith("nixfleet-agent: configuration: ")
    assert str(place) in line


def test_a_health_checks_file_that_cannot_be_used_is_a_failing_probe_and_not_an_end(agent: Agent) -> None:
    """A new generation may bring it, and the agent must live to take that generation back."""
    agent.checks.write_text("{")
    with agent.running():
        said = agent.until_status("a failing probe", lambda said: [p["status"] for p in said["probes"]] == ["fail"])
        assert str(agent.checks) in said["probes"][0]["reason"]
