"""The signed artifacts in force: what was proved, and the exact bytes to serve.

Nothing is put here unproved, nothing older replaces something newer, and what is here goes again when the trust file
no longer stands behind it. A fleet and its manifests belong together: a manifest counts only while it is anchored to
the fleet in force by hash.
"""

from collections.abc import Mapping
from typing import Generic, TypeVar

import attrs
import trio

from control_plane.artifact_source import Raw
from evidence.artifacts import Verified
from state_machine.intent import BootstrapNonces, Fleet, Manifest, Revocations
from state_machine.values import Channel, HostName, RolloutId, WallMs

Value = TypeVar("Value")


@attrs.frozen(kw_only=True)
class Held(Generic[Value]):
    """An artifact in force."""

    raw: Raw
    proven: Verified[Value]

    @property
    def value(self) -> Value:
        """What it says."""
        return self.proven.value


@attrs.define(kw_only=True)
class Shelf:
    """What is in force now. Only `adoption.Adopter` changes it."""

    fleet: Held[Fleet] | None = None
    manifests: Mapping[Channel, Held[Manifest]] = attrs.field(factory=dict)
    """The newest of each channel, all anchored to `fleet`."""
    archive: Mapping[RolloutId, Raw] = attrs.field(factory=dict)
    """Genuine manifests of any age, to be served to who asks for them. Never planned from."""
    revocations: Held[Revocations] | None = None
    nonces: Held[BootstrapNonces] | None = None
    awaiting: frozenset[str] = frozenset()
    """Lists that are published but have never been proved yet: until they are, nobody is let in."""
    problems: Mapping[str, str] = attrs.field(factory=dict)
    """What is wrong with files that were looked at last, by name."""
    ready: trio.Event = attrs.field(factory=trio.Event)

    @property
    def is_ready(self) -> bool:
        """Everything that decides who may do what has been loaded (protocol section 1.2)."""
        return self.fleet is not None and not self.awaiting

    def revoked_before(self, host: HostName) -> WallMs | None:
        """Certificates of `host` that begin before this instant are no longer good."""
        if self.revocations is None:
            return None
        instants = [entry.not_before for entry in self.revocations.value.revocations if entry.hostname == host]
        return max(instants, default=None)
