"""What platforms that really switch have in common; they differ in what they look at and what they run.

A subclass says what it sees (`observe`) and what its systems are made of (`_commands`); every order goes through
`Switcher` and its promises.
"""

import abc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs

from nixfleet_agent.activation.interface import RealiseOutcome, Store, SwitchReport
from nixfleet_agent.activation.paths import Paths
from nixfleet_agent.activation.realising import realise_and_keep
from nixfleet_agent.activation.runners import Runner
from nixfleet_agent.activation.switcher import Started, Switcher, SystemCommands
from state_machine.system import SystemView
from state_machine.values import Closure, SwitchMethod

_SYSTEM_PATH: Final = ("/run/current-system/sw/bin", "/usr/local/bin", "/usr/bin", "/bin")


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
class LivePlatform(abc.ABC):
    """An `interface.Platform`, but for what it sees and runs. `environment` is added to what every switch sees."""

    paths: Paths
    store: Store
    runner: Runner
    environment: Mapping[str, str] = attrs.field(factory=dict)
    mono_s: Callable[[], float] = time.monotonic

    @abc.abstractmethod
    def observe(self) -> SystemView:
        """See `interface.Platform.observe`."""

    @abc.abstractmethod
    def _commands(self) -> SystemCommands:
        """What a system of this platform is switched with."""

    def method(self) -> SwitchMethod:
        """What the runner is called in reports."""
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
            system=self._commands(),
            observe=self.observe,
            environment=switch_environment(self.paths, self._environment()),
            mono_s=self.mono_s,
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
        """A switch like any other; what makes it a rollback is that the caller recorded `closure` before."""
        return await self.switch(op, closure, started=started, timeout_s=timeout_s, lock_wait_s=lock_wait_s)

    def _environment(self) -> Mapping[str, str]:
        return self.environment
