"""A control plane's parts without its server: a ledger on a file, a planner over it, artifacts made in memory."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from control_plane.artifact_source import Raw
from control_plane.book import Book
from control_plane.entries import Entry, FactAccepted, PlannedHost, RolloutOpened
from control_plane.ledger import Ledger
from control_plane.shelf import Held, Shelf
from evidence.artifacts import Verified
from evidence.canonical import canonicalize, digest
from evidence.documents import encode
from state_machine.facts import Fact
from state_machine.intent import Fleet, FleetChannel, FleetHost, HostTarget, Manifest, Meta, RolloutPolicy, Wave
from state_machine.values import Channel, Closure, HostName, RolloutId, WallMs
from wire.codec import encode_fact

STABLE = Channel("stable")
ROLLOUT = RolloutId("stable@c0ffee")
HOSTS = tuple(map(HostName, ("web1", "web2", "web3")))
AT = WallMs(1_790_000_000_000)


def closure(letter: str) -> Closure:
    return Closure(letter * 32 + "-nixos-system")


OLD = closure("0")


def target(host: HostName) -> Closure:
    return closure(host[-1])


def opened(*hosts: str, rollout: RolloutId = ROLLOUT, waves: Mapping[str, int] | None = None) -> RolloutOpened:
    """The entry of a rollout of these hosts."""
    return RolloutOpened(
        rollout_id=rollout,
        channel=STABLE,
        channel_ref=rollout.partition("@")[2],
        manifest_digest="m",
        fleet_digest="f",
        hosts=tuple(
            PlannedHost(
                hostname=HostName(host),
                wave_index=(waves or {}).get(host, 0),
                target_closure=target(HostName(host)),
                soak_ms=0,
            )
            for host in hosts or HOSTS
        ),
    )


def accepted(host: str, fact: Fact, rollout: RolloutId = ROLLOUT) -> FactAccepted:
    """The entry of a fact that was taken."""
    text = canonicalize(encode_fact(fact)).decode()
    return FactAccepted(hostname=HostName(host), rollout_id=rollout, seq=fact.seq, event=text)


def told(book: Book, *entries: Entry, at: WallMs = AT) -> Book:
    """The book after these entries."""
    for entry in entries:
        book.apply(entry, at)
    return book


@asynccontextmanager
async def ledger_at(path: Path, *entries: Entry) -> AsyncIterator[Ledger]:
    """A ledger in which these entries have happened."""
    async with Ledger(path) as ledger:
        for entry in entries:
            ledger.record(entry)
        await ledger.flushed()
        yield ledger


def fleet(signed_at: WallMs) -> Fleet:
    """Three hosts on one channel, in one wave."""
    return Fleet(
        schema_version=1,
        hosts={host: FleetHost(system="x86_64-linux", channel=STABLE, closure_hash=target(host)) for host in HOSTS},
        channels={STABLE: FleetChannel(rollout_policy="p", freshness_window=1440)},
        waves={STABLE: (Wave(hosts=HOSTS, soak_secs=0),)},
        rollout_policies={"p": RolloutPolicy(strategy="staged")},
        meta=Meta(schema_version=1, signed_at=signed_at, ci_commit="c0ffee"),
    )


def shelf(signed_at: WallMs) -> Shelf:
    """The fleet and its manifest in force."""
    declared = fleet(signed_at)
    fleet_digest = digest(canonicalize(encode(declared)))
    manifest = Manifest(
        schema_version=1,
        channel=STABLE,
        channel_ref="c0ffee",
        fleet_resolved_hash=fleet_digest,
        host_set=tuple(HostTarget(hostname=host, wave_index=0, target_closure=target(host)) for host in HOSTS),
        meta=declared.meta,
    )
    shelf = Shelf(fleet=_held(declared, fleet_digest, signed_at), manifests={STABLE: _held(manifest, "m", signed_at)})
    shelf.ready.set()
    return shelf


Value = TypeVar("Value")


def _held(value: Value, value_digest: str, signed_at: WallMs) -> Held[Value]:
    proven = Verified(value=value, digest=value_digest, key_id="k", algorithm="ed25519", signed_at=signed_at)
    return Held(raw=Raw(data=b"{}", signature=bytes(64)), proven=proven)
