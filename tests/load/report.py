"""What a run found, as a table and as JSON."""

import json
import platform
from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
from rich.table import Table

from tests.load.step import Figures

SOON_MS = 1000.0
"""Dispatches are to be in a host's hands within so long, 99 of 100."""


def soon(latency_ms: float) -> bool:
    """As fast as it should be."""
    return latency_ms < SOON_MS


def largest(steps: Sequence[Figures], *, at_once: bool) -> int:
    """The most agents at which dispatches are soon and nothing is lost; 0 if there is none."""
    return max(
        (step.agents for step in steps if step.sound and soon((step.burst if at_once else step.waves).p99_ms)),
        default=0,
    )


def table(steps: Sequence[Figures]) -> Table:
    """A column for each step."""
    made = Table(box=None, pad_edge=False)
    made.add_column("agents")
    for step in steps:
        made.add_column(f"{step.agents:,}", justify="right")
    for name, cells in rows(steps):
        made.add_row(name, *cells)
    return made


def rows(steps: Sequence[Figures]) -> Sequence[tuple[str, list[str]]]:
    """What is shown of each step."""

    def row(name: str, show: Any) -> tuple[str, list[str]]:
        return name, [show(step) for step in steps]

    return [
        row("memory, PSS (RSS), MB", lambda s: f"{s.pss_mb:.0f} ({s.rss_mb:.0f})"),
        row("  for each agent, KB", lambda s: f"{s.pss_kb_each:.0f}"),
        row("connections taken, a second", lambda s: f"{s.connected_per_s:.0f}"),
        row("  CPU for each, ms", lambda s: f"{s.handshake_cpu_ms:.2f}"),
        row("core while everybody waits, %", lambda s: f"{s.idle_cpu * 100:.1f}"),
        row("dispatch, all at once: p50, p99, ms", lambda s: f"{s.burst.p50_ms:.0f}, {s.burst.p99_ms:.0f}"),
        row("  the whole rollout, s", lambda s: f"{s.burst.all_after_s:.1f}"),
        row("dispatch, in ten waves: p50, p99, ms", lambda s: f"{s.waves.p50_ms:.0f}, {s.waves.p99_ms:.0f}"),
        row("  the whole rollout, s", lambda s: f"{s.waves.all_after_s:.1f}"),
        row("facts a second, of those asked for", lambda s: f"{s.paced_per_s:.0f} of {s.asked_per_s:.0f}"),
        row("  taken after, p99, ms", lambda s: f"{s.paced_p99_ms:.0f}"),
        row("  core, %", lambda s: f"{s.paced_cpu * 100:.0f}"),
        row("facts a second, as fast as it can", lambda s: f"{s.most_per_s:.0f}"),
        row("  CPU for each, ms", lambda s: f"{s.fact_cpu_ms:.2f}"),
        row("  core that the clients took, %", lambda s: f"{s.clients_cpu * 100:.0f}"),
        row("facts told and on record", lambda s: f"{s.facts:,}"),
        row("lost, or there twice", lambda s: str(len(s.lost)) if s.lost else "none"),
        row("answers no agent expects", lambda s: str(len(s.breaches)) if s.breaches else "none"),
        row("connections lost, requests put off", lambda s: f"{s.reconnected}, {s.put_off}"),
    ]


def parts_table(step: Figures) -> Table:
    """Where the control plane's CPU time went: a row for each part, a column for each phase."""
    made = Table(title=f"CPU time of the control plane, {step.agents:,} agents", box=None, pad_edge=False)
    made.add_column("part, % of the phase")
    for phase, spent in step.parts.items():
        made.add_column(f"{phase}\n{sum(spent.values()) / 1000:.1f} s", justify="right")
    totals: Counter[str] = Counter()
    for spent in step.parts.values():
        totals.update({name: round(ms) for name, ms in spent.items()})
    for name, _ in totals.most_common():
        shares = (100 * spent.get(name, 0.0) / max(sum(spent.values()), 1e-9) for spent in step.parts.values())
        made.add_row(name, *(f"{share:.0f}" if share >= 0.5 else "" for share in shares))
    return made


def document(steps: Sequence[Figures]) -> str:
    """Everything as JSON."""
    return json.dumps(
        {
            "machine": platform.platform(),
            "largest_all_at_once": largest(steps, at_once=True),
            "largest_in_waves": largest(steps, at_once=False),
            "steps": [attrs.asdict(step) for step in steps],
        },
        indent=2,
    )
