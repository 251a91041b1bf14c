"""Where signed artifacts come from: a directory, or an https URL. Bytes only; nothing here is believed.

Both lay files out alike: `fleet.resolved.json`, `rollouts/<rollout id>.json`, `revocations.json` and
`bootstrap-nonces.json`, each with its raw signature in `<file>.sig`. Whatever is longer than an artifact may be is cut
off before it is read into memory.
"""

import errno
import hashlib
import re
from pathlib import Path
from typing import Final, Protocol

import attrs
import httpx
import trio

from control_plane.errors import ControlPlaneError
from control_plane.surroundings import InThread
from evidence.canonical import ARTIFACT_LIMIT
from evidence.regular_files import read_start, read_whole
from state_machine.values import RolloutId, is_rollout_id

FLEET: Final = "fleet.resolved.json"
REVOCATIONS: Final = "revocations.json"
NONCES: Final = "bootstrap-nonces.json"

_SIGNATURE_LIMIT: Final = 4096
_LISTED: Final = 64
"""How many manifests of a directory are looked at: the newest, by the time they were put there."""

_HTTP_TIMEOUT_S: Final = 15.0
_TOKEN_LIMIT: Final = 16 * 1024


def manifest_name(rollout_id: RolloutId) -> str:
    """Where the manifest of a rollout is."""
    return f"rollouts/{rollout_id}.json"


def tag_of(data: bytes) -> str:
    """The `ETag` of a file."""
    return f'"{hashlib.sha256(data).hexdigest()[:32]}"'


@attrs.frozen(kw_only=True)
class Raw:
    """A file and its detached signature, as published."""

    data: bytes
    signature: bytes
    tag: str = attrs.field(init=False, eq=False)
    """What a client names that has these very bytes already: worked out once, for the file of a large fleet has
    megabytes, and every host asks every minute."""

    @tag.default
    def _(self) -> str:
        return tag_of(self.data)

    @property
    def fingerprint(self) -> str:
        """Changes whenever a byte of either does."""
        return hashlib.sha256(hashlib.sha256(self.data).digest() + self.signature).hexdigest()


@attrs.frozen(kw_only=True)
class SourceError(ControlPlaneError):
    """A file could not be had; it may be there at the next look."""

    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.name} cannot be had: {self.problem}"


class ArtifactSource(Protocol):
    """What the shelf needs of a source."""

    async def fetch(self, name: str) -> Raw | None:
        """A file and its signature; None when there is no such file.

        Raises:
            SourceError: it is there, or may be, but cannot be had.
        """

    async def listed(self) -> tuple[RolloutId, ...]:
        """Rollouts whose manifests are here beside those that the fleet names; nothing when the source cannot tell.

        Raises:
            SourceError: it cannot be looked into.
        """


@attrs.frozen(kw_only=True)
class DirectorySource:
    """Artifacts in a local directory."""

    root: Path
    in_thread: InThread = trio.to_thread.run_sync

    async def fetch(self, name: str) -> Raw | None:
        """As `ArtifactSource.fetch`."""
        raw: Raw | None = await self.in_thread(self._read, name)
        return raw

    async def listed(self) -> tuple[RolloutId, ...]:
        """As `ArtifactSource.listed`."""
        newest: tuple[RolloutId, ...] = await self.in_thread(self._newest)
        return newest

    def _read(self, name: str) -> Raw | None:
        try:
            # The publisher puts the signature first: read in the other order, a pair is torn at most once.
            data = _read_limited(self.root / name, ARTIFACT_LIMIT)
            return Raw(data=data, signature=_read_limited(self.root / f"{name}.sig", _SIGNATURE_LIMIT))
        except FileNotFoundError as error:
            if (self.root / name).exists():
                raise SourceError(name=name, problem="its .sig is missing") from error
            return None
        except OSError as error:
            raise SourceError(name=name, problem=error.strerror or str(error)) from error

    def _newest(self) -> tuple[RolloutId, ...]:
        found = []
        for path in (self.root / "rollouts").glob("*.json"):
            if is_rollout_id(path.stem):
                try:
                    found.append((path.stat().st_mtime_ns, path.stem))
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise SourceError(name=path.name, problem=error.strerror or str(error)) from error
        return tuple(RolloutId(stem) for _, stem in sorted(found, reverse=True)[:_LISTED])


@attrs.frozen(kw_only=True)
class HttpsSource:
    """Artifacts below an https URL. The bearer token is read anew for each request, so it may rotate."""

    base_url: str
    client: httpx.AsyncClient
    token_file: Path | None = None
    in_thread: InThread = trio.to_thread.run_sync

    async def fetch(self, name: str) -> Raw | None:
        """As `ArtifactSource.fetch`."""
        data = await self._get(name, ARTIFACT_LIMIT)
        if data is None:
            return None
        signature = await self._get(f"{name}.sig", _SIGNATURE_LIMIT)
        if signature is None:
            raise SourceError(name=name, problem="its .sig is missing")
        return Raw(data=data, signature=signature)

    async def listed(self) -> tuple[RolloutId, ...]:
        """As `ArtifactSource.listed`: a web server does not say."""
        return ()

    async def _get(self, name: str, limit: int) -> bytes | None:
        url = f"{self.base_url.rstrip('/')}/{name}"
        try:
            with trio.fail_after(_HTTP_TIMEOUT_S):
                async with self.client.stream("GET", url, headers=await self._headers()) as response:
                    if response.status_code == httpx.codes.NOT_FOUND:
                        return None
                    if response.status_code != httpx.codes.OK:
                        raise SourceError(name=name, problem=f"the server answered {response.status_code}")
                    return await _body(name, response, limit)
        except trio.TooSlowError as error:
            raise SourceError(name=name, problem=f"no complete answer within {_HTTP_TIMEOUT_S:.0f} s") from error
        except httpx.HTTPError as error:
            raise SourceError(name=name, problem=_root_of(error)) from error
        except OSError as error:
            raise SourceError(name=name, problem=f"token file: {error.strerror}") from error

    async def _headers(self) -> dict[str, str]:
        if self.token_file is None:
            return {}
        token = await self.in_thread(read_token, self.token_file)
        return {"Authorization": f"Bearer {token}"}


def read_token(path: Path) -> str:
    """A bearer token, as RFC 6750 section 2.1 spells one.

    Raises:
        OSError: the file cannot be read, or holds none.
    """
    token = read_whole(path, _TOKEN_LIMIT).decode("ascii", "replace").strip()
    if re.fullmatch("[A-Za-z0-9._~+/-]+=*", token) is None:
        raise OSError(errno.EINVAL, "it holds no bearer token", str(path))
    return token


def _root_of(error: BaseException) -> str:
    """What went wrong at the bottom: httpx passes most failures on without their text."""
    while (below := error.__cause__ or error.__context__) is not None:
        error = below
    return str(error) or type(error).__name__


async def _body(name: str, response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > limit:
            raise SourceError(name=name, problem=f"it has more than {limit} bytes")
    return bytes(body)


def _read_limited(path: Path, limit: int) -> bytes:
    data = read_start(path, limit)
    if len(data) > limit:
        raise SourceError(name=path.name, problem=f"it has more than {limit} bytes")
    return data
