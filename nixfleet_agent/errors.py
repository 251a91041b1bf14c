"""The two ways in which the agent gives up: it was told something impossible, or the machine failed it."""

import attrs

EXIT_RUNTIME = 1
EXIT_CONFIGURATION = 2


class AgentError(Exception):
    """Root of what ends a command with one clear line."""

    exit_code = EXIT_RUNTIME


@attrs.frozen(kw_only=True)
class ConfigurationError(AgentError):
    """The configuration cannot work. Every problem at once, each with what to do about it."""

    exit_code = EXIT_CONFIGURATION
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.problems)


@attrs.frozen(kw_only=True)
class StateError(AgentError):
    """The state directory cannot be used."""

    problem: str

    def __str__(self) -> str:
        return self.problem
