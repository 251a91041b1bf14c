"""Show what a switch would do, on a host that is not to be touched.

Closures are realised as ever (that changes the store and nothing that runs); instead of a switch the system's own
`dry-activate` prints what it would restart. Links, profile and boot loader stay as they are.
"""

from collections.abc import Callable, Sequence

import attrs

from nixfleet_agent.activation.interface import Platform, RealiseOutcome, SwitchReport
from nixfleet_agent.activation.linux import NixosCommands
from nixfleet_agent.activation.live import switch_environment
from nixfleet_agent.activation.paths import Paths
from nixfleet_agent.commands import CommandError, Completed, run, tail
from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import Closure, SwitchMethod, is_closure


@attrs.frozen(kw_only=True)
class DryRunPlatform:
    """An `interface.Platform` around another, whose switches it keeps back. Every report's outcome is `FAILED`:
    nothing was switched, and `exit_code` is that of the rehearsal.
    """

    inner: Platform
    paths: Paths

    def observe(self) -> SystemView:
        """What the host runs."""
        return self.inner.observe()

    def method(self) -> SwitchMethod:
        """`dry-run`."""
        return SwitchMethod.DRY_RUN

    async def realise(
        self, closure: Closure, *, caches: Sequence[str] = (), timeout_s: float = 3600.0
    ) -> RealiseOutcome:
        """As the host would."""
        return await self.inner.realise(closure, caches=caches, timeout_s=timeout_s)

    async def switch(
        self,
        op: str,
        closure: Closure,
        *,
        started: Callable[[], None] | None = None,
        timeout_s: float = 300.0,
        lock_wait_s: float = 60.0,
        only_if_begun: bool = False,
    ) -> SwitchReport:
        """Run `switch-to-configuration dry-activate` and report what it printed. `started` is never called."""
        system = NixosCommands(paths=self.paths)
        if not is_closure(closure):
            return self._report(None, "not the name of a store path")
        if (problem := system.problem_with(closure)) is not None:
            return self._report(None, problem)
        environment = switch_environment(self.paths, {})
        try:
            done = await run(system.command(closure, "dry-activate"), timeout_s=timeout_s, env=environment)
        except CommandError as error:
            return self._report(None, str(error))
        return self._report(done.exit_code, _said(done))

    async def rollback(
        self,
        op: str,
        closure: Closure,
        *,
        started: Callable[[], None] | None = None,
        timeout_s: float = 300.0,
        lock_wait_s: float = 60.0,
    ) -> SwitchReport:
        """As a switch."""
        return await self.switch(op, closure, timeout_s=timeout_s, lock_wait_s=lock_wait_s)

    def _report(self, exit_code: int | None, said: str) -> SwitchReport:
        return SwitchReport(
            outcome=SwitchOutcome.FAILED,
            method=SwitchMethod.DRY_RUN,
            exit_code=exit_code,
            observed=self.observe().running,
            detail=tail(f"nothing was switched\n{said}".encode("utf-8", "replace")),
        )


def _said(done: Completed) -> str:
    if done.timed_out:
        return "dry-activate was killed at its deadline"
    return tail(done.stdout + done.stderr, 1900)
