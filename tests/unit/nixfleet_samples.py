"""A small fleet, keys from fixed seeds, and a way to run the command line: shared by the tests of `nixfleet`."""

import base64
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from evidence.host_key import HostKey
from evidence.trust import KeySlot, TrustedKey
from nixfleet.keys.certificates import private_pem
from nixfleet.keys.keyset import trust_bytes
from nixfleet.release.description import Description
from nixfleet.release.read import parse_description
from nixfleet.release.sign import KeyFileSigner, PrivateKey
from state_machine.values import WallMs
from wire.timestamps import parse_rfc3339

NOW = parse_rfc3339("2026-06-01T10:00:00Z")
HOUR_MS = 3_600_000
COMMIT = "4be0c1d2e3f4a5b6c7d8e9f00112233445566778"

CI_KEY = KeyFileSigner(key=Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER_KEY = KeyFileSigner(key=Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33))))
P256_KEY = KeyFileSigner(key=ec.derive_private_key(0xC0FFEE, ec.SECP256R1()))

HOST_KEYS = {name: HostKey(seed=name.encode().ljust(32, b".")) for name in ("node1", "node2", "node3", "db1")}


def closure(name: str, version: int = 1) -> str:
    """The base name of a store path that differs by name and version."""
    return f"{version:0>32}-nixos-system-{name}"


def document() -> dict[str, Any]:
    """A description as a file has it: two channels, three waves, one budget, edges of both kinds."""
    return {
        "hosts": {
            "node1": _host("node1", "stable", ["canary", "web"]),
            "node2": _host("node2", "stable", ["web"]),
            "db1": _host("db1", "stable", ["db"]),
            "node3": _host("node3", "edge", ["web"]),
        },
        "channels": {
            "stable": {"rolloutPolicy": "careful", "freshnessWindow": 240},
            "edge": {"rolloutPolicy": "quick", "freshnessWindow": 120, "signingIntervalMinutes": 30},
        },
        "rolloutPolicies": {
            "careful": {
                "strategy": "canary",
                "healthGate": {"systemdFailedUnits": {"max": 0}},
                "sustainedFailureSecs": 30,
                "waves": [
                    {"selector": {"tags": ["canary"]}, "soakMinutes": 30},
                    {"selector": {"tagsAny": ["web"]}, "soakSecs": 5},
                    {"selector": {"all": True}},
                ],
            },
            "quick": {"strategy": "all-at-once", "onHealthFailure": "halt"},
        },
        "edges": [{"gated": "db1", "gates": "node2", "reason": "schema first"}],
        "channelEdges": [{"gated": "stable", "gates": "edge"}],
        "disruptionBudgets": [{"selector": {"tagsAny": ["web"]}, "maxInFlight": 1}],
    }


def description(changes: dict[str, Any] | None = None) -> Description:
    """The description above, with top-level members replaced."""
    return parse_description({**document(), **(changes or {})})


def slot(*signers: KeyFileSigner) -> KeySlot:
    """A trust slot with these keys as current and previous."""
    current, *previous = [trusted(signer) for signer in signers]
    return KeySlot(current=current, previous=previous[0] if previous else None)


def trusted(signer: KeyFileSigner) -> TrustedKey:
    """A signer's key as `trust.json` writes it."""
    public = signer.public_key
    return TrustedKey(algorithm=public.algorithm.value, public=base64.b64encode(public.raw).decode())


def write_trust(path: Path, *signers: KeyFileSigner, **members: Any) -> Path:
    """A trust file whose CI slot holds these keys and these further members."""
    keys = [{"algorithm": trusted(each).algorithm, "public": trusted(each).public} for each in signers]
    ci_slot = dict(zip(("current", "previous"), keys, strict=False))
    path.write_bytes(trust_bytes({"schemaVersion": 1, "ciReleaseKey": {**ci_slot, **members}}))
    return path


def write_key(path: Path, key: PrivateKey) -> Path:
    """A private key file."""
    path.write_bytes(private_pem(key))
    return path


def later(hours: float) -> WallMs:
    """An instant after `NOW`."""
    return WallMs(NOW + int(hours * HOUR_MS))


def _host(name: str, channel: str, tags: list[str]) -> dict[str, Any]:
    return {
        "system": "x86_64-linux",
        "channel": channel,
        "tags": tags,
        "closure": f"/nix/store/{closure(name)}",
        "pubkey": HOST_KEYS[name].openssh_public,
    }
