"""Hosts of the first generation with a real control plane: among themselves, among others, and on their way over."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from state_machine.values import Closure, HostName, WallMs
from tests.agentlab import PATIENCE_S, AgentFleet, mirror
from tests.cplab import OLD, Lab, Puppet, Running, closure, eventually
from tests.integration.test_nixfleet_operator_commands import as_operator, nixfleet, told
from tests.oldagent import OldAgent, at_work
from wire.legacy import DESIRED_GENERATION, REPORT

CACHE = "https://cache.example.org"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def cp(lab: Lab) -> Iterator[Running]:
    lab.publish("c0ffee", waves=(("web1",), ("web2", "web3")))
    with lab.start(legacy_api=True, legacy_cache_url=CACHE) as running:
        yield running


def target(host: str, commit: str = "c0ffee") -> Closure:
    return closure(f"{host}-{commit}")


def states(cp: Running, rollout_id: str = "stable@c0ffee") -> dict[str, str]:
    rows = cp.operator.get(f"/v1/rollouts/{rollout_id}/hosts").json()["hosts"]
    return {row["host"]: row["state"] for row in rows}


def kinds(cp: Running, host: str, rollout_id: str = "stable@c0ffee") -> list[str]:
    rows = cp.operator.get(f"/v1/rollouts/{rollout_id}/events").json()["events"]
    return [row["payload"]["kind"] for row in rows if row["kind"] == "agent_event" and row["host"] == host]


def row(cp: Running, host: str) -> dict[str, Any]:
    rows: list[dict[str, Any]] = cp.operator.get("/v1/hosts").json()["hosts"]
    return next(each for each in rows if each["hostname"] == host)


def refused(cp: Running) -> float:
    """Facts of any kind that were not taken."""
    lines = cp.operator.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("nixfleet_cp_facts_refused_total{"))


# Who may speak for whom


def test_a_machine_speaks_for_itself_alone(cp: Running) -> None:
    web1 = OldAgent.of(cp, "web1")
    assert web1.http.get(DESIRED_GENERATION.format(machine_id="web2")).status_code == 403
    other = web1.post(web1.message("deployed", machine_id="web2"))
    assert (other.status_code, other.json()["reason"]) == (403, "hostname")
    assert cp.operator.get(DESIRED_GENERATION.format(machine_id="alice")).status_code == 403
    assert cp.client().get(DESIRED_GENERATION.format(machine_id="web1")).status_code == 401
    assert cp.client().post(REPORT.format(machine_id="web1"), json={}).status_code == 401
    assert states(cp) == {"web1": "Pending", "web2": "Pending", "web3": "Pending"}


def test_a_revoked_certificate_is_refused_here_too(cp: Running) -> None:
    web1 = OldAgent.of(cp, "web1")
    assert web1.wanted() == target("web1")
    cp.lab.revoke("web1", WallMs(web1.clock + 3_600_000))
    eventually(lambda: web1.ask().status_code == 401, what="the revocation")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"message": "x" * 4097}, "message may have 4096"),
        ({"current_generation": "/nix/store/" + "x" * 502}, "current_generation may have 512"),
        ({"tags": ("x" * 65,)}, "tags"),
        ({"tags": tuple(map(str, range(65)))}, "tags"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_report_that_is_too_long_is_refused(cp: Running, members: dict[str, Any], said: str) -> None:
    web1 = OldAgent.of(cp, "web1")
    message = members.pop("message", "deployed")
    answer = web1.post(web1.message(message, **members))
    assert (answer.status_code, said in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize("body", ["[]", "{", '{"machine_id": "web1"}', '{"machine_id": 1}'])
def test_a_body_that_is_no_report_is_refused(cp: Running, body: str) -> None:
    answer = cp.client("web1").post(REPORT.format(machine_id="web1"), content=body)
    assert answer.status_code in (400, 422)
    assert answer.json()["reason"] == "parse"


def test_a_path_that_names_no_machine_is_refused(cp: Running) -> None:
    assert cp.client("web1").get(DESIRED_GENERATION.format(machine_id="x" * 300)).status_code == 400
    assert cp.client("web1").get(DESIRED_GENERATION.format(machine_id="-")).status_code == 400


def test_only_a_control_plane_that_is_told_to_serves_this(lab: Lab) -> None:
    lab.publish()
    with lab.start() as cp:
        assert cp.client("web1").get(DESIRED_GENERATION.format(machine_id="web1")).status_code == 404
        assert cp.client().get("/health").status_code == 404


def test_it_lives_and_says_so_and_asks_for_no_header(lab: Lab) -> None:
    lab.publish()
    lab.publish_nonces()
    lab.revoke("web3")
    with lab.start(legacy_api=True, strict=True) as cp:
        assert cp.client().get("/health").text == "ok"
        assert OldAgent.of(cp, "web1").wanted() == target("web1")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"require_evidence": True}, "--legacy-api and --require-evidence cannot both hold: a host of the first"),
        ({"client_ca": None}, "--client-ca is missing: a host of the first generation is known by its certificate"),
        ({"legacy_cache_url": "cache"}, "--legacy-cache-url 'cache': it is no http(s), s3 or ssh URL"),
        ({"legacy_api": None, "legacy_cache_url": CACHE}, "--legacy-api is missing: nobody else is told"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_settings_that_cannot_hold_together_end_the_start_in_one_line(
    lab: Lab, flags: dict[str, Any], said: str
) -> None:
    lab.publish()
    words = lab.arguments(**{"legacy_api": True, **flags})
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said.replace("'cache'", "cache") in done.stderr


# A fleet of them


def test_a_fleet_in_two_waves_converges(cp: Running) -> None:
    fleet = {name: OldAgent.of(cp, name) for name in ("web1", "web2", "web3")}
    assert [agent.wanted() for agent in fleet.values()] == [target("web1"), None, None]
    desired = fleet["web1"].desired()
    assert desired is not None
    assert (desired.cache_url, desired.poll_hint) == (CACHE, 5)
    fleet["web1"].cycle()
    assert states(cp) == {"web1": "Converged", "web2": "Pending", "web3": "Pending"}
    fleet["web2"].cycle()
    fleet["web3"].cycle()
    assert set(states(cp).values()) == {"Converged"}
    assert cp.operator.get("/v1/rollouts/stable@c0ffee/lifecycle").json()["state"] == "Terminal"
    for agent in fleet.values():
        desired = agent.desired()
        assert desired is not None
        assert desired.poll_hint is None
        assert agent.cycle() == target(agent.host)
        assert agent.switches == [target(agent.host)]
    assert kinds(cp, "web1") == [
        "DispatchAck",
        "ActivationStarted",
        "ActivationCompleted",
        "ProbeTopologyDeclared",
        "ProbeObservedFirst",
        "ProbeResult",
        "Converged",
    ]
    assert refused(cp) == 0


def test_a_host_soaks_by_the_clock_of_the_control_plane(lab: Lab) -> None:
    lab.publish(waves=(("web1",), ("web2", "web3")), soak_secs=1)
    with lab.start(legacy_api=True) as cp:
        web1, web2 = OldAgent.of(cp, "web1"), OldAgent.of(cp, "web2")
        web1.clock += 3_600_000
        web1.cycle()
        assert states(cp)["web1"] == "Soaking"
        assert web2.wanted() is None
        eventually(lambda: web1.cycle() and states(cp)["web1"] == "Converged", what="the end of the soak")
        assert web2.wanted() == target("web2")


def test_what_a_host_rolled_back_stops_the_others_and_is_quarantined(cp: Running) -> None:
    web1, web2 = OldAgent.of(cp, "web1", sick={target("web1")}), OldAgent.of(cp, "web2")
    web1.cycle()
    assert states(cp) == {"web1": "Reverted", "web2": "Pending", "web3": "Pending"}
    assert kinds(cp, "web1")[-2:] == ["ActivationFailed", "RollbackComplete"]
    assert web2.wanted() is None
    assert [each["closure"] for each in cp.operator.get("/v1/quarantine").json()["quarantine"]] == [target("web1")]
    for _ in range(3):
        assert web1.cycle() is None
    assert (web1.switches, web1.running) == ([target("web1")], OLD)
    assert row(cp, "web1")["failure"] == "rolled back: health checks failed: web"
    cp.lab.publish("decade", waves=(("web1",), ("web2", "web3")))
    assert cp.refresh() == {}
    assert web1.cycle() == target("web1", "decade")
    assert states(cp, "stable@decade")["web1"] == "Converged"
    assert web2.cycle() == target("web2", "decade")


def test_a_host_that_sickens_in_its_soak_is_taken_back_by_the_policy(lab: Lab) -> None:
    policies = lab.fleet("x").rollout_policies
    quick = {name: attrs.evolve(policy, sustained_failure_secs=0) for name, policy in policies.items()}
    lab.publish(soak_secs=3600, rollout_policies=quick)
    with lab.start(legacy_api=True) as cp:
        web1 = OldAgent.of(cp, "web1")
        web1.cycle()
        web1.sick.add(target("web1"))
        web1.cycle()
        assert states(cp)["web1"] == "Failed"
        assert web1.cycle() == OLD
        assert (states(cp)["web1"], web1.running) == ("Reverted", OLD)
        assert web1.cycle() is None


def test_an_operator_asks_a_host_back(cp: Running) -> None:
    web1 = OldAgent.of(cp, "web1")
    web1.cycle()
    asked = told(cp, "rollout", "rollback", "stable@c0ffee", "--reason", "too hot")
    assert asked["hosts"] == ["web1"]
    assert web1.cycle() == OLD
    assert states(cp)["web1"] == "Reverted"
    assert kinds(cp, "web1")[-2:] == ["RollbackRequested", "RollbackComplete"]
    assert web1.cycle() is None


def test_a_killed_control_plane_goes_on_where_it_was(lab: Lab) -> None:
    lab.publish(soak_secs=0)
    with lab.start(legacy_api=True) as cp:
        web1 = OldAgent.of(cp, "web1")
        assert web1.wanted() == target("web1")
        applying = web1.message("applying")
        assert web1.post(applying).status_code == 200
        cp.kill()
    with lab.start(legacy_api=True) as cp:
        again = OldAgent.of(cp, "web1", clock=web1.clock)
        assert again.post(applying).status_code == 200
        assert again.cycle() == target("web1")
        assert states(cp)["web1"] == "Converged"
        assert refused(cp) == 0


def test_repeated_late_and_senseless_reports_change_nothing(cp: Running) -> None:
    web1 = OldAgent.of(cp, "web1")
    web1.say("rolled back: of yesterday", success=False)
    assert states(cp)["web1"] == "Pending"
    applying = web1.message("applying")
    assert web1.wanted() == target("web1")
    web1.cycle()
    before = kinds(cp, "web1")
    for _ in range(2):
        assert web1.post(applying).status_code == 200
    for message in ("rolled back: of yesterday", "what?", "", "dry-run: would apply"):
        web1.say(message, success=False)
    web1.say("deployed", current_generation="/etc/passwd")
    assert (kinds(cp, "web1"), refused(cp)) == (before, 0)
    assert states(cp)["web1"] == "Converged"


def test_reports_at_the_same_time_are_taken_one_after_another(cp: Running) -> None:
    web1 = OldAgent.of(cp, "web1")
    assert web1.wanted() == target("web1")
    reports = [web1.message("applying") for _ in range(4)]
    web1.running = target("web1")
    reports += [web1.message("deployed", healthy=True) for _ in range(4)]
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda each=each: answers.append(web1.post(each).status_code)) for each in reports
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 8
    assert states(cp)["web1"] == "Converged"
    assert (kinds(cp, "web1").count("Converged"), refused(cp)) == (1, 0)


# Machines


def test_a_machine_is_registered_before_its_first_report_or_by_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path, hosts=("web1", "db1", "db2"))
    lab.hosts = lab.hosts[:1]
    lab.publish()
    with lab.start(legacy_api=True) as cp:
        registered = nixfleet("machines", "register", "db1", "--tag", "db", "--tag", "eu", **as_operator(cp))
        assert registered.returncode == 0, registered.stderr
        assert told(cp, "machines", "list", "--tag", "db", "--tag", "eu")["hosts"][0]["hostname"] == "db1"
        OldAgent.of(cp, "db2", tags=("db",)).cycle()
        OldAgent.of(cp, "web1").cycle()
        listed = told(cp, "machines", "list", "--tag", "db")["hosts"]
        assert [(each["hostname"], each.get("basis")) for each in listed] == [("db1", None), ("db2", "mutual-tls")]
        assert row(cp, "db1").get("source") is None
        assert OldAgent.of(cp, "db2").wanted() is None


def test_the_list_shows_what_the_trust_in_each_host_rests_on(cp: Running) -> None:
    OldAgent.of(cp, "web1").cycle()
    new = cp.agent("web2")
    new.heartbeat(current_closure=OLD)
    new.converge(taken(new))
    listed = {each["hostname"]: each for each in told(cp, "machines", "list")["hosts"]}
    assert [(listed[name].get("source"), listed[name].get("basis")) for name in ("web1", "web2", "web3")] == [
        ("legacy", "mutual-tls"),
        ("fleet", "signed-manifest"),
        (None, None),
    ]
    assert (listed["web1"]["verifiedEventCount"], listed["web2"]["verifiedEventCount"]) == (0, 7)
    shown = nixfleet("machines", "list", **as_operator(cp)).stdout.splitlines()
    assert "mutual-tls" in shown[1]
    assert "signed-manifest" in shown[2]


def taken(agent: Puppet) -> dict[str, Any]:
    dispatch = agent.dispatch(wait=10)
    assert dispatch is not None
    return dispatch


def test_a_host_that_changes_nothing_or_fails_before_it_begins_says_why_it_waits(cp: Running) -> None:
    web1 = OldAgent.of(cp, "web1")
    web1.say("dry-run: would apply")
    assert "--dry-run" in row(cp, "web1")["waitingOn"]
    web1.say("failed: no cache has it", success=False)
    assert row(cp, "web1")["waitingOn"] == "its next try: failed: no cache has it"
    assert states(cp)["web1"] == "Pending"


def test_the_shell_completes_the_commands_for_machines() -> None:
    words = {"COMP_WORDS": "nixfleet machines ", "COMP_CWORD": "2", "_NIXFLEET_COMPLETE": "bash_complete"}
    done = nixfleet(**words)
    assert {line.partition(",")[2] for line in done.stdout.split()} == {"list", "register"}
    done = nixfleet(**{**words, "COMP_WORDS": "nixfleet machines list --", "COMP_CWORD": "3"})
    assert {"--tag", "--json"} <= {line.partition(",")[2] for line in done.stdout.split()}


# From one generation of the protocol to the next


def test_a_host_that_sends_heartbeats_has_left_the_old_protocol(cp: Running) -> None:
    web1 = OldAgent.of(cp, "web1")
    web1.cycle()
    new = cp.agent("web1")
    assert new.heartbeat(current_closure=target("web1")).status_code == 200
    assert web1.wanted() is None
    answer = web1.post(web1.message("health-check", healthy=False))
    assert (answer.status_code, answer.json()["reason"]) == (409, "moved")
    assert row(cp, "web1")["source"] == "fleet"


def test_a_host_that_left_the_old_protocol_has_still_left_it_after_a_restart(lab: Lab) -> None:
    lab.publish()
    with lab.start(legacy_api=True) as cp:
        cp.agent("web1").heartbeat(current_closure=OLD)
        eventually(lambda: row(cp, "web1").get("source") == "fleet")
        cp.stop()
    with lab.start(legacy_api=True) as cp:
        assert OldAgent.of(cp, "web1").wanted() is None


@pytest.mark.parametrize("soak_secs", [0, 3])
def test_a_host_moves_over_under_load(tmp_path: Path, soak_secs: int) -> None:
    """The others, of both kinds, are busy meanwhile. With a soak it moves in the middle of a rollout."""
    fleet = AgentFleet(tmp_path, hosts=("web1", "web2", "web3", "web4", "web5"))
    before, first, second = fleet.system(), fleet.system(), fleet.system()
    everybody = [HostName(f"web{number}") for number in range(1, 6)]
    with fleet.start(legacy_api=True) as cp:
        rollout = fleet.release(cp, dict.fromkeys(everybody, first), soak_secs=soak_secs)
        moving = OldAgent.of(cp, "web1", running=before)
        old = [OldAgent.of(cp, name, running=before) for name in ("web2", "web3")]
        new = [cp.agent(name) for name in ("web4", "web5")]
        with at_work([agent.cycle for agent in old] + [_busy(agent) for agent in new]) as raised:
            moving.cycle()
            assert states(cp, rollout)["web1"] == ("Soaking" if soak_secs else "Converged")
            told_before = kinds(cp, "web1", rollout)
            agent = fleet.agent("web1", cp.url, running=first)
            with agent.running():
                agent.until_reached("heartbeat")
                assert moving.wanted() is None
                if soak_secs:
                    agent.until_settled(rollout, "Converged")
                eventually(lambda: states(cp, rollout)["web1"] == "Converged", PATIENCE_S)
                assert kinds(cp, "web1", rollout)[: len(told_before)] == told_before
                later = fleet.release(cp, dict.fromkeys(everybody, second))
                agent.until_settled(later, "Converged")
                assert moving.post(moving.message("rolled back: what?", success=False)).status_code == 409
                eventually(lambda: set(states(cp, later).values()) == {"Converged"}, PATIENCE_S)
            assert agent.current() == second
        assert raised == []
        assert refused(cp) == 0
        assert all(each.running == second for each in old)
        last = row(cp, "web1")
        assert (last["source"], last["basis"]) == ("fleet", "signed-manifest")
        proved = mirror(fleet.database, later, "web1")
        assert proved.verified_facts == proved.record.last_seq
        assert mirror(fleet.database, later, "web2").verified_facts == 0


def _busy(agent: Puppet) -> Any:
    """What a host of the newer protocol does, step by step."""

    def step() -> None:
        assert agent.heartbeat(health={"pass": 1}).status_code == 200
        dispatch = agent.dispatch()
        if dispatch is not None:
            agent.converge(dispatch)

    return step


def test_the_log_says_which_facts_were_concluded_here(cp: Running) -> None:
    OldAgent.of(cp, "web1").cycle()
    new = cp.agent("web2")
    new.converge(taken(new))
    code = (
        "import json, sqlite3, sys\n"
        "rows = sqlite3.connect(sys.argv[1]).execute(\"SELECT hostname, body FROM log WHERE kind = 'FactAccepted'\")\n"
        "print(json.dumps([[host, json.loads(body).get('concluded_from')] for host, body in rows]))"
    )
    done = subprocess.run([sys.executable, "-c", code, cp.lab.database], capture_output=True, text=True, check=True)
    assert {tuple(each) for each in json.loads(done.stdout)} == {("web1", "legacy"), ("web2", None)}


def test_one_agent_speaks_the_old_protocol_and_then_the_new(tmp_path: Path) -> None:
    """With one journal, and the very same control plane. What it did by the old protocol it can prove afterwards."""
    fleet = AgentFleet(tmp_path)
    before, first, sick, last = fleet.system(), fleet.system(), fleet.system(healthy=False), fleet.system()
    with fleet.start(legacy_api=True) as cp:
        agent = fleet.agent("web1", cp.url, running=before, source="legacy", soak=0, retry_interval=1)
        with agent.running():
            rollout = fleet.release(cp, {"web1": first})
            eventually(lambda: states(cp, rollout)["web1"] == "Converged", PATIENCE_S)
            assert (agent.current(), row(cp, "web1")["basis"]) == (first, "mutual-tls")
            reverted = fleet.release(cp, {"web1": sick})
            eventually(lambda: states(cp, reverted)["web1"] == "Reverted", PATIENCE_S)
            assert agent.current() == first
            assert refused(cp) == 0
            agent.stop()
        agent.flags["source"] = "fleet"
        with agent.running():
            final = fleet.release(cp, {"web1": last})
            agent.until_settled(final, "Converged")
            assert agent.current() == last
            assert (row(cp, "web1")["source"], row(cp, "web1")["basis"]) == ("fleet", "signed-manifest")
            assert refused(cp) == 0
