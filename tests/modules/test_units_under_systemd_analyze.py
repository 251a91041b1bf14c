"""The checked-in units before systemd's own judge: they are well-formed, and no more exposed than they were.

`units/security.txt` has the exposure that `systemd-analyze security` gives each unit, from 0 (shut) to 10 (open). It
may fall, and is then to be renewed (`NIXFLEET_RENEW=1`); it may not rise. Each version of systemd weighs differently,
so the record names the one that made it and is compared by that one only.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.modules import unit_file
from tests.modules.unit_file import UNITS

NO_SYSTEMD: Final = "systemd-analyze is not installed"
pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason=NO_SYSTEMD)

NAMES: Final = tuple(sorted(path.name for path in UNITS.glob("*.service")))
RECORD: Final = UNITS / "security.txt"
_STORE_PROGRAM: Final = re.compile(r"/nix/store/[a-z0-9]{32}-[^\s\"/]+(/bin/[a-z-]+)")


def analyze(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze` without a running systemd, a user's settings or a pager."""
    return subprocess.run(
        ["systemd-analyze", *words],
        env={"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{root}:", "LC_ALL": "C.UTF-8", "HOME": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


def installed(name: str, root: Path) -> Path:
    """The unit with its programs replaced by ones that exist here, as verify looks for them."""
    program = root / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = root / name
    unit.write_text(_STORE_PROGRAM.sub(str(program), (UNITS / name).read_text(encoding="utf-8")))
    return unit


def exposures(root: Path) -> dict[str, float]:
    found = {}
    for name in NAMES:
        done = analyze(root, "security", "--offline=true", "--no-pager", str(installed(name, root)))
        assert done.returncode == 0, done.stderr
        said = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
        assert said, done.stdout
        found[name] = float(said[1])
    return found


def version(root: Path) -> str:
    """The first two words of what it says of itself: `systemd 252`."""
    return " ".join(analyze(root, "--version").stdout.split()[:2])


@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_nothing_wrong_with_the_unit(name: str, tmp_path: Path) -> None:
    """Every setting is known, every word can be parsed, every program exists; not even a warning."""
    done = analyze(tmp_path, "verify", "--man=no", "--recursive-errors=no", str(installed(name, tmp_path)))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "mistake", ["SystemCallFilter=@sytem-service", "WatchdogSec=soon", 'ExecStartPre="/bin/true', "OOMPolicy=maybe"]
)
def test_systemd_would_have_found_a_mistake(mistake: str, tmp_path: Path) -> None:
    """The test above can fail: the same judge complains of a unit with one wrong line."""
    unit = installed(NAMES[0], tmp_path)
    unit.write_text(unit.read_text().replace("[Service]\n", f"[Service]\n{mistake}\n"))
    done = analyze(tmp_path, "verify", "--man=no", "--recursive-errors=no", str(unit))
    assert done.stderr


def test_no_unit_is_more_exposed_than_it_was(tmp_path: Path) -> None:
    """Whoever opens a door in a sandbox has to say so in `units/security.txt`."""
    found, judge = exposures(tmp_path), version(tmp_path)
    if os.environ.get(unit_file.RENEW) == "1":
        lines = [judge, *(f"{name} {exposure}" for name, exposure in found.items())]
        RECORD.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    by, *lines = RECORD.read_text(encoding="utf-8").splitlines()
    if by != judge:
        pytest.skip(f"the record is by {by}, and this is {judge}")
    recorded = {name: float(exposure) for name, exposure in map(str.split, lines)}
    assert recorded.keys() == found.keys(), "renew the record with NIXFLEET_RENEW=1"
    worse = {name: f"{exposure}, was {recorded[name]}" for name, exposure in found.items() if exposure > recorded[name]}
    assert not worse


def test_the_control_plane_is_in_a_closed_sandbox(tmp_path: Path) -> None:
    """What is left open is the network, the host's files to read, and the sockets that both need."""
    assert exposures(tmp_path)["nixfleet-control-plane.service"] < 2
