"""Put the daemon together and run it until it is told to stop.

Order of a start: signals, configuration, state directory, journal, host key, client certificate, then the reducer
takes stock of the host (`Booted`) and everything else follows from what `step` orders. Only a mistake in the
configuration ends the process; a control plane that is away, a full disk or a damaged journal do not.
"""

import errno
import functools
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import trio

from evidence.host_key import HostKey, load_host_key
from nixfleet_agent import __version__, child, lean, once
from nixfleet_agent.applier import Applier, Workers
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
from nixfleet_agent.sources.choice import Given, source_of
from nixfleet_agent.status import CONFIGURED, document, one_line
from nixfleet_agent.supervision import keep_going
from nixfleet_agent.surroundings import Surroundings, real_surroundings
from nixfleet_agent.telemetry import Telemetry
from nixfleet_agent.windows import in_words
from nixfleet_agent.workers.activation import ActivationWorker
from nixfleet_agent.workers.calendar import CalendarWorker, calendar_of
from nixfleet_agent.workers.hooks import HookWorker
from nixfleet_agent.workers.reboot import RebootWorker
from state_machine.events import Booted, Poked, ProbesDeclared, QuarantineCleared
from state_machine.state import State
from state_machine.values import Closure, WallMs, is_closure
from wire.timestamps import format_rfc3339

if TYPE_CHECKING:
    from nixfleet_agent.workers.news import NewsWorker

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
    around: Surroundings
    manager: ServiceManager
    telemetry: Telemetry
    opened: Opened
    news: "NewsWorker | None"


@attrs.frozen(kw_only=True)
class Signals:
    """What the service manager or a person at the terminal asks for."""

    stop: AsyncIterator[int]
    hangup: AsyncIterator[int]


@attrs.frozen(kw_only=True)
class Ended:
    """How a run ended. `reborn`: the journal can be used again, and the process is to start itself anew."""

    exit_status: int
    reborn: bool


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
        around = real_surroundings(config)
        ended = await live(config, around, Signals(stop=stop, hangup=hup), once_within_s)
        if ended.reborn:
            os.execv(sys.executable, child.same_command())
        return ended.exit_status


async def live(config: Config, around: Surroundings, signals: Signals, once_within_s: float | None = None) -> Ended:
    """One life of the daemon in the surroundings it is given. Raises as `run` does."""
    host_key = load_host_key(config.ssh_host_key_file)
    probes = probes_or_failure(config)
    opening = functools.partial(
        open_ledger,
        config.state_dir,
        host_key=host_key,
        hostname=config.machine_id,
        in_thread=around.in_thread,
        make=around.make_journal,
    )
    opened: Opened = await around.in_thread(opening)
    try:
        exit_status = await _run_with(signals, config, host_key, probes, around, opened, once_within_s)
        return Ended(exit_status=exit_status, reborn=opened.reborn)
    finally:
        opened.close()


async def _run_with(
    signals: Signals,
    config: Config,
    host_key: HostKey,
    probes: tuple[Probe, ...],
    around: Surroundings,
    opened: Opened,
    once_within_s: float | None,
) -> int:
    # Told to stop before it is over, a single run has not done what it was for.
    exit_status = 0 if once_within_s is None else once.NOT_OVER
    if once_within_s is not None:  # it looks at once, and is over before there is news
        config = attrs.evolve(config, nats=None)
    parts, observe = _assemble(config, host_key, probes, around, opened), around.platform.observe
    settings = attrs.evolve(config.settings(), holds=opened.holds)
    if once_within_s is not None:
        settings = attrs.evolve(settings, long_poll_wait_s=once.LONG_POLL_WAIT_S)
    specs = tuple(spec(probe) for probe in probes)
    # What can be wrong with the configuration shows here, before any task runs; the channel holds the events so far.
    at = around.clock()
    calendar = calendar_of(config, at.wall_ms, around.dice())
    booted = Booted(at=at, settings=settings, system=observe(), probes=specs, calendar=calendar)
    await parts.runtime.tell(booted)
    await parts.workers.source.load()
    listeners = await _metrics_listeners(config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_on_signal, signals.stop, nursery.cancel_scope, parts.manager)
        applier = Applier(parts.desk, parts.workers, observe, nursery)
        nursery.start_soon(parts.runtime.reduce, applier, name="reducer")
        _start_helpers(parts, signals, nursery)
        if opened.holds:
            log.error("nothing new will be begun", extra={"fields": {"why": opened.holds}})
            nursery.start_soon(opened.wait_until_usable, nursery.cancel_scope)
        if listeners:
            _serve_metrics(parts, nursery, listeners)
        log.info("ready", extra={"fields": {"machine_id": config.machine_id, "version": __version__}})
        parts.manager.ready()
        if once_within_s is not None:
            exit_status = await once.settled(parts.runtime, once_within_s, around.clock)
            nursery.cancel_scope.cancel()
    with trio.move_on_after(CLOSE_WITHIN_S):
        await parts.workers.source.close()
    return exit_status


def _assemble(
    config: Config, host_key: HostKey, probes: tuple[Probe, ...], around: Surroundings, opened: Opened
) -> Parts:
    clock, observe = around.clock, around.platform.observe
    telemetry = Telemetry(started_mono_ms=clock().mono_ms)
    manager = ServiceManager(os.environ)
    runtime = Runtime(
        state=State(known=opened.known),
        ledger=opened.ledger,
        clock=clock,
        telemetry=telemetry,
        after_turn=lambda state: _tell_manager(manager, state),
        wake_s=manager.watchdog_s,
        in_thread=around.in_thread,
        witness=around.witness,
    )
    desk = Desk(
        config=config,
        host_key=host_key,
        clock=clock,
        tell=runtime.tell,
        state=runtime.state,
        uplink=Uplink(clock),
        telemetry=telemetry,
        jitter=around.dice,
    )

    async def take_reading(reading: ProbeReading) -> None:
        telemetry.probe_seconds[reading.name] = reading.duration_ms / 1000
        await runtime.tell(reading.event())

    context = ProbeContext(
        clock=clock,
        hostname=config.machine_id,
        activated=clock(),
        host_public_key=host_key.public,
        http=around.http_prober(),
    )
    source = source_of(Given(desk=desk, around=around, observe=observe, facts=opened.facts))
    workers = Workers(
        source=source,
        activation=ActivationWorker(desk, around.platform, opened.journal_id, source.caches),
        hooks=HookWorker(desk),
        reboot=RebootWorker(desk, around.reboot),
        calendar=CalendarWorker(desk),
        probes=ProbeSet(probes, context=context, send=take_reading, jitter=around.dice),
    )
    return Parts(
        config=config,
        runtime=runtime,
        desk=desk,
        workers=workers,
        around=around,
        manager=manager,
        telemetry=telemetry,
        opened=opened,
        news=_news_worker(config, runtime, around),
    )


def _news_worker(config: Config, runtime: Runtime, around: Surroundings) -> "NewsWorker | None":
    if config.nats is None:
        return None
    # Imported here: a host without such a server has nothing of it in memory.
    from nixfleet_agent.workers.news import NewsWorker

    return NewsWorker(config, config.nats, runtime.state, around.dice)


def _start_helpers(parts: Parts, signals: Signals, nursery: trio.Nursery) -> None:
    restarts = parts.telemetry.worker_restarts
    nursery.start_soon(keep_going, "probes", parts.workers.probes.run, restarts, name="probes")
    nursery.start_soon(_reload_on_hangup, signals.hangup, parts, name="hangup")

    async def serve_control() -> None:
        await parts.around.serve_control(parts.config.state_dir, lambda request: _answer(parts, request), restarts)

    nursery.start_soon(keep_going, "control", serve_control, restarts, name="control")
    if (news := parts.news) is not None:
        nursery.start_soon(keep_going, "news", lambda: news.run(lambda: _poke(parts)), restarts, name="news")


async def _metrics_listeners(config: Config) -> list[trio.SocketListener]:
    if config.metrics_port is None:
        return []
    try:
        return await trio.open_tcp_listeners(config.metrics_port, host=config.metrics_address)
    except OSError as error:
        where = _place(config.metrics_address, config.metrics_port)
        flag = "--metrics-port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--metrics-address"
        problem = f"{flag}: cannot listen on {where}: {error.strerror}; choose another"
        raise ConfigurationError(problems=(problem,)) from error


def _serve_metrics(parts: Parts, nursery: trio.Nursery, listeners: list[trio.SocketListener]) -> None:
    from nixfleet_agent import metrics

    source = metrics.Source(state=parts.runtime.state, clock=parts.around.clock, telemetry=parts.telemetry)
    nursery.start_soon(metrics.serve, source, listeners, name="metrics")
    host, port = listeners[0].socket.getsockname()[:2]
    log.info("metrics", extra={"fields": {"url": f"http://{_place(host, port)}/metrics"}})


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


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
        declared = tuple(spec(probe) for probe in probes)
        await parts.runtime.tell(ProbesDeclared(at=parts.around.clock(), probes=declared))
    await _poke(parts)


async def _poke(parts: Parts) -> None:
    """Try everything now that would be tried later."""
    parts.opened.poke()
    parts.runtime.try_journal_now()
    await parts.runtime.tell(Poked(at=parts.around.clock()))


async def _answer(parts: Parts, request: Mapping[str, Any]) -> dict[str, Any]:
    """One request on the control socket."""
    await parts.runtime.began()
    match request.get("do"):
        case "status":
            state = parts.runtime.state()
            said = document(state.known, state.session, parts.around.clock())
            said["contact"]["causes"] = dict(parts.telemetry.causes)
            said |= {"tags": list(parts.config.tags), "journal_error": parts.telemetry.journal_stuck}
            if parts.news is not None:
                said["news"] = parts.news.status()
            _name_windows(said["windows"], parts.config)
            return {**said, "process": _process(parts), "configured": _configured(parts.config)}
        case "poke":
            await _poke(parts)
            return {"ok": True}
        case "clear-quarantine":
            return await _clear_quarantine(parts, request)
        case _:
            return {"error": "unknown request"}


def _name_windows(windows: Mapping[str, dict[str, Any] | None], config: Config) -> None:
    """Add the operator's own words to when they open."""
    for name, configured in (("activation", config.activation_windows), ("reboot", config.reboot_windows)):
        told = windows[name]
        if told is not None:
            told["configured"] = in_words(configured)


def _process(parts: Parts) -> dict[str, Any]:
    at = parts.around.clock()
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
    await parts.runtime.tell(QuarantineCleared(at=parts.around.clock(), closure=cleared, by=by))
    with trio.move_on_after(CLEAR_WITHIN_S):
        while wanted & set(parts.runtime.state().known.quarantine):
            await parts.runtime.turned()
        return {"ok": True}
    return {"error": f"not yet: {parts.telemetry.journal_stuck or 'the agent is busy'}"}


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
        # A disk that went read-only is lived with until it is mended; a directory of somebody else's is no such thing.
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
        if not os.access(path, os.R_OK | os.X_OK | (0 if read_only else os.W_OK)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        what = "it is not a directory" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        problem = f"--state-dir: {path} cannot be used: {what}; create it for this user or name another"
        raise ConfigurationError(problems=(problem,)) from error
