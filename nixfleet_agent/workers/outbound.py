"""Send facts from the journal, in order, and say how far the control plane has them (protocol section 3.5)."""

import logging
from collections.abc import Sequence
from typing import Final, Protocol

import attrs
import trio

from evidence.canonical import canonicalize, parse
from evidence.errors import EvidenceError
from nixfleet_agent.desk import Desk, NotJsonAnswerError, refused
from nixfleet_agent.transport import Answer
from state_machine.actions import DeliverFacts
from state_machine.events import FactRefused, FactsDelivered, ReplayRequested
from state_machine.facts import Fact
from state_machine.values import RolloutId
from wire.codec import decode, encode, encode_fact
from wire.endpoints import EVENTS
from wire.errors import WireError
from wire.messages import ErrorBody, EventEnvelope

TIMEOUT_S: Final = 10.0
PASSING: Final = frozenset({401, 403, 408, 425, 429})
"""4xx statuses that say nothing about the fact itself: it is sent again later."""
REPORT_EVERY: Final = 50
"""Facts sent between two reports of progress, so that a long backlog is not sent twice after a crash."""
log = logging.getLogger(__name__)


class StoredFact(Protocol):
    """A fact as the journal has it; `prev` is the hex hash of the entry that was sent before its own."""

    @property
    def fact(self) -> Fact:
        """The fact."""
        ...

    @property
    def prev(self) -> str | None:
        """The link to what was sent before."""
        ...


class FactStore(Protocol):
    """Where facts are read from, in bounded portions."""

    async def facts_from(self, rollout_id: RolloutId, from_seq: int, limit: int) -> Sequence[StoredFact]:
        """At most `limit` facts of the rollout from `from_seq` on, in order."""
        ...


@attrs.frozen(kw_only=True)
class _GapError(Exception):
    """The control plane lacks facts before this one."""

    want_seq: int


class OutboundWorker:
    """Answers with `FactsDelivered`, `FactRefused` and `ReplayRequested`."""

    def __init__(self, desk: Desk, facts: FactStore) -> None:
        self._desk = desk
        self._facts = facts
        self._turn = trio.Lock()

    async def deliver(self, order: DeliverFacts) -> bool:
        """Send what the order names. False: the control plane wants to go back first.

        Raises:
            TransportError, AnswerError: it stopped in the middle; what was taken has been reported.
        """
        async with self._turn:
            want_seq = await self._send_all(order)
        if want_seq is None:
            return True
        # After the report of what was taken, which would otherwise move delivery forward again.
        await self._desk.tell(ReplayRequested(at=self._desk.clock(), rollout_id=order.rollout_id, from_seq=want_seq))
        return False

    async def _send_all(self, order: DeliverFacts) -> int | None:
        """Send until the end or the first gap; the number that the control plane wants, if it wants to go back."""
        limit = order.through_seq - order.from_seq + 1
        stored = await self._facts.facts_from(order.rollout_id, order.from_seq, limit)
        reported = through = order.from_seq - 1
        try:
            for item in stored:
                await self._send_or_skip(order.rollout_id, item)
                through = item.fact.seq
                if through - reported >= REPORT_EVERY:
                    reported = await self._report(order.rollout_id, through)
        except _GapError as gap:
            return gap.want_seq
        finally:
            if through > reported:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await self._report(order.rollout_id, through)
        return None

    async def _send_or_skip(self, rollout_id: RolloutId, item: StoredFact) -> None:
        """Send one fact. A gap that the journal can no longer fill must not stop delivery for ever.

        Raises:
            _GapError: the control plane wants to go back, and can have what it wants.
        """
        try:
            await self._send(rollout_id, item)
        except _GapError as gap:
            kept = await self._facts.facts_from(rollout_id, gap.want_seq, 1)
            if kept and kept[0].fact.seq == gap.want_seq:
                raise
            await self._tell_refused(rollout_id, item.fact.seq, 409, f"fact {gap.want_seq} is no longer kept here")

    async def _report(self, rollout_id: RolloutId, through_seq: int) -> int:
        await self._desk.tell(FactsDelivered(at=self._desk.clock(), rollout_id=rollout_id, through_seq=through_seq))
        return through_seq

    async def _send(self, rollout_id: RolloutId, stored: StoredFact) -> None:
        """Send one fact. Refused for good is an outcome too, and told; the next one may be sent."""
        answer = await self._desk.uplink.ask(
            "POST", EVENTS, json=encode(self._envelope(rollout_id, stored)), timeout_s=TIMEOUT_S
        )
        if answer.status == 204 or (answer.ok and not answer.body.strip()):
            return
        if answer.ok:
            raise NotJsonAnswerError(path=EVENTS, problem="a fact is acknowledged by 204, and this was something else")
        body = _error_body(answer)
        if answer.status == 409 and body.want_seq is not None:
            raise _GapError(want_seq=body.want_seq)
        if not 400 <= answer.status < 500 or answer.status in PASSING:
            raise refused(EVENTS, answer)
        reason = body.reason or body.error or f"HTTP {answer.status}"
        await self._tell_refused(rollout_id, stored.fact.seq, answer.status, reason)

    async def _tell_refused(self, rollout_id: RolloutId, seq: int, status: int, reason: str) -> None:
        fields = {"rollout": rollout_id, "seq": seq, "status": status, "reason": reason}
        log.warning("the control plane will not take a fact", extra={"fields": fields})
        self._desk.telemetry.facts_refused += 1
        event = FactRefused(at=self._desk.clock(), rollout_id=rollout_id, seq=seq, status=status, reason=reason[:200])
        await self._desk.tell(event)

    def _envelope(self, rollout_id: RolloutId, stored: StoredFact) -> EventEnvelope:
        signature = self._desk.host_key.sign(canonicalize(encode_fact(stored.fact)))
        return EventEnvelope(
            hostname=self._desk.config.machine_id,
            rollout_id=rollout_id,
            event=stored.fact,
            signature=signature.hex(),
            prev=stored.prev,
        )


def _error_body(answer: Answer) -> ErrorBody:
    """What a refusal says. A body that says nothing readable leaves only the status."""
    try:
        return decode(ErrorBody, parse(answer.body))
    except (EvidenceError, WireError):
        return ErrorBody(error="")
