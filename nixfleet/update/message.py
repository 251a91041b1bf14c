"""What the commit, the pull request and the notification say."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import attrs

from nixfleet.update.flake import Built, System
from nixfleet.update.locks import Move, Pin

LOG_LINES: Final = 60
CLOSURE_LINES: Final = 40


@attrs.frozen(kw_only=True)
class Attempt:
    """One try of the agent that mends."""

    system: System
    number: int
    ok: bool
    why: str
    changed: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Findings:
    """What a run found out."""

    moves: tuple[Move, ...]
    built: tuple[Built, ...] = ()
    closures: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict)
    """By host: what changed in its closure, a line for each package."""
    attempts: tuple[Attempt, ...] = ()

    @property
    def failed(self) -> tuple[Built, ...]:
        """The systems that do not build."""
        return tuple(built for built in self.built if not built.ok)


def commit_message(findings: Findings) -> str:
    """The lock file's commit: what moved, what was built with it, and what that changes on each host."""
    parts = [subject(findings.moves), "\n".join(f"  {in_words(move)}" for move in findings.moves)]
    if findings.built:
        good = ", ".join(built.system.host for built in findings.built if built.ok)
        bad = ", ".join(built.system.host for built in findings.failed)
        parts.append(f"Built: {good or 'none'}" + (f"\nDo not build: {bad}" if bad else ""))
    parts += [_closure(host, lines) for host, lines in findings.closures.items()]
    return "\n\n".join(parts) + "\n"


def subject(moves: Sequence[Move]) -> str:
    """One line: the inputs of the flake itself, as far as they fit."""
    own = [move.name for move in moves if "/" not in move.name] or [move.name for move in moves]
    line = f"flake.lock: update {', '.join(own)}"
    return line if len(line) <= 72 else f"flake.lock: update {len(own)} inputs"


def in_words(move: Move) -> str:
    """From where to where."""
    if move.before is None and move.after is not None:
        return f"{move.name}: new, {move.after.url} {_pin(move.after)}"
    if move.after is None:
        return f"{move.name}: removed"
    assert move.before is not None
    elsewhere = f", now {move.after.url}" if move.after.url != move.before.url else ""
    return f"{move.name}: {_pin(move.before)} -> {_pin(move.after)}{elsewhere}"


def _pin(pin: Pin) -> str:
    if pin.modified is None:
        return pin.short
    return f"{pin.short} ({datetime.fromtimestamp(pin.modified, UTC).date().isoformat()})"


def _closure(host: str, lines: Sequence[str]) -> str:
    if not lines:
        return f"{host}: no package changes"
    shown = [f"  {line}" for line in lines[:CLOSURE_LINES]]
    more = len(lines) - len(shown)
    return "\n".join([f"{host}:", *shown, *([f"  and {more} more"] if more > 0 else [])])


def fix_message(attempt: Attempt) -> str:
    """The commit of what an agent mended."""
    changed = "\n".join(f"  {name}" for name in attempt.changed)
    by = f"Done by the configured command, try {attempt.number}:"
    return f"Mend the build of {attempt.system.host}\n\n{by}\n\n{changed}\n"


def pull_request(findings: Findings) -> tuple[str, str]:
    """Title and text (Markdown)."""
    failed = findings.failed
    title = subject(findings.moves)
    if failed:
        title += f": {len(failed)} of {len(findings.built)} systems do not build"
    rows = [f"| {built.system.host} | {'builds' if built.ok else '**fails**'} | {duration(built.seconds)} |"
            for built in findings.built]  # fmt: skip
    parts = [
        "\n".join(f"- {in_words(move)}" for move in findings.moves),
        "\n".join(["| host | result | time |", "| --- | --- | --- |", *rows]),
        *(_fixing(attempt) for attempt in findings.attempts),
        *(_log(built) for built in failed),
        *(_changes(host, lines) for host, lines in findings.closures.items()),
    ]
    return title, "\n\n".join(part for part in parts if part)


def _changes(host: str, lines: Sequence[str]) -> str:
    text = "\n".join(lines) or "no package changes"
    return f"<details><summary>{host}: what changes</summary>\n\n```\n{text}\n```\n</details>"


def _fixing(attempt: Attempt) -> str:
    what = f"changed {', '.join(attempt.changed)}" if attempt.changed else "changed nothing"
    return f"- try {attempt.number} to mend {attempt.system.host}: {what}; {attempt.why}"


def _log(built: Built) -> str:
    fence = "````"
    lines = [line.replace(fence, "...") for line in built.tail.splitlines()[-LOG_LINES:]]
    return "\n".join([f"### {built.system.host}", "", fence, *lines, fence])


def duration(seconds: float) -> str:
    """For people."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 5400 else f"{whole / 3600:.1f} h"
