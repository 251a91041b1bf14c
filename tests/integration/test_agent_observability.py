"""What an agent tells those who watch it: Prometheus, systemd, logs. And that watching cannot hurt it."""

import base64
import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest

from state_machine.values import HostName
from tests.agentlab import Agent, AgentFleet
from tests.cplab import eventually
from tests.liar import Liar

KEPT_NAMES: Final = {
    "nixfleet_agent_state": {"state"},
    "nixfleet_agent_poll_duration_seconds": {"duty"},
    "nixfleet_agent_last_poll_timestamp_seconds": {"duty"},
    "nixfleet_agent_health_check_duration_seconds": {"check_name", "check_type"},
    "nixfleet_agent_health_check_status": {"check_name"},
    "nixfleet_agent_generation_info": {"generation"},
}
"""Names of protocol section 9.1 that dashboards know already."""

OUR_NAMES: Final = {
    "nixfleet_agent_build_info": {"version"},
    "nixfleet_agent_certificate_days_left": set(),
    "nixfleet_agent_consecutive_failures": {"duty"},
    "nixfleet_agent_drift": set(),
    "nixfleet_agent_events_total": {"event"},
    "nixfleet_agent_facts_refused_total": set(),
    "nixfleet_agent_journal_errors_total": set(),
    "nixfleet_agent_manifest_age_seconds": set(),
    "nixfleet_agent_manifest_fresh_seconds": set(),
    "nixfleet_agent_outbox_depth": set(),
    "nixfleet_agent_quarantined_closures": set(),
    "nixfleet_agent_reboot_required": set(),
}


@pytest.fixture
def fleet(tmp_path: Path) -> AgentFleet:
    return AgentFleet(tmp_path)


@pytest.fixture
def liar(fleet: AgentFleet) -> Iterator[Liar]:
    with Liar(fleet) as liar:
        yield liar


def send(agent: Agent, liar: Liar, **options: Any) -> str:
    closure = agent.fleet.system()
    rollout = agent.fleet.release(None, {agent.name: closure}, **options)
    liar.dispatch(agent.name, rollout, closure)
    return rollout


# Metrics


def test_metrics_say_what_the_status_says_under_names_that_dashboards_know(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system(), metrics_port=0)
    with agent.running():
        agent.until_settled(send(agent, liar), "Converged")
        agent.until_reached("intent")
        agent.until_reached("heartbeat")
        samples = {sample.name: set(sample.labels) for family in agent.metrics() for sample in family.samples}
        for name, labels in {**KEPT_NAMES, **OUR_NAMES}.items():
            assert samples.get(name) == labels, name
        assert agent.metric("nixfleet_agent_state", state="Converged") == 1
        assert agent.metric("nixfleet_agent_state", state="Idle") == 0
        assert agent.metric("nixfleet_agent_generation_info", generation=agent.current()) == 1
        assert agent.metric("nixfleet_agent_health_check_status", check_name="service") == 1
        assert (
            agent.metric("nixfleet_agent_health_check_duration_seconds", check_name="service", check_type="command")
            or 0
        ) > 0
        assert (agent.metric("nixfleet_agent_last_poll_timestamp_seconds", duty="heartbeat") or 0) > 1.7e9
        assert (agent.metric("nixfleet_agent_manifest_fresh_seconds") or 0) > 80_000
        assert agent.metric("nixfleet_agent_outbox_depth") == 0
        helped = [family for family in agent.metrics() if not family.documentation]
        assert helped == []


def test_nothing_that_is_sent_to_the_metrics_port_ends_the_agent(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system(), metrics_port=0)
    with agent.running():
        url = str(agent.until_logged("metrics")["url"])
        base = url.removesuffix("/metrics")
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{base}/healthz").json() == {"ok": True}
            assert client.head(url).status_code == 200
            assert client.head(f"{base}/nowhere").status_code == 404
            assert client.get(f"{url}?name[]=x").status_code == 200
            assert client.post(url, content=b"x" * 1000).status_code == 405
            assert client.request("OPTIONS", url).status_code == 405
        address = (urlsplit(url).hostname, urlsplit(url).port)
        for data in (
            b"",
            b"\0" * 100,
            b"GET",
            b"GET / HTTP/9.9\r\n\r\n",
            b"x" * 100_000,
            b"HEAD /metrics HTTP/1.0\r\n\r\n",
        ):
            with contextlib.suppress(OSError), socket.create_connection(address) as raw:
                raw.sendall(data)
                raw.shutdown(socket.SHUT_WR)
                raw.settimeout(5)
                while raw.recv(65536):
                    pass
        # Some who never say a word, and do not keep the others waiting.
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(socket.create_connection(address))
            assert httpx.get(url, trust_env=False).status_code == 200
        assert agent.metric("nixfleet_agent_worker_restarts_total", worker="metrics") is None
    assert "Traceback" not in agent.log_text()


def test_metrics_listen_where_they_are_told_to_and_nowhere_by_default(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        liar.until("the first poll", lambda: liar.count("heartbeat"))
        listening = [line for line in Path(f"/proc/{agent.pid}/net/tcp").read_text().splitlines() if " 0A " in line]
        inodes = {os.readlink(link) for link in Path(f"/proc/{agent.pid}/fd").iterdir()}
        assert not [line for line in listening if f"socket:[{line.split()[9]}]" in inodes]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = agent.command(metrics_port=port)
        assert done.returncode == 2
        assert f"--metrics-port: cannot listen on 127.0.0.1:{port}" in done.stderr


# systemd


def test_systemd_is_told_everything_it_wants_to_know(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        address = f"@nixfleet-agent-test-{os.getpid()}"
        channel.bind("\0" + address[1:])
        channel.settimeout(0.05)
        said: list[str] = []

        def heard(what: str) -> bool:
            with contextlib.suppress(TimeoutError):
                said.append(channel.recv(4096).decode())
            return what in said

        with agent.running(NOTIFY_SOCKET=address, WATCHDOG_USEC="400000"):
            agent.until("READY", lambda: heard("READY=1"))
            rollout = send(agent, liar)
            agent.until("a status line", lambda: heard(f"STATUS={rollout} Converged"))
            # Nothing happens any more, and the watchdog is fed all the same, by the reducer.
            said.clear()
            agent.until("food for the watchdog", lambda: heard("WATCHDOG=1") and said.count("WATCHDOG=1") >= 5)
            agent.send(signal.SIGTERM)
            assert agent.ended() == 0
            eventually(lambda: heard("STOPPING=1"), what="STOPPING")


def test_a_watchdog_of_somebody_else_is_not_fed(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running(NOTIFY_SOCKET="/nowhere/notify", WATCHDOG_USEC="400000", WATCHDOG_PID="1"):
        agent.until_reached("heartbeat")


# Logs


def test_logs_are_json_lines_without_a_secret_in_them(fleet: AgentFleet, liar: Liar) -> None:
    """At the most talkative level, over an enrolment, a renewal, a refusal, a rollout and a stop."""
    token: Any = fleet.token("web1")
    liar.validity_s = 60
    agent = fleet.agent("web1", liar.url, running=fleet.system(), enrolled=False, log_level="debug", metrics_port=0)
    agent.give_token(token)
    with agent.running():
        agent.until_enrolled()
        liar.dispatch("web1", "stable@dead", fleet.system())
        agent.until_logged("refused", reason="missing")
        agent.until_settled(send(agent, liar), "Converged")
        agent.poke()
        agent.stop()
    lines = agent.log_text().splitlines()
    for line in lines:
        assert set(json.loads(line)) >= {"at", "level", "logger", "message"}, line
    key = fleet.keys[HostName("web1")]
    secrets = [
        token["signature"],
        token["claims"]["nonce"],
        base64.b64encode(key.seed).decode(),
        key.seed.hex(),
        "PRIVATE KEY",
        "BEGIN CERTIFICATE",
    ]
    for secret in secrets:
        assert secret not in agent.log_text()
    facts = [line for line in map(json.loads, lines) if line["message"] == "Converged"]
    assert facts[0]["rollout"]
    assert facts[0]["seq"] == 7


def test_on_a_terminal_the_log_is_for_people(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system(), log_format="human")
    with agent.running():
        agent.until("a line", lambda: "ready  machine_id=web1" in agent.log_text())
        hostile = {"hostname": "\x1b[31mred\nline", "rollout_id": "stable@dead", "target_closure": "x"}
        liar.route("web1", hostile)
        agent.until("the refusal", lambda: "refused" in agent.log_text())
    assert "\x1b" not in agent.log_text()
