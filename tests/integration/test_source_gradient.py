"""A host that follows a Gradient project: a real agent, real TLS, as a daemon and as a timer would run it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from state_machine.values import Closure
from tests.agentlab import Agent, AgentFleet, not_soon
from tests.gradient_server import KEY, PROJECT, GradientServer
from tests.liar import html, says, status, times

HOSTS = tuple(f"web{n}" for n in range(1, 91))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> AgentFleet:
    return AgentFleet(tmp_path_factory.mktemp("gradient"), hosts=HOSTS)


@pytest.fixture
def server(fleet: AgentFleet) -> Iterator[GradientServer]:
    with GradientServer(fleet) as server:
        yield server


_fresh = iter(HOSTS)


def follower(fleet: AgentFleet, server: GradientServer, **flags: Any) -> Agent:
    """A host that follows the project, not started. It has no certificate, and knows no control plane."""
    name = next(_fresh)
    key = fleet.root / f"{name}.key"
    key.write_text(f"{KEY}\n")
    key.chmod(0o600)
    settings = {
        "source": "gradient",
        "running": fleet.system(),
        "enrolled": False,
        "control_plane_url": None,
        "client_cert": None,
        "bootstrap_token_file": None,
        "gradient_server": server.url,
        "gradient_project": PROJECT,
        "gradient_api_key_file": key,
        "retry_interval": 1,
        "soak": 0,
        **flags,
    }
    return fleet.agent(name, server.url, **settings)


def system(
    fleet: AgentFleet,
    host: str,
    behaviour: str = "good",
    *,
    health: str = "ok\n",
    version: str = "25.05.20250601.abcdef0",
) -> Closure:
    """A system as Nix names those of a host."""
    return fleet.systems.publish(behaviour, files={"health": health}, name=f"nixos-system-{host}-{version}")


def until_phase(agent: Agent, phase: str) -> dict[str, Any]:
    return agent.until_status(phase, lambda said: said["rollout"] and said["rollout"]["phase"] == phase)


def until_refused(agent: Agent, reason: str) -> str:
    """The detail of the first refusal for this reason."""
    said = agent.until_status(reason, lambda said: any(note["what"] == reason for note in said["refusals"]))
    return str(next(note["detail"] for note in said["refusals"] if note["what"] == reason))


# Resident


def test_the_newest_build_of_a_hosts_own_system_is_fetched_switched_to_and_watched(
    fleet: AgentFleet, server: GradientServer
) -> None:
    agent = follower(fleet, server)
    mine = system(fleet, agent.name)
    server.add(system(fleet, "mail"))
    server.add("0" * 32 + "-hello-2.12")
    build = server.add(mine)
    with agent.running():
        until_phase(agent, "Converged")
    assert agent.switches() == [mine]
    [tracked] = agent.known().rollouts.values()
    assert tracked.intent is not None
    assert (tracked.intent.basis, tracked.intent.offered_as) == ("cache-key", build)
    # Nothing but the key says who asks, and each request can be found again.
    assert {seen.client for seen in server.seen} == {None}
    ids = [seen.headers["x-request-id"] for seen in server.seen]
    assert len(set(ids)) == len(ids)


def test_an_idle_poll_is_one_request(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server)
    server.add(system(fleet, "mail"))
    server.add(system(fleet, agent.name))
    with agent.running():
        until_phase(agent, "Converged")
        server.until_asked("entry-points", 3)
    assert server.count("build") == 2
    assert server.count("entry-points") >= 4


def test_a_sick_build_is_rolled_back_and_not_tried_again_but_the_next_one_is(
    fleet: AgentFleet, server: GradientServer
) -> None:
    agent = follower(fleet, server)
    first, sick, good = agent.current(), system(fleet, agent.name, health="sick\n"), system(fleet, agent.name)
    server.builds_for(agent.name, sick)
    with agent.running():
        until_phase(agent, "Reverted")
        until_refused(agent, f"quarantined {sick}")
        server.builds_for(agent.name, good)
        until_phase(agent, "Converged")
    assert agent.switches() == [sick, first, good]


def test_outside_its_window_a_build_waits_visibly(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server, activation_window=not_soon())
    server.builds_for(agent.name, system(fleet, agent.name))
    with agent.running():
        said = agent.until_status("the window", lambda said: said["waiting_on"] == "the activation window")
    assert said["waiting_until_means"] == "window-opens"
    assert agent.switches() == []


def test_a_switch_somebody_else_makes_is_seen_with_the_next_poll(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server)
    first = agent.current()
    server.builds_for(agent.name, system(fleet, agent.name))
    with agent.running():
        until_phase(agent, "Converged")
        os.unlink(agent.host.paths.current_system)
        os.symlink(f"{agent.host.paths.store}/{first}", agent.host.paths.current_system)
        said = agent.until_status("drift", lambda said: said["system"]["drift"])
    assert said["system"]["drift"] == first


# What brings no target


def finished(server: GradientServer, build_status: str) -> None:
    server.add("0" * 32 + "-other-1")
    server.add("", output=None, status=build_status)


OUTCOMES = {
    "nothing": ("not-built", "has no entry points"),
    "Building": ("not-built", "still being built: 1 to go"),
    "FailedTransient": ("not-built", "still being built: 1 to go"),
    "FailedPermanent": ("not-built", "1 builds of the evaluation failed"),
}


@pytest.mark.parametrize("what", OUTCOMES)
def test_an_evaluation_without_a_finished_build_is_its_own_outcome(
    fleet: AgentFleet, server: GradientServer, what: str
) -> None:
    reason, detail = OUTCOMES[what]
    agent = follower(fleet, server)
    first = agent.current()
    if what != "nothing":
        finished(server, what)
    assert once(agent) == 7
    said = agent.known()
    assert detail in said.refusals[reason].detail
    assert said.rollouts == {}
    assert agent.current() == first


def test_several_systems_of_one_host_are_ambiguous_and_the_same_one_twice_is_not(
    fleet: AgentFleet, server: GradientServer
) -> None:
    agent = follower(fleet, server)
    one, other = system(fleet, agent.name), system(fleet, agent.name, version="25.11", behaviour="breaks")
    server.add(one)
    server.add(other)
    with agent.running():
        detail = until_refused(agent, "ambiguous")
        assert agent.switches() == []
        server.evaluation = []
        server.add(one)
        server.add(one)
        until_phase(agent, "Converged")
    assert one in detail
    assert other in detail


def test_a_system_for_another_architecture_is_refused_by_name(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server)
    server.builds_for(agent.name, system(fleet, agent.name), architecture="sparc64-linux")
    with agent.running():
        assert "is built for sparc64-linux, and this host is" in until_refused(agent, "wrong-architecture")
    assert agent.switches() == []


def test_a_build_that_vanished_is_its_own_outcome(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server)
    build = server.builds_for(agent.name, system(fleet, agent.name))
    gone = server.builds.pop(build)
    with agent.running():
        assert f"no longer has build {build}" in until_refused(agent, "missing")
        server.builds[build] = gone
        until_phase(agent, "Converged")


def test_a_project_without_this_host_names_what_to_look_at(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server)
    server.add(system(fleet, f"{agent.name}-backup"))
    with agent.running():
        assert "see --gradient-host-name" in until_refused(agent, "missing")


def test_a_host_may_go_by_another_name_in_the_project(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server, gradient_host_name="gateway")
    mine = system(fleet, "gateway")
    server.add(system(fleet, agent.name))
    server.add(mine)
    with agent.running():
        until_phase(agent, "Converged")
    assert agent.switches() == [mine]


# What is no answer


@pytest.mark.parametrize(
    ("endpoint", "lie", "cause"),
    [
        ("entry-points", html(), "not a JSON document"),
        ("build", html(), "not a JSON document"),
        ("entry-points", says({"error": False, "message": {"rows": []}}), "expected a list"),
        ("build", says({"message": []}), "$.error: is missing"),
        ("build", status(502, b"bad gateway"), "HTTP 502 bad gateway"),
        ("entry-points", says({"error": True, "message": "no access"}, 403), "is not accepted: no access"),
    ],
)
def test_an_answer_that_says_nothing_useful_is_a_failed_poll(
    fleet: AgentFleet, server: GradientServer, endpoint: str, lie: Any, cause: str
) -> None:
    agent = follower(fleet, server)
    server.builds_for(agent.name, system(fleet, agent.name))
    server.says[endpoint] = lie
    with agent.running():
        agent.until_failed("intent", 1, because=cause)
        assert agent.until_ready()["rollout"] is None
        del server.says[endpoint]
        until_phase(agent, "Converged")


def test_an_error_under_a_status_of_success_is_told_in_the_servers_words(
    fleet: AgentFleet, server: GradientServer
) -> None:
    agent = follower(fleet, server)
    server.says["entry-points"] = says({"error": True, "message": "Project is archived"})
    with agent.running():
        agent.until_failed("intent", 1, because="the server says: Project is archived")


def test_a_wrong_key_is_named_by_its_file_and_never_shown(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server, log_level="debug")
    key = agent.flags["gradient_api_key_file"]
    key.write_text("GRADwrong")
    server.builds_for(agent.name, system(fleet, agent.name))
    with agent.running():
        agent.until_failed("intent", 1, because=f"HTTP 401 the key in {key} is not accepted: Invalid API key")
        server.says["entry-points"] = status(400, b"you sent GRADwrong")
        agent.until_failed("intent", 1, because="you sent ***")
        del server.says["entry-points"]
        key.write_text(f"{KEY}\r\n")
        until_phase(agent, "Converged")
    assert "GRADwrong" not in agent.log_text()
    assert KEY not in agent.log_text()
    assert KEY.encode() not in agent.journal.read_bytes()


def test_a_key_that_is_not_there_is_waited_for(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server)
    key = agent.flags["gradient_api_key_file"]
    key.unlink()
    server.builds_for(agent.name, system(fleet, agent.name))
    with agent.running():
        agent.until_failed("intent", 1, because="does not exist; put the API key there")
        key.write_text(KEY)
        key.chmod(0o644)
        until_phase(agent, "Converged")
        agent.until_logged("everybody on this host can read the API key")


def test_too_many_requests_are_followed_by_the_pause_that_was_asked_for(
    fleet: AgentFleet, server: GradientServer
) -> None:
    agent = follower(fleet, server, poll_interval=3600)
    server.builds_for(agent.name, system(fleet, agent.name))
    server.says["build"] = times(1, status(429, b"", Retry_After="2"))
    with agent.running():
        agent.until_failed("intent", 1, because="HTTP 429")
        refused_at = server.requests("build")[-1].at
        until_phase(agent, "Converged")
    assert server.requests("build")[-1].at - refused_at >= 2


def test_a_large_project_is_looked_at_within_the_servers_limit(fleet: AgentFleet) -> None:
    with GradientServer(fleet, burst=2) as server:
        agent = follower(fleet, server)
        for number in range(12):
            server.add("0" * 32 + f"-package-{number}")
        server.add(system(fleet, agent.name))
        with agent.running():
            until_phase(agent, "Converged")
        assert server.denied == 0


# As a timer runs it


def once(agent: Agent, *words: str) -> int:
    done = agent.command("run-once", "--timeout", "30", *words)
    assert "Traceback" not in done.stderr
    return done.returncode


def test_run_once_says_by_its_status_how_it_went(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server)
    good, sick = system(fleet, agent.name), system(fleet, agent.name, health="sick\n")
    server.builds_for(agent.name, good)
    assert once(agent) == 0
    assert agent.switches() == [good]
    assert once(agent) == 0, "the same build again"
    server.builds_for(agent.name, sick)
    assert once(agent) == 3
    assert once(agent) == 3, "it is still what the project has, and still not to be had"
    assert agent.switches() == [good, sick, good]
    server.builds_for(agent.name, system(fleet, agent.name, "breaks"))
    assert once(agent) == 3
    server.keys = set()
    assert once(agent, "--timeout", "2") == 6


def test_run_once_ends_at_once_when_its_window_opens_too_late(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server, activation_window=not_soon())
    server.builds_for(agent.name, system(fleet, agent.name))
    assert once(agent) == 8
    server.evaluation = []
    assert once(agent) == 7, "what waited is not offered any more"
    assert agent.switches() == []


PROGRAM = "import sys; from nixfleet_agent.__main__ import gradient_update; sys.exit(gradient_update())"


def gradient_update(agent: Agent) -> int:
    """The program of that name, with the daemon's flags."""
    words = [sys.executable, "-c", PROGRAM, *agent.words()]
    done = subprocess.run(words, env=agent.environment(), capture_output=True, text=True, check=False, timeout=80)
    assert "Traceback" not in done.stderr
    return done.returncode


def test_gradient_update_runs_once_or_wakes_the_daemon(fleet: AgentFleet, server: GradientServer) -> None:
    agent = follower(fleet, server, poll_interval=3600)
    first, second = system(fleet, agent.name), system(fleet, agent.name, version="25.11")
    assert gradient_update(agent) == 7
    server.builds_for(agent.name, first)
    assert gradient_update(agent) == 0
    assert agent.current() == first
    with agent.running():
        agent.until_reached("intent")
        server.builds_for(agent.name, second)
        assert gradient_update(agent) == 0
        agent.until("the switch", lambda: agent.current() == second)
