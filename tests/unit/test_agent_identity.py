"""Whose a certificate is, whether it fits the key, and that what is remembered of it is only a memory."""

import resource
import stat
from pathlib import Path

import pytest

from nixfleet_agent import identity
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.files import write_atomically
from nixfleet_agent.tls import client_context, server_context
from state_machine.values import HostName, WallMs
from tests.cplab import Lab

WEB1 = HostName("web1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("identity"), hosts=("web1", "web2"))
    for host in lab.hosts:
        lab.keys[host].write_openssh(lab.path(f"{host}-openssh"))
    return lab


def certificate(cn: str, *, fits_key: bool = True) -> identity.Certificate:
    return identity.Certificate(pem=b"", cn=cn, not_before=WallMs(0), not_after=WallMs(1), fits_key=fits_key)


@pytest.mark.parametrize(
    ("cn", "own"),
    [
        ("web1", True),
        ("agent-web1.fleet.example", True),
        ("agent-web1.x", True),
        ("web10", False),
        ("agent-web1", False),
        ("agent-web10.fleet.example", False),
        ("agent-web.fleet.example", False),
        ("web1.fleet.example", False),
        ("", False),
    ],
)
def test_whose_a_common_name_is(cn: str, own: bool) -> None:
    assert certificate(cn).is_for(WEB1) is own


def test_a_certificate_of_another_machine_is_refused_naming_both() -> None:
    with pytest.raises(ConfigurationError) as caught:
        identity.require_own(certificate("agent-web2.fleet.example"), WEB1, Path("/var/lib/cert.pem"))
    for word in ("web1", "agent-web2.fleet.example", "/var/lib/cert.pem"):
        assert word in str(caught.value)


def test_a_certificate_for_another_key_is_refused_saying_what_to_do() -> None:
    with pytest.raises(ConfigurationError, match="remove it and enrol again"):
        identity.require_own(certificate("web1", fits_key=False), WEB1, Path("/var/lib/cert.pem"))


async def test_what_a_certificate_says_is_read_and_remembered(lab: Lab, tmp_path: Path) -> None:
    pem, key, memory = lab.path("web1.pem").read_bytes(), lab.path("web1-openssh"), tmp_path / "certificate.json"
    first = await identity.inspect(pem, key, remember=memory)
    assert (first.cn, first.fits_key) == ("agent-web1.fleet.test", True)
    assert first.not_before < first.not_after
    assert stat.S_IMODE(memory.stat().st_mode) == 0o600
    assert await identity.inspect(pem, key, remember=memory) == first


async def test_the_memory_is_for_these_very_bytes_and_this_key(lab: Lab, tmp_path: Path) -> None:
    memory = tmp_path / "certificate.json"
    await identity.inspect(lab.path("web1.pem").read_bytes(), lab.path("web1-openssh"), remember=memory)
    other = await identity.inspect(lab.path("web1.pem").read_bytes(), lab.path("web2-openssh"), remember=memory)
    assert other.fits_key is False


@pytest.mark.parametrize("kept", [b"", b"{", b"[]", b"null", b'{"stamp": 1}', b'{"stamp": "x", "facts": {}}', b"\xff"])
async def test_a_memory_that_was_damaged_is_made_again(lab: Lab, tmp_path: Path, kept: bytes) -> None:
    pem, key, memory = lab.path("web1.pem").read_bytes(), lab.path("web1-openssh"), tmp_path / "certificate.json"
    memory.write_bytes(kept)
    assert (await identity.inspect(pem, key, remember=memory)).fits_key
    assert memory.read_bytes() != kept


async def test_where_nothing_can_be_remembered_the_certificate_is_good_all_the_same(lab: Lab, tmp_path: Path) -> None:
    pem, key = lab.path("web1.pem").read_bytes(), lab.path("web1-openssh")
    assert (await identity.inspect(pem, key, remember=tmp_path / "absent" / "certificate.json")).fits_key


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
async def test_what_is_no_certificate_is_said_in_one_line(lab: Lab, pem: bytes) -> None:
    with pytest.raises(identity.UnusableCertificateError) as caught:
        await identity.inspect(pem, lab.path("web1-openssh"))
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["absent", "directory", "garbage"])
async def test_a_key_that_cannot_be_used_is_said_in_one_line(lab: Lab, tmp_path: Path, key: str) -> None:
    path = tmp_path / key
    if key == "directory":
        path.mkdir()
    if key == "garbage":
        path.write_bytes(b"garbage")
    for ask in (identity.inspect(lab.path("web1.pem").read_bytes(), path), identity.make_csr(WEB1, path)):
        with pytest.raises(identity.UnusableCertificateError) as caught:
            await ask
        assert "\n" not in str(caught.value)


def test_a_certificate_file_that_is_a_directory_is_an_error_and_an_absent_one_is_not(tmp_path: Path) -> None:
    assert identity.read_pem(tmp_path / "absent") is None
    with pytest.raises(identity.UnusableCertificateError):
        identity.read_pem(tmp_path)


def test_a_client_context_takes_the_host_key_in_openssh_form_and_leaves_no_copy(lab: Lab) -> None:
    client_context(lab.path("ca.pem"), lab.path("web1.pem"), lab.path("web1-openssh"))
    client_context(lab.path("ca.pem"), lab.path("web1.pem"), lab.path("web1-key.pem"))


@pytest.mark.parametrize(("cert", "key"), [("web1.pem", "web2-openssh"), ("ca-key.pem", "web1-openssh")])
def test_certificate_and_key_that_do_not_belong_together_are_a_configuration_error(
    lab: Lab, cert: str, key: str
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used together"):
        client_context(lab.path("ca.pem"), lab.path(cert), lab.path(key))


@pytest.mark.parametrize("ca", ["absent.pem", "web1-key.pem"])
def test_a_ca_that_cannot_be_used_is_a_configuration_error(lab: Lab, ca: str) -> None:
    with pytest.raises(ConfigurationError, match="--ca-cert"):
        server_context(lab.path(ca))


def test_a_file_is_written_whole_with_its_mode_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "absent" / "cert.pem", b"three")
    assert [entry.name for entry in tmp_path.iterdir()] == ["cert.pem"]


def test_what_is_there_stays_when_a_write_fails_half_way(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    write_atomically(path, b"one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(path, b"two" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["cert.pem"]
