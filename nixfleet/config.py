"""Read the configuration file and offer it to click as defaults: flag beats environment beats file.

The file is TOML: `--config`, else `NIXFLEET_CONFIG`, else `~/.config/nixfleet/config.toml` (`$XDG_CONFIG_HOME` is
honoured), which may be absent. Keys at the top are shared settings; a table named after a command sets options of
that command, with underscores for dashes. A key that nothing reads is an error, because it is a typo somebody
relies on. Paths may begin with `~/`.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import click

from evidence.regular_files import read_whole
from nixfleet.errors import ConfigurationError, UnreadableFileError

LIMIT: Final = 1024 * 1024

SHARED: Final = (
    "control_plane_url",
    "ca_cert",
    "client_cert",
    "client_key",
    "trust_file",
    "ci_key",
    "org_root_key",
    "releases_dir",
    "to",
    "to_token_file",
    "to_credentials_file",
    "nats_url",
    "nats_nkey_file",
    "nats_credentials_file",
    "nats_token_file",
    "nats_ca_cert",
    "nats_prefix",
    "repo",
    "news_prefix",
)
"""Settings that more than one command reads; each also has the variable `NIXFLEET_<NAME>`."""


@attrs.frozen(kw_only=True)
class ConfigFileError(ConfigurationError):
    """The configuration file does not say what it should."""

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class Defaults(dict[str, Any]):
    """Default values of a command that hold for every command below it too."""

    def get(self, key: str, default: Any = None) -> Any:
        """A setting's value; for any other name, which is then a sub-command's, these defaults again."""
        return super().get(key, self)


@attrs.frozen(kw_only=True)
class ConfigFile:
    """A configuration file as read, or an empty one."""

    path: Path
    content: Mapping[str, Any]

    def defaults_for(self, name: str, command: click.Command) -> Defaults:
        """Shared settings, then those of the table `[name]`, `~` expanded; one value is a list where many may be."""
        table = self.content.get(name, {})
        shared = {key: self.content[key] for key in SHARED if key in self.content}
        many = {option.name for option in _options(command) if option.multiple}
        given = {key: _expanded(value) for key, value in {**shared, **table}.items()}
        return Defaults(
            {key: [value] if key in many and isinstance(value, str) else value for key, value in given.items()}
        )

    def check(self, tables: Iterable[str]) -> None:
        """Refuse keys that are no shared setting and tables that are no command.

        Raises:
            ConfigFileError: naming the first one and the nearest known name.
        """
        known = list(tables)
        for key, value in self.content.items():
            if key in known and not isinstance(value, dict):
                raise ConfigFileError(path=self.path, why=f"[{key}] must be a table of options, not {value!r:.60}")
            if isinstance(value, dict) and key not in known:
                raise ConfigFileError(path=self.path, why=f"[{key}] is no command{_nearest(key, known)}")
            if not isinstance(value, dict) and key not in SHARED:
                raise ConfigFileError(path=self.path, why=f"`{key}` is no setting{_nearest(key, SHARED)}")

    def check_table(self, name: str, command: click.Command) -> None:
        """Refuse keys of the table `[name]` that no option of the command or its sub-commands is called.

        Raises:
            ConfigFileError: naming the first one and the nearest known name.
        """
        options = sorted({option.name for option in _options(command) if option.name})
        for key in self.content.get(name, {}):
            if key not in options:
                why = f"[{name}] `{key}` is no option of `nixfleet {name}`{_nearest(key, options)}"
                raise ConfigFileError(path=self.path, why=why)
        for option in _options(command):
            self._check_value(option, f"[{name}] `{option.name}`", self.content.get(name, {}))
            self._check_value(option, f"`{option.name}`", self.content if option.name in SHARED else {})

    def _check_value(self, option: click.Option, what: str, given: Mapping[str, Any]) -> None:
        if option.name in given and not _fits(option, given[option.name]):
            raise ConfigFileError(
                path=self.path, why=f"{what} must be {_wanted(option)}, not {given[option.name]!r:.60}"
            )


def default_path() -> Path:
    """Where the file is looked for when nobody names one."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "nixfleet" / "config.toml"


def load(named: Path | None) -> ConfigFile:
    """Read the named file, which must exist, or the default one, which may not.

    Raises:
        UnreadableFileError: the named file is missing, or the file may not be read.
        ConfigFileError: it is not TOML.
    """
    path = named or default_path()
    try:
        content = tomllib.loads(read_whole(path, LIMIT).decode("utf-8"))
        if _has_nul(content):
            raise ConfigFileError(path=path, why="a value has a NUL character, which no path or name can have")
        return ConfigFile(path=path, content=content)
    except FileNotFoundError as error:
        if named is None:
            return ConfigFile(path=path, content={})
        raise UnreadableFileError(path=path, what="configuration file", cause=error.strerror or "missing") from error
    except OSError as error:
        raise UnreadableFileError(path=path, what="configuration file", cause=error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigFileError(path=path, why=f"not TOML: {error}") from error


def _fits(option: click.Option, value: Any) -> bool:
    if option.is_flag:
        return isinstance(value, bool)
    if option.multiple and isinstance(value, list):
        return all(isinstance(each, str) for each in value)
    numbers = isinstance(option.type, click.types.IntParamType) or option.type.name == "DURATION"
    return isinstance(value, str) or (numbers and isinstance(value, int) and not isinstance(value, bool))


def _wanted(option: click.Option) -> str:
    return "true or false" if option.is_flag else "text" + (" or a list of it" if option.multiple else "")


def _has_nul(value: Any) -> bool:
    match value:
        case str():
            return "\0" in value
        case dict():
            return any(map(_has_nul, value.values()))
        case list():
            return any(map(_has_nul, value))
        case _:
            return False


def _expanded(value: Any) -> Any:
    match value:
        case str() if value.startswith("~/"):
            return str(Path(value).expanduser())
        case list():
            return [_expanded(each) for each in value]
        case _:
            return value


def _options(command: click.Command) -> Iterator[click.Option]:
    """Every option of the command and of those below it."""
    yield from (parameter for parameter in command.params if isinstance(parameter, click.Option))
    if isinstance(command, click.Group):
        for child in command.commands.values():
            yield from _options(child)


def _nearest(key: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean `{near[0]}`?" if near else f": one of {', '.join(known)}"
