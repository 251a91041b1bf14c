"""Worlds for the planner, drawn at random: tidy ones, in which everybody can be reached, and wild ones."""

from collections.abc import Sequence
from typing import TypeVar

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
from state_machine.planner import plan
from state_machine.values import Channel, HostName, Phase, Reason, RolloutId, WallMs
from state_machine.world import PlannerInput
from tests.unit.planner_worlds import DIGEST, NOW, mirrors, record, target_of

T = TypeVar("T")

CHANNELS = [Channel("a"), Channel("b"), Channel("c")]
HOSTS = [HostName(f"h{number}") for number in range(7)]
TAGS = ["web", "db", "eu"]
REFS = ["0", "1", "2"]
"""Rollouts of a channel, oldest first: the last is the current one."""
HOUR_MS = 60 * 60_000

tag_sets = st.lists(st.sampled_from(TAGS), max_size=2, unique=True).map(tuple)
host_sets = st.lists(st.sampled_from(HOSTS), max_size=4, unique=True).map(lambda hosts: tuple(sorted(hosts)))
selectors = st.one_of(
    st.just(Selector(all=True)),
    st.builds(
        Selector, tags=tag_sets, tags_any=tag_sets, hosts=host_sets, channel=st.none() | st.sampled_from(CHANNELS)
    ),
)


def budgets(least: int) -> st.SearchStrategy[list[Budget]]:
    """Up to three budgets that allow at least `least` hosts, their members frozen or not."""
    return st.lists(
        st.builds(
            Budget,
            selector=selectors,
            hosts=st.just(()) | host_sets,
            max_in_flight=st.none() | st.integers(least, 3),
            max_in_flight_pct=st.none() | st.integers(0, 100),
        ),
        max_size=3,
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
    made = {
        channel: attrs.evolve(manifest_of(layout, channel, hosts), disruption_budgets=tuple(draw(budgets(1))))
        for channel in CHANNELS
        if channel in layout.channel.values()
    }
    return PlannerInput(now=NOW, fleet=fleet, fleet_digest=DIGEST, manifests=made)


@st.composite
def wild_worlds(draw: st.DrawFn) -> PlannerInput:
    """Anything, and up to two of `TROUBLES`, which befall hosts that would be sent to if it were not for them."""
    layout = draw(layouts(tidy=False))
    fleet = draw(fleets(layout, tidy=draw(st.booleans())))
    hosts = sorted(layout.channel)
    made = {
        channel: attrs.evolve(manifest_of(layout, channel, hosts), disruption_budgets=tuple(draw(budgets(0))))
        for channel in CHANNELS
        if channel in layout.channel.values()
    }
    world = PlannerInput(
        now=NOW, fleet=fleet, fleet_digest=DIGEST, manifests=made, mirrors=mirrors(*draw(records(layout)))
    )
    everywhere = [(RolloutId(f"{layout.channel[host]}@{ref}"), host) for host in hosts for ref in REFS]
    for trouble in draw(st.lists(st.sampled_from(TROUBLES), max_size=2, unique=True)):
        world = draw(trouble(world, [(sent.rollout_id, sent.host) for sent in plan(world).dispatches] or everywhere))
    return world


@st.composite
def troubled_worlds(draw: st.DrawFn) -> PlannerInput:
    """A tidy world and one of `TROUBLES`."""
    world = draw(tidy_worlds())
    trouble = draw(st.sampled_from(TROUBLES))
    return draw(trouble(world, [(sent.rollout_id, sent.host) for sent in plan(world).dispatches]))


@st.composite
def records(draw: st.DrawFn, layout: Layout) -> list[HostRollout]:
    """Mirrors of the current rollouts, earlier waves further on than later ones, and of older rollouts."""
    made = []
    reached = draw(st.integers(0, 3))
    for host, channel in layout.channel.items():
        ahead = (layout.wave[host] or 0) < reached
        now = draw(st.sampled_from([Phase.CONVERGED] * 9 + [*Phase]) if ahead else st.none() | st.sampled_from(Phase))
        before = draw(st.none() | st.tuples(st.sampled_from(REFS[:-1]), st.sampled_from(Phase)))
        for ref, phase in filter(None, [before, now and (REFS[-1], now)]):
            made.append(record(host, phase, RolloutId(f"{channel}@{ref}"), acked_at=int(ref)))
    return made


Pairs = Sequence[tuple[RolloutId, HostName]]


@st.composite
def spoilt_manifest(draw: st.DrawFn, world: PlannerInput, pairs: Pairs) -> PlannerInput:
    """One manifest is anchored elsewhere, out of date, from the future, unsigned, misfiled, or lacks a host."""
    channel = world.fleet.hosts[draw(st.sampled_from(pairs))[1]].channel
    made = world.manifests.get(channel)
    if made is None:
        return world
    signed_at = draw(st.sampled_from([WallMs(NOW - 2 * HOUR_MS), WallMs(NOW + HOUR_MS), None]))
    spoilt = [
        attrs.evolve(made, fleet_resolved_hash="cd" * 32),
        attrs.evolve(made, meta=Meta(schema_version=1, signed_at=signed_at)),
        attrs.evolve(made, host_set=made.host_set[1:]),
        attrs.evolve(made, channel=draw(st.sampled_from(CHANNELS))),
    ]
    return attrs.evolve(world, manifests={**world.manifests, channel: draw(st.sampled_from(spoilt))})


@st.composite
def missing_manifests(draw: st.DrawFn, world: PlannerInput, pairs: Pairs) -> PlannerInput:
    """Only some channels have a manifest."""
    if not world.manifests:
        return world
    kept = draw(few(sorted(world.manifests)))
    return attrs.evolve(world, manifests={name: made for name, made in world.manifests.items() if name in kept})


@st.composite
def sent_before(draw: st.DrawFn, world: PlannerInput, pairs: Pairs) -> PlannerInput:
    """Some dispatches are on their way, or seem to be."""
    return attrs.evolve(world, outstanding=frozenset(draw(few(pairs))))


@st.composite
def overtaken(draw: st.DrawFn, world: PlannerInput, pairs: Pairs) -> PlannerInput:
    """Some rollouts are superseded."""
    return attrs.evolve(world, superseded=frozenset(draw(few([pair[0] for pair in pairs]))))


@st.composite
def sick(draw: st.DrawFn, world: PlannerInput, pairs: Pairs) -> PlannerInput:
    """A host has failed or gone back."""
    rollout_id, host = draw(st.sampled_from(pairs))
    made = record(host, draw(st.sampled_from([Phase.FAILED, Phase.REVERTED])), rollout_id)
    return attrs.evolve(world, mirrors={**world.mirrors, (rollout_id, host): made})


@st.composite
def quarantined(draw: st.DrawFn, world: PlannerInput, pairs: Pairs) -> PlannerInput:
    """Some targets are known to be bad, on a channel or on a host."""
    hosts = draw(few([host for _, host in pairs]))
    if draw(st.booleans()):
        return attrs.evolve(world, host_quarantine=frozenset((host, target_of(host)) for host in hosts))
    channel = {host: declared.channel for host, declared in world.fleet.hosts.items()}
    return attrs.evolve(world, quarantine=frozenset((channel[host], target_of(host)) for host in hosts))


@st.composite
def refusing(draw: st.DrawFn, world: PlannerInput, pairs: Pairs) -> PlannerInput:
    """Some hosts refused, lately, long ago or nobody knows when."""
    pair = draw(st.sampled_from(pairs))
    refused = record(pair[1], Phase.PENDING, pair[0], refused=Reason.BUSY)
    at = draw(st.none() | st.integers(0, HOUR_MS))
    return attrs.evolve(
        world,
        mirrors={**world.mirrors, pair: refused},
        refused_at={} if at is None else {pair: WallMs(NOW - at)},
    )


@st.composite
def out_of_reach(draw: st.DrawFn, world: PlannerInput, pairs: Pairs) -> PlannerInput:
    """Some hosts are revoked or not heard of."""
    hosts = frozenset(draw(few([host for _, host in pairs])))
    return attrs.evolve(world, revoked=hosts) if draw(st.booleans()) else attrs.evolve(world, unreachable=hosts)


@st.composite
def moved(draw: st.DrawFn, world: PlannerInput, pairs: Pairs) -> PlannerInput:
    """A host is declared on another channel than its manifest says."""
    host = draw(st.sampled_from(pairs))[1]
    elsewhere = attrs.evolve(world.fleet.hosts[host], channel=draw(st.sampled_from(CHANNELS)))
    return attrs.evolve(world, fleet=attrs.evolve(world.fleet, hosts={**world.fleet.hosts, host: elsewhere}))


TROUBLES = [
    spoilt_manifest,
    missing_manifests,
    sent_before,
    overtaken,
    sick,
    quarantined,
    refusing,
    out_of_reach,
    moved,
]


def few(items: Sequence[T]) -> st.SearchStrategy[list[T]]:
    """One or two of `items`."""
    return st.lists(st.sampled_from(items), unique=True, min_size=1, max_size=2)
