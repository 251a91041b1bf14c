"""What an agent with nothing to do costs, beside a program that only holds a long-poll, at the same time.

Each has its own mTLS long-poll to the same real control plane. The agents send a heartbeat and look at the signed
intent each minute and run three probes (http, tcp, exec) each 30 seconds; one of them serves metrics, too.
"""

import http.server
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from benchmarks import costs
from benchmarks.processes import bare_words, process, steady_agent, wait_for
from benchmarks.running import Run
from benchmarks.table import Aim, Beside, Row, below, below_times
from tests.agentlab import AgentFleet

PLAIN: Final = "agent"
WITH_METRICS: Final = "agent with metrics"
BARE: Final = "bare program"
HOSTS: Final[Mapping[str, str]] = {PLAIN: "plain", WITH_METRICS: "metered", BARE: "bare"}
HOUR_S: Final = 3600
SETTLE_S: Final = 12
"""Worker threads of the start end after ten seconds without work."""

_MB_AIMS: Final[Mapping[str, tuple[Aim, ...]]] = {PLAIN: (below(30), below_times(1.4)), WITH_METRICS: (below(40),)}


def measure(run: Run) -> Iterator[Row]:
    """Memory and CPU time of each; nothing on a system that does not account for them."""
    if not costs.available():
        run.say(costs.MISSING)
        return
    fleet = AgentFleet(run.directory("idle"), hosts=tuple(HOSTS.values()))
    running = fleet.system()
    fleet.publish(fleet.commit(), targets={HOSTS[name]: running for name in (PLAIN, WITH_METRICS)})
    with ExitStack() as stack:
        port = stack.enter_context(_something_to_probe())
        cp = stack.enter_context(fleet.start())
        agents = {}
        for name, metrics in ((PLAIN, {}), (WITH_METRICS, {"metrics_port": 0})):
            agent = steady_agent(fleet, HOSTS[name], cp.url, running=running, checks=_three_probes(port), **metrics)
            agents[name] = stack.enter_context(agent.running())
        bare = stack.enter_context(process(bare_words(fleet, HOSTS[BARE], cp.url)))
        run.say("waiting until all are idle")
        for agent in agents.values():
            agent.until_status("convergence", _converged)
        wait_for("the long-polls", lambda: cp.metric("nixfleet_cp_long_polls") == len(HOSTS))
        time.sleep(SETTLE_S)
        pids = {**{name: agent.pid for name, agent in agents.items()}, BARE: bare.pid}
        yield from _rows(run, pids)


def _rows(run: Run, pids: Mapping[str, int]) -> Iterator[Row]:
    window_s = run.of(60, 15)
    began, before = time.monotonic(), {name: costs.cpu_s(pid) for name, pid in pids.items()}
    for left in range(window_s, 0, -5):
        run.say(f"watching them idle, {left} s to go")
        time.sleep(min(5, left))
    elapsed = time.monotonic() - began
    cpu = {name: (costs.cpu_s(pid) - before[name]) * HOUR_S / elapsed for name, pid in pids.items()}
    memory = {name: costs.pss_mb(pid) for name, pid in pids.items()}
    for name in (PLAIN, WITH_METRICS):
        beside = Beside(what=BARE, measured=memory[BARE])
        yield Row(name=f"idle {name}, PSS", measured=memory[name], unit="MB", beside=beside, aims=_MB_AIMS[name])
    note = f"scaled from {elapsed:.0f} s, the programs that probes run included"
    for name in (PLAIN, WITH_METRICS):
        beside, aims = Beside(what=BARE, measured=cpu[BARE]), (below(2),) if name == PLAIN else ()
        row = Row(name=f"idle {name}, CPU", measured=cpu[name], unit="s/hour", beside=beside, aims=aims, note=note)
        yield row


def _three_probes(port: int) -> dict[str, Any]:
    often = {"intervalSeconds": 30, "timeoutSecs": 5}
    return {
        "web": {"kind": "http", "url": f"http://127.0.0.1:{port}/", **often},
        "port": {"kind": "tcp", "host": "127.0.0.1", "port": port, **often},
        "program": {"kind": "exec", "command": ["true"], **often},
    }


def _converged(status: Mapping[str, Any]) -> bool:
    rollout = status["rollout"]
    return rollout is not None and rollout["phase"] == "Converged" and not status["outbox"]


class _Fine(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _something_to_probe() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Fine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
