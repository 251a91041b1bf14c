"""`system.gradient-deploy`: a configuration for the stock client's module works as it is, and gains what it lacked.

The flags are read back by the agent's own parser; `gradient-update` is run as it is rendered, with systemd's commands
replaced by scripts that record their calls.
"""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import pytest

from nixfleet_agent.cli import cli
from nixfleet_agent.config import Config, read_config
from nixfleet_agent.options import read_plain
from nixfleet_agent.windows import parse_window
from state_machine.values import FailurePolicy, RebootPolicy, Source
from tests.modules import unit_file
from tests.modules.evaluation import GRADIENT_DEPLOY, NIXOS, NixosEvaluated, evaluate_nixos, needs_nix
from tests.modules.sample_hosts import GRADIENT_DEPLOY_HOST
from tests.nonsense import IS_ROOT, NOT_ROOT

pytestmark = needs_nix
SERVICE, TIMER, RESIDENT = "gradient-deploy.service", "gradient-deploy.timer", "nixfleet-agent.service"


@pytest.fixture(scope="module")
def stock() -> NixosEvaluated:
    """A host whose configuration was written for the stock client's module."""
    return evaluate_nixos(GRADIENT_DEPLOY_HOST, modules=GRADIENT_DEPLOY)


def host(more: str, extra: str = "", **packages: str) -> NixosEvaluated:
    """The least that works, with these options beside."""
    return evaluate_nixos(
        f"""{{ lib, ... }}: {{ networking.hostName = "web1"; system.gradient-deploy = {{
            enable = true; server = "https://gradient.example.org"; project = "my-org/my-project";
            apiKeyFile = "/run/secrets/key"; {more} }}; {extra} }}""",
        modules=GRADIENT_DEPLOY,
        show=["environment.systemPackages"],
        packages=packages,
    )


def command_of(seen: NixosEvaluated, unit: str = SERVICE) -> tuple[Config, Sequence[str]]:
    """The agent's configuration, and the words of its sub-command."""
    words = list(unit_file.command(seen.units[unit])[1:])
    at = words.index("run-once") if "run-once" in words else len(words)
    raw = read_plain(words[:at])
    assert raw is not None
    return read_config(raw), words[at:]


def section(seen: NixosEvaluated, name: str, unit: str = SERVICE) -> Mapping[str, Sequence[str]]:
    return unit_file.settings(seen.units[unit], name)


# An existing configuration


def test_nothing_is_there_until_it_is_enabled() -> None:
    seen = evaluate_nixos("{ }", modules=GRADIENT_DEPLOY)
    assert (dict(seen.units), dict(seen.etc), list(seen.system_packages)) == ({}, {}, [])


def test_a_configuration_for_the_stock_client_works_as_it_is(stock: NixosEvaluated) -> None:
    assert (list(stock.assertions), list(stock.warnings)) == ([], [])
    said, words = command_of(stock)
    assert (said.source, said.control_plane_url, said.client_cert) == (Source.GRADIENT, "", None)
    assert (said.gradient_server, said.gradient_project) == ("https://gradient.example.org", "my-org/my-project")
    assert (said.machine_id, said.gradient_host_name) == ("web1", "web-1")
    assert said.gradient_api_key_file == Path("/run/credentials/x/gradient-api-key")
    assert list(words) == ["run-once", "--timeout=3600"]


def test_one_round_is_what_a_timer_starts_and_makes_up_for_what_was_missed(stock: NixosEvaluated) -> None:
    timer = section(stock, "Timer", TIMER)
    assert (timer["OnCalendar"], timer["RandomizedDelaySec"]) == (["Mon..Fri 03:30"], ["45min"])
    assert timer["Persistent"] == ["true"]
    assert list(stock.wanted_by[TIMER]) == ["timers.target"]
    assert list(stock.wanted_by[SERVICE]) == [], "nothing but the timer and people start it"
    assert RESIDENT not in stock.units
    assert section(stock, "Service")["Type"] == ["oneshot"]


def test_the_defaults_are_those_of_the_stock_client() -> None:
    timer = section(host(""), "Timer", TIMER)
    assert (timer["OnCalendar"], timer["RandomizedDelaySec"]) == (["04:00"], ["0"])
    assert command_of(host(""))[0].gradient_host_name == "web1"


def test_the_switch_that_a_round_performs_does_not_touch_the_round(stock: NixosEvaluated) -> None:
    """What switch-to-configuration looks at."""
    assert section(stock, "Service")["X-RestartIfChanged"] == ["false"]
    assert section(stock, "Unit")["X-StopOnRemoval"] == ["false"]
    assert section(stock, "Service")["KillMode"] == ["mixed"]


def test_the_key_is_handed_over_by_systemd(stock: NixosEvaluated) -> None:
    assert section(stock, "Service")["LoadCredential"] == ["gradient-api-key:/run/secrets/gradient-api-key"]


def test_only_what_is_wrong_with_the_host_counts_as_a_failure_of_the_unit(stock: NixosEvaluated) -> None:
    """The numbers are those that `nixfleet-agent run-once --help` explains."""
    help_text = " ".join((cli.commands["run-once"].help or "").split())
    assert section(stock, "Service")["SuccessExitStatus"] == ["5 7 8"]
    for words in ("5 waits for a reboot", "7 the source has nothing", "8 waits for an activation window"):
        assert words in help_text


def test_the_units_are_the_ones_that_were_reviewed(stock: NixosEvaluated) -> None:
    unit_file.assert_checked_in(SERVICE, stock.units[SERVICE])
    unit_file.assert_checked_in(TIMER, stock.units[TIMER])


# What is new


NEW: Final = """
    healthChecks.web = { kind = "http"; url = "http://127.0.0.1/health"; };
    soak = 120; onFailure = "halt"; activationWindows = [ "04:00-06:00 Europe/Berlin" ]; activationDelay = 600;
    hooksDir = "/etc/nixfleet/hooks"; hookTimeout = 30;
"""


@pytest.mark.parametrize(("more", "unit"), [("", SERVICE), ("resident = true;", RESIDENT)])
def test_health_windows_and_hooks_are_set_beside_the_rest(more: str, unit: str) -> None:
    seen = host(f"{NEW} {more}")
    assert not seen.assertions
    said, _ = command_of(seen, unit)
    assert (said.soak, said.on_failure, said.hooks_dir) == (120, FailurePolicy.HALT, Path("/etc/nixfleet/hooks"))
    assert (said.activation_windows, said.activation_delay) == ((parse_window("04:00-06:00 Europe/Berlin"),), 600)
    assert said.hook_timeout == 30
    assert said.health_checks_config == Path("/etc/nixfleet/agent/health-checks.json")
    assert "http://127.0.0.1/health" in (seen.etc["nixfleet/agent/health-checks.json"].text or "")


def test_the_agent_may_stay_and_reboot_the_host_when_it_must() -> None:
    seen = host('resident = true; reboot = "when-required"; rebootWindows = [ "Sun 03:00-05:00" ];'
                'sessionLocks = [ "/run/lock" ];')  # fmt: skip
    assert not seen.assertions
    assert (SERVICE in seen.units, TIMER in seen.units) == (False, False)
    assert list(seen.wanted_by[RESIDENT]) == ["multi-user.target"]
    said, _ = command_of(seen, RESIDENT)
    assert (said.reboot, said.reboot_windows) == (RebootPolicy.WHEN_REQUIRED, (parse_window("Sun 03:00-05:00"),))
    assert (said.session_locks, said.poll_interval) == ((Path("/run/lock"),), 900)


def test_what_only_the_agent_s_own_options_say_counts_too() -> None:
    extra = 'services.nixfleet-agent = { stateDir = "/persist/agent"; extraArgs = [ "--switch-timeout=900" ]; };'
    seen = host("", extra)
    assert not seen.assertions
    said, words = command_of(seen)
    assert (said.state_dir, said.switch_timeout) == (Path("/persist/agent"), 900)
    assert words[0] == "run-once", "the sub-command comes last"


WRONG: Final[Mapping[str, str]] = {
    "server = lib.mkForce null;": "system.gradient-deploy.server is missing",
    "project = lib.mkForce null;": "system.gradient-deploy.project is missing",
    'apiKeyFile = lib.mkForce "";': "system.gradient-deploy.apiKeyFile is missing",
    'apiKeyFile = lib.mkForce "/nix/store/key";': "apiKeyFile is in the Nix store",
    'server = lib.mkForce "http://gradient.example.org";': "http is refused",
    'reboot = "when-required";': "somebody has to be there after the boot",
    "soak = -1;": "soak is -1",
    "timeoutSecs = 0;": "timeoutSecs is 0: it must be from 1 to",
    'activationWindows = [ "at night" ];': '"at night" is no window',
}


@pytest.mark.parametrize("more", WRONG)
def test_what_cannot_work_is_told_before_it_is_built(more: str) -> None:
    # A name that is given twice is an error of the language; the module system has its own way to say it.
    name, _, value = more.partition(" = ")
    seen = host("", f"imports = [ {{ system.gradient-deploy.{name} = {value} }} ];")
    assert any(WRONG[more] in sentence for sentence in seen.assertions), seen.assertions


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("services.nixfleet-agent.enable = true;", "both would switch this host: set system.gradient-deploy.resident"),
        ('services.nixfleet-agent.source = "fleet";', "a host follows one source"),
    ],
)
def test_a_host_follows_one_source(extra: str, said: str) -> None:
    seen = host("", extra)
    assert any(said in sentence for sentence in seen.assertions), seen.assertions


def test_the_module_is_not_in_the_default_as_the_stock_one_may_be_there_too() -> None:
    stock_module = (
        """{ lib, ... }: { options.system.gradient-deploy.enable = lib.mkEnableOption "the stock client"; }"""
    )
    seen = evaluate_nixos("{ }", modules=NIXOS, extra=stock_module)
    assert not seen.assertions


# gradient-update


@attrs.frozen(kw_only=True)
class Ran:
    """How `gradient-update` ended, and what it called."""

    status: int
    out: str
    err: str
    calls: Sequence[str]


Update = Callable[..., Ran]
COMMANDS: Final = {
    "systemctl": 'case "$1" in show) echo ${STATUS:-0};; start) exit ${STARTED:-0};; esac',
    "journalctl": "echo the log; exec sleep 60",
    "nixfleet-agent": "exit ${POKED:-0}",
    "sleep": "exit 0",
    "id": "echo ${WHO:-0}",
}


@pytest.fixture
def update(tmp_path: Path) -> Update:
    """Runs the rendered command on a machine whose programs only record how they were called."""
    (tmp_path / "bin").mkdir()
    for name, script in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{script}\n')
        path.chmod(0o755)

    def run(more: str = "", **environment: str) -> Ran:
        here = {name: str(tmp_path) for name in ("systemd", "coreutils", "nixfleet-agent")}
        seen = host(more, **here)
        script = seen.files[seen.values["environment.systemPackages"][-1]]
        path = tmp_path / "gradient-update"
        path.write_text(script.replace(script.splitlines()[0], "#!/bin/sh"))
        done = subprocess.run(
            ["/bin/sh", path],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        calls = (tmp_path / "calls").read_text().splitlines()
        return Ran(status=done.returncode, out=done.stdout, err=done.stderr, calls=calls)

    return run


def test_a_person_starts_a_round_and_sees_its_log(update: Update) -> None:
    done = update()
    assert (done.status, done.err) == (0, "")
    assert "the log" in done.out
    assert "systemctl start gradient-deploy.service" in done.calls
    assert "journalctl --follow --lines=0 --output=cat --unit=gradient-deploy.service" in done.calls


@pytest.mark.parametrize(
    ("environment", "status"),
    [
        ({"STATUS": "3", "STARTED": "1"}, 3),
        ({"STATUS": "5", "STARTED": "0"}, 5),
        ({"STATUS": "0", "STARTED": "5"}, 5),
        ({"STATUS": "", "STARTED": "1"}, 1),
    ],
)
def test_the_exit_status_is_that_of_the_round(update: Update, environment: dict[str, str], status: int) -> None:
    assert update(**environment).status == status


def test_an_agent_that_stays_is_told_to_look_now(update: Update) -> None:
    done = update("resident = true;", POKED="1")
    assert done.status == 1
    assert "nixfleet-agent --state-dir=/var/lib/nixfleet-agent poke" in done.calls
    assert not any("systemctl" in call for call in done.calls)


@pytest.mark.skipif(not IS_ROOT, reason=NOT_ROOT)
def test_who_is_not_root_is_told_how(update: Update) -> None:
    done = update(WHO="1000")
    assert (done.status, done.out) == (1, "")
    assert "sudo gradient-update" in done.err
    assert done.calls == ["id -u"]


def test_the_command_comes_before_the_package_s_own_of_that_name(stock: NixosEvaluated) -> None:
    assert list(stock.system_packages) == ["nixfleet-agent", "gradient-update"]
