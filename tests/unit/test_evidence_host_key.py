"""Host keys: real ssh-keygen's files, ours read by ssh-keygen, and what each broken file is told."""

import base64
import os
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from evidence.host_key import FILE_LIMIT, HostKey, generate_host_key, load_host_key
from evidence.host_key_errors import (
    HostKeyCorruptError,
    HostKeyEncryptedError,
    HostKeyError,
    HostKeyExistsError,
    HostKeyMismatchError,
    HostKeyMissingError,
    HostKeyNotAFileError,
    HostKeyUnreadableError,
    HostKeyWrongTypeError,
)
from evidence.private_key_formats import openssh_private_pem, parse_private_key
from evidence.ssh_format import SshFormatError, openssh_public_line, parse_openssh_public, public_blob, string
from state_machine.values import Reason

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")  # RFC 8032 section 7.1
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
PATH = Path("/etc/ssh/ssh_host_ed25519_key")


def _keygen(path: Path, *options: str) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-f", path, *options], check=True, capture_output=True)
    return path


def _refusal(data: bytes) -> HostKeyError:
    with pytest.raises(HostKeyError) as caught:
        parse_private_key(data, path=PATH)
    return caught.value


def _pem(label: str, body: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(body).decode()}-----END {label}-----\n".encode()


@needs_ssh_keygen
@pytest.mark.parametrize("comment", ["", "a", "root@node7", "a comment of forty-one characters, no less", "ünïcode"])
def test_a_key_made_by_ssh_keygen_is_read(tmp_path: Path, comment: str) -> None:
    path = _keygen(tmp_path / "key", "-t", "ed25519", "-N", "", "-C", comment)
    key = load_host_key(path)
    assert path.with_suffix(".pub").read_text().split()[:2] == key.openssh_public.split()
    assert parse_openssh_public(path.with_suffix(".pub").read_text()) == key.public


@needs_ssh_keygen
def test_ssh_keygen_reads_a_key_we_wrote(tmp_path: Path) -> None:
    key = generate_host_key()
    key.write_openssh(tmp_path / "key", comment="root@node7")
    shown = subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / "key"], check=True, capture_output=True, text=True)
    assert shown.stdout == f"{key.openssh_public} root@node7\n"


@needs_ssh_keygen
@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("-t", "rsa", "-b", "1024", "-N", ""), "an RSA key"),
        (("-t", "rsa", "-b", "1024", "-N", "", "-m", "PEM"), "an RSA key"),
        (("-t", "rsa", "-b", "1024", "-N", "", "-m", "PKCS8"), "an RSA key"),
        (("-t", "rsa", "-b", "1024", "-N", "hunter2"), "an RSA key"),
        (("-t", "ecdsa", "-N", ""), "a key of type ecdsa-sha2-nistp256"),
        (("-t", "ecdsa", "-b", "521", "-N", ""), "a key of type ecdsa-sha2-nistp521"),
        (("-t", "ecdsa", "-N", "", "-m", "PEM"), "an ECDSA key"),
        (("-t", "ecdsa", "-N", "", "-m", "PKCS8"), "an ECDSA key"),
    ],
)
def test_another_kind_of_key_is_named(tmp_path: Path, options: tuple[str, ...], found: str) -> None:
    path = _keygen(tmp_path / "key", *options)
    with pytest.raises(HostKeyWrongTypeError, match="ssh-keygen -t ed25519") as caught:
        load_host_key(path)
    assert caught.value.found == found
    assert str(path) in str(caught.value)


@needs_ssh_keygen
def test_an_encrypted_key_says_how_to_take_the_passphrase_off(tmp_path: Path) -> None:
    path = _keygen(tmp_path / "key", "-t", "ed25519", "-N", "hunter2")
    with pytest.raises(HostKeyEncryptedError, match=r"aes256-ctr.*ssh-keygen -p -N ''"):
        load_host_key(path)
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "hunter2", "-N", "", "-f", path], check=True, capture_output=True)
    load_host_key(path)


@needs_ssh_keygen
def test_a_public_key_file_is_recognised_as_one(tmp_path: Path) -> None:
    path = _keygen(tmp_path / "key", "-t", "ed25519", "-N", "")
    with pytest.raises(HostKeyWrongTypeError, match="a public key"):
        load_host_key(path.with_suffix(".pub"))


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(HostKeyMissingError, match=r"ssh-keygen -A.*--ssh-host-key-file"):
        load_host_key(tmp_path / "key")


def test_a_directory_a_pipe_a_socket_and_a_device_are_no_key_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path, found in [
            (tmp_path, "directory"),
            (tmp_path / "pipe", "pipe"),
            (tmp_path / "socket", "socket"),
            (Path("/dev/zero"), "device"),
        ]:
            with pytest.raises(HostKeyNotAFileError) as caught:
                load_host_key(path)
            assert caught.value.found == found


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Root may read everything, so an unreadable file needs somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_key_we_may_not_read_says_who_may(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(openssh_private_pem(SEED, PUBLIC, comment=""))
    path.chmod(0)
    with _as_nobody(), pytest.raises(HostKeyUnreadableError, match=r"permission denied.*as its owner"):
        load_host_key(path)


def test_a_path_that_goes_through_a_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostKeyUnreadableError, match="not a directory"):
        load_host_key(tmp_path / "file" / "key")


def test_a_truncated_key_says_how_long_it_was() -> None:
    whole = openssh_private_pem(SEED, PUBLIC, comment="root@node7")
    for size in range(len(whole) - 1):
        error = _refusal(whole[:size])
        assert isinstance(error, HostKeyCorruptError)
        assert error.size == size
        assert f"({size} bytes)" in str(error)
    # Only the line break after the last line may be missing.
    assert parse_private_key(whole[:-1], path=PATH) == SEED


def test_a_truncated_key_in_whole_armor_says_what_is_missing() -> None:
    body = base64.b64decode(b"".join(openssh_private_pem(SEED, PUBLIC, comment="x").splitlines()[1:-1]))
    for size in range(len(body)):
        error = _refusal(_pem("OPENSSH PRIVATE KEY", body[:size]))
        assert isinstance(error, HostKeyCorruptError), size


def test_a_flipped_bit_never_yields_a_key_that_is_not_the_one_inside() -> None:
    body = bytearray(base64.b64decode(b"".join(openssh_private_pem(SEED, PUBLIC, comment="").splitlines()[1:-1])))
    for at in range(len(body)):
        body[at] ^= 1
        with suppress(HostKeyError):
            assert parse_private_key(_pem("OPENSSH PRIVATE KEY", bytes(body)), path=PATH) == SEED
        body[at] ^= 1


def _container(
    *,
    outer: bytes = PUBLIC,
    inner: bytes = PUBLIC,
    pair: bytes = SEED + PUBLIC,
    checks: bytes = b"abcdabcd",
    padding: bytes = b"\1\2\3\4",
    after_section: bytes = b"",
    kdf: bytes = b"none",
    kdf_options: bytes = b"",
    count: int = 1,
) -> bytes:
    """An openssh-key-v1 file put together by hand, right unless told otherwise."""
    section = checks + public_blob(inner) + string(pair) + string(b"c") + padding
    head = b"openssh-key-v1\0" + string(b"none") + string(kdf) + string(kdf_options) + struct.pack(">I", count)
    return _pem("OPENSSH PRIVATE KEY", head + string(public_blob(outer)) + string(section) + after_section)


def test_a_file_put_together_by_hand_is_read() -> None:
    assert parse_private_key(_container(), path=PATH) == SEED


@pytest.mark.parametrize("copy", ["outer", "inner", "pair"])
def test_each_copy_of_the_public_half_has_to_belong_to_the_private_half(copy: str) -> None:
    other = generate_host_key().public
    parts: dict[str, Any] = {copy: SEED + other if copy == "pair" else other}
    assert isinstance(_refusal(_container(**parts)), HostKeyMismatchError)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"checks": b"abcdabce"}, "check numbers differ"),
        ({"padding": b""}, "padding"),
        ({"padding": b"\1\2\3"}, "padding"),
        ({"padding": b"\1\2\3\5"}, "padding"),
        ({"padding": bytes(range(1, 13))}, "padding"),
        ({"after_section": b"x"}, "1 bytes follow the last field"),
        ({"kdf": b"bcrypt"}, "a key derivation but no cipher"),
        ({"kdf_options": b"salt"}, "a key derivation but no cipher"),
        ({"count": 0}, "announces 0 keys"),
        ({"count": 2}, "announces 2 keys"),
        ({"pair": SEED}, "32 bytes instead of 64"),
    ],
)
def test_what_ssh_keygen_would_not_have_written_is_refused(parts: dict[str, Any], problem: str) -> None:
    error = _refusal(_container(**parts))
    assert isinstance(error, HostKeyCorruptError)
    assert problem in error.problem


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "does not begin like a private key file"),
        (b"\0" * 399, "does not begin like a private key file"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n!!!!\n-----END OPENSSH PRIVATE KEY-----\n", "not base64"),
        (_pem("OPENSSH PRIVATE KEY", b"not the magic words"), "not in the openssh-key-v1 format"),
        (_pem("PRIVATE KEY", b"0" * 48), "not an ed25519 key in PKCS#8 form"),
        (openssh_private_pem(SEED, PUBLIC, comment="") + b"and more", "text surrounds its block"),
    ],
)
def test_a_damaged_file_says_what_is_wrong_with_it(data: bytes, problem: str) -> None:
    error = _refusal(data)
    assert isinstance(error, HostKeyCorruptError)
    assert problem in error.problem
    assert error.size == len(data)


def test_a_file_far_too_long_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"-" * (FILE_LIMIT + 1))
    with pytest.raises(HostKeyCorruptError, match="far too long"):
        load_host_key(path)


def test_windows_line_ends_do_no_harm() -> None:
    windows = openssh_private_pem(SEED, PUBLIC, comment="").replace(b"\n", b"\r\n")
    assert parse_private_key(windows, path=PATH) == SEED


@pytest.mark.parametrize(
    "encoding", [(Encoding.PEM, PrivateFormat.OpenSSH), (Encoding.PEM, PrivateFormat.PKCS8)], ids=["openssh", "pkcs8"]
)
def test_what_the_general_library_writes_is_read_the_same(encoding: tuple[Encoding, PrivateFormat]) -> None:
    for _ in range(20):
        theirs = ed25519.Ed25519PrivateKey.generate()
        ours = HostKey(seed=parse_private_key(theirs.private_bytes(*encoding, NoEncryption()), path=PATH))
        assert ours.public == theirs.public_key().public_bytes_raw()
        assert ours.sign(b"message") == theirs.sign(b"message")
        assert ours.openssh_public.encode() == theirs.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def test_what_we_write_the_general_library_reads_the_same() -> None:
    key = HostKey(seed=SEED)
    openssh = openssh_private_pem(SEED, PUBLIC, comment="root@node7")
    for theirs in (
        serialization.load_pem_private_key(key.pkcs8_pem(), None),
        serialization.load_ssh_private_key(openssh, None),
    ):
        assert isinstance(theirs, ed25519.Ed25519PrivateKey)
        assert theirs.private_bytes_raw() == SEED


def test_pkcs8_of_version_two_is_read_and_its_public_half_checked() -> None:
    # RFC 8410 section 10.3, without its optional attributes.
    body = bytes.fromhex("3051020101300506032b657004220420") + SEED + bytes.fromhex("812100") + PUBLIC
    assert parse_private_key(_pem("PRIVATE KEY", body), path=PATH) == SEED
    assert isinstance(_refusal(_pem("PRIVATE KEY", body[:-1] + b"\0")), HostKeyMismatchError)


@pytest.mark.parametrize(
    ("key", "found"),
    [
        (rsa.generate_private_key(65537, 1024), "an RSA key"),
        (ec.generate_private_key(ec.SECP256R1()), "an ECDSA key"),
        (ec.generate_private_key(ec.SECP521R1()), "an ECDSA key"),
        (x25519.X25519PrivateKey.generate(), "an X25519 key"),
        (ed448.Ed448PrivateKey.generate(), "an Ed448 key"),
    ],
    ids=["rsa", "p256", "p521", "x25519", "ed448"],
)
def test_another_key_in_pkcs8_is_named(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, found: str) -> None:
    error = _refusal(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    assert isinstance(error, HostKeyWrongTypeError)
    assert error.found == found


def test_an_encrypted_pkcs8_key_is_said_to_be_encrypted() -> None:
    encryption = serialization.BestAvailableEncryption(b"hunter2")
    data = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    assert isinstance(_refusal(data), HostKeyEncryptedError)


def test_a_written_key_is_for_its_owner_only_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    key = generate_host_key()
    key.write_openssh(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]
    assert load_host_key(tmp_path / "key") == key


def test_an_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    first = generate_host_key()
    first.write_openssh(tmp_path / "key")
    with pytest.raises(HostKeyExistsError, match="move it away first"):
        generate_host_key().write_openssh(tmp_path / "key")
    assert load_host_key(tmp_path / "key") == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_the_secret_half_is_in_no_repr_and_no_error() -> None:
    key = HostKey(seed=SEED)
    error = _refusal(openssh_private_pem(SEED, bytes(32), comment=""))
    for shown in (repr(key), str(key), repr(error), str(error)):
        assert SEED.hex() not in shown
        assert repr(SEED)[2:-1] not in shown
        assert base64.b64encode(SEED).decode()[:-2] not in shown


def test_the_fingerprint_is_over_the_raw_public_key() -> None:
    # base64(sha256(PUBLIC)), computed with coreutils.
    assert HostKey(seed=SEED).public == PUBLIC
    assert HostKey(seed=SEED).fingerprint == "If4x36FUomFia/hUBG/SJxt77UtqvkWqWId+9H+XIbk="


@pytest.mark.parametrize("seed", [b"", b"x" * 31, b"x" * 33])
def test_a_seed_of_another_length_makes_no_key(seed: bytes) -> None:
    with pytest.raises(ValueError, match="32"):
        HostKey(seed=seed)


@pytest.mark.parametrize("suffix", ["", " root@node7", " a comment with spaces", "\n"])
def test_a_public_key_line_may_have_a_comment(suffix: str) -> None:
    assert parse_openssh_public(openssh_public_line(PUBLIC) + suffix) == PUBLIC


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "needs a type"),
        ("ssh-ed25519", "needs a type"),
        ("ssh-rsa AAAAB3NzaC1yc2E=", "the key type is ssh-rsa"),
        ("ssh-ed25519 !!!", "not base64"),
        ("ssh-ed25519 ü", "not base64"),
        (f"ssh-ed25519 {base64.b64encode(string(b'ssh-rsa') + string(PUBLIC)).decode()}", "the key type is ssh-rsa"),
        (f"ssh-ed25519 {base64.b64encode(public_blob(PUBLIC[:-1])).decode()}", "31 bytes instead of 32"),
        (f"ssh-ed25519 {base64.b64encode(public_blob(PUBLIC)[:-1]).decode()}", "32 bytes is announced where 31"),
        (f"ssh-ed25519 {base64.b64encode(public_blob(PUBLIC) + b'x').decode()}", "1 bytes follow"),
        (f'command="id" {openssh_public_line(PUBLIC)}', "the key type is command"),
        (f"{openssh_public_line(PUBLIC)}\n{openssh_public_line(PUBLIC)}", "more than one line"),
    ],
)
def test_what_is_no_public_key_line_says_why(line: str, problem: str) -> None:
    with pytest.raises(SshFormatError) as caught:
        parse_openssh_public(line)
    assert problem in caught.value.detail
    assert caught.value.reason is Reason.BAD_KEY
