"""The root of every refusal in this package.

Each cause has a class of its own whose fields hold the facts. What all share: `reason` is a stable slug for journals,
metrics and exit messages, and `detail` is one sentence for a person, without secrets.
"""

from typing import ClassVar

from state_machine.values import Reason


class EvidenceError(Exception):
    """Something could not be proved, so it is refused. Never raised as itself."""

    reason: ClassVar[Reason]

    @property
    def detail(self) -> str:
        """What was wrong, as one sentence."""
        return str(self)
