"""Small worlds for the planner's tests: one line says waves and phases, everything else has a value that passes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import attrs

from state_machine.facts import (
    ActivationCompleted,
    ActivationDeferred,
    ActivationFailed,
    Converged,
    DispatchAck,
    DispatchReject,
    Fact,
    RollbackComplete,
)
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
    RolloutPolicy,
    Selector,
    Wave,
)
from state_machine.lifecycle import HostRollout, fold, opened
from state_machine.planner import Plan
from state_machine.values import Channel, Closure, HostName, Phase, Reason, RolloutId, WallMs
from state_machine.world import PlannerInput

NOW: Final = WallMs(1_000_000_000)
DIGEST: Final = "ab" * 32
EDGE: Final = Channel("edge")
OLD: Final = Closure("0" * 32 + "-old")


def target_of(host: str) -> Closure:
    """What the manifests of these worlds give the host."""
    return Closure("1" * 32 + f"-{host}")


def rollout(channel: str = "edge", ref: str = "2") -> RolloutId:
    """The id of a channel's rollout; `2` is the current one."""
    return RolloutId(f"{channel}@{ref}")


def facts_to(phase: Phase, target: Closure, acked_at: WallMs) -> list[Fact]:
    """Facts, from the first, that bring a record to `phase`."""
    ack = DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=acked_at)
    completed = ActivationCompleted(seq=2, observed_current_closure=target, exit_code=0, completed_at=acked_at)
    failed = ActivationFailed(seq=2, exit_code=1, stderr_tail="boom", failed_at=acked_at)
    facts: dict[Phase, list[Fact]] = {
        Phase.PENDING: [],
        Phase.ACTIVATING: [ack],
        Phase.DEFERRED: [ack, ActivationDeferred(seq=2, component="kernel", deferred_at=acked_at)],
        Phase.SOAKING: [ack, completed],
        Phase.CONVERGED: [ack, completed, Converged(seq=3, converged_at=acked_at, current_closure=target)],
        Phase.FAILED: [ack, failed],
        Phase.REVERTED: [
            ack,
            failed,
            RollbackComplete(seq=3, reverted_to_closure=OLD, exit_code=0, completed_at=acked_at),
        ],
    }
    return facts[phase]


def record(
    host: str, phase: Phase, rollout_id: RolloutId | None = None, acked_at: int = NOW, refused: Reason | None = None
) -> HostRollout:
    """The mirror of a host in `phase`, made by the fold. `refused`: it rejected the dispatch first."""
    made = opened(rollout_id or rollout(), HostName(host), target_of(host))
    facts = facts_to(phase, made.target_closure, WallMs(acked_at))
    if refused is not None:
        facts = [DispatchReject(seq=1, reason=refused, rejected_at=WallMs(acked_at))]
    for fact in facts:
        following = fold(made, fact)
        assert isinstance(following, HostRollout), following
        made = following
    return made


def mirrors(*records: HostRollout) -> dict[tuple[RolloutId, HostName], HostRollout]:
    """`PlannerInput.mirrors` of these records."""
    return {(made.rollout_id, made.hostname): made for made in records}


def manifest(waves: Sequence[Iterable[str]], channel: str = "edge", budgets: Sequence[Budget] = ()) -> Manifest:
    """The current manifest of a channel: the hosts wave by wave."""
    entries = [
        HostTarget(hostname=HostName(host), wave_index=index, target_closure=target_of(host))
        for index, hosts in enumerate(waves)
        for host in hosts
    ]
    return Manifest(
        schema_version=1,
        channel=Channel(channel),
        channel_ref="2",
        fleet_resolved_hash=DIGEST,
        host_set=tuple(sorted(entries, key=lambda entry: entry.hostname)),
        meta=Meta(schema_version=1, signed_at=NOW),
        disruption_budgets=tuple(budgets),
    )


def fleet(
    waves: Mapping[str, Sequence[Iterable[str]]],
    edges: Iterable[tuple[str, str]] = (),
    channel_edges: Iterable[tuple[str, str]] = (),
    budgets: Sequence[Budget] = (),
    tags: Mapping[str, tuple[str, ...]] | None = None,
) -> Fleet:
    """A fleet with these waves by channel, soaking 10 minutes; an edge is `(gated, gates)`."""
    on = {HostName(host): Channel(name) for name, groups in waves.items() for group in groups for host in group}
    tagged = tags or {}
    return Fleet(
        schema_version=1,
        hosts={
            host: FleetHost(system="x86_64-linux", channel=name, tags=tagged.get(host, ())) for host, name in on.items()
        },
        channels={Channel(name): FleetChannel(rollout_policy="staged", freshness_window=60) for name in waves},
        waves={
            Channel(name): tuple(
                Wave(hosts=tuple(HostName(host) for host in group), soak_minutes=10) for group in groups
            )
            for name, groups in waves.items()
        },
        meta=Meta(schema_version=1, signed_at=NOW),
        rollout_policies={"staged": RolloutPolicy(strategy="staged")},
        edges=tuple(HostEdge(gated=HostName(gated), gates=HostName(gates)) for gated, gates in edges),
        channel_edges=tuple(ChannelEdge(gated=Channel(gated), gates=Channel(gates)) for gated, gates in channel_edges),
        disruption_budgets=tuple(budgets),
    )


def world(
    *waves: str,
    phases: Mapping[str, Phase] | None = None,
    edges: Iterable[tuple[str, str]] = (),
    budgets: Sequence[Budget] = (),
    tags: Mapping[str, tuple[str, ...]] | None = None,
) -> PlannerInput:
    """Channel `edge` with these waves, each a string of one-letter hosts, some of them in `phases` already."""
    return PlannerInput(
        now=NOW,
        fleet=fleet({"edge": waves}, edges=edges, budgets=budgets, tags=tags),
        fleet_digest=DIGEST,
        manifests={EDGE: manifest(waves)},
        mirrors=mirrors(*(record(host, phase) for host, phase in (phases or {}).items())),
    )


def channels(
    *names: str, channel_edges: Iterable[tuple[str, str]] = (), phases: Mapping[str, Phase] | None = None
) -> PlannerInput:
    """One channel for each name, with a single host that is called like it."""
    return PlannerInput(
        now=NOW,
        fleet=fleet({name: [[name]] for name in names}, channel_edges=channel_edges),
        fleet_digest=DIGEST,
        manifests={Channel(name): manifest([[name]], name) for name in names},
        mirrors=mirrors(*(record(name, phase, rollout(name)) for name, phase in (phases or {}).items())),
    )


def with_manifest(given: PlannerInput, made: Manifest) -> PlannerInput:
    """The same with this as the current manifest of its channel."""
    return attrs.evolve(given, manifests={**given.manifests, made.channel: made})


def everybody(limit: int | None = None, pct: int | None = None) -> Budget:
    """A budget over the whole fleet."""
    return Budget(selector=Selector(all=True), max_in_flight=limit, max_in_flight_pct=pct)


def sent(planned: Plan) -> str:
    """The dispatched hosts of a plan, in its order, as one string."""
    return "".join(dispatch.host for dispatch in planned.dispatches)


def gates_of(planned: Plan) -> dict[str, str]:
    """The gate that holds each held host."""
    return {held.host: held.gate for held in planned.held}


def why(planned: Plan, host: str) -> str:
    """Why the host is held."""
    return next(held.why for held in planned.held if held.host == host)
