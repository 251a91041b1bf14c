"""A fleet as its owner describes it: what there is to release, before it is resolved and signed."""

from collections.abc import Mapping
from typing import Final

import attrs

from nixfleet.release.problems import DescriptionError, Problem, unknown
from state_machine.intent import Budget, ChannelEdge, FleetChannel, FleetHost, HostEdge, RolloutPolicy
from state_machine.values import Channel, Closure, HostName

STORE: Final = "/nix/store/"


@attrs.frozen(kw_only=True)
class Description:
    """What `nixfleet.release.read` reads, and what the pure part of a release works on."""

    hosts: Mapping[HostName, FleetHost]
    channels: Mapping[Channel, FleetChannel]
    rollout_policies: Mapping[str, RolloutPolicy] = attrs.field(factory=dict)
    edges: tuple[HostEdge, ...] = ()
    channel_edges: tuple[ChannelEdge, ...] = ()
    disruption_budgets: tuple[Budget, ...] = ()

    def with_closures(self, closures: Mapping[str, str]) -> "Description":
        """The description with these hosts' closures (store paths or base names) put in.

        Raises:
            DescriptionError: a name is no host of this fleet.
        """
        strangers = [name for name in closures if name not in self.hosts]
        if strangers:
            raise DescriptionError(
                problems=tuple(
                    Problem(where=f"--closure {name}", what=unknown(name, self.hosts, "host")) for name in strangers
                )
            )
        given = {
            HostName(name): attrs.evolve(self.hosts[HostName(name)], closure_hash=base_name(path))
            for name, path in closures.items()
        }
        return attrs.evolve(self, hosts={**self.hosts, **given})


def base_name(closure: str) -> Closure:
    """The name of a store path without its store; anything else is left for the checks to refuse."""
    return Closure(closure.removeprefix(STORE))
