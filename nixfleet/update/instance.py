"""What one instance of the updater is to do: a table of a TOML file, or flags, or a table with flags over it.

    [biweekly]
    repo-path = "/srv/fleet"
    auto-merge = true
    push = true

Every key is the flag of `nixfleet update` without its dashes in front; what has no flag stands in the tables
`auto-fix`, `forge`, `notify`, `release` and `nats` below it. A key that nothing reads is an error.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from nixfleet.builder.builders import Builders, builders_of
from nixfleet.errors import ConfigurationError
from nixfleet.tables import Reader, read_document, shown, values

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)
"""Of an instance: it is the name of a directory and of a unit."""
_REMOTE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,99}", re.ASCII)
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", re.ASCII)
_INPUT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_'-]*(/[A-Za-z_][A-Za-z0-9_'-]*)*", re.ASCII)
_HOST: Final = re.compile(r"[^\s\"\\$/\0-\x1f]{1,253}")
"""An attribute that needs no escapes when it is quoted."""
_DURATIONS: Final = ("build_timeout", "close_stale_after", "timeout")
_BRANCH: Final = re.compile(r"(?!.*(\.\.|//|@\{|\.lock(/|$)))[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}(?<![./])", re.ASCII)


@attrs.frozen(kw_only=True)
class InstanceError(ConfigurationError):
    """The instance cannot be run as it is configured."""

    where: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {'; '.join(self.problems)}"


@attrs.frozen(kw_only=True)
class AutoFix:
    """An agent that may mend what an update broke. Nothing of this run's environment reaches it but the file's."""

    command: str = "pir"
    extra_args: tuple[str, ...] = ()
    max_attempts: int = 3
    env_file: Path | None = None
    paths: tuple[str, ...] = ()
    """Below which the fix may change files; empty: anywhere in the repository."""
    timeout: int = 1800


@attrs.frozen(kw_only=True)
class Forge:
    """Where pull requests are opened."""

    kind: str = ""
    """`gitea` (Forgejo too), `github`, or empty for none."""
    url: str = ""
    """Base of its API, such as https://git.example.org/api/v1."""
    repository: str = ""
    token_file: Path | None = None


@attrs.frozen(kw_only=True)
class Notify:
    """Who is told how a run ended."""

    ntfy_server: str = "https://ntfy.sh"
    ntfy_topic: str = ""
    ntfy_token_file: Path | None = None
    urls_file: Path | None = None
    """Addresses in the form of apprise, one a line."""
    inbox_org: Path | None = None


@attrs.frozen(kw_only=True)
class Release:
    """What the main branch has is released after each run that did not fail."""

    args: tuple[str, ...] = ()
    """More of `nixfleet release`: where the key is, where it goes, which cache to look in."""
    timeout: int = 6 * 3600


@attrs.frozen(kw_only=True)
class Instance:
    """One repository that is kept up to date. Durations in seconds."""

    name: str
    repo_path: Path
    flake_path: str = ""
    flake_inputs: tuple[str, ...] = ()
    build_systems: tuple[str, ...] = ()
    git_remote: str = "origin"
    main_branch: str = "main"
    branch_prefix: str = "flake-update-"
    auto_merge: bool = False
    push: bool = True
    dry_run: bool = False
    jobs: int = 2
    build_timeout: int = 4 * 3600
    close_stale_after: int | None = None
    auto_fix: AutoFix | None = None
    forge: Forge = Forge()
    notify: Notify = Notify()
    release: Release | None = None
    metrics_file: Path | None = None
    pushgateway: str = ""
    builder: str = "local"
    """`local`: this machine, or wherever its Nix builds; `nats`: builders that are asked over NATS."""
    nats: Builders | None = None


BUILDERS: Final = ("local", "nats")
_GROUPS: Final[Mapping[str, type]] = {"auto-fix": AutoFix, "forge": Forge, "notify": Notify, "release": Release}
_NOT_FOR_RELEASE: Final = ("--flake", "--refresh", "--dry-run", "--json")
_SWITCHED: Final = ("auto-fix", "release")
"""Tables that can be there and be turned off by `enable`, or be turned on by `true` in their place."""


def read_instances(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The tables of a file of instances, unread.

    Raises:
        UnreadableFileError, InstanceError: it is not there, or is no such file.
    """
    document = read_document(
        path,
        what="file of instances",
        no_toml=lambda problem: InstanceError(where=str(path), problems=(problem,)),
    )
    loose = [key for key, value in document.items() if not isinstance(value, dict)]
    if loose:
        problem = (
            f"`{shown(loose[0])}` stands outside a table; every instance is a table of its own, such as [biweekly]"
        )
        raise InstanceError(where=str(path), problems=(problem,))
    if not document:
        raise InstanceError(where=str(path), problems=("it has no instance; each is a table, such as [biweekly]",))
    return document


def read_instance(name: str, given: Mapping[str, Any], where: str) -> Instance:
    """An instance of a table whose keys are names of flags.

    Raises:
        InstanceError: with everything that is wrong with it.
    """
    problems: list[str] = []
    where = f"{where} [{shown(name)}]"
    if not _NAME.fullmatch(name):
        problems.append("the name of an instance has letters, digits, `_`, and within it `.` and `-`")
    readers: dict[str, Reader] = {"nats": _nats, **{key: partial(_group, key) for key in _GROUPS}}
    found = values(Instance, given, problems, durations=_DURATIONS, readers=readers, not_keys=("name",))
    if "repo_path" not in found:
        problems.append("repo-path is missing: the repository with the flake")
    if problems:
        raise InstanceError(where=where, problems=tuple(problems))
    instance = Instance(name=name, **found)
    problems += _wrong(instance)
    if problems:
        raise InstanceError(where=where, problems=tuple(problems))
    return instance


def _nats(value: Any, problems: list[str]) -> Builders | None:
    if isinstance(value, dict):
        return builders_of(value, problems)
    problems.append("`nats` must be a table")
    return None


def _group(key: str, value: Any, problems: list[str]) -> Any:
    if key in _SWITCHED and isinstance(value, bool):
        value = {"enable": value}
    if not isinstance(value, dict):
        problems.append(f"`{key}` must be a table")
        return None
    given = dict(value)
    enable = given.pop("enable", True) if key in _SWITCHED else True
    if not isinstance(enable, bool):
        problems.append(f"`{key}.enable` must be true or false")
    elif not enable:
        return None
    return _GROUPS[key](**values(_GROUPS[key], given, problems, prefix=f"{key}.", durations=_DURATIONS))


def _wrong(instance: Instance) -> list[str]:
    problems = []
    if instance.auto_merge and not instance.push:
        problems.append("`auto-merge` needs `push`: what is merged is the remote's main branch")
    for key in ("main_branch", "branch_prefix"):
        text = getattr(instance, key)
        if not _BRANCH.fullmatch(text + ("x" if key == "branch_prefix" else "")):
            problems.append(f"`{key.replace('_', '-')}` {text[:80]!r} makes no name of a branch")
    if instance.builder not in BUILDERS:
        problems.append(f"`builder` {instance.builder[:80]!r} is neither local nor nats")
    if instance.builder == "nats" and instance.nats is None:
        problems.append("`builder` is nats: a table `nats` is missing, with the `url` of the server")
    if instance.main_branch.startswith(instance.branch_prefix):
        problems.append(f"`branch-prefix` {instance.branch_prefix!r} would take {instance.main_branch!r} for an update")
    if not _REMOTE.fullmatch(instance.git_remote):
        problems.append(f"`git-remote` {instance.git_remote[:80]!r} is no name of a remote")
    parts = Path(instance.flake_path).parts
    if Path(instance.flake_path).is_absolute() or ".." in parts:
        problems.append(f"`flake-path` {instance.flake_path[:80]!r} must be below the repository")
    problems += [f"`flake-inputs` {name[:80]!r} is no name of an input" for name in instance.flake_inputs
                 if not _INPUT.fullmatch(name)]  # fmt: skip
    problems += [f"`build-systems` {name[:80]!r} is no name of a host" for name in instance.build_systems
                 if not _HOST.fullmatch(name)]  # fmt: skip
    if instance.release is not None and (bad := [word for word in instance.release.args if word in _NOT_FOR_RELEASE]):
        problems.append(f"`release.args` {', '.join(bad)}: the updater itself says what is released")
    if instance.auto_fix is not None and not instance.auto_fix.command:
        problems.append("`auto-fix.command` is empty")
    problems += [f"`auto-fix.paths` {path!r} must be below the repository" for path in _outside(instance.auto_fix)]
    addresses = {
        "forge.url": instance.forge.url,
        "notify.ntfy-server": instance.notify.ntfy_server,
        "pushgateway": instance.pushgateway,
    }
    problems += [f"`{key}` {url!r} is no address that begins with https:// or http://"
                 for key, url in addresses.items() if url and not _is_url(url)]  # fmt: skip
    return problems + _wrong_forge(instance.forge)


def _outside(settings: AutoFix | None) -> list[str]:
    paths = () if settings is None else settings.paths
    return [path for path in paths if not path or Path(path).is_absolute() or ".." in Path(path).parts]


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  # a port that is none is found out by asking
    except ValueError:
        return False
    plain = text.isascii() and text.isprintable() and " " not in text
    return plain and parts.scheme in ("http", "https") and bool(parts.hostname)


def _wrong_forge(forge: Forge) -> list[str]:
    problems = []
    if forge.kind not in ("", "gitea", "github"):
        problems.append(f"`forge.kind` {forge.kind!r} is neither gitea nor github")
    if forge.kind and not (_REPOSITORY.fullmatch(forge.repository) and forge.token_file):
        problems.append("`forge` needs a repository (OWNER/NAME) and a token-file")
    if forge.kind == "gitea" and not forge.url:
        problems.append("`forge.url` is missing: the base of the API, such as https://git.example.org/api/v1")
    return problems
