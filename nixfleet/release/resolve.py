"""Resolve a description into what is signed: one fleet snapshot and one manifest per channel. Pure.

The same description, commit and instant give the same bytes on any machine. A manifest is anchored to its fleet by
the SHA-256 of the fleet's canonical bytes, so the two can never be mixed with those of another release.
"""

from typing import Final

import attrs

from evidence.artifacts import SCHEMA_VERSION
from evidence.canonical import canonicalize, digest
from evidence.documents import encode
from nixfleet.release.checks import commit_problems, notices, problems
from nixfleet.release.description import Description
from nixfleet.release.problems import DescriptionError
from nixfleet.release.selection import selected, wave_numbers, waves_of
from state_machine.intent import Budget, Fleet, FleetHost, HostTarget, Manifest, Meta, Wave
from state_machine.values import Channel, HostName, WallMs

_SHOWN_REF: Final = 8
"""How many characters of a commit a person is shown."""


@attrs.frozen(kw_only=True)
class Resolved:
    """A release before it is signed: the artifacts and their canonical bytes."""

    fleet: Fleet
    fleet_bytes: bytes
    manifests: tuple[tuple[Manifest, bytes], ...]
    notices: tuple[str, ...] = ()

    @property
    def fleet_digest(self) -> str:
        """What the manifests are anchored to: lowercase hex SHA-256."""
        return digest(self.fleet_bytes)


def resolve(description: Description, *, commit: str, signed_at: WallMs, algorithm: str | None = None) -> Resolved:
    """Check a description and resolve it.

    `commit` becomes the second half of every rollout id. `algorithm` is written into the header when it is not
    ed25519; readers go by their trust root, not by it.

    Raises:
        DescriptionError: listing everything that is wrong.
    """
    if found := (*commit_problems(description, commit), *problems(description)):
        raise DescriptionError(problems=found)
    meta = Meta(schema_version=SCHEMA_VERSION, signed_at=signed_at, ci_commit=commit, signature_algorithm=algorithm)
    return assemble(_fleet(description, meta), notices=tuple(notices(description)))


def assemble(fleet: Fleet, *, notices: tuple[str, ...] = ()) -> Resolved:
    """The canonical bytes of a resolved fleet, and its manifests. Also how unchanged intent is signed anew."""
    fleet_bytes = canonicalize(encode(fleet))
    manifests = [_manifest(fleet, channel, digest(fleet_bytes)) for channel in sorted(fleet.channels)]
    return Resolved(
        fleet=fleet,
        fleet_bytes=fleet_bytes,
        manifests=tuple((made, canonicalize(encode(made))) for made in manifests if made is not None),
        notices=notices,
    )


def _fleet(description: Description, meta: Meta) -> Fleet:
    signed_at = meta.signed_at if meta.signed_at is not None else WallMs(0)
    return Fleet(
        schema_version=SCHEMA_VERSION,
        hosts={name: _without_expired_pin(host, signed_at) for name, host in description.hosts.items()},
        channels=description.channels,
        waves={channel: _waves(description, channel) for channel in description.channels},
        meta=meta,
        rollout_policies=description.rollout_policies,
        edges=description.edges,
        channel_edges=description.channel_edges,
        disruption_budgets=description.disruption_budgets,
    )


def _without_expired_pin(host: FleetHost, at: WallMs) -> FleetHost:
    expired = host.pin is not None and host.pin.expires_at is not None and host.pin.expires_at <= at
    return attrs.evolve(host, pin=None) if expired else host


def _waves(description: Description, channel: Channel) -> tuple[Wave, ...]:
    """Every wave of the policy, also an empty one: a manifest's `waveIndex` counts in the policy as well."""
    policy = description.rollout_policies[description.channels[channel].rollout_policy]
    numbers = dict(wave_numbers(description, channel))
    return tuple(
        Wave(
            hosts=tuple(sorted(host for host, taken in numbers.items() if taken == number)),
            soak_minutes=wave.soak_minutes,
            soak_secs=wave.soak_secs,
        )
        for number, wave in enumerate(waves_of(policy))
    )


def _manifest(fleet: Fleet, channel: Channel, fleet_digest: str) -> Manifest | None:
    """The channel's rollout, or None when no host of it has a closure."""
    targets = _targets(fleet, channel)
    if not targets:
        return None
    ref = fleet.meta.ci_commit or ""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        channel=channel,
        channel_ref=ref,
        fleet_resolved_hash=fleet_digest,
        host_set=targets,
        meta=fleet.meta,
        display_name=f"{channel}@{ref[:_SHOWN_REF]}",
        health_gate=fleet.rollout_policies[fleet.channels[channel].rollout_policy].health_gate,
        disruption_budgets=_frozen_budgets(fleet, {target.hostname for target in targets}),
    )


def _targets(fleet: Fleet, channel: Channel) -> tuple[HostTarget, ...]:
    wave_of = {host: number for number, wave in enumerate(fleet.waves[channel]) for host in wave.hosts}
    return tuple(
        HostTarget(hostname=name, wave_index=wave_of.get(name, 0), target_closure=host.closure_hash)
        for name, host in sorted(fleet.hosts.items())
        if host.channel == channel and host.closure_hash is not None
    )


def _frozen_budgets(fleet: Fleet, concerned: set[HostName]) -> tuple[Budget, ...]:
    """The budgets that bind any of these hosts, each with all its hosts: a budget may span channels."""
    frozen = (attrs.evolve(budget, hosts=selected(budget.selector, fleet.hosts)) for budget in fleet.disruption_budgets)
    return tuple(budget for budget in frozen if not concerned.isdisjoint(budget.hosts))
