"""`nixfleet status`: where every host stands, once or for as long as you watch."""

import json
import time
from typing import Any

import attrs
import click

from nixfleet import fleet_view
from nixfleet.clock import wall_now
from nixfleet.commands import options
from nixfleet.commands.connection import to_control_plane
from nixfleet.operator_api import OperatorApi, connected
from nixfleet.operator_errors import UnreachableError
from nixfleet.operator_tls import Endpoint
from nixfleet.terminal import console, is_terminal, plain_lines, print_json, print_table, rich_table
from wire.codec import encode
from wire.listings import DeferralList, HostList


@attrs.frozen(kw_only=True)
class Seen:
    """One look at the fleet."""

    hosts: HostList
    deferrals: DeferralList
    version: str

    def document(self) -> dict[str, Any]:
        """The look as JSON."""
        return {
            "controlPlaneVersion": self.version,
            "deferrals": encode(self.deferrals)["deferrals"],
            "hosts": encode(self.hosts)["hosts"],
        }

    def summary(self) -> str:
        """The line above the table."""
        return f"{fleet_view.status_summary(self.hosts)} (control plane {self.version})"


@click.command()
@to_control_plane
@click.option("--watch", is_flag=True, help="Look again and again until interrupted.")
@click.option("--interval", type=options.DURATION, default="2s", help="With --watch: how long between two looks.")
@options.as_json
def status(endpoint: Endpoint, watch: bool, interval: int, as_json: bool) -> None:
    """Show where every host stands: its rollout, its state, what it runs, what it waits for.

    With --watch in a pipe a line or table is written whenever something has changed.
    """
    with connected(endpoint) as api:
        if watch:
            _watch(api, interval, as_json)
            return
        seen = look(api)
    if as_json:
        print_json(seen.document())
        return
    click.echo(seen.summary())
    print_table(fleet_view.STATUS_HEADERS, fleet_view.status_rows(seen.hosts, wall_now()))
    for line in fleet_view.deferral_lines(seen.deferrals):
        click.echo(line)


def look(api: OperatorApi) -> Seen:
    """Ask the control plane once."""
    return Seen(hosts=api.hosts(), deferrals=api.deferrals(), version=api.health().version)


def _watch(api: OperatorApi, interval_s: int, as_json: bool) -> None:
    if is_terminal() and not as_json:
        _watch_on_screen(api, interval_s)
        return
    shown = ""
    while True:
        seen = look(api)
        text = json.dumps(seen.document(), sort_keys=True) if as_json else "\n".join(_plain(seen))
        if text != shown:
            click.echo(text)
            shown = text
        time.sleep(interval_s)


def _plain(seen: Seen) -> list[str]:
    # Without the ages, which change with every look.
    kept = [number for number, header in enumerate(fleet_view.STATUS_HEADERS) if header != "seen"]
    rows = [[row[number] for number in kept] for row in fleet_view.status_rows(seen.hosts, wall_now())]
    headers = [fleet_view.STATUS_HEADERS[number] for number in kept]
    return [seen.summary(), *plain_lines(headers, rows), *fleet_view.deferral_lines(seen.deferrals), ""]


def _watch_on_screen(api: OperatorApi, interval_s: int) -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=console(), auto_refresh=False, screen=True) as live:
        while True:
            try:
                seen = look(api)
                rows = fleet_view.status_rows(seen.hosts, wall_now())
                held = [Text(line) for line in fleet_view.deferral_lines(seen.deferrals)]
                page = Group(Text(seen.summary()), rich_table(fleet_view.STATUS_HEADERS, rows), *held)
            except UnreachableError as error:
                # A watch outlives a restart of what it watches.
                page = Group(Text(str(error), style="bold red"))
            live.update(page, refresh=True)
            time.sleep(interval_s)
