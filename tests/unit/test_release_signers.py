"""What an agent or a command may answer, and that nothing but a signature by the key comes out of it."""

import base64
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from evidence.signature import verify
from evidence.ssh_format import Reader, public_blob, string, uint32
from nixfleet.commands.signing import open_signer
from nixfleet.errors import StoppedError
from nixfleet.release.sign import UnprovenSignatureError, proven, raw_p256
from nixfleet.release.signing_command import (
    CommandWordsError,
    SigningCommandError,
    open_command,
    parse_public_key,
)
from nixfleet.release.ssh_agent import AgentSigner, list_keys, open_agent_key
from nixfleet.release.ssh_agent_errors import (
    MESSAGE_MAX,
    AgentAnswerError,
    AgentKeyNameError,
    AgentLacksKeyError,
    AgentRefusedError,
    AgentSilentError,
    NoAgentError,
    TooLongForAgentError,
)
from nixfleet.release.ssh_keys import parse_public_line
from tests.unit.nixfleet_samples import CI_KEY, OTHER_KEY, P256_KEY

MESSAGE: Final = b'{"what":"is signed"}'
ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
BLOB: Final = public_blob(CI_KEY.public_key.raw)
IDENTITY: Final = string(BLOB) + string(b"ci@example")
LISTED: Final = b"\x0c" + uint32(1) + IDENTITY
SIGNATURE: Final = b"\x0e" + string(string(b"ssh-ed25519") + string(CI_KEY.sign(MESSAGE)))
HANGS: Final = b""


# What a signer answered


def high_and_low() -> tuple[bytes, bytes]:
    low = P256_KEY.sign(MESSAGE)
    return low[:32] + (ORDER - int.from_bytes(low[32:], "big")).to_bytes(32, "big"), low


def der(raw: bytes) -> bytes:
    return utils.encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))


def test_a_p256_signature_gets_the_low_s_whatever_the_signer_gave_it() -> None:
    high, low = high_and_low()
    for answer in (high, low, der(high), der(low)):
        assert proven(P256_KEY.public_key, MESSAGE, answer, source="x") == low


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        bytes(64),
        b"\xff" * 64,
        OTHER_KEY.sign(MESSAGE),
        CI_KEY.sign(MESSAGE + b" "),
        CI_KEY.sign(MESSAGE) + b"\n",
        CI_KEY.sign(MESSAGE)[:63],
        der(P256_KEY.sign(MESSAGE + b" ")),
        b"\x30\x06\x02\x01\x00\x02\x01\x00",
    ],
)
def test_what_is_no_signature_by_the_key_never_comes_out(answer: bytes) -> None:
    for key in (CI_KEY.public_key, P256_KEY.public_key):
        with pytest.raises(UnprovenSignatureError, match="nothing was written"):
            proven(key, MESSAGE, answer, source="x")


def test_numbers_that_no_p256_signature_has_verify_nowhere() -> None:
    for r, s in ((0, 1), (1, 0), (-1, 1), (1, ORDER), (ORDER, 1), (1 << 300, 1)):
        assert not verify(P256_KEY.public_key, MESSAGE, raw_p256(r, s))


# ssh-agent: an agent of the test's own says what a real one never would


@contextmanager
def agent(directory: Path, *answers: bytes, whole: bool = False) -> Iterator[str]:
    """Answers one request after another; `HANGS` answers nothing. `whole`: the answers carry their own length."""
    path = str(directory / "agent")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        done = threading.Event()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    size = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
                    connection.recv(size, socket.MSG_WAITALL)
                    if answer == HANGS:
                        done.wait()
                    else:
                        connection.sendall(answer if whole else string(answer))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            done.set()
            thread.join()


def signer(path: str, within_s: float = 30.0) -> AgentSigner:
    return AgentSigner(socket_path=path, blob=BLOB, public_key=CI_KEY.public_key, wanted="the key", within_s=within_s)


def public_file(directory: Path, line: str | None = None) -> str:
    path = directory / "ci.pub"
    path.write_text(line or f"ssh-ed25519 {base64.b64encode(BLOB).decode()} ci@example\n")
    return str(path)


def test_the_agent_is_asked_for_the_key_that_is_named_and_signs(tmp_path: Path) -> None:
    with agent(tmp_path, LISTED, SIGNATURE) as path:
        opened = open_agent_key(public_file(tmp_path), socket_path=path)
        assert opened.public_key == CI_KEY.public_key
        assert opened.sign(MESSAGE) == CI_KEY.sign(MESSAGE)


def test_a_key_is_found_by_its_fingerprint_too(tmp_path: Path) -> None:
    with agent(tmp_path, LISTED, LISTED) as path:
        [identity] = list_keys(path)
        assert open_agent_key(identity.fingerprint, socket_path=path).blob == BLOB


def test_an_agent_without_the_key_is_told_of_with_the_keys_it_has(tmp_path: Path) -> None:
    other = string(public_blob(OTHER_KEY.public_key.raw)) + string(b"other\x1b[31m")
    with agent(tmp_path, b"\x0c" + uint32(1) + other) as path, pytest.raises(AgentLacksKeyError) as caught:
        open_agent_key(public_file(tmp_path), socket_path=path)
    assert "it holds SHA256:" in str(caught.value)
    assert "other[31m" in str(caught.value)


def test_an_agent_that_lists_nothing_may_be_locked(tmp_path: Path) -> None:
    with agent(tmp_path, b"\x0c" + uint32(0)) as path, pytest.raises(AgentLacksKeyError, match="ssh-add -X"):
        open_agent_key(public_file(tmp_path), socket_path=path)


def test_an_agent_that_refuses_is_told_of(tmp_path: Path) -> None:
    with agent(tmp_path, b"\x05") as path, pytest.raises(AgentRefusedError, match="refused to sign with the key"):
        signer(path).sign(MESSAGE)


def test_an_agent_that_hangs_is_waited_for_until_the_deadline(tmp_path: Path) -> None:
    with agent(tmp_path, HANGS) as path, pytest.raises(AgentSilentError, match=r"within 0.1 s"):
        signer(path, within_s=0.1).sign(MESSAGE)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x0e" + string(string(b"ssh-ed25519") + string(OTHER_KEY.sign(MESSAGE))),
        b"\x0e" + string(string(b"ssh-ed25519") + string(CI_KEY.sign(b"something else"))),
        b"\x0e" + string(string(b"ssh-ed25519") + string(b"")),
        b"\x0e" + string(string(b"ecdsa-sha2-nistp256") + string(string(b"\x01") + string(b"\xff"))),
    ],
)
def test_an_agent_that_signs_something_else_is_found_out(tmp_path: Path, answer: bytes) -> None:
    with agent(tmp_path, answer) as path, pytest.raises(UnprovenSignatureError, match="ssh-agent answered"):
        signer(path).sign(MESSAGE)


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (b"\x06", False),
        (b"\x0e", False),
        (b"\x0e" + string(b""), False),
        (SIGNATURE + b"more", False),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", True),
        (uint32(0), True),
        (uint32(2**32 - 1), True),
        (uint32(100) + b"short", True),
        (b"\x00", True),
    ],
)
def test_what_does_not_speak_the_protocol_is_no_agent(tmp_path: Path, answer: bytes, whole: bool) -> None:
    with agent(tmp_path, answer, whole=whole) as path, pytest.raises(AgentAnswerError, match="does not answer as an"):
        signer(path).sign(MESSAGE)


@pytest.mark.parametrize("answer", [b"\x05", b"\x0c", b"\x0c" + uint32(2**32 - 1) + IDENTITY, LISTED + b"\0"])
def test_a_list_of_keys_that_is_none_is_refused(tmp_path: Path, answer: bytes) -> None:
    with agent(tmp_path, answer) as path, pytest.raises(AgentAnswerError):
        list_keys(path)


def test_a_key_of_a_kind_that_signs_no_releases_is_listed_and_not_used(tmp_path: Path) -> None:
    rsa = string(b"ssh-rsa") + string(b"\x01\x00\x01") + string(b"\x7f" * 256)
    with agent(tmp_path, *[b"\x0c" + uint32(1) + string(rsa) + string(b"")] * 2) as path:
        [identity] = list_keys(path)
        with pytest.raises(AgentKeyNameError, match="of the kind ssh-rsa"):
            open_agent_key(identity.fingerprint, socket_path=path)


def test_what_is_too_long_for_an_agent_is_not_sent_to_it(tmp_path: Path) -> None:
    with pytest.raises(TooLongForAgentError, match="key file or an external command"):
        signer(str(tmp_path / "nowhere")).sign(bytes(MESSAGE_MAX))


@pytest.mark.parametrize("place", ["", "absent", "file"])
def test_where_no_agent_listens_it_says_where_it_looked(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoAgentError, match="SSH_AUTH_SOCK"):
        open_agent_key(public_file(tmp_path), socket_path=place and str(tmp_path / place))


@pytest.mark.parametrize("name", ["", "SHA256:", "SHA256:short", "SHA256:" + "é" * 43, "SHA256:" + "a" * 44])
def test_a_name_that_no_key_can_have_is_refused_before_an_agent_is_asked(name: str) -> None:
    with pytest.raises(AgentKeyNameError, match="ssh-add -l"):
        open_agent_key(name, socket_path="")


def line_of(*fields: bytes) -> str:
    return "x " + base64.b64encode(b"".join(map(string, fields))).decode()


@pytest.mark.parametrize(
    "line",
    [
        "words",
        "ssh-ed25519 !!!!",
        "ssh-ed25519 AAAA",
        line_of(b"ssh-rsa", b"\x01", b"\x02"),
        line_of(b"sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:"),
        line_of(b"ssh-ed25519", bytes(31)),
        line_of(b"ssh-ed25519", bytes(32)),
        line_of(b"ssh-ed25519", CI_KEY.public_key.raw, b"more"),
        line_of(b"ecdsa-sha2-nistp256", b"nistp384", b"\x04" + P256_KEY.public_key.raw),
        line_of(b"ecdsa-sha2-nistp256", b"nistp256", b"\x02" + P256_KEY.public_key.raw[:32]),
        line_of(b"ecdsa-sha2-nistp256", b"nistp256", b"\x04" + bytes(64)),
    ],
)
def test_a_public_key_file_of_another_kind_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(AgentKeyNameError, match="names no key"):
        open_agent_key(public_file(tmp_path, line), socket_path="")


def test_a_p256_line_is_read() -> None:
    line = line_of(b"ecdsa-sha2-nistp256", b"nistp256", b"\x04" + P256_KEY.public_key.raw)
    blob, key = parse_public_line(f"{line} a comment")
    assert key == P256_KEY.public_key
    assert Reader(blob).string() == b"ecdsa-sha2-nistp256"


# An external command


def printing(key: bytes, signature: bytes = b"", *, then: str = "") -> str:
    """A command line that answers so."""
    code = f"import os, sys\nasked = os.environ['NIXFLEET_SIGN']\nmessage = sys.stdin.buffer.read()\n{then}\n"
    code += f"sys.stdout.buffer.write({{'public-key': {key!r}, 'signature': {signature!r}}}[asked])"
    return shlex.join([sys.executable, "-S", "-c", code])


RAW_KEY: Final = base64.b64encode(CI_KEY.public_key.raw)
RAW_P256: Final = base64.b64encode(P256_KEY.public_key.raw)


def test_every_form_of_a_public_key_is_understood() -> None:
    assert isinstance(CI_KEY.key, Ed25519PrivateKey)
    assert isinstance(P256_KEY.key, ec.EllipticCurvePrivateKey)
    for key, text in ((CI_KEY, RAW_KEY), (P256_KEY, RAW_P256)):
        pem = key.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        line = key.key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        assert {parse_public_key(form) for form in (pem, line, text, text + b"\n")} == {key.public_key}


@pytest.mark.parametrize("form", ["raw", "base64", "lines", "der", "der in base64"])
def test_every_form_of_a_signature_is_understood(form: str) -> None:
    raw = P256_KEY.sign(MESSAGE)
    answers = {
        "raw": raw,
        "base64": base64.b64encode(raw) + b"\n",
        "lines": base64.encodebytes(raw),
        "der": der(raw),
        "der in base64": base64.b64encode(der(raw)),
    }
    assert open_command(printing(RAW_P256, answers[form])).sign(MESSAGE) == raw


def test_a_command_is_given_the_message_and_no_shell(tmp_path: Path) -> None:
    copy = tmp_path / "message $(touch pwned); true"
    then = f"open({str(copy)!r}, 'wb').write(message)"
    command = open_command(printing(RAW_KEY, CI_KEY.sign(MESSAGE), then=then))
    assert command.public_key == CI_KEY.public_key
    assert command.sign(MESSAGE) == CI_KEY.sign(MESSAGE)
    assert copy.read_bytes() == MESSAGE


def test_a_long_message_reaches_a_command_that_answers_before_it_has_read_it() -> None:
    code = f"import sys; sys.stdout.write({RAW_KEY.decode()!r})"
    command = open_command(shlex.join([sys.executable, "-S", "-c", code]))
    with pytest.raises(UnprovenSignatureError, match="the signing command"):
        command.sign(bytes(8 * 1024 * 1024))


def test_a_command_that_signs_with_another_key_is_found_out() -> None:
    with pytest.raises(UnprovenSignatureError, match=CI_KEY.public_key.key_id):
        open_command(printing(RAW_KEY, OTHER_KEY.sign(MESSAGE))).sign(MESSAGE)


def test_a_command_that_fails_is_shown_with_what_it_said_and_without_its_arguments() -> None:
    code = "import sys; print('\\x1b[31mthe token is locked', file=sys.stderr); sys.exit(7)"
    with pytest.raises(SigningCommandError) as caught:
        open_command(shlex.join([sys.executable, "-S", "-c", code, "--pin", "THE-SECRET"]))
    said = str(caught.value)
    assert "ended with status 7" in said
    assert "  [31mthe token is locked" in said
    assert "THE-SECRET" not in said
    assert "THE-SECRET" not in repr(caught.value)


@pytest.mark.parametrize("ends", ["import time; time.sleep(600)", "os.fork() or __import__('time').sleep(600)"])
def test_a_command_that_hangs_is_ended_with_all_that_it_started(ends: str) -> None:
    code = f"import os; {ends}; __import__('time').sleep(600)"
    with pytest.raises(SigningCommandError, match=r"did not end within 0.3 s"):
        open_command(shlex.join([sys.executable, "-S", "-c", code]), within_s=0.3)


def test_a_command_that_leaves_a_child_behind_is_done_when_it_ends() -> None:
    code = f"import os, sys, time\nif os.fork() == 0: time.sleep(600)\nsys.stdout.write({RAW_KEY.decode()!r})"
    assert open_command(shlex.join([sys.executable, "-S", "-c", code])).public_key == CI_KEY.public_key


def test_a_command_that_closes_its_output_and_stays_is_ended_too() -> None:
    code = "import os, time; os.close(0); os.close(1); os.close(2); time.sleep(600)"
    with pytest.raises(SigningCommandError, match="did not end within"):
        open_command(shlex.join([sys.executable, "-S", "-c", code]), within_s=0.5)


def test_a_command_that_prints_without_end_is_stopped() -> None:
    with pytest.raises(SigningCommandError, match="printed more than 65536 bytes"):
        open_command("cat /dev/zero")


@pytest.mark.parametrize("key", [b"", b"nonsense", base64.b64encode(bytes(32)), base64.b64encode(bytes(33)), b"\xff"])
def test_a_command_that_tells_no_key_is_refused(key: bytes) -> None:
    with pytest.raises(SigningCommandError, match="printed no ed25519 or P-256 key"):
        open_command(printing(key))


@pytest.mark.parametrize(
    "words", ["", " ", "''", "'THE-SECRET", "/nowhere/at/all THE-SECRET", "PIN=THE-SECRET sign", "/etc THE-SECRET"]
)
def test_what_is_no_command_line_is_refused_without_being_repeated(words: str) -> None:
    with pytest.raises(CommandWordsError, match="write command:PROGRAM") as caught:
        open_command(words)
    assert "THE-SECRET" not in str(caught.value) + repr(caught.value)


def test_the_name_of_a_key_says_where_it_lives(tmp_path: Path) -> None:
    assert open_signer(f"command:{printing(RAW_KEY)}", "key").public_key == CI_KEY.public_key
    for name in ("agent:", "command:", str(tmp_path / "absent")):
        with pytest.raises(StoppedError, match="CI release key"):
            open_signer(name, "CI release key")
