"""The source that the configuration names. A new kind of source is a module beside this one and a row here."""

from collections.abc import Callable, Mapping
from typing import Final

import attrs

from nixfleet_agent.desk import Desk
from nixfleet_agent.sources.interface import IntentSource
from nixfleet_agent.surroundings import Surroundings
from nixfleet_agent.workers.outbound import FactStore
from state_machine.system import SystemView
from state_machine.values import Source


@attrs.frozen(kw_only=True)
class Given:
    """What a source is made of."""

    desk: Desk
    around: Surroundings
    observe: Callable[[], SystemView]
    facts: FactStore


def _fleet(given: Given) -> IntentSource:
    from nixfleet_agent.sources.fleet import FleetSource  # a host has one source; the others need not be in memory

    return FleetSource.of(given.desk, given.around, given.observe, given.facts)


def _legacy(given: Given) -> IntentSource:
    from nixfleet_agent.sources.legacy import LegacySource

    return LegacySource(given.desk, given.around.connect, given.observe, given.facts)


def _gradient(given: Given) -> IntentSource:
    from nixfleet_agent.sources.gradient import GradientSource

    return GradientSource(given.desk, given.around.connect, given.observe)


SOURCES: Final[Mapping[Source, Callable[[Given], IntentSource]]] = {
    Source.FLEET: _fleet,
    Source.LEGACY: _legacy,
    Source.GRADIENT: _gradient,
}


def source_of(given: Given) -> IntentSource:
    """The source that this host follows."""
    return SOURCES[given.desk.config.source](given)
