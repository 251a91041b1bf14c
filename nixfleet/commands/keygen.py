"""`nixfleet keygen`: make a fleet's keys; `nixfleet keygen rotate`: move one of them on."""

from pathlib import Path

import click

from evidence.signature import Algorithm, PublicKey
from nixfleet.clock import wall_now
from nixfleet.commands import options, signing
from nixfleet.keys import keyset, rotate
from nixfleet.terminal import print_json, print_table
from state_machine.values import WallMs

_DEFAULTS = keyset.Wishes()
_ALGORITHM = options.MemberType(Algorithm)


@click.group(invoke_without_command=True)
@click.option("--out", type=options.DIRECTORY, help="The directory to make; it must be new or empty.")
@click.option(
    "--algorithm",
    type=_ALGORITHM,
    default=_DEFAULTS.ci_algorithm.value,
    help="Of the CI release key; the org root is ed25519.",
)
@click.option(
    "--ca-algorithm", type=_ALGORITHM, default=_DEFAULTS.ca_algorithm.value, help="Of the CA and its certificates."
)
@click.option(
    "--san",
    "server_names",
    type=options.SERVER_NAME,
    multiple=True,
    default=_DEFAULTS.server_names,
    help="Host name or address of the control plane; may be repeated.",
)
@click.option(
    "--operator", type=options.CERTIFICATE_NAME, default=_DEFAULTS.operator, help="Name in the operator's certificate."
)
@click.option(
    "--cache-name", type=options.CACHE_NAME, default=_DEFAULTS.cache_name, help="Name of the binary cache's key."
)
@click.option("--ca-days", type=options.DAYS, default=_DEFAULTS.ca_days, help="Validity of the CA.")
@click.option("--days", type=options.DAYS, default=_DEFAULTS.leaf_days, help="Validity of the certificates under it.")
@options.as_json
@click.pass_context
def keygen(
    ctx: click.Context,
    out: Path | None,
    algorithm: Algorithm,
    ca_algorithm: Algorithm,
    server_names: tuple[str, ...],
    operator: str,
    cache_name: str,
    ca_days: int,
    days: int,
    as_json: bool,
) -> None:
    """Make the keys and certificates a fleet begins with, and the trust.json that its hosts get.

    Nothing is ever overwritten. org-root.pem belongs offline, ci-release.pem into CI, ca-key.pem to the control plane.
    """
    if ctx.invoked_subcommand is not None:
        return
    if out is None:
        raise click.UsageError("--out names the directory to make")
    wishes = keyset.Wishes(
        server_names=server_names,
        operator=operator,
        cache_name=cache_name,
        ci_algorithm=algorithm,
        ca_algorithm=ca_algorithm,
        ca_days=ca_days,
        leaf_days=days,
    )
    _show(keyset.generate_keys(out, wishes, wall_now()), as_json)


@keygen.command("rotate")
@options.trust_file
@click.option("--role", type=options.MemberType(rotate.Role), required=True, help="Whose key.")
@click.option("--new-key", type=options.FILE, help="Where the new private key is written; must not exist.")
@click.option(
    "--key",
    type=options.KEY,
    help="Move on to this key, which exists: agent:..., command:... or a file, as --ci-key has them.",
)
@click.option("--algorithm", type=_ALGORITHM, default=Algorithm.ED25519.value, help="Of the key that --new-key makes.")
@click.option("--compromised", is_flag=True, help="Drop the old key at once and refuse what it signed so far.")
@click.option("--reject-before", type=options.INSTANT, help="With --compromised: the incident.  [default: now]")
@click.option("--finish", is_flag=True, help="Drop the previous key, at the end of the grace period.")
def rotate_key(
    trust_file: Path | None,
    role: rotate.Role,
    new_key: Path | None,
    key: str | None,
    algorithm: Algorithm,
    compromised: bool,
    reject_before: WallMs | None,
    finish: bool,
) -> None:
    """Move the CI release key or the org root on in a trust file, which then goes to every host.

    First `rotate`: the old key stays accepted as previous. Then deploy the file, sign with the new key, and at the end
    of the grace period `rotate --finish`. A key that is in no file is moved on to with --key.
    """
    trust = options.required(trust_file, "--trust-file", "the trust file")
    if finish:
        if new_key is not None or key is not None or compromised:
            raise click.UsageError("--finish goes alone: it makes no key")
        _finish(trust, role)
        return
    if (new_key is None) == (key is None):
        raise click.UsageError("--new-key says where a new private key is written, --key which one exists: give one")
    to = new_key if key is None else signing.open_signer(key, f"new {role} key").public_key
    assert to is not None
    if isinstance(to, PublicKey):
        algorithm = to.algorithm
    if role is rotate.Role.ORG_ROOT and algorithm is not Algorithm.ED25519:
        raise click.UsageError("the org root is an ed25519 key: tokens know no other")
    if reject_before is not None and not compromised:
        raise click.UsageError("--reject-before goes with --compromised")
    if compromised:
        public = rotate.replace_compromised(trust, role, to, algorithm, options.instant(reject_before))
        click.echo(
            f"{role} is now {_shown(public)} alone; sign everything again with {new_key or 'it'} and deploy {trust}"
        )
    else:
        public = rotate.rotate(trust, role, to, algorithm)
        days = rotate.GRACE_DAYS[role]
        click.echo(f"{role} is now {_shown(public)}, the old key stays accepted; deploy {trust} before signing with it")
        click.echo(f"in {days} days: nixfleet keygen rotate --role {role} --trust-file {trust} --finish")


def _finish(trust: Path, role: rotate.Role) -> None:
    dropped = rotate.finish(trust, role)
    click.echo(f"the previous {role} key is dropped; deploy {trust}" if dropped else f"{role} has no previous key")


def _show(keys: keyset.KeySet, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "directory": str(keys.directory),
                "files": {Path(name).name: str(keys.path(name)) for name in sorted(_files(keys))},
                "ciReleaseKey": {"algorithm": keys.ci_release.algorithm, "keyId": keys.ci_release.key_id},
                "orgRootKey": {"algorithm": keys.org_root.algorithm, "keyId": keys.org_root.key_id},
                "cacheKey": keys.cache,
            }
        )
        return
    print_table(("file", "what for"), [(str(keys.path(name)), keyset.PURPOSES[name]) for name in keyset.PURPOSES])


def _files(keys: keyset.KeySet) -> list[str]:
    return [path.name for path in keys.directory.iterdir()]


def _shown(key: PublicKey) -> str:
    return f"{key.key_id} ({key.algorithm})"
