"""Signed manifests of a fleet, routed by its control plane: the source with proof."""

from collections.abc import Callable, Mapping

import attrs

from nixfleet_agent.desk import Desk, Uplink
from nixfleet_agent.sources.interface import Exchange
from nixfleet_agent.surroundings import Surroundings
from nixfleet_agent.workers.certificate import CertificateWorker
from nixfleet_agent.workers.dispatch import DispatchWorker
from nixfleet_agent.workers.heartbeat import HeartbeatWorker
from nixfleet_agent.workers.intent import DocumentCache, IntentWorker
from nixfleet_agent.workers.outbound import FactStore, OutboundWorker
from state_machine.actions import DeliverFacts
from state_machine.events import Duty
from state_machine.system import SystemView
from state_machine.values import RolloutId


@attrs.frozen(kw_only=True)
class FleetSource:
    """An `IntentSource` made of one worker for each kind of exchange."""

    uplink: Uplink
    intent: IntentWorker
    dispatch: DispatchWorker
    heartbeat: HeartbeatWorker
    outbound: OutboundWorker
    certificate: CertificateWorker

    @classmethod
    def of(cls, desk: Desk, around: Surroundings, observe: Callable[[], SystemView], facts: FactStore) -> "FleetSource":
        """Put together from what the daemon has."""
        intent = IntentWorker(desk, DocumentCache(desk.config.state_dir))
        return cls(
            uplink=desk.uplink,
            intent=intent,
            dispatch=DispatchWorker(desk, observe, intent.review),
            heartbeat=HeartbeatWorker(desk, observe, intent.review),
            outbound=OutboundWorker(desk, facts),
            certificate=CertificateWorker(desk, around.connect, around.certificate_tool),
        )

    async def load(self) -> None:
        """Take the client certificate into use, if there is one."""
        await self.certificate.load()

    def exchanges(self) -> Mapping[Duty, Exchange]:
        """Every duty there is."""
        return {
            Duty.INTENT: self.intent.poll,
            Duty.DISPATCH: self.dispatch.poll,
            Duty.HEARTBEAT: self.heartbeat.beat,
            Duty.RENEWAL: self.certificate.renew,
        }

    async def fetch(self, rollout_id: RolloutId) -> None:
        """Get and prove one rollout's manifest and its fleet."""
        await self.intent.fetch(rollout_id)

    async def deliver(self, order: DeliverFacts) -> bool:
        """Send signed facts."""
        return await self.outbound.deliver(order)

    def keep(self, rollout_id: RolloutId) -> None:
        """Keep manifest and fleet for an auditor."""
        self.intent.keep(rollout_id)

    def caches(self) -> tuple[str, ...]:
        """None: a manifest names closures, and the host's own configuration where they come from."""
        return ()

    async def close(self) -> None:
        """Close the connection."""
        await self.uplink.close()
