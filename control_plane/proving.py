"""Fetch artifacts and prove them under the trust roots of the moment.

One look is one reading of the trust file and of the clock. What was proved in an earlier look is not proved again
while neither its bytes nor the trust file have changed: most looks find what the last one found, and a large fleet
takes a while to prove.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar, cast

import attrs
import trio

from control_plane.artifact_source import ArtifactSource, Raw
from control_plane.shelf import Held
from control_plane.surroundings import InThread
from evidence.artifacts import BadSignatureError, Verified
from evidence.errors import EvidenceError
from evidence.trust import KeySlot, TrustRoots, load_trust
from state_machine.intent import BootstrapNonces, Fleet, Manifest, Revocations
from state_machine.values import WallMs

_TORN_ATTEMPTS: Final = 3
_TORN_PAUSE_S: Final = 0.2
"""A reader that comes between a signature and its file sees a pair that does not verify, for a moment."""

Value = TypeVar("Value", Fleet, Manifest, Revocations, BootstrapNonces)
Verify = Callable[[bytes, bytes, KeySlot, WallMs], Verified[Value]]


@attrs.frozen(kw_only=True)
class Look:
    """One look at the source: when, under which trust roots, and whether these are those of the look before."""

    at: WallMs
    trust: TrustRoots
    trust_print: str
    same_trust: bool


class Prover:
    """Proves what a source has."""

    def __init__(
        self, source: ArtifactSource, trust_file: Path, *, clock: Callable[[], WallMs], in_thread: InThread
    ) -> None:
        self._source, self._trust_file = source, trust_file
        self._clock, self._in_thread = clock, in_thread
        self._proven: dict[str, tuple[str, object]] = {}
        self._asked_for: set[str] = set()
        self._trust_print = ""

    async def begin(self) -> Look:
        """Begin a look.

        Raises:
            EvidenceError: the trust file cannot be read.
        """
        trust: TrustRoots = await self._in_thread(load_trust, self._trust_file)
        trust_print = hashlib.sha256(repr(trust).encode()).hexdigest()
        self._asked_for = set()
        same_trust = trust_print == self._trust_print
        return Look(at=self._clock(), trust=trust, trust_print=trust_print, same_trust=same_trust)

    def end(self, look: Look) -> None:
        """End a look that went through, and forget what was not asked for in it."""
        self._trust_print = look.trust_print
        self._proven = {name: known for name, known in self._proven.items() if name in self._asked_for}

    async def fetch(self, name: str, verify: Verify[Value], look: Look) -> Held[Value] | None:
        """What is published under `name`, proved; None when nothing is.

        Raises:
            EvidenceError: it does not prove.
            SourceError: it cannot be had.
        """
        self._asked_for.add(name)
        for attempt in range(_TORN_ATTEMPTS):
            raw = await self._source.fetch(name)
            if raw is None:
                return None
            try:
                return Held(raw=raw, proven=await self._prove(name, raw, verify, look))
            except BadSignatureError:
                if attempt + 1 == _TORN_ATTEMPTS:
                    raise
                await trio.sleep(_TORN_PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    async def still_stands(self, held: Held[Value], verify: Verify[Value], look: Look) -> bool:
        """Whether the trust file still stands behind what is in force."""
        if look.same_trust:
            return True
        slot = look.trust.ci_release_key
        try:
            await self._in_thread(verify, held.raw.data, held.raw.signature, slot, look.at)
        except EvidenceError:
            return False
        return True

    async def _prove(self, name: str, raw: Raw, verify: Verify[Value], look: Look) -> Verified[Value]:
        seen = raw.fingerprint + look.trust_print
        known = self._proven.get(name)
        if known is not None and known[0] == seen:
            return cast(Verified[Value], known[1])  # stored below under this name, so by this verify
        slot = look.trust.ci_release_key
        proven: Verified[Value] = await self._in_thread(verify, raw.data, raw.signature, slot, look.at)
        self._proven[name] = (seen, proven)
        return proven
