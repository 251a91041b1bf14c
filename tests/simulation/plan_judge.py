"""What every plan of the control plane must keep, said from what the planner was given and not from how it decides.

Every dispatch keeps each of `RULES`, the budgets hold with all dispatches of the plan together, and nobody is held for
nothing: a host that no rule and no budget keeps back is sent its target. What is handed out belongs to a rollout that
nobody has stopped and no other has replaced. Gates and planner are not asked; only the values are the same.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import attrs

from control_plane.rows import QueuedDispatch, Rollout
from state_machine.events import DispatchKind
from state_machine.intent import Budget, HostTarget, Manifest
from state_machine.planner import Dispatch, Plan
from state_machine.values import CLOCK_SLACK_MS, HostName, Phase, RolloutId
from state_machine.world import PlannerInput
from tests.simulation.faults import MINUTE
from tests.simulation.judge import Finding

ASKED_AGAIN_MS: Final = 10 * MINUTE
"""A host that refused is asked again after this time, or when what it refused was signed anew."""
SETTLED: Final = (Phase.CONVERGED, Phase.DEFERRED)
ILL: Final = (Phase.FAILED, Phase.REVERTED)
BUSY: Final = (Phase.ACTIVATING, Phase.SOAKING)

Phases = Mapping[HostName, Phase]
Rule = Callable[[PlannerInput, Manifest, HostTarget, Phases], bool]


# --- rules ----------------------------------------------------------------------------------------------------------


def _current(given: PlannerInput, manifest: Manifest, entry: HostTarget, phases: Phases) -> bool:
    """No newer rollout of the channel has been opened, and the manifest is anchored to the fleet it is planned with."""
    return manifest.rollout_id not in given.superseded and manifest.fleet_resolved_hash == given.fleet_digest


def _fresh(given: PlannerInput, manifest: Manifest, entry: HostTarget, phases: Phases) -> bool:
    """The manifest is within the signed window of its channel, and not from the future."""
    signed_at = manifest.meta.signed_at
    window_ms = given.fleet.channels[manifest.channel].freshness_window * MINUTE
    return signed_at is not None and -CLOCK_SLACK_MS <= given.now - signed_at <= window_ms + CLOCK_SLACK_MS


def _in_reach(given: PlannerInput, manifest: Manifest, entry: HostTarget, phases: Phases) -> bool:
    """The host is in good standing and has been heard of lately."""
    return entry.hostname not in given.revoked and entry.hostname not in given.unreachable


def _not_taken_back(given: PlannerInput, manifest: Manifest, entry: HostTarget, phases: Phases) -> bool:
    """Nobody on the channel has rolled the target back, and the host itself has not."""
    target = entry.target_closure
    return (manifest.channel, target) not in given.quarantine and (entry.hostname, target) not in given.host_quarantine


def _nobody_ill(given: PlannerInput, manifest: Manifest, entry: HostTarget, phases: Phases) -> bool:
    """No host of its wave or an earlier one failed or went back: the rollout stops there."""
    return not any(phases[other.hostname] in ILL for other in manifest.host_set if other.wave_index <= entry.wave_index)


def _wave_is_due(given: PlannerInput, manifest: Manifest, entry: HostTarget, phases: Phases) -> bool:
    """Every host of every earlier wave has proved itself, or only waits for its reboot."""
    return all(phases[other.hostname] in SETTLED for other in manifest.host_set if other.wave_index < entry.wave_index)


def _goes_after(given: PlannerInput, manifest: Manifest, entry: HostTarget, phases: Phases) -> bool:
    """Hosts that go first by an edge have gone."""
    edges = (edge for edge in given.fleet.edges if edge.gated == entry.hostname and edge.gates in phases)
    return all(phases[edge.gates] in SETTLED for edge in edges)


def _did_not_refuse(given: PlannerInput, manifest: Manifest, entry: HostTarget, phases: Phases) -> bool:
    """It has not refused this rollout lately."""
    key = (manifest.rollout_id, entry.hostname)
    record = given.mirrors.get(key)
    if record is None or record.refusal is None:
        return True
    return key in given.refused_at and given.now - given.refused_at[key] >= ASKED_AGAIN_MS


RULES: Final[Mapping[str, Rule]] = {
    "current": _current,
    "fresh": _fresh,
    "reach": _in_reach,
    "quarantine": _not_taken_back,
    "halt": _nobody_ill,
    "waves": _wave_is_due,
    "edges": _goes_after,
    "refusals": _did_not_refuse,
}
"""By the name a finding gets, after `plan-`."""


# --- the judge ------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class PlanJudge:
    """Judges the plans of one control plane, through all its lives."""

    findings: list[Finding] = attrs.field(factory=list)

    def planned(self, at_ms: int, given: PlannerInput, made: Plan) -> None:
        """`plan(given)` was `made`."""
        for name, text in _wrong_with(given, made):
            self.findings.append(Finding(at_ms=at_ms, who="cp", promise=f"plan-{name}", text=text))

    def handed_out(self, at_ms: int, row: QueuedDispatch, rollout: Rollout | None) -> None:
        """A host was given a dispatch of a rollout that stands so."""
        if row.kind is not DispatchKind.DISPATCH or rollout is None:
            return
        if rollout.superseded_at is not None or rollout.halted is not None:
            text = f"{row.hostname} is handed {row.rollout_id}, which is over"
            self.findings.append(Finding(at_ms=at_ms, who="cp", promise="plan-current", text=text))


def _wrong_with(given: PlannerInput, made: Plan) -> Iterator[tuple[str, str]]:
    sent = {(dispatch.rollout_id, dispatch.host): dispatch for dispatch in made.dispatches}
    held = {(held.rollout_id, held.host): held for held in made.held}
    if len(sent) != len(made.dispatches) or len(held) != len(made.held) or sent.keys() & held.keys():
        yield "once", "a host is in the plan twice"
    over = _over_budget(given, frozenset(dispatch.host for dispatch in made.dispatches))
    yield from (("budget", text) for text, _ in over.values() if text)
    for manifest in given.manifests.values():
        phases = _phases(given, manifest)
        for entry in manifest.host_set:
            key = (manifest.rollout_id, entry.hostname)
            waits = phases[entry.hostname] is Phase.PENDING and key not in given.outstanding
            if (dispatch := sent.pop(key, None)) is not None:
                yield from _wrong_dispatch(given, manifest, entry, phases, dispatch, waits=waits)
            elif waits and not _kept_back(given, manifest, entry, phases, over):
                gate = "nobody says why" if key not in held else f"held by {held[key].gate}: {held[key].why}"
                yield (
                    "progress",
                    f"nothing keeps {entry.hostname} from {manifest.rollout_id}, and it is not sent: {gate}",
                )
    for _, host in sent:
        yield "target", f"{host} is sent what no manifest gives it"


def _wrong_dispatch(
    given: PlannerInput, manifest: Manifest, entry: HostTarget, phases: Phases, dispatch: Dispatch, *, waits: bool
) -> Iterator[tuple[str, str]]:
    whom = f"{entry.hostname} is sent {manifest.rollout_id}"
    if not waits:
        yield "once", f"{whom}, and it is {phases[entry.hostname]} or has it coming"
    soak_ms = given.fleet.waves[manifest.channel][entry.wave_index].soak_ms
    wanted = (entry.target_closure, entry.wave_index, soak_ms)
    if (dispatch.target_closure, dispatch.wave_index, dispatch.soak_ms) != wanted:
        yield "target", f"{whom} as {dispatch}, and it is to be {wanted}"
    for name, keeps in RULES.items():
        if not keeps(given, manifest, entry, phases):
            yield name, f"{whom} against the rule: {keeps.__doc__}"


def _kept_back(
    given: PlannerInput, manifest: Manifest, entry: HostTarget, phases: Phases, over: Mapping[Budget, tuple[str, bool]]
) -> bool:
    """A rule, or a budget that this plan has used up."""
    if not all(keeps(given, manifest, entry, phases) for keeps in RULES.values()):
        return True
    # One that is in flight with another rollout takes no further place.
    return entry.hostname not in _in_flight(given) and any(full for _, full in over.values())


def _phases(given: PlannerInput, manifest: Manifest) -> Phases:
    records = (
        (entry.hostname, given.mirrors.get((manifest.rollout_id, entry.hostname))) for entry in manifest.host_set
    )
    return {host: Phase.PENDING if record is None else record.phase for host, record in records}


# --- budgets --------------------------------------------------------------------------------------------------------


def _over_budget(given: PlannerInput, sent: frozenset[HostName]) -> Mapping[Budget, tuple[str, bool]]:
    """Of each budget of the whole fleet: what is wrong, if anything, and whether it is used up."""
    before = _in_flight(given)
    return {
        budget: _standing(budget.max_in_flight, len(before), len(before | sent))
        for budget in given.fleet.disruption_budgets
        if budget.selector.all and budget.max_in_flight is not None
    }


def _standing(most: int | None, before: int, after: int) -> tuple[str, bool]:
    assert most is not None
    wrong = f"{after} hosts are in flight, and {most} may be" if after > max(most, before) else ""
    return wrong, after >= most


def _in_flight(given: PlannerInput) -> frozenset[HostName]:
    """Hosts with a dispatch coming, and those that have not come to the end of what they took last."""
    current = {manifest.rollout_id for manifest in given.manifests.values()}
    coming = {host for rollout, host in given.outstanding if _phase(given, rollout, host) is Phase.PENDING}
    last: dict[HostName, tuple[bool, int, bool]] = {}
    for (rollout_id, host), record in given.mirrors.items():
        if record.phase is not Phase.PENDING:
            taken = (rollout_id in current, record.dispatch_acked_at or 0, record.phase in BUSY)
            last[host] = max(taken, last.get(host, taken))
    return frozenset(coming | {host for host, (_, _, busy) in last.items() if busy})


def _phase(given: PlannerInput, rollout_id: RolloutId, host: HostName) -> Phase:
    record = given.mirrors.get((rollout_id, host))
    return Phase.PENDING if record is None else record.phase
