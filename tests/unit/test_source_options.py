"""A host of the first generation is configured as it always was: its flags, its variables, its files."""

from pathlib import Path

import pytest

from nixfleet_agent.cli import _given, cli
from nixfleet_agent.config import LEGACY_HEALTH_CHECKS, examine, merge, read_config
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.health_checks import load_probes
from nixfleet_agent.options import OPTIONS, Raw, from_environment, read_plain
from state_machine.values import Source

LEGACY: Raw = {
    "source": ("legacy",),
    "control_plane_url": ("https://cp.example",),
    "machine_id": ("web1",),
}
OLDER = {
    "--control-plane-url": "control_plane_url",
    "--machine-id": "machine_id",
    "--poll-interval": "poll_interval",
    "--retry-interval": "retry_interval",
    "--cache-url": "cache_url",
    "--db-path": "db_path",
    "--ca-cert": "ca_cert",
    "--client-cert": "client_cert",
    "--client-key": "client_key",
    "--health-config": "health_checks_config",
    "--health-interval": "heartbeat_interval",
    "--tags": "tag",
    "--metrics-port": "metrics_port",
}
"""The flags of protocol section 10.2 that take a value; their variables are named after them."""


@pytest.mark.parametrize(("flag", "name"), OLDER.items())
def test_every_flag_of_that_generation_is_read_the_same_by_both_readers(flag: str, name: str) -> None:
    words = [flag, "7"]
    assert read_plain(words) == {name: ("7",)}
    context = cli.make_context("nixfleet-agent", list(words), resilient_parsing=True)
    assert _given(context.params) == {name: ("7",)}


@pytest.mark.parametrize(("flag", "name"), OLDER.items())
def test_every_variable_of_that_generation_is_read(flag: str, name: str) -> None:
    variable = "NIXFLEET_" + flag.removeprefix("--").replace("-", "_").upper()
    assert from_environment({variable: "7"}) == {name: ("7",)}


@pytest.mark.parametrize("flag", ["--dry-run", "--allow-insecure"])
def test_the_flags_without_a_value_are_there(flag: str) -> None:
    assert read_plain([flag]) == {flag.removeprefix("--").replace("-", "_"): ("true",)}


def test_no_two_options_share_a_flag_or_a_variable() -> None:
    flags = [flag for option in OPTIONS for flag in (option.flag, *option.older)]
    variables = [name for option in OPTIONS for name in option.variables]
    assert len(set(flags)) == len(flags)
    assert len(set(variables)) == len(variables)


def test_the_database_names_the_state_directory_unless_that_is_named_itself() -> None:
    older = from_environment({"NIXFLEET_DB_PATH": "/var/lib/nixfleet/state.db"})
    assert read_config(merge(LEGACY, older)).state_dir == Path("/var/lib/nixfleet")
    both = {**LEGACY, **older, "state_dir": ("/elsewhere",)}
    assert read_config(both).state_dir == Path("/elsewhere")
    assert read_config(LEGACY).state_dir == Path("/var/lib/nixfleet-agent")


def test_nobody_enrols_there_so_no_place_for_a_certificate_is_asked_for() -> None:
    assert read_config(LEGACY).client_cert is None
    _, problems = examine({**LEGACY, "source": ("fleet",)})
    assert [problem for problem in problems if problem.startswith("--client-cert ")]


def test_plain_http_still_wants_to_be_allowed() -> None:
    with pytest.raises(ConfigurationError, match="--allow-insecure"):
        read_config({**LEGACY, "control_plane_url": ("http://cp.example",)})


def test_a_cache_given_by_flag_is_one_that_a_command_may_be_given() -> None:
    with pytest.raises(ConfigurationError, match="is not the address of a binary cache"):
        read_config({**LEGACY, "cache_url": ("--option",)})


@pytest.mark.parametrize("text", ["{}", '{"systemd": []}', '{"systemd": [], "http": [], "command": []}'])
def test_a_file_without_a_check_in_it_means_the_host_as_a_whole(tmp_path: Path, text: str) -> None:
    checks = tmp_path / "health-checks.json"
    checks.write_text(text)
    legacy = read_config({**LEGACY, "health_checks_config": (str(checks),)})
    assert [probe.name for probe in load_probes(legacy)] == ["system"]


def test_a_file_that_is_named_must_be_there_and_the_usual_one_need_not() -> None:
    usual = LEGACY_HEALTH_CHECKS[Source.LEGACY]
    if usual.exists():
        pytest.skip(f"{usual} exists on this machine")
    assert read_config(LEGACY).health_checks_config == usual
    assert [probe.name for probe in load_probes(read_config(LEGACY))] == ["system"]
    with pytest.raises(ConfigurationError, match="does not exist"):
        load_probes(read_config({**LEGACY, "health_checks_config": ("/nowhere/checks.json",)}))


def test_other_sources_have_no_usual_file() -> None:
    fleet = {**LEGACY, "source": ("fleet",), "client_cert": ("/cert.pem",)}
    assert read_config(fleet).health_checks_config is None


def test_windows_given_on_the_command_line_are_told_apart_by_semicolons_in_both_readers() -> None:
    text = "Mon,Wed 04:00-05:00 UTC; Sun 02:00-03:00 UTC"
    words = ["--activation-window", text]
    context = cli.make_context("nixfleet-agent", list(words), resilient_parsing=True)
    assert _given(context.params) == read_plain(words)
    raw = read_plain(words)
    assert raw is not None
    assert len(read_config({**LEGACY, **raw}).activation_windows) == 2
