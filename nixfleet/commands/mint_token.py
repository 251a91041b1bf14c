"""`nixfleet mint-token`: let one host enrol, once, with the key it already has."""

import base64
import json
import os
from pathlib import Path

import click

from evidence.host_key import fingerprint as fingerprint_of
from evidence.ssh_format import SshFormatError, parse_openssh_public
from nixfleet.clock import wall_now
from nixfleet.commands import options, signing, targets
from nixfleet.errors import ConfigurationError, ExistsError, NoDirectoryError
from nixfleet.files import PRIVATE, create_file, read_bytes
from nixfleet.keys import tokens
from nixfleet.keys.hints import about_host
from nixfleet.release.published import published_document
from nixfleet.release.staging import FLEET
from nixfleet.release.target import Target
from nixfleet.terminal import note

_FINGERPRINT_SIZE = 32


class NotAKeyError(ConfigurationError):
    """What should name the host's key does not."""


@click.command("mint-token")
@click.option("--hostname", type=options.HOST, required=True, help="The host that may enrol.")
@click.option("--pubkey", type=options.FILE, help="Its ssh_host_ed25519_key.pub.")
@click.option("--fingerprint", help="Or base64 of SHA-256 over its raw ed25519 public key.")
@options.org_root_key
@options.ci_key
@click.option("--validity", type=options.DURATION, default="24h", help="How long the token may be used.")
@click.option(
    "--nonces-file",
    type=options.FILE,
    help="The signed allow-list to extend.  [default: bootstrap-nonces.json where releases are published]",
)
@targets.to_target
@options.trust_file
@click.option("--minted-by", help="Who is noted on the list.  [default: the user's name]")
@click.option("--out", type=options.FILE, help="Write the token to this new file, mode 0600, not to standard output.")
def mint_token(
    hostname: str,
    pubkey: Path | None,
    fingerprint: str | None,
    org_root_key: str | None,
    ci_key: str | None,
    validity: int,
    nonces_file: Path | None,
    target: Target,
    trust_file: Path | None,
    minted_by: str | None,
    out: Path | None,
) -> None:
    """Mint a one-time enrolment token and put its nonce on the signed allow-list.

    The token is worth nothing for another host, another key, a second time, or after its validity. The list must
    reach the control plane; expired nonces are dropped from it.
    """
    if (pubkey is None) == (fingerprint is None):
        raise click.UsageError("give --pubkey or --fingerprint, one of the two")
    print_of_key = _fingerprint(pubkey, fingerprint)
    root = signing.org_root_signer(org_root_key, trust_file)
    ci = signing.ci_signer(ci_key, trust_file)
    # Before the list is touched: a token that cannot be written would leave its nonce behind.
    if out is not None:
        _require_place(out)
    if (hint := about_host(published_document(target, FLEET), hostname, print_of_key)) is not None:
        note(hint)
    now = wall_now()
    minted = tokens.mint(hostname, print_of_key, root, now, validity * 1000, minted_by or options.user())
    listed = tokens.allow_nonce(nonces_file or target, minted.entry, ci, now, signing.ci_slot(trust_file))
    text = json.dumps(minted.token, indent=2) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    create_file(out, text.encode(), PRIVATE)
    count = "1 nonce is" if listed == 1 else f"{listed} nonces are"
    note(f"{out}: the token for {hostname}; {count} allowed now")


def _require_place(out: Path) -> None:
    if os.path.lexists(out):
        raise ExistsError(path=out, what="the token")
    if not (os.path.isdir(out.parent) and os.access(out.parent, os.W_OK | os.X_OK)):
        raise NoDirectoryError(path=out, what="the token", cause="its directory is not there or not writable")


def _fingerprint(pubkey: Path | None, given: str | None) -> str:
    if pubkey is not None:
        line = read_bytes(pubkey, "host's public key").decode("utf-8", "replace")
        try:
            return fingerprint_of(parse_openssh_public(line))
        except SshFormatError as error:
            raise NotAKeyError(f"{pubkey}: {error.detail}") from error
    assert given is not None
    try:
        size = len(base64.b64decode(given, validate=True))
    except ValueError:
        size = 0
    if size != _FINGERPRINT_SIZE:
        # SHA256:... as ssh-keygen prints it is over SSH's own form of the key: it would enrol nobody.
        raise NotAKeyError(
            f"{given[:60]!r} is not base64 of 32 bytes: SHA-256 over the raw key, which is not what ssh-keygen -l "
            "prints; --pubkey is the easy way"
        )
    return given
