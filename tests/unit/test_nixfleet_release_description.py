"""Reading a fleet description: TOML and JSON, strict, with every misplaced member named."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from nixfleet.errors import UnreadableFileError
from nixfleet.release.checks import notices, problems
from nixfleet.release.example import EXAMPLE
from nixfleet.release.problems import DescriptionError
from nixfleet.release.read import parse_description, read_description
from state_machine.intent import Pin, Selector
from state_machine.values import HostName
from tests.unit.nixfleet_samples import closure, description, document
from wire.timestamps import parse_rfc3339

TOML = """
[channels.stable]
rolloutPolicy = "canary"
freshnessWindow = 1440

[rolloutPolicies.canary]
strategy = "canary"
sustainedFailureSecs = 60
healthGate.systemdFailedUnits.max = 0
waves = [
  { selector = { tags = ["canary"] }, soakMinutes = 30 },
  { selector = { all = true } },
]

[hosts.node1]
system = "x86_64-linux"
channel = "stable"
tags = ["canary"]
closure = "/nix/store/00000000000000000000000000000001-nixos-system-node1"
pin = { commit = "ab12", reason = "waits for a disk", expiresAt = 2026-06-01T02:00:00+02:00 }
"""


def said_of(members: Any) -> list[str]:
    with pytest.raises(DescriptionError) as caught:
        parse_description(members)
    return [str(problem) for problem in caught.value.problems]


def test_toml_and_json_of_the_same_fleet_read_alike(tmp_path: Path) -> None:
    (tmp_path / "fleet.json").write_text(json.dumps(document()))
    assert read_description(tmp_path / "fleet.json") == description()


def test_a_toml_description_with_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(TOML)
    read = read_description(tmp_path / "fleet.toml")
    node1, stable = read.hosts[HostName("node1")], next(iter(read.channels.values()))
    assert node1.closure_hash == closure("node1")
    assert node1.pin == Pin(commit="ab12", reason="waits for a disk", expires_at=parse_rfc3339("2026-06-01T00:00:00Z"))
    assert (stable.signing_interval_minutes, stable.reconcile_interval_minutes) == (60, 30)
    assert read.rollout_policies["canary"].waves[1].selector == Selector(all=True)


def test_the_example_resolves_without_a_problem(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(EXAMPLE)
    example = read_description(tmp_path / "fleet.toml")
    assert problems(example) == ()
    assert list(notices(example)) == []


def test_the_member_closure_hash_of_other_tools_is_read_as_well() -> None:
    members = document()
    host = members["hosts"]["node1"]
    host["closureHash"] = host.pop("closure")
    assert parse_description(members) == description()


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], ["the description: must be a table, not a list"]),
        ({}, ["hosts: is missing", "channels: is missing"]),
        ({"hosts": [], "channels": {}, "edges": {}}, ["hosts: must be a table, not a list", "edges: must be a list"]),
        ({"hosts": {"a": 1}, "channels": {}}, ["hosts.a: must be a table, not 1"]),
        ({"hosts": {"a": {}}, "channels": {}}, ["hosts.a.system: is missing", "hosts.a.channel: is missing"]),
        ({"hosts": {}, "channels": {}, "meta": {}}, ['meta: no member is called "meta"']),
        ({"hosts": {}, "channels": {}, "chanels": {}}, ['chanels: no member is called "chanels"; did you mean "chann']),
        ({"hosts": {}, "channels": {"a": {"rolloutPolicy": "x", "freshnessWindow": True}}}, ["not true"]),
        ({"hosts": {}, "channels": {"a": {"rolloutPolicy": "x", "freshnessWindow": -1}}}, ["a whole number from 0"]),
        ({"hosts": {}, "channels": {"a": {"rolloutPolicy": "x", "freshnessWindow": 1.5}}}, ["not 1.5"]),
        ({"hosts": {}, "channels": {"a": {"rolloutPolicy": 3, "freshnessWindow": 1}}}, ["must be text, not 3"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_members_that_are_missing_unknown_or_of_the_wrong_kind_are_named(members: Any, said: list[str]) -> None:
    found = said_of(members)
    assert len(found) == len(said), found
    assert all(want in problem for want, problem in zip(said, found, strict=True)), found


def test_selectors_that_other_tools_drop_silently_are_refused() -> None:
    members = document()
    members["rolloutPolicies"]["careful"]["waves"][2]["selector"] = {"all": True, "not": {"tags": ["db"]}}
    assert said_of(members) == [
        'rolloutPolicies.careful.waves[2].selector.not: no member is called "not" '
        "(there are: all, channel, hosts, tags, tagsAny)"
    ]


def test_a_text_where_a_list_is_meant_is_not_taken_letter_by_letter() -> None:
    members = document()
    members["hosts"]["node1"]["tags"] = "web"
    assert said_of(members) == ['hosts.node1.tags: must be a list, not "web"']


def test_a_policy_on_failure_that_is_none_is_answered_with_those_there_are() -> None:
    members = document()
    members["rolloutPolicies"]["quick"]["onHealthFailure"] = "halt-only"
    assert said_of(members) == [
        'rolloutPolicies.quick.onHealthFailure: must be "halt" or "rollback-and-halt", not "halt-only"'
    ]


def test_a_pin_that_ends_at_no_instant_is_refused() -> None:
    members = document()
    members["hosts"]["node1"]["pin"] = {"commit": "a", "reason": "b", "expiresAt": "tomorrow"}
    assert said_of(members)[0].startswith("hosts.node1.pin.expiresAt: 'tomorrow' is not an RFC 3339 timestamp")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", b"hosts = [", "fleet description has 1 problem"),
        ("a.toml", b"\xff\xfe", "utf-8"),
        ("a.json", b'{"hosts": {}, "hosts": {}}', "two members named 'hosts'"),
        ("a.json", b"[" * 100, "nested more than 64 deep"),
        ("a.json", b'{"a": 1e400}', "the number 1e400 cannot be held exactly"),
    ],
)
def test_a_file_that_does_not_parse_says_why(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DescriptionError) as caught:
        read_description(tmp_path / name)
    assert said in str(caught.value)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError) as caught:
        read_description(tmp_path / "none.toml")
    assert str(caught.value) == f"cannot read the fleet description {tmp_path}/none.toml: No such file or directory"


def test_closures_given_beside_the_file_replace_those_in_it() -> None:
    given = description().with_closures({"node1": f"/nix/store/{closure('node1', 7)}", "db1": closure("db1", 8)})
    assert given.hosts[HostName("node1")].closure_hash == closure("node1", 7)
    assert given.hosts[HostName("db1")].closure_hash == closure("db1", 8)
    assert attrs.evolve(given, hosts=description().hosts) == description()


def test_a_closure_for_a_host_that_is_none_is_refused() -> None:
    with pytest.raises(DescriptionError, match='--closure nod1: no host is called "nod1"; did you mean "node1"'):
        description().with_closures({"nod1": closure("x")})
