"""The fleet that the demos play with: keys, a control plane, three hosts, and what they say while they are watched."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import attrs

from nixfleet.demo.foundry import DirectoryFoundry, Foundry, NixFoundry
from nixfleet.demo.processes import ControlPlane, Host, run_command, wait_for
from nixfleet.demo.stage import DemoFailedError, Stage
from nixfleet_agent.activation.cache_keys import CacheKey
from state_machine.values import Closure

NAMES: Final = ("alpha", "beta", "gamma")
_COLOURS: Final = {"Converged": "green", "Reverted": "magenta", "Failed": "red"}


@attrs.define(kw_only=True)
class World:
    """Everything on stage."""

    stage: Stage
    place: Path
    foundry: Foundry
    keys: Path
    releases: Path
    control_plane: ControlPlane
    hosts: dict[str, Host]
    phases: dict[str, str] = attrs.field(factory=dict)
    commits: int = 0

    @property
    def trust(self) -> Path:
        """What every host trusts."""
        return self.keys / "trust.json"

    def watch(self) -> dict[str, dict[str, Any]]:
        """Every running host's status; what changed is shown."""
        said: dict[str, dict[str, Any]] = {}
        for name, host in self.hosts.items():
            status = host.status() if host.process.child is not None else None
            if status is None:
                continue
            said[name] = status
            rollout = status["rollout"]
            phase = f"{rollout['phase']}" if rollout else "no rollout"
            shown = f"{rollout['id'][:15]} {phase}" if rollout else phase
            if self.phases.get(name) != shown:
                self.phases[name] = shown
                self.stage.saw(name, shown, _COLOURS.get(phase, "yellow"))
        return said

    def until(self, what: str, holds: Callable[[Mapping[str, dict[str, Any]]], bool], timeout_s: float = 45) -> None:
        """Watch until `holds` is true of what the hosts say."""
        self.control_plane.process.check()
        wait_for(what, lambda: holds(self.watch()), timeout_s)

    def close(self) -> None:
        """Stop every process."""
        for host in self.hosts.values():
            host.process.stop()
        self.control_plane.process.stop()
        self.foundry.close()

    def release(self, closure: Closure, *, ci_key: Path, releases: Path, new_rollout: bool = False) -> str:
        """`nixfleet release` for all three hosts; the rollout's id."""
        self.commits += 1
        commit = f"{self.commits:07x}c0ffee"
        description = self.place / "fleet.json"
        description.write_text(json.dumps(describe(self.hosts, closure), indent=2))
        words = ["release", "fleet.json", "--ci-key", ci_key.name, "--releases-dir", releases.name, "--commit", commit]
        self.stage.command("nixfleet " + " ".join(words))
        words = [
            "release",
            str(description),
            "--ci-key",
            str(ci_key),
            "--releases-dir",
            str(releases),
            "--commit",
            commit,
        ]
        done = run_command(["nixfleet", *words, *(["--new-rollout"] if new_rollout else [])])
        if done.returncode != 0:
            raise DemoFailedError(f"nixfleet release failed: {done.stderr}")
        return f"stable@{commit}"


def describe(hosts: Mapping[str, Host], closure: Closure | None) -> dict[str, Any]:
    """A fleet of three: one canary, then the rest; two seconds of soak; three seconds of grace for a sick probe.

    Without a closure it is a description for a flake that has the systems itself.
    """
    return {
        "hosts": {
            name: {
                "system": "x86_64-linux",
                "channel": "stable",
                "tags": ["canary"] if name == NAMES[0] else [],
                **({} if closure is None else {"closureHash": closure}),
                "pubkey": host.key.openssh_public,
            }
            for name, host in hosts.items()
        },
        "channels": {"stable": {"rolloutPolicy": "careful", "freshnessWindow": 180, "signingIntervalMinutes": 60}},
        "rolloutPolicies": {
            "careful": {
                "strategy": "staged",
                "waves": [
                    {"selector": {"tags": ["canary"]}, "soakSecs": 2},
                    {"selector": {"all": True}, "soakSecs": 1},
                ],
                "onHealthFailure": "rollback-and-halt",
                "sustainedFailureSecs": 3,
            }
        },
    }


def prepared(stage: Stage, place: Path, *, use_nix: bool, title: str) -> World:
    """Keys, a store and a cache, three hosts without a system, and a control plane; nothing runs yet."""
    stage.title(title)
    keys = place / "keys"
    done = run_command(["nixfleet", "keygen", "--out", str(keys)])
    if done.returncode != 0:
        raise DemoFailedError(f"nixfleet keygen failed: {done.stderr}")
    foundry = _foundry(place / "foundry", keys, use_nix=use_nix)
    stage.line(f"store: {foundry.title}")
    hosts = {name: Host.at(place / name, name, foundry) for name in NAMES}
    control_plane = ControlPlane.at(place / "control-plane", keys)
    return World(
        stage=stage,
        place=place,
        foundry=foundry,
        keys=keys,
        releases=place / "releases",
        control_plane=control_plane,
        hosts=hosts,
    )


def _foundry(root: Path, keys: Path, *, use_nix: bool) -> Foundry:
    if use_nix:
        return NixFoundry(root, keys / "cache.sec", (keys / "cache.pub").read_text().strip())
    root.mkdir()
    return DirectoryFoundry(root=root, key=CacheKey.parse((keys / "cache.sec").read_text().strip()))


def enrol(world: World) -> None:
    """Have the hosts, which run something by now, enrol and take what is published."""
    for host in world.hosts.values():
        _mint(world, host)
    world.control_plane.start(world.releases, world.trust)
    for host in world.hosts.values():
        host.configure(world.control_plane.url, world.keys, world.trust)
        host.start()
    world.until(
        "the hosts to enrol",
        lambda said: all(s["contact"]["certificate_days"] for s in said.values()) and len(said) == 3,
    )
    world.until("the first rollout", all_are("Converged"))


def _mint(world: World, host: Host) -> None:
    public = host.directory / "ssh_host_ed25519_key.pub"
    public.write_text(host.key.openssh_public + "\n")
    words = ["mint-token", "--hostname", host.name, "--pubkey", str(public), "--out", str(host.token)]
    words += ["--org-root-key", str(world.keys / "org-root.pem"), "--ci-key", str(world.keys / "ci-release.pem")]
    words += ["--nonces-file", str(world.releases / "bootstrap-nonces.json")]
    done = run_command(["nixfleet", *words])
    if done.returncode != 0:
        raise DemoFailedError(f"nixfleet mint-token failed: {done.stderr}")


def all_are(phase: str, rollout: str = "") -> Callable[[Mapping[str, dict[str, Any]]], bool]:
    """Every host is in this phase, of this rollout if one is named."""

    def holds(said: Mapping[str, dict[str, Any]]) -> bool:
        rollouts = [status["rollout"] for status in said.values()]
        return len(rollouts) == len(NAMES) and all(
            r is not None and r["phase"] == phase and rollout in r["id"] for r in rollouts
        )

    return holds


def is_in(said: Mapping[str, dict[str, Any]], name: str, phase: str, rollout: str) -> bool:
    """A host is in this phase of this rollout."""
    current = said[name]["rollout"] if name in said else None
    return current is not None and current["phase"] == phase and current["id"] == rollout
