"""`nixfleet release`: from a flake or a fleet description to signed files that hosts will act on."""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from nixfleet.builder.builders import Builders
from nixfleet.clock import wall_now
from nixfleet.commands import nats, options, release_options, signing, targets
from nixfleet.commands.cache_check import CacheChecking, checked_document, show_checked, with_cache_check
from nixfleet.commands.cache_fill import CacheFilling, cache_fill
from nixfleet.commands.news import tells
from nixfleet.commands.quarantine_check import QuarantineCheck, quarantine_check
from nixfleet.commands.release_shown import (
    Packages,
    not_due,
    plan_document,
    published_document,
    show_plan,
    show_published,
    show_unsigned,
)
from nixfleet.news import Audience, tell_now
from nixfleet.release.commit import head_of
from nixfleet.release.description import Description
from nixfleet.release.due import due_at
from nixfleet.release.plan import Plan, plan_release
from nixfleet.release.pruning import Pruning
from nixfleet.release.publish import Published, publish_release, refresh_release, slot_of
from nixfleet.release.read import read_description
from nixfleet.release.target import Target
from nixfleet.terminal import is_terminal, note, print_json
from state_machine.values import Closure, HostName

if TYPE_CHECKING:
    from nixfleet.release.flake import LockedFlake
    from nixfleet.update.builds import Builder


@attrs.frozen(kw_only=True)
class _Wanted:
    """What is to be released, wherever it was described. `head` is asked when nobody names a commit."""

    description: Description
    head: Callable[[], str | None]
    notices: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class _Building:
    """How a flake's hosts are built."""

    build: bool
    builders: Builders | None
    """Who is asked to; None: nobody but this machine."""
    jobs: int
    build_timeout: int


@click.command()
@release_options.intent
@release_options.flake
@options.ci_key
@targets.if_due
@targets.to_target
@targets.pruned
@with_cache_check
@options.trust_file
@cache_fill
@quarantine_check
@tells
@nats.to_builders_if_wanted
@release_options.shown
def release(
    description: Path | None,
    closures: Any,
    commit: str | None,
    new_rollout: bool,
    refresh: bool,
    flake: str | None,
    build: bool,
    builders: Builders | None,
    jobs: int,
    build_timeout: int,
    ci_key: str | None,
    target: Target,
    pruning: Pruning,
    if_due: bool,
    cache_checking: CacheChecking,
    trust_file: Path | None,
    filling: CacheFilling,
    quarantine: QuarantineCheck,
    audience: Audience | None,
    changes: bool | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Resolve a fleet description, sign it and publish it: fleet.resolved.json and one rollout manifest per channel.

    With --flake the description is an output of a flake, made by `lib.mkFleet`, and every host is built: the toplevel
    of nixosConfigurations.HOST or darwinConfigurations.HOST, at the flake's revision, or at the commit a host is
    pinned to. One host that does not build, and nothing is released.

    DESCRIPTION is TOML or JSON and has the members of fleet.resolved.json without `schemaVersion`, `waves` and `meta`;
    its policies' waves are resolved to hosts here, the first wave that matches a host taking it. All problems are
    listed at once. Files appear complete: manifests before the fleet that names them. `--example` shows a description.

    A signature must be renewed before the channel's freshness window closes: run `release --refresh` from a timer.

    Exit status: 0 published, or shown; 1 a host does not build, a cache lacks what hosts need, something is
    quarantined, or the flake, the key or the place to publish to would not; 2 asked, described or configured wrongly;
    3 nix cannot be run, or cannot copy.
    """
    if refresh:
        if description is not None or flake is not None or dry_run:
            raise click.UsageError("--refresh goes without a description and without --dry-run: it changes nothing")
        _refresh(ci_key, target, trust_file, pruning, if_due, audience, as_json)
        return
    if if_due:
        raise click.UsageError("--if-due is about --refresh: a release is made when it is asked for")
    signer = functools.cache(functools.partial(signing.ci_signer, ci_key, trust_file))
    if flake is not None and description is None:
        # What is missing or not trusted is better known before hours of building than after.
        cache_checking.require(trust_file)
        _ = None if dry_run else signer()
    building = _Building(build=build, builders=builders, jobs=jobs, build_timeout=build_timeout)
    now = wall_now()
    wanted = _wanted(description, flake, closures, building)
    plan = plan_release(wanted.description, target, now, commit=commit, head=wanted.head, new_rollout=new_rollout)
    notices = tuple(dict.fromkeys((*wanted.notices, *plan.resolved.notices, *cache_checking.notices)))
    packages = _packages(plan) if (changes if changes is not None else as_json or is_terminal()) else {}
    if not as_json:
        show_plan(plan, notices, packages)
    for text in quarantine.look(plan.resolved.fleet):
        note(text)
    if not dry_run:
        signer()  # as above: copying takes long too
        filling.fill(set(_closures(plan).values()), silent=as_json)
    checked = cache_checking.look(_closures(plan), trust_file)
    if checked is not None and not as_json:
        show_checked(checked)
    published = None
    if not dry_run:
        published = publish_release(wanted.description, signer(), target, plan.commit, now, pruning)
    if as_json:
        document = plan_document(plan, notices, packages, published)
        print_json({**document, "cacheCheck": checked_document(checked)})
    elif published is not None:
        show_published(published, target.where)
    else:
        show_unsigned(plan, target.where)
    if published is not None:
        _tell(audience, target, published)


def _tell(audience: Audience | None, target: Target, published: Published) -> None:
    name = target.where.rstrip("/").rpartition("/")[2]
    if (untold := tell_now(audience, "released", name, published.commit)) is not None:
        note(untold)


def _closures(plan: Plan) -> Mapping[HostName, Closure]:
    """What hosts are asked to run."""
    return {
        name: host.closure_hash for name, host in plan.resolved.fleet.hosts.items() if host.closure_hash is not None
    }


def _wanted(description: Path | None, flake: str | None, closures: Mapping[str, str], building: _Building) -> _Wanted:
    if description is not None and flake is not None:
        raise click.UsageError("name the fleet description, or a flake with --flake: not both")
    if flake is not None:
        return _from_flake(flake, closures, building)
    release_options.about_flakes(click.get_current_context())
    if description is None:
        sources = "name the fleet description, or a flake with --flake"
        raise click.UsageError(f"{sources}, or give --refresh to sign again what is published")
    wanted = read_description(description).with_closures(closures)
    return _Wanted(description=wanted, head=functools.partial(head_of, description.absolute().parent))


def _from_flake(flake: str, closures: Mapping[str, str], building: _Building) -> _Wanted:
    from nixfleet.release.build import Ready, from_flake
    from nixfleet.release.flake import Reference
    from nixfleet.stoppable import run_stoppable
    from nixfleet.update.display import BUILDING, EVALUATING, display

    async def ready() -> Ready:
        with display(os.environ, BUILDING if building.build else EVALUATING) as shown:
            builder = functools.partial(_builder, building)
            return await from_flake(Reference.of(flake), closures, builder, shown, shown.say, wall_now())

    made = run_stoppable(ready)
    return _Wanted(description=made.description, head=lambda: made.revision, notices=made.notices)


def _builder(building: _Building, flake: "LockedFlake") -> "Builder":
    """Whoever is to build the systems of this flake."""
    from nixfleet.release.flake import Unbuilt
    from nixfleet.update.builds import LocalBuilder

    if building.build and building.builders is not None:
        return _remote_builder(building.builders, building.build_timeout, flake)
    what = flake if building.build else Unbuilt(flake=flake)
    return LocalBuilder(what, jobs=building.jobs, within_s=building.build_timeout, logs=_logs())


def _remote_builder(builders: Builders, within_s: int, flake: "LockedFlake") -> "Builder":
    """Builders that have the flake's repository."""
    from nixfleet.builder.offering import Published
    from nixfleet.builder.remote import NoCommitError, RemoteBuilder

    revision = flake.revision
    if revision is None:
        raise NoCommitError(flake=flake.reference.flake)
    commits = Published(commit_of=lambda system: flake.pins.get(system.host, revision))
    return RemoteBuilder(builders, commits, within_s=within_s, logs=_logs())


def _logs() -> Path:
    """Where the logs of builds are kept, of each host the last one."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "nixfleet" / "builds"


def _packages(plan: Plan) -> Packages:
    from nixfleet.release.packages import package_changes
    from nixfleet.stoppable import run_stoppable

    return run_stoppable(functools.partial(package_changes, plan.changes))


def _refresh(
    ci_key: str | None,
    target: Target,
    trust_file: Path | None,
    pruning: Pruning,
    if_due: bool,
    audience: Audience | None,
    as_json: bool,
) -> None:
    signer, now = signing.ci_signer(ci_key, trust_file), wall_now()
    slot = signing.ci_slot(trust_file)
    if if_due and (due := due_at(target, slot or slot_of(signer), now)) > now:
        not_due(target.where, due, as_json)
        return
    published = refresh_release(signer, target, now, trusted=slot, pruning=pruning)
    if as_json:
        print_json(published_document(published))
    else:
        show_published(published, target.where)
    _tell(audience, target, published)
