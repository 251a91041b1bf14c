"""What may go wrong between this program and a NATS server."""

import attrs


class LinkError(Exception):
    """The server could not be spoken to. Never raised as itself."""


@attrs.frozen(kw_only=True)
class BadServerError(LinkError):
    """A connection is described in a way that cannot work; everything that is wrong with it."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(self.problems)


@attrs.frozen(kw_only=True)
class UnreachableError(LinkError):
    """No connection came about."""

    url: str
    cause: str

    def __str__(self) -> str:
        return f"{self.url}: {self.cause}; is the NATS server there, and does it speak TLS as the address says?"


@attrs.frozen(kw_only=True)
class UnwelcomeError(LinkError):
    """The server does not let this program in, or not do what it wants."""

    url: str
    said: str

    def __str__(self) -> str:
        return f"{self.url} refuses: {self.said}; look at the key, credentials or token, and at what the server permits"


@attrs.frozen(kw_only=True)
class LostError(LinkError):
    """The connection ended and is not made anew."""

    url: str

    def __str__(self) -> str:
        return f"{self.url}: the connection was lost"


@attrs.frozen(kw_only=True)
class NobodyListensError(LinkError):
    """A request was sent where nobody listens."""

    subject: str

    def __str__(self) -> str:
        return f"nobody listens on {self.subject}"


@attrs.frozen(kw_only=True)
class NoAnswerError(LinkError):
    """No answer came in time."""

    subject: str
    within_s: float

    def __str__(self) -> str:
        return f"no answer on {self.subject} within {self.within_s:g} s"


@attrs.frozen(kw_only=True)
class StrangeAnswerError(LinkError):
    """The server, or somebody who speaks as if it were the server, answered what is no answer."""

    url: str
    subject: str
    problem: str

    def __str__(self) -> str:
        return (
            f"{self.url} answered strangely about {self.subject} ({self.problem[:200]}); see that this is a NATS "
            "server with JetStream, and who may send to `$JS.API` and `_INBOX` there"
        )
