"""The target that an address means. A new kind is a module beside this one and a row in `KINDS`.

- `git+URL#BRANCH`: a branch of a git repository, whatever the URL is that git would take.
- `https://HOST/PREFIX`: a web server that takes PUT. Without TLS only on this machine: a token would be everybody's.
- `s3://BUCKET/PREFIX?endpoint=URL&region=NAME`: S3, or what speaks like it.
- anything without `://`: a directory.
"""

import configparser
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

import attrs

from nixfleet.files import read_bytes
from nixfleet.release.target import AddressError, Target

if TYPE_CHECKING:
    from nixfleet.release.targets.signature_v4 import Credentials

_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~@:+=,!-]+")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,62}")
_REGION: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_DEFAULT_REGION: Final = "us-east-1"
_FILE_LIMIT: Final = 64 * 1024


@attrs.frozen(kw_only=True)
class Access:
    """What a target may need besides its address: files with secrets, and what a service was started with."""

    token_file: Path | None = None
    credentials_file: Path | None = None
    environment: Mapping[str, str] = attrs.field(factory=lambda: dict(os.environ), repr=False)


@attrs.frozen(kw_only=True)
class BadCredentialsError(AddressError):
    """No pair of keys is known for this address."""

    def __str__(self) -> str:
        return (
            f"{self.address}: {self.problem}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give "
            "--to-credentials-file"
        )


def open_target(address: str, access: Access) -> Target:
    """The target; nothing is read from it yet.

    Raises:
        AddressError: the address means none.
        UnreadableFileError, BadCredentialsError: a file with secrets is no use.
    """
    if not address or not address.isprintable():
        raise AddressError(address=address, problem="that is no address")
    for begins, opened in KINDS.items():
        if address.startswith(begins):
            return opened(address, access)
    if "://" in address:
        raise AddressError(address=address, problem="there is no such kind of target")
    _refuse_secrets(address, access, token=True, credentials=True)
    return _directory(address)


def _directory(address: str) -> Target:
    from nixfleet.release.targets.directory import DirectoryTarget

    return DirectoryTarget(root=Path(address))


def _git(address: str, access: Access) -> Target:
    from nixfleet.release.targets.git import GitTarget, remote_problem

    _refuse_secrets(address, access, credentials=True)
    remote, _, branch = address.removeprefix("git+").rpartition("#")
    if not remote and "#" not in address:
        raise AddressError(address=address, problem="name the branch behind a #")
    if problem := remote_problem(remote, branch, access.token_file is not None):
        raise AddressError(address=address, problem=problem)
    # As git has it: without a scheme, what has a colon before the first slash is by ssh, anything else a path.
    if "://" not in remote and ":" not in remote.partition("/")[0]:
        remote = os.path.abspath(remote)
    token = _token(access) or None
    return GitTarget(remote=remote, branch=branch, cache=own_directory(access.environment), token=token)


def _token(access: Access) -> str:
    from nixfleet.update.forge import read_token  # which knows HTTP, and most targets are directories

    return read_token(access.token_file)


def own_directory(environment: Mapping[str, str]) -> Path:
    """Where copies of branches are, and what was published from here; the service manager's, where there is one."""
    if given := environment.get("CACHE_DIRECTORY"):
        return Path(given.partition(":")[0]) / "releases"
    base = environment.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "nixfleet" / "releases"


def _http(address: str, access: Access) -> Target:
    import httpx

    from nixfleet.release.targets.objects import TIMEOUT, ObjectTarget

    _refuse_secrets(address, access, credentials=True)
    parts = _split(address)
    if parts.query:
        raise AddressError(address=address, problem="an address with a query has no prefix that names could follow")
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise AddressError(address=address, problem="without TLS only this machine itself may be named")
    token = _token(access)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = address.rstrip("/")
    return ObjectTarget(url=url, where=url, client=httpx.Client(headers=headers, timeout=TIMEOUT))


def _s3(address: str, access: Access) -> Target:
    import httpx

    from nixfleet.release.targets.objects import TIMEOUT, ObjectTarget
    from nixfleet.release.targets.signature_v4 import SignatureV4, encoded

    _refuse_secrets(address, access, token=True)
    parts = _split(address)
    settings = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := [name for name in settings if name not in ("endpoint", "region")]:
        raise AddressError(address=address, problem=f"{unknown[0]!r} is no setting: there are endpoint and region")
    named = access.environment.get("AWS_REGION") or access.environment.get("AWS_DEFAULT_REGION")
    region = settings.get("region", named or _DEFAULT_REGION)
    if not _BUCKET.fullmatch(parts.netloc) or not _REGION.fullmatch(region):
        raise AddressError(address=address, problem="the bucket or the region has no such name")
    endpoint = settings.get("endpoint", f"https://s3.{region}.amazonaws.com").rstrip("/")
    at = _split(endpoint, address)
    if at.scheme not in ("https", "http") or at.path or at.query:
        raise AddressError(address=address, problem="the endpoint must be http(s):// with a host and no path")
    where = f"s3://{parts.netloc}{parts.path.rstrip('/')}"
    auth = SignatureV4(credentials=_credentials(where, access), region=region)
    # The bucket in the path: that needs no name of its own in the DNS, which endpoints at home rarely have.
    url = f"{endpoint}/{encoded(parts.netloc + parts.path.rstrip('/'))}"
    return ObjectTarget(url=url, where=where, client=httpx.Client(auth=auth, timeout=TIMEOUT), address_of=encoded)


def _credentials(where: str, access: Access) -> "Credentials":
    from nixfleet.release.targets.signature_v4 import Credentials

    known = access.environment if access.credentials_file is None else _profile(where, access)
    given = {name.lower(): known.get(name) for name in known if name.lower().startswith("aws_")}
    key, secret = given.get("aws_access_key_id"), given.get("aws_secret_access_key")
    if not key or not secret or not f"{key}{secret}".isascii():
        raise BadCredentialsError(address=where, problem="there is no pair of keys for it")
    return Credentials(access_key=key, secret_key=secret, session_token=given.get("aws_session_token") or None)


def _profile(where: str, access: Access) -> Mapping[str, str]:
    """A section of a file as the provider's own tools have it: that of AWS_PROFILE, else `default`."""
    assert access.credentials_file is not None
    text = read_bytes(access.credentials_file, "file of credentials", _FILE_LIMIT).decode("utf-8", "replace")
    parser = configparser.RawConfigParser()
    name = access.environment.get("AWS_PROFILE", "default")
    try:
        parser.read_string(text, str(access.credentials_file))
        return dict(parser.items(name))
    except configparser.Error as error:
        problem = f"{access.credentials_file} has no section [{name}] with two keys"
        raise BadCredentialsError(address=where, problem=problem) from error


def _split(url: str, address: str | None = None) -> SplitResult:
    """The parts of a URL that has a host, and no password, fragment or odd character in it."""
    address = url if address is None else address
    try:
        parts = urlsplit(url)
        port_is_one = parts.port != 0
    except ValueError as error:
        raise AddressError(address=address, problem=str(error)) from error
    if parts.username is not None:
        raise AddressError(address=address, problem="a name or a password does not belong into an address")
    if not parts.hostname or not port_is_one or parts.fragment:
        raise AddressError(address=address, problem="it needs a host, and nothing behind a #")
    segments = parts.path.strip("/").split("/") if parts.path.strip("/") else []
    if any(each in (".", "..") or not _SEGMENT.fullmatch(each) for each in segments):
        raise AddressError(
            address=address, problem="its path must be of plain letters, digits and -._~ between slashes"
        )
    return parts


def _refuse_secrets(address: str, access: Access, *, token: bool = False, credentials: bool = False) -> None:
    """What would not be used would be thought to protect something."""
    if token and access.token_file is not None:
        raise AddressError(address=address, problem="--to-token-file is for https:// and git+https:// only")
    if credentials and access.credentials_file is not None:
        raise AddressError(address=address, problem="--to-credentials-file is for s3:// only")


KINDS: Final[Mapping[str, Callable[[str, Access], Target]]] = {
    "git+": _git,
    "https://": _http,
    "http://": _http,
    "s3://": _s3,
}
