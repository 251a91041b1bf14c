"""`nixfleet audit verify`: an honest journal proves itself, and every lie is named with the entry it is in."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from evidence.chain import SealedEntry
from evidence.trust import TrustRoots, load_trust
from nixfleet.__main__ import run
from nixfleet.audit.export import open_export
from nixfleet.audit.proof import HostProof, prove
from nixfleet.release.publish import refresh_release
from state_machine.events import IntentVerified, TargetOffered
from state_machine.facts import (
    ActivationCompleted,
    ActivationStarted,
    DispatchAck,
    Failed,
    RollbackComplete,
)
from state_machine.values import Basis, Closure, FailurePolicy, RolloutId, SwitchMethod, WallMs
from tests.unit.nixfleet_exports import OLD, Writer, intent_for, looked, moment, story
from tests.unit.nixfleet_samples import CI_KEY, COMMIT, HOST_KEYS, NOW, OTHER_KEY, closure, later, write_trust

Spoil = Callable[[list[SealedEntry]], list[SealedEntry]]


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    return write_trust(tmp_path / "trust.json", CI_KEY)


def proof_of(writer: Writer, *trusts: TrustRoots, host_key: bytes | None = None) -> HostProof:
    return prove(open_export(writer.export()), host_key=host_key, trusts=trusts)


def broken(proof: HostProof) -> str:
    assert proof.broken is not None
    return str(proof.broken)


# What an honest journal proves


def test_an_ordinary_rollout_is_traced_to_the_manifest_and_key_that_allowed_it(
    tmp_path: Path, trust: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    story(tmp_path / "node1").export()
    assert run(["audit", "verify", str(tmp_path / "node1"), "--trust-file", str(trust)]) == 0
    assert capfd.readouterr().out.splitlines() == [
        f"node1: 6 entries, chain intact, key {HOST_KEYS['node1'].fingerprint[:12]} is the one the fleet names",
        f"  activated {closure('node1')} at 2026-06-01T10:00:03Z,",
        f"    allowed by manifest stable@4be0c1d2 signed 2026-06-01T10:00:00Z by key {CI_KEY.public_key.key_id}",
        "    converged at 2026-06-01T10:00:30Z",
    ]


def test_the_proof_as_json_has_every_link(tmp_path: Path, trust: Path, capfd: pytest.CaptureFixture[str]) -> None:
    writer = story(tmp_path / "node1")
    writer.export()
    assert run(["audit", "verify", str(tmp_path / "node1"), "--trust-file", str(trust), "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    [host] = told["hosts"]
    [activation] = host["activations"]
    intent = intent_for(tmp_path / "releases", "node1")
    assert (told["ok"], host["entries"], host["head"]["n"], host["keyVouchedBy"]) == (True, 6, 6, "the fleet")
    assert host["head"]["hash"] == writer.head.hash.hex()
    assert activation["allowedBy"] == {
        "entry": 2,
        "fleetDigest": intent.fleet_digest,
        "fleetKeyId": intent.fleet_key_id,
        "manifestDigest": intent.manifest_digest,
        "manifestKeyId": CI_KEY.public_key.key_id,
        "signedAt": "2026-06-01T10:00:00Z",
        "verified": True,
    }
    assert (activation["entry"], activation["closure"], activation["priorClosure"]) == (3, closure("node1"), OLD)


def test_a_directory_of_exports_is_audited_host_by_host(
    tmp_path: Path, trust: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for host in ("node2", "node1"):
        story(tmp_path / "exports" / host, host).export()
    assert run(["audit", "verify", str(tmp_path / "exports"), "--trust-file", str(trust)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["node1", "node2"]


def test_a_failed_rollout_shows_its_rollback(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1")
    del writer.entries[4:]
    writer.head = writer.entries[-1].anchor
    writer.add(
        looked(40),
        Failed(
            seq=4,
            failed_at=moment(40).wall_ms,
            sustained_duration_secs=30,
            failing_probes=("web",),
            policy_applied=FailurePolicy.ROLLBACK_AND_HALT,
        ),
    )
    writer.add(
        looked(45), RollbackComplete(seq=5, reverted_to_closure=OLD, exit_code=0, completed_at=moment(45).wall_ms)
    )
    [allowed] = proof_of(writer, load_trust(trust)).allowed
    assert allowed.activation.failure == "web failed for 30 s"
    assert (allowed.activation.reverted_to, allowed.activation.reverted_at) == (OLD, moment(45).wall_ms)


def test_a_journal_without_its_oldest_part_says_where_it_begins(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1")
    del writer.entries[0]
    proof = proof_of(writer, load_trust(trust))
    assert (proof.broken, proof.first, proof.entries) == (None, 2, 5)


def test_nobody_but_the_host_can_cut_the_oldest_part_off(tmp_path: Path) -> None:
    directory = story(tmp_path / "node1").export()
    lines = (directory / "entries.jsonl").read_bytes().splitlines(keepends=True)
    (directory / "entries.jsonl").write_bytes(b"".join(lines[1:]))
    said = "entries.jsonl.sig: the message was changed, or another key signed it"
    assert broken(prove(open_export(directory), host_key=None, trusts=[])) == said
    (directory / "entries.jsonl.sig").unlink()
    said = "its beginning is missing, and no entries.jsonl.sig says the host cut it"
    assert broken(prove(open_export(directory), host_key=None, trusts=[])) == said


def test_a_switch_whose_reason_was_cut_off_is_told_as_unproved(
    tmp_path: Path, trust: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    writer = story(tmp_path / "node1")
    del writer.entries[:2]
    writer.export()
    assert run(["audit", "verify", str(tmp_path / "node1"), "--trust-file", str(trust)]) == 0
    out = capfd.readouterr().out
    assert "node1: 4 entries from 3 on, chain intact" in out
    assert "for stable@4be0c1d2; what allowed it was cut off with the oldest entries" in out


def test_a_journal_of_a_host_that_never_switched_is_good_too(tmp_path: Path, trust: Path) -> None:
    writer = Writer(directory=tmp_path / "node1", key=HOST_KEYS["node1"])
    writer.add(looked(1))
    proof = proof_of(writer, load_trust(trust))
    assert (proof.broken, proof.allowed, proof.vouched_by) == (None, (), None)


def test_without_a_trust_file_the_claim_is_told_as_a_claim(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    story(tmp_path / "node1").export()
    assert run(["audit", "verify", str(tmp_path / "node1")]) == 0
    out, err = capfd.readouterr()
    assert "key known" not in out
    assert "is known from the export alone" in out
    assert "it says allowed by manifest" in out
    assert "note: no --trust-file" in err


def test_the_key_may_be_given_by_the_auditor(tmp_path: Path) -> None:
    writer = story(tmp_path / "node1")
    assert proof_of(writer, host_key=HOST_KEYS["node1"].public).vouched_by == "the auditor"
    assert broken(proof_of(writer, host_key=HOST_KEYS["node2"].public)) == "host.pub is not the key given as --host-key"


def test_after_a_rotation_either_trust_file_may_vouch(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1")
    after = load_trust(write_trust(tmp_path / "new.json", OTHER_KEY))
    assert "bad-signature" in broken(proof_of(writer, after))
    assert proof_of(writer, after, load_trust(trust)).broken is None


def test_stock_ssh_keygen_verifies_the_same_export(tmp_path: Path) -> None:
    directory = story(tmp_path / "node1").export()
    command = ["ssh-keygen", "-Y", "verify", "-f", "allowed_signers", "-I", "node1", "-n", "nixfleet-journal@1"]
    with (directory / "entries.jsonl").open("rb") as content:
        done = subprocess.run(
            [*command, "-s", "entries.jsonl.sig"], cwd=directory, stdin=content, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr


# What was never signed

BUILD = "build 0197a0f2-6d0e-7cc0-8e13-1d2f3a4b5c6d"
GRADIENT = RolloutId("gradient@00000001")


def followed(
    directory: Path, *, basis: Basis = Basis.CACHE_KEY, rollout: RolloutId = GRADIENT, runs: Closure | None = None
) -> Writer:
    """A host that was offered a system, switched to it and converged; `runs` is what it says runs then."""
    writer, target = Writer(directory=directory, key=HOST_KEYS["node1"]), Closure(closure("node1"))
    name = BUILD if basis is Basis.CACHE_KEY else ""
    writer.add(TargetOffered(at=moment(1), basis=basis, closure=closure("older"), offered_as=name))
    writer.add(
        TargetOffered(at=moment(2), basis=basis, closure=target, offered_as=name),
        DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=moment(2).wall_ms),
        ActivationStarted(seq=2, started_at=moment(3).wall_ms, switch_method=SwitchMethod.SYSTEMD_RUN),
        rollout=rollout,
    )
    writer.add(TargetOffered(at=moment(4), basis=basis, closure=None))
    completed = ActivationCompleted(
        seq=3, observed_current_closure=runs or target, exit_code=0, completed_at=moment(9).wall_ms
    )
    writer.add(looked(9), completed, rollout=rollout)
    return writer


@pytest.mark.parametrize(
    ("basis", "name", "words"),
    [
        (Basis.CACHE_KEY, f" as {BUILD}", "the cache's key alone"),
        (Basis.MUTUAL_TLS, "", "mutual TLS alone"),
    ],
)
def test_a_switch_that_nobody_signed_for_is_told_as_one_and_has_an_exit_status_of_its_own(
    tmp_path: Path, trust: Path, capfd: pytest.CaptureFixture[str], basis: Basis, name: str, words: str
) -> None:
    followed(tmp_path / "node1", basis=basis).export()
    assert run(["audit", "verify", str(tmp_path / "node1"), "--trust-file", str(trust)]) == 3
    out, err = capfd.readouterr()
    assert out.splitlines() == [
        f"node1: 4 entries, chain intact, key {HOST_KEYS['node1'].fingerprint[:12]} is known from the export alone",
        f"  activated {closure('node1')} at 2026-06-01T10:00:03Z,",
        f"    offered{name} at 2026-06-01T10:00:02Z: rests on {words}, not proved by a signature",
    ]
    assert err == "unsigned: node1: 1 of 1 switches not proved by a signature\n"


def test_that_nobody_signed_is_in_the_json_and_is_no_failure_of_the_chain(
    tmp_path: Path, trust: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    followed(tmp_path / "exports" / "node1").export()
    story(tmp_path / "exports" / "node2", "node2").export()
    assert run(["audit", "verify", str(tmp_path / "exports"), "--trust-file", str(trust), "--json"]) == 3
    told = json.loads(capfd.readouterr().out)
    assert (told["ok"], told["verdict"]) == (False, "unsigned")
    assert [(host["ok"], host["verdict"], host["broken"]) for host in told["hosts"]] == [
        (False, "unsigned", None),
        (True, "holds", None),
    ]
    [activation] = told["hosts"][0]["activations"]
    assert activation["allowedBy"] is None
    assert activation["offer"] == {
        "entry": 2,
        "at": "2026-06-01T10:00:02Z",
        "basis": "cache-key",
        "restsOn": "the cache's key alone",
        "offeredAs": BUILD,
    }
    assert told["hosts"][1]["activations"][0]["offer"] is None


def test_a_broken_chain_counts_before_a_missing_signature(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    writer = followed(tmp_path / "node1")
    writer.export([*writer.entries[:2], *writer.entries[3:]])
    assert run(["audit", "verify", str(tmp_path / "node1")]) == 1
    assert "broken: node1" in capfd.readouterr().err


def test_a_switch_to_something_else_than_was_offered_is_found(tmp_path: Path) -> None:
    other = Closure(closure("other"))
    assert broken(proof_of(followed(tmp_path / "node1", runs=other))) == (
        f"entry 2: {other} was activated, but what was offered is {closure('node1')}"
    )


def test_an_offer_does_not_stand_in_for_a_manifest(tmp_path: Path) -> None:
    """A fleet's rollout without its proof is broken evidence, whatever some other source had offered."""
    writer = followed(tmp_path / "node1", rollout=RolloutId(f"stable@{COMMIT}"))
    assert broken(proof_of(writer)).endswith("was activated, but no entry before says what allowed it")


def test_an_offer_that_was_taken_back_does_not_count(tmp_path: Path) -> None:
    writer = Writer(directory=tmp_path / "node1", key=HOST_KEYS["node1"])
    writer.add(TargetOffered(at=moment(1), basis=Basis.CACHE_KEY, closure=closure("node1")))
    writer.add(TargetOffered(at=moment(2), basis=Basis.CACHE_KEY, closure=None))
    writer.add(
        looked(3),
        DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=moment(3).wall_ms),
        ActivationStarted(seq=2, started_at=moment(3).wall_ms, switch_method=SwitchMethod.DETACHED),
        rollout=GRADIENT,
    )
    assert broken(proof_of(writer)).endswith("was activated, but no entry before says what allowed it")


# What a lying journal is caught at


def edited(entries: list[SealedEntry]) -> list[SealedEntry]:
    body = entries[2].body.replace(closure("old").encode(), closure("new").encode())
    return [*entries[:2], attrs.evolve(entries[2], body=body), *entries[3:]]


LIES: list[tuple[str, Spoil, str]] = [
    ("an entry edited", edited, "entry 3: bad-signature"),
    (
        "an entry removed",
        lambda entries: [*entries[:3], *entries[4:]],
        "entry 5: removed: entry 4 is missing before it",
    ),
    ("two entries swapped", lambda entries: [*entries[:2], entries[3], entries[2], *entries[4:]], "entry 4: reordered"),
    ("an entry twice", lambda entries: [*entries[:3], *entries[2:]], "entry 3: reordered"),
    ("the first entry removed from a whole chain", lambda entries: entries[2:3] + entries[1:], "entry 2: reordered"),
    ("no entries", lambda _: [], "entries.jsonl is empty"),
]


@pytest.mark.parametrize(("spoil", "said"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_chain_that_was_tampered_with_is_found(tmp_path: Path, trust: Path, spoil: Spoil, said: str) -> None:
    writer = story(tmp_path / "node1")
    writer.export(spoil(writer.entries))
    proof = prove(open_export(tmp_path / "node1"), host_key=None, trusts=[load_trust(trust)])
    assert broken(proof).startswith(said)


def test_the_first_broken_entry_is_named_and_the_exit_status_says_so(
    tmp_path: Path, trust: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    story(tmp_path / "exports" / "node1").export()
    writer = story(tmp_path / "exports" / "node2", "node2")
    writer.export([*writer.entries[:3], *writer.entries[4:]])
    assert run(["audit", "verify", str(tmp_path / "exports"), "--trust-file", str(trust)]) == 1
    out, err = capfd.readouterr()
    assert err == "broken: node2: entry 5: removed: entry 4 is missing before it\n"
    assert "node2: BROKEN at entry 5: removed" in out
    assert "node1: 6 entries, chain intact" in out


def test_a_journal_signed_again_with_another_key_is_found(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1")
    forged = Writer(directory=tmp_path / "node1", key=HOST_KEYS["node2"])
    for entry in writer.entries:
        body = json.loads(entry.body)
        forged.add_raw({"event": body["event"], "facts": body["facts"]})
    assert broken(proof_of(forged, load_trust(trust))) == (
        "entry 2: the fleet declares another key for node1 than the one that signed"
    )


def test_entries_signed_by_another_key_than_host_pub_are_found(tmp_path: Path) -> None:
    directory = story(tmp_path / "node1").export()
    (directory / "host.pub").write_text(HOST_KEYS["node2"].openssh_public)
    assert "wrong-key" in broken(prove(open_export(directory), host_key=None, trusts=[]))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 3 of entries.jsonl: not a JSON document"),
        (b"[]", "line 3 of entries.jsonl: it is not an object"),
        (b'{"body":1,"signature":""}', "line 3 of entries.jsonl: it needs the texts"),
        (b'{"body":"{}","signature":"xy"}', "line 3 of entries.jsonl: its signature is not hex"),
        (b'{"body":"{}","signature":"00"}', "entry 3: unreadable: not a journal entry"),
    ],
)
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    directory = story(tmp_path / "node1").export()
    lines = (directory / "entries.jsonl").read_bytes().splitlines()
    (directory / "entries.jsonl").write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))
    assert broken(prove(open_export(directory), host_key=None, trusts=[])).startswith(said)


def test_an_ssh_signature_of_another_export_is_found(tmp_path: Path) -> None:
    directory = story(tmp_path / "node1").export()
    other = story(tmp_path / "node2", "node2").export()
    (directory / "entries.jsonl.sig").write_bytes((other / "entries.jsonl.sig").read_bytes())
    assert broken(prove(open_export(directory), host_key=None, trusts=[])) == "entries.jsonl.sig: it is by another key"


def test_allowed_signers_for_another_host_are_found(tmp_path: Path) -> None:
    directory = story(tmp_path / "node1").export()
    (directory / "allowed_signers").write_text("* ssh-ed25519 AAAA")
    assert "allowed_signers does not name node1" in broken(prove(open_export(directory), host_key=None, trusts=[]))


# What a journal may not claim


def test_a_switch_without_intent_is_found(tmp_path: Path, trust: Path) -> None:
    writer = Writer(directory=tmp_path / "node1", key=HOST_KEYS["node1"])
    started = ActivationStarted(seq=1, started_at=NOW, switch_method=SwitchMethod.DETACHED)
    writer.add(looked(1), started)
    assert broken(proof_of(writer, load_trust(trust))) == (
        f"entry 1: stable@{COMMIT} was activated, but no entry before says what allowed it"
    )


def test_a_switch_to_something_else_than_the_manifest_gives_is_found(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1")
    del writer.entries[3:]
    writer.head = writer.entries[-1].anchor
    other = Closure(closure("evil"))
    writer.add(looked(9), ActivationCompleted(seq=3, observed_current_closure=other, exit_code=0, completed_at=NOW))
    assert broken(proof_of(writer, load_trust(trust))) == (
        f"entry 3: {other} was activated, but stable@{COMMIT} gives {closure('node1')}"
    )


def test_a_journal_that_says_more_than_the_manifest_is_found(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1", edit=lambda intent: attrs.evolve(intent, freshness_window_s=10**6))
    assert broken(proof_of(writer, load_trust(trust))) == (
        "entry 2: the artifacts do not say what it recorded of freshness_window_s"
    )


def test_a_manifest_that_is_not_in_the_export_proves_nothing(tmp_path: Path, trust: Path) -> None:
    directory = story(tmp_path / "node1").export()
    digest = intent_for(tmp_path / "releases", "node1").manifest_digest
    (directory / "artifacts" / f"{digest}.json").unlink()
    proof = prove(open_export(directory), host_key=None, trusts=[load_trust(trust)])
    assert broken(proof) == f"entry 2: the manifest {digest[:12]} that it refers to is not in the export"


def test_another_genuine_manifest_in_its_place_proves_nothing(tmp_path: Path, trust: Path) -> None:
    directory = story(tmp_path / "node1").export()
    digest = intent_for(tmp_path / "releases", "node1").manifest_digest
    refresh_release(CI_KEY, tmp_path / "releases", later(1))
    path = tmp_path / "releases" / "rollouts" / f"stable@{COMMIT}.json"
    (directory / "artifacts" / f"{digest}.json").write_bytes(path.read_bytes())
    (directory / "artifacts" / f"{digest}.json.sig").write_bytes(path.with_name(f"{path.name}.sig").read_bytes())
    proof = prove(open_export(directory), host_key=None, trusts=[load_trust(trust)])
    assert broken(proof).startswith(f"entry 2: the manifest filed as {digest[:12]} is ")


def test_a_forged_manifest_proves_nothing(tmp_path: Path, trust: Path) -> None:
    directory = story(tmp_path / "node1").export()
    path = directory / "artifacts" / f"{intent_for(tmp_path / 'releases', 'node1').manifest_digest}.json"
    path.write_bytes(path.read_bytes().replace(b"nixos-system-node1", b"nixos-system-evil1"))
    assert "bad-signature" in broken(prove(open_export(directory), host_key=None, trusts=[load_trust(trust)]))


def test_a_manifest_that_was_stale_when_the_host_decided_is_found(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1")
    del writer.entries[2:]
    writer.head = writer.entries[-1].anchor
    decided = later(4.5)
    writer.add(
        looked(3),
        DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=decided),
        ActivationStarted(seq=2, started_at=decided, switch_method=SwitchMethod.DETACHED),
    )
    assert broken(proof_of(writer, load_trust(trust))) == (
        "entry 3: the manifest was stale when the host decided: 4 h 30 min old, window 4 h"
    )


def test_what_was_proved_after_the_decision_does_not_count(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1")
    del writer.entries[1:]
    writer.head = writer.entries[-1].anchor
    ack = DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=moment(3).wall_ms)
    intent = intent_for(tmp_path / "releases", "node1")
    old = attrs.evolve(intent, target=Closure(closure("other")))
    writer.add(IntentVerified(at=moment(2), intent=old), ack)
    writer.add(
        IntentVerified(at=moment(4), intent=intent),
        ActivationStarted(seq=2, started_at=moment(4).wall_ms, switch_method=SwitchMethod.DETACHED),
    )
    assert "the artifacts do not say what it recorded of target" in broken(proof_of(writer, load_trust(trust)))


def test_a_rollback_elsewhere_than_to_what_ran_before_is_found(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1")
    other = Closure(closure("other"))
    back = RollbackComplete(seq=5, reverted_to_closure=other, exit_code=0, completed_at=WallMs(NOW))
    writer.add(looked(50), back)
    assert broken(proof_of(writer, load_trust(trust))) == f"entry 7: rolled back to {other}, but {OLD} ran before"


def test_facts_with_a_gap_are_found(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1")
    back = RollbackComplete(seq=6, reverted_to_closure=OLD, exit_code=0, completed_at=WallMs(NOW))
    writer.add(looked(50), back)
    assert broken(proof_of(writer, load_trust(trust))) == f"entry 7: fact 6 of stable@{COMMIT} follows fact 4"


def test_an_entry_with_a_fact_nobody_knows_is_found(tmp_path: Path) -> None:
    writer = story(tmp_path / "node1")
    writer.add_raw({"event": {}, "facts": [{"rollout_id": "stable@ab", "kind": "Sabotage", "seq": 1}]})
    assert broken(proof_of(writer)).startswith("entry 7: $: kind 'Sabotage' is unknown")


def test_another_rollouts_facts_are_counted_apart(tmp_path: Path, trust: Path) -> None:
    writer = story(tmp_path / "node1")
    ack = DispatchAck(seq=1, current_closure_at_dispatch=OLD, received_at=moment(60).wall_ms)
    writer.add(looked(60), ack, rollout=RolloutId("stable@abcd"))
    assert proof_of(writer, load_trust(trust)).broken is None


@pytest.mark.parametrize("what", ["nothing here", "no host.pub"])
def test_a_path_that_is_no_export_is_a_configuration_error(
    tmp_path: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node1").mkdir()
    if what == "no host.pub":
        story(tmp_path / "node1").export()
        (tmp_path / "node1" / "host.pub").unlink()
    assert run(["audit", "verify", str(tmp_path / "node1")]) == 2
    assert capfd.readouterr().err.count("\n") == 1
