"""A control plane with 500 agents that wait: what they cost it, how fast it reaches them, how fast it takes facts.

The control plane is the real process; the agents are simulated in this one, over TLS with a certificate each.
"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Final
from urllib.parse import urlsplit

import attrs
import trio

from benchmarks import costs
from benchmarks.clients import SimulatedAgent, join_all
from benchmarks.running import Run, percentile
from benchmarks.table import Row
from state_machine.facts import Fact
from state_machine.values import HostName, ProbeStatus, RolloutId, WallMs
from tests.cplab import OLD, Lab, Running, probed

AGENTS: Final = 500
ONE_BY_ONE: Final = 100
"""So many hosts are in a wave of their own; all the others are in one wave at the end."""
PATIENCE_S: Final = 90.0


@attrs.define(kw_only=True)
class Figures:
    """What was measured so far."""

    agents: int
    kb_each: float = float("nan")
    single_ms: Sequence[float] = ()
    burst_ms: Sequence[float] = ()
    facts_per_s: float = float("nan")
    cpu_ms_a_fact: float = float("nan")


def measure(run: Run) -> Iterator[Row]:
    """Memory for each agent, latency of dispatches one by one and all at once, facts a second."""
    agents = run.of(AGENTS, AGENTS // 10)
    run.say(f"making {agents} hosts")
    lab = Lab(run.directory("serving"), hosts=[f"host{number:03}" for number in range(agents)])
    lab.publish("000001", targets={})
    with lab.start() as cp:
        figures = Figures(agents=agents)
        trio.run(_all, run, lab, cp, figures)
    yield from _rows(figures)


async def _all(run: Run, lab: Lab, cp: Running, figures: Figures) -> None:
    before_mb = costs.pss_mb(cp.process.pid) if costs.available() else float("nan")
    run.say("connecting them")
    agents = await join_all(lab, urlsplit(cp.url).port or 443)
    async with trio.open_nursery() as nursery:
        for agent in agents.values():
            nursery.start_soon(agent.live, OLD)
        await _until(lambda: cp.metric("nixfleet_cp_long_polls") == len(agents))
        if costs.available():
            figures.kb_each = (costs.pss_mb(cp.process.pid) - before_mb) * 1000 / len(agents)
        run.say("a rollout, host by host and then all at once")
        await _in_waves(lab, cp, agents, figures)
        for agent in agents.values():
            agent.converges = False
        soaking = await _roll_out(lab, cp, agents, "000003", [list(agents)])
        nursery.cancel_scope.cancel()
    run.say("facts, from all at once")
    cpu_before = costs.cpu_s(cp.process.pid) if costs.available() else float("nan")
    seconds = run.of(10, 2)
    taken = await _flood(agents, soaking, seconds)
    figures.facts_per_s = taken / seconds
    if costs.available():
        figures.cpu_ms_a_fact = (costs.cpu_s(cp.process.pid) - cpu_before) * 1000 / max(taken, 1)


async def _in_waves(lab: Lab, cp: Running, agents: Mapping[HostName, SimulatedAgent], figures: Figures) -> None:
    hosts = list(agents)
    alone = hosts[: min(ONE_BY_ONE, len(hosts) // 2)]
    rest = hosts[len(alone) :]
    rollout_id = await _roll_out(lab, cp, agents, "000002", [*([host] for host in alone), rest])
    queued = _queued(lab, rollout_id)
    latency = {host: agents[host].dispatched[rollout_id] * 1000 - queued[host] for host in hosts}
    figures.single_ms = [latency[host] for host in alone]
    figures.burst_ms = [latency[host] for host in rest]


async def _roll_out(
    lab: Lab,
    cp: Running,
    agents: Mapping[HostName, SimulatedAgent],
    commit: str,
    waves: Sequence[Sequence[HostName]],
) -> RolloutId:
    """Publish, and wait until every host has told its story."""
    published = await trio.to_thread.run_sync(lambda: lab.publish(commit, waves=waves))
    problems = await trio.to_thread.run_sync(cp.refresh)
    assert problems == {}, problems
    await _until(lambda: all(published.rollout_id in agent.told for agent in agents.values()))
    return published.rollout_id


async def _flood(agents: Mapping[HostName, SimulatedAgent], rollout_id: RolloutId, seconds: int) -> int:
    """Everybody sends results of a probe, each when the one before was taken; how many were taken."""
    taken = 0
    facts = _results()

    async def send(agent: SimulatedAgent) -> None:
        nonlocal taken
        while True:
            for body in agent.written(rollout_id, facts):
                await agent.bring(body)
                taken += 1

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for agent in agents.values():
                nursery.start_soon(send, agent)
    return taken


def _results() -> list[Fact]:
    *_, result = probed(ProbeStatus.PASS, WallMs(1_780_000_000_000))
    return [result]


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


def _queued(lab: Lab, rollout_id: RolloutId) -> dict[str, int]:
    query = "SELECT hostname, min(at_ms) FROM log WHERE kind = 'DispatchQueued' AND rollout_id = ? GROUP BY 1"
    with closing(sqlite3.connect(f"file:{lab.database}?mode=ro", uri=True)) as db:
        return dict(db.execute(query, (rollout_id,)))


async def _until(holds: Callable[[], object]) -> None:
    """Look in a thread, for the event loop has the agents to play."""
    with trio.fail_after(PATIENCE_S):
        while not await trio.to_thread.run_sync(holds):  # noqa: ASYNC110  # another process has no event to wait for
            await trio.sleep(0.2)
