"""From a queued dispatch to a switch that has started: a real control plane, real agents, real signed systems.

The clock starts with the control plane's log of `DispatchQueued` (a millisecond's precision) and stops when the
system's own switch program runs. In between lie the answer to the long-poll, fetching and proving the manifest, the
store, the journal's commits and the start of the switch. Hosts go one after another, each in a wave of its own.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.processes import steady_agent, wait_for
from benchmarks.running import Run, percentile
from benchmarks.table import Row, below
from state_machine.values import Closure, HostName, RolloutId
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
    with ExitStack() as stack:
        cp = stack.enter_context(_control_plane(fleet, stack))
        agents = [_agent(stack, fleet, name, cp) for name in HOSTS]
        taken: list[float] = []
        for number in range(rollouts):
            run.say(f"rollout {number + 1} of {rollouts}")
            # An agent asks anew a second after it asked last: it is to be waiting when the dispatch comes.
            wait_for("the long-polls", lambda: cp.metric("nixfleet_cp_long_polls") == len(HOSTS))
            taken.extend(_rollout(fleet, cp, agents))
    note = f"{len(taken)} switches on {len(HOSTS)} hosts, one at a time"
    for percent, aims in ((50, ()), (99, (below(100),))):
        name = f"dispatch queued to switch started, p{percent}"
        yield Row(name=name, measured=percentile(taken, percent), unit="ms", aims=aims, note=note)


def _control_plane(fleet: AgentFleet, stack: ExitStack) -> "contextlib.AbstractContextManager[Running]":
    first = fleet.system()
    fleet.publish(fleet.commit(), targets={HostName(name): first for name in HOSTS})
    stack.callback(lambda: None)
    return fleet.start()


def _agent(stack: ExitStack, fleet: AgentFleet, name: str, cp: Running) -> Agent:
    first = next(iter(_targets(fleet).values()))
    return stack.enter_context(steady_agent(fleet, name, cp.url, running=first).running())
