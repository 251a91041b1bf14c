"""`nixfleet-agent check-config` and every sub-command, with each option given every kind of nonsense there is.

The options are the program's own; one that is new fails here until `NONSENSE` says what is nonsense to it.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import pytest

from nixfleet_agent.options import BY_NAME, OPTIONS, Kind, Option
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
BY_KIND: Final[dict[Kind, Nonsense]] = {
    Kind.SECONDS: ("soon", "-1", "nan", "1.5", "1e9", "9" * 30, "\udcff"),
    Kind.NUMBER: ("many", "-1", "65536", "nan", "1.5", "9" * 30, "\udcff"),
    Kind.FRACTION: ("half", "0", "1", "-0.5", "2", "nan", "inf", "\udcff"),
    Kind.CHOICE: ("neither", "AUTO", "\udcff"),
    Kind.FLAG: ("perhaps", "2", "\udcff"),
}
NONSENSE: Final[dict[str, Nonsense]] = {
    "boot_id_file": (*(f"@{name}" for name in NO_FILE), "@empty"),
    "booted_system": ("@below-a-file", "@pipe", "@garbage", "@directory"),
    "bootstrap_token_file": tuple(name for name in READ if name != "@wrong-types.json"),
    "ca_cert": READ,
    "cache_url": ("--option", "a b", "\udcff"),
    "client_cert": tuple(name for name in READ if name not in ("@absent", "@dangling", "@below-a-file")),
    "client_key": tuple(name for name in READ if name not in ("@ecdsa", "@rsa", "@ecdsa-p384", "@rsa-pem")),
    "control_plane_url": ("nowhere", "ftp://x", "http://x", "https://", "https://[::1", "https://u:THE-SECRET@x",
                          "https://x/?q", "https://a b", "https://x:99999", "\udcff"),
    "current_system": ("@below-a-file", "@pipe", "@garbage", "@directory"),
    "defer_for": ("init", "none,kernel", ",", "\udcff"),
    "health_checks_config": NO_HEALTH_CHECKS,
    "machine_id": ("../web1", "a b", "x" * 300, "wéb", "-", "\udcff"),
    "metrics_address": ("\udcff",),
    "profile": ("@below-a-file", "@pipe", "@garbage", "@directory"),
    "ssh_host_key_file": READ,
    "state_dir": NO_PLACE,
    "store_dir": NO_PLACE,
    "store_root": NO_PLACE,
    "switch_lock": ("@below-a-file", "@pipe", "@socket", "@endless", "@directory"),
    "tag": ("\udcff",),
    "trust_file": READ,
}  # fmt: skip


@attrs.frozen(kw_only=True)
class Desk:
    """A host that can enrol, so that one thing is wrong at a time."""

    root: Path
    agent: Agent
    cabinet: Cabinet

    def call(self, option: Option, value: str, *words: str, nobody: bool = False) -> Call:
        """`check-config`, or `words`, with one option wrong: by its variable, as every kind has one."""
        value = self.cabinet.path(value[1:]) if value.startswith("@") else value
        # The client key follows the host key unless it is named.
        key = {} if option.name == "client_key" else {"client_key": self.agent.host_key}
        flags = self.agent.words(**{**key, option.name: None})
        return Call(
            words=(*flags, *(words or ("check-config",))),
            environment={option.variables[0]: value},
            names=(option.flag, value[:60], repr(value)[:60]),
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
        agent.host_key.chmod(0o644)  # so that another user fails for one thing at a time
        yield Desk(root=root, agent=agent, cabinet=Cabinet.stocked(root / "cabinet"))
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


def test_words_that_make_no_sense_are_answered_in_a_line(desk: Desk, program: Warm) -> None:
    words = (
        ("nonsense",), ("--nonsense", "1"), ("--poll-interval",), ("journal", "nonsense"), ("status", "--lines", "-1"),
        ("journal", "show", "--since", "x"), ("journal", "verify", "--watermark", "nan"), ("quarantine", "clear"),
        ("run-once", "--timeout", "soon"), ("completion", "tcsh"), ("quarantine", "clear", "--all", "x"),
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
