"""Why a call to the control plane failed, each in one sentence that names the fix."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs

from nixfleet.errors import ConfigurationError, StoppedError


@attrs.frozen(kw_only=True)
class BadUrlError(ConfigurationError):
    """The control plane's URL is not one that can be called safely."""

    url: str

    def __str__(self) -> str:
        # A password may stand before the @.
        shown = self.url.rpartition("@")[2][:200]
        return f"--control-plane-url {shown!r} is not an https:// URL of a host, a port and a path"


@attrs.frozen(kw_only=True)
class BadIdentityError(ConfigurationError):
    """A certificate or key file cannot be used."""

    flag: str
    path: Path
    problem: str

    def __str__(self) -> str:
        return f"{self.flag} {self.path}: {self.problem}"


@attrs.frozen(kw_only=True)
class BadRolloutIdError(ConfigurationError):
    """Text that names no rollout."""

    found: str

    def __str__(self) -> str:
        return f"{self.found[:80]!r} is not a rollout id such as stable@4be0c1; `nixfleet rollout list` shows them"


@attrs.frozen(kw_only=True)
class UnreachableError(StoppedError):
    """No answer came back."""

    url: str
    problem: str

    def __str__(self) -> str:
        return f"{self.url} cannot be reached: {self.problem}"


@attrs.frozen(kw_only=True)
class RefusedError(StoppedError):
    """The control plane answered, but not with what was asked for."""

    status: int
    problem: str
    reason: str = ""

    def __str__(self) -> str:
        hint = _HINTS.get(self.status, "")
        return f"the control plane answered {self.status}: {self.problem}{hint}"


@attrs.frozen(kw_only=True)
class StrangeAnswerError(StoppedError):
    """An answer that no control plane of this protocol gives."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"the answer to {self.path} makes no sense: {self.problem}; is this a nixfleet control plane?"


_HINTS: Final[Mapping[int, str]] = {
    401: "; --client-cert and --client-key must be an operator's that is not revoked",
    403: "; an operator certificate (OU=operator) is needed, `nixfleet keygen` makes one",
    503: "; it is not ready, try again in a moment",
}
