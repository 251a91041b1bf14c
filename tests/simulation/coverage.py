"""Which (state, event, fault) triples the runs have been through: what the simulator has really tried.

A state is the phase of the rollout that is active on the host with the kind of operation under way; a fault is one
that was active at the host, or at the control plane, when the event came. "none" stands for no fault.
"""

import attrs

from state_machine.events import Event
from state_machine.state import Known
from tests.simulation.faults import FaultKind

Triple = tuple[str, str, str]


@attrs.define(eq=False)
class Coverage:
    """Counts triples. Cheap to feed; two can be added up."""

    _seen: dict[tuple[str, type[object], type[object], tuple[FaultKind, ...]], int] = attrs.field(factory=dict)
    _added: dict[Triple, int] = attrs.field(factory=dict)

    def saw(self, known: Known, event: Event, faults: tuple[FaultKind, ...]) -> None:
        """The event came to a host in this state while these faults were active."""
        current = known.current
        phase = "-" if current is None else current.record.phase.value
        key = (phase, type(known.operation), type(event), faults)
        self._seen[key] = self._seen.get(key, 0) + 1

    def triples(self) -> dict[Triple, int]:
        """How often each triple was seen."""
        counted = dict(self._added)
        for (phase, operation, event, faults), times in self._seen.items():
            state = phase if operation is type(None) else f"{phase}/{operation.__name__}"
            for fault in faults or ("none",):
                triple = (state, event.__name__, str(fault))
                counted[triple] = counted.get(triple, 0) + times
        return counted

    def add(self, others: dict[Triple, int]) -> None:
        """Take over what another run or process has counted."""
        for triple, times in others.items():
            self._added[triple] = self._added.get(triple, 0) + times
