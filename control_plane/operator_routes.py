"""What operators read and ask for (protocol section 3.9), and the two open endpoints beside it."""

from typing import Final, TypeVar

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from control_plane.adoption import Adopter
from control_plane.entries import DispatchQueued, MachineRegistered, QuarantineLifted, RollbackAsked
from control_plane.errors import RequestRefusedError
from control_plane.guards import Guards, check_tags, document_response, json_response, read_message
from control_plane.identity import Peer, Role
from control_plane.ledger import Ledger
from control_plane.metrics import CONTENT_TYPE, Metrics
from control_plane.mirrors import ROLLBACK_PHASES
from control_plane.planner_loop import PlannerLoop
from control_plane.rows import Mirror, Quarantined, Rollout
from control_plane.shelf import Shelf
from control_plane.version import VERSION
from control_plane.views import Views, only_of
from evidence.documents import is_host_name
from state_machine.events import DispatchKind
from state_machine.values import Channel, Closure, HostName, RolloutId, is_rollout_id
from wire.endpoints import (
    CHANNEL,
    DEFERRALS,
    HEALTHZ,
    HOSTS,
    MACHINES,
    METRICS,
    QUARANTINE,
    QUARANTINE_CLEAR,
    REFRESH,
    ROLLOUT_EVENTS,
    ROLLOUT_HOSTS,
    ROLLOUT_LIFECYCLE,
    ROLLOUT_ROLLBACK,
    ROLLOUTS,
    WHOAMI,
)
from wire.json_value import JsonObject
from wire.listings import Health, Whoami
from wire.timestamps import format_rfc3339

EVENTS_DEFAULT: Final = 1000
EVENTS_MAX: Final = 100_000

Listing = TypeVar("Listing")


@attrs.frozen(kw_only=True)
class RollbackRequest:
    """Which hosts are to go back, and why. No hosts: every one that can."""

    reason: str
    hosts: tuple[HostName, ...] = ()


@attrs.frozen(kw_only=True)
class QuarantineClearRequest:
    """Which closures may be sent again. A member left out means any."""

    channel: Channel | None = None
    closure: Closure | None = None
    hostname: HostName | None = None


@attrs.frozen(kw_only=True)
class MachineRequest:
    """A machine that is to come. `tags` are what it is called until the fleet declares it."""

    hostname: HostName
    note: str = ""
    tags: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class OperatorRoutes:
    """The handlers, over the services they call."""

    guards: Guards
    ledger: Ledger
    shelf: Shelf
    planner: PlannerLoop
    views: Views
    adopter: Adopter
    metrics: Metrics

    def routes(self) -> list[Route]:
        """Where each is found."""
        guards = self.guards
        return [
            Route(HEALTHZ, guards.ungated(HEALTHZ, self.healthz), methods=["GET"]),
            Route(METRICS, guards.operator_ungated(METRICS, self.metrics_text), methods=["GET"]),
            Route(WHOAMI, guards.any_peer(WHOAMI, self.whoami), methods=["GET"]),
            Route(CHANNEL, guards.any_peer(CHANNEL, self.channel), methods=["GET"]),
            Route(HOSTS, guards.any_peer(HOSTS, self.hosts), methods=["GET"]),
            Route(ROLLOUTS, guards.operator(ROLLOUTS, self.rollouts), methods=["GET"]),
            Route(DEFERRALS, guards.operator(DEFERRALS, self.deferrals), methods=["GET"]),
            Route(ROLLOUT_LIFECYCLE, guards.any_peer(ROLLOUT_LIFECYCLE, self.lifecycle), methods=["GET"]),
            Route(ROLLOUT_HOSTS, guards.any_peer(ROLLOUT_HOSTS, self.rollout_hosts), methods=["GET"]),
            Route(ROLLOUT_EVENTS, guards.any_peer(ROLLOUT_EVENTS, self.rollout_events), methods=["GET"]),
            Route(ROLLOUT_ROLLBACK, guards.operator(ROLLOUT_ROLLBACK, self.rollback), methods=["POST"]),
            Route(QUARANTINE, guards.operator(QUARANTINE, self.quarantine), methods=["GET"]),
            Route(QUARANTINE_CLEAR, guards.operator(QUARANTINE_CLEAR, self.clear_quarantine), methods=["POST"]),
            Route(MACHINES, guards.operator(MACHINES, self.register), methods=["POST"]),
            Route(REFRESH, guards.operator_ungated(REFRESH, self.refresh), methods=["POST"]),
        ]

    # Reads

    async def healthz(self, _: Request) -> Response:
        """The process lives, and can write."""
        ok = self.ledger.failure is None
        health = Health(ok=ok, version=VERSION, last_tick_at=self.planner.last_tick_at)
        return json_response(health, status=200 if ok else 503)

    async def metrics_text(self, _: Request, __: Peer) -> Response:
        """Prometheus text."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def whoami(self, _: Request, peer: Peer) -> Response:
        """The caller's certificate as it is read here."""
        return json_response(Whoami(cn=peer.cn, issued_at=peer.not_before))

    async def channel(self, request: Request, peer: Peer) -> Response:
        """What the fleet declares of a channel: to operators, and to hosts of that channel."""
        name = Channel(request.path_params["name"])
        view = self.views.channel(name)
        if view is None or (peer.role is Role.AGENT and self._channel_of(peer.machine_id) != name):
            raise RequestRefusedError(status=404, reason="missing", error="the fleet declares no such channel for you")
        return json_response(view)

    async def hosts(self, _: Request, peer: Peer) -> Response:
        """Every host; to a host, itself."""
        return json_response(_for(peer, self.views.hosts(), "hosts"))

    async def rollouts(self, _: Request, __: Peer) -> Response:
        """Every rollout."""
        return json_response(self.views.rollouts())

    async def deferrals(self, _: Request, __: Peer) -> Response:
        """Rollouts that wait for another channel."""
        return json_response(self.views.deferrals())

    async def lifecycle(self, request: Request, _: Peer) -> Response:
        """Where a rollout stands."""
        return json_response(_found(self.views.lifecycle(_rollout_id(request, malformed=400))))

    async def rollout_hosts(self, request: Request, peer: Peer) -> Response:
        """A rollout's hosts, and why some are held; to a host, itself."""
        listing = _for(peer, _found(self.views.hosts_of(_rollout_id(request))), "hosts")
        if not listing.hosts:
            raise RequestRefusedError(status=404, reason="missing", error="this rollout has no hosts for you to see")
        return json_response(listing)

    async def rollout_events(self, request: Request, peer: Peer) -> Response:
        """A rollout's log; to a host, what is about itself."""
        text = request.query_params.get("limit", str(EVENTS_DEFAULT))
        if not (text.isascii() and text.isdigit()):
            raise RequestRefusedError(status=400, reason="limit", error="limit is not a number from 1 on")
        limit = max(1, min(int(text[:9]), EVENTS_MAX))
        listing = _found(await self.views.events_of(_rollout_id(request), limit))
        return json_response(_for(peer, listing, "events"))

    async def quarantine(self, _: Request, __: Peer) -> Response:
        """Closures that were rolled back and are sent to nobody."""
        rows = sorted(self.ledger.book.all(Quarantined), key=lambda row: (row.channel, row.hostname, row.since))
        return document_response(
            {
                "quarantine": [
                    {
                        "channel": row.channel,
                        "closure": row.closure,
                        "hostname": row.hostname,
                        "rolloutId": row.rollout_id,
                        "since": format_rfc3339(row.since),
                    }
                    for row in rows
                ]
            }
        )

    # Wishes

    async def rollback(self, request: Request, peer: Peer) -> Response:
        """Ask hosts back to what they ran before; the rollout goes no further."""
        rollout_id = _rollout_id(request)
        wish = await read_message(request, RollbackRequest)
        rollout = _found(self.ledger.book.get(Rollout, rollout_id))
        mirrors = self.ledger.book.mirrors_of(rollout.same_as or rollout_id)
        wanted = wish.hosts or tuple(sorted(mirrors))
        passed_over: JsonObject = {host: why for host in wanted if (why := self._no_rollback(mirrors.get(host)))}
        asked = tuple(host for host in wanted if host not in passed_over)
        entry = RollbackAsked(rollout_id=rollout_id, hosts=asked, reason=wish.reason, by=peer.cn)
        receipt = self.ledger.record(entry)
        for host in asked:
            receipt = self.ledger.record(_rollback(mirrors[host], wish.reason))
        await receipt.committed()
        return document_response(
            {"rollout_id": rollout_id, "hosts": list(asked), "passed_over": passed_over}, status=202
        )

    async def clear_quarantine(self, request: Request, peer: Peer) -> Response:
        """Allow closures again."""
        wish = await read_message(request, QuarantineClearRequest)
        before = len(self.ledger.book.all(Quarantined))
        entry = QuarantineLifted(by=peer.cn, channel=wish.channel, closure=wish.closure, hostname=wish.hostname)
        receipt = self.ledger.record(entry)
        cleared = before - len(self.ledger.book.all(Quarantined))
        await receipt.committed()
        return document_response({"cleared": cleared})

    async def register(self, request: Request, peer: Peer) -> Response:
        """Announce a machine. It enrols once the signed fleet declares it."""
        wish = await read_message(request, MachineRequest)
        if not is_host_name(wish.hostname):
            raise RequestRefusedError(status=422, reason="hostname", error="this cannot be the name of a host")
        check_tags(wish.tags)
        entry = MachineRegistered(hostname=wish.hostname, by=peer.cn, note=wish.note[:1024], tags=wish.tags)
        await self.ledger.record(entry).committed()
        declared = self.shelf.fleet is not None and wish.hostname in self.shelf.fleet.value.hosts
        return document_response({"hostname": wish.hostname, "declared": declared}, status=201)

    async def refresh(self, _: Request, __: Peer) -> Response:
        """Look at the published artifacts now."""
        problems = await self.adopter.look()
        return document_response({"ready": self.shelf.is_ready, "problems": dict(problems)})

    def _no_rollback(self, mirror: Mirror | None) -> str | None:
        """Why a host would refuse to go back, or None."""
        if mirror is None:
            return "it is not in this rollout"
        if mirror.record.phase not in ROLLBACK_PHASES:
            return f"it is {mirror.record.phase}"
        latest = self.ledger.book.acknowledged_by(mirror.hostname)
        if latest is not None and latest.rollout_id != mirror.rollout_id:
            return f"it has taken {latest.rollout_id} since"
        return None

    def _channel_of(self, host: HostName) -> Channel | None:
        declared = self.shelf.fleet.value.hosts.get(host) if self.shelf.fleet is not None else None
        return None if declared is None else declared.channel


def _rollback(mirror: Mirror, reason: str) -> DispatchQueued:
    return DispatchQueued(
        hostname=mirror.hostname,
        rollout_id=mirror.rollout_id,
        kind=DispatchKind.ROLLBACK,
        target_closure=mirror.record.target_closure,
        soak_secs=0,
        reason=reason,
    )


def _rollout_id(request: Request, *, malformed: int = 404) -> RolloutId:
    text = request.path_params["rollout_id"]
    if not is_rollout_id(text):
        raise RequestRefusedError(status=malformed, reason="parse", error="this is not a rollout id")
    return RolloutId(text)


def _found(listing: Listing | None) -> Listing:
    if listing is None:
        raise RequestRefusedError(status=404, reason="missing", error="nothing is known of this rollout")
    return listing


def _for(peer: Peer, listing: Listing, member: str) -> Listing:
    if peer.role is Role.OPERATOR:
        return listing
    shown: Listing = only_of(listing, member, peer.machine_id)
    return shown
