"""Where a binary cache may be, and the credentials for it: what can be said before anybody is asked.

An address never carries a password here, so that every message may show it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

import attrs

from nixfleet.errors import ConfigurationError
from nixfleet.files import read_bytes

NETRC_LIMIT: Final = 64 * 1024


@attrs.frozen(kw_only=True)
class CacheUrlError(ConfigurationError):
    """An address at which there can be no cache, or none that can be asked from here."""

    problem: str

    def __str__(self) -> str:
        return f"--cache: {self.problem}; give https://HOST/PATH, http://HOST/PATH or file:///DIRECTORY"


@attrs.frozen(kw_only=True)
class NetrcError(ConfigurationError):
    """A file of credentials that is none. What is in it stays in it."""

    path: Path
    line: int

    def __str__(self) -> str:
        return (
            f"--cache-netrc {self.path}: line {self.line} is not as netrc has it: "
            "`machine HOST login NAME password SECRET`"
        )


Credentials = Mapping[str, tuple[str, str]]
"""Name and password by host; the host "" is any other."""


def checked_url(text: str) -> str:
    """`text` itself, when a cache may be there.

    Raises:
        CacheUrlError: saying what is wrong, and nothing that may be a password.
    """
    if not text.isascii() or not text.isprintable() or " " in text:
        raise CacheUrlError(problem="it is not a plain address")
    parts = split_url(text)
    if parts.username is not None or parts.password is not None:
        raise CacheUrlError(problem="a password in an address is seen by everybody: put it into --cache-netrc")
    if parts.scheme == "file":
        if parts.netloc or not parts.path.startswith("/"):
            raise CacheUrlError(problem=f"{text[:100]!r} leads to no directory of this machine")
    elif parts.scheme not in ("http", "https"):
        raise CacheUrlError(problem=f"{text[:100]!r} cannot be asked: an S3 bucket is, at its HTTP address")
    elif not parts.hostname:
        raise CacheUrlError(problem=f"{text[:100]!r} names no host")
    return text


def read_netrc(path: Path) -> Credentials:
    """The credentials in a netrc file, as `netrc-file` of Nix's settings has them.

    Raises:
        UnreadableFileError, NetrcError: there are none to be had.
    """
    found: dict[str, tuple[str, str]] = {}
    host: str | None = None
    words = _netrc_words(path)
    for line, word in words:
        if word == "default":
            host = ""
        elif word == "machine":
            host = next(words, (line, ""))[1]
        elif host is None or word not in ("login", "password", "account"):
            raise NetrcError(path=path, line=line)
        else:
            value = next(words, (line, ""))[1]
            login, password = found.get(host, ("", ""))
            found[host] = {"login": (value, password), "password": (login, value)}.get(word, (login, password))
    return found


def split_url(text: str) -> SplitResult:
    """The parts of an address.

    Raises:
        CacheUrlError: it is none.
    """
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - it is looked at here so that a bad one is refused here
    except ValueError as error:
        raise CacheUrlError(problem="it is not an address") from error
    return parts


def _netrc_words(path: Path) -> Iterator[tuple[int, str]]:
    content = read_bytes(path, "file of credentials", NETRC_LIMIT)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NetrcError(path=path, line=content[: error.start].count(b"\n") + 1) from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("#"):
            for word in line.split():
                yield number, word
