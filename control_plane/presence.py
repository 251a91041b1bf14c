"""When each host was last heard of. In memory only: after a restart every host has a moment to come back."""

from collections.abc import Callable
from typing import Final

import trio

from state_machine.values import HostName, WallMs

SILENCE_S: Final = 180.0
"""Three missed heartbeats (protocol section 3.10): after that a dispatch would only take up a budget."""


class Presence:
    """Who is there."""

    def __init__(self, *, on_return: Callable[[], None]) -> None:
        self._since = trio.current_time()
        self._seen: dict[HostName, float] = {}
        self._seen_wall: dict[HostName, WallMs] = {}
        self._certificate_from: dict[HostName, WallMs] = {}
        self._on_return = on_return

    def note(self, host: HostName, at: WallMs, certificate_from: WallMs) -> None:
        """The host showed itself, by any request, with a certificate that begins at `certificate_from`."""
        was_silent = self.is_silent(host)
        self._certificate_from[host] = max(certificate_from, self.certificate_from(host))
        self._seen[host], self._seen_wall[host] = trio.current_time(), at
        if was_silent:
            self._on_return()

    def is_silent(self, host: HostName) -> bool:
        """Nothing was heard of it for `SILENCE_S`, nor since this process started."""
        return trio.current_time() - self._seen.get(host, self._since) > SILENCE_S

    def last_seen(self, host: HostName) -> WallMs | None:
        """When it last showed itself to this process."""
        return self._seen_wall.get(host)

    def certificate_from(self, host: HostName) -> WallMs:
        """When the newest certificate it showed begins; 0 if it showed none to this process."""
        return self._certificate_from.get(host, WallMs(0))

    def all_seen(self) -> dict[HostName, WallMs]:
        """Every host that showed itself to this process."""
        return dict(self._seen_wall)
