"""Put the daemon together and run it until it is told to stop.

Order of a start: signals, configuration, state directory, journal, host key, client certificate, then the reducer
takes stock of the host (`Booted`) and everything else follows from what `step` orders. Only a mistake in the
configuration ends the process; a control plane that is away, a full disk or a damaged journal do not.
"""

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from evidence.errors import EvidenceError
from evidence.host_key import HostKey, load_host_key
from evidence.trust import load_trust
from nixfleet_agent import __version__, child, control, lean, once
from nixfleet_agent.activation.inhibitors import chosen
from nixfleet_agent.activation.interface import Platform, Store
from nixfleet_agent.activation.paths import Paths
from nixfleet_agent.activation.platforms import platform_for
from nixfleet_agent.applier import Applier, Workers
from nixfleet_agent.clock import now
from nixfleet_agent.config import Config
from nixfleet_agent.desk import Desk, Uplink
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.health_checks import load_probes, probes_or_failure
from nixfleet_agent.ledger import Opened, open_ledger
from nixfleet_agent.probes.kinds import Probe, spec
from nixfleet_agent.probes.reading import ProbeReading
from nixfleet_agent.probes.runners import ProbeContext
from nixfleet_agent.probes.worker import ProbeSet
from nixfleet_agent.runtime import Runtime
from nixfleet_agent.service_manager import ServiceManager
from nixfleet_agent.status import CONFIGURED, document, one_line
from nixfleet_agent.supervision import keep_going
from nixfleet_agent.telemetry import Telemetry
from nixfleet_agent.workers.activation import ActivationWorker
from nixfleet_agent.workers.certificate import CertificateWorker
from nixfleet_agent.workers.dispatch import DispatchWorker
from nixfleet_agent.workers.heartbeat import HeartbeatWorker
from nixfleet_agent.workers.intent import DocumentCache, IntentWorker
from nixfleet_agent.workers.outbound import OutboundWorker
from state_machine.events import Booted, Poked, ProbesDeclared, QuarantineCleared
from state_machine.state import State
from state_machine.values import Closure, SwitchMethod, WallMs, is_closure
from wire.timestamps import format_rfc3339

assert lean  # imported for what it keeps out, before anything imports httpx
CLOSE_WITHIN_S: Final = 1.0
"""How long saying goodbye to the control plane may take; with what workers need to stop it stays under five seconds."""
CLEAR_WITHIN_S: Final = 5.0
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Parts:
    """The running daemon, for the tasks that tie it together."""

    config: Config
    runtime: Runtime
    desk: Desk
    workers: Workers
    platform: Platform
    manager: ServiceManager
    telemetry: Telemetry
    opened: Opened


@attrs.frozen(kw_only=True)
class Signals:
    """What the service manager or a person at the terminal asks for."""

    stop: AsyncIterator[int]
    hangup: AsyncIterator[int]


async def run(config: Config, once_within_s: float | None = None) -> int:
    """Run until SIGTERM or SIGINT, or, with `once_within_s`, until the host is settled; the exit status.

    Raises:
        ConfigurationError, EvidenceError, CertificateError: what it was given cannot work.
        JournalBusyError: another agent runs on this state directory.
    """
    # From here on a signal waits until it can be obeyed in good order.
    with (
        trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as stop,
        trio.open_signal_receiver(signal.SIGHUP) as hup,
    ):
        host_key = load_host_key(config.ssh_host_key_file)
        probes = probes_or_failure(config)
        platform = make_platform(config)
        opened = open_ledger(config.state_dir, host_key=host_key, hostname=config.machine_id)
        try:
            return await _run_with(
                Signals(stop=stop, hangup=hup), config, host_key, probes, platform, opened, once_within_s
            )
        finally:
            opened.close()


async def _run_with(
    signals: Signals,
    config: Config,
    host_key: HostKey,
    probes: tuple[Probe, ...],
    platform: Platform,
    opened: Opened,
    once_within_s: float | None,
) -> int:
    # Told to stop before it is over, a single run has not done what it was for.
    exit_status = 0 if once_within_s is None else once.NOT_OVER
    parts = _assemble(config, host_key, probes, platform, opened)
    settings = attrs.evolve(config.settings(), holds=opened.holds)
    if once_within_s is not None:
        settings = attrs.evolve(settings, long_poll_wait_s=once.LONG_POLL_WAIT_S)
    specs = tuple(spec(probe) for probe in probes)
    # What can be wrong with the configuration shows here, before any task runs; the channel holds the events so far.
    await parts.runtime.tell(Booted(at=now(), settings=settings, system=platform.observe(), probes=specs))
    await parts.workers.certificate.load()
    listeners = await _metrics_listeners(config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, signals.stop, nursery.cancel_scope, parts.manager)
        applier = Applier(parts.desk, parts.workers, platform.observe, nursery)
        nursery.start_soon(parts.runtime.reduce, applier, name="reducer")
        nursery.start_soon(parts.runtime.alarm, name="alarm")
        _start_helpers(parts, signals, nursery)
        if opened.holds:
            log.error("nothing new will be begun", extra={"fields": {"why": opened.holds}})
            nursery.start_soon(opened.wait_until_usable, nursery.cancel_scope)
        if listeners:
            _serve_metrics(parts, nursery, listeners)
        log.info("ready", extra={"fields": {"machine_id": config.machine_id, "version": __version__}})
        parts.manager.ready()
        if once_within_s is not None:
            exit_status = await once.settled(parts.runtime, once_within_s)
            nursery.cancel_scope.cancel()
    with trio.move_on_after(CLOSE_WITHIN_S):
        await parts.desk.uplink.close()
    if opened.reborn:
        os.execv(sys.executable, child.same_command())
    return exit_status


def _assemble(
    config: Config, host_key: HostKey, probes: tuple[Probe, ...], platform: Platform, opened: Opened
) -> Parts:
    telemetry = Telemetry(started_mono_ms=now().mono_ms)
    manager = ServiceManager(os.environ)
    runtime = Runtime(
        state=State(known=opened.known),
        ledger=opened.ledger,
        clock=now,
        telemetry=telemetry,
        after_turn=lambda state: _tell_manager(manager, state),
        wake_s=manager.watchdog_s,
    )
    desk = Desk(
        config=config,
        host_key=host_key,
        clock=now,
        tell=runtime.tell,
        state=runtime.state,
        uplink=Uplink(now),
        telemetry=telemetry,
    )

    async def take_reading(reading: ProbeReading) -> None:
        telemetry.probe_seconds[reading.name] = reading.duration_ms / 1000
        await runtime.tell(reading.event())

    context = ProbeContext(clock=now, hostname=config.machine_id, activated=now(), host_public_key=host_key.public)
    workers = Workers(
        intent=IntentWorker(desk, DocumentCache(config.state_dir)),
        dispatch=DispatchWorker(desk, platform.observe),
        heartbeat=HeartbeatWorker(desk, platform.observe),
        outbound=OutboundWorker(desk, opened.facts),
        certificate=CertificateWorker(desk),
        activation=ActivationWorker(desk, platform, opened.journal_id),
        probes=ProbeSet(probes, context=context, send=take_reading),
    )
    return Parts(
        config=config,
        runtime=runtime,
        desk=desk,
        workers=workers,
        platform=platform,
        manager=manager,
        telemetry=telemetry,
        opened=opened,
    )


def _start_helpers(parts: Parts, signals: Signals, nursery: trio.Nursery) -> None:
    restarts = parts.telemetry.worker_restarts
    nursery.start_soon(keep_going, "probes", parts.workers.probes.run, restarts, name="probes")
    nursery.start_soon(_reload_on_hangup, signals.hangup, parts, name="hangup")

    async def serve_control() -> None:
        await control.serve(parts.config.state_dir, lambda request: _answer(parts, request), restarts)

    nursery.start_soon(keep_going, "control", serve_control, restarts, name="control")


async def _metrics_listeners(config: Config) -> list[trio.SocketListener]:
    if config.metrics_port is None:
        return []
    try:
        return await trio.open_tcp_listeners(config.metrics_port, host=config.metrics_address)
    except OSError as error:
        where = f"{config.metrics_address}:{config.metrics_port}"
        raise ConfigurationError(problems=(f"--metrics-port: cannot listen on {where}: {error.strerror}",)) from error


def _serve_metrics(parts: Parts, nursery: trio.Nursery, listeners: list[trio.SocketListener]) -> None:
    from nixfleet_agent import metrics

    source = metrics.Source(state=parts.runtime.state, clock=now, telemetry=parts.telemetry)
    nursery.start_soon(metrics.serve, source, listeners, name="metrics")
    host, port = listeners[0].socket.getsockname()[:2]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    log.info("metrics", extra={"fields": {"url": f"http://{place}/metrics"}})


async def _stop_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope, manager: ServiceManager) -> None:
    async for number in signals:
        log.info("stopping", extra={"fields": {"signal": signal.Signals(number).name}})
        manager.stopping()
        scope.cancel()
        return


async def _reload_on_hangup(signals: AsyncIterator[int], parts: Parts) -> None:
    """SIGHUP: read the health checks again, and exchange everything now."""
    async for _ in signals:
        await _reload(parts)


async def _reload(parts: Parts) -> None:
    try:
        probes = load_probes(parts.config)
    except ConfigurationError as error:
        log.error("the health checks were not reloaded", extra={"fields": {"problems": list(error.problems)}})
    else:
        await parts.runtime.tell(ProbesDeclared(at=now(), probes=tuple(spec(probe) for probe in probes)))
    await _poke(parts)


async def _poke(parts: Parts) -> None:
    """Try everything now that would be tried later."""
    parts.opened.poke()
    parts.runtime.try_journal_now()
    await parts.runtime.tell(Poked(at=now()))


async def _answer(parts: Parts, request: Mapping[str, Any]) -> dict[str, Any]:
    """One request on the control socket."""
    await parts.runtime.began()
    match request.get("do"):
        case "status":
            state = parts.runtime.state()
            said = document(state.known, state.session, now())
            said["contact"]["causes"] = dict(parts.telemetry.causes)
            said |= {"tags": list(parts.config.tags), "journal_error": parts.telemetry.journal_stuck}
            return {**said, "process": _process(parts), "configured": _configured(parts.config)}
        case "poke":
            await _poke(parts)
            return {"ok": True}
        case "clear-quarantine":
            return await _clear_quarantine(parts, request)
        case _:
            return {"error": "unknown request"}


def _process(parts: Parts) -> dict[str, Any]:
    at = now()
    started = WallMs(at.wall_ms - max(0, at.mono_ms - parts.telemetry.started_mono_ms))
    return {"pid": os.getpid(), "since": format_rfc3339(started)}


def _configured(config: Config) -> dict[str, str]:
    """What somebody who looks at this host from beside the daemon must look at too."""
    return {name: str(getattr(config, name) or "") for name in CONFIGURED}


async def _clear_quarantine(parts: Parts, request: Mapping[str, Any]) -> dict[str, Any]:
    """Answered when it is on the record."""
    closure, known = request.get("closure"), parts.runtime.state().known
    if closure is not None and not (isinstance(closure, str) and is_closure(closure)):
        return {"error": "no closure name"}
    wanted = set(known.quarantine) if closure is None else {closure} & set(known.quarantine)
    if known.settings.holds:
        return {"error": known.settings.holds}
    if not wanted:
        return {"error": f"{closure} is not quarantined" if closure else "nothing is quarantined"}
    # What is not text in UTF-8 could not be journaled.
    by = str(request.get("by", "operator"))[:64].encode("utf-8", "replace").decode()
    cleared = None if closure is None else Closure(closure)
    await parts.runtime.tell(QuarantineCleared(at=now(), closure=cleared, by=by))
    with trio.move_on_after(CLEAR_WITHIN_S):
        while wanted & set(parts.runtime.state().known.quarantine):
            await parts.runtime.turned()
        return {"ok": True}
    return {"error": f"not yet: {parts.telemetry.journal_stuck or 'the agent is busy'}"}


def make_platform(config: Config) -> Platform:
    """The host as configured: its store, its links, the way it is switched."""
    paths = Paths(
        store=str(config.store_dir),
        store_root=None if config.store_root is None else str(config.store_root),
        profile=str(config.profile),
        current_system=str(config.current_system),
        booted_system=str(config.booted_system),
        switch_lock=str(config.switch_lock),
        boot_id=str(config.boot_id_file),
        gc_roots=_gc_roots(config),
        work=str(config.state_dir / "activation"),
    )
    method = SwitchMethod.DRY_RUN if config.dry_run else config.switch_method
    return platform_for(method, paths=paths, store=_store(config, paths), components=chosen(config.defer_for))


def _gc_roots(config: Config) -> str:
    if config.store == "nix" and config.store_root is None and os.access("/nix/var/nix/gcroots", os.W_OK):
        return "/nix/var/nix/gcroots/nixfleet-agent"
    root = config.state_dir if config.store_root is None else config.store_root
    return str(root / "nix/var/nix/gcroots/nixfleet-agent") if config.store_root else str(root / "gcroots")


def _store(config: Config, paths: Paths) -> Store:
    # A host has one of them; the other would only take up memory.
    if config.store == "nix":
        from nixfleet_agent.activation.nix_store import NixStore

        return NixStore(paths=paths)
    from nixfleet_agent.activation.cache_keys import TrustedKeys
    from nixfleet_agent.activation.directory_store import DirectoryStore

    try:
        keys = load_trust(config.trust_file).cache_keys
    except EvidenceError as error:
        problem = f"--trust-file: {config.trust_file}: {error}"
        raise ConfigurationError(problems=(problem,)) from error
    return DirectoryStore(paths=paths, trusted=TrustedKeys.parse(keys))


def _tell_manager(manager: ServiceManager, state: State) -> None:
    """Feed the watchdog from the reducer itself, so that it notices when the reducer no longer turns."""
    manager.alive()
    manager.status(one_line(state.known))


def prepare_state_dir(path: Path) -> None:
    """Make the state directory, closed to others.

    Raises:
        ConfigurationError: it cannot be made or is not ours to use.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        problem = f"--state-dir: {path} cannot be used: {error.strerror}; create it for this user or name another"
        raise ConfigurationError(problems=(problem,)) from error
