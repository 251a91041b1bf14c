"""The endpoints of the first generation, `/api/v1` (protocol section 9.1), served with `--legacy-api`.

What a host says here is proved by its certificate and by nothing else; the certificate's name must be the one in the
path and in the body. The protocol header is unknown to that generation, so it is not asked for.
"""

from typing import Final

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from control_plane.errors import RequestRefusedError
from control_plane.guards import Guards, check_hostname, check_tags, document_response, json_response, read_message
from control_plane.identity import Peer
from control_plane.legacy_desk import LegacyDesk
from control_plane.rate_limit import RateLimit
from evidence.documents import is_host_name
from state_machine.values import HostName
from wire.legacy import DESIRED_GENERATION, GENERATION_MAX, MESSAGE_MAX, REPORT, Report

HEALTH: Final = "/health"

MACHINE_ID_MAX: Final = 253
CHECKS_MAX: Final = 256
"""Of one report: each may become two facts and more, and an honest host has a handful."""


@attrs.frozen(kw_only=True)
class LegacyRoutes:
    """The handlers, over the desk they speak for."""

    guards: Guards
    desk: LegacyDesk
    reports: RateLimit = attrs.field(factory=lambda: RateLimit(per_minute=1_200, burst=600))
    """For one host."""

    def routes(self) -> list[Route]:
        """Where each is found."""
        guards = self.guards
        return [
            Route(DESIRED_GENERATION, guards.legacy_agent(DESIRED_GENERATION, self.desired), methods=["GET"]),
            Route(REPORT, guards.legacy_agent(REPORT, self.report), methods=["POST"]),
            Route(HEALTH, guards.ungated(HEALTH, self.health), methods=["GET"]),
        ]

    async def desired(self, request: Request, peer: Peer) -> Response:
        """What the caller is to run."""
        desired = self.desk.desired(_machine(request, peer))
        if desired is None:
            raise RequestRefusedError(status=404, reason="missing", error="nothing is assigned to this machine")
        return json_response(desired)

    async def report(self, request: Request, peer: Peer) -> Response:
        """What the caller runs, and what became of it."""
        host = _machine(request, peer)
        if not self.reports.allows(host):
            headers = {"Retry-After": "30"}
            raise RequestRefusedError(status=429, reason="rate", error="too many reports from you", headers=headers)
        report = await read_message(request, Report)
        check_hostname(report.machine_id, peer)
        _check_size(report)
        await self.desk.take(host, report)
        return document_response({})

    async def health(self, _: Request) -> Response:
        """The process lives."""
        return Response("ok", media_type="text/plain")


def _machine(request: Request, peer: Peer) -> HostName:
    """The machine that the path names, which must be the caller.

    Raises:
        RequestRefusedError: 400, it is no machine's name; 403, it is another's.
    """
    name = request.path_params["machine_id"]
    if len(name) > MACHINE_ID_MAX or not is_host_name(name):
        raise RequestRefusedError(status=400, reason="hostname", error="this cannot be the name of a machine")
    return check_hostname(name, peer)


def _check_size(report: Report) -> None:
    if len(report.current_generation) > GENERATION_MAX:
        raise _too_long(f"current_generation may have {GENERATION_MAX} characters")
    if len(report.message) > MESSAGE_MAX:
        raise _too_long(f"message may have {MESSAGE_MAX} characters")
    if report.health is not None and len(report.health.results) > CHECKS_MAX:
        raise _too_long(f"health may have {CHECKS_MAX} results")
    check_tags(report.tags)


def _too_long(problem: str) -> RequestRefusedError:
    return RequestRefusedError(status=400, reason="too-large", error=problem)
