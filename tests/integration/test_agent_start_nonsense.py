"""The daemon itself, started where it cannot run: a line that says why, soon, and a state directory fit for the next.

What `check-config` finds in the options is in `test_agent_option_nonsense`; here is what only shows when they are used.
"""

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from tests.agentlab import Agent, AgentFleet
from tests.nonsense import (
    IS_ROOT,
    NOT_ROOT,
    Call,
    Said,
    Warm,
    needs_mounts,
    on_a_read_only_disk,
    open_to_all,
    tree,
    unlike,
)

NOWHERE: Final = "https://127.0.0.1:1"


@attrs.frozen(kw_only=True)
class Desk:
    """A host on which an agent could run, so that one thing is wrong at a time."""

    root: Path
    fleet: AgentFleet
    agent: Agent
    program: Warm

    def start(self, *names: str, nobody: bool = False, **flags: object) -> str:
        """What is wrong with how a start with these flags is refused; empty when nothing is."""
        words = tuple(self.agent.words(**flags))
        [said] = self.program.run([Call(words=words, names=names, about=str(flags), nobody=nobody)])
        assert not any("READY=1" in line for line in said.err.splitlines())
        return unlike([said])

    def new_agent(self, name: str) -> Agent:
        """Another host that could run."""
        return self.fleet.agent(name, NOWHERE, running=self.agent.current())


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    root = open_to_all()
    try:
        fleet = AgentFleet(root / "fleet", hosts=("web1", "web2", "web3"))
        agent = fleet.agent("web1", NOWHERE, running=fleet.system())
        agent.host_key.chmod(0o644)  # so that another user fails for one thing at a time
        with Warm("nixfleet_agent.__main__", "nixfleet_agent.daemon") as program:
            yield Desk(root=root, fleet=fleet, agent=agent, program=program)
    finally:
        shutil.rmtree(root)


# Metrics


def test_a_port_that_is_taken_is_named_and_the_state_is_fit_for_the_next_start(desk: Desk) -> None:
    agent = desk.new_agent("web2")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = agent.command(metrics_port=port)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "nixfleet-agent: configuration: --metrics-port: cannot listen on "
        f"127.0.0.1:{port}: Address already in use; choose another"
    ]
    with agent.running():
        assert agent.until_ready()["runs"] == 1, "nothing was journaled by a run that never began"


@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::7", "999.0.0.1", "nowhere.invalid"])
def test_an_address_that_is_not_ours_is_named(desk: Desk, address: str) -> None:
    wrong = desk.start("--metrics-address", metrics_port=0, metrics_address=address)
    assert not wrong, wrong


@pytest.mark.parametrize("address", ["two words", "a..b", "x" * 300, "127.0.0.1:80", "::1\n", "\udcff"])
def test_what_is_no_address_is_refused_before_anything_is_made(desk: Desk, address: str) -> None:
    before = tree(desk.root)
    wrong = desk.start("--metrics-address", metrics_port=0, metrics_address=address)
    assert not wrong, wrong
    assert tree(desk.root) == before


# The state directory


@pytest.mark.parametrize("what", ["file", "below a file", "loop", "pipe"])
def test_a_state_directory_that_is_none_is_refused(desk: Desk, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    place = tmp_path / ("file/state" if what == "below a file" else what)
    before = tree(tmp_path)
    wrong = desk.start("--state-dir", state_dir=place)
    assert not wrong, wrong
    assert tree(tmp_path) == before


@pytest.mark.skipif(not IS_ROOT, reason=NOT_ROOT)
@pytest.mark.parametrize("mode", [0o700, 0o755], ids=["closed", "open to look"])
@pytest.mark.parametrize("below", ["", "new"], ids=["itself", "below"])
def test_a_state_directory_of_another_user_is_refused(desk: Desk, mode: int, below: str) -> None:
    """Open to look at, an agent could begin to run in it, and would find only later that it can keep nothing."""
    theirs = desk.root / f"theirs-{mode:o}-{below}"
    theirs.mkdir()
    theirs.chmod(mode)
    before = tree(theirs)
    wrong = desk.start("--state-dir", nobody=True, state_dir=theirs / below)
    assert not wrong, wrong
    assert tree(theirs) == before


@pytest.mark.skipif(not IS_ROOT, reason=NOT_ROOT)
def test_root_runs_in_a_state_directory_of_another_user_and_keeps_it_closed_to_that_user(desk: Desk) -> None:
    agent = desk.new_agent("web3")
    agent.state_dir.mkdir(mode=0o700)
    os.chown(agent.state_dir, 65534, 65534)
    with agent.running():
        agent.until_ready()
    assert {path.stat().st_uid for path in agent.state_dir.iterdir()} == {0}
    assert not [path for path in agent.state_dir.iterdir() if path.is_file() and path.stat().st_mode & 0o077]


@needs_mounts
@pytest.mark.root
def test_a_state_directory_that_cannot_be_made_on_a_read_only_disk_is_refused(desk: Desk) -> None:
    disk = desk.root / "disk"
    disk.mkdir()
    words = [sys.executable, "-m", "nixfleet_agent", *desk.agent.words(state_dir=disk / "state")]
    done = on_a_read_only_disk(disk, words)
    call = Call(words=tuple(words), names=("--state-dir",))
    wrong = unlike([Said(call=call, status=done.returncode, out=done.stdout, err=done.stderr)])
    assert not wrong, wrong
    assert "Read-only file system" in done.stderr


def test_a_second_agent_on_the_same_state_says_who_the_first_is(desk: Desk) -> None:
    with desk.agent.running():
        desk.agent.until_ready()
        wrong = desk.start(f"process {desk.agent.pid}")
        assert not wrong, wrong
        assert desk.agent.status() is not None, "the first goes on"
