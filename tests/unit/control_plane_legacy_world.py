"""What a host of the first generation may say, and mirrors for it to be heard with."""

from collections.abc import Iterable, Mapping

import attrs

from control_plane.legacy import Rules, Standing, amounts_to
from control_plane.mirrors import folded
from control_plane.rows import Mirror
from state_machine.facts import DispatchAck, Fact, RollbackComplete
from state_machine.lifecycle import HostRollout, opened
from state_machine.values import Closure, FailurePolicy, HostName, ProbeStatus, RolloutId, WallMs
from tests.unit.control_plane_worlds import AT, STABLE
from wire.legacy import HealthCheckResult, HealthReport, Report, store_path

ROLLOUT = RolloutId("stable@c0ffee")
WEB1 = HostName("web1")
OLD, NEW, OTHER = (Closure(letter * 32 + "-nixos-system") for letter in "012")
SOAK_MS = 60_000


def mirror(soak_ms: int = SOAK_MS, target: Closure = NEW) -> Mirror:
    """A dispatch that was handed out."""
    record = opened(ROLLOUT, WEB1, target)
    return Mirror(record=record, channel=STABLE, planned=True, opened_at=AT, soak_ms=soak_ms, dispatched_at=AT)


def checks(results: Mapping[str, bool]) -> HealthReport:
    """A health report: checks by name, and whether each passes."""
    told = tuple(
        HealthCheckResult(
            status=ProbeStatus.PASS if passes else ProbeStatus.FAIL,
            check_name=name,
            message=None if passes else f"{name} is down",
        )
        for name, passes in results.items()
    )
    return HealthReport(results=told, all_passed=all(results.values()), timestamp=AT)


def report(
    message: str, running: Closure | str, *, success: bool | None = None, health: Mapping[str, bool] | None = None
) -> Report:
    """A report; without `success` that follows from the message and the checks."""
    well = not message.startswith(("rolled back", "failed")) and all((health or {}).values())
    return Report(
        machine_id=WEB1,
        current_generation=store_path(Closure(running)) if running else "",
        success=well if success is None else success,
        message=message,
        timestamp=AT,
        health=None if health is None else checks(health),
    )


@attrs.define(kw_only=True)
class Host:
    """A host whose reports are taken one after another, and whose mirror takes every fact or the test fails."""

    mirror: Mirror = attrs.field(factory=mirror)
    at: WallMs = AT
    ran: Closure | None = OLD
    wish: str | None = None
    rules: Rules = Rules(policy=FailurePolicy.ROLLBACK_AND_HALT)
    facts: list[Fact] = attrs.field(factory=list)

    @property
    def record(self) -> HostRollout:
        return self.mirror.record

    def hears(self, said: Report, after_ms: int = 1000) -> list[str]:
        """The kinds of the facts that the report amounts to."""
        self.at = WallMs(self.at + after_ms)
        standing = Standing(mirror=self.mirror, ran=self.ran, wish=self.wish, rules=self.rules)
        facts = amounts_to(standing, said, self.at)
        self.take(facts)
        return [type(fact).__name__ for fact in facts]

    def take(self, facts: Iterable[Fact]) -> None:
        """Fold facts into the mirror."""
        for fact in facts:
            after = folded(self.mirror.record, fact)
            assert isinstance(after, HostRollout), f"{fact} after {self.mirror.record}: {after}"
            self.mirror = attrs.evolve(self.mirror, record=after, changed_at=self.at)
            self.facts.append(fact)

    def tells(self, *said: Report) -> list[str]:
        """The kinds of the facts of several reports."""
        return [kind for each in said for kind in self.hears(each)]

    def last(self, kind: type[Fact]) -> Fact:
        """The newest fact of a kind."""
        return [fact for fact in self.facts if type(fact) is kind][-1]

    @property
    def acknowledged_from(self) -> Closure:
        fact = self.last(DispatchAck)
        assert isinstance(fact, DispatchAck)
        return fact.current_closure_at_dispatch

    @property
    def reverted_to(self) -> Closure:
        fact = self.last(RollbackComplete)
        assert isinstance(fact, RollbackComplete)
        return fact.reverted_to_closure
