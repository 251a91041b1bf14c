"""The state of a control plane as metrics, looked up when they are asked for, so they are never out of date."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from control_plane.dispatch_desk import DispatchDesk
from control_plane.guards import Guards
from control_plane.heartbeats import Heartbeats
from control_plane.ingest import Ingest
from control_plane.ledger import Ledger
from control_plane.planner_loop import PlannerLoop
from control_plane.rows import Host, Mirror, QueuedDispatch, Rollout
from control_plane.shelf import Shelf
from control_plane.version import VERSION
from state_machine.values import Phase


class Gauges(Collector):
    """What the control plane knows, as gauges."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        shelf: Shelf,
        planner: PlannerLoop,
        desk: DispatchDesk,
        ingest: Ingest,
        heartbeats: Heartbeats,
        guards: Guards,
    ) -> None:
        self._ledger, self._shelf, self._planner = ledger, shelf, planner
        self._desk, self._ingest, self._heartbeats, self._guards = desk, ingest, heartbeats, guards

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._build()
        yield from self._fleet()
        yield from self._rollouts()
        yield from self._traffic()

    def _build(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("nixfleet_cp_build_info", "The running build.", labels=("version", "git_commit"))
        info.add_metric((VERSION, ""), 1)
        yield info
        yield _gauge("nixfleet_cp_ready", "1 once signed artifacts are in force.", self._shelf.is_ready)
        yield _gauge("nixfleet_cp_database_failed", "1 while nothing can be written.", self._ledger.failure is not None)
        yield _counter("nixfleet_cp_commits", "Database transactions.", self._ledger.store.commits)

    def _fleet(self) -> Iterator[Metric]:
        fleet = self._shelf.fleet
        declared = {} if fleet is None else fleet.value.hosts
        yield _gauge("nixfleet_fleet_size", "Hosts that the fleet declares.", len(declared))
        if fleet is not None:
            at = fleet.proven.signed_at / 1000
            yield _gauge("nixfleet_cp_fleet_signed_timestamp_seconds", "When the fleet in force was signed.", at)
        yield _gauge(
            "nixfleet_cp_artifact_problems", "Published files that are not in force.", len(self._shelf.problems)
        )
        known = {host.hostname: host for host in self._ledger.book.all(Host)}
        stages = {"pending": 0, "provisioning": 0, "active": 0, "decommissioned": 0}
        for name in {*known, *declared}:
            host = known.get(name)
            enrolled = host is not None and (host.enrolled_at is not None or host.seen_at is not None)
            enrolled = enrolled or self._planner.presence.last_seen(name) is not None
            stage = "provisioning" if name in declared else "pending"
            if enrolled:
                stage = "active" if name in declared else "decommissioned"
            stages[stage] += 1
        family = GaugeMetricFamily("nixfleet_machines_by_lifecycle", "Machines by stage.", labels=("lifecycle",))
        for stage, count in stages.items():
            family.add_metric((stage,), count)
        yield family
        seen = GaugeMetricFamily(
            "nixfleet_machine_last_seen_timestamp_seconds", "Last request of a host.", labels=("machine_id",)
        )
        for name, at_ms in self._planner.presence.all_seen().items():
            seen.add_metric((name,), at_ms / 1000)
        yield seen

    def _rollouts(self) -> Iterator[Metric]:
        rollouts = self._ledger.book.all(Rollout)
        active = sum(row.is_current and row.terminal_at is None for row in rollouts)
        yield _gauge("nixfleet_rollouts_active", "Current rollouts that are not over.", active)
        yield _counter("nixfleet_rollouts", "Rollouts ever opened.", len(rollouts))
        phases = GaugeMetricFamily("nixfleet_cp_hosts_in_phase", "Hosts of current rollouts.", labels=("phase",))
        counts = dict.fromkeys(Phase, 0)
        for rollout in rollouts:
            if rollout.is_current:
                for mirror in self._ledger.book.mirrors_of(rollout.rollout_id).values():
                    counts[mirror.record.phase] += 1
        for phase, count in counts.items():
            phases.add_metric((phase.value,), count)
        yield phases
        controls = sum(len(row.failing_controls) for row in self._ledger.book.all(Mirror))
        yield _gauge("nixfleet_cp_compliance_failures", "Probes that report a failing enforced control.", controls)
        blocks = CounterMetricFamily("nixfleet_gate_block", "Hosts that a gate began to hold.", labels=("gate",))
        for gate, count in self._planner.blocked.items():
            blocks.add_metric((gate,), count)
        yield blocks
        gate_errors = CounterMetricFamily("nixfleet_runtime_gate_error_events", "Gate errors that hosts reported.")
        gate_errors.add_metric((), 0)  # protocol 1 has no event kind for them
        yield gate_errors

    def _traffic(self) -> Iterator[Metric]:
        yield _counter("nixfleet_cp_facts_accepted", "Facts taken.", self._ingest.accepted)
        refused = CounterMetricFamily("nixfleet_cp_facts_refused", "Facts not taken.", labels=("reason",))
        for reason, count in self._ingest.refused.items():
            refused.add_metric((reason,), count)
        yield refused
        yield _counter("nixfleet_cp_heartbeats", "Heartbeats answered.", self._heartbeats.received)
        drifts = CounterMetricFamily("nixfleet_cp_drift", "Differences that heartbeats showed.", labels=("kind",))
        for kind, count in self._heartbeats.drifts.items():
            drifts.add_metric((kind,), count)
        yield drifts
        yield _gauge("nixfleet_cp_requests_in_flight", "Requests being handled.", self._guards.in_flight)
        yield _gauge("nixfleet_cp_long_polls", "Hosts that wait for a dispatch.", self._desk.waiting)
        queued = len(self._ledger.book.all(QueuedDispatch))
        yield _gauge("nixfleet_cp_dispatches_queued", "Dispatches that no host has answered yet.", queued)


def _gauge(name: str, what: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, what)
    family.add_metric((), float(value))
    return family


def _counter(name: str, what: str, value: float) -> Metric:
    family = CounterMetricFamily(name, what)
    family.add_metric((), float(value))
    return family
