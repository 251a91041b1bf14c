"""The programs that are measured, as processes: agents on hosts in directories, and the bare program beside them."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from tests.agentlab import Agent, AgentFleet

T = TypeVar("T")

STEADY: Final = {"poll_interval": 60, "heartbeat_interval": 60, "sustained_failure": 60}
"""The agent's defaults, in place of the haste of the tests."""


def steady_agent(fleet: AgentFleet, name: str, url: str, **options: Any) -> Agent:
    """A host of the fleet with an agent that is in no hurry; see `Agent`."""
    return fleet.agent(name, url, **{"checks": {}, **STEADY, **options})


def bare_words(fleet: AgentFleet, name: str, url: str) -> Sequence[str]:
    """The bare program's command line, with the certificate of a host."""
    files = (fleet.path("ca.pem"), fleet.path(f"{name}.pem"), fleet.path(f"{name}-key.pem"))
    return [sys.executable, "-m", "benchmarks.bare", url, *map(str, files)]


@contextmanager
def process(words: Sequence[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """A silent child, killed at the end."""
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


class TooSlowError(Exception):
    """A program did not do what it was to be measured at."""


def wait_for(what: str, ready: Callable[[], T], timeout_s: float = 60.0, pause_s: float = 0.02) -> T:
    """The first true value of `ready`.

    Raises:
        TooSlowError: there was none in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := ready()):
        if time.monotonic() > deadline:
            raise TooSlowError(f"waited {timeout_s:g} s for {what}")
        time.sleep(pause_s)
    return value
