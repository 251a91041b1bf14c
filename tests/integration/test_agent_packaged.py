"""The program as a package manager installs it: a start script that knows where the modules are, and an interpreter
that does not. Every process that the program starts of itself must find its modules all the same.

The start script does what nixpkgs' wrapper of a Python program does: `site.addsitedir` for each dependency.
"""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest

from tests.agentlab import PATIENCE_S, Agent, AgentFleet

ROOT = Path(__file__).parents[2]
PACKAGES = ("control_plane", "evidence", "messaging", "nixfleet", "nixfleet_agent", "state_machine", "wire")
INTERPRETER: str = getattr(sys, "_base_executable", sys.executable)
"""The one that the virtual environment was made from."""

START_SCRIPT = """\
import site, sys
for place in {places!r}:
    site.addsitedir(place)
# The test harness says "PYTHON -m nixfleet_agent FLAGS"; the flags are what a start script is given.
sys.argv[1:] = sys.argv[sys.argv.index("nixfleet_agent") + 1:] if "nixfleet_agent" in sys.argv else sys.argv[1:]
from {module}.__main__ import main
sys.exit(main())
"""


@attrs.frozen(kw_only=True)
class Installation:
    """Everything in directories that no interpreter looks into by itself."""

    bin: Path

    def command(self, program: str, module: str) -> Sequence[str]:
        script = self.bin / program
        script.write_text(START_SCRIPT.format(places=[f"{self.bin}/../lib", f"{self.bin}/../deps"], module=module))
        return [INTERPRETER, str(script)]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    root = tmp_path_factory.mktemp("installation")
    for name in ("bin", "lib", "deps"):
        (root / name).mkdir()
    for name in PACKAGES:
        (root / "lib" / name).symlink_to(ROOT / name)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "__editable__" not in entry.name:
            (root / "deps" / entry.name).symlink_to(entry)
    return Installation(bin=root / "bin")


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which the interpreter finds nothing of ours by itself."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    words = [INTERPRETER, "-c", "import nixfleet_agent"]
    alone = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in alone.stderr, "or these tests show nothing"
    return environment


@pytest.fixture
def agent(tmp_path: Path) -> Agent:
    fleet = AgentFleet(tmp_path / "fleet")
    return fleet.agent("web1", "https://127.0.0.1:1", running=fleet.system())


def test_the_agent_makes_its_journal_and_reads_its_certificate(
    installation: Installation, agent: Agent, bare: dict[str, str]
) -> None:
    with agent.running(wrap=installation.command("nixfleet-agent", "nixfleet_agent")):
        said = agent.until_status("its certificate", lambda said: said["contact"]["certificate_days"])
        assert said["runs"] == 1
        assert agent.stop() == 0


def test_check_config_reads_the_certificate(
    installation: Installation, agent: Agent, bare: dict[str, str], tmp_path: Path
) -> None:
    words = [*installation.command("nixfleet-agent", "nixfleet_agent"), *agent.words("check-config")]
    done = subprocess.run(words, env=bare, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("the configuration is good\n", "", 0)


def test_an_agent_that_starts_itself_anew_does_so_by_its_start_script(
    installation: Installation, agent: Agent, bare: dict[str, str], tmp_path: Path
) -> None:
    wrap = installation.command("nixfleet-agent", "nixfleet_agent")
    with agent.running(wrap=wrap):
        agent.until_ready()
        agent.stop()
        agent.journal.write_bytes(b"\xa5" * 65536)
        agent.start(wrap=wrap)
        agent.until_status("why nothing begins", lambda said: said["waiting_on"])
        agent.kill()
        agent.start(wrap=wrap)
        agent.until_status("why nothing begins", lambda said: "journal begin" in (said["waiting_on"] or ""))
        pid = agent.pid
        words = [*wrap, *agent.words("journal", "begin")]
        begun = subprocess.run(words, env=bare, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert begun.returncode == 0, begun.stderr
        agent.poke()
        agent.until_status("a new journal", lambda said: said["runs"] == 1 and not said["waiting_on"])
        assert agent.pid == pid


def test_what_it_runs_for_others_does_not_see_where_its_modules_are(
    installation: Installation, agent: Agent, bare: dict[str, str], tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    command = f"env > {seen}.new && mv {seen}.new {seen}"
    agent.write_checks({"look": {"kind": "command", "command": command, "intervalSeconds": 5}})
    with agent.running(wrap=installation.command("nixfleet-agent", "nixfleet_agent")):
        agent.until("a probe's run", seen.exists)
    assert "PYTHONPATH" not in seen.read_text()


def test_the_demo_starts_its_processes(installation: Installation, bare: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "control_plane_of_the_demo"
    places = [f"{installation.bin}/../lib", f"{installation.bin}/../deps"]
    script.write_text(
        f"import site\nfor place in {places!r}:\n    site.addsitedir(place)\n"
        "from nixfleet.demo.processes import run_command\n"
        "done = run_command(['control_plane', '--help'])\nprint(done.stdout, done.stderr)\n"
    )
    done = subprocess.run(
        [INTERPRETER, str(script)], env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert "Usage: nixfleet-control-plane" in done.stdout, done.stderr


def test_a_child_does_not_take_modules_out_of_the_current_directory(
    installation: Installation, agent: Agent, bare: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a module of a stranger')\n")
    words = [*installation.command("nixfleet-agent", "nixfleet_agent"), *agent.words("check-config")]
    done = subprocess.run(words, env=bare, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
