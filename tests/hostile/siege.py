"""One real agent that is lied to again and again, and what must hold throughout each lie and after it.

    with Siege.laid(tmp_path) as siege:
        with siege.withstands():
            siege.refuses("bad-signature", siege.world.release_signed_by(somebody))

`withstands` is the promise: within the block nothing is switched, resident memory never rises by more than `LIMIT`, no
worker crashes, heartbeats are sent and health checks are run; after it, with the lies taken back, an honest release
goes all the way. The same process takes one lie after another, as an agent would that is attacked for days.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import attrs

from control_plane.clock import wall_now
from evidence.host_key import HostKey
from state_machine.values import Closure, WallMs
from tests.agentlab import Agent, AgentFleet
from tests.liar import Behaviour, Liar, status

MIB: Final = 1024 * 1024
LIMIT: Final = 32 * MIB
HOST: Final = "web1"
SPOILED: Final = {
    "a member twice": b'{"hostname":"web2","channel":"stable",',
    "nesting": b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b",",
    "infinity by exponent": b'{"x":1e400,',
    "NaN": b'{"x":NaN,',
    "half a pair": b'{"x":"\\ud800",',
    "an integer that JSON readers round": b'{"x":9007199254740993,',
    "a mark at its beginning": b"\xef\xbb\xbf{",
}
"""How a JSON object may begin that no two readers understand alike."""
Order = tuple[str, str]
"""The rollout and the closure that the control plane routes."""


def resident(pid: int, member: str) -> int:
    """A figure of `/proc/<pid>/status` in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{member}:"))


@contextmanager
def within_memory(pid: int, limit: int = LIMIT) -> Iterator[None]:
    """The process never has more than `limit` bytes above what it has now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    idle = resident(pid, "VmRSS")
    yield
    most = resident(pid, "VmHWM")
    assert most <= idle + limit, f"{most / MIB:.1f} MiB at most, {idle / MIB:.1f} MiB when idle"


@attrs.define(kw_only=True)
class Siege:
    """The agent, and the control plane that lies to it."""

    fleet: AgentFleet
    liar: Liar
    agent: Agent
    good: Closure
    """A target nobody has been given yet. Lies name it."""
    ran: Path
    """Every run of the health check leaves a byte here."""

    @classmethod
    @contextmanager
    def laid(cls, root: Path, *, signed_at: WallMs | None = None, **flags: Any) -> Iterator["Siege"]:
        """An agent that has converged on its first release and has nothing to do. `signed_at`: when that was signed."""
        fleet = AgentFleet(root, hosts=(HOST, "web2"))
        with Liar(fleet) as liar:
            agent = fleet.agent(HOST, liar.url, running=fleet.system(), metrics_port=0, **flags)
            siege = cls(fleet=fleet, liar=liar, agent=agent, good=fleet.system(), ran=agent.directory / "ran")
            check = agent.health_check()
            agent.write_checks({"service": {**check, "command": f"printf . >> {siege.ran}; {check['command']}"}})
            with agent.running():
                siege.recovers(signed_at=signed_at)
                agent.until_reached("heartbeat")
                assert agent.metric("nixfleet_agent_held") == 0  # the first scrape costs memory that is kept
                yield siege
            assert "a worker crashed" not in agent.log_text()
            assert "Traceback" not in agent.log_text()

    # What must hold

    @contextmanager
    def withstands(self) -> Iterator[None]:
        """Throughout the block; and an honest release goes through after it."""
        switches, beats, runs = self.agent.switches(), self.liar.count("heartbeat"), self._runs()
        with within_memory(self.agent.pid):
            yield
            self.agent.until("heartbeats meanwhile", lambda: self.liar.count("heartbeat") > beats + 1)
            self.agent.until("health checks meanwhile", lambda: self._runs() > runs)
        assert self.agent.switches() == switches
        self.recovers()

    def _runs(self) -> int:
        return self.ran.stat().st_size if self.ran.exists() else 0

    def recovers(self, **changes: Any) -> None:
        """The lies stop, and an honest release goes through."""
        self.liar.says.clear()
        switches, target = self.agent.switches(), self.fleet.system()
        rollout = self.fleet.release(None, {HOST: target}, **changes)
        self.agent.poke()
        # An agent that has refused much looks at no dispatch whose manifest its own polls have not brought.
        self.agent.until_status("the manifest", lambda said: (said["intent"] or {}).get("rollout") == rollout)
        self.liar.dispatch(HOST, rollout, target)
        self.agent.until_settled(rollout, "Converged")
        assert self.agent.switches() == [*switches, target]

    def refuses(self, slug: str, order: Order) -> None:
        """The order is refused under this slug: on the wire, in the journal, the metrics, the log and the status."""
        rollout, target = order
        before = self.refusals(slug)
        self.liar.dispatch(HOST, rollout, target)
        self.liar.until(f"the rejection of {rollout}", lambda: "DispatchReject" in self.liar.told(rollout))
        assert [fact["reason"] for fact in self.liar.facts[rollout]] == [slug, slug]
        assert self.liar.told(rollout) == ["TargetRefused", "DispatchReject"]
        assert self.agent.fact_kinds(rollout) == ["TargetRefused", "DispatchReject"]
        self.assert_on_record(slug, rollout)
        assert self.refusals(slug) > before
        self.agent.until_logged("refused", reason=slug, rollout=rollout)

    def refuses_answer(self, slug: str, duty: str, name: str, lie: Behaviour) -> None:
        """An endpoint is lied about; the exchange fails, and is counted under this slug."""
        asked, failed, before = self.liar.count(name), self._failures(duty), self.refusals(slug)
        self.liar.says = {"dispatch": status(204), name: lie}

        def heard() -> bool:
            self.agent.poke()  # more than once: it may come while the one before is still under way
            return self.liar.count(name) > asked

        self.agent.until(f"a request of {name}", heard)
        self.agent.until(f"a failure of {duty}", lambda: self._failures(duty) > failed)
        assert self.refusals(slug) > before

    def _failures(self, duty: str) -> int:
        failures: dict[str, int] = self.agent.until_ready()["contact"]["failures"]
        return failures.get(duty, 0)

    def assert_on_record(self, slug: str, rollout: str = "") -> None:
        """The journal, read again from its beginning, amounts to this refusal, and the status says so."""
        key = f"{slug} {rollout}".strip()
        assert key in self.agent.known().refusals
        assert key in {note["what"] for note in self.agent.until_ready()["refusals"]}

    def refusals(self, slug: str) -> float:
        """How often the metrics say that something was refused for this reason."""
        return self.agent.metric("nixfleet_agent_refusals_total", reason=slug) or 0

    def until_counted(self, slug: str, more_than: float) -> None:
        self.agent.until(f"a refusal {slug}", lambda: self.refusals(slug) > more_than)

    # Things to spoil

    def release(self, **changes: Any) -> str:
        """A release of `good`, out but not routed."""
        return self.fleet.release(None, {HOST: self.good}, **changes)

    def ago(self, seconds: float) -> WallMs:
        return WallMs(wall_now() - int(seconds * 1000))

    def path(self, rollout: str, *, sig: bool = False) -> Path:
        return self.fleet.artifacts / "rollouts" / (f"{rollout}.json" + (".sig" if sig else ""))

    def resign(self, rollout: str, change: Callable[[Any], None], *, key: HostKey | None = None) -> None:
        """The manifest with a change, signed by the real key or another."""
        document = json.loads(self.path(rollout).read_bytes())
        change(document)
        self.fleet.sign(f"rollouts/{rollout}.json", document, key=key)

    def write(self, rollout: str, data: bytes) -> None:
        """These very bytes as the manifest, signed by the real key."""
        self.path(rollout).write_bytes(data)
        self.path(rollout, sig=True).write_bytes(self.fleet.ci.sign(data))

    def kept(self) -> dict[Path, bytes]:
        """Everything that is out, to be put out again later."""
        return {path: path.read_bytes() for path in self.fleet.artifacts.rglob("*.json*")}

    def until_fetched(self, rollout: str) -> None:
        self.liar.until("it to be fetched", lambda: any(rollout in s.target for s in self.liar.requests("rollout-sig")))
