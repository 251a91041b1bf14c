"""SSHSIG against stock ssh-keygen: what it accepts is what we made, and the other way round."""

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from evidence.host_key import HostKey, generate_host_key
from evidence.ssh_format import string
from evidence.sshsig import JOURNAL_NAMESPACE, SshsigError, allowed_signers_line, check, sign
from state_machine.values import Reason

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")

KEY = HostKey(seed=b"the ed25519 host key of node7 --")
MESSAGE = b'{"event":"Converged","host":"node7","n":1}\n'


def _keygen(tmp_path: Path, *options: str, message: bytes = MESSAGE) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["ssh-keygen", "-Y", *options], cwd=tmp_path, input=message, capture_output=True, timeout=30)


def _verify(tmp_path: Path, *, signed_by: HostKey = KEY, host: str = "node7", message: bytes = MESSAGE) -> int:
    (tmp_path / "export.sig").write_text(sign(signed_by, MESSAGE))
    (tmp_path / "allowed_signers").write_text(
        f"{allowed_signers_line('node7', KEY.public)}\n{allowed_signers_line('node8', generate_host_key().public)}\n"
    )
    options = ("-f", "allowed_signers", "-I", host, "-n", JOURNAL_NAMESPACE, "-s", "export.sig")
    return _keygen(tmp_path, "verify", *options, message=message).returncode


@needs_ssh_keygen
def test_stock_ssh_keygen_verifies_what_a_host_signed(tmp_path: Path) -> None:
    assert _verify(tmp_path) == 0


@needs_ssh_keygen
def test_stock_ssh_keygen_refuses_another_message_key_or_host(tmp_path: Path) -> None:
    assert _verify(tmp_path, message=MESSAGE + b"x") != 0
    assert _verify(tmp_path, signed_by=generate_host_key()) != 0
    assert _verify(tmp_path, host="node8") != 0
    assert _verify(tmp_path, host="node9") != 0


@needs_ssh_keygen
@pytest.mark.parametrize("message", [b"", b"x", b"\0" * 100_000])
def test_stock_ssh_keygen_finds_the_signature_sound_without_a_list_of_signers(tmp_path: Path, message: bytes) -> None:
    (tmp_path / "export.sig").write_text(sign(KEY, message))
    checked = _keygen(tmp_path, "check-novalidate", "-n", JOURNAL_NAMESPACE, "-s", "export.sig", message=message)
    assert checked.returncode == 0, checked.stderr
    assert b"Good" in checked.stdout


@needs_ssh_keygen
def test_a_signature_for_another_purpose_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "export.sig").write_text(sign(KEY, MESSAGE, namespace="file"))
    assert _keygen(tmp_path, "check-novalidate", "-n", "file", "-s", "export.sig").returncode == 0
    assert _keygen(tmp_path, "check-novalidate", "-n", JOURNAL_NAMESPACE, "-s", "export.sig").returncode != 0


@needs_ssh_keygen
def test_we_make_the_very_bytes_that_ssh_keygen_makes(tmp_path: Path) -> None:
    KEY.write_openssh(tmp_path / "key")
    made = _keygen(tmp_path, "sign", "-f", "key", "-n", JOURNAL_NAMESPACE)
    assert made.returncode == 0, made.stderr
    assert made.stdout.decode() == sign(KEY, MESSAGE)


def test_we_accept_what_we_made() -> None:
    check(sign(KEY, MESSAGE), MESSAGE, KEY.public)


@pytest.mark.parametrize(
    ("armored", "problem"),
    [
        ("", "not one armored block"),
        (sign(KEY, MESSAGE).replace("BEGIN SSH", "BEGIN PGP"), "not one armored block"),
        (sign(KEY, MESSAGE) * 2, "not base64"),
        (sign(KEY, MESSAGE).replace("U1NI", "!!!!"), "not base64"),
        (sign(KEY, MESSAGE).replace("U1NI", "U1NJ"), "not SSHSIG version 1"),
        (sign(KEY, MESSAGE).replace("U1NIU0lHAAAAAQ", "U1NIU0lHAAAAAg"), "not SSHSIG version 1"),
        (sign(generate_host_key(), MESSAGE), "by another key"),
        (sign(KEY, MESSAGE, namespace="file"), f"not made for {JOURNAL_NAMESPACE}"),
        (sign(KEY, MESSAGE + b"x"), "the message was changed"),
    ],
)
def test_what_is_no_signature_of_this_message_says_why(armored: str, problem: str) -> None:
    with pytest.raises(SshsigError) as caught:
        check(armored, MESSAGE, KEY.public)
    assert problem in str(caught.value)
    assert caught.value.reason is Reason.BAD_SIGNATURE


def test_a_signature_cut_anywhere_is_refused() -> None:
    whole = sign(KEY, MESSAGE)
    head, *lines, foot, _ = whole.split("\n")
    text = "".join(lines)
    for size in range(0, len(text), 4):
        with pytest.raises(SshsigError):
            check("\n".join([head, text[:size], foot, ""]), MESSAGE, KEY.public)


@pytest.mark.parametrize("inside", [True, False])
def test_bytes_after_the_signature_are_refused(inside: bool) -> None:
    head, *lines, foot, _ = sign(KEY, MESSAGE).split("\n")
    blob = base64.b64decode("".join(lines))
    inner = string(b"ssh-ed25519") + string(blob[-64:])
    longer = blob[: -len(string(inner))] + string(inner + b"x") if inside else blob + b"x"
    with pytest.raises(SshsigError, match="1 bytes follow"):
        check("\n".join([head, base64.b64encode(longer).decode(), foot, ""]), MESSAGE, KEY.public)


@pytest.mark.parametrize("name", ["", "*", "node7,node8", "!node7", "node 7", "node7\nnode8", "-node7"])
def test_a_name_that_would_be_a_pattern_makes_no_allowed_signer(name: str) -> None:
    with pytest.raises(SshsigError, match="is not a host name"):
        allowed_signers_line(name, KEY.public)
