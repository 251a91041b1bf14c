"""Look into a host's state from outside the daemon: while it runs, through its socket; otherwise, in the journal."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evidence.host_key import load_host_key
from nixfleet_agent import control
from nixfleet_agent.clock import now
from nixfleet_agent.errors import StateError
from nixfleet_agent.journal import reader
from nixfleet_agent.journal.store import Journal
from nixfleet_agent.ledger import JOURNAL_NAME, fold
from nixfleet_agent.status import document
from state_machine.events import QuarantineCleared
from state_machine.state import State
from state_machine.step import step
from state_machine.values import Closure, WallMs, is_closure
from wire.timestamps import format_rfc3339

Say = Callable[[str], object]


def status(state_dir: Path) -> dict[str, Any]:
    """The status document, from the daemon if one runs.

    Raises:
        StateError: there is neither a daemon nor a journal.
    """
    said = control.ask(state_dir, {"do": "status"})
    if said is not None:
        return said
    with reader.JournalReader(_journal(state_dir)) as journal:
        return {**document(fold(journal), None, now()), "journal_error": None}


def _journal(state_dir: Path) -> Path:
    path = state_dir / JOURNAL_NAME
    if not path.exists():
        raise StateError(problem=f"no agent has run with --state-dir {state_dir}; name the one it uses")
    return path


def order(state_dir: Path, request: Mapping[str, Any]) -> int:
    """Ask something of the running daemon.

    Raises:
        StateError: none runs, or it would not.
    """
    answer = control.ask(state_dir, request)
    if answer is None:
        raise StateError(problem=f"no agent runs with --state-dir {state_dir}; start it first")
    if "error" in answer:
        raise StateError(problem=str(answer["error"]))
    return 0


def clear_quarantine(state_dir: Path, closure: str | None, host_key: Path) -> int:
    """Lift a quarantine: by the daemon, or in the journal when none runs.

    Raises:
        StateError: `closure` is no closure, or there is no journal.
    """
    name = None if closure is None else closure.rstrip("/").rpartition("/")[2]
    if name is not None and not is_closure(name):
        raise StateError(problem=f"{closure!r} is not the name of a store path; see `quarantine list`")
    by = os.environ.get("SUDO_USER") or os.environ.get("USER") or str(os.getuid())
    by = by.encode("utf-8", "replace").decode()
    request = {"do": "clear-quarantine", "closure": name, "by": by}
    if control.ask(state_dir, {"do": "status"}) is not None:
        return order(state_dir, request)
    _clear_in_journal(_journal(state_dir), None if name is None else Closure(name), by, host_key)
    return 0


def _clear_in_journal(path: Path, closure: Closure | None, by: str, host_key: Path) -> None:
    with reader.JournalReader(path) as before:
        hostname = fold(before).settings.machine_id
    journal = Journal.open(path, host_key=load_host_key(host_key), hostname=hostname)
    try:
        event = QuarantineCleared(at=now(), closure=closure, by=by)
        outcome = step(State(known=fold(journal)), event)
        if not outcome.durable:
            raise StateError(problem=f"{closure} is not quarantined" if closure else "nothing is quarantined")
        journal.append([(event, outcome.facts)])
    finally:
        journal.close()


def show(state_dir: Path, since: int, as_json: bool, say: Say) -> int:
    """Print entries from number `since` on."""
    with reader.JournalReader(_journal(state_dir)) as journal:
        for entry in journal.entries(from_n=since):
            say(entry.body.decode() if as_json else entry_line(entry.body))
    return 0


def entry_line(body: bytes) -> str:
    """Number, instant, event, and the facts it gave birth to."""
    entry = json.loads(body)
    event = entry["event"]
    facts = ", ".join(f"{fact['rollout_id']} {fact['kind']} {fact['seq']}" for fact in entry["facts"])
    instant = format_rfc3339(WallMs(event["at"]["wall_ms"]))
    return f"{entry['n']:>6}  {instant:<24}  {event['kind']:<18}  {facts}".rstrip()


def verify(state_dir: Path, watermark: int | None, host_key: Path, say: Say) -> int:
    """Check chain and signatures; 1 when anything is wrong."""
    report = reader.verify(_journal(state_dir), load_host_key(host_key).public)
    if report.fault is not None:
        say(str(report.fault))
        return 1
    if watermark is not None and report.head.n < watermark:
        say(f"entry {watermark}: missing: the journal ends with entry {report.head.n}, its tail was cut off")
        return 1
    say(f"{report.good} entries, chain intact, head {report.head.n} {report.head.hash.hex()[:16]}")
    return 0


def export(state_dir: Path, directory: Path, host_key: Path, say: Say) -> int:
    """Write everything an auditor needs to a new directory."""
    key = load_host_key(host_key)
    reader.export(_journal(state_dir), directory, host_key=key, artifacts=state_dir / "artifacts")
    say(f"exported to {directory}")
    return 0


def replay(state_dir: Path, say: Say) -> int:
    """Fold from nothing and compare with the fold from the newest checkpoint (S10)."""
    with reader.JournalReader(_journal(state_dir)) as journal:
        quick = fold(journal)
        state, count = State(), 0
        oldest = journal.restore_oldest()
        if oldest.known is not None:
            state = State(known=oldest.known)
        for _, event in oldest.tail:
            state, count = step(state, event).state, count + 1
        if state.known != quick:
            say(f"{count} entries replayed; the result differs from the checkpoint, which must not be")
            return 1
    say(f"{count} entries replayed; the same state")
    return 0


def begin(state_dir: Path, say: Say) -> int:
    """Acknowledge that a damaged journal was set aside, so that a new one may begin."""
    damaged = sorted(state_dir.glob(f"{JOURNAL_NAME}.damaged-*"))
    if not damaged:
        raise StateError(problem=f"no journal was set aside in {state_dir}; there is nothing to begin anew")
    kept = state_dir / "damaged"
    kept.mkdir(mode=0o700, exist_ok=True)
    for path in damaged:
        path.rename(kept / path.name)
    say(f"kept in {kept}; the agent begins a new journal at its next start")
    return 0
