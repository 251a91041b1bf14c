"""Every test here gets hosts; where the machine cannot have any, it says why and is skipped (under CI: fails)."""

from pathlib import Path

import pytest

from tests.system.host import why_not


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a fleet of hosts can live."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no hosts on this machine: {reason}")
    return tmp_path / "lab"
