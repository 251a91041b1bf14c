"""Why a host key cannot be used. Each cause is its own error, and each says what to do about it."""

from pathlib import Path
from typing import ClassVar

import attrs

from evidence.errors import EvidenceError
from state_machine.values import Reason


@attrs.frozen(kw_only=True)
class HostKeyError(EvidenceError):
    """The root: the key file `path` yields no host key. Never raised as itself."""

    reason: ClassVar[Reason] = Reason.BAD_KEY
    path: Path


@attrs.frozen(kw_only=True)
class HostKeyMissingError(HostKeyError):
    """There is no such file."""

    def __str__(self) -> str:
        return f"there is no host key at {self.path}; `ssh-keygen -A` makes one, --ssh-host-key-file names another path"


@attrs.frozen(kw_only=True)
class HostKeyUnreadableError(HostKeyError):
    """The operating system does not let us read it."""

    problem: str

    def __str__(self) -> str:
        return f"the host key {self.path} cannot be read ({self.problem}); run as its owner, usually root"


@attrs.frozen(kw_only=True)
class HostKeyNotAFileError(HostKeyError):
    """A directory, pipe, socket or device."""

    found: str

    def __str__(self) -> str:
        return f"{self.path} is a {self.found}; give the path of the key file itself"


@attrs.frozen(kw_only=True)
class HostKeyWrongTypeError(HostKeyError):
    """A key, but not an ed25519 private key."""

    found: str

    def __str__(self) -> str:
        return (
            f"{self.path} holds {self.found}, an ed25519 private key is needed; "
            "`ssh-keygen -t ed25519` makes one, sshd's is /etc/ssh/ssh_host_ed25519_key"
        )


@attrs.frozen(kw_only=True)
class HostKeyEncryptedError(HostKeyError):
    """A key behind a passphrase, which a daemon cannot type."""

    cipher: str

    def __str__(self) -> str:
        return (
            f"the host key {self.path} is encrypted ({self.cipher}); host keys have no passphrase, "
            f"`ssh-keygen -p -N '' -f {self.path}` takes it off"
        )


@attrs.frozen(kw_only=True)
class HostKeyCorruptError(HostKeyError):
    """Damaged, cut short, or no private key at all."""

    size: int
    problem: str

    def __str__(self) -> str:
        return (
            f"the host key {self.path} ({self.size} bytes) is damaged: {self.problem}; "
            "restore it from a backup, or make a new one and enrol again"
        )


@attrs.frozen(kw_only=True)
class HostKeyMismatchError(HostKeyError):
    """The public half in the file belongs to another key."""

    def __str__(self) -> str:
        return (
            f"the public half inside {self.path} does not belong to its private half; "
            "restore it from a backup, or make a new one and enrol again"
        )


@attrs.frozen(kw_only=True)
class HostKeyExistsError(HostKeyError):
    """A new key would replace one that is there."""

    def __str__(self) -> str:
        return f"{self.path} exists and is not overwritten: a lost host key cannot be made again; move it away first"
