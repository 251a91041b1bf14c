"""The command line as a person uses it: help, completion, and the commands beside the daemon.

The daemon's options come from the table in `options`; a service manager's plain call never loads this module.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nixfleet_agent import __version__
from nixfleet_agent.config import SECONDS_MAX, merge
from nixfleet_agent.errors import EXIT_RUNTIME, AgentError
from nixfleet_agent.launch import complain, launch
from nixfleet_agent.options import BY_FLAG, BY_NAME, OPTIONS, SEPARATORS, Kind, Option, Raw, from_environment

if TYPE_CHECKING:
    from nixfleet_agent import terminal

PROGRAM = "nixfleet-agent"
MOST_LINES = 10_000
ENTRY = click.IntRange(min=1, max=2**53)
"""The number of a journal entry."""

_METAVAR = {
    Kind.SECONDS: "SECONDS",
    Kind.NUMBER: "NUMBER",
    Kind.PATH: "PATH",
    Kind.FRACTION: "FRACTION",
    Kind.TEXT: "TEXT",
    Kind.LIST: "TEXT",
    Kind.PHRASES: "TEXT",
}


def _click_option(option: Option) -> click.Option:
    described = f"{option.help}  [env: {', '.join(option.variables)}]"
    if option.default is not None:
        described += f"  [default: {option.default}]"
    if option.kind is Kind.FLAG:
        return click.Option([option.flag, *option.older, option.name], is_flag=True, default=None, help=described)
    kind: click.ParamType[Any] = click.STRING
    if option.kind is Kind.CHOICE:
        kind = click.Choice(option.choices)
    elif option.kind is Kind.PATH:
        kind = click.Path()
    return click.Option(
        [option.flag, *option.older, option.name],
        type=kind,
        multiple=option.kind in SEPARATORS,
        default=None,
        metavar=None if option.kind is Kind.CHOICE else _METAVAR[option.kind],
        help=described,
    )


def _given(values: dict[str, Any]) -> Raw:
    raw: Raw = {}
    for name, value in values.items():
        if value is None or value == ():
            continue
        if isinstance(value, tuple):
            separator = SEPARATORS[BY_NAME[name].kind]
            raw[name] = tuple(part for item in value for part in str(item).split(separator))
        else:
            raw[name] = ("true" if value is True else str(value),)
    return raw


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nixfleet-agent", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, /, **values: Any) -> None:
    """The deployment agent of a Nix host.

    Without a sub-command it runs the daemon. Every flag has an environment variable; the flag wins.
    """
    context.obj = merge(_given(values), from_environment(os.environ))
    if context.invoked_subcommand is None:
        context.exit(launch(_given(values), from_environment(os.environ)))


cli.params.extend(_click_option(option) for option in OPTIONS)


def run(words: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. What click has to complain of is one line, and where to read on."""
    try:
        status = cli.main(args=words, prog_name=PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        message = " ".join(line.strip() for line in error.format_message().splitlines())
        if isinstance(error, click.NoSuchOption) and error.option_name in BY_FLAG:
            # The flags of the daemon say which host and state is meant, whatever is asked of it.
            asked = "" if context is None else context.command_path.removeprefix(f"{PROGRAM} ")
            hint = f"; it goes before the command: `{PROGRAM} {error.option_name} ... {asked}`"
        click.echo(f"{PROGRAM}: {message.removesuffix('.') if hint.startswith(';') else message}{hint}", err=True)
        return error.exit_code
    except click.Abort:
        return 130
    return status if isinstance(status, int) else 0


def _state_dir(raw: Raw) -> Path:
    if "db_path" in raw and "state_dir" not in raw:
        return Path(raw["db_path"][-1]).parent
    return Path(raw.get("state_dir", (BY_NAME["state_dir"].default or "",))[-1])


def _guard(work: Callable[[], int | None]) -> None:
    """Run a command; what goes wrong is one line and an exit status, never a traceback."""
    from evidence.errors import EvidenceError

    try:
        code = work() or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough. Nothing may be written when the interpreter closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except AgentError as error:
        code = complain(error)
    except (EvidenceError, OSError) as error:
        click.echo(f"nixfleet-agent: error: {error}", err=True)
        code = EXIT_RUNTIME
    sys.exit(code)


@cli.command("status")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0, max=MOST_LINES),
    default=5,
    show_default=True,
    metavar="N",
    help="How many of the newest journal entries to show.",
)
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="auto: on a terminal, unless NO_COLOR is set.",
)
@click.pass_obj
def status_command(raw: Raw, as_json: bool, lines: int, color: str) -> None:
    """What this host runs, what is wanted of it and by whom, what it waits for, and what to do next.

    Exit status: 0 the agent runs and all is well or waits for its time, 3 it does not run, 5 it runs and something is
    wrong that needs somebody, 1 nothing can be told.
    """  # fmt: skip
    from nixfleet_agent import inspection, terminal

    def work() -> int:
        said = inspection.status(_state_dir(raw), raw, lines)
        text = json.dumps(said, indent=2, sort_keys=True) if as_json else terminal.status(said, _view(color))
        click.echo(text, color=True)
        return inspection.exit_status(said)

    _guard(work)


def _view(color: str) -> "terminal.View":
    """Who reads: a person at a terminal of some width in the host's time zone, or a program in UTC."""
    import datetime
    import shutil

    from nixfleet_agent import terminal
    from nixfleet_agent.clock import now

    seen = sys.stdout.isatty()
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return terminal.View(
        now=now().wall_ms,
        width=shutil.get_terminal_size().columns if seen else None,
        colour=color == "always" or (color == "auto" and seen and not plain),
        zone=None if seen else datetime.UTC,
    )


@cli.command("poke")
@click.pass_obj
def poke_command(raw: Raw) -> None:
    """Have the running daemon exchange everything with the control plane now."""
    from nixfleet_agent import inspection

    _guard(lambda: inspection.order(_state_dir(raw), {"do": "poke"}))


@cli.group("quarantine")
def quarantine_group() -> None:
    """Closures this host has rolled back and will not switch to again."""


@quarantine_group.command("list")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def quarantine_list(raw: Raw, as_json: bool) -> None:
    """Show them."""
    from nixfleet_agent import inspection

    def work() -> int:
        entries = inspection.quarantined(_state_dir(raw))
        if as_json:
            click.echo(json.dumps(entries, indent=2, sort_keys=True))
        for entry in () if as_json else entries:
            click.echo(f"{entry['closure']}  since {entry['since']}  {entry['rollout']}: {entry['why']}")
        if not entries and not as_json:
            click.echo("nothing is quarantined")
        return 0

    _guard(work)


@quarantine_group.command("clear")
@click.argument("closure", required=False)
@click.option("--all", "every", is_flag=True, help="Lift every quarantine.")
@click.pass_obj
def quarantine_clear(raw: Raw, closure: str | None, every: bool) -> None:
    """Lift the quarantine of CLOSURE, so that it may be tried again."""
    from nixfleet_agent import inspection

    if (closure is None) is not every:
        raise click.UsageError("name a closure, or give --all")
    _guard(lambda: inspection.clear_quarantine(_state_dir(raw), closure, _host_key(raw)))


@cli.command("check-config")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_obj
def check_config(raw: Raw, as_json: bool) -> None:
    """Say everything that is wrong with the configuration; exit 2 if anything is."""
    from nixfleet_agent import preflight

    problems = preflight.problems(raw)
    if as_json:
        click.echo(json.dumps({"ok": not problems, "problems": problems}, indent=2))
    else:
        for problem in problems:
            click.echo(problem, err=True)
        click.echo("the configuration is good" if not problems else f"{len(problems)} problem(s)")
    sys.exit(2 if problems else 0)


_timeout = click.option(
    "--timeout",
    type=click.IntRange(min=1, max=SECONDS_MAX),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="Give up after this long.",
)


@cli.command("run-once")
@_timeout
@click.pass_obj
def run_once(raw: Raw, timeout: int) -> None:
    """Take what is due for this host, see it through, and exit.

    Exit status: 0 converged or nothing to do, 3 rolled back, 4 failed, 5 waits for a reboot, 6 not over within the
    timeout, 7 the source has nothing that this host could run, 8 waits for an activation window that opens after the
    timeout, 1 error, 2 configuration.
    """
    from nixfleet_agent.launch import launch_once

    sys.exit(launch_once(raw, float(timeout)))


@cli.command("update")
@_timeout
@click.pass_obj
def update(raw: Raw, timeout: int) -> None:
    """Look for something newer to run, now: wake the daemon where one runs, else do what `run-once` does.

    Exit status: 0 the daemon was woken, else that of `run-once`.
    """
    from nixfleet_agent import control
    from nixfleet_agent.launch import launch_once

    def work() -> int:
        if control.ask(_state_dir(raw), {"do": "poke"}) is None:
            return launch_once(raw, float(timeout))
        click.echo("the running agent looks now; `nixfleet-agent status` shows what comes of it")
        return 0

    _guard(work)


@cli.group("journal")
def journal_group() -> None:
    """The signed record of everything this host did."""


@journal_group.command("show")
@click.option("--since", type=ENTRY, default=1, show_default=True, metavar="N", help="First entry.")
@click.option("--json", "as_json", is_flag=True, help="One entry a line, as signed.")
@click.pass_obj
def journal_show(raw: Raw, since: int, as_json: bool) -> None:
    """Print the entries."""
    from nixfleet_agent import inspection

    _guard(lambda: inspection.show(_state_dir(raw), since, as_json, click.echo))


@journal_group.command("verify")
@click.option("--watermark", type=ENTRY, metavar="N", help="Entries that must be there, known from elsewhere.")
@click.pass_obj
def journal_verify(raw: Raw, watermark: int | None) -> None:
    """Check the chain and every signature; exit 1 and name the first bad entry."""
    from nixfleet_agent import inspection

    _guard(lambda: inspection.verify(_state_dir(raw), watermark, _host_key(raw), click.echo))


@journal_group.command("export")
@click.argument("directory", type=click.Path(path_type=Path))
@click.pass_obj
def journal_export(raw: Raw, directory: Path) -> None:
    """Write DIRECTORY for an auditor: entries, signatures, artifacts, `allowed_signers`."""
    from nixfleet_agent import inspection

    _guard(lambda: inspection.export(_state_dir(raw), directory, _host_key(raw), click.echo))


@journal_group.command("replay")
@click.pass_obj
def journal_replay(raw: Raw) -> None:
    """Fold the journal from nothing and compare with the checkpoint; exit 1 when they differ (promise S10)."""
    from nixfleet_agent import inspection

    _guard(lambda: inspection.replay(_state_dir(raw), click.echo))


@journal_group.command("begin")
@click.pass_obj
def journal_begin(raw: Raw) -> None:
    """Begin a new journal after the old one was set aside as damaged. What it remembered is lost to the agent."""
    from nixfleet_agent import inspection

    _guard(lambda: inspection.begin(_state_dir(raw), click.echo))


def _host_key(raw: Raw) -> Path:
    default = next(option.default for option in OPTIONS if option.name == "ssh_host_key_file")
    return Path(raw.get("ssh_host_key_file", (default or "",))[-1])


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "nixfleet-agent", "_NIXFLEET_AGENT_COMPLETE").source())
