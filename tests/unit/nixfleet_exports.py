"""Journal exports made by hand, link by link, so that a test can spoil any part of one."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import attrs

from evidence.artifacts import verify_fleet, verify_manifest
from evidence.chain import GENESIS, Anchor, SealedEntry, seal
from evidence.host_key import HostKey
from evidence.project import project
from evidence.sshsig import allowed_signers_line, sign
from nixfleet.release.publish import publish_release
from state_machine.events import Event, IntentVerified, SystemObserved, VerifiedIntent
from state_machine.facts import (
    ActivationCompleted,
    ActivationStarted,
    Converged,
    DispatchAck,
    Fact,
    RolloutFact,
)
from state_machine.system import SystemView
from state_machine.values import Closure, HostName, Moment, RolloutId, SwitchMethod, WallMs
from tests.unit.nixfleet_samples import CI_KEY, COMMIT, HOST_KEYS, NOW, closure, description, slot
from wire.json_value import JsonObject
from wire.records import encode_event, encode_rollout_fact

OLD = Closure(closure("old"))
STABLE = RolloutId(f"stable@{COMMIT}")


def moment(seconds: float) -> Moment:
    """So many seconds after the release."""
    return Moment(wall_ms=WallMs(NOW + int(seconds * 1000)), mono_ms=int(seconds * 1000))


def looked(seconds: float) -> Event:
    """An event that means nothing to an auditor."""
    return SystemObserved(at=moment(seconds), system=SystemView(boot_id="boot", running=OLD))


@attrs.define(kw_only=True)
class Writer:
    """Writes the journal of `host`: entries in order, then the export of them."""

    directory: Path
    host: str = "node1"
    key: HostKey
    head: Anchor = GENESIS
    entries: list[SealedEntry] = attrs.field(factory=list)

    def add(self, event: Event, *facts: Fact, rollout: RolloutId = STABLE) -> None:
        """One entry: an event with the facts it produced."""
        encoded = [encode_rollout_fact(RolloutFact(rollout_id=rollout, fact=fact)) for fact in facts]
        self.add_raw({"event": encode_event(event), "facts": [*encoded]})

    def add_raw(self, members: JsonObject) -> None:
        """One entry with any content."""
        body: JsonObject = {
            "n": self.head.n + 1,
            "prev": self.head.hash.hex(),
            "host": self.host,
            "journal": "0" * 32,
            **members,
        }
        entry = seal(self.key, body)
        self.entries.append(entry)
        self.head = entry.anchor

    def export(self, entries: list[SealedEntry] | None = None) -> Path:
        """Write the export; `entries` stands in for what was added, where a test spoils it."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lines = [
            json.dumps({"body": entry.body.decode(), "signature": entry.signature.hex()}) + "\n"
            for entry in (self.entries if entries is None else entries)
        ]
        content = "".join(lines).encode()
        (self.directory / "entries.jsonl").write_bytes(content)
        (self.directory / "entries.jsonl.sig").write_text(sign(self.key, content))
        (self.directory / "host.pub").write_text(f"{self.key.openssh_public}\n")
        (self.directory / "allowed_signers").write_text(f"{allowed_signers_line(self.host, self.key.public)}\n")
        return self.directory


def write_artifacts(releases: Path, directory: Path) -> None:
    """Put a release's manifests and fleet into an export under their digests."""
    (directory / "artifacts").mkdir(parents=True, exist_ok=True)
    for path in (releases / "fleet.resolved.json", *releases.glob("rollouts/*.json")):
        name = f"{hashlib.sha256(path.read_bytes()).hexdigest()}.json"
        (directory / "artifacts" / name).write_bytes(path.read_bytes())
        signature = path.with_name(f"{path.name}.sig").read_bytes()
        (directory / "artifacts" / f"{name}.sig").write_bytes(signature)


def intent_for(releases: Path, host: str, rollout: str = f"stable@{COMMIT}") -> VerifiedIntent:
    """What the host proves from the published release."""

    def pair(name: str) -> tuple[bytes, bytes]:
        return (releases / name).read_bytes(), (releases / f"{name}.sig").read_bytes()

    fleet = verify_fleet(*pair("fleet.resolved.json"), slot(CI_KEY), NOW)
    name = f"rollouts/{rollout}.json"
    return project(fleet, verify_manifest(*pair(name), slot(CI_KEY), NOW, rollout=RolloutId(rollout)), HostName(host))


def story(
    directory: Path, host: str = "node1", *, edit: Callable[[VerifiedIntent], VerifiedIntent] = lambda intent: intent
) -> Writer:
    """An export's writer after an ordinary rollout: six entries. `edit` changes what the journal says was proved."""
    releases = directory.parent / "releases"
    if not releases.exists():
        publish_release(description(), CI_KEY, releases, COMMIT, NOW)
    writer = Writer(directory=directory, host=host, key=HOST_KEYS[host])
    write_artifacts(releases, directory)
    target = Closure(closure(host))
    writer.add(looked(1))
    writer.add(IntentVerified(at=moment(2), intent=edit(intent_for(releases, host))))
    writer.add(
        looked(3),
        DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=moment(3).wall_ms),
        ActivationStarted(seq=2, started_at=moment(3).wall_ms, switch_method=SwitchMethod.SYSTEMD_RUN),
    )
    completed = moment(9).wall_ms
    writer.add(
        looked(9), ActivationCompleted(seq=3, observed_current_closure=target, exit_code=0, completed_at=completed)
    )
    writer.add(looked(20))
    writer.add(looked(30), Converged(seq=4, converged_at=moment(30).wall_ms, current_closure=target))
    return writer
