"""How runs went, for Prometheus: a file for the node exporter's textfile collector, or a push gateway."""

from pathlib import Path
from typing import Final

import httpx
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from nixfleet.files import replace_file
from nixfleet.update.outcome import Kind, Outcome

TIMEOUT_S: Final = 20.0


def exposition(outcome: Outcome, now_s: float, seconds: float) -> bytes:
    """The metrics of a run that ended at `now_s` after so many seconds."""
    registry = CollectorRegistry()
    labels = {"instance_name": outcome.instance}

    def gauge(name: str, help_text: str, value: float, **more: str) -> None:
        names = [*labels, *more]
        known = gauges.get(name) or Gauge(name, help_text, names, registry=registry)
        gauges[name] = known
        known.labels(**labels, **more).set(value)

    gauges: dict[str, Gauge] = {}
    gauge("nixfleet_update_last_run_timestamp_seconds", "When the last run ended.", now_s)
    gauge("nixfleet_update_duration_seconds", "How long it took.", seconds)
    for kind in Kind:
        gauge(
            "nixfleet_update_outcome",
            "How it ended: 1 for the outcome.",
            float(kind is outcome.kind),
            outcome=kind.value,
        )
    if outcome.released is not None:
        done = float(outcome.released.why is None)
        gauge("nixfleet_update_released", "Whether what the main branch has is released.", done)
    for built in outcome.findings.built:
        host = built.system.host
        gauge("nixfleet_update_build_ok", "Whether a host's system builds.", float(built.ok), host=host)
        gauge("nixfleet_update_build_seconds", "How long its build took.", built.seconds, host=host)
    return generate_latest(registry)


def write_file(path: Path, text: bytes) -> None:
    """Replace the file at once, so that the collector never reads half of one."""
    replace_file(path, text)


async def push(gateway: str, instance: str, text: bytes) -> None:
    """Send it to a push gateway, in place of what the instance sent last.

    Raises:
        httpx.HTTPError: it was not taken.
    """
    async with httpx.AsyncClient(timeout=TIMEOUT_S) as client:
        answer = await client.put(
            f"{gateway.rstrip('/')}/metrics/job/nixfleet_update/instance/{instance}", content=text
        )
        answer.raise_for_status()
