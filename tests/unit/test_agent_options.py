"""The two readers of one option table agree, and configuration mistakes are all told at once."""

import shlex

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixfleet_agent.cli import _given, cli, run
from nixfleet_agent.config import examine, merge, read_config
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.options import OPTIONS, Kind, Raw, from_environment, read_plain

GOOD: Raw = {
    "control_plane_url": ("https://cp.example",),
    "machine_id": ("node1",),
    "client_cert": ("/var/lib/cert.pem",),
}
texts = st.text(alphabet="abcXYZ019./:_@,", min_size=1, max_size=12)


def value_for(kind: Kind) -> st.SearchStrategy[str]:
    return st.integers(1, 9999).map(str) if kind in (Kind.SECONDS, Kind.NUMBER) else texts


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    words: list[str] = []
    for option in draw(st.lists(st.sampled_from([o for o in OPTIONS if o.kind is not Kind.CHOICE]), max_size=6)):
        if option.kind is Kind.FLAG:
            words.append(option.flag)
        elif draw(st.booleans()):
            words.append(f"{option.flag}={draw(value_for(option.kind))}")
        else:
            words += [option.flag, draw(value_for(option.kind))]
    return words


@given(command_lines())
def test_the_plain_reader_and_click_read_the_same(words: list[str]) -> None:
    context = cli.make_context("nixfleet-agent", list(words), resilient_parsing=True)
    by_click = {name: value for name, value in _given(context.params).items() if name not in ("version",)}
    plain = read_plain(words)
    assert plain == by_click, shlex.join(words)


@pytest.mark.parametrize("words", [["--help"], ["status"], ["--poll-interval"], ["--nonsense", "1"], ["--dry-run=yes"]])
def test_anything_unusual_is_left_to_click(words: list[str]) -> None:
    assert read_plain(words) is None


def test_every_flag_is_mirrored_by_a_variable() -> None:
    for option in OPTIONS:
        assert option.variables[0] == "NIXFLEET_AGENT_" + option.name.upper()


def test_a_flag_beats_the_environment() -> None:
    raw = merge({"machine_id": ("flag",)}, from_environment({"NIXFLEET_AGENT_MACHINE_ID": "variable"}))
    assert raw["machine_id"] == ("flag",)


def test_the_older_names_of_variables_still_work() -> None:
    raw = from_environment({"NIXFLEET_AGENT_CP_URL": "https://cp.example", "NIXFLEET_TAGS": "web,eu"})
    assert raw == {"control_plane_url": ("https://cp.example",), "tag": ("web", "eu")}


def test_help_shows_flag_variable_and_default() -> None:
    text = cli.get_help(click.Context(cli, info_name="nixfleet-agent", terminal_width=300))
    for option in OPTIONS:
        assert option.flag in text
        assert option.variables[0] in text


def test_a_good_configuration_is_read() -> None:
    config = read_config(GOOD)
    assert config.machine_id == "node1"
    assert config.poll_interval == 60
    assert config.client_key == config.ssh_host_key_file


def test_every_mistake_is_told_at_once() -> None:
    raw: Raw = {
        "control_plane_url": ("http://cp.example",),
        "poll_interval": ("soon",),
        "renewal_threshold_fraction": ("2",),
        "metrics_port": ("99999",),
        "log_format": ("xml",),
    }
    with pytest.raises(ConfigurationError) as caught:
        read_config(raw)
    said = str(caught.value)
    for flag in ("--control-plane-url", "--machine-id", "--poll-interval", "--renewal-threshold-fraction"):
        assert flag in said
    for flag in ("--metrics-port", "--log-format", "--client-cert"):
        assert flag in said
    assert "--allow-insecure" in said


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ("dbus", "systemd", "kernel", "kernel-modules")),
        (["--defer-for", "kernel,initrd"], ("kernel", "initrd")),
        (["--defer-for", "kernel", "--defer-for=initrd"], ("kernel", "initrd")),
        (["--defer-for", "none"], ()),
    ],
)
def test_what_waits_for_a_reboot_can_be_chosen(words: list[str], names: tuple[str, ...]) -> None:
    raw = read_plain(words)
    assert raw is not None
    assert read_config({**GOOD, **raw}).defer_for == names


@pytest.mark.parametrize("text", ["init", "none,kernel", "", " , ", "Kernel"])
def test_what_waits_for_a_reboot_must_be_known(text: str) -> None:
    _, [problem] = examine({**GOOD, "defer_for": tuple(text.split(","))})
    assert problem.startswith("--defer-for (NIXFLEET_AGENT_DEFER_FOR): ")


def test_http_is_allowed_only_with_allow_insecure() -> None:
    raw: Raw = {**GOOD, "control_plane_url": ("http://cp.example",), "allow_insecure": ("true",)}
    assert read_config(raw).control_plane_url == "http://cp.example"


@given(st.dictionaries(st.sampled_from([o.name for o in OPTIONS]), st.tuples(st.text(max_size=20)), max_size=8))
def test_nonsense_is_a_configuration_error_and_nothing_else(texts: Raw) -> None:
    _, problems = examine(texts)
    for problem in problems:
        assert problem.startswith("--")
        assert "\n" not in problem


def test_a_flag_of_the_daemon_after_a_command_is_answered_with_where_it_goes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["journal", "show", "--state-dir", "x"]) == 2
    said = capsys.readouterr().err
    assert said.endswith("'--state-dir'; it goes before the command: `nixfleet-agent --state-dir ... journal show`\n")
