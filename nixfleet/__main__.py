"""Run the command line and turn every way it can stop into one line and an exit status.

0 done, 1 it could not be done (or was refused), 2 it was asked wrongly or configured wrongly, 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence

import click

from evidence.canonical import is_text
from evidence.errors import EvidenceError
from nixfleet.cli import PROGRAM, cli
from nixfleet.errors import NotTextError, StoppedError
from nixfleet.terminal import harmless

INTERRUPTED = 130
"""What a shell reports for a program that SIGINT ended: 128 + 2."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. `arguments` None: those of the process."""
    try:
        _require_text(sys.argv[1:] if arguments is None else arguments)
        status = cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _say(_one_line(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except StoppedError as error:
        return _say(str(error), error.exit_code)
    except EvidenceError as error:
        return _say(str(error), StoppedError.exit_code)
    except OSError as error:
        where = f": {error.filename}" if error.filename is not None else ""
        return _say(f"{error.strerror or error}{where}", StoppedError.exit_code)
    return status if isinstance(status, int) else 0


def _require_text(words: Sequence[str]) -> None:
    """What is not UTF-8 could be neither signed nor sent.

    Raises:
        NotTextError: a word, or one of our variables, is not.
    """
    ours = (f"{name}={value}" for name, value in os.environ.items() if name.startswith("NIXFLEET_"))
    for word in (*words, *ours):
        if not is_text(word):
            raise NotTextError(found=word)


def main() -> None:
    """The program `nixfleet`."""
    sys.exit(run())


def _one_line(error: click.ClickException) -> str:
    """What click would say in three lines: the message, and where to read on."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f" (see `{context.command_path} --help`)" if context is not None else ""
    message = " ".join(line.strip() for line in error.format_message().splitlines())
    return f"{message}{hint}"


def _say(message: str, status: int) -> int:
    click.echo(f"{PROGRAM}: {harmless(message)}", err=True)
    return status


if __name__ == "__main__":
    main()
