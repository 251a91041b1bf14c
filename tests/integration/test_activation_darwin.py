"""The Mac's way of activating, with scripts that record what was run; the rest is the same code as on Linux."""

import fcntl
from pathlib import Path

import pytest
import trio

from nixfleet_agent.activation.darwin import DarwinPlatform, read_boot_session
from nixfleet_agent.activation.platforms import platform_for
from state_machine.system import SwitchOutcome
from state_machine.values import Closure, SwitchMethod
from tests.nixlab import DirectoryPublisher, Host

RECORD = '#!/bin/sh\necho "{name}" >> "$NIXFLEET_CURRENT_SYSTEM.log"\n'
FLIP = 'self=${0%/activate}; ln -sfn "$NIXFLEET_STORE/${self##*/}" "$NIXFLEET_CURRENT_SYSTEM"\n'
USER = RECORD.format(name="activate-user")
SYSTEM = RECORD.format(name="activate") + FLIP


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> DirectoryPublisher:
    return DirectoryPublisher.at(tmp_path_factory.mktemp("publisher"))


@pytest.fixture
def host(publisher: DirectoryPublisher, tmp_path: Path) -> Host:
    return publisher.host(tmp_path)


def mac(host: Host) -> DarwinPlatform:
    return DarwinPlatform(paths=host.paths, store=host.store, boot_id_commands=[["echo", "a-session"]])


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
    wait = 'touch "$NIXFLEET_CURRENT_SYSTEM.in"; until [ -e "$NIXFLEET_CURRENT_SYSTEM.go" ]; do sleep 0.02; done\n'
    _, new = await installed(host, publisher, {"activate": SYSTEM + wait})
    with open(host.paths.switch_lock, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (await mac(host).switch("op-1", new, lock_wait_s=0.05)).outcome is SwitchOutcome.LOCK_HELD
        fcntl.flock(lock, fcntl.LOCK_UN)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mac(host).switch, "op-2", new)
            with trio.fail_after(20):
                while not host.note(".in").exists():
                    await trio.sleep(0.01)
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            host.note(".go").touch()


def test_boot_sessions_are_read_as_they_come() -> None:
    assert read_boot_session([["echo", "D6C7-UUID"]]) == "D6C7-UUID"
    boot_time = "{ sec = 1700000000, usec = 123456 } Tue Nov 14 22:13:20 2023"
    assert read_boot_session([["false"], ["/no/such"], ["echo"], ["echo", boot_time]]) == "1700000000.123456"
    assert read_boot_session([["false"]]) == ""


def test_the_platform_is_the_one_asked_for(host: Host) -> None:
    for method in set(SwitchMethod) - {SwitchMethod.SWITCH_TO_CONFIGURATION}:
        assert platform_for(method, paths=host.paths, store=host.store).method() is method
    with pytest.raises(ValueError, match="other agents"):
        platform_for(SwitchMethod.SWITCH_TO_CONFIGURATION, paths=host.paths, store=host.store)
