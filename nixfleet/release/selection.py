"""Which wave each host falls into, and whom a budget covers. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

from nixfleet.release.description import Description
from state_machine.intent import FleetHost, PolicyWave, RolloutPolicy, Selector
from state_machine.selector import matches
from state_machine.values import Channel, HostName
from state_machine.waves import ALL_AT_ONCE

_EVERYONE: Final = (PolicyWave(selector=Selector(all=True)),)


def selected(selector: Selector, hosts: Mapping[HostName, FleetHost]) -> tuple[HostName, ...]:
    """The names the selector takes, sorted."""
    return tuple(sorted(name for name, host in hosts.items() if matches(selector, name, host)))


def waves_of(policy: RolloutPolicy) -> tuple[PolicyWave, ...]:
    """The policy's waves; one wave of everybody when it goes all at once and names none (protocol section 2.2)."""
    return _EVERYONE if not policy.waves and policy.strategy == ALL_AT_ONCE else policy.waves


def members_of(description: Description, channel: Channel) -> dict[HostName, FleetHost]:
    """The hosts on a channel, by name."""
    return {name: host for name, host in sorted(description.hosts.items()) if host.channel == channel}


def wave_numbers(description: Description, channel: Channel) -> Iterator[tuple[HostName, int | None]]:
    """Each host of the channel with the first wave that selects it, or None when no wave does."""
    policy = description.rollout_policies[description.channels[channel].rollout_policy]
    for name, host in members_of(description, channel).items():
        matching = (number for number, wave in enumerate(waves_of(policy)) if matches(wave.selector, name, host))
        yield name, next(matching, None)
