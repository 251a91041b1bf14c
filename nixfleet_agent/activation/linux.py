"""NixOS hosts, and directories that look like one: `switch-to-configuration`, in a unit or in a session of its own."""

import os
from collections.abc import Mapping, Sequence

import attrs

from nixfleet_agent.activation.inhibitors import DEFAULT, chosen, differing_component
from nixfleet_agent.activation.live import LivePlatform
from nixfleet_agent.activation.paths import Paths, closure_behind, read_boot_id
from state_machine.system import SystemView
from state_machine.values import Closure


@attrs.frozen(kw_only=True)
class NixosCommands:
    """`switcher.SystemCommands` of a NixOS system. The switch takes the lock itself."""

    paths: Paths
    components: Mapping[str, str] = attrs.field(factory=lambda: chosen(DEFAULT))
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
class LinuxPlatform(LivePlatform):
    """An `interface.Platform`."""

    components: Mapping[str, str] = attrs.field(factory=lambda: chosen(DEFAULT))

    def observe(self) -> SystemView:
        """Three links and the boot id."""
        return SystemView(
            boot_id=read_boot_id(self.paths.boot_id),
            running=closure_behind(self.paths.current_system, self.paths.store),
            booted=closure_behind(self.paths.booted_system, self.paths.store),
            profile=closure_behind(self.paths.profile, self.paths.store),
        )

    def _commands(self) -> NixosCommands:
        return NixosCommands(paths=self.paths, components=self.components)
