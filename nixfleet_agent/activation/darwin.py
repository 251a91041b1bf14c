"""nix-darwin hosts: `activate-user` where a system has one that counts, then `activate`, in a session of their own.

Nothing on a Mac takes a switch lock, so the agent holds one itself for as long as it watches a switch. There is no
component check: a Mac's kernel and service manager are not part of a closure. The session of its own is what lets an
activation reload or restart the agent's own launchd job: launchd ends a job's process group, and nothing beyond it.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from nixfleet_agent.activation.detached import DetachedRunner
from nixfleet_agent.activation.live import LivePlatform
from nixfleet_agent.activation.paths import Paths, closure_behind
from nixfleet_agent.activation.runners import Runner
from state_machine.system import SystemView
from state_machine.values import Closure, SwitchMethod

BOOT_ID_COMMANDS: Final = (
    ("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"),
    ("/usr/sbin/sysctl", "-n", "kern.boottime"),
)
"""Tried in this order. `kern.boottime` moves when the clock is set, so it comes second. Where macOS keeps `sysctl` is
written out, because `/usr/sbin` need not be on a daemon's PATH and a boot without a name looks like any other."""

_BOOT_TIME: Final = re.compile(r"sec = (\d+), usec = (\d+)")
_BOOT_ID_S: Final = 5.0

_IDENTITY: Final = {"HOME": "/var/root", "USER": "root", "LOGNAME": "root"}
"""What launchd does not give a daemon and older activation scripts go by."""

# The mark is that of `darwin-rebuild`, which skips such scripts too: what is left of them only warns whoever runs it.
_ACTIVATE: Final = """\
user="$1/activate-user"
if [ -e "$user" ] && ! grep -q '^# nix-darwin: deprecated$' "$user"; then "$user" || exit; fi
exec "$1/activate"
"""


def read_boot_session(commands: Sequence[Sequence[str]]) -> str:
    """What the first command that works prints; `kern.boottime` as `sec.usec`. Empty when none does."""
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, timeout=_BOOT_ID_S, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        text = done.stdout.decode("utf-8", "replace").strip()
        if (time := _BOOT_TIME.search(text)) is not None:
            return f"{time[1]}.{time[2]}"
        if text:
            return text
    return ""


@attrs.frozen(kw_only=True)
class DarwinCommands:
    """`switcher.SystemCommands` of a nix-darwin system."""

    paths: Paths
    holds_lock: bool = True

    def command(self, closure: Closure, action: str) -> Sequence[str]:
        """Both scripts, the second only after the first went well."""
        return ["/bin/sh", "-c", _ACTIVATE, "activate", self.paths.files(closure)]

    def problem_with(self, closure: Closure) -> str | None:
        """It is not in the store, or no nix-darwin system."""
        program = f"{self.paths.files(closure)}/activate"
        return None if os.access(program, os.X_OK) else f"{program} is absent or not executable"

    def component(self, closure: Closure) -> str | None:
        """Everything is swapped live."""
        return None


@attrs.frozen(kw_only=True)
class DarwinPlatform(LivePlatform):
    """An `interface.Platform`. The boot id is asked for once: a process does not outlive a boot."""

    runner: Runner = attrs.field(factory=lambda: DetachedRunner(method=SwitchMethod.DARWIN_ACTIVATE))
    boot_id_commands: Sequence[Sequence[str]] = BOOT_ID_COMMANDS
    _boot_id: str = attrs.field(init=False)

    @_boot_id.default
    def _ask_boot_id(self) -> str:
        return read_boot_session(self.boot_id_commands)

    def observe(self) -> SystemView:
        """Two links; a Mac boots what is active."""
        return SystemView(
            boot_id=self._boot_id,
            running=closure_behind(self.paths.current_system, self.paths.store),
            booted=None,
            profile=closure_behind(self.paths.profile, self.paths.store),
        )

    def _commands(self) -> DarwinCommands:
        return DarwinCommands(paths=self.paths)

    def _environment(self) -> Mapping[str, str]:
        """Whose activation it is, and `environment`."""
        known = {name: os.environ[name] for name in _IDENTITY if name in os.environ}
        return {**_IDENTITY, **known, **self.environment}
