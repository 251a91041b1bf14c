"""The root of the command line: which commands there are, and what holds for all of them."""

from pathlib import Path
from typing import Final

import click

from nixfleet import config
from nixfleet.lazy import LazyCommand, LazyGroup

PROGRAM: Final = "nixfleet"

COMMANDS: Final = {
    "demo": LazyCommand(where="nixfleet.demo:demo", summary="Show a whole fleet at work on this machine."),
    "keygen": LazyCommand(
        where="nixfleet.commands.keygen:keygen", summary="Make a fleet's keys and certificates; rotate them."
    ),
    "mint-token": LazyCommand(
        where="nixfleet.commands.mint_token:mint_token", summary="Mint a one-time enrolment token for a host."
    ),
    "release": LazyCommand(
        where="nixfleet.commands.release:release", summary="Resolve, sign and publish what the fleet is to run."
    ),
    "update": LazyCommand(
        where="nixfleet.commands.update:update", summary="Move a flake's inputs, build every host, merge what builds."
    ),
    "build": LazyCommand(where="nixfleet.commands.build:build", summary="Have builders build hosts, and watch them."),
    "builder": LazyCommand(
        where="nixfleet.commands.builder:builder", summary="Build hosts for whoever asks over NATS."
    ),
    "revoke": LazyCommand(
        where="nixfleet.commands.revoke:revoke", summary="Revoke a host's certificates, by a signed list."
    ),
    "status": LazyCommand(where="nixfleet.commands.status:status", summary="Where every host stands."),
    "hosts": LazyCommand(where="nixfleet.commands.hosts:hosts", summary="Every host as the control plane sees it."),
    "machines": LazyCommand(
        where="nixfleet.commands.machines:machines", summary="List the machines, register new ones."
    ),
    "rollout": LazyCommand(
        where="nixfleet.commands.rollout:rollout", summary="List rollouts, trace one, ask hosts back."
    ),
    "quarantine": LazyCommand(
        where="nixfleet.commands.quarantine:quarantine", summary="Closures that were rolled back; allow them again."
    ),
    "verify-artifact": LazyCommand(
        where="nixfleet.commands.verify_artifact:verify_artifact", summary="Check a signed artifact against trust.json."
    ),
    "canonicalize": LazyCommand(
        where="nixfleet.commands.canonicalize:canonicalize", summary="Write a document's canonical JSON (RFC 8785)."
    ),
    "audit": LazyCommand(
        where="nixfleet.commands.audit:audit", summary="Prove what hosts did, from their public keys alone."
    ),
    "completion": LazyCommand(
        where="nixfleet.commands.completion:completion", summary="Print a shell's completion script."
    ),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={
        "auto_envvar_prefix": "NIXFLEET",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 110,
        "show_default": True,
    },
    epilog="A flag beats its environment variable, which beats the configuration file.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="NIXFLEET_CONFIG",
    show_envvar=True,
    help="Configuration file (TOML).  [default: ~/.config/nixfleet/config.toml]",
)
@click.version_option(package_name="nixfleet-agent", prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, config_file: Path | None) -> None:
    """Sign what a fleet of Nix hosts is to run, watch them run it, and prove afterwards that they did."""
    file = config.load(config_file)
    file.check(COMMANDS)
    invoked = ctx.invoked_subcommand
    if invoked is None or not file.content:
        return
    command = COMMANDS[invoked].load()
    file.check_table(invoked, command)
    ctx.default_map = {invoked: file.defaults_for(invoked, command)}
