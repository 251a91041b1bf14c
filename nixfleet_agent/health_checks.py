"""Read the configured health checks, or say everything that is wrong with them."""

import sys

from nixfleet_agent.config import Config
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.files import read_limited
from nixfleet_agent.probes.declaration import ComplianceGateMode, HealthChecksError, read_health_checks
from nixfleet_agent.probes.kinds import Probe

FILE_LIMIT = 1024 * 1024


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
