"""`nixfleet`: every option and argument of every command given nonsense ends in one line, and leaves nothing behind.

The commands are taken from the program itself; one that is new here fails until `NONSENSE` says what is nonsense to it.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import click
import pytest

from evidence.artifacts import verify_fleet
from evidence.trust import load_trust
from nixfleet.cli import COMMANDS
from nixfleet.clock import wall_now
from nixfleet.keys.keyset import Wishes, generate_keys
from nixfleet.release.example import EXAMPLE
from state_machine.values import WallMs
from tests.nonsense import (
    AT_ONCE,
    DEADLINE_S,
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

Leaf = tuple[str, ...]

_BUILDER: Final = """state-dir = "%s/builder"
nats.url = "nats://127.0.0.1:1"
repositories.own.url = "https://git.example.org/fleet"
"""

WORDS: Final = ("\udcff", "", "x" * 100_000)
NUMBERS: Final = ("many", "-1", "nan", "1e3", "1.5", "", "9" * 30, "0x10")
DURATIONS: Final = ("soon", "-1s", "0", "1.5h", "nan", "", "9" * 30, "5y")
INSTANTS: Final = ("yesterday", "2026-01-01", "2026-13-01T00:00:00Z", "-1", "9" * 30, "")
URLS: Final = (
    "nowhere", "ftp://cp.example", "http://cp.example", "https://", "https://[::1", "https://cp.example:99999",
    "https://user:THE-SECRET@cp.example", "https://cp.example/?q=1", "https://a b", "https://cp.example/\n", "",
)  # fmt: skip
CACHES: Final = (
    "nowhere", "s3://bucket", "ssh://host", "http://", "https://[::1", "https://cache.example:99999", "https://a b",
    "https://user:THE-SECRET@cache.example", "file://host/x", "file:relative", "https://cache.example/\n", "",
)  # fmt: skip
TARGETS: Final = (
    "", "ftp://cp.example", "https://", "https://[::1", "https://cp.example:99999/x", "https://a b", "https://x/?q=1",
    "https://user:THE-SECRET@cp.example/x", "http://cp.example/x", "git+https://x/y", "git+ext::sh#x", "git+-x#main",
    "git+https://user:THE-SECRET@x/y#main", "git+http://x/y#main", "s3://x", "s3://bucket?region=a b", "s3:///x",
    "s3://bucket?colour=red", "s3://bucket?endpoint=ftp://x",
)  # fmt: skip
HOSTS: Final = ("", "../web1", "web 1", "x" * 300, "web1\n", "wéb", "-")
ROLLOUTS: Final = ("", "stable", "@", "stable@", "stable@../../x", "a b@c0ffee", "x" * 5000 + "@c0ffee")
FLAGS: Final = ("perhaps", "2")

PRIVATE_KEY: Final = (*NO_FILE, *NO_CONTENT, *KEY_KINDS)
FILE: Final = (*NO_FILE, *NO_CONTENT, *KEY_KINDS)
ELSEWHERE: Final = (
    "agent:", "agent:/nowhere.pub", "agent:SHA256:", "agent:SHA256:short", "command:", "command:'", "command:false",
    "command:PIN=THE-SECRET sign", "command:/nowhere THE-SECRET",
)  # fmt: skip
"""Keys that are in no file, and nowhere else either."""
PLACE: Final = ("below-a-file", "garbage", "pipe", "socket", "endless", "loop")
"""Where no directory can be."""


@attrs.frozen(kw_only=True)
class Files:
    """Options that lead to files: things of the cabinet that are no use to them. `texts`: what leads elsewhere."""

    names: tuple[str, ...]
    texts: tuple[str, ...] = ()

    def but(self, *names: str) -> "Files":
        """Without those that are of use here."""
        return attrs.evolve(self, names=tuple(name for name in self.names if name not in names))


@attrs.frozen(kw_only=True)
class Free:
    """Any text will do, if it is text."""


Nonsense = tuple[str, ...] | Files | Free

NONSENSE: Final[dict[str, Nonsense]] = {
    "algorithm": ("rsa", "", "ED25519"),
    "artifact": Files(names=FILE),
    "branch_prefix": ("", "-x", "a b", "..", "x" * 300),
    "build_systems": ("", "a b", 'a"b', "a/b", "$x", "x" * 300),
    "build_timeout": DURATIONS,
    "builder": ("nobody", "", "LOCAL"),
    "ca_algorithm": ("rsa", "", "P-521"),
    "ca_cert": Files(names=FILE),
    "ca_days": (*NUMBERS, "0"),
    "cache": CACHES,
    "cache_key_file": Files(names=FILE),
    "cache_netrc": Files(names=FILE).but("empty", "null"),
    "cache_name": ("", "a b", "a:b", "x\n"),
    "channel": ("", "a/b", "x" * 300),
    "ci_key": Files(names=PRIVATE_KEY, texts=ELSEWHERE).but("ecdsa"),
    "client_cert": Files(names=FILE),
    "client_key": Files(names=FILE),
    "close_stale_after": DURATIONS,
    "closure": ("", "short", "../x", "/etc/passwd"),
    "closures": ("web1", "=", "web1=", "=x", "web1=short", "nobody=" + "0" * 32 + "-x"),
    "compare": ("", "main", "c0ffee", "../x", "-1", "x" * 40),
    "copy_to": ("", "nowhere", "-x", "a b", "://x", "https://user:THE-SECRET@x/y"),
    "commit": ("", "main", "../x", "xyz", "-1"),
    "config": Files(names=FILE),
    "control_plane_url": URLS,
    "days": (*NUMBERS, "0"),
    "description": Files(names=FILE),
    "directory": Files(names=(*PLACE, "not-empty")),
    "file": Files(names=FILE).but("list.json", "wrong-types.json"),
    "fingerprint": ("", "short", "SHA256:abc", "\n"),
    "flake": ("/nowhere", "github:", "...", "", "x" * 300, "--help", "a\nb"),
    "flake_inputs": ("", "a b", "-x", "../x", "a//b", "x\n"),
    "flake_path": ("/etc", "..", "a/../../b"),
    "freshness_window_secs": NUMBERS,
    "git_remote": ("", "-x", "a b", "ext::sh", "x" * 300),
    "host": HOSTS,
    "host_key": Files(names=FILE).but("ed25519-public"),
    "hostname": HOSTS,
    "hostnames": HOSTS,
    "hosts": HOSTS,
    "instances": Files(names=FILE),
    "interval": DURATIONS,
    "jobs": (*NUMBERS, "0"),
    "key": Files(names=PRIVATE_KEY, texts=ELSEWHERE),
    "keep": (*NUMBERS, "0"),
    "keep_days": (*NUMBERS, "0"),
    "kind": ("neither", "", "FLEET"),
    "limit": NUMBERS,
    "log_format": ("xml", "", "JSON"),
    "log_level": ("loud", "", "INFO"),
    "main_branch": ("", "-x", "a b", "a..b", "x.lock", "flake-update-x"),
    "metrics_file": Files(names=("below-a-file", "dangling", "directory", "pipe", "socket", "endless", "null", "loop")),
    "minted_by": Free(),
    "names": ("", "nobody", "../x", "-", "x" * 300),
    "nats_ca_cert": Files(names=FILE),
    "nats_credentials_file": Files(names=FILE),
    "nats_nkey_file": Files(names=FILE),
    "nats_token_file": Files(names=FILE).but("list.json", "number.json"),
    "nats_prefix": ("", "build.>", "a b", "*", ".", "a..b", "x" * 300),
    "nats_url": ("nowhere", "http://x", "tls://", "tls://[::1", "tls://u:THE-SECRET@x", "tls://a b", "tls://x/y", ""),
    "news_prefix": ("", "a..b", ".", "a.>", "a.*", "a b", "x" * 300),
    "new_key": Files(names=("directory", "garbage", "pipe", "socket", "endless", "null", "loop", "below-a-file")),
    "nonces_file": Files(names=FILE).but("absent", "dangling", "loop"),
    "not_before": INSTANTS,
    "now": INSTANTS,
    "only": HOSTS,
    "operator": ("", "x" * 300),
    "org_root_key": Files(names=PRIVATE_KEY, texts=ELSEWHERE),
    "out": Files(names=(*PLACE, "not-empty")),
    "paths": Files(names=FILE),
    "pubkey": Files(names=FILE).but("ed25519-public"),
    "reason": Free(),
    "repo": ("", "a b", "../x", "a/b", "-x", "x" * 300),
    "repo_path": Files(names=(*PLACE, "absent", "dangling")),
    "reject_before": INSTANTS,
    "releases_dir": Files(names=PLACE),
    "remark": Free(),
    "revoked_by": Free(),
    "rev": ("a..b", "-x", "a b", "../x", "x" * 300, "a\n", "a@{1}"),
    "role": ("neither", "", "CI"),
    "rollout_id": ROLLOUTS,
    "server_names": ("", "a b", "-", "x" * 300, "1.2.3.4.5/33"),
    "shell": ("tcsh", "", "Bash"),
    "signature": Files(names=FILE),
    "tags": Free(),
    "timeout": DURATIONS,
    "to": TARGETS,
    "to_credentials_file": Files(names=FILE),
    "to_token_file": Files(names=FILE),
    "trust_file": Files(names=FILE),
    "validity": DURATIONS,
}


def leaves() -> Iterator[tuple[Leaf, click.Command]]:
    """Every command that does something, as its words."""

    def below(words: Leaf, command: click.Command) -> Iterator[tuple[Leaf, click.Command]]:
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield words, command
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                yield from below((*words, name), child)

    for name, known in COMMANDS.items():
        yield from below((name,), known.load())


LEAVES: Final = dict(leaves())


ANSWERS: Final = {
    (("verify-artifact",), "artifact"),
    (("verify-artifact",), "signature"),
    (("canonicalize",), "file"),
}
"""What is found in these files is the answer that was asked for: it begins with the reason, not with the file."""


@attrs.frozen(kw_only=True)
class Desk:
    """Good files, so that one thing is wrong at a time."""

    root: Path
    cabinet: Cabinet

    def good(self, words: Leaf) -> dict[str, str]:
        """What a command is given beside the nonsense: parameters by name."""
        keys = self.root / "keys"
        there = {
            "control_plane_url": "https://127.0.0.1:1", "ca_cert": str(keys / "ca.pem"),
            "client_cert": str(keys / "operator.pem"), "client_key": str(keys / "operator-key.pem"),
        }  # fmt: skip
        sign = {"ci_key": str(keys / "ci-release.pem"), "trust_file": str(keys / "trust.json"),
                "releases_dir": str(self.root / "releases")}  # fmt: skip
        news = {"nats_url": "tls://127.0.0.1:1"}
        command = {
            ("demo",): {"directory": str(self.root / "new")},
            ("keygen",): {"out": str(self.root / "new")},
            ("keygen", "rotate"): {"trust_file": sign["trust_file"], "role": "ci-release",
                                   "new_key": str(self.root / "new")},
            ("mint-token",): {**sign, "hostname": "web1", "pubkey": self.cabinet.path("ed25519-public"),
                              "org_root_key": str(keys / "org-root.pem")},
            ("release",): {**sign, **there, **news, "description": str(self.root / "fleet.toml"),
                            "copy_to": f"file://{self.root}/cache"},
            ("update",): {"instances": str(self.root / "update.toml"), **news},
            ("build",): {**news, "hostnames": "web1", "repo": "own"},
            ("builder",): {"config": str(self.root / "builder.toml")},
            ("revoke",): {**sign, "host": "web1"},
            ("status",): there,
            ("hosts",): there,
            ("machines", "list"): there,
            ("machines", "register"): {**there, "hostname": "web1"},
            ("rollout", "list"): there,
            ("rollout", "trace"): {**there, "rollout_id": "stable@c0ffee"},
            ("rollout", "rollback"): {**there, "rollout_id": "stable@c0ffee", "reason": "x"},
            ("quarantine", "list"): there,
            ("quarantine", "clear"): {**there, "channel": "stable"},
            ("verify-artifact",): {"trust_file": sign["trust_file"], "artifact": str(self.root / "fleet.toml")},
            ("canonicalize",): {},
            ("audit", "verify"): {"paths": str(self.root)},
            ("completion",): {},
        }  # fmt: skip
        return command[words]

    def call(self, words: Leaf, parameter: click.Parameter, value: str, **more: bool) -> Call:
        """The command with one parameter wrong."""
        assert parameter.name is not None
        names = parameter.opts if _is_option(parameter) else [parameter.human_readable_name]
        return Call(
            words=self.words(words, {**self.good(words), parameter.name: value}),
            environment={"NIXFLEET_CONFIG": str(self.root / "config.toml")},
            names=() if (words, parameter.name) in ANSWERS else (*names, *_mentions(parameter.name, value)),
            about=f"{' '.join(words)}: {parameter.name}={value[:80]!r} {more or ''}",
            **more,
        )

    def words(self, words: Leaf, given: dict[str, str]) -> tuple[str, ...]:
        """The command line."""
        parameters = {each.name: each for each in LEAVES[words].params}
        flags = [f"{parameters[name].opts[0]}={value}" for name, value in given.items() if _is_option(parameters[name])]
        rest = [value for name, value in given.items() if not _is_option(parameters[name])]
        # `keygen rotate` takes the options of `keygen` before its own name only.
        return (*words, *flags, *(["--", *rest] if rest else []))


def _mentions(name: str, value: str) -> tuple[str, ...]:
    """How a message may mention it besides by its flag: the value, what follows its =, the role of a key."""
    last = value.rpartition("=")[2]
    role = {"org_root_key": "org root key", "ci_key": "CI release key"}.get(name, "")
    above = str(Path(value).parent) if name == "nonces_file" else ""
    return tuple(filter(None, (value[:40], repr(value)[:40], last[:40], role, above)))


def _is_option(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    root = open_to_all()
    try:
        generate_keys(root / "keys", Wishes(), WallMs(1_780_000_000_000))
        (root / "releases").mkdir()
        (root / "config.toml").write_text("")
        (root / "fleet.toml").write_text(EXAMPLE)
        (root / "update.toml").write_text(f'[nightly]\nrepo-path = "{root}"\n')
        (root / "builder.toml").write_text(_BUILDER % root)
        yield Desk(root=root, cabinet=Cabinet.stocked(root / "cabinet"))
    finally:
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def program() -> Iterator[Warm]:
    modules = [known.where.partition(":")[0] for known in COMMANDS.values()]
    with Warm("nixfleet.__main__", *modules, "nixfleet.demo.play") as warm:
        yield warm


def refused(desk: Desk, program: Warm, calls: list[Call]) -> None:
    """All of them are refused in a line each, and nothing on the disk is another."""
    before = tree(desk.root)
    # One at a time where they lock a directory that they share.
    shared = any(call.words[0] in ("mint-token", "revoke", "release") for call in calls)
    wrong = unlike(program.run(calls, 1 if shared else AT_ONCE))
    assert not wrong, wrong
    assert tree(desk.root) == before


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_what_a_command_is_given_is_refused_when_it_is_nonsense(desk: Desk, program: Warm, words: Leaf) -> None:
    calls = []
    for parameter in LEAVES[words].params:
        assert parameter.name is not None
        if isinstance(parameter, click.Option) and parameter.is_flag:
            continue
        nonsense = NONSENSE[parameter.name]
        if isinstance(nonsense, Free):
            texts: tuple[str, ...] = ("\udcff",)
        elif isinstance(nonsense, Files):
            texts = (*(desk.cabinet.path(name) for name in nonsense.names), *nonsense.texts)
        else:
            texts = nonsense
        calls += [desk.call(words, parameter, text) for text in texts]
    refused(desk, program, calls)


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_a_flag_is_switched_by_nothing_but_yes_and_no(desk: Desk, program: Warm, words: Leaf) -> None:
    calls = []
    for parameter in LEAVES[words].params:
        if isinstance(parameter, click.Option) and parameter.is_flag and parameter.expose_value:
            assert parameter.name is not None
            variable = "_".join(("nixfleet", *words, parameter.name)).replace("-", "_").upper()
            for text in FLAGS:
                call = Call(words=desk.words(words, desk.good(words)), environment={variable: text})
                calls.append(attrs.evolve(call, names=(parameter.opts[0], parameter.name)))
                calls.append(attrs.evolve(call, words=(*words, f"{parameter.opts[0]}={text}"), environment={}))
    refused(desk, program, calls)


def test_words_that_make_no_sense_are_answered_with_where_to_read_on(desk: Desk, program: Warm) -> None:
    words = (
        ("nonsense",),
        ("--nonsense",),
        ("machines", "nonsense"),
        ("status", "--nonsense"),
        ("\udcff",),
        ("hosts", "x"),
        ("completion",),
        ("keygen", "rotate", "--trust-file=x", "--new-key=x"),
    )
    refused(desk, program, [Call(words=each) for each in words])


CONFIGURATIONS: Final = {
    "unknown setting": "colour = 1",
    "unknown table": "[colour]\nx = 1",
    "unknown option": "[hosts]\ncolour = 1",
    "number for a path": "ca_cert = 7",
    "list for a path": "ca_cert = ['a', 'b']",
    "table for a path": "[ca_cert]\nx = 1",
    "date for a path": "ca_cert = 2026-01-01",
    "nul in a path": 'ca_cert = "a\\u0000b"',
    "value for a table": "hosts = 7",
    "text for a flag": "[status]\nwatch = 'perhaps'",
    "number for a duration": "[status]\ninterval = -1",
    "fraction for a duration": "[status]\ninterval = 0.5",
    "twice": "ca_cert = 'a'\nca_cert = 'b'",
}


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_configuration_file_that_is_none_is_refused_whoever_names_it(desk: Desk, program: Warm, how: str) -> None:
    calls = []
    for name in (*FILE, "unreadable"):
        path = desk.cabinet.path(name)
        named = Call(words=("--config", path, "hosts")) if how == "flag" else Call(words=("hosts",))
        if name in ("empty", "huge-and-dense"):
            continue  # the one is a good file, the other is too long for one, see below
        calls.append(
            attrs.evolve(
                named, environment={} if how == "flag" else {"NIXFLEET_CONFIG": path}, names=(path,),
                nobody=name == "unreadable" and IS_ROOT,
            )
        )  # fmt: skip
    huge = desk.cabinet.path("huge-and-dense")
    refused(desk, program, [*calls, Call(words=("--config", huge, "hosts"), names=(huge,))])


def test_a_configuration_file_with_values_of_the_wrong_kind_is_refused(desk: Desk, program: Warm) -> None:
    calls = []
    for number, (about, text) in enumerate(CONFIGURATIONS.items()):
        path = desk.root / f"{number}.toml"
        path.write_text(text)
        command = "status" if "[status]" in text else "hosts"
        good = [word for word in desk.words((command,), desk.good((command,))) if not word.startswith("--ca-cert")]
        calls.append(Call(words=("--config", str(path), *good), about=about))
    refused(desk, program, calls)


@pytest.mark.skipif(not IS_ROOT, reason=NOT_ROOT)
def test_what_another_user_may_not_read_or_write_is_refused_in_a_line(desk: Desk, program: Warm) -> None:
    calls = []
    for words, command in LEAVES.items():
        for parameter in command.params:
            match NONSENSE.get(parameter.name or ""):
                case Files(names=names) if names is PLACE or "not-empty" in names:
                    calls.append(desk.call(words, parameter, str(desk.root / "closed" / "new"), nobody=True))
                case Files():
                    calls.append(desk.call(words, parameter, desk.cabinet.path("unreadable"), nobody=True))
                case _:
                    pass
    (desk.root / "closed").mkdir(mode=0o700, exist_ok=True)
    calls = [attrs.evolve(call, names=()) for call in calls]  # as nobody, more than one thing cannot be read
    refused(desk, program, calls)


def test_a_key_out_of_a_pipe_that_has_a_writer_is_no_nonsense(desk: Desk, tmp_path: Path) -> None:
    """As shells make one of `--ci-key <(age -d ci-release.age)`."""
    reader, writer = os.pipe()
    good = {**desk.good(("release",)), "ci_key": f"/dev/fd/{reader}", "releases_dir": str(tmp_path / "releases")}
    command = [sys.executable, "-m", "nixfleet", *desk.words(("release",), good)]
    with subprocess.Popen(command, pass_fds=[reader], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            os.close(reader)
            with open(writer, "wb") as pipe:
                pipe.write((desk.root / "keys" / "ci-release.pem").read_bytes())
            _, err = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert process.returncode == 0, err
    trust = load_trust(desk.root / "keys" / "trust.json")
    fleet = tmp_path / "releases" / "fleet.resolved.json"
    signature = fleet.with_name("fleet.resolved.json.sig").read_bytes()
    assert verify_fleet(fleet.read_bytes(), signature, trust.ci_release_key, wall_now()).value.hosts
