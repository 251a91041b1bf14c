"""Closures in Nix's store, by Nix's own commands; signatures are checked by Nix and by nothing else.

No option given here weakens that check: `require-sigs` is forced on, and a cache address that asks to be trusted
(`?trusted=1`, which makes Nix skip signatures when it substitutes) is refused. Tried with Nix 2.8 and 2.26, as root and
not, with the store in its usual place, with `NIX_STORE_DIR` elsewhere and as a chroot store.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import attrs
import trio

from nixfleet_agent.activation.errors import CacheUrlError, ProfileError
from nixfleet_agent.activation.interface import RealiseOutcome
from nixfleet_agent.activation.links import link_atomically
from nixfleet_agent.activation.paths import Paths
from nixfleet_agent.commands import CommandError, Completed, run, tail
from state_machine.values import Closure, Reason, is_closure

_SHORT_S: Final = 60.0
"""For commands that only look at the store or move a link, in seconds; the store's own lock may make them wait."""

_SCHEMES: Final = frozenset({"https", "http", "file", "s3", "ssh", "ssh-ng"})

_OPTIONS: Final = (
    ("--extra-experimental-features", "nix-command"),
    ("--option", "require-sigs", "true"),
    # A black hole would otherwise be waited for as long as the kernel does, five times over.
    ("--option", "connect-timeout", "10"),
    # A path that was pushed after the first look, or signed after it, must be seen by the next try.
    ("--option", "narinfo-cache-negative-ttl", "0"),
    ("--option", "narinfo-cache-positive-ttl", "60"),
)

_REFUSALS: Final = re.compile(
    r"lacks a valid signature"  # nix copy, up to 2.13 or so
    r"|lacks a signature by a trusted key"  # nix copy, later
    r"|is not signed by any of the keys"  # substitution, up to 2.13 or so
    r"|not signed by any of the keys in"  # substitution, later
    r"|no signature is trusted|no signatures matched|signature mismatch|untrusted signature"
    r"|hash mismatch importing path"  # content that is not what was signed
    r"|^asked '.*' for '.*' but got '.*'",  # the description of another path served for this one
    re.MULTILINE,
)

_UNTRUSTED_BIT: Final = 2
"""In the exit status of `nix store verify` (Nix manual): some path carries no trusted signature."""


def refused_signature(stderr: str) -> bool:
    """True when Nix said that it would not trust a path. Wording of Nix 2.8 to 2.26; Nix is not translated."""
    return _REFUSALS.search(stderr) is not None


def checked_cache_url(url: str) -> str:
    """`url` itself when Nix may be given it as a substituter.

    Raises `CacheUrlError` for another scheme, for characters that would end a word in Nix's settings, and for
    settings in the query by which the address would vouch for itself.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise CacheUrlError(url=url, cause=f"its scheme is none of {', '.join(sorted(_SCHEMES))}")
    if not url.isascii() or not url.isprintable() or " " in url or parts.netloc.startswith("-"):
        raise CacheUrlError(url=url, cause="it is not a plain address")
    # `root`, `real`, `state`: local stores by another name. `remote-program`: a command of the address's choosing.
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name in {"trusted", "remote-program", "remote-store", "root", "real", "state"}:
            raise CacheUrlError(url=url, cause=f"a cache may not set {name!r}")
    return url


@attrs.frozen(kw_only=True)
class NixStore:
    """A `Store` (see `interface`) over the `nix` commands found on PATH.

    `environment` is added to this process's own for every command; `NIX_STORE_DIR` follows from `paths.store`.
    """

    paths: Paths
    environment: Mapping[str, str] = attrs.field(factory=dict)

    def path(self, closure: Closure) -> str:
        """Where the files of `closure` are."""
        return self.paths.files(closure)

    async def has(self, closure: Closure) -> bool:
        """Nix calls the path valid: it and everything it refers to is there."""
        if not is_closure(closure):
            return False
        done = await self._run("nix-store", "--check-validity", self.paths.named(closure), timeout_s=_SHORT_S)
        return done.ok

    async def realise(self, closure: Closure, *, caches: Sequence[str], timeout_s: float) -> RealiseOutcome:
        """Copy from each cache in turn, then let Nix substitute from all of them and its own; all within `timeout_s`.

        Each try gets an equal share of the time that is left, so that one cache that dribbles cannot use it up.
        """
        if not is_closure(closure):
            return _failed("not the name of a store path")
        path = self.paths.named(closure)
        if await self.has(closure):
            return RealiseOutcome(ok=True)
        said: list[str] = []
        good = _usable(caches, said)
        refused = False
        deadline = trio.current_time() + timeout_s
        for left, url in zip(range(len(good), 0, -1), good, strict=True):
            share_s = (deadline - trio.current_time()) / (left + 1)
            done = await self._run("nix", "copy", "--from", url, path, timeout_s=share_s)
            if done.ok:
                break
            refused = await self._note(said, done, path, url=url) or refused
        extra = ("--option", "extra-substituters", " ".join(good)) if good else ()
        done = await self._run("nix-store", "--realise", path, *extra, timeout_s=deadline - trio.current_time())
        if done.ok and done.stdout.split(b"\n", 1)[0] == path.encode():
            return RealiseOutcome(ok=True)
        if done.ok:
            said.append(f"nix-store --realise answered {tail(done.stdout, 256)!r} instead of {path}")
        refused = await self._note(said, done, path) or refused
        return _failed("\n".join(said), signature=refused)

    async def set_profile(self, closure: Closure) -> None:
        """`nix-env --set`; raises `ProfileError`."""
        path = self.paths.named(closure)
        profile = self.paths.profile
        try:
            # Nix makes the links, not the directory they live in.
            os.makedirs(os.path.dirname(profile), exist_ok=True)
        except OSError as error:
            raise ProfileError(profile=profile, closure=closure, cause=str(error)) from error
        done = await self._run("nix-env", "--profile", profile, "--set", path, timeout_s=_SHORT_S)
        if not done.ok:
            cause = "timed out" if done.timed_out else done.stderr_tail
            raise ProfileError(profile=profile, closure=closure, cause=cause)

    def keep(self, name: str, closure: Closure) -> None:
        """A garbage collector root: without it a collection between realise and switch takes the closure away."""
        link_atomically(self.paths.named(closure), f"{self.paths.gc_roots}/{name}")

    async def _note(self, said: list[str], done: Completed, path: str, url: str | None = None) -> bool:
        """Remember what a failed try said; whether it was about trust."""
        error = done.stderr.decode("utf-8", "replace")
        said.append("gave up at the deadline" if done.timed_out else tail(done.stderr, 1024))
        if refused_signature(error):
            return True
        if url is None or done.timed_out:
            return False
        # A second opinion that depends on no wording: the exit status of a check of signatures alone.
        verify = ("nix", "store", "verify", "--recursive", "--no-contents", "--store", url, path)
        checked = await self._run(*verify, timeout_s=_SHORT_S, root=False)
        return bool((checked.exit_code or 0) & _UNTRUSTED_BIT)

    async def _run(self, program: str, *arguments: str, timeout_s: float, root: bool = True) -> Completed:
        """Run a command of Nix's; one that cannot be started is a failed one whose error output says why."""
        options = [word for option in _OPTIONS for word in option]
        if root and self.paths.store_root is not None:
            options += ["--store", self.paths.store_root]
        words = [program, *arguments, *options]
        environment = {**os.environ, **self.environment}
        if self.paths.store != "/nix/store":
            environment["NIX_STORE_DIR"] = self.paths.store
        try:
            return await run(words, timeout_s=max(0.0, timeout_s), env=environment)
        except CommandError as error:
            return Completed(exit_code=127, stdout=b"", stderr=str(error).encode(), timed_out=False)


def _usable(caches: Sequence[str], said: list[str]) -> list[str]:
    """The caches that may be asked; why the others may not is added to `said`."""
    good: list[str] = []
    for url in caches:
        try:
            good.append(checked_cache_url(url))
        except CacheUrlError as error:
            said.append(str(error))
    return good


def _failed(detail: str, *, signature: bool = False) -> RealiseOutcome:
    return RealiseOutcome(
        ok=False, reason=Reason.REALISE_FAILED, signature=signature, detail=tail(detail.encode("utf-8", "replace"))
    )
