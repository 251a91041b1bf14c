"""What a run can be: fleet, releases with their health on each host, faults, timings. `scenario` draws one from a seed.

A `Scenario` is a value: it can be printed, kept as JSON, and made smaller. Making it smaller (fewer faults, shorter
ones) leaves everything else as it was: the world draws its timings from streams named by topic (`Scenario.stream`),
so a fault that is left out does not stir the rest.

Times are milliseconds from the beginning of the run.
"""

import enum
import functools
import json
import random
from typing import Final

import attrs

from state_machine.intent import (
    Budget,
    Fleet,
    FleetChannel,
    FleetHost,
    HostEdge,
    HostTarget,
    Manifest,
    Meta,
    RolloutPolicy,
    Selector,
    Wave,
)
from state_machine.values import Channel, Closure, FailurePolicy, HostName, RolloutId, WallMs
from tests.simulation.faults import MINUTE, Depth, Fault, FaultKind

EPOCH: Final = 1_780_000_000_000
"""Wall time at the beginning of every run."""
WINDOW_MS: Final = 45 * MINUTE
"""Faults and releases fall into this time. When it is over the world becomes honest."""
CHANNEL: Final = Channel("edge")
POLICY: Final = "waves"


TRIAL_MS: Final = 25 * MINUTE
"""How long the honest world has to take a sick release back, before the sound one comes. `judge` says why."""


class Health(enum.StrEnum):
    """What a release is like on one host."""

    SOUND = "sound"
    SICK = "sick"
    """It switches, and its probes fail."""
    BREAKS = "breaks"
    """Its switch exits with an error; what runs afterwards is the new system all the same."""
    REFUSES = "refuses"
    """Its switch exits with an error before anything has changed."""
    DEFERS = "defers"
    """It has another kernel: profile and boot loader are set, and it waits for a reboot."""
    HANGS = "hangs"
    """Its switch never ends."""
    UNTRUSTED = "untrusted"
    """No trusted key signed the closure: it cannot be fetched, ever."""


WELL: Final = frozenset({Health.SOUND, Health.DEFERS})
"""A host may run it for good."""


@attrs.frozen(kw_only=True)
class Release:
    """One release of the channel: when CI publishes it, and its health by the number of the host."""

    at_ms: int
    health: tuple[Health, ...]
    again: bool = False
    """The closures of the release before, under another name; a host may have taken them back (S3)."""


@attrs.frozen(kw_only=True)
class Scenario:
    """Everything about a run. Hosts and releases are numbered from 0."""

    seed: int
    depth: Depth
    hosts: int
    waves: tuple[tuple[int, ...], ...]
    soak_s: tuple[int, ...]
    """By wave."""
    sustained_s: int
    on_failure: FailurePolicy
    freshness_min: int
    """The signed freshness window of the channel, minutes."""
    resign_s: int
    """CI signs the current release anew this often."""
    releases: tuple[Release, ...]
    """In order. The last is sound everywhere, and is published after the window has closed."""
    faults: tuple[Fault, ...]
    """In order of time."""
    max_in_flight: int | None = None
    """The budget of the whole fleet, if it has one."""
    edge: tuple[int, int] | None = None
    """The first host waits for the second, whichever release it is."""
    switch_attempts: int = 3
    rollback_attempts: int = 5
    """Both at core depth only: no option of the agent sets them."""
    poll_s: int = 600
    """How often an agent looks at what is published; at core depth only."""
    window_ms: int = WINDOW_MS

    @property
    def last(self) -> int:
        """The number of the last, sound release."""
        return len(self.releases) - 1

    def stream(self, *topic: object) -> random.Random:
        """The dice for one topic, independent of all others."""
        # Text seeds are hashed by sha512, on every machine and in every process alike.
        return random.Random(f"{self.seed}/{'/'.join(map(str, topic))}")

    def name(self, host: int) -> HostName:
        """What the host is called."""
        return HostName(f"node{host}")

    def rollout_id(self, release: int) -> RolloutId:
        """What the release is called."""
        return RolloutId(f"{CHANNEL}@{commit(release)}")

    def closure(self, release: int, host: int) -> Closure:
        """What the release wants the host to run. Every host has a closure of its own."""
        while release and release < len(self.releases) and self.releases[release].again:
            release -= 1
        return _closure(release, host)

    def factory(self, host: int) -> Closure:
        """What the host runs at first. It is sound."""
        return Closure(f"00{host:02}" * 8 + f"-nixos-node{host}-factory")

    def by_hand(self, host: int) -> Closure:
        """What somebody builds on the host and switches to. It is sound."""
        return Closure(f"99{host:02}" * 8 + f"-nixos-node{host}-by-hand")

    def health(self, closure: Closure | None, host: int) -> Health:
        """What a host is like that runs `closure`."""
        number = -1 if closure is None else int(closure[:2]) - 10
        return self.releases[number].health[host] if 0 <= number < len(self.releases) else Health.SOUND

    def wave_of(self, host: int) -> int:
        """The wave the host belongs to."""
        return next(number for number, wave in enumerate(self.waves) if host in wave)

    def fleet(self, release: int, signed_ms: int, *, pubkeys: tuple[str, ...] = ()) -> Fleet:
        """The fleet snapshot that belongs to the release, signed at that time of the run."""
        waves = tuple(
            Wave(hosts=tuple(self.name(host) for host in wave), soak_secs=soak)
            for wave, soak in zip(self.waves, self.soak_s, strict=True)
        )
        hosts = {
            self.name(host): FleetHost(
                system="x86_64-linux",
                channel=CHANNEL,
                closure_hash=self.closure(release, host),
                pubkey=pubkeys[host] if pubkeys else None,
            )
            for host in range(self.hosts)
        }
        policy = RolloutPolicy(
            strategy="waves", on_health_failure=self.on_failure, sustained_failure_secs=self.sustained_s
        )
        return Fleet(
            schema_version=1,
            hosts=hosts,
            channels={CHANNEL: FleetChannel(rollout_policy=POLICY, freshness_window=self.freshness_min)},
            waves={CHANNEL: waves},
            rollout_policies={POLICY: policy},
            edges=() if self.edge is None else (self._host_edge(self.edge),),
            disruption_budgets=()
            if self.max_in_flight is None
            else (Budget(selector=Selector(all=True), max_in_flight=self.max_in_flight),),
            meta=Meta(schema_version=1, signed_at=WallMs(EPOCH + signed_ms), ci_commit=commit(release)),
        )

    def _host_edge(self, edge: tuple[int, int]) -> HostEdge:
        return HostEdge(gated=self.name(edge[0]), gates=self.name(edge[1]))

    def manifest(self, release: int, signed_ms: int, fleet_digest: str) -> Manifest:
        """The rollout manifest of the release, signed at that time of the run."""
        targets = tuple(
            HostTarget(
                hostname=self.name(host), wave_index=self.wave_of(host), target_closure=self.closure(release, host)
            )
            for host in range(self.hosts)
        )
        return Manifest(
            schema_version=1,
            channel=CHANNEL,
            channel_ref=commit(release),
            fleet_resolved_hash=fleet_digest,
            host_set=targets,
            meta=Meta(schema_version=1, signed_at=WallMs(EPOCH + signed_ms), ci_commit=commit(release)),
        )

    def __str__(self) -> str:
        """The scenario for a person: one line for the fleet, one for each release and fault."""
        fleet = (
            f"{self.hosts} hosts in waves {self.waves}, soak {self.soak_s} s, sustained failure {self.sustained_s} s"
        )
        limits = "" if self.max_in_flight is None else f", {self.max_in_flight} in flight at most"
        edge = "" if self.edge is None else f", {self.name(self.edge[0])} after {self.name(self.edge[1])}"
        lines = [f"{fleet}, {self.on_failure}{limits}{edge}"]
        for number, release in enumerate(self.releases):
            ill = {self.name(h): str(health) for h, health in enumerate(release.health) if health is not Health.SOUND}
            again = " (the closures of the release before)" if release.again else ""
            lines.append(f"{release.at_ms / 1000:.1f} s release{number}{again}: {ill or 'sound'}")
        return "\n".join([*lines, *map(str, self.faults)])

    def as_json(self) -> str:
        """The scenario as text. `from_json` reads it."""
        return json.dumps(attrs.asdict(self), indent=1)


@functools.cache
def _closure(release: int, host: int) -> Closure:
    """The first two digits tell which release it is of: 10 is the first."""
    return Closure(f"{10 + release:02}{host:02}" * 8 + f"-nixos-node{host}-release{release}")


def commit(release: int) -> str:
    """The commit that CI made the release of."""
    return f"{release + 1:08x}"


def from_json(text: str) -> Scenario:
    """The scenario that `as_json` wrote."""
    data = json.loads(text)
    return Scenario(
        **{
            **data,
            "depth": Depth(data["depth"]),
            "waves": tuple(map(tuple, data["waves"])),
            "soak_s": tuple(data["soak_s"]),
            "edge": None if data["edge"] is None else tuple(data["edge"]),
            "on_failure": FailurePolicy(data["on_failure"]),
            "releases": tuple(
                Release(**{**release, "health": tuple(map(Health, release["health"]))}) for release in data["releases"]
            ),
            "faults": tuple(Fault(**{**fault, "kind": FaultKind(fault["kind"])}) for fault in data["faults"]),
        }
    )
