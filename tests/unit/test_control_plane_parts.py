"""Small parts by themselves: names, certificates, limits, settings, and the one line that says what is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from control_plane.__main__ import run
from control_plane.artifact_source import DirectorySource, SourceError
from control_plane.config import Configuration, loopback_port
from control_plane.errors import BadRequestError, ConfigurationError, UnreadableFileError
from control_plane.identity import CanonicalNames
from control_plane.issuance import BACK_DATING_MS, Issuer, load_issuer, parse_request
from control_plane.rate_limit import RateLimit
from control_plane.tls import server_context
from state_machine.values import HostName, WallMs
from tests.cplab import Lab

NOW = WallMs(1_790_000_000_000)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("parts"), hosts=("web1",))


# Names


@pytest.mark.parametrize(
    ("suffix", "cn", "machine"),
    [
        ("fleet.test", "agent-web1.fleet.test", "web1"),
        ("fleet.test", "agent-a.b.fleet.test", "a.b"),
        ("fleet.test", "web1", "web1"),
        ("fleet.test", "agent-web1.other.test", "agent-web1.other.test"),
        ("fleet.test", "agent-.fleet.test", "agent-.fleet.test"),
        ("fleet.test", "xagent-web1.fleet.test", "xagent-web1.fleet.test"),
        (None, "agent-web1.fleet.test", "agent-web1.fleet.test"),
    ],
)
def test_a_machine_id_is_the_name_without_prefix_and_suffix(suffix: str | None, cn: str, machine: str) -> None:
    assert CanonicalNames(suffix=suffix).machine_id(cn) == machine


@pytest.mark.parametrize("suffix", ["fleet.test", None])
def test_a_canonical_name_stands_for_its_machine(suffix: str | None) -> None:
    names = CanonicalNames(suffix=suffix)
    assert names.machine_id(names.of(HostName("web1"))) == "web1"


# Certificates


def issued(lab: Lab, issuer: Issuer, floor: int | None = None) -> x509.Certificate:
    request = parse_request(lab.csr("web1"))
    made = issuer.issue(request, HostName("web1"), NOW, not_before_floor=None if floor is None else WallMs(floor))
    return x509.load_pem_x509_certificate(made.pem.encode())


def begins_ms(certificate: x509.Certificate) -> int:
    return int(certificate.not_valid_before_utc.timestamp() * 1000)


def test_a_certificate_begins_five_minutes_ago(lab: Lab) -> None:
    assert begins_ms(issued(lab, lab.issuer())) == NOW - BACK_DATING_MS


@pytest.mark.parametrize("before_now_ms", [1, 999, 1000, 60_000])
def test_a_certificate_never_begins_before_its_hosts_revocation(lab: Lab, before_now_ms: int) -> None:
    floor = NOW - before_now_ms
    assert floor <= begins_ms(issued(lab, lab.issuer(), floor)) <= NOW


def test_a_revocation_long_past_or_still_to_come_changes_nothing(lab: Lab) -> None:
    for floor in (NOW - 86_400_000, NOW + 60_000):
        assert begins_ms(issued(lab, lab.issuer(), floor)) == NOW - BACK_DATING_MS


def test_a_certificate_ends_no_later_than_its_ca(lab: Lab) -> None:
    long = attrs.evolve(lab.issuer(), validity_s=100 * 365 * 86_400)
    assert issued(lab, long).not_valid_after_utc <= long.certificate.not_valid_after_utc


def test_a_name_that_no_certificate_can_carry_is_refused(lab: Lab) -> None:
    request = parse_request(lab.csr("web1"))
    with pytest.raises(BadRequestError):
        lab.issuer().issue(request, HostName("x" * 200), NOW)


def test_a_request_with_two_names_is_refused(lab: Lab) -> None:
    second = x509.NameAttribute(NameOID.COMMON_NAME, "web2")
    with pytest.raises(BadRequestError, match="2 common names"):
        parse_request(lab.csr("web1", subject=[second]))


def test_ca_files_that_do_not_belong_together_are_found_at_start(lab: Lab) -> None:
    names = CanonicalNames()
    with pytest.raises(UnreadableFileError, match="not the key of the certificate"):
        load_issuer(lab.path("ca.pem"), lab.path("server-key.pem"), names, 60)
    for certificate, key in (("ca.pem", "missing.pem"), ("trust.json", "ca-key.pem"), ("ca.pem", "trust.json")):
        with pytest.raises(UnreadableFileError, match="--fleet-ca-"):
            load_issuer(lab.path(certificate), lab.path(key), names, 60)


def test_an_encrypted_ca_key_says_so(lab: Lab, tmp_path: Path) -> None:
    encrypted = tmp_path / "encrypted.pem"
    encrypted.write_bytes(
        lab.authority.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(UnreadableFileError, match="it is encrypted"):
        load_issuer(lab.path("ca.pem"), encrypted, CanonicalNames(), 60)


def test_tls_files_that_cannot_be_used_are_named_with_their_flag(lab: Lab) -> None:
    cases = (
        ("missing.pem", "server-key.pem", "ca.pem", "--tls-cert"),
        ("server.pem", "missing.pem", "ca.pem", "--tls-key"),
        ("server.pem", "ca-key.pem", "ca.pem", "--tls-cert"),
        ("server.pem", "server-key.pem", "trust.json", "--client-ca"),
    )
    for certificate, key, ca, flag in cases:
        with pytest.raises(UnreadableFileError) as refused:
            server_context(lab.path(certificate), lab.path(key), lab.path(ca))
        assert refused.value.flag == flag


# Limits


async def test_a_caller_may_do_a_few_things_at_once_and_then_one_at_a_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limit = RateLimit(per_minute=6, burst=3)
    assert [limit.allows("a") for _ in range(4)] == [True, True, True, False]
    assert limit.allows("b")
    await trio.sleep(10)
    assert [limit.allows("a") for _ in range(2)] == [True, False]


async def test_many_callers_share_what_is_left_and_memory_stays_flat(autojump_clock: trio.testing.MockClock) -> None:
    limit = RateLimit(per_minute=6, burst=1, callers=10)
    allowed = sum(limit.allows(f"address {number}") for number in range(1000))
    assert allowed == 11
    await trio.sleep(60)
    assert limit.allows("somebody new")


# Sources


async def test_a_file_without_its_signature_is_not_nothing(tmp_path: Path) -> None:
    source = DirectorySource(root=tmp_path)
    assert await source.fetch("fleet.resolved.json") is None
    (tmp_path / "fleet.resolved.json").write_bytes(b"{}")
    with pytest.raises(SourceError, match=r"its \.sig is missing"):
        await source.fetch("fleet.resolved.json")


async def test_only_files_named_like_rollouts_are_listed(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    for name in ("stable@c0ffee.json", "stable@c0ffee.json.sig", "nonsense.json", ".hidden@0.json", "a@b@c.json"):
        (tmp_path / "rollouts" / name).touch()
    assert await DirectorySource(root=tmp_path).listed() == ("stable@c0ffee",)


# Settings and the command line


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"listen": "nowhere"}, "--listen"),
        ({"listen": "127.0.0.1:99999"}, "--listen"),
        ({"metrics_listen": ":80"}, "--metrics-listen"),
        ({"artifacts": "/nowhere/at/all"}, "--artifacts"),
        ({"artifacts": "http://insecure.example"}, "--artifacts"),
        ({"closure_upstream": "ftp://cache"}, "--closure-upstream"),
        ({"agent_cert_validity_secs": 59}, "--agent-cert-validity-secs"),
        ({"fleet_ca_cert": Path("x")}, "--fleet-ca-key"),
        ({"fleet_ca_key": Path("x")}, "--fleet-ca-cert"),
        ({"strict": True}, "--client-ca"),
        ({"trust_file": Path("/nowhere/trust.json")}, "--trust-file"),
    ],
    ids=lambda value: json.dumps(value, default=str) if isinstance(value, dict) else value,
)
def test_settings_that_cannot_work_name_the_flag_to_change(
    lab: Lab, tmp_path: Path, change: dict[str, Any], names: str
) -> None:
    trust = lab.path("trust.json")
    good = Configuration(tls_cert=Path("c"), tls_key=Path("k"), artifacts=str(tmp_path), trust_file=trust)
    good.check()
    with pytest.raises(ConfigurationError, match=names):
        attrs.evolve(good, **change).check()


def test_a_port_alone_is_one_of_the_loopback_interface() -> None:
    assert loopback_port("9100") == "127.0.0.1:9100"
    assert loopback_port("0.0.0.0:9100") == "0.0.0.0:9100"
    assert loopback_port(None) is None


def test_a_wrong_start_is_one_line_and_status_2(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert capsys.readouterr().err == (
        "nixfleet-control-plane: --tls-cert is missing: the server cannot show who it is without a certificate. "
        "Give it, or set NIXFLEET_CP_TLS_CERT\n"
    )
    assert run(["--no-such-flag"]) == 2


def test_a_taken_port_is_found_before_anything_is_written(lab: Lab, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = lab.arguments(listen=address, db_path=tmp_path / "state.db")
        process = subprocess.run(line, capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith(f"nixfleet-control-plane: cannot listen on {address}: ")
    assert not (tmp_path / "state.db").exists()


def test_every_flag_can_be_given_by_the_environment(lab: Lab) -> None:
    settings = {
        "TLS_CERT": lab.path("missing.pem"),
        "TLS_KEY": lab.path("server-key.pem"),
        "ARTIFACTS": lab.artifacts,
        "TRUST_FILE": lab.path("trust.json"),
    }
    environment = {f"NIXFLEET_CP_{name}": str(value) for name, value in settings.items()}
    process = subprocess.run(
        [sys.executable, "-m", "control_plane"], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert "--tls-cert" in process.stderr
    assert "missing.pem" in process.stderr
