"""What is counted as it happens, and the registry behind `/metrics`."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from control_plane.entries import Entry, FactAccepted
from control_plane.rows import Change, Mirror, Put

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


# When each series began doubles the page and answers no question anybody has here.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library is typed but for this


class Metrics:
    """One registry for one control plane."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("nixfleet_http_requests", "Requests answered.", labels, registry=self.registry)
        self._durations = Histogram(
            "nixfleet_http_request_duration_seconds",
            "From the end of the request's header to its answer.",
            ("method", "route"),
            registry=self.registry,
        )
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._compliance = Counter(
            "nixfleet_compliance_failure_events",
            "Enforced controls that a host reported as failing.",
            ("control_id", "host"),
            registry=self.registry,
        )
        self._enrolments = Counter(
            "nixfleet_cp_enrolments", "Certificates asked for, by how that ended.", ("outcome",), registry=self.registry
        )

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered. `route` is the pattern, never the path, so labels stay few."""
        key = method, route, status
        if key not in self._children:
            # Looked up once: finding a series by its labels takes longer than counting.
            self._children[key] = (
                self._requests.labels(method, route, str(status)),
                self._durations.labels(method, route),
            )
        requests, durations = self._children[key]
        requests.inc()
        durations.observe(seconds)

    def on_change(self, entry: Entry, changes: list[Change]) -> None:
        """Count the enforced controls that a host has just reported as failing. A listener of the ledger."""
        if isinstance(entry, FactAccepted) and '"subResults"' in entry.event:
            for mirror in (change.row for change in changes if isinstance(change, Put)):
                if isinstance(mirror, Mirror):
                    for control_id in {control for failing in mirror.failing_controls.values() for control in failing}:
                        self._compliance.labels(control_id, entry.hostname).inc()

    def count_enrolment(self, outcome: str) -> None:
        """A certificate was issued (`issued`), or refused for this reason."""
        self._enrolments.labels(outcome).inc()

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)
