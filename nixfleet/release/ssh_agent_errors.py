"""Why a key in an agent could not sign. What was asked wrongly ends with 2, what the agent would not do with 1."""

from typing import Final

import attrs

from nixfleet.errors import ConfigurationError, StoppedError

PREFIX: Final = "agent:"
MESSAGE_MAX: Final = 256 * 1024
"""OpenSSH's agent closes the connection on a longer request; its answers are never longer either."""


@attrs.frozen(kw_only=True)
class AgentKeyNameError(ConfigurationError):
    """What follows `agent:` names no key."""

    what: str
    found: str
    problem: str

    def __str__(self) -> str:
        return (
            f"the {self.what} {PREFIX}{self.found[:120]} names no key ({self.problem}): give {PREFIX}FILE.pub or "
            f"{PREFIX}SHA256:FINGERPRINT of an ed25519 or P-256 key, as `ssh-add -l` lists it"
        )


@attrs.frozen(kw_only=True)
class NoAgentError(StoppedError):
    """There is no agent to talk to."""

    cause: str

    def __str__(self) -> str:
        return f"no ssh-agent can be asked to sign ({self.cause}): start one, and see that SSH_AUTH_SOCK leads to it"


@attrs.frozen(kw_only=True)
class AgentLacksKeyError(StoppedError):
    """The agent holds other keys, or none, which is also what a locked one says."""

    wanted: str
    held: tuple[str, ...]

    def __str__(self) -> str:
        if not self.held:
            return (
                f"ssh-agent lists no key at all, so not {self.wanted}: add it with `ssh-add`, or unlock the agent "
                "with `ssh-add -X`"
            )
        return f"ssh-agent does not hold {self.wanted}: add it with `ssh-add`; it holds {', '.join(self.held)}"


@attrs.frozen(kw_only=True)
class AgentRefusedError(StoppedError):
    """The agent has the key and would not sign."""

    wanted: str

    def __str__(self) -> str:
        return (
            f"ssh-agent refused to sign with {self.wanted}: it was not confirmed, its token is gone, or the agent was "
            "locked meanwhile (`ssh-add -X` unlocks it)"
        )


@attrs.frozen(kw_only=True)
class AgentSilentError(StoppedError):
    """The agent did not answer in time."""

    within_s: float

    def __str__(self) -> str:
        return (
            f"ssh-agent did not answer within {self.within_s:g} s: see whether it waits for a confirmation or a touch"
        )


@attrs.frozen(kw_only=True)
class AgentAnswerError(StoppedError):
    """What came over the socket is not the agent protocol."""

    problem: str

    def __str__(self) -> str:
        return f"what listens at SSH_AUTH_SOCK does not answer as an ssh-agent ({self.problem}): name another one there"


@attrs.frozen(kw_only=True)
class TooLongForAgentError(StoppedError):
    """The agent protocol carries the whole message, and OpenSSH's agent takes 256 KiB."""

    size: int

    def __str__(self) -> str:
        return (
            f"{self.size} bytes are to be signed and ssh-agent takes requests of {MESSAGE_MAX} bytes: sign a fleet of "
            "this size with a key file or an external command"
        )
