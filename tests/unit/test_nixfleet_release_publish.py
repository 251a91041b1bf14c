"""Published files: verified by the agent's own checks and by a plain ed25519 library, whole at every instant."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from nacl.signing import VerifyKey

from evidence.artifacts import verify_fleet, verify_manifest, verify_revocations
from evidence.errors import EvidenceError
from nixfleet.keys.tokens import revoke
from nixfleet.release.plan import plan_release
from nixfleet.release.publish import (
    ClockBehindError,
    RolloutReusedError,
    publish_release,
    refresh_release,
    sign_file,
)
from nixfleet.release.published import DamagedError, NothingPublishedError, UnprovenError
from nixfleet.release.sign import KeyFileSigner
from nixfleet.release.staging import REVOCATIONS, BusyError, finish_interrupted, locked, publish_files
from state_machine.intent import Revocation
from state_machine.values import HostName, RolloutId, WallMs
from tests.unit.nixfleet_samples import (
    CI_KEY,
    COMMIT,
    NOW,
    OTHER_KEY,
    P256_KEY,
    closure,
    description,
    document,
    later,
    slot,
    write_key,
)

FLEET = "fleet.resolved.json"
STABLE, EDGE = f"rollouts/stable@{COMMIT}.json", f"rollouts/edge@{COMMIT}.json"


def pair(directory: Path, name: str) -> tuple[bytes, bytes]:
    return (directory / name).read_bytes(), (directory / f"{name}.sig").read_bytes()


def publish(directory: Path, commit: str = COMMIT, at: WallMs = NOW, signer: KeyFileSigner = CI_KEY) -> None:
    publish_release(description(), signer, directory, commit, at)


def test_a_release_is_two_files_for_the_fleet_and_two_for_each_channel(tmp_path: Path) -> None:
    published = publish_release(description(), CI_KEY, tmp_path, COMMIT, NOW)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert names == sorted(f"{name}{suffix}" for name in (FLEET, STABLE, EDGE) for suffix in ("", ".sig"))
    assert sorted(published.files) == names
    assert published.rollout_ids == (f"edge@{COMMIT}", f"stable@{COMMIT}")


@pytest.mark.parametrize("signer", [CI_KEY, P256_KEY], ids=["ed25519", "ecdsa-p256"])
def test_what_is_published_is_what_hosts_accept(tmp_path: Path, signer: KeyFileSigner) -> None:
    published = publish_release(description(), signer, tmp_path, COMMIT, NOW)
    fleet = verify_fleet(*pair(tmp_path, FLEET), slot(signer), NOW)
    assert fleet.digest == published.fleet_digest
    for name in (STABLE, EDGE):
        rollout = RolloutId(Path(name).stem)
        manifest = verify_manifest(*pair(tmp_path, name), slot(signer), NOW, rollout=rollout)
        assert manifest.value.fleet_resolved_hash == fleet.digest
        assert (manifest.signed_at, manifest.key_id) == (NOW, signer.public_key.key_id)


def test_a_plain_ed25519_library_verifies_the_files_as_they_are(tmp_path: Path) -> None:
    publish(tmp_path)
    for name in (FLEET, STABLE, EDGE):
        content, signature = pair(tmp_path, name)
        assert len(signature) == 64
        VerifyKey(CI_KEY.public_key.raw).verify(content, signature)


def test_signing_the_same_at_the_same_instant_gives_the_same_files(tmp_path: Path) -> None:
    for signer in (CI_KEY, P256_KEY):
        one, other = tmp_path / f"{signer.public_key.key_id}-1", tmp_path / f"{signer.public_key.key_id}-2"
        publish(one, signer=signer)
        publish(other, signer=signer)
        assert [pair(one, name) for name in (FLEET, STABLE)] == [pair(other, name) for name in (FLEET, STABLE)]


def test_published_files_can_be_read_by_the_web_server(tmp_path: Path) -> None:
    publish(tmp_path)
    assert stat.S_IMODE((tmp_path / FLEET).stat().st_mode) == 0o644


def test_manifests_of_earlier_releases_stay(tmp_path: Path) -> None:
    publish(tmp_path)
    publish(tmp_path, commit="abcd", at=later(1))
    assert verify_manifest(*pair(tmp_path, STABLE), slot(CI_KEY), NOW, rollout=RolloutId(f"stable@{COMMIT}"))
    assert (tmp_path / "rollouts" / "stable@abcd.json").exists()


def test_a_rollout_id_keeps_its_targets_for_ever(tmp_path: Path) -> None:
    publish(tmp_path)
    changed = description().with_closures({"node1": closure("node1", 2)})
    with pytest.raises(RolloutReusedError, match=f"stable@{COMMIT}: published before with other targets"):
        publish_release(changed, CI_KEY, tmp_path, COMMIT, later(1))
    assert verify_fleet(*pair(tmp_path, FLEET), slot(CI_KEY), NOW).signed_at == NOW


def test_a_release_is_never_signed_earlier_than_the_one_before(tmp_path: Path) -> None:
    publish(tmp_path, at=later(1))
    with pytest.raises(ClockBehindError, match=r"signed at 2026-06-01T11:00:00Z, this clock says 2026-06-01T10:00:00Z"):
        publish(tmp_path, commit="abcd")


def test_a_damaged_release_is_not_silently_replaced(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / FLEET).write_bytes(b"{")
    with pytest.raises(DamagedError, match="move it away"):
        publish(tmp_path, commit="abcd", at=later(1))


def test_refreshing_changes_the_time_the_key_and_nothing_else(tmp_path: Path) -> None:
    publish(tmp_path)
    before = json.loads((tmp_path / STABLE).read_bytes())
    published = refresh_release(P256_KEY, tmp_path, later(2), trusted=slot(P256_KEY, CI_KEY))
    after = json.loads((tmp_path / STABLE).read_bytes())
    fleet = verify_fleet(*pair(tmp_path, FLEET), slot(P256_KEY), NOW)
    assert (published.commit, fleet.signed_at, fleet.value.hosts) == (COMMIT, later(2), description().hosts)
    assert after["fleetResolvedHash"] == fleet.digest
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"meta", "fleetResolvedHash"}
    refresh_release(CI_KEY, tmp_path, later(3), trusted=slot(P256_KEY, CI_KEY))
    assert "signatureAlgorithm" not in json.loads((tmp_path / FLEET).read_bytes())["meta"]


def test_refreshing_keeps_members_of_other_tools(tmp_path: Path) -> None:
    fleet = {**json.loads((Path(__file__).parent / "golden/release" / FLEET).read_bytes()), "xExtra": {"a": 1}}
    publish_files(tmp_path, sign_file(FLEET, fleet, CI_KEY))
    refresh_release(CI_KEY, tmp_path, later(1))
    assert json.loads((tmp_path / FLEET).read_bytes())["xExtra"] == {"a": 1}


def test_refreshing_renews_the_lists_beside_the_fleet(tmp_path: Path) -> None:
    publish(tmp_path)
    revoke(tmp_path / REVOCATIONS, Revocation(hostname=HostName("node9"), not_before=NOW), CI_KEY, NOW, None)
    refresh_release(CI_KEY, tmp_path, later(3))
    listed = verify_revocations(*pair(tmp_path, REVOCATIONS), slot(CI_KEY), NOW)
    assert (listed.signed_at, [entry.hostname for entry in listed.value.revocations]) == (later(3), ["node9"])


def test_refreshing_leaves_earlier_rollouts_as_they_were(tmp_path: Path) -> None:
    publish(tmp_path)
    publish(tmp_path, commit="abcd", at=later(1))
    before = pair(tmp_path, STABLE)
    assert refresh_release(CI_KEY, tmp_path, later(2)).rollout_ids == ("edge@abcd", "stable@abcd")
    assert pair(tmp_path, STABLE) == before


def test_refreshing_what_somebody_else_signed_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, signer=OTHER_KEY)
    before = pair(tmp_path, FLEET)
    with pytest.raises(UnprovenError, match=f"{FLEET} does not verify: .* give a --trust-file .*, or release anew"):
        refresh_release(CI_KEY, tmp_path, later(1))
    assert pair(tmp_path, FLEET) == before


def test_refreshing_a_manifest_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    publish(tmp_path)
    content = (tmp_path / STABLE).read_bytes()
    (tmp_path / STABLE).write_bytes(content.replace(b"nixos-system-node1", b"nixos-system-evil1"))
    with pytest.raises(UnprovenError):
        refresh_release(CI_KEY, tmp_path, later(1))


def test_refreshing_with_the_clock_behind_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, at=later(1))
    with pytest.raises(ClockBehindError):
        refresh_release(CI_KEY, tmp_path, NOW)


def test_refreshing_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NothingPublishedError, match="publish one with `nixfleet release DESCRIPTION`"):
        refresh_release(CI_KEY, tmp_path, NOW)


def test_two_publications_at_once_are_refused(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(BusyError, match="another release is being published"):
        publish(tmp_path)
    publish(tmp_path)


def test_intent_that_is_out_already_keeps_its_commit(tmp_path: Path) -> None:
    publish(tmp_path)
    plan = plan_release(description(), tmp_path, later(1), commit="abcd", head=lambda: "ffff")
    assert (plan.commit, plan.unchanged) == (COMMIT, True)
    forced = plan_release(description(), tmp_path, later(1), commit="abcd", head=lambda: None, new_rollout=True)
    assert forced.commit == "abcd"


def test_the_commit_is_the_given_one_then_gits_then_one_made_of_the_content(tmp_path: Path) -> None:
    changed = description({"edges": []})
    given = plan_release(changed, tmp_path, NOW, commit="abcd", head=lambda: "ffff").commit
    head = plan_release(changed, tmp_path, NOW, commit=None, head=lambda: "ffff").commit
    hashed = plan_release(changed, tmp_path, NOW, commit=None, head=lambda: None).commit
    assert (given, head, len(hashed)) == ("abcd", "ffff", 40)
    assert hashed == plan_release(changed, tmp_path, later(9), commit=None, head=lambda: None).commit


KILLED = """
import os, signal, sys
from pathlib import Path
from nixfleet.release.staging import locked, publish_files

moves = int(sys.argv[2])
files = {path.name.replace("%", "/"): path.read_bytes() for path in Path(sys.argv[3]).iterdir()}

def move(source, target):
    global moves
    if moves == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    moves -= 1
    os.replace(source, target)

with locked(Path(sys.argv[1])):
    publish_files(Path(sys.argv[1]), files, move=move)
"""


def release_files(directory: Path, commit: str, at: WallMs) -> Path:
    """The files of a release, flat, for the process that is killed while it puts them in place."""
    publish_release(description(), CI_KEY, directory / "made", commit, at)
    (directory / "flat").mkdir()
    for path in (directory / "made").rglob("*"):
        if path.is_file():
            name = str(path.relative_to(directory / "made")).replace("/", "%")
            (directory / "flat" / name).write_bytes(path.read_bytes())
    return directory / "flat"


def seen(directory: Path) -> str | None:
    """What a reader makes of the directory: the commit of a fleet that verifies. All its manifests must be there."""
    try:
        fleet = verify_fleet(*pair(directory, FLEET), slot(CI_KEY), NOW)
    except (EvidenceError, FileNotFoundError):
        return None
    commit = fleet.value.meta.ci_commit
    for channel in ("stable", "edge"):
        name = RolloutId(f"{channel}@{commit}")
        manifest = verify_manifest(*pair(directory, f"rollouts/{name}.json"), slot(CI_KEY), NOW, rollout=name)
        assert manifest.value.fleet_resolved_hash == fleet.digest
    return commit


@pytest.mark.parametrize("moves", range(7))
def test_a_kill_between_two_renames_leaves_no_fleet_without_its_manifests(tmp_path: Path, moves: int) -> None:
    out = tmp_path / "out"
    publish(out)
    flat = release_files(tmp_path, "abcd", later(1))
    process = subprocess.run([sys.executable, "-c", KILLED, str(out), str(moves), str(flat)], check=False)
    assert process.returncode == (-signal.SIGKILL if moves < 6 else 0)
    # Five files are in place before the fleet itself: its signature is the fifth, and alone it verifies nothing.
    assert seen(out) == {5: None, 6: "abcd"}.get(moves, COMMIT)
    for path in (out / "rollouts").glob("*.json"):
        assert verify_manifest(*pair(out, f"rollouts/{path.name}"), slot(CI_KEY), NOW, rollout=RolloutId(path.stem))
    with locked(out):
        assert finish_interrupted(out) is (moves < 6)
    assert seen(out) == "abcd"
    assert sorted(path.name for path in out.iterdir()) == [FLEET, f"{FLEET}.sig", "rollouts"]


def test_the_next_release_finishes_a_publication_that_was_cut_off(tmp_path: Path) -> None:
    out = tmp_path / "out"
    flat = release_files(tmp_path, "abcd", later(1))
    subprocess.run([sys.executable, "-c", KILLED, str(out), "3", str(flat)], check=False)
    assert refresh_release(CI_KEY, out, later(2)).commit == "abcd"


def test_a_publication_that_was_cut_off_while_being_written_never_happened(tmp_path: Path) -> None:
    publish(tmp_path)
    (tmp_path / ".incomplete" / "rollouts").mkdir(parents=True)
    (tmp_path / ".incomplete" / FLEET).write_bytes(b"half")
    publish(tmp_path, commit="abcd", at=later(1))
    assert seen(tmp_path) == "abcd"
    assert not (tmp_path / ".incomplete").exists()


def test_a_full_disk_leaves_the_last_release_as_it_was(tmp_path: Path) -> None:
    publish(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limited = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))\n"
        "from nixfleet.__main__ import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    (tmp_path.parent / f"{tmp_path.name}.json").write_text(json.dumps({**document(), "edges": []}))
    key = write_key(tmp_path.parent / f"{tmp_path.name}.pem", CI_KEY.key)
    arguments = ["release", f"{tmp_path}.json", "--ci-key", str(key), "--releases-dir", str(tmp_path)]
    process = subprocess.run(
        [sys.executable, "-c", limited, *arguments, "--commit", "abcd", "--no-cache-check"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert (process.returncode, process.stderr.strip()) == (
        1,
        f"nixfleet: File too large: {tmp_path}/.incomplete/rollouts/edge@abcd.json",
    )
    assert {path: path.read_bytes() for path in before} == before
    assert seen(tmp_path) == COMMIT
