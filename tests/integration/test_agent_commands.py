"""The commands beside the daemon, with it running and stopped: what an operator at the host sees and does."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from evidence.host_key import generate_host_key
from nixfleet_agent.inspection import EXIT_NOT_RUNNING, EXIT_SICK
from nixfleet_agent.ledger import JOURNAL_NAME
from state_machine.values import Closure
from tests.agentlab import PATIENCE_S, Agent, AgentFleet
from tests.cplab import closure
from tests.liar import Liar

MEMBERS: Final = {
    "schema",
    "version",
    "machine_id",
    "daemon",
    "runs",
    "system",
    "rollout",
    "waiting_on",
    "probes",
    "intent",
    "quarantine",
    "refusals",
    "outbox",
    "facts_refused",
    "contact",
    "journal_error",
    "at",
    "configured",
    "health",
    "holds",
    "problems",
    "process",
    "realise_failures",
    "recent",
    "trust",
    "waiting_until",
    "waiting_until_means",
}
"""What `status --json` has at least; programs may rely on these."""


AS_NOBODY: Final = """
import os, sys
from pathlib import Path
from nixfleet_agent import inspection
from nixfleet_agent.errors import StateError
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    inspection.status(Path(sys.argv[1]))
except StateError as error:
    print(error)
"""


def send(agent: Agent, liar: Liar, target: Closure, **options: Any) -> str:
    rollout = agent.fleet.release(None, {agent.name: target}, **options)
    liar.dispatch(agent.name, rollout, target)
    return rollout


@pytest.fixture
def fleet(tmp_path: Path) -> AgentFleet:
    return AgentFleet(tmp_path)


@pytest.fixture
def liar(fleet: AgentFleet) -> Iterator[Liar]:
    with Liar(fleet) as liar:
        yield liar


def succeeded(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


# Looking


def test_a_converged_host_shown_running_and_stopped(fleet: AgentFleet, liar: Liar) -> None:
    good = fleet.system()
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        rollout = send(agent, liar, good)
        agent.until_settled(rollout, "Converged")
        text = succeeded(agent.command("status"))
        said = json.loads(succeeded(agent.command("status", "--json")))
        assert agent.stop() == 0
    assert set(said) >= MEMBERS
    assert (said["daemon"], said["system"]["running"], said["rollout"]["phase"]) == ("running", good, "Converged")
    for word in (
        "● web1",
        "running",
        rollout,
        "Converged",
        good,
        "✓ service  pass",
        "Contact",
        "Certificate: good for",
    ):
        assert word in text, word
    assert "the current CI key of" in text
    assert (said["health"], said["problems"], said["process"]["pid"] > 1) == ("well", [], True)
    assert len(said["recent"]) == 5
    assert said["recent"][-1]["said"] == f"{rollout}: converged"
    assert said["recent"][-1]["said"] in text
    # The same from the journal alone, but for what only a running daemon knows.
    stopped = agent.command("status", "--json", "-n", "0")
    assert stopped.returncode == EXIT_NOT_RUNNING
    after = json.loads(stopped.stdout)
    assert (after["recent"], after["problems"][0]["what"]) == ([], "not-running")
    assert set(after) >= MEMBERS
    assert (after["daemon"], after["contact"]) == ("not running", None)
    for member in ("machine_id", "system", "rollout", "quarantine", "outbox", "runs", "trust"):
        assert after[member] == said[member], member
    text = agent.command("status").stdout
    assert text.startswith("○ web1")
    assert "systemctl start nixfleet-agent" in text
    assert "\x1b[" in agent.command("status", "--color", "always").stdout
    assert "\x1b[" not in agent.command("status", "--color", "never").stdout

    # And the journal itself.
    shown = succeeded(agent.command("journal", "show")).splitlines()
    assert len(shown) == len(agent.records())
    assert "Booted" in shown[0]
    assert any("DispatchAck 1" in line for line in shown)
    entries = [json.loads(line) for line in succeeded(agent.command("journal", "show", "--json")).splitlines()]
    assert [entry["n"] for entry in entries] == list(range(1, len(entries) + 1))
    assert len(succeeded(agent.command("journal", "show", "--since", str(len(entries)))).splitlines()) == 1
    assert "chain intact" in succeeded(agent.command("journal", "verify", "--watermark", str(len(entries))))
    assert "the same state" in succeeded(agent.command("journal", "replay"))
    _cut_off(agent, len(entries))
    _export(agent, fleet)


def _cut_off(agent: Agent, entries: int) -> None:
    done = agent.command("journal", "verify", "--watermark", str(entries + 1))
    assert done.returncode == 1
    assert f"entry {entries + 1}: missing" in done.stdout


def _export(agent: Agent, fleet: AgentFleet) -> None:
    out = agent.directory / "export"
    succeeded(agent.command("journal", "export", str(out)))
    if ssh_keygen := shutil.which("ssh-keygen"):
        words = ["-Y", "verify", "-f", "allowed_signers", "-I", "web1", "-n", "nixfleet-journal@1"]
        with (out / "entries.jsonl").open("rb") as entries:
            done = subprocess.run(
                [ssh_keygen, *words, "-s", "entries.jsonl.sig"],
                cwd=out,
                stdin=entries,
                capture_output=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr
    again = agent.command("journal", "export", str(out))
    assert again.returncode == 1
    assert "Traceback" not in again.stderr


def test_a_journal_that_was_tampered_with_is_named_by_its_entry(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        agent.until_settled(send(agent, liar, fleet.system()), "Converged")
        agent.stop()
    with contextlib.closing(sqlite3.connect(agent.journal)) as db, db:
        [[number]] = db.execute("SELECT n FROM entries WHERE instr(body, 'DispatchAck')")
        db.execute("UPDATE entries SET body = replace(body, 'DispatchAck', 'DispatchNak') WHERE n = ?", (number,))
    done = agent.command("journal", "verify")
    assert done.returncode == 1
    assert f"entry {number}" in done.stdout


@pytest.mark.parametrize(
    "words",
    [("status",), ("quarantine", "list"), ("journal", "show"), ("journal", "verify"), ("poke",), ("journal", "begin")],
    ids="-".join,
)
def test_where_no_agent_has_run_one_line_says_so(fleet: AgentFleet, words: tuple[str, ...]) -> None:
    agent = fleet.agent("web1", "https://127.0.0.1:1")
    done = agent.command(*words)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("nixfleet-agent: error: ")
    assert str(agent.state_dir) in line


def test_a_host_with_trouble_is_told_by_the_exit_status_and_what_to_do(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        agent.until_settled(send(agent, liar, fleet.system(healthy=False)), "Reverted")
        done = agent.command("status")
        said = json.loads(agent.command("status", "--json").stdout)
    assert done.returncode == EXIT_SICK
    assert said["health"] == "sick"
    assert f"quarantine clear {said['rollout']['target']}" in done.stdout


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("mode", [0o700, 0o755], ids=["the directory", "the journal"])
def test_a_user_whom_it_does_not_concern_is_told_to_use_sudo(mode: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        state = Path(name, "state")
        state.mkdir(mode=mode)
        (state / JOURNAL_NAME).touch(mode=0o600)
        _assert_told_to_use_sudo(state)


def _assert_told_to_use_sudo(state: Path) -> None:
    done = subprocess.run([sys.executable, "-c", AS_NOBODY, str(state)], capture_output=True, text=True, check=False)
    assert "run `sudo nixfleet-agent status`" in done.stdout, done.stderr


def test_a_damaged_journal_that_no_agent_has_open_is_told_with_what_to_do(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    agent.state_dir.mkdir()
    agent.journal.write_bytes(b"this is no journal, and never was one" * 100)
    done = agent.command("status")
    assert done.returncode == EXIT_NOT_RUNNING
    assert "is damaged" in done.stdout
    assert "nixfleet-agent journal begin" in done.stdout
    # What is barred here cannot be told, which is not the same as nothing.
    barred = agent.command("quarantine", "list")
    assert (barred.returncode, barred.stdout) == (1, "")


# Doing


def test_poke_has_everything_exchanged_now(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system(), poll_interval=600, heartbeat_interval=600)
    fleet.publish("c0ffee")
    with agent.running():
        agent.until_reached("intent")
        agent.until_reached("heartbeat")
        counts = {name: liar.count(name) for name in ("heartbeat", "fleet")}
        succeeded(agent.command("poke"))
        liar.until("both again", lambda: all(liar.count(name) > count for name, count in counts.items()))


def test_hangup_reads_the_health_checks_again(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    with agent.running():
        agent.until_status("a result", lambda said: said["probes"][0]["status"] == "pass")
        agent.write_checks(
            {"other": {"kind": "command", "command": "true"}, "broken": {"kind": "exec", "command": ["false"]}}
        )
        agent.send(signal.SIGHUP)
        said = agent.until_status("the other probes", lambda said: len(said["probes"]) == 2)
        assert {probe["name"] for probe in said["probes"]} == {"other", "broken"}
        agent.until_status(
            "their results",
            lambda said: {p["name"]: p["status"] for p in said["probes"]} == {"other": "pass", "broken": "fail"},
        )
        # A file with a mistake changes nothing, and says what is wrong.
        agent.checks.write_text('{"other": {"kind": "telepathy"}}')
        agent.send(signal.SIGHUP)
        assert "telepathy" in str(agent.until_logged("the health checks were not reloaded")["problems"])
        assert len(agent.until_ready()["probes"]) == 2


def test_a_dry_run_shows_what_a_switch_would_do_and_changes_nothing(fleet: AgentFleet, liar: Liar) -> None:
    first, good = fleet.system(), fleet.system()
    agent = fleet.agent("web1", liar.url, running=first, dry_run=True)
    with agent.running():
        rollout = send(agent, liar, good)
        said = agent.until_settled(rollout, "Failed")
    assert said["rollout"]["failure"].startswith("dry run: would switch")
    assert "would restart example.service" in said["rollout"]["failure"]
    assert said["quarantine"] == []
    assert agent.host.runs() == [f"dry-activate {good}"]
    assert agent.current() == first
    assert liar.facts[rollout][1]["switchMethod"] == "dry-run"


# run-once


def once(agent: Agent, *words: str) -> int:
    done = agent.command("run-once", "--timeout", "30", *words)
    assert "Traceback" not in done.stderr
    return done.returncode


def test_run_once_with_nothing_to_do_is_0(fleet: AgentFleet, liar: Liar) -> None:
    fleet.publish("c0ffee")
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    assert once(agent) == 0


def test_run_once_sees_a_rollout_through_and_tells_everything_before_it_ends(fleet: AgentFleet, liar: Liar) -> None:
    good = fleet.system()
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    rollout = send(agent, liar, good)
    assert once(agent) == 0
    assert agent.switches() == [good]
    assert liar.told(rollout)[-1] == "Converged"


def test_run_once_that_rolled_back_is_3_and_one_that_failed_is_4(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    rollout = send(agent, liar, fleet.system("units-fail"))
    assert once(agent) == 3
    assert liar.told(rollout)[-1] == "RollbackComplete"
    rollout = send(agent, liar, fleet.system(signed=False))
    assert once(agent) == 4
    assert liar.told(rollout)[-1] == "ActivationFailed"


def test_run_once_that_is_not_over_in_time_is_6_and_the_next_one_goes_on(fleet: AgentFleet, liar: Liar) -> None:
    good = fleet.system("waits")
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    rollout = send(agent, liar, good)
    assert once(agent, "--timeout", "2") == 6
    assert agent.host.note(".waiting").exists()
    agent.host.note(".go").touch()
    assert once(agent) == 0
    assert agent.switches() == [good]
    assert liar.told(rollout)[-1] == "Converged"


def test_run_once_that_is_told_to_stop_is_6(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    send(agent, liar, fleet.system("waits"))
    words = [sys.executable, "-m", "nixfleet_agent", *agent.words("run-once")]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, env=agent.environment()) as process:
        try:
            liar.until("the switch", agent.host.note(".waiting").exists)
            process.terminate()
            assert process.wait(PATIENCE_S) == 6
        finally:
            process.kill()
    agent.host.note(".go").touch()


def test_run_once_without_a_control_plane_is_6_and_with_a_journal_it_cannot_use_1(fleet: AgentFleet) -> None:
    agent = fleet.agent("web1", "https://127.0.0.1:1", running=fleet.system())
    assert once(agent, "--timeout", "1") == 6
    agent.journal.write_bytes(b"not a journal")
    assert once(agent) == 1
    assert once(agent, "--help") == 0


# check-config


def test_a_good_configuration_is_called_good(fleet: AgentFleet) -> None:
    agent = fleet.agent("web1", "https://127.0.0.1:1", running=fleet.system())
    assert succeeded(agent.command("check-config")) == "the configuration is good\n"
    assert json.loads(succeeded(agent.command("check-config", "--json"))) == {"ok": True, "problems": []}
    assert not agent.state_dir.exists(), "looking has no side effects"


def test_everything_that_is_wrong_is_told_at_once(fleet: AgentFleet, tmp_path: Path) -> None:
    agent = fleet.agent("web1", "https://127.0.0.1:1", running=fleet.system())
    agent.host_key.unlink()
    agent.checks.write_text('{"a": {"kind": "telepathy"}, "b": {"kind": "http"}}')
    fleet.path("trust.json").write_text("{}")
    state_dir = tmp_path / "a-file"
    state_dir.write_text("")
    done = agent.command("check-config", "--json", state_dir=state_dir, poll_interval="soon", metrics_port=99999)
    assert done.returncode == 2
    problems = json.loads(done.stdout)["problems"]
    for word in (
        "--poll-interval",
        "--metrics-port",
        str(agent.host_key),
        "trust.json",
        "telepathy",
        "$.b",
        "--state-dir",
    ):
        assert any(word in problem for problem in problems), word
    text = agent.command("check-config", state_dir=state_dir, poll_interval="soon", metrics_port=99999)
    assert text.stderr.splitlines() == problems
    assert text.stdout == f"{len(problems)} problem(s)\n"


def test_a_host_that_could_not_enrol_is_told_before_it_tries(fleet: AgentFleet) -> None:
    agent = fleet.agent("web1", "https://127.0.0.1:1", enrolled=False)
    done = agent.command("check-config")
    assert done.returncode == 2
    assert "mint one with `nixfleet mint-token`" in done.stderr
    done = agent.command("check-config", bootstrap_token_file=None)
    assert "no --bootstrap-token-file to enrol with" in done.stderr


def test_a_certificate_for_another_key_is_found(fleet: AgentFleet) -> None:
    agent = fleet.agent("web1", "https://127.0.0.1:1")
    agent.host_key.unlink()
    generate_host_key().write_openssh(agent.host_key)
    done = agent.command("check-config")
    assert done.returncode == 2
    assert "does not belong to the client key" in done.stderr
    assert closure("x") not in done.stderr
