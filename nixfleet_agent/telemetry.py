"""What the agent counts about itself. Plain numbers; `metrics` turns them into Prometheus text when asked."""

from collections import Counter
from collections.abc import MutableMapping

import attrs


@attrs.define(kw_only=True)
class Telemetry:
    """Counters and last durations of one run. Durations in seconds."""

    started_mono_ms: int = 0
    refusals: Counter[str] = attrs.field(factory=Counter)
    unexpected: Counter[str] = attrs.field(factory=Counter)
    worker_restarts: Counter[str] = attrs.field(factory=Counter)
    events: Counter[str] = attrs.field(factory=Counter)
    facts_refused: int = 0
    journal_errors: int = 0
    journal_stuck: str | None = None
    """Why nothing can be written to the journal at the moment, if so."""
    causes: MutableMapping[str, str] = attrs.field(factory=dict)
    """Why the last exchange of a duty failed, for as long as none succeeds."""
    exchange_seconds: MutableMapping[str, float] = attrs.field(factory=dict)
    probe_seconds: MutableMapping[str, float] = attrs.field(factory=dict)
