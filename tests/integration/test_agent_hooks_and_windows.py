"""Windows, hooks and reboots as an operator sets them: a real agent, a real control plane, executables on the disk.

Nothing fakes a clock: where a window has to open, it opens at the next minute, and that is the longest anybody waits.
"""

import datetime
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from nixfleet.__main__ import run
from state_machine.events import HooksFinished
from state_machine.values import Closure, RolloutId
from tests.agentlab import HEALTHY, PATIENCE_S, SICK, Agent, AgentFleet, not_soon
from tests.cplab import Running
from tests.gradient_server import KEY, PROJECT, GradientServer
from wire.timestamps import parse_rfc3339

HOSTS: Final = tuple(f"web{n}" for n in range(1, 21))
MINUTE_S: Final = 60.0
ROOM_S: Final = 8
"""A window must not open before the agent has been asked that it waits."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> AgentFleet:
    return AgentFleet(tmp_path_factory.mktemp("hooks"), hosts=HOSTS)


@pytest.fixture(scope="module")
def cp(fleet: AgentFleet) -> Iterator[Running]:
    with fleet.start(require_evidence=True) as running:
        yield running


_fresh = iter(HOSTS)


def host(fleet: AgentFleet, cp: Running, *, running: Closure | None = None, **flags: Any) -> Agent:
    """An agent that is not started."""
    return fleet.agent(next(_fresh), cp.url, running=running or fleet.system(), **flags)


def until(agent: Agent, what: str) -> dict[str, Any]:
    """It waits for that."""
    return agent.until_status(what, lambda said: (said["waiting_on"] or "").startswith(what))


def until_phase(agent: Agent, phase: str) -> None:
    agent.until_status(phase, lambda said: (said["rollout"] or {}).get("phase") == phase)


def text_of(agent: Agent) -> str:
    """What a person reads who pipes it somewhere, in lines that are not cut."""
    return agent.command("status").stdout


def on_a_terminal(agent: Agent, **environment: str) -> str:
    """What a person reads at a terminal."""
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "nixfleet_agent", *agent.words("status")]
    env = {**agent.environment(), "COLUMNS": "200", "NO_COLOR": "1", **environment}
    with subprocess.Popen(words, env=env, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower) as process:
        os.close(follower)
        said = b""
        try:
            while chunk := os.read(leader, 65536):
                said += chunk
        except OSError:
            pass  # how Linux says that nobody has the other end any more
        process.wait(PATIENCE_S)
    os.close(leader)
    return said.decode().replace("\r\n", "\n")


# Windows


def next_minute() -> str:
    """A window that opens at the next minute, if that leaves room to look before, and is open for half a day."""
    opens = datetime.datetime.fromtimestamp((time.time() + ROOM_S) // 60 * 60 + 60, datetime.UTC)
    return f"{opens:%H:%M}-{opens + datetime.timedelta(hours=12):%H:%M} UTC"


def test_a_target_that_comes_outside_the_window_waits_visibly_and_goes_when_it_opens(
    fleet: AgentFleet, cp: Running
) -> None:
    agent = host(fleet, cp)
    with agent.running():
        agent.until_ready()
        agent.stop()
        agent.flags["activation_window"] = next_minute()
        agent.start()
        rollout = fleet.release(cp, {agent.name: (good := fleet.system())})
        said = until(agent, "the activation window")
        assert agent.switches() == []
        opens = datetime.datetime.fromtimestamp(parse_rfc3339(said["waiting_until"]) / 1000, datetime.UTC)
        assert (said["waiting_until_means"], opens.second) == ("window-opens", 0)
        configured = agent.flags["activation_window"]
        assert said["windows"]["activation"] == {
            "open": False,
            "next": said["waiting_until"],
            "configured": configured,
        }
        local = opens.astimezone(datetime.timezone(datetime.timedelta(hours=5.75)))
        seen = on_a_terminal(agent, TZ="Asia/Kathmandu")
        assert f"Waits for: the activation window; opens {local:%a %Y-%m-%d %H:%M:%S} +0545; in" in seen
        assert f"({configured})" in seen
        agent.until("the window to open", lambda: agent.current() == good, timeout_s=MINUTE_S + ROOM_S + PATIENCE_S)
        agent.until_settled(rollout, "Converged")
        started = next(fact.fact for fact in agent.facts(rollout) if type(fact.fact).__name__ == "ActivationStarted")
        assert started.started_at >= parse_rfc3339(said["waiting_until"])  # type: ignore[union-attr]


def test_a_wait_for_a_window_survives_the_agent(fleet: AgentFleet, cp: Running) -> None:
    agent = host(fleet, cp, activation_window=not_soon())
    with agent.running():
        fleet.release(cp, {agent.name: fleet.system()})
        before = until(agent, "the activation window")["waiting_until"]
        agent.restart()
        assert until(agent, "the activation window")["waiting_until"] == before
        agent.flags["activation_window"] = None
        agent.restart()
        agent.until_status("the switch", lambda said: said["rollout"]["phase"] == "Converged")
        assert len(agent.switches()) == 1


def test_a_rollback_does_not_wait_for_any_window(fleet: AgentFleet, cp: Running) -> None:
    agent = host(fleet, cp, sustained_failure=3600)
    before = agent.current()
    with agent.running():
        rollout = fleet.release(cp, {agent.name: fleet.system(healthy=False)})
        agent.until_status(
            "a failing probe",
            lambda said: (
                said["rollout"]
                and said["rollout"]["phase"] == "Soaking"
                and any(probe["status"] == "fail" for probe in said["probes"])
            ),
        )
        agent.kill()
        agent.flags |= {"sustained_failure": 0, "activation_window": not_soon(), "reboot_window": not_soon()}
        agent.start()
        said = agent.until_settled(rollout, "Reverted")
        assert said["windows"]["activation"]["open"] is False
        assert agent.current() == before


def test_what_is_no_window_ends_the_start_with_a_line_that_names_it(fleet: AgentFleet, cp: Running) -> None:
    done = host(fleet, cp, activation_window="nightly").command()
    assert done.returncode == 2
    assert "--activation-window (NIXFLEET_AGENT_ACTIVATION_WINDOW): 'nightly' is not days" in done.stderr


# Hooks


class Hooks:
    """A directory with one hook that says no while a file is there, and notes whatever it is told."""

    def __init__(self, agent: Agent) -> None:
        self.directory, self.busy = agent.directory / "hooks", agent.directory / "busy"
        self._notes = agent.directory / "told"
        self.directory.mkdir(mode=0o755)
        self.write(
            "10-backup",
            f'echo "$1 $(cat)" >> {self._notes}\n'
            f"if [ -e {self.busy} ]; then echo looking; echo a backup runs >&2; exit 1; fi\n"
            f'echo "heard $1"',
        )
        agent.flags["hooks_dir"] = self.directory

    def write(self, name: str, script: str) -> None:
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """Every call: the moment, and the facts."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [(line.split(" ")[0], json.loads(line.partition(" ")[2])) for line in lines]

    def moments(self) -> list[str]:
        return [moment for moment, _ in self.told()]


def test_a_hook_that_says_no_keeps_the_switch_from_beginning_until_it_no_longer_does(
    fleet: AgentFleet, cp: Running
) -> None:
    agent = host(fleet, cp)
    hooks, before = Hooks(agent), agent.current()
    hooks.busy.touch()
    with agent.running():
        rollout = fleet.release(cp, {agent.name: (good := fleet.system())})
        said = agent.until_status("a veto", lambda said: said["veto"])
        assert (said["veto"], said["rollout"]["phase"]) == ("10-backup: a backup runs", "Activating")
        assert said["realise_failures"] == 0
        text = text_of(agent)
        assert "Waits for: the hooks, one of which said no: 10-backup: a backup runs; next try" in text
        assert "Note: a hook does not let the switch begin: 10-backup: a backup runs" in text
        assert agent.current() == before
        assert "ActivationStarted" not in agent.fact_kinds(rollout)
        assert "TargetRefused" in agent.fact_kinds(rollout), "the control plane is told"
        hooks.busy.unlink()
        agent.until_settled(rollout, "Converged")
        agent.until("the hooks to be told", lambda: hooks.moments()[-1] == "after-success")
        assert agent.current() == good
    moment, facts = hooks.told()[-1]
    assert (facts["moment"], facts["host"], facts["rollout"]) == (moment, agent.name, rollout)
    assert (facts["closure"], facts["before"], facts["basis"]) == (good, before, "signed-manifest")
    assert set(hooks.moments()) == {"before-switch", "after-success"}
    answers = [record.event for record in agent.records() if isinstance(record.event, HooksFinished)]
    assert (answers[0].veto, answers[0].output) == (
        "10-backup: a backup runs",
        "10-backup: looking\na backup runs",
    )
    assert (answers[-1].veto, answers[-1].output) == ("", "10-backup: heard after-success")


def test_hooks_are_told_of_a_rollback_and_cannot_hold_it_up(fleet: AgentFleet, cp: Running) -> None:
    agent = host(fleet, cp)
    hooks, before = Hooks(agent), agent.current()
    # It lets the switch begin, and would let nothing begin from then on.
    hooks.write("20-then", f'[ "$1" = before-switch ] && touch {hooks.busy}; exit 0')
    with agent.running():
        sick = fleet.system(healthy=False)
        rollout = fleet.release(cp, {agent.name: sick})
        agent.until_settled(rollout, "Reverted")
        agent.until("the hooks to be told", lambda: hooks.moments() == ["before-switch", "after-rollback"])
        agent.until_status("nothing owed", lambda said: said["hooks_owed"] == [])
        assert agent.current() == before
    _, facts = hooks.told()[-1]
    assert (facts["closure"], facts["before"]) == (before, sick)


def test_being_told_is_owed_through_the_death_of_the_agent(fleet: AgentFleet, cp: Running) -> None:
    agent = host(fleet, cp)
    hooks = Hooks(agent)
    gate, went_in = agent.directory / "gate", agent.directory / "went-in"
    hooks.write("20-slow", f'[ "$1" = after-success ] && [ ! -e {gate} ] && touch {went_in} && sleep 1000; exit 0')
    with agent.running():
        rollout = fleet.release(cp, {agent.name: fleet.system()})
        agent.until("a hook that hangs", went_in.exists)
        agent.until_settled(rollout, "Converged")
        gate.touch()
        agent.restart()
        agent.until("the hooks to be told again", lambda: hooks.moments().count("after-success") == 2)
        agent.until_status("nothing owed", lambda said: said["hooks_owed"] == [])
        numbers = {facts["op"] for moment, facts in hooks.told() if moment == "after-success"}
        assert len(numbers) == 1, "it is the same thing twice, and can be known by its number"


def test_a_hook_that_hangs_vetoes_when_its_time_is_up(fleet: AgentFleet, cp: Running) -> None:
    agent = host(fleet, cp, hook_timeout=1)
    Hooks(agent).write("20-hangs", "sleep 1000")
    with agent.running():
        fleet.release(cp, {agent.name: fleet.system()})
        said = agent.until_status("a veto", lambda said: said["veto"])
    assert said["veto"] == "20-hangs: no answer: the deadline of 1 s for all hooks has passed"
    assert agent.switches() == []


def test_a_directory_of_hooks_that_others_can_write_is_found_before_the_start_and_vetoes_after_it(
    fleet: AgentFleet, cp: Running
) -> None:
    agent = host(fleet, cp)
    Hooks(agent).directory.chmod(0o777)
    complaint = "can be written by others; chmod go-w it"
    checked = agent.command("check-config")
    assert (checked.returncode, complaint in checked.stderr) == (2, True)
    with agent.running():
        fleet.release(cp, {agent.name: fleet.system()})
        assert complaint in agent.until_status("a veto", lambda said: said["veto"])["veto"]


# Reboots


class Systemctl:
    """A `systemctl` before the real one on PATH, which notes its words and does nothing."""

    def __init__(self, agent: Agent) -> None:
        self._calls, directory = agent.directory / "calls", agent.directory / "bin"
        directory.mkdir()
        (directory / "systemctl").write_text(f'#!/bin/sh\necho "$*" >> {self._calls}\n')
        (directory / "systemctl").chmod(0o755)
        self.environment = {"PATH": f"{directory}:{os.environ['PATH']}"}

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines() if self._calls.exists() else []


REBOOT: Final = "--no-block reboot"


def deferring(fleet: AgentFleet, cp: Running, **flags: Any) -> tuple[Agent, Systemctl]:
    """A host that runs an old kernel."""
    agent = host(fleet, cp, running=fleet.system(kernel="-> /old/kernel"), reboot="when-required", **flags)
    return agent, Systemctl(agent)


def release(fleet: AgentFleet, cp: Running, agent: Agent) -> tuple[RolloutId, Closure]:
    """A target with a new kernel."""
    target = fleet.system(kernel="-> /new/kernel")
    return fleet.release(cp, {agent.name: target}), target


def test_a_host_is_rebooted_for_a_target_that_waits_for_it_and_what_comes_up_is_judged(
    fleet: AgentFleet, cp: Running
) -> None:
    agent, systemctl = deferring(fleet, cp)
    with agent.running(**systemctl.environment):
        rollout, target = release(fleet, cp, agent)
        agent.until("a reboot", systemctl.calls)
        said = agent.until_phase(rollout, "Deferred")
        assert (said["waiting_on"], said["reboot"]["policy"]) == ("the host to go down", "when-required")
        assert systemctl.calls() == [REBOOT]
        come_up(agent, target)
        agent.start(**systemctl.environment)
        agent.until_settled(rollout, "Converged")
        assert systemctl.calls() == [REBOOT], "there is no second one"


def come_up(agent: Agent, system: Closure) -> None:
    """The host goes down with its agent, and the boot loader brings this up."""
    agent.kill()
    paths = agent.host.paths
    boot_id = Path(paths.boot_id)
    boot_id.write_text(f"after {boot_id.read_text()}")
    for link in map(Path, (paths.current_system, paths.booted_system)):
        link.unlink()
        link.symlink_to(paths.named(system))


def test_a_session_lock_keeps_the_host_up_and_is_named(fleet: AgentFleet, cp: Running, tmp_path: Path) -> None:
    lock = tmp_path / "session.lock"
    lock.touch()
    agent, systemctl = deferring(fleet, cp, session_lock=lock)
    with agent.running(**systemctl.environment):
        release(fleet, cp, agent)
        said = agent.until_status("a reboot that is held", lambda said: said["reboot"]["delayed_by"])
        assert said["reboot"]["delayed_by"] == f"{lock} is there"
        assert said["waiting_until_means"] == "next-try"
        text = text_of(agent)
        assert f"Waits for: another try of the reboot: {lock} is there; next try" in text
        assert f"Next: see to what keeps the host up ({lock} is there)" in text
        assert systemctl.calls() == []


def test_a_reboot_waits_for_its_window_and_says_so(fleet: AgentFleet, cp: Running) -> None:
    agent, systemctl = deferring(fleet, cp, reboot_window=not_soon())
    with agent.running(**systemctl.environment):
        rollout, _ = release(fleet, cp, agent)
        agent.until_phase(rollout, "Deferred")
        said = until(agent, "the reboot window")
        assert said["waiting_until_means"] == "window-opens"
        assert said["windows"]["reboot"]["next"] == said["waiting_until"]
        assert said["windows"]["reboot"]["configured"] == agent.flags["reboot_window"]
        assert re.search(r"Waits for: the reboot window; opens \w{3} [-\d]+ [:\d]+ UTC; in \d+ h", text_of(agent))
        assert systemctl.calls() == []


def test_nobody_reboots_a_host_whose_operator_did_not_allow_it(fleet: AgentFleet, cp: Running) -> None:
    agent, systemctl = deferring(fleet, cp)
    agent.flags["reboot"] = None
    with agent.running(**systemctl.environment):
        rollout, _ = release(fleet, cp, agent)
        said = agent.until_settled(rollout, "Deferred")
        assert (said["waiting_on"], said["waiting_until"]) == ("a reboot", None)
        assert systemctl.calls() == []


# What a switch that nobody signed for leaves behind


def test_the_audit_of_a_host_without_signed_intent_says_what_its_switches_rest_on(
    fleet: AgentFleet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with GradientServer(fleet) as server:
        name = next(_fresh)
        key = tmp_path / "api-key"
        key.write_text(KEY)
        agent = fleet.agent(
            name, server.url, running=fleet.system(), enrolled=False, source="gradient", control_plane_url=None,
            client_cert=None, bootstrap_token_file=None, gradient_server=server.url, gradient_project=PROJECT,
            gradient_api_key_file=key, retry_interval=1, soak=0,
        )  # fmt: skip
        with agent.running():
            for files, phase in ((HEALTHY, "Converged"), (SICK, "Reverted")):
                server.builds_for(name, fleet.systems.publish("good", files=files, name=f"nixos-system-{name}-25.05"))
                agent.poke()
                until_phase(agent, phase)
            assert "Rests on: the cache's key alone: nobody signed it; the source calls it" in text_of(agent)
            shown = agent.command("journal", "show").stdout
        export = tmp_path / name
        assert agent.command("journal", "export", str(export)).returncode == 0
    assert re.search(r"TargetOffered .*nixos-system-\S+ rests on the cache's key alone", shown)
    assert run(["audit", "verify", str(export), "--trust-file", str(fleet.path("trust.json"))]) == 3
    out, err = capfd.readouterr()
    assert out.count("rests on the cache's key alone, not proved by a signature") == 2
    assert "chain intact" in out
    assert err == f"unsigned: {name}: 2 of 2 switches not proved by a signature\n"
