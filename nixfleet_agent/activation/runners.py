"""Start a job where the agent's own end cannot reach it, tell whether it still runs, and end it.

A switch may replace the agent in the middle of it, and systemd kills the whole control group of a unit that it stops;
so under systemd the job is a transient unit of its own, elsewhere a session of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from nixfleet_agent.activation.jobs import Job
from state_machine.values import SwitchMethod


class Runner(Protocol):
    """A way to run a job's wrapper. All may be called by a process that did not launch the job."""

    @property
    def method(self) -> SwitchMethod:
        """What reports call this way."""
        ...

    @property
    def look_every_s(self) -> float:
        """How often `runs` may be asked, in seconds: what a look costs."""
        ...

    async def launch(self, job: Job, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the wrapper of `job`, with that environment and no other. Raises `LaunchError`; then nothing runs."""
        ...

    async def runs(self, job: Job) -> bool:
        """The wrapper or something it started is there. When that cannot be known: True, deadlines end the wait."""
        ...

    async def end(self, job: Job) -> str:
        """Kill all of the job. Returns what the service manager said of it just before."""
        ...

    async def settle(self, job: Job) -> None:
        """After the switch's exit: leave nothing of it in the way of the next one."""
        ...

    async def busy_with(self) -> str | None:
        """Another switch that occupies this runner, named; None when it is free."""
        ...
