"""SIGTERM and Ctrl-C, in every phase: the agent ends within five seconds, in good order, and nothing is lost."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests.agentlab import Agent, AgentFleet, nix_is_usable
from tests.liar import Gate, Liar, dribble, silence

WITHIN_S: Final = 5.0
"""What is promised, so that a service manager need never kill."""


@pytest.fixture
def fleet(tmp_path: Path) -> AgentFleet:
    return AgentFleet(tmp_path)


@pytest.fixture
def liar(fleet: AgentFleet) -> Iterator[Liar]:
    with Liar(fleet) as liar:
        yield liar


def send(agent: Agent, liar: Liar, behaviour: str = "good", **options: Any) -> str:
    closure = agent.fleet.system(behaviour)
    rollout = agent.fleet.release(None, {agent.name: closure}, **options)
    liar.dispatch(agent.name, rollout, closure)
    return rollout


def idle(agent: Agent, liar: Liar) -> None:
    liar.until("a long-poll", lambda: liar.count("dispatch"))


def enrolling(agent: Agent, liar: Liar) -> None:
    agent.certificate.unlink()
    agent.give_token(agent.fleet.token(agent.name))
    liar.says["enroll"] = gate = Gate()
    agent.restart()
    gate.wait()


def fetching_intent(agent: Agent, liar: Liar) -> None:
    liar.says["rollout"] = dribble()
    send(agent, liar)
    liar.until_asked("rollout")


def switching(agent: Agent, liar: Liar) -> None:
    send(agent, liar, "waits")
    agent.until("the switch", agent.host.note(".waiting").exists)


def soaking(agent: Agent, liar: Liar) -> None:
    agent.until_phase(send(agent, liar, soak_secs=600), "Soaking")


def delivering(agent: Agent, liar: Liar) -> None:
    liar.says["events"] = silence()
    agent.until_phase(send(agent, liar), "Converged")
    liar.until("a fact on its way", lambda: liar.count("events"))


def probing(agent: Agent, liar: Liar) -> None:
    """By a program that will not hear of ending, and has children."""
    started = agent.directory / "stubborn"
    command = f"trap '' TERM; sleep 600 & echo $$ > {started}; while :; do sleep 1; done"
    agent.write_checks({"stubborn": {"kind": "command", "command": command, "timeoutSecs": 600}})
    agent.send(signal.SIGHUP)
    agent.until("the probe", started.exists)


PHASES: Final = (idle, enrolling, fetching_intent, switching, soaking, delivering, probing)


@pytest.mark.parametrize("phase", PHASES, ids=[phase.__name__ for phase in PHASES])
def test_it_ends_within_five_seconds_and_leaves_nothing_behind(
    fleet: AgentFleet, liar: Liar, phase: Callable[[Agent, Liar], None]
) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        agent.until_ready()
        phase(agent, liar)
        children = psutil.Process(agent.pid).children(recursive=True)
        assert agent.stop(timeout_s=WITHIN_S) == 0
    assert any(line["message"] == "stopping" for line in agent.log())
    assert "Traceback" not in agent.log_text()
    assert not (agent.state_dir / "control.sock").exists()
    # A switch is meant to outlive its agent; nothing else is.
    alive = [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert bool(alive) is (phase is switching)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    assert agent.command("journal", "verify").returncode == 0


@pytest.mark.nix
@pytest.mark.skipif(not nix_is_usable(), reason="the nix commands are not installed")
def test_it_does_not_wait_for_a_download(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path, nix=True)
    first, target = fleet.system(), fleet.system()
    with Liar(fleet) as liar, socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        agent = fleet.agent("web1", liar.url, running=first, cache_url=url)
        with agent.running():
            rollout = fleet.release(None, {"web1": target})
            liar.dispatch("web1", rollout, target)
            agent.until_phase(rollout, "Activating")
            agent.until("nix", lambda: psutil.Process(agent.pid).children())
            assert agent.stop(timeout_s=WITHIN_S) == 0
        assert agent.fact_kinds(rollout) == ["DispatchAck"]


def test_what_was_under_way_is_finished_by_the_next_run(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        rollout = send(agent, liar, "waits")
        agent.until("the switch", agent.host.note(".waiting").exists)
        agent.stop()
        agent.host.note(".go").touch()
        agent.start()
        agent.until_settled(rollout, "Converged")
    assert len(agent.switches()) == 1


def test_ctrl_c_is_as_good(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        agent.until_reached("heartbeat")
        assert agent.stop(signal.SIGINT, timeout_s=WITHIN_S) == 0
    assert any(line["message"] == "stopping" and line["signal"] == "SIGINT" for line in agent.log())


def test_ctrl_c_at_any_instant_of_a_start_shows_no_traceback(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    for pause_s in (0.0, 0.05, 0.1, 0.2):
        agent.start()
        # Before any of our code runs, the interpreter answers for itself; our imports bring this library.
        agent.until("our own imports", lambda: "_cffi_backend" in Path(f"/proc/{agent.pid}/maps").read_text())
        time.sleep(pause_s)  # not waiting for anything: these are just instants of a start
        assert agent.stop(signal.SIGINT, timeout_s=WITHIN_S) in (0, 130)
    assert "Traceback" not in agent.log_text()


def test_a_second_agent_on_the_same_state_is_refused_naming_the_first(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        agent.until_ready()
        second = agent.command()
        assert second.returncode == 1
        [line] = second.stderr.splitlines()
        assert line.startswith("nixfleet-agent: error: ")
        assert f"process {agent.pid}" in line
        # The first did not notice: its socket is still its own.
        assert agent.until_ready()["runs"] == 1


def test_a_reader_that_goes_away_does_not_end_the_agent(fleet: AgentFleet, liar: Liar) -> None:
    """Its log is a pipe whose reader has gone."""
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    reader, writer = os.pipe()
    words = [sys.executable, "-m", "nixfleet_agent", *agent.words()]
    process = subprocess.Popen(words, stderr=writer, env=agent.environment())
    os.close(writer)
    os.close(reader)
    try:
        liar.until("heartbeats", lambda: liar.count("heartbeat") >= 2)
        process.send_signal(signal.SIGTERM)
        # What was left to say could not be said, for which the interpreter has a status of its own.
        assert process.wait(WITHIN_S) in (0, 120)
    finally:
        process.kill()
        process.wait()
