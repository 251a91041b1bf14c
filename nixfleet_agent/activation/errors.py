"""What can go wrong inside activation; platforms turn every one of these into an answer."""

import attrs


class ActivationError(Exception):
    """Root of this package's errors."""


@attrs.frozen(kw_only=True)
class ProfileError(ActivationError):
    """The system profile could not be made to point at a closure."""

    profile: str
    closure: str
    cause: str

    def __str__(self) -> str:
        return f"profile {self.profile} could not be set to {self.closure}: {self.cause}"


@attrs.frozen(kw_only=True)
class LaunchError(ActivationError):
    """The process that would run the switch could not be started; nothing was switched."""

    how: str
    cause: str

    def __str__(self) -> str:
        return f"the switch could not be started by {self.how}: {self.cause}"


@attrs.frozen(kw_only=True)
class LockError(ActivationError):
    """A switch lock cannot be examined, so it must be taken for held."""

    path: str
    cause: str

    def __str__(self) -> str:
        return f"switch lock {self.path} cannot be examined: {self.cause}"


@attrs.frozen(kw_only=True)
class CacheUrlError(ActivationError):
    """A cache address that would weaken verification, or that is none."""

    url: str
    cause: str

    def __str__(self) -> str:
        return f"cache {self.url!r} is not used: {self.cause}"


@attrs.frozen(kw_only=True)
class CacheKeyError(ActivationError):
    """A cache key is not `name:base64` of an ed25519 key."""

    name: str
    cause: str

    def __str__(self) -> str:
        return f"cache key {self.name!r}: {self.cause}; expected `name:base64` as `nix key` writes it"


@attrs.frozen(kw_only=True)
class TreeError(ActivationError):
    """A directory holds something that no closure may contain, or could not be read."""

    path: str
    cause: str

    def __str__(self) -> str:
        return f"{self.path}: {self.cause}"
