"""nix-darwin hosts: `activate-user` where a system has it, then `activate`, in a session of its own.

Nothing on a Mac takes a switch lock, so the agent holds one itself for as long as it watches a switch. There is no
component check: a Mac's kernel and service manager are not part of a closure.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from nixfleet_agent.activation.detached import DetachedRunner
from nixfleet_agent.activation.interface import RealiseOutcome, Store, SwitchReport
from nixfleet_agent.activation.linux import switch_environment
from nixfleet_agent.activation.paths import Paths, closure_behind
from nixfleet_agent.activation.realising import realise_and_keep
from nixfleet_agent.activation.runners import Runner
from nixfleet_agent.activation.switcher import Started, Switcher
from state_machine.system import SystemView
from state_machine.values import Closure, SwitchMethod

BOOT_ID_COMMANDS: Final = (("sysctl", "-n", "kern.bootsessionuuid"), ("sysctl", "-n", "kern.boottime"))
"""Tried in this order. `kern.boottime` moves when the clock is set, so it comes second."""

_BOOT_TIME: Final = re.compile(r"sec = (\d+), usec = (\d+)")
_BOOT_ID_S: Final = 5.0

_ACTIVATE: Final = 'if [ -e "$1/activate-user" ]; then "$1/activate-user" || exit; fi; exec "$1/activate"'


def darwin_paths() -> Paths:
    """Where nix-darwin keeps its system."""
    return Paths(switch_lock="/var/run/nixfleet-agent/switch.lock", boot_id="")


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


def _identity() -> dict[str, str]:
    """Whose activation it is: unlike NixOS's, these scripts go by their environment."""
    return {"HOME": "/var/root"} | {
        name: os.environ[name] for name in ("HOME", "USER", "LOGNAME") if name in os.environ
    }


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
class DarwinPlatform:
    """An `interface.Platform`. The boot id is asked for once: a process does not outlive a boot."""

    paths: Paths
    store: Store
    boot_id_commands: Sequence[Sequence[str]] = BOOT_ID_COMMANDS
    runner: Runner = attrs.field(factory=lambda: DetachedRunner(method=SwitchMethod.DARWIN_ACTIVATE))
    environment: Mapping[str, str] = attrs.field(factory=dict)
    _boot_id: str = attrs.field(init=False)

    @_boot_id.default
    def _ask_boot_id(self) -> str:
        return read_boot_session(self.boot_id_commands)

    def observe(self) -> SystemView:
        """Two links; a Mac boots what is active."""
        running = closure_behind(self.paths.current_system, self.paths.store)
        return SystemView(
            boot_id=self._boot_id,
            running=running,
            booted=None,
            profile=closure_behind(self.paths.profile, self.paths.store),
        )

    def method(self) -> SwitchMethod:
        """`darwin-activate`."""
        return self.runner.method

    async def realise(
        self, closure: Closure, *, caches: Sequence[str] = (), timeout_s: float = 3600.0
    ) -> RealiseOutcome:
        """See `interface.Platform.realise`."""
        return await realise_and_keep(self.store, closure, caches=caches, timeout_s=timeout_s)

    async def switch(
        self,
        op: str,
        closure: Closure,
        *,
        started: Started = None,
        timeout_s: float = 300.0,
        lock_wait_s: float = 60.0,
        only_if_begun: bool = False,
    ) -> SwitchReport:
        """See `interface.Platform.switch`."""
        switcher = Switcher(
            paths=self.paths,
            store=self.store,
            runner=self.runner,
            system=DarwinCommands(paths=self.paths),
            observe=self.observe,
            environment=switch_environment(self.paths, {**_identity(), **self.environment}),
        )
        return await switcher.switch(
            op, closure, started=started, timeout_s=timeout_s, lock_wait_s=lock_wait_s, only_if_begun=only_if_begun
        )

    async def rollback(
        self,
        op: str,
        closure: Closure,
        *,
        started: Started = None,
        timeout_s: float = 300.0,
        lock_wait_s: float = 60.0,
    ) -> SwitchReport:
        """A switch like any other."""
        return await self.switch(op, closure, started=started, timeout_s=timeout_s, lock_wait_s=lock_wait_s)
