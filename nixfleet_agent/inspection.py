"""Look into a host's state from outside the daemon: while it runs, through its socket; otherwise, in the journal."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from evidence.errors import EvidenceError
from evidence.host_key import load_host_key
from evidence.trust import KeySlot, load_trust
from nixfleet_agent import __version__, control, diagnosis
from nixfleet_agent.clock import now
from nixfleet_agent.errors import StateError
from nixfleet_agent.journal import reader
from nixfleet_agent.journal.errors import JournalError
from nixfleet_agent.journal.store import Journal
from nixfleet_agent.ledger import JOURNAL_NAME, fold
from nixfleet_agent.narration import newest
from nixfleet_agent.options import BY_NAME, Raw
from nixfleet_agent.status import CONFIGURED, IN_WORDS, SCHEMA, document
from state_machine.events import QuarantineCleared, TargetOffered
from state_machine.state import Known, State
from state_machine.step import step
from state_machine.values import Basis, Closure, WallMs, is_closure
from wire.timestamps import format_rfc3339

EXIT_NOT_RUNNING: Final = 3
"""As `systemctl status` and the LSB have it."""
EXIT_SICK: Final = 5
"""The agent runs and something is wrong that will not mend itself. 4 means `unknown` to those who read 3 so."""
READ_PER_LINE: Final = 10
"""How many journal entries are looked at for each line that is wanted: some are not worth one."""
Say = Callable[[str], object]


def status(state_dir: Path, raw: Raw | None = None, lines: int = 0) -> dict[str, Any]:
    """The status document, from the daemon if one runs, else from its journal; with what only a look around tells.

    `raw` are the options of this call, which stand in for those that a daemon would tell. `lines` is how many of the
    newest journal entries to tell.

    Raises:
        StateError: there is neither a daemon nor a journal, they are not for this user, or the daemon speaks otherwise.
    """
    try:
        said = control.ask(state_dir, {"do": "status"})
        said = _from_journal(state_dir) if said is None else _of_this_version(said)
        said["recent"] = _recent(state_dir, lines)
    except PermissionError as error:
        problem = f"the agent of {state_dir} is not for this user to see; run `sudo nixfleet-agent status`"
        raise StateError(problem=problem) from error
    said.setdefault("configured", {name: _given(raw or {}, name) for name in CONFIGURED})
    said.setdefault("process", None)
    _look_around(said)
    found = diagnosis.problems(said)
    return {**said, "health": diagnosis.health(found), "problems": [attrs.asdict(problem) for problem in found]}


def quarantined(state_dir: Path) -> list[dict[str, Any]]:
    """The closures barred here.

    Raises:
        StateError: as `status`, or what is barred cannot be told because the journal cannot be read.
    """
    said = status(state_dir)
    if said["daemon"] != "running" and said["journal_error"]:
        raise StateError(problem=said["journal_error"])
    entries: list[dict[str, Any]] = said["quarantine"]
    return entries


def exit_status(said: Mapping[str, Any]) -> int:
    """What `status` ends with."""
    if said["daemon"] != "running":
        return EXIT_NOT_RUNNING
    return EXIT_SICK if said["health"] == "sick" else 0


def _of_this_version(said: dict[str, Any]) -> dict[str, Any]:
    """What a daemon said, which may have been started before its program was replaced."""
    if said.get("schema") == SCHEMA:
        return said
    ours, theirs = __version__, said.get("version", "another")
    problem = f"the agent that runs is of version {theirs}, this is {ours}; run `systemctl restart nixfleet-agent`"
    raise StateError(problem=problem)


def _given(raw: Raw, name: str) -> str:
    return raw.get(name, (BY_NAME[name].default or "",))[-1]


def _from_journal(state_dir: Path) -> dict[str, Any]:
    """What the journal amounts to; with no more than its trouble where it cannot be read."""
    damaged = sorted(state_dir.glob(f"{JOURNAL_NAME}.damaged-*"))
    if damaged and not (state_dir / JOURNAL_NAME).exists():
        return {**document(Known(), None, now()), "journal_error": f"{damaged[-1].name} was set aside as damaged"}
    path = _journal(state_dir)
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    try:
        with reader.JournalReader(path) as journal:
            return {**document(fold(journal), None, now()), "journal_error": None}
    except JournalError as error:
        return {**document(Known(), None, now()), "journal_error": str(error)}


def _recent(state_dir: Path, lines: int) -> list[dict[str, Any]]:
    """The newest entries in words, oldest first; none of a journal that cannot be read, which is told elsewhere."""
    path = state_dir / JOURNAL_NAME
    if lines <= 0 or not path.exists():
        return []
    try:
        with reader.JournalReader(path) as journal:
            first = max(1, journal.last_n - READ_PER_LINE * lines)
            records = journal.records(from_n=first)
            return newest(((record.n, record.event, record.facts) for record in records), lines)
    except JournalError:
        return []


def _look_around(said: dict[str, Any]) -> None:
    """Generation and age of what runs, and the trust file's word on who signed."""
    configured, system, rollout = said["configured"], said["system"], said["rollout"]
    system["running_since"] = None
    system["generation"] = _generation(configured["profile"]) if system["profile"] == system["running"] else None
    with contextlib.suppress(OSError):
        changed = WallMs(os.lstat(configured["current_system"]).st_mtime_ns // 1_000_000)
        system["running_since"] = format_rfc3339(changed)
    if rollout is not None:
        rollout["signed_by_slot"] = None
    said["trust"] = {"file": configured["trust_file"], "problem": None}
    try:
        slot = load_trust(Path(configured["trust_file"])).ci_release_key
    except EvidenceError as error:
        said["trust"]["problem"] = str(error)
        return
    if rollout is not None:
        rollout["signed_by_slot"] = _slot_of(slot, rollout["signed_by"])


def _generation(profile: str) -> int | None:
    """The number in the name of the link that a profile is."""
    try:
        name = os.path.basename(os.readlink(profile))
    except OSError:
        return None
    found = re.fullmatch(r".+-(\d+)-link", name)
    return None if found is None else int(found[1])


def _slot_of(slot: KeySlot, key_id: str | None) -> str | None:
    """Which of the role's keys that is: `current`, `previous`, `successor`, or None when it is none of them."""
    keys = {"current": slot.current, "previous": slot.previous, "successor": slot.successor}
    for name, declared in keys.items():
        key = None if declared is None else declared.key
        if key is not None and key.key_id == key_id:
            return name
    return None


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
    """Number, instant, event, and the facts it gave birth to; of an offer, what it is and what it rests on."""
    entry = json.loads(body)
    event = entry["event"]
    facts = ", ".join(f"{fact['rollout_id']} {fact['kind']} {fact['seq']}" for fact in entry["facts"])
    instant = format_rfc3339(WallMs(event["at"]["wall_ms"]))
    if event["kind"] == TargetOffered.__name__:
        offer = f"{event.get('closure') or 'nothing'} rests on {IN_WORDS[Basis(event['basis'])]}"
        facts = "; ".join(part for part in (offer, facts) if part)
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
