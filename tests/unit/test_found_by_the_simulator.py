"""What the simulator found, each told as the shortest story that shows it. The seeds are in `tests/simulation`."""

from control_plane import mirrors
from state_machine.events import TargetPolicy
from state_machine.facts import ActivationCompleted, ActivationDeferred, ActivationStarted, DispatchAck, DriftObserved
from state_machine.lifecycle import HostRollout
from state_machine.values import Phase, SwitchMethod, WallMs
from tests.property.agent_world import HOST, HOUR, MINUTE, NEW, NEWER, OLD, R1, R2, Release, World

AT = WallMs(1_780_000_000_000)


def test_a_deferred_host_that_still_runs_an_unproven_system_has_not_drifted() -> None:
    """Seed 60827: until its reboot a host runs what it ran at the dispatch, wherever its way back leads."""
    world = World()
    world.start()
    world.publish(R1, Release(target=NEW, policy=TargetPolicy(soak_ms=HOUR)))
    world.settle(lambda: world.phase_of(R1) is Phase.SOAKING)
    world.defers.add(NEWER)
    world.publish(R2, Release(target=NEWER))
    world.settle(lambda: world.phase_of(R2) is Phase.DEFERRED)
    world.live(10 * MINUTE)
    assert world.system.running == NEW
    assert world.state.known.rollouts[R2].prior == OLD
    assert [fact for fact in world.facts[R2] if isinstance(fact, DriftObserved)] == []
    assert world.broken_promises() == []


def test_a_mirror_learns_no_target_from_a_host_that_drifted_before_its_reboot() -> None:
    """Seed 60827: after its database was lost the control plane took what should run for what should come."""
    rollout = mirrors.rollout_without_manifest(R1, AT)
    record = mirrors.unplanned(rollout, HOST, AT).record
    for fact in (
        DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=AT),
        ActivationStarted(seq=2, started_at=AT, switch_method=SwitchMethod.SYSTEMD_RUN),
        ActivationDeferred(seq=3, component="kernel", deferred_at=AT),
        DriftObserved(seq=4, expected_closure=OLD, observed_closure=NEWER, observed_at=AT),
        ActivationCompleted(seq=5, observed_current_closure=NEW, exit_code=0, completed_at=AT),
    ):
        after = mirrors.folded(record, fact)
        assert isinstance(after, HostRollout), after
        record = after
    assert (record.phase, record.target_closure) == (Phase.SOAKING, NEW)
