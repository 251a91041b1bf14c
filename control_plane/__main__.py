"""The program `nixfleet-control-plane`. Exit status: 0 stopped as told, 1 failed, 2 started or configured wrongly."""

import sys
from collections.abc import Sequence
from typing import Final

import click

from control_plane.cli import PROGRAM, cli
from control_plane.errors import ConfigurationError, ControlPlaneError

MISCONFIGURED: Final = 2
INTERRUPTED: Final = 130


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. `arguments` None: those of the process."""
    try:
        cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except ControlPlaneError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        return MISCONFIGURED if isinstance(error, ConfigurationError) else 1
    return 0


def main() -> None:
    """Run and exit."""
    sys.exit(run())


if __name__ == "__main__":
    main()
