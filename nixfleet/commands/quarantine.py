"""`nixfleet quarantine`: closures that hosts rolled back, and that nobody is sent until an operator says so."""

import click

from nixfleet.commands import options
from nixfleet.commands.connection import to_control_plane
from nixfleet.operator_api import connected
from nixfleet.operator_tls import Endpoint
from nixfleet.release.description import base_name
from nixfleet.terminal import note, print_json, print_table
from state_machine.values import Channel, HostName

_MEMBERS = ("channel", "closure", "hostname", "since")


@click.group()
def quarantine() -> None:
    """List closures that were rolled back, and allow them again."""


@quarantine.command("list")
@to_control_plane
@options.as_json
def list_quarantine(endpoint: Endpoint, as_json: bool) -> None:
    """List closures that are sent to nobody, with the host that rolled each back."""
    with connected(endpoint) as api:
        answer = api.quarantine()
    rows = answer.get("quarantine")
    if as_json:
        print_json(answer)
    elif isinstance(rows, list) and rows:
        shown = [[str(row.get(member, "-")) for member in _MEMBERS] for row in rows if isinstance(row, dict)]
        print_table(("channel", "closure", "rolled back by", "since"), shown)
    else:
        click.echo("nothing is quarantined")


@quarantine.command()
@click.option("--channel", type=options.CHANNEL, help="Only on this channel.")
@click.option("--closure", type=options.CLOSURE, help="Only this closure.")
@click.option("--host", type=options.HOST, help="Only what this host rolled back.")
@click.option("--all", "everything", is_flag=True, help="Whatever is quarantined anywhere.")
@to_control_plane
def clear(endpoint: Endpoint, channel: str | None, closure: str | None, host: str | None, everything: bool) -> None:
    """Let closures be sent again. The hosts keep their own quarantine: `nixfleet-agent quarantine clear` there."""
    if everything == any((channel, closure, host)):
        raise click.UsageError("say what to clear with --channel, --closure or --host, or give --all alone")
    with connected(endpoint) as api:
        answer = api.clear_quarantine(
            Channel(channel) if channel else None,
            base_name(closure) if closure else None,
            HostName(host) if host else None,
        )
    click.echo(f"cleared: {answer.get('cleared')}")
    note("a host that rolled a closure back also refuses it by itself until it is cleared there")
