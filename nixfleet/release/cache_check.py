"""Could every host fetch what it is asked to run? Held against the caches before anything is signed.

For each host's closure and all that it references, whatever cache has it, there must be a description that hosts
would accept: signed by a key of `cacheKeys`, or of a path that is named by its content. Each path is asked for once,
however many hosts need it. The contents are not fetched; of the hosts' own closures they are looked for.
"""

import enum
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import attrs
import trio

from nixfleet.errors import StoppedError
from nixfleet.release.cache_address import Credentials
from nixfleet.release.caches import Cache, opened
from nixfleet.release.narinfo import HASH_SIZE, LIMIT, NarInfo, NarInfoError, parse_narinfo
from nixfleet.stoppable import run_stoppable
from nixfleet_agent.activation.cache_keys import TrustedKeys
from state_machine.values import Closure, HostName

AT_ONCE: Final = 32
PATHS_MAX: Final = 500_000
"""A fleet's closures have thousands; a cache that describes one path after another has no end."""

REFERENCES_MAX: Final = 20_000_000
"""Of all descriptions together. Paths know some dozen others; one cache may say of each that it knows all."""

SHOWN: Final = 10


class Flaw(enum.StrEnum):
    """Why hosts could not have a path."""

    MISSING = "missing"
    DAMAGED = "damaged"
    UNSIGNED = "unsigned"
    UNTRUSTED = "untrusted"
    NO_CONTENT = "no content"


@attrs.frozen(kw_only=True)
class Fault:
    """A path that hosts could not have."""

    path: Closure
    flaw: Flaw
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.flaw.value:<10} {self.path}{' ' if self.detail else ''}{self.detail}"


@attrs.frozen(kw_only=True)
class NotInCacheError(StoppedError):
    """Some hosts could not fetch what they would be asked to run."""

    caches: tuple[str, ...]
    hosts: int
    faults: Mapping[HostName, tuple[Fault, ...]]
    forbidding: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = " or ".join(self.caches)
        head = (
            f"{len(self.faults)} of {self.hosts} hosts could not fetch what they are to run from {where}, so nothing "
            "was written: build, sign and push what is listed, or give --no-cache-check"
        )
        hints = [
            f"  {url} answered some questions with 403: --cache-netrc has its credentials" for url in self.forbidding
        ]
        return "\n".join([head, *(line for host in self.faults for line in self._of(host)), *hints])

    def _of(self, host: HostName) -> Iterator[str]:
        faults = self.faults[host]
        yield f"  {host}: {len(faults)} path{'s' if len(faults) > 1 else ''}"
        yield from (f"    {fault}" for fault in faults[:SHOWN])
        if len(faults) > SHOWN:
            yield f"    and {len(faults) - SHOWN} more"


@attrs.frozen(kw_only=True)
class TooManyPathsError(StoppedError):
    """The descriptions lead on and on."""

    def __str__(self) -> str:
        return (
            f"the hosts' closures have more than {PATHS_MAX} paths by what the caches say, or each of them knows "
            "thousands of others: no fleet is that large"
        )


@attrs.frozen(kw_only=True)
class Checked:
    """A check that found nothing wrong."""

    caches: tuple[str, ...]
    hosts: int
    paths: int


@attrs.frozen(kw_only=True)
class _Seen:
    """What the caches say of one path."""

    fault: Fault | None
    references: tuple[Closure, ...] = ()


Progress = Callable[[int, int], None]
"""Told how many paths are done, of how many that are known so far."""


def check_caches(
    closures: Mapping[HostName, Closure],
    urls: Sequence[str],
    trusted: TrustedKeys,
    *,
    store_dir: str = "/nix/store",
    credentials: Credentials | None = None,
    progress: Progress = lambda done, known: None,
    references_max: int = REFERENCES_MAX,
) -> Checked:
    """Look for all that these hosts would need, at the addresses in their order.

    Raises:
        NotInCacheError: listing, for each host, the paths it could not have.
        CacheUrlError, CacheError: a cache cannot be asked.
        TooManyPathsError: it does not end.
    """

    async def look() -> Checked:
        async with opened(urls, credentials or {}, store_dir) as caches:
            walk = _Walk(caches, trusted, store_dir, frozenset(closures.values()), progress, references_max)
            await walk.all()
        return _judged(closures, walk.seen, caches)

    return run_stoppable(look)


def _judged(closures: Mapping[HostName, Closure], seen: Mapping[Closure, _Seen], caches: Sequence[Cache]) -> Checked:
    urls = tuple(cache.url for cache in caches)
    if any(known.fault for known in seen.values()):
        faults = {host: tuple(_faults(closure, seen)) for host, closure in closures.items()}
        raise NotInCacheError(
            caches=urls,
            hosts=len(closures),
            faults={host: found for host, found in faults.items() if found},
            forbidding=tuple(cache.url for cache in caches if cache.is_forbidding),
        )
    return Checked(caches=urls, hosts=len(closures), paths=len(seen))


def _faults(top: Closure, seen: Mapping[Closure, _Seen]) -> Iterator[Fault]:
    """Those of all that a closure references, nearest first."""
    waiting, known = [top], {top}
    for path in waiting:
        if (fault := seen[path].fault) is not None:
            yield fault
        new = [name for name in seen[path].references if name not in known]
        known.update(new)
        waiting += dict.fromkeys(new)


class _Walk:
    """Asks for paths, and for those that their descriptions name, until all are known."""

    def __init__(
        self,
        caches: Sequence[Cache],
        trusted: TrustedKeys,
        store_dir: str,
        tops: frozenset[Closure],
        progress: Progress,
        references_max: int,
    ) -> None:
        self.seen: dict[Closure, _Seen] = {}
        self._caches, self._trusted, self._store_dir, self._tops = caches, trusted, store_dir, tops
        self._progress = progress
        self._asked: dict[Closure, Closure] = {}
        self._references_left = references_max
        self._send, self._receive = trio.open_memory_channel[Closure](math.inf)
        self._failure: StoppedError | None = None

    async def all(self) -> None:
        """Walk.

        Raises:
            CacheError, TooManyPathsError: it cannot be finished.
        """
        self._ask(sorted(self._tops))
        self._end_if_done()
        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(self._work, nursery.cancel_scope)
        if self._failure is not None:
            raise self._failure

    async def _work(self, everybody: trio.CancelScope) -> None:
        async for path in self._receive:
            try:
                found = await self._look(path)
                self._ask(found.references)
                # Each name is kept in memory once, however many know it.
                known = tuple(map(self._asked.__getitem__, found.references))
                self.seen[path] = attrs.evolve(found, references=known)
                self._end_if_done()
            except StoppedError as error:
                self._failure = error
                everybody.cancel()
                return
            self._progress(len(self.seen), len(self._asked))

    def _ask(self, paths: Sequence[Closure]) -> None:
        for path in paths:
            if path not in self._asked:
                self._asked[path] = path
                self._send.send_nowait(path)
        self._references_left -= len(paths)
        if len(self._asked) > PATHS_MAX or self._references_left < 0:
            raise TooManyPathsError

    def _end_if_done(self) -> None:
        if len(self.seen) == len(self._asked):
            self._send.close()

    async def _look(self, path: Closure) -> _Seen:
        """The first description that hosts would take, else what is wrong with the first that there is."""
        worst: _Seen | None = None
        for cache in self._caches:
            if (found := await self._look_in(cache, path)) is None:
                continue
            if found.fault is None:
                return found
            worst = worst or found
        return worst or _Seen(fault=Fault(path=path, flaw=Flaw.MISSING))

    async def _look_in(self, cache: Cache, path: Closure) -> _Seen | None:
        data = await cache.read(f"{path[:HASH_SIZE]}.narinfo", LIMIT)
        if data is None:
            return None
        try:
            info = parse_narinfo(data, path, self._store_dir)
        except NarInfoError as error:
            return _Seen(fault=Fault(path=path, flaw=Flaw.DAMAGED, detail=f"({error.problem})"))
        return _Seen(fault=await self._fault(cache, info), references=info.references)

    async def _fault(self, cache: Cache, info: NarInfo) -> Fault | None:
        if not info.counts(self._trusted):
            return _unsigned(info)
        if info.path in self._tops and not await cache.has(info.url):
            return Fault(path=info.path, flaw=Flaw.NO_CONTENT, detail=f"({info.url[:100]} is not there)")
        return None


def _unsigned(info: NarInfo) -> Fault:
    if not info.signatures:
        return Fault(path=info.path, flaw=Flaw.UNSIGNED)
    names = ", ".join(name[:60] for name in info.signers[:3])
    return Fault(path=info.path, flaw=Flaw.UNTRUSTED, detail=f"(signed by {names})")
