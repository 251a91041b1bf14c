"""The heartbeat: a sign of life, a look at the host, and the control plane's view of it (protocol section 3.6)."""

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from nixfleet_agent import __version__
from nixfleet_agent.desk import Desk, NotJsonAnswerError, read_json
from nixfleet_agent.status import waiting_on
from nixfleet_agent.transport import Answer
from state_machine.events import ReplayRequested, Snapshot, SnapshotsReceived, SystemObserved
from state_machine.state import Known, is_ours
from state_machine.system import SystemView
from state_machine.values import RolloutId
from wire.codec import decode, encode
from wire.endpoints import HEARTBEAT, REPLAY_FROM_HEADER
from wire.errors import WireError
from wire.messages import HeartbeatReply, HeartbeatRequest, HostRolloutSnapshot

TIMEOUT_S: Final = 10.0
WAITING_ON_SHOWN: Final = 1024
"""Characters. A host with very many probes may wait for all of them, and a heartbeat has to stay short."""


class HeartbeatWorker:
    """Answers with `SystemObserved`, and with `SnapshotsReceived` and `ReplayRequested` where the reply has any."""

    def __init__(self, desk: Desk, observe: Callable[[], SystemView], review: Callable[[], Awaitable[None]]) -> None:
        """`review` looks at accepted intent by the trust file of now; see `IntentWorker.review`."""
        self._desk = desk
        self._observe = observe
        self._review = review

    async def beat(self) -> None:
        """One heartbeat.

        Raises:
            TransportError, AnswerError: it failed.
        """
        system = self._observe()
        await self._desk.tell(SystemObserved(at=self._desk.clock(), system=system))
        request = self._request(self._desk.state().known, system)
        answer = await self._desk.uplink.ask("POST", HEARTBEAT, json=encode(request), timeout_s=TIMEOUT_S)
        value = read_json(HEARTBEAT, answer)
        try:
            reply = decode(HeartbeatReply, value)
        except WireError as error:
            raise NotJsonAnswerError(path=HEARTBEAT, problem=str(error)) from error
        await self._tell(request, reply, answer)

    def _request(self, known: Known, system: SystemView) -> HeartbeatRequest:
        at = self._desk.clock()
        return HeartbeatRequest(
            hostname=self._desk.config.machine_id,
            at=at.wall_ms,
            rollout_id=known.active,
            current_closure=system.running,
            agent_version=__version__,
            uptime_secs=(at.mono_ms - self._desk.telemetry.started_mono_ms) // 1000,
            last_event_seq_by_rollout={r: t.record.last_seq for r, t in known.rollouts.items() if is_ours(known, t)},
            health=dict(Counter(health.status.value for health in known.probes.values())),
            boot_id=system.boot_id,
            waiting_on=(waiting_on(known) or "")[:WAITING_ON_SHOWN] or None,
            tags=self._desk.config.tags,
        )

    async def _tell(self, request: HeartbeatRequest, reply: HeartbeatReply, answer: Answer) -> None:
        mine = [s for s in reply.bootstrap_rollouts if s.hostname == request.hostname]
        if mine:
            await self._review()
            snapshots = tuple(_snapshot(snapshot) for snapshot in mine)
            await self._desk.tell(SnapshotsReceived(at=self._desk.clock(), snapshots=snapshots))
        wanted = {replay.rollout_id: replay.from_seq for replay in reply.replay}
        header = answer.headers.get(REPLAY_FROM_HEADER, "")
        if header.isascii() and header.isdigit() and request.rollout_id is not None:
            wanted.setdefault(request.rollout_id, int(header[:9]))
        for rollout_id, from_seq in wanted.items():
            event = ReplayRequested(at=self._desk.clock(), rollout_id=RolloutId(rollout_id), from_seq=from_seq)
            await self._desk.tell(event)


def _snapshot(snapshot: HostRolloutSnapshot) -> Snapshot:
    return Snapshot(
        rollout_id=snapshot.rollout_id,
        phase=snapshot.state,
        target_closure=snapshot.target_closure,
        last_seq=snapshot.last_event_seq,
        soak_due_at=snapshot.soak_due_at,
    )
