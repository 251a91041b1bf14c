"""The desired generation of a first-generation control plane (protocol sections 9.1 and 9.2): a source unsigned.

It asks what this machine is to run, offers that to `step`, and reports what became of it in the words of that
generation. The client certificate comes from files that somebody else keeps; they are read again when they change.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import httpx
import trio

from evidence.errors import EvidenceError
from nixfleet_agent.config import Config, problem_with_cache
from nixfleet_agent.desk import Desk, NotJsonAnswerError, read_json, refused
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.sources.interface import Again, Exchange, Outcome
from nixfleet_agent.sources.legacy_reports import Reporter, Told, told_by
from nixfleet_agent.transport import Answer, Connection
from nixfleet_agent.workers.outbound import PASSING, FactStore
from state_machine.actions import DeliverFacts
from state_machine.events import Duty, FactRefused, FactsDelivered, IntentRefused, SystemObserved, TargetOffered
from state_machine.facts import ActivationFailed, ActivationStarted, Fact
from state_machine.system import SystemView
from state_machine.values import Basis, Closure, Reason, RolloutId, SwitchMethod, is_closure
from wire.codec import decode, encode
from wire.errors import WireError
from wire.legacy import DESIRED_GENERATION, HEALTH_CHECK, REPORT, STORE, UP_TO_DATE, DesiredGeneration, Report

TIMEOUT_S: Final = 10.0
HINT_MAX_S: Final = 86_400
"""A hint beyond that says nothing: the poll interval is shorter."""
log = logging.getLogger(__name__)

Connect = Callable[[Config, Path | None], httpx.AsyncBaseTransport]
_Stamp = tuple[tuple[int, int, int], ...]


class LegacySource:
    """An `IntentSource`."""

    def __init__(self, desk: Desk, connect: Connect, observe: Callable[[], SystemView], facts: FactStore) -> None:
        self._desk, self._connect, self._observe = desk, connect, observe
        self._reporter = Reporter(desk)
        self._facts = facts
        self._turn = trio.Lock()
        self._stamp: _Stamp | None = None
        self._caches: tuple[str, ...] = ()
        self._asked = False
        self._wanted: Closure | None = None

    async def load(self) -> None:
        """Take the certificate into use. One that is not there yet is waited for: secrets may be mounted late.

        Raises:
            ConfigurationError, EvidenceError: certificate, key or CA cannot be used.
        """
        try:
            stamp = self._stamp_now()
        except OSError as error:
            log.warning("there is no client certificate", extra={"fields": {"cause": str(error)}})
        else:
            await self._connect_anew(stamp)

    def exchanges(self) -> Mapping[Duty, Exchange]:
        """What to run, and a sign of life."""
        return {Duty.INTENT: self.poll, Duty.HEARTBEAT: self.beat}

    async def fetch(self, rollout_id: RolloutId) -> None:
        """There is nothing to be had by name here: what waits for a manifest came from another source."""
        await self._desk.tell(
            IntentRefused(
                at=self._desk.clock(),
                rollout_id=rollout_id,
                reason=Reason.SUPERSEDED,
                detail="this host follows a control plane of the first generation now",
                final=True,
            )
        )

    def keep(self, rollout_id: RolloutId) -> None:
        """Nothing: there is no proof but the journal."""

    def caches(self) -> tuple[str, ...]:
        """The cache that the server named last."""
        return self._caches

    async def close(self) -> None:
        """Close the connection."""
        await self._desk.uplink.close()

    # --- the certificate ---------------------------------------------------------------------------------------------

    @property
    def _certificate(self) -> Path | None:
        config = self._desk.config
        return config.client_cert if config.control_plane_url.lower().startswith("https:") else None

    @property
    def _basis(self) -> Basis:
        """Without a certificate of ours anybody could have asked, and over plain HTTP anybody could have answered."""
        return Basis.CACHE_KEY if self._certificate is None else Basis.MUTUAL_TLS

    def _stamp_now(self) -> _Stamp:
        if self._certificate is None:
            return ()
        stats = [path.stat() for path in (self._certificate, self._desk.config.client_key)]
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)

    async def _connect_anew(self, stamp: _Stamp) -> None:
        config = self._desk.config
        transport = self._connect(config, self._certificate)
        await self._desk.uplink.use(Connection(config.control_plane_url, transport))
        self._stamp = stamp

    async def _refresh(self) -> None:
        """Take a certificate into use that came, or was replaced. Half of a new pair leaves the old one in use.

        Raises:
            ConfigurationError: there is none that works.
        """
        try:
            stamp = self._stamp_now()
            if stamp != self._stamp:
                await self._connect_anew(stamp)
        except (ConfigurationError, EvidenceError, OSError) as error:
            if self._stamp is None:
                problem = f"--client-cert: it cannot be used ({error}); put certificate and key where they are named"
                raise ConfigurationError(problems=(problem,)) from error
            log.warning("the new client certificate is not used", extra={"fields": {"cause": str(error)}})

    # --- what to run -------------------------------------------------------------------------------------------------

    async def poll(self) -> Outcome:
        """Ask for the desired generation and offer it; nothing set is an offer of nothing.

        Raises:
            TransportError, AnswerError, ConfigurationError: it failed.
        """
        await self._refresh()
        path = DESIRED_GENERATION.format(machine_id=self._desk.config.machine_id)
        answer = await self._desk.uplink.ask("GET", path, timeout_s=TIMEOUT_S)
        if answer.status == 404 and not _is_page(answer):
            self._caches = ()
            await self._offer(None)
            return None
        return await self._take_up(_decoded(path, answer))

    async def _take_up(self, desired: DesiredGeneration) -> Outcome:
        closure = self._closure_of(desired.hash)
        if closure is None:
            await self._refuse(f"{desired.hash[:80]!r} is no store path below {self._desk.config.store_dir}")
            return False
        await self._use_cache(desired.cache_url)
        await self._offer(closure)
        if desired.poll_hint is None:
            return None
        if self._is_up_to_date(self._observe().running):
            # The server waits for news of this machine.
            await self._send(self._reporter.of_now(UP_TO_DATE))
        return Again(after_ms=1000 * min(max(desired.poll_hint, 0), HINT_MAX_S))

    async def _offer(self, closure: Closure | None) -> None:
        self._asked, self._wanted = True, closure
        await self._desk.tell(TargetOffered(at=self._desk.clock(), basis=self._basis, closure=closure))

    def _closure_of(self, generation: str) -> Closure | None:
        """The base name, if it is one right below the store: this host's own, or the only one that generation knew."""
        for store in (f"{self._desk.config.store_dir}/", STORE):
            name = generation.removeprefix(store)
            if name != generation and is_closure(name):
                return Closure(name)
        return None

    async def _use_cache(self, url: str | None) -> None:
        problem = None if url is None else problem_with_cache(url)
        self._caches = () if url is None or problem is not None else (url,)
        if problem is not None:
            await self._refuse(f"cache_url: {problem}")

    async def _refuse(self, detail: str) -> None:
        event = IntentRefused(at=self._desk.clock(), rollout_id=None, reason=Reason.PARSE, detail=detail, final=True)
        await self._desk.tell(event)

    # --- what became of it -------------------------------------------------------------------------------------------

    async def beat(self) -> Outcome:
        """Look at the host, and say how it is.

        Raises:
            TransportError, AnswerError, ConfigurationError: nobody took it.
        """
        system = self._observe()
        await self._desk.tell(SystemObserved(at=self._desk.clock(), system=system))
        await self._refresh()
        message = UP_TO_DATE if self._is_up_to_date(system.running) else HEALTH_CHECK
        await self._send(self._reporter.of_now(message))
        return None

    def _is_up_to_date(self, running: Closure | None) -> bool:
        """It runs what was asked for last, and nothing about that is undecided."""
        known = self._desk.state().known
        wanted = running if self._wanted is None else self._wanted
        settled = known.operation is None and known.waiting is None
        return self._asked and settled and running == wanted and not self._reporter.on_trial()

    async def deliver(self, order: DeliverFacts) -> bool:
        """Report what the server wants to know of these facts; those it has no word for go with the next it has.

        Raises:
            TransportError, AnswerError, ConfigurationError: it stopped in the middle; what was taken has been told.
        """
        async with self._turn:
            await self._refresh()
            limit = order.through_seq - order.from_seq + 1
            stored = await self._facts.facts_from(order.rollout_id, order.from_seq, limit)
            dry = bool(stored) and await self._began_dry(order.rollout_id, stored[0].fact)
            for item in stored:
                dry = _is_dry(item.fact) if isinstance(item.fact, ActivationStarted) else dry
                told = told_by(item.fact, self._desk.state().known.rollouts.get(order.rollout_id), dry=dry)
                if told is not None:
                    await self._tell_server(order.rollout_id, item.fact.seq, told)
                    await self._tell_delivered(order.rollout_id, item.fact.seq)
            if stored:
                await self._tell_delivered(order.rollout_id, stored[-1].fact.seq)
        return True

    async def _began_dry(self, rollout_id: RolloutId, fact: Fact) -> bool:
        """Whether the switch that this first fact of a batch ends was none: its beginning may have been told before."""
        if not isinstance(fact, ActivationFailed) or fact.seq == 1:
            return False
        before = await self._facts.facts_from(rollout_id, fact.seq - 1, 1)
        return any(_is_dry(item.fact) for item in before)

    async def _tell_server(self, rollout_id: RolloutId, seq: int, told: Told) -> None:
        """Report one fact. That the server will never take it is an outcome too, and told; the next may be sent."""
        answer = await self._post(self._reporter.of(told))
        if answer is None:
            return
        if not 400 <= answer.status < 500 or answer.status in PASSING:
            raise refused(self._report_path, answer)
        said = refused(self._report_path, answer)
        log.warning("the control plane will not take a report", extra={"fields": {"cause": str(said)}})
        self._desk.telemetry.facts_refused += 1
        await self._desk.tell(
            FactRefused(
                at=self._desk.clock(), rollout_id=rollout_id, seq=seq, status=answer.status, reason=said.said[:200]
            )
        )

    async def _tell_delivered(self, rollout_id: RolloutId, through_seq: int) -> None:
        await self._desk.tell(FactsDelivered(at=self._desk.clock(), rollout_id=rollout_id, through_seq=through_seq))

    @property
    def _report_path(self) -> str:
        return REPORT.format(machine_id=self._desk.config.machine_id)

    async def _send(self, report: Report) -> None:
        answer = await self._post(report)
        if answer is not None:
            raise refused(self._report_path, answer)

    async def _post(self, report: Report) -> Answer | None:
        """None: it was taken. A page is no control plane's answer, whatever its status.

        Raises:
            TransportError, AnswerError: nobody can have taken it.
        """
        answer = await self._desk.uplink.ask("POST", self._report_path, json=encode(report), timeout_s=TIMEOUT_S)
        if _is_page(answer):
            raise NotJsonAnswerError(path=self._report_path, problem=f"HTTP {answer.status} with a page for people")
        return None if answer.ok else answer


def _is_dry(fact: Fact) -> bool:
    """A switch that was only shown began with it."""
    return isinstance(fact, ActivationStarted) and fact.switch_method is SwitchMethod.DRY_RUN


def _decoded(path: str, answer: Answer) -> DesiredGeneration:
    value = read_json(path, answer)
    try:
        return decode(DesiredGeneration, value)
    except WireError as error:
        raise NotJsonAnswerError(path=path, problem=str(error)) from error


def _is_page(answer: Answer) -> bool:
    """HTML, from a captive portal or another server: its 404 says nothing about this machine."""
    return "html" in answer.headers.get("Content-Type", "").lower() or answer.body.lstrip()[:1] == b"<"
