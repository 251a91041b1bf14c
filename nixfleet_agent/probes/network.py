"""Run the probes that need nothing but a socket: http and tcp.

A probe measures a service the way a new client meets it: a fresh connection every time, straight to it (no proxy from
the environment), trusting the system's roots, following no redirect, keeping no cookie. The caller's deadline covers
all of it, from the name lookup to the last byte; a body is read to its end, or to 64 KiB, and kept nowhere.
"""

import ssl
from typing import Final

import httpx
import trio

from nixfleet_agent.probes.kinds import HttpProbe, TcpProbe
from nixfleet_agent.probes.reading import PASSED, Outcome, cause_of, failed

BODY_BYTES: Final = 64 * 1024

# No probe waits for another's connection, and none uses one that another left open.
_LIMITS: Final = httpx.Limits(max_connections=None)
_HEADERS: Final = {"Accept": "*/*", "Connection": "close", "User-Agent": "nixfleet-agent"}


class HttpProber:
    """Runs http probes. Everything costly is made at first use and shared by all probes from then on.

    Loading the system's roots takes tens of milliseconds and some megabytes, so it happens once, and only when a probe
    asks for https.
    """

    def __init__(self) -> None:
        self._plain: httpx.AsyncHTTPTransport | None = None
        self._tls: httpx.AsyncHTTPTransport | None = None

    async def run(self, probe: HttpProbe) -> Outcome:
        """One GET. Failures to connect, to agree on TLS or to speak HTTP are outcomes, not exceptions."""
        try:
            return await self._get(probe)
        # ValueError: host names and ports that pass for a URL and that the resolver or TLS then will not take.
        except (httpx.HTTPError, OSError, ValueError) as error:
            return failed(f"cannot get {_shown(probe.url)}: {cause_of(error)}")
        except httpx.InvalidURL as error:
            return failed(f"cannot get anything from this URL: {error}")

    async def _get(self, probe: HttpProbe) -> Outcome:
        request = _request(probe.url)
        response = await self._transport(request.url).handle_async_request(request)
        try:
            if response.status_code != probe.expect_status:
                return failed(f"status {response.status_code}, expected {probe.expect_status}")
            await _read(response)
        finally:
            await response.aclose()
        return PASSED

    def _transport(self, url: httpx.URL) -> httpx.AsyncHTTPTransport:
        # The transport and not a client: a client collects cookies and would carry them from one probe to the next.
        if url.scheme == "https":
            if self._tls is None:
                roots = ssl.create_default_context()
                self._tls = httpx.AsyncHTTPTransport(verify=roots, trust_env=False, limits=_LIMITS)
            return self._tls
        if self._plain is None:
            # verify=False only spares loading roots: this transport is never asked for https.
            self._plain = httpx.AsyncHTTPTransport(verify=False, trust_env=False, limits=_LIMITS)
        return self._plain


async def run_tcp(probe: TcpProbe) -> Outcome:
    """Connect and hang up."""
    try:
        stream = await trio.open_tcp_stream(probe.host, probe.port)
    except (OSError, ValueError) as error:
        return failed(f"cannot connect to {probe.host} port {probe.port}: {cause_of(error)}")
    await trio.aclose_forcefully(stream)
    return PASSED


def _request(url: str) -> httpx.Request:
    request = httpx.Request("GET", url, headers=_HEADERS)
    if request.url.userinfo:
        credentials = httpx.BasicAuth(request.url.username, request.url.password)
        return next(credentials.sync_auth_flow(request))
    return request


async def _read(response: httpx.Response) -> None:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    received = 0
    # Cancelled and not left with `break`: half-read generators would only be closed by the garbage collector.
    with trio.CancelScope() as enough:
        async for chunk in response.stream:
            received += len(chunk)
            if received >= BODY_BYTES:
                enough.cancel()


def _shown(url: str) -> str:
    """The URL without credentials and query, either of which may be a secret."""
    return str(httpx.URL(url).copy_with(userinfo=b"", query=None, fragment=None))
