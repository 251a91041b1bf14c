"""What a release changes for each host, told before anything is written."""

import enum
from collections.abc import Mapping

import attrs

from state_machine.intent import Fleet
from state_machine.values import Channel, Closure, HostName
from wire.json_value import JsonObject, JsonValue


class ChangeKind(enum.StrEnum):
    """What a release means for one host."""

    NEW = "new"
    CHANGED = "changed"
    SAME = "same"
    REMOVED = "removed"


@attrs.frozen(kw_only=True)
class Change:
    """One host's line in the plan."""

    host: HostName
    kind: ChangeKind
    channel: Channel
    wave: int | None
    old: Closure | None
    new: Closure | None


def changes_between(published: JsonObject | None, fleet: Fleet) -> tuple[Change, ...]:
    """Each host of either snapshot, sorted by name. `published` is the fleet document that is out, if there is one."""
    before = _hosts_of(published)
    wave_of = {
        host: number for waves in fleet.waves.values() for number, wave in enumerate(waves) for host in wave.hosts
    }
    kept = [
        Change(
            host=name,
            kind=_kind(name in before, _text(before.get(name, {}), "closureHash"), host.closure_hash),
            channel=host.channel,
            wave=wave_of.get(name),
            old=Closure(old) if (old := _text(before.get(name, {}), "closureHash")) else None,
            new=host.closure_hash,
        )
        for name, host in fleet.hosts.items()
    ]
    gone = [
        Change(
            host=HostName(name),
            kind=ChangeKind.REMOVED,
            channel=Channel(_text(host, "channel") or ""),
            wave=None,
            old=Closure(old) if (old := _text(host, "closureHash")) else None,
            new=None,
        )
        for name, host in before.items()
        if name not in fleet.hosts
    ]
    return tuple(sorted((*kept, *gone), key=lambda change: change.host))


def same_intent(published: JsonObject | None, document: JsonObject) -> bool:
    """True when both documents ask for the same, whenever and however often they were signed."""
    return published is not None and without_meta(published) == without_meta(document)


def _kind(known: bool, old: str | None, new: Closure | None) -> ChangeKind:
    if not known:
        return ChangeKind.NEW
    return ChangeKind.SAME if old == new else ChangeKind.CHANGED


def _hosts_of(document: JsonObject | None) -> Mapping[str, JsonObject]:
    hosts = document.get("hosts") if document is not None else None
    if not isinstance(hosts, dict):
        return {}
    return {name: host for name, host in hosts.items() if isinstance(host, dict)}


def _text(host: Mapping[str, JsonValue], member: str) -> str | None:
    value = host.get(member)
    return value if isinstance(value, str) else None


def without_meta(document: JsonObject) -> JsonObject:
    """What an artifact asks for, without when and of which commit it was signed."""
    return {name: value for name, value in document.items() if name != "meta"}
