"""sd_notify: what is said, to whom, and that a manager that does not listen holds up nothing."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nixfleet_agent.service_manager import ServiceManager


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + address[1:] if address.startswith("@") else address)
        channel.setblocking(False)
        yield channel


def heard(channel: socket.socket) -> list[str]:
    said = []
    while True:
        try:
            said.append(channel.recv(4096).decode())
        except BlockingIOError:
            return said


@pytest.mark.parametrize("kind", ["file", "abstract"])
def test_it_says_what_systemd_understands(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "file" else f"@nixfleet-test-{os.getpid()}"
    with listening(address) as channel:
        manager = ServiceManager({"NOTIFY_SOCKET": address})
        manager.ready()
        manager.status("edge@4be0c1 Soaking")
        manager.status("edge@4be0c1 Soaking")
        manager.alive()
        manager.stopping()
        assert heard(channel) == ["READY=1", "STATUS=edge@4be0c1 Soaking", "WATCHDOG=1", "STOPPING=1"]


def test_without_a_manager_nothing_happens() -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/notify"}):
        manager = ServiceManager(environment)
        manager.ready()
        manager.alive()
        manager.stopping()


def test_a_manager_that_comes_back_is_told_again(tmp_path: Path) -> None:
    """It restarts now and then; an agent that fell silent for that would be killed by its watchdog."""
    address = str(tmp_path / "notify")
    manager = ServiceManager({"NOTIFY_SOCKET": address})
    manager.alive()
    manager.status("no rollout yet")
    with listening(address) as channel:
        manager.alive()
        manager.status("no rollout yet")
        assert heard(channel) == ["WATCHDOG=1", "STATUS=no rollout yet"]


def test_a_manager_that_does_not_read_holds_up_nothing(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with listening(address) as channel:
        manager = ServiceManager({"NOTIFY_SOCKET": address})
        for _ in range(5000):
            manager.alive()
        assert heard(channel)
        manager.stopping()
        assert heard(channel) == ["STOPPING=1"]


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_at_half_its_time_if_it_is_ours(environment: dict[str, str], wanted: float | None) -> None:
    assert ServiceManager(environment).watchdog_s == wanted
