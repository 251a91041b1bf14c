"""Start the daemon and turn whatever ends it into one clear line and an exit status."""

import sys

from nixfleet_agent import lean
from nixfleet_agent.config import merge, read_config
from nixfleet_agent.errors import EXIT_CONFIGURATION, EXIT_RUNTIME, AgentError, ConfigurationError
from nixfleet_agent.options import Raw

assert lean


def launch(flags: Raw, environment: Raw) -> int:
    """Run the daemon until it is told to stop; the exit status: 0, 1 (runtime) or 2 (configuration)."""
    return _run(merge(flags, environment), None)


def launch_once(raw: Raw, timeout_s: float) -> int:
    """Run it until this host is settled; the exit status says how (see `once.Outcome`)."""
    return _run(raw, timeout_s)


def _run(raw: Raw, once_within_s: float | None) -> int:
    try:
        config = read_config(raw)
    except ConfigurationError as error:
        return complain(error)
    import trio

    from evidence.errors import EvidenceError
    from nixfleet_agent import daemon, log
    from nixfleet_agent.identity import CertificateError

    log.set_up(config.log_format, config.log_level)
    try:
        daemon.prepare_state_dir(config.state_dir)
        return trio.run(daemon.run, config, once_within_s)
    except AgentError as error:
        return complain(error)
    except (EvidenceError, CertificateError) as error:
        return complain(ConfigurationError(problems=(str(error),)))
    except KeyboardInterrupt:
        return 130


def complain(error: AgentError) -> int:
    """Say what is wrong, a line for each problem, on standard error."""
    prefix = "configuration" if error.exit_code == EXIT_CONFIGURATION else "error"
    assert error.exit_code in (EXIT_CONFIGURATION, EXIT_RUNTIME)
    for line in str(error).splitlines():
        print(f"nixfleet-agent: {prefix}: {line}", file=sys.stderr)
    return error.exit_code
