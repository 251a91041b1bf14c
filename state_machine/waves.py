"""Waves of a channel: who is in one, and how long a host of it must soak (protocol sections 2.2, 2.3 and 5.2).

A host's wave number comes from its manifest; what the wave says comes from the fleet snapshot that the manifest is
anchored to. A channel without waves is one wave of everybody.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from state_machine.intent import Fleet, PolicyWave, Wave
from state_machine.values import Channel, HostName

DEFAULT_SOAK_MS: Final = 60 * 60_000
"""The soak of a wave that neither the fleet nor the policy describes (section 5.2)."""

ALL_AT_ONCE: Final = "all-at-once"


def soak_ms(fleet: Fleet, channel: Channel, wave_index: int) -> int:
    """How long a host in this wave of `channel` must run its target, healthy, before it counts as converged.

    An `all-at-once` policy without waves soaks for 0 ms; an undescribed wave of any other for an hour.
    """
    declared = fleet.channels.get(channel)
    policy = None if declared is None else fleet.rollout_policies.get(declared.rollout_policy)
    described: list[Sequence[Wave | PolicyWave]] = [
        fleet.waves.get(channel, ()),
        () if policy is None else policy.waves,
    ]
    for waves in described:
        if wave_index < len(waves):
            wave = waves[wave_index]
            return Wave(soak_minutes=wave.soak_minutes, soak_secs=wave.soak_secs).soak_ms
    all_at_once = policy is not None and policy.strategy == ALL_AT_ONCE and not any(described)
    return 0 if all_at_once else DEFAULT_SOAK_MS


def unplaced(fleet: Fleet, channel: Channel, hosts: Iterable[HostName]) -> frozenset[HostName]:
    """Those of `hosts` that no wave of the channel lists. Nobody, if the channel has no waves."""
    waves = fleet.waves.get(channel, ())
    if not waves:
        return frozenset()
    placed = {name for wave in waves for name in wave.hosts}
    return frozenset(hosts) - placed
