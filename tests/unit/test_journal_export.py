"""An export is all an auditor needs, is there whole or not at all, and stock OpenSSH verifies it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from evidence.chain import verify_chain
from nixfleet.audit.export import open_export
from nixfleet_agent.journal.errors import UnreadableJournalError
from nixfleet_agent.journal.export import ExportError
from nixfleet_agent.journal.reader import export
from state_machine.state import Known
from state_machine.values import WallMs
from tests.unit.journal_support import KEY, fact, open_journal, probe, tick
from tests.unit.wire_examples import AT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "journal.sqlite"
    path.parent.mkdir()
    journal = open_journal(path)
    journal.append([tick(), probe(fact(1, name="Küche\u2028")), probe(fact(2, name="\x00\x7f"))])
    journal.close()
    return path


def test_an_export_holds_every_entry_as_signed(path: Path, tmp_path: Path) -> None:
    assert export(path, tmp_path / "out", host_key=KEY) == 3
    exported = open_export(tmp_path / "out")
    entries = list(exported.entries())
    assert exported.public == KEY.public
    assert verify_chain(entries, KEY.public, host="node7").good == 3
    lines = (tmp_path / "out" / "entries.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line)["body"].encode() for line in lines if line] == [entry.body for entry in entries]


def test_an_export_while_the_daemon_runs_is_of_one_instant(path: Path, tmp_path: Path) -> None:
    journal = open_journal(path)
    journal.append([tick()])
    assert export(path, tmp_path / "out", host_key=KEY) == 4
    journal.append([tick()])
    journal.close()
    assert len(list(open_export(tmp_path / "out").entries())) == 4


def test_stock_openssh_verifies_the_export(path: Path, tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not installed")
    out = tmp_path / "out"
    export(path, out, host_key=KEY)
    command = ["ssh-keygen", "-Y", "verify", "-f", "allowed_signers", "-I", "node7", "-n", "nixfleet-journal@1"]
    content = (out / "entries.jsonl").read_bytes()
    good = subprocess.run([*command, "-s", "entries.jsonl.sig"], cwd=out, input=content, capture_output=True)
    assert good.returncode == 0, good.stderr.decode()
    bad = subprocess.run([*command, "-s", "entries.jsonl.sig"], cwd=out, input=content[:-1], capture_output=True)
    assert bad.returncode != 0


def test_without_the_private_key_the_entries_carry_their_own_signatures(path: Path, tmp_path: Path) -> None:
    export(path, tmp_path / "out", public=KEY.public)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "allowed_signers",
        "artifacts",
        "entries.jsonl",
        "host.pub",
    ]
    with pytest.raises(ExportError, match="neither the host key nor its public half"):
        export(path, tmp_path / "other")


def test_only_artifacts_are_copied(path: Path, tmp_path: Path) -> None:
    kept = path.parent / "artifacts"
    kept.mkdir()
    digest = "ab" * 32
    for name in (f"{digest}.json", f"{digest}.json.sig", "fleet.json", f".{digest}.json.7.tmp"):
        (kept / name).write_text(name)
    (kept / f"{'cd' * 32}.json").symlink_to("/etc/passwd")
    export(path, tmp_path / "out", host_key=KEY, artifacts=kept)
    copied = {file.name: file.read_text() for file in (tmp_path / "out" / "artifacts").iterdir()}
    assert copied == {f"{digest}.json": f"{digest}.json", f"{digest}.json.sig": f"{digest}.json.sig"}


def test_what_is_there_already_is_not_mixed_with_an_export(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(path, out, host_key=KEY)
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    with pytest.raises(ExportError, match="directory not empty; name a new directory"):
        export(path, out, host_key=KEY)
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir() if "draft" in file.name] == []


def test_an_export_that_cannot_be_made_leaves_nothing(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="not a directory"):
        export(path, tmp_path / "file" / "out", host_key=KEY)
    with pytest.raises(UnreadableJournalError, match="there is no journal yet"):
        export(tmp_path / "nowhere.sqlite", tmp_path / "out", host_key=KEY)
    empty = tmp_path / "empty.sqlite"
    open_journal(empty).close()
    with pytest.raises(UnreadableJournalError, match="it has no entries yet"):
        export(empty, tmp_path / "out", host_key=KEY)
    assert not (tmp_path / "out").exists()


def test_a_cut_journal_exports_what_is_left_and_it_verifies_from_there(path: Path, tmp_path: Path) -> None:
    journal = open_journal(path)
    journal.append([tick()] * 1500)
    journal.save_checkpoint(Known())
    removed = journal.prune(now=WallMs(AT + 100 * 86_400_000), delivered=lambda _: 9)
    journal.close()
    assert export(path, tmp_path / "out", host_key=KEY) == 1503 - removed
    entries = list(open_export(tmp_path / "out").entries())
    assert entries[0].n == removed + 1
