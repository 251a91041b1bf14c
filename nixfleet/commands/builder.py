"""`nixfleet builder`: build hosts for whoever asks over NATS."""

from pathlib import Path
from typing import Any, Final

import click
import trio

from nixfleet.builder.check import Findings, look_around
from nixfleet.builder.service import Service, server_in
from nixfleet.builder.settings import read_settings
from nixfleet.commands import options
from nixfleet.stoppable import run_stoppable
from nixfleet.terminal import BAD, GOOD, Cell, print_json, print_line
from nixfleet_agent import log

FORMATS: Final = ("auto", "json", "human")
LEVELS: Final = ("debug", "info", "warning", "error")


@click.command()
@click.option(
    "--config", type=options.FILE, default=Path("/etc/nixfleet/builder.toml"), help="What it is to do, a TOML file."
)
@click.option("--check", is_flag=True, help="Look whether it can work as it is configured, and end.")
@click.option("--log-format", type=click.Choice(FORMATS), default="auto", help="auto: human on a terminal.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", help="Least severity to log.")
@options.as_json
def builder(config: Path, check: bool, log_format: str, log_level: str, as_json: bool) -> int:
    """Take requests for builds of hosts from a NATS server, and do them.

    Serves until SIGTERM, which ends what it builds and hands it to other builders; a second one ends it at once. With
    --check it connects, says whether the server keeps jobs (JetStream) and which repositories can be fetched.

    Exit status: 0; 1 --check found that something would not work; 2 configured wrongly.
    """
    if as_json and not check:
        raise click.UsageError("--json goes with --check; for log lines in JSON there is --log-format json")
    settings = read_settings(config)
    server = server_in(settings, str(config))
    if check:
        findings = run_stoppable(lambda: look_around(settings, server))
        print_json(findings.document()) if as_json else _show(findings)
        return 0 if findings.ok else 1
    log.set_up(log_format, log_level)
    trio.run(Service(settings=settings, server=server, where=str(config)).run)
    return 0


def _show(findings: Findings) -> None:
    server: tuple[Any, ...] = (Cell("connected", GOOD), findings.jobs)
    if findings.trouble:
        server = (Cell("not connected", BAD), findings.trouble)
    print_line((findings.url, *server))
    for name, why in findings.repositories.items():
        word = Cell("cannot be fetched", BAD) if why else Cell("can be fetched", GOOD)
        print_line((name, word, why))
