"""`nixfleet-control-plane`: every option given nonsense ends in one line, and leaves nothing behind.

The options are taken from the program itself; one that is new fails here until `NONSENSE` says what is nonsense to it.
"""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import click
import pytest

from control_plane.cli import cli
from tests.cplab import Lab
from tests.nonsense import (
    IS_ROOT,
    KEY_KINDS,
    NO_CONTENT,
    NO_FILE,
    NOT_ROOT,
    Cabinet,
    Call,
    Said,
    Warm,
    needs_mounts,
    on_a_read_only_disk,
    open_to_all,
    tree,
    unlike,
)

NUMBERS: Final = ("many", "-1", "0", "nan", "", "1e400", "9" * 30)
WHOLE: Final = (*NUMBERS, "1.5", "0x10")
ADDRESSES: Final = (
    "", "nowhere", "127.0.0.1", "127.0.0.1:", ":8080", "127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:http",
    "999.0.0.1:8080", "203.0.113.7:8080", "127.0.0.1:8080\n", "x" * 300 + ":1", "\udcff:1",
)  # fmt: skip
READ: Final = tuple(f"@{name}" for name in (*NO_FILE, *NO_CONTENT, *KEY_KINDS))
PLACE: Final = tuple(f"@{name}" for name in ("directory", "pipe", "socket", "endless", "loop", "below-a-file"))
"""Where no file can be written. `@` stands for the cabinet."""

NONSENSE: Final[dict[str, tuple[str, ...]]] = {
    "agent_cert_validity_secs": (*WHOLE, "59"),
    "agent_cn_suffix": ("", "a b", "-", ".", "x" * 300, "a\n", "\udcff"),
    "artifact_poll_secs": (*NUMBERS, "inf"),
    "artifacts": ("", "ftp://x", "http://x", "https://", "https://[::1", "https://u:THE-SECRET@x", "https://a b",
                  "\udcff", *PLACE[1:], "@absent", "@garbage"),
    "artifacts_ca_cert": READ,
    "artifacts_token_file": tuple(name for name in READ if name != "@number.json"),
    "audit_log": PLACE,
    "client_ca": READ,
    "closure_upstream": ("", "nowhere", "ftp://x", "https://", "https://[::1", "https://u:THE-SECRET@x", "https://a b"),
    "db_path": (*PLACE, "@garbage", "@zeros", "@huge-and-dense", "@rsa"),
    "fleet_ca_cert": READ,
    "fleet_ca_key": READ,
    "freshness_window_secs": WHOLE,
    "legacy_cache_url": ("", "nowhere", "ftp://x", "https://", "https://[::1", "https://u:THE-SECRET@x", "https://a b"),
    "listen": ADDRESSES,
    "log_format": ("xml", "", "JSON "),
    "log_level": ("loud", ""),
    "metrics_listen": ADDRESSES,
    "nats_ca_cert": READ,
    "nats_credentials_file": READ,
    "nats_nkey_file": READ,
    "nats_token_file": tuple(name for name in READ if name not in ("@list.json", "@number.json")),
    "nats_url": ("", "nowhere", "http://x", "tls://", "tls://[::1", "tls://u:THE-SECRET@x", "tls://a b", "tls://x:99999"),
    "news_prefix": ("", "a..b", ".", "a.>", "a.*", "a b", "x" * 300 + ">"),
    "ready_file": PLACE,
    "retention_days": WHOLE,
    "tls_cert": READ,
    "tls_key": READ,
    "trust_file": READ,
}  # fmt: skip
FLAGS: Final = ("perhaps", "2")


@attrs.frozen(kw_only=True)
class Desk:
    """Good files, so that one thing is wrong at a time."""

    root: Path
    lab: Lab
    cabinet: Cabinet

    def call(self, name: str, value: str, *more: str, nobody: bool = False) -> Call:
        """A start with one option wrong."""
        value = self.cabinet.path(value[1:]) if value.startswith("@") else value
        flag = "--" + name.replace("_", "-")
        words = [*self.lab.arguments(**{"ready_file": None, name: None})[3:], f"{flag}={value}", *more]
        mentions = tuple(filter(None, (flag, value[:40] if len(value) > 3 else "", repr(value)[:40])))
        return Call(words=tuple(words), names=mentions, about=f"{flag}={value[:80]!r} ", nobody=nobody)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    root = open_to_all()
    try:
        lab = Lab(root / "lab", hosts=("web1",))
        (root / "lab").chmod(0o777)  # so that another user fails for one thing at a time
        yield Desk(root=root, lab=lab, cabinet=Cabinet.stocked(root / "cabinet"))
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def program() -> Iterator[Warm]:
    with Warm("control_plane.__main__", "control_plane.server") as warm:
        yield warm


def refused(desk: Desk, program: Warm, calls: list[Call]) -> None:
    """All of them are refused in a line each, and nothing on the disk is another."""
    before = tree(desk.root)
    wrong = unlike(program.run(calls))
    assert not wrong, wrong
    assert tree(desk.root) == before


OPTIONS: Final = [option for option in cli.params if isinstance(option, click.Option) and option.expose_value]


@pytest.mark.parametrize("name", [option.name for option in OPTIONS if not option.is_flag])
def test_what_an_option_is_given_is_refused_when_it_is_nonsense(desk: Desk, program: Warm, name: str) -> None:
    more = () if name != "artifacts_token_file" else ("--artifacts=https://127.0.0.1:1",)
    more = ("--nats-url=tls://127.0.0.1:1",) if name.startswith("nats_") and name != "nats_url" else more
    assert NONSENSE[name]
    refused(desk, program, [desk.call(name, value, *more) for value in NONSENSE[name]])


def test_a_flag_is_switched_by_nothing_but_yes_and_no(desk: Desk, program: Warm) -> None:
    calls = [
        attrs.evolve(
            desk.call("log_level", "error"),
            environment={f"NIXFLEET_CP_{option.name}".upper(): text},
            names=(option.opts[0], option.name or ""),
        )
        for option in OPTIONS
        for text in FLAGS
        if option.is_flag
    ]
    assert calls
    refused(desk, program, calls)


def test_what_it_cannot_do_without_is_named(desk: Desk, program: Warm) -> None:
    for name in ("tls_cert", "tls_key", "artifacts"):
        words = desk.lab.arguments(ready_file=None, **{name: None})[3:]
        refused(desk, program, [Call(words=tuple(words), names=("--" + name.replace("_", "-"),))])


def test_words_that_make_no_sense_are_answered_in_a_line(desk: Desk, program: Warm) -> None:
    words = (("nonsense",), ("--nonsense",), ("rebuild", "x"), ("rebuild", "--strict"), ("\udcff",))
    refused(desk, program, [Call(words=each) for each in words])


def test_a_port_that_is_taken_is_named_with_its_option(desk: Desk, program: Warm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(desk, program, [desk.call("listen", address), desk.call("metrics_listen", address)])


def test_a_database_that_is_none_is_not_rebuilt_either(desk: Desk, program: Warm) -> None:
    values = [*NONSENSE["db_path"], "@absent"]
    refused(desk, program, [desk.call("db_path", value, "rebuild") for value in values])


@pytest.mark.skipif(not IS_ROOT, reason=NOT_ROOT)
def test_what_another_user_may_not_read_or_write_is_refused_in_a_line(desk: Desk, program: Warm) -> None:
    closed = desk.root / "closed"
    closed.mkdir(mode=0o700)
    calls = []
    read = ("tls_cert", "tls_key", "client_ca", "fleet_ca_cert", "fleet_ca_key", "artifacts_ca_cert", "trust_file")
    for name in read:
        calls.append(desk.call(name, "@unreadable", nobody=True))
    for name in ("db_path", "ready_file", "artifacts"):
        calls.append(desk.call(name, str(closed / "new"), nobody=True))
    open_to_look = desk.root / "open-to-look"
    open_to_look.mkdir(mode=0o755)
    (open_to_look / "empty.db").touch()
    for path in (open_to_look / "new", open_to_look / "empty.db"):
        calls.append(desk.call("db_path", str(path), nobody=True))
    refused(desk, program, calls)


@needs_mounts
@pytest.mark.root
@pytest.mark.parametrize("name", ["db_path", "audit_log", "ready_file"])
def test_a_disk_that_takes_nothing_is_named_with_what_should_be_on_it(desk: Desk, name: str) -> None:
    place = desk.root / f"disk-{name}"
    place.mkdir()
    before = tree(desk.root)
    command = desk.lab.arguments(**{"ready_file": None, name: place / "new"})
    done = on_a_read_only_disk(place, command)
    call = Call(words=tuple(command), names=(str(place / "new"),))
    wrong = unlike([Said(call=call, status=done.returncode, out=done.stdout, err=done.stderr)])
    assert not wrong, wrong
    assert tree(desk.root) == before
