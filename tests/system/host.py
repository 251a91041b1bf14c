"""A host: real systemd as PID 1 over a writable layer of this machine's root, with a disk that survives a power cut.

It boots in about a second. Its disk is at `disk`, whether it runs or not; `live` is all it sees while it runs, `/run`
and `/proc` too. What it runs is in namespaces of its own: killing its first process is a power cut.

`NIXFLEET_LAB_ROOT` names another root to stand on, a Debian 13 made by debootstrap, say; the checkout and the
interpreter of the tests are bound into it.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final
from uuid import uuid4

import attrs
import trio

from tests.system.network import Switch

LAB_ROOT: Final = os.environ.get("NIXFLEET_LAB_ROOT", "/")
CHECKOUT: Final = Path(__file__).resolve().parents[2]
_BOOT: Final = Path(__file__).with_name("boot.sh")
_BOOT_PATIENCE_S: Final = 60.0
_NAMESPACES: Final = ("--pid", "--mount", "--uts", "--ipc", "--cgroup", "--net", "--fork", "--propagation", "private")
_IN_CGROUP: Final = ("sh", "-euc", 'echo $$ > "$0/cgroup.procs"; exec "$@"')
_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_INOTIFY: Final = Path("/proc/sys/fs/inotify/max_user_instances")
_INOTIFY_NEEDED: Final = 2048
"""Each systemd takes three, and the usual 128 are meant for one machine. A systemd that gets none just ends."""


class CommandFailedError(AssertionError):
    """A command in a host ended badly."""


@functools.cache
def _make_room() -> None:
    if int(_INOTIFY.read_text()) < _INOTIFY_NEEDED:
        _INOTIFY.write_text(f"{_INOTIFY_NEEDED}\n")


@functools.cache
def _cgroups() -> Path:
    """Where this machine's cgroups of version 2 are."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return next(Path(target) for _, target, kind, *_ in mounts if kind == "cgroup2")


def seen_by_all() -> dict[Path, str]:
    """What every host sees of the machine, and how: this checkout, and the interpreter that runs it."""
    return dict.fromkeys((CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)), "ro")


@attrs.define(kw_only=True)
class Host:
    """One host. `shared` are directories of the machine that it sees: source to target."""

    name: str
    directory: Path
    switch: Switch
    shared: Mapping[Path, str] = attrs.field(factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    pid: int | None = None

    @property
    def address(self) -> str:
        """On the lab's network."""
        return self.switch.address(self.name)

    @property
    def disk(self) -> Path:
        """The host's disk."""
        root = self.directory / "root"
        if not root.exists():
            self._make_disk(root)
        return root

    def _make_disk(self, root: Path) -> None:
        for part in (root, self.directory / "upper", self.directory / "work"):
            part.mkdir(parents=True)
        own_store = self.directory / "upper" / "nix"
        own_store.mkdir()
        # Nothing of a store that the machine may have shines through.
        os.setxattr(own_store, "trusted.overlay.opaque", b"y")
        layers = f"lowerdir={LAB_ROOT},upperdir={self.directory}/upper,workdir={self.directory}/work"
        subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", str(root)], check=True)

    @property
    def live(self) -> Path:
        """The host's whole file system, while it runs."""
        assert self.pid is not None, f"{self.name} is off"
        return Path(f"/proc/{self.pid}/root")

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file on the disk."""
        target = self.disk / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def read(self, path: str) -> str:
        """A file of the disk; empty when there is none."""
        target = self.disk / path.lstrip("/")
        return target.read_text() if target.exists() else ""

    # Power

    async def boot(self) -> None:
        """Switch it on; returns when its units have started, well or not."""
        assert self.process is None, f"{self.name} is on"
        assert self.disk.exists()
        _make_room()
        (self.directory / "boot_id").write_text(f"{uuid4()}\n")
        shared = [f"{source}={source}={mode}" for source, mode in seen_by_all().items()]
        shared += [f"{source}={target}=rw" for source, target in self.shared.items()]
        # A test that is killed must not leave machines running.
        self._cgroup.mkdir(exist_ok=True)
        own = ["setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child", *_NAMESPACES]
        words = [*_IN_CGROUP, str(self._cgroup), *own, "bash", str(_BOOT), str(self.directory), self.name, *shared]
        with (self.directory / "console").open("ab") as console:
            self.process = self._start(words, console)
        with trio.move_on_after(_BOOT_PATIENCE_S):
            self.pid = await self._first_process()
            self.switch.plug_in(self.name, self.pid)
            while (await self.attempt("systemctl", "is-system-running", "--wait")).strip() not in (
                "running",
                "degraded",
            ):
                assert self.process.poll() is None, self._console("ended while it booted")
                await trio.sleep(0.1)
            return
        raise AssertionError(self._console(f"did not boot within {_BOOT_PATIENCE_S:g} s"))

    @staticmethod
    def _start(words: list[str], console: BinaryIO) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True)

    async def _first_process(self) -> int:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while True:
            with contextlib.suppress(OSError):
                if found := children.read_text().split():
                    return int(found[0])
            assert self.process.poll() is None, self._console("ended before it began")
            await trio.sleep(0.02)

    def _console(self, what: str) -> str:
        return f"{self.name} {what}:\n{(self.directory / 'console').read_text()[-4000:]}"

    def power_cut(self) -> None:
        """Everything ends at once; the disk stays."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        elif self.process is not None:
            self.process.kill()  # its first process, which goes with it, was not found yet
        self._gone()

    async def shut_down(self) -> None:
        """As `systemctl poweroff`: units are stopped in good order."""
        assert self.process is not None
        await self.attempt("systemctl", "poweroff")
        with trio.fail_after(_BOOT_PATIENCE_S):
            while self.process.poll() is None:
                await trio.sleep(0.05)
        self._gone()

    async def reboot(self) -> None:
        """Shut down, and boot."""
        await self.shut_down()
        await self.boot()

    @property
    def _cgroup(self) -> Path:
        """The host's own: in one that hosts share, each one's systemd would find the processes of all in its units."""
        return _cgroups() / f"{self.switch.namespace}-{self.name}"

    def _gone(self) -> None:
        if self.process is not None:
            self.process.wait()
        self.process = self.pid = None
        for directory, _, _ in os.walk(self._cgroup, topdown=False):
            with contextlib.suppress(OSError):  # the last of its processes may still be on its way out
                os.rmdir(directory)

    def destroy(self) -> None:
        """Off, and the disk is gone."""
        self.power_cut()
        if (self.directory / "root").exists():
            subprocess.run(["umount", "--lazy", str(self.directory / "root")], check=True)
        shutil.rmtree(self.directory)

    # Commands

    def words(self, *command: str, **environment: str) -> list[str]:
        """How the machine runs a command in the host."""
        assert self.pid is not None, f"{self.name} is off"
        settings = [f"{name}={value}" for name, value in {**_ENVIRONMENT, **environment}.items()]
        return ["nsenter", "-t", str(self.pid), "-a", "--", "env", "-i", *settings, *command]

    async def run(self, *command: str, **environment: str) -> str:
        """A command in the host, to its good end; what it wrote to standard output.

        Raises:
            CommandFailedError: it ended badly.
        """
        done = await trio.run_process(
            self.words(*command, **environment), capture_stdout=True, capture_stderr=True, check=False
        )
        if done.returncode != 0:
            said = (done.stdout + done.stderr).decode("utf-8", "replace")
            raise CommandFailedError(f"{self.name}: {' '.join(command)}: exit {done.returncode}: {said}")
        return done.stdout.decode("utf-8", "replace")

    async def attempt(self, *command: str) -> str:
        """A command in the host that may fail; what it wrote to standard output."""
        done = await trio.run_process(self.words(*command), capture_stdout=True, capture_stderr=True, check=False)
        return done.stdout.decode("utf-8", "replace")

    async def systemctl(self, *words: str) -> str:
        """`systemctl WORDS`."""
        return await self.run("systemctl", *words)

    async def journal_of(self, unit: str, lines: int = 80) -> str:
        """The last of what a unit logged."""
        return await self.attempt("journalctl", "--no-pager", "--output=short-precise", f"--lines={lines}", "-u", unit)

    # What the kernel's books say of a service

    def resident_mib(self, unit: str) -> float:
        """Memory that the unit's processes occupy now."""
        pids = (self._books_of(unit) / "cgroup.procs").read_text().split()
        lines = (line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024

    def processor_s_of(self, unit: str) -> float:
        """Processor time that the unit's processes have used since it was started, in seconds."""
        stat = (self._books_of(unit) / "cpu.stat").read_text()
        return int(dict(line.split() for line in stat.splitlines())["usage_usec"]) / 1e6

    def _books_of(self, unit: str) -> Path:
        return self.live / "sys/fs/cgroup/system.slice" / unit

    # Cable

    def cut(self) -> None:
        """Pull the network cable."""
        self.switch.cut(self.name)

    def mend(self) -> None:
        """Put it back."""
        self.switch.mend(self.name)


def why_not() -> str | None:
    """Why this machine cannot have hosts; None when it can."""
    if os.geteuid() != 0:
        return "needs root"
    needed: Sequence[str] = ("setpriv", "unshare", "nsenter", "ip", "nix-build", "/lib/systemd/systemd", "dbus-daemon")
    missing = [program for program in needed if shutil.which(program) is None]
    return f"needs {', '.join(missing)}" if missing else None
