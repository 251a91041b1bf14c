"""A host of the first generation, at the level of its protocol: it asks, it switches nothing, it says what it is told.

old = OldAgent.of(cp, "web1")
old.cycle()                    # ask, and do what is asked, as that generation's agent does
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import attrs
import httpx

from control_plane.clock import wall_now
from state_machine.values import Closure, HostName, ProbeStatus, WallMs
from tests.cplab import OLD, Running
from wire.codec import decode, encode
from wire.legacy import (
    DESIRED_GENERATION,
    REPORT,
    DesiredGeneration,
    HealthCheckResult,
    HealthReport,
    Report,
    closure_of,
    store_path,
)

POLL_S: Final = 0.05


@attrs.define(kw_only=True)
class OldAgent:
    """What one host says. `sick` are systems that its one check fails on."""

    host: HostName
    http: httpx.Client
    running: Closure = OLD
    sick: set[Closure] = attrs.field(factory=set)
    tags: tuple[str, ...] = ()
    switches: list[Closure] = attrs.field(factory=list)
    clock: int = attrs.field(factory=wall_now)

    @classmethod
    def of(cls, cp: Running, host: str, **state: Any) -> "OldAgent":
        """A host of this control plane's lab. That generation knows no header of ours."""
        return cls(host=HostName(host), http=cp.client(host, headers={}), **state)

    def ask(self) -> httpx.Response:
        """Ask for the desired generation."""
        return self.http.get(DESIRED_GENERATION.format(machine_id=self.host))

    def desired(self) -> DesiredGeneration | None:
        """What to run; None for nothing."""
        answer = self.ask()
        assert answer.status_code in (200, 404), answer.text
        return decode(DesiredGeneration, answer.json()) if answer.status_code == 200 else None

    def wanted(self) -> Closure | None:
        """The closure to run."""
        desired = self.desired()
        return None if desired is None else closure_of(desired.hash)

    def message(self, message: str, *, success: bool = True, healthy: bool | None = None, **members: Any) -> Report:
        """A report on what runs; `healthy` None leaves the health report out."""
        self.clock = max(self.clock + 1, wall_now())
        return Report(
            **{
                "machine_id": self.host,
                "current_generation": store_path(self.running),
                "success": success,
                "message": message,
                "timestamp": WallMs(self.clock),
                "tags": self.tags,
                "health": None if healthy is None else health({"web": healthy}, WallMs(self.clock)),
                "agent_version": "0.1.0",
                "uptime_seconds": 60,
                **members,
            }
        )

    def post(self, report: Report) -> httpx.Response:
        """Send a report."""
        return self.http.post(REPORT.format(machine_id=self.host), json=encode(report))

    def say(self, message: str, **members: Any) -> None:
        """Send a report, which must be taken."""
        answer = self.post(self.message(message, **members))
        assert answer.status_code == 200, answer.text

    def is_well(self) -> bool:
        """What its check says now."""
        return self.running not in self.sick

    def cycle(self) -> Closure | None:
        """One deploy cycle (protocol section 9.2). What was asked for."""
        wanted = self.wanted()
        if wanted is None or wanted == self.running:
            self.say("up-to-date", healthy=self.is_well(), success=self.is_well())
            return wanted
        self.say("applying")
        before, self.running = self.running, wanted
        self.switches.append(wanted)
        if self.is_well():
            self.say("deployed", healthy=True)
        else:
            self.running = before
            self.say("rolled back: health checks failed: web", success=False, healthy=True)
        return wanted


def health(results: Mapping[str, bool], at: WallMs) -> HealthReport:
    """Checks by name, and whether each passes."""
    told = tuple(
        HealthCheckResult(status=ProbeStatus.PASS if passes else ProbeStatus.FAIL, check_name=name, duration_ms=3)
        for name, passes in results.items()
    )
    return HealthReport(results=told, all_passed=all(results.values()), timestamp=at)


@contextmanager
def at_work(hosts: Iterable[Any]) -> Iterator[list[BaseException]]:
    """Each of `hosts`, a function, is called every `POLL_S` in a thread of its own until the block ends.

    What they raised is in the list, which is whole when the block has ended.
    """
    over, raised = threading.Event(), list[BaseException]()

    def work(step: Any) -> None:
        try:
            while not over.wait(POLL_S):
                step()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=work, args=(step,)) for step in hosts]
    for thread in threads:
        thread.start()
    try:
        yield raised
    finally:
        over.set()
        for thread in threads:
            thread.join()
