"""The operator's hooks and session locks, with real executables: what they are told, what they can stop, and limits."""

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from evidence.host_key import HostKey, load_host_key
from nixfleet_agent.clock import now
from nixfleet_agent.config import read_config
from nixfleet_agent.desk import Desk, Uplink
from nixfleet_agent.options import Raw
from nixfleet_agent.telemetry import Telemetry
from nixfleet_agent.workers.hooks import OUTPUT_BYTES, REASON_BYTES, HookWorker, executables
from nixfleet_agent.workers.reboot import RebootWorker, ask_systemd, held_lock
from state_machine.actions import Reboot, RunHooks
from state_machine.events import Event, HooksFinished, RebootDelayed
from state_machine.state import State
from state_machine.values import Basis, Closure, HookMoment, OpId, RolloutId
from tests.nonsense import IS_ROOT, NOT_ROOT

OLD: Final = Closure("0" * 32 + "-nixos-old")
NEW: Final = Closure("1" * 32 + "-nixos-new")
ROLLOUT: Final = RolloutId("gradient@00000001")
BEFORE, SUCCESS, ROLLBACK = HookMoment.BEFORE_SWITCH, HookMoment.AFTER_SUCCESS, HookMoment.AFTER_ROLLBACK


class Desks:
    """A desk whose agent is configured with a directory of hooks, and what workers told it."""

    def __init__(self, root: Path, host_key: HostKey) -> None:
        self.root, self.hooks, self._host_key = root, root / "hooks", host_key
        self.hooks.mkdir(mode=0o755)
        self.told: list[Event] = []

    def hook(self, name: str, script: str, mode: int = 0o755) -> Path:
        """An executable; `$OUT` is where tests look."""
        path = self.hooks / name
        path.write_text(f"#!/bin/sh\nOUT={self.root}\n{script}\n")
        path.chmod(mode)
        return path

    def desk(self, **options: str) -> Desk:
        raw: Raw = {
            "control_plane_url": ("https://cp.example",),
            "machine_id": ("node7",),
            "client_cert": ("/nowhere/cert.pem",),
            "hooks_dir": (str(self.hooks),),
            **{name: tuple(text.split(",")) for name, text in options.items()},
        }
        return Desk(
            config=read_config(raw),
            host_key=self._host_key,
            clock=now,
            tell=self._tell,
            state=State,
            uplink=Uplink(now),
            telemetry=Telemetry(),
            jitter=lambda: 0.25,
        )

    async def _tell(self, event: Event) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(event)

    async def ask(self, moment: HookMoment = BEFORE, **options: str) -> HooksFinished:
        """Run the hooks of a moment."""
        order = RunHooks(op=OpId(7), moment=moment, rollout_id=ROLLOUT, closure=NEW, before=OLD, basis=Basis.CACHE_KEY)
        await HookWorker(self.desk(**options)).run(order)
        answer = self.told[-1]
        assert isinstance(answer, HooksFinished)
        assert answer.op == 7
        return answer

    def out(self, name: str = "out") -> str:
        path = self.root / name
        return path.read_text() if path.exists() else ""


@pytest.fixture
def desks(tmp_path: Path, host_key: HostKey) -> Desks:
    return Desks(tmp_path, host_key)


@pytest.fixture(scope="module")
def host_key(tmp_path_factory: pytest.TempPathFactory) -> HostKey:
    path = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return load_host_key(path)


# What they are told


async def test_hooks_run_in_the_order_of_their_names_with_the_moment_as_argument(desks: Desks) -> None:
    for name in ("20-second", "10-first", "30-third"):
        desks.hook(name, f'echo "{name} $*" >> $OUT/out')
    answer = await desks.ask()
    assert desks.out().splitlines() == [f"{name} before-switch" for name in ("10-first", "20-second", "30-third")]
    assert answer.veto == ""
    assert answer.output == "10-first: ok\n20-second: ok\n30-third: ok"


@pytest.mark.parametrize("moment", HookMoment)
async def test_the_facts_are_on_standard_input_as_json(desks: Desks, moment: HookMoment) -> None:
    desks.hook("look", "cat > $OUT/out; pwd > $OUT/where")
    await desks.ask(moment)
    assert json.loads(desks.out()) == {
        "moment": moment.value,
        "op": 7,
        "host": "node7",
        "rollout": ROLLOUT,
        "closure": NEW,
        "before": OLD,
        "basis": "cache-key",
    }
    assert desks.out("where") == "/\n"


async def test_a_hook_that_does_not_read_is_none_the_worse(desks: Desks) -> None:
    desks.hook("deaf", "exec 0<&-; exit 0")
    assert (await desks.ask()).veto == ""


# What they can stop


async def test_a_hook_that_fails_before_a_switch_vetoes_with_the_last_line_of_what_it_said(desks: Desks) -> None:
    desks.hook("10-fine", "echo all well")
    desks.hook("20-backup", "echo looking; echo 'a backup runs until 05:00' >&2; exit 3")
    desks.hook("30-after", "touch $OUT/out")
    answer = await desks.ask()
    assert answer.veto == "20-backup: a backup runs until 05:00"
    assert answer.output == "10-fine: all well\n20-backup: looking\na backup runs until 05:00"
    assert not (desks.root / "out").exists(), "the hooks after a veto are not asked"
    assert answer.jitter == 0.25


async def test_a_veto_without_a_word_says_the_exit_status(desks: Desks) -> None:
    desks.hook("silent", "exit 3")
    answer = await desks.ask()
    assert (answer.veto, answer.output) == ("silent: exit status 3", "silent: exit status 3")


async def test_a_hook_that_is_killed_vetoes(desks: Desks) -> None:
    desks.hook("gone", "kill -9 $$")
    assert (await desks.ask()).veto == "gone: exit status -9"


@pytest.mark.parametrize("moment", [SUCCESS, ROLLBACK])
async def test_a_failure_afterwards_is_told_and_keeps_nobody_from_being_told(desks: Desks, moment: HookMoment) -> None:
    desks.hook("10-broken", "echo no chat today; exit 1")
    desks.hook("20-next", "touch $OUT/out")
    answer = await desks.ask(moment)
    assert (answer.veto, answer.output) == ("", "10-broken: no chat today\n20-next: ok")
    assert (desks.root / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda path: path.rename(path.with_name("elsewhere")), "No such file or directory"),
        (lambda path: (path.rename(path.with_name("elsewhere")), path.touch()), "Not a directory"),
        (lambda path: path.chmod(0o775), "can be written by others; chmod go-w"),
        (lambda path: (path / "hook").chmod(0o757), "hook can be written by others; chmod go-w"),
        (lambda path: (path / "lost").symlink_to("nowhere"), "lost leads nowhere"),
        (lambda path: (path / "hook").write_text("#!/no/such/interpreter\n"), "cannot run"),
        (lambda path: (path / "hook").write_bytes(b"\x00\x01"), "Exec format error"),
    ],
)
async def test_hooks_that_cannot_be_asked_veto(desks: Desks, spoil: Callable[[Path], object], complaint: str) -> None:
    desks.hook("hook", "touch $OUT/out")
    spoil(desks.hooks)
    answer = await desks.ask()
    assert complaint in answer.veto
    assert not (desks.root / "out").exists()
    afterwards = await desks.ask(SUCCESS)
    assert afterwards.veto == ""
    assert complaint in afterwards.output


@pytest.mark.skipif(not IS_ROOT, reason=NOT_ROOT)
@pytest.mark.parametrize("what", ["directory", "hook"])
async def test_hooks_of_another_user_are_not_run_by_root(desks: Desks, what: str) -> None:
    path = desks.hook("hook", "touch $OUT/out")
    os.chown(desks.hooks if what == "directory" else path, 65534, 65534)
    answer = await desks.ask()
    assert "belongs to another user; chown it to root" in answer.veto
    assert not (desks.root / "out").exists()


def test_what_is_not_executable_or_left_over_by_an_editor_is_no_hook(desks: Desks) -> None:
    wanted = desks.hook("10-hook", "true")
    desks.hook("README", "true", mode=0o644)
    desks.hook(".10-hook.swp", "true")
    desks.hook("10-hook~", "true")
    (desks.hooks / "lib").mkdir()
    linked = desks.hooks / "20-linked"
    linked.symlink_to(wanted)
    assert executables(desks.hooks) == [wanted, linked]
    assert executables(None) == []


# Limits


async def test_a_hook_past_the_deadline_is_killed_with_its_children_and_vetoes(desks: Desks) -> None:
    desks.hook("slow", "echo waiting; sleep 1000 & echo $! > $OUT/child; echo $$ > $OUT/pid; wait")
    desks.hook("then", "touch $OUT/out")
    answer = await desks.ask(hook_timeout="1")
    assert answer.veto == "slow: no answer: the deadline of 1 s for all hooks has passed"
    assert "slow: waiting" in answer.output
    for name in ("pid", "child"):
        assert not _runs(int(desks.out(name)))
    assert not (desks.root / "out").exists()


async def test_the_hooks_of_one_moment_share_the_deadline(desks: Desks) -> None:
    """Else many of them would outlast the time after which the reducer asks again."""
    desks.hook("10-slow", "sleep 1000")
    desks.hook("20-late", "touch $OUT/out")
    answer = await desks.ask(SUCCESS, hook_timeout="1")
    assert answer.output.count("the deadline of 1 s for all hooks has passed") == 2
    assert not (desks.root / "out").exists()


async def test_what_hooks_say_is_bounded_and_its_end_is_kept(desks: Desks) -> None:
    desks.hook("loud", f'{sys.executable} -c \'print("x" * 5000000); print("reason " * 1000)\' >&2; exit 1')
    answer = await desks.ask()
    assert len(answer.output.encode()) <= OUTPUT_BYTES
    assert answer.output.endswith("reason")
    assert len(answer.veto.encode()) <= REASON_BYTES


async def test_what_is_no_text_can_be_journaled_all_the_same(desks: Desks) -> None:
    name = os.fsdecode(b"10-\xff")
    desks.hook(name, "printf '\\377\\376 no'; exit 1")
    answer = await desks.ask()
    assert answer.veto.encode().decode() == "10-?: �� no"
    assert answer.output.encode()


# Session locks and reboots


def test_a_session_lock_holds_while_the_file_is_there(tmp_path: Path) -> None:
    lock, other = tmp_path / "session.lock", tmp_path / "other.lock"
    assert held_lock([]) == held_lock([lock, other]) == ""
    other.touch()
    assert held_lock([lock, other]) == f"{other} is there"
    with other.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert held_lock([lock, other]) == f"{other} is there and locked"
    other.unlink()
    assert held_lock([lock, other]) == ""


def test_a_lock_that_cannot_be_looked_at_counts_as_held(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert held_lock([tmp_path / "file" / "lock"]) == f"{tmp_path}/file/lock cannot be looked at: Not a directory"
    os.mkfifo(tmp_path / "pipe")
    assert held_lock([tmp_path / "pipe"]) == f"{tmp_path}/pipe is there"


ORDER: Final = Reboot(op=OpId(3), rollout_id=ROLLOUT, closure=NEW)


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """A `systemctl` on PATH that records its words and then does as the test says."""

    def make(script: str) -> Path:
        directory, record = tmp_path / "bin", tmp_path / "calls"
        directory.mkdir()
        program = directory / "systemctl"
        program.write_text(f'#!/bin/sh\necho "$*" >> {record}\n{script}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        return record

    return make


async def rebooted(desks: Desks, **options: str) -> list[Any]:
    await RebootWorker(desks.desk(**options), ask_systemd).reboot(ORDER)
    return desks.told


async def test_a_reboot_is_asked_of_systemd_once_and_answers_for_itself(
    desks: Desks, systemctl: Callable[[str], Path]
) -> None:
    record = systemctl("exit 0")
    assert await rebooted(desks) == []
    assert record.read_text() == "--no-block reboot\n"


async def test_a_session_lock_keeps_the_host_up_and_systemd_is_not_asked(
    desks: Desks, systemctl: Callable[[str], Path]
) -> None:
    record, lock = systemctl("exit 0"), desks.root / "session.lock"
    lock.touch()
    [answer] = await rebooted(desks, session_lock=f"{desks.root / 'absent'},{lock}")
    assert isinstance(answer, RebootDelayed)
    assert (answer.op, answer.locked, answer.detail) == (3, True, f"{lock} is there")
    assert not record.exists()


async def test_what_systemd_has_against_it_is_told(desks: Desks, systemctl: Callable[[str], Path]) -> None:
    systemctl("echo 'Failed to reboot: access denied' >&2; exit 1")
    [answer] = await rebooted(desks)
    assert isinstance(answer, RebootDelayed)
    assert (answer.locked, answer.detail) == (False, "systemctl --no-block reboot: Failed to reboot: access denied")


async def test_a_host_without_systemd_says_so(desks: Desks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(desks.root))
    [answer] = await rebooted(desks)
    assert isinstance(answer, RebootDelayed)
    assert "cannot run systemctl" in answer.detail


def _runs(pid: int) -> bool:
    """Some process has that number still; one that was just killed is given a moment to go."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return True
