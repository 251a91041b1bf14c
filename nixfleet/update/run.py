"""One run of the updater, from the lock to the notice.

The main branch is only ever moved forward, by a commit of which every system was built; whatever else happens, the
remote has what it had. A main branch that moved meanwhile means to begin again: what is merged is what was built.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import attrs
import httpx

from nixfleet.errors import StoppedError
from nixfleet.news import Audience, tell_if_configured
from nixfleet.update import gauges
from nixfleet.update.builds import Builder, Comparer, Display
from nixfleet.update.errors import DiskError, FlakeError, GitError, MovedError, UpdateError
from nixfleet.update.flake import Built, Flake, System
from nixfleet.update.forge import forge_at
from nixfleet.update.instance import Instance
from nixfleet.update.locks import Move, moves
from nixfleet.update.message import Attempt, Findings, commit_message, fix_message, pull_request
from nixfleet.update.notices import Notice, notice_of, tell
from nixfleet.update.outcome import Kind, Outcome
from nixfleet.update.releasing import release
from nixfleet.update.repair import Mender
from nixfleet.update.worktree import Repository, Worktree

MOVES_MAX: Final = 3
REVIEW: Final = "needs-review"
BROKEN: Final = "build-failure"
_DATE: Final = "%Y%m%d"

MakeBuilder = Callable[[Worktree, Flake, str], Comparer]
"""Whoever builds, made for a worktree, its flake and the commit that it began from."""


class _MainMovedError(Exception):
    """Somebody pushed to the main branch while systems were built."""


@attrs.frozen(kw_only=True)
class Run:
    """A run, with whatever it is given."""

    instance: Instance
    repository: Repository
    builder: MakeBuilder
    display: Display
    say: Callable[[str], None]
    """Told each phase, for a person who watches."""
    audience: Audience | None = None
    """Who is told at once when something was merged."""
    now: Callable[[], float] = time.time

    async def update(self) -> Outcome:
        """Do it, and tell whoever is to know.

        Raises:
            LockedError: another run works on this repository.
            UpdateError: git, nix or the forge would not; told to whoever is to know as well.
        """
        began = self.now()
        try:
            with self.repository.locked():
                outcome = await self._until_main_stands(self.repository)
        except (UpdateError, OSError) as error:
            told = error if isinstance(error, UpdateError) else DiskError.of(error)
            stopped = Outcome(
                instance=self.instance.name, kind=Kind.STOPPED, findings=Findings(moves=()), notes=(str(told),)
            )
            await self._report(stopped, began)
            raise told from error
        return await self._report(outcome, began)

    async def _until_main_stands(self, repository: Repository) -> Outcome:
        for _ in range(MOVES_MAX):
            try:
                return await self._once(repository)
            except _MainMovedError:
                self.say(f"{self.instance.main_branch} moved meanwhile; from its new commit once more")
        raise MovedError(branch=self.instance.main_branch, times=MOVES_MAX)

    async def _once(self, repository: Repository) -> Outcome:
        instance = self.instance
        self.say(f"fetching {instance.git_remote}/{instance.main_branch}")
        base = await repository.fetch(instance.git_remote, instance.main_branch)
        async with repository.worktree(base) as tree:
            flake = Flake(root=tree.path, directory=instance.flake_path)
            before = flake.lock()
            self.say("updating inputs")
            await flake.update(instance.flake_inputs)
            moved = _moved(before, flake.lock())
            outcome = Outcome(instance=instance.name, kind=Kind.UNCHANGED, findings=Findings(moves=moved), base=base)
            if moved:
                outcome = await self._with_moved_inputs(tree, flake, outcome)
            outcome = await self._released(flake, outcome)
            try:
                return await self._close_stale(tree, outcome)
            except UpdateError as error:  # what was merged or pushed by now stays so
                return attrs.evolve(outcome, notes=(*outcome.notes, f"stale branches: {error}"))

    async def _with_moved_inputs(self, tree: Worktree, flake: Flake, outcome: Outcome) -> Outcome:
        systems, wrong = await self._systems(flake, outcome.base)
        if not systems:
            raise FlakeError(what="building", said="the flake has neither nixosConfigurations nor darwinConfigurations")
        builder = self.builder(tree, flake, outcome.base)
        built = [Built(system=system, path=None, seconds=0.0, tail=wrong) for system in systems]
        if not wrong:
            self.say(f"building {len(systems)} systems")
            built = await builder.build(systems, self.display)
        findings = attrs.evolve(outcome.findings, built=tuple(built))
        findings = attrs.evolve(findings, closures=await builder.changes(outcome.base, built))
        commit = await tree.commit(commit_message(findings), [flake.lock_name])
        if findings.failed and self.instance.auto_fix is not None:
            hosts = await flake.systems((), commit=outcome.base)
            mender = Mender(
                settings=self.instance.auto_fix, worktree=tree, flake=flake, moves=findings.moves, hosts=hosts
            )
            findings = await self._mend(mender, builder, systems, findings)
            commit = await tree.head()
        outcome = attrs.evolve(outcome, findings=findings, commit=commit)
        return await self._publish(tree, outcome)

    async def _systems(self, flake: Flake, base: str) -> tuple[tuple[System, ...], str]:
        """What is to be built. When the inputs broke the whole flake: what there was before, and what is wrong now."""
        try:
            return await flake.systems(self.instance.build_systems), ""
        except FlakeError as error:
            return await flake.systems(self.instance.build_systems, commit=base), str(error)

    # Mending

    async def _mend(self, mender: Mender, builder: Builder, systems: Sequence[System], findings: Findings) -> Findings:
        attempts: list[Attempt] = []
        for failed in findings.failed:
            # What mended one host may have mended this one too.
            [last] = await builder.build([failed.system], self.display) if attempts else [failed]
            if not last.ok:
                last = await self._mend_one(mender, builder, last, attempts)
            known = (last if built.system == last.system else built for built in findings.built)
            findings = attrs.evolve(findings, built=tuple(known), attempts=tuple(attempts))
            if not last.ok:
                return findings
        self.say("every host was mended; building all of them once more")
        built = await builder.build(systems, self.display)
        return attrs.evolve(findings, built=tuple(built))

    async def _mend_one(self, mender: Mender, builder: Builder, failed: Built, attempts: list[Attempt]) -> Built:
        """Try until it builds; what did not help is taken back. The last build of all."""
        for number in range(1, mender.settings.max_attempts + 1):
            before = await mender.worktree.head()
            self.say(f"{mender.settings.command}: try {number} to mend {failed.system.host}")
            attempt = await mender.mend(failed, number)
            if attempt.ok:
                [again] = await builder.build([failed.system], self.display)
                if again.ok:
                    attempts.append(attrs.evolve(attempt, why="it builds now"))
                    await mender.worktree.commit(fix_message(attempt), attempt.changed)
                    return again
                failed = again
                attempt = attrs.evolve(attempt, ok=False, why="it still does not build")
                await mender.worktree.reset(before)
            attempts.append(attempt)
        return failed

    # What becomes of it

    async def _publish(self, tree: Worktree, outcome: Outcome) -> Outcome:
        instance, findings = self.instance, outcome.findings
        if findings.failed:
            outcome = attrs.evolve(outcome, kind=Kind.BROKEN)
        if instance.dry_run:
            return outcome if findings.failed else attrs.evolve(outcome, kind=Kind.PREPARED)
        if instance.auto_merge and not findings.failed and not findings.attempts:
            await self._merge(tree, outcome.base)
            notes = (*outcome.notes, *await self._tell_of_merge(outcome.commit))
            return attrs.evolve(outcome, kind=Kind.MERGED, branch=instance.main_branch, notes=notes)
        branch = await self._free_branch(tree.repository)
        outcome = attrs.evolve(outcome, branch=branch)
        if not instance.push:
            await tree.keep_as(branch)
            return outcome if findings.failed else attrs.evolve(outcome, kind=Kind.PREPARED)
        self.say(f"pushing {branch}")
        await tree.push(instance.git_remote, branch)
        outcome = outcome if findings.failed else attrs.evolve(outcome, kind=Kind.PUSHED)
        return await self._propose(outcome)

    async def _released(self, flake: Flake, outcome: Outcome) -> Outcome:
        """Release what the main branch has now, if that is wanted; what waits on a branch is not on it."""
        instance = self.instance
        if instance.release is None or instance.dry_run or outcome.kind not in (Kind.MERGED, Kind.UNCHANGED):
            return outcome
        commit = outcome.commit or outcome.base
        self.say(f"releasing {commit[:8]}")
        return attrs.evolve(outcome, released=await release(instance.release, flake.at(commit)))

    async def _merge(self, tree: Worktree, base: str) -> None:
        remote, main = self.instance.git_remote, self.instance.main_branch
        self.say(f"merging into {main}")
        try:
            await tree.push(remote, main)
        except GitError:
            if await tree.repository.fetch(remote, main) != base:
                raise _MainMovedError from None
            raise

    async def _free_branch(self, repository: Repository) -> str:
        """`<prefix>YYYYMMDD`, with the time added where that is taken."""
        at = datetime.fromtimestamp(self.now(), UTC)
        name = f"{self.instance.branch_prefix}{at.strftime(_DATE)}"
        taken = await repository.remote_branches(self.instance.git_remote, name)
        local = await repository.local_branches()
        candidates = (name, f"{name}-{at:%H%M}", f"{name}-{at:%H%M%S}")
        return next((n for n in candidates if n not in taken and n not in local), f"{name}-{at:%H%M%S%f}")

    async def _propose(self, outcome: Outcome) -> Outcome:
        if not self.instance.forge.kind:
            return outcome
        title, text = pull_request(outcome.findings)
        label = BROKEN if outcome.findings.failed else REVIEW
        async with forge_at(self.instance.forge) as forge:
            request = await forge.propose(outcome.branch, self.instance.main_branch, title, text, [label])
        return attrs.evolve(outcome, pull_request=request.url or f"#{request.number}")

    async def _close_stale(self, tree: Worktree, outcome: Outcome) -> Outcome:
        """Remove update branches that nobody merged for too long, with their pull requests."""
        instance = self.instance
        if instance.close_stale_after is None or instance.dry_run or not instance.push:
            return outcome
        branches = await tree.repository.remote_branches(instance.git_remote, instance.branch_prefix)
        oldest = datetime.fromtimestamp(self.now(), UTC) - timedelta(seconds=instance.close_stale_after)
        stale = [name for name in branches if name != outcome.branch and self._made(name, oldest) < oldest]
        if stale and instance.forge.kind:
            async with forge_at(instance.forge) as forge:
                for request in await forge.open_requests():
                    if request.branch in stale:
                        await forge.close(request, "Closed: a newer update has been tried since.")
        for name in stale:
            await tree.delete_remote(instance.git_remote, name)
        return attrs.evolve(outcome, closed=tuple(stale))

    def _made(self, branch: str, otherwise: datetime) -> datetime:
        """The day in a branch's name; a name of another make is nobody's business here."""
        day = branch.removeprefix(self.instance.branch_prefix)[:8]
        try:
            return datetime.strptime(day, _DATE).replace(tzinfo=UTC) + timedelta(days=1)
        except ValueError:
            return otherwise

    # Who is told

    async def _report(self, outcome: Outcome, began: float) -> Outcome:
        if self.instance.dry_run:
            return outcome
        notes = [*outcome.notes, *await self._tell(notice_of(outcome))]
        ended = self.now()
        text = gauges.exposition(outcome, ended, ended - began)
        notes += await _noted("metrics file", self._write_gauges(text))
        return attrs.evolve(outcome, notes=tuple(notes))

    async def _write_gauges(self, text: bytes) -> None:
        if self.instance.metrics_file is not None:
            gauges.write_file(self.instance.metrics_file, text)
        if self.instance.pushgateway:
            await gauges.push(self.instance.pushgateway, self.instance.name, text)

    async def _tell_of_merge(self, commit: str) -> list[str]:
        instance = self.instance
        # Builders that have one repository need no name for it.
        named = "" if instance.nats is None else instance.nats.repository
        untold = await tell_if_configured(self.audience, "merged", named or instance.repo_path.name, commit)
        return [] if untold is None else [untold]

    async def _tell(self, notice: Notice) -> list[str]:
        problems = await tell(self.instance.notify, notice)
        for problem in problems:
            self.say(f"not told: {problem}")
        return problems


def _moved(before: bytes | None, after: bytes | None) -> tuple[Move, ...]:
    try:
        return moves(before, after or b'{"nodes": {"root": {}}, "root": "root"}')
    except ValueError as error:
        raise FlakeError(what="reading flake.lock", said=str(error)) from error


async def _noted(what: str, work: Awaitable[None]) -> list[str]:
    try:
        await work
    except (OSError, StoppedError, httpx.HTTPError) as error:
        return [f"{what}: {error}"]
    return []
