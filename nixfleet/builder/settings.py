"""What one builder is to do: its configuration file, in TOML.

    state-dir = "/var/lib/nixfleet-builder"
    cache = "s3://cache?region=eu"
    signing-key-file = "/run/keys/cache"
    memory-max = "8G"

    [repositories.own]
    url = "git@git.example.org:us/fleet.git"

    [nats]
    url = "tls://nats.example.org"

Everything that is wrong is told at once. The table `nats` is somebody else's to read.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from messaging.subjects import NEWS, is_prefix
from nixfleet.builder.errors import SettingsError
from nixfleet.tables import Reader, read_document, shown, values

_SOURCE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", re.ASCII)
_BRANCH: Final = re.compile(r"(?!.*(\.\.|//|@\{|\.lock(/|$)))[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}(?<![./])", re.ASCII)
_MEMORY: Final = re.compile(r"[1-9][0-9]{0,15}[KMGT]?|[1-9][0-9]?%", re.ASCII)
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,253}")
_PROTOCOLS: Final = ("file", "git", "http", "https", "ssh")
_DURATIONS: Final = ("build_timeout", "patience")
_PORT_MAX: Final = 65_535
_PARALLEL_MAX: Final = 256


@attrs.frozen(kw_only=True)
class Source:
    """A repository that hosts are built from."""

    name: str
    url: str
    """Whatever git takes for a remote, as long as it runs no command of it."""
    branch: str = "main"
    """What is built when no revision is asked for."""
    flake_path: str = ""
    """Where `flake.nix` is below the top."""
    hosts: tuple[str, ...] = ("*",)
    """Patterns of hosts that may be built from it."""
    prebuild: bool = False
    """Every host is built when the branch moves, unasked."""


@attrs.frozen(kw_only=True)
class Settings:
    """One builder. Durations in seconds."""

    state_dir: Path
    """Mirrors, GC roots and logs."""
    repositories: Mapping[str, Source]
    parallel: int = 2
    memory_max: str = ""
    """For one run of Nix, such as `8G`; empty: no limit."""
    build_timeout: int = 4 * 3600
    """For one job, from its fetch to its copy."""
    patience: int = 30
    """After so long a silence of a builder its job is another's; the same for all builders of a server."""
    keep: int = 3
    """How many systems of a host are kept from the garbage collector."""
    cache: str = ""
    """Where to `nix copy` to; empty: nowhere."""
    signing_key_file: Path | None = None
    hosts: tuple[str, ...] = ("*",)
    """Patterns of hosts that may be built at all."""
    name: str = attrs.field(factory=platform.node)
    """Of this builder, in what it says."""
    prefix: str = "build"
    """What subjects begin with."""
    news_prefix: str = NEWS
    """What the subjects of news begin with, for repositories that are built ahead."""
    role: str = "builder"
    """A label of its metrics."""
    metrics_port: int | None = None
    nats: Mapping[str, Any] = attrs.field(factory=dict)

    def refusal(self, repository: str, host: str) -> str:
        """Why nobody gets this host built from this repository here, in a sentence; empty: they may."""
        source = self.repositories.get(repository)
        if source is None:
            known = ", ".join(sorted(self.repositories))
            return f"this builder has no repository {shown(repository)}; it has {known}"
        if not (_matches(host, self.hosts) and _matches(host, source.hosts)):
            return f"this builder does not build {shown(host)} of {repository}: its `hosts` do not name it"
        return ""


def read_settings(path: Path) -> Settings:
    """The configuration file of a builder.

    Raises:
        UnreadableFileError, SettingsError: it is not there; or with everything that is wrong with it.
    """

    def no_toml(problem: str) -> SettingsError:
        return SettingsError(where=str(path), problems=(problem,))

    return settings_of(read_document(path, what="configuration of the builder", no_toml=no_toml), str(path))


def settings_of(given: Mapping[str, Any], where: str) -> Settings:
    """Settings of a document that was read.

    Raises:
        SettingsError: with everything that is wrong with it.
    """
    problems: list[str] = []
    readers: dict[str, Reader] = {"repositories": _sources, "nats": partial(_table, "nats")}
    found = values(Settings, given, problems, durations=_DURATIONS, readers=readers)
    if "state_dir" not in found:
        problems.append("`state-dir` is missing: a directory for mirrors, GC roots and logs")
    if not given.get("repositories"):
        problems.append("`repositories` is missing: a table for each, such as [repositories.own] with its `url`")
    if not problems:
        settings = Settings(**found)
        problems += _wrong(settings)
    if problems:
        raise SettingsError(where=where, problems=tuple(problems))
    return settings


def _table(key: str, value: Any, problems: list[str]) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    problems.append(f"`{key}` must be a table")
    return {}


def _sources(value: Any, problems: list[str]) -> Mapping[str, Source]:
    sources: dict[str, Source] = {}
    for name, given in _table("repositories", value, problems).items():
        key = f"repositories.{shown(name)}"
        if not isinstance(given, dict):
            problems.append(f"`{key}` must be a table")
            continue
        found = values(Source, given, problems, prefix=f"{key}.", not_keys=("name",))
        if "url" not in found:
            problems.append(f"`{key}.url` is missing: what git is to fetch from")
        elif isinstance(found["url"], str):
            sources[name] = Source(name=name, **found)
            problems += [f"`{key}{problem}" for problem in _wrong_source(sources[name])]
    return sources


def _wrong_source(source: Source) -> list[str]:
    problems = []
    if not _SOURCE.fullmatch(source.name):
        problems.append("` is no name of a repository: it has letters, digits, `_` and `-`")
    if why := _wrong_url(source.url):
        problems.append(f".url` {shown(source.url)}: {why}")
    if not _BRANCH.fullmatch(source.branch):
        problems.append(f".branch` {source.branch[:80]!r} is no name of a branch")
    if Path(source.flake_path).is_absolute() or ".." in Path(source.flake_path).parts:
        problems.append(f".flake-path` {source.flake_path[:80]!r} must be below the repository")
    if not source.hosts:
        problems.append(".hosts` is empty, so that nothing would be built; leave it out for every host")
    return problems


def _wrong_url(url: str) -> str:
    """Why git is not asked to fetch from there; empty: it may be."""
    if not url or url.startswith("-") or not url.isprintable():
        return "no address that git takes"
    scheme, colons, _ = url.partition("::")
    if colons and re.fullmatch(r"[A-Za-z0-9+.-]+", scheme):
        return f"git would run a program for `{scheme}::`; name an address with https:// or ssh://"
    scheme, is_url, _ = url.partition("://")
    if is_url and scheme.lower() not in _PROTOCOLS:
        return f"git may fetch by {', '.join(_PROTOCOLS)} only"
    if not is_url and ":" not in url.partition("/")[0] and not Path(url).is_absolute():
        return "a directory of this machine must be named from the top"
    return ""


def _wrong(settings: Settings) -> list[str]:
    problems = []
    if settings.memory_max and not _MEMORY.fullmatch(settings.memory_max):
        problems.append(f"`memory-max` {settings.memory_max[:80]!r} is no amount such as 8G, 512M or 50%")
    if settings.parallel > _PARALLEL_MAX:
        problems.append(f"`parallel` must be {_PARALLEL_MAX} at most")
    if settings.metrics_port is not None and settings.metrics_port > _PORT_MAX:
        problems.append(f"`metrics-port` must be {_PORT_MAX} at most")
    if not is_prefix(settings.prefix):
        problems.append(
            f"`prefix` {settings.prefix[:80]!r} must be words of letters, digits, `_` and `-` with dots between"
        )
    if not is_prefix(settings.news_prefix):
        problems.append(f"`news-prefix` {settings.news_prefix[:80]!r} is no prefix of subjects, such as {NEWS}")
    problems += [f"`{key}` must be a name" for key in ("name", "role") if not _NAME.fullmatch(getattr(settings, key))]
    if settings.cache and not _is_store(settings.cache):
        problems.append(f"`cache` {settings.cache[:80]!r} is no store that `nix copy --to` takes, such as s3://bucket")
    if not settings.hosts:
        problems.append("`hosts` is empty, so that nothing would be built; leave it out for every host")
    return problems


def _is_store(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return url.isprintable() and " " not in url and bool(re.match(r"[a-z]", url)) and bool(parts.scheme)


def _matches(host: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(host, pattern) for pattern in patterns)
