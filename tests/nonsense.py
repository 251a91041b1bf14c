"""Give programs nonsense, thousands of times an hour: one warm process forks a child for each call of the real `main`.

    cabinet = Cabinet.stocked(tmp_path)                    # absent, empty, endless, unreadable... files by name
    with Warm("nixfleet.__main__") as program:
        [said] = program.run([Call(words=("status", "--ca-cert", cabinet.path("pipe")))])
    assert said.status == 2

A call that does not end is killed and reported as hung; one that takes more than `MEMORY` runs out of it.
"""

import importlib
import json
import os
import pwd
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import attrs
import pytest

DEADLINE_S: Final = float(os.environ.get("TEST_PATIENCE_S", "40"))
MEMORY: Final = 1024 * 1024 * 1024
HUNG: Final = -99
AT_ONCE: Final = 3
HUGE: Final = 100 * 1024 * 1024

IS_ROOT: Final = os.geteuid() == 0
NOT_ROOT: Final = "only root can become another user"

SECRETS: Final = ("THE-SECRET", "VEhFLVNFQ1JFVA", "b3BlbnNzaC1rZXk")
"""What must be in nothing that is printed: the cabinet's secrets, as base64 too, and how OpenSSH keys begin."""


def can_mount() -> bool:
    """Root, with the right to mount: not so in every container."""
    return IS_ROOT and subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


needs_mounts: Final = pytest.mark.skipif(not can_mount(), reason="needs to be root and allowed to mount")


def on_a_read_only_disk(where: Path, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run `command` to its end while, for it alone, an empty disk that takes nothing is mounted on `where`."""
    mounting = 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"'
    words = ["unshare", "-m", "sh", "-c", mounting, str(where), *command]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=DEADLINE_S)


@attrs.frozen(kw_only=True)
class Call:
    """One call of a program. `names`: what the refusal must mention, any of them; `about` is for failure messages."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = attrs.field(factory=dict)
    names: tuple[str, ...] = ()
    about: str = ""
    nobody: bool = False
    """As another user."""


@attrs.frozen(kw_only=True)
class Said:
    """How it ended."""

    call: Call
    status: int
    out: str
    err: str

    def problems(self, lines: int = 1) -> list[str]:
        """What is wrong with it as a refusal of `lines` lines; nothing, if it is a good one."""
        found = []
        if self.status == HUNG:
            found.append("it did not end")
        elif self.status not in (1, 2):
            found.append(f"exit status {self.status}")
        # A list of problems is indented below the line that counts them; notes are not about what is wrong.
        told = [line for line in self.err.splitlines() if not line.startswith(("  ", "note: "))]
        if len(told) != lines:
            found.append(f"{len(told)} lines instead of {lines}")
        if "Traceback" in self.err + self.out:
            found.append("a traceback")
        if any(secret in self.err + self.out for secret in SECRETS):
            found.append("a secret")
        if self.call.names and not any(name in self.err for name in self.call.names):
            found.append(f"it names none of {', '.join(self.call.names)}")
        return [f"{self.call.about or ' '.join(self.call.words)[:300]}: {', '.join(found)}\n{self.err[-1500:]}"] * bool(
            found
        )


class Warm:
    """A process that has imported the program and forks for each call. `module` is the one with `main`."""

    def __init__(self, module: str, *preload: str) -> None:
        words = [sys.executable, "-m", "tests.nonsense", module, *preload]
        # Not in pytest's own session: children that are killed take nobody along.
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def __enter__(self) -> "Warm":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def run(self, calls: Iterable[Call], at_once: int = AT_ONCE) -> list[Said]:
        """Make the calls, so many at once, and say how each ended."""
        calls = list(calls)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([at_once, [attrs.asdict(call) for call in calls]]).encode() + b"\n")
        self._process.stdin.flush()
        answers = json.loads(self._process.stdout.readline())
        return [
            Said(call=call, status=status, out=out, err=err)
            for call, (status, out, err) in zip(calls, answers, strict=True)
        ]


def unlike(said: Iterable[Said], lines: int = 1) -> str:
    """What is wrong with these refusals, for an assertion: empty when nothing is."""
    found = "\n".join(problem for each in said for problem in each.problems(lines))
    return found.encode("utf-8", "backslashreplace").decode()


def tree(root: Path, *, drafts: bool = False) -> dict[str, tuple[int, int, int, str]]:
    """Everything below a directory: mode, size, time of change, where links lead.

    `drafts`: what was there for a while and is gone again is no difference, nor is what readers of a database share.
    """
    found = {}
    for path in [root, *root.rglob("*")]:
        if drafts and path.name.endswith("-shm"):
            continue
        seen = path.lstat()
        leads = os.readlink(path) if stat.S_ISLNK(seen.st_mode) else ""
        changed = 0 if drafts and stat.S_ISDIR(seen.st_mode) else seen.st_mtime_ns
        found[str(path.relative_to(root))] = (seen.st_mode, seen.st_size, changed, leads)
    return found


def open_to_all() -> Path:
    """A new directory that other users can look into, unlike pytest's."""
    path = Path(tempfile.mkdtemp(prefix="nonsense-"))
    path.chmod(0o755)
    return path


@attrs.frozen(kw_only=True)
class Cabinet:
    """Files and other things that are no use to anybody, by name."""

    directory: Path

    @classmethod
    def stocked(cls, directory: Path) -> "Cabinet":
        """Make them all."""
        directory.mkdir(parents=True)
        cabinet = cls(directory=directory)
        for name, data in CONTENTS.items():
            (directory / name).write_bytes(data)
        (directory / "directory").mkdir()
        (directory / "not-empty").mkdir()
        (directory / "not-empty" / "file").touch()
        os.mkfifo(directory / "pipe")
        (directory / "dangling").symlink_to(directory / "nowhere")
        (directory / "loop").symlink_to(directory / "loop")
        (directory / "unreadable").write_bytes(b"THE-SECRET")
        (directory / "unreadable").chmod(0)
        with open(directory / "huge-and-sparse", "wb") as file:
            file.truncate(HUGE)
        with open(directory / "huge-and-dense", "wb") as file:
            for _ in range(HUGE // 2**20):
                file.write(b"# all work and no play #\n" * (2**20 // 25))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{directory}/socket")
        keys(directory)
        return cabinet

    def path(self, name: str) -> str:
        """Where it is; `endless` and `null` are the system's own devices, `absent` and `below-a-file` are nowhere."""
        places = {"endless": "/dev/zero", "null": "/dev/null", "below-a-file": str(self.directory / "empty" / "x")}
        return places.get(name, str(self.directory / name))


CONTENTS: Final[Mapping[str, bytes]] = {
    "empty": b"",
    "garbage": bytes(range(256)) * 8,
    "zeros": bytes(4096),
    "not-utf8": b'{"a": "\xff\xfe\xc3("}\n',
    "list.json": b"[]\n",
    "number.json": b"1e999\n",
    "wrong-types.json": b'{"schemaVersion": "one", "ciReleaseKey": 7, "hosts": [], "meta": null, "claims": [0]}\n',
    "deep.json": b"[" * 100_000,
    "deep.toml": b"a = " + b"[" * 100_000,
    "cut.json": b'{"schemaVersion": 1, "ciReleaseKey": {"cur',
    "cut.pem": b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw",
    "empty.pem": b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n",
    **{
        f"garbage-{name}.pem": f"-----BEGIN {what}-----\nVEhFLVNFQ1JFVA==\n-----END {what}-----\n".encode()
        for name, what in (("key", "PRIVATE KEY"), ("openssh", "OPENSSH PRIVATE KEY"), ("certificate", "CERTIFICATE"))
    },
}

NO_FILE: Final = ("absent", "directory", "pipe", "socket", "endless", "null", "dangling", "loop", "below-a-file")
"""Wrong wherever a file is to be read; `null` as it is empty."""

NO_CONTENT: Final = (*CONTENTS, "huge-and-sparse", "huge-and-dense")
"""Files that hold nothing any option asks for."""

KEY_KINDS: Final = ("rsa", "ecdsa", "ecdsa-p384", "ed25519-encrypted", "rsa-pem", "ed25519-public")
"""Real keys, none of which is an unencrypted ed25519 private key."""


def keys(directory: Path) -> None:
    """Make `KEY_KINDS` with ssh-keygen."""
    wanted = {
        "rsa": ("-t", "rsa", "-b", "2048"),
        "ecdsa": ("-t", "ecdsa", "-b", "256"),
        "ecdsa-p384": ("-t", "ecdsa", "-b", "384"),
        "rsa-pem": ("-t", "rsa", "-b", "2048", "-m", "PEM"),
        "ed25519-encrypted": ("-t", "ed25519"),
    }
    for name, words in wanted.items():
        secret = "THE-SECRET" if name.endswith("encrypted") else ""
        command = ["ssh-keygen", "-q", *words, "-N", secret, "-C", "", "-f", f"{directory}/{name}"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    shutil.copy(directory / "ed25519-encrypted.pub", directory / "ed25519-public")


# The warm process


def _serve(module: str, preload: Sequence[str]) -> None:
    main = importlib.import_module(module).main
    for name in preload:
        importlib.import_module(name)
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        done = _run_all(*json.loads(line), main=main)
        with open(answers, "wb", closefd=False) as out:
            out.write(json.dumps(done).encode() + b"\n")


def _run_all(at_once: int, calls: list[dict[str, Any]], *, main: Any) -> list[tuple[int, str, str]]:
    waiting, running = list(enumerate(calls))[::-1], dict[int, tuple[int, int, int, float]]()
    done: dict[int, tuple[int, str, str]] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number, call = waiting.pop()
            out, err = os.memfd_create("out"), os.memfd_create("err")
            pid = _fork(call, main, out, err)
            running[pid] = (number, out, err, time.monotonic() + DEADLINE_S)
        for pid, (number, out, err, deadline) in list(running.items()):
            status = _status_of(pid, time.monotonic() > deadline)
            if status is not None:
                del running[pid]
                done[number] = (status, _content(out), _content(err))
        time.sleep(0.002)
    return [done[number] for number in range(len(calls))]


def _fork(call: dict[str, Any], main: Any, out: int, err: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        status = _call(call, main)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _call(call: dict[str, Any], main: Any) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.clear()
    os.environ.update({"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8", **call["environment"]})
    sys.argv = [sys.argv[0], *call["words"]]
    if call["nobody"]:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    return main() or 0


def _status_of(pid: int, late: bool) -> int | None:
    """How a child ended; None while it runs. One that is late is killed with all it started."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        return os.waitstatus_to_exitcode(status)
    if late:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return HUNG
    return None


def _content(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb") as file:
        return file.read(200_000).decode("utf-8", "backslashreplace")


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
