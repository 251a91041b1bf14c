"""Open a rollout for a manifest that has come into force."""

from collections.abc import Iterable

from control_plane.book import Book
from control_plane.entries import PlannedHost, RolloutOpened
from control_plane.shelf import Held
from state_machine.intent import Fleet, Manifest
from state_machine.values import Channel, Phase, RolloutId
from state_machine.waves import soak_ms


def opening(book: Book, held: Held[Manifest], fleet: Held[Fleet]) -> RolloutOpened:
    """The entry that opens the rollout of a manifest anchored to `fleet`."""
    manifest = held.value
    hosts = tuple(
        PlannedHost(
            hostname=entry.hostname,
            wave_index=entry.wave_index,
            target_closure=entry.target_closure,
            soak_ms=soak_ms(fleet.value, manifest.channel, entry.wave_index),
        )
        for entry in manifest.host_set
    )
    return RolloutOpened(
        rollout_id=manifest.rollout_id,
        channel=manifest.channel,
        channel_ref=manifest.channel_ref,
        manifest_digest=held.proven.digest,
        fleet_digest=fleet.proven.digest,
        hosts=hosts,
        same_as=_done_already(book, manifest.channel, hosts),
    )


def _done_already(book: Book, channel: Channel, hosts: Iterable[PlannedHost]) -> RolloutId | None:
    """The channel's rollout, if it has brought every one of `hosts` to the target it has here.

    A commit that changes no closure would else have every host soak and probe once more for nothing.
    """
    current = book.current(channel)
    if current is None:
        return None
    base = current.same_as or current.rollout_id
    mirrors = book.mirrors_of(base)
    for host in hosts:
        mirror = mirrors.get(host.hostname)
        if mirror is None or mirror.record.phase is not Phase.CONVERGED:
            return None
        if mirror.record.target_closure != host.target_closure:
            return None
    return base
