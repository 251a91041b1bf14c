"""Build a host's system for whoever asked: fetch, evaluate, build, compare, sign, copy, keep it from the collector.

`Works.build` tells how it goes and never raises for what a repository, a remote, Nix or the disk does: all of that is
`FAILED` with its reason. Cancelled, or out of time, it leaves no process, no GC root and nothing half made. Nix is told
a commit of a mirror, so that what is built is what git has, with the lock file as it is.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import trio

from nixfleet.builder.errors import BuildError, NixError, NoSystemError
from nixfleet.builder.limits import Limits
from nixfleet.builder.logs import JobLog, job_log
from nixfleet.builder.messages import TAIL_MAX, Phase, Progress, Request
from nixfleet.builder.mirrors import PROTOCOLS, Mirror
from nixfleet.builder.nix_log import NixLog, plain
from nixfleet.builder.roots import Roots
from nixfleet.builder.settings import Settings
from nixfleet.builder.telling import Voice
from nixfleet.clock import in_words
from nixfleet.update.errors import DiskError, UpdateError
from nixfleet.update.flake import FEATURES, LIST_SYSTEMS, Flake, System, differences, listed
from nixfleet.update.worktree import environment_here
from nixfleet_agent.commands import CommandError

CHANGE_MAX: Final = 300
"""Characters of what is said of one package."""
CHANGES_MAX: Final = 32 * 1024
"""Characters of what is said of all of them."""
_WHY_MAX: Final = 2000
_SPOKEN: Final = ("-v", "--log-format", "internal-json")
_PASSWORD: Final = re.compile(r"(://[^/@:\s]*):[^/@\s]*@")
log = logging.getLogger(__name__)


class Works:
    """All that jobs share: the settings, the mirrors and the roots. Any number of them may run at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limits = Limits.here(runtime_s=settings.build_timeout, memory_max=settings.memory_max)
        home = settings.state_dir / "mirrors"
        self.mirrors = {name: Mirror(source=source, home=home) for name, source in settings.repositories.items()}
        self.roots = Roots(home=settings.state_dir / "roots", keep=settings.keep)

    async def build(self, request: Request, tell: Callable[[Progress], None]) -> Progress:
        """Do a job to its end, telling how it goes; the last that was told."""
        voice = Voice(request=request, builder=self._settings.name, tell=tell)
        if why := self._settings.refusal(request.repository, request.host):
            return voice.say(Phase.REFUSED, why=why)
        timeout_s = self._settings.build_timeout
        async with trio.open_nursery() as nursery:
            nursery.start_soon(voice.tell_what_is_held_back)
            with trio.move_on_after(timeout_s) as deadline:
                finish = await self._tried(request, voice)
            nursery.cancel_scope.cancel()
        if deadline.cancelled_caught:
            return voice.say(Phase.FAILED, why=f"no end within {in_words(timeout_s * 1000)}")
        return finish()

    async def hosts(self, repository: str, revision: str) -> tuple[str, tuple[str, ...]]:
        """The commit that a revision of a repository means now, and those hosts of its flake that are built here.

        Raises:
            BuildError: git or Nix would not.
            OSError: the disk would not.
        """
        settings = self._settings
        request = Request(repository=repository, host="", revision=revision, asked_by="hosts", asked_at=0)
        with job_log(settings.state_dir / "logs", request) as written:
            nix = _Nix(settings=settings, limits=self._limits, written=written)
            voice = Voice(request=request, builder=settings.name, tell=lambda _: None)
            job = _Job(request=request, voice=voice, nix=nix, mirror=self.mirrors[repository])
            commit = await job.commit()
            systems = await job.systems(commit)
        hosts = {system.host for system in systems}
        return commit, tuple(sorted(host for host in hosts if not settings.refusal(repository, host)))

    async def _tried(self, request: Request, voice: Voice) -> Callable[[], Progress]:
        """Do the job; what is to be said last."""
        try:
            with job_log(self._settings.state_dir / "logs", request) as written:
                nix = _Nix(settings=self._settings, limits=self._limits, written=written)
                job = _Job(request=request, voice=voice, nix=nix, mirror=self.mirrors[request.repository])
                try:
                    facts = await job.run(self._settings, self.roots)
                except BuildError as error:
                    written.write([plain(str(error))])
                    raise
        except BuildError as error:
            tail = error.tail if isinstance(error, NixError) else ""
            return partial(voice.say, Phase.FAILED, why=_told(str(error))[:_WHY_MAX], tail=_told(tail))
        except OSError as error:
            return partial(voice.say, Phase.FAILED, why=str(DiskError.of(error)))
        return partial(voice.say, Phase.DONE, line="", **facts)


@attrs.define(kw_only=True, eq=False)
class _Job:
    """One request on its way."""

    request: Request
    voice: Voice
    nix: "_Nix"
    mirror: Mirror

    async def run(self, settings: Settings, roots: Roots) -> dict[str, object]:
        """Everything, in order; what the last message has of it."""
        self.voice.say(Phase.EVALUATING)
        commit = await self.commit()
        self.voice.say(Phase.EVALUATING, commit=commit)
        self.nix.written.write([f"{self.request.repository} {self.request.host} at {commit}"])
        system = await self._system(commit)
        with roots.root(self.request, commit) as link:
            path = await self._built(commit, system, link)
            changes = await self._changes(system, path)
            await self._copied(settings, path)
        return {"path": path, "cache": _told(settings.cache), "changes": changes}

    async def commit(self) -> str:
        """What is to be built. Nothing is fetched for commits that are there: they never mean anything else."""
        named = [name for name in (self.request.revision, self.request.compare) if name]
        if not (self.request.wants_a_commit and all([await self.mirror.has(name) for name in named])):
            await self.mirror.fetch()
        return await self.mirror.resolve(self.request.revision)

    def _flake(self, commit: str) -> str:
        return Flake(root=self.mirror.path, directory=self.mirror.source.flake_path).at(commit)

    async def _system(self, commit: str) -> System:
        """The host's system in the flake."""
        systems = await self.systems(commit)
        for system in systems:
            if system.host == self.request.host:
                return system
        known = tuple(sorted(system.host for system in systems))
        raise NoSystemError(host=self.request.host, commit=commit, known=known)

    async def systems(self, commit: str) -> tuple[System, ...]:
        """Every system of the flake. A mirror that turns out to be damaged is made anew, once."""
        try:
            return await self._listed(commit)
        except NixError:
            if await self.mirror.is_sound(commit):
                raise
        log.warning("%s: files of %s cannot be read; it is made anew", self.mirror.path, commit)
        await self.mirror.renew()
        return await self._listed(await self.mirror.resolve(commit))

    async def _listed(self, commit: str) -> tuple[System, ...]:
        expression = f'({LIST_SYSTEMS}) (builtins.getFlake "{self._flake(commit)}")'
        said = await self.nix.run("listing the hosts of the flake", "eval", "--json", "--expr", expression)
        return listed(said)

    async def _built(self, commit: str, system: System, link: Path) -> str:
        def heard(spoken: NixLog) -> None:
            self.voice.say(Phase.BUILDING, done=spoken.done, expected=spoken.expected, line=spoken.line)

        self.voice.say(Phase.BUILDING)
        what = f"{self._flake(commit)}#{system.attribute}"
        words = ("build", "--no-update-lock-file", "--json", "--out-link", str(link), what)
        [result] = json.loads(await self.nix.run(f"building {system.host}", *words, heard=heard))
        return str(result["outputs"]["out"])

    async def _changes(self, system: System, path: str) -> tuple[str, ...]:
        """What differs from the system of the commit to compare with, should that one be in the store."""
        if not self.request.compare:
            return ()
        try:
            commit = await self.mirror.resolve(self.request.compare)
            # To evaluate the old one must not begin to build parts of it.
            words = ("eval", "--raw", "--no-update-lock-file", "--option", "allow-import-from-derivation", "false")
            old = await self.nix.run("evaluating the old one", *words, f"{self._flake(commit)}#{system.attribute}")
            await self.nix.run("finding the old one", "path-info", old.decode())
            lines = await differences(old.decode(), path)
        except (BuildError, UpdateError) as error:
            self.nix.written.write([f"not compared with {self.request.compare}: {plain(str(error))}"])
            return ()
        return tuple(_as_many_as_fit(plain(line)[:CHANGE_MAX] for line in lines))

    async def _copied(self, settings: Settings, path: str) -> None:
        """Sign the closure, and copy it where others take it from."""
        if settings.cache or settings.signing_key_file is not None:
            self.voice.say(Phase.COPYING)
        if settings.signing_key_file is not None:
            words = ("store", "sign", "--key-file", str(settings.signing_key_file), "--recursive", path)
            await self.nix.run("signing", *words)
        if settings.cache:
            await self.nix.run("copying to the cache", "copy", "--to", settings.cache, path)


@attrs.frozen(kw_only=True, eq=False)
class _Nix:
    """Nix, as one job runs it."""

    settings: Settings
    limits: Limits
    written: JobLog

    async def run(self, what: str, *words: str, heard: Callable[[NixLog], None] | None = None) -> bytes:
        """Run it, with everything it says in the job's log; its standard output.

        Raises:
            NixError: it failed, or cannot be started.
        """
        spoken = NixLog()

        def listen(chunk: bytes) -> None:
            self.written.write(spoken.feed(chunk))
            if heard is not None:
                heard(spoken)

        argv = ["nix", *FEATURES, *words, *_SPOKEN]
        try:
            where = str(self.settings.state_dir)
            done = await self.limits.run(argv, env=self._environment(), cwd=where, heard=listen)
        except CommandError as error:
            raise NixError(what=what, said=str(error)) from error
        self.written.write(spoken.end())
        if done.ok:
            return done.stdout
        said = spoken.reason or f"nix ended with status {done.exit_code}"
        if self.limits.killed_for_memory(done):
            said = f"killed, most likely for needing more memory than memory-max, {self.limits.memory_max}"
        raise NixError(what=what, said=said, tail=spoken.tail(TAIL_MAX))

    def _environment(self) -> dict[str, str]:
        own = {"NO_COLOR": "1", "GIT_TERMINAL_PROMPT": "0", **PROTOCOLS}
        # A service has no home to keep what was fetched and evaluated in.
        cache = os.environ.get("XDG_CACHE_HOME") or str(self.settings.state_dir / "cache")
        return {**environment_here(), **own, "XDG_CACHE_HOME": cache}


def _told(text: str) -> str:
    """A text that leaves this machine: without the passwords of addresses."""
    return _PASSWORD.sub(r"\1@", plain(text))


def _as_many_as_fit(lines: Iterable[str]) -> Iterator[str]:
    room = CHANGES_MAX
    for line in lines:
        room -= len(line)
        if room < 0:
            return
        yield line
