"""`nixfleet hosts`: what every host runs, against what the signed fleet declares for it."""

import click

from nixfleet import fleet_view
from nixfleet.clock import wall_now
from nixfleet.commands import options
from nixfleet.commands.connection import to_control_plane
from nixfleet.operator_api import connected
from nixfleet.operator_tls import Endpoint
from nixfleet.terminal import print_json, print_table
from wire.codec import encode


@click.command()
@to_control_plane
@options.as_json
def hosts(endpoint: Endpoint, as_json: bool) -> None:
    """List every host with what it runs and what is declared for it, in full."""
    with connected(endpoint) as api:
        listing = api.hosts()
    if as_json:
        print_json(encode(listing))
    else:
        print_table(fleet_view.HOST_HEADERS, fleet_view.host_rows(listing, wall_now()))
