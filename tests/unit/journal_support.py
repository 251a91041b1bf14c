"""What the journal's tests share: a key, small batches, and the journal as a process of its own."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from evidence.host_key import HostKey
from nixfleet_agent.journal.entries import Batch
from nixfleet_agent.journal.migrate import migrate
from nixfleet_agent.journal.store import Journal
from state_machine.events import Event, ProbeObserved, Tick
from state_machine.facts import ProbeObservedFirst, RolloutFact
from state_machine.values import Moment, ProbeMode, ProbeStatus, RolloutId, WallMs
from tests.unit.wire_examples import AT, NODE7, ROLLOUT

KEY: Final = HostKey(seed=bytes(range(32)))
OTHER_KEY: Final = HostKey(seed=bytes(range(1, 33)))
OTHER_ROLLOUT: Final = RolloutId("stable@77aa")
REPOSITORY: Final = Path(__file__).parents[2]


def open_journal(path: Path, key: HostKey = KEY) -> Journal:
    """The journal of node7."""
    if not path.exists():
        migrate(path)  # what opening does in a process of its own, which would make these tests slow
    return Journal.open(path, host_key=key, hostname=NODE7)


def tick(number: int = 0) -> Batch:
    """An event without facts; `number` seconds after the others."""
    at = Moment(wall_ms=WallMs(AT + 1000 * number), mono_ms=1000 * number)
    return Tick(at=at), ()


def probe(*facts: RolloutFact) -> Batch:
    """An event with facts."""
    at = Moment(wall_ms=AT, mono_ms=5)
    return ProbeObserved(at=at, name="sshd", status=ProbeStatus.PASS, began_mono_ms=4), facts


def fact(seq: int, rollout_id: RolloutId = ROLLOUT, name: str = "sshd") -> RolloutFact:
    """Some fact."""
    seen = ProbeObservedFirst(seq=seq, probe_name=name, mode=ProbeMode.ENFORCE, observed_at=AT)
    return RolloutFact(rollout_id=rollout_id, fact=seen)


def events_in(path: Path) -> list[Event]:
    """What a start would fold."""
    journal = open_journal(path)
    try:
        return [event for _, event in journal.restore().tail]
    finally:
        journal.close()


def python(*arguments: str | Path, script: str = "") -> "subprocess.Popen[str]":
    """A process that runs `script`, or a module of the project, with its output piped."""
    words: Sequence[str | Path] = ("-c", script, *arguments) if script else arguments
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
