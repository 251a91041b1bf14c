"""`nixfleet-agent`: with flags alone, the daemon; with a sub-command, a tool for the person at the host."""

import os
import sys

from nixfleet_agent.options import from_environment, read_plain


def main() -> int:
    """Run the daemon if the command line is nothing but its flags; leave everything else to click."""
    try:
        return _run()
    except KeyboardInterrupt:  # before anything began that would have to be ended in good order
        return 130


def gradient_update() -> int:
    """`gradient-update`, as users of the stock Gradient client know it: `update`, with the flags of the daemon."""
    from nixfleet_agent.cli import run

    return run([*sys.argv[1:], "update"])


def _run() -> int:
    flags = read_plain(sys.argv[1:])
    if flags is None or "_NIXFLEET_AGENT_COMPLETE" in os.environ:
        from nixfleet_agent.cli import run

        return run()
    from nixfleet_agent.launch import launch

    return launch(flags, from_environment(os.environ))


if __name__ == "__main__":
    sys.exit(main())
