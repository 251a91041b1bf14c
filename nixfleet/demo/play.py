"""The acts of the demo. Each claim is looked up on the hosts or in the control plane before it is made."""

import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nixfleet.demo.foundry import Recipe, have_nix, install
from nixfleet.demo.processes import ControlPlane, run_command, wait_for
from nixfleet.demo.stage import DemoFailedError, Stage
from nixfleet.demo.world import NAMES, World, all_are, enrol, is_in, prepared
from state_machine.values import Closure

TITLE: Final = "nixfleet: a control plane and three hosts on this machine"


def play(stage: Stage, place: Path, *, use_nix: bool) -> None:
    """All acts, and the processes stopped at the end, however it ends."""
    place.mkdir(parents=True, exist_ok=True)
    world = prepared(stage, place, use_nix=use_nix and have_nix(), title=TITLE)
    try:
        for act in (_enrol, _waves, _forgery, _sickness, _crash, _audit):
            act(world)
    finally:
        world.close()
    stage.end()


# --- act 1 ----------------------------------------------------------------------------------------------------------


def _enrol(world: World) -> None:
    stage = world.stage
    stage.act("Three hosts enrol, each with a one-time token and its own SSH host key")
    first = world.foundry.make(Recipe(version="25.05"))
    for host in world.hosts.values():
        install(world.foundry, host.directory, first)
    world.release(first, ci_key=world.keys / "ci-release.pem", releases=world.releases)
    enrol(world)
    certificates = {host.certificate.read_bytes() for host in world.hosts.values()}
    stage.claim(len(certificates) == 3, "three certificates were issued, bound to three host keys, over TLS 1.3")
    _token_is_spent(world)
    stage.claim(
        all(host.switches() == [] for host in world.hosts.values()),
        "they already ran what the first release wants: soaked and probed, but not switched for nothing",
    )


def _token_is_spent(world: World) -> None:
    """Show the spent token to the control plane again, as a thief would."""
    import httpx

    token = json.loads(world.hosts[NAMES[0]].token.read_text())
    context = httpx.create_ssl_context(verify=str(world.keys / "ca.pem"))  # the demo's own CA
    body = {"token": token, "csrPem": "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"}
    answer = httpx.post(f"{world.control_plane.url}/v1/enroll", json=body, verify=context, trust_env=False)
    world.stage.claim(answer.status_code == 409, f"a token that was used is refused (HTTP {answer.status_code})")


# --- act 2 ----------------------------------------------------------------------------------------------------------


def _waves(world: World) -> None:
    stage = world.stage
    stage.act("A signed release goes out in waves: the canary soaks before the others move")
    good = world.foundry.make(Recipe(version="25.11"))
    rollout = world.release(good, ci_key=world.keys / "ci-release.pem", releases=world.releases)
    world.until("the canary to converge", lambda said: is_in(said, NAMES[0], "Converged", rollout))
    world.until("the fleet to converge", all_are("Converged", rollout))
    stage.claim(all(host.running() == good for host in world.hosts.values()), f"all three run {good[:12]}…-25.11")
    statuses = world.watch()
    canary = statuses[NAMES[0]]["rollout"]["since"]["converged"]
    others = [statuses[name]["rollout"]["since"]["acknowledged"] for name in NAMES[1:]]
    stage.claim(
        all(canary <= other for other in others), "no host of the second wave began before the canary converged"
    )


# --- act 3 ----------------------------------------------------------------------------------------------------------


def _forgery(world: World) -> None:
    stage = world.stage
    stage.act("The control plane is broken into: it routes a release signed by somebody else")
    before = {name: host.switches() for name, host in world.hosts.items()}
    forged_keys, forged = world.place / "attacker", world.place / "forged"
    run_command(["nixfleet", "keygen", "--out", str(forged_keys)])
    evil = world.foundry.make(Recipe(version="26.06-evil"))
    shutil.copytree(world.releases, forged)
    for path in [*forged.glob("*.json*"), *forged.glob("rollouts/*")]:
        path.unlink()
    rollout = world.release(evil, ci_key=forged_keys / "ci-release.pem", releases=forged)
    world.control_plane.process.stop()
    taken_over = world.control_plane.taken_over()
    taken_over.start(forged, forged_keys / "trust.json")
    _watch_refusals(world, taken_over)
    stage.claim(
        before == {name: host.switches() for name, host in world.hosts.items()},
        f"nothing was switched; {rollout[:15]}… is on the record of every host as refused",
    )
    world.control_plane.start(world.releases, world.trust)
    stage.line("the real control plane is back; its database is as it was before")


def _watch_refusals(world: World, taken_over: ControlPlane) -> None:
    try:
        _until_refused(world)
    finally:
        taken_over.process.stop()
    world.stage.claim(True, "every host refused it: bad-signature")


def _until_refused(world: World) -> None:
    wait_for(
        "the hosts to refuse",
        lambda: sum(_refused(status, "bad-signature") for status in world.watch().values()) == len(NAMES),
        45,
    )


def _refused(status: Mapping[str, Any], reason: str) -> bool:
    return any(note["what"].startswith(reason) for note in status["refusals"])


# --- act 4 ----------------------------------------------------------------------------------------------------------


def _sickness(world: World) -> None:
    stage = world.stage
    stage.act("A release that builds and switches, but whose service is sick")
    healthy = world.hosts[NAMES[0]].running()
    untouched = {name: world.hosts[name].switches() for name in NAMES[1:]}
    sick = world.foundry.make(Recipe(version="26.05", healthy=False))
    rollout = world.release(sick, ci_key=world.keys / "ci-release.pem", releases=world.releases)
    world.until("the canary to roll back", lambda said: is_in(said, NAMES[0], "Reverted", rollout))
    canary = world.hosts[NAMES[0]]
    stage.claim(canary.running() == healthy, "the canary is back on the system it ran before")
    remembered = [entry["closure"] for entry in world.watch()[NAMES[0]]["quarantine"]]
    stage.claim(remembered == [sick], "and remembers the closure that made it sick")
    stage.claim(
        untouched == {name: world.hosts[name].switches() for name in NAMES[1:]}, "the second wave was never touched"
    )
    _not_again(world, sick)


def _not_again(world: World, sick: Closure) -> None:
    """The same closure under a new release: the fleet's planner holds it, and so would the host."""
    switches = world.hosts[NAMES[0]].switches()
    world.release(sick, ci_key=world.keys / "ci-release.pem", releases=world.releases, new_rollout=True)
    time.sleep(3)
    world.stage.claim(
        world.hosts[NAMES[0]].switches() == switches, "released again under another name, it is not tried again"
    )


# --- act 5 ----------------------------------------------------------------------------------------------------------


def _crash(world: World) -> None:
    stage = world.stage
    stage.act("The next release is good; one agent dies by kill -9 in the middle of its switch")
    good = world.foundry.make(Recipe(version="26.05.1", seconds=2))
    rollout = world.release(good, ci_key=world.keys / "ci-release.pem", releases=world.releases)
    victim = world.hosts["beta"]
    world.until("beta's switch to begin", lambda said: victim.switches()[-1:] == [good])
    pid = victim.process.child.pid if victim.process.child else 0
    victim.process.kill()
    stage.saw("beta", f"agent killed (kill -9 {pid}) while the switch runs", "red")
    stage.claim(victim.running() != good, "the switch had begun and was not over")
    victim.start()
    stage.saw("beta", "agent started again")
    world.until("the fleet to converge", all_are("Converged", rollout))
    stage.claim(
        victim.switches().count(good) == 1, "beta finished the rollout from its journal; it switched once, not twice"
    )
    stage.claim(all(host.running() == good for host in world.hosts.values()), "all three run the good release")


# --- act 6 ----------------------------------------------------------------------------------------------------------


def _audit(world: World) -> None:
    stage = world.stage
    stage.act("An auditor, with nothing but public keys")
    exports = world.place / "audit"
    exports.mkdir()
    for name, host in world.hosts.items():
        done = host.command("journal", "export", str(exports / name))
        if done.returncode != 0:
            raise DemoFailedError(f"journal export failed on {name}: {done.stderr}")
    stage.command("nixfleet audit verify audit --trust-file trust.json")
    done = run_command(["nixfleet", "audit", "verify", str(exports), "--trust-file", str(world.trust)])
    for line in done.stdout.splitlines():
        stage.line(line)
    stage.claim(
        done.returncode == 0, "every entry is signed and chained, every switch traces to a signed manifest", done.stderr
    )
    _ssh_keygen(stage, exports / NAMES[0])
    _tamper(world, exports)


def _ssh_keygen(stage: Stage, export: Path) -> None:
    tool = shutil.which("ssh-keygen")
    if tool is None:
        stage.line("ssh-keygen is not installed here; it would have verified the export without our software")
        return
    words = [tool, "-Y", "verify", "-f", "allowed_signers", "-I", export.name, "-n", "nixfleet-journal@1"]
    with open(export / "entries.jsonl", "rb") as entries:
        done = subprocess.run(
            [*words, "-s", "entries.jsonl.sig"], cwd=export, stdin=entries, capture_output=True, text=True, check=False
        )
    stage.command(
        f"ssh-keygen -Y verify -f allowed_signers -I {export.name} -n nixfleet-journal@1 -s entries.jsonl.sig"
    )
    stage.claim(done.returncode == 0, "stock ssh-keygen agrees, with no software of ours", done.stderr + done.stdout)


def _tamper(world: World, exports: Path) -> None:
    copy = world.place / "tampered"
    shutil.copytree(exports / NAMES[0], copy)
    entries = copy / "entries.jsonl"
    entries.write_text(entries.read_text().replace("RollbackComplete", "Converged", 1))
    done = run_command(["nixfleet", "audit", "verify", str(copy), "--trust-file", str(world.trust)])
    reason = (done.stderr or done.stdout).strip().splitlines()
    world.stage.claim(done.returncode == 1, "history rewritten in one word is found out", done.stdout)
    if reason:
        world.stage.line(reason[0])
