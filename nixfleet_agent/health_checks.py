"""Read the configured health checks, or say everything that is wrong with them."""

import logging
import sys
from pathlib import Path
from typing import Final

from nixfleet_agent.config import LEGACY_HEALTH_CHECKS, Config
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.files import read_limited
from nixfleet_agent.probes.declaration import ComplianceGateMode, HealthChecksError, Platform, read_health_checks
from nixfleet_agent.probes.kinds import ConfigurationProbe, Probe
from state_machine.values import Source

FILE_LIMIT: Final = 1024 * 1024
NO_CHECK: Final = b'{"systemd": []}'
"""The oldest form of the file without a check in it, which stands for the platform's own."""
PLATFORM: Final[Platform] = "darwin" if sys.platform == "darwin" else "linux"
log = logging.getLogger(__name__)


def load_probes(config: Config) -> tuple[Probe, ...]:
    """The probes of this host. No file configured: none; a file that cannot be read is an error, never "no checks".

    A host of the first generation whose file is not there, or names no check, is checked as a whole.

    Raises:
        ConfigurationError: every problem in the file.
    """
    path = config.health_checks_config
    if path is None:
        return ()
    probes = _read(path, config)
    return probes if probes or config.source is not Source.LEGACY else read_health_checks(NO_CHECK, platform=PLATFORM)


def _read(path: Path, config: Config) -> tuple[Probe, ...]:
    try:
        data = read_limited(path, FILE_LIMIT)
    except OSError as error:
        raise ConfigurationError(problems=(f"--health-checks-config: {path}: {error.strerror}",)) from error
    if data is None and path == LEGACY_HEALTH_CHECKS.get(config.source):
        return ()
    if data is None:
        raise ConfigurationError(problems=(f"--health-checks-config: {path} does not exist",))
    try:
        return read_health_checks(
            data,
            platform=PLATFORM,
            compliance_gate_mode=ComplianceGateMode(config.compliance_gate_mode),
        )
    except HealthChecksError as error:
        raise ConfigurationError(
            problems=tuple(f"--health-checks-config: {path}: {problem}" for problem in error.problems)
        ) from error


def probes_or_failure(config: Config) -> tuple[Probe, ...]:
    """The probes of this host, or one that fails and says what is wrong with the file."""
    try:
        return load_probes(config)
    except ConfigurationError as error:
        log.error("the health checks cannot be used", extra={"fields": {"problems": list(error.problems)}})
        return (ConfigurationProbe(problem="; ".join(error.problems)),)
