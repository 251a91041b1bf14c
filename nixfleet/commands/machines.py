"""`nixfleet machines`: which machines there are, before and beside any rollout."""

import click

from nixfleet import fleet_view
from nixfleet.clock import wall_now
from nixfleet.commands import options
from nixfleet.commands.connection import to_control_plane
from nixfleet.operator_api import connected
from nixfleet.operator_tls import Endpoint
from nixfleet.terminal import note, print_json, print_table
from state_machine.values import HostName
from wire.codec import encode


@click.group()
def machines() -> None:
    """List the machines the control plane knows, and announce new ones."""


@machines.command("list")
@click.option("--tag", "tags", multiple=True, help="Only machines with this tag; given again, with all of them.")
@to_control_plane
@options.as_json
def list_machines(endpoint: Endpoint, tags: tuple[str, ...], as_json: bool) -> None:
    """List every machine that is declared, registered or was ever heard of, and what the trust in its targets rests on.

    signed-manifest: a host that checks signatures. mutual-tls: one of the first generation, which runs what the control
    plane says.
    """
    with connected(endpoint) as api:
        listing = fleet_view.with_tags(api.hosts(), tags)
    if as_json:
        print_json(encode(listing))
    else:
        print_table(fleet_view.MACHINE_HEADERS, fleet_view.machine_rows(listing, wall_now()))


@machines.command()
@click.argument("hostname", type=options.HOST)
@click.option("--note", "remark", default="", help="What it is, where it stands.")
@click.option("--tag", "tags", multiple=True, help="What it is called until the fleet declares it; may be repeated.")
@to_control_plane
@options.as_json
def register(endpoint: Endpoint, hostname: str, remark: str, tags: tuple[str, ...], as_json: bool) -> None:
    """Announce the machine HOSTNAME. It can enrol once the signed fleet declares it and it has a token."""
    with connected(endpoint) as api:
        answer = api.register(HostName(hostname), remark, tags)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{hostname} is registered")
    if not answer.get("declared"):
        note(f"the fleet does not declare {hostname} yet: add it with its pubkey, then `nixfleet release`")
