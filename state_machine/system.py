"""What can be seen of a host's system, and how a switch of it can end."""

import enum

import attrs

from state_machine.values import Closure


@attrs.frozen(kw_only=True)
class SystemView:
    """One look at the host: three symlinks and the boot id.

    `running` is behind `/run/current-system`, `booted` behind `/run/booted-system`, `profile` behind the system
    profile, which is what the next boot would start. None: the link is absent or points outside the store.
    """

    boot_id: str
    running: Closure | None = None
    booted: Closure | None = None
    profile: Closure | None = None


class SwitchOutcome(enum.StrEnum):
    """How one switch or rollback ended, as far as the host can tell."""

    SWITCHED = "switched"
    """Exit status 0, and the running system is the one asked for."""
    DEFERRED = "deferred"
    """A component cannot be swapped live: the profile and the boot loader point at it, a reboot completes it."""
    FAILED = "failed"
    """The switch exited with an error; the running system may or may not have changed."""
    TIMEOUT = "timeout"
    """Killed at its deadline."""
    VERIFY_MISMATCH = "verify-mismatch"
    """Exit status 0, but the running system is another one."""
    LOCK_HELD = "lock-held"
    """Somebody else held the switch lock until the deadline; nothing was touched."""
    INTERRUPTED = "interrupted"
    """It had begun and is neither running nor finished: a power cut or a kill took it."""
