"""Options by which a release is held against binary caches before it is signed, and the check as commands make it."""

import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from nixfleet.commands import options
from nixfleet.errors import ConfigurationError, MissingSettingError
from nixfleet.keys.roots import BadTrustFileError, read_roots
from nixfleet.release.cache_address import CacheUrlError, Credentials, checked_url, read_netrc
from nixfleet.terminal import GOOD, Cell, print_line
from state_machine.values import Closure, HostName

if TYPE_CHECKING:
    from nixfleet.release.cache_check import Checked
    from nixfleet_agent.activation.cache_keys import TrustedKeys

QUIET_S: Final = 1.5
_EVERY_S: Final = 0.1
_STORE: Final = "/nix/store"

NOT_CHECKED: Final = "nobody looked whether hosts can fetch what they are to run: --cache says where from"


class CacheUrlType(click.ParamType[str]):
    """The address of a binary cache."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself, or a usage error."""
        try:
            return checked_url(str(value))
        except CacheUrlError as error:
            self.fail(str(error).removeprefix("--cache: "), param, ctx)


@attrs.frozen(kw_only=True)
class NoCacheKeysError(ConfigurationError):
    """Hosts trust no cache at all."""

    path: Path

    def __str__(self) -> str:
        return (
            f"--trust-file {self.path} has no `cacheKeys`: hosts would take nothing from any cache; name its key there"
        )


@attrs.frozen(kw_only=True)
class CacheChecking:
    """Whether, where and with what the hosts' closures are looked for. `wanted` None: where there are caches."""

    caches: tuple[str, ...]
    wanted: bool | None
    credentials: Credentials = attrs.field(repr=False)

    @property
    def notices(self) -> tuple[str, ...]:
        """What to tell when nothing is going to be looked for and nobody said so."""
        return (NOT_CHECKED,) if self.wanted is None and not self.caches else ()

    def require(self, trust_file: Path | None) -> None:
        """Find out before anything is built whether `look` can do without more settings.

        Raises:
            MissingSettingError, BadTrustFileError, NoCacheKeysError: as `look`.
        """
        if self.wanted or (self.wanted is None and self.caches):
            self._keys(trust_file)

    def _keys(self, trust_file: Path | None) -> "TrustedKeys":
        if not self.caches:
            raise MissingSettingError(flag="--cache", variable="NIXFLEET_CACHE", what="the cache to look in")
        return _trusted(options.required(trust_file, "--trust-file", "the trust file, whose `cacheKeys` count,"))

    def look(self, closures: Mapping[HostName, Closure], trust_file: Path | None) -> "Checked | None":
        """Look for all that these hosts would need; None: it is not wanted.

        Raises:
            MissingSettingError, BadTrustFileError, NoCacheKeysError: nobody says where to look, or which keys count.
            NotInCacheError, CacheError, TooManyPathsError: as `check_caches`.
        """
        if self.wanted is False or (self.wanted is None and not self.caches):
            return None
        trusted = self._keys(trust_file)
        from nixfleet.release.cache_check import check_caches

        with _Counter() as counter:
            return check_caches(
                closures,
                self.caches,
                trusted,
                store_dir=os.environ.get("NIX_STORE_DIR") or _STORE,
                credentials=self.credentials,
                progress=counter.show,
            )


_OPTIONS: Final = (
    click.option(
        "--cache",
        type=CacheUrlType(),
        multiple=True,
        envvar="NIXFLEET_CACHE",
        show_envvar=True,
        help="A binary cache that hosts fetch from; may be repeated. What hosts are to run must be in one of them, "
        "signed by a key in `cacheKeys` of the trust file.",
    ),
    click.option(
        "--cache-check/--no-cache-check",
        default=None,
        help="Refuse to release what hosts could not fetch.  [default: when there is a --cache]",
    ),
    click.option(
        "--cache-netrc",
        type=options.FILE,
        envvar="NIXFLEET_CACHE_NETRC",
        show_envvar=True,
        help="Names and passwords for private caches, as Nix's netrc-file has them.",
    ),
)


def with_cache_check(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options, and hand the command what they say as one `cache_checking`."""

    @functools.wraps(command)
    def checking(
        *args: Any, cache: Sequence[str], cache_check: bool | None, cache_netrc: Path | None, **kwargs: Any
    ) -> None:
        credentials = {} if cache_netrc is None else read_netrc(cache_netrc)
        command(
            *args,
            cache_checking=CacheChecking(
                caches=tuple(dict.fromkeys(cache)), wanted=cache_check, credentials=credentials
            ),
            **kwargs,
        )

    for option in reversed(_OPTIONS):
        checking = option(checking)
    return checking


def show_checked(checked: "Checked") -> None:
    """That all is there."""
    what = f"{checked.paths} paths of {checked.hosts} host{'s' if checked.hosts != 1 else ''}"
    print_line((Cell("in cache", GOOD), f"{what}: {' or '.join(checked.caches)}"))


def checked_document(checked: "Checked | None") -> Any:
    """The same for a program."""
    return checked and {"caches": list(checked.caches), "hosts": checked.hosts, "paths": checked.paths}


def _trusted(path: Path) -> "TrustedKeys":
    from nixfleet_agent.activation.cache_keys import TrustedKeys
    from nixfleet_agent.activation.errors import CacheKeyError

    texts = read_roots(path).cache_keys
    if not texts:
        raise NoCacheKeysError(path=path)
    try:
        return TrustedKeys.parse(texts)
    except CacheKeyError as error:
        raise BadTrustFileError(path=path, problem=str(error)) from error


class _Counter:
    """A line on a terminal that counts, once it takes long enough to wonder; gone when all is done."""

    def __init__(self) -> None:
        self._seen = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._next = time.monotonic() + QUIET_S
        self._shown = False

    def __enter__(self) -> "_Counter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)

    def show(self, done: int, known: int) -> None:
        """Tell how far it is."""
        now = time.monotonic()
        if self._seen and now >= self._next:
            self._next, self._shown = now + _EVERY_S, True
            click.echo(f"\r\x1b[Klooking in the cache: {done} of {known} paths", err=True, nl=False)
