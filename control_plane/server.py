"""Put the parts together and serve them until told to stop.

SIGTERM and SIGINT: waiting hosts are sent away with 503, requests under way end, everything recorded reaches the disk,
all within `DRAIN_S`. SIGHUP: the server's certificate and the artifacts are read again.
"""

import json
import logging
import os
import resource
import signal
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, cast

import attrs
import httpx
import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from control_plane import garbage, service_manager
from control_plane.adoption import Adopter
from control_plane.agent_routes import AgentRoutes
from control_plane.artifact_source import ArtifactSource, DirectorySource, HttpsSource
from control_plane.config import Configuration
from control_plane.conversation import Application
from control_plane.dispatch_desk import DispatchDesk
from control_plane.enrolment import Enrolment
from control_plane.entries import RolloutPruned
from control_plane.errors import RequestRefusedError, StoreUnavailableError, UnreadableFileError
from control_plane.gauges import Gauges
from control_plane.guards import Guards, refusal_response
from control_plane.heartbeats import Heartbeats
from control_plane.identity import CanonicalNames
from control_plane.ingest import Ingest
from control_plane.issuance import IssuanceLog, Issuer, load_issuer
from control_plane.ledger import REAL, Ledger
from control_plane.legacy_desk import LegacyDesk
from control_plane.legacy_routes import LegacyRoutes
from control_plane.listening import Listening
from control_plane.metrics import CONTENT_TYPE, Metrics
from control_plane.operator_routes import OperatorRoutes
from control_plane.planner_loop import PlannerLoop
from control_plane.rows import Rollout
from control_plane.serving import serve as serve_on
from control_plane.shelf import Shelf
from control_plane.shortcut import Shortcut
from control_plane.surroundings import Surroundings
from control_plane.tls import load_certificate, outgoing_context, server_context
from control_plane.views import Views
from wire.endpoints import METRICS

LOG: Final = logging.getLogger(__name__)

DRAIN_S: Final = 4.0
"""How long requests under way may take to end; with the last commit after it, a stop takes less than 5 s."""

PRIME_S: Final = 4.0
"""How long serving may wait for the first artifacts; whoever comes before they are in force is answered 503."""

PRUNE_EVERY_S: Final = 3600.0


@attrs.frozen(kw_only=True)
class ControlPlane:
    """The running parts."""

    ledger: Ledger
    adopter: Adopter
    planner: PlannerLoop
    desk: DispatchDesk
    app: Application
    metrics: Metrics
    guards: Guards
    stop: trio.Event = attrs.field(factory=trio.Event)


@asynccontextmanager
async def assembled(config: Configuration, around: Surroundings = REAL) -> AsyncIterator[ControlPlane]:
    """Everything made and connected, with the database open; `start_background` makes it live.

    Raises:
        ConfigurationError, StoreError: it cannot be.
    """
    names = CanonicalNames(suffix=config.agent_cn_suffix)
    issuer = _issuer(config, names, around)
    async with AsyncExitStack() as stack:
        # The database last: what is wrong with the rest must not leave a new one behind.
        outside = outgoing_context(config.artifacts_ca_cert)
        ledger = await stack.enter_async_context(Ledger(config.db_path, around))
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=30, trust_env=False, verify=outside))
        shelf, metrics = Shelf(), Metrics()
        planner = PlannerLoop(ledger=ledger, shelf=shelf, freshness_window_s=config.freshness_window_secs)
        adopter = Adopter(
            source=_source(config, client, around),
            trust_file=config.trust_file,
            freshness_window_s=config.freshness_window_secs,
            ledger=ledger,
            shelf=shelf,
            on_change=planner.poke,
            in_thread=around.in_thread,
            lists_required=config.strict,
        )
        desk, heartbeats = DispatchDesk(ledger, settle=planner.settle), Heartbeats(ledger)
        ingest = Ingest(ledger=ledger, shelf=shelf, require_evidence=config.require_evidence)
        audit = IssuanceLog(path=config.audit_log)
        guards = Guards(
            shelf=shelf,
            names=names,
            presence=planner.presence,
            metrics=metrics,
            clock=around.clock,
            strict=config.strict,
        )
        agents = AgentRoutes(
            guards=guards,
            ledger=ledger,
            shelf=shelf,
            desk=desk,
            ingest=ingest,
            heartbeats=heartbeats,
            enrolment=Enrolment(
                ledger=ledger,
                shelf=shelf,
                trust_file=config.trust_file,
                issuer=issuer,
                audit=audit,
                in_thread=around.in_thread,
            ),
            metrics=metrics,
            upstream=client,
            closure_upstream=config.closure_upstream,
        )
        operators = OperatorRoutes(
            guards=guards,
            ledger=ledger,
            shelf=shelf,
            planner=planner,
            views=Views(ledger=ledger, shelf=shelf, planner=planner, heartbeats=heartbeats),
            adopter=adopter,
            metrics=metrics,
        )
        gauges = Gauges(
            ledger=ledger, shelf=shelf, planner=planner, desk=desk, ingest=ingest, heartbeats=heartbeats, guards=guards
        )
        metrics.registry.register(gauges)
        ledger.subscribe(metrics.on_change)
        routes = [*agents.routes(), *operators.routes()]
        if config.legacy_api:
            first_generation = LegacyDesk(
                ledger=ledger,
                shelf=shelf,
                desk=desk,
                planner=planner,
                ingest=ingest,
                heartbeats=heartbeats,
                cache_url=config.legacy_cache_url,
            )
            routes += LegacyRoutes(guards=guards, desk=first_generation).routes()
        app = _application(routes)
        yield ControlPlane(
            ledger=ledger, adopter=adopter, planner=planner, desk=desk, app=app, metrics=metrics, guards=guards
        )


async def serve(config: Configuration) -> None:
    """Run a control plane until it is told to stop.

    Raises:
        ConfigurationError, StoreError: it cannot be started.
    """
    _allow_many_connections()
    context = server_context(config.tls_cert, config.tls_key, config.client_ca)
    public = Listening("--listen", config.listen)
    private = None if config.metrics_listen is None else Listening("--metrics-listen", config.metrics_listen)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with assembled(config) as parts:
            with trio.move_on_after(PRIME_S):
                await parts.adopter.look()
            async with trio.open_nursery() as background:
                start_background(background, parts, config)
                garbage.settle()
                background.start_soon(garbage.look)
                async with trio.open_nursery() as servers:
                    await servers.start(_serve_on, parts.app, public, parts.stop, context)
                    LOG.info("listening on https://%s", public.address)
                    if private is not None:
                        await servers.start(_serve_on, _metrics_application(parts.metrics), private, parts.stop, None)
                        LOG.info("metrics on http://%s%s", private.address, METRICS)
                    await _announce(public, private, config.ready_file)
                    await _obey(signals, parts, config, context)
                    _begin_to_stop(parts)
                    servers.cancel_scope.deadline = trio.current_time() + DRAIN_S
                background.cancel_scope.cancel()


def start_background(nursery: trio.Nursery, parts: ControlPlane, config: Configuration) -> None:
    """Look at artifacts, plan, and mend what fails, for as long as the nursery lives."""
    nursery.start_soon(parts.ledger.recover)
    nursery.start_soon(parts.adopter.run, config.artifact_poll_secs)
    nursery.start_soon(parts.planner.run)
    nursery.start_soon(_prune, parts.ledger, config.retention_days)
    if config.nats is not None:
        # Imported here: without such a server nothing of it is in memory.
        from control_plane.news import listen

        nursery.start_soon(listen, config.nats, config.news_prefix, parts.adopter.poke)


def _begin_to_stop(parts: ControlPlane) -> None:
    """Take no new connections, send waiting hosts away; requests under way may end."""
    LOG.info("stopping")
    service_manager.notify("STOPPING=1")
    parts.desk.close()
    parts.stop.set()
    _leave_anyway_after(DRAIN_S + 0.8)


def _leave_anyway_after(seconds: float) -> None:
    """End the process even if a client holds its connection: what is committed is on the disk, nothing else counts."""

    def leave() -> None:
        LOG.warning("left with connections open")
        logging.shutdown()
        os._exit(0)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def _allow_many_connections() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Each agent holds a connection or two, and the usual soft limit is 1,024.
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536) if hard > 0 else 65_536, hard))


def _issuer(config: Configuration, names: CanonicalNames, around: Surroundings) -> Issuer | None:
    if config.fleet_ca_cert is None or config.fleet_ca_key is None:
        LOG.warning("no --fleet-ca-cert and --fleet-ca-key: nobody can enrol or renew")
        return None
    validity_s = config.agent_cert_validity_secs
    return load_issuer(config.fleet_ca_cert, config.fleet_ca_key, names, validity_s, around.serial)


def _source(config: Configuration, client: httpx.AsyncClient, around: Surroundings) -> ArtifactSource:
    if config.artifacts_url is None:
        return DirectorySource(root=Path(config.artifacts), in_thread=around.in_thread)
    return HttpsSource(
        base_url=config.artifacts_url,
        client=client,
        token_file=config.artifacts_token_file,
        in_thread=around.in_thread,
    )


def _application(routes: list[Route]) -> Application:
    async def not_found(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reason = "method" if error.status_code == 405 else "missing"
        return refusal_response(
            RequestRefusedError(
                status=error.status_code, reason=reason, error=error.detail, headers=error.headers or {}
            )
        )

    async def broken(_: Request, __: Exception) -> Response:
        # The server logs the traceback; the caller learns that it is not to blame.
        return refusal_response(RequestRefusedError(status=500, reason="internal", error="an error in this program"))

    full = Starlette(routes=routes, exception_handlers={HTTPException: not_found, Exception: broken})
    return cast(Application, Shortcut(cast(Application, full), routes, broken))


def _metrics_application(metrics: Metrics) -> Application:
    async def text(_: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return cast(Application, Starlette(routes=[Route(METRICS, text, methods=["GET"])]))


async def _serve_on(
    app: Application,
    address: Listening,
    stop: trio.Event,
    context: ssl.SSLContext | None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve_on(app, address, stop, context=context, task_status=task_status)


async def _announce(public: Listening, private: Listening | None, ready_file: Path | None) -> None:
    if ready_file is not None:
        ready = {"url": f"https://{public.address}", "pid": os.getpid()}
        if private is not None:
            ready["metrics_url"] = f"http://{private.address}{METRICS}"
        await trio.to_thread.run_sync(_write_whole, ready_file, json.dumps(ready) + "\n")
    service_manager.notify("READY=1")


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


async def _obey(
    signals: AsyncIterator[int], parts: ControlPlane, config: Configuration, context: ssl.SSLContext
) -> None:
    """Return when told to stop."""
    async for number in signals:
        if number != signal.SIGHUP:
            return
        LOG.info("reading the certificate and the artifacts again")
        try:
            load_certificate(context, config.tls_cert, config.tls_key)
        except UnreadableFileError as error:
            LOG.error("the certificate in use stays: %s", error)
        parts.adopter.poke()


async def _prune(ledger: Ledger, retention_days: int) -> None:
    """Let go of the hosts of rollouts that were superseded long ago. Their log stays."""
    while True:
        oldest = ledger.now() - retention_days * 86_400_000
        for rollout in list(ledger.book.all(Rollout)):
            if rollout.pruned_at is None and rollout.superseded_at is not None and rollout.superseded_at < oldest:
                try:
                    ledger.record(RolloutPruned(rollout_id=rollout.rollout_id))
                except StoreUnavailableError:
                    break
        await trio.sleep(PRUNE_EVERY_S)
