"""What the planner is given, and the view of it that the gates read.

`survey` works out once what gates ask for every host, so that one gate costs a look-up and a plan for a fleet of
thousands is one pass. Nothing in here decides: `gates` says who is held, `planner` who is dispatched.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from typing import Final, TypeVar

import attrs

from state_machine.intent import Fleet, HostEdge, HostTarget, Manifest
from state_machine.lifecycle import IN_FLIGHT, SETTLED, HostRollout
from state_machine.selector import describe, limit, members
from state_machine.values import Channel, Closure, HostName, Phase, RolloutId, WallMs
from state_machine.waves import unplaced

Node = TypeVar("Node", bound=str)

HALTING: Final = frozenset({Phase.FAILED, Phase.REVERTED})
"""Phases of one host that stop the dispatch of its rollout to others."""


@attrs.frozen(kw_only=True)
class PlannerInput:
    """Everything a plan depends on. Fleet and manifests are verified; the rest is the control plane's own memory."""

    now: WallMs
    fleet: Fleet
    fleet_digest: str
    """SHA-256 of the fleet file, as a manifest's `fleetResolvedHash` spells it."""
    manifests: Mapping[Channel, Manifest]
    """The newest accepted manifest of each channel."""
    mirrors: Mapping[tuple[RolloutId, HostName], HostRollout] = attrs.field(factory=dict)
    """Every record there is, of older rollouts too: budgets and summaries look at them."""
    outstanding: frozenset[tuple[RolloutId, HostName]] = frozenset()
    """Dispatches queued or sent and not yet acknowledged or rejected. Drop a rollout's when it is superseded."""
    superseded: frozenset[RolloutId] = frozenset()
    quarantine: frozenset[tuple[Channel, Closure]] = frozenset()
    host_quarantine: frozenset[tuple[HostName, Closure]] = frozenset()
    refused_at: Mapping[tuple[RolloutId, HostName], WallMs] = attrs.field(factory=dict)
    """When a host's last refusal arrived. A refusal without an entry is taken as final for its rollout."""
    revoked: frozenset[HostName] = frozenset()
    unreachable: frozenset[HostName] = frozenset()


@attrs.frozen(kw_only=True)
class RolloutView:
    """One current rollout: what its manifest wants, and how far it has come."""

    rollout_id: RolloutId
    filed_under: Channel
    manifest: Manifest
    entries: Mapping[HostName, HostTarget]
    """In order of wave, then of name."""
    records: Mapping[HostName, HostRollout]
    unplaced: frozenset[HostName]
    current_wave: int
    """The first wave with a host that is not settled, or the last wave there is. Empty waves are passed through."""
    awaited: tuple[HostName, ...]
    """The hosts of the current wave that are not settled."""
    first_failure: HostTarget | None
    """A failed or reverted host of the earliest wave that has one."""
    waits_for: Mapping[HostName, tuple[HostEdge, ...]]
    """Host edges by the host they hold back, both of whose ends are in this rollout."""
    circular: frozenset[HostName]
    """Hosts whose edges go round in a circle."""

    def phase_of(self, host: HostName) -> Phase:
        """Where the host stands; one that was never dispatched is Pending."""
        record = self.records.get(host)
        return Phase.PENDING if record is None else record.phase

    @property
    def converged(self) -> int:
        """How many of its hosts have converged."""
        return sum(self.phase_of(host) is Phase.CONVERGED for host in self.entries)


@attrs.frozen(kw_only=True)
class BudgetView:
    """A disruption budget with its members resolved."""

    label: str
    members: frozenset[HostName]
    limit: int


@attrs.frozen(kw_only=True)
class World:
    """`given`, and what follows from it."""

    given: PlannerInput
    rollouts: Mapping[Channel, RolloutView]
    """In order of channel name."""
    unfinished: Mapping[Channel, str]
    """Channels whose current rollout is not over, and what it lacks."""
    circular_channels: frozenset[Channel]
    in_flight: frozenset[HostName]
    budgets: tuple[BudgetView, ...]


def survey(given: PlannerInput) -> World:
    """The world as the gates see it."""
    records: dict[RolloutId, dict[HostName, HostRollout]] = {}
    for (rollout_id, host), record in given.mirrors.items():
        records.setdefault(rollout_id, {})[host] = record
    rollouts = {
        channel: _view(given, channel, manifest, records.get(manifest.rollout_id, {}))
        for channel, manifest in sorted(given.manifests.items())
    }
    return World(
        given=given,
        rollouts=rollouts,
        unfinished={channel: lack for channel, view in rollouts.items() if (lack := _lack(view))},
        circular_channels=circular((edge.gated, edge.gates) for edge in given.fleet.channel_edges),
        in_flight=hosts_in_flight(given),
        budgets=_budgets(given),
    )


def _view(
    given: PlannerInput, filed_under: Channel, manifest: Manifest, records: Mapping[HostName, HostRollout]
) -> RolloutView:
    entries = _entries(manifest)
    phases = {host: records[host].phase if host in records else Phase.PENDING for host in entries}
    astray = unplaced(given.fleet, manifest.channel, entries)
    unsettled = [host for host in entries if host not in astray and phases[host] not in SETTLED]
    current = (
        entries[unsettled[0]].wave_index if unsettled else max((e.wave_index for e in entries.values()), default=0)
    )
    edges = [edge for edge in given.fleet.edges if edge.gated in entries and edge.gates in entries]
    return RolloutView(
        rollout_id=manifest.rollout_id,
        filed_under=filed_under,
        manifest=manifest,
        entries=entries,
        records=records,
        unplaced=astray,
        current_wave=current,
        awaited=tuple(host for host in unsettled if entries[host].wave_index == current),
        first_failure=next((entry for host, entry in entries.items() if phases[host] in HALTING), None),
        waits_for=_by_gated(edges),
        circular=circular((edge.gated, edge.gates) for edge in edges),
    )


def _entries(manifest: Manifest) -> dict[HostName, HostTarget]:
    """The host set in planning order. A host named twice, which no release tool writes, keeps its first entry."""
    first = {entry.hostname: entry for entry in reversed(manifest.host_set)}
    return dict(sorted(first.items(), key=lambda named: (named[1].wave_index, named[0])))


def _by_gated(edges: Iterable[HostEdge]) -> dict[HostName, tuple[HostEdge, ...]]:
    grouped: dict[HostName, list[HostEdge]] = {}
    for edge in edges:
        grouped.setdefault(edge.gated, []).append(edge)
    return {host: tuple(waits) for host, waits in grouped.items()}


def _lack(view: RolloutView) -> str:
    """What keeps the rollout from being over, or nothing. Deferred hosts do: their new system does not run yet."""
    lacking = len(view.entries) - view.converged
    return f"{view.converged} of {len(view.entries)} hosts of {view.rollout_id} have converged" if lacking else ""


def hosts_in_flight(given: PlannerInput) -> frozenset[HostName]:
    """Hosts that use up a budget: between acknowledging a dispatch and its outcome, or with a dispatch on its way.

    A host runs one system, so only the rollout it acknowledged last counts: nothing ever closes the record of a
    rollout that a newer one overtook, and it must not use up a budget for ever. The current rollout of a channel is
    the newest whatever the host's clock said.
    """
    current = {manifest.rollout_id for manifest in given.manifests.values()}
    newest: dict[HostName, tuple[tuple[bool, int], bool]] = {}
    for (rollout_id, host), record in given.mirrors.items():
        if record.phase is Phase.PENDING:
            continue
        age = (rollout_id in current, record.dispatch_acked_at or 0)
        # Of two records as new as one another the one in flight wins, being the larger tuple.
        newest[host] = max(newest.get(host, (age, False)), (age, record.phase in IN_FLIGHT))
    on_their_way = {key[1] for key in given.outstanding if _phase(given, key) is Phase.PENDING}
    return frozenset({host for host, (_, in_flight) in newest.items() if in_flight} | on_their_way)


def _phase(given: PlannerInput, key: tuple[RolloutId, HostName]) -> Phase:
    return given.mirrors[key].phase if key in given.mirrors else Phase.PENDING


def _budgets(given: PlannerInput) -> tuple[BudgetView, ...]:
    """Every budget of the fleet and of the current manifests. Those with no member or no limit hold nobody."""
    declared = [*given.fleet.disruption_budgets]
    for _, manifest in sorted(given.manifests.items()):
        declared.extend(manifest.disruption_budgets)
    views: dict[tuple[frozenset[HostName], int], BudgetView] = {}
    for budget in declared:
        who = members(budget, given.fleet)
        bound = limit(budget, len(who))
        if bound is not None and who:
            views.setdefault((who, bound), BudgetView(label=describe(budget.selector), members=who, limit=bound))
    return tuple(views.values())


def circular(waits: Iterable[tuple[Node, Node]]) -> frozenset[Node]:
    """Those nodes of `(waiting, awaited)` pairs that wait for themselves, by way of each other."""
    pairs = set(waits)
    if not pairs:
        return frozenset()
    return _never_free(pairs) & _never_free({(awaited, waiting) for waiting, awaited in pairs})


def _never_free(waits: Set[tuple[Node, Node]]) -> frozenset[Node]:
    """Nodes that would wait for ever, each being freed when all it waits for are: a circle, and who waits for it."""
    open_waits = Counter(waiting for waiting, _ in waits)
    waiters: dict[Node, list[Node]] = {}
    for waiting, awaited in waits:
        waiters.setdefault(awaited, []).append(waiting)
    free = [node for node in waiters if not open_waits[node]]
    while free:
        for waiting in waiters.get(free.pop(), ()):
            open_waits[waiting] -= 1
            if not open_waits[waiting]:
                free.append(waiting)
    return frozenset(node for node, count in open_waits.items() if count)
