"""What hosts say, signed and written beforehand where it can be, so that saying it costs the client next to nothing."""

import json
import zlib
from collections.abc import Sequence

import attrs

from evidence.canonical import canonicalize
from evidence.host_key import HostKey
from state_machine.facts import Fact
from state_machine.values import Closure, HostName, ProbeStatus, RolloutId, WallMs
from tests.cplab import acknowledged, activated, converged, probed
from wire.codec import encode, encode_fact
from wire.messages import HeartbeatRequest


@attrs.frozen(kw_only=True)
class Written:
    """A fact in its envelope as it goes on the wire, and the checksum of its signed text."""

    body: bytes
    checksum: int


def story(running: Closure, target: Closure, at: WallMs, *, converges: bool) -> list[Fact]:
    """Everything a host tells of a rollout that goes well, in the order of a real agent."""
    end = converged(target, at) if converges else probed(ProbeStatus.PASS, at)
    return [acknowledged(running, at), *activated(target, at), *end]


def written(host: HostName, key: HostKey, rollout_id: RolloutId, facts: Sequence[Fact], first: int) -> list[Written]:
    """The facts under the numbers from `first` on."""
    return [_written(host, key, rollout_id, attrs.evolve(fact, seq=first + n)) for n, fact in enumerate(facts)]


def _written(host: HostName, key: HostKey, rollout_id: RolloutId, fact: Fact) -> Written:
    event = encode_fact(fact)
    text = canonicalize(event)
    document = {"hostname": host, "rolloutId": rollout_id, "event": event, "signature": key.sign(text).hex()}
    return Written(body=json.dumps(document, separators=(",", ":")).encode(), checksum=zlib.crc32(text))


def heartbeat(host: HostName, running: Closure, last: dict[RolloutId, int], at: WallMs) -> bytes:
    """A heartbeat as an agent sends it."""
    request = HeartbeatRequest(
        hostname=host,
        at=at,
        current_closure=running,
        agent_version="0.1.0",
        uptime_secs=at // 1000 % 86_400,
        last_event_seq_by_rollout=last,
        health={"pass": 3},
        boot_id="11111111-2222-3333-4444-555555555555",
    )
    return json.dumps(encode(request), separators=(",", ":")).encode()
