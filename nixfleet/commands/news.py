"""The options of commands that tell of what they did."""

import functools
from collections.abc import Callable
from typing import Any, Final

import click

from messaging.subjects import NEWS
from nixfleet.commands.nats import SERVER
from nixfleet.news import audience_of

_PREFIX: Final = click.option(
    "--news-prefix",
    default=NEWS,
    envvar="NIXFLEET_NEWS_PREFIX",
    show_envvar=True,
    help="What the subjects of news begin with. News is told where there is a NATS server.",
)


def tells(command: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the command an `audience`, and add the options that name it; stands above whatever has some of them."""
    there = {option.name for option in getattr(command, "__click_params__", ())}

    @functools.wraps(command)
    def telling(*args: Any, news_prefix: str, **flags: Any) -> Any:
        given = {key: str(flags[name]) for name, (key, _) in SERVER.items() if flags[name] is not None}
        audience = audience_of(given if "url" in given else {}, news_prefix)
        rest = {name: value for name, value in flags.items() if name in there or name not in SERVER}
        return command(*args, audience=audience, **rest)

    for name, (_, option) in reversed(SERVER.items()):
        if name not in there:
            option(telling)
    return _PREFIX(telling)
