"""`nixfleet build`: ask builders for hosts' systems, and watch them being built."""

import functools
import os
from collections.abc import Sequence
from typing import Any, Final

import attrs
import click
import trio

from messaging.link import Link
from nixfleet.builder.asking import NoHostsError, ask, checked, hosts, leave, reached, request_for
from nixfleet.builder.builders import Builders
from nixfleet.builder.messages import HostsQuestion, Phase, Progress, Request
from nixfleet.builder.watching import STYLES, Watch, watch
from nixfleet.clock import in_words
from nixfleet.commands import nats, options
from nixfleet.stoppable import run_stoppable
from nixfleet.terminal import QUIET, Cell, print_json, print_table
from nixfleet.update.message import duration

INTERRUPTED: Final = 130
_INTERRUPTED: Final = "interrupted; taken back"
_NAME: Final = "nixfleet build"
"""As the operator of the NATS server sees it."""


@attrs.frozen(kw_only=True)
class _Wanted:
    """What is asked for. No hosts: all of them."""

    builders: Builders
    hosts: tuple[str, ...]
    revision: str
    compare: str
    timeout: int | None


@click.command()
@click.argument("hostnames", metavar="[HOST]...", nargs=-1)
@click.option("--all", "all_hosts", is_flag=True, help="Every host that the builder builds.")
@click.option("--rev", help="A commit, a branch or a tag.  [default: the repository's main branch]")
@click.option("--compare", type=options.COMMIT, help="Say what changes on each host since this commit, named in full.")
@click.option("--wait/--no-wait", default=True, help="Wait for the builds, or leave the requests with the server.")
@click.option("--timeout", type=options.DURATION, help="How long to wait before it is all taken back.")
@nats.to_builders
@options.as_json
def build(
    hostnames: Sequence[str],
    all_hosts: bool,
    rev: str | None,
    compare: str | None,
    wait: bool,
    timeout: int | None,
    builders: Builders,
    as_json: bool,
) -> int:
    """Ask builders (`nixfleet builder`) for the systems of HOSTs, over NATS, and show how they get on.

    What is built is what the repository has, not what lies in a checkout: push first. A host that is asked for twice at
    once is built once. Ctrl-C takes back what is not built yet.

    Exit status: 0 everything is built; 1 something does not build, or is refused; 2 asked wrongly; 3 the NATS server or
    the builders do not answer; 130 interrupted.
    """
    if bool(hostnames) == all_hosts:
        raise click.UsageError("name hosts, or give --all" + (": not both" if all_hosts else ""))
    if not wait and timeout is not None:
        raise click.UsageError("--timeout is about waiting: it does not go with --no-wait")
    wanted = _Wanted(
        builders=builders,
        hosts=tuple(dict.fromkeys(hostnames)),
        revision=rev or "",
        compare=compare or "",
        timeout=timeout,
    )
    _check(wanted)
    if not wait:
        return _show_left(run_stoppable(functools.partial(_left, wanted)), as_json)
    requests: list[Request] = []
    with watch(os.environ) as shown:
        try:
            why = run_stoppable(functools.partial(_until_built, wanted, requests, shown))
        except KeyboardInterrupt:
            why = _INTERRUPTED
    answers = shown.answers(requests, why)
    _show(answers, as_json)
    if why:
        names = ", ".join(each.host for each in answers if each.phase is Phase.CANCELLED)
        click.echo(f"nixfleet: {why}: {names or 'nothing was asked for yet'}", err=True)
    if why == _INTERRUPTED:
        return INTERRUPTED
    return 0 if all(each.phase is Phase.DONE for each in answers) and not why else 1


def _check(wanted: _Wanted) -> None:
    """Nobody is asked anything when it is known here that it is nonsense."""
    checked(_question(wanted))
    for host in wanted.hosts:
        _request(wanted, wanted.builders.repository or "any", host, wanted.revision)


async def _left(wanted: _Wanted) -> list[Request]:
    async with reached(wanted.builders.server, _NAME) as link:
        requests = await _requests(link, wanted)
        await leave(link, wanted.builders.subjects, requests)
        return requests


async def _until_built(wanted: _Wanted, requests: list[Request], shown: Watch) -> str:
    """Wait for all of them; why not to the end, or nothing. `requests` becomes what was asked for."""
    async with reached(wanted.builders.server, _NAME) as link:
        with trio.move_on_after(float("inf") if wanted.timeout is None else wanted.timeout):
            requests += await _requests(link, wanted)
            await ask(link, wanted.builders.subjects, requests, shown.heard)
            return ""
    return f"no end within {in_words((wanted.timeout or 0) * 1000)}; taken back"


async def _requests(link: Link, wanted: _Wanted) -> list[Request]:
    """What is asked for, with what only the builders know."""
    repository, names, revision = wanted.builders.repository, wanted.hosts, wanted.revision
    if not (repository and names):
        answer = await hosts(link, wanted.builders.subjects, _question(wanted))
        repository = answer.repository
        if not names:  # all of one commit, should the branch move meanwhile
            names, revision = answer.hosts, answer.commit
            if not names:
                raise NoHostsError(why=f"it builds no host of {repository} at {revision[:12]}")
    return [_request(wanted, repository, name, revision) for name in names]


def _question(wanted: _Wanted) -> HostsQuestion:
    return HostsQuestion(repository=wanted.builders.repository, revision=wanted.revision, names_only=bool(wanted.hosts))


def _request(wanted: _Wanted, repository: str, host: str, revision: str) -> Request:
    return request_for(repository, host, revision=revision, compare=wanted.compare)


# What is shown


def _show_left(requests: Sequence[Request], as_json: bool) -> int:
    if as_json:
        print_json({"jobs": [{"job": e.job, "repository": e.repository, "host": e.host} for e in requests]})
    else:
        print_table(("job", "repository", "host"), [(each.job, each.repository, each.host) for each in requests])
    return 0


def _show(answers: Sequence[Progress], as_json: bool) -> None:
    if as_json:
        print_json({"jobs": [_document(each) for each in answers]})
        return
    for each in answers:
        _show_lines(f"{each.host}: the end of its log", each.tail.splitlines())
        _show_lines(f"{each.host}: what changes", each.changes)
    if answers:
        print_table(("host", "outcome", "builder", "after", "system"), [_row(each) for each in answers])


def _show_lines(title: str, lines: Sequence[str]) -> None:
    for line in (f"{title}:", *(f"  {line}" for line in lines)) if lines else ():
        click.echo(line)


def _row(answer: Progress) -> tuple[Cell | str, ...]:
    outcome = Cell(answer.phase.value, STYLES.get(answer.phase, ""))
    after = Cell(duration(answer.seconds) if answer.seconds else "", QUIET)
    return answer.host, outcome, answer.builder, after, " ".join((answer.path or answer.why).split())


def _document(answer: Progress) -> dict[str, Any]:
    return {
        "job": answer.job,
        "repository": answer.repository,
        "host": answer.host,
        "outcome": answer.phase.value,
        "builder": answer.builder or None,
        "commit": answer.commit or None,
        "path": answer.path or None,
        "cache": answer.cache or None,
        "seconds": round(answer.seconds, 1),
        "changes": list(answer.changes),
        "why": answer.why or None,
        "tail": answer.tail or None,
    }
