"""HTTP to the control plane: whole-request deadlines, bounded bodies, one typed error for each way it can fail.

A transport has no deadline for a whole request and reads any amount; the limits are drawn here, so that a peer that
dribbles or floods costs one request and no memory. Cookies and redirects are what httpx's client would add: an agent
has no use for either, and goes without that client.
"""

import functools
import json as json_text
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import ClassVar, Final

import attrs
import httpx
import trio

from nixfleet_agent import __version__
from state_machine.values import Reason, WallMs
from wire.endpoints import AGENT_VERSION_HEADER, PROTOCOL_HEADER, PROTOCOL_VERSION

CONNECT_TIMEOUT_S: Final = 10.0
REQUEST_TIMEOUT_S: Final = 30.0
RESPONSE_LIMIT: Final = 1024 * 1024
URLS_KEPT: Final = 32
HEADERS: Final = {
    PROTOCOL_HEADER: PROTOCOL_VERSION,
    AGENT_VERSION_HEADER: __version__,
    "User-Agent": f"nixfleet-agent/{__version__}",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}
TIMEOUTS: Final = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S).as_dict()
"""Of the transport; the whole request has its own."""


class TransportError(Exception):
    """No usable answer came. It may be different next time."""


@attrs.frozen(kw_only=True)
class UnreachableError(TransportError):
    """The control plane cannot be talked to: network, TLS or time."""

    url: str
    cause: str

    def __str__(self) -> str:
        return f"{self.url}: {self.cause}"


@attrs.frozen(kw_only=True)
class BodyTooLargeError(TransportError):
    """The answer was longer than anything honest."""

    reason: ClassVar[Reason] = Reason.TOO_LARGE
    url: str
    limit: int

    def __str__(self) -> str:
        return f"{self.url}: the answer is longer than {self.limit} bytes"


@attrs.frozen(kw_only=True)
class Answer:
    """A complete HTTP answer. `retry_after_ms` is what its header asked for, if anything."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    retry_after_ms: int | None = None

    @property
    def ok(self) -> bool:
        """A 2xx."""
        return 200 <= self.status < 300


class Connection:
    """One TLS identity's pool of connections. It closes itself when it was retired and its last request is over."""

    def __init__(self, base_url: str, transport: httpx.AsyncBaseTransport) -> None:
        self._transport = transport
        self._headers = httpx.Headers({"Host": httpx.URL(base_url).netloc.decode("ascii"), **HEADERS})
        self._base_url = base_url.rstrip("/")
        self._users = 0
        self._retired = False

    async def request(
        self,
        method: str,
        path: str,
        *,
        now: WallMs,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        limit: int = RESPONSE_LIMIT,
    ) -> Answer:
        """Send a request and read its whole answer. `now` is for a `Retry-After` that names a date.

        Raises:
            UnreachableError: no answer within `timeout_s`, or none at all.
            BodyTooLargeError: more than `limit` bytes.
        """
        self._users += 1
        try:
            with trio.move_on_after(timeout_s):
                return await self._exchange(self._made(method, path, json, headers), path, now, limit)
            raise UnreachableError(url=path, cause=f"no complete answer within {timeout_s:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreachableError(url=path, cause=_cause(error)) from error
        finally:
            self._users -= 1
            if self._retired and self._users == 0:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await self._transport.aclose()

    def _made(self, method: str, path: str, json: object, headers: Mapping[str, str] | None) -> httpx.Request:
        body, own = b"", dict(headers or {})
        if json is not None:
            body = json_text.dumps(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
            own |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        request = httpx.Request(
            method,
            _url(self._base_url + path),
            headers=self._headers,
            stream=httpx.ByteStream(body),
            extensions={"timeout": TIMEOUTS},
        )
        request.headers.update(own)
        return request

    async def _exchange(self, request: httpx.Request, path: str, now: WallMs, limit: int) -> Answer:
        response, body = await self._transport.handle_async_request(request), bytearray()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        try:
            async for chunk in response.stream:
                body += chunk
                if len(body) > limit:
                    raise BodyTooLargeError(url=path, limit=limit)
            return Answer(
                status=response.status_code,
                headers=response.headers,
                body=bytes(body),
                retry_after_ms=_retry_after_ms(response.headers.get("Retry-After"), now),
            )
        finally:
            await response.aclose()

    async def retire(self) -> None:
        """Take no further part; requests under way end undisturbed, so that a renewal leaves no gap."""
        self._retired = True
        if self._users == 0:
            await self._transport.aclose()


# The same few addresses again and again, and taking one apart is most of the work of a request.
_url = functools.lru_cache(maxsize=URLS_KEPT)(httpx.URL)


def _retry_after_ms(text: str | None, now: WallMs) -> int | None:
    """`Retry-After`: seconds or a date (RFC 9110 section 10.2.3). Nonsense counts as not said."""
    if text is None:
        return None
    if text.isascii() and text.isdigit():
        return min(int(text[:9]), 10**9) * 1000
    try:
        return max(0, int(parsedate_to_datetime(text).timestamp() * 1000) - now)
    except (ValueError, TypeError, OverflowError):
        return None


def _cause(error: BaseException) -> str:
    """The outermost words, and the innermost where they add something: the layers between often have none at all."""
    said: list[str] = []
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, BaseExceptionGroup):
            at = at.exceptions[0]
        else:
            said += [str(at)] if str(at) and not isinstance(at, trio.Cancelled) else []  # a deadline's inner workings
            at = at.__cause__ or at.__context__
    if not said:
        return type(error).__name__
    return said[0] if said[0] == said[-1] else f"{said[0]} ({said[-1]})"
