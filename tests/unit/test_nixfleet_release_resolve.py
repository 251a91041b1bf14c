"""What a description resolves to: waves, budgets, anchors, and the exact bytes that are signed."""

import json
from pathlib import Path
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st

from evidence.canonical import canonicalize, digest, parse
from nixfleet.release.changes import ChangeKind, changes_between, same_intent
from nixfleet.release.commit import ref_of
from nixfleet.release.description import Description
from nixfleet.release.resolve import Resolved, resolve
from state_machine.intent import FleetHost, Manifest, Selector, Wave
from state_machine.values import Channel, Closure, HostName
from tests.unit.nixfleet_samples import COMMIT, NOW, closure, description, document, later

GOLDEN = Path(__file__).parent / "golden" / "release"


def resolved(changes: dict[str, Any] | None = None) -> Resolved:
    return resolve(description(changes), commit=COMMIT, signed_at=NOW)


def manifest_of(channel: str) -> Manifest:
    return next(manifest for manifest, _ in resolved().manifests if manifest.channel == channel)


def test_the_bytes_that_are_signed_are_these() -> None:
    made = resolved()
    assert made.fleet_bytes == (GOLDEN / "fleet.resolved.json").read_bytes()
    for manifest, content in made.manifests:
        assert content == (GOLDEN / f"{manifest.rollout_id}.json").read_bytes()


def test_what_is_signed_is_canonical() -> None:
    made = resolved()
    for content in (made.fleet_bytes, *(content for _, content in made.manifests)):
        assert canonicalize(parse(content)) == content


def test_a_host_falls_into_the_first_wave_that_selects_it() -> None:
    assert resolved().fleet.waves[Channel("stable")] == (
        Wave(hosts=(HostName("node1"),), soak_minutes=30),
        Wave(hosts=(HostName("node2"),), soak_secs=5),
        Wave(hosts=(HostName("db1"),)),
    )
    assert [(entry.hostname, entry.wave_index) for entry in manifest_of("stable").host_set] == [
        ("db1", 2),
        ("node1", 0),
        ("node2", 1),
    ]


def test_an_empty_wave_keeps_its_number() -> None:
    hosts = {name: host for name, host in document()["hosts"].items() if name != "node2"}
    made = resolved({"hosts": hosts, "edges": []})
    assert made.fleet.waves[Channel("stable")][1] == Wave(hosts=(), soak_secs=5)
    entries = {entry.hostname: entry.wave_index for manifest, _ in made.manifests for entry in manifest.host_set}
    assert entries[HostName("db1")] == 2


def test_a_policy_that_goes_all_at_once_needs_no_waves() -> None:
    assert resolved().fleet.waves[Channel("edge")] == (Wave(hosts=(HostName("node3"),)),)


def test_a_manifest_is_anchored_to_the_bytes_of_its_fleet() -> None:
    made = resolved()
    assert {manifest.fleet_resolved_hash for manifest, _ in made.manifests} == {digest(made.fleet_bytes)}


def test_a_budget_is_frozen_to_all_its_hosts_in_every_manifest_it_concerns() -> None:
    for channel in ("stable", "edge"):
        [budget] = manifest_of(channel).disruption_budgets
        assert (budget.hosts, budget.max_in_flight) == (("node1", "node2", "node3"), 1)
    assert "hosts" not in json.loads(resolved().fleet_bytes)["disruptionBudgets"][0]


def test_a_budget_that_concerns_nobody_of_a_channel_is_not_in_its_manifest() -> None:
    made = resolved({"disruptionBudgets": [{"selector": {"tags": ["db"]}, "maxInFlightPct": 50}]})
    assert {manifest.channel: len(manifest.disruption_budgets) for manifest, _ in made.manifests} == {
        "edge": 0,
        "stable": 1,
    }


def test_a_host_without_a_closure_is_in_the_fleet_but_in_no_manifest() -> None:
    hosts = document()["hosts"]
    hosts["node3"].pop("closure")
    made = resolved({"hosts": hosts})
    assert made.fleet.hosts[HostName("node3")].closure_hash is None
    assert [manifest.channel for manifest, _ in made.manifests] == ["stable"]


def test_a_pin_is_kept_until_it_expires() -> None:
    hosts = document()["hosts"]
    hosts["node1"]["pin"] = {"commit": "ab", "reason": "disk", "expiresAt": "2026-06-01T11:00:00Z"}
    wanted = description({"hosts": hosts})
    kept, dropped = (
        resolve(wanted, commit=COMMIT, signed_at=at).fleet.hosts[HostName("node1")] for at in (NOW, later(1))
    )
    assert kept.pin is not None
    assert dropped.pin is None


def test_the_header_names_the_algorithm_only_when_it_is_not_the_default() -> None:
    plain, other = (
        resolve(description(), commit=COMMIT, signed_at=NOW, algorithm=name) for name in (None, "ecdsa-p256")
    )
    assert "signatureAlgorithm" not in json.loads(plain.fleet_bytes)["meta"]
    assert json.loads(other.manifests[0][1])["meta"]["signatureAlgorithm"] == "ecdsa-p256"


def test_a_display_name_is_short() -> None:
    assert manifest_of("stable").display_name == "stable@4be0c1d2"


def test_what_changes_is_told_host_by_host() -> None:
    hosts = document()["hosts"]
    published = json.loads(resolved().fleet_bytes)
    hosts["node1"]["closure"] = closure("node1", 2)
    hosts["node9"] = hosts.pop("node2")
    after = resolved({"hosts": hosts, "edges": []})
    told = {change.host: (change.kind, change.old, change.new) for change in changes_between(published, after.fleet)}
    assert told == {
        "db1": (ChangeKind.SAME, closure("db1"), closure("db1")),
        "node1": (ChangeKind.CHANGED, closure("node1"), closure("node1", 2)),
        "node2": (ChangeKind.REMOVED, closure("node2"), None),
        "node3": (ChangeKind.SAME, closure("node3"), closure("node3")),
        "node9": (ChangeKind.NEW, None, closure("node2")),
    }


def test_intent_is_the_same_whoever_signed_it_whenever() -> None:
    one, other = (
        json.loads(resolve(description(), commit=commit, signed_at=at).fleet_bytes)
        for commit, at in ((COMMIT, NOW), ("ab", later(5)))
    )
    changed = json.loads(resolved({"edges": []}).fleet_bytes)
    assert same_intent(one, other)
    assert ref_of(one) == ref_of(other)
    assert not same_intent(one, changed)
    assert ref_of(one) != ref_of(changed)
    assert not same_intent(None, one)


names = st.sampled_from(["a", "b", "c", "d", "e"])
hosts = st.dictionaries(
    names.map(HostName),
    st.builds(
        FleetHost,
        system=st.just("x"),
        channel=st.just(Channel("edge")),
        tags=st.lists(st.sampled_from(["t", "u"]), unique=True).map(tuple),
        closure_hash=st.none() | st.just(Closure(closure("x"))),
    ),
    min_size=1,
)


@given(hosts=hosts, selectors=st.lists(st.builds(Selector, tags=st.just(("t",)), tags_any=st.just(("u",))), max_size=2))
def test_every_host_with_a_closure_is_in_one_wave_and_one_manifest(
    hosts: dict[HostName, FleetHost], selectors: list[Selector]
) -> None:
    base = description()
    policy = base.rollout_policies["careful"]
    waves = (*(attrs.evolve(policy.waves[0], selector=each) for each in selectors), policy.waves[2])
    fleet = Description(
        hosts=hosts,
        channels={Channel("edge"): attrs.evolve(base.channels[Channel("edge")], rollout_policy="careful")},
        rollout_policies={"careful": attrs.evolve(policy, waves=waves)},
    )
    made = resolve(fleet, commit=COMMIT, signed_at=NOW)
    placed = [host for wave in made.fleet.waves[Channel("edge")] for host in wave.hosts]
    assert sorted(placed) == sorted(hosts)
    listed = [entry.hostname for manifest, _ in made.manifests for entry in manifest.host_set]
    assert listed == sorted(name for name, host in hosts.items() if host.closure_hash is not None)
    assert resolve(fleet, commit=COMMIT, signed_at=NOW) == made
