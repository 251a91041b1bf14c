"""Disks that are full, read-only or damaged, and journals of other agents: nothing new begins, the rest goes on.

Health checks and heartbeats need no memory. What cannot be read is set aside and never deleted, what is of a newer
version is not touched, and once the disk is mended the agent starts itself anew and goes on where it was.
"""

import contextlib
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from state_machine.values import Closure
from tests.agentlab import Agent, AgentFleet
from tests.liar import Liar
from tests.nonsense import needs_mounts


@pytest.fixture
def fleet(tmp_path: Path) -> AgentFleet:
    return AgentFleet(tmp_path)


@pytest.fixture
def liar(fleet: AgentFleet) -> Iterator[Liar]:
    with Liar(fleet) as liar:
        yield liar


def make_agent(fleet: AgentFleet, liar: Liar, **flags: Any) -> Agent:
    return fleet.agent("web1", liar.url, running=fleet.system(), metrics_port=0, **flags)


def send(agent: Agent, liar: Liar) -> tuple[str, Closure]:
    closure = agent.fleet.system()
    rollout = agent.fleet.release(None, {agent.name: closure})
    liar.dispatch(agent.name, rollout, closure)
    return rollout, closure


@contextlib.contextmanager
def mounted(where: Path, *options: str) -> Iterator[None]:
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def remount(where: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(where)], check=True)


def fill(where: Path) -> Path:
    """Leave no room at all."""
    ballast = where / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    return ballast


# Before the start


def assert_held(agent: Agent, liar: Liar, why: str) -> None:
    """It runs, beats and probes, says why it begins nothing, and begins nothing."""
    said = agent.until_status("why nothing begins", lambda said: said["waiting_on"])
    assert why in said["waiting_on"]
    assert why in agent.until_logged("nothing new will be begun")["why"]
    rollout, _ = send(agent, liar)
    agent.until_logged("refused", reason="busy", rollout=rollout)
    liar.until_asked("heartbeat")
    agent.until_status("a probe's result", lambda said: said["probes"][0]["status"] == "pass")
    assert agent.switches() == []
    assert why in next(beat.json["waiting_on"] for beat in reversed(liar.requests("heartbeat")))
    assert not liar.facts


def test_a_damaged_journal_is_set_aside_and_a_person_lets_a_new_one_begin(fleet: AgentFleet, liar: Liar) -> None:
    agent = make_agent(fleet, liar)
    with agent.running():
        rollout, first = send(agent, liar)
        agent.until_settled(rollout, "Converged")
        agent.stop()
        original = damage(agent.journal)
        agent.start()
        said = agent.until_status("why nothing begins", lambda said: said["waiting_on"])
        assert "damaged" in said["waiting_on"]
        [kept] = [
            path
            for path in agent.state_dir.glob("journal.sqlite.damaged-*")
            if not path.name.endswith(("-wal", "-shm"))
        ]
        assert kept.read_bytes() == original
        assert agent.switches() == [first]
        # Not even a restart makes it forget that something was lost.
        agent.restart()
        said = agent.until_status("why nothing begins", lambda said: said["waiting_on"])
        assert "journal begin" in said["waiting_on"]
        pid = agent.pid
        begun = agent.command("journal", "begin")
        assert begun.returncode == 0
        agent.poke()
        agent.until_status("a new journal", lambda said: said["runs"] == 1 and not said["waiting_on"])
        assert agent.pid == pid, "it started itself anew, as the same process for the service manager"
        assert (agent.state_dir / "damaged" / kept.name).read_bytes() == original
        rollout, second = send(agent, liar)
        agent.until_settled(rollout, "Converged")
    assert agent.switches() == [first, second]


def damage(journal: Path) -> bytes:
    """Overwrite a page in the middle of the file; what the file is then."""
    data = bytearray(journal.read_bytes())
    middle = len(data) // 8192 * 4096
    data[4096 : middle + 4096] = b"\xa5" * middle
    journal.write_bytes(data)
    return bytes(data)


@pytest.mark.parametrize("content", [b"", b"not a database at all"], ids=["empty", "text"])
def test_a_file_that_is_no_journal(fleet: AgentFleet, liar: Liar, content: bytes) -> None:
    agent = make_agent(fleet, liar)
    agent.state_dir.mkdir()
    agent.journal.write_bytes(content)
    with agent.running():
        if not content:  # what a power cut leaves of a file that was just made
            agent.until_status("a start", lambda said: said["runs"] == 1 and not said["waiting_on"])
        else:
            assert_held(agent, liar, "damaged")
            [kept] = agent.state_dir.glob("journal.sqlite.damaged-*")
            assert kept.read_bytes() == content


def test_a_journal_of_a_newer_version_is_not_touched(fleet: AgentFleet, liar: Liar) -> None:
    agent = make_agent(fleet, liar)
    with agent.running():
        agent.until_ready()
        agent.stop()
    with contextlib.closing(sqlite3.connect(agent.journal)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA user_version=99")
    before = agent.journal.read_bytes()
    with agent.running():
        assert_held(agent, liar, "newer agent")
        assert (agent.metric("nixfleet_agent_refusals_total", reason="busy") or 0) >= 1
        assert agent.journal.read_bytes() == before
        second = agent.command()
        assert second.returncode == 1
        assert f"process {agent.pid}" in second.stderr
        agent.stop()
    assert agent.journal.read_bytes() == before


def test_a_journal_of_another_host_is_not_continued(fleet: AgentFleet, liar: Liar, tmp_path: Path) -> None:
    other = AgentFleet(tmp_path / "other")
    stranger = other.agent("web1", liar.url, running=other.system())
    with stranger.running():
        stranger.until_ready()
        stranger.stop()
    agent = make_agent(fleet, liar)
    agent.state_dir.mkdir()
    shutil.copy(stranger.journal, agent.journal)
    before = agent.journal.read_bytes()
    with agent.running():
        assert_held(agent, liar, "somebody else")
        agent.stop()
    assert agent.journal.read_bytes() == before


@needs_mounts
@pytest.mark.root
def test_a_read_only_state_directory_is_lived_with_until_it_is_mended(fleet: AgentFleet, liar: Liar) -> None:
    agent = make_agent(fleet, liar)
    with mounted(agent.state_dir, "-t", "tmpfs", "-o", "size=8m", "tmpfs"):
        remount(agent.state_dir, "ro")
        with agent.running():
            agent.until_logged("nothing new will be begun")
            liar.until_asked("heartbeat")
            assert "Traceback" not in agent.log_text().partition("a worker crashed")[0]
            remount(agent.state_dir, "rw")
            # Its own socket comes with the directory.
            agent.until_status("its socket", lambda said: said)
            agent.poke()
            agent.until_status("a journal", lambda said: said["runs"] == 1 and not said["waiting_on"])
            rollout, _ = send(agent, liar)
            agent.until_settled(rollout, "Converged")


@needs_mounts
@pytest.mark.root
def test_a_disk_that_is_full_at_the_start_is_lived_with_until_there_is_room(fleet: AgentFleet, liar: Liar) -> None:
    agent = make_agent(fleet, liar)
    with mounted(agent.state_dir, "-t", "tmpfs", "-o", "size=4m", "tmpfs"), agent.running():
        agent.until_ready()
        agent.kill()
        ballast = fill(agent.state_dir)
        agent.start()
        assert_held(agent, liar, "disk-full")
        ballast.unlink()
        agent.poke()
        agent.until_status("a journal", lambda said: said["runs"] and not said["waiting_on"])
        rollout, _ = send(agent, liar)
        agent.until_settled(rollout, "Converged")


# In the middle of a run


@needs_mounts
@pytest.mark.root
def test_a_disk_that_fills_up_in_the_middle_of_a_run_stops_only_what_needs_it(fleet: AgentFleet, liar: Liar) -> None:
    agent = make_agent(fleet, liar)
    with mounted(agent.state_dir, "-t", "tmpfs", "-o", "size=4m", "tmpfs"), agent.running():
        agent.until_reached("heartbeat")
        ballast = fill(agent.state_dir)
        rollout, good = send(agent, liar)
        said = agent.until_status("the trouble", lambda said: said["journal_error"])
        assert "disk-full" in said["journal_error"]
        agent.until_logged("the journal cannot be written; nothing new is begun until it can")
        assert (agent.metric("nixfleet_agent_journal_errors_total") or 0) >= 1
        liar.until_asked("heartbeat", 3)
        assert agent.switches() == []
        assert not liar.facts
        ballast.unlink()
        agent.poke()
        agent.until_logged("the journal can be written again")
        agent.until_settled(rollout, "Converged")
        assert agent.switches() == [good]
        assert agent.until_ready()["journal_error"] is None


def test_a_limit_on_the_size_of_files_is_a_full_disk(fleet: AgentFleet, liar: Liar) -> None:
    """Without any privilege: the journal may not grow, so nothing new begins, and polls go on."""
    agent = make_agent(fleet, liar)
    with agent.running():
        agent.until_reached("heartbeat")
        size = max(path.stat().st_size for path in agent.state_dir.glob("journal.sqlite*"))
        subprocess.run(["prlimit", f"--fsize={size}:unlimited", "--pid", str(agent.pid)], check=True)
        rollout, good = send(agent, liar)
        agent.until_logged("the journal cannot be written; nothing new is begun until it can")
        liar.until_asked("heartbeat", 2)
        assert agent.switches() == []
        subprocess.run(["prlimit", "--fsize=unlimited:unlimited", "--pid", str(agent.pid)], check=True)
        agent.poke()
        agent.until_settled(rollout, "Converged")
        assert agent.switches() == [good]
