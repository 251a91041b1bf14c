"""What can be wrong with a fleet description: found all at once, each with its place in the file."""

import difflib
from collections.abc import Iterable
from pathlib import Path

import attrs

from nixfleet.errors import ConfigurationError


@attrs.frozen(kw_only=True)
class Problem:
    """One thing to fix. `where` is a path such as `hosts.node1.channel`."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@attrs.frozen(kw_only=True)
class DescriptionError(ConfigurationError):
    """The description cannot be released as it is; nothing was written."""

    problems: tuple[Problem, ...]
    path: Path | None = None
    flake: str = ""

    def __str__(self) -> str:
        count = len(self.problems)
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        where = f" {self.flake or self.path}" if self.flake or self.path is not None else ""
        return f"the fleet description{where} has {count} problem{'s' if count > 1 else ''}:{lines}"


def unknown(name: str, known: Iterable[str], kind: str) -> str:
    """Say that no `kind` is called `name`, and which name was probably meant."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f'no {kind} is called "{name}"; did you mean "{near[0]}"?'
    listed = f" (there are: {', '.join(known[:8])}{', ...' if len(known) > 8 else ''})" if known else ""
    return f'no {kind} is called "{name}"{listed}'
