"""Small genuine artifacts and the keys that sign them, for tests to take apart."""

import base64
import copy
import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from evidence.canonical import canonicalize, digest
from evidence.host_key import HostKey
from evidence.trust import KeySlot, TrustedKey
from state_machine.values import RolloutId, WallMs
from wire.timestamps import parse_rfc3339

CI = HostKey(seed=b"continuous integration signs all")
NEXT_CI = HostKey(seed=b"the key of continuous tomorrows!")
ORG = HostKey(seed=b"the organisation's root of trust")
STRANGER = HostKey(seed=b"nobody trusts this key, nor shou")

SIGNED_AT = "2026-06-01T10:00:00Z"
NOW = parse_rfc3339("2026-06-01T10:05:00Z")
CLOSURE = "0c5bz0123456789abcdfghijklmnpqrs-nixos-system-node7-25.11"
ROLLOUT = RolloutId("edge@4be0c1")

META: dict[str, Any] = {"schemaVersion": 1, "signedAt": SIGNED_AT, "ciCommit": "4be0c1"}
FLEET: dict[str, Any] = {
    "schemaVersion": 1,
    "hosts": {
        "node7": {
            "system": "x86_64-linux",
            "tags": ["web", "eu"],
            "channel": "edge",
            "closureHash": CLOSURE,
            "pubkey": None,
            "pin": {"commit": "00ff", "reason": "disk", "expiresAt": "2026-07-01T00:00:00+00:00"},
        },
        "node8": {"system": "aarch64-darwin", "tags": [], "channel": "edge", "closureHash": None, "pubkey": None},
    },
    "channels": {
        "edge": {
            "rolloutPolicy": "careful",
            "reconcileIntervalMinutes": 30,
            "freshnessWindow": 120,
            "signingIntervalMinutes": 60,
        }
    },
    "rolloutPolicies": {
        "careful": {
            "strategy": "canary",
            "waves": [
                {
                    "selector": {"tags": ["web"], "tagsAny": [], "hosts": [], "channel": None, "all": False},
                    "soakMinutes": 10,
                }
            ],
            "healthGate": {"systemdFailedUnits": {"max": 0}},
            "onHealthFailure": "rollback-and-halt",
        }
    },
    "waves": {"edge": [{"hosts": ["node7"], "soakMinutes": 10}, {"hosts": ["node8"], "soakMinutes": 0}]},
    "edges": [{"gated": "node8", "gates": "node7", "reason": "database first"}],
    "channelEdges": [{"gated": "edge", "gates": "stable", "reason": None}],
    "disruptionBudgets": [
        {
            "selector": {"tags": [], "tagsAny": ["eu"], "hosts": ["node8"], "channel": "edge", "all": False},
            "maxInFlight": 1,
            "maxInFlightPct": None,
        }
    ],
    "meta": META,
}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 1,
    "displayName": "edge@4be0c1",
    "channel": "edge",
    "channelRef": "4be0c1",
    "fleetResolvedHash": digest(canonicalize(FLEET)),
    "hostSet": [{"hostname": "node7", "waveIndex": 0, "targetClosure": CLOSURE}],
    "healthGate": {},
    "disruptionBudgets": [],
    "meta": META,
}
REVOCATIONS: dict[str, Any] = {
    "schemaVersion": 1,
    "revocations": [{"hostname": "node6", "notBefore": SIGNED_AT, "reason": "stolen", "revokedBy": None}],
    "meta": META,
}
NONCES: dict[str, Any] = {
    "schemaVersion": 1,
    "bootstrapNonces": [
        {
            "nonce": "00112233445566778899aabbccddeeff",
            "hostname": "node7",
            "expiresAt": "2026-06-02T00:00:00Z",
            "mintedAt": None,
            "mintedBy": "ops",
        }
    ],
    "meta": META,
}


def trusted(key: HostKey) -> TrustedKey:
    """A key as a trust file declares it."""
    return TrustedKey(algorithm="ed25519", public=base64.b64encode(key.public).decode())


SLOT = KeySlot(current=trusted(CI))


def signed(document: dict[str, Any], key: HostKey = CI) -> tuple[bytes, bytes]:
    """The document as somebody may have written it, not canonical, and the signature over its canonical form."""
    return json.dumps(document, indent=2).encode(), key.sign(canonicalize(document))


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with the member at `a/b/0` set; `...` takes it away."""
    copied: dict[str, Any] = copy.deepcopy(document)
    *way, last = [int(step) if step.isdecimal() else step for step in path.split("/")]
    place: Any = copied
    for step in way:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copied


class P256Signer:
    """A CI key of the other algorithm."""

    def __init__(self) -> None:
        self._secret = ec.derive_private_key(0x1234567890ABCDEF, ec.SECP256R1())

    @property
    def trusted(self) -> TrustedKey:
        """As a trust file declares it: X||Y."""
        numbers = self._secret.public_key().public_numbers()
        raw = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        return TrustedKey(algorithm="ecdsa-p256", public=base64.b64encode(raw).decode())

    def sign(self, message: bytes) -> bytes:
        """Raw R||S."""
        r, s = utils.decode_dss_signature(self._secret.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def at(text: str) -> WallMs:
    """An instant."""
    return parse_rfc3339(text)
