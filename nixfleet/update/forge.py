"""Pull requests at Gitea, Forgejo and GitHub: one for each branch, opened or brought up to date.

The three speak nearly the same REST dialect (Gitea API 1.20, GitHub REST 2022-11-28); where they do not, there is a
method. Tokens are sent to the configured address alone: redirects are not followed.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import httpx

from nixfleet.errors import UnreadableFileError
from nixfleet.files import read_bytes
from nixfleet.update.errors import UpdateError
from nixfleet.update.instance import Forge as Settings

TIMEOUT_S: Final = 30.0
GITHUB: Final = "https://api.github.com"
PAGES_MAX: Final = 20
TEXT_MAX: Final = 60_000
"""GitHub takes 65,536 characters."""


@attrs.frozen(kw_only=True)
class ForgeError(UpdateError):
    """The forge would not."""

    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.what}: {self.said}"


@attrs.frozen(kw_only=True)
class PullRequest:
    """An open pull request."""

    number: int
    branch: str
    url: str


class Forge:
    """One repository at a forge. Make it with `forge_at`."""

    def __init__(self, client: httpx.AsyncClient, settings: Settings) -> None:
        self._client, self._kind = client, settings.kind
        self._repository, self._name = f"/repos/{settings.repository}", settings.repository.lower()

    async def open_requests(self) -> list[PullRequest]:
        """Every open pull request.

        Raises:
            ForgeError: it cannot be asked.
        """
        found: list[PullRequest] = []
        for page in range(1, PAGES_MAX + 1):
            path = f"{self._repository}/pulls?state=open&page={page}&{self._per_page(50)}"
            items = await self._ask("GET", path)
            with _understood("the list of pull requests"):
                found += [_request(item, item["head"]["ref"]) for item in items if self._is_own(item)]
            if len(items) < 50:
                break
        return found

    def _is_own(self, item: Any) -> bool:
        """Not one of a fork, whose branch may be called as ours is."""
        head = item["head"]
        return "repo" not in head or (head["repo"] or {}).get("full_name", "").lower() == self._name

    def _per_page(self, count: int) -> str:
        return f"per_page={count}" if self._kind == "github" else f"limit={count}"

    async def propose(self, branch: str, into: str, title: str, text: str, labels: Sequence[str]) -> PullRequest:
        """Open the pull request of a branch, or bring the one that is open up to date.

        Raises:
            ForgeError: it would not be taken.
        """
        body = text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}\n\n(cut here: it is longer)"
        known = next((request for request in await self.open_requests() if request.branch == branch), None)
        if known is None:
            said = await self._ask(
                "POST", f"{self._repository}/pulls", {"head": branch, "base": into, "title": title, "body": body}
            )
            with _understood("the new pull request"):
                known = _request(said, branch)
        else:
            await self._ask("PATCH", f"{self._repository}/pulls/{known.number}", {"title": title, "body": body})
        await self._label(known.number, labels)
        return known

    async def _label(self, number: int, labels: Sequence[str]) -> None:
        path = f"{self._repository}/issues/{number}/labels"
        if self._kind == "github":
            await self._ask("PUT", path, {"labels": list(labels)})
        else:
            await self._ask("PUT", path, {"labels": await self._label_numbers(labels)})

    async def _label_numbers(self, labels: Sequence[str]) -> list[int]:
        """Gitea knows labels by number; those that are not there yet are made."""
        items = await self._ask("GET", f"{self._repository}/labels?limit=50")
        with _understood("the list of labels"):
            known = {item["name"]: item["id"] for item in items}
        for name in labels:
            if name not in known:
                made = await self._ask("POST", f"{self._repository}/labels", {"name": name, "color": "#d73a4a"})
                with _understood("the new label"):
                    known[name] = made["id"]
        return [known[name] for name in labels]

    async def close(self, request: PullRequest, why: str) -> None:
        """Close a pull request, saying why.

        Raises:
            ForgeError: it would not be closed.
        """
        await self._ask("POST", f"{self._repository}/issues/{request.number}/comments", {"body": why})
        await self._ask("PATCH", f"{self._repository}/pulls/{request.number}", {"state": "closed"})

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        what = f"{method} {path.partition('?')[0]}"
        try:
            answer = await self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise ForgeError(what=what, said=str(error) or type(error).__name__) from error
        if not answer.is_success:
            raise ForgeError(what=what, said=f"HTTP {answer.status_code} {answer.text[:200].strip()}")
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise ForgeError(what=what, said="the answer is no JSON: is the address that of the API?") from error


def _request(item: Any, branch: str) -> PullRequest:
    return PullRequest(number=int(item["number"]), branch=branch, url=str(item.get("html_url", "")))


@contextmanager
def _understood(what: str) -> Iterator[None]:
    """An answer of another form is the forge's mistake, or the address is that of something else."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ForgeError(what=what, said=f"the answer is of no form that is known here ({error!r})") from error


@asynccontextmanager
async def forge_at(settings: Settings) -> AsyncIterator[Forge]:
    """The forge, with its token.

    Raises:
        UnreadableFileError: the token's file cannot be read.
    """
    headers = {"Accept": "application/json", "Authorization": f"token {read_token(settings.token_file)}"}
    async with httpx.AsyncClient(
        base_url=settings.url or GITHUB, headers=headers, timeout=TIMEOUT_S, follow_redirects=False
    ) as client:
        yield Forge(client, settings)


def read_token(path: Path | None) -> str:
    """The token in a file, without the end of its line; empty without a file.

    Raises:
        UnreadableFileError: it cannot be read, or has more than one line, or what no header may have.
    """
    if path is None:
        return ""
    token = read_bytes(path, "token", limit=64 * 1024).decode("ascii", "replace").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise UnreadableFileError(path=path, what="token", cause="it has no line of plain letters and nothing else")
    return token
