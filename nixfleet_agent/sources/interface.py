"""What the daemon wants of a source of intent.

A source only speaks with its server and tells events; it decides nothing. Which of its exchanges is due when is decided
in `step` (`state_machine.schedule.DUTIES`), and so is what follows from what it tells.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import attrs

from state_machine.actions import DeliverFacts
from state_machine.events import Duty
from state_machine.values import RolloutId


@attrs.frozen(kw_only=True)
class Again:
    """The exchange went well, and the server wants the next one after so many milliseconds."""

    after_ms: int


Outcome = bool | Again | None
"""How an exchange ended that did not raise. False: it failed, as what was told says in full."""

Exchange = Callable[[], Awaitable[Outcome]]


class IntentSource(Protocol):
    """A source of intent."""

    async def load(self) -> None:
        """Get ready to speak: certificates, keys, connections. Before any task runs.

        Raises:
            ConfigurationError, EvidenceError, CertificateError: what it was given cannot work.
        """
        ...

    def exchanges(self) -> Mapping[Duty, Exchange]:
        """How each of its duties is done. May raise what `applier.EXPECTED` names."""
        ...

    async def fetch(self, rollout_id: RolloutId) -> None:
        """Get and prove one rollout's intent out of turn, where intent can be asked for by name."""
        ...

    async def deliver(self, order: DeliverFacts) -> bool:
        """Tell the other end what became of a rollout; whether it got anywhere."""
        ...

    def keep(self, rollout_id: RolloutId) -> None:
        """The host is about to act on this rollout's intent: keep the proof of it, where there is any.

        Raises:
            OSError: it could not be kept.
        """
        ...

    def caches(self) -> tuple[str, ...]:
        """Binary caches that the source's server names, to be tried after those of the configuration."""
        ...

    async def close(self) -> None:
        """Say goodbye."""
        ...
