"""Start the daemon and turn whatever ends it into one clear line and an exit status."""

import sys
from typing import Final

from nixfleet_agent import lean
from nixfleet_agent.config import merge, read_config
from nixfleet_agent.errors import EXIT_CONFIGURATION, EXIT_RUNTIME, AgentError, ConfigurationError
from nixfleet_agent.options import Raw

EXIT_INTERRUPTED: Final = 130


def launch(flags: Raw, environment: Raw) -> int:
    """Run the daemon until it is told to stop; the exit status: 0, 1 (runtime), 2 (configuration) or 130 (Ctrl-C)."""
    return _run(merge(flags, environment), None)


def launch_once(raw: Raw, timeout_s: float) -> int:
    """Run it until this host is settled; the exit status says how (see `once`)."""
    return _run(raw, timeout_s)


def _run(raw: Raw, once_within_s: float | None) -> int:
    try:
        config = read_config(raw)
    except ConfigurationError as error:
        return complain(error)
    lean.load()
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
        return EXIT_INTERRUPTED
    except BaseExceptionGroup as group:
        return _because_of(group)


def _because_of(group: BaseExceptionGroup[BaseException]) -> int:
    """The exit status when tasks ended it: for something to be told in a line, or for a defect, which is raised on."""
    if group.subgroup(KeyboardInterrupt) is not None:
        return EXIT_INTERRUPTED
    expected, defects = group.split(AgentError)
    if expected is None or defects is not None:
        raise group
    leaf: BaseException = expected
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    assert isinstance(leaf, AgentError)
    return complain(leaf)


def complain(error: AgentError) -> int:
    """Say what is wrong, a line for each problem, on standard error."""
    prefix = "configuration" if error.exit_code == EXIT_CONFIGURATION else "error"
    assert error.exit_code in (EXIT_CONFIGURATION, EXIT_RUNTIME)
    for line in str(error).splitlines():
        print(f"nixfleet-agent: {prefix}: {line}", file=sys.stderr)
    return error.exit_code
