"""The bodies of the first generation's protocol, `/api/v1` (protocol section 9.1), all of them in snake_case.

A class says what a well-formed body is, never whether to believe it: a generation is whatever text the other side
wrote. `closure_of` makes a closure of one, or says that it is none; `store_path` is the way back.
"""

from typing import Final

import attrs

from state_machine.values import Closure, ProbeStatus, WallMs, is_closure
from wire.presence import WRITE_NULL

DESIRED_GENERATION: Final = "/api/v1/machines/{machine_id}/desired-generation"
REPORT: Final = "/api/v1/machines/{machine_id}/report"

STORE: Final = "/nix/store/"
"""This generation writes full store paths of the one store it knows."""

GENERATION_MAX: Final = 512
MESSAGE_MAX: Final = 4096
"""Characters; a server answers 400 to more."""

UP_TO_DATE: Final = "up-to-date"
HEALTH_CHECK: Final = "health-check"
APPLYING: Final = "applying"
DEPLOYED: Final = "deployed"
DRY_RUN: Final = "dry-run: would apply"
ROLLED_BACK: Final = "rolled back: "
"""What reports say in `message` (section 9.2); the last is followed by a reason."""
REBOOT: Final = "waits for a reboot: "
"""What our own agent says besides, followed by what cannot be swapped live."""


@attrs.frozen(kw_only=True)
class DesiredGeneration:
    """What a machine is to run. `poll_hint`: seconds until it should ask again, when that is sooner than usual."""

    hash: str
    """A full store path."""
    cache_url: str | None = attrs.field(default=None, metadata=WRITE_NULL)
    poll_hint: int | None = attrs.field(default=None, metadata=WRITE_NULL)


@attrs.frozen(kw_only=True)
class HealthCheckResult:
    """One check of a health report. `status` is pass or fail; `message` says why it failed."""

    status: ProbeStatus
    check_name: str
    duration_ms: int = 0
    message: str | None = None


@attrs.frozen(kw_only=True)
class HealthReport:
    """Every check of a machine, run once."""

    results: tuple[HealthCheckResult, ...]
    all_passed: bool
    timestamp: WallMs


@attrs.frozen(kw_only=True)
class Report:
    """What a machine says of itself. Earlier agents of this generation leave out what follows `timestamp`."""

    machine_id: str
    current_generation: str
    """A full store path; empty when it could not be told."""
    success: bool
    message: str
    timestamp: WallMs
    tags: tuple[str, ...] = ()
    health: HealthReport | None = attrs.field(default=None, metadata=WRITE_NULL)
    agent_version: str = ""
    uptime_seconds: int = 0


def closure_of(generation: str) -> Closure | None:
    """The closure that a full store path names; None for any other text."""
    name = generation.removeprefix(STORE)
    return Closure(name) if name != generation and is_closure(name) else None


def store_path(closure: Closure) -> str:
    """The full store path of a closure."""
    return STORE + closure


SNAKE_CASE: Final[tuple[type, ...]] = (DesiredGeneration, HealthCheckResult, HealthReport, Report)
"""Bodies whose own members are written in snake_case (section 1.4)."""
