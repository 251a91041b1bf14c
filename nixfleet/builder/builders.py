"""Builders somewhere, and how to ask them: what a command or an instance of the updater says of them. Pure."""

from collections.abc import Mapping
from typing import Any, Final

import attrs

from messaging.errors import BadServerError
from messaging.server import Server, server_of
from nixfleet.builder.messages import Subjects, is_prefix

_OWN: Final = ("prefix", "repository")


@attrs.frozen(kw_only=True)
class Builders:
    """Those that listen on one NATS server."""

    server: Server
    prefix: str = "build"
    """What their subjects begin with."""
    repository: str = ""
    """What they call the repository; empty: they have one only."""

    @property
    def subjects(self) -> Subjects:
        """Where to ask."""
        return Subjects(prefix=self.prefix)


def builders_of(given: Mapping[str, Any], problems: list[str], *, key: str = "nats") -> Builders | None:
    """The builders of a table of a configuration file: the keys of a server, `prefix` and `repository`.

    Adds what is wrong with it to `problems`, and is None then.
    """
    found = len(problems)
    own = {name: given[name] for name in _OWN if name in given}
    problems += [f"`{key}.{name}` must be a text" for name, value in own.items() if not isinstance(value, str)]
    if isinstance(own.get("prefix"), str) and not is_prefix(own["prefix"]):
        what = "words of letters, digits, `_` and `-` with dots between"
        problems.append(f"`{key}.prefix` {own['prefix'][:80]!r} must be {what}")
    try:
        server = server_of({name: value for name, value in given.items() if name not in _OWN})
    except BadServerError as error:
        problems += [f"`{key}`: {problem}" for problem in error.problems]
    return None if problems[found:] else Builders(server=server, **own)
