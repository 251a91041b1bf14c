"""Look whether a builder can work as it is configured, without building anything or writing anywhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from messaging.errors import LinkError
from messaging.link import connected
from messaging.server import Server
from nixfleet.builder.mirrors import PROTOCOLS
from nixfleet.builder.settings import Settings, Source
from nixfleet.update.errors import GitError
from nixfleet.update.worktree import git

REMOTE_S: Final = 60.0


@attrs.frozen(kw_only=True)
class Findings:
    """What was seen."""

    url: str
    trouble: str
    """Why there is no connection; empty: there is one."""
    has_queue: bool
    repositories: Mapping[str, str]
    """Why each cannot be fetched; empty: it can."""

    @property
    def ok(self) -> bool:
        """It can work."""
        return not self.trouble and not any(self.repositories.values())

    @property
    def jobs(self) -> str:
        """What becomes of jobs on the server."""
        if self.has_queue:
            return "with JetStream: jobs outlive builders and restarts of the server"
        return "without JetStream: jobs wait in the memory of builders"

    def document(self) -> dict[str, Any]:
        """All of it as JSON."""
        repositories = {
            name: {"fetches": not why, **({"why": why} if why else {})} for name, why in self.repositories.items()
        }
        server = {"url": self.url, "connected": not self.trouble, **({"why": self.trouble} if self.trouble else {})}
        return {"ok": self.ok, "server": {**server, "jetstream": self.has_queue}, "repositories": repositories}


async def look_around(settings: Settings, server: Server) -> Findings:
    """Try the server and every repository, all at once."""
    trouble, has_queue = "", False
    repositories = dict.fromkeys(settings.repositories, "")

    async def try_one(source: Source) -> None:
        repositories[source.name] = await _cannot_be_fetched(source)

    async with trio.open_nursery() as nursery:
        for source in settings.repositories.values():
            nursery.start_soon(try_one, source)
        try:
            async with connected(server, f"nixfleet builder {settings.name} --check") as link:
                has_queue = await link.has_jetstream()
        except LinkError as error:
            trouble = str(error)
    return Findings(url=server.url, trouble=trouble, has_queue=has_queue, repositories=repositories)


async def _cannot_be_fetched(source: Source) -> str:
    words = ("ls-remote", "--heads", "--", source.url, f"refs/heads/{source.branch}")
    try:
        found = await git(Path("/"), *words, within_s=REMOTE_S, more=PROTOCOLS)
    except GitError as error:
        return error.said
    return "" if found else f"it has no branch {source.branch}"
