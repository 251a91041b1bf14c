"""Tell whoever listens that something was merged or released, where a NATS server is configured.

A courtesy: builders, control planes and agents look by themselves in time, so what could not be told is a note and
never an error.
"""

import functools
from collections.abc import Mapping
from typing import Literal

import attrs

from messaging.errors import BadServerError, LinkError
from messaging.server import Server, server_of
from messaging.subjects import NEWS, is_prefix
from nixfleet.clock import wall_now
from nixfleet.errors import ConfigurationError
from nixfleet.stoppable import run_stoppable

What = Literal["merged", "released"]


@attrs.frozen(kw_only=True)
class NewsOptionsError(ConfigurationError):
    """The options name no server that could be told."""

    problems: tuple[str, ...]

    def __str__(self) -> str:
        return f"--nats-url and what belongs to it: {'; '.join(self.problems)}"


@attrs.frozen(kw_only=True)
class Audience:
    """Whom to tell: whoever listens on this server, below this prefix."""

    server: Server
    prefix: str = NEWS


def audience_of(given: Mapping[str, str], prefix: str = NEWS) -> Audience | None:
    """Who is named by the keys of a server, as in a table of a file; None: no server is.

    Raises:
        NewsOptionsError: it cannot be used.
    """
    if not is_prefix(prefix):
        raise NewsOptionsError(problems=(f"--news-prefix {prefix[:80]!r} is no prefix of subjects, such as {NEWS}",))
    if not given:
        return None
    try:
        server = server_of(given)
        server.options()
    except BadServerError as error:
        raise NewsOptionsError(problems=error.problems) from error
    return Audience(server=server, prefix=prefix)


async def tell_if_configured(audience: Audience | None, what: What, name: str, commit: str = "") -> str | None:
    """Tell them what was merged to the repository, or released, of this name; a note when they could not be told."""
    if audience is None:
        return None
    # Imported here: it brings the client library, which is of no use without a server.
    from messaging.news import Kind, News, tell

    try:
        news = News(kind=Kind(what), name=name, commit=commit, at=wall_now())
        await tell(audience.server, news, audience.prefix)
    except LinkError as error:
        return f"whoever waits for news was not told: {error}"
    return None


def tell_now(audience: Audience | None, what: What, name: str, commit: str = "") -> str | None:
    """The same, for a command that does not run on Trio."""
    return run_stoppable(functools.partial(tell_if_configured, audience, what, name, commit)) if audience else None
