"""Hand each order to the worker that can carry it out. One row for each kind of order, and no decisions."""

import logging
from collections.abc import Awaitable, Callable
from typing import assert_never

import attrs
import trio

from evidence.errors import EvidenceError
from nixfleet_agent.desk import AnswerError, Desk, NotJsonAnswerError, RefusedError
from nixfleet_agent.errors import AgentError
from nixfleet_agent.health_checks import probes_or_failure
from nixfleet_agent.identity import CertificateError
from nixfleet_agent.probes.kinds import FailedUnitsProbe, spec
from nixfleet_agent.probes.worker import ProbeSet
from nixfleet_agent.sources.interface import Again, Exchange, IntentSource
from nixfleet_agent.supervision import keep_going
from nixfleet_agent.transport import BodyTooLargeError, TransportError
from nixfleet_agent.workers.activation import ActivationWorker
from nixfleet_agent.workers.calendar import CalendarWorker
from nixfleet_agent.workers.hooks import HookWorker
from nixfleet_agent.workers.reboot import RebootWorker
from state_machine.actions import (
    Abandon,
    Action,
    DeliverFacts,
    FetchIntent,
    ObserveSystem,
    Perform,
    ReadCalendar,
    Realise,
    Reboot,
    Refuse,
    RestartProbes,
    Rollback,
    RunHooks,
    Switch,
    Unexpected,
)
from state_machine.events import Duty, DutyFinished, ProbesDeclared, SystemObserved
from state_machine.system import SystemView
from state_machine.values import Moment

log = logging.getLogger(__name__)

EXPECTED = (TransportError, AnswerError, CertificateError, AgentError, EvidenceError, OSError)
"""What an exchange with the world may end in. Anything else is a defect, and for supervision to deal with."""


@attrs.frozen(kw_only=True)
class Workers:
    """Everybody there is to give orders to."""

    source: IntentSource
    activation: ActivationWorker
    hooks: HookWorker
    reboot: RebootWorker
    calendar: CalendarWorker
    probes: ProbeSet


class Applier:
    """Callable with an action; returns at once. What takes time becomes a task of its own."""

    def __init__(self, desk: Desk, workers: Workers, observe: Callable[[], SystemView], nursery: trio.Nursery) -> None:
        self._desk = desk
        self._workers = workers
        self._observe = observe
        self._nursery = nursery

    def __call__(self, action: Action) -> None:
        """Have the action carried out."""
        workers = self._workers
        match action:
            case Perform(duty=duty):
                self._start(duty.value, lambda: self._exchange(duty, workers.source.exchanges()[duty]))
            case DeliverFacts():
                self._start("delivery", lambda: self._deliver(action))
            case FetchIntent(rollout_id=rollout_id):
                self._start("fetch-intent", lambda: workers.source.fetch(rollout_id))
            case Realise():
                self._keep_proof()
                self._start("realise", lambda: workers.activation.realise(action))
            case Abandon():
                workers.activation.abandon(action)
            case Switch():
                self._keep_proof()
                self._start("switch", lambda: workers.activation.switch(action))
            case Rollback():
                self._start("rollback", lambda: workers.activation.roll_back(action))
            case RunHooks():
                self._start("hooks", lambda: workers.hooks.run(action))
            case Reboot():
                self._start("reboot", lambda: workers.reboot.reboot(action))
            case ReadCalendar():
                self._start("calendar", workers.calendar.read)
            case RestartProbes():
                self._restart_probes(action)
            case ObserveSystem():
                self._start("observe", self._look)
            case Refuse():
                self._desk.telemetry.refusals[action.reason.value] += 1
                fields = {"reason": action.reason.value, "rollout": action.rollout_id, "detail": action.detail}
                log.warning("refused", extra={"fields": fields})
            case Unexpected():
                self._desk.telemetry.unexpected[action.event] += 1
                log.debug("unexpected", extra={"fields": {"event": action.event, "detail": action.detail}})
            case _:
                assert_never(action)

    def _keep_proof(self) -> None:
        """What the active rollout rests on must be there for an auditor as long as the journal is."""
        active = self._desk.state().known.active
        if active is None:
            return
        try:
            self._workers.source.keep(active)
        except OSError as error:  # the order is on record: a disk that fills up just now must not end the process
            log.warning("proof could not be kept", extra={"fields": {"rollout": active, "cause": str(error)}})

    def _start(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        self._nursery.start_soon(keep_going, name, work, self._desk.telemetry.worker_restarts, name=name)

    async def _deliver(self, order: DeliverFacts) -> None:
        async def send() -> bool:
            return await self._workers.source.deliver(order)

        await self._exchange(Duty.DELIVERY, send)

    async def _exchange(self, duty: Duty, work: Exchange) -> None:
        """Do one exchange and say how it went. A failure is an ordinary outcome; `step` decides when to try again."""
        began, retry_after_ms, again_after_ms = self._desk.clock().mono_ms, None, None
        try:
            outcome = await work()
            ok = outcome is not False
            again_after_ms = outcome.after_ms if isinstance(outcome, Again) else None
            self._desk.telemetry.causes.pop(duty.value, None)
        except EXPECTED as error:
            ok = False
            retry_after_ms = error.retry_after_ms if isinstance(error, RefusedError) else None
            self._log_failure(duty, error)
        at = self._desk.clock()
        self._desk.telemetry.exchange_seconds[duty.value] = (at.mono_ms - began) / 1000
        jitter = self._desk.jitter()
        await self._desk.tell(
            DutyFinished(
                at=at,
                duty=duty,
                ok=ok,
                retry_after_ms=retry_after_ms,
                jitter=jitter,
                again_after_ms=again_after_ms,
            )
        )

    def _log_failure(self, duty: Duty, error: BaseException) -> None:
        """A long outage is one warning, not one a second; another cause is another warning."""
        if isinstance(error, BodyTooLargeError | NotJsonAnswerError):
            self._desk.telemetry.refusals[error.reason.value] += 1  # an answer came, and was refused for what it is
        causes, cause = self._desk.telemetry.causes, str(error)
        level = logging.DEBUG if causes.get(duty.value) == cause else logging.WARNING
        causes[duty.value] = cause
        log.log(level, f"{duty.value} failed", extra={"fields": {"cause": cause}})

    async def _look(self) -> None:
        await self._desk.tell(SystemObserved(at=self._desk.clock(), system=self._observe()))

    def _restart_probes(self, order: RestartProbes) -> None:
        """Read the health checks again first: a switch may have changed them without restarting the agent."""
        now, probes = self._desk.clock(), probes_or_failure(self._desk.config)
        self._workers.probes.declare(probes)
        specs = tuple(spec(probe) for probe in probes)
        if specs != self._desk.state().known.topology:
            self._start("declare", lambda: self._desk.tell(ProbesDeclared(at=now, probes=specs)))
        wall_ms = now.wall_ms if order.activated_at is None else order.activated_at
        extra = () if order.max_failed_units is None else (FailedUnitsProbe(max=order.max_failed_units),)
        self._workers.probes.restart(Moment(wall_ms=wall_ms, mono_ms=now.mono_ms), extra)
