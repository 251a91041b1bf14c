"""Options by which a release copies what was built to a binary cache before it looks whether hosts can fetch it."""

import functools
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final

import attrs
import click

from nixfleet.commands import options
from nixfleet.errors import ConfigurationError
from nixfleet.files import read_bytes
from nixfleet.terminal import GOOD, Cell, print_line
from nixfleet_agent.activation.cache_keys import CacheKey
from nixfleet_agent.activation.errors import CacheKeyError
from state_machine.values import Closure

_ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^\s]+|/[^\0]+")
_PASSWORD: Final = re.compile(r"[^/]*//[^/?\s]*:[^/?\s]*@")


class CopyTargetType(click.ParamType[str]):
    """Where Nix copies to."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text itself, or a usage error."""
        text = str(value)
        if _PASSWORD.match(text):
            self.fail(
                "it has a password in it, for every list of processes to show: Nix has its netrc-file", param, ctx
            )
        if not _ADDRESS.fullmatch(text):
            self.fail(f"{text[:80]!r} is no address that Nix copies to, such as file:///srv/cache", param, ctx)
        return text


@attrs.frozen(kw_only=True)
class NoCacheKeyError(ConfigurationError):
    """What is to sign closures is no key of a cache. What the file has is not repeated: it may be another secret."""

    path: Path

    def __str__(self) -> str:
        return f"--cache-key-file {self.path} holds no secret key of a cache; `nix key generate-secret` makes one"


@attrs.frozen(kw_only=True)
class CacheFilling:
    """Where closures are copied to, if anywhere, and the key they are signed with before."""

    cache: str | None
    signing_key_file: Path | None

    def fill(self, closures: Collection[Closure], *, silent: bool) -> None:
        """Copy what is in this machine's store.

        Raises:
            FlakeError: nix would not.
        """
        if self.cache is None:
            return
        from nixfleet.release.fill import fill, found_here
        from nixfleet.stoppable import run_stoppable

        here = found_here(closures)
        if here:
            click.echo(f"copying {len(here)} closures to {self.cache}", err=True)
            run_stoppable(functools.partial(fill, here, self.cache, self.signing_key_file))
        if not silent:
            print_line((Cell("copied", GOOD), f"{len(here)} closures to {self.cache}"))


def cache_fill(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options and hand them to the command as one `filling`."""

    @click.option(
        "--copy-to", type=CopyTargetType(), help="Copy what was built to this cache first, as `nix copy --to` does."
    )
    @click.option("--cache-key-file", type=options.FILE, help="Sign it before, with the private key of that cache.")
    @functools.wraps(command)
    def with_filling(*args: Any, copy_to: str | None, cache_key_file: Path | None, **kwargs: Any) -> Any:
        if cache_key_file is not None and copy_to is None:
            raise click.UsageError("--cache-key-file signs what --copy-to copies: name the cache")
        if cache_key_file is not None:
            _check(cache_key_file)
        return command(*args, filling=CacheFilling(cache=copy_to, signing_key_file=cache_key_file), **kwargs)

    return with_filling


def _check(path: Path) -> None:
    """Find out before anything is built."""
    try:
        CacheKey.parse(read_bytes(path, "cache key").decode("ascii").strip())
    except (CacheKeyError, UnicodeDecodeError):
        raise NoCacheKeyError(path=path) from None
