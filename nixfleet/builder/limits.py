"""How much memory and time one run of Nix may take, by a transient scope of systemd where there is one.

A scope, not a service: in a scope the program stays this process's child, with its environment, its streams, its
sandbox and its exit status, so that its log streams and its group is killed as without systemd. The control group adds
the limits, and the end of what left the group (Nix starts its builders in sessions of their own). A scope is bound to
the unit of its builder: it is gone when the builder is, even one that was killed.

With a Nix daemon the limits bind the evaluation and the copying; what the daemon builds is bound by nix.conf and by
the limits of the daemon's own unit.
"""

import contextlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import trio

from nixfleet_agent.commands import CommandError, Completed, run

GRACE_S: Final = 10.0
"""Between SIGTERM and SIGKILL: Nix ends its builders first."""
KEEP_BYTES: Final = 8 * 1024 * 1024
_CALL_S: Final = 30.0
_LATE_S: Final = 60
"""How long past its deadline a scope lives that nobody ends."""

log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Limits:
    """What one run may take, at most."""

    runtime_s: int
    memory_max: str = ""
    """As systemd reads it, such as `8G`; empty: no limit."""
    scopes: bool = False
    """There are scopes to be had."""

    @classmethod
    def here(cls, *, runtime_s: int, memory_max: str) -> "Limits":
        """The limits as this machine can have them; says so in the log when it cannot."""
        scopes = can_have_scopes()
        if memory_max and not scopes:
            log.warning("memory-max %s is not enforced: it takes systemd, and a builder that is root", memory_max)
        return cls(runtime_s=runtime_s, memory_max=memory_max, scopes=scopes)

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str], cwd: str, heard: Callable[[bytes], None] | None = None
    ) -> Completed:
        """Run `argv` within the limits; nothing of it is left, however this ends.

        Raises:
            CommandError: it cannot be started.
        """
        if not self.scopes:
            return await _run(argv, env=env, cwd=cwd, heard=heard)
        name = f"nixfleet-build-{uuid.uuid4().hex[:12]}.scope"
        try:
            return await _run([*self._scope(name), *argv], env=env, cwd=cwd, heard=heard)
        finally:
            with trio.CancelScope(shield=True), contextlib.suppress(CommandError):
                await run(("systemctl", "--no-ask-password", "stop", name), timeout_s=_CALL_S)

    def killed_for_memory(self, done: Completed) -> bool:
        """Whether it looks as if the kernel ended it for its hunger."""
        return self.scopes and bool(self.memory_max) and done.exit_code == -9

    def _scope(self, name: str) -> list[str]:
        properties = [f"RuntimeMaxSec={self.runtime_s + _LATE_S}s", f"TimeoutStopSec={GRACE_S:g}s"]
        properties += [f"MemoryMax={self.memory_max}"] if self.memory_max else []
        own = own_unit()
        properties += [f"BindsTo={own}"] if own else []
        return [
            "systemd-run", "--scope", "--collect", "--quiet", "--no-ask-password", f"--unit={name}",
            *(f"--property={entry}" for entry in properties), "--",
        ]  # fmt: skip


def can_have_scopes() -> bool:
    """Systemd runs here, and does as this process says."""
    return os.geteuid() == 0 and Path("/run/systemd/system").is_dir() and shutil.which("systemd-run") is not None


def own_unit(groups: str | None = None) -> str:
    """The service that this process belongs to, of its control groups (cgroups(7)); empty: none."""
    if groups is None:
        with contextlib.suppress(OSError):
            groups = Path("/proc/self/cgroup").read_text()
    for line in (groups or "").splitlines():
        number, _, path = line.partition("::")
        if number == "0":
            parts = [part for part in path.split("/") if part.endswith(".service")]
            return parts[-1] if parts else ""
    return ""


async def _run(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: str, heard: Callable[[bytes], None] | None
) -> Completed:
    return await run(argv, timeout_s=float("inf"), env=env, cwd=cwd, keep=KEEP_BYTES, grace_s=GRACE_S, heard=heard)
