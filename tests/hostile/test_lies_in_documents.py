"""Table A, bytes and signatures: whatever is wrong with them, one agent takes it all and switches to none."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import pytest

from evidence.host_key import generate_host_key
from tests.cplab import closure, public_key
from tests.hostile.siege import HOST, SPOILED, Siege

_ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""Of the base point of ed25519 (RFC 8032 section 5.1)."""


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with Siege.laid(tmp_path_factory.mktemp("documents")) as siege:
        yield siege


def test_arbitrary_installation_under_a_signature_that_proves_nothing(siege: Siege) -> None:
    with siege.withstands():
        rollout = siege.release()
        siege.resign(rollout, lambda document: None, key=generate_host_key())
        siege.refuses("bad-signature", (rollout, siege.good))

        rollout = siege.release()
        altered = siege.path(rollout).read_bytes().replace(siege.good[:4].encode(), closure("evil")[:4].encode())
        siege.path(rollout).write_bytes(altered)
        siege.refuses("bad-signature", (rollout, siege.good))

        rollout = siege.release()
        fleets = siege.fleet.artifacts / "fleet.resolved.json.sig"
        siege.path(rollout, sig=True).write_bytes(fleets.read_bytes())
        siege.refuses("bad-signature", (rollout, siege.good))

        for length in (0, 1, 63, 65):
            rollout = siege.release()
            path = siege.path(rollout, sig=True)
            path.write_bytes((path.read_bytes() + b"\0")[:length])
            siege.refuses("bad-signature", (rollout, siege.good))


def test_algorithm_confusion(siege: Siege) -> None:
    stranger = generate_host_key()

    def claims_and_brings(document: Any) -> None:
        document["meta"] |= {"signatureAlgorithm": "ed25519", "publicKey": public_key(stranger)["public"]}
        document["ciReleaseKey"] = {"current": public_key(stranger)}

    with siege.withstands():
        rollout = siege.release()
        siege.resign(rollout, claims_and_brings, key=stranger)
        siege.refuses("bad-signature", (rollout, siege.good))
        for claim in ("none", "HS256", "ecdsa-p256"):
            rollout = siege.release()
            siege.resign(rollout, partial(_claim, claim))
            siege.refuses("unsupported-algorithm", (rollout, siege.good))


def _claim(algorithm: str, document: Any) -> None:
    document["meta"]["signatureAlgorithm"] = algorithm


def test_forged_and_doubled_signatures(siege: Siege) -> None:
    with siege.withstands():
        rollout = siege.release()
        path = siege.path(rollout, sig=True)
        honest = path.read_bytes()
        beyond = int.from_bytes(honest[32:], "little") + _ORDER
        path.write_bytes(honest[:32] + beyond.to_bytes(32, "little"))
        siege.refuses("bad-signature", (rollout, siege.good))
        for commitment in (bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"):
            rollout = siege.release()
            siege.path(rollout, sig=True).write_bytes(commitment + bytes(32))
            siege.refuses("bad-signature", (rollout, siege.good))


def test_prototype_abuse_in_what_is_signed(siege: Siege) -> None:
    with siege.withstands():
        for start in SPOILED.values():
            rollout = siege.release()
            siege.write(rollout, start + siege.path(rollout).read_bytes()[1:])
            siege.refuses("parse", (rollout, siege.good))
        for change in ({"hostSet": None}, {"hostSet": 7}, {"channel": ["stable"]}):
            rollout = siege.release()
            siege.resign(rollout, partial(_update, change))
            siege.refuses("parse", (rollout, siege.good))
        rollout = siege.release()
        siege.resign(rollout, lambda document: document.pop("channelRef"))
        siege.refuses("parse", (rollout, siege.good))


def _update(change: dict[str, Any], document: Any) -> None:
    document.update(change)


def test_unknown_members_of_what_is_signed_are_ignored(siege: Siege) -> None:
    switches, rollout = siege.agent.switches(), siege.release()
    siege.resign(rollout, lambda document: document.update({"__proto__": {"admin": True}, "mood": json.loads("[1]")}))
    siege.liar.dispatch(HOST, rollout, siege.good)
    siege.agent.until_settled(rollout, "Converged")
    assert siege.agent.switches() == [*switches, siege.good]
    siege.good = siege.fleet.system()
