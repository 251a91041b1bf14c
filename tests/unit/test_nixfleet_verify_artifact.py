"""`nixfleet verify-artifact` against everything a hostile mirror may serve: its word, its exit status, its reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evidence.canonical import canonicalize
from nixfleet.__main__ import run
from nixfleet.keys.tokens import allow_nonce, mint, revoke
from nixfleet.release.publish import publish_release
from nixfleet.release.sign import KeyFileSigner
from nixfleet.release.staging import NONCES, REVOCATIONS
from state_machine.intent import Revocation
from state_machine.values import HostName, WallMs
from tests.unit.nixfleet_samples import CI_KEY, COMMIT, NOW, OTHER_KEY, P256_KEY, description, later, write_trust
from wire.timestamps import format_rfc3339

FLEET = "fleet.resolved.json"
STABLE, EDGE = f"rollouts/stable@{COMMIT}.json", f"rollouts/edge@{COMMIT}.json"

Verdict = Callable[..., tuple[int, str, str]]


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    """A published release with the two lists beside it, and a trust file."""
    publish_release(description(), CI_KEY, tmp_path, COMMIT, NOW)
    token = mint("node1", "x" * 44, CI_KEY, NOW, 3_600_000, "ci")
    allow_nonce(tmp_path / NONCES, token.entry, CI_KEY, NOW, None)
    revoke(tmp_path / REVOCATIONS, Revocation(hostname=HostName("node9"), not_before=NOW), CI_KEY, NOW, None)
    write_trust(tmp_path / "trust.json", CI_KEY)
    return tmp_path


@pytest.fixture
def verdict(releases: Path, capfd: pytest.CaptureFixture[str]) -> Verdict:
    """Run the command on one of the files; gives exit status, standard output, first line of standard error."""

    def judge(name: str = FLEET, *arguments: str, now: WallMs = NOW, kind: str | None = None) -> tuple[int, str, str]:
        kind = kind or ("rollout" if name.startswith("rollouts/") else "fleet")
        words = ["--trust-file", str(releases / "trust.json"), "--artifact", str(releases / name)]
        words += ["--signature", str(releases / f"{name}.sig"), "--kind", kind, "--now", format_rfc3339(now)]
        status = run(["verify-artifact", *words, *arguments])
        out, err = capfd.readouterr()
        return status, out, err.partition("\n")[0]

    return judge


def change(path: Path, edit: Callable[[dict[str, Any]], None], signer: KeyFileSigner = CI_KEY) -> None:
    """Edit a document and sign it again."""
    document = json.loads(path.read_bytes())
    edit(document)
    content = canonicalize(document)
    path.write_bytes(content)
    path.with_name(path.name + ".sig").write_bytes(signer.sign(content))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (FLEET, "fleet"),
        (STABLE, "rollout"),
        (EDGE, "rollout"),
        (NONCES, "bootstrap-nonces"),
        (REVOCATIONS, "revocations"),
    ],
)
def test_what_was_published_is_ok_and_nothing_more_is_said(verdict: Verdict, name: str, kind: str) -> None:
    assert verdict(name, kind=kind) == (0, "ok\n", "")


def test_the_signature_is_looked_for_beside_the_artifact(releases: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--trust-file", str(releases / "trust.json"), "--artifact", str(releases / FLEET)]
    assert run(["verify-artifact", *words, "--now", format_rfc3339(NOW)]) == 0
    assert capfd.readouterr().out == "ok\n"


@pytest.mark.parametrize("position", [0, 1, 100, -2])
def test_one_altered_byte_is_found(releases: Path, verdict: Verdict, position: int) -> None:
    content = bytearray((releases / FLEET).read_bytes())
    content[position] ^= 1
    (releases / FLEET).write_bytes(content)
    status, out, err = verdict()
    assert (status, out) == (1, "")
    assert err.split(":")[0] in {"bad-signature", "parse"}


def test_an_altered_value_is_a_bad_signature(releases: Path, verdict: Verdict) -> None:
    content = (releases / STABLE).read_bytes()
    (releases / STABLE).write_bytes(content.replace(b"nixos-system-node1", b"nixos-system-evil1"))
    assert verdict(STABLE)[2].startswith("bad-signature: ")


def test_an_altered_name_of_the_rollout_is_a_bad_signature_too(releases: Path, verdict: Verdict) -> None:
    content = (releases / STABLE).read_bytes()
    (releases / STABLE).write_bytes(content.replace(b'"channel":"stable"', b'"channel":"STABLE"'))
    assert verdict(STABLE)[2].startswith("bad-signature: ")


@pytest.mark.parametrize("size", [0, 1, 63, 65, 4096, 100_000])
def test_a_signature_of_another_length_is_a_bad_signature(releases: Path, verdict: Verdict, size: int) -> None:
    signature = (releases / f"{FLEET}.sig").read_bytes()
    (releases / f"{FLEET}.sig").write_bytes((signature * (size // 64 + 1))[:size])
    assert verdict()[2].startswith(f"bad-signature: the signature of {min(size, 4096)} bytes")


def test_the_signature_of_another_artifact_is_a_bad_signature(releases: Path, verdict: Verdict) -> None:
    (releases / f"{STABLE}.sig").write_bytes((releases / f"{EDGE}.sig").read_bytes())
    assert verdict(STABLE)[2].startswith("bad-signature: ")


def test_a_signature_by_an_unknown_key_is_a_bad_signature(releases: Path, verdict: Verdict) -> None:
    change(releases / FLEET, lambda _: None, OTHER_KEY)
    status, out, err = verdict()
    assert (status, out) == (1, "")
    assert err == (
        f"bad-signature: the signature of 64 bytes is by none of the trusted keys ({CI_KEY.public_key.key_id})"
    )


def test_the_artifact_does_not_choose_its_algorithm(releases: Path, verdict: Verdict) -> None:
    change(releases / FLEET, lambda fleet: fleet["meta"].update(signatureAlgorithm="ecdsa-p256"))
    assert verdict()[2].startswith("unsupported-algorithm: meta.signatureAlgorithm says 'ecdsa-p256'")


def test_an_artifact_signed_with_ecdsa_is_ok_under_a_root_that_says_so(releases: Path, verdict: Verdict) -> None:
    change(releases / FLEET, lambda fleet: fleet["meta"].update(signatureAlgorithm="ecdsa-p256"), P256_KEY)
    write_trust(releases / "trust.json", P256_KEY)
    assert verdict()[:2] == (0, "ok\n")


def test_during_a_rotation_both_keys_count_and_afterwards_only_the_new_one(releases: Path, verdict: Verdict) -> None:
    write_trust(releases / "trust.json", OTHER_KEY, CI_KEY)
    assert verdict()[0] == 0
    write_trust(releases / "trust.json", OTHER_KEY)
    assert verdict()[2].startswith("bad-signature: ")
    change(releases / FLEET, lambda _: None, OTHER_KEY)
    assert verdict()[0] == 0


def test_what_was_signed_before_the_incident_is_rejected(releases: Path, verdict: Verdict) -> None:
    write_trust(releases / "trust.json", CI_KEY, rejectBefore=format_rfc3339(WallMs(NOW + 1)))
    assert verdict()[2].startswith("rejected-before: signed 2026-06-01T10:00:00Z")
    write_trust(releases / "trust.json", CI_KEY, rejectBefore=format_rfc3339(NOW))
    assert verdict()[0] == 0


@pytest.mark.parametrize(
    ("trust", "reason"),
    [
        ({"schemaVersion": 1, "ciReleaseKey": {}}, "no-trust-roots"),
        ({"schemaVersion": 1, "ciReleaseKey": {"current": {"algorithm": "rot13", "public": "x"}}}, "unsupported-algo"),
        ({"schemaVersion": 1, "ciReleaseKey": {"current": {"algorithm": "ed25519", "public": "x"}}}, "bad-signature"),
        ({"schemaVersion": 2, "ciReleaseKey": {}}, "schema-version"),
        ({"schemaVersion": 1}, "no-trust-roots"),
        ([], "no-trust-roots"),
    ],
)
def test_a_trust_file_that_trusts_nobody_says_so(releases: Path, verdict: Verdict, trust: object, reason: str) -> None:
    (releases / "trust.json").write_text(json.dumps(trust))
    status, out, err = verdict()
    assert (status, out) == (1, "")
    assert err.startswith(reason)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xef\xbb\xbf{}",
        b"\xff",
        b'{"schemaVersion":1,"schemaVersion":1}',
        b'{"a":1e400}',
        b'{"a":NaN}',
        b'{"a":9007199254740993}',
        b'{"a":"\\ud800"}',
        b"[" * 10_000 + b"]" * 10_000,
    ],
    ids=["empty", "cut", "bom", "not utf-8", "duplicate", "1e400", "NaN", "2^53+1", "surrogate", "deep"],
)
def test_bytes_that_must_not_be_read_are_refused_before_their_signature(
    releases: Path, verdict: Verdict, content: bytes
) -> None:
    (releases / FLEET).write_bytes(content)
    (releases / f"{FLEET}.sig").write_bytes(CI_KEY.sign(content))
    status, out, err = verdict()
    assert (status, out) == (1, "")
    assert err.startswith("parse: ")


def test_endless_data_is_cut_off(releases: Path, verdict: Verdict) -> None:
    with (releases / FLEET).open("wb") as file:
        file.truncate(9 * 1024 * 1024)
    assert verdict()[2].startswith("too-large: ")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda fleet: fleet.update(schemaVersion=2), "schema-version"),
        (lambda fleet: fleet["meta"].update(schemaVersion=2), "schema-version"),
        (lambda fleet: fleet["meta"].update(signedAt=None), "not-signed"),
        (lambda fleet: fleet["meta"].update(signedAt="yesterday"), "parse"),
        (lambda fleet: fleet.pop("hosts"), "parse"),
        (lambda fleet: fleet["hosts"]["node1"].update(channel=7), "parse"),
        (lambda fleet: fleet["hosts"]["node1"].update(closureHash="../../etc"), "parse"),
    ],
    ids=["schema", "meta schema", "no signedAt", "bad signedAt", "no hosts", "wrong type", "path trick"],
)
def test_a_well_signed_document_of_another_shape_is_refused(
    releases: Path, verdict: Verdict, edit: Callable[[dict[str, Any]], None], reason: str
) -> None:
    change(releases / FLEET, edit)
    assert verdict()[2].startswith(f"{reason}: ")


def test_unknown_members_alone_are_ignored(releases: Path, verdict: Verdict) -> None:
    change(releases / FLEET, lambda fleet: fleet.update(xFuture={"a": [1]}))
    assert verdict()[0] == 0


def test_a_manifest_of_another_rollout_is_a_mismatch(verdict: Verdict) -> None:
    assert verdict(STABLE, "--rollout-id", f"stable@{COMMIT}")[0] == 0
    assert verdict(STABLE, "--rollout-id", "stable@abcd")[2] == (
        f"manifest-mismatch: asked for rollout stable@abcd, got the manifest of stable@{COMMIT}"
    )
    assert verdict(EDGE, "--rollout-id", f"stable@{COMMIT}")[2].startswith("manifest-mismatch: ")


def test_an_artifact_of_another_kind_is_refused(verdict: Verdict) -> None:
    assert verdict(STABLE, kind="fleet")[2].startswith("parse: ")
    assert verdict(FLEET, kind="rollout")[2].startswith("parse: ")
    assert verdict(NONCES, kind="revocations")[2].startswith("parse: ")


@pytest.mark.parametrize(
    ("age_ms", "window_s", "said"),
    [
        (0, 0, "ok"),
        (60_000, 0, "ok"),
        (60_001, 0, "stale: signed 1 min ago, window 0 ms"),
        (3 * 3_600_000, 3600, "stale: signed 3 h ago, window 1 h"),
        (3_660_000, 3600, "ok"),
        (3_660_001, 3600, "stale: signed 1 h 1 min ago, window 1 h"),
        (-60_000, 3600, "ok"),
        (-60_001, 3600, "future-dated: signed 1 min in the future"),
        (-86_400_000, 3600, "future-dated: signed 1 d in the future"),
    ],
)
def test_freshness_has_a_slack_of_sixty_seconds_either_way(
    verdict: Verdict, age_ms: int, window_s: int, said: str
) -> None:
    status, out, err = verdict(FLEET, "--freshness-window-secs", str(window_s), now=WallMs(NOW + age_ms))
    assert (status, (out or err).strip()) == (0 if said == "ok" else 1, said)


def test_without_a_window_the_widest_of_the_fleet_counts_and_thirty_days_for_the_rest(verdict: Verdict) -> None:
    assert verdict(FLEET, now=later(4))[0] == 0
    assert verdict(FLEET, now=later(4.25))[2] == "stale: signed 4 h 15 min ago, window 4 h"
    assert verdict(STABLE, now=later(24 * 30))[0] == 0
    assert verdict(STABLE, now=later(24 * 30.1))[2].startswith("stale: ")


def test_the_signature_is_judged_before_the_age(releases: Path, verdict: Verdict) -> None:
    change(releases / FLEET, lambda _: None, OTHER_KEY)
    assert verdict(now=later(1000))[2].startswith("bad-signature: ")


def test_a_file_that_is_not_there_is_missing(releases: Path, verdict: Verdict) -> None:
    (releases / f"{FLEET}.sig").unlink()
    assert verdict()[2] == f"missing: there is no {releases / FLEET}.sig"
    assert verdict("rollouts/none.json")[2].startswith("missing: ")


def test_a_trust_file_that_is_not_there_trusts_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["verify-artifact", "--artifact", "a", "--trust-file", "/nowhere/trust.json"]) == 1
    assert capfd.readouterr().err.startswith("no-trust-roots: the trust file /nowhere/trust.json ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--artifact", "a"],
        ["--artifact", "a", "--kind", "firmware"],
        ["--artifact", "a", "--now", "tomorrow"],
        ["--artifact", "a", "--freshness-window-secs", "-1"],
        ["--artifact", "a", "--rollout-id", "stable@ab"],
    ],
)
def test_asking_wrongly_is_not_a_verdict(
    arguments: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run(["verify-artifact", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("nixfleet: ")
    assert err.count("\n") == 1
