"""What must be true whatever went wrong: S1 to S10 after every step and over each run, L1 and L2 at the end.

The promises are the product's own (`state_machine.invariants`); nothing is forgiven here. What liveness allows, and
for how long, is stated at `L1_MS` and `l1` and `TRIAL_MS` and `l2`.
"""

from collections.abc import Iterator
from typing import Final

import attrs

from state_machine.events import Booted, Duty, Event, SnapshotsReceived, Tick
from state_machine.facts import ActivationCompleted, RollbackComplete
from state_machine.invariants import RUN_PROMISES, Passage, check_passage, l1_converged
from state_machine.lifecycle import HostRollout
from state_machine.passages import orders
from state_machine.state import Known, State
from state_machine.turn import Step
from state_machine.values import Closure, FailurePolicy, Phase, Reason, RolloutId
from tests.simulation.faults import MINUTE
from tests.simulation.scenario import WELL, Scenario

L1_MS: Final = 60 * MINUTE
"""From the last release, in an honest world, until every host has converged on it and told so.

What that time is for, at worst: an exchange that was lost is begun anew after 5 min, one that was told to wait after
3 min; a switch that hangs is given up after 5 min and one that is never answered after 10 more; a host that rejected
the release while it still lied to itself is asked again after 10 min; a rollback under way must end first. Then three
waves, each with a soak of up to 4 min, two polls, and a reboot for those that wait for one.
"""


LATE_MS: Final = 20_000
"""An exchange that is due begins within this time, even where every commit takes seconds: somebody wakes for it."""
_ANOTHER_BOOTED: Final = f"{Reason.VERIFY_MISMATCH}: after the reboot"
"""What a rollout failed of that waited for a reboot and saw somebody boot another system."""
_ABOUT_TIME: Final = frozenset({"S8", "S9"})
"""Promises that look at instants at which nothing was written: a deadline that passed, an exchange that began."""


@attrs.frozen(kw_only=True)
class Finding:
    """A promise that was not kept."""

    at_ms: int
    who: str
    promise: str
    text: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.text} [{self.who} at {self.at_ms / 1000:.3f} s]"


@attrs.frozen(kw_only=True)
class Ending:
    """How one host stands when it is judged. `running` is what really runs, whatever the agent believes."""

    host: int
    known: Known
    running: Closure | None
    mirrors: tuple[HostRollout, ...] = ()
    """What the control plane has of the host, where it can be looked at."""
    last_rollout_only: bool = False
    """The host has lost a journal: of older rollouts the control plane may hold facts that the host has forgotten."""


@attrs.define(eq=False)
class RunJudge:
    """Judges one life of one journal: from an agent's first start on an empty state directory to its loss or the end.

    Tell it every step that counted, in order: `decided` for all. A step whose entry never reached the journal did not
    happen; `decided` is only called once it is there.
    """

    who: str
    findings: list[Finding] = attrs.field(factory=list)
    run: list[Passage] = attrs.field(factory=list)
    telling: list[Passage] = attrs.field(factory=list)
    """Those of the run that are in the journal, moved the host, or showed it what the control plane remembers of it.

    Most promises are about nothing else."""

    def decided(self, at_ms: int, before: State, event: Event, step: Step) -> None:
        """`step(before, event)` was `step`, and it counts."""
        self._slept(at_ms, before, event)
        telling = step.durable or isinstance(event, SnapshotsReceived) or bool(orders(step.actions))
        if not (telling or step.facts or step.actions or step.state.known is not before.known or type(event) is Tick):
            return
        passage = Passage(before=before, event=event, step=step)
        self.run.append(passage)
        if telling:
            self.telling.append(passage)
        if step.durable or step.facts or passage.new_orders or passage.after is not before.known:
            # All else is as it was judged before: nothing durable is new, and no order moves the host.
            self._judge(at_ms, passage)

    def _slept(self, at_ms: int, before: State, event: Event) -> None:
        if isinstance(event, Booted):
            return
        now, dues = before.known.clock.read(event.at), before.session.due
        if not dues or now - min(dues.values()) <= LATE_MS:
            return
        for duty, due in dues.items():
            # Facts are due at any time; without any there is nothing to wake for.
            if now - due > LATE_MS and duty is not Duty.DELIVERY:
                text = f"{duty} was due {(now - due) / 1000:g} s ago, and nobody woke for it"
                self.findings.append(Finding(at_ms=at_ms, who=self.who, promise="L1", text=text))

    def _judge(self, at_ms: int, passage: Passage) -> None:
        self.findings += [
            _finding(at_ms, self.who, f"{problem} [{type(passage.event).__name__}]")
            for problem in check_passage(passage)
        ]
        self.findings += [
            Finding(at_ms=at_ms, who=self.who, promise="S4", text=text) for text in _claimed_in_vain(passage.step)
        ]

    def ended(self, at_ms: int, *, replay: bool = True) -> None:
        """The run is over: what only the whole of it shows. `replay` False: all but S10, which costs a second run."""
        for name, promise in RUN_PROMISES.items():
            if name == "S10" and not replay:
                continue
            run = self.run if name in _ABOUT_TIME else self.telling
            self.findings += [Finding(at_ms=at_ms, who=self.who, promise=name, text=text) for text in promise(run)]


def _claimed_in_vain(step: Step) -> Iterator[str]:
    """What a fact says is running now, and is not what the host was last seen to run."""
    running = step.state.known.system.running
    for born in step.facts:
        match born.fact:
            case ActivationCompleted(observed_current_closure=claimed) | RollbackComplete(reverted_to_closure=claimed):
                if claimed != running:
                    yield f"{born.rollout_id} is on record as running {claimed}, and {running} was seen"
            case _:
                pass


def _finding(at_ms: int, who: str, problem: str) -> Finding:
    promise, _, text = problem.partition(": ")
    return Finding(at_ms=at_ms, who=who, promise=promise, text=text)


# --- liveness -------------------------------------------------------------------------------------------------------


def l1(scenario: Scenario, ending: Ending) -> list[str]:
    """L1: the host has converged on the last release and runs it; the control plane's mirrors are the host's records.

    No exceptions, but for mirrors of older rollouts on a host that has lost a journal.
    """
    rollout_id = scenario.rollout_id(scenario.last)
    problems = l1_converged(ending.known, rollout_id)
    if ending.running != scenario.closure(scenario.last, ending.host):
        problems.append(f"{ending.running} really runs")
    return [*problems, *_unlike(ending, rollout_id)]


def _unlike(ending: Ending, last: RolloutId) -> Iterator[str]:
    """Rollouts of which the control plane has another record than the host, where it can be looked at."""
    mirrors = {mirror.rollout_id: mirror for mirror in ending.mirrors}
    for rollout_id, tracked in ending.known.rollouts.items() if mirrors else ():
        mirror, record = mirrors.get(rollout_id), tracked.record
        judged = record.last_seq > 0 and (rollout_id == last or not ending.last_rollout_only)
        if judged and (mirror is None or not _alike(mirror, record)):
            theirs = "nothing" if mirror is None else f"{mirror.phase} with {mirror.last_seq} facts"
            yield f"of {rollout_id} the control plane has {theirs}, and the host {record.phase} with {record.last_seq}"


def _alike(mirror: HostRollout, record: HostRollout) -> bool:
    return mirror.phase is record.phase and mirror.last_seq == record.last_seq


def judge_l1(at_ms: int, scenario: Scenario, ending: Ending) -> list[Finding]:
    """What is wrong by L1, as findings."""
    who = scenario.name(ending.host)
    return [Finding(at_ms=at_ms, who=who, promise="L1", text=text) for text in l1(scenario, ending)]


def l2(scenario: Scenario, ending: Ending) -> list[str]:
    """L2: the host does not run a release that is ill on it, unless its journal says why.

    Why it may: the policy is `halt`; the rollout converged, because the probes lied as long as that took; somebody
    switched by hand, or booted another system while this one waited for its reboot, and a later boot brought it up;
    there was nothing to go back to, which is on record.
    """
    return [] if _explained(scenario, ending) else list(_ills(scenario, ending))


def _ills(scenario: Scenario, ending: Ending) -> Iterator[str]:
    health = scenario.health(ending.running, ending.host)
    if health not in WELL:
        yield f"it stays on {ending.running}, which is {health}"


def _explained(scenario: Scenario, ending: Ending) -> bool:
    known, running = ending.known, ending.running
    if scenario.on_failure is FailurePolicy.HALT:
        return True
    current = known.current
    if current is None or current.record.target_closure != running:
        return True  # nobody sent it, or a newer release has replaced the one that did
    if current.record.phase is Phase.CONVERGED or current.record.observed_drift == running:
        return True
    if current.record.phase is Phase.FAILED and (current.record.failure or "").startswith(_ANOTHER_BOOTED):
        return True
    prior = current.prior
    return not prior or prior == running or prior in known.quarantine


def judge_l2(at_ms: int, scenario: Scenario, ending: Ending) -> list[Finding]:
    """What is wrong by L2, as findings."""
    who = scenario.name(ending.host)
    return [Finding(at_ms=at_ms, who=who, promise="L2", text=text) for text in l2(scenario, ending)]
