"""The endpoints of agents (protocol sections 3.1 to 3.8)."""

from typing import Final

import attrs
import httpx
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from control_plane.artifact_source import Raw, tag_of
from control_plane.dispatch_desk import DispatchDesk
from control_plane.enrolment import Enrolment, read_bootstrap_token
from control_plane.entries import BootstrapReported
from control_plane.errors import RequestRefusedError
from control_plane.guards import (
    Guards,
    check_hostname,
    document_response,
    json_response,
    read_document,
    read_message,
)
from control_plane.heartbeats import Heartbeats
from control_plane.identity import Peer
from control_plane.ingest import Ingest, read_envelope
from control_plane.ledger import Ledger
from control_plane.metrics import Metrics
from control_plane.rate_limit import RateLimit
from control_plane.rows import QueuedDispatch
from control_plane.shelf import Shelf
from state_machine.values import is_closure, is_rollout_id
from wire.endpoints import (
    BOOTSTRAP_REPORT,
    CLOSURE,
    DISPATCH,
    ENROLL,
    EVENTS,
    FLEET,
    FLEET_SIGNATURE,
    HEARTBEAT,
    RENEW,
    REPLAY_FROM_HEADER,
    ROLLOUT,
    ROLLOUT_SIGNATURE,
)
from wire.messages import BootstrapReport, Dispatch, EnrollRequest, HeartbeatRequest, RenewRequest

WAIT_MAX_S: Final = 60
HEARTBEAT_LIMIT: Final = 64 * 1024
"""Bytes. What a host says of itself is kept, in memory too, and each time it differs: an honest one needs 2 KiB."""
BOOTSTRAP_EVENTS: Final = frozenset({"trust-error", "enrollment-failed"})

_UPSTREAM_TIMEOUT_S: Final = 30.0
_NARINFO_LIMIT: Final = 1024 * 1024


@attrs.frozen(kw_only=True)
class AgentRoutes:
    """The handlers, over the services they call."""

    guards: Guards
    ledger: Ledger
    shelf: Shelf
    desk: DispatchDesk
    ingest: Ingest
    heartbeats: Heartbeats
    enrolment: Enrolment
    metrics: Metrics
    upstream: httpx.AsyncClient
    closure_upstream: str | None
    enrolments: RateLimit = attrs.field(factory=lambda: RateLimit(per_minute=600, burst=600))
    reports: RateLimit = attrs.field(factory=lambda: RateLimit(per_minute=6, burst=6))
    facts: RateLimit = attrs.field(factory=lambda: RateLimit(per_minute=12_000, burst=2_000, callers=65_536))
    """For one host: more than the backlog of a long outage needs, less than would keep the others waiting."""

    def routes(self) -> list[Route]:
        """Where each is found."""
        guards = self.guards
        return [
            # They are tried in this order, so the ones that are asked for most come first.
            Route(EVENTS, guards.agent(EVENTS, self.events), methods=["POST"]),
            Route(DISPATCH, guards.agent(DISPATCH, self.dispatch), methods=["GET"]),
            Route(HEARTBEAT, guards.agent(HEARTBEAT, self.heartbeat), methods=["POST"]),
            Route(ENROLL, guards.anonymous(ENROLL, self.enroll), methods=["POST"]),
            Route(BOOTSTRAP_REPORT, guards.anonymous(BOOTSTRAP_REPORT, self.bootstrap_report), methods=["POST"]),
            Route(RENEW, guards.agent(RENEW, self.renew), methods=["POST"]),
            Route(CLOSURE, guards.any_peer(CLOSURE, self.closure), methods=["GET"]),
            Route(FLEET, guards.any_peer(FLEET, self.fleet), methods=["GET"]),
            Route(FLEET_SIGNATURE, guards.any_peer(FLEET_SIGNATURE, self.fleet_signature), methods=["GET"]),
            Route(ROLLOUT_SIGNATURE, guards.any_peer(ROLLOUT_SIGNATURE, self.rollout_signature), methods=["GET"]),
            Route(ROLLOUT, guards.any_peer(ROLLOUT, self.rollout), methods=["GET"]),
        ]

    # Enrolment

    async def enroll(self, request: Request) -> Response:
        """A certificate for a token."""
        _limit(self.enrolments, _address(request))
        try:
            answer = await self.enrolment.enroll(await read_message(request, EnrollRequest))
        except RequestRefusedError as refusal:
            self.metrics.count_enrolment(refusal.reason)
            raise
        self.metrics.count_enrolment("issued")
        return json_response(answer)

    async def renew(self, request: Request, peer: Peer) -> Response:
        """A new certificate for the caller."""
        return json_response(await self.enrolment.renew(await read_message(request, RenewRequest), peer))

    async def bootstrap_report(self, request: Request) -> Response:
        """Why a host cannot enrol. The nonce is neither checked nor used up."""
        _limit(self.reports, _address(request))
        report = await read_message(request, BootstrapReport)
        token = read_bootstrap_token(dict(report.token))
        await self.enrolment.check_signed(token, self.ledger.now())
        if report.event.event not in BOOTSTRAP_EVENTS:
            raise RequestRefusedError(
                status=422, reason="event", error=f"only {' and '.join(sorted(BOOTSTRAP_EVENTS))} may be reported here"
            )
        entry = BootstrapReported(
            hostname=token.claims.hostname,
            agent_version=report.agent_version,
            event=report.event.event,
            details=report.event.details,
        )
        await self.ledger.record(entry).committed()
        return Response(status_code=204)

    # The rollout

    async def dispatch(self, request: Request, peer: Peer) -> Response:
        """The next dispatch for the caller, waited for."""
        wait_s = _wait(request)
        # The server does not stop a handler whose client has gone.
        queued = await self.desk.take(peer.machine_id, wait_s, lambda: _gone(request))
        if queued is not None:
            return json_response(_dispatch(queued))
        if self.desk.closing.is_set():
            raise RequestRefusedError(
                status=503, reason="shutting-down", error="the control plane is stopping", headers={"Retry-After": "2"}
            )
        return Response(status_code=204)

    async def events(self, request: Request, peer: Peer) -> Response:
        """One fact."""
        _limit(self.facts, peer.machine_id, seconds=1)
        document = await read_document(request, malformed=422)
        check_hostname(document.get("hostname"), peer)
        await self.ingest.accept(read_envelope(document))
        return Response(status_code=204)

    async def heartbeat(self, request: Request, peer: Peer) -> Response:
        """A sign of life."""
        heartbeat = await read_message(request, HeartbeatRequest, limit=HEARTBEAT_LIMIT)
        check_hostname(heartbeat.hostname, peer)
        answer = self.heartbeats.answer(heartbeat)
        headers = {} if answer.replay_from is None else {REPLAY_FROM_HEADER: str(answer.replay_from)}
        return json_response(answer.reply, headers=headers)

    # Signed files, byte for byte

    async def fleet(self, request: Request, _: Peer) -> Response:
        """The fleet in force."""
        held = self.shelf.fleet
        assert held is not None, "the guard lets nobody in before there is one"
        return _file(request, held.raw.data, held.raw.tag, "application/json")

    async def fleet_signature(self, request: Request, _: Peer) -> Response:
        """Its signature."""
        held = self.shelf.fleet
        assert held is not None, "the guard lets nobody in before there is one"
        return _signature(request, held.raw)

    async def rollout(self, request: Request, _: Peer) -> Response:
        """A manifest."""
        raw = self._manifest(request)
        return _file(request, raw.data, raw.tag, "application/json")

    async def rollout_signature(self, request: Request, _: Peer) -> Response:
        """Its signature."""
        return _signature(request, self._manifest(request))

    def _manifest(self, request: Request) -> Raw:
        text = request.path_params["rollout_id"]
        in_force = (held.raw for held in self.shelf.manifests.values() if held.value.rollout_id == text)
        raw = next(in_force, self.shelf.archive.get(text)) if is_rollout_id(text) else None
        if raw is None:
            raise RequestRefusedError(status=404, reason="missing", error="there is no manifest of this rollout here")
        return raw

    async def closure(self, request: Request, _: Peer) -> Response:
        """What the binary cache behind this control plane says of a closure."""
        closure = request.path_params["closure"]
        if self.closure_upstream is None:
            document = {"error": "no binary cache is configured here", "closure": closure[:256], "tracking": None}
            return document_response(dict(document), status=501)
        # Callers name a closure by its hash alone or by its whole base name.
        if not is_closure(closure) and not is_closure(f"{closure}-x"):
            raise RequestRefusedError(status=404, reason="parse", error="this is not the base name of a store path")
        return await self._narinfo(f"{self.closure_upstream.rstrip('/')}/{closure.partition('-')[0]}.narinfo")

    async def _narinfo(self, url: str) -> Response:
        try:
            with trio.fail_after(_UPSTREAM_TIMEOUT_S):
                async with self.upstream.stream("GET", url) as answer:
                    body = b""
                    async for chunk in answer.aiter_bytes():
                        body += chunk
                        if len(body) > _NARINFO_LIMIT:
                            raise RequestRefusedError(status=502, reason="too-large", error="the answer is too long")
                    return Response(body, status_code=answer.status_code, media_type="text/x-nix-narinfo")
        except (httpx.HTTPError, trio.TooSlowError) as error:
            raise RequestRefusedError(status=502, reason="upstream", error="the binary cache did not answer") from error


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _dispatch(queued: QueuedDispatch) -> Dispatch:
    return Dispatch(
        hostname=queued.hostname,
        rollout_id=queued.rollout_id,
        target_closure=queued.target_closure,
        # The soak is the host's own, counted from its activation. Naming any later instant here would end the soak of
        # one host too early and hold another for longer than its wave asks.
        soak_due_at=queued.enqueued_at,
        enqueued_at=queued.enqueued_at,
        soak_secs=queued.soak_secs,
        kind=queued.kind,
        reason=queued.reason,
    )


def _wait(request: Request) -> int:
    text = request.query_params.get("wait", str(WAIT_MAX_S))
    try:
        return max(0, min(int(text[:12]), WAIT_MAX_S))
    except ValueError as error:
        raise RequestRefusedError(status=400, reason="wait", error="wait is not a number of seconds") from error


def _file(request: Request, data: bytes, tag: str, media_type: str) -> Response:
    """A signed file as it was published. Agents ask every minute, so an unchanged one is not sent again."""
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    known = {item.strip().removeprefix("W/") for item in request.headers.get("if-none-match", "").split(",")}
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=media_type)


def _signature(request: Request, raw: Raw) -> Response:
    return _file(request, raw.signature, tag_of(raw.signature), "application/octet-stream")


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _limit(limit: RateLimit, caller: str, seconds: int = 30) -> None:
    if not limit.allows(caller):
        headers = {"Retry-After": str(seconds)}
        raise RequestRefusedError(status=429, reason="rate", error="too many requests from you", headers=headers)
