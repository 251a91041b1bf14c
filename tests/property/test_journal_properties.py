"""Whatever is appended, checkpointed, pruned, closed and opened again: nothing is lost, changed or out of order."""

import tempfile
from pathlib import Path
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from evidence.chain import Anchor
from nixfleet_agent.journal.reader import verify
from nixfleet_agent.journal.store import Journal
from state_machine.events import Event
from state_machine.facts import FACT_KINDS, RolloutFact
from state_machine.state import Known
from state_machine.values import RolloutId, WallMs
from tests.property.wire_values import values_of
from tests.unit.journal_support import KEY, open_journal
from wire.codec import decode_fact, encode_fact

ROLLOUTS: Final = (RolloutId("edge@4b"), RolloutId("stable@77"))
FAR: Final = WallMs(2**52)


class AnyJournal(RuleBasedStateMachine):
    """A journal beside a plain list of what should be in it."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.path = Path(self.place.name) / "journal.sqlite"
        self.journal: Journal = open_journal(self.path)
        self.events: list[Event] = []
        self.facts: dict[RolloutId, list[RolloutFact]] = {rollout: [] for rollout in ROLLOUTS}
        self.checkpoint = 0
        self.seen: list[Anchor] = []

    @rule(
        items=st.lists(
            st.tuples(values_of(Event), st.lists(st.tuples(st.sampled_from(ROLLOUTS), st.sampled_from(FACT_KINDS)))),
            max_size=4,
        ),
        data=st.data(),
    )
    def append(self, items: list[tuple[Event, list[tuple[RolloutId, type]]]], data: st.DataObject) -> None:
        # Drawing may end an example, so the list is changed only when everything is drawn.
        facts = {rollout: list(known) for rollout, known in self.facts.items()}
        batch = []
        for event, wanted in items:
            produced = []
            for rollout, kind in wanted:
                document = encode_fact(data.draw(values_of(kind))) | {"seq": len(facts[rollout]) + 1}
                produced.append(RolloutFact(rollout_id=rollout, fact=decode_fact(document)))
                facts[rollout].append(produced[-1])
            batch.append((event, tuple(produced)))
        entries = self.journal.append(batch)
        self.seen += [entry.anchor for entry in entries]
        self.events += [event for event, _ in batch]
        self.facts = facts

    @rule()
    def save_checkpoint(self) -> None:
        if self.events:
            self.journal.save_checkpoint(Known(next_op=len(self.events)))
            self.checkpoint = len(self.events)

    @rule()
    def prune(self) -> None:
        assert self.journal.prune(now=FAR, delivered=lambda _: 2**40) == 0  # never so few

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.journal = open_journal(self.path)

    @rule(start=st.integers(1, 8), limit=st.integers(1, 5), rollout=st.sampled_from(ROLLOUTS))
    def facts_from(self, start: int, limit: int, rollout: RolloutId) -> None:
        found = [item.fact for item in self.journal.facts_from(rollout, start, limit)]
        assert found == [each.fact for each in self.facts[rollout][start - 1 : start - 1 + limit]]

    @invariant()
    def a_restart_would_know_everything(self) -> None:
        restored = self.journal.restore()
        assert restored.n == self.checkpoint
        assert (restored.known is None) == (self.checkpoint == 0)
        assert restored.known is None or restored.known.next_op == self.checkpoint
        assert list(restored.tail) == list(enumerate(self.events, 1))[self.checkpoint :]
        assert self.journal.entries_since_checkpoint == len(self.events) - self.checkpoint

    def teardown(self) -> None:
        with self.place:
            self.journal.close()
            report = verify(self.path, KEY.public, witnesses=self.seen)
            assert (report.ok, report.good) == (True, len(self.events))


TestAnyJournal = AnyJournal.TestCase
TestAnyJournal.settings = settings(stateful_step_count=12)
