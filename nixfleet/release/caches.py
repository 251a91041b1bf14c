"""Binary caches, asked as Nix asks them: over HTTP or in a directory. Nothing that they answer is believed here.

Every answer has a size limit and a deadline; what may pass is tried again. A cache that cannot be asked is an error,
never a path that is missing. Credentials go to the cache's own address alone, and are in no error.
"""

import contextlib
import os
import ssl
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import SplitResult, unquote

import attrs
import httpx
import trio

from evidence.regular_files import read_start
from nixfleet.errors import ConfigurationError, StoppedError
from nixfleet.release.cache_address import Credentials, checked_url, split_url

INFO: Final = "nix-cache-info"
INFO_LIMIT: Final = 64 * 1024
TIMEOUT_S: Final = 30.0
TRIES: Final = 3

_ABSENT: Final = (404, 410)
_WANTS_CREDENTIALS: Final = (401, 407)
_FORBIDDEN: Final = 403
_NO_HEAD: Final = (405, 501)
_BUSY: Final = (408, 425, 429)
_WAIT_S: Final = 0.25
_COMPRESSED: Final = ("gzip", "x-gzip", "deflate")


@attrs.frozen(kw_only=True)
class CacheError(StoppedError):
    """A cache that cannot be asked."""

    url: str
    cause: str

    def __str__(self) -> str:
        return f"the cache {self.url} cannot be asked: {self.cause}"


@attrs.frozen(kw_only=True)
class AuthoritiesError(ConfigurationError):
    """The file of certificate authorities that the environment names is none."""

    path: str
    cause: str

    def __str__(self) -> str:
        return f"the certificate authorities in {self.path} cannot be used ({self.cause}): correct NIX_SSL_CERT_FILE"


class Cache(Protocol):
    """One cache."""

    @property
    def url(self) -> str:
        """Its address, as the user gave it."""
        ...

    @property
    def is_forbidding(self) -> bool:
        """It said "forbidden" where others say "not found", as S3 does, and as one without credentials might."""
        ...

    async def read(self, name: str, limit: int) -> bytes | None:
        """The first `limit` + 1 bytes of a file of the cache; None when it is not there.

        Raises:
            CacheError: the cache cannot be asked.
        """
        ...

    async def has(self, name: str) -> bool:
        """The file is there.

        Raises:
            CacheError: the cache cannot be asked.
        """
        ...


@asynccontextmanager
async def opened(urls: Sequence[str], credentials: Credentials, store_dir: str) -> AsyncIterator[Sequence[Cache]]:
    """The caches at these addresses, each found to be one, and of the store at `store_dir`.

    Raises:
        CacheUrlError, CacheError: as they say.
    """
    async with contextlib.AsyncExitStack() as stack:
        caches: list[Cache] = []
        for url in map(checked_url, urls):
            parts = split_url(url)
            if parts.scheme == "file":
                caches.append(_DirectoryCache(url=url, directory=Path(unquote(parts.path))))
            else:
                client = await stack.enter_async_context(_client(parts, credentials))
                caches.append(_HttpCache(url=url, client=client))
            await _check_is_cache(caches[-1], store_dir)
        yield caches


async def _check_is_cache(cache: Cache, store_dir: str) -> None:
    said = await cache.read(INFO, INFO_LIMIT)
    if said is None:
        raise CacheError(
            url=cache.url, cause=f"there is no {INFO}, so no binary cache: see whether the address is right"
        )
    lines = said.decode("utf-8", "replace").splitlines()
    stores = [line.partition(":")[2].strip() for line in lines if line.startswith("StoreDir:")]
    if stores not in ([], [store_dir]):
        raise CacheError(url=cache.url, cause=f"it is a cache of {stores[0][:100]!r}, hosts have {store_dir}")


@attrs.frozen(kw_only=True)
class _DirectoryCache:
    url: str
    directory: Path
    is_forbidding: bool = False

    async def read(self, name: str, limit: int) -> bytes | None:
        try:
            return await trio.to_thread.run_sync(read_start, self.directory / name, limit)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(url=self.url, cause=f"{name[:100]}: {error.strerror or error}") from error

    async def has(self, name: str) -> bool:
        return await trio.to_thread.run_sync((self.directory / name.partition("?")[0]).is_file)


@attrs.define(kw_only=True)
class _HttpCache:
    url: str
    client: httpx.AsyncClient
    is_forbidding: bool = False

    async def read(self, name: str, limit: int) -> bytes | None:
        return await self._ask("GET", name, limit)

    async def has(self, name: str) -> bool:
        return await self._ask("HEAD", name, 0) is not None

    async def _ask(self, method: str, name: str, limit: int) -> bytes | None:
        cause = ""
        for attempt in range(TRIES):
            await trio.sleep(_WAIT_S * (4**attempt - 1) / 3)
            try:
                with trio.fail_after(TIMEOUT_S):
                    return await self._once(method, name, limit)
            except _PassingError as error:
                cause = str(error)
            except trio.TooSlowError:
                cause = f"no whole answer within {TIMEOUT_S:g} s"
            except (httpx.HTTPError, httpx.InvalidURL, zlib.error) as error:
                cause = str(error) or type(error).__name__
        raise CacheError(url=self.url, cause=f"{name[:100]}: {cause[:300]}")

    async def _once(self, method: str, name: str, limit: int) -> bytes | None:
        async with self.client.stream(method, f"{_base(self.url)}/{name}") as response:
            if method != "HEAD" or response.status_code not in _NO_HEAD:
                return await self._judged(response, name, limit)
        # Only now, when the connection is free again: there may be no other to be had.
        return await self._once("GET", name, 0)

    async def _judged(self, response: httpx.Response, name: str, limit: int) -> bytes | None:
        status = response.status_code
        if status in (*_ABSENT, _FORBIDDEN):
            self.is_forbidding = self.is_forbidding or status == _FORBIDDEN
            return None
        if status in _WANTS_CREDENTIALS:
            raise CacheError(url=self.url, cause="it wants other credentials: --cache-netrc has those for its host")
        if status in _BUSY or status >= 500:
            raise _PassingError(f"it answered with status {status}")
        if not response.is_success:
            raise CacheError(url=self.url, cause=f"{name[:100]}: it answered with status {status}")
        return await _body(response, limit) if limit else b""


class _PassingError(Exception):
    """Worth another try."""


async def _body(response: httpx.Response, limit: int) -> bytes:
    """At most `limit` + 1 bytes, unpacked: a few bytes may unpack to gigabytes, so never more at once."""
    packed = response.headers.get("content-encoding", "").strip().lower() in _COMPRESSED
    unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32) if packed else None
    data = bytearray()
    with trio.CancelScope() as enough:
        async for chunk in response.aiter_raw():
            if len(data) <= limit:
                data += chunk if unpack is None else unpack.decompress(chunk, limit + 1)
            else:
                # Breaking off would leave the client's generators, one in another, to the garbage collector.
                enough.cancel()
    return bytes(data[: limit + 1])


def _client(parts: SplitResult, credentials: Credentials) -> httpx.AsyncClient:
    login = credentials.get(parts.hostname or "", credentials.get(""))
    return httpx.AsyncClient(
        verify=_authorities(),
        auth=login,  # the client takes it off when it is led to another host
        headers={"Accept-Encoding": "identity"},
        timeout=TIMEOUT_S,
        follow_redirects=True,
        limits=httpx.Limits(max_connections=32, max_keepalive_connections=32),
    )


def _authorities() -> ssl.SSLContext:
    """Those of the system, as Nix does, and unlike the client's own list: caches are often certified by a company's."""
    path = os.environ.get("NIX_SSL_CERT_FILE") or os.environ.get("SSL_CERT_FILE") or None
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise AuthoritiesError(path=str(path), cause=error.strerror or "it holds no certificates") from error


def _base(url: str) -> str:
    """The address without its settings (`?priority=40`)."""
    return url.partition("?")[0].partition("#")[0].rstrip("/")
