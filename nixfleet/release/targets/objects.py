"""Files behind PUT and GET: any web server that takes them (WebDAV, nginx, Artifactory), and S3 with a signature.

There is no rename over HTTP, so a publication is promised first: one PUT of `publishing.json`, which holds all of its
files. Until that is there, nothing has happened. After it the files are put in their places, manifests before the
fleet, each signature before its file, and in the end the promise is emptied. A publisher that dies in between leaves a
promise that the next one keeps before it does anything else. Meanwhile readers have the old release, or a pair that
does not verify, and keep what they had.

Two publishers do not undo each other where the server says which version of a file it has (`ETag`, RFC 9110 section
8.8.3): each file is put on the condition that it is still the one that was read (`If-Match`), or still not there
(`If-None-Match: *`). A server that ignores conditions lets the last one win; that is seen when what was published is
read back, unless both write in the same moment.

A web server lists nothing, so `rollouts/index.json` has the names of the manifests. Nothing is trusted because of it.
"""

import base64
import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import attrs
import httpx

from evidence.canonical import ARTIFACT_LIMIT
from nixfleet.release.staging import FLEET, NONCES, REVOCATIONS, ROLLOUTS, SIGNATURE
from nixfleet.release.target import ConflictError, TargetError, in_order, is_manifest

PROMISE: Final = "publishing.json"
INDEX: Final = f"{ROLLOUTS}/index.json"

TIMEOUT: Final = httpx.Timeout(60.0, connect=15.0)
ANSWER_S: Final = 300.0
"""For a whole answer: a server that sends a byte now and then would keep a release for ever."""
PAUSES_S: Final = (0.5, 2.0, 5.0)
"""Before the second, third and fourth attempt at a request that the server or the network failed at."""

_PROMISE_LIMIT: Final = 16 * ARTIFACT_LIMIT
_SAID_LIMIT: Final = 300
_PAGE: Final = re.compile(r"<(!doctype )?html", re.IGNORECASE)
"""How an answer begins that is for a browser: the status says the same."""
_EMPTY: Final = b"{}\n"


@attrs.frozen(kw_only=True)
class RefusedError(TargetError):
    """The server answered, and not with what was needed. `said` is the beginning of its answer."""

    verb: str
    name: str
    status: int
    said: str
    problem: str = attrs.field(init=False)

    @problem.default
    def _(self) -> str:
        said = f" ({self.said})" if self.said else ""
        return f"{self.verb} {self.name} was answered with {self.status}{said}; {self._fix()}"

    def _fix(self) -> str:
        match self.status:
            case 401 | 403:
                return "see to the token or the credentials, and to what they allow"
            case 404:
                return "see that the prefix exists"
            case 409:
                return "see that, with WebDAV, its directories exist, and that nobody else publishes there just now"
            case 405 | 501:
                return f"the server must allow {self.verb} there"
            case 413 | 507:
                return "the server must take files of this size"
            case status if status >= 500:
                return "look why the server fails, and run this again: what was begun is finished then"
            case _:
                return "look into the server's log"


@attrs.frozen(kw_only=True)
class UnreachableError(TargetError):
    """There was no answer, at any attempt."""


@attrs.frozen(kw_only=True)
class Version:
    """A file as the server has it; `tag` is a strong validator, or None where it gives none."""

    content: bytes
    tag: str | None


@attrs.define(kw_only=True)
class ObjectTarget:
    """Files below `url`, which ends without a slash. `address_of` makes the rest of a file's URL of its name."""

    url: str
    where: str
    client: httpx.Client
    address_of: Callable[[str], str] = str
    pause: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, Version | None] = attrs.field(factory=dict, init=False)
    """What was read since the target was held, and so what a file must still be when it is put."""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """As `Target.held`: nobody is kept away, but a change by somebody else will be noticed."""
        self._seen.clear()
        if promised := self._promised():
            self._keep(promised)
        yield

    def read(self, name: str) -> bytes | None:
        """As `Target.read`."""
        found = self._version(name)
        return None if found is None else found.content

    def names(self) -> tuple[str, ...]:
        """As `Target.names`."""
        content = self.read(INDEX)
        try:
            listed = json.loads(content) if content is not None else []
        except (ValueError, RecursionError):
            listed = []
        return tuple(sorted({name for name in listed if is_manifest(name)} if isinstance(listed, list) else ()))

    def publish(self, files: Mapping[str, bytes], *, remove: Sequence[str] = (), message: str) -> None:
        """As `Target.publish`; nobody reads a history here."""
        known = {*self.names(), *filter(is_manifest, files)}
        promised = {**files, INDEX: _index(known)}
        written = {name: base64.b64encode(content).decode("ascii") for name, content in promised.items()}
        for name in promised:
            self._version(name)  # what it must still be, seen before anybody is told of ours
        self._put(PROMISE, json.dumps(written, separators=(",", ":")).encode())
        self._keep(promised)
        for name in remove:
            self._delete(name)
            self._delete(name + SIGNATURE)
        if remove:
            self._put(INDEX, _index(known.difference(remove)))

    # A promise, and how it is kept

    def _promised(self) -> dict[str, bytes]:
        """The files of a publication that was cut off; none when the last one went to its end."""
        found = self._version(PROMISE)
        try:
            written = json.loads(found.content) if found is not None else {}
            files = {name: base64.b64decode(content, validate=True) for name, content in written.items()}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            problem = f"{PROMISE} is not what a publication leaves: remove it, then run this again"
            raise TargetError(where=self.where, problem=problem) from error
        return {name: content for name, content in files.items() if _is_ours(name)}

    def _keep(self, files: Mapping[str, bytes]) -> None:
        for name in in_order([*files]):
            self._put(name, files[name])
        self._check(files)
        self._put(PROMISE, _EMPTY)

    def _check(self, files: Mapping[str, bytes]) -> None:
        """See that the server hands out what it was given.

        Raises:
            TargetError: it does not.
        """
        for name, content in files.items():
            found = self._fetch(name)
            if found is None or found.content != content:
                problem = (
                    f"{name} reads otherwise than it was published: somebody else publishes there at the same time, or "
                    "something in between keeps old files; run this again"
                )
                raise TargetError(where=self.where, problem=problem)

    # One file

    def _version(self, name: str) -> Version | None:
        if name not in self._seen:
            self._seen[name] = self._fetch(name)
        return self._seen[name]

    def _fetch(self, name: str) -> Version | None:
        limit = _PROMISE_LIMIT if name == PROMISE else ARTIFACT_LIMIT
        response = self._ask("GET", name, limit=limit)
        if response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
            return None
        if response.status_code != httpx.codes.OK:
            raise self._refused(response, "GET", name)
        if len(response.content) > limit:
            raise TargetError(where=self.where, problem=f"{name} has more than {limit} bytes")
        return Version(content=response.content, tag=_strong_tag(response))

    def _put(self, name: str, content: bytes) -> None:
        """Put a file unless it is there already; only over what was read of it."""
        known = self._version(name)
        if known is not None and known.content == content:
            return
        condition = {"If-None-Match": "*"} if known is None else {"If-Match": known.tag} if known.tag else {}
        response = self._ask("PUT", name, content=content, headers=condition)
        if response.status_code == httpx.codes.NOT_IMPLEMENTED and condition:
            # Some that speak like S3 know no conditions of a PUT: then it is as with a server that ignores them.
            response = self._ask("PUT", name, content=content)
        if response.status_code in (httpx.codes.PRECONDITION_FAILED, httpx.codes.CONFLICT) and condition:
            self._see_ours(name, content, response)
            return
        if not response.is_success:
            raise self._refused(response, "PUT", name)
        # Some servers tell the new version; where they do not, it is read when it is needed again.
        self._seen.pop(name, None)
        if (tag := _strong_tag(response)) is not None:
            self._seen[name] = Version(content=content, tag=tag)

    def _see_ours(self, name: str, content: bytes, response: httpx.Response) -> None:
        """After a condition failed: well if what is there is what we want there, as when an answer was lost.

        Raises:
            ConflictError: it is something else.
        """
        there = self._seen[name] = self._fetch(name)
        if there is not None and there.content == content:
            return
        if response.status_code == httpx.codes.PRECONDITION_FAILED:
            raise ConflictError(where=self.where, name=name)
        raise self._refused(response, "PUT", name)

    def _delete(self, name: str) -> None:
        response = self._ask("DELETE", name)
        if not response.is_success and response.status_code not in (httpx.codes.NOT_FOUND, httpx.codes.GONE):
            raise self._refused(response, "DELETE", name)
        self._seen.pop(name, None)

    def _ask(
        self,
        verb: str,
        name: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = ARTIFACT_LIMIT,
    ) -> httpx.Response:
        """One request, again after a while when the server or the network failed at it; never after a 4xx.

        Raises:
            UnreachableError, RefusedError: each attempt failed.
        """
        url = f"{self.url}/{self.address_of(name)}"
        for pause_s in (*PAUSES_S, None):
            try:
                response = self._once(verb, url, content, headers or {}, limit)
            except httpx.TransportError as error:
                if pause_s is None:
                    problem = f"{verb} {name}: {_root_of(error)}; see that the server is up and can be reached"
                    raise UnreachableError(where=self.where, problem=problem) from error
            else:
                # 501 is the answer of a server that does not know what it was asked: it will not learn it.
                if response.status_code < 500 or response.status_code == httpx.codes.NOT_IMPLEMENTED:
                    return response
                if pause_s is None:
                    raise self._refused(response, verb, name)
            self.pause(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _once(
        self, verb: str, url: str, content: bytes | None, headers: Mapping[str, str], limit: int
    ) -> httpx.Response:
        # Another encoding would be another version, with a tag of its own; and a cache in between may be old.
        plain = {"Accept-Encoding": "identity", "Cache-Control": "no-cache", **headers}
        until = self.clock() + ANSWER_S
        if content is not None:
            plain["Content-Type"] = "application/octet-stream"
        with self.client.stream(verb, url, content=content, headers=plain) as response:
            body = bytearray()
            # As it comes: unpacked, a few bytes may be gigabytes, and no packing was asked for.
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > limit:
                    break
                if self.clock() > until:
                    raise httpx.ReadTimeout(f"no whole answer within {ANSWER_S:g} s", request=response.request)
        answered = httpx.Headers({name: value for name, value in response.headers.items() if name == "etag"})
        return httpx.Response(response.status_code, headers=answered, content=bytes(body))

    def _refused(self, response: httpx.Response, verb: str, name: str) -> RefusedError:
        said = response.content[: 4 * _SAID_LIMIT].decode("utf-8", "replace")
        words = " ".join("".join(each if each.isprintable() else " " for each in said).split())[:_SAID_LIMIT]
        words = "" if _PAGE.match(words) else words
        return RefusedError(where=self.where, verb=verb, name=name, status=response.status_code, said=words)


def _strong_tag(response: httpx.Response) -> str | None:
    """A tag that `If-Match` may name; a weak one never matches (RFC 9110 section 13.1.1)."""
    tag: str | None = response.headers.get("etag")
    return tag if tag is not None and tag.startswith('"') else None


def _index(names: Iterable[str]) -> bytes:
    return (json.dumps(sorted(names), indent=1) + "\n").encode()


def _is_ours(name: str) -> bool:
    """What a promise may speak of."""
    plain = name.removesuffix(SIGNATURE)
    return plain in (FLEET, REVOCATIONS, NONCES) or name == INDEX or is_manifest(plain)


def _root_of(error: BaseException) -> str:
    """What went wrong at the bottom: the client passes most failures on without their text."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return str(error) or type(error).__name__
