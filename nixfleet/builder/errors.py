"""Why a builder cannot be run, or why one build came to nothing.

A build's troubles never leave `work`: they are the `why` of its last message, for whoever asked.
"""

import attrs

from nixfleet.errors import ConfigurationError


@attrs.frozen(kw_only=True)
class SettingsError(ConfigurationError):
    """The builder cannot be run as it is configured."""

    where: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {'; '.join(self.problems)}"


class BuildError(Exception):
    """One build came to nothing. Its text is for whoever asked for it."""


@attrs.frozen(kw_only=True)
class RefusedError(BuildError):
    """The builder does not build this for anybody."""

    why: str

    def __str__(self) -> str:
        return self.why


@attrs.frozen(kw_only=True)
class FetchError(BuildError):
    """A repository cannot be fetched, or its mirror cannot be written."""

    repository: str
    said: str

    def __str__(self) -> str:
        return f"{self.repository} cannot be fetched: {self.said or 'git said nothing'}"


@attrs.frozen(kw_only=True)
class RevisionError(BuildError):
    """The repository has no such revision."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"{self.repository} has no branch, tag or commit {self.revision[:200]!r}: push it first, or name another"


@attrs.frozen(kw_only=True)
class NoSystemError(BuildError):
    """The flake has no system for the host."""

    host: str
    commit: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"the flake has no host {self.host} at {self.commit[:12]}; there are: {known}"


@attrs.frozen(kw_only=True)
class NixError(BuildError):
    """Nix would not. `tail` is the end of its log."""

    what: str
    said: str
    tail: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.said or 'nix failed and said nothing'}"
