"""`nixfleet update`: move the flake's inputs, build every system, merge what builds."""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from nixfleet.commands import nats, options
from nixfleet.commands.news import tells
from nixfleet.errors import StoppedError
from nixfleet.news import Audience
from nixfleet.stoppable import run_stoppable
from nixfleet.terminal import BAD, GOOD, QUIET, Cell, note, print_json, print_line
from nixfleet.update.builds import Comparer, FlakeBuilder
from nixfleet.update.display import display
from nixfleet.update.flake import Flake
from nixfleet.update.instance import BUILDERS, Instance, InstanceError, read_instance, read_instances
from nixfleet.update.message import duration, in_words
from nixfleet.update.outcome import Kind, Outcome, document
from nixfleet.update.run import Run
from nixfleet.update.worktree import Worktree, open_repository

_FLAGS_ONLY = "update"
"""The name of the instance that flags alone describe."""


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of instances, from the file that the command line or NIXFLEET_UPDATE_INSTANCES names."""
    file = ctx.params.get("instances")
    try:
        names = () if file is None else tuple(read_instances(Path(file)))
    except StoppedError:  # whoever presses Tab is told nothing; the command itself will tell
        return []
    return [name for name in names if name.startswith(incomplete)]


@click.command()
@click.argument("names", metavar="[INSTANCE]...", nargs=-1, shell_complete=_complete)
@click.option("--instances", type=options.FILE, help="TOML file with a table for each instance.")
@click.option("--repo-path", type=options.DIRECTORY, help="The repository with the flake.  [default: this one]")
@click.option("--flake-path", help="Where flake.nix is below the repository.")
@click.option("--flake-inputs", "--input", multiple=True, help="An input to move; may be repeated.  [default: all]")
@click.option("--build-systems", "--host", multiple=True, help="A host to build; may be repeated.  [default: all]")
@click.option("--git-remote", help="Where to fetch from and push to.  [default: origin]")
@click.option("--main-branch", help="The branch that updates are for.  [default: main]")
@click.option("--branch-prefix", help="Branches are called PREFIXyyyymmdd.  [default: flake-update-]")
@click.option("--auto-merge/--no-auto-merge", default=None, help="Merge what builds.  [default: no]")
@click.option("--push/--no-push", default=None, help="Push the branch.  [default: push]")
@click.option("--auto-fix/--no-auto-fix", default=None, help="Let the configured command mend.  [default: no]")
@click.option("--close-stale-after", type=options.DURATION, help="Remove update branches that are older, unmerged.")
@click.option("--jobs", type=click.IntRange(1, 256), help="Systems built at once.  [default: 2]")
@click.option("--build-timeout", type=options.DURATION, help="Deadline of a build.  [default: 4h]")
@click.option("--metrics-file", type=options.FILE, help="For the node exporter's textfile collector.")
@click.option("--dry-run", is_flag=True, default=None, help="Update and build, push and tell nothing.")
@click.option("--builder", type=click.Choice(BUILDERS), help="Who builds.  [default: local]")
@tells
@nats.with_options
@options.as_json
def update(names: Sequence[str], instances: Path | None, as_json: bool, audience: Audience | None, **flags: Any) -> int:
    """Update flake.lock in a worktree of its own, build every system, and merge only what builds.

    Without INSTANCE and --instances the flags say what to do; with them they change what the file says. The checkout
    is never touched. What mends (the command of --auto-fix), where pull requests are opened and who is told stand in
    the file alone, in the tables auto-fix, forge and notify of an instance; so does the release of what was merged, in
    the table release.

    Exit status: 0 merged, pushed or nothing to do; 1 a system does not build (the branch or pull request has its log);
    2 configured wrongly; 3 git, nix or the network would not; 4 another update of the repository is running; 5 all
    went well, but the release that was to follow did not come about.
    """
    table = nats.taken(flags)
    given = {name.replace("_", "-"): value for name, value in flags.items() if value not in (None, ())}
    given |= {"nats": table} if table else {}
    chosen = _instances(names, instances, given)
    statuses: list[int] = []
    documents: list[dict[str, Any]] = []
    for instance in chosen:
        try:
            outcome = _run(instance, audience)
        except StoppedError as error:
            if len(chosen) == 1:
                raise
            click.echo(f"nixfleet: {instance.name}: {error}", err=True)
            statuses.append(error.exit_code)
            documents.append({"instance": instance.name, "outcome": Kind.STOPPED.value, "why": str(error)})
            continue
        statuses.append(outcome.exit_status)
        documents.append(document(outcome))
        if not as_json:
            _show(outcome)
    if as_json:
        print_json(documents[0] if len(documents) == 1 else documents)
    return max(statuses)


def _instances(names: Sequence[str], file: Path | None, given: Mapping[str, Any]) -> list[Instance]:
    if file is None:
        if names:
            raise click.UsageError("name the file of instances with --instances")
        return [_with_places(read_instance(_FLAGS_ONLY, _over({"repo-path": "."}, given), "the flags"))]
    tables = read_instances(file)
    unknown = [name for name in names if name not in tables]
    if unknown:
        known = ", ".join(tables) or "none"
        raise InstanceError(where=str(file), problems=(f"no instance {unknown[0][:80]!r}; there are: {known}",))
    chosen = [read_instance(name, _over(tables[name], given), str(file)) for name in dict.fromkeys(names or tables)]
    return [_with_places(instance) for instance in chosen]


def _over(table: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The table with flags over it; --auto-fix turns on what the table `auto-fix` describes."""
    builders, fix = _builders(table, given), table.get("auto-fix")
    if isinstance(fix, dict) and "auto-fix" in given:
        given = {**given, "auto-fix": {**fix, "enable": given["auto-fix"]}}
    given = {key: value for key, value in given.items() if key != "nats"}
    return {**table, **given, **builders}


def _builders(table: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The table `nats`, where it matters: what an instance says beats the configuration file, and flags beat both."""
    own, flags = table.get("nats", {}), given.get("nats", {})
    if given.get("builder", table.get("builder")) != "nats" or not isinstance(own, dict):
        return {"nats": own} if "nats" in table else {}
    weak = {key: value for key, value in flags.items() if nats.is_from_file(key)}
    found = {**weak, **own, **{key: value for key, value in flags.items() if key not in weak}}
    return {"nats": found} if found else {}


def _with_places(instance: Instance) -> Instance:
    """The same; what is not there, or cannot be written in the end, is said in the beginning.

    Raises:
        InstanceError: there is no repository, or the file for metrics or for TODO entries can be no file.
    """
    metrics, inbox = instance.metrics_file, instance.notify.inbox_org
    problems = []
    if not instance.repo_path.is_dir():
        problems.append(f"`repo-path` {instance.repo_path} is no directory")
    if metrics is not None and (why := _no_file(metrics, metrics.parent)):
        problems.append(f"`metrics-file` {metrics}: {why}")
    if inbox is not None and (why := _no_file(inbox, inbox if inbox.exists() else inbox.parent)):
        problems.append(f"`notify.inbox-org` {inbox}: {why}")
    if instance.release is not None and (why := _no_release(instance.release.args)):
        problems.append(f"`release.args`: {why}")
    if problems:
        raise InstanceError(where=instance.name, problems=tuple(problems))
    return instance


def _no_release(args: Sequence[str]) -> str:
    """What the command that follows would not understand, said before hours of builds."""
    from nixfleet.commands.release import release

    try:
        release.make_context("release", ["--flake", ".", *args]).close()
    except click.UsageError as error:
        return error.format_message()
    return ""


def _no_file(path: Path, written: Path) -> str:
    if os.path.lexists(path) and not path.is_file():
        return "it is there and no file"
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}"
    return "" if os.access(written, os.W_OK) else f"{written} cannot be written to"


def _run(instance: Instance, audience: Audience | None) -> Outcome:
    """Ctrl-C and SIGTERM cancel the run, which stops its builds and removes its worktree."""
    return run_stoppable(functools.partial(_watched, instance, audience))


async def _watched(instance: Instance, audience: Audience | None) -> Outcome:
    repository = await open_repository(instance.repo_path)
    logs = repository.home / "logs" / instance.name
    with display(os.environ) as shown:
        run = Run(
            instance=instance,
            repository=repository,
            builder=functools.partial(_builder, instance, logs),
            display=shown,
            say=shown.say,
            audience=audience or _audience(instance),
        )
        return await run.update()


def _audience(instance: Instance) -> Audience | None:
    """Where its builders listen, whoever else waits for news listens too."""
    return None if instance.nats is None else Audience(server=instance.nats.server)


def _builder(instance: Instance, logs: Path, tree: Worktree, flake: Flake, base: str) -> Comparer:
    """Whoever is to build the systems of this worktree, which began from the commit `base`."""
    if instance.builder == "local":
        return FlakeBuilder(flake, jobs=instance.jobs, within_s=instance.build_timeout, logs=logs)
    from nixfleet.builder.offering import Snapshots
    from nixfleet.builder.remote import RemoteBuilder

    assert instance.nats is not None, "an instance was read that says nats and not where"
    commits = Snapshots(tree=tree, remote=instance.git_remote)
    return RemoteBuilder(instance.nats, commits, within_s=instance.build_timeout, logs=logs, compare=base)


def _show(outcome: Outcome) -> None:
    for move in outcome.findings.moves:
        click.echo(f"  {in_words(move)}")
    for built in outcome.findings.built:
        word = Cell("builds", GOOD) if built.ok else Cell("fails", BAD)
        log = "" if built.ok or built.log is None else str(built.log)
        print_line((built.system.host, word, Cell(duration(built.seconds), QUIET), log))
    print_line((Cell(_WORDS[outcome.kind], BAD if outcome.kind is Kind.BROKEN else GOOD), _where(outcome)))
    _show_release(outcome)
    for text in outcome.notes:
        note(text)


def _show_release(outcome: Outcome) -> None:
    released = outcome.released
    if released is None:
        return
    if released.why is not None:
        print_line((Cell("not released:", BAD), released.why.removeprefix("not released: ")))
    else:
        already = "released already, signed anew:" if released.unchanged else "released"
        print_line((Cell(already, GOOD), " ".join(released.rollouts)))


_WORDS = {
    Kind.UNCHANGED: "nothing to update: no input has moved",
    Kind.MERGED: "merged into",
    Kind.PUSHED: "pushed as",
    Kind.PREPARED: "everything builds; not pushed:",
    Kind.BROKEN: "not merged, something does not build:",
    Kind.STOPPED: "stopped",
}


def _where(outcome: Outcome) -> str:
    return " ".join(part for part in (outcome.branch, outcome.commit[:8], outcome.pull_request) if part)
