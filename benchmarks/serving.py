"""A control plane with 500 agents that wait: what they cost it, how fast it reaches them, how fast it takes facts.

The control plane is the real process; the agents are those of `tests.load`, over TLS with a certificate each.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from benchmarks import costs
from benchmarks.running import Run, percentile
from benchmarks.table import Row
from tests.load.stage import Stage, allow_descriptors, company
from tests.load.step import ABREAST, BURST, WAVES, Plan, Step

AGENTS: Final = 500
ONE_BY_ONE: Final = 100
"""So many hosts are in a wave of their own; all the others are in one wave at the end."""


@attrs.frozen(kw_only=True)
class Figures:
    """What was measured."""

    agents: int
    kb_each: float
    single_ms: Sequence[float]
    burst_ms: Sequence[float]
    facts_per_s: float
    cpu_ms_a_fact: float


def measure(run: Run) -> Iterator[Row]:
    """Memory for each agent, latency of dispatches one by one and all at once, facts a second; nothing where a system
    does not account for them."""
    if not costs.available():
        run.say(costs.MISSING)
        return
    agents = run.of(AGENTS, AGENTS // 10)
    allow_descriptors(agents)
    run.say(f"making {agents} hosts")
    stage = Stage.build(run.directory("serving") / "stage", agents)
    yield from _rows(_measured(run, stage))


def _measured(run: Run, stage: Stage) -> Figures:
    seconds = float(run.of(10, 2))
    plan = Plan(
        agents=len(stage.hosts), seconds=seconds, per_second=0, crowds=1, period_s=60, fetches=False, watched=False
    )
    alone = stage.hosts[: min(ONE_BY_ONE, len(stage.hosts) // 2)]
    rest = stage.hosts[len(alone) :]
    with (
        stage.control_plane(plan.agents, watched=False) as running,
        company(stage.lab, running, plan.crowds, period_s=plan.period_s, fetches=plan.fetches) as crowds,
    ):
        step = Step(stage, plan, running, crowds, run.say)
        before_mb = costs.pss_mb(running.process.pid)
        step.connect()
        kb_each = (costs.pss_mb(running.process.pid) - before_mb) * 1000 / plan.agents
        step.roll_out(WAVES, [*([host] for host in alone), rest])
        step.roll_out(BURST, [stage.hosts], converges=False)
        facts_per_s, cpu, account = step.flood(abreast=ABREAST)
        times_s = step.times_s(WAVES, account)
    return Figures(
        agents=plan.agents,
        kb_each=kb_each,
        single_ms=_ms(times_s[host] for host in alone),
        burst_ms=_ms(times_s[host] for host in rest),
        facts_per_s=facts_per_s,
        cpu_ms_a_fact=cpu * 1000 / facts_per_s,
    )


def _ms(times_s: Iterator[float]) -> Sequence[float]:
    return [each * 1000 for each in times_s]


def _rows(figures: Figures) -> Iterator[Row]:
    with_all = f"control plane, {figures.agents} agents"
    yield Row(name=f"{with_all}: memory each", measured=figures.kb_each, unit="KB", note="PSS, two connections each")
    for percent in (50, 99):
        name, note = f"{with_all}: dispatch, p{percent}", f"{len(figures.single_ms)} hosts one by one"
        yield Row(name=name, measured=percentile(figures.single_ms, percent), unit="ms", note=note)
    for percent in (50, 99):
        size = len(figures.burst_ms)
        name, note = (
            f"{with_all}: {size} dispatches at once, p{percent}",
            "every host answers with seven facts meanwhile",
        )
        yield Row(name=name, measured=percentile(figures.burst_ms, percent), unit="ms", note=note)
    name, note = f"{with_all}: facts taken", "signed, verified, folded, on the disk before the answer"
    yield Row(name=name, measured=figures.facts_per_s, unit="/s", note=note)
    yield Row(name=f"{with_all}: CPU for each fact", measured=figures.cpu_ms_a_fact, unit="ms")
