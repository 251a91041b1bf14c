"""From a queued dispatch to a switch that has started: a real control plane, real agents, real signed systems.

The clock starts with the control plane's log of `DispatchQueued` (a millisecond's precision) and stops when the
system's own switch program runs. In between lie the answer to the long-poll, fetching and proving the manifest, the
store, the journal's commits and the start of the switch. Hosts go one after another, each in a wave of its own.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from benchmarks.processes import steady_agent, wait_for
from benchmarks.running import Run, percentile
from benchmarks.table import Beside, Row, below
from state_machine.values import Closure, HostName
from tests.agentlab import Agent, AgentFleet
from tests.cplab import Running

HOSTS: Final = tuple(f"host{number}" for number in range(4))

SWITCH: Final = """\
#!/bin/sh
self=${0%/bin/switch-to-configuration}
link=$NIXFLEET_CURRENT_SYSTEM
[ "$1" = switch ] || exit 0
echo "${self##*/} $(date +%s%N)" >> "$link.began"
ln -sfn "$NIXFLEET_STORE/${self##*/}" "$link"
"""


def measure(run: Run) -> Iterator[Row]:
    """The median and the slowest of a hundred."""
    fleet = AgentFleet(run.directory("dispatching"), hosts=HOSTS)
    rollouts = run.of(30, 4)
    first = fleet.system()
    fleet.publish(fleet.commit(), targets=dict.fromkeys(fleet.hosts, first))
    with ExitStack() as stack:
        cp = stack.enter_context(fleet.start())
        agents = {}
        for host in fleet.hosts:
            agent = steady_agent(fleet, host, cp.url, running=first)
            agents[host] = stack.enter_context(agent.running())
        taken: list[float] = []
        synced: list[float] = []
        for number in range(rollouts):
            run.say(f"rollout {number + 1} of {rollouts}")
            _wait_until_idle(fleet, cp, agents)
            taken.extend(_rollout(fleet, cp, agents))
            synced.extend(_sync_ms(fleet.path("synced")) for _ in HOSTS)
    note = f"{len(taken)} switches on {len(HOSTS)} hosts, one host at a time"
    for percent, aims in ((50, ()), (99, (below(100),))):
        name, beside = f"dispatch queued to switch started, p{percent}", percentile(synced, percent)
        yield Row(
            name=name,
            measured=percentile(taken, percent),
            unit="ms",
            beside=Beside(what="one fsync", measured=beside),
            aims=aims,
            note=note,
        )


def _sync_ms(path: Path) -> float:
    """Milliseconds to bring a small file to the same disk. About a dozen such waits lie between queue and switch."""
    with path.open("wb") as file:
        file.write(b"x" * 512)
        file.flush()
        began = time.perf_counter()
        os.fsync(file.fileno())
        return (time.perf_counter() - began) * 1000


def _wait_until_idle(fleet: AgentFleet, cp: Running, agents: Mapping[HostName, Agent]) -> None:
    """An agent asks anew a second after it asked last: it is to be waiting when the dispatch comes."""

    def idle() -> bool:
        converged = all((said := agent.status()) and _is_converged(said) for agent in agents.values())
        return converged and cp.metric("nixfleet_cp_long_polls") == len(fleet.hosts)

    wait_for("idle agents", idle)


def _is_converged(status: Mapping[str, Any]) -> bool:
    rollout = status["rollout"]
    return rollout is not None and rollout["phase"] == "Converged" and not status["outbox"]


def _rollout(fleet: AgentFleet, cp: Running, agents: Mapping[HostName, Agent]) -> Iterator[float]:
    """Milliseconds for each host of one rollout."""
    target = fleet.systems.publish("good", files={"bin/switch-to-configuration": SWITCH})
    waves = [(name,) for name in agents]
    published = fleet.publish(fleet.commit(), targets=dict.fromkeys(agents, target), waves=waves)
    assert cp.refresh() == {}
    wait_for("the switches", lambda: all(_began(agent, target) for agent in agents.values()), pause_s=0.2)
    with contextlib.closing(sqlite3.connect(f"file:{fleet.database}?mode=ro", uri=True)) as db:
        query = "SELECT hostname, min(at_ms) FROM log WHERE kind = 'DispatchQueued' AND rollout_id = ? GROUP BY 1"
        queued: dict[str, int] = dict(db.execute(query, (published.rollout_id,)))
    for name, agent in agents.items():
        began = _began(agent, target)
        assert began is not None
        yield began - queued[name]


def _began(agent: Agent, target: Closure) -> float | None:
    """When the switch to the target began, in milliseconds since 1970, as its own program says."""
    notes = agent.host.note(".began")
    lines = notes.read_text().splitlines() if notes.exists() else []
    words = next((line.split() for line in lines if line.startswith(target)), None)
    return None if words is None or len(words) != 2 else int(words[1]) / 1e6
