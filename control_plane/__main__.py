"""The program `nixfleet-control-plane`. Exit status: 0 stopped as told, 1 failed, 2 started or configured wrongly."""

import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from control_plane.cli import PREFIX, PROGRAM, cli
from control_plane.errors import ConfigurationError, ControlPlaneError, NotTextError
from evidence.canonical import is_text

MISCONFIGURED: Final = 2
INTERRUPTED: Final = 130


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. `arguments` None: those of the process."""
    try:
        _require_text(sys.argv[1:] if arguments is None else arguments)
        cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        hint = f" (see `{PROGRAM} --help`)" if isinstance(error, click.UsageError) else ""
        message = " ".join(line.strip() for line in error.format_message().splitlines())
        click.echo(f"{PROGRAM}: {message}{hint}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except ControlPlaneError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        return MISCONFIGURED if isinstance(error, ConfigurationError) else 1
    return 0


def _require_text(words: Sequence[str]) -> None:
    """What is not UTF-8 is no name, address or path that could be told to anybody.

    Raises:
        NotTextError: a word, or one of our variables, is not.
    """
    ours = (f"{name}={value}" for name, value in os.environ.items() if name.startswith(PREFIX))
    for word in (*words, *ours):
        if not is_text(word):
            raise NotTextError(found=word)


def main() -> None:
    """Run and exit."""
    sys.exit(run())


if __name__ == "__main__":
    main()
