"""Table A, signed intent: whatever is served and routed in its place, one agent takes it all and switches to none."""

from collections.abc import Iterator

import attrs
import pytest

from control_plane.clock import wall_now
from evidence.documents import encode as encode_document
from evidence.host_key import generate_host_key
from state_machine.intent import FleetChannel
from state_machine.values import Channel, HostName, WallMs
from tests.cplab import closure, public_key, slot
from tests.hostile.siege import HOST, Siege
from wire.timestamps import format_rfc3339


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with Siege.laid(tmp_path_factory.mktemp("intent")) as siege:
        yield siege


def test_arbitrary_installation_of_another_closure(siege: Siege) -> None:
    with siege.withstands():
        siege.refuses("manifest-mismatch", (siege.release(), closure("evil")))


def test_wrong_software(siege: Siege) -> None:
    with siege.withstands():
        rollout, other = siege.release(), siege.release()
        for sig in (False, True):
            siege.path(rollout, sig=sig).write_bytes(siege.path(other, sig=sig).read_bytes())
        siege.refuses("manifest-mismatch", (rollout, siege.good))

        of_another_host = siege.fleet.release(None, {"web2": siege.good})
        siege.refuses("manifest-mismatch", (of_another_host, siege.good))

        rollout = _with_another_channel(siege)
        edge = rollout.replace("stable@", "edge@")
        siege.refuses("manifest-mismatch", (edge, siege.good))
        for sig in (False, True):
            siege.path(rollout, sig=sig).write_bytes(siege.path(edge, sig=sig).read_bytes())
        siege.refuses("manifest-mismatch", (rollout, siege.good))


def _with_another_channel(siege: Siege) -> str:
    """A release in which web2 gets the target by a channel of its own; the rollout of this host's channel."""
    commit = siege.fleet.commit()
    plain = siege.fleet.fleet(commit, targets={HostName(HOST): closure("mine"), HostName("web2"): siege.good})
    edge = Channel("edge")
    hosts = {**plain.hosts, HostName("web2"): attrs.evolve(plain.hosts[HostName("web2")], channel=edge)}
    channels = {**plain.channels, edge: FleetChannel(rollout_policy="careful", freshness_window=1440)}
    [wave] = plain.waves[Channel("stable")]
    waves = {Channel("stable"): (attrs.evolve(wave, hosts=(HostName(HOST),)),),
             edge: (attrs.evolve(wave, hosts=(HostName("web2"),)),)}  # fmt: skip
    siege.fleet.publish(commit, fleet=attrs.evolve(plain, hosts=hosts, channels=channels, waves=waves))
    return f"stable@{commit}"


def test_rollback_to_older_intent(siege: Siege) -> None:
    with siege.withstands():
        never_seen = siege.release(signed_at=siege.ago(3600))
        siege.refuses("superseded", (never_seen, siege.good))


def test_rollback_to_intent_that_this_host_once_acted_on(siege: Siege) -> None:
    done = siege.agent.until_ready()["rollout"]
    kept = siege.kept()
    siege.recovers()
    with siege.withstands():
        for path, data in kept.items():
            path.write_bytes(data)
        before = siege.refusals("superseded")
        siege.liar.dispatch(HOST, done["id"], done["target"])
        siege.agent.poke()
        siege.until_counted("superseded", before)
        siege.assert_on_record("superseded", done["id"])


def test_indefinite_freeze(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Siege.laid(tmp_path_factory.mktemp("freeze"), signed_at=WallMs(wall_now() - 1_800_000)) as siege:
        # A window of one minute and a minute of slack, of which three seconds are left.
        commit = siege.fleet.commit()
        short = siege.fleet.fleet(commit, targets={HostName(HOST): siege.good}, signed_at=siege.ago(117))
        channels = {name: attrs.evolve(channel, freshness_window=1) for name, channel in short.channels.items()}
        siege.fleet.publish(commit, fleet=attrs.evolve(short, channels=channels))
        with siege.withstands():
            siege.agent.until_status("fresh intent", lambda said: said["intent"]["state"] == "fresh")
            siege.agent.until_status("stale intent", lambda said: said["intent"]["state"] == "stale")
            assert (siege.agent.metric("nixfleet_agent_manifest_fresh_seconds") or 0) < 0
            siege.refuses("stale", (f"stable@{commit}", siege.good))
            assert siege.agent.until_ready()["probes"][0]["status"] == "pass"


def test_fast_forward(siege: Siege) -> None:
    with siege.withstands():
        rollout = siege.release(signed_at=siege.ago(-600))
        siege.refuses("future-dated", (rollout, siege.good))


def test_mix_and_match(siege: Siege) -> None:
    with siege.withstands():
        older = siege.release()
        kept = siege.kept()
        policies = siege.fleet.fleet(siege.fleet.commit(), targets={HostName(HOST): siege.good}, rollout_policies={})
        siege.fleet.sign("fleet.resolved.json", encode_document(policies))
        siege.refuses("manifest-mismatch", (older, siege.good))

        newer = siege.release()
        for path, data in kept.items():
            if path.name.startswith("fleet.resolved"):
                path.write_bytes(data)
        siege.refuses("manifest-mismatch", (newer, siege.good))


def test_key_compromise(siege: Siege) -> None:
    try:
        with siege.withstands():
            rollout = siege.release()
            siege.until_fetched(rollout)
            siege.agent.until_status("it to be known", lambda said: said["intent"]["rollout"] == rollout)
            siege.fleet.write_trust(ci=slot(siege.fleet.ci, rejectBefore=format_rfc3339(siege.ago(0))))
            siege.refuses("rejected-before", (rollout, siege.good))
        # The honest release after it was signed by the same key, after the incident.
    finally:
        siege.fleet.write_trust()


def test_key_rotation(siege: Siege) -> None:
    old, new = siege.fleet.ci, generate_host_key()
    siege.fleet.write_trust(ci=slot(new, previous=public_key(old)))
    siege.recovers()
    siege.fleet.ci = new
    siege.recovers()
    siege.fleet.write_trust(ci=slot(new))
    with siege.withstands():
        siege.fleet.ci = old
        rollout = siege.release()
        siege.refuses("bad-signature", (rollout, siege.good))
        siege.fleet.ci = new
