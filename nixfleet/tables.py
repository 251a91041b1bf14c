"""Tables of a TOML file, read into the fields of an attrs class: a key is the field's name with `-` for `_`.

What is wrong is collected, never raised one by one, so that somebody mends a file once. A key that nothing reads is an
error, and is told with the nearest one that something does.
"""

import contextlib
import difflib
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from evidence.regular_files import read_whole
from nixfleet.clock import parse_duration_s
from nixfleet.errors import UnreadableFileError

_LIMIT: Final = 1024 * 1024

Reader = Callable[[Any, list[str]], Any]
"""Takes what stands at a key, adds what is wrong with it to the list, and returns what the field is to be."""


def read_document(path: Path, *, what: str, no_toml: Callable[[str], Exception]) -> dict[str, Any]:
    """A TOML file as it is. `no_toml` makes the error of a file that is none.

    Raises:
        UnreadableFileError: it is not there, or may not be read; or what `no_toml` makes.
    """
    try:
        return tomllib.loads(read_whole(path, _LIMIT).decode("utf-8"))
    except OSError as error:
        raise UnreadableFileError(path=path, what=what, cause=error.strerror or str(error)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_toml(f"not TOML: {error}") from error


def values(
    owner: type,
    given: Mapping[str, Any],
    problems: list[str],
    *,
    prefix: str = "",
    durations: Collection[str] = (),
    readers: Mapping[str, Reader] | None = None,
    not_keys: Collection[str] = (),
) -> dict[str, Any]:
    """What a table says of the fields of `owner`, an attrs class. Adds what is wrong to `problems`.

    `durations` are fields that take `15m` too; `readers` are keys that something else reads; `not_keys` are fields
    that a table does not decide about.
    """
    own = {} if readers is None else readers
    fields = {field.name.replace("_", "-"): field for field in attrs.fields(owner) if field.name not in not_keys}
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key in own:
            found[key.replace("-", "_")] = own[key](value, problems)
        elif key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            problems.append(f"`{prefix}{shown(key)}` is no option" + (f"; did you mean `{near[0]}`?" if near else ""))
        else:
            field = fields[key]
            found[field.name] = _value(field, f"{prefix}{key}", value, problems, field.name in durations)
    return found


def shown(text: str) -> str:
    """A name that somebody chose, in a line."""
    return text[:80] if text.isprintable() else repr(text[:80])


def _value(field: "attrs.Attribute[Any]", key: str, value: Any, problems: list[str], is_duration: bool) -> Any:
    kind = str(field.type)
    if "tuple" in kind:
        items = [value] if isinstance(value, str) else value
        if isinstance(items, list | tuple) and all(isinstance(item, str) and "\0" not in item for item in items):
            return tuple(items)
        problems.append(f"`{key}` must be a list of texts")
    elif "Path" in kind:
        with contextlib.suppress(RuntimeError):  # a `~user` who is nobody
            if isinstance(value, str | Path) and str(value) and "\0" not in str(value):
                return Path(value).expanduser().absolute()
        problems.append(f"`{key}` must be a path")
    elif "bool" in kind:
        if isinstance(value, bool):
            return value
        problems.append(f"`{key}` must be true or false")
    elif is_duration and isinstance(value, str):
        try:
            return parse_duration_s(value)
        except ValueError as error:
            problems.append(f"`{key}`: {error}")
    elif "int" in kind:
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9:
            return value
        problems.append(f"`{key}` must be a whole number above 0")
    elif isinstance(value, str) and "\0" not in value:
        return value
    else:
        problems.append(f"`{key}` must be a text")
    return field.default
