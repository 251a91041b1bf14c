"""`nixfleet-agent check-config` and every sub-command, with each option given every kind of nonsense there is.

The options are the program's own; one that is new fails here until `NONSENSE`, or for an option or argument of a
sub-command `OF_COMMANDS`, says what is nonsense to it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import click
import pytest

from evidence.host_key import load_host_key
from nixfleet_agent.cli import cli
from nixfleet_agent.clock import now
from nixfleet_agent.journal.store import Journal
from nixfleet_agent.options import BY_NAME, OPTIONS, Kind, Option
from state_machine.events import Tick
from state_machine.values import HostName
from tests.agentlab import Agent, AgentFleet
from tests.nonsense import (
    IS_ROOT,
    KEY_KINDS,
    NO_CONTENT,
    NO_FILE,
    NOT_ROOT,
    Cabinet,
    Call,
    Warm,
    open_to_all,
    tree,
    unlike,
)

Nonsense = tuple[str, ...]
READ: Final = tuple(f"@{name}" for name in (*NO_FILE, *NO_CONTENT, *KEY_KINDS))
"""`@` stands for the cabinet."""

NO_PLACE: Final = ("@below-a-file", "@pipe", "@socket", "@endless", "@garbage")
NO_HEALTH_CHECKS: Final = tuple(name for name in READ if name != "@wrong-types.json")
WINDOWS: Final = ("soon", "04:00", "25:00-26:00", "04:00-04:00", "Mon-Foo 04:00-05:00", "04:00-05:00 Mars/Base",
                  "04:00-05:00;x", "\udcff")  # fmt: skip
BY_KIND: Final[dict[Kind, Nonsense]] = {
    Kind.SECONDS: ("soon", "-1", "nan", "1.5", "1e9", "9" * 30, "\udcff"),
    Kind.NUMBER: ("many", "-1", "65536", "nan", "1.5", "9" * 30, "\udcff"),
    Kind.FRACTION: ("half", "0", "1", "-0.5", "2", "nan", "inf", "\udcff"),
    Kind.CHOICE: ("neither", "AUTO", "\udcff"),
    Kind.FLAG: ("perhaps", "2", "\udcff"),
}
NONSENSE: Final[dict[str, Nonsense]] = {
    "activation_delay": (*BY_KIND[Kind.SECONDS], "86401"),
    "activation_window": WINDOWS,
    "boot_id_file": (*(f"@{name}" for name in NO_FILE), "@empty"),
    "booted_system": ("@below-a-file", "@pipe", "@garbage", "@directory"),
    "bootstrap_token_file": tuple(name for name in READ if name != "@wrong-types.json"),
    "ca_cert": READ,
    "cache_url": ("--option", "a b", "\udcff"),
    "client_cert": tuple(name for name in READ if name not in ("@absent", "@dangling", "@below-a-file")),
    "client_key": tuple(name for name in READ if name not in ("@ecdsa", "@rsa", "@ecdsa-p384", "@rsa-pem")),
    "control_plane_url": ("nowhere", "ftp://x", "http://x", "https://", "https://[::1", "https://u:THE-SECRET@x",
                          "https://x/?q", "https://a b", "https://x:99999", "\udcff"),
    "gradient_api_key_file": tuple(name for name in READ if name not in ("@list.json", "@number.json")),
    "gradient_host_name": ("../web1", "a b", "x" * 300, "\udcff"),
    "gradient_project": ("project", "/", "a/", "/b", "a/b/c", "a b/c", "a/../b", "x/" + "y" * 300, "\udcff"),
    "gradient_server": ("nowhere", "ftp://x", "http://x", "https://", "https://u:THE-SECRET@x", "https://a b",
                        "\udcff"),
    "hooks_dir": tuple(f"@{name}" for name in (*NO_FILE, "garbage", "open") if name != "directory"),
    "current_system": ("@below-a-file", "@pipe", "@garbage", "@directory"),
    "db_path": ("@below-a-file",),
    "defer_for": ("init", "none,kernel", ",", "\udcff"),
    "health_checks_config": NO_HEALTH_CHECKS,
    "machine_id": ("../web1", "a b", "x" * 300, "wéb", "-", "\udcff"),
    "metrics_address": ("127.0.0.1:80", "[::1]", "::::", "two words", "a..b", "x" * 300, "::1\n", "\udcff"),
    "nats_ca_cert": READ,
    "nats_credentials_file": READ,
    "nats_nkey_file": READ,
    "nats_token_file": tuple(name for name in READ if name not in ("@list.json", "@number.json")),
    "nats_url": ("nowhere", "http://x", "tls://", "tls://[::1", "tls://u:THE-SECRET@x", "tls://a b", "tls://x/y",
                 "tls://x:99999", "\udcff"),
    "news_prefix": ("a..b", ".", "a.>", "a.*", "a b", "x" * 300, "\udcff"),
    "reboot_window": WINDOWS,
    "session_lock": ("\udcff",),
    "profile": ("@below-a-file", "@pipe", "@garbage", "@directory"),
    "ssh_host_key_file": READ,
    "state_dir": NO_PLACE,
    "store_dir": NO_PLACE,
    "store_root": NO_PLACE,
    "switch_lock": ("@below-a-file", "@pipe", "@socket", "@endless", "@directory"),
    "tag": ("\udcff",),
    "trust_file": READ,
}  # fmt: skip
OF_GRADIENT: Final = tuple(option.name for option in OPTIONS if option.name.startswith("gradient_"))
"""Looked at only on a host that follows a project."""
OF_NEWS: Final = tuple(option.name for option in OPTIONS if option.name.startswith(("nats_", "news_")))
"""Looked at only on a host that listens for news."""
WHOLE: Final = ("many", "-1", "nan", "1.5", "", "9" * 30, "9" * 5000, "0x10", "\udcff")
OF_COMMANDS: Final[dict[str, Nonsense]] = {
    "closure": ("", "short", "../x", "/etc/passwd", "0" * 32, "0" * 32 + "-a/b ", "\udcff"),
    "color": ("neither", "", "AUTO", "\udcff"),
    "directory": ("@below-a-file", "@garbage", "@pipe", "@socket", "@endless", "@null", "@loop", "@not-empty"),
    "lines": WHOLE,
    "shell": ("tcsh", "", "Bash", "\udcff"),
    "since": (*WHOLE, "0"),
    "timeout": (*WHOLE, "0"),
    "watermark": (*WHOLE, "0"),
}


def leaves() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every sub-command that does something, as its words."""
    waiting: list[tuple[tuple[str, ...], click.Command]] = [((), cli)]
    while waiting:
        words, command = waiting.pop()
        if isinstance(command, click.Group):
            waiting += [((*words, name), child) for name, child in command.commands.items()]
        else:
            yield words, command


LEAVES: Final = dict(leaves())


@attrs.frozen(kw_only=True)
class Desk:
    """A host that can enrol, so that one thing is wrong at a time."""

    root: Path
    agent: Agent
    cabinet: Cabinet

    def command(self, words: tuple[str, ...], *more: str, names: tuple[str, ...] = ()) -> Call:
        """A sub-command that finds a journal, with `more` of its own words."""
        return Call(words=(*self.agent.words(), *words, *more), names=names)

    def on_gradient(self) -> dict[str, object]:
        """The flags of a host that follows a project."""
        return {
            "source": "gradient",
            "control_plane_url": None,
            "gradient_server": "https://gradient.example",
            "gradient_project": "o/p",
            "gradient_api_key_file": self.root / "api-key",
        }

    def call(self, option: Option, value: str, *words: str, nobody: bool = False) -> Call:
        """`check-config`, or `words`, with one option wrong: by its variable, as every kind has one."""
        value = self.cabinet.path(value[1:]) if value.startswith("@") else value
        # The client key follows the host key unless it is named.
        more: dict[str, object] = {} if option.name == "client_key" else {"client_key": self.agent.host_key}
        if option.name == "db_path":
            more["state_dir"] = None  # which counts more
        if option.name in OF_GRADIENT:
            more |= self.on_gradient()
        if option.name in OF_NEWS:
            more["nats_url"] = "tls://127.0.0.1:1"
        flags = self.agent.words(**{**more, option.name: None})
        return Call(
            words=(*flags, *(words or ("check-config",))),
            environment={option.variables[0]: value},
            names=(option.flag, value[:60], repr(value)[:60], *(["--state-dir"] if option.name == "db_path" else [])),
            about=f"{option.flag}={value[:80]!r}",
            nobody=nobody,
        )


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    root = open_to_all()
    try:
        fleet = AgentFleet(root / "fleet")
        agent = fleet.agent("web1", "https://127.0.0.1:1", running=fleet.system(), enrolled=False)
        agent.token.write_text("{}")
        agent.state_dir.mkdir()
        journal = Journal.open(agent.journal, host_key=load_host_key(agent.host_key), hostname=HostName("web1"))
        journal.append([(Tick(at=now()), ())])
        journal.close()
        agent.host_key.chmod(0o644)  # so that another user fails for one thing at a time
        (root / "api-key").write_text("GRADTHE-SECRET\n")
        cabinet = Cabinet.stocked(root / "cabinet")
        (cabinet.directory / "open").mkdir()
        (cabinet.directory / "open").chmod(0o777)
        yield Desk(root=root, agent=agent, cabinet=cabinet)
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def program() -> Iterator[Warm]:
    with Warm("nixfleet_agent.__main__", "nixfleet_agent.preflight", "nixfleet_agent.cli") as warm:
        yield warm


def refused(desk: Desk, program: Warm, calls: list[Call]) -> None:
    """All of them are refused in a line each, and nothing on the disk is another."""
    before = tree(desk.root)
    wrong = unlike(program.run(calls))
    assert not wrong, wrong
    assert tree(desk.root) == before


def nonsense_for(option: Option) -> Nonsense:
    return NONSENSE[option.name] if option.name in NONSENSE else BY_KIND[option.kind]


def test_without_nonsense_nothing_is_wrong(desk: Desk, program: Warm) -> None:
    [said] = program.run([Call(words=tuple(desk.agent.words("check-config")))])
    assert (said.status, said.err) == (0, "")


def test_a_host_that_follows_what_is_not_signed_needs_neither_keys_nor_certificate_nor_token(
    desk: Desk, program: Warm, tmp_path: Path
) -> None:
    """Of a Nix store; a plain directory believes the caches whose keys the trust file names."""
    absent = {"trust_file": tmp_path / "t", "client_cert": tmp_path / "c", "bootstrap_token_file": None, "store": None}
    legacy = {"source": "legacy", **absent}
    calls = [
        Call(words=tuple(desk.agent.words("check-config", **flags)))
        for flags in ({**desk.on_gradient(), **absent}, legacy)
    ]
    assert [(said.status, said.err) for said in program.run(calls)] == [(0, ""), (0, "")]


@pytest.mark.parametrize("name", [option.name for option in OPTIONS])
def test_what_an_option_is_given_is_refused_when_it_is_nonsense(desk: Desk, program: Warm, name: str) -> None:
    option = BY_NAME[name]
    refused(desk, program, [desk.call(option, value) for value in nonsense_for(option)])


@pytest.mark.skipif(not IS_ROOT, reason=NOT_ROOT)
def test_what_another_user_may_not_read_is_named(desk: Desk, program: Warm) -> None:
    calls = [desk.call(BY_NAME[name], "@unreadable") for name in ("trust_file", "ca_cert", "health_checks_config")]
    said = program.run([attrs.evolve(call, nobody=True) for call in calls])
    for each in said:
        assert each.status == 2
        assert "Traceback" not in each.err
        assert each.call.about.split("=")[0] in each.err


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_what_a_sub_command_is_given_is_refused_when_it_is_nonsense(
    desk: Desk, program: Warm, words: tuple[str, ...]
) -> None:
    calls = [desk.command(words, "--nonsense", names=("--nonsense",)), desk.command(words, "a", "b", "c")]
    for parameter in LEAVES[words].params:
        assert parameter.name is not None
        if isinstance(parameter, click.Option) and parameter.is_flag:
            calls.append(desk.command(words, f"{parameter.opts[0]}=perhaps", names=(parameter.opts[0],)))
            continue
        for text in OF_COMMANDS[parameter.name]:
            value = desk.cabinet.path(text[1:]) if text.startswith("@") else text
            if isinstance(parameter, click.Option):
                calls.append(desk.command(words, f"{parameter.opts[0]}={value}", names=(parameter.opts[0],)))
            else:
                shown = parameter.human_readable_name
                calls.append(desk.command(words, "--", value, names=(shown, f"'{shown}'", repr(value), value or "''")))
    # Who reads a journal leaves SQLite's own two files beside it, once.
    program.run([desk.command(("journal", "verify"))])
    before = tree(desk.root, drafts=True)
    wrong = unlike(program.run(calls))
    assert not wrong, wrong
    assert tree(desk.root, drafts=True) == before


def test_words_that_make_no_sense_are_answered_in_a_line(desk: Desk, program: Warm) -> None:
    words = (
        ("nonsense",), ("--nonsense", "1"), ("--poll-interval",), ("journal", "nonsense"), ("completion",),
        ("quarantine", "clear"), ("quarantine", "clear", "--all", "x"), ("journal", "export"), ("\udcff",),
    )  # fmt: skip
    refused(desk, program, [Call(words=each) for each in words])


@pytest.mark.parametrize(
    "words",
    [
        ("status",), ("poke",), ("quarantine", "list"), ("quarantine", "clear", "--all"), ("journal", "show"),
        ("journal", "verify"), ("journal", "export", "/nonexistent/x"), ("journal", "replay"), ("journal", "begin"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_command_that_finds_no_state_says_so_in_a_line(desk: Desk, program: Warm, words: tuple[str, ...]) -> None:
    values = (*NO_PLACE, "@absent", "@loop", "@directory")
    refused(desk, program, [desk.call(BY_NAME["state_dir"], value, *words) for value in values])
