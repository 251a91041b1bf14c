"""`nixfleet rollout`: which rollouts there are, what happened in one, and how to turn one back."""

from typing import Any, Final

import click

from nixfleet import fleet_view
from nixfleet.clock import in_words
from nixfleet.commands import options
from nixfleet.commands.connection import to_control_plane
from nixfleet.operator_api import connected, rollout_id_of
from nixfleet.operator_tls import Endpoint
from nixfleet.terminal import BAD, BUSY, GOOD, QUIET, Cell, note, print_json, print_line, print_table
from nixfleet.timeline import HostTimeline, Step, Tone, timelines
from state_machine.values import HostName
from wire.codec import encode
from wire.listings import RolloutLifecycle
from wire.timestamps import format_rfc3339

_TONES: Final = {Tone.GOOD: GOOD, Tone.BAD: BAD, Tone.BUSY: BUSY, Tone.PLAIN: ""}


@click.group()
def rollout() -> None:
    """List rollouts, follow one from start to end, ask hosts back."""


@rollout.command("list")
@to_control_plane
@options.as_json
def list_rollouts(endpoint: Endpoint, as_json: bool) -> None:
    """List every rollout that is kept, newest first."""
    with connected(endpoint) as api:
        listing = api.rollouts()
    if as_json:
        print_json(encode(listing))
    else:
        print_table(fleet_view.ROLLOUT_HEADERS, fleet_view.rollout_rows(listing))


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@click.option("--host", "only", type=options.HOST, help="Only this host.")
@click.option(
    "--limit",
    type=click.IntRange(min=1, max=1_000_000),
    default=10_000,
    help="How many log entries to read, newest first.",
)
@to_control_plane
@options.as_json
def trace(endpoint: Endpoint, rollout_id: str, only: str | None, limit: int, as_json: bool) -> None:
    """Tell what happened in rollout ID, host by host, with how long each step took."""
    wanted = rollout_id_of(rollout_id)
    with connected(endpoint) as api:
        lifecycle = api.lifecycle(wanted)
        hosts = api.rollout_hosts(wanted)
        log = api.rollout_events(wanted, limit)
    told = [line for line in timelines(hosts, log.events) if only is None or line.host == only]
    if only is not None and not told:
        raise click.UsageError(f"{only!r} has no part in {wanted}")
    if as_json:
        print_json({"lifecycle": encode(lifecycle), "hosts": [_document(line) for line in told]})
        return
    _show_lifecycle(lifecycle)
    for line in told:
        _show(line)
    if len(log.events) == limit:
        note(f"the log has more than {limit} entries; --limit reads further back")


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@click.option(
    "--host",
    "hosts",
    type=options.HOST,
    multiple=True,
    help="Only this host; may be repeated.  [default: all that can]",
)
@click.option("--reason", required=True, help="Why; kept in the hosts' evidence.")
@to_control_plane
@options.as_json
def rollback(endpoint: Endpoint, rollout_id: str, hosts: tuple[str, ...], reason: str, as_json: bool) -> None:
    """Ask hosts of rollout ID back to what they ran before. Nobody else is sent it from then on."""
    wanted = rollout_id_of(rollout_id)
    with connected(endpoint) as api:
        answer = api.rollback(wanted, tuple(HostName(host) for host in hosts), reason)
    if as_json:
        print_json(answer)
        return
    asked, passed_over = answer.get("hosts"), answer.get("passed_over")
    click.echo(f"asked back: {', '.join(map(str, asked)) if isinstance(asked, list) and asked else 'nobody'}")
    for host, why in (passed_over if isinstance(passed_over, dict) else {}).items():
        note(f"{host} is not asked: {why}")


def _show_lifecycle(lifecycle: RolloutLifecycle) -> None:
    after = f", superseded by {lifecycle.superseded_by}" if lifecycle.superseded_by else ""
    ended = f", ended {format_rfc3339(lifecycle.terminal_at)}" if lifecycle.terminal_at is not None else ""
    click.echo(f"{lifecycle.rollout_id}: {lifecycle.state}{ended}{after}")


def _show(line: HostTimeline) -> None:
    took = f"in {in_words(line.took_ms)}" if len(line.steps) > 1 else ""
    print_line((f"\n{line.host}", f"wave {line.wave}", fleet_view.phase_cell(line.state), took))
    if line.held_by is not None:
        print_line((Cell(f"  held: {line.held_by}", QUIET),))
    for step in line.steps:
        print_line((Cell(f"  {_time(step)}", QUIET), f"{_after(step):>12}", Cell(f" {step.text}", _TONES[step.tone])))


def _time(step: Step) -> str:
    """The time of day with milliseconds; the date is in `--json`."""
    text = format_rfc3339(step.at).partition("T")[2].rstrip("Z")
    return text if "." in text else f"{text}.000"


def _after(step: Step) -> str:
    return "" if step.after_ms is None else f"+{in_words(step.after_ms)}"


def _document(line: HostTimeline) -> dict[str, Any]:
    steps = [
        {
            "at": format_rfc3339(step.at),
            "afterMs": step.after_ms,
            "kind": step.kind,
            "text": step.text,
        }
        for step in line.steps
    ]
    return {
        "host": line.host,
        "wave": line.wave,
        "state": line.state,
        "heldBy": line.held_by,
        "tookMs": line.took_ms,
        "steps": steps,
    }
