"""A switch that hangs and whose agent has lost its state directory: nobody knows of it, and it holds the lock.

Found by the simulator at core depth (seeds 63, 167, 508): every later release failed on that host with `busy`.
"""

from pathlib import Path

import pytest

from nixfleet_agent.activation.jobs import Order, job_of
from nixfleet_agent.activation.systemd_unit import SystemdRunner
from state_machine.values import Closure

NEW = Closure("1" * 32 + "-nixos-new")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands in place of systemd's, which write down how they were called."""
    calls = tmp_path / "calls"
    for name in ("systemctl", "systemd-run"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return calls


async def test_systemd_ends_a_switch_by_itself_a_minute_after_its_agent_should_have(tmp_path: Path, said: Path) -> None:
    job = job_of("journal-1", str(tmp_path / "work"))
    order = Order(
        closure=NEW,
        action="switch",
        component=None,
        profile_before=None,
        boot_id="b",
        launched_mono_s=0.0,
        timeout_s=300.0,
    )
    job.place(order)
    await SystemdRunner().launch(job, ["/bin/true"], {})
    assert "--property=RuntimeMaxSec=360s" in said.read_text()
