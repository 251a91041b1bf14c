"""`nixfleet completion`: a shell's completion script, to be evaluated or put where the shell looks for it."""

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from nixfleet.cli import PROGRAM, cli

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}

COMPLETE_VARIABLE = f"_{PROGRAM.upper()}_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(tuple(SHELLS)))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    For this session: `source <(nixfleet completion bash)`, the same with zsh, or `nixfleet completion fish | source`.
    """
    script = SHELLS[shell](cli, {}, PROGRAM, COMPLETE_VARIABLE)
    # Not `source()`: for bash it runs the bash found here to warn of old ones, which says nothing of the user's.
    click.echo(script.source_template % script.source_vars())
