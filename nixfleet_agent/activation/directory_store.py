"""Closures in a plain directory, for machines without Nix: the same promises, by much smaller means.

A cache is a directory that holds, for each closure, the tree `<closure>/` and the file `<closure>.sig` with one
`name:base64` signature a line, over `nixfleet-tree-1;<closure>;<digest of the tree>`. What is verified is the copy in
the store, before it gets its name, so nothing that changes in the cache meanwhile can slip in. It has no dependencies
between closures, no compression and no network: each closure is complete in itself, and caches are local directories.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import attrs
import trio

from nixfleet_agent.activation.cache_keys import CacheKey, TrustedKeys
from nixfleet_agent.activation.errors import CacheUrlError, ProfileError, TreeError
from nixfleet_agent.activation.interface import RealiseOutcome
from nixfleet_agent.activation.links import link_atomically
from nixfleet_agent.activation.paths import Paths, closure_behind
from nixfleet_agent.activation.trees import Breath, copy_tree, tree_digest
from nixfleet_agent.commands import tail
from nixfleet_agent.files import sync_directory, write_atomically
from state_machine.values import Closure, Reason, is_closure

_NIX32: Final = "0123456789abcdfghijklmnpqrsvwxyz"
_SIGNATURES_MAX: Final = 16 * 1024


def publish(tree: str, cache: str, *, name: str, key: CacheKey | None) -> Closure:
    """Put a copy of `tree` into the cache at `cache` and sign it; returns the closure it has become.

    The same tree and name always give the same closure. `key` None publishes without a signature, which stores refuse.
    Raises `TreeError` for a tree that cannot be a closure and `ValueError` for a name that cannot be one's.
    """
    digest = tree_digest(tree)
    number = int.from_bytes(hashlib.sha256(f"nixfleet-tree-1;{digest};{name}".encode()).digest()[:20], "big")
    closure = Closure("".join(_NIX32[number >> shift & 31] for shift in range(155, -1, -5)) + f"-{name}")
    if not is_closure(closure):
        raise ValueError(f"{name!r} cannot be part of a store path")
    os.makedirs(cache, exist_ok=True)
    if not os.path.isdir(f"{cache}/{closure}"):
        with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as temporary:
            copy_tree(tree, f"{temporary}/tree")
            os.rename(f"{temporary}/tree", f"{cache}/{closure}")
    if key is not None:
        signature = key.sign(_message(closure, digest)).encode() + b"\n"
        write_atomically(Path(cache, f"{closure}.sig"), signature, mode=0o644)
    return closure


@attrs.frozen(kw_only=True)
class DirectoryStore:
    """A `Store` (see `interface`) in `paths.store`. Nothing ever removes a closure from it."""

    paths: Paths
    trusted: TrustedKeys

    def path(self, closure: Closure) -> str:
        """Where the files of `closure` are."""
        return self.paths.files(closure)

    async def has(self, closure: Closure) -> bool:
        """A closure gets its name when it is whole and verified."""
        await trio.lowlevel.checkpoint()
        return is_closure(closure) and self._holds(closure)

    async def realise(self, closure: Closure, *, caches: Sequence[str], timeout_s: float) -> RealiseOutcome:
        """Copy from the first cache that has it right."""
        if not is_closure(closure):
            return _failed("not the name of a store path")
        if await self.has(closure):
            return RealiseOutcome(ok=True)
        said: list[str] = []
        refused = False
        with trio.move_on_after(timeout_s):
            for cache in caches:
                outcome = await self._from(cache, closure)
                if outcome.ok:
                    return outcome
                said.append(outcome.detail)
                refused = refused or outcome.signature
            return _failed("\n".join(said) or "no cache was given", signature=refused)
        return _failed("\n".join([*said, "gave up at the deadline"]), signature=refused)

    async def set_profile(self, closure: Closure) -> None:
        """A numbered link for the generation, as Nix makes them, and the profile pointing at it."""
        await trio.lowlevel.checkpoint()
        try:
            if closure_behind(self.paths.profile, self.paths.store) != closure:
                self._add_generation(closure)
        except OSError as error:
            raise ProfileError(profile=self.paths.profile, closure=closure, cause=str(error)) from error

    def keep(self, name: str, closure: Closure) -> None:
        """Nothing is ever collected here."""

    def _holds(self, closure: Closure) -> bool:
        return os.path.isdir(self.paths.files(closure))

    def _add_generation(self, closure: Closure) -> None:
        profile = self.paths.profile
        if not self._holds(closure):
            raise ProfileError(profile=profile, closure=closure, cause="it is not in the store")
        directory, name = os.path.split(profile)
        os.makedirs(directory, exist_ok=True)
        generation = f"{name}-{_last_generation(directory, name) + 1}-link"
        link_atomically(self.paths.named(closure), f"{directory}/{generation}")
        link_atomically(generation, profile)

    async def _from(self, cache: str, closure: Closure) -> RealiseOutcome:
        try:
            source = _directory(cache)
            return await trio.to_thread.run_sync(self._copy, source, closure, trio.from_thread.check_cancelled)
        except (CacheUrlError, TreeError, OSError) as error:
            return _failed(str(error))

    def _copy(self, cache: str, closure: Closure, breath: Breath) -> RealiseOutcome:
        if not os.path.isdir(f"{cache}/{closure}"):
            return _failed(f"{cache} does not have {closure}")
        os.makedirs(self.paths.store, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=self.paths.store, prefix=".new-")
        try:
            copy_tree(f"{cache}/{closure}", f"{temporary}/tree", breath)
            digest = tree_digest(f"{temporary}/tree", breath)
            if not self.trusted.any_signed(_message(closure, digest), _signatures(f"{cache}/{closure}.sig")):
                return _failed(f"{closure} in {cache} is not signed by any trusted key", signature=True)
            if not self._holds(closure):
                os.rename(f"{temporary}/tree", self.paths.files(closure))
            sync_directory(Path(self.paths.store))
            return RealiseOutcome(ok=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _message(closure: Closure, digest: str) -> bytes:
    return f"nixfleet-tree-1;{closure};{digest}".encode()


def _signatures(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(_SIGNATURES_MAX).splitlines()
    except FileNotFoundError:
        return []


def _directory(cache: str) -> str:
    """The local directory that a cache address names. Raises `CacheUrlError`."""
    if cache.startswith("/"):
        return cache
    parts = urlsplit(cache)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or parts.query:
        raise CacheUrlError(url=cache, cause="a directory store reads from local directories only")
    return unquote(parts.path)


def _last_generation(directory: str, name: str) -> int:
    numbers = [0]
    for entry in os.listdir(directory):
        middle = entry.removeprefix(f"{name}-").removesuffix("-link")
        if middle.isdigit() and entry == f"{name}-{middle}-link":
            numbers.append(int(middle))
    return max(numbers)


def _failed(detail: str, *, signature: bool = False) -> RealiseOutcome:
    return RealiseOutcome(
        ok=False, reason=Reason.REALISE_FAILED, signature=signature, detail=tail(detail.encode("utf-8", "replace"))
    )
