"""Everything a fleet description may not say, and what is answered when it does."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from nixfleet.release.checks import notices
from nixfleet.release.problems import DescriptionError
from nixfleet.release.read import parse_description
from nixfleet.release.resolve import resolve
from tests.unit.nixfleet_samples import COMMIT, HOST_KEYS, NOW, description, document

Edit = Callable[[dict[str, Any]], None]


def problems_after(edit: Edit, commit: str = COMMIT) -> list[str]:
    edited = copy.deepcopy(document())
    edit(edited)
    with pytest.raises(DescriptionError) as caught:
        resolve(parse_description(edited), commit=commit, signed_at=NOW)
    assert caught.value.exit_code == 2
    return [str(problem) for problem in caught.value.problems]


def put(path: str, value: Any) -> Edit:
    def edit(members: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        place: Any = members
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place[name]
        if isinstance(place, list):
            place[int(last)] = value
        else:
            place[last] = value

    return edit


REFUSALS = [
    ("hosts", {}, "hosts: there are none"),
    ("hosts/-evil", {"system": "x", "channel": "stable"}, "hosts.-evil: a host name is made of letters"),
    ("hosts/a b", {"system": "x", "channel": "stable"}, "hosts.a b: a host name is made of letters"),
    ("hosts/node1/channel", "stabel", 'hosts.node1.channel: no channel is called "stabel"; did you mean "stable"?'),
    ("hosts/node1/channel", "zzz", 'no channel is called "zzz" (there are: edge, stable)'),
    ("hosts/node1/closure", "/etc/passwd", 'hosts.node1.closure: "/etc/passwd" is neither a store path'),
    ("hosts/node1/closure", "/nix/store/../x", "is neither a store path nor the base name of one"),
    ("hosts/node1/closure", "", 'hosts.node1.closure: "" is neither'),
    ("hosts/node1/pin", {"commit": "ab", "reason": " "}, "hosts.node1.pin.reason: say why"),
    ("hosts/node1/pubkey", "ssh-rsa AAAA", "hosts.node1.pubkey: not an OpenSSH ed25519 public key"),
    ("hosts/node2/pubkey", HOST_KEYS["node1"].openssh_public, "hosts.node2.pubkey: is also the key of node1"),
    ("channels/Stable", {"rolloutPolicy": "quick", "freshnessWindow": 120}, "channels.Stable: a channel name is"),
    ("channels/edge/rolloutPolicy", "quik", 'no policy is called "quik"; did you mean "quick"?'),
    ("channels/edge/freshnessWindow", 59, "59 min is less than twice the signing interval: at least 60 min"),
    ("channels/edge/signingIntervalMinutes", 0, "channels.edge.signingIntervalMinutes: must be at least 1 minute"),
    ("rolloutPolicies/quick/strategy", "yolo", 'rolloutPolicies.quick.strategy: no strategy is called "yolo"'),
    (
        "rolloutPolicies/quick/strategy",
        "staged",
        'quick.waves: there are none, which only "all-at-once" can do without',
    ),
    ("rolloutPolicies/careful/waves/0/selector", {}, "careful.waves[0].selector: selects nothing"),
    ("rolloutPolicies/careful/waves/0/selector", {"hosts": ["nod1"]}, 'no host is called "nod1"; did you mean "node1"'),
    ("rolloutPolicies/careful/waves/0/selector", {"channel": "x"}, 'selector.channel: no channel is called "x"'),
    ("rolloutPolicies/careful/waves/0/soakSecs", 3, "careful.waves[0]: give soakMinutes or soakSecs, not both"),
    ("rolloutPolicies/careful/waves/2/selector", {"tags": ["web"]}, "hosts.db1: no wave of policy"),
    ("edges/0/gated", "nobody", 'edges[0].gated: no host is called "nobody"'),
    ("edges/0/gates", "node3", "edges[0]: db1 is on stable, node3 on edge: channelEdges order channels"),
    ("edges/0", {"gated": "node1", "gates": "node2"}, "edges[0]: node1 (wave 0) would wait for node2 (wave 1)"),
    ("edges/0", {"gated": "db1", "gates": "db1"}, "edges: db1 waits for db1: none of them could ever start"),
    ("channelEdges/0/gates", "x", 'channelEdges[0].gates: no channel is called "x"'),
    ("channelEdges/0/gates", "stable", "channelEdges: stable waits for stable"),
    ("disruptionBudgets/0/maxInFlight", None, "disruptionBudgets[0]: limits nothing"),
    ("disruptionBudgets/0/maxInFlight", 0, "disruptionBudgets[0].maxInFlight: 0 would hold these hosts for ever"),
    ("disruptionBudgets/0/maxInFlightPct", 101, "disruptionBudgets[0].maxInFlightPct: is a percentage from 1 to 100"),
    ("disruptionBudgets/0", {"selector": {"all": True}}, "disruptionBudgets[0]: limits nothing"),
    ("disruptionBudgets/0/hosts", ["node1"], "disruptionBudgets[0].hosts: is filled in when the release is signed"),
    ("disruptionBudgets/0/selector", {}, "disruptionBudgets[0].selector: selects nothing"),
]


@pytest.mark.parametrize(("path", "value", "said"), REFUSALS, ids=lambda value: str(value)[:48])
def test_a_description_that_breaks_a_rule_is_refused_with_its_place(path: str, value: Any, said: str) -> None:
    found = problems_after(put(path, value))
    assert any(said in problem for problem in found), found


@pytest.mark.parametrize("commit", ["", "HEAD", "4BE0", "4be0 c1", "../4be0", "4be0@1", "4be0\n"])
def test_a_commit_that_cannot_stand_in_a_rollout_id_is_refused(commit: str) -> None:
    assert "is not a commit in lowercase hex" in problems_after(lambda _: None, commit)[0]


def test_a_commit_that_makes_the_longest_rollout_id_too_long_is_refused() -> None:
    assert "over 128 characters" in problems_after(lambda _: None, "a" * 122)[0]


def test_every_problem_is_listed_at_once() -> None:
    def spoil(members: dict[str, Any]) -> None:
        members["hosts"]["node1"]["channel"] = "stabel"
        members["hosts"]["db1"]["closure"] = "x"
        members["channels"]["edge"]["freshnessWindow"] = 1
        members["edges"][0]["gates"] = "nobody"

    found = problems_after(spoil, "not hex")
    assert [problem.split(":")[0] for problem in found] == [
        "commit",
        "hosts.node1.channel",
        "hosts.db1.closure",
        "channels.edge.freshnessWindow",
        "edges[0].gates",
    ]


def test_hosts_that_wait_for_each_other_are_named_in_their_circle() -> None:
    def tie(members: dict[str, Any]) -> None:
        members["edges"] = [
            {"gated": "db1", "gates": "node2"},
            {"gated": "node2", "gates": "db1"},
        ]
        members["rolloutPolicies"]["careful"]["waves"] = [{"selector": {"all": True}}]

    assert problems_after(tie) == ["edges: db1 waits for node2 waits for db1: none of them could ever start"]


def test_channels_that_wait_for_each_other_are_named_in_their_circle() -> None:
    def tie(members: dict[str, Any]) -> None:
        members["channelEdges"].append({"gated": "edge", "gates": "stable"})

    assert problems_after(tie) == [
        "channelEdges: stable waits for edge waits for stable: none of them could ever start"
    ]


def test_a_long_chain_of_edges_is_no_circle_and_needs_no_recursion() -> None:
    names = [f"h{number}" for number in range(3000)]
    members = document()
    members["hosts"] = {name: {"system": "x", "channel": "edge"} for name in names}
    members["edges"] = [{"gated": one, "gates": other} for one, other in itertools.pairwise(names)]
    members["rolloutPolicies"]["careful"]["waves"] = [{"selector": {"all": True}}]
    members["disruptionBudgets"] = []
    assert resolve(parse_description(members), commit=COMMIT, signed_at=NOW).manifests == ()


def test_what_is_legal_but_odd_is_noted() -> None:
    members = document()
    members["hosts"]["node1"]["tags"] = []
    members["hosts"]["node3"].pop("closure")
    members["hosts"]["db1"].pop("pubkey")
    members["channels"]["spare"] = {"rolloutPolicy": "quick", "freshnessWindow": 120}
    members["disruptionBudgets"].append({"selector": {"tags": ["dbb"]}, "maxInFlight": 1})
    assert list(notices(parse_description(members))) == [
        "db1 has no pubkey: it cannot enrol and its evidence cannot be checked",
        "node3 has no closure: it stays as it is",
        "channel spare has no hosts: no rollout is made for it",
        "wave 0 of channel stable takes no host",
        "disruptionBudgets[1] protects no host",
    ]


def test_the_sample_fleet_itself_is_without_fault() -> None:
    assert list(notices(description())) == []
