"""Make every key a fleet begins with, in one directory that appears whole or not at all.

Secrets are mode 0600 in a directory of mode 0700; nothing is ever overwritten. `PURPOSES` says who needs which file.
"""

import base64
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from evidence.documents import encode
from evidence.signature import Algorithm, PublicKey
from evidence.trust import KeySlot, TrustedKey, TrustRoots
from nixfleet.errors import ExistsError, NoDirectoryError
from nixfleet.files import PRIVATE, PUBLIC, create_file, sync_directory
from nixfleet.keys import certificates
from nixfleet.release.sign import PrivateKey, public_key_of
from state_machine.values import WallMs

ORG_ROOT: Final = "org-root.pem"
CI_RELEASE: Final = "ci-release.pem"
CACHE_SECRET: Final = "cache.sec"
CACHE_PUBLIC: Final = "cache.pub"
CA: Final = "ca.pem"
CA_KEY: Final = "ca-key.pem"
SERVER: Final = "control-plane.pem"
SERVER_KEY: Final = "control-plane-key.pem"
OPERATOR: Final = "operator.pem"
OPERATOR_KEY: Final = "operator-key.pem"
TRUST: Final = "trust.json"

PURPOSES: Final = {
    ORG_ROOT: "mints enrolment tokens; keep it offline",
    CI_RELEASE: "signs releases and the lists beside them; for CI",
    CACHE_SECRET: "signs store paths (nix's own format); for CI",
    CACHE_PUBLIC: "verifies store paths; trusted-public-keys of every host",
    CA: "the fleet CA; for every host and operator",
    CA_KEY: "issues host certificates; for the control plane",
    SERVER: "the control plane's certificate",
    SERVER_KEY: "the control plane's TLS key",
    OPERATOR: "an operator's certificate",
    OPERATOR_KEY: "opens the operator endpoints",
    TRUST: "what every host and the control plane trust",
}

SECRETS: Final = frozenset({ORG_ROOT, CI_RELEASE, CACHE_SECRET, CA_KEY, SERVER_KEY, OPERATOR_KEY})


@attrs.frozen(kw_only=True)
class Wishes:
    """What may differ between fleets. Validity in days; `server_names` are host names and addresses."""

    server_names: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    operator: str = "operator"
    cache_name: str = "fleet-cache-1"
    ca_name: str = "nixfleet CA"
    ci_algorithm: Algorithm = Algorithm.ED25519
    ca_algorithm: Algorithm = Algorithm.ECDSA_P256
    ca_days: int = 3650
    leaf_days: int = 825
    """Longer and some TLS clients refuse a server certificate."""


@attrs.frozen(kw_only=True)
class KeySet:
    """The directory that was made, and the public halves."""

    directory: Path
    ci_release: PublicKey
    org_root: PublicKey
    cache: str

    def path(self, name: str) -> Path:
        """One of the files by its name above."""
        return self.directory / name


def generate_keys(directory: Path, wishes: Wishes, now: WallMs) -> KeySet:
    """Make all keys and write them to a new directory.

    Raises:
        ExistsError: there is something in the directory already.
    """
    if os.path.lexists(directory) and (not directory.is_dir() or any(directory.iterdir())):
        raise ExistsError(path=directory, what="the new keys")
    org_root, ci_release = Ed25519PrivateKey.generate(), certificates.generate(wishes.ci_algorithm)
    cache_secret, cache_public = _cache_key(wishes.cache_name)
    trust = TrustRoots(
        schema_version=1,
        ci_release_key=KeySlot(current=declared(ci_release)),
        org_root_key=KeySlot(current=declared(org_root)),
        cache_keys=(cache_public,),
    )
    files = {
        ORG_ROOT: certificates.private_pem(org_root),
        CI_RELEASE: certificates.private_pem(ci_release),
        CACHE_SECRET: cache_secret.encode(),
        CACHE_PUBLIC: cache_public.encode(),
        **_tls_files(wishes, now),
        TRUST: trust_bytes(encode(trust)),
    }
    _write_whole(directory, files)
    return KeySet(
        directory=directory,
        ci_release=public_key_of(ci_release),
        org_root=public_key_of(org_root),
        cache=cache_public,
    )


def declared(key: PrivateKey) -> TrustedKey:
    """The public half as `trust.json` writes it."""
    public = public_key_of(key)
    return TrustedKey(algorithm=public.algorithm.value, public=base64.b64encode(public.raw).decode("ascii"))


def trust_bytes(document: Mapping[str, object]) -> bytes:
    """A trust file's text: for people to read and to compare, as nothing is signed over it."""
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def _tls_files(wishes: Wishes, now: WallMs) -> dict[str, bytes]:
    make = certificates.generate
    authority = certificates.make_authority(make(wishes.ca_algorithm), wishes.ca_name, now, wishes.ca_days)
    server = certificates.make_server(authority, make(wishes.ca_algorithm), wishes.server_names, now, wishes.leaf_days)
    operator = certificates.make_operator(authority, make(wishes.ca_algorithm), wishes.operator, now, wishes.leaf_days)
    return {
        CA: authority.certificate_pem,
        CA_KEY: authority.key_pem,
        SERVER: server.certificate_pem,
        SERVER_KEY: server.key_pem,
        OPERATOR: operator.certificate_pem,
        OPERATOR_KEY: operator.key_pem,
    }


def _cache_key(name: str) -> tuple[str, str]:
    """A binary cache's key pair as `nix-store --generate-binary-cache-key` writes it: the secret is seed and public."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    secret = key.private_bytes_raw() + public
    return f"{name}:{base64.b64encode(secret).decode()}", f"{name}:{base64.b64encode(public).decode()}"


def _write_whole(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write into a directory beside the wanted one, then rename it: a half-made key set never has the name."""
    temporary = directory.with_name(f".{directory.name}.{secrets.token_hex(6)}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode=0o700)
    except OSError as error:
        raise NoDirectoryError(path=directory, what="the new keys", cause=error.strerror or str(error)) from error
    try:
        for name, content in files.items():
            create_file(temporary / name, content, PRIVATE if name in SECRETS else PUBLIC)
        sync_directory(temporary)
        os.rename(temporary, directory)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if directory.exists() and any(directory.iterdir()):
            raise ExistsError(path=directory, what="the new keys") from error
        raise
    sync_directory(directory.parent)
