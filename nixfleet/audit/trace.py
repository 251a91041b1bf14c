"""Follow the switches in a verified journal: which entry began each, and what stood behind it. Pure.

That is signed intent, or the offer of a source that signs nothing; a switch on account of an offer is never taken for
one that was proved.
"""

from collections.abc import Iterable
from typing import Final

import attrs

from nixfleet.audit.export import BrokenError
from state_machine.events import IntentVerified, TargetOffered, VerifiedIntent
from state_machine.facts import (
    ActivationCompleted,
    ActivationFailed,
    ActivationStarted,
    Converged,
    DispatchAck,
    Fact,
    Failed,
    RollbackComplete,
    RolloutFact,
)
from state_machine.values import Basis, Closure, RolloutId, Source, WallMs, is_closure
from wire.errors import WireError
from wire.json_value import JsonObject
from wire.records import decode_event, decode_rollout_fact

_INTENT_VERIFIED: Final = IntentVerified.__name__
_TARGET_OFFERED: Final = TargetOffered.__name__
_UNSIGNED: Final = tuple(f"{source.value}@" for source in Source if source is not Source.FLEET)
"""How a host begins the names of rollouts that it made of offers."""


@attrs.frozen(kw_only=True)
class Proved:
    """Intent as the journal recorded it, with the entry that did and the host's clock then."""

    n: int
    at: WallMs
    intent: VerifiedIntent


@attrs.frozen(kw_only=True)
class Offered:
    """What a source without signatures said the host is to run. `n` is the entry that says so."""

    n: int
    at: WallMs
    closure: Closure
    basis: Basis
    offered_as: str


@attrs.define(kw_only=True)
class Activation:
    """One rollout on this host that got as far as a switch. `n` is the entry of its first fact of one.

    `offered` only where nothing is `proved`.
    """

    rollout_id: RolloutId
    n: int
    proved: Proved | None
    offered: Offered | None = None
    decided_at: WallMs
    """When the host decided to act: the dispatch's acknowledgement, or the switch if that is not in the journal."""
    closure: Closure | None = None
    prior: Closure | None = None
    started_at: WallMs | None = None
    completed_at: WallMs | None = None
    converged_at: WallMs | None = None
    failure: str | None = None
    reverted_to: Closure | None = None
    reverted_at: WallMs | None = None


@attrs.define(kw_only=True)
class _Reader:
    proved: dict[RolloutId, Proved] = attrs.field(factory=dict)
    offered: Offered | None = None
    """The offer that stands."""
    offers: dict[RolloutId, Offered] = attrs.field(factory=dict)
    """Those that the host took up."""
    acked: dict[RolloutId, tuple[DispatchAck, Proved | None]] = attrs.field(factory=dict)
    last_seq: dict[RolloutId, int] = attrs.field(factory=dict)
    activations: dict[RolloutId, Activation] = attrs.field(factory=dict)


def follow(bodies: Iterable[JsonObject]) -> tuple[Activation, ...]:
    """Read the entries of one host in order; the activations come in the order they began.

    Raises:
        BrokenError: an entry's event or facts are malformed, facts of a rollout leave a gap, or a rollback
            ended elsewhere than on the system that ran before.
    """
    reader = _Reader()
    for body in bodies:
        n = body["n"]
        assert isinstance(n, int)
        try:
            _read_entry(reader, n, body)
        except WireError as error:
            raise BrokenError(n=n, problem=error.detail) from error
    return tuple(reader.activations.values())


def _read_entry(reader: _Reader, n: int, body: JsonObject) -> None:
    event = body.get("event")
    if isinstance(event, dict) and event.get("kind") == _INTENT_VERIFIED:
        _read_intent(reader, n, decode_event(event))
    elif isinstance(event, dict) and event.get("kind") == _TARGET_OFFERED:
        _read_offer(reader, n, decode_event(event))
    facts = body.get("facts", [])
    for fact in facts if isinstance(facts, list) else []:
        _read_fact(reader, n, decode_rollout_fact(fact))


def _read_intent(reader: _Reader, n: int, event: object) -> None:
    assert isinstance(event, IntentVerified)
    reader.proved[event.intent.rollout_id] = Proved(n=n, at=event.at.wall_ms, intent=event.intent)


def _read_offer(reader: _Reader, n: int, event: object) -> None:
    assert isinstance(event, TargetOffered)
    if event.closure is None:
        reader.offered = None
    elif is_closure(event.closure):
        reader.offered = Offered(
            n=n,
            at=event.at.wall_ms,
            closure=Closure(event.closure),
            basis=event.basis,
            offered_as=event.offered_as,
        )


def _read_fact(reader: _Reader, n: int, given: RolloutFact) -> None:
    rollout_id, fact = given.rollout_id, given.fact
    last = reader.last_seq.get(rollout_id)
    if last is not None and fact.seq != last + 1:
        raise BrokenError(n=n, problem=f"fact {fact.seq} of {rollout_id} follows fact {last}")
    reader.last_seq[rollout_id] = fact.seq
    match fact:
        case DispatchAck():
            reader.acked[rollout_id] = (fact, reader.proved.get(rollout_id))
            if reader.offered is not None and rollout_id.startswith(_UNSIGNED):
                reader.offers[rollout_id] = reader.offered
        case ActivationStarted():
            activation = _activation(reader, n, rollout_id, fact.started_at)
            activation.started_at = fact.started_at
        case ActivationCompleted():
            activation = _activation(reader, n, rollout_id, fact.completed_at)
            activation.completed_at = fact.completed_at
            activation.closure = fact.observed_current_closure
        case _:
            _read_outcome(reader.activations.get(rollout_id), n, fact)


def _activation(reader: _Reader, n: int, rollout_id: RolloutId, at: WallMs) -> Activation:
    known = reader.activations.get(rollout_id)
    if known is not None:
        return known
    ack, proved = reader.acked.get(rollout_id, (None, reader.proved.get(rollout_id)))
    # What was proved when the host decided; only if that is not in the journal, what was proved since.
    proved = proved or reader.proved.get(rollout_id)
    made = Activation(
        rollout_id=rollout_id,
        n=n,
        proved=proved,
        offered=reader.offers.get(rollout_id) if proved is None else None,
        decided_at=at if ack is None else ack.received_at,
        prior=_way_back(reader, None if ack is None else ack.current_closure_at_dispatch or None),
    )
    if proved is not None:
        made.closure = proved.intent.target
    elif made.offered is not None:
        made.closure = made.offered.closure
    return reader.activations.setdefault(rollout_id, made)


def _way_back(reader: _Reader, running: Closure | None) -> Closure | None:
    """What a rollback goes back to: what ran, unless that is a target that never converged; then what it replaced."""
    before = max(reader.activations.values(), key=lambda activation: activation.n, default=None)
    unproven = before is not None and before.closure == running and not _stands(before)
    return before.prior or running if before is not None and unproven else running


def _stands(activation: Activation) -> bool:
    """It converged, and nothing took that back."""
    return activation.converged_at is not None and activation.failure is None


def _read_outcome(activation: Activation | None, n: int, fact: Fact) -> None:
    if activation is None:
        return
    match fact:
        case Converged():
            activation.converged_at = fact.converged_at
        case Failed():
            activation.failure = f"{', '.join(fact.failing_probes)} failed for {fact.sustained_duration_secs} s"
        case ActivationFailed():
            activation.failure = f"the switch failed with exit status {fact.exit_code}"
        case RollbackComplete():
            if activation.prior is not None and fact.reverted_to_closure != activation.prior:
                problem = f"rolled back to {fact.reverted_to_closure}, but {activation.prior} ran before"
                raise BrokenError(n=n, problem=problem)
            activation.reverted_to, activation.reverted_at = fact.reverted_to_closure, fact.completed_at
        case _:
            return
