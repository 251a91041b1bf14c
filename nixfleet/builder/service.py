"""The builder as a service: connected for as long as there is a server, ended in good order by a signal.

A server that is not there is waited for, and said once. A mistake in the configuration ends it at once.
"""

import errno
import logging
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Final

import attrs
import trio

from messaging.errors import BadServerError, LinkError, LostError
from messaging.link import Link, connected
from messaging.server import Server, server_of
from nixfleet.builder.boards import OwnBoard, SharedBoard, open_bucket
from nixfleet.builder.desk import Desk
from nixfleet.builder.errors import SettingsError
from nixfleet.builder.gauges import Gauges
from nixfleet.builder.hosts import answer_hosts
from nixfleet.builder.intake import serve_queue, serve_straight
from nixfleet.builder.messages import Subjects
from nixfleet.builder.prebuild import Prebuilder, ask_queue, ask_straight
from nixfleet.builder.settings import Settings
from nixfleet.builder.work import Works
from nixfleet_agent import __version__, scraping
from nixfleet_agent.service_manager import ServiceManager

PAUSES_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
WATCH_S: Final = 2.0
log = logging.getLogger(__name__)


def server_in(settings: Settings, where: str) -> Server:
    """The server that the settings name.

    Raises:
        SettingsError: with what is wrong with the table `nats`.
    """
    try:
        return server_of(settings.nats)
    except BadServerError as error:
        raise SettingsError(where=where, problems=tuple(f"nats: {each}" for each in error.problems)) from error


@attrs.define(kw_only=True, eq=False)
class Service:
    """One builder."""

    settings: Settings
    server: Server
    where: str
    """Its configuration file."""
    manager: ServiceManager = attrs.field(factory=lambda: ServiceManager(os.environ))
    _trouble: str = "not connected yet"
    _stop: trio.Event = attrs.field(factory=trio.Event)
    _until_connected: trio.CancelScope | None = None

    async def run(self) -> None:
        """Build for whoever asks, until SIGTERM or SIGINT.

        Raises:
            SettingsError: it cannot be run as it is configured.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            works, gauges = Works(self.settings), Gauges(self.settings.role)
            listeners = await self._listeners()
            problems: list[SettingsError] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stop_on_signal, signals)
                nursery.start_soon(self._tell_manager)
                if listeners:
                    nursery.start_soon(scraping.serve, gauges.registry, self._said, listeners, Counter[str]())
                fields = {"name": self.settings.name, "version": __version__}
                log.info("ready", extra={"fields": fields})
                self.manager.ready()
                try:
                    await self._stay_connected(works, gauges)
                except SettingsError as error:  # told when the nursery is closed
                    problems.append(error)
                nursery.cancel_scope.cancel()
            if problems:
                raise problems[0]

    async def _stay_connected(self, works: Works, gauges: Gauges) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                with trio.CancelScope() as self._until_connected:
                    async with connected(self.server, f"nixfleet builder {self.settings.name}") as link:
                        self._until_connected, failures = None, 0
                        self._welcome()
                        gauges.connected(True)
                        await self._serve(link, works, gauges)
            except BadServerError as error:
                raise SettingsError(where=self.where, problems=error.problems) from error
            except LinkError as error:
                self._lament(str(error))
            except ExceptionGroup as group:  # several tasks met the same trouble
                self._lament(str(link_error_of(group)))
            gauges.connected(False)
            with trio.move_on_after(PAUSES_S[min(failures, len(PAUSES_S) - 1)]):
                await self._stop.wait()
            failures += 1

    def _welcome(self) -> None:
        self._trouble = ""
        log.info("connected", extra={"fields": {"url": self.server.url}})

    def _lament(self, why: str) -> None:
        """Once for each trouble."""
        if why != self._trouble:
            log.warning("no NATS server, trying again", extra={"fields": {"why": why}})
        self._trouble = why

    async def _serve(self, link: Link, works: Works, gauges: Gauges) -> None:
        subjects = Subjects(prefix=self.settings.prefix)
        has_queue = await link.has_jetstream()
        board = SharedBoard(await open_bucket(link, subjects)) if has_queue else OwnBoard()
        desk = Desk(settings=self.settings, link=link, board=board, works=works, gauges=gauges)
        kind = "work queue" if has_queue else "requests"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, link, gauges)
            log.info("listening", extra={"fields": {"subjects": subjects.all_jobs, "by": kind}})
            nursery.start_soon(answer_hosts, link, subjects, works)
            ask = (ask_queue if has_queue else ask_straight)(link, subjects)
            nursery.start_soon(Prebuilder(settings=self.settings, link=link, works=works, ask=ask).run)
            await (serve_queue if has_queue else serve_straight)(desk, link, self._stop)
            nursery.cancel_scope.cancel()

    async def _watch(self, link: Link, gauges: Gauges) -> None:
        """The link mends itself, but for a server that no longer knows who this is.

        Raises:
            LostError: it has ended.
        """
        while True:
            await trio.sleep(WATCH_S)
            if link.is_over:
                raise LostError(url=self.server.url)
            if link.is_up and self._trouble:
                self._welcome()
            elif not link.is_up and not self._trouble:
                self._lament(str(LostError(url=self.server.url)))
            gauges.connected(link.is_up)

    async def _stop_on_signal(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if self._stop.is_set():
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            log.info("stopping", extra={"fields": {"signal": signal.Signals(number).name}})
            self.manager.stopping()
            self._stop.set()
            if self._until_connected is not None:
                self._until_connected.cancel()

    async def _tell_manager(self) -> None:
        while True:
            self.manager.alive()
            self.manager.status(self._trouble or f"connected to {self.server.url}")
            await trio.sleep(self.manager.watchdog_s or WATCH_S)

    def _said(self) -> str:
        return self._trouble

    async def _listeners(self) -> list[trio.SocketListener]:
        port = self.settings.metrics_port
        if port is None:
            return []
        try:
            return await trio.open_tcp_listeners(port)
        except OSError as error:
            hint = "choose another" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "is there a network?"
            problem = f"`metrics-port` {port}: cannot listen: {error.strerror}; {hint}"
            raise SettingsError(where=self.where, problems=(problem,)) from error


def link_error_of(group: ExceptionGroup[Exception]) -> LinkError:
    """One of several errors, when all of them are of the connection; else the group is raised again."""
    ours, others = group.split(LinkError)
    if ours is None or others is not None:
        raise group
    error: Exception = ours
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, LinkError)
    return error
