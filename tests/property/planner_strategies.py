"""Worlds for the planner, drawn at random: tidy ones, in which everybody can be reached, and wild ones."""

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from hypothesis import strategies as st

from state_machine.intent import (
    Budget,
    ChannelEdge,
    Fleet,
    FleetChannel,
    FleetHost,
    HostEdge,
    HostTarget,
    Manifest,
    Meta,
    Selector,
    Wave,
)
from state_machine.lifecycle import HostRollout
from state_machine.planner import Dispatch, plan
from state_machine.values import Channel, HostName, Phase, Reason, RolloutId, WallMs
from state_machine.world import PlannerInput
from tests.unit.planner_worlds import DIGEST, NOW, mirrors, record, target_of

CHANNELS = [Channel("a"), Channel("b"), Channel("c")]
HOSTS = [HostName(f"h{number}") for number in range(7)]
REFS = ["0", "1", "2"]
"""Rollouts of a channel, oldest first: the last is the current one."""
HOUR_MS = 60 * 60_000

# Values are drawn from short lists where any will do: most of the time of a property goes into drawing.
tag_sets = st.sampled_from([(), ("web",), ("db",), ("web", "eu"), ("db", "eu")])
host_sets = st.sampled_from([(), (), tuple(HOSTS[:2]), tuple(HOSTS[1:4]), tuple(HOSTS[::2])])
selectors = st.sampled_from(
    [
        Selector(all=True),
        Selector(tags=("web",)),
        Selector(tags=("db", "eu")),
        Selector(tags_any=("web", "eu")),
        Selector(channel=CHANNELS[0]),
        Selector(channel=CHANNELS[1], hosts=(HOSTS[0],)),
        Selector(),
    ]
)


def budgets(least: int) -> st.SearchStrategy[list[Budget]]:
    """Up to two budgets that allow at least `least` hosts, their members frozen or not."""
    return st.lists(
        st.builds(
            Budget,
            selector=selectors,
            hosts=host_sets,
            max_in_flight=st.none() | st.integers(least, 2),
            max_in_flight_pct=st.none() | st.integers(0, 100),
        ),
        max_size=2,
    )


@attrs.frozen(kw_only=True)
class Layout:
    """Who is on which channel and in which wave; None: in no wave. `waves` says how many waves a channel has."""

    channel: dict[HostName, Channel]
    wave: dict[HostName, int | None]
    waves: dict[Channel, int]

    def place(self, host: HostName) -> tuple[int, HostName]:
        """The order in which waves and edges may go without contradicting one another."""
        return (self.wave[host] or 0, host)


@st.composite
def layouts(draw: st.DrawFn, tidy: bool) -> Layout:
    """A layout; in a tidy one every host is in a wave, if its channel has any."""
    hosts = HOSTS[: draw(st.integers(1, len(HOSTS)))]
    waves = {channel: draw(st.integers(0, 3)) for channel in CHANNELS}
    channel = {host: draw(st.sampled_from(CHANNELS)) for host in hosts}
    wave: dict[HostName, int | None] = {}
    for host in hosts:
        count = waves[channel[host]]
        somewhere: st.SearchStrategy[int | None] = st.integers(0, max(0, count - 1))
        wave[host] = draw(somewhere if tidy or not count else st.none() | somewhere)
    return Layout(channel=channel, wave=wave, waves=waves)


@st.composite
def fleets(draw: st.DrawFn, layout: Layout, tidy: bool) -> Fleet:
    """The fleet of a layout. Tidy: no edges go in a circle or against the waves, and every budget lets one host go."""
    host_pairs = [
        (x, y) for x in layout.channel for y in layout.channel if not tidy or layout.place(x) > layout.place(y)
    ]
    channel_pairs = [(x, y) for x in CHANNELS for y in CHANNELS if not tidy or x > y]
    edges = draw(st.lists(st.sampled_from(host_pairs), max_size=4)) if host_pairs else []
    return Fleet(
        schema_version=1,
        hosts={
            host: FleetHost(system="x86_64-linux", channel=channel, tags=draw(tag_sets))
            for host, channel in layout.channel.items()
        },
        channels={channel: FleetChannel(rollout_policy="", freshness_window=60) for channel in CHANNELS},
        waves={
            channel: tuple(
                Wave(hosts=tuple(h for h, c in layout.channel.items() if c == channel and layout.wave[h] == index))
                for index in range(count)
            )
            for channel, count in layout.waves.items()
        },
        meta=Meta(schema_version=1, signed_at=NOW),
        edges=tuple(HostEdge(gated=gated, gates=gates) for gated, gates in edges),
        channel_edges=tuple(
            ChannelEdge(gated=gated, gates=gates)
            for gated, gates in draw(st.lists(st.sampled_from(channel_pairs), max_size=3))
        ),
        disruption_budgets=tuple(draw(budgets(1 if tidy else 0))),
    )


def manifest_of(
    layout: Layout, channel: Channel, hosts: Sequence[HostName], ref: str = REFS[-1], digest: str = DIGEST
) -> Manifest:
    """A manifest for those of `hosts` that are on `channel`."""
    return Manifest(
        schema_version=1,
        channel=channel,
        channel_ref=ref,
        fleet_resolved_hash=digest,
        host_set=tuple(
            HostTarget(hostname=host, wave_index=layout.wave[host] or 0, target_closure=target_of(host))
            for host in hosts
            if layout.channel[host] == channel
        ),
        meta=Meta(schema_version=1, signed_at=NOW),
    )


@st.composite
def tidy_worlds(draw: st.DrawFn) -> PlannerInput:
    """A world in which nothing has happened yet and nothing stands in the way of any host for ever."""
    layout = draw(layouts(tidy=True))
    fleet = draw(fleets(layout, tidy=True))
    hosts = sorted(layout.channel)
    frozen = tuple(draw(budgets(1)))
    made = {
        channel: attrs.evolve(manifest_of(layout, channel, hosts), disruption_budgets=frozen)
        for channel in CHANNELS
        if channel in layout.channel.values()
    }
    return PlannerInput(now=NOW, fleet=fleet, fleet_digest=DIGEST, manifests=made)


@st.composite
def wild_worlds(draw: st.DrawFn) -> PlannerInput:
    """Anything: hosts in every phase of three rollouts, circles, budgets of none, dispatches under way, troubles."""
    layout = draw(layouts(tidy=False))
    hosts = sorted(layout.channel)
    frozen = tuple(draw(budgets(0)))
    made = {
        channel: attrs.evolve(manifest_of(layout, channel, hosts), disruption_budgets=frozen)
        for channel in draw(st.sampled_from([CHANNELS, CHANNELS[:1], CHANNELS[1:]]))
        if channel in layout.channel.values()
    }
    pairs = [(RolloutId(f"{layout.channel[host]}@{ref}"), host) for host in hosts for ref in REFS]
    world = PlannerInput(
        now=NOW,
        fleet=draw(fleets(layout, tidy=draw(st.booleans()))),
        fleet_digest=DIGEST,
        manifests=made,
        mirrors=mirrors(*draw(records(layout))),
        outstanding=frozenset(draw(st.lists(st.sampled_from(pairs), max_size=2))),
    )
    for trouble in draw(st.lists(st.sampled_from(sorted(TROUBLES)), max_size=2, unique=True)):
        if sent := plan(world).dispatches:
            world = TROUBLES[trouble](world, draw(st.sampled_from(sent)))
    return world


@st.composite
def records(draw: st.DrawFn, layout: Layout) -> list[HostRollout]:
    """Mirrors of the current rollouts, earlier waves further on than later ones, and of older rollouts."""
    made = []
    reached = draw(st.integers(0, 3))
    for host, channel in layout.channel.items():
        ahead = (layout.wave[host] or 0) < reached
        now = draw(st.sampled_from([Phase.CONVERGED] * 15 + [*Phase] if ahead else [None] * 8 + [*Phase]))
        before = draw(st.none() | st.tuples(st.sampled_from(REFS[:-1]), st.sampled_from(Phase)))
        for ref, phase in filter(None, [before, now and (REFS[-1], now)]):
            made.append(record(host, phase, RolloutId(f"{channel}@{ref}"), acked_at=int(ref)))
    return made


def remade(world: PlannerInput, victim: Dispatch, **changes: Any) -> PlannerInput:
    """The world with another manifest for the victim's rollout."""
    channel = world.fleet.hosts[victim.host].channel
    made = attrs.evolve(world.manifests[channel], **changes)
    return attrs.evolve(world, manifests={**world.manifests, channel: made})


def redeclared(world: PlannerInput, victim: Dispatch) -> PlannerInput:
    """The fleet has the victim on another channel than its manifest says."""
    before = world.fleet.hosts[victim.host]
    elsewhere = attrs.evolve(before, channel=next(channel for channel in CHANNELS if channel != before.channel))
    return attrs.evolve(world, fleet=attrs.evolve(world.fleet, hosts={**world.fleet.hosts, victim.host: elsewhere}))


def quarantined(world: PlannerInput, victim: Dispatch) -> PlannerInput:
    """The victim's target is known to be bad on its channel."""
    bad = (world.fleet.hosts[victim.host].channel, victim.target_closure)
    return attrs.evolve(world, quarantine=world.quarantine | {bad})


def with_record(world: PlannerInput, made: HostRollout) -> PlannerInput:
    """The world with this mirror."""
    return attrs.evolve(world, mirrors={**world.mirrors, **mirrors(made)})


def with_sick_neighbour(world: PlannerInput, victim: Dispatch) -> PlannerInput:
    """Another host of the victim's wave goes back; if it has none, the victim is quarantined to the same effect."""
    manifest = next(made for made in world.manifests.values() if made.rollout_id == victim.rollout_id)
    for entry in manifest.host_set:
        if entry.wave_index == victim.wave_index and entry.hostname != victim.host:
            return with_record(world, record(entry.hostname, Phase.REVERTED, victim.rollout_id))
    return quarantined(world, victim)


def refusing(world: PlannerInput, victim: Dispatch) -> PlannerInput:
    """The victim refused a minute ago."""
    pair = (victim.rollout_id, victim.host)
    refused = with_record(world, record(victim.host, Phase.PENDING, victim.rollout_id, refused=Reason.BUSY))
    return attrs.evolve(refused, refused_at={**world.refused_at, pair: WallMs(NOW - 60_000)})


def signed(world: PlannerInput, victim: Dispatch, at: int | None) -> PlannerInput:
    """The victim's manifest was signed at another time."""
    return remade(world, victim, meta=Meta(schema_version=1, signed_at=None if at is None else WallMs(at)))


TROUBLES: dict[str, Callable[[PlannerInput, Dispatch], PlannerInput]] = {
    "superseded": lambda world, victim: attrs.evolve(world, superseded=world.superseded | {victim.rollout_id}),
    "anchor": lambda world, victim: remade(world, victim, fleet_resolved_hash="cd" * 32),
    "anchor: misfiled": lambda world, victim: remade(world, victim, channel=Channel("z")),
    "declared": redeclared,
    "freshness: stale": lambda world, victim: signed(world, victim, NOW - 2 * HOUR_MS),
    "freshness: from the future": lambda world, victim: signed(world, victim, NOW + HOUR_MS),
    "freshness: unsigned": lambda world, victim: signed(world, victim, None),
    "revoked": lambda world, victim: attrs.evolve(world, revoked=world.revoked | {victim.host}),
    "unreachable": lambda world, victim: attrs.evolve(world, unreachable=world.unreachable | {victim.host}),
    "quarantine": quarantined,
    "quarantine: on the host": lambda world, victim: attrs.evolve(
        world, host_quarantine=world.host_quarantine | {(victim.host, victim.target_closure)}
    ),
    "halted or quarantine": with_sick_neighbour,
    "refused": refusing,
}
"""What keeps a host from being sent to that would be otherwise, by the gate that must say so."""
