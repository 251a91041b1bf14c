"""Every rule a fleet description must keep, each a function that yields what breaks it.

What is refused here would otherwise be signed and then block, deadlock or surprise a fleet: a wave nobody is in, a
cycle of hosts that wait for each other, a signature that goes stale before the next one is made. `problems` reports
all of it at once; `notices` what is allowed but probably not meant.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from evidence.documents import is_channel, is_host_name
from evidence.ssh_format import SshFormatError, parse_openssh_public
from nixfleet.release.description import Description
from nixfleet.release.problems import Problem, unknown
from nixfleet.release.selection import members_of, selected, wave_numbers, waves_of
from state_machine.intent import Selector
from state_machine.values import ROLLOUT_ID_MAX, HostName, is_closure
from state_machine.waves import ALL_AT_ONCE

STRATEGIES: Final = ("canary", "staged", ALL_AT_ONCE)

SIGNINGS_PER_WINDOW: Final = 2
"""A signature must outlive one missed signing run, or a single failed CI job makes the fleet stale."""

_REF: Final = re.compile(r"[0-9a-f]+", re.ASCII)

Check = Callable[[Description], Iterator[Problem]]


def problems(description: Description) -> tuple[Problem, ...]:
    """Everything that keeps the description from being released. Rules that need sound names run when names are."""
    found = [problem for check in _NAMES for problem in check(description)]
    return tuple(found or [problem for check in _MEANINGS for problem in check(description)])


def commit_problems(description: Description, commit: str) -> tuple[Problem, ...]:
    """What is wrong with `commit` as the second half of a rollout id (protocol section 1.5)."""
    if not _REF.fullmatch(commit):
        what = f'"{commit[:40]}" is not a commit in lowercase hex, which rollout ids are made of'
        return (Problem(where="commit", what=what),)
    longest = max((len(channel) for channel in description.channels), default=0)
    if longest + 1 + len(commit) > ROLLOUT_ID_MAX:
        what = f"with the longest channel name it makes a rollout id of over {ROLLOUT_ID_MAX} characters"
        return (Problem(where="commit", what=what),)
    return ()


def notices(description: Description) -> Iterator[str]:
    """What is legal, but worth a second look."""
    for name, host in sorted(description.hosts.items()):
        if host.closure_hash is None:
            yield f"{name} has no closure: it stays as it is"
        if host.pubkey is None:
            yield f"{name} has no pubkey: it cannot enrol and its evidence cannot be checked"
    for channel in sorted(description.channels):
        if not members_of(description, channel):
            yield f"channel {channel} has no hosts: no rollout is made for it"
            continue
        taken = {number for _, number in wave_numbers(description, channel)}
        policy = description.rollout_policies[description.channels[channel].rollout_policy]
        for number in range(len(waves_of(policy))):
            if number not in taken:
                yield f"wave {number} of channel {channel} takes no host"
    for number, budget in enumerate(description.disruption_budgets):
        if not selected(budget.selector, description.hosts):
            yield f"disruptionBudgets[{number}] protects no host"


def _host_rules(description: Description) -> Iterator[Problem]:
    if not description.hosts:
        yield Problem(where="hosts", what="there are none")
    for name, host in description.hosts.items():
        where = f"hosts.{name}"
        if not is_host_name(name):
            yield Problem(where=where, what="a host name is made of letters, digits, dots and inner dashes")
        if host.channel not in description.channels:
            yield Problem(where=f"{where}.channel", what=unknown(host.channel, description.channels, "channel"))
        if host.closure_hash is not None and not is_closure(host.closure_hash):
            what = f'"{host.closure_hash[:80]}" is neither a store path nor the base name of one'
            yield Problem(where=f"{where}.closure", what=what)
        if host.pin is not None and not host.pin.reason.strip():
            yield Problem(where=f"{where}.pin.reason", what="say why the host is held back")
        yield from _pubkey_rules(where, host.pubkey)


def _pubkey_rules(where: str, pubkey: str | None) -> Iterator[Problem]:
    if pubkey is None:
        return
    try:
        parse_openssh_public(pubkey)
    except SshFormatError as error:
        yield Problem(where=f"{where}.pubkey", what=error.detail)


def _shared_pubkeys(description: Description) -> Iterator[Problem]:
    first: dict[bytes, HostName] = {}
    for name, host in description.hosts.items():
        if host.pubkey is None:
            continue
        owner = first.setdefault(parse_openssh_public(host.pubkey), name)
        if owner != name:
            what = f"is also the key of {owner}: one could speak for the other"
            yield Problem(where=f"hosts.{name}.pubkey", what=what)


def _channel_rules(description: Description) -> Iterator[Problem]:
    for name, channel in description.channels.items():
        where = f"channels.{name}"
        if not is_channel(name):
            yield Problem(where=where, what="a channel name is made of lowercase letters, digits, `-` and `_`")
        if channel.rollout_policy not in description.rollout_policies:
            what = unknown(channel.rollout_policy, description.rollout_policies, "policy")
            yield Problem(where=f"{where}.rolloutPolicy", what=what)
        if channel.signing_interval_minutes < 1:
            yield Problem(where=f"{where}.signingIntervalMinutes", what="must be at least 1 minute")
        least = SIGNINGS_PER_WINDOW * channel.signing_interval_minutes
        if channel.freshness_window < least:
            what = f"{channel.freshness_window} min is less than twice the signing interval: at least {least} min"
            yield Problem(where=f"{where}.freshnessWindow", what=what)


def _policy_rules(description: Description) -> Iterator[Problem]:
    for name, policy in description.rollout_policies.items():
        where = f"rolloutPolicies.{name}"
        if policy.strategy not in STRATEGIES:
            yield Problem(where=f"{where}.strategy", what=unknown(policy.strategy, STRATEGIES, "strategy"))
        elif not waves_of(policy):
            yield Problem(where=f"{where}.waves", what=f'there are none, which only "{ALL_AT_ONCE}" can do without')
        for number, wave in enumerate(policy.waves):
            yield from _selector_rules(f"{where}.waves[{number}].selector", wave.selector, description)
            if wave.soak_minutes and wave.soak_secs is not None:
                yield Problem(where=f"{where}.waves[{number}]", what="give soakMinutes or soakSecs, not both")


def _selector_rules(where: str, selector: Selector, description: Description) -> Iterator[Problem]:
    if selector == Selector():
        yield Problem(where=where, what="selects nothing: give tags, tagsAny, hosts, channel or all")
    for host in selector.hosts:
        if host not in description.hosts:
            yield Problem(where=f"{where}.hosts", what=unknown(host, description.hosts, "host"))
    if selector.channel is not None and selector.channel not in description.channels:
        yield Problem(where=f"{where}.channel", what=unknown(selector.channel, description.channels, "channel"))


def _budget_rules(description: Description) -> Iterator[Problem]:
    for number, budget in enumerate(description.disruption_budgets):
        where = f"disruptionBudgets[{number}]"
        yield from _selector_rules(f"{where}.selector", budget.selector, description)
        if budget.hosts:
            yield Problem(where=f"{where}.hosts", what="is filled in when the release is signed; use the selector")
        if budget.max_in_flight is None and budget.max_in_flight_pct is None:
            yield Problem(where=where, what="limits nothing: give maxInFlight or maxInFlightPct")
        if budget.max_in_flight == 0:
            yield Problem(where=f"{where}.maxInFlight", what="0 would hold these hosts for ever: at least 1")
        if budget.max_in_flight_pct is not None and not 1 <= budget.max_in_flight_pct <= 100:
            yield Problem(where=f"{where}.maxInFlightPct", what="is a percentage from 1 to 100")


def _edge_names(description: Description) -> Iterator[Problem]:
    for number, edge in enumerate(description.edges):
        for end, name in (("gated", edge.gated), ("gates", edge.gates)):
            if name not in description.hosts:
                yield Problem(where=f"edges[{number}].{end}", what=unknown(name, description.hosts, "host"))
    for number, link in enumerate(description.channel_edges):
        for end, channel in (("gated", link.gated), ("gates", link.gates)):
            if channel not in description.channels:
                what = unknown(channel, description.channels, "channel")
                yield Problem(where=f"channelEdges[{number}].{end}", what=what)


def _wave_rules(description: Description) -> Iterator[Problem]:
    for channel, declared in description.channels.items():
        for host, number in wave_numbers(description, channel):
            if number is None:
                what = f'no wave of policy "{declared.rollout_policy}" takes it: it would never be updated'
                yield Problem(where=f"hosts.{host}", what=what)


def _edge_rules(description: Description) -> Iterator[Problem]:
    waves = {host: number for channel in description.channels for host, number in wave_numbers(description, channel)}
    for number, edge in enumerate(description.edges):
        gated, gates = description.hosts[edge.gated], description.hosts[edge.gates]
        where = f"edges[{number}]"
        if gated.channel != gates.channel:
            what = f"{edge.gated} is on {gated.channel}, {edge.gates} on {gates.channel}: channelEdges order channels"
            yield Problem(where=where, what=what)
            continue
        first, second = waves[edge.gated], waves[edge.gates]
        if first is not None and second is not None and first < second:
            what = f"{edge.gated} (wave {first}) would wait for {edge.gates} (wave {second}), which waits for its wave"
            yield Problem(where=where, what=what)


def _cycles(description: Description) -> Iterator[Problem]:
    for where, pairs in (
        ("edges", [(edge.gated, edge.gates) for edge in description.edges]),
        ("channelEdges", [(edge.gated, edge.gates) for edge in description.channel_edges]),
    ):
        for cycle in _rings(pairs):
            yield Problem(where=where, what=f"{' waits for '.join(cycle)}: none of them could ever start")


def _rings(pairs: Iterable[tuple[str, str]]) -> Iterator[list[str]]:
    """Each cycle once, beginning and ending with its first member. Depth first, without recursion."""
    waits: dict[str, list[str]] = {}
    for gated, gates in pairs:
        waits.setdefault(gated, []).append(gates)
    done: set[str] = set()
    for start in waits:
        path, on_path = [start], {start}
        branches = [iter(waits[start])] if start not in done else []
        while branches:
            following = next(branches[-1], None)
            if following is None:
                branches.pop()
                done.add(gone := path.pop())
                on_path.discard(gone)
            elif following in on_path:
                yield [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                on_path.add(following)
                branches.append(iter(waits.get(following, ())))


_NAMES: Final[tuple[Check, ...]] = (_host_rules, _channel_rules, _policy_rules, _edge_names, _budget_rules)
_MEANINGS: Final[tuple[Check, ...]] = (_shared_pubkeys, _wave_rules, _edge_rules, _cycles)
