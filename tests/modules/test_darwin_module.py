"""What the module makes of a Mac: a launchd job, its files, and what an activation does before and after.

The shell texts are run as they are rendered, with the system's commands replaced by scripts that record their calls.
"""

import functools
import json
import os
import plistlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from messaging.server import Server
from nixfleet_agent.config import read_config
from nixfleet_agent.options import read_plain
from nixfleet_agent.probes.declaration import read_health_checks
from nixfleet_agent.probes.kinds import LaunchdProbe
from nixfleet_agent.windows import parse_window
from state_machine.values import Source
from tests.modules.evaluation import DARWIN, DarwinEvaluated, evaluate_darwin, needs_nix, option_docs

pytestmark = needs_nix

LABEL = "com.nixfleet.agent"
RUN = "/var/run/nixfleet-agent"
CHECKS = "/etc/nixfleet/agent/health-checks.json"
CONFIG = """
{
  networking.hostName = "mac1";
  services.nixfleet-agent = {
    enable = true;
    controlPlaneUrl = "https://cp.example.org:8080";
    %s
  };
}
"""
FULL = """
    tls.caCert = "/etc/nixfleet/agent/ca.pem";
    bootstrapTokenFile = "/var/root/token.json";
    tags = [ "laptop" "it's \\"quoted\\" & <odd>" ];
    cacheUrl = "https://cache.example.org";
    extraArgs = [ "--log-format=human" ];
    trust.ciReleaseKey.current = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    healthChecks = {
      tailscale = { kind = "launchd"; labels = [ "com.tailscale.tailscaled" ]; };
      web = { kind = "http"; url = "http://127.0.0.1/"; mode = "observe"; };
    };
"""


@functools.cache
def mac(more: str = FULL) -> DarwinEvaluated:
    return evaluate_darwin(CONFIG % more, modules=DARWIN)


def arguments(more: str = FULL) -> Sequence[str]:
    words: Sequence[str] = mac(more).daemons[LABEL]["ProgramArguments"]
    return words


# --- the job --------------------------------------------------------------------------------------------------------


def test_launchd_keeps_the_agent_running_and_waits_between_starts() -> None:
    job = mac().daemons[LABEL]
    assert (job["Label"], job["RunAtLoad"], job["KeepAlive"]) == (LABEL, True, True)
    assert (job["ThrottleInterval"], job["ExitTimeOut"]) == (10, 10)
    assert (job["WorkingDirectory"], job["Umask"]) == ("/var/lib/nixfleet", 0o077)
    assert job["StandardOutPath"] == job["StandardErrorPath"] == "/var/log/nixfleet-agent.log"
    assert job["AbandonProcessGroup"] is False, "what a health check left behind ends with the agent"


def test_the_environment_has_what_a_daemon_of_launchd_lacks() -> None:
    environment = mac().daemons[LABEL]["EnvironmentVariables"]
    assert environment["HOME"] == "/var/root"
    assert environment["XDG_CACHE_HOME"] == "/var/lib/nixfleet/.cache"
    path = environment["PATH"].split(":")
    assert path[:2] == ["/nix/var/nix/profiles/default/bin", "/run/current-system/sw/bin"]
    assert {"/usr/bin", "/bin", "/usr/sbin", "/sbin"} == set(path[2:])


def test_the_job_survives_its_way_through_a_property_list() -> None:
    job = dict(mac().daemons[LABEL])
    assert plistlib.loads(plistlib.dumps(job)) == job


def test_the_agent_understands_the_flags_as_they_were_meant() -> None:
    raw = read_plain(arguments()[5:])
    assert raw is not None
    config = read_config(raw)
    assert (config.machine_id, config.control_plane_url) == ("mac1", "https://cp.example.org:8080")
    assert config.tags == ("laptop", 'it\'s "quoted" & <odd>')
    assert config.cache_urls == ("https://cache.example.org",)
    assert config.switch_lock == Path(f"{RUN}/switch.lock")
    assert config.bootstrap_token_file == Path("/var/root/token.json")
    assert config.health_checks_config == Path(CHECKS)
    assert config.log_format == "human", "extraArgs come last, and the last counts"


GRADIENT = """
    source = "gradient";
    gradient = {
      server = "https://gradient.example.org";
      project = "my-org/my-project";
      apiKeyFile = "/var/root/gradient api-key";
    };
    soak = 120;
    activationWindows = [ "Mon-Fri 12:00-13:00 Europe/Berlin" ];
    hooksDir = "/etc/nixfleet/hooks";
    nats = { url = "tls://nats.example.org"; nkeyFile = "/var/root/nats nkey"; };
"""


def test_a_mac_can_follow_another_source_at_certain_hours_with_hooks() -> None:
    without = CONFIG.replace('controlPlaneUrl = "https://cp.example.org:8080";', "")
    seen = evaluate_darwin(without % GRADIENT, modules=DARWIN)
    assert not seen.assertions
    raw = read_plain(seen.daemons[LABEL]["ProgramArguments"][5:])
    assert raw is not None
    config = read_config(raw)
    assert (config.source, config.gradient_server) == (Source.GRADIENT, "https://gradient.example.org")
    assert config.gradient_api_key_file == Path("/var/root/gradient api-key")
    assert (config.soak, config.hooks_dir, config.client_cert) == (120, Path("/etc/nixfleet/hooks"), None)
    assert config.nats == Server(url="tls://nats.example.org", nkey_file=Path("/var/root/nats nkey"))
    assert config.activation_windows == (parse_window("Mon-Fri 12:00-13:00 Europe/Berlin"),)


@pytest.mark.parametrize("option", ["reboot", "rebootWindows", "sessionLocks", "deferFor"])
def test_what_only_linux_does_is_no_option_of_a_mac(option: str) -> None:
    names = {one.name for one in option_docs("darwin", DARWIN)}
    assert f"services.nixfleet-agent.{option}" not in names
    assert "services.nixfleet-agent.activationWindows" in names


def test_without_options_the_defaults_are_those_of_nixos() -> None:
    raw = read_plain(arguments("")[5:])
    assert raw is not None
    config = read_config(raw)
    assert (config.state_dir, config.client_cert) == (
        Path("/var/lib/nixfleet-agent"),
        Path("/var/lib/nixfleet/agent-cert.pem"),
    )
    assert config.health_checks_config is None
    assert CHECKS.removeprefix("/etc/") not in mac("").etc


def test_a_person_at_the_host_has_the_program() -> None:
    assert "nixfleet-agent" in mac().system_packages


def test_nothing_is_there_until_it_is_enabled() -> None:
    seen = evaluate_darwin("{ }", modules=DARWIN)
    assert (seen.daemons, dict(seen.etc), seen.assertions) == ({}, {}, [])
    assert set(seen.activation.values()) == {""}


# --- the files ------------------------------------------------------------------------------------------------------


def test_the_agent_reads_the_rendered_health_checks_with_launchd_in_them() -> None:
    text = mac().etc["nixfleet/agent/health-checks.json"].text
    assert text is not None
    probes = {probe.name: probe for probe in read_health_checks(text.encode(), platform="darwin")}
    assert isinstance(probes["tailscale"], LaunchdProbe)
    assert probes["tailscale"].labels == ("com.tailscale.tailscaled",)
    assert set(probes) == {"tailscale", "web"}


def test_the_trusted_keys_are_rendered() -> None:
    text = mac().etc["nixfleet/agent/trust.json"].text
    assert text is not None
    key = json.loads(text)["ciReleaseKey"]["current"]
    assert key == {"algorithm": "ed25519", "public": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="}


def test_the_log_is_rotated_and_the_agent_told_by_the_number_that_its_start_writes_down() -> None:
    text = mac().etc["newsyslog.d/nixfleet-agent.conf"].text
    assert text is not None
    [line] = [line for line in text.splitlines() if line and not line.startswith("#")]
    log, owner, mode, count, size_kb, when, flags, pid_file, signal_number = line.split()
    assert log == mac().daemons[LABEL]["StandardErrorPath"]
    assert (owner, mode, count, size_kb, when, flags) == ("root:wheel", "640", "7", "10240", "*", "J")
    assert (pid_file, signal_number) == (f"{RUN}/pid", "15")


# --- what cannot work -----------------------------------------------------------------------------------------------


def test_a_check_that_only_linux_has_is_refused_by_name() -> None:
    seen = mac('healthChecks.units = { kind = "systemd"; units = [ "a.service" ]; };')
    assert any("systemd" in message for message in seen.assertions), seen.assertions


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('tls.clientKey = "${builtins.storeDir}/secret";', "is in the Nix store"),
        ("pollInterval = 1;", "the shortest interval is 5 seconds"),
        ('machineId = "";', "machineId is empty"),
    ],
)
def test_the_assertions_are_those_of_nixos(more: str, said: str) -> None:
    seen = mac(more)
    assert any(said in message for message in seen.assertions), seen.assertions


def test_a_good_configuration_has_no_complaint() -> None:
    assert (mac().assertions, mac().warnings, mac("").assertions) == ([], [], [])


# --- the shell texts, run -------------------------------------------------------------------------------------------


class Machine:
    """A directory in the place of `/`, and commands that write down how they were called."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.calls = root, root / "recorders", root / "calls"
        self.bin.mkdir()
        for name in ("launchctl", "wait4path", "install", "sleep", "agent"):
            self.does(name, "exit 0")
        for directory in (RUN, "/etc/nixfleet/agent", "/var/lib"):
            (root / directory[1:]).mkdir(parents=True)

    def does(self, name: str, what: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.calls}\n{what}\n')
        path.chmod(0o755)

    def here(self, text: str) -> str:
        """The text with this directory in front of every place it names, and the recorders for what they replace."""
        for program in ("/bin/launchctl", "/bin/wait4path"):
            text = text.replace(program, str(self.bin / program.removeprefix("/bin/")))
        for place in ("/var/", "/etc/"):
            text = text.replace(f" {place}", f" {self.root}{place}")
        return text

    def run(self, text: str, *words: str, shell: Sequence[str] = ("bash", "-eu", "-o", "pipefail", "-c")) -> str:
        environment = {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        done = subprocess.run(
            [*shell, self.here(text), *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def start(machine: Machine, *flags: str) -> None:
    shell, dash_c, script, name = arguments()[:4]
    assert (shell, dash_c, name) == ("/bin/sh", "-c", "nixfleet-agent")
    machine.run(script, name, str(machine.bin / "agent"), *flags, shell=(shell, dash_c))


def test_the_start_waits_for_the_store_and_not_for_a_length_of_time(machine: Machine) -> None:
    start(machine, "--flag=a b", "--other=$HOME;`x`")
    assert machine.called() == ["wait4path /nix/store", "agent --flag=a b --other=$HOME;`x`"]


def test_the_start_writes_down_its_number_which_is_then_the_agents(machine: Machine) -> None:
    machine.does("agent", f"echo $$ > {machine.root}/agents-number")
    start(machine)
    assert (machine.root / RUN[1:] / "pid").read_text() == (machine.root / "agents-number").read_text()


def test_the_start_makes_its_directory_which_a_boot_takes_away(machine: Machine) -> None:
    shutil.rmtree(machine.root / RUN[1:])
    start(machine)
    assert (machine.root / RUN[1:] / "pid").exists()


def test_no_flag_is_read_by_a_shell() -> None:
    words = arguments()
    assert [word for word in words if "quoted" in word] == ['--tag=it\'s "quoted" & <odd>']
    assert "quoted" not in words[2]


def test_an_activation_makes_the_closed_directories_before_the_job_is_loaded(machine: Machine) -> None:
    machine.run(mac().activation["preActivation"])
    assert machine.called() == [
        f"install -d -m 0700 -o root -g wheel {machine.root}/var/lib/nixfleet",
        f"install -d -m 0700 -o root -g wheel {machine.root}/var/lib/nixfleet-agent",
    ]


def test_somebody_elses_directory_of_the_certificate_keeps_its_mode(machine: Machine) -> None:
    text = mac('tls.clientCert = "/var/certificates/agent.pem";').activation["preActivation"]
    machine.run(text)
    assert machine.called()[-1] == f"install -d -m 0700 -o root -g wheel {machine.root}/var/certificates"
    (machine.root / "var/certificates").mkdir()
    machine.calls.unlink()
    machine.run(text)
    assert not any("certificates" in call for call in machine.called())


def after(machine: Machine, *, now: str, started_with: str | None) -> str:
    (machine.root / CHECKS[1:]).write_text(now)
    if started_with is not None:
        (machine.root / RUN[1:] / "started-with").write_text(started_with)
    return machine.run(mac().activation["postActivation"])


PRINT = f"launchctl print system/{LABEL}"
KICKSTART = f"launchctl kickstart -k system/{LABEL}"


def test_an_agent_that_was_started_with_other_checks_is_started_again(machine: Machine) -> None:
    after(machine, now="new", started_with="old")
    assert machine.called() == [PRINT, KICKSTART]


@pytest.mark.parametrize("started_with", ["same", None])
def test_an_agent_that_has_the_right_checks_is_left_alone(machine: Machine, started_with: str | None) -> None:
    after(machine, now="same", started_with=started_with)
    assert machine.called() == [PRINT]


def test_what_the_start_writes_down_is_what_the_activation_compares(machine: Machine) -> None:
    (machine.root / CHECKS[1:]).write_text("checks")
    start(machine)
    assert (machine.root / RUN[1:] / "started-with").read_text() == "checks"


def test_a_job_that_launchd_did_not_take_is_loaded_again_until_it_does(machine: Machine) -> None:
    machine.does(
        "launchctl",
        f"case $1 in print) [ -e {machine.root}/loaded ] ;; bootstrap) [ $(grep -c bootstrap {machine.calls}) -ge 3 ] "
        f"&& touch {machine.root}/loaded ;; esac",
    )
    after(machine, now="same", started_with="same")
    bootstrap = f"launchctl bootstrap system /Library/LaunchDaemons/{LABEL}.plist"
    assert [call for call in machine.called() if "bootstrap" in call] == [bootstrap] * 3
    assert machine.called()[-1] == PRINT


def test_a_launchd_that_refuses_everything_is_told_of_and_the_activation_goes_on(machine: Machine) -> None:
    machine.does("launchctl", "exit 5")
    said = after(machine, now="new", started_with="old")
    assert "nixfleet-agent is not loaded; try: launchctl bootstrap" in said
    assert "nixfleet-agent was not restarted" in said


def test_without_checks_nothing_is_ever_restarted() -> None:
    assert "kickstart" not in mac("").activation["postActivation"]
    assert "started-with" not in arguments("")[2]


def test_the_shell_texts_are_such_as_a_posix_shell_can_read() -> None:
    texts: list[Any] = [arguments()[2], *mac().activation.values()]
    for text in texts:
        done = subprocess.run(["sh", "-n", "-c", text], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
