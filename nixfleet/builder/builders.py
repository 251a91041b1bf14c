"""Builders somewhere, and how to ask them: what a command or an instance of the updater says of them. Pure."""

from collections.abc import Mapping
from typing import Any, Final

import attrs

from messaging.errors import BadServerError
from messaging.server import Server, server_of
from messaging.subjects import is_prefix
from nixfleet.builder.messages import Subjects, is_repository

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


def builders_of(given: Mapping[str, Any], problems: list[str], *, where: str = "`nats`: ") -> Builders | None:
    """The builders of a table of a configuration file: the keys of a server, `prefix` and `repository`.

    Adds what is wrong with it to `problems`, and is None then.
    """
    own = {name: given[name] for name in _OWN if name in given}
    wrong = [f"`{name}` must be a text" for name, value in own.items() if not isinstance(value, str)]
    if not wrong and not is_prefix(own.get("prefix", "build")):
        what = "words of letters, digits, `_` and `-` with dots between"
        wrong.append(f"`prefix` {own['prefix'][:80]!r} must be {what}")
    if not wrong and not is_repository(own.get("repository") or "any"):
        wrong.append(f"`repository` {own['repository'][:80]!r} is no name of a repository")
    try:
        server = server_of({name: value for name, value in given.items() if name not in _OWN})
    except BadServerError as error:
        wrong += error.problems
    problems += [f"{where}{problem}" for problem in wrong]
    return None if wrong else Builders(server=server, **own)
