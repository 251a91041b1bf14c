"""Say what a failing seed found: the shrunk scenario, its timeline, what was broken, and how to see it again."""

from collections.abc import Callable

from tests.simulation.core_depth import Outcome
from tests.simulation.faults import Depth
from tests.simulation.scenario import Scenario, draw
from tests.simulation.shrink import ATTEMPTS, shrink


def player(depth: Depth) -> Callable[..., Outcome]:
    """`play(scenario, trace=..., coverage=...)` of a depth. What one depth needs is not imported for the other."""
    if depth is Depth.CORE:
        from tests.simulation import core_depth

        return core_depth.play
    from tests.simulation import full_depth

    return full_depth.play


def command(seed: int, depth: Depth) -> str:
    """How to play the seed again."""
    return f"make simulate SEED={seed} DEPTH={depth}"


def describe(seed: int, depth: Depth, *, attempts: int = ATTEMPTS) -> str:
    """Everything a person needs who meets a failing seed: it is played again, shrunk, and told."""
    play = player(depth)
    whole = draw(seed, depth)
    smallest = shrink(whole, play, attempts=attempts)
    return _told(whole, smallest, play(smallest, trace=True))


def _told(whole: Scenario, smallest: Scenario, outcome: Outcome) -> str:
    findings = "\n".join(f"  {finding}" for finding in outcome.findings)
    return (
        f"seed {whole.seed} at depth {whole.depth}, shrunk from {len(whole.faults)} faults and {len(whole.releases)}"
        f" releases to {len(smallest.faults)} and {len(smallest.releases)}\n\n{smallest}\n\n"
        f"{outcome.trace.timeline()}\nbroken:\n{findings}\n\nagain: {command(whole.seed, whole.depth)}\n"
    )
