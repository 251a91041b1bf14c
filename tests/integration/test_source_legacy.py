"""A host that follows a first-generation control plane: a real agent, real TLS, every report as it arrives there."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from state_machine.values import Closure
from tests.agentlab import PATIENCE_S, Agent, AgentFleet, nix_is_usable, not_soon
from tests.cplab import Running, eventually
from tests.legacy_server import STORE, LegacyServer, name_hosts_plainly
from tests.liar import Gate, html, says, status, times

HOSTS = tuple(f"web{n}" for n in range(1, 61))
CHATTER = ("health-check", "up-to-date")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> AgentFleet:
    fleet = AgentFleet(tmp_path_factory.mktemp("legacy"), hosts=HOSTS)
    name_hosts_plainly(fleet)
    return fleet


@pytest.fixture
def server(fleet: AgentFleet) -> Iterator[LegacyServer]:
    with LegacyServer(fleet) as server:
        yield server


_fresh = iter(HOSTS)


def follower(fleet: AgentFleet, server: LegacyServer, **flags: Any) -> Agent:
    """A host of that generation, not started."""
    settings = {
        "source": "legacy",
        "running": fleet.system(),
        "client_key": None,
        "bootstrap_token_file": None,
        "retry_interval": 1,
        "soak": 0,
        **flags,
    }
    return fleet.agent(next(_fresh), server.url, **settings)


def story(server: LegacyServer, agent: Agent) -> list[str]:
    """What was reported besides signs of life."""
    return server.messages(agent.name, without=CHATTER)


# The whole cycle


def test_a_desired_generation_is_fetched_switched_to_probed_and_reported(
    fleet: AgentFleet, server: LegacyServer
) -> None:
    agent, good = follower(fleet, server, tag="web,eu"), fleet.system()
    first = agent.current()
    with agent.running():
        server.until_told(agent.name, "up-to-date")
        server.want(agent.name, good)
        deployed = server.until_told(agent.name, "deployed")
        said = agent.until_status("an empty outbox", lambda said: not said["outbox"])
    assert story(server, agent) == ["applying", "deployed"]
    applying = server.until_told(agent.name, "applying")
    assert (applying["success"], applying["current_generation"]) == (True, STORE + first)
    assert (deployed["success"], deployed["current_generation"]) == (True, STORE + good)
    assert deployed["health"]["all_passed"] is True
    [result] = deployed["health"]["results"]
    assert result.keys() == {"status", "check_name", "duration_ms"}
    assert (result["status"], result["check_name"]) == ("pass", "service")
    assert deployed["agent_version"]
    assert agent.switches() == [good]
    assert said["rollout"]["phase"] == "Converged"
    # It registered itself with its tags, and showed the certificate that is named after it.
    assert server.tags[agent.name] == ["web", "eu"]
    assert {seen.client for seen in server.seen} == {agent.name}


def test_a_sick_generation_is_rolled_back_reported_with_the_reason_and_not_tried_again(
    fleet: AgentFleet, server: LegacyServer
) -> None:
    agent, sick = follower(fleet, server), fleet.system(healthy=False)
    first = agent.current()
    server.want(agent.name, sick)
    with agent.running():
        report = server.until_told(agent.name, "rolled back: ")
        server.until_asked("desired", 2)
        said = agent.until_status("the quarantine", lambda said: said["quarantine"])
    assert story(server, agent) == ["applying", report["message"]]
    assert report["message"].startswith("rolled back: probes failed for")
    assert (report["success"], report["current_generation"]) == (False, STORE + first)
    assert agent.switches() == [sick, first]
    assert said["refusals"][-1]["what"].startswith("quarantined")


def test_a_switch_that_fails_is_reported_and_rolled_back(fleet: AgentFleet, server: LegacyServer) -> None:
    agent, bad = follower(fleet, server), fleet.system("units-fail")
    server.want(agent.name, bad)
    with agent.running():
        server.until_told(agent.name, "rolled back: ")
    assert [message.partition(":")[0] for message in story(server, agent)] == ["applying", "failed", "rolled back"]


def test_nothing_set_leaves_the_host_as_it_is_and_takes_back_what_has_not_begun(
    fleet: AgentFleet, server: LegacyServer
) -> None:
    agent = follower(fleet, server, activation_window=not_soon())
    waits = fleet.system()
    with agent.running():
        first = agent.current()
        server.until_told(agent.name, "up-to-date")
        server.want(agent.name, waits)
        agent.until_status("a wait for the window", lambda said: said["waiting_on"] == "the activation window")
        server.want(agent.name, None)
        agent.until_status("nothing to wait for", lambda said: said["waiting_on"] is None)
        server.until_asked("report", 2)
    assert agent.current() == first
    assert agent.switches() == []
    assert story(server, agent) == [], "that a wish was taken back is no failure of the machine"


def test_a_dry_run_reports_that_it_would_apply_and_changes_nothing(fleet: AgentFleet, server: LegacyServer) -> None:
    agent, good = follower(fleet, server, dry_run=True), fleet.system()
    server.want(agent.name, good)
    with agent.running():
        first = agent.current()
        server.until_told(agent.name, "dry-run: would apply")
        agent.until_status("the end", lambda said: said["rollout"]["phase"] == "Failed" and not said["outbox"])
    assert story(server, agent) == ["dry-run: would apply"]
    assert agent.host.runs() == [f"dry-activate {good}"]
    assert agent.current() == first


def test_a_host_that_runs_what_is_wanted_says_up_to_date_and_switches_nothing(
    fleet: AgentFleet, server: LegacyServer
) -> None:
    agent = follower(fleet, server)
    server.want(agent.name, agent.current())
    with agent.running():
        agent.until_status("convergence", lambda said: said["rollout"] and said["rollout"]["phase"] == "Converged")
        server.until_told(agent.name, "up-to-date")
    assert story(server, agent) == []
    assert agent.switches() == []


# Where closures come from


def test_the_server_may_name_the_cache(fleet: AgentFleet, server: LegacyServer) -> None:
    agent, good = follower(fleet, server, cache_url=None), fleet.system()
    server.want(agent.name, good, cache_url=agent.host.cache)
    with agent.running():
        server.until_told(agent.name, "deployed")
    assert agent.current() == good


@pytest.mark.nix
@pytest.mark.skipif(not nix_is_usable(), reason="the nix commands are not installed")
def test_nix_copies_from_the_cache_that_the_server_names_and_refuses_what_nobody_signed(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path / "nix", nix=True)
    name_hosts_plainly(fleet)
    with LegacyServer(fleet) as server:
        agent = fleet.agent(
            "web1",
            server.url,
            running=fleet.system(),
            source="legacy",
            bootstrap_token_file=None,
            soak=0,
            cache_url=None,
        )
        good, unsigned = fleet.system(), fleet.system(signed=False)
        server.want("web1", good, cache_url=agent.host.cache)
        with agent.running():
            server.until_told("web1", "deployed")
            server.want("web1", unsigned, cache_url=agent.host.cache)
            refused = server.until_told("web1", "failed: realise-failed: signature")
    assert refused["success"] is False
    assert agent.switches() == [good]


def test_the_hosts_own_cache_is_asked_before_the_servers(
    fleet: AgentFleet, server: LegacyServer, tmp_path: Path
) -> None:
    agent, good = follower(fleet, server), fleet.system()
    server.want(agent.name, good, cache_url=f"file://{tmp_path}/nowhere")
    with agent.running():
        server.until_told(agent.name, "deployed")
        assert not agent.until_ready()["realise_failures"]


def test_a_cache_that_a_command_could_mistake_is_refused_by_name_and_not_used(
    fleet: AgentFleet, server: LegacyServer
) -> None:
    agent, good = follower(fleet, server), fleet.system()
    server.want(agent.name, good, cache_url="--option sandbox false")
    with agent.running():
        server.until_told(agent.name, "deployed")
        said = agent.until_ready()
    [refusal] = [note for note in said["refusals"] if note["what"] == "parse"]
    assert "is not the address of a binary cache" in refusal["detail"]


@pytest.mark.parametrize("path", ["/etc/passwd", "/nix/store/../etc"])
def test_what_is_no_store_path_is_refused_and_leaves_the_host_alone(
    fleet: AgentFleet, server: LegacyServer, path: str
) -> None:
    agent = follower(fleet, server)
    server.want(agent.name, Closure("-"), hash=path)
    with agent.running():
        said = agent.until_status("a refusal", lambda said: said["refusals"])
        assert said["rollout"] is None
    assert said["refusals"][0]["what"] == "parse"
    assert "is no store path below" in said["refusals"][0]["detail"]


# Time


def test_a_poll_hint_brings_the_next_poll_sooner_and_news_with_each(fleet: AgentFleet, server: LegacyServer) -> None:
    agent = follower(fleet, server, poll_interval=3600, heartbeat_interval=3600)
    server.want(agent.name, agent.current(), poll_hint=1)
    with agent.running():
        server.until_told(agent.name, "up-to-date")
        before = len(server.reports_of(agent.name))
        server.until_asked("desired", 2)
        server.until("news", lambda: len(server.reports_of(agent.name)) > before)


def test_a_failed_poll_is_tried_again_after_the_retry_interval_and_not_the_poll_interval(
    fleet: AgentFleet, server: LegacyServer
) -> None:
    agent = follower(fleet, server, poll_interval=3600)
    server.says["desired"] = times(1, status(500, b"out of order"))
    with agent.running():
        server.until_asked("desired", 2)
        said = agent.until_reached("intent")
    assert said["contact"]["failures"].get("intent", 0) == 0


# Trouble


@pytest.mark.parametrize(
    ("lie", "cause"),
    [
        (html(), "not a JSON document"),
        (status(404, b"<html>nothing here</html>", Content_Type="text/html"), "HTTP 404"),
        (says({"hash": 7}), "expected a string"),
        (says([]), "expected an object"),
        (status(403, b"certificate CN does not match"), "HTTP 403 certificate CN does not match"),
    ],
)
def test_an_answer_that_says_nothing_useful_is_a_failed_poll_and_takes_nothing_back(
    fleet: AgentFleet, server: LegacyServer, lie: Any, cause: str
) -> None:
    agent, good = follower(fleet, server), fleet.system()
    server.want(agent.name, good)
    with agent.running():
        server.until_told(agent.name, "deployed")
        server.says["desired"] = lie
        agent.until_failed("intent", 2, because=cause)
        del server.says["desired"]
        agent.until_status("recovery", lambda said: not said["contact"]["failures"].get("intent"))
    assert agent.current() == good
    assert agent.switches() == [good]


def test_reports_wait_for_a_server_that_is_away_and_come_in_order(fleet: AgentFleet, server: LegacyServer) -> None:
    agent, good, sick = follower(fleet, server), fleet.system(), fleet.system(healthy=False)
    server.want(agent.name, good)
    server.says["report"] = status(503)
    with agent.running():
        agent.until_status("convergence", lambda said: said["rollout"] and said["rollout"]["phase"] == "Converged")
        server.want(agent.name, sick)
        agent.until_status("a rollback", lambda said: said["rollout"]["phase"] == "Reverted")
        assert server.reports_of(agent.name) == []
        del server.says["report"]
        server.until_told(agent.name, "rolled back: ")
    assert [m.partition(":")[0] for m in story(server, agent)] == ["applying", "deployed", "applying", "rolled back"]


def test_a_report_the_server_will_never_take_does_not_stand_in_the_way_of_the_next(
    fleet: AgentFleet, server: LegacyServer
) -> None:
    agent, good = follower(fleet, server, heartbeat_interval=3600), fleet.system()
    server.want(agent.name, good)
    with agent.running():
        server.until_told(agent.name, "deployed")
        server.says["report"] = status(400, b"message too long")
        server.want(agent.name, fleet.system(healthy=False))
        said = agent.until_status("refused facts", lambda said: said["facts_refused"] >= 2 and not said["outbox"])
    assert said["rollout"]["phase"] == "Reverted"


def test_a_page_is_no_receipt_for_a_report(fleet: AgentFleet, server: LegacyServer) -> None:
    agent, good = follower(fleet, server), fleet.system()
    server.want(agent.name, good)
    server.says["report"] = html()
    with agent.running():
        agent.until_failed("delivery", 1, because="page for people")
        del server.says["report"]
        server.until_told(agent.name, "deployed")
    assert story(server, agent) == ["applying", "deployed"]


def test_a_restart_in_the_middle_of_the_switch_loses_no_report(fleet: AgentFleet, server: LegacyServer) -> None:
    agent, good = follower(fleet, server), fleet.system("waits")
    server.want(agent.name, good)
    with agent.running():
        server.until_told(agent.name, "applying")
        agent.until("the switch", agent.host.note(".waiting").exists)
        agent.restart()
        agent.host.note(".go").touch()
        server.until_told(agent.name, "deployed")
    # At least once: the kill may have come before it was on record that the first report was taken.
    assert [message for message, _ in itertools.groupby(story(server, agent))] == ["applying", "deployed"]
    assert agent.switches() == [good]


def test_a_newer_wish_during_the_fetch_replaces_the_older_without_a_failure(
    fleet: AgentFleet, server: LegacyServer
) -> None:
    agent = follower(fleet, server, activation_window=not_soon())
    older, newer = fleet.system(), fleet.system()
    server.want(agent.name, older)
    with agent.running():
        agent.until_status("the older", lambda said: said["rollout"] and said["rollout"]["target"] == older)
        server.want(agent.name, newer)
        agent.until_status("the newer", lambda said: said["rollout"]["target"] == newer and not said["outbox"])
    assert story(server, agent) == []


# Certificates and trust


def test_without_its_certificate_a_host_says_what_is_missing_and_goes_on_when_it_is_there(
    fleet: AgentFleet, server: LegacyServer
) -> None:
    agent = follower(fleet, server, enrolled=False)
    with agent.running():
        agent.until_failed("intent", 1, because="--client-cert: it cannot be used")
        agent.certificate.write_bytes(fleet.path(f"{agent.name}.pem").read_bytes())
        agent.until_reached("intent")
    assert server.count("desired")


def test_a_certificate_that_is_replaced_is_taken_into_use(fleet: AgentFleet, server: LegacyServer) -> None:
    agent = follower(fleet, server)
    with agent.running():
        before = server.until_asked("desired").serial
        fleet.write_certificate(agent.name)
        agent.certificate.write_bytes(fleet.path(f"{agent.name}.pem").read_bytes())
        server.until("the new one", lambda: server.requests("desired")[-1].serial != before)
        agent.certificate.write_text("half of a")
        agent.until_logged("the new client certificate is not used")
        server.until_asked("desired", 2)


def test_what_a_target_rests_on_is_in_the_journal(fleet: AgentFleet, server: LegacyServer) -> None:
    agent, good = follower(fleet, server), fleet.system()
    server.want(agent.name, good)
    with agent.running():
        server.until_told(agent.name, "deployed")
    [tracked] = agent.known().rollouts.values()
    assert tracked.intent is not None
    assert tracked.intent.basis == "mutual-tls"


def test_over_plain_http_a_target_rests_on_the_cache_key_alone(fleet: AgentFleet) -> None:
    with LegacyServer(fleet, https=False) as server:
        agent, good = follower(fleet, server, allow_insecure=True), fleet.system()
        server.want(agent.name, good)
        with agent.running():
            server.until_told(agent.name, "deployed")
    [tracked] = agent.known().rollouts.values()
    assert tracked.intent is not None
    assert tracked.intent.basis == "cache-key"


# Health


def test_a_health_report_says_which_check_fails_and_why(fleet: AgentFleet, server: LegacyServer) -> None:
    agent = follower(fleet, server)
    with agent.running():
        server.until_told(agent.name, "up-to-date")
        (agent.directory / "store" / agent.current() / "health").write_text("sick\n")
        agent.poke()
        server.until("a failing report", lambda: not server.reports_of(agent.name)[-1]["success"])
    health = server.reports_of(agent.name)[-1]["health"]
    assert health["all_passed"] is False
    assert [(r["check_name"], r["status"]) for r in health["results"]] == [("service", "fail")]
    assert health["results"][0]["message"]


def test_while_a_target_proves_itself_the_signs_of_life_do_not_call_it_up_to_date(
    fleet: AgentFleet, server: LegacyServer
) -> None:
    agent, good = follower(fleet, server, soak=3600), fleet.system()
    server.want(agent.name, good, poll_hint=1)
    with agent.running():
        agent.until_status("a soak", lambda said: said["rollout"] and said["rollout"]["phase"] == "Soaking")
        before = len(server.reports_of(agent.name))
        server.until("more reports", lambda: len(server.reports_of(agent.name)) >= before + 3)
    # One may have been under way.
    assert {report["message"] for report in server.reports_of(agent.name)[before + 1 :]} == {"health-check"}


# Configured as that generation was


def test_the_environment_and_flags_of_that_generation_are_understood(fleet: AgentFleet, server: LegacyServer) -> None:
    agent, good = follower(fleet, server), fleet.system()
    server.want(agent.name, good)
    checks = agent.directory / "older-checks.json"
    checks.write_text('{"command": [{"name": "older", "command": "true", "timeout": 5}], "systemd": [], "http": []}')
    database = agent.directory / "older" / "state.db"
    older = {
        "NIXFLEET_CONTROL_PLANE_URL": server.url,
        "NIXFLEET_MACHINE_ID": agent.name,
        "NIXFLEET_POLL_INTERVAL": "1",
        "NIXFLEET_RETRY_INTERVAL": "1",
        "NIXFLEET_CACHE_URL": agent.host.cache,
        "NIXFLEET_DB_PATH": str(database),
        "NIXFLEET_CA_CERT": str(fleet.path("ca.pem")),
        "NIXFLEET_CLIENT_CERT": str(agent.certificate),
        "NIXFLEET_CLIENT_KEY": str(agent.host_key),
        "NIXFLEET_HEALTH_CONFIG": str(checks),
        "NIXFLEET_HEALTH_INTERVAL": "1",
        "NIXFLEET_TAGS": "web,eu",
        "NIXFLEET_METRICS_PORT": "0",
    }
    for name in ("control_plane_url", "machine_id", "poll_interval", "retry_interval", "cache_url", "state_dir",
                 "ca_cert", "client_cert", "health_checks_config", "heartbeat_interval"):  # fmt: skip
        del agent.flags[name]
    agent.state_dir = database.parent
    agent.start(**older)
    try:
        deployed = server.until_told(agent.name, "deployed")
        assert deployed["tags"] == ["web", "eu"]
        assert [result["check_name"] for result in deployed["health"]["results"]] == ["older"]
        assert agent.journal.parent == database.parent
        assert agent.journal.exists()
        agent.until_status("idle", lambda said: not said["outbox"] and said["waiting_on"] is None)
        _assert_older_metrics(agent, good)
    finally:
        agent.kill()


def _assert_older_metrics(agent: Agent, running: Closure) -> None:
    names = ("idle", "checking", "fetching", "applying", "verifying", "reporting", "rolling_back")
    samples = [sample for family in agent.metrics() for sample in family.samples]
    states = {s.labels["state"]: s.value for s in samples if s.name == "nixfleet_agent_state"}
    assert sum(states[name] for name in names) == 1
    bare = {s.name: s.value for s in samples if not s.labels}
    assert bare["nixfleet_agent_last_poll_timestamp_seconds"] > 1_600_000_000
    assert bare["nixfleet_agent_poll_duration_seconds"] > 0
    [info] = [s.labels for s in samples if s.name == "nixfleet_agent_generation_info"]
    assert info == {"generation": STORE + running}
    [health] = [s for s in samples if s.name == "nixfleet_agent_health_check_status"]
    assert (health.labels, health.value) == ({"check_name": "older"}, 1)
    [took] = [s for s in samples if s.name == "nixfleet_agent_health_check_duration_seconds"]
    assert took.labels.keys() == {"check_name", "check_type"}


# run-once


def once(agent: Agent, *words: str) -> int:
    done = agent.command("run-once", "--timeout", "30", *words)
    assert "Traceback" not in done.stderr
    return done.returncode


def test_run_once_deploys_reports_and_ends(fleet: AgentFleet, server: LegacyServer) -> None:
    agent, good = follower(fleet, server), fleet.system()
    assert once(agent) == 0, "nothing is set, so there is nothing to do"
    server.want(agent.name, good)
    assert once(agent) == 0
    assert story(server, agent) == ["applying", "deployed"]
    server.want(agent.name, fleet.system(healthy=False))
    assert once(agent) == 3
    assert story(server, agent)[-1].startswith("rolled back: ")


def test_run_once_that_is_called_off_says_so(fleet: AgentFleet, server: LegacyServer) -> None:
    agent = follower(fleet, server, activation_window=not_soon())
    server.want(agent.name, fleet.system())
    assert once(agent) == 8
    server.want(agent.name, None)
    assert once(agent) == 7
    assert agent.switches() == []


def test_sighup_asks_at_once(fleet: AgentFleet, server: LegacyServer) -> None:
    agent = follower(fleet, server, poll_interval=3600)
    gate = Gate()
    with agent.running():
        agent.until_reached("intent")
        server.says["desired"] = gate
        agent.poke()
        gate.wait()
        gate.open()


# The embedded control plane, in the place of the fake


def test_a_release_reaches_a_host_that_follows_the_embedded_control_plane_in_the_older_protocol(
    tmp_path: Path,
) -> None:
    fleet = AgentFleet(tmp_path / "embedded")
    first, good = fleet.system(), fleet.system()
    fleet.release(None, {"web1": first})
    with fleet.start(legacy_api=True) as cp:
        agent = fleet.agent(
            "web1", cp.url, running=first, source="legacy", bootstrap_token_file=None, retry_interval=1, soak=0
        )
        with agent.running():
            agent.until_reached("intent")
            rollout = fleet.release(cp, {"web1": good})
            agent.until("the switch", lambda: agent.current() == good)
            eventually(lambda: phase_at(cp, rollout) == "Converged", PATIENCE_S, "convergence at the control plane")
            sick = fleet.release(cp, {"web1": fleet.system(healthy=False)})
            eventually(lambda: phase_at(cp, sick) in ("Failed", "Reverted"), PATIENCE_S, "the failure there")
            agent.until("the way back", lambda: agent.current() == good)
        assert agent.switches()[0] == good


def phase_at(cp: Running, rollout: str) -> str | None:
    """Where the control plane has web1 in a rollout."""
    answer = cp.operator.get(f"/v1/rollouts/{rollout}/hosts")
    return next((str(row["state"]) for row in answer.json().get("hosts", []) if answer.status_code == 200), None)
