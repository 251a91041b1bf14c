"""How a mirror follows its host's facts.

The fold is `lifecycle.fold`, the same code as on the host. What is added here are the control plane's own stamps, and
two rules for what a fold alone cannot do: a fact that was refused for good still uses up its number, and a mirror of
a rollout whose manifest is gone learns its target from the host's facts.
"""

import attrs

from control_plane.entries import PlannedHost, RolloutOpened
from control_plane.rows import Mirror, Rollout
from state_machine.events import DispatchKind
from state_machine.facts import (
    ActivationCompleted,
    Converged,
    DispatchAck,
    DispatchReject,
    DriftObserved,
    Fact,
    ProbeResult,
    RollbackRequested,
    TargetRefused,
)
from state_machine.lifecycle import TERMINAL, HostRollout, Illegal, OutOfOrder, fold, opened
from state_machine.values import Channel, Closure, HostName, Phase, ProbeMode, ProbeStatus, RolloutId, WallMs

UNKNOWN_TARGET = Closure("")
"""The target of a mirror whose manifest is not known, until a fact names it."""

ROLLBACK_PHASES = frozenset({Phase.ACTIVATING, Phase.DEFERRED, Phase.SOAKING, Phase.CONVERGED})
"""Where a host can still be asked to go back (protocol, Part A)."""

RUNS_TARGET = frozenset({Phase.SOAKING, Phase.CONVERGED})
"""Where what should run is the target: in any other phase drift is away from an earlier system."""


def folded(record: HostRollout, fact: Fact) -> HostRollout | Illegal | OutOfOrder:
    """`lifecycle.fold`, with a target that is not known yet learned from the fact."""
    return fold(_with_target(record, fact), fact)


def after(mirror: Mirror, fact: Fact, at: WallMs, *, verified: bool) -> Mirror:
    """The mirror after an accepted fact. One that no longer folds (another version took it) only uses up its number."""
    record = folded(mirror.record, fact)
    if isinstance(record, Illegal | OutOfOrder):
        return passed_over(mirror, fact.seq)
    refused = isinstance(fact, DispatchReject | TargetRefused)
    return attrs.evolve(
        mirror,
        record=record,
        changed_at=at,
        refused_at=at if refused else mirror.refused_at,
        terminal_at=(mirror.terminal_at or at) if record.phase in TERMINAL else None,
        verified_facts=mirror.verified_facts + verified,
        failing_controls=_controls_after(mirror, fact),
    )


def passed_over(mirror: Mirror, seq: int) -> Mirror:
    """The mirror with number `seq` used up by a fact that did not count."""
    return attrs.evolve(mirror, record=attrs.evolve(mirror.record, last_seq=max(seq, mirror.record.last_seq)))


def planned(rollout: RolloutOpened, host: PlannedHost, known: Mirror | None, at: WallMs) -> Mirror:
    """The mirror of a host that a manifest names; `known` is what the host told before the manifest was seen."""
    record = (
        opened(rollout.rollout_id, host.hostname, host.target_closure)
        if known is None
        else attrs.evolve(known.record, target_closure=host.target_closure)
    )
    base = known or Mirror(record=record, channel=rollout.channel, planned=True, opened_at=at)
    return attrs.evolve(base, record=record, planned=True, wave_index=host.wave_index, soak_ms=host.soak_ms)


def rollout_without_manifest(rollout_id: RolloutId, at: WallMs) -> Rollout:
    """A rollout that is only known because a host speaks of it."""
    channel, _, ref = rollout_id.partition("@")
    return Rollout(rollout_id=rollout_id, channel=Channel(channel), channel_ref=ref, opened_at=at)


def unplanned(rollout: Rollout, hostname: HostName, at: WallMs) -> Mirror:
    """The mirror of a host that no manifest at hand names in this rollout."""
    record = opened(rollout.rollout_id, hostname, UNKNOWN_TARGET)
    return Mirror(record=record, channel=rollout.channel, planned=False, opened_at=at)


def answers(kind: DispatchKind, mirror: Mirror, fact: Fact) -> bool:
    """True when `fact`, after which the host stands as in `mirror`, settles a queued dispatch of this kind."""
    match kind:
        case DispatchKind.DISPATCH:
            return isinstance(fact, DispatchAck | DispatchReject) or mirror.record.phase is not Phase.PENDING
        case DispatchKind.ROLLBACK:
            return isinstance(fact, RollbackRequested | DispatchReject) or mirror.record.phase not in ROLLBACK_PHASES


def _with_target(record: HostRollout, fact: Fact) -> HostRollout:
    if record.target_closure != UNKNOWN_TARGET:
        return record
    match fact:
        case ActivationCompleted(observed_current_closure=target) | Converged(current_closure=target):
            return attrs.evolve(record, target_closure=target)
        case DriftObserved(expected_closure=target) if record.phase in RUNS_TARGET:
            return attrs.evolve(record, target_closure=target)
        case _:
            return record


def _controls_after(mirror: Mirror, fact: Fact) -> dict[str, tuple[str, ...]]:
    controls = dict(mirror.failing_controls)
    if isinstance(fact, ActivationCompleted):
        return {}
    if isinstance(fact, ProbeResult):
        controls[fact.probe_name] = tuple(
            sub.control_id
            for sub in fact.sub_results or ()
            if sub.status is ProbeStatus.FAIL and sub.effective_mode is ProbeMode.ENFORCE
        )
    return {name: failing for name, failing in controls.items() if failing}
