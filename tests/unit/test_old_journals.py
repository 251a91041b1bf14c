"""A journal that an earlier version wrote replays as it ran: the same facts, under the same numbers (S7, S10).

Recovery folds old events with the `step` of today. The file is what a host of the demo wrote before there were other
sources than a fleet: a rollout, a forged release, a sick one that was rolled back, a good one. Such files are only
ever added.
"""

import json
from pathlib import Path
from typing import Final

from state_machine.invariants import check_step
from state_machine.state import GENESIS
from state_machine.step import step
from state_machine.values import Phase
from wire.records import decode_event, decode_rollout_fact

JOURNAL: Final = Path(__file__).parent / "golden" / "journal-before-sources.jsonl"


def test_what_an_earlier_version_wrote_replays_to_the_very_same_facts() -> None:
    state, replayed = GENESIS, 0
    for line in JOURNAL.read_text().splitlines():
        entry = json.loads(line)
        event = decode_event(entry["event"])
        outcome = step(state, event)
        assert outcome.durable, event
        assert list(outcome.facts) == [decode_rollout_fact(fact) for fact in entry["facts"]], event
        assert not check_step(state, event, outcome)
        state, replayed = outcome.state, replayed + len(outcome.facts)
    current = state.known.current
    assert current is not None
    assert (current.record.phase, len(state.known.quarantine)) == (Phase.CONVERGED, 1)
    assert replayed == 31
