"""The whole loop: an input moves, every host is built, it is merged and released, and the fleet takes it, or not.

Real git, real Nix, a signed cache over HTTP, a control plane and three agents. Each claim is looked up in the remote
repository, the forge, the updater's answer or on the hosts before it is made.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from nixfleet.demo import forge as forges
from nixfleet.demo.builders import Builders, have_nats, start
from nixfleet.demo.foundry import NixFoundry, install
from nixfleet.demo.processes import run_command
from nixfleet.demo.repository import Repositories, environment_of
from nixfleet.demo.stage import DemoFailedError, Stage
from nixfleet.demo.world import NAMES, World, all_are, describe, enrol, is_in, prepared
from state_machine.values import Closure

INSTANCE = "nightly"


@attrs.define(kw_only=True)
class Loop:
    """The fleet of the other demo, with the repository its systems come from."""

    world: World
    forge: forges.Forge
    repositories: Repositories
    builders: Builders | None
    """None: no NATS server is installed, and hosts are built where they are asked for."""
    instances: Path

    @property
    def stage(self) -> Stage:
        """Where claims are made."""
        return self.world.stage

    def update(self) -> tuple[int, dict[str, Any]]:
        """`nixfleet update`: the exit status and the answer."""
        self.stage.command(f"nixfleet update --instances update.toml {INSTANCE}")
        words = ["nixfleet", "update", "--instances", str(self.instances), INSTANCE, "--json"]
        done = run_command(words, environment=self.repositories.environment)
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise DemoFailedError(f"nixfleet update ended with {done.returncode}: {done.stderr}") from None
        return done.returncode, answer

    def running(self) -> dict[str, Closure]:
        """What each host runs."""
        return {name: Closure(host.running()) for name, host in self.world.hosts.items()}


def play_loop(stage: Stage, place: Path) -> None:
    """All acts, and the processes stopped at the end, however it ends."""
    place.mkdir(parents=True, exist_ok=True)
    world = prepared(stage, place, use_nix=True, title="nixfleet: from flake.lock to the fleet, on this machine")
    with contextlib.ExitStack() as running:
        running.callback(world.close)
        forge = running.enter_context(forges.serving())
        loop = _prepared(world, forge)
        if loop.builders is not None:
            running.callback(loop.builders.close)
        for act in (_begin, _merged, _broken, _sick, _mended):
            act(loop)
    stage.end()


def _prepared(world: World, forge: forges.Forge) -> Loop:
    place, foundry = world.place, world.foundry
    assert isinstance(foundry, NixFoundry)
    environment = environment_of(foundry.builds(), foundry.root / "home")
    repositories = Repositories(root=place / "git", environment=environment)
    repositories.begin(describe(world.hosts, closure=None), "1.0")
    builders, key = None, world.keys / "cache.sec"
    if have_nats():
        builders = start(place / "builder", repositories.root / "fleet.git", foundry.copy_to, key, environment)
    where = "here: no nats-server is installed" if builders is None else "by a builder that is asked over NATS"
    world.stage.line(f"hosts are built {where}")
    return Loop(world=world, forge=forge, repositories=repositories, builders=builders, instances=place / "update.toml")


# --- act 1 ----------------------------------------------------------------------------------------------------------


def _begin(loop: Loop) -> None:
    stage, world = loop.stage, loop.world
    stage.act("A flake describes three hosts; its first release is built, signed and taken")
    words = _release_words(loop)
    stage.command("nixfleet release --flake . --cache http://cache")
    done = run_command(
        ["nixfleet", "release", "--flake", str(loop.repositories.fleet), "--json", *words],
        environment=loop.repositories.environment,
    )
    if done.returncode != 0:
        raise DemoFailedError(f"nixfleet release failed: {done.stderr}")
    first = {change["host"]: Closure(change["new"]) for change in json.loads(done.stdout)["changes"]}
    stage.claim(len(set(first.values())) == len(NAMES), "every host has a system of its own")
    checked = json.loads(done.stdout)["cacheCheck"]
    stage.claim(checked is not None, "and all that it needs is in the cache, signed by a key that hosts trust")
    if loop.builders is not None:
        stage.claim(loop.builders.log.count('"done"') >= len(NAMES), "the builder made all three", loop.builders.log)
    for name, host in world.hosts.items():
        install(world.foundry, host.directory, first[name])
    enrol(world)
    stage.claim(loop.running() == first, "three agents enrolled and converged on it")
    _write_instance(loop, words)


def _release_words(loop: Loop) -> list[str]:
    world = loop.world
    assert isinstance(world.foundry, NixFoundry)
    words = ["--ci-key", str(world.keys / "ci-release.pem"), "--releases-dir", str(world.releases)]
    words += ["--trust-file", str(world.trust), "--cache", world.foundry.cache_url]
    if loop.builders is not None:
        return [*words, "--builder", "nats", "--nats-url", loop.builders.url, "--repo", "fleet"]
    return [*words, "--copy-to", world.foundry.copy_to, "--cache-key-file", str(world.keys / "cache.sec")]


def _write_instance(loop: Loop, release: list[str]) -> None:
    world = loop.world
    token = world.place / "forge-token"
    token.write_text("demo\n")
    control_plane = {
        "--control-plane-url": world.control_plane.url,
        "--ca-cert": world.keys / "ca.pem",
        "--client-cert": world.keys / "operator.pem",
        "--client-key": world.keys / "operator-key.pem",
    }
    args = [*release, *(str(word) for pair in control_plane.items() for word in pair)]
    builders = loop.builders
    asked = (
        ""
        if builders is None
        else f'builder = "nats"\n[{INSTANCE}.nats]\nurl = "{builders.url}"\nrepository = "fleet"\n'
    )
    loop.instances.write_text(
        f"[{INSTANCE}]\nrepo-path = {json.dumps(str(loop.repositories.fleet))}\nauto-merge = true\n{asked}"
        f"[{INSTANCE}.release]\nargs = {json.dumps(args)}\n"
        f'[{INSTANCE}.forge]\nkind = "gitea"\nurl = "{loop.forge.url}/api/v1"\nrepository = "us/fleet"\n'
        f"token-file = {json.dumps(str(token))}\n"
    )


# --- act 2 ----------------------------------------------------------------------------------------------------------


def _merged(loop: Loop) -> None:
    stage = loop.stage
    stage.act("An input moves: every host is built, the lock is merged, the release goes out in waves")
    before = loop.repositories.main()
    loop.repositories.move("1.1")
    status, answer = loop.update()
    stage.claim((status, answer["outcome"]) == (0, "merged"), "all three systems build, and it is merged", str(answer))
    stage.claim(loop.repositories.main() == answer["commit"] != before, "the remote's main branch is what was built")
    _taken(loop, answer)


def _taken(loop: Loop, answer: Mapping[str, Any]) -> None:
    stage = loop.stage
    [rollout] = answer["released"]["rollouts"]
    stage.claim(rollout == f"stable@{answer['commit']}", f"released as {rollout[:15]}…, named after the commit")
    loop.world.until("the fleet to converge", all_are("Converged", rollout))
    wanted = {system["host"]: Closure(Path(system["path"]).name) for system in answer["systems"]}
    stage.claim(loop.running() == wanted, "each of the three agents runs the very closure that was built")


# --- act 3 ----------------------------------------------------------------------------------------------------------


def _broken(loop: Loop) -> None:
    stage = loop.stage
    stage.act("An input moves that breaks one host: nothing is merged, and the pull request says why")
    before, running = loop.repositories.main(), loop.running()
    loop.repositories.move("1.2", breaks="gamma")
    status, answer = loop.update()
    stage.claim((status, answer["outcome"]) == (1, "broken"), "gamma does not build: exit status 1", str(answer))
    stage.claim(loop.repositories.main() == before, "the main branch is where it was")
    request = loop.forge.requests[-1]
    stage.line(request["title"])
    stage.claim("services.web.port of gamma has no value" in request["body"], "the pull request has the end of the log")
    stage.claim(answer["released"] is None and loop.running() == running, "nothing was released, no host was touched")


# --- act 4 ----------------------------------------------------------------------------------------------------------


def _sick(loop: Loop) -> None:
    stage, canary = loop.stage, NAMES[0]
    stage.act("An input moves that builds everywhere, but makes the service sick")
    running = loop.running()
    loop.repositories.move("1.3", health="sick")
    _, answer = loop.update()
    [rollout] = answer["released"]["rollouts"]
    loop.world.until("the canary to roll back", lambda said: is_in(said, canary, "Reverted", rollout))
    stage.claim(loop.running() == running, "the canary rolled back by itself; the others were never touched")
    published = (loop.world.releases / "fleet.resolved.json").read_bytes()
    status, answer = loop.update()
    why = str(answer["released"]["why"])
    for line in why.splitlines()[:2]:
        stage.line(line)
    stage.claim(
        status == 5 and rollout in why and "rolled back" in why,
        "the updater's next run says which release is quarantined, and ends with 5",
        f"{status}: {answer}",
    )
    stage.claim(
        (loop.world.releases / "fleet.resolved.json").read_bytes() == published, "and does not release it again"
    )


# --- act 5 ----------------------------------------------------------------------------------------------------------


def _mended(loop: Loop) -> None:
    loop.stage.act("The input is mended: the loop goes on by itself")
    loop.repositories.move("1.4")
    status, answer = loop.update()
    loop.stage.claim((status, answer["outcome"]) == (0, "merged"), "it builds, and is merged", str(answer))
    _taken(loop, answer)
