"""Which hosts are meant: selectors, and the budgets made of them (protocol section 2.2).

A selector is the union of its criteria. One without any criterion selects nobody.
"""

from state_machine.intent import Budget, Fleet, FleetHost, Selector
from state_machine.values import HostName


def matches(selector: Selector, name: HostName, host: FleetHost) -> bool:
    """True if any criterion of `selector` names the host. `tags` is one criterion: it has all of them."""
    tags = set(host.tags)
    return (
        selector.all
        or name in selector.hosts
        or (selector.channel is not None and host.channel == selector.channel)
        or (bool(selector.tags) and tags.issuperset(selector.tags))
        or not tags.isdisjoint(selector.tags_any)
    )


def selected(selector: Selector, fleet: Fleet) -> frozenset[HostName]:
    """Every declared host that `selector` matches."""
    return frozenset(name for name, host in fleet.hosts.items() if matches(selector, name, host))


def members(budget: Budget, fleet: Fleet) -> frozenset[HostName]:
    """The hosts a budget speaks of: those frozen at signing (section 2.3), or those its selector matches now."""
    return frozenset(budget.hosts) or selected(budget.selector, fleet)


def limit(budget: Budget, size: int) -> int | None:
    """How many of `size` members may be in flight at once, or None when the budget sets no limit.

    A percentage is rounded down, but never to nobody: that would stop the fleet for ever without saying so. An
    explicit `maxInFlight` of 0 does stop it. Given both, the smaller counts.
    """
    bounds = [] if budget.max_in_flight is None else [budget.max_in_flight]
    if budget.max_in_flight_pct is not None:
        bounds.append(max(1, size * budget.max_in_flight_pct // 100))
    return min(bounds, default=None)


def describe(selector: Selector) -> str:
    """`selector` in words, for the sentence that says why a host is held."""
    criteria = [
        "every host" if selector.all else "",
        f"channel {selector.channel}" if selector.channel is not None else "",
        f"tags {' and '.join(selector.tags)}" if selector.tags else "",
        f"tags {' or '.join(selector.tags_any)}" if selector.tags_any else "",
        f"hosts {', '.join(selector.hosts)}" if selector.hosts else "",
    ]
    return "; ".join(filter(None, criteria)) or "nobody"
