"""`lib.mkFleet` makes what the release tool reads, refuses what it would refuse, and says so in the same words.

With NIXPKGS_LIB the same sentences are held against nixpkgs' own lib.
"""

import json
import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from evidence.canonical import parse
from nixfleet.release.checks import notices, problems
from nixfleet.release.description import Description
from nixfleet.release.example import EXAMPLE
from nixfleet.release.problems import DescriptionError
from nixfleet.release.read import parse_description
from tests.modules.evaluation import (
    DARWIN,
    NIXOS,
    ROOT,
    EvaluationError,
    evaluate,
    evaluate_darwin,
    evaluate_nixos,
    lib_path,
    needs_nix,
)
from tests.modules.nix_runner import ask
from tests.modules.sample_hosts import AGENT

pytestmark = [needs_nix, pytest.mark.nix]

LIBRARY_FILES = ROOT / "nix/fleet"
LIBRARY = f"(import {LIBRARY_FILES} {{ inherit lib; }})"
KEYS = tuple(host["pubkey"] for host in tomllib.loads(EXAMPLE)["hosts"].values())


def plain(**changes: Any) -> dict[str, Any]:
    """A sound fleet of three hosts, with members replaced."""
    return {
        "channels": {"stable": {"rolloutPolicy": "careful", "freshnessWindow": 1440}},
        "rolloutPolicies": {
            "careful": {
                "strategy": "canary",
                "waves": [{"selector": {"tags": ["canary"]}, "soakMinutes": 30}, {"selector": {"all": True}}],
            }
        },
        "hosts": {name: host(tags=["canary"] if name == "web1" else []) for name in ("web1", "web2", "db1")},
        **changes,
    }


def host(**members: Any) -> dict[str, Any]:
    return {"system": "x86_64-linux", "channel": "stable", **members}


def wave(**selector: Any) -> dict[str, Any]:
    return {"selector": selector}


def policy(*waves: Mapping[str, Any]) -> dict[str, Any]:
    return {"careful": {"strategy": "canary", "waves": list(waves)}}


def nix(value: Any) -> str:
    """A value as Nix source."""
    return f"(builtins.fromJSON {json.dumps(json.dumps(value)).replace('${', chr(92) + '${')})"


def made(fleet: Any) -> Any:
    return evaluate(f"{LIBRARY}.mkFleet {fleet if isinstance(fleet, str) else nix(fleet)}")


def described(fleet: Any) -> Description:
    return parse_description(made(fleet))


def refusal(fleet: Any) -> str:
    with pytest.raises(EvaluationError) as caught:
        made(fleet)
    return caught.value.message


def wrong(fleet: Any) -> list[str]:
    """The problems that are listed, without names that are suggested."""
    first, *rest = refusal(fleet).splitlines()
    assert first == f"the fleet description has {len(rest)} problem{'s' if len(rest) > 1 else ''}:"
    return sorted(unsuggested(line.strip()) for line in rest)


def unsuggested(line: str) -> str:
    return re.sub(r"(; did you mean .*\?| \(there are: .*\))$", "", line)


def warnings(fleet: Any) -> list[str]:
    expression = f"let lib = import {lib_path()}; in {LIBRARY}.mkFleet {nix(fleet)}"
    messages = ask(expression, readable=[ROOT, lib_path()]).messages
    return re.findall(r"warning: (.*(?:no host|no hosts.*))$", messages, re.MULTILINE)


# --- what it makes --------------------------------------------------------------------------------------------------


def test_the_example_of_the_release_tool_becomes_the_same_description() -> None:
    document = tomllib.loads(EXAMPLE)
    assert described(document) == parse_description(document)


def test_every_member_that_the_release_tool_reads_can_be_said() -> None:
    document = plain(
        hosts={
            "a": host(tags=["canary", "web"], pubkey=KEYS[0], pin={"commit": "4be0c1", "reason": "a disk"}),
            "b": host(closure="/nix/store/00000000000000000000000000000000-b", tags=["web"]),
            "c": host(
                channel="edge", pin={"commit": "4be0c1", "reason": "a disk", "expiresAt": "2027-01-01T00:00:00Z"}
            ),
        },
        channels={
            "stable": {
                "rolloutPolicy": "careful", "freshnessWindow": 60, "signingIntervalMinutes": 30,
                "reconcileIntervalMinutes": 5,
            },
            "edge": {"rolloutPolicy": "fast", "freshnessWindow": 120},
        },
        rolloutPolicies={
            "careful": {
                "strategy": "staged", "onHealthFailure": "halt", "sustainedFailureSecs": 90,
                "healthGate": {"systemdFailedUnits": {"max": 2}},
                "waves": [
                    {"selector": {"tags": ["canary", "web"]}, "soakMinutes": 3},
                    {"selector": {"tagsAny": ["web"], "hosts": ["b"], "channel": "stable"}, "soakSecs": 5},
                ],
            },
            "fast": {"strategy": "all-at-once"},
        },
        edges=[{"gated": "b", "gates": "a", "reason": "schema first"}],
        channelEdges=[{"gated": "stable", "gates": "edge"}],
        disruptionBudgets=[{"selector": {"all": True}, "maxInFlight": 2, "maxInFlightPct": 50}],
    )  # fmt: skip
    assert described(document) == parse_description(document)
    assert problems(described(document)) == ()


def test_a_path_and_a_module_describe_a_fleet_as_well_as_a_set_does(tmp_path: Path) -> None:
    plain_set = made(plain())
    assert made(f"({{ lib, ... }}: {{ config = lib.mkMerge [ {nix(plain())} ]; }})") == plain_set
    path = tmp_path / "fleet.nix"
    path.write_text(nix(plain()))
    listed = [ROOT, lib_path(), tmp_path]
    assert (
        json.loads(ask(f"let lib = import {lib_path()}; in {LIBRARY}.mkFleet {path}", readable=listed).json)
        == plain_set
    )
    parts = f"{{ imports = [ {nix(plain(hosts={}))} {{ hosts = {nix(plain()['hosts'])}; }} ]; }}"
    assert made(parts) == plain_set


def test_nothing_of_the_library_is_in_the_description() -> None:
    fleet = plain(tags={"canary": {}}, healthChecks={"ssh": {"kind": "tcp", "port": 22}})
    assert set(made(fleet)) == {
        "channels", "channelEdges", "disruptionBudgets", "edges", "hosts", "rolloutPolicies",
    }  # fmt: skip
    assert described(fleet) == described(plain())


def test_the_end_of_the_line_of_a_public_key_file_is_no_part_of_the_key() -> None:
    fleet = plain(hosts={"web1": host(tags=["canary"], pubkey=f"{KEYS[0]}\n")})
    assert described(fleet).hosts == described(plain(hosts={"web1": host(tags=["canary"], pubkey=KEYS[0])})).hosts


def test_a_package_stands_for_its_path() -> None:
    path = "/nix/store/00000000000000000000000000000000-system"
    package = f'{{ type = "derivation"; name = "system"; outPath = "{path}"; }}'
    fleet = f"({nix(plain())} // {{ hosts.web1 = {nix(host(tags=['canary']))} // {{ closure = {package}; }}; }})"
    assert made(fleet)["hosts"]["web1"]["closure"] == path.removeprefix("/nix/store/")


def test_a_configuration_that_is_given_says_which_system_a_host_is() -> None:
    fleet = plain(hosts={name: {"channel": "stable", "tags": ["canary"]} for name in ("mac1", "web1")})
    pkgs = "pkgs.stdenv.hostPlatform.system"
    given = f'nixosConfigurations.web1.{pkgs} = "x86_64-linux"; darwinConfigurations.mac1.{pkgs} = "aarch64-darwin";'
    hosts = made(f"({nix(fleet)} // {{ {given} }})")["hosts"]
    assert {name: one["system"] for name, one in hosts.items()} == {"mac1": "aarch64-darwin", "web1": "x86_64-linux"}


def test_hosts_without_a_configuration_are_told_when_the_configurations_are_given() -> None:
    given = '{ web1 = throw "looked at"; }'
    said = wrong(f"({nix(plain())} // {{ nixosConfigurations = {given}; }})")
    assert said == [f"hosts.{name}: no configuration has its name (there are: web1), and it has no closure"
                    for name in ("db1", "web2")]  # fmt: skip
    assert wrong(plain(hosts={"web1": {"channel": "stable", "tags": ["canary"]}})) == ["hosts.web1.system: is missing"]


# --- what it refuses ------------------------------------------------------------------------------------------------

RING = [{"gated": "web2", "gates": "db1"}, {"gated": "db1", "gates": "web2"}]
WRONG: Mapping[str, dict[str, Any]] = {
    "no hosts": plain(hosts={}),
    "a host's name": plain(hosts={"web 1": host(tags=["canary"])}),
    "an unknown channel": plain(hosts={"a": host(channel="stabel", tags=["canary"]), "b": host(channel="x")}),
    "no closure's name": plain(hosts={"web1": host(closure="/nix/store/short-name", tags=["canary"])}),
    "no reason": plain(hosts={"web1": host(pin={"commit": "4be0c1", "reason": " "}, tags=["canary"])}),
    "a channel's name": plain(channels={"Stable": {"rolloutPolicy": "careful", "freshnessWindow": 1440}}),
    "an unknown policy": plain(channels={"stable": {"rolloutPolicy": "carefull", "freshnessWindow": 1440}}),
    "a short window": plain(channels={"stable": {"rolloutPolicy": "careful", "freshnessWindow": 119}}),
    "no waves": plain(rolloutPolicies={"careful": {"strategy": "staged"}}),
    "both soaks": plain(rolloutPolicies=policy({**wave(all=True), "soakMinutes": 1, "soakSecs": 5})),
    "nothing selected": plain(rolloutPolicies=policy(wave(), wave(all=True))),
    "an unknown host in a selector": plain(rolloutPolicies=policy(wave(hosts=["web9"]), wave(all=True))),
    "an unknown channel in a selector": plain(rolloutPolicies=policy(wave(channel="edge"), wave(all=True))),
    "a host in no wave": plain(rolloutPolicies=policy(wave(tags=["canary"]))),
    "an edge between strangers": plain(edges=[{"gated": "web9", "gates": "web1"}]),
    "an edge between strange channels": plain(channelEdges=[{"gated": "stable", "gates": "edge"}]),
    "an edge against the waves": plain(edges=[{"gated": "web1", "gates": "db1"}]),
    "a cycle of hosts": plain(edges=RING),
    "a host that waits for itself": plain(edges=[{"gated": "db1", "gates": "db1"}]),
    "a cycle of channels": plain(
        channels={
            name: {"rolloutPolicy": "careful", "freshnessWindow": 1440} for name in ("stable", "edge", "later")
        },
        channelEdges=[
            {"gated": "edge", "gates": "stable"}, {"gated": "later", "gates": "edge"},
            {"gated": "stable", "gates": "later"},
        ],
    ),
    "an edge across channels": plain(
        channels={name: {"rolloutPolicy": "careful", "freshnessWindow": 1440} for name in ("stable", "edge")},
        hosts={"web1": host(tags=["canary"]), "db1": host(channel="edge")},
        edges=[{"gated": "db1", "gates": "web1"}],
    ),
    "a budget without limit": plain(disruptionBudgets=[{"selector": {"all": True}}]),
    "a budget for nobody": plain(disruptionBudgets=[{"selector": {}, "maxInFlight": 1}]),
    "one key for two": plain(hosts={name: host(pubkey=KEYS[0], tags=["canary"]) for name in ("db1", "web1", "web2")}),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_the_release_tool_would_refuse_is_refused_in_its_words(name: str) -> None:
    theirs = sorted(unsuggested(str(problem)) for problem in problems(parse_description(WRONG[name])))
    assert theirs
    assert [unsuggested(line) for line in wrong(WRONG[name])] == theirs


@pytest.mark.parametrize("seed", [1, 2])
def test_on_fleets_that_nobody_thought_of_both_find_the_same(seed: int) -> None:
    chance = random.Random(seed)
    fleets = [fleet_by(chance) for _ in range(150)]
    expression = f"""
      let
        selection = import {LIBRARY_FILES}/selection.nix {{ inherit lib; }};
        health = import {LIBRARY_FILES}/health.nix {{ inherit lib; }};
        problems = import {LIBRARY_FILES}/problems.nix {{ inherit lib selection health; }};
        described = fleet: (lib.evalModules {{ modules = [ {LIBRARY_FILES}/options.nix fleet ]; }}).config;
        found = fleet: rec {{
          wrong = map (problem: "${{problem.where}}: ${{problem.what}}") (problems.all fleet);
          odd = if wrong == [ ] then problems.warnings fleet else [ ];
        }};
      in map (fleet: found (described fleet)) {nix(fleets)}
    """
    answers = evaluate(expression)
    theirs = [parse_description({name: part for name, part in fleet.items() if name != "tags"}) for fleet in fleets]
    for ours, fleet in zip(answers, theirs, strict=True):
        wrong_here = sorted(unsuggested(str(problem)) for problem in problems(fleet))
        assert sorted(map(unsuggested, ours["wrong"])) == wrong_here
        odd = () if wrong_here else (text for text in notices(fleet) if "pubkey" not in text and "closure" not in text)
        assert [text for text in ours["odd"] if not text.startswith("tag ")] == list(odd)
    sound = sum(not ours["wrong"] for ours in answers)
    assert sum("waits for" in line for ours in answers for line in ours["wrong"]) > 10
    assert 10 < sound < 140, "neither all of them wrong nor all of them sound"


def fleet_by(chance: random.Random) -> dict[str, Any]:
    """A fleet of the right shape, with sense in it or without."""
    hosts, channels, policies = ("a", "b", "c", "d")[: chance.randint(1, 4)], ("edge", "stable"), ("fast", "slow")
    tags = ("canary", "web")

    def selector() -> dict[str, Any]:
        if chance.random() < 0.02:
            return {}
        kinds: list[dict[str, Any]] = [
            {"all": True}, {"all": True}, {"tags": some(tags, 1)}, {"tagsAny": some(tags, 1)},
            {"hosts": some(hosts, 1)}, {"channel": chance.choice(channels)},
        ]  # fmt: skip
        return chance.choice(kinds)

    def some(among: Sequence[str], least: int = 0) -> list[str]:
        return chance.sample(among, chance.randint(least, len(among)))

    def pairs(among: Sequence[str], most: int) -> list[dict[str, str]]:
        return [{"gated": chance.choice(among), "gates": chance.choice(among)} for _ in range(chance.randint(0, most))]

    def stray(name: str) -> str:
        return name if chance.random() < 0.97 else "nobody"

    return {
        "tags": {tag: {} for tag in tags},
        "hosts": {
            name: host(tags=some(tags), channel=stray(chance.choice(channels[: chance.randint(1, 2)])))
            for name in hosts
        },
        "channels": {
            name: {
                "rolloutPolicy": stray(chance.choice(policies)),
                "freshnessWindow": chance.choice([119, 120, 600, 600]),
            }
            if chance.random() < 0.1
            else {"rolloutPolicy": chance.choice(policies), "freshnessWindow": 600}
            for name in channels
        },
        "rolloutPolicies": {
            "fast": {"strategy": "all-at-once"},
            "slow": {
                "strategy": chance.choice(["canary", "staged", "all-at-once"]),
                "waves": [
                    {"selector": selector()} for _ in range(chance.randint(0 if chance.random() < 0.1 else 1, 3))
                ],
            },
        },
        "edges": pairs(hosts, 3) if chance.random() < 0.4 else [],
        "channelEdges": pairs(channels, 2) if chance.random() < 0.3 else [],
        "disruptionBudgets": [{"selector": selector(), "maxInFlight": 1}] if chance.random() < 0.4 else [],
    }


def test_every_problem_is_told_at_once_with_the_names_there_are() -> None:
    fleet = plain(
        hosts={"web1": host(channel="edge"), "web2": host(channel="stable", closure="x")},
        edges=[{"gated": "web1", "gates": "web3"}],
    )
    said = refusal(fleet)
    assert said.startswith("the fleet description has 4 problems:")
    assert 'hosts.web1.channel: no channel is called "edge" (there are: stable)' in said
    assert 'edges[0].gates: no host is called "web3" (there are: web1, web2)' in said
    assert 'waves[0].selector.tags: no host has the tag "canary"' in said


def test_a_tag_that_no_host_has_is_refused_in_a_selector_and_the_tags_there_are_are_named() -> None:
    said = refusal(plain(rolloutPolicies=policy(wave(tags=["canray"]), wave(tagsAny=["webb"]), wave(all=True))))
    where = "rolloutPolicies.careful.waves"
    assert f'{where}[0].selector.tags: no host has the tag "canray" (there are: canary)' in said
    assert f'{where}[1].selector.tagsAny: no host has the tag "webb" (there are: canary)' in said
    budget = {"selector": {"tags": ["db"]}, "maxInFlight": 1}
    assert 'disruptionBudgets[0].selector.tags: no host has the tag "db"' in refusal(plain(disruptionBudgets=[budget]))


def test_a_tag_that_is_declared_is_known_before_any_host_has_it() -> None:
    fleet = plain(tags={"web": {}}, disruptionBudgets=[{"selector": {"tags": ["web"]}, "maxInFlight": 1}])
    assert warnings(fleet) == ["disruptionBudgets[0] protects no host", "tag web is on no host"]


@pytest.mark.parametrize(
    ("member", "value", "place"),
    [
        ("hosts", {"web1": host(tags="canary")}, "hosts.web1.tags"),
        ("hosts", {"web1": {"system": "x86_64-linux"}}, "hosts.web1.channel"),
        ("hosts", {"web1": host(chanel="stable")}, "hosts.web1.chanel"),
        ("hosts", {"web1": host(pin={"commit": "4be0c1"})}, "hosts.web1.pin.reason"),
        ("hosts", ["web1"], "hosts"),
        ("channels", {"a": {"rolloutPolicy": "careful", "freshnessWindow": "1d"}}, "channels.a.freshnessWindow"),
        ("channels", {"a": {"rolloutPolicy": "careful", "freshnessWindow": 0}}, "channels.a.freshnessWindow"),
        ("channels", {"a": {"rolloutPolicy": "careful"}}, "channels.a.freshnessWindow"),
        ("rolloutPolicies", {"careful": {"strategy": "slow"}}, "rolloutPolicies.careful.strategy"),
        ("rolloutPolicies", policy({"selector": {"tag": ["a"]}}), "selector.tag"),
        ("rolloutPolicies", policy({"selector": {"all": True}, "soakMinutes": -1}), "soakMinutes"),
        ("rolloutPolicies", {"careful": {"strategy": "all-at-once", "onHealthFailure": "panic"}}, "onHealthFailure"),
        ("disruptionBudgets", [{"selector": {"all": True}, "maxInFlightPct": 101}], "maxInFlightPct"),
        ("disruptionBudgets", [{"selector": {"all": True}, "maxInFlight": 0}], "maxInFlight"),
        ("edges", [{"gated": "web1"}], "gates"),
        ("healthChecks", {"ssh": {"kind": "tpc"}}, "healthChecks.ssh.kind"),
        ("policies", {}, "policies"),
    ],
)  # fmt: skip
def test_a_member_of_the_wrong_kind_is_named_by_its_path(member: str, value: Any, place: str) -> None:
    assert re.search(rf"[`.]{re.escape(place)}'", refusal(plain(**{member: value})))


def test_what_takes_no_host_is_warned_about_in_the_words_of_the_release_tool() -> None:
    fleet = plain(
        channels={name: {"rolloutPolicy": "careful", "freshnessWindow": 1440} for name in ("stable", "edge", "empty")},
        hosts={"web1": host(tags=["canary"]), "web2": host(channel="edge")},
    )
    theirs = [text for text in notices(parse_description(fleet)) if "pubkey" not in text and "closure" not in text]
    assert warnings(fleet) == theirs
    assert theirs == [
        "wave 0 of channel edge takes no host",
        "channel empty has no hosts: no rollout is made for it",
        "wave 1 of channel stable takes no host",
    ]


def test_a_sound_fleet_is_warned_about_nothing() -> None:
    assert warnings(plain()) == []


# --- what its hosts import ------------------------------------------------------------------------------------------


def checks_of(fleet: Any, name: str) -> Mapping[str, Any]:
    modules = evaluate(
        f"lib.mapAttrs (_: m: m.services.nixfleet-agent.healthChecks) ({LIBRARY}.fleetModules {nix(fleet)})"
    )
    return {check: wrapped["content"] for check, wrapped in modules[name].items()}


def tcp(port: int) -> dict[str, Any]:
    return {"kind": "tcp", "port": port}


LAYERED = plain(
    healthChecks={"a": tcp(1), "b": tcp(1), "c": tcp(1), "d": tcp(1)},
    tags={"canary": {"healthChecks": {"b": tcp(2), "c": tcp(2), "d": tcp(2), "e": tcp(2)}}},
    channels={
        "stable": {"rolloutPolicy": "careful", "freshnessWindow": 1440, "healthChecks": {"c": tcp(3), "d": tcp(3)}}
    },
    hosts={"web1": host(tags=["canary"], healthChecks={"d": tcp(4)}), "web2": host()},
)


def test_of_one_name_the_hosts_check_beats_the_channels_that_the_tags_and_that_the_fleets() -> None:
    assert {name: check["port"] for name, check in checks_of(LAYERED, "web1").items()} == {
        "a": 1, "b": 2, "c": 3, "d": 4, "e": 2,
    }  # fmt: skip
    assert {name: check["port"] for name, check in checks_of(LAYERED, "web2").items()} == {
        "a": 1, "b": 1, "c": 3, "d": 3,
    }  # fmt: skip


def test_two_tags_that_mean_different_checks_by_one_name_are_refused_unless_something_nearer_decides() -> None:
    tags = {"canary": {"healthChecks": {"web": tcp(80)}}, "new": {"healthChecks": {"web": tcp(8080)}}}
    both = host(tags=["canary", "new"])
    said = refusal(plain(tags=tags, hosts={"web1": both}))
    assert 'hosts.web1: its tags canary and new declare the health check "web" differently' in said
    decided = {**both, "healthChecks": {"web": tcp(443)}}
    assert checks_of(plain(tags=tags, hosts={"web1": decided}), "web1") == {"web": tcp(443)}
    same = {name: {"healthChecks": {"web": tcp(80)}} for name in tags}
    assert checks_of(plain(tags=same, hosts={"web1": both}), "web1") == {"web": tcp(80)}


def on_a_host(extra: str = "{ }") -> Any:
    return evaluate_nixos(
        f"{{ lib, ... }}: {{ imports = [ {AGENT} ({LIBRARY}.fleetModules {nix(LAYERED)}).web1 {extra} ]; }}",
        modules=NIXOS,
        show=("services.nixfleet-agent.tags", "services.nixfleet-agent.machineId"),
    )


def test_a_host_that_imports_its_module_has_its_name_its_tags_and_its_checks() -> None:
    seen = on_a_host()
    assert seen.assertions == []
    assert seen.values == {"services.nixfleet-agent.tags": ["canary"], "services.nixfleet-agent.machineId": "web1"}
    written = parse((seen.etc["nixfleet/agent/health-checks.json"].text or "").encode())
    assert isinstance(written, dict)
    assert {name: check["port"] for name, check in written.items() if isinstance(check, dict)}["d"] == 4


def test_what_a_hosts_own_configuration_says_wins() -> None:
    seen = on_a_host(
        '{ services.nixfleet-agent = { tags = [ "own" ]; healthChecks.d = { kind = "tcp"; port = 9; }; }; }'
    )
    assert seen.values["services.nixfleet-agent.tags"] == ["own"]
    written = json.loads(seen.etc["nixfleet/agent/health-checks.json"].text or "")
    assert (written["d"]["port"], written["a"]["port"]) == (9, 1)


def test_a_mac_imports_the_same_module() -> None:
    imports = f"[ {AGENT} ({LIBRARY}.fleetModules {nix(LAYERED)}).web2 ]"
    seen = evaluate_darwin(f"{{ lib, ... }}: {{ imports = {imports}; }}", modules=DARWIN)
    assert seen.assertions == []
    written = json.loads(seen.etc["nixfleet/agent/health-checks.json"].text or "")
    assert {name: check["port"] for name, check in written.items()} == {"a": 1, "b": 1, "c": 3, "d": 3}


def test_a_wrong_fleet_makes_no_modules() -> None:
    with pytest.raises(EvaluationError, match="is less than twice the signing interval"):
        checks_of(WRONG["a short window"], "web1")


def test_modules_ask_nothing_of_the_systems_that_are_made_of_them() -> None:
    fleet = f'({nix(LAYERED)} // {{ nixosConfigurations = throw "made of itself"; }})'
    assert evaluate(f"builtins.attrNames ({LIBRARY}.fleetModules {fleet}).web1") == ["_file", "services"]


def test_the_release_tool_refuses_what_is_no_description() -> None:
    with pytest.raises(DescriptionError, match="is missing"):
        parse_description({"hosts": {}})
