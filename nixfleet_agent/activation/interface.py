"""What the runtime sees of a host: four orders, two kinds of answer, no decisions.

A platform never raises for what the world does (a bad closure, a full disk, a hung switch): that is in the answer.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from state_machine.system import SwitchOutcome, SystemView
from state_machine.values import Closure, Reason, SwitchMethod


@attrs.frozen(kw_only=True)
class RealiseOutcome:
    """Whether a closure is in the store now.

    `signature`: at least one cache offered it without a trusted signature, or with content its signature does not
    cover, and no other had it right. `detail` is the end of what was said about it, at most 2 KiB.
    """

    ok: bool
    reason: Reason | None = None
    signature: bool = False
    detail: str = ""


@attrs.frozen(kw_only=True)
class SwitchReport:
    """How one switch or rollback ended, and what runs now.

    `exit_code` is the switch's own, None when it has none (it never began, or was killed). `component` names what
    cannot be swapped live when the outcome is `DEFERRED`. `detail` is for people, at most 2 KiB.
    """

    outcome: SwitchOutcome
    method: SwitchMethod
    exit_code: int | None = None
    observed: Closure | None = None
    component: str | None = None
    detail: str = ""


class Platform(Protocol):
    """A host as its runtime commands it."""

    def observe(self) -> SystemView:
        """Look at the links and the boot id. Cheap, never waits for anything but the file system."""
        ...

    def method(self) -> SwitchMethod:
        """How a switch begun now would be run; journaled before it begins."""
        ...

    async def realise(
        self, closure: Closure, *, caches: Sequence[str] = (), timeout_s: float = 3600.0
    ) -> RealiseOutcome:
        """Bring `closure` into the store, verified, from the given caches first. Safe to cancel and to repeat."""
        ...

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
        """Switch to `closure`, at most once for `op`, however often and by however many processes this is called.

        Called again with the same `op` it returns the recorded report, waits for the switch that still runs, or
        reports `INTERRUPTED` when one had begun of which nothing is left. Cancelling leaves a begun switch running.
        `started` is called when the switch begins or is found begun; not when there was nothing to do, when the lock
        was held, or when the switch is deferred. `timeout_s` counts from the switch's own beginning.
        With `only_if_begun` nothing is begun: an order that had not begun is reported `INTERRUPTED`.
        """
        ...

    async def rollback(
        self,
        op: str,
        closure: Closure,
        *,
        started: Callable[[], None] | None = None,
        timeout_s: float = 300.0,
        lock_wait_s: float = 60.0,
    ) -> SwitchReport:
        """Switch back to `closure`, which the caller recorded: never to whatever generation came before."""
        ...


class Store(Protocol):
    """Where closures live: Nix's store, or a plain directory that keeps the same promises."""

    def path(self, closure: Closure) -> str:
        """The directory that holds the files of `closure`, whether or not it is there."""
        ...

    async def has(self, closure: Closure) -> bool:
        """The closure is in the store, whole."""
        ...

    async def realise(self, closure: Closure, *, caches: Sequence[str], timeout_s: float) -> RealiseOutcome:
        """Bring the closure into the store, refusing what no trusted key signed."""
        ...

    async def set_profile(self, closure: Closure) -> None:
        """Make the system profile point at the closure; a new generation only when it does not already.

        Raises `ProfileError`.
        """
        ...

    def keep(self, name: str, closure: Closure) -> None:
        """Protect the closure from garbage collection under `name`, in place of what `name` protected before."""
        ...
