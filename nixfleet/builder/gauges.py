"""How builds went, for Prometheus. Every sample has the role of its builder, so that one rule can name them all."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nixfleet.builder.messages import Phase, Progress

HOSTS_MAX: Final = 4096
"""Different hosts that have samples of their own; a name of a host comes from whoever asks."""
OTHERS: Final = "(others)"
_WHICH: Final = ("role", "repository", "host")
_BUCKETS: Final = (1, 5, 15, 60, 180, 600, 1800, 3600, 2 * 3600, 4 * 3600, 8 * 3600)


class Gauges:
    """The samples of one builder."""

    def __init__(self, role: str) -> None:
        self.registry = CollectorRegistry()
        self._role = role
        self._hosts: set[tuple[str, str]] = set()
        self._builds = Counter(
            "nixfleet_builder_builds", "Builds that ended.", (*_WHICH, "outcome"), registry=self.registry
        )
        self._seconds = Histogram(
            "nixfleet_builder_build_duration_seconds", "How long builds took, from their fetch to their copy.",
            ("role", "repository", "outcome"), buckets=_BUCKETS, registry=self.registry,
        )  # fmt: skip
        last = "nixfleet_builder_last_success_timestamp_seconds"
        self._last = Gauge(last, "When a host was built last.", _WHICH, registry=self.registry)
        self._refused = self._counter("nixfleet_builder_refused_requests", "Requests for what is built for nobody.")
        self._running = self._gauge("nixfleet_builder_builds_running", "Builds that go on.")
        self._depth = self._gauge("nixfleet_builder_queue_depth", "Requests that nobody has taken yet.")
        self._connected = self._gauge("nixfleet_builder_connected", "Whether the NATS server is spoken to.")

    def _counter(self, name: str, help_text: str) -> Counter:
        return Counter(name, help_text, ("role",), registry=self.registry).labels(role=self._role)

    def _gauge(self, name: str, help_text: str) -> Gauge:
        return Gauge(name, help_text, ("role",), registry=self.registry).labels(role=self._role)

    def ended(self, last: Progress) -> None:
        """A build is over."""
        which = {"role": self._role, "repository": last.repository, "host": self._host(last)}
        self._builds.labels(**which, outcome=last.phase.value).inc()
        self._seconds.labels(role=self._role, repository=last.repository, outcome=last.phase.value).observe(
            last.seconds
        )
        if last.phase is Phase.DONE:
            self._last.labels(**which).set(time.time())

    def refused(self) -> None:
        """A request is none that this builder does."""
        self._refused.inc()

    @contextmanager
    def running(self) -> Iterator[None]:
        """A build goes on."""
        with self._running.track_inprogress():
            yield

    def waiting(self, count: int) -> None:
        """So many requests wait to be taken."""
        self._depth.set(count)

    def connected(self, is_connected: bool) -> None:
        """Whether there is a connection."""
        self._connected.set(float(is_connected))

    def _host(self, last: Progress) -> str:
        known = (last.repository, last.host)
        if len(self._hosts) < HOSTS_MAX:
            self._hosts.add(known)
        return last.host if known in self._hosts else OTHERS
