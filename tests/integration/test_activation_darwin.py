"""The Mac's way of activating, with scripts that record what was run; the rest is the same code as on Linux.

`launchctl` is a recording script as well, which ends the agent's process group as launchd does.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import psutil
import pytest
import trio

from nixfleet_agent.activation.darwin import BOOT_ID_COMMANDS, DarwinPlatform, read_boot_session
from nixfleet_agent.activation.detached import DetachedRunner
from nixfleet_agent.activation.platforms import platform_for
from state_machine.system import SwitchOutcome
from state_machine.values import Closure, SwitchMethod
from tests.nixlab import DirectoryPublisher, Host

RECORD = '#!/bin/sh\necho "{name}" >> "$NIXFLEET_CURRENT_SYSTEM.log"\n'
FLIP = 'self=${0%/activate}; ln -sfn "$NIXFLEET_STORE/${self##*/}" "$NIXFLEET_CURRENT_SYSTEM"\n'
USER = RECORD.format(name="activate-user")
SYSTEM = RECORD.format(name="activate") + FLIP
WAIT = 'echo $$ > "$NIXFLEET_CURRENT_SYSTEM.in"; until [ -e "$NIXFLEET_CURRENT_SYSTEM.go" ]; do sleep 0.02; done\n'

AGENT = """
import json, sys, trio
from nixfleet_agent.activation.cache_keys import TrustedKeys
from nixfleet_agent.activation.darwin import DarwinPlatform
from nixfleet_agent.activation.directory_store import DirectoryStore
from nixfleet_agent.activation.paths import Paths
paths = Paths(**json.loads(sys.argv[1]))
store = DirectoryStore(paths=paths, trusted=TrustedKeys())
platform = DarwinPlatform(paths=paths, store=store, boot_id_commands=[["echo", "a-session"]])
trio.run(platform.switch, "op-1", sys.argv[2])
"""
"""An agent's activation in a process of its own, to be killed."""

LAUNCHCTL = """#!/bin/sh
echo "launchctl $*" >> "$NIXFLEET_CURRENT_SYSTEM.log"
case $1 in unload) kill -9 "-$(cat "$NIXFLEET_CURRENT_SYSTEM.agent")" ;; esac
"""


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> DirectoryPublisher:
    return DirectoryPublisher.at(tmp_path_factory.mktemp("publisher"))


@pytest.fixture
def host(publisher: DirectoryPublisher, tmp_path: Path) -> Host:
    return publisher.host(tmp_path)


@pytest.fixture(autouse=True)
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("NIXFLEET_CURRENT_SYSTEM", "").startswith(f"{tmp_path}/"):
            process.kill()


def mac(host: Host, *, session: str = "a-session") -> DarwinPlatform:
    runner = DetachedRunner(method=SwitchMethod.DARWIN_ACTIVATE, grace_s=0.2)
    return DarwinPlatform(paths=host.paths, store=host.store, runner=runner, boot_id_commands=[["echo", session]])


def agent(host: Host, new: Closure, **environment: str) -> "subprocess.Popen[bytes]":
    words = [sys.executable, "-c", AGENT, json.dumps(attrs.asdict(host.paths)), new]
    process = subprocess.Popen(words, env={**os.environ, **environment}, start_new_session=True)
    host.note(".agent").write_text(str(process.pid))
    return process


async def until(path: Path) -> str:
    with trio.fail_after(20):
        while not (path.exists() and path.read_text().endswith("\n")):
            await trio.sleep(0.005)
    return path.read_text()


def job(host: Host, name: str) -> Path:
    return Path(host.paths.work, "op-1", name)


async def installed(host: Host, publisher: DirectoryPublisher, files: dict[str, str]) -> tuple[Closure, Closure]:
    old, new = publisher.publish("good", files={"activate": SYSTEM}), publisher.publish("good", files=files)
    await host.starts_on(old)
    assert (await mac(host).realise(new, caches=[host.cache])).ok
    return old, new


async def test_both_scripts_run_the_users_first(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, {"activate": SYSTEM, "activate-user": USER})
    assert mac(host).method() is SwitchMethod.DARWIN_ACTIVATE
    report = await mac(host).switch("op-1", new)
    assert (report.outcome, report.exit_code, report.observed) == (SwitchOutcome.SWITCHED, 0, new)
    assert report.method is SwitchMethod.DARWIN_ACTIVATE
    assert host.runs() == ["activate-user", "activate"]
    view = mac(host).observe()
    assert (view.running, view.profile, view.booted, view.boot_id) == (new, new, None, "a-session")


async def test_a_system_without_a_user_script_is_activated_too(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, {"activate": SYSTEM})
    assert (await mac(host).switch("op-1", new)).outcome is SwitchOutcome.SWITCHED
    assert host.runs() == ["activate"]


async def test_a_failing_user_script_stops_the_activation(host: Host, publisher: DirectoryPublisher) -> None:
    old, new = await installed(host, publisher, {"activate": SYSTEM, "activate-user": USER + "echo no >&2; exit 3\n"})
    report = await mac(host).switch("op-1", new)
    assert (report.outcome, report.exit_code, report.observed) == (SwitchOutcome.FAILED, 3, old)
    assert report.detail == "no"
    assert host.runs() == ["activate-user"]


@pytest.mark.parametrize(
    ("files", "code", "runs"),
    [
        ({"activate-user": USER + "exit 1\n"}, 1, ["activate-user"]),
        ({"activate-user": USER + "kill -9 $$\n"}, 137, ["activate-user"]),
        ({"activate-user": "not a program"}, 126, []),
        ({"activate": SYSTEM + "exit 4\n"}, 4, ["activate"]),
        ({"activate": SYSTEM + "kill -15 $$\n"}, 143, ["activate"]),
        ({"activate-user": USER, "activate": SYSTEM + "exit 255\n"}, 255, ["activate-user", "activate"]),
    ],
)
async def test_the_exit_status_is_that_of_the_script_that_ended_the_activation(
    host: Host, publisher: DirectoryPublisher, files: dict[str, str], code: int, runs: list[str]
) -> None:
    _, new = await installed(host, publisher, {"activate": SYSTEM, **files})
    report = await mac(host).switch("op-1", new)
    assert (report.outcome, report.exit_code) == (SwitchOutcome.FAILED, code)
    assert host.runs() == runs


async def test_a_user_script_that_is_there_for_old_tools_only_is_not_run(
    host: Host, publisher: DirectoryPublisher
) -> None:
    stub = "#!/bin/sh\n# nix-darwin: deprecated\n" + USER.removeprefix("#!/bin/sh\n")
    _, new = await installed(host, publisher, {"activate": SYSTEM, "activate-user": stub})
    assert (await mac(host).switch("op-1", new)).outcome is SwitchOutcome.SWITCHED
    assert host.runs() == ["activate"]


async def test_an_activation_knows_whose_it_is_and_nothing_else_of_the_agent(
    host: Host, publisher: DirectoryPublisher
) -> None:
    _, new = await installed(host, publisher, {"activate": SYSTEM + "env; pwd; umask; cat; exit 9\n"})
    agents = {"PATH": os.environ["PATH"], "XPC_SERVICE_NAME": "com.nixfleet.agent", "NIXFLEET_AGENT_TAG": "x"}
    process = agent(host, new, **agents)
    assert await trio.to_thread.run_sync(process.wait) == 0
    lines = (await until(job(host, "log"))).splitlines()
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    assert seen.items() >= {"HOME": os.environ.get("HOME", "/var/root"), "USER": os.environ.get("USER", "root")}.items()
    assert {"LOGNAME", "NIXFLEET_CURRENT_SYSTEM", "NIXFLEET_STORE"} <= set(seen)
    assert not seen.keys() & {"XPC_SERVICE_NAME", "NIXFLEET_AGENT_TAG"}
    assert {"/run/current-system/sw/bin", "/usr/bin", "/bin"} <= set(seen["PATH"].split(":"))
    assert lines[-2:] == ["/", "0022"], "working directory, umask, and nothing on standard input"


async def test_a_daemon_without_a_name_activates_as_root(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, {"activate": SYSTEM + 'echo "$HOME $USER $LOGNAME"; exit 9\n'})
    words = [sys.executable, "-c", AGENT, json.dumps(attrs.asdict(host.paths)), new]
    bare = {"PATH": os.environ["PATH"]}
    assert await trio.to_thread.run_sync(lambda: subprocess.run(words, env=bare, check=False).returncode) == 0
    assert await until(job(host, "log")) == "/var/root root root\n"


async def test_both_scripts_run_in_one_session_that_is_not_the_agents(
    host: Host, publisher: DirectoryPublisher
) -> None:
    session = "ps -o sid= -p $$\n"
    _, new = await installed(host, publisher, {"activate": SYSTEM + session, "activate-user": USER + session})
    assert (await mac(host).switch("op-1", new)).outcome is SwitchOutcome.SWITCHED
    sessions = [int(line) for line in (await until(job(host, "log"))).split()]
    assert len(sessions) == 2
    assert set(sessions) == {int(job(host, "started").read_text())}
    assert os.getsid(0) not in sessions


async def test_what_both_scripts_say_is_in_the_orders_log(host: Host, publisher: DirectoryPublisher) -> None:
    files = {"activate-user": USER + "echo one; echo two >&2\n", "activate": SYSTEM + "echo three; echo four >&2\n"}
    _, new = await installed(host, publisher, files)
    assert (await mac(host).switch("op-1", new)).outcome is SwitchOutcome.SWITCHED
    assert (await until(job(host, "log"))).split() == ["one", "two", "three", "four"]
    assert job(host, "exit").read_text() == "0\n"


async def test_the_profile_is_set_before_anything_is_activated(host: Host, publisher: DirectoryPublisher) -> None:
    look = f'readlink -f "{host.paths.profile}"\n'
    _, new = await installed(host, publisher, {"activate": SYSTEM, "activate-user": USER + look})
    assert (await mac(host).switch("op-1", new)).outcome is SwitchOutcome.SWITCHED
    assert (await until(job(host, "log"))).strip() == host.paths.files(new)


async def test_an_activation_that_ends_well_and_leaves_another_system_running_is_a_mismatch(
    host: Host, publisher: DirectoryPublisher
) -> None:
    old, new = await installed(host, publisher, {"activate": RECORD.format(name="activate")})
    report = await mac(host).switch("op-1", new)
    assert (report.outcome, report.exit_code, report.observed) == (SwitchOutcome.VERIFY_MISMATCH, 0, old)


async def test_a_moved_link_is_no_end_of_an_activation(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, {"activate": SYSTEM + WAIT + "exit 5\n"})
    reports = []

    async def switch() -> None:
        reports.append(await mac(host).switch("op-1", new))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(switch)
        await until(host.note(".in"))
        assert mac(host).observe().running == new
        assert reports == []
        host.note(".go").touch()
    assert (reports[0].outcome, reports[0].exit_code) == (SwitchOutcome.FAILED, 5)


@pytest.mark.parametrize("which", ["activate-user", "activate"])
async def test_a_script_that_hangs_is_killed_at_the_deadline(
    host: Host, publisher: DirectoryPublisher, which: str
) -> None:
    script = RECORD.format(name=which) + "trap '' TERM\n" + WAIT
    old, new = await installed(host, publisher, {"activate": SYSTEM, which: script})
    report = await mac(host).switch("op-1", new, timeout_s=0.5)
    assert (report.outcome, report.observed) == (SwitchOutcome.TIMEOUT, old)
    pid = int(await until(host.note(".in")))
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert host.runs() == [which]


async def test_a_rollback_runs_both_scripts_of_the_system_that_was_left(
    host: Host, publisher: DirectoryPublisher
) -> None:
    old = publisher.publish("good", files={"activate": SYSTEM, "activate-user": USER})
    new = publisher.publish("good", files={"activate": SYSTEM + "exit 2\n"})
    await host.starts_on(old)
    assert (await mac(host).realise(new, caches=[host.cache])).ok
    assert (await mac(host).switch("op-1", new)).outcome is SwitchOutcome.FAILED
    assert (await mac(host).rollback("op-2", old)).outcome is SwitchOutcome.SWITCHED
    assert host.runs() == ["activate", "activate-user", "activate"]
    view = mac(host).observe()
    assert (view.running, view.profile) == (old, old)


@pytest.mark.parametrize("where", ["activate-user", "activate"])
async def test_an_agent_killed_in_the_middle_is_succeeded_by_one_that_runs_neither_script_twice(
    host: Host, publisher: DirectoryPublisher, where: str
) -> None:
    files = {"activate-user": USER, "activate": SYSTEM}
    _, new = await installed(host, publisher, files | {where: files[where] + WAIT})
    process = agent(host, new)
    await until(host.note(".in"))
    os.killpg(process.pid, signal.SIGKILL)
    await trio.to_thread.run_sync(process.wait)
    reports = []

    async def switch() -> None:
        reports.append(await mac(host).switch("op-1", new))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(switch)
        host.note(".go").touch()
    assert (reports[0].outcome, reports[0].exit_code) == (SwitchOutcome.SWITCHED, 0)
    assert host.runs() == ["activate-user", "activate"]


async def test_an_activation_that_reloads_the_agents_own_job_is_finished_by_the_next_agent(
    host: Host, publisher: DirectoryPublisher, tmp_path: Path
) -> None:
    plist = "/Library/LaunchDaemons/com.nixfleet.agent.plist"
    (tmp_path / "bin").mkdir()
    launchctl = tmp_path / "bin" / "launchctl"
    launchctl.write_text(LAUNCHCTL)
    launchctl.chmod(0o755)
    reload = f"launchctl unload {plist}\nlaunchctl load -w {plist}\n"
    kickstart = "launchctl kickstart -k system/com.nixfleet.agent\n"
    activate = RECORD.format(name="activate") + reload + kickstart + FLIP
    _, new = await installed(host, publisher, {"activate": activate})
    process = agent(host, new, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert await trio.to_thread.run_sync(process.wait) == -signal.SIGKILL
    report = await mac(host).switch("op-1", new)
    assert (report.outcome, report.exit_code) == (SwitchOutcome.SWITCHED, 0)
    assert host.runs() == ["activate", *reload.splitlines(), *kickstart.splitlines()]


async def test_an_activation_cut_off_by_a_power_cut_is_interrupted_and_not_begun_again(
    host: Host, publisher: DirectoryPublisher
) -> None:
    old, new = await installed(host, publisher, {"activate": RECORD.format(name="activate") + WAIT + FLIP})
    process = agent(host, new)
    pid = int(await until(host.note(".in")))
    os.killpg(process.pid, signal.SIGKILL)
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    await trio.to_thread.run_sync(process.wait)
    job(host, "started").unlink()
    report = await mac(host, session="another-session").switch("op-1", new, timeout_s=5)
    assert (report.outcome, report.observed) == (SwitchOutcome.INTERRUPTED, old)
    assert host.runs() == ["activate"]


async def test_a_failing_activation_is_seen_although_the_link_moved(host: Host, publisher: DirectoryPublisher) -> None:
    old, new = await installed(host, publisher, {"activate": SYSTEM + "exit 2\n"})
    report = await mac(host).switch("op-1", new)
    assert (report.outcome, report.exit_code, report.observed) == (SwitchOutcome.FAILED, 2, new)
    assert (await mac(host).rollback("op-2", old)).outcome is SwitchOutcome.SWITCHED


async def test_a_system_without_activation_is_named(host: Host, publisher: DirectoryPublisher) -> None:
    _, new = await installed(host, publisher, {})
    report = await mac(host).switch("op-1", new)
    assert report.outcome is SwitchOutcome.FAILED
    assert "/activate is absent" in report.detail


async def test_another_kernel_is_no_reason_to_wait_for_a_reboot(host: Host, publisher: DirectoryPublisher) -> None:
    old = publisher.publish("good", files={"activate": SYSTEM, "kernel": "-> /old"})
    new = publisher.publish("good", files={"activate": SYSTEM, "kernel": "-> /new"})
    await host.starts_on(old)
    assert (await mac(host).realise(new, caches=[host.cache])).ok
    assert (await mac(host).switch("op-1", new)).outcome is SwitchOutcome.SWITCHED


async def test_the_agents_own_lock_is_respected_and_held_during_an_activation(
    host: Host, publisher: DirectoryPublisher
) -> None:
    _, new = await installed(host, publisher, {"activate": SYSTEM + WAIT})
    with open(host.paths.switch_lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (await mac(host).switch("op-1", new, lock_wait_s=0.05)).outcome is SwitchOutcome.LOCK_HELD
        fcntl.flock(lock, fcntl.LOCK_UN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mac(host).switch, "op-2", new)
            await until(host.note(".in"))
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            host.note(".go").touch()


def test_boot_sessions_are_read_as_they_come() -> None:
    assert read_boot_session([["echo", "D6C7-UUID"]]) == "D6C7-UUID"
    boot_time = "{ sec = 1700000000, usec = 123456 } Tue Nov 14 22:13:20 2023"
    assert read_boot_session([["false"], ["/no/such"], ["echo"], ["echo", boot_time]]) == "1700000000.123456"
    assert read_boot_session([["false"]]) == ""


def test_the_boot_session_is_asked_for_whatever_the_path_is() -> None:
    assert all(os.path.isabs(program) for program, *_ in BOOT_ID_COMMANDS)


def test_the_platform_is_the_one_asked_for(host: Host) -> None:
    for method in set(SwitchMethod) - {SwitchMethod.SWITCH_TO_CONFIGURATION}:
        assert platform_for(method, paths=host.paths, store=host.store).method() is method
    with pytest.raises(ValueError, match="other agents"):
        platform_for(SwitchMethod.SWITCH_TO_CONFIGURATION, paths=host.paths, store=host.store)
