"""What an agent costs while nothing happens: it wakes for its polls and nothing else.

What it has loaded without a metrics port is listed in `test_agent_loaded_modules`; with one it is asked here: `-v` has
the interpreter name every module on standard error at the moment it has been imported. (`-X importtime` would name
those too that are tried and not there.)
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.agentlab import Agent, AgentFleet
from tests.liar import Liar

NOT_EVEN_WITH_METRICS: Final = frozenset(
    {"click", "rich", "pygments", "cryptography", "sqlite_utils", "structlog", "starlette", "control_plane"}
)


@pytest.fixture
def fleet(tmp_path: Path) -> AgentFleet:
    return AgentFleet(tmp_path)


@pytest.fixture
def liar(fleet: AgentFleet) -> Iterator[Liar]:
    with Liar(fleet) as liar:
        yield liar


def test_an_idle_agent_wakes_for_its_polls_and_nothing_else(fleet: AgentFleet, liar: Liar) -> None:
    fleet.publish("c0ffee")
    agent = fleet.agent("web1", liar.url, running=fleet.system(), checks={}, metrics_port=0)
    with agent.running():
        agent.until_reached("intent")
        agent.until_reached("heartbeat")
        process = psutil.Process(agent.pid)
        before, events, cpu = len(liar.seen), _events(agent), _cpu_s(process)
        liar.until_asked("heartbeat", 4)
        seen = liar.seen[before:]
        asked = {name: sum(1 for each in seen if each.name == name) for name in {each.name for each in seen}}
        # Four heartbeats, as many looks at the intent (of which what is unchanged is not fetched), one open long-poll.
        assert set(asked) <= {"heartbeat", "fleet", "fleet-sig", "rollout", "rollout-sig", "dispatch"}
        assert asked["heartbeat"] <= 5
        assert asked["fleet"] <= 6
        assert asked.get("dispatch", 0) <= 1
        # Each exchange is a handful of events; a loop that ran by itself would be thousands.
        assert _events(agent) - events <= 6 * (asked["heartbeat"] + asked["fleet"]) + 10
        # Of the seconds that four heartbeats take, a busy loop would have burnt every one.
        assert _cpu_s(process) - cpu < 0.5 * (seen[-1].at - seen[0].at)


def _events(agent: Agent) -> float:
    return sum(s.value for family in agent.metrics() for s in family.samples if s.name == "nixfleet_agent_events_total")


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def test_an_agent_without_a_control_plane_does_not_spin(fleet: AgentFleet) -> None:
    agent = fleet.agent("web1", "https://127.0.0.1:1", running=fleet.system(), checks={}, metrics_port=0)
    with agent.running():
        agent.until_failed("heartbeat", 2)
        process = psutil.Process(agent.pid)
        events, cpu = _events(agent), _cpu_s(process)
        agent.until_failed("heartbeat", 3)
        assert _events(agent) - events <= 30
        assert _cpu_s(process) - cpu < 1.0


def test_metrics_bring_their_library_and_nothing_else(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system(), metrics_port=0)
    with agent.running(python=("-v",)):
        agent.until_reached("heartbeat")
        assert agent.metrics()
        agent.stop()
    roots = {name.partition(".")[0] for name in _imported(agent)}
    assert "prometheus_client" in roots
    assert sorted(roots & NOT_EVEN_WITH_METRICS) == []


def _imported(agent: Agent) -> set[str]:
    """Every module that was imported, after what the installation of Python itself brings."""
    _, _, ours = agent.log_text().partition("\nimport 'site' # ")
    return set(re.findall(r"^import '([^']+)' # ", ours, re.MULTILINE))
