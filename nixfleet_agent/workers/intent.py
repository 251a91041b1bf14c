"""Fetch signed intent, prove it, keep it: the worker behind `FetchIntent` and the intent duty.

What was fetched lies in a cache on disk and is proved again at every read. When the control plane cannot be reached
the cache answers, so that a host can go on with what is under way; whether it is still fresh is decided in `step`.
Every artifact that proved is also kept under its digest, for an auditor.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import attrs
import trio

from evidence.artifacts import UnsupportedAlgorithmError, Verified, verify_fleet, verify_manifest
from evidence.canonical import ARTIFACT_LIMIT
from evidence.errors import EvidenceError
from evidence.project import project
from evidence.trust import KeySlot, TrustVersionError, load_trust
from nixfleet_agent.desk import Desk, RefusedError, refused
from nixfleet_agent.files import read_limited, write_atomically
from nixfleet_agent.transport import BodyTooLargeError, TransportError
from state_machine.events import Event, IntentRefused, IntentVerified, VerifiedIntent
from state_machine.intent import Fleet
from state_machine.values import Reason, RolloutId, is_rollout_id
from wire.endpoints import FLEET, FLEET_SIGNATURE, ROLLOUT, ROLLOUT_SIGNATURE

SIGNATURE_LIMIT: Final = 4096
ARTIFACTS_KEPT: Final = 512
NAMED_KEPT: Final = 32
ACTED_ON_KEPT_S: Final = 100 * 86_400
"""Somewhat longer than the journal keeps entries."""
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Document:
    """An artifact as received. `etag` tells the server which bytes we have."""

    data: bytes
    signature: bytes
    etag: str | None = None


@attrs.frozen(kw_only=True)
class _Memo:
    """The last proof, so that an unchanged artifact under an unchanged trust file is not proved every minute."""

    trust: tuple[int, int, int]
    fleet: Document
    manifest: Document
    intent: VerifiedIntent


class DocumentCache:
    """Artifacts on disk: the newest by name, and everything that proved by digest."""

    def __init__(self, state_dir: Path) -> None:
        self._named = state_dir / "intent"
        self._kept = state_dir / "artifacts"
        self._acted_on = state_dir / "artifacts-acted-on"

    def read(self, name: str) -> Document | None:
        """The artifact last saved as `name`; whether it proves is for the caller to see."""
        data = read_limited(self._named / f"{name}.json", ARTIFACT_LIMIT)
        signature = read_limited(self._named / f"{name}.json.sig", SIGNATURE_LIMIT)
        return None if data is None or signature is None else Document(data=data, signature=signature)

    def kept(self, digest: str) -> Document | None:
        """The artifact that proved once under this digest, if it is still here."""
        data = read_limited(self._kept / f"{digest}.json", ARTIFACT_LIMIT)
        signature = read_limited(self._kept / f"{digest}.json.sig", SIGNATURE_LIMIT)
        return None if data is None or signature is None else Document(data=data, signature=signature)

    def save(self, name: str, digest: str, document: Document) -> None:
        """Keep an artifact that proved.

        Raises:
            OSError: it could not be kept.
        """
        for path in (self._named / f"{name}.json", self._kept / f"{digest}.json"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if read_limited(path, ARTIFACT_LIMIT) != document.data:
                write_atomically(path, document.data)
            if read_limited(path.with_name(path.name + ".sig"), SIGNATURE_LIMIT) != document.signature:
                write_atomically(path.with_name(path.name + ".sig"), document.signature)
        self._forget_oldest()

    def keep(self, digests: Iterable[str]) -> None:
        """What these artifacts allow is about to be done: keep them as long as the journal that says so.

        A second link to the file marks it; a journal outlives the hourly signatures of three months.
        """
        self._acted_on.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (f"{digest}.json{end}" for digest in digests for end in ("", ".sig")):
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.link(self._kept / name, self._acted_on / name)

    def _forget_oldest(self) -> None:
        for path in _older_than(self._acted_on, ACTED_ON_KEPT_S):
            path.unlink()
        loose = [path for path in self._kept.glob("*.json") if path.stat().st_nlink == 1]
        loose.sort(key=lambda path: path.stat().st_mtime)
        named = sorted(self._named.glob("rollouts/*.json"), key=lambda path: path.stat().st_mtime)
        for path in [*loose[: max(0, len(loose) - ARTIFACTS_KEPT)], *named[: max(0, len(named) - NAMED_KEPT)]]:
            path.unlink()
            path.with_name(path.name + ".sig").unlink(missing_ok=True)


def _older_than(directory: Path, seconds: float) -> list[Path]:
    if not directory.is_dir():
        return []
    oldest = time.time() - seconds
    return [path for path in directory.iterdir() if path.stat().st_mtime < oldest]


def _is_own_trouble(error: EvidenceError) -> bool:
    """It is about this host's trust file, and says nothing of what was served."""
    return isinstance(error, UnsupportedAlgorithmError | TrustVersionError) or error.reason is Reason.NO_TRUST_ROOTS


class IntentWorker:
    """Answers with `IntentVerified` or `IntentRefused`."""

    def __init__(self, desk: Desk, cache: DocumentCache) -> None:
        self._desk = desk
        self._cache = cache
        self._memory: dict[str, Document] = {}
        self._memo: _Memo | None = None
        self._reviewed: tuple[int, int, int] | None = None
        self._turn = trio.Lock()

    def keep(self, rollout_id: RolloutId) -> None:
        """The host is about to act on this rollout's intent: keep the proof of it."""
        known = self._desk.state().known
        seen, tracked = known.intents.get(rollout_id), known.rollouts.get(rollout_id)
        latest, taken = None if seen is None else seen.intent, None if tracked is None else tracked.intent
        for intent in {latest, taken} - {None}:
            assert intent is not None
            self._cache.keep((intent.manifest_digest, intent.fleet_digest))

    async def poll(self) -> None:
        """Look at what the fleet says is current for this host.

        Raises:
            TransportError, RefusedError: the control plane has no answer; the duty has failed.
        """
        await self.review()
        async with self._turn:
            fleet_document = await self._fetch("fleet.resolved", FLEET, FLEET_SIGNATURE)
            try:
                rollout_id = self._current_rollout(self._prove_fleet(fleet_document).value)
            except EvidenceError as error:
                return await self._tell_refused(None, error.reason, str(error), final=True)
            if rollout_id is None:
                detail = f"the fleet has no rollout for {self._desk.config.machine_id}"
                return await self._tell_refused(None, Reason.MISSING, detail, final=True)
            await self._desk.tell(await self._pair(rollout_id, fleet_document))

    async def fetch(self, rollout_id: RolloutId) -> None:
        """Get and prove one rollout's manifest and its fleet, out of turn."""
        async with self._turn:
            try:
                event = await self._pair(rollout_id, await self._fetch("fleet.resolved", FLEET, FLEET_SIGNATURE))
            except (TransportError, RefusedError) as error:
                event = self._from_cache(rollout_id, error)
            await self._desk.tell(event)

    async def _pair(self, rollout_id: RolloutId, fleet: Document) -> Event:
        """Fetch the manifest and prove both. A pair caught in the middle of a re-signing is fetched once more."""
        manifest = await self._fetch_manifest(rollout_id)
        event = self._prove(rollout_id, fleet, manifest)
        if isinstance(event, IntentRefused) and event.reason in (Reason.BAD_SIGNATURE, Reason.MANIFEST_MISMATCH):
            self._memory.clear()
            fleet = await self._fetch("fleet.resolved", FLEET, FLEET_SIGNATURE)
            event = self._prove(rollout_id, fleet, await self._fetch_manifest(rollout_id))
        return event

    async def _fetch_manifest(self, rollout_id: RolloutId) -> Document:
        name = f"rollouts/{rollout_id}"
        path, signature = ROLLOUT.format(rollout_id=rollout_id), ROLLOUT_SIGNATURE.format(rollout_id=rollout_id)
        return await self._fetch(name, path, signature)

    async def _fetch(self, name: str, path: str, signature_path: str) -> Document:
        known = self._memory.get(name)
        headers = {"If-None-Match": known.etag} if known is not None and known.etag else None
        answer = await self._desk.uplink.ask("GET", path, headers=headers, limit=ARTIFACT_LIMIT)
        if answer.status == 304 and known is not None:
            return known
        if not answer.ok:
            raise refused(path, answer)
        signature = await self._desk.uplink.ask("GET", signature_path, limit=SIGNATURE_LIMIT)
        if not signature.ok:
            raise refused(signature_path, signature)
        document = Document(data=answer.body, signature=signature.body, etag=answer.headers.get("ETag"))
        self._memory = {**{k: v for k, v in self._memory.items() if k == "fleet.resolved"}, name: document}
        return document

    def _from_cache(self, rollout_id: RolloutId, error: TransportError | RefusedError) -> Event:
        fleet, manifest = self._cache.read("fleet.resolved"), self._cache.read(f"rollouts/{rollout_id}")
        if fleet is not None and manifest is not None:
            event = self._prove(rollout_id, fleet, manifest)
            if isinstance(event, IntentVerified):
                return event
        # Only "there is no such rollout" is an answer; anything else may be different next time.
        final = isinstance(error, RefusedError) and error.status == 404
        reason = Reason.TOO_LARGE if isinstance(error, BodyTooLargeError) else Reason.MISSING
        refused_event = self._refused(rollout_id, reason, str(error), final=final)
        asked_ms = error.retry_after_ms if isinstance(error, RefusedError) else None
        return attrs.evolve(refused_event, retry_after_ms=asked_ms)

    def _prove(self, rollout_id: RolloutId, fleet: Document, manifest: Document) -> Event:
        at, memo, trust = self._desk.clock(), self._memo, self._trust_stamp()
        if memo is not None and (memo.trust, memo.fleet, memo.manifest) == (trust, fleet, manifest):
            if memo.intent.rollout_id == rollout_id:  # the same bytes may be served in answer to another question
                return IntentVerified(at=at, intent=memo.intent)
        try:
            slot = self._slot()
            proven_fleet = self._prove_fleet(fleet)
            proven = verify_manifest(manifest.data, manifest.signature, slot, at.wall_ms, rollout=rollout_id)
            intent = project(proven_fleet, proven, self._desk.config.machine_id)
        except EvidenceError as error:
            # What this host cannot judge now, it may be able to once its trust file is mended.
            return self._refused(rollout_id, error.reason, str(error), final=not _is_own_trouble(error))
        try:
            self._cache.save("fleet.resolved", proven_fleet.digest, fleet)
            self._cache.save(f"rollouts/{rollout_id}", proven.digest, manifest)
        except OSError as error:
            # What cannot be shown to an auditor afterwards is not acted on.
            log.warning("intent could not be kept", extra={"fields": {"rollout": rollout_id, "cause": str(error)}})
            return self._refused(rollout_id, Reason.MISSING, f"it could not be kept: {error}", final=False)
        if slot.retire_at is None:
            self._memo = _Memo(trust=trust, fleet=fleet, manifest=manifest, intent=intent)
        return IntentVerified(at=at, intent=intent)

    async def review(self) -> None:
        """Look again at accepted intent when the trust file has changed, and refuse what no longer proves.

        To be awaited before anything is passed on that could make the host act on intent it has: a key that was struck
        off, or whose signatures of before an incident were, must not count because nobody has asked for a while.
        """
        stamp = self._trust_stamp()
        if stamp == self._reviewed:
            return
        for seen in tuple(self._desk.state().known.intents.values()):
            error = self._objection(seen.intent)
            if error is not None:
                await self._tell_refused(seen.intent.rollout_id, error.reason, str(error), final=True)
        self._reviewed = stamp

    def _objection(self, intent: VerifiedIntent) -> EvidenceError | None:
        """What is wrong with the proof of accepted intent by the trust file of now, if anything."""
        fleet, manifest = self._cache.kept(intent.fleet_digest), self._cache.kept(intent.manifest_digest)
        try:
            if fleet is not None:
                self._prove_fleet(fleet)
            if manifest is not None:
                now = self._desk.clock().wall_ms
                verify_manifest(manifest.data, manifest.signature, self._slot(), now, rollout=intent.rollout_id)
        except EvidenceError as error:
            return None if _is_own_trouble(error) else error
        return None

    def _prove_fleet(self, document: Document) -> Verified[Fleet]:
        return verify_fleet(document.data, document.signature, self._slot(), self._desk.clock().wall_ms)

    def _slot(self) -> KeySlot:
        return load_trust(self._desk.config.trust_file).ci_release_key

    def _trust_stamp(self) -> tuple[int, int, int]:
        try:
            stat = self._desk.config.trust_file.stat()
        except OSError:
            return (0, 0, 0)
        return (stat.st_ino, stat.st_mtime_ns, stat.st_size)

    def _current_rollout(self, fleet: Fleet) -> RolloutId | None:
        host = fleet.hosts.get(self._desk.config.machine_id)
        rollout_id = "" if host is None else f"{host.channel}@{fleet.meta.ci_commit or ''}"
        return RolloutId(rollout_id) if is_rollout_id(rollout_id) else None

    def _refused(self, rollout_id: RolloutId | None, reason: Reason, detail: str, *, final: bool) -> IntentRefused:
        return IntentRefused(
            at=self._desk.clock(),
            rollout_id=rollout_id,
            reason=reason,
            detail=detail[:512],
            final=final,
            jitter=self._desk.jitter(),
        )

    async def _tell_refused(self, rollout_id: RolloutId | None, reason: Reason, detail: str, *, final: bool) -> None:
        await self._desk.tell(self._refused(rollout_id, reason, detail, final=final))
