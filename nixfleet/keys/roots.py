"""Read a trust file that the user named: whatever is wrong with it is the user's to change."""

from pathlib import Path

import attrs

from evidence.errors import EvidenceError
from evidence.trust import TrustFileError, TrustRoots, load_trust
from nixfleet.errors import ConfigurationError


@attrs.frozen(kw_only=True)
class BadTrustFileError(ConfigurationError):
    """A trust file that cannot be read, or is none."""

    path: Path
    problem: str

    def __str__(self) -> str:
        return f"--trust-file {self.path}: {self.problem}"


def read_roots(path: Path) -> TrustRoots:
    """The trust roots in a file.

    Raises:
        BadTrustFileError: they cannot be had.
    """
    try:
        return load_trust(path)
    except TrustFileError as error:
        raise BadTrustFileError(path=path, problem=f"the trust file cannot be used ({error.problem})") from error
    except EvidenceError as error:
        raise BadTrustFileError(path=path, problem=error.detail) from error
