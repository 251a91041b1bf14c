"""Prometheus metrics and /healthz on a port of their own. Names of section 9.2 are kept where they exist.

`prometheus_client` costs 14 MB and is imported only when a port is configured. Numbers are read from the state when
they are asked for; nothing is updated in between.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import attrs
import trio

from nixfleet_agent import __version__, scraping
from nixfleet_agent.status import reboot_required
from nixfleet_agent.telemetry import Telemetry
from state_machine.freshness import freshness_left_ms
from state_machine.state import State, fact_backlog
from state_machine.values import Moment, Phase, ProbeStatus
from state_machine.values import Source as FollowedSource

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily, Metric


@attrs.frozen(kw_only=True)
class Source:
    """Where the numbers come from."""

    state: Callable[[], State]
    clock: Callable[[], Moment]
    telemetry: Telemetry


class Collector:
    """Makes metric families of the state, at the moment of a scrape."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def collect(self) -> "Iterator[Metric]":
        """For prometheus_client's registry."""
        state, at = self._source.state(), self._source.clock()
        families = {family.name: family for family in self._families(state, at)}
        if state.known.settings.source is FollowedSource.LEGACY:
            from nixfleet_agent.older_metrics import add_older_samples

            add_older_samples(families, state, self._source.telemetry)
        yield from families.values()

    def _families(self, state: State, at: Moment) -> "Iterator[Metric]":
        yield from self._rollout(state)
        yield from self._exchanges(state, at)
        yield from self._probes(state)
        yield from self._intent(state, at)
        yield from self._counters()

    def _rollout(self, state: State) -> "Iterator[Metric]":
        known = state.known
        current = known.current
        phase = None if current is None else current.record.phase
        yield _one_of("nixfleet_agent_state", "Phase of the active rollout (1 for the one it is in).", phase)
        generation = _gauge("nixfleet_agent_generation_info", "The running closure.", "generation")
        generation.add_metric([known.system.running or ""], 1)
        yield generation
        yield _number(
            "nixfleet_agent_reboot_required", "A target or a rollback waits for a reboot.", reboot_required(known)
        )
        yield _number("nixfleet_agent_drift", "The host runs what nobody sent it.", known.drift is not None)
        yield _number(
            "nixfleet_agent_quarantined_closures", "Closures rolled back and not cleared.", len(known.quarantine)
        )
        backlog = sum(t.record.last_seq - t.delivered_seq for t in fact_backlog(known))
        yield _number("nixfleet_agent_held", "Nothing new may begin in this run.", bool(known.settings.holds))
        yield _number("nixfleet_agent_outbox_depth", "Facts the control plane does not have.", backlog)

    def _exchanges(self, state: State, at: Moment) -> "Iterator[Metric]":
        session, telemetry = state.session, self._source.telemetry
        polls = _gauge("nixfleet_agent_last_poll_timestamp_seconds", "Last success by duty, UTC seconds.", "duty")
        for duty, wall in session.last_success.items():
            polls.add_metric([duty.value], wall / 1000)
        yield polls
        durations = _gauge("nixfleet_agent_poll_duration_seconds", "How long the last exchange took.", "duty")
        for name, seconds in telemetry.exchange_seconds.items():
            durations.add_metric([name], seconds)
        yield durations
        failures = _gauge("nixfleet_agent_consecutive_failures", "Failures in a row by duty.", "duty")
        for duty, count in session.failures.items():
            failures.add_metric([duty.value], count)
        yield failures
        if session.certificate is not None:
            days = (session.certificate[1] - at.wall_ms) / 86_400_000
            yield _number("nixfleet_agent_certificate_days_left", "Days until the client certificate ends.", days)

    def _probes(self, state: State) -> "Iterator[Metric]":
        status = _gauge("nixfleet_agent_health_check_status", "1 pass, 0 fail, -1 no result yet.", "check_name")
        duration = _gauge("nixfleet_agent_health_check_duration_seconds", "The last run.", "check_name", "check_type")
        value = {ProbeStatus.PASS: 1, ProbeStatus.FAIL: 0, ProbeStatus.UNKNOWN: -1}
        for spec in state.known.judges:
            health = state.known.probes.get(spec.name)
            status.add_metric([spec.name], value[ProbeStatus.UNKNOWN if health is None else health.status])
            seconds = self._source.telemetry.probe_seconds.get(spec.name)
            if seconds is not None:
                duration.add_metric([spec.name, spec.kind], seconds)
        yield status
        yield duration

    def _intent(self, state: State, at: Moment) -> "Iterator[Metric]":
        known = state.known
        newest = max(known.intents.values(), key=lambda seen: seen.intent.signed_at, default=None)
        if newest is None:
            return
        age = (at.wall_ms - newest.intent.signed_at) / 1000
        left = freshness_left_ms(known, newest, at.wall_ms, known.clock.read(at)) / 1000
        yield _number("nixfleet_agent_manifest_age_seconds", "Since the newest accepted manifest was signed.", age)
        yield _number("nixfleet_agent_manifest_fresh_seconds", "Until it is stale; negative when it is.", left)

    def _counters(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily

        telemetry = self._source.telemetry
        tables = (
            ("nixfleet_agent_refusals", "What was refused, by reason.", "reason", telemetry.refusals),
            ("nixfleet_agent_worker_restarts", "Crashes of workers.", "worker", telemetry.worker_restarts),
            ("nixfleet_agent_events", "Events reduced.", "event", telemetry.events),
            ("nixfleet_agent_unexpected_events", "Events that made no sense.", "event", telemetry.unexpected),
        )
        for name, help, label, table in tables:
            family = CounterMetricFamily(name, help, labels=[label])
            for key, count in table.items():
                family.add_metric([key], count)
            yield family
        yield CounterMetricFamily("nixfleet_agent_journal_errors", "Failed commits.", value=telemetry.journal_errors)
        refused = "Facts the control plane will never take."
        yield CounterMetricFamily("nixfleet_agent_facts_refused", refused, value=telemetry.facts_refused)
        info = _gauge("nixfleet_agent_build_info", "Version.", "version")
        info.add_metric([__version__], 1)
        yield info


def _gauge(name: str, help: str, *labels: str) -> "GaugeMetricFamily":
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, help, labels=list(labels))


def _number(name: str, help: str, value: float) -> "GaugeMetricFamily":
    family = _gauge(name, help)
    family.add_metric([], float(value))
    return family


def _one_of(name: str, help: str, phase: Phase | None) -> "GaugeMetricFamily":
    family = _gauge(name, help, "state")
    family.add_metric(["Idle"], float(phase is None))
    for each in Phase:
        family.add_metric([each.value], float(phase is each))
    return family


async def serve(source: Source, listeners: list[trio.SocketListener]) -> None:
    """Answer `GET /metrics` and `GET /healthz` for ever."""
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    registry.register(Collector(source))

    def trouble() -> str:
        return source.telemetry.journal_stuck or source.state().known.settings.holds or ""

    await scraping.serve(registry, trouble, listeners, source.telemetry.worker_restarts)
