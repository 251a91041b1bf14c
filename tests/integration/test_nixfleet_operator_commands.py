"""The operator's commands against a real control plane: keys, release, enrolment, status, trace, rollback, refusals."""

import json
import os
import pty
import re
import select
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from evidence.host_key import HostKey, generate_host_key
from state_machine.values import HostName
from tests.cplab import Lab, Puppet, Running, closure, eventually
from wire.endpoints import ENROLL


def nixfleet(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does: a process of its own, settings from the environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NIXFLEET_")}
    return subprocess.run(
        [sys.executable, "-m", "nixfleet", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**clean, "XDG_CONFIG_HOME": "/nonexistent", **environment},
    )


def as_operator(cp: Running, identity: str = "operator") -> dict[str, str]:
    """The settings of an operator of the lab."""
    return {
        "NIXFLEET_CONTROL_PLANE_URL": cp.url,
        "NIXFLEET_CA_CERT": str(cp.lab.path("ca.pem")),
        "NIXFLEET_CLIENT_CERT": str(cp.lab.path(f"{identity}.pem")),
        "NIXFLEET_CLIENT_KEY": str(cp.lab.path(f"{identity}-key.pem")),
    }


def told(cp: Running, *arguments: str) -> Any:
    """What a command says with --json."""
    done = nixfleet(*arguments, "--json", **as_operator(cp))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def cp(tmp_path: Path) -> Iterator[Running]:
    """A control plane with a release of two waves in force."""
    lab = Lab(tmp_path)
    lab.publish("c0ffee", waves=(("web1",), ("web2", "web3")))
    with lab.start() as running:
        yield running


def taken(agent: Puppet) -> dict[str, Any]:
    dispatch = agent.dispatch(wait=10)
    assert dispatch is not None
    return dispatch


# A fleet made by this command line from nothing


def write_description(path: Path, keys: dict[str, HostKey], version: int) -> None:
    hosts = {
        name: {
            "system": "x86_64-linux",
            "channel": "stable",
            "closure": f"/nix/store/{closure(f'{name}-{version}')}",
            "pubkey": key.openssh_public,
        }
        for name, key in keys.items()
    }
    policy = {"strategy": "all-at-once"}
    channel = {"rolloutPolicy": "quick", "freshnessWindow": 120}
    document = {"hosts": hosts, "channels": {"stable": channel}, "rolloutPolicies": {"quick": policy}}
    path.write_text(json.dumps(document))


def test_a_fleet_from_nothing_keys_release_token_enrolment_status_revocation(tmp_path: Path) -> None:
    keys, lab = tmp_path / "keys", Lab(tmp_path / "lab", hosts=("web1",))
    web1 = lab.keys[HostName("web1")]
    settings = {
        "NIXFLEET_CI_KEY": str(keys / "ci-release.pem"),
        "NIXFLEET_ORG_ROOT_KEY": str(keys / "org-root.pem"),
        "NIXFLEET_TRUST_FILE": str(keys / "trust.json"),
        "NIXFLEET_RELEASES_DIR": str(tmp_path / "releases"),
        "NIXFLEET_CA_CERT": str(keys / "ca.pem"),
        "NIXFLEET_CLIENT_CERT": str(keys / "operator.pem"),
        "NIXFLEET_CLIENT_KEY": str(keys / "operator-key.pem"),
    }
    assert nixfleet("keygen", "--out", str(keys)).returncode == 0
    write_description(tmp_path / "fleet.json", {"web1": web1}, 1)
    assert nixfleet("release", str(tmp_path / "fleet.json"), "--commit", "c0ffee", **settings).returncode == 0
    (tmp_path / "web1.pub").write_text(web1.openssh_public)
    minted = nixfleet("mint-token", "--hostname", "web1", "--pubkey", str(tmp_path / "web1.pub"), **settings)
    assert minted.returncode == 0, minted.stderr
    flags = {
        "tls_cert": keys / "control-plane.pem",
        "tls_key": keys / "control-plane-key.pem",
        "client_ca": keys / "ca.pem",
        "trust_file": keys / "trust.json",
        "artifacts": tmp_path / "releases",
        "fleet_ca_cert": keys / "ca.pem",
        "fleet_ca_key": keys / "ca-key.pem",
    }
    with lab.start(**flags) as cp:
        settings["NIXFLEET_CONTROL_PLANE_URL"] = cp.url
        request = {"token": json.loads(minted.stdout), "csrPem": lab.csr("web1")}
        enrolled = httpx.post(f"{cp.url}{ENROLL}", json=request, verify=_trusting(keys / "ca.pem"))
        assert enrolled.status_code == 200, enrolled.text
        again = httpx.post(f"{cp.url}{ENROLL}", json=request, verify=_trusting(keys / "ca.pem"))
        assert again.status_code == 409
        lab.path("web1.pem").write_text(enrolled.json()["certPem"])
        lab.path("ca.pem").write_bytes((keys / "ca.pem").read_bytes())
        agent = cp.agent("web1")
        agent.converge(taken(agent))
        shown = nixfleet("status", **settings)
        assert shown.stdout.startswith("1 host: 1 converged"), shown.stderr
        time.sleep(1.1)  # a certificate counts whole seconds; the revocation must lie in a later one
        assert nixfleet("revoke", "web1", "--reason", "lost", **settings).returncode == 0
        eventually(lambda: agent.heartbeat().status_code == 401, what="the revocation")


def _trusting(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)


def test_a_second_release_of_the_same_intent_opens_no_rollout(tmp_path: Path) -> None:
    keys = {"web1": generate_host_key()}
    settings = {
        "NIXFLEET_CI_KEY": str(tmp_path / "keys" / "ci-release.pem"),
        "NIXFLEET_RELEASES_DIR": str(tmp_path / "r"),
    }
    assert nixfleet("keygen", "--out", str(tmp_path / "keys")).returncode == 0
    write_description(tmp_path / "fleet.json", keys, 1)
    for commit in ("c0ffee", "decade"):
        done = nixfleet("release", str(tmp_path / "fleet.json"), "--commit", commit, **settings)
        assert done.returncode == 0
    assert "no new rollouts open" in done.stderr
    assert [path.name for path in (tmp_path / "r" / "rollouts").glob("*.json")] == ["stable@c0ffee.json"]


# What operators read


def test_status_tells_where_every_host_stands(cp: Running) -> None:
    first = cp.agent("web1")
    first.activate(taken(first))
    first.heartbeat(current_closure=closure("web1-c0ffee"), agent_version="0.1.0", health={"pass": 1})
    shown = nixfleet("status", **as_operator(cp)).stdout.splitlines()
    assert shown[0].startswith("3 hosts: 2 pending, 1 soaking (control plane ")
    assert shown[1].split() == ["HOST", "CHANNEL", "STATE", "ROLLOUT", "RUNS", "SEEN", "PROBES", "NOTE"]
    row = re.split(r"\s{2,}", shown[2])
    assert row[:4] == ["web1", "stable", "Soaking", "stable@c0ffee"]
    assert row[4].endswith("-nixos-system-web1-c0ffee")
    assert row[6] == "1 pass"
    assert {host["hostname"]: host["rolloutState"] for host in told(cp, "status")["hosts"]} == {
        "web1": "Soaking",
        "web2": "Pending",
        "web3": "Pending",
    }


def test_a_trace_tells_a_rollout_host_by_host_with_durations(cp: Running) -> None:
    first = cp.agent("web1")
    first.converge(taken(first))
    trace = told(cp, "rollout", "trace", "stable@c0ffee")
    assert [host["host"] for host in trace["hosts"]] == ["web1", "web2", "web3"]
    kinds = [step["kind"] for step in trace["hosts"][0]["steps"]]
    assert kinds[:2] == ["DispatchQueued", "DispatchSent"]
    assert kinds[2:] == [
        "DispatchAck",
        "ActivationStarted",
        "ActivationCompleted",
        "ProbeTopologyDeclared",
        "ProbeObservedFirst",
        "ProbeResult",
        "Converged",
    ]
    assert trace["hosts"][0]["steps"][0]["afterMs"] is None
    assert all(isinstance(step["afterMs"], int) for step in trace["hosts"][0]["steps"][1:])
    text = nixfleet("rollout", "trace", "stable@c0ffee", "--host", "web1", **as_operator(cp)).stdout
    assert "web1 wave 0 Converged in " in text
    assert re.search(r"\d\d:\d\d:\d\d\.\d{3} .*\+0 ms  switch started \(detached\)", text)
    assert "web2" not in text


def test_a_held_host_says_why(cp: Running) -> None:
    text = nixfleet("rollout", "trace", "stable@c0ffee", **as_operator(cp)).stdout
    assert "held: wave-promotion: wave 1 waits for wave 0" in text


def test_rollouts_hosts_and_machines_are_listed(cp: Running) -> None:
    assert [row["rolloutId"] for row in told(cp, "rollout", "list")["rollouts"]] == ["stable@c0ffee"]
    assert nixfleet("rollout", "list", **as_operator(cp)).stdout.splitlines()[1].split()[0] == "stable@c0ffee"
    assert len(told(cp, "hosts")["hosts"]) == 3
    registered = nixfleet("machines", "register", "web9", "--note", "rack 3", **as_operator(cp))
    assert registered.stdout == "web9 is registered\n"
    assert "the fleet does not declare web9 yet" in registered.stderr
    machines = nixfleet("machines", "list", **as_operator(cp)).stdout.splitlines()
    assert re.split(r"\s{2,}", machines[-1])[:2] == ["web9", "not declared"]
    assert nixfleet("machines", "register", "../x", **as_operator(cp)).returncode == 2


def test_a_rollback_is_asked_for_and_a_quarantine_is_lifted(cp: Running) -> None:
    first = cp.agent("web1")
    first.activate(taken(first))
    asked = told(cp, "rollout", "rollback", "stable@c0ffee", "--reason", "too hot")
    assert (asked["hosts"], sorted(asked["passed_over"])) == (["web1"], ["web2", "web3"])
    wish = taken(first)
    assert (wish["kind"], wish["reason"]) == ("rollback", "too hot")
    assert nixfleet("quarantine", "list", **as_operator(cp)).stdout == "nothing is quarantined\n"
    cleared = nixfleet("quarantine", "clear", "--host", "web1", **as_operator(cp))
    assert (cleared.returncode, cleared.stdout) == (0, "cleared: 0\n")


def test_watching_in_a_pipe_writes_when_something_changes_and_ends_with_130(cp: Running) -> None:
    environment = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent", **as_operator(cp), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "nixfleet", "status", "--watch", "--interval", "1s", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            states = [_states(process.stdout.readline())]
            first = cp.agent("web1")
            first.activate(taken(first))
            states.append(_states(process.stdout.readline()))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=10)
        finally:
            process.kill()
    assert [state["web1"] for state in states] == ["Pending", "Soaking"]
    assert (process.returncode, err.strip()) == (130, "")


def test_watching_on_a_terminal_outlives_the_control_plane_and_ends_with_130(cp: Running) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "XDG_CONFIG_HOME": "/nonexistent", "TERM": "xterm", **as_operator(cp)}
    process = subprocess.Popen(
        [sys.executable, "-m", "nixfleet", "status", "--watch", "--interval", "1s"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment,
        start_new_session=True,
    )
    os.close(follower)
    _read_until(leader, "3 hosts: 3 pending")
    cp.kill()
    _read_until(leader, "cannot be reached")
    process.send_signal(signal.SIGINT)
    # The last page is left for the screen that was there before.
    _read_until(leader, "\x1b[?1049l")
    assert process.wait(10) == 130
    os.close(leader)


def _read_until(screen: int, text: str) -> None:
    shown, deadline = "", time.monotonic() + 20
    while text not in shown:
        ready, _, _ = select.select([screen], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"{text!r} was never shown: {shown[-500:]!r}"
        shown += os.read(screen, 65536).decode(errors="replace")


def _states(line: str) -> dict[str, str]:
    return {host["hostname"]: host["rolloutState"] for host in json.loads(line)["hosts"]}


# What goes wrong


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"NIXFLEET_CONTROL_PLANE_URL": "https://127.0.0.1:1"}, 1, "cannot be reached: connection refused"),
        ({"NIXFLEET_CONTROL_PLANE_URL": "http://127.0.0.1:1"}, 2, "is not an https:// URL"),
        ({"NIXFLEET_CA_CERT": "other-ca.pem"}, 1, "its certificate does not verify under --ca-cert"),
        ({"NIXFLEET_CA_CERT": "nowhere.pem"}, 2, "No such file or directory"),
        ({"NIXFLEET_CA_CERT": "trust.json"}, 2, "holds no PEM certificate"),
        ({"NIXFLEET_CLIENT_KEY": "web1-key.pem"}, 2, "is no PEM certificate that belongs to the key"),
        ({"NIXFLEET_CLIENT_CERT": ""}, 2, "the operator certificate is not set: give --client-cert"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_connection_that_cannot_be_made_says_what_to_change(
    cp: Running, change: dict[str, str], status: int, said: str
) -> None:
    other = Lab(cp.lab.root / "other", hosts=())
    cp.lab.path("other-ca.pem").write_bytes(other.path("ca.pem").read_bytes())
    named = {
        name: str(cp.lab.path(value)) if value.endswith((".pem", ".json")) else value for name, value in change.items()
    }
    done = nixfleet("status", **{**as_operator(cp), **named})
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_another_name_than_the_certificates_is_refused(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.publish()
    with lab.start(listen="127.0.0.2:0") as cp:
        done = nixfleet("status", **as_operator(cp))
    assert done.returncode == 1
    assert "its certificate does not verify under --ca-cert (IP address mismatch" in done.stderr


def test_a_hosts_certificate_opens_no_operator_command(cp: Running) -> None:
    done = nixfleet("rollout", "list", **as_operator(cp, "web1"))
    assert done.returncode == 1
    assert "403" in done.stderr
    assert "an operator certificate (OU=operator) is needed" in done.stderr


@pytest.mark.parametrize("arguments", [["trace", "stable@ffff"], ["rollback", "stable@ffff", "--reason", "x"]])
def test_a_rollout_nobody_knows_is_said_to_be_unknown(cp: Running, arguments: list[str]) -> None:
    done = nixfleet("rollout", *arguments, **as_operator(cp))
    assert (done.returncode, "404: nothing is known of this rollout" in done.stderr) == (1, True)


def test_text_that_is_no_rollout_id_never_becomes_a_url(cp: Running) -> None:
    done = nixfleet("rollout", "trace", "../hosts", **as_operator(cp))
    assert (done.returncode, "is not a rollout id" in done.stderr) == (2, True)
