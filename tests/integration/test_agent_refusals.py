"""Intent that must not be acted on, served by a control plane that does not care: what the agent makes of each.

Every refusal is found under its slug in the journal, on the wire, in the metrics and in the status; nothing is
switched, and the next honest release goes through.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from control_plane.clock import wall_now
from evidence.documents import encode as encode_document
from evidence.host_key import generate_host_key
from state_machine.values import Closure, HostName, WallMs
from tests.agentlab import Agent, AgentFleet
from tests.cplab import closure, slot
from tests.liar import Liar, flood, status
from wire.timestamps import format_rfc3339

DAY_MS: Final = 86_400_000
Order = tuple[str, str]
"""The rollout and the closure that the control plane routes."""


@attrs.define(kw_only=True)
class World:
    """What a case may spoil."""

    fleet: AgentFleet
    liar: Liar
    good: Closure

    def release(self, **changes: Any) -> str:
        return self.fleet.release(None, {"web1": self.good}, **changes)

    def path(self, rollout: str, *, sig: bool = False) -> Path:
        return self.fleet.artifacts / "rollouts" / (f"{rollout}.json" + (".sig" if sig else ""))

    def resign(self, rollout: str, change: Callable[[Any], None], **options: Any) -> None:
        """The manifest with a change, signed by the real key."""
        document = json.loads(self.path(rollout).read_bytes())
        change(document)
        self.fleet.sign(f"rollouts/{rollout}.json", document, **options)


def unknown_key(world: World) -> Order:
    rollout = world.release()
    world.resign(rollout, lambda document: None, key=generate_host_key())
    return rollout, world.good


def one_byte(world: World) -> Order:
    rollout = world.release()
    data = world.path(rollout).read_bytes()
    world.path(rollout).write_bytes(data.replace(world.good[:4].encode(), closure("evil")[:4].encode()))
    return rollout, world.good


def signature_of(length: int) -> Callable[[World], Order]:
    def spoil(world: World) -> Order:
        rollout = world.release()
        path = world.path(rollout, sig=True)
        path.write_bytes((path.read_bytes() + b"\0")[:length])
        return rollout, world.good

    return spoil


def another_closure(world: World) -> Order:
    return world.release(), closure("evil")


def another_rollouts_manifest(world: World) -> Order:
    rollout, other = world.release(), world.release()
    for sig in (False, True):
        world.path(rollout, sig=sig).write_bytes(world.path(other, sig=sig).read_bytes())
    return rollout, world.good


def not_this_host(world: World) -> Order:
    world.fleet.keys[HostName("web2")] = generate_host_key()
    world.fleet.hosts = (HostName("web1"), HostName("web2"))
    return world.fleet.release(None, {"web2": world.good}), world.good


def another_fleet(world: World) -> Order:
    """Mix and match: the manifest is anchored to a fleet whose policies are not the ones served."""
    rollout = world.release()
    softer = world.fleet.fleet("0abc", targets={HostName("web1"): world.good}, rollout_policies={})
    world.fleet.sign("fleet.resolved.json", encode_document(softer))
    return rollout, world.good


def stale(world: World) -> Order:
    return world.release(signed_at=WallMs(wall_now() - 2 * DAY_MS)), world.good


def from_the_future(world: World) -> Order:
    return world.release(signed_at=WallMs(wall_now() + 600_000)), world.good


def older_than_the_newest(world: World) -> Order:
    older = world.release(signed_at=WallMs(wall_now() - 60_000))
    kept = _artifacts(world.fleet)
    newer = world.release()
    world.liar.until("the newer one to be fetched", lambda: _fetched(world.liar, newer))
    for path, data in kept.items():
        path.write_bytes(data)
    return older, world.good


def before_a_break_in(world: World) -> Order:
    rollout = world.release(signed_at=WallMs(wall_now() - 60_000))
    world.fleet.write_trust(ci=slot(world.fleet.ci, rejectBefore=format_rfc3339(WallMs(wall_now() - 30_000))))
    return rollout, world.good


def never_signed(world: World) -> Order:
    rollout = world.release()
    world.resign(rollout, lambda document: document["meta"].update(signedAt=None))
    return rollout, world.good


def another_schema(world: World) -> Order:
    rollout = world.release()
    world.resign(rollout, lambda document: document.update(schemaVersion=2))
    return rollout, world.good


def member_twice(world: World) -> Order:
    rollout = world.release()
    data = world.path(rollout).read_bytes()[:-1] + b',"channel":"stable"}'
    world.path(rollout).write_bytes(data)
    world.path(rollout, sig=True).write_bytes(world.fleet.ci.sign(data))
    return rollout, world.good


def unheard_of(world: World) -> Order:
    world.release()
    return "stable@dead", world.good


def only_keys_of_the_future(fleet: AgentFleet) -> None:
    fleet.write_trust(ci={"current": {"algorithm": "rot13", "public": "AAAA"}})


def half_a_trust_file(fleet: AgentFleet) -> None:
    path = fleet.path("trust.json")
    path.write_bytes(path.read_bytes()[:100])


def no_trust_file(fleet: AgentFleet) -> None:
    fleet.path("trust.json").unlink()


def a_trust_file_of_the_future(fleet: AgentFleet) -> None:
    fleet.write_trust(schemaVersion=9)


CASES: Final = (
    (unknown_key, "bad-signature"),
    (one_byte, "bad-signature"),
    (signature_of(63), "bad-signature"),
    (another_closure, "manifest-mismatch"),
    (another_rollouts_manifest, "manifest-mismatch"),
    (not_this_host, "manifest-mismatch"),
    (another_fleet, "manifest-mismatch"),
    (stale, "stale"),
    (from_the_future, "future-dated"),
    (older_than_the_newest, "superseded"),
    (before_a_break_in, "rejected-before"),
    (never_signed, "not-signed"),
    (another_schema, "schema-version"),
    (member_twice, "parse"),
    (unheard_of, "missing"),
)


COULD_POISON: Final = (another_fleet, from_the_future, before_a_break_in, member_twice)
"""After these an honest release must go through all the same."""


@pytest.mark.parametrize(("spoil", "slug"), CASES, ids=[f"{slug}-{number}" for number, (_, slug) in enumerate(CASES)])
def test_it_is_refused_by_name_and_nothing_is_switched(
    tmp_path: Path, spoil: Callable[[World], Order], slug: str
) -> None:
    fleet = AgentFleet(tmp_path)
    first, good = fleet.system(), fleet.system()
    fleet.publish("ba5e", targets={HostName("web1"): first}, signed_at=WallMs(wall_now() - 3 * DAY_MS))
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first, metrics_port=0)
        with agent.running():
            rollout, target = spoil(World(fleet=fleet, liar=liar, good=good))
            liar.dispatch("web1", rollout, target)
            liar.until("the rejection", lambda: "DispatchReject" in liar.told(rollout))
            assert liar.facts[rollout][-1]["reason"] == slug
            assert liar.told(rollout) == ["TargetRefused", "DispatchReject"]
            assert agent.fact_kinds(rollout) == ["TargetRefused", "DispatchReject"]
            said = agent.until_ready()
            assert any(note["what"] == f"{slug} {rollout}" for note in said["refusals"]), said["refusals"]
            assert (agent.metric("nixfleet_agent_refusals_total", reason=slug) or 0) >= 1
            agent.until_logged("refused", reason=slug, rollout=rollout)
            assert agent.switches() == []
            if spoil in COULD_POISON:
                fleet.write_trust()
                honest = fleet.release(None, {"web1": good})
                liar.dispatch("web1", honest, good)
                agent.until_settled(honest, "Converged")
                assert agent.switches() == [good]


@pytest.mark.parametrize(
    "spoil", [only_keys_of_the_future, half_a_trust_file, no_trust_file, a_trust_file_of_the_future]
)
def test_a_host_that_trusts_nobody_refuses_and_waits_for_its_trust_file(
    tmp_path: Path, spoil: Callable[[AgentFleet], None]
) -> None:
    """This is the host's own trouble, so the dispatch is held and not rejected."""
    fleet = AgentFleet(tmp_path)
    first, good = fleet.system(), fleet.system()
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first)
        with agent.running():
            agent.until_ready()
            # First the trust, then the release: a poll in between would prove it with the keys of before.
            spoil(fleet)
            rollout = World(fleet=fleet, liar=liar, good=good).release()
            liar.dispatch("web1", rollout, good)
            agent.until_status("it to be held", lambda said: rollout in (said["waiting_on"] or ""))
            fleet.write_trust()
            agent.poke()
            agent.until_settled(rollout, "Converged")
            assert liar.told(rollout)[0] == "DispatchAck"


MISROUTED: Final = (
    {"hostname": "web2"},
    {"rollout_id": "../../etc/passwd"},
    {"target_closure": "../../evil"},
    {"kind": "rollback", "rollout_id": "stable@dead"},
)


def test_what_could_be_a_path_or_somebody_elses_never_gets_past_the_first_look(tmp_path: Path) -> None:
    """Which texts are rollout ids and closures is tested where it is decided."""
    fleet = AgentFleet(tmp_path)
    first, good = fleet.system(), fleet.system()
    rollout = fleet.release(None, {"web1": good})
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first, poll_interval=600)
        for members in MISROUTED:
            liar.route("web1", {"hostname": "web1", "rollout_id": rollout, "target_closure": good, **members})
        with agent.running():
            agent.until_reached("intent")
            fetched = liar.count("rollout")
            agent.until("all refusals", lambda: len(_refusals(agent)) == len(MISROUTED))
            # Not a file, not a fact, not a fetch came of it.
            assert liar.count("rollout") == fetched
            assert not liar.facts
            liar.dispatch("web1", rollout, good)
            agent.until_settled(rollout, "Converged")
    assert agent.switches() == [good]


def _refusals(agent: Agent) -> list[str]:
    return [line["reason"] for line in agent.log() if line["message"] == "refused"]


def test_a_rollback_wish_is_honoured_once_however_often_it_comes(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    first, good = fleet.system(), fleet.system()
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first)
        with agent.running():
            rollout = fleet.release(None, {"web1": good})
            liar.dispatch("web1", rollout, good)
            agent.until_settled(rollout, "Converged")
            wish = status(
                200,
                json.dumps(
                    {
                        "hostname": "web1",
                        "rollout_id": rollout,
                        "target_closure": good,
                        "kind": "rollback",
                        "reason": "it is slow",
                    }
                ).encode(),
            )
            liar.says["dispatch"] = wish
            agent.until_settled(rollout, "Reverted")
            liar.until_asked("dispatch", 2)
            assert agent.switches() == [good, first]
            assert liar.told(rollout)[-2:] == ["RollbackRequested", "RollbackComplete"]
            said = agent.until_ready()
            assert [entry["closure"] for entry in said["quarantine"]] == [good]
            assert "it is slow" in said["quarantine"][0]["why"]


def test_artifacts_without_end_are_cut_off_and_the_host_goes_on(tmp_path: Path) -> None:
    fleet = AgentFleet(tmp_path)
    first, good = fleet.system(), fleet.system()
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first)
        liar.says["rollout"] = flood(b'{"schemaVersion":1')
        with agent.running():
            rollout = fleet.release(None, {"web1": good})
            liar.dispatch("web1", rollout, good)
            agent.until_failed("intent", because="longer than 8388608 bytes")
            del liar.says["rollout"]
            agent.poke()
            agent.until_settled(rollout, "Converged")


def test_the_same_manifest_for_ever_becomes_stale_and_the_running_system_stays(tmp_path: Path) -> None:
    """Indefinite freeze: the window ends, and status says so."""
    fleet = AgentFleet(tmp_path)
    first = fleet.system()
    # A window of one minute and a minute of slack, of which ten seconds are left.
    short = fleet.fleet("0f00", targets={HostName("web1"): first}, signed_at=WallMs(wall_now() - 110_000))
    channels = {name: attrs.evolve(channel, freshness_window=1) for name, channel in short.channels.items()}
    fleet.publish("0f00", fleet=attrs.evolve(short, channels=channels))
    with Liar(fleet) as liar:
        agent = fleet.agent("web1", liar.url, running=first, metrics_port=0)
        with agent.running():
            agent.until_status("fresh intent", lambda said: said["intent"] and said["intent"]["state"] == "fresh")
            agent.until_status("stale intent", lambda said: said["intent"]["state"] == "stale")
            assert (agent.metric("nixfleet_agent_manifest_fresh_seconds") or 0) < 0
            liar.dispatch("web1", "stable@0f00", first)
            liar.until("the rejection", lambda: "DispatchReject" in liar.told("stable@0f00"))
            assert liar.facts["stable@0f00"][-1]["reason"] == "stale"
    assert agent.switches() == []


def _artifacts(fleet: AgentFleet) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in fleet.artifacts.rglob("*.json*")}


def _fetched(liar: Liar, rollout: str) -> bool:
    return any(rollout in seen.target for seen in liar.requests("rollout-sig"))
