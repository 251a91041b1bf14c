"""The health checks of a first-generation report as the probes of a mirror. Pure.

That generation knows no modes: its agent goes back when any check fails, so every check is an enforced probe here. A
report without a single check is one probe by itself, named `REPORTED`.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import attrs

from state_machine.facts import Fact, ProbeFailureFirst, ProbeObservedFirst, ProbeResult, ProbeTopologyDeclared
from state_machine.lifecycle import ProbeRecord
from state_machine.values import ProbeMode, ProbeSpec, ProbeStatus, WallMs
from wire.legacy import HEALTH_CHECK, Report

PROBE_KIND: Final = "legacy"
REPORTED: Final = "report"

CHECK_NAME_MAX: Final = 256
REASON_MAX: Final = 512


@attrs.frozen(kw_only=True)
class Check:
    """What one check says."""

    status: ProbeStatus
    why: str | None = None


def checks_of(report: Report) -> Mapping[str, Check]:
    """What every check says, by name. Of two with one name the worse counts."""
    checks: dict[str, Check] = {}
    health = report.health
    for result in health.results if health is not None else ():
        failed = result.status is not ProbeStatus.PASS
        if failed and health is not None and health.all_passed:
            continue  # one that the agent itself does not count
        name = result.check_name[:CHECK_NAME_MAX]
        if failed:
            checks[name] = Check(status=ProbeStatus.FAIL, why=(result.message or "it failed")[:REASON_MAX])
        else:
            checks.setdefault(name, Check(status=ProbeStatus.PASS))
    well = report.success and (health is None or health.all_passed)
    if not checks or (not well and not failing(checks)):
        checks[REPORTED] = Check(status=ProbeStatus.PASS) if well else _sick(report)
    return checks


def failing(checks: Mapping[str, Check]) -> tuple[str, ...]:
    """The names of those that do not pass."""
    return tuple(name for name, check in sorted(checks.items()) if check.status is not ProbeStatus.PASS)


def tells_nothing(report: Report) -> bool:
    """A sign of life between two health reports, or before the first. `deployed` alone says that all passed."""
    return report.success and report.health is None and report.message == HEALTH_CHECK


def names_none_of(known: Mapping[str, ProbeRecord], report: Report) -> bool:
    """A good report without health checks, which leaves what was said of them before as it is."""
    return report.success and report.health is None and bool(known) and REPORTED not in known


def probed(checks: Mapping[str, Check], known: Mapping[str, ProbeRecord], at: WallMs) -> Iterator[Fact]:
    """The checks as facts: declared when they are others than before, told when they change."""
    if checks.keys() != known.keys():
        known = {}
        specs = tuple(ProbeSpec(name=name, kind=PROBE_KIND, mode=ProbeMode.ENFORCE) for name in sorted(checks))
        yield ProbeTopologyDeclared(seq=0, probes=specs, declared_at=at)
    for name, check in sorted(checks.items()):
        yield from _told(name, check, known.get(name), at)


def _told(name: str, check: Check, before: ProbeRecord | None, at: WallMs) -> Iterator[Fact]:
    if before is None or before.observed_first_at is None:
        yield ProbeObservedFirst(seq=0, probe_name=name, mode=ProbeMode.ENFORCE, observed_at=at)
    elif before.status is check.status:
        return
    yield ProbeResult(
        seq=0,
        probe_name=name,
        mode=ProbeMode.ENFORCE,
        status=check.status,
        observed_at=at,
        failure_reason=check.why,
    )
    if check.status is ProbeStatus.FAIL:
        yield ProbeFailureFirst(seq=0, probe_name=name, mode=ProbeMode.ENFORCE, first_failed_at=at)


def _sick(report: Report) -> Check:
    return Check(status=ProbeStatus.FAIL, why=report.message[:REASON_MAX])
