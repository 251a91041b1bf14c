"""NixOS hosts, and directories that look like one: `switch-to-configuration`, in a unit or in a session of its own."""

import os
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from nixfleet_agent.activation.detached import DetachedRunner
from nixfleet_agent.activation.inhibitors import COMPONENTS, differing_component
from nixfleet_agent.activation.interface import RealiseOutcome, Store, SwitchReport
from nixfleet_agent.activation.paths import Paths, closure_behind, read_boot_id
from nixfleet_agent.activation.realising import realise_and_keep
from nixfleet_agent.activation.runners import Runner
from nixfleet_agent.activation.switcher import Started, Switcher
from nixfleet_agent.activation.systemd_unit import SystemdRunner
from state_machine.system import SystemView
from state_machine.values import Closure, SwitchMethod

_SYSTEM_PATH: Final = ("/run/current-system/sw/bin", "/usr/local/bin", "/usr/bin", "/bin")


def host_runner() -> Runner:
    """A transient unit where systemd is in charge and would obey, else a detached session."""
    if os.path.isdir("/run/systemd/system") and os.geteuid() == 0:
        return SystemdRunner()
    return DetachedRunner()


def switch_environment(paths: Paths, extra: Mapping[str, str]) -> dict[str, str]:
    """What a switch sees: where the tools are, the locale, this host's links, and `extra`; nothing else of the agent's.

    Its notification socket, watchdog and credentials are none of the switch's business. A NixOS system knows where
    `/run/current-system` is; a system made for a host in a directory finds it in `NIXFLEET_CURRENT_SYSTEM`.
    """
    path = [*os.environ.get("PATH", "").split(":"), *_SYSTEM_PATH]
    environment = {
        "PATH": ":".join(dict.fromkeys(entry for entry in path if entry)),
        "NIXFLEET_CURRENT_SYSTEM": paths.current_system,
        "NIXFLEET_STORE": paths.store,
    }
    for name in ("LOCALE_ARCHIVE", "LANG", "NIX_SSL_CERT_FILE"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment | dict(extra)


@attrs.frozen(kw_only=True)
class NixosCommands:
    """`switcher.SystemCommands` of a NixOS system. The switch takes the lock itself."""

    paths: Paths
    components: Mapping[str, str] = COMPONENTS
    holds_lock: bool = False

    def command(self, closure: Closure, action: str) -> Sequence[str]:
        """`switch-to-configuration ACTION`."""
        return [self._program(closure), action]

    def problem_with(self, closure: Closure) -> str | None:
        """It is not in the store, or no NixOS system."""
        program = self._program(closure)
        return None if os.access(program, os.X_OK) else f"{program} is absent or not executable"

    def component(self, closure: Closure) -> str | None:
        """See `inhibitors`."""
        running = closure_behind(self.paths.current_system, self.paths.store)
        if running is None or running == closure:
            return None
        return differing_component(self.paths.files(running), self.paths.files(closure), self.components)

    def _program(self, closure: Closure) -> str:
        return f"{self.paths.files(closure)}/bin/switch-to-configuration"


@attrs.frozen(kw_only=True)
class LinuxPlatform:
    """An `interface.Platform`. `environment` is added to what every switch sees."""

    paths: Paths
    store: Store
    runner: Runner = attrs.field(factory=host_runner)
    environment: Mapping[str, str] = attrs.field(factory=dict)
    components: Mapping[str, str] = COMPONENTS

    def observe(self) -> SystemView:
        """Three links and the boot id."""
        return SystemView(
            boot_id=read_boot_id(self.paths.boot_id),
            running=closure_behind(self.paths.current_system, self.paths.store),
            booted=closure_behind(self.paths.booted_system, self.paths.store),
            profile=closure_behind(self.paths.profile, self.paths.store),
        )

    def method(self) -> SwitchMethod:
        """`systemd-run` or `detached`."""
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
        return await self._switcher().switch(
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
        """A switch like any other; what makes it a rollback is that the caller recorded `closure` before."""
        return await self.switch(op, closure, started=started, timeout_s=timeout_s, lock_wait_s=lock_wait_s)

    def _switcher(self) -> Switcher:
        return Switcher(
            paths=self.paths,
            store=self.store,
            runner=self.runner,
            system=NixosCommands(paths=self.paths, components=self.components),
            observe=self.observe,
            environment=switch_environment(self.paths, self.environment),
        )
