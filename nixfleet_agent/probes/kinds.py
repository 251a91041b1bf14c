"""The probes there are: one frozen class per kind, together the closed union `Probe`.

A probe says what to measure, how often and for how long; it never says what a result means. Decisions see only its
`ProbeSpec` (name, kind, mode). Durations are seconds.
"""

import enum
from typing import ClassVar, Final

import attrs

from evidence.selection import Selection
from state_machine.values import ProbeMode, ProbeSpec

DEFAULT_INTERVAL_S: Final = 30.0
DEFAULT_TIMEOUT_S: Final = 10.0
FAILED_UNITS_NAME: Final = "systemd-failed-units"
"""The policy's `healthGate.systemdFailedUnits` is reported under this name; no declared check may take it."""

CONFIGURATION_NAME: Final = "health-checks-file"
"""What is reported under this name is the health checks file itself; no declared check may take it."""

EVIDENCE_PATH: Final = "/var/lib/nixfleet-compliance/evidence.json"


class ProbeKind(enum.StrEnum):
    """What a probe looks at. Values are the spelling of the health checks file and of the wire."""

    HTTP = "http"
    TCP = "tcp"
    EXEC = "exec"
    COMMAND = "command"
    SYSTEMD = "systemd"
    LAUNCHD = "launchd"
    EVIDENCE = "evidence"
    FAILED_UNITS = "systemd-failed-units"
    CONFIGURATION = "configuration"


@attrs.frozen(kw_only=True)
class _Probe:
    """What every probe has. `timeout_s` bounds one run, `run_once` means one run per (re)start."""

    name: str
    mode: ProbeMode = ProbeMode.ENFORCE
    interval_s: float = DEFAULT_INTERVAL_S
    timeout_s: float = DEFAULT_TIMEOUT_S
    run_once: bool = False


@attrs.frozen(kw_only=True)
class HttpProbe(_Probe):
    """Passes when a GET of `url` is answered in full, with exactly this status. Redirects are not followed."""

    kind: ClassVar = ProbeKind.HTTP
    url: str
    expect_status: int = 200


@attrs.frozen(kw_only=True)
class TcpProbe(_Probe):
    """Passes when a connection is accepted."""

    kind: ClassVar = ProbeKind.TCP
    port: int
    host: str = "127.0.0.1"


@attrs.frozen(kw_only=True)
class ExecProbe(_Probe):
    """Passes when the program ends with status 0. No shell is involved."""

    kind: ClassVar = ProbeKind.EXEC
    argv: tuple[str, ...]


@attrs.frozen(kw_only=True)
class CommandProbe(_Probe):
    """Passes when `/bin/sh -c <command>` ends with status 0."""

    kind: ClassVar = ProbeKind.COMMAND
    command: str


@attrs.frozen(kw_only=True)
class SystemdProbe(_Probe):
    """Passes when systemd calls every one of the units active."""

    kind: ClassVar = ProbeKind.SYSTEMD
    units: tuple[str, ...]


@attrs.frozen(kw_only=True)
class LaunchdProbe(_Probe):
    """Passes when launchd has every one of the labels loaded and running."""

    kind: ClassVar = ProbeKind.LAUNCHD
    labels: tuple[str, ...]


@attrs.frozen(kw_only=True)
class EvidenceProbe(_Probe):
    """Passes when signed compliance evidence shows that the selected controls are met."""

    kind: ClassVar = ProbeKind.EVIDENCE
    selection: Selection
    path: str = EVIDENCE_PATH


@attrs.frozen(kw_only=True)
class FailedUnitsProbe(_Probe):
    """Passes while at most `max` systemd units are failed. Made from the rollout's policy, never declared by a host."""

    kind: ClassVar = ProbeKind.FAILED_UNITS
    name: str = FAILED_UNITS_NAME
    max: int


@attrs.frozen(kw_only=True)
class ConfigurationProbe(_Probe):
    """Never passes: the health checks file cannot be used. Stands in for what it should have declared.

    A new generation may bring a broken file. An agent that would not start with it could not take that generation
    back, so it starts, and this is what the policy judges.
    """

    kind: ClassVar = ProbeKind.CONFIGURATION
    name: str = CONFIGURATION_NAME
    problem: str


Probe = (
    HttpProbe
    | TcpProbe
    | ExecProbe
    | CommandProbe
    | SystemdProbe
    | LaunchdProbe
    | EvidenceProbe
    | FailedUnitsProbe
    | ConfigurationProbe
)


def spec(probe: Probe) -> ProbeSpec:
    """What decisions and facts need to know of a probe."""
    return ProbeSpec(name=probe.name, kind=probe.kind.value, mode=probe.mode)
