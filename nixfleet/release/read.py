"""Read a fleet description: what is to be released, before it is resolved and signed.

The file is TOML or JSON and has the members of `fleet.resolved.json` (protocol section 2.2) without `schemaVersion`,
`waves` and `meta`, which resolving adds. `nixfleet.release.example` shows it whole. A host's closure is given as
`closure` or `closureHash`, as a store path or as the base name of one.

A member that is not known is a problem, never ignored: it is a typo, or a promise this tool would break in silence.
"""

import datetime
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import GenericAlias
from typing import Any, Final, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn, override

from evidence.canonical import CanonicalError, parse
from nixfleet.files import read_bytes
from nixfleet.release.description import Description, base_name
from nixfleet.release.problems import DescriptionError, Problem, unknown
from state_machine.values import FailurePolicy, WallMs
from wire.timestamps import parse_rfc3339


@attrs.frozen(kw_only=True)
class WrongTypeError(ValueError):
    """A value of another kind than its place asks for."""

    wanted: str
    found: str

    def __str__(self) -> str:
        return f"must be {self.wanted}, not {self.found}"


def read_description(path: Path) -> Description:
    """Read a description file; its suffix says whether it is `.toml` or `.json`.

    Raises:
        UnreadableFileError: the file cannot be read.
        DescriptionError: it does not parse, or its members are not as above; every problem is listed.
    """
    content = read_bytes(path, "fleet description")
    try:
        document = parse(content) if path.suffix == ".json" else tomllib.loads(content.decode("utf-8"))
    except (CanonicalError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DescriptionError(problems=(Problem(where=str(path), what=str(error)),)) from error
    try:
        return parse_description(document)
    except DescriptionError as error:
        raise attrs.evolve(error, path=path) from error


def parse_description(document: Any) -> Description:
    """Make a description of a parsed file.

    Raises:
        DescriptionError: listing every member that is missing, unknown or of the wrong kind.
    """
    try:
        return _CONVERTER.structure(_with_plain_closures(document), Description)
    except (ClassValidationError, WrongTypeError) as error:
        raise DescriptionError(problems=tuple(_found_in(error, ""))) from error


def camel(name: str) -> str:
    """`rollout_policy` as the file spells it: `rolloutPolicy`."""
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _with_plain_closures(document: Any) -> Any:
    """Let `closure` stand for `closureHash`, which other tools write."""
    hosts = document.get("hosts") if isinstance(document, dict) else None
    if not isinstance(hosts, dict):
        return document
    return {**document, "hosts": {name: _plain(host) for name, host in hosts.items()}}


def _plain(host: Any) -> Any:
    if not isinstance(host, dict) or {"closure", "closureHash"} <= host.keys():
        return host
    renamed = {"closureHash" if key == "closure" else key: value for key, value in host.items()}
    closure = renamed.get("closureHash")
    return {**renamed, "closureHash": base_name(closure)} if isinstance(closure, str) else renamed


def _strict(kind: type, wanted: str) -> Any:
    def structure(value: Any, _: Any) -> Any:
        # bool is an int to Python, but `soakMinutes = true` is a mistake.
        if type(value) is not kind:
            raise WrongTypeError(wanted=wanted, found=_shown(value))
        return value

    return structure


def _number(value: Any, _: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise WrongTypeError(wanted="a whole number from 0 on", found=_shown(value))
    return value


def _instant(value: Any, _: Any) -> WallMs:
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.isoformat()
    if not isinstance(value, str):
        raise WrongTypeError(wanted="a timestamp with its offset from UTC", found=_shown(value))
    return parse_rfc3339(value)


def _failure_policy(value: Any, _: Any) -> FailurePolicy:
    if value not in list(FailurePolicy):
        raise WrongTypeError(wanted=" or ".join(f'"{policy}"' for policy in FailurePolicy), found=_shown(value))
    return FailurePolicy(value)


def _table(kind: Any, converter: Converter) -> Any:
    renames: dict[str, Any] = {field.name: override(rename=camel(field.name)) for field in attrs.fields(kind)}
    structure: Any = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True, **renames)
    return lambda value, cl: structure(_checked(value, dict, "a table"), cl)


def _list(kind: Any, converter: Converter) -> Any:
    items: Any = GenericAlias(list, get_args(kind)[0])
    return lambda value, _: tuple(converter.structure(_checked(value, list, "a list"), items))


def _map(kind: Any, converter: Converter) -> Any:
    entries: Any = GenericAlias(dict, get_args(kind))
    return lambda value, _: converter.structure(_checked(value, dict, "a table"), entries)


def _checked(value: Any, kind: type[Any], wanted: str) -> Any:
    if not isinstance(value, kind):
        raise WrongTypeError(wanted=wanted, found=_shown(value))
    return value


def _shown(value: Any) -> str:
    match value:
        case dict():
            return "a table"
        case list():
            return "a list"
        case str():
            return f'"{value[:40]}"'
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case _:
            return str(value)[:40]


def _found_in(error: BaseException, where: str) -> Iterator[Problem]:
    """Walk what cattrs collected and name each place as the file spells it."""
    match error:
        case ClassValidationError():
            noted, bare = error.group_exceptions()
            for cause, note in noted:
                yield from _found_in(cause, _below(where, camel(note.name)))
            for cause in bare:
                yield from _found_in(cause, where)
        case IterableValidationError():
            for cause, place in error.group_exceptions()[0]:
                index = place.index
                yield from _found_in(cause, f"{where}[{index}]" if isinstance(index, int) else _below(where, index))
        case ForbiddenExtraKeysError():
            members = [camel(field.name) for field in attrs.fields(error.cl)]
            for extra in sorted(error.extra_fields):
                yield Problem(where=_below(where, extra), what=unknown(extra, members, "member"))
        case KeyError():
            yield Problem(where=where, what="is missing")
        case _:
            yield Problem(where=where or "the description", what=str(error))


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _is_generic(origin: Any) -> Callable[[Any], bool]:
    return lambda kind: get_origin(kind) is origin


def _bound(factory: Callable[[Any, Converter], Any], converter: Converter) -> Callable[[Any], Any]:
    return lambda kind: factory(kind, converter)


def _converter() -> Converter:
    converter = Converter(detailed_validation=True)
    factories: tuple[tuple[Callable[[Any], bool], Callable[[Any, Converter], Any]], ...] = (
        (attrs.has, _table),
        (_is_generic(tuple), _list),
        (_is_generic(Mapping), _map),
    )
    for applies, factory in factories:
        converter.register_structure_hook_factory(applies, _bound(factory, converter))
    converter.register_structure_hook(str, _strict(str, "text"))
    converter.register_structure_hook(bool, _strict(bool, "true or false"))
    converter.register_structure_hook(int, _number)
    converter.register_structure_hook(WallMs, _instant)
    converter.register_structure_hook(FailurePolicy, _failure_policy)
    return converter


_CONVERTER: Final = _converter()
