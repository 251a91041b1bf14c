"""What an operator may write in an option and what not; every refusal names the flag and its variable."""

from pathlib import Path
from typing import Final

import pytest

from nixfleet_agent.config import DELAY_MAX_S, SECONDS_MAX, examine, read_config
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.options import BY_NAME, OPTIONS, Kind, Raw, from_environment

GOOD: Final[Raw] = {
    "control_plane_url": ("https://cp.example",),
    "machine_id": ("node1",),
    "client_cert": ("/var/lib/cert.pem",),
}

NONSENSE: Final = (
    ("control_plane_url", ""),
    ("control_plane_url", "cp.example"),
    ("control_plane_url", "ftp://cp.example"),
    ("control_plane_url", "https://"),
    ("control_plane_url", "https://["),
    ("control_plane_url", "https://cp.example:port"),
    ("control_plane_url", "https://cp.example:0"),
    ("control_plane_url", "https://cp.example:65536"),
    ("control_plane_url", "https://cp.example/a b"),
    ("control_plane_url", "https://cp.example/\n"),
    ("control_plane_url", "https://user:secret@cp.example"),
    ("control_plane_url", "https://cp.example/?token=1"),
    ("control_plane_url", "https://cp.example/#here"),
    ("control_plane_url", "http://cp.example"),
    ("control_plane_url", "HTTP://cp.example"),
    ("machine_id", ""),
    ("machine_id", "-node"),
    ("machine_id", ".."),
    ("machine_id", "node/1"),
    ("machine_id", "node 1"),
    ("machine_id", "nöde"),
    ("machine_id", "n" * 65),
    ("poll_interval", "soon"),
    ("poll_interval", "0"),
    ("poll_interval", "-1"),
    ("poll_interval", "1.5"),
    ("poll_interval", "nan"),
    ("poll_interval", "9" * 30),
    ("heartbeat_interval", "0"),
    ("switch_timeout", "0"),
    ("sustained_failure", "-1"),
    ("manifest_freshness_window_secs", "0"),
    ("renewal_threshold_fraction", "0"),
    ("renewal_threshold_fraction", "1"),
    ("renewal_threshold_fraction", "nan"),
    ("renewal_threshold_fraction", "half"),
    ("metrics_port", "-1"),
    ("metrics_port", "65536"),
    ("metrics_port", "9" * 30),
    ("metrics_port", "http"),
    ("metrics_address", ""),
    ("metrics_address", "127.0.0.1:80"),
    ("metrics_address", "two words"),
    ("metrics_address", "a..b"),
    ("metrics_address", "x" * 64),
    ("metrics_address", "::1\n"),
    ("cache_url", "--option"),
    ("cache_url", "https://cache.example/a b"),
    ("dry_run", "maybe"),
    ("allow_insecure", "perhaps"),
    ("log_format", "xml"),
    ("log_level", "loud"),
    ("store", "bucket"),
    ("switch_method", "by hand"),
    ("compliance_gate_mode", "strict"),
    ("source", "comin"),
    ("soak", "-1"),
    ("on_failure", "rollback"),
    ("activation_window", "at night"),
    ("activation_delay", "86401"),
    ("reboot", "always"),
    ("reboot_window", "04:00"),
    ("hooks_dir", ""),
    ("hook_timeout", "0"),
    ("retry_interval", "0"),
    ("ca_cert", ""),
    ("trust_file", ""),
    ("state_dir", ""),
)


@pytest.mark.parametrize(("name", "text"), NONSENSE)
def test_nonsense_is_refused_with_the_names_of_flag_and_variable(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_config({**GOOD, name: (text,)})
    [problem] = caught.value.problems
    assert problem.startswith(f"{BY_NAME[name].flag} ({BY_NAME[name].variables[0]}): ")
    assert "\n" not in problem
    assert len(problem) < 400


def test_credentials_in_the_address_are_refused() -> None:
    """They would be in every log line that names it."""
    _, problems = examine({**GOOD, "control_plane_url": ("https://alice:secret@cp.example",)})
    assert len(problems) == 1


@pytest.mark.parametrize("text", ["https://cp.example:8443", "https://[::1]:8443/fleet/", "HTTPS://cp.example"])
def test_addresses_of_control_planes(text: str) -> None:
    assert read_config({**GOOD, "control_plane_url": (text,)}).control_plane_url == text.rstrip("/")


@pytest.mark.parametrize(
    ("text", "wanted"), [("1", True), ("yes", True), ("On", True), ("0", False), ("no", False), ("OFF", False)]
)
def test_a_flags_variable_is_yes_or_no(text: str, wanted: bool) -> None:
    assert read_config({**GOOD, **from_environment({"NIXFLEET_AGENT_DRY_RUN": text})}).dry_run is wanted


def test_an_empty_variable_counts_as_unset() -> None:
    assert from_environment({"NIXFLEET_AGENT_DRY_RUN": "", "NIXFLEET_AGENT_CA_CERT": ""}) == {}


def test_every_duration_has_an_upper_limit_that_the_journal_can_hold() -> None:
    for option in OPTIONS:
        if option.kind is Kind.SECONDS:
            most = DELAY_MAX_S if option.name == "activation_delay" else SECONDS_MAX
            _, problems = examine({**GOOD, option.name: (str(most + 1),)})
            assert len(problems) == 1, option.flag
            assert examine({**GOOD, option.name: (str(most),)})[1] == (), option.flag


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch runs in another directory than the agent."""
    monkeypatch.chdir(tmp_path)
    config = read_config({**GOOD, "state_dir": ("state",), "current_system": ("run/current",), "trust_file": ("t",)})
    assert config.state_dir == tmp_path / "state"
    assert config.current_system == tmp_path / "run/current"
    assert config.trust_file == tmp_path / "t"


def test_no_port_means_no_metrics_and_zero_means_any() -> None:
    assert read_config(GOOD).metrics_port is None
    assert read_config({**GOOD, "metrics_port": ("0",)}).metrics_port == 0


def test_what_is_wrong_in_one_place_hides_nothing_in_another() -> None:
    config, problems = examine({**GOOD, "metrics_port": ("x",), "store": ("bucket",), "poll_interval": ("7",)})
    assert len(problems) == 2
    assert config.poll_interval == 7
