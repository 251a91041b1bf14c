"""Look at the published artifacts, prove them, and bring what is newer into force.

The order of checks is protocol section 2.6; here follow age, the newest-seen mark and the anchor. The marks are in the
log, so an older fleet is refused after a restart as well. A file that does not prove changes nothing: what was in
force stays, and the problem is logged once and shown until it is gone.
"""

import functools
import logging
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Final

import attrs
import trio

from control_plane.artifact_source import (
    FLEET,
    NONCES,
    REVOCATIONS,
    ArtifactSource,
    SourceError,
    manifest_name,
)
from control_plane.entries import ArtifactAdopted, ArtifactKind
from control_plane.errors import StoreUnavailableError
from control_plane.ledger import Ledger
from control_plane.openings import opening
from control_plane.proving import Look, Prover, Value, Verify
from control_plane.rows import Artifact, Rollout
from control_plane.shelf import Held, Shelf
from control_plane.surroundings import InThread
from evidence.artifacts import verify_fleet, verify_manifest, verify_nonces, verify_revocations
from evidence.errors import EvidenceError
from state_machine.freshness import age_verdict
from state_machine.intent import Fleet, Manifest
from state_machine.values import Channel, Reason, RolloutId, WallMs, is_rollout_id
from wire.timestamps import format_rfc3339

LOG: Final = logging.getLogger(__name__)

ARCHIVED: Final = 64
"""How many manifests are kept to be served, those of earlier rollouts included."""


@attrs.frozen(kw_only=True)
class NotAdoptedError(Exception):
    """A genuine artifact that is not brought into force now."""

    reason: Reason
    detail: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class Adopter:
    """Keeps the shelf. One look at a time."""

    def __init__(
        self,
        *,
        source: ArtifactSource,
        trust_file: Path,
        freshness_window_s: int,
        ledger: Ledger,
        shelf: Shelf,
        on_change: Callable[[], None],
        in_thread: InThread = trio.to_thread.run_sync,
        lists_required: bool = False,
    ) -> None:
        """`lists_required`: nobody is let in before revocations and nonces are published and proved."""
        self._source, self._ledger, self._shelf = source, ledger, shelf
        self._prover = Prover(source, trust_file, clock=ledger.now, in_thread=in_thread)
        self._window_ms = freshness_window_s * 1000
        self._on_change = on_change
        self._lists_required = lists_required
        shelf.awaiting = frozenset({REVOCATIONS, NONCES}) if lists_required else shelf.awaiting
        self._one_look = trio.Lock()
        self._unfinished: str | None = None
        self._poke = trio.Event()

    async def run(self, poll_secs: float) -> None:
        """Look again every `poll_secs` and whenever poked; at once, if nothing is in force yet. Runs for ever."""
        if not self._shelf.is_ready:
            await self.look()
        while True:
            with trio.move_on_after(poll_secs):
                await self._poke.wait()
            self._poke = trio.Event()
            await self.look()

    def poke(self) -> None:
        """Look again now."""
        self._poke.set()

    async def look(self) -> Mapping[str, str]:
        """Look once, and say what is wrong with which file."""
        async with self._one_look:
            problems: dict[str, str] = {}
            try:
                look = await self._prover.begin()
            except EvidenceError as error:
                problems["trust.json"] = str(error)
            else:
                await self._look_at_everything(look, problems)
                self._prover.end(look)
            self._report(problems)
            if self._shelf.is_ready:
                self._shelf.ready.set()
            self._on_change()
            return problems

    async def _look_at_everything(self, look: Look, problems: dict[str, str]) -> None:
        try:
            await self._lists(look, problems)
            await self._fleet_and_manifests(look, problems)
        except StoreUnavailableError as error:
            problems["database"] = str(error)

    def _report(self, problems: Mapping[str, str]) -> None:
        for name, problem in problems.items():
            if self._shelf.problems.get(name) != problem:
                LOG.warning("artifact %s is not in force: %s", name, problem)
        self._shelf.problems = dict(problems)

    # The two lists

    async def _lists(self, look: Look, problems: dict[str, str]) -> None:
        shelf = self._shelf
        # However old: an outdated list of revoked hosts is better than none.
        shelf.revocations = await self._list(
            REVOCATIONS, ArtifactKind.REVOCATIONS, verify_revocations, shelf.revocations, None, look, problems
        )
        shelf.nonces = await self._list(
            NONCES, ArtifactKind.BOOTSTRAP_NONCES, verify_nonces, shelf.nonces, self._window_ms, look, problems
        )

    async def _list(
        self,
        name: str,
        kind: ArtifactKind,
        verify: Verify[Value],
        held: Held[Value] | None,
        window_ms: int | None,
        look: Look,
        problems: dict[str, str],
    ) -> Held[Value] | None:
        """What is to be in force instead of `held`. A list that is gone from the source stays in force."""
        if held is not None and not await self._prover.still_stands(held, verify, look):
            held = None
        try:
            found = await self._newest(name, kind, verify, look, window_ms)
        except (EvidenceError, SourceError, NotAdoptedError) as error:
            problems[name] = str(error)
            self._await(name, held is None)
            return held
        if found is None and held is None and self._lists_required:
            problems[name] = "it is not published, and --strict demands it"
            return None
        self._await(name, False)
        if found is None or found == held:
            return held
        self._record(kind, found)
        return found

    def _await(self, name: str, awaited: bool) -> None:
        self._shelf.awaiting = self._shelf.awaiting | {name} if awaited else self._shelf.awaiting - {name}

    async def _newest(
        self, name: str, kind: ArtifactKind, verify: Verify[Value], look: Look, window_ms: int | None
    ) -> Held[Value] | None:
        """What is published under `name`, if anything is, unless it is not to be brought into force.

        Raises:
            EvidenceError, SourceError, NotAdoptedError: it is not.
        """
        held = await self._prover.fetch(name, verify, look)
        if held is not None:
            self._check_time(held.proven.signed_at, self._ledger.book.get(Artifact, kind, ""), look.at, window_ms)
        return held

    # Fleet and manifests

    async def _fleet_and_manifests(self, look: Look, problems: dict[str, str]) -> None:
        shelf = self._shelf
        if shelf.fleet is not None and not await self._prover.still_stands(shelf.fleet, verify_fleet, look):
            LOG.warning("the fleet in force is no longer trusted: nothing is planned or served until a new one proves")
            shelf.fleet, shelf.manifests, shelf.archive = None, {}, {}
        try:
            fleet = await self._newest(FLEET, ArtifactKind.FLEET, verify_fleet, look, self._window_ms)
        except (EvidenceError, SourceError, NotAdoptedError) as error:
            problems[FLEET] = str(error)
            return
        if fleet is None:
            problems[FLEET] = "nothing is published"
            return
        found, gone = await self._manifests(fleet, look, problems)
        anchored = self._kept(fleet, gone, look)
        anchored |= {rollout_id: held for rollout_id, held in found.items() if _is_anchored(held, fleet)}
        if self._is_half_published(fleet, anchored):
            problems[FLEET] = "not all of its manifests are published yet"
            return
        self._adopt(fleet, self._newest_of_each(anchored, look, problems), problems)
        kept = {} if not look.same_trust else shelf.archive
        newest = {rollout_id: held.raw for rollout_id, held in found.items()}
        shelf.archive = dict(list({**newest, **kept, **newest}.items())[:ARCHIVED])

    async def _manifests(
        self, fleet: Held[Fleet], look: Look, problems: dict[str, str]
    ) -> tuple[dict[RolloutId, Held[Manifest]], set[RolloutId]]:
        """Those that prove, and those that are not there."""
        found: dict[RolloutId, Held[Manifest]] = {}
        gone: set[RolloutId] = set()
        try:
            listed = await self._source.listed()
        except SourceError as error:
            problems["rollouts"] = str(error)
            listed = ()
        for rollout_id in dict.fromkeys((*_named_by(fleet.value), *listed)):
            name = manifest_name(rollout_id)
            verify = functools.partial(verify_manifest, rollout=rollout_id)
            try:
                held: Held[Manifest] | None = await self._prover.fetch(name, verify, look)
            except (EvidenceError, SourceError) as error:
                problems[name] = str(error)
                continue
            if held is None:
                gone.add(rollout_id)
            else:
                found[rollout_id] = held
        return found, gone

    def _kept(self, fleet: Held[Fleet], gone: Container[RolloutId], look: Look) -> dict[RolloutId, Held[Manifest]]:
        """Manifests in force that go with this very fleet. While it is signed anew, their files come first: one that
        does not prove, or is anchored to the next fleet, changes nothing, however long the next fleet is on its way."""
        shelf = self._shelf
        if shelf.fleet is None or shelf.fleet.proven.digest != fleet.proven.digest or not look.same_trust:
            return {}
        in_force = {held.value.rollout_id: held for held in shelf.manifests.values()}
        return {rollout_id: held for rollout_id, held in in_force.items() if rollout_id not in gone}

    def _is_half_published(self, fleet: Held[Fleet], anchored: Mapping[RolloutId, Held[Manifest]]) -> bool:
        """True once for a new fleet that lacks a manifest which the fleet in force has one of: it may be on its way."""
        have = {held.value.channel for held in anchored.values()}
        lacks = any(channel in fleet.value.channels for channel in set(self._shelf.manifests) - have)
        if not lacks or self._unfinished == fleet.proven.digest:
            self._unfinished = None
            return False
        self._unfinished = fleet.proven.digest
        return True

    def _newest_of_each(
        self, anchored: Mapping[RolloutId, Held[Manifest]], look: Look, problems: dict[str, str]
    ) -> dict[Channel, Held[Manifest]]:
        newest: dict[Channel, Held[Manifest]] = {}
        for rollout_id, held in anchored.items():
            channel = held.value.channel
            mark = self._ledger.book.get(Artifact, ArtifactKind.ROLLOUT, channel)
            try:
                self._check_time(held.proven.signed_at, mark, look.at, self._window_ms)
            except NotAdoptedError as error:
                problems[manifest_name(rollout_id)] = str(error)
                continue
            if channel not in newest or newest[channel].proven.signed_at < held.proven.signed_at:
                newest[channel] = held
        return newest

    def _adopt(self, fleet: Held[Fleet], manifests: Mapping[Channel, Held[Manifest]], problems: dict[str, str]) -> None:
        self._record(ArtifactKind.FLEET, fleet)
        for channel, held in manifests.items():
            self._record(ArtifactKind.ROLLOUT, held, channel=channel, rollout_id=held.value.rollout_id)
        self._shelf.fleet, self._shelf.manifests = fleet, dict(manifests)
        for held in manifests.values():
            rollout = self._ledger.book.get(Rollout, held.value.rollout_id)
            if rollout is None or rollout.manifest_digest is None:
                self._ledger.record(opening(self._ledger.book, held, fleet))
            elif rollout.superseded_by is not None:
                problems[manifest_name(rollout.rollout_id)] = (
                    f"{rollout.superseded_by} has taken its place: to go back, release the old closures as a new commit"
                )

    # What they have in common

    def _check_time(self, signed_at: WallMs, mark: Artifact | None, now: WallMs, window_ms: int | None) -> None:
        if mark is not None and signed_at < mark.signed_at:
            raise NotAdoptedError(reason=Reason.SUPERSEDED, detail="a newer one has been in force")
        verdict = age_verdict(signed_at, now, self._window_ms if window_ms is None else window_ms)
        if verdict is Reason.FUTURE_DATED:
            raise NotAdoptedError(reason=verdict, detail="it is signed in the future: check the clocks")
        if verdict is not None and window_ms is not None:
            age_h = (now - signed_at) // 3_600_000
            raise NotAdoptedError(reason=verdict, detail=f"it was signed {age_h} h ago: sign it again")

    def _record(
        self,
        kind: ArtifactKind,
        held: Held[Value],
        *,
        channel: Channel | None = None,
        rollout_id: RolloutId | None = None,
    ) -> None:
        mark = self._ledger.book.get(Artifact, kind, channel or "")
        if mark is not None and mark.digest == held.proven.digest:
            return
        LOG.info("%s signed %s is in force", rollout_id or kind, format_rfc3339(held.proven.signed_at))
        self._ledger.record(
            ArtifactAdopted(
                kind=kind,
                digest=held.proven.digest,
                signed_at=held.proven.signed_at,
                key_id=held.proven.key_id,
                channel=channel,
                rollout_id=rollout_id,
            )
        )


def _named_by(fleet: Fleet) -> list[RolloutId]:
    """The rollouts that a fleet says are current: each channel at the fleet's commit."""
    ids = [f"{channel}@{fleet.meta.ci_commit or ''}" for channel in fleet.channels]
    return [RolloutId(text) for text in ids if is_rollout_id(text)]


def _is_anchored(manifest: Held[Manifest], fleet: Held[Fleet]) -> bool:
    return manifest.value.fleet_resolved_hash == fleet.proven.digest
