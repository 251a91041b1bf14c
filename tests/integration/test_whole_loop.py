"""The whole loop as `make demo-loop` shows it: an input moves, everything is built, merged and released, and taken.

The demo checks each of its claims in the remote repository, the forge and on the hosts before it prints it, and ends
with an error at the first that does not hold. Here it is held to have made every one of them.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from nixfleet_agent.child import module_command, module_environment

pytestmark = [
    pytest.mark.nix,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nix") is None or shutil.which("git") is None, reason="needs nix and git"),
]

CLAIMS = (
    "three agents enrolled and converged on it",
    "all three systems build, and it is merged",
    "each of the three agents runs the very closure that was built",
    "gamma does not build: exit status 1",
    "the pull request has the end of the log",
    "nothing was released, no host was touched",
    "the canary rolled back by itself; the others were never touched",
    "the updater's next run says which release is quarantined, and ends with 5",
    "and does not release it again",
)


def test_from_flake_lock_to_the_fleet_and_back_when_it_is_sick(tmp_path: Path) -> None:
    words = module_command("nixfleet", "demo", "--loop", "--directory", str(tmp_path / "loop"))
    done = subprocess.run(
        words, env=module_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout
    for claim in CLAIMS:
        assert f"✓ {claim}" in done.stdout
    assert done.stdout.count("✓ each of the three agents runs the very closure that was built") == 2
