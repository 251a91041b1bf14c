"""Read the configured health checks, or say everything that is wrong with them."""

import logging
import sys
from typing import Final

from nixfleet_agent.config import Config
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.files import read_limited
from nixfleet_agent.probes.declaration import ComplianceGateMode, HealthChecksError, read_health_checks
from nixfleet_agent.probes.kinds import ConfigurationProbe, Probe

FILE_LIMIT: Final = 1024 * 1024
log = logging.getLogger(__name__)


def load_probes(config: Config) -> tuple[Probe, ...]:
    """The probes of this host. No file configured: none; a file that cannot be read is an error, never "no checks".

    Raises:
        ConfigurationError: every problem in the file.
    """
    path = config.health_checks_config
    if path is None:
        return ()
    try:
        data = read_limited(path, FILE_LIMIT)
    except OSError as error:
        raise ConfigurationError(problems=(f"--health-checks-config: {path}: {error.strerror}",)) from error
    if data is None:
        raise ConfigurationError(problems=(f"--health-checks-config: {path} does not exist",))
    try:
        return read_health_checks(
            data,
            platform="darwin" if sys.platform == "darwin" else "linux",
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
