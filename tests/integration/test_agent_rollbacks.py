"""Targets that break, hang, lie or are sick: the host ends on the system it ran before, and remembers why."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from state_machine.intent import RolloutPolicy
from state_machine.values import Closure, FailurePolicy
from tests.agentlab import Agent, AgentFleet
from tests.liar import Liar

SWITCHED: Final = ["DispatchAck", "ActivationStarted"]
BAD: Final = [*SWITCHED, "ActivationFailed", "RollbackComplete"]
SICK: Final = [
    *SWITCHED,
    "ActivationCompleted",
    "ProbeTopologyDeclared",
    "ProbeObservedFirst",
    "ProbeFailureFirst",
    "ProbeResult",
    "Failed",
    "RollbackComplete",
]


def send(agent: Agent, liar: Liar, closure: Closure, **changes: Any) -> str:
    """Release a closure for the only host and route it there."""
    rollout = agent.fleet.release(None, {agent.name: closure}, **changes)
    liar.dispatch(agent.name, rollout, closure)
    return rollout


@pytest.mark.parametrize(
    ("behaviour", "slug", "facts"),
    [
        ("units-fail", "switch-failed", BAD),
        ("breaks", "switch-failed", BAD),
        ("hangs", "switch-timeout", BAD),
        ("lies", "verify-mismatch", BAD),
        ("goes-elsewhere", "verify-mismatch", BAD),
        ("good", None, SICK),
    ],
)
def test_the_host_goes_back_to_what_it_ran_and_quarantines_the_target(
    tmp_path: Path, behaviour: str, slug: str | None, facts: list[str]
) -> None:
    fleet = AgentFleet(tmp_path)
    first, elsewhere = fleet.system(), fleet.system()
    bad = fleet.system(behaviour, healthy=False, other=elsewhere)
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first, switch_timeout=1, metrics_port=0)
        with agent.running():
            rollout = send(agent, liar, bad)
            said = agent.until_settled(rollout, "Reverted")
            assert liar.told(rollout) == facts
            assert agent.switches() == [bad, first]
            assert agent.current() == first
            [entry] = said["quarantine"]
            assert (entry["closure"], entry["rollout"]) == (bad, rollout)
            assert agent.metric("nixfleet_agent_quarantined_closures") == 1
            if slug is not None:
                assert entry["why"].startswith(f"{slug}: ")
                assert agent.metric("nixfleet_agent_refusals_total", reason=slug) == 1
                assert any(note["what"] == f"{slug} {rollout}" for note in said["refusals"])
            # What runs now is probed, and well.
            agent.until_status("a passing probe", lambda said: said["probes"][0]["status"] == "pass")


def test_a_policy_that_says_halt_leaves_the_sick_target_running(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    first, sick = fleet.system(), fleet.system(healthy=False)
    halt = {"careful": RolloutPolicy(strategy="staged", on_health_failure=FailurePolicy.HALT)}
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first)
        with agent.running():
            rollout = send(agent, liar, sick, rollout_policies=halt)
            said = agent.until_settled(rollout, "Failed")
            assert liar.told(rollout) == SICK[:-1]
            assert agent.switches() == [sick]
            assert said["quarantine"] == []
            assert said["probes"][0]["status"] == "fail"


def test_a_rollback_that_fails_says_so_and_is_tried_again_later(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    stuck, bad = fleet.system("breaks"), fleet.system("units-fail")
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=stuck)
        with agent.running():
            rollout = send(agent, liar, bad)
            agent.until_status("the failed rollback", lambda said: "rollback; 1 failed" in (said["waiting_on"] or ""))
            agent.until_status("an empty outbox", lambda said: not said["outbox"])
            assert liar.told(rollout) == [*SWITCHED, "ActivationFailed", "RollbackFailed"]
            assert "nothing works" in liar.facts[rollout][-1]["stderrTail"]
            said = agent.until_ready()
            assert said["rollout"]["phase"] == "Failed"
            assert any(note["what"].startswith("rollback-failed") for note in said["refusals"])
            # The heartbeat tells the operator too.
            liar.until(
                "the heartbeat to say it",
                lambda: any("rollback" in seen.json.get("waiting_on", "") for seen in liar.requests("heartbeat")),
            )
            assert said["probes"]


# Quarantine


def quarantine(tmp_path: Path, liar: Liar, fleet: AgentFleet) -> tuple[Agent, Closure, Closure]:
    """An agent that runs and has rolled a closure back, whose sickness is mended since."""
    first, sick = fleet.system(), fleet.system(healthy=False)
    agent = fleet.agent("web1", liar.url, running=first)
    agent.start()
    agent.until_settled(send(agent, liar, sick), "Reverted")
    (agent.directory / "store" / sick / "health").write_text("ok\n")
    return agent, first, sick


def refused(agent: Agent, liar: Liar, closure: Closure) -> str:
    """Send it under a new release, and wait for the rejection; its reason."""
    rollout = send(agent, liar, closure)
    liar.until("the rejection", lambda: "DispatchReject" in liar.told(rollout))
    return str(liar.facts[rollout][-1]["reason"])


def test_a_quarantine_outlives_restarts_and_is_lifted_while_the_daemon_runs(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    with Liar(fleet) as liar:
        agent, first, sick = quarantine(tmp_path, liar, fleet)
        assert refused(agent, liar, sick) == "quarantined"
        agent.restart()
        assert refused(agent, liar, sick) == "quarantined"
        assert agent.switches() == [sick, first]
        listed = agent.command("quarantine", "list")
        assert listed.stdout.startswith(sick)
        cleared = agent.command("quarantine", "clear", f"/nix/store/{sick}")
        assert (cleared.returncode, cleared.stderr) == (0, "")
        # It is on record when the command returns.
        assert agent.command("quarantine", "list").stdout == "nothing is quarantined\n"
        assert "QuarantineCleared" in agent.kinds()
        agent.until_settled(send(agent, liar, sick), "Converged")
        agent.kill()
    assert agent.switches() == [sick, first, sick]


def test_a_quarantine_is_lifted_in_the_journal_when_no_daemon_runs(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    with Liar(fleet) as liar:
        agent, first, sick = quarantine(tmp_path, liar, fleet)
        assert agent.stop() == 0
        assert [entry["closure"] for entry in json.loads(agent.command("quarantine", "list", "--json").stdout)] == [
            sick
        ]
        assert agent.command("quarantine", "clear", "--all").returncode == 0
        assert json.loads(agent.command("quarantine", "list", "--json").stdout) == []
        assert agent.command("journal", "verify").returncode == 0
        agent.start()
        agent.until_settled(send(agent, liar, sick), "Converged")
        agent.kill()
    assert agent.switches() == [sick, first, sick]


@pytest.mark.parametrize("daemon", ["running", "stopped"])
def test_lifting_what_is_not_quarantined_is_an_error(tmp_path: Path, daemon: str) -> None:
    fleet = AgentFleet(tmp_path)
    first = fleet.system()
    agent = fleet.agent("web1", "https://127.0.0.1:1", running=first)
    with agent.running():
        agent.until_ready()
        if daemon == "stopped":
            agent.stop()
        for words, said in (
            ((first,), f"{first} is not quarantined"),
            (("--all",), "nothing is quarantined"),
            (("../evil",), "is not the name of a store path"),
        ):
            done = agent.command("quarantine", "clear", *words)
            assert done.returncode == 1
            assert said in done.stderr
            assert "Traceback" not in done.stderr
    assert agent.command("quarantine", "clear").returncode == 2
    assert agent.command("quarantine", "clear", first, "--all").returncode == 2
