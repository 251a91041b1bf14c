"""The command line: run a control plane, or rebuild its database. Every flag is also `NIXFLEET_CP_<FLAG>`."""

import contextlib
import os
from pathlib import Path
from typing import Any, Final

import click
import trio

from control_plane import log
from control_plane.config import (
    DEFAULT_AUDIT,
    DEFAULT_DATABASE,
    DEFAULT_FRESHNESS_S,
    DEFAULT_LISTEN,
    DEFAULT_TRUST,
    DEFAULT_VALIDITY_S,
    Configuration,
    loopback_port,
)
from control_plane.errors import DatabaseOpenError, MissingFlagError
from control_plane.issuance import MIN_VALIDITY_S
from control_plane.schema import open_database, rebuild
from control_plane.version import PACKAGE
from messaging.server import Server
from messaging.subjects import NEWS

PROGRAM: Final = "nixfleet-control-plane"
PREFIX: Final = "NIXFLEET_CP"

FILE: Final = click.Path(path_type=Path, dir_okay=False, readable=False)
TEN_YEARS_S: Final = 10 * 366 * 86_400

_NATS: Final = ("url", "nkey_file", "credentials_file", "token_file", "ca_cert")
_NEEDED: Final = (
    ("tls_cert", "--tls-cert", "the server cannot show who it is without a certificate"),
    ("tls_key", "--tls-key", "the server's certificate needs its key"),
    ("artifacts", "--artifacts", "without signed artifacts there is nothing to route"),
)


@click.group(
    invoke_without_command=True,
    context_settings={
        "auto_envvar_prefix": PREFIX,
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "show_default": True,
    },
    epilog="A flag beats its environment variable. Without a command it serves until SIGTERM; SIGHUP reads certificate"
    " and artifacts again.",
)
@click.option("--listen", default=DEFAULT_LISTEN, metavar="ADDRESS:PORT", help="Where to serve; port 0 picks one.")
@click.option("--tls-cert", type=FILE, help="The server's certificate, PEM.  [required]")
@click.option("--tls-key", type=FILE, help="Its private key, PEM.  [required]")
@click.option("--client-ca", type=FILE, help="CA of client certificates, PEM; without it every caller is anonymous.")
@click.option("--trust-file", type=FILE, default=DEFAULT_TRUST, help="Trust roots; read again at every use.")
@click.option("--artifacts", metavar="DIR|URL", help="Signed artifacts: a directory, or an https URL.  [required]")
@click.option("--artifacts-token-file", type=FILE, help="Bearer token for the URL; read again for each request.")
@click.option("--artifacts-ca-cert", type=FILE, help="CA of the URL's server, PEM, instead of the system's roots.")
@click.option(
    "--artifact-poll-secs", type=click.FloatRange(min=0.1, max=86_400), default=30.0, help="Look for new ones, seconds."
)
@click.option(
    "--freshness-window-secs",
    type=click.IntRange(min=1, max=TEN_YEARS_S),
    default=DEFAULT_FRESHNESS_S,
    help="How old a signature may be, seconds.",
)
@click.option("--fleet-ca-cert", type=FILE, help="CA that issues host certificates, PEM.")
@click.option("--fleet-ca-key", type=FILE, help="Its private key, PEM.")
@click.option("--agent-cn-suffix", help="Certificates are named agent-<machine>.<suffix>; without it <machine>.")
@click.option(
    "--agent-cert-validity-secs",
    type=click.IntRange(min=MIN_VALIDITY_S, max=TEN_YEARS_S),
    default=DEFAULT_VALIDITY_S,
    help="Life of a host certificate, seconds; at least 60.",
)
@click.option("--audit-log", type=FILE, default=DEFAULT_AUDIT, help="JSON lines, one for each certificate issued.")
@click.option("--db-path", type=FILE, default=DEFAULT_DATABASE, help="The database.")
@click.option("--closure-upstream", metavar="URL", help="Binary cache whose narinfo is passed on.")
@click.option("--metrics-listen", metavar="[ADDRESS:]PORT", help="Serve /metrics in the clear; a port alone: loopback.")
@click.option("--nats-url", metavar="URL", help="A NATS server to hear from when there are new artifacts, tls://HOST.")
@click.option("--nats-nkey-file", type=FILE, help="Seed of the NKey that it knows this program by.")
@click.option("--nats-credentials-file", type=FILE, help="A user's JWT and seed, in place of an NKey.")
@click.option("--nats-token-file", type=FILE, help="A token, in place of an NKey.")
@click.option("--nats-ca-cert", type=FILE, help="CA of that server, PEM, instead of the system's roots.")
@click.option("--news-prefix", default=NEWS, help="The subjects of news: PREFIX.released.")
@click.option(
    "--retention-days", type=click.IntRange(min=1, max=36_500), default=90, help="Keep superseded rollouts, days."
)
@click.option("--strict", is_flag=True, help="Demand the protocol header, a client CA and both signed lists.")
@click.option("--require-evidence", is_flag=True, help="Refuse facts that the declared host key did not sign.")
@click.option("--legacy-api", is_flag=True, help="Serve hosts of the first generation too (/api/v1), without proof.")
@click.option(
    "--legacy-cache-url", metavar="URL", help="The binary cache that hosts of the first generation are told of."
)
@click.option("--ready-file", type=FILE, help="Write the bound URL and the process id here once it serves.")
@click.option("--log-format", type=click.Choice(log.FORMATS), default="auto", help="auto: text on a terminal.")
@click.option("--log-level", type=click.Choice(log.LEVELS), default="info", help="Least severity to log.")
@click.version_option(package_name=PACKAGE, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, /, log_format: str, log_level: str, **settings: Any) -> None:
    """Route signed intent to the hosts of a fleet, and keep what they report."""
    log.configure(log_format, log_level)
    ctx.obj = settings
    if ctx.invoked_subcommand is None:
        run(settings)


@cli.command("rebuild")
@click.pass_obj
def rebuild_command(settings: dict[str, Any]) -> None:
    """Derive every table of the database again from its log. The control plane must not be running."""
    if not os.path.exists(settings["db_path"]):
        raise DatabaseOpenError(path=settings["db_path"], problem="there is no such file")
    with contextlib.closing(open_database(settings["db_path"])) as connection:
        entries = rebuild(connection)
    click.echo(f"{settings['db_path']}: rebuilt from {entries} log entries")


def run(settings: dict[str, Any]) -> None:
    """Serve until told to stop.

    Raises:
        ControlPlaneError: it cannot be started.
    """
    for name, flag, because in _NEEDED:
        if settings[name] is None:
            raise MissingFlagError(flag=flag, because=because)
    nats = _nats({name: settings.pop(f"nats_{name}") for name in _NATS})
    config = Configuration(**{**settings, "metrics_listen": loopback_port(settings["metrics_listen"]), "nats": nats})
    config.check()
    # Imported here: `rebuild` and `--help` need no web server.
    from control_plane.server import serve

    trio.run(serve, config)


def _nats(given: dict[str, Any]) -> Server | None:
    if given["url"] is not None:
        return Server(**given)
    for name, value in given.items():
        if value is not None:
            flag = "--nats-" + name.replace("_", "-")
            raise MissingFlagError(flag="--nats-url", because=f"{flag} is of no use without it")
    return None
